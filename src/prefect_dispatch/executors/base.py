"""What an executor is: one property and one method."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, JsonValue
from typing_extensions import Protocol, runtime_checkable  # to look whether an executor is one is thirty times as fast

from prefect_dispatch.attempts import cut_notes
from prefect_dispatch.change import Change
from prefect_dispatch.json_text import UntakenError
from prefect_dispatch.models import Brief, Item, Rejection, Usage
from prefect_dispatch.outputs import read_json
from prefect_dispatch.scrub import scrub, scrubbed
from prefect_dispatch.strict import Frozen, Strict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Ask(Frozen):
    """One call of an executor."""

    brief: Brief
    """The brief, with the item's fields in place."""
    item: Item
    """The item; its value is data, whatever it says."""
    rejections: Annotated[tuple[Rejection, ...], Field()] = ()
    """What was sent back before, oldest first; empty unless this is a re-ask."""
    change: Change | None = None
    """What the work that was sent back last had changed in a repository, to go on from."""


_ESCAPES = re.compile(r"(?:\\u[0-9a-fA-F]{4}|\\/)+")
_ESCAPING = tuple('{["`')
"""What JSON that can escape a text begins with, or the fence around it."""


def without_secrets(value: JsonValue) -> JsonValue:
    """Return what an agent said without secrets; JSON in a text stays JSON, however a secret in it is escaped."""
    if isinstance(value, str) and value.lstrip()[:1] in _ESCAPING:
        try:
            inside = read_json(value, once=True)
            clean = scrubbed(inside)
            value = value if clean == inside else json.dumps(clean, ensure_ascii=False)
        except UntakenError:  # it is sent back as it is, unless an escape hides a secret in it
            bare = _ESCAPES.sub(lambda found: str(json.loads(f'"{found[0]}"')), value)
            value = value if scrub(bare) == bare else bare
        except ValueError:  # it is no JSON
            pass
    return scrubbed(value)


class Reply(Strict):
    """What an agent said, before anybody checked it, and without secrets: nothing else is ever kept or sent back."""

    value: Annotated[JsonValue, AfterValidator(without_secrets)]
    """Text, or a JSON value where the agent gives one itself."""
    finish: Literal["complete", "truncated", "refused"] = "complete"
    """Whether the agent came to its end, was cut off, or declined."""
    model: Annotated[str, AfterValidator(scrub)] = ""
    """Who answered."""
    served_model: Annotated[str, AfterValidator(scrub)] = ""
    """The model that the provider's response names; empty where it names none."""
    change: Change | None = None
    """What was changed in a repository; whoever makes it sees to it that it holds no secret."""
    problems: tuple[Annotated[str, AfterValidator(scrub)], ...] = ()
    """What the executor itself found wrong with the work: sent back, as what a check finds."""
    notes: Annotated[tuple[Annotated[str, AfterValidator(scrub)], ...], AfterValidator(cut_notes)] = ()
    """What the executor reports of its work that makes no answer wrong: kept with the attempt."""
    usage: Usage = Usage(requests=1)
    """What the call spent."""


@runtime_checkable
class Warmable(Protocol):
    """An executor that has something to load before its first ask in a process."""

    async def warm_up(self) -> None:
        """Load it; called before every ask and outside of its time limit, so cheap once done."""
        ...


@runtime_checkable
class Countable(Protocol):
    """An executor that can say beforehand what an ask takes."""

    def require_known(self) -> None:
        """Raise a `JobError` if it is plain beforehand that nobody can be asked, such as for an unknown provider."""
        ...

    def count_tokens(self, brief: Brief, item: Item) -> int:
        """Return the tokens of the prompt."""
        ...

    def expected_completion_tokens(self, brief: Brief) -> int:
        """Return how many tokens an answer is expected to have."""
        ...

    def price(self) -> tuple[float, float] | None:
        """Return US dollars for a prompt token and a completion token, or None where unknown."""
        ...


class Ceiling(Strict):
    """The most that one call can take."""

    prompt_tokens: int = Field(ge=0)
    """Tokens of the prompt, as counted beforehand."""
    completion_tokens: int | None = Field(default=None, ge=0)
    """Tokens of the longest answer; empty where nothing bounds it."""
    cost_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """US dollars; empty where a price is unknown, or the answer unbounded."""
    instead: str = ""
    """What to set so that its cost is bounded, where a call is the run of a program; empty for a model's."""


@runtime_checkable
class Metered(Protocol):
    """An executor whose calls can be bounded beforehand, and so paced by tokens and held to a budget."""

    @property
    def name(self) -> str:
        """Who is asked: executors of one name share the pace of one provider's model."""
        ...

    def ceiling(self, ask: Ask) -> Ceiling:
        """Return the most that a call can take; nothing is sent for it."""
        ...


@runtime_checkable
class Tiered(Protocol):
    """An executor that knows whom to ask in its place where it fails."""

    @property
    def tiers(self) -> tuple[Executor, ...]:
        """Itself, asking nobody else, and then each fallback, in order."""
        ...


@runtime_checkable
class Bounded(Protocol):
    """An executor that knows how much it can take in at once."""

    def context_tokens(self) -> int | None:
        """Return how many tokens prompt and answer of one ask may have together, or None where unknown."""
        ...


@runtime_checkable
class Placed(Protocol):
    """An executor whose paths, programs, blocks and commits are looked up before it is asked."""

    def placed(self, folder: Path) -> Executor:
        """Return the executor with all of them found, paths being looked up from a folder.

        Raises:
            JobError: If one isn't there; the message says what to change.
        """
        ...


@runtime_checkable
class Demanding(Protocol):
    """An executor that can't answer just any brief."""

    def require_fit(self, briefs: Sequence[Brief]) -> None:
        """Check that it can answer these.

        Raises:
            JobError: If it can't; the message says what to change.
        """
        ...


@runtime_checkable
class Abrupt(Protocol):
    """An executor whose work is of no use half done: when a run is interrupted, it is ended at once."""

    abrupt: ClassVar[bool]
    """True."""


@runtime_checkable
class Deaf(Protocol):
    """An executor that may read nothing of what was wrong with an answer: to send one back brings the same again."""

    @property
    def deaf(self) -> bool:
        """Whether it does so."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Answers one brief for one item.

    Replies are validated, checked and sent back by the caller, so that no executor
    has to. Errors are raised as `TransientError`, `RejectedError` or `TerminalError`
    with the `usage` that was spent; anything else that is raised fails the item.

    Example:
        >>> class Shout:
        ...     fingerprint = "shout-1"
        ...
        ...     async def answer(self, ask: Ask) -> Reply:
        ...         return Reply(value=str(ask.item.value).upper())
        >>> isinstance(Shout(), Executor)
        True
    """

    @property
    def fingerprint(self) -> str:
        """Everything about the executor that can change an answer, and no secret."""
        ...

    async def answer(self, ask: Ask) -> Reply:
        """Answer once; cancelling the coroutine must end the work."""
        ...
