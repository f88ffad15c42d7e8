"""The report: the merged value, and what became of everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from itertools import pairwise
from math import fsum
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field, JsonValue, model_validator

from prefect_dispatch.changes import Changes
from prefect_dispatch.decisions import Decisions
from prefect_dispatch.ledger import (
    Document,
    FieldRow,
    Flag,
    LedgerRow,
    LongDocument,
    LongFieldRow,
    Proposal,
    Table,
    Violation,
)
from prefect_dispatch.models import Failure, Outcome, Usage
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prefect_dispatch.attempts import Attempt


LONG_WINNER = 10_000
"""Elements of a winner beyond which report.json has it in the value alone."""
LONG_DOCUMENT = 1_000_000
"""Characters of a document beyond which it stands in its own file alone."""


class Gap(Strict):
    """A (brief, item) without an answer."""

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""
    status: Literal["failed", "skipped"]
    """Failed after its attempts, or not asked."""
    error: Failure
    """Why."""


class Spending(Strict):
    """What a run spent."""

    asked: int = 0
    """How many (brief, item) were put to an agent in this run."""
    cached: int = 0
    """How many were answered from the store."""
    shared: int = 0
    """How many got the answer of an equal item of this run."""
    requests: int = 0
    """Calls sent, re-asks and retries included."""
    prompt_tokens: int = 0
    """Tokens sent."""
    completion_tokens: int = 0
    """Tokens received."""
    tokens: int = 0
    """Both."""
    cost_usd: float | None = 0.0
    """US dollars; empty where a price is unknown."""
    estimated_usd: float = 0.0
    """The part of them that nobody reported: computed from what coding agents said of their tokens."""
    unsettled: int = 0
    """Calls whose tokens nobody told, cut off or timed out; they may have cost something."""
    reasks: int = 0
    """How often an invalid answer was sent back."""
    retried: dict[str, int] = Field(default_factory=dict)
    """How often a new attempt was made, by the class of the failure that ended the one before."""
    escalated: dict[str, int] = Field(default_factory=dict)
    """How often the next of the executor's models was asked, by why the one before was given up."""

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Spending:
        """Return the sum over the outcomes of a run."""
        origins: dict[str | None, int] = {}
        usages: list[Usage] = []
        retried, escalated, reasks = Counter[str](), Counter[str](), 0
        for outcome in outcomes:
            origins[outcome.origin] = origins.get(outcome.origin, 0) + 1
            retried.update(_retried(outcome.spent))
            for attempt in outcome.spent:
                usages.append(attempt.usage)
                escalated.update(given_up.kind for given_up in attempt.escalations)
                reasks += attempt.reasks
        costs = [usage.cost_usd for usage in usages]
        prompt = sum(usage.prompt_tokens for usage in usages)
        completion = sum(usage.completion_tokens for usage in usages)
        return cls(
            asked=origins.get("asked", 0),
            cached=origins.get("stored", 0),
            shared=origins.get("shared", 0),
            requests=sum(usage.requests for usage in usages),
            prompt_tokens=prompt,
            completion_tokens=completion,
            tokens=prompt + completion,
            cost_usd=None if None in costs else round(fsum(filter(None, costs)), 9),  # in whatever order
            estimated_usd=round(fsum(usage.estimated_usd for usage in usages), 9),
            unsettled=sum(usage.unsettled for usage in usages),
            reasks=reasks,
            retried=dict(sorted(retried.items())),
            escalated=dict(sorted(escalated.items())),
        )


def _retried(attempts: Sequence[Attempt]) -> Iterator[str]:
    """Yield the class of each failure after which the same was tried again; what was cut instead was not."""
    for one, following in pairwise(attempts):
        if one.error and one.part == following.part:
            yield one.error.partition(":")[0]


class ServedModel(Strict):
    """How many answers came from a model, by the name that the provider's responses give it."""

    asked: str
    """The model that was asked."""
    served: str
    """The model that the responses name; empty where they name none."""
    answers: int
    """How many."""
    expected: bool
    """Whether it is the model that was asked, as far as that is known, or one that is accepted in its place."""


class Report(Strict):
    """The merged value, and the proof of what became of every (brief, item)."""

    status: Literal["complete", "gaps", "failed"]
    """Complete; complete with gaps; or failed."""
    message: str
    """The outcome of the run in a sentence."""
    value: JsonValue = None
    """The merged value; empty if the run failed before it was made."""
    ledger: tuple[LedgerRow, ...] = ()
    """One row for each (brief, item)."""
    fields: tuple[FieldRow, ...] = ()
    """One row for each merged field."""
    gaps: tuple[Gap, ...] = ()
    """Every (brief, item) without an answer."""
    violations: tuple[Violation, ...] = ()
    """What the audit found; empty unless the run failed for it."""
    rules: str = ""
    """The rules by which the answers were merged, in a paragraph that a reviewer can contest."""
    proposals: tuple[Proposal, ...] = ()
    """Pairs that somebody should decide on."""
    flags: tuple[Flag, ...] = ()
    """Places in the value that a reader should not take on trust."""
    tables: tuple[Table, ...] = ()
    """Figures beside the value."""
    documents: tuple[Document, ...] = ()
    """Texts beside the value."""
    changes: Changes = Changes()
    """What is otherwise than after the last run of the same job; `run.since` says which that was."""
    shortfalls: tuple[str, ...] = ()
    """What the integrator could not do, a sentence each."""
    decided: Decisions = Decisions()
    """What was decided in this run's review; earlier decisions are in the rules and the fields."""
    models: tuple[ServedModel, ...] = ()
    """Which models answered, the integrator's own questions and stored answers included."""
    usage: Spending = Spending()
    """What the run spent, the integrator's share included."""
    integration: Spending = Spending()
    """The integrator's share: what it asked an agent itself."""
    plan: dict[str, JsonValue] = Field(default_factory=dict)
    """What was planned before the run."""
    run: dict[str, JsonValue] = Field(default_factory=dict)
    """Times, ids and versions: the only part that depends on the clock."""
    outcomes: tuple[Outcome, ...] = Field(default=(), exclude=True)
    """Every outcome; kept out of the report's JSON, which has them in `outcomes.jsonl`."""
    asked: tuple[Outcome, ...] = Field(default=(), exclude=True)
    """What came of the integrator's own questions; kept out of the report's JSON."""

    @property
    def shortened(self) -> Report:
        """The report as a file has it, where nothing long stands twice.

        A winner of more than `LONG_WINNER` elements stands in the value alone, and a document of more than
        `LONG_DOCUMENT` characters in a file of its own. A report that is read from such a file has the winners again.
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
        """Take in a report as a file has it."""
        if not isinstance(data, Mapping):
            return data
        given = dict(cast("Mapping[str, Any]", data))
        marked = (
            ("fields", "winner_at", partial(_long_row, given.get("value"))),
            ("documents", "sha256", _long_document),
        )
        for name, mark, restore in marked:
            if isinstance(rows := given.get(name), list):
                given[name] = [
                    restore(cast("dict[str, Any]", row)) if isinstance(row, dict) and mark in row else row
                    for row in cast("list[object]", rows)
                ]
        return given


def _short_row(row: FieldRow) -> FieldRow:
    if not isinstance(row.winner, (list, dict)) or len(row.winner) <= LONG_WINNER:
        return row
    return LongFieldRow(
        path=row.path, winner=None, losers=row.losers, rule=row.rule, sources=row.sources, winner_at=row.path
    )


def _long_row(value: JsonValue, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its winner.

    Raises:
        ValueError: If the value has none there.
    """
    found: Any = value
    try:
        for part in row["winner_at"].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            found = cast("Any", found[int(key)] if isinstance(found, list) else found[key])
    except (LookupError, TypeError, AttributeError):
        raise ValueError(f"the value has nothing at {row['winner_at']!r}") from None
    return {**{name: each for name, each in row.items() if name != "winner_at"}, "winner": found}


def _short_document(document: Document) -> Document:
    if len(document.text) <= LONG_DOCUMENT:
        return document
    data = document.text.encode()
    return LongDocument(
        name=document.name, title=document.title, text="", sha256=sha256(data).hexdigest(), bytes=len(data)
    )


def _long_document(document: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in document.items() if name not in {"sha256", "bytes"}}
