"""A function or an agent of the user's as an executor: whatever Python can call, under the same laws as a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, PlainSerializer, PrivateAttr, StringConstraints, WithJsonSchema

from prefect_dispatch.errors import BriefError, JobError
from prefect_dispatch.executors.prompt import PROMPT
from prefect_dispatch.executors.read_files import digests
from prefect_dispatch.executors.worker_reply import reply_of
from prefect_dispatch.executors.worker_source import source_identity
from prefect_dispatch.executors.workers import Worker, worker_of
from prefect_dispatch.fingerprint import digest
from prefect_dispatch.references import REFERENCE, refer, resolve
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Ask, Reply
    from prefect_dispatch.models import Brief, Item


def _answers(value: object) -> object:
    if isinstance(value, str) and not REFERENCE.fullmatch(value):
        msg = f"must be a function, an agent, or 'module:name' of one, not {value!r}"
        raise ValueError(msg)
    if not isinstance(value, str):
        try:
            worker_of(value)
        except JobError as error:
            raise ValueError(str(error)) from None
    return value


_Callable = Annotated[
    Any,
    AfterValidator(_answers),
    PlainSerializer(refer, return_type=str),
    WithJsonSchema({"type": "string", "pattern": REFERENCE.pattern}),
]
_Version = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), Field(title="Version")
]


class PythonCallable(Strict):
    """Has a function answer, or an agent of pydantic-ai, LangGraph or the Claude Agent SDK.

    What it takes is told by the name of its parameter: `ask` (the brief, the item, what was sent back), `item`,
    `prompt` (what a model would be told), or by any other name the item's value. It returns a value, a pydantic
    model, a `Reply`, or the result of an agent's run.

    Example:
        >>> def count(text: str) -> int:
        ...     return len(text.split())
        >>> PythonCallable(count, version="1").name
        'count'
    """

    kind: Literal["python"] = "python"
    """Tells the executors apart."""
    function: _Callable
    """A function or an agent; in a job file `module:name` of one in the job's folder."""
    version: _Version | None = None
    """Stands for all that can change its answers. None: its source does, where that tells it all."""

    _home: Path | None = PrivateAttr(default=None)
    _worker: Worker | None = PrivateAttr(default=None)
    _files: dict[tuple[str, ...], JsonValue] = PrivateAttr(default_factory=dict[tuple[str, ...], JsonValue])

    def __init__(self, function: Any = None, /, **said: Any) -> None:  # noqa: ANN401 -- validated as any field is
        """Take the function first, or by its name."""
        super().__init__(**({} if function is None else {"function": function}), **said)

    @property
    def name(self) -> str:
        """What it is called: the name of its function, or else the class of its agent."""
        return refer(self.function).rpartition(":")[2].rpartition("<locals>.")[2]

    @property
    def deaf(self) -> bool:
        """Whether it can't be told what was wrong with an answer."""
        return self.worker.given in {"item", "value"}

    @property
    def worker(self) -> Worker:
        """Whoever answers.

        Raises:
            JobError: If it can't be found.
        """
        return self._worker or self.placed(Path()).worker

    @property
    def fingerprint(self) -> str:
        """Everything about it that can change an answer: its version, or its source.

        Raises:
            JobError: If it has no version, and its source doesn't tell it all.
        """
        if self._worker is None:
            return self.placed(Path()).fingerprint
        try:
            who: JsonValue = [_steady(self.function), self.version] if self.version else source_identity(self.function)
        except JobError as error:
            raise JobError(f"executor.function: {error}.") from None
        return digest({"python": 1, "prompt": PROMPT if self._worker.given == "prompt" else None, "who": who})

    def situation(self, brief: Brief, item: Item) -> JsonValue:
        """Return the content of the files that a brief reads, and the names that a function sees.

        Raises:
            JobError: If a file can't be read.
        """
        if self._home is None:
            return self.placed(Path()).situation(brief, item)
        if brief.reads not in self._files:  # once a run
            self._files[brief.reads] = dict(sorted(digests(brief.reads, self._home).items()))
        given = self.worker.given
        seen: list[JsonValue] = [item.key, item.priority] if given in {"ask", "item"} else []
        if given == "ask":
            seen += [brief.name, brief.priority]
        return {"files": self._files[brief.reads], "seen": seen}

    def placed(self, folder: Path) -> PythonCallable:
        """Return the executor with its function looked up, in code below a folder.

        Raises:
            JobError: If it isn't there, or can't answer, or nothing tells when its answers would be others.
        """
        try:
            found = resolve(self.function, folder) if isinstance(self.function, str) else self.function
            worker = worker_of(found)
        except BriefError as error:
            raise JobError(f"executor.function: {error}") from error
        except JobError as error:
            raise JobError(f"executor.function: {refer(self.function)!r} {error}.") from None
        placed = self.model_copy(update={"function": found})
        placed._home, placed._worker, placed._files = folder.resolve(), worker, {}  # noqa: SLF001 -- its own copy
        _ = placed.fingerprint
        return placed

    def require_fit(self, briefs: Sequence[Brief]) -> None:
        """Check that it can answer some briefs.

        Raises:
            JobError: If one asks for what it can't do.
        """
        for brief in briefs:
            if brief.command:
                raise JobError(
                    f"Brief {brief.name!r} has a command, and a Python function runs none: set the executor's kind to "
                    "'shell' or 'coding', or leave the command out."
                )
            if brief.split:
                raise JobError(f"Brief {brief.name!r}: 'split' is for language models; leave it out.")

    async def answer(self, ask: Ask) -> Reply:
        """Call it once; a coroutine is cancelled with this one, a function in its thread goes on.

        Raises:
            ExecutorError: If it fails, or what it returns can't be kept.
            JobError: If it can't be found.
        """
        return reply_of(await self.worker.said(ask), self.name, ask.brief.output)


def _steady(thing: Any) -> str:  # noqa: ANN401 -- whatever answers
    """Return a name that is the same wherever a script is run: as `__main__`, or loaded by a worker."""
    name = refer(thing)
    module = name.partition(":")[0]
    if not module.startswith("__"):
        return name
    file = getattr(sys.modules.get(module), "__file__", None) or thing.__code__.co_filename
    return f"{Path(file).stem}:{name.partition(':')[2]}"
