"""The report of a run: the merged value, the ledger, the gaps, the usage, and the changes since the last run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

from pydantic import Field, JsonValue, StringConstraints, model_validator

from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.bill import BillRow, create_bill, rows_paid, sum_costs
from prefect_dispatch.models.decisions import Decisions
from prefect_dispatch.models.ledger import (
    Document,
    FieldRow,
    Flag,
    Gap,
    LedgerRow,
    LongDocument,
    LongFieldRow,
    Proposal,
    Ref,
    Requirement,
    Table,
    Violation,
    make_ref,
    sort_key,
)
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.serialization.json_text import digest
from prefect_dispatch.serialization.json_values import resolve_pointer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prefect_dispatch.models.outcome import Attempt


Digest = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
"""A SHA-256 in hexadecimal, or an empty text."""


class KnownAnswer(NamedTuple):
    """Record of the last known answer of a (brief, item); a tuple, as there may be very many."""

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""
    answered: bool
    """Whether it had an answer in the last run."""
    fingerprint: Digest = ""
    """The identity of the work of the last answer, from that run or an earlier one."""
    digest: Digest = ""
    """The digest of that answer's value; empty if there never was one."""

    @property
    def name(self) -> tuple[str, str]:
        """Brief and item."""
        return self.brief, self.item


class FlowRun(Strict):
    """A flow run."""

    id: str | None
    """Its id."""
    name: str | None
    """Its name."""


class LastRun(Strict):
    """Reference to the last run, from its report."""

    started: str
    """When it started."""
    flow_run: FlowRun
    """Its flow run."""


class RunSnapshot(Strict):
    """Stored state of the last run of a job, to compare the next one with."""

    run: LastRun
    """The run."""
    work: tuple[KnownAnswer, ...]
    """Every (brief, item) of it, in order."""
    value: Digest = ""
    """The digest of the last merged value, from that run or an earlier one; empty if there never was one."""


class AnswerIdentity(Strict):
    """Identity of an answer."""

    fingerprint: str
    """The identity of the work; it changes with the brief, the item and the executor."""
    digest: str
    """The SHA-256 of the value's canonical JSON."""


class Change(Strict):
    """A (brief, item) whose answer has changed."""

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""
    before: AnswerIdentity
    """The last answer before this run."""
    after: AnswerIdentity
    """The answer of this run."""


class Changes(Strict):
    """Changes since the last run of the same job that had any answer."""

    earlier: Literal["none", "found", "unreadable"] = "none"
    """Whether there is an earlier run to compare with: none, one, or one whose record can't be read."""
    new: tuple[Ref, ...] = ()
    """Pairs (brief, item) that only this run has."""
    gone: tuple[Ref, ...] = ()
    """Pairs that only that run had."""
    changed: tuple[Change, ...] = ()
    """Answers that differ from the last known ones, from that run or, where it had a gap, from an earlier one."""
    closed: tuple[Ref, ...] = ()
    """Gaps of that run that have an answer now."""
    opened: tuple[Ref, ...] = ()
    """Pairs that had an answer in that run and have none now."""
    merged: bool = False
    """Whether the merged value differs from the last known one: by other answers, or by how they are merged."""

    @property
    def lists(self) -> dict[str, tuple[Ref, ...]]:
        """The references in each list that isn't empty, by the kind of change."""
        changed = tuple(Ref(brief=each.brief, item=each.item) for each in self.changed)
        gaps = {"gaps closed": self.closed, "gaps opened": self.opened}
        lists = {"new": self.new, "gone": self.gone, "changed": changed, **gaps}
        return {name: refs for name, refs in lists.items() if refs}

    def __str__(self) -> str:
        """Return the changes as counts.

        Example:
            >>> print(Changes(earlier="found", closed=(Ref(brief="terms", item="mit.txt"),)))
            gaps closed 1
        """
        if self.earlier == "unreadable":
            return "unknown: what the last run left can't be read"
        counts = ", ".join(f"{name} {len(refs)}" for name, refs in self.lists.items())
        return counts or ("only the merged value changed" if self.merged else "nothing changed")


def update_known_answers(outcomes: Iterable[Outcome], before: Sequence[KnownAnswer] = ()) -> tuple[KnownAnswer, ...]:
    """Return the last known answers after a run.

    Args:
        outcomes: The outcomes of the run, in order.
        before: The answers known before; where this run has a gap, the last answer stays known.
    """
    earlier = {each.name: each for each in before}
    return tuple(_known_answer(outcome, earlier.get((outcome.brief, outcome.item))) for outcome in outcomes)


def is_same_list(before: Sequence[KnownAnswer], after: Sequence[KnownAnswer | Outcome]) -> bool:
    """Return whether two lists of items are versions of one list: they share at least half of the shorter one's keys.

    Example:
        >>> lists = ([KnownAnswer("terms", key, answered=True) for key in keys] for keys in ("ab", "abc", "xy"))
        >>> last, longer, other = lists
        >>> is_same_list(last, longer), is_same_list(last, other)
        (True, False)
    """
    was, now = ({each.item for each in rows} for rows in (before, after))
    return 2 * len(was & now) >= min(len(was), len(now))


def compare(
    before: Sequence[KnownAnswer], after: Sequence[KnownAnswer], values: tuple[Digest, Digest] = ("", "")
) -> Changes:
    """Return the changes from one run to the next, each list sorted.

    Args:
        before: The answers known after the earlier run.
        after: The answers known after this run.
        values: The digests of the merged value before and after; empty if there is none.
    """
    was, now = ({each.name: each for each in rows} for rows in (before, after))
    both = [(was[name], each) for name, each in now.items() if name in was]
    changed = [(old, new) for old, new in both if new.answered and old.digest and old.digest != new.digest]
    return Changes(
        earlier="found",
        new=_to_refs(now.keys() - was.keys()),
        gone=_to_refs(was.keys() - now.keys()),
        changed=tuple(
            Change(brief=new.brief, item=new.item, before=_answer_identity(old), after=_answer_identity(new))
            for old, new in sorted(changed, key=lambda pair: sort_key(*pair[1].name))
        ),
        closed=_to_refs(new.name for old, new in both if new.answered and not old.answered),
        opened=_to_refs(new.name for old, new in both if old.answered and not new.answered),
        merged=all(values) and values[0] != values[1],
    )


def _known_answer(outcome: Outcome, before: KnownAnswer | None) -> KnownAnswer:
    """Return the last known answer after an outcome: its own, else the one before."""
    if outcome.status == "succeeded":
        return KnownAnswer(outcome.brief, outcome.item, True, outcome.fingerprint, digest(outcome.value))  # noqa: FBT003 -- a row
    return before._replace(answered=False) if before else KnownAnswer(outcome.brief, outcome.item, answered=False)


def _to_refs(names: Iterable[tuple[str, str]]) -> tuple[Ref, ...]:
    return tuple(make_ref(*name) for name in sorted(names, key=lambda name: sort_key(*name)))


def _answer_identity(row: KnownAnswer) -> AnswerIdentity:
    return AnswerIdentity(fingerprint=row.fingerprint, digest=row.digest)


LONG_WINNER = 10_000
"""Elements of a winner beyond which report.json has it only in the merged value."""

LONG_DOCUMENT = 1_000_000
"""Characters of a document beyond which it is only in its own file."""


class Spending(Strict):
    """Usage of a run: answers by their origin, requests, tokens, cost, re-asks, retries and escalations."""

    asked: int = 0
    """Number of (brief, item) pairs that were sent to an agent in this run."""
    cached: int = 0
    """Number of pairs that were answered from the store."""
    shared: int = 0
    """Number of pairs that got the answer of an equal item of this run."""
    requests: int = 0
    """Calls sent, re-asks and retries included."""
    prompt_tokens: int = 0
    """Tokens sent."""
    cached_tokens: int = 0
    """The part of the tokens sent that the provider found in its cache."""
    completion_tokens: int = 0
    """Tokens received."""
    tokens: int = 0
    """Tokens sent and received."""
    cost_usd: float | None = 0.0
    """US dollars; empty where a price is unknown."""
    estimated_usd: float = 0.0
    """The part of `cost_usd` that no provider reported: computed from the token counts of coding agents."""
    unsettled: int = 0
    """Calls of unknown usage, cut off or timed out; they may have cost something."""
    reasks: int = 0
    """How often an invalid answer was sent back."""
    retried: dict[str, int] = Field(default_factory=dict)
    """Number of retries, by the class of the failure that ended the attempt before."""
    escalated: dict[str, int] = Field(default_factory=dict)
    """Number of escalations to the executor's next model, by why the one before was given up."""

    @classmethod
    def of(cls, outcomes: Iterable[Outcome], bill: Iterable[BillRow] | None = None) -> Spending:
        """Sum up the outcomes of a run.

        Args:
            outcomes: The outcomes.
            bill: The rows of their bill, which the cost is the sum of. None: they are computed.
        """
        outcomes = list(outcomes)
        costs = sum_costs(rows_paid(create_bill(outcomes) if bill is None else bill, "run"))
        origins = Counter(outcome.origin for outcome in outcomes)
        attempts = [attempt for outcome in outcomes for attempt in outcome.spent]
        retried = Counter(kind for outcome in outcomes for kind in _retried_kinds(outcome.spent))
        escalated = Counter(given_up.kind for attempt in attempts for given_up in attempt.escalations)
        usages = [attempt.usage for attempt in attempts]
        counts = {
            name: sum(getattr(usage, name) for usage in usages)
            for name in ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "tokens", "unsettled")
        }
        return cls(
            asked=origins["asked"],
            cached=origins["stored"],
            shared=origins["shared"],
            **counts,
            cost_usd=costs.cost_usd,
            estimated_usd=costs.estimated_usd,
            reasks=sum(attempt.reasks for attempt in attempts),
            retried=dict(sorted(retried.items())),
            escalated=dict(sorted(escalated.items())),
        )


def _retried_kinds(attempts: Sequence[Attempt]) -> Iterator[str]:
    """Yield the class of each failure after which the same work was retried; splitting the item is no retry."""
    for one, following in pairwise(attempts):
        if one.error and one.part == following.part:
            yield one.error.partition(":")[0]


class ServedModel(Strict):
    """Number of answers of a model, by the name that the provider's responses give it."""

    asked: str
    """The model that was asked."""
    served: str
    """The model that the responses name; empty where they name none."""
    answers: int
    """Number of answers."""
    expected: bool
    """Whether it is the model that was asked, as far as that is known, or one that is accepted in its place."""


class Report(Strict):
    """The merged value of a run, and the account of every (brief, item)."""

    status: Literal["complete", "gaps", "failed"]
    """Complete; complete with gaps; or failed."""
    message: str
    """The outcome of the run in a sentence."""
    value: JsonValue = None
    """The merged value; empty if the run failed before the merge."""
    ledger: tuple[LedgerRow, ...] = ()
    """One row for each (brief, item)."""
    fields: tuple[FieldRow, ...] = ()
    """One row for each merged field."""
    gaps: tuple[Gap, ...] = ()
    """Every (brief, item) without an answer."""
    violations: tuple[Violation, ...] = ()
    """Violations that the audit found; empty unless the run failed for them."""
    requirements: tuple[Requirement, ...] = ()
    """What the briefs require, each compared with the merged value; empty if there is none."""
    rules: str = ""
    """The rules by which the answers were merged, in a paragraph that a reviewer can contest."""
    proposals: tuple[Proposal, ...] = ()
    """Pairs of records for a reviewer to decide on."""
    flags: tuple[Flag, ...] = ()
    """Doubtful places in the value, for a reader to verify."""
    tables: tuple[Table, ...] = ()
    """Tables in addition to the value."""
    documents: tuple[Document, ...] = ()
    """Texts in addition to the value."""
    changes: Changes = Changes()
    """Changes since the last run of the same job, which `run.since` names."""
    shortfalls: tuple[str, ...] = ()
    """What the integrator could not do, a sentence each."""
    decided: Decisions = Decisions()
    """Decisions of this run's review; earlier decisions are in the rules and the fields."""
    models: tuple[ServedModel, ...] = ()
    """The models that answered, the integrator's own queries and stored answers included."""
    usage: Spending = Spending()
    """Usage of the run, the integrator's share included."""
    integration: Spending = Spending()
    """The integrator's share of the usage: that of its own queries."""
    bill: tuple[BillRow, ...] = ()
    """The same usage and cost by brief, model, price tier, reason and stage; what was paid for before is kept apart."""
    plan: dict[str, JsonValue] = Field(default_factory=dict)
    """The plan before the run."""
    run: dict[str, JsonValue] = Field(default_factory=dict)
    """Times, ids and versions: the only part that depends on the clock."""
    outcomes: tuple[Outcome, ...] = Field(default=(), exclude=True)
    """Every outcome; not in the report's JSON, but in `outcomes.jsonl`."""
    asked: tuple[Outcome, ...] = Field(default=(), exclude=True)
    """Outcomes of the integrator's own queries; not in the report's JSON."""

    @property
    def shortened(self) -> Report:
        """The report for a file, which contains long values only once.

        A winner of more than `LONG_WINNER` elements is only in the merged value, and a document of more than
        `LONG_DOCUMENT` characters only in a file of its own. Reading a report from such a file restores the winners.
        """
        return self.model_copy(
            update={
                "fields": tuple(map(_short_row, self.fields)),
                "documents": tuple(map(_short_document, self.documents)),
            }
        )

    @model_validator(mode="before")
    @classmethod
    def _read_shortened(cls, data: object) -> object:
        """Restore the long values of a report that was read from a file."""
        if not isinstance(data, Mapping):
            return data
        given = dict(cast("Mapping[str, Any]", data))
        restorers = (("fields", partial(_long_row, given.get("value"))), ("documents", _long_document))
        for name, restore in restorers:
            if isinstance(rows := given.get(name), list):
                given[name] = [
                    restore(cast("dict[str, Any]", row)) if isinstance(row, dict) else row
                    for row in cast("list[object]", rows)
                ]
        return given


def _short_row(row: FieldRow) -> FieldRow:
    if not isinstance(row.winner, (list, dict)) or len(row.winner) <= LONG_WINNER:
        return row
    return LongFieldRow.model_validate({**dict(row), "winner": None, "winner_at": row.path})


def _long_row(value: JsonValue, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its winner, which a shortened one has in the merged value only.

    Raises:
        ValueError: If the value has no such path.
    """
    if "winner_at" not in row:
        return row
    try:
        winner, _ = resolve_pointer(value, row["winner_at"])
    except (LookupError, TypeError, AttributeError):
        raise ValueError(f"the value has nothing at {row['winner_at']!r}") from None
    return {**{name: each for name, each in row.items() if name != "winner_at"}, "winner": winner}


def _short_document(document: Document) -> Document:
    if len(document.text) <= LONG_DOCUMENT:
        return document
    data = document.text.encode()
    digests = {"sha256": sha256(data).hexdigest(), "bytes": len(data)}
    return LongDocument.model_validate({**dict(document), "text": "", **digests})


def _long_document(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document without what only a shortened one has."""
    if "sha256" not in document:
        return document
    return {name: each for name, each in document.items() if name not in {"sha256", "bytes"}}
