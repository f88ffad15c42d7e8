"""The `Executor` protocol, its request and response, the base class with defaults, and the fingerprint of a request.

A fingerprint is a cache key that identifies answering one brief for one item with one executor. It covers everything
that can change an answer and nothing that cannot: the brief with the item's fields filled in, the item's value, the
executor's own fingerprint, and the files or the commit that it starts from. Names, priorities, limits, keys of items
and credentials are no part of it, so equal work is recognised across jobs, runs and machines.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, JsonValue
from typing_extensions import Protocol, runtime_checkable  # its isinstance check is thirty times as fast

from prefect_dispatch.errors import BriefError, JobError
from prefect_dispatch.models.base import Frozen, Strict
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.imports import ObjectAdapter
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.outcome import LIVE, Change, Citation, Rejection, Usage, truncate_notes
from prefect_dispatch.models.output_schema import read_json
from prefect_dispatch.security.redaction import redact, redact_json
from prefect_dispatch.serialization.json_text import UnsupportedJsonError, canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path


class Ask(Frozen):
    """One call of an executor."""

    brief: Brief
    """The brief, with the item's fields in place."""
    item: Item
    """The item; its value is data and never an instruction."""
    rejections: Annotated[tuple[Rejection, ...], Field()] = ()
    """The answers that were sent back before, oldest first; empty unless this is a re-ask."""
    change: Change | None = None
    """The change of a repository that was sent back last, to continue from."""
    is_prefix_shared: bool = False
    """Whether other calls have the same brief and its provider caches it, so that marking it for the cache pays."""


_ESCAPES = re.compile(r"(?:\\u[0-9a-fA-F]{4}|\\/)+")
_ESCAPING = tuple('{["`')
"""The first characters of JSON that can contain escaped text, or of a fence around it."""


def redact_value(value: JsonValue) -> JsonValue:
    """Redact the secrets in an answer; JSON in a text stays JSON, and a secret may be escaped in it in any way."""
    if isinstance(value, str) and value.lstrip()[:1] in _ESCAPING:
        try:
            parsed = read_json(value, once=True)
            clean = redact_json(parsed)
            value = value if clean == parsed else json.dumps(clean, ensure_ascii=False)
        except UnsupportedJsonError:  # a re-ask quotes it unchanged, unless an escape hides a secret in it
            unescaped = _ESCAPES.sub(lambda match: str(json.loads(f'"{match[0]}"')), value)
            value = value if redact(unescaped) == unescaped else unescaped
        except ValueError:  # not JSON
            pass
    return redact_json(value)


class Reply(Strict):
    """An agent's response before validation, with its secrets redacted: nothing else is stored or sent back."""

    value: Annotated[JsonValue, AfterValidator(redact_value)]
    """Text, or a JSON value where the agent gives one itself."""
    finish: Literal["complete", "truncated", "refused"] = "complete"
    """Whether the agent finished, was cut off, or declined."""
    model: Annotated[str, AfterValidator(redact)] = ""
    """The model that was asked."""
    served_model: Annotated[str, AfterValidator(redact)] = ""
    """The model that the provider's response names; empty where it names none."""
    change: Change | None = None
    """The change in a repository; the executor makes sure that it holds no secret."""
    problems: tuple[Annotated[str, AfterValidator(redact)], ...] = ()
    """Problems that the executor itself found in the work: sent back in a re-ask, like those of a check."""
    notes: Annotated[tuple[Annotated[str, AfterValidator(redact)], ...], AfterValidator(truncate_notes)] = ()
    """Notes of the executor on its work that make no answer invalid: stored with the attempt."""
    citations: tuple[Citation, ...] = ()
    """The pages that a web search returned, without secrets."""
    tier: str = ""
    """The price tier in which the provider answered; empty: that of the executor."""
    usage: Usage = Usage(requests=1)
    """Usage of the call."""


class CostBound(Strict):
    """Upper bound of the tokens and the cost of one call."""

    prompt_tokens: int = Field(ge=0)
    """Tokens of the prompt, as counted beforehand."""
    completion_tokens: int | None = Field(default=None, ge=0)
    """Tokens of the longest answer; empty where nothing bounds it."""
    cost_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """US dollars; empty where a price is unknown, or the answer unbounded."""
    instead: str = ""
    """What to set so that the cost is bounded, where a call runs a program; empty for a call of a model."""


@runtime_checkable
class Executor(Protocol):
    """Answers one brief for one item.

    The caller validates replies, runs the checks and re-asks, so that no executor has to. Errors are raised as
    `TransientError`, `RejectedError` or `TerminalError` with the call's `usage`; any other exception fails the item.

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
        """Identity of everything about the executor that can change an answer; contains no secret."""
        ...

    async def answer(self, ask: Ask) -> Reply:
        """Answer once; cancelling the coroutine must stop the work."""
        ...


class BaseExecutor(ABC):
    """Base class of executors: two members to implement, and defaults for all that callers may ask beyond these.

    Deriving from it is optional. `BaseExecutor.of` adapts any object that implements the protocol `Executor`, and uses
    those of the methods below that the object has.

    Attributes:
        cancel_immediately: Whether unfinished work is useless: when a run is interrupted, its calls are cancelled at
            once, without a grace period.
        runs_programs: Whether it answers by programs on this machine whose logs are in the state folder.

    Example:
        >>> class Shout(BaseExecutor):
        ...     @property
        ...     def fingerprint(self) -> str:
        ...         return "shout-1"
        ...
        ...     async def answer(self, ask: Ask) -> Reply:
        ...         return Reply(value=str(ask.item.value).upper())
        >>> Shout().name, Shout().ignores_feedback
        ('Shout', False)
    """

    cancel_immediately: ClassVar[bool] = False
    runs_programs: ClassVar[bool] = False

    @staticmethod
    def of(executor: Executor) -> BaseExecutor:
        """Return an executor as a `BaseExecutor`: itself, or an adapter of an object with fewer methods."""
        return executor if isinstance(executor, BaseExecutor) else _ExecutorAdapter(executor)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identity of everything about the executor that can change an answer; contains no secret."""

    @abstractmethod
    async def answer(self, ask: Ask) -> Reply:
        """Answer once; cancelling the coroutine must stop the work."""

    @property
    def name(self) -> str:
        """The name of its rate limiter: executors with one name share it. By default the class name."""
        return type(self).__name__

    @property
    def model_name(self) -> str:
        """The model that a call asks, by which it is billed if it brings no reply. By default the name."""
        return self.name

    @property
    def price_tier(self) -> str:
        """The price tier of a call that is sent now. By default that of live calls."""
        return LIVE

    @property
    def fallback_chain(self) -> tuple[Executor, ...]:
        """The fallback chain: itself without fallbacks, then each fallback, in order. By default itself."""
        return (self,)

    @property
    def without_cascade(self) -> Executor:
        """The executor of an integrator's own queries: itself without a cascade. By default itself."""
        return self

    @property
    def ignores_feedback(self) -> bool:
        """Whether it may ignore the feedback on an invalid answer, so that a re-ask would bring the same answer."""
        return False

    @property
    def is_deterministic(self) -> bool:
        """Whether it gives the same answer each time, so that more samples of an answer are useless."""
        return False

    @property
    def has_external_inputs(self) -> bool:
        """Whether answers depend on more than text, so that `external_inputs` is part of the work's fingerprint."""
        return False

    def resolve_paths(self, folder: Path) -> Executor:  # noqa: ARG002 -- a default
        """Return the executor with its paths, programs, blocks and commits resolved, before its first call.

        Args:
            folder: The folder that relative paths start from.

        Raises:
            JobError: If one doesn't exist; the message says what to change.
        """
        return self

    def require_available(self) -> None:
        """Check that calls can succeed at all.

        Raises:
            JobError: If it is known beforehand that they can't, such as for an unknown provider.
        """
        return

    def require_supported(self, briefs: Sequence[Brief]) -> None:
        """Check that it supports all of these briefs. By default all but those with a command.

        Raises:
            JobError: If it doesn't; the message says what to change.
        """
        require_no_command(briefs, type(self).__name__)

    def with_model(self, model: str) -> Executor | None:  # noqa: ARG002 -- a default
        """Return a copy of the executor that uses only this model. By default None: it has no models."""
        return None

    def conversation(self) -> AbstractAsyncContextManager[None]:
        """Return the context of all calls for one item: in it, a re-ask may continue what the call before began."""
        return nullcontext()

    async def warm_up(self) -> None:
        """Load what the first call needs. Called before every call and outside of its time limit; cheap once done."""
        return

    def external_inputs(self, brief: Brief, item: Item) -> JsonValue:  # noqa: ARG002 -- a default
        """Return all inputs of an answer beside the brief, the item's value and the fingerprint, such as file digests.

        Args:
            brief: The brief, with the item's fields filled in.
            item: The item.

        Raises:
            JobError: If an input can't be read.
        """
        return None

    def count_tokens(self, brief: Brief, item: Item) -> int | None:  # noqa: ARG002 -- a default
        """Return the number of tokens of a prompt, without sending it. By default None: unknown."""
        return None

    def expected_completion_tokens(self, brief: Brief) -> int | None:  # noqa: ARG002 -- a default
        """Return the expected number of tokens of an answer. By default None: unknown."""
        return None

    def context_tokens(self) -> int | None:
        """Return the number of tokens that prompt and answer may have together. By default None: unknown."""
        return None

    def price(self) -> tuple[float, float] | None:
        """Return US dollars per prompt token and per completion token. By default None: unknown."""
        return None

    def prefix_tokens(self, brief: Brief) -> int:  # noqa: ARG002 -- a default
        """Return how many tokens each prompt of a brief begins with that the provider caches. By default 0: none."""
        return 0

    def prefix_prices(self) -> tuple[float, float] | None:
        """Return US dollars per token that is read from the provider's cache, and per token that is written into it.

        By default None: unknown, so that the price of a prompt counts.
        """
        return None

    def call_fee(self) -> float | None:
        """Return US dollars per call beyond the price of tokens. By default 0; None: unknown."""
        return 0.0

    def cost_bound(self, ask: Ask) -> CostBound | None:  # noqa: ARG002 -- a default
        """Return the upper bound of a call, without sending anything. By default None: a budget can't be enforced."""
        return None


def require_no_command(briefs: Sequence[Brief], name: str) -> None:
    """Check that no brief has a command, which an executor would ignore.

    Args:
        briefs: The briefs.
        name: The name of the executor's class.

    Raises:
        JobError: If one has a command.
    """
    for brief in briefs:
        if brief.command:
            raise JobError(
                f"Brief {brief.name!r} has a command, and {name} runs none: set the executor's kind to 'shell' or "
                "'coding', or leave the command out."
            )


class _ExecutorAdapter(ObjectAdapter, BaseExecutor):
    """Executor that delegates to a user's object where that has the method, and to the defaults otherwise."""

    _own_names = frozenset({"answer", "fingerprint", "has_external_inputs", "name", "of"})
    _adapted: Executor

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the object."""
        return self._adapted.fingerprint

    async def answer(self, ask: Ask) -> Reply:
        """Return the answer of the object."""
        return await self._adapted.answer(ask)

    @property
    def name(self) -> str:
        """The name of the object if its cost is bounded, else that of its class."""
        named: Any = self._adapted
        return str(named.name) if self._has("name") and self._has("cost_bound") else type(self._adapted).__name__

    @property
    def fallback_chain(self) -> tuple[Executor, ...]:
        """The object alone."""
        return (self._adapted,)

    @property
    def without_cascade(self) -> Executor:
        """The object."""
        return self._adapted

    @property
    def has_external_inputs(self) -> bool:
        """Whether the object has the method `external_inputs`."""
        return self._has("external_inputs")

    def resolve_paths(self, folder: Path) -> Executor:  # noqa: ARG002 -- the signature of the base class
        """Return the object, which has no paths."""
        return self._adapted

    def require_supported(self, briefs: Sequence[Brief]) -> None:
        """Check that no brief has a command."""
        require_no_command(briefs, type(self._adapted).__name__)


def executor_for(brief: Brief, executor: Executor) -> Executor:
    """Return the executor for a brief: the given one, with the brief's own model if it names one.

    Raises:
        BriefError: If the brief names a model, and the executor is no language model.
    """
    if not brief.model:
        return executor
    chosen = BaseExecutor.of(executor).with_model(brief.model)
    if chosen is None:
        raise BriefError(
            f"Brief {brief.name!r} names a model ({brief.model!r}), which only a language model's executor can ask; "
            f"this is a {type(executor).__name__}."
        )
    return chosen


LONGEST_NAME = 60
"""Most characters of a brief's name."""


def expand_samples(brief: Brief) -> tuple[Brief, ...]:
    """Expand a brief into one brief per sample, each with a name and a number of its own.

    Raises:
        JobError: If the names would be too long.

    Example:
        >>> from prefect_dispatch.models.brief import Brief
        >>> [each.name for each in expand_samples(Brief(name="label", instructions="Label it.", samples=3))]
        ['label-1', 'label-2', 'label-3']
    """
    if brief.samples == 1 or brief.sample:
        return (brief,)
    if len(f"{brief.name}-{brief.samples}") > LONGEST_NAME:
        raise JobError(
            f"Brief {brief.name!r} has no room for the numbers of its samples; "
            f"give it a name of {LONGEST_NAME - 1 - len(str(brief.samples))} characters at most."
        )
    return tuple(
        brief.model_copy(update={"name": f"{brief.name}-{number}", "sample": number})
        for number in range(1, brief.samples + 1)
    )


def expand_briefs(briefs: Sequence[Brief]) -> list[Brief]:
    """Expand the samples of briefs; what needs a brief with samples needs all of them, as any may be chosen.

    Raises:
        JobError: If a name would be too long, or a brief needs a single sample.

    Example:
        >>> from prefect_dispatch.models.brief import Brief
        >>> lexer = Brief(name="lexer", instructions="Write a lexer.", samples=2)
        >>> parser = Brief(name="parser", instructions="Write a parser.", needs=["lexer"])
        >>> [(each.name, each.needs) for each in expand_briefs([lexer, parser])]
        [('lexer-1', ()), ('lexer-2', ()), ('parser', ('lexer-1', 'lexer-2'))]
    """
    samples = {brief.name: expand_samples(brief) for brief in briefs}
    single = {each.name: name for name, expanded in samples.items() for each in expanded if each.name not in samples}
    for brief in briefs:
        if one := next((name for name in brief.needs if name in single), None):
            raise JobError(
                f"needs: {brief.name!r} needs {one!r}, one candidate of {single[one]!r}, and which of them counts is "
                f"decided in the run: name {single[one]!r}."
            )
    return [
        each.model_copy(
            update={"needs": tuple(one.name for name in each.needs for one in samples.get(name, ())) or each.needs}
        )
        if each.needs
        else each
        for brief in briefs
        for each in samples[brief.name]
    ]


def original_name(brief: Brief) -> str:
    """Return the name of the original brief of a sample, or the own name of any other brief."""
    return brief.name.removesuffix(f"-{brief.sample}") if brief.sample else brief.name


def require_variety(briefs: Sequence[Brief], executor: Executor) -> None:
    """Check that the executor of a brief with several samples is not deterministic.

    Raises:
        JobError: If it is: each sample would cost, and all would be the same answer.
        BriefError: If a brief names a model, and the executor is no language model.
    """
    for brief in briefs:
        brief_executor = BaseExecutor.of(executor_for(brief, executor))
        if brief.samples > 1 and brief_executor.is_deterministic:
            raise JobError(
                f"Brief {original_name(brief)!r} asks for {brief.samples} samples of one answer: at temperature 0 a "
                "model says the same each time. Set the executor's params.temperature (to 0.7, say), or samples to 1."
            )


FORMAT = 1
"""Version of the fingerprint; increase it when stored answers of older versions must not be reused."""


def fingerprint(brief: Brief, item: Item, executor: Executor) -> str:
    """Return the fingerprint of answering `brief` for `item` with `executor`.

    Args:
        brief: The brief; placeholders of item fields count by their values.
        item: The item; its key counts only where the brief uses it.
        executor: The executor that would answer, with the brief's own model if that names one.

    Returns:
        64 hexadecimal characters.

    Raises:
        BriefError: If the brief uses a field that the item has not, or names a model that can't be asked.
    """
    return fingerprinter(brief, executor)(item)


def fingerprinter(brief: Brief, executor: Executor, *, alike: bool = False) -> Callable[[Item], str]:
    """Return a function that computes the fingerprints of many items for one brief.

    Args:
        brief: The brief.
        executor: The executor that would answer.
        alike: Whether the brief is the same for every item, so that it is serialized only once.

    Raises:
        BriefError: If the brief names a model that can't be asked.
    """
    brief_executor = BaseExecutor.of(executor_for(brief, executor))
    brief_json = executor_json = ""

    def of(item: Item) -> str:
        nonlocal brief_json, executor_json
        executor_json = executor_json or canonical_json(brief_executor.fingerprint)
        if not (alike and brief_json):
            brief_json = canonical_json(brief.identity(item))
        # Canonical JSON of an object, composed of the canonical JSON of its parts, which are serialized once.
        text = (
            f'{{"brief":{brief_json},"executor":{executor_json},"format":{FORMAT},"item":{canonical_json(item.value)}'
        )
        if brief_executor.has_external_inputs:
            inputs = brief_executor.external_inputs(brief.fill_placeholders(item), item)
            text += f',"situation":{canonical_json(inputs)}'
        return hashlib.sha256(f"{text}}}".encode()).hexdigest()

    return of
