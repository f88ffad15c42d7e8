"""What came of a shard, as it travels back: which answers are in the store, and why others aren't.

Errors come back by name, and only as those of this package; answers are data in the store, and don't travel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import AfterValidator, StringConstraints

from prefect_dispatch.amounts import NOTHING, Amount
from prefect_dispatch.attempts import Attempt, Usage
from prefect_dispatch.errors import (
    BudgetError,
    BusyError,
    ExecutorError,
    InvalidOutput,
    PatienceError,
    RejectedError,
    TerminalError,
    TransientError,
    UnaskedError,
)
from prefect_dispatch.scrub import scrub, told
from prefect_dispatch.strict import Strict
from prefect_dispatch.tasks.shard_records import Digest

if TYPE_CHECKING:
    from prefect_dispatch.tasks.errands import Ended

ErrorName = Literal[
    "ExecutorError",
    "TransientError",
    "BusyError",
    "InvalidOutput",
    "RejectedError",
    "UnaskedError",
    "BudgetError",
    "PatienceError",
    "TerminalError",
]
_ERRORS: dict[str, type[ExecutorError]] = {
    kind.__name__: kind
    for kind in (
        ExecutorError,
        TransientError,
        BusyError,
        InvalidOutput,
        RejectedError,
        UnaskedError,
        BudgetError,
        PatienceError,
        TerminalError,
    )
}
"""The errors that can come back; one of a class below one of these comes back as that."""


def _taken(amount: Amount) -> Amount:
    if min(amount) < 0:
        msg = "nothing gives back what was spent"
        raise ValueError(msg)
    return amount


class WrittenError(Strict):
    """Why a piece of work has no answer."""

    name: ErrorName
    """The class of the error."""
    kind: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    """The class of failure."""
    message: str
    """What happened, without secrets."""
    trace: str = ""
    """The end of the message that is another in each run."""
    problems: tuple[str, ...] = ()
    """What was wrong with the last answer."""
    usage: Usage | None = None
    """What was spent on the last ask."""
    attempts: tuple[Attempt, ...] = ()
    """What it took."""

    @classmethod
    def of(cls, error: BaseException) -> WrittenError:
        """Return an error as it travels; any that isn't an executor's says what it was, as it would in a report."""
        if not isinstance(error, ExecutorError):
            return cls(name="ExecutorError", kind="crashed", message=told(error))
        known = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS)
        return cls(
            name=cast("ErrorName", known),
            kind=error.kind,
            message=scrub(str(error).removesuffix(error.trace)),
            trace=scrub(error.trace),
            problems=tuple(map(scrub, error.problems)) if isinstance(error, InvalidOutput) else (),
            usage=error.usage,
            attempts=error.attempts,
        )

    @property
    def error(self) -> ExecutorError:
        """The error that it stands for."""
        more: dict[str, Any] = {"problems": self.problems} if self.name == "InvalidOutput" else {}
        made = _ERRORS[self.name](f"{self.message}{self.trace}", kind=self.kind, usage=self.usage, **more)
        made.trace, made.attempts = self.trace, self.attempts
        return made


class Done(Strict):
    """What came of one piece of work."""

    fingerprint: Digest
    """Which it is."""
    stored: bool = False
    """Whether its answer was stored before."""
    error: WrittenError | None = None
    """Why there is no answer; empty: it is in the store."""


class WrittenResult(Strict):
    """What came of a shard; what isn't in it was not its turn any more."""

    format: Literal[1] = 1
    """The version of this form."""
    shard: Digest
    """The shard, by the digest of what was written of it."""
    done: tuple[Done, ...] = ()
    """What came, in order of arrival."""
    spent: Annotated[Amount, AfterValidator(_taken)] = NOTHING
    """What it took of its share of the budget."""
    begun_before: bool = False
    """Whether it was begun before, by a process that is gone: then it did nothing."""

    @classmethod
    def of(cls, shard: str, ended: Ended) -> WrittenResult:
        """Return what came of a shard as it travels; answers are in the store, and don't."""
        done = [
            Done(
                fingerprint=each.work,
                stored=each.stored,
                error=WrittenError.of(each.said) if isinstance(each.said, BaseException) else None,
            )
            for each in ended.told
        ]
        return cls(shard=shard, done=tuple(done), spent=ended.spent, begun_before=ended.begun_before)
