"""Where everything ended: dispositions, merged fields, gaps, and the report."""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING, Any, Literal

from natsort import natsort_keygen
from pydantic import Field, JsonValue

from prefect_dispatch.models import Failure, Outcome, Usage
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Iterable

_natural = natsort_keygen()

Disposition = Literal["merged", "duplicate_of", "overridden", "failed", "skipped"]


class Ref(Strict):
    """Names one outcome.

    Example:
        >>> str(Ref(brief="terms", item="mit.txt"))
        'terms/mit.txt'
    """

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""

    def __hash__(self) -> int:
        """Return the hash; written down because type checkers don't see that the base is frozen."""
        return hash((self.brief, self.item))

    def __str__(self) -> str:
        """Return brief and item as one word."""
        return f"{self.brief}/{self.item}"

    @classmethod
    def of(cls, outcome: Outcome | LedgerRow | Gap) -> Ref:
        """Return the name of an outcome, or of the outcome that a row is about."""
        return cls(brief=outcome.brief, item=outcome.item)

    @property
    def order(self) -> tuple[Any, str, str]:
        """The place in every list: by the item's key (numbers inside by their value), then by brief."""
        return (_natural(self.item), self.item, self.brief)


class LedgerRow(Strict):
    """Where one outcome ended in the merged value."""

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""
    disposition: Disposition
    """Where it ended; there is exactly one row for each (brief, item)."""
    by: Ref | None = None
    """The outcome that it is a duplicate of, or that overrode it."""
    reason: str = ""
    """The rule that decided, or what went wrong."""


class Loser(Strict):
    """A value that a rule removed from a merged field."""

    value: JsonValue
    """What was removed."""
    sources: tuple[Ref, ...]
    """The outcomes that said so."""


class FieldRow(Strict):
    """How one field of the merged value came about."""

    path: str
    """JSON Pointer (RFC 6901) into the merged value."""
    winner: JsonValue
    """What stands there."""
    losers: tuple[Loser, ...] = ()
    """What does not, and who said it."""
    rule: str
    """The rule that decided."""
    sources: tuple[Ref, ...]
    """The outcomes that the winner comes from."""


class Merge(Strict):
    """What an integrator returns."""

    value: JsonValue
    """The merged value."""
    ledger: tuple[LedgerRow, ...]
    """One row for each outcome, in any order."""
    fields: tuple[FieldRow, ...] = ()
    """One row for each merged field, in any order."""


class Violation(Strict):
    """One difference that the audit found."""

    law: Literal["conservation", "recall", "precision", "schema"]
    """What does not hold."""
    where: str
    """The outcome (`brief/item`) or the field (JSON Pointer) that it is about."""
    message: str
    """What is wrong."""

    def __str__(self) -> str:
        """Return the violation as a sentence."""
        return f"{self.law} at {self.where}: {self.message}"


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

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Spending:
        """Return the sum over the outcomes of a run."""
        origins: dict[str | None, int] = {}
        usage = Usage()
        costs: list[float | None] = []
        for outcome in outcomes:
            origins[outcome.origin] = origins.get(outcome.origin, 0) + 1
            usage += outcome.usage
            costs.append(outcome.usage.cost_usd)
        return cls(
            asked=origins.get("asked", 0),
            cached=origins.get("stored", 0),
            shared=origins.get("shared", 0),
            requests=usage.requests,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            tokens=usage.tokens,
            cost_usd=None if None in costs else round(fsum(filter(None, costs)), 9),  # in whatever order
        )


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
    usage: Spending = Spending()
    """What the run spent."""
    plan: dict[str, JsonValue] = Field(default_factory=dict)
    """What was planned before the run."""
    run: dict[str, JsonValue] = Field(default_factory=dict)
    """Times, ids and versions: the only part that depends on the clock."""
    outcomes: tuple[Outcome, ...] = Field(default=(), exclude=True)
    """Every outcome; kept out of the report's JSON, which has them in `outcomes.jsonl`."""
