"""What an integrator is: one method; and what it may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from prefect_dispatch.integrators.values import copied
from prefect_dispatch.models import Brief, Item, Outcome
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Sequence
    from pathlib import Path

    from pydantic import JsonValue
    from typing_extensions import Self

    from prefect_dispatch.decisions import Decisions, Identity
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.ledger import Merge, Ref, Violation


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
class Telling(Protocol):
    """An integrator to which an outcome says more than its value does: what it changed in a repository, say."""

    def tells(self, outcome: Outcome) -> JsonValue:
        """Return what an outcome says beside its value; the merged value may hold it, and need not."""
        ...


@runtime_checkable
class Refusing(Protocol):
    """An integrator that leaves outcomes out for what they do to the whole, not for another outcome's sake."""

    def refused(self, merge: Merge) -> Collection[Ref]:
        """Return those outcomes of whose refusal a merge has evidence: they are `overridden` by no other one."""
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


class Delivery(NamedTuple):
    """What came of putting a merged value where it is to be."""

    done: str = ""
    """What was done, in a sentence."""
    shortfall: str = ""
    """What could not be done, in a sentence: the run then completes with gaps."""


@runtime_checkable
class Delivering(Protocol):
    """An integrator whose value is to be put somewhere: once it is audited, and only where the run has not failed."""

    def deliver(self, value: JsonValue, folder: Path) -> Delivery:
        """Put a merged value where it is to be; doing so again changes nothing.

        Args:
            value: The merged value.
            folder: The folder in which relative paths start.
        """
        ...


def unshared(outcome: Outcome) -> Outcome:
    """Return an outcome that shares nothing that can be changed with the one given: for whoever may change it."""
    if not isinstance(outcome.value, (dict, list)):  # the rest is frozen
        return outcome
    return outcome.model_copy(update={"value": copied(outcome.value)})
