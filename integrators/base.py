"""What an integrator is: one method; and what it may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from prefect_dispatch.integrators.values import copied
from prefect_dispatch.ledger import LedgerRow, Ref
from prefect_dispatch.models import Brief, Failure, Item, Outcome
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from pydantic import JsonValue
    from typing_extensions import Self

    from prefect_dispatch.decisions import Decisions, Identity
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.ledger import Merge, Violation

NAMED_GAPS = 20
"""How many gaps a sentence names one by one; the rest are counted."""


@runtime_checkable
class Integrator(Protocol):
    """Merges outcomes into one value and says where each of them went.

    The result must not depend on the order of the outcomes. Whatever it returns is
    audited: one ledger row for each outcome, every finding in the value or named as
    removed, every field of the value traced to outcomes that say so. The audit merges a
    second time, so `merge` must be pure; to ask an agent, be an `AskingIntegrator`.

    Example:
        >>> from prefect_dispatch.ledger import LedgerRow, Merge
        >>> class Count:
        ...     def merge(self, briefs, outcomes):
        ...         rows = [
        ...             LedgerRow(
        ...                 brief=o.brief, item=o.item, disposition="merged" if o.status == "succeeded" else o.status
        ...             )
        ...             for o in outcomes
        ...         ]
        ...         return Merge(value=sum(o.status == "succeeded" for o in outcomes), ledger=rows)
        >>> isinstance(Count(), Integrator)
        True
    """

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Merge the outcomes, failed and skipped ones included."""
        ...


class Question(Strict):
    """What an integrator asks an agent: one brief for one item, like all other work."""

    brief: Brief
    """What is asked; its output, checks and constraints hold as they do for any brief."""
    item: Item
    """What it is asked about."""


class Asks(NamedTuple):
    """Questions that an integrator is likely to put, told before there is any answer."""

    question: Question
    """What each of them is like, without the agents' answers that it shows."""
    answers: int
    """How many of those it shows."""
    times: int
    """How many such questions there are."""
    executor: Executor | None = None
    """Who is asked. None: the job's executor."""


class Asker(Protocol):
    """Puts questions to an agent as task runs: paced, retried, re-asked, checked, stored, accounted for."""

    @property
    def executor(self) -> Executor:
        """Who is asked unless a call names somebody else: the job's executor."""
        ...

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:
        """Return one outcome for each question, in their order; equal ones are asked once.

        Raises:
            TerminalError: If every question would fail in the same way, such as for a wrong key.
        """
        ...


@runtime_checkable
class AskingIntegrator(Protocol):
    """An integrator that asks an agent itself.

    Everything else that an integrator has to keep holds for it, too; with the same answers,
    it must ask the same questions and return the same merge.
    """

    def merge_asking(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker) -> Merge:
        """Merge the outcomes, failed and skipped ones included, with the help of an agent."""
        ...


AnyMerger = Integrator | AskingIntegrator
"""Whatever can merge."""


@runtime_checkable
class Restating(Protocol):
    """An integrator that can take its own value in again: merged once more, nothing may change."""

    def restated(self, merge: Merge) -> list[Outcome] | None:
        """Return what a merged value says, as outcomes that can be merged again; None where nothing is promised."""
        ...


@runtime_checkable
class Promising(Protocol):
    """An integrator that promises more than the laws that hold for any, and can tell where a merge breaks it.

    All of its value is traced, even where a merge has no field rows.
    """

    def broken(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterable[Violation]:
        """Yield where a merge, which may have been tampered with, isn't what is promised; nobody may be asked."""
        ...


@runtime_checkable
class Deciding(Protocol):
    """An integrator that follows what people decided about earlier merges."""

    @property
    def aliases(self) -> str | None:
        """The path of the decisions file, relative to the job's folder; None where there is none."""
        ...

    @property
    def decisions(self) -> Decisions:
        """What it follows."""
        ...

    def decided(self, decisions: Decisions) -> Self:
        """Return this integrator following these decisions, and no others."""
        ...


@runtime_checkable
class Spelling(Protocol):
    """An integrator to which identities that are spelt differently may be one."""

    def named(self, identity: Identity) -> Hashable:
        """Return what an identity is called: the same however it is spelt."""
        ...


@runtime_checkable
class Identifying(Protocol):
    """An integrator whose value has a list of records that are told apart by some of their fields."""

    @property
    def identity(self) -> tuple[str, ...]:
        """The dotted paths of those fields."""
        ...

    @property
    def entries(self) -> str:
        """Where, in the merged value, the list stands."""
        ...


@runtime_checkable
class Expecting(Protocol):
    """An integrator that asks agents itself and can say beforehand what and how often."""

    def asks(self, work: int) -> Sequence[Asks]:
        """Return what it is likely to ask, given that many (brief, item)."""
        ...


def unshared(outcome: Outcome) -> Outcome:
    """Return an outcome that shares nothing that can be changed with the one given: for whoever may change it."""
    return outcome.model_copy(update={"value": copied(outcome.value)})


def unanswered(outcome: Outcome) -> LedgerRow | None:
    """Return the ledger row of an outcome that failed or was skipped, or None if it succeeded."""
    if outcome.status == "succeeded":
        return None
    return LedgerRow(brief=outcome.brief, item=outcome.item, disposition=outcome.status, reason=_reason(outcome))


def gaps(outcomes: Iterable[Outcome]) -> list[JsonValue]:
    """Return what a merged value says, as data, of the outcomes without an answer, in the order of every list.

    Example:
        >>> from prefect_dispatch.models import Failure, Outcome
        >>> lost = Outcome(brief="terms", item="a", status="failed", error=Failure(kind="timeout", message="Late."))
        >>> gaps([lost])
        [{'brief': 'terms', 'item': 'a', 'status': 'failed', 'reason': 'timeout: Late.'}]
    """
    return [
        {"brief": outcome.brief, "item": outcome.item, "status": outcome.status, "reason": _reason(outcome)}
        for outcome in _missing(outcomes)
    ]


def restated_gaps(value: JsonValue) -> list[Outcome]:
    """Return the outcomes that `gaps` told of, from a merged value that has them as its field `gaps`.

    Example:
        >>> told = {"brief": "terms", "item": "a", "status": "failed", "reason": "timeout: Late."}
        >>> [outcome.error for outcome in restated_gaps({"answers": [], "gaps": [told]})]
        [Failure(kind='timeout', message='Late.')]
    """
    told: Any = value.get("gaps") if isinstance(value, dict) else None
    return [
        Outcome(brief=gap["brief"], item=gap["item"], status=gap["status"], error=_failure(gap["reason"]))
        for gap in told or ()
    ]


def gap_sentence(outcomes: Iterable[Outcome]) -> str:
    """Return the same in words, for a value that is prose; empty if all have an answer.

    Example:
        >>> from prefect_dispatch.models import Failure, Outcome
        >>> lost = Outcome(brief="terms", item="a", status="failed", error=Failure(kind="timeout", message="Late."))
        >>> gap_sentence([lost, Outcome(brief="terms", item="b", status="succeeded", value=1)])
        'No answer for 1 of 2: terms/a (timeout).'
    """
    every = list(outcomes)
    missing = _missing(every)
    if not missing:
        return ""
    named = [f"{Ref.of(o)} ({o.error.kind if o.error else o.status})" for o in missing[:NAMED_GAPS]]
    more = f" and {len(missing) - NAMED_GAPS} more" if len(missing) > NAMED_GAPS else ""
    return f"No answer for {len(missing)} of {len(every)}: {', '.join(named)}{more}."


def _missing(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return sorted((o for o in outcomes if o.status != "succeeded"), key=lambda outcome: Ref.of(outcome).order)


def _failure(reason: str) -> Failure | None:
    kind, _, message = reason.partition(": ")
    return Failure(kind=kind, message=message) if reason else None


def _reason(outcome: Outcome) -> str:
    return f"{outcome.error.kind}: {outcome.error.message}" if outcome.error else ""
