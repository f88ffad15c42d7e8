"""Integrators: the protocols of the required method, and the base class with defaults for all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.imports import ObjectAdapter
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.ledger import LedgerRow, Ref, Violation
from prefect_dispatch.models.outcome import Failure, Outcome
from prefect_dispatch.security.escaping import join_names
from prefect_dispatch.serialization.json_text import canonical_json
from prefect_dispatch.serialization.json_values import deep_copy, get_at

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue
    from typing_extensions import Self

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models.decisions import Decisions, Identity
    from prefect_dispatch.models.ledger import Merge


@runtime_checkable
class Integrator(Protocol):
    """Integrator that merges outcomes into one value and records where each of them went.

    The result must not depend on the order of the outcomes. Every merge is audited: one ledger row for each
    outcome, every finding in the value or listed as removed, every field of the value traced to outcomes that
    support it. The audit merges a second time, so `merge` must be pure; an integrator that queries an agent
    implements `AskingIntegrator` instead.

    Example:
        >>> from prefect_dispatch.models.ledger import LedgerRow, Merge
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
    """Query that an integrator sends to an agent: one brief for one item, like all other work."""

    brief: Brief
    """The brief; its output, checks and constraints hold as they do for any brief."""
    item: Item
    """The item that the brief is answered for."""


class QueryEstimate(NamedTuple):
    """Estimate of the queries that an integrator will send, made before there are any answers."""

    question: Question
    """A typical query, without the agents' answers that it will contain."""
    answers: int
    """The number of answers that each query contains."""
    times: int
    """The expected number of such queries."""
    executor: Executor | None = None
    """The executor that answers them. None: the job's executor."""


class Asker(Protocol):
    """Runs an integrator's queries as task runs: rate-limited, retried, re-asked, validated, stored and accounted."""

    @property
    def executor(self) -> Executor:
        """The default executor for queries: the job's executor."""
        ...

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:
        """Return one outcome for each query, in their order; equal queries are sent once.

        Args:
            questions: The queries.
            executor: The executor that answers them. None: the default one.

        Raises:
            TerminalError: If every query would fail in the same way, for example because of a wrong key.
        """
        ...


@runtime_checkable
class AskingIntegrator(Protocol):
    """Integrator that queries an agent itself.

    All requirements of an `Integrator` hold for it, too; given the same answers, it must send the same queries
    and return the same merge.
    """

    def merge_asking(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker) -> Merge:
        """Merge the outcomes, failed and skipped ones included, with the help of an agent.

        Args:
            briefs: The briefs of the job.
            outcomes: All outcomes.
            ask: Runs the queries.
        """
        ...


AnyMerger = Integrator | AskingIntegrator
"""Any object that can merge outcomes."""


class Delivery(NamedTuple):
    """Result of delivering a merged value."""

    done: str = ""
    """What was done, as a sentence."""
    shortfall: str = ""
    """What could not be done, as a sentence; the run then completes with gaps."""


class RuleOpinion(NamedTuple):
    """A judge's opinion on whether a merged value keeps a rule."""

    verdict: Literal["met", "violated", "not_checkable"]
    """The opinion; `not_checkable` if there is none that is backed."""
    note: str
    """Who judged, or why there is no opinion."""
    path: str = ""
    """JSON Pointer to the part of the value that breaks it."""
    sentence: str = ""
    """The sentence that breaks it."""
    sources: tuple[Ref, ...] = ()
    """The outcomes that the sentence cites."""


class BaseIntegrator:
    """Base class of integrators: defaults for all that callers may ask beyond `merge` or `merge_asking`.

    Deriving from it is optional. `BaseIntegrator.of` adapts any object that implements `Integrator` or
    `AskingIntegrator`, and uses those of the methods below that the object has.

    Example:
        >>> from prefect_dispatch.models.ledger import LedgerRow, Merge
        >>> class Count(BaseIntegrator):
        ...     def merge(self, briefs, outcomes):
        ...         rows = [
        ...             unanswered(each) or LedgerRow(brief=each.brief, item=each.item, disposition="merged")
        ...             for each in outcomes
        ...         ]
        ...         return Merge(value=sum(each.status == "succeeded" for each in outcomes), ledger=rows)
        ...
        ...     def verify(self, merge, outcomes, briefs):
        ...         if merge.value != sum(each.status == "succeeded" for each in outcomes):
        ...             yield Violation(law="precision", where="/", message="it is not the number of answers.")
        >>> BaseIntegrator.of(Count()).excluded_outcomes(Count().merge([], []))
        ()
    """

    @staticmethod
    def of(integrator: object) -> BaseIntegrator:
        """Return an integrator as a `BaseIntegrator`: itself, or an adapter of an object with fewer methods."""
        return integrator if isinstance(integrator, BaseIntegrator) else _IntegratorAdapter(integrator)

    # Before a run, in this order; each method returns a prepared copy, by default the integrator itself.

    def resolve_references(self, load: Callable[[str], Any]) -> object:  # noqa: ARG002 -- a default
        """Return this integrator with every `module:name` replaced by what `load` returns for it."""
        return self

    def with_executor(self, executor: Executor, folder: Path) -> object:  # noqa: ARG002 -- a default
        """Return this integrator with settings that it takes from the job's executor, such as its workspace.

        Args:
            executor: The job's executor, with its paths resolved.
            folder: The folder that relative paths start from.

        Raises:
            JobError: If it doesn't fit the executor.
        """
        return self

    def resolve_paths(self, folder: Path) -> object:  # noqa: ARG002 -- a default
        """Return this integrator with its files found or loaded, relative paths starting from a folder."""
        return self

    def with_items(self, briefs: Sequence[Brief], items: Sequence[Item]) -> object:  # noqa: ARG002 -- a default
        """Return this integrator with the items that it needs.

        Raises:
            JobError: If it can't merge answers about these items.
        """
        return self

    def preflight(self, briefs: Sequence[Brief]) -> None:  # noqa: ARG002 -- a default
        """Check that it will be able to merge the answers to the briefs.

        Raises:
            JobError: If it can't merge the answers to one of them.
        """
        return

    def alternatives(self, briefs: Sequence[Brief]) -> Mapping[str, str]:  # noqa: ARG002 -- a default
        """Return the briefs whose answers are alternatives, of which one is enough, with the name of their group.

        By default none: each answer counts.
        """
        return {}

    def estimate_queries(
        self,
        work: int,  # noqa: ARG002 -- a default
        briefs: Sequence[Brief],  # noqa: ARG002 -- a default
    ) -> Sequence[QueryEstimate] | None:
        """Return the estimated queries to agents, before the run. By default None: unknown.

        Args:
            work: The number of (brief, item) pairs in the job.
            briefs: The briefs of the job.
        """
        return None

    # For the audit of a merge; no method may query an agent.

    def verify(
        self,
        merge: Merge,  # noqa: ARG002 -- a default
        outcomes: Sequence[Outcome],  # noqa: ARG002 -- a default
        briefs: Sequence[Brief],  # noqa: ARG002 -- a default
    ) -> Iterable[Violation] | None:
        """Return each violation of guarantees beyond the laws that hold for all integrators.

        By default None: it has no such guarantees. With guarantees, all of its value counts as traced, even where a
        merge has no field rows.

        Args:
            merge: The merge, which may have been tampered with.
            outcomes: The outcomes that it was made of.
            briefs: The briefs of the job.
        """
        return None

    def as_outcomes(self, merge: Merge) -> list[Outcome] | None:  # noqa: ARG002 -- a default
        """Return the content of a merged value as outcomes; merging those again must change nothing.

        By default None: this isn't guaranteed.
        """
        return None

    def recompute(
        self,
        merge: Merge,  # noqa: ARG002 -- a default
        outcomes: Sequence[Outcome],  # noqa: ARG002 -- a default
        briefs: Sequence[Brief],  # noqa: ARG002 -- a default
    ) -> Merge | None:
        """Return the merge that outcomes and documented rules result in; every difference from it is a violation.

        It should not call the code that merges, as a mistake there would be repeated. What a merge depends on beyond
        the outcomes, such as an agent's verdicts, may be taken from the merge as evidence. By default None: there are
        no such rules. Raise if the evidence is missing or isn't about these outcomes.

        Args:
            merge: The merge, which may have been tampered with.
            outcomes: The outcomes that it was made of, in any order.
            briefs: The briefs of the job.
        """
        return None

    def side_effects(self, outcome: Outcome) -> JsonValue:  # noqa: ARG002 -- a default
        """Return the content of an outcome beyond its value, for example the change that it made to a repository.

        The merged value may contain it, but need not. By default None.
        """
        return None

    def excluded_outcomes(self, merge: Merge) -> Collection[Ref]:  # noqa: ARG002 -- a default
        """Return the outcomes that were left out because they break the merged whole, as a merge has evidence.

        The ledger lists them as `overridden` without naming an outcome that overrides them. By default none.
        """
        return ()

    # After the audit, and for a review.

    def own_constraints(self) -> Sequence[str]:
        """Return the rules in words that the merged value itself must keep. By default none."""
        return ()

    def judge_rules(
        self,
        merge: Merge,  # noqa: ARG002 -- a default
        outcomes: Sequence[Outcome],  # noqa: ARG002 -- a default
        rules: Sequence[str],  # noqa: ARG002 -- a default
        ask: Asker,  # noqa: ARG002 -- a default
    ) -> Sequence[RuleOpinion] | None:
        """Return a judge's opinion on each rule in words. By default None: there is no judge.

        Args:
            merge: The merge, after its audit.
            outcomes: The outcomes that it was made of.
            rules: The rules: constraints and scopes of the briefs, and constraints of the integrator's own.
            ask: Runs the queries.
        """
        return None

    def canonical_identity(self, identity: Identity) -> Hashable:
        """Return the canonical form of a record's identity: the same for each of its spellings."""
        return canonical_json(identity)

    def deliver(self, value: JsonValue, folder: Path) -> Delivery | None:  # noqa: ARG002 -- a default
        """Deliver an audited value, unless the run has failed; the operation is idempotent. By default None.

        Args:
            value: The merged value.
            folder: The folder that relative paths start from.
        """
        return None


class _IntegratorAdapter(ObjectAdapter, BaseIntegrator):
    """Integrator that delegates to a user's object where that has the method, and to the defaults otherwise."""


@runtime_checkable
class DecisionIntegrator(Protocol):
    """Integrator that applies people's decisions about earlier merges."""

    @property
    def aliases(self) -> str | None:
        """The path of the decisions file, relative to the job's folder; None if there is none."""
        ...

    @property
    def decisions(self) -> Decisions:
        """The decisions that it applies."""
        ...

    def with_decisions(self, decisions: Decisions) -> Self:
        """Return a copy of this integrator that applies these decisions, and no others."""
        ...


@runtime_checkable
class RecordIntegrator(Protocol):
    """Integrator whose value has a list of records that some of their fields identify."""

    @property
    def identity(self) -> tuple[str, ...]:
        """The dotted paths of the identifying fields."""
        ...

    @property
    def entries(self) -> str:
        """The name of the merged value's field that has the list."""
        ...


def copy_mutable_value(outcome: Outcome) -> Outcome:
    """Return an outcome that shares no mutable data with the given one, for code that may modify it.

    Only a value that is a dict or a list is copied; everything else in an outcome is frozen.
    """
    if not isinstance(outcome.value, (dict, list)):
        return outcome
    return outcome.model_copy(update={"value": deep_copy(outcome.value)})


MAX_LISTED_GAPS = 20
"""Maximum number of gaps that a sentence lists one by one; the others are only counted."""


def unanswered(outcome: Outcome) -> LedgerRow | None:
    """Return the ledger row of an outcome that failed or was skipped, or None if it succeeded."""
    if outcome.status == "succeeded":
        return None
    return LedgerRow(
        brief=outcome.brief, item=outcome.item, disposition=outcome.status, reason=_failure_reason(outcome)
    )


def gaps(outcomes: Iterable[Outcome]) -> list[JsonValue]:
    """Return the outcomes without an answer as the entries of a merged value's `gaps`, sorted by brief and item.

    Example:
        >>> from prefect_dispatch.models.outcome import Failure, Outcome
        >>> lost = Outcome(brief="terms", item="a", status="failed", error=Failure(kind="timeout", message="Late."))
        >>> gaps([lost])
        [{'brief': 'terms', 'item': 'a', 'status': 'failed', 'reason': 'timeout: Late.'}]
    """
    return [
        {"brief": outcome.brief, "item": outcome.item, "status": outcome.status, "reason": _failure_reason(outcome)}
        for outcome in _sort_unanswered(outcomes)
    ]


def gap_violations(merge: Merge, outcomes: Sequence[Outcome]) -> Iterator[Violation]:
    """Yield a violation if the merged value's field `gaps` doesn't list exactly the outcomes without an answer."""
    if get_at(merge.value, ["gaps"]) != gaps(outcomes):
        message = "the value's gaps are not the outcomes without an answer."
        yield Violation(law="conservation", where="/gaps", message=message)


def gaps_as_outcomes(value: JsonValue) -> list[Outcome]:
    """Return the outcomes that the field `gaps` of a merged value was made from.

    Example:
        >>> gap = {"brief": "terms", "item": "a", "status": "failed", "reason": "timeout: Late."}
        >>> [outcome.error for outcome in gaps_as_outcomes({"answers": [], "gaps": [gap]})]
        [Failure(kind='timeout', message='Late.')]
    """
    entries: Any = value.get("gaps") if isinstance(value, dict) else None
    return [
        Outcome(brief=gap["brief"], item=gap["item"], status=gap["status"], error=_parse_failure(gap["reason"]))
        for gap in entries or ()
    ]


def gap_sentence(outcomes: Iterable[Outcome]) -> str:
    """Return the gaps as a sentence, for a value that is prose; empty if every outcome has an answer.

    Example:
        >>> from prefect_dispatch.models.outcome import Failure, Outcome
        >>> lost = Outcome(brief="terms", item="a", status="failed", error=Failure(kind="timeout", message="Late."))
        >>> gap_sentence([lost, Outcome(brief="terms", item="b", status="succeeded", value=1)])
        'No answer for 1 of 2: terms/a (timeout).'
    """
    all_outcomes = list(outcomes)
    missing = _sort_unanswered(all_outcomes)
    if not missing:
        return ""
    listed = join_names((f"{Ref.of(o)} ({o.error.kind if o.error else o.status})" for o in missing), MAX_LISTED_GAPS)
    return f"No answer for {len(missing)} of {len(all_outcomes)}: {listed}."


def _sort_unanswered(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes without an answer, sorted by brief and item."""
    return sorted((o for o in outcomes if o.status != "succeeded"), key=lambda outcome: Ref.of(outcome).order)


def _parse_failure(reason: str) -> Failure | None:
    """Return the error that a gap's reason was made from; None if it is empty."""
    kind, _, message = reason.partition(": ")
    return Failure(kind=kind, message=message) if reason else None


def _failure_reason(outcome: Outcome) -> str:
    return f"{outcome.error.kind}: {outcome.error.message}" if outcome.error else ""
