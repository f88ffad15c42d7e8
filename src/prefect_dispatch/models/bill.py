"""The bill of a run: its usage by brief, model, price tier, reason and stage, in rows that add up exactly.

A row's costs are multiples of 10^-9 US dollars, and the total is the sum of the rows, so every way to group them has
the same total. A cost that is unknown is no number: a row counts the calls of unknown price, and its cost is empty.
"""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from itertools import pairwise
from math import fsum
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.outcome import Step, Usage, UsageShare

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from typing_extensions import Self

    from prefect_dispatch.models.outcome import Outcome

DECIMALS = 9
"""Decimals of a cost in US dollars."""

Stage = Literal["items", "pilot", "integrator"]
"""What calls were for: the items, the items of a pilot, or the integrator's own queries."""
Paid = Literal["run", "stored"]
"""When calls were paid for: in this run, or before it, for answers that this run found in the store."""
Split = Literal["stage", "brief", "model", "tier", "step"]
SPLITS: tuple[Split, ...] = ("stage", "brief", "model", "tier", "step")
"""The ways in which a bill is split."""


class Costs(Strict):
    """Usage and cost of some calls."""

    requests: int = Field(default=0, ge=0)
    """Calls sent, answered or not."""
    prompt_tokens: int = Field(default=0, ge=0)
    """Tokens sent."""
    cached_tokens: int = Field(default=0, ge=0)
    """The part of the tokens sent that the provider found in its cache."""
    cache_write_tokens: int = Field(default=0, ge=0)
    """The part that it has written into its cache, where it bills that."""
    uncached_tokens: int = 0
    """The rest of the tokens sent."""
    completion_tokens: int = Field(default=0, ge=0)
    """Tokens received."""
    cost_usd: float | None = Field(default=0.0, ge=0, allow_inf_nan=False)
    """US dollars; empty where the price of a call is unknown."""
    known_usd: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """US dollars of the calls whose price is known."""
    unpriced: int = Field(default=0, ge=0)
    """Number of calls whose price is unknown."""
    estimated_usd: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """The part of `known_usd` that no provider reported: computed from the token counts of coding agents."""
    unsettled: int = Field(default=0, ge=0)
    """Number of calls of unknown usage, cut off or timed out; they may have cost something."""

    @property
    def is_free(self) -> bool:
        """Whether nothing was used that costs anything, as by commands on this machine."""
        used = self.prompt_tokens + self.completion_tokens + self.unpriced + self.unsettled
        return not used and not self.known_usd

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.cost_usd != (None if self.unpriced else self.known_usd):
            raise ValueError("cost_usd is known_usd, or empty if there are calls of unknown price (unpriced)")
        if self.prompt_tokens != self.cached_tokens + self.cache_write_tokens + self.uncached_tokens:
            raise ValueError("prompt_tokens is the sum of cached_tokens, cache_write_tokens and uncached_tokens")
        return self


class BillRow(Costs):
    """Row of a bill: the calls with one value in each of its columns."""

    paid: Paid
    """Whether they were paid for in this run, or before."""
    stage: Stage
    """What they were for."""
    brief: str
    """The brief's name."""
    model: str
    """The model that was asked; empty if that is unknown, or it was no language model."""
    tier: str
    """The price tier: `live`, `batch` or another one of the provider's."""
    step: Step
    """Why they were sent."""


_Cell = tuple[Paid, Stage, str, str, str, Step]


def create_bill(
    outcomes: Iterable[Outcome], asked: Iterable[Outcome] = (), pilot: Collection[str] = ()
) -> tuple[BillRow, ...]:
    """Return the rows of the bill of a run, in one order for any order of the outcomes.

    The calls for equal items are counted once. Where an answer was stored, its attempts were paid for before.

    Args:
        outcomes: The outcomes.
        asked: The outcomes of the integrator's own queries.
        pilot: The fingerprints of the work that a pilot of this run has asked.

    Example:
        >>> from prefect_dispatch.models.outcome import Attempt, Outcome, Usage
        >>> attempt = Attempt(model="openai/gpt-5-nano", usage=Usage(requests=1, cost_usd=0.25))
        >>> outcome = Outcome(brief="terms", item="a", status="succeeded", attempts=(attempt,), origin="asked")
        >>> [(row.brief, row.model, row.step, row.cost_usd) for row in create_bill([outcome])]
        [('terms', 'openai/gpt-5-nano', 'ask', 0.25)]
    """
    cells: defaultdict[_Cell, list[Usage]] = defaultdict(list)
    stages: tuple[tuple[Stage, list[Outcome]], ...] = (("items", [*outcomes]), ("integrator", [*asked]))
    # What this run has asked, and then found in the store, was not paid for before.
    counted = {_name(outcome) for _, group in stages for outcome in group if outcome.origin == "asked"}
    for stage, group in stages:
        for outcome in group:
            name = _name(outcome)
            if outcome.origin == "stored" and name not in counted:
                counted.add(name)
            elif outcome.origin != "asked":
                continue
            paid: Paid = "run" if outcome.origin == "asked" else "stored"
            where: Stage = "pilot" if paid == "run" and outcome.fingerprint in pilot else stage
            for share in _shares(outcome):
                cells[paid, where, outcome.brief, share.model, share.tier, share.step].append(share.usage)
    return tuple(_create_row(cell, cells[cell]) for cell in sorted(cells))


def _name(outcome: Outcome) -> str:
    return outcome.fingerprint or f"{outcome.brief}/{outcome.item}"


def _shares(outcome: Outcome) -> Iterator[UsageShare]:
    """Yield the shares of all attempts at an item; the first asks after a failed attempt are retries."""
    attempts = outcome.attempts
    retries = [False, *(bool(one.error) and one.part == then.part for one, then in pairwise(attempts))]
    for is_retry, attempt in zip(retries, attempts, strict=False):  # without attempts, one is left over
        for share in attempt.usage_shares:
            is_first = is_retry and share.step == "ask"
            yield share.model_copy(update={"step": "retry"}) if is_first else share


def _create_row(cell: _Cell, usages: Sequence[Usage]) -> BillRow:
    paid, stage, brief, model, tier, step = cell
    # fsum: the same in any order.
    known = round(fsum(usage.cost_usd or 0.0 for usage in usages), DECIMALS)
    unpriced = sum(max(1, usage.requests) for usage in usages if usage.cost_usd is None)
    prompt, cached, written = (
        sum(getattr(usage, name) for usage in usages)
        for name in ("prompt_tokens", "cached_tokens", "cache_write_tokens")
    )
    return BillRow(
        paid=paid,
        stage=stage,
        brief=brief,
        model=model,
        tier=tier,
        step=step,
        requests=sum(usage.requests for usage in usages),
        prompt_tokens=prompt,
        cached_tokens=cached,
        cache_write_tokens=written,
        uncached_tokens=prompt - cached - written,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cost_usd=None if unpriced else known,
        known_usd=known,
        unpriced=unpriced,
        estimated_usd=round(fsum(usage.estimated_usd for usage in usages), DECIMALS),
        unsettled=sum(usage.unsettled for usage in usages),
    )


def sum_costs(rows: Iterable[Costs]) -> Costs:
    """Return the exact sum of rows: as decimal numbers, the costs of any grouping add up to the same total.

    Example:
        >>> sum_costs([Costs(cost_usd=0.1, known_usd=0.1), Costs(cost_usd=0.2, known_usd=0.2)]).cost_usd
        0.3
    """
    rows = list(rows)
    counts = {name: sum(getattr(row, name) for row in rows) for name in Costs.model_fields if not name.endswith("_usd")}
    known, estimated = (_sum_usd(rows, name) for name in ("known_usd", "estimated_usd"))
    return Costs(**counts, known_usd=known, estimated_usd=estimated, cost_usd=None if counts["unpriced"] else known)


def _sum_usd(rows: Iterable[Costs], name: Literal["known_usd", "estimated_usd"]) -> float:
    return float(sum((Decimal(str(getattr(row, name))) for row in rows), Decimal()))


def split_bill(rows: Iterable[BillRow], by: Split) -> dict[str, Costs]:
    """Return the costs of rows by one of their columns, sorted by its values."""
    groups: defaultdict[str, list[BillRow]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, by)].append(row)
    return {value: sum_costs(groups[value]) for value in sorted(groups)}


def rows_paid(rows: Iterable[BillRow], paid: Paid) -> list[BillRow]:
    """Return the rows of what was paid for in the run, or of what was paid for before."""
    return [row for row in rows if row.paid == paid]
