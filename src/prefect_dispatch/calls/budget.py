"""Budget of a run: reserved before each call, settled after it.

No call is sent unless its upper bound fits into what is neither spent nor reserved, so no order of events can exceed a
cap. Only a call that uses more than was reserved for it can, because its provider counts tokens in another way. A
safety factor is added beforehand for that; where it wasn't enough, the usage counts in full, and the factor of that
model grows for every later call.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.calls.rate_limiter import FifoWaiters
from prefect_dispatch.errors import BudgetError, JobError, TransientError
from prefect_dispatch.executors.base import Ask, BaseExecutor
from prefect_dispatch.executors.fingerprint import executor_for
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.outcome import Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from prefect_dispatch.executors.base import CostBound, Executor
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.limits import Limits


NANO = 10**9
"""Units of money in a US dollar: integers of billionths add up exactly."""

SAFETY_FACTOR = Fraction(5, 4)
"""Safety factor for counted prompt tokens: the provider's tokenizer may count more."""


class UsageAmount(NamedTuple):
    """Requests, tokens and money of one call or several, as integers.

    Example:
        >>> UsageAmount(requests=1, prompt=10) + UsageAmount(requests=1, nano_usd=5)
        UsageAmount(requests=2, prompt=10, completion=0, nano_usd=5)
    """

    requests: int = 0
    prompt: int = 0
    completion: int = 0
    nano_usd: int = 0

    @property
    def tokens(self) -> int:
        """Tokens sent and received."""
        return self.prompt + self.completion

    def __add__(self, other: UsageAmount) -> UsageAmount:  # type: ignore[override]  # no tuple is appended to an amount
        """Return the sum, part by part."""
        return UsageAmount(
            self.requests + other.requests,
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.nano_usd + other.nano_usd,
        )

    def __sub__(self, other: UsageAmount) -> UsageAmount:
        """Return the difference, part by part."""
        return UsageAmount(
            self.requests - other.requests,
            self.prompt - other.prompt,
            self.completion - other.completion,
            self.nano_usd - other.nano_usd,
        )


ZERO_AMOUNT = UsageAmount()


class EstimateCorrection(NamedTuple):
    """Correction factors of a model's estimates: used divided by estimated, at most so far."""

    prompt: Fraction = SAFETY_FACTOR
    completion: Fraction = Fraction(1)
    nano_usd: Fraction = SAFETY_FACTOR

    def apply(self, counted: UsageAmount) -> UsageAmount:
        """Return the amount to reserve for a call, from its estimate."""
        if not any(counted[1:]):  # no limit needs an estimate, so there is none
            return counted
        return UsageAmount(counted.requests, *(math.ceil(one * by) for one, by in zip(counted[1:], self, strict=True)))

    def update(self, counted: UsageAmount, used: UsageAmount) -> EstimateCorrection:
        """Return the factors, raised so that they would have sufficed for this call too.

        Args:
            counted: The estimate of the call.
            used: Its usage.
        """
        if not any(counted[1:]):
            return self
        parts = zip(self, counted[1:], used[1:], strict=True)
        return EstimateCorrection(
            *(max(by, Fraction(actual, estimate)) if estimate else by for by, estimate, actual in parts)
        )


def to_nano_usd(usd: float) -> int:
    """Return US dollars in billionths, rounded up.

    Example:
        >>> to_nano_usd(0.1), to_nano_usd(1e-12)
        (100000000, 1)
    """
    return math.ceil(Decimal(str(usd)) * NANO) if usd else 0


def bound_amount(ceiling: CostBound | None) -> UsageAmount:
    """Return the upper bound of a call as an amount: one request, and the rest as far as it is known."""
    if ceiling is None:
        return UsageAmount(requests=1)
    return UsageAmount(1, ceiling.prompt_tokens, ceiling.completion_tokens or 0, to_nano_usd(ceiling.cost_usd or 0))


def usage_amount(usage: Usage) -> UsageAmount:
    """Return the usage of a call as an amount, an unknown cost as 0."""
    return UsageAmount(usage.requests, usage.prompt_tokens, usage.completion_tokens, to_nano_usd(usage.cost_usd or 0))


BUDGET_FIELDS = ("budget_usd", "budget_tokens", "budget_requests")
"""The fields of `Limits` that a budget enforces."""

_PARTS = 16
"""Upper bound of a step of the spending journal: this fraction of the cap."""

_CALLS = 256
"""Upper bound of a step of the spending journal: this many calls."""


class BudgetCap(NamedTuple):
    """One limit of a budget."""

    key: str
    """`usd`, `tokens` or `requests`."""
    maximum: int
    """The limit: billionths of a US dollar, tokens, requests."""
    measure: Callable[[UsageAmount], int]
    """Returns the part of an amount that the limit bounds."""

    def format_amount(self, amount: int) -> str:
        """Return an amount with its unit as text."""
        return f"{Decimal(amount) / NANO:f} USD" if self.key == "usd" else f"{amount} {self.key}"


def budget_caps(limits: Limits) -> list[BudgetCap]:
    """Return the caps that are set among some limits: `usd` in billionths, `tokens`, `requests`."""
    usd = limits.budget_usd
    nano_usd = None if usd is None else int((Decimal(str(usd)) * NANO).to_integral_value(ROUND_FLOOR))
    most = {
        "usd": (nano_usd, attrgetter("nano_usd")),
        "tokens": (limits.budget_tokens, attrgetter("tokens")),
        "requests": (limits.budget_requests, attrgetter("requests")),
    }
    return [BudgetCap(key, cap, of) for key, (cap, of) in most.items() if cap is not None]


def amount_from_caps(parts: Mapping[str, int]) -> UsageAmount:
    """Return the parts of each cap as one amount.

    Example:
        >>> amount_from_caps({"usd": 5, "requests": 2})
        UsageAmount(requests=2, prompt=0, completion=0, nano_usd=5)
    """
    return UsageAmount(parts.get("requests", 0), parts.get("tokens", 0), nano_usd=parts.get("usd", 0))


class SpendingJournal:
    """Spending journal: writes a mark for each cap ahead of the spending, which never goes beyond the mark.

    So the last mark of a process that died is an upper bound of what it has spent.

    Args:
        caps: The caps of the budget.
        note: Writes the marks, one for each cap, to the journal.
    """

    def __init__(self, caps: Sequence[BudgetCap], note: Callable[[dict[str, int]], Awaitable[None]]) -> None:
        """Start with marks of 0."""
        self._caps, self._note = caps, note
        self._marks = dict.fromkeys((cap.key for cap in caps), 0)
        self._writing: asyncio.Task[None] | None = None

    def covers(self, total: UsageAmount, need: UsageAmount, then: Callable[[TransientError | None], None]) -> bool:
        """Return whether the marks cover an amount; if not, start to write higher ones.

        Args:
            total: What would be spent or reserved with the next call.
            need: Upper bound of that call alone.
            then: Called when the marks were written, with the error if that failed.
        """
        if all(cap.measure(total) <= self._marks[cap.key] for cap in self._caps):
            return True
        if self._writing is None:
            ahead = {cap.key: min(cap.maximum // _PARTS, _CALLS * cap.measure(need)) for cap in self._caps}
            marks = {cap.key: min(cap.measure(total) + ahead[cap.key], cap.maximum) for cap in self._caps}
            self._writing = asyncio.ensure_future(self._write_marks(marks, then))
        return False

    async def _write_marks(self, marks: dict[str, int], then: Callable[[TransientError | None], None]) -> None:
        error: TransientError | None = None
        try:
            await self._note(marks)
            self._marks = marks
        except TransientError as failed:
            error = failed
        self._writing = None
        then(error)


_INSTEAD = {
    "budget_usd": "budget_requests",
    "budget_tokens": "budget_requests",
    "tokens_per_minute": "requests_per_minute",
}
"""Limits that need an upper bound of a call, each with the limit that can replace it."""


def require_enforceable_limits(limits: Limits, executor: Executor, briefs: Sequence[Brief]) -> None:
    """Check that every cap can be enforced for every call, without sending one.

    Args:
        limits: Limits of the run.
        executor: The executor of the run.
        briefs: The briefs of the run.

    Raises:
        JobError: If a cap can't be enforced; the message says what to change.
    """
    item = Item(key="any", value="")
    for brief in briefs:
        for tier in BaseExecutor.of(executor_for(brief, executor)).fallback_chain:
            if reason := explain_unenforceable(
                limits, executor_name(tier), find_cost_bound(limits, tier, Ask(brief=brief, item=item))
            ):
                raise JobError(reason)


def executor_name(executor: Executor) -> str:
    """Return the name of an executor: those with one name share a rate limiter."""
    return BaseExecutor.of(executor).name


def find_cost_bound(limits: Limits, executor: Executor, ask: Ask) -> CostBound | None:
    """Return the upper bound of a call; None if the executor has none, or no limit needs it."""
    is_needed = any(getattr(limits, key) is not None for key in _INSTEAD)
    return BaseExecutor.of(executor).cost_bound(ask) if is_needed else None


def explain_unenforceable(limits: Limits, name: str, ceiling: CostBound | None) -> str | None:
    """Return why a limit can't be enforced for a call, and what to change; None if all can be."""
    held = [key for key in _INSTEAD if getattr(limits, key) is not None]
    caps = [key for key in held if key.startswith("budget")]
    if ceiling is None and held:
        why = f"{name!r} doesn't say beforehand what a call takes; set limits.{_INSTEAD[held[0]]} in its place"
    elif ceiling and ceiling.instead:
        return _explain_unenforceable_run(held, name, ceiling)
    elif ceiling and ceiling.completion_tokens is None and caps:
        why = f"nothing bounds the answers of {name!r}; set max_tokens among its params"
    elif ceiling and ceiling.cost_usd is None and limits.budget_usd is not None:
        why = f"the price of {name!r} is unknown; give it usd_per_million, or set limits.budget_tokens in its place"
    else:
        return None
    return f"limits.{(caps or held)[0]} can't be held: {why}."


def _explain_unenforceable_run(held: Sequence[str], name: str, ceiling: CostBound) -> str | None:
    """Return the same for a call that runs a program: only its cost can be bounded."""
    if tokens := next((key for key in held if key != "budget_usd"), None):
        return (
            f"limits.{tokens} can't be held: {name!r} doesn't say beforehand how many tokens a run takes; "
            f"set limits.{_INSTEAD[tokens]} in its place."
        )
    if held and ceiling.cost_usd is None:
        return (
            f"limits.budget_usd can't be held: nothing bounds what a run of {name!r} costs; {ceiling.instead}, or "
            "limits.budget_requests in place of the budget."
        )
    return None


_SPENT = " are spent, and this call could take "


class BudgetShare(NamedTuple):
    """Share of a budget that another process may spend."""

    reserved: UsageAmount
    """The amount that is reserved for it until it is settled."""
    limits: Limits
    """The limits for that process, with the share as their budget."""


@dataclass(eq=False)
class Reservation:
    """Reservation of one call until it is settled."""

    model: str
    """Name of the executor."""
    estimated: UsageAmount
    """The estimate before any correction."""
    has_price: bool
    """Whether its cost is bounded."""
    reserved: UsageAmount = ZERO_AMOUNT
    """The amount that is reserved."""


class Budget:
    """Budget of a run: grants calls in order of arrival, as long as the caps allow.

    Args:
        limits: Limits of the run.
        sibling: A budget whose correction factors it shares.

    Attributes:
        scales: Correction factors of the estimates, by the executor's name.
    """

    def __init__(self, limits: Limits, sibling: Budget | None = None) -> None:
        """Start with nothing spent."""
        self._limits = limits
        self._caps = tuple(budget_caps(limits))
        self._spent = self._reserved = ZERO_AMOUNT
        self._priced = True
        self._unsettled = 0
        self.corrections: dict[str, EstimateCorrection] = sibling.corrections if sibling else {}
        self._journal: SpendingJournal | None = None
        self._queue: FifoWaiters[Reservation] = FifoWaiters(
            self._grant_waiting, lambda unsent: self.settle(unsent, Usage())
        )

    @property
    def spent(self) -> Usage:
        """The usage so far; a call of unknown usage counts with its reservation."""
        return Usage(
            requests=self._spent.requests,
            prompt_tokens=self._spent.prompt,
            completion_tokens=self._spent.completion,
            cost_usd=self._spent.nano_usd / NANO if self._priced else None,
            unsettled=self._unsettled,
        )

    @property
    def spent_amount(self) -> UsageAmount:
        """The same as an amount in integers."""
        return self._spent

    @property
    def remaining(self) -> dict[str, float]:
        """The rest of each cap that is neither spent nor reserved: `usd`, `tokens`, `requests`."""
        taken = self._spent + self._reserved
        left = {cap.key: max(cap.maximum - cap.measure(taken), 0) for cap in self._caps}
        return {key: value / NANO if key == "usd" else value for key, value in left.items()}

    def journal_to(self, note: Callable[[dict[str, int]], Awaitable[None]]) -> None:
        """Write a journal ahead of all spending.

        Args:
            note: Writes the marks, one for each cap; a call is refused with the `TransientError` that it raises.
        """
        self._journal = SpendingJournal(self._caps, note) if self._caps else None

    async def reserve(self, model: str, ceiling: CostBound | None) -> Reservation:
        """Reserve the budget for a call, and wait for it if calls in flight may free some.

        Args:
            model: Name of the executor.
            ceiling: Upper bound of the call, where it is known.

        Returns:
            The reservation, to be settled exactly once.

        Raises:
            BudgetError: If the budget doesn't suffice, even if the calls in flight used nothing.
        """
        call = self._create_reservation(model, ceiling)
        if self._caps:
            await self._queue.wait(call)
        else:
            call.reserved = call.estimated
            self._reserved += call.reserved
        return call

    def reserve_now(self, model: str, ceiling: CostBound | None, *, sent: bool = False) -> Reservation:
        """Reserve the budget for a call that may be in flight for hours, without waiting for other calls.

        Args:
            model: Name of the executor.
            ceiling: Upper bound of the call, where it is known.
            sent: Whether it was sent before, so that it counts even beyond a cap.

        Raises:
            BudgetError: If the budget doesn't suffice.
        """
        call = self._create_reservation(model, ceiling)
        call.reserved = self._correction(model).apply(call.estimated)
        taken = self._spent + self._reserved
        if not sent and (short := self._exceeded_cap(taken, call.reserved)):
            raise self._error(short, call.reserved, taken)
        self._reserved += call.reserved
        return call

    def settle(self, call: Reservation, usage: Usage | None) -> None:
        """Settle a reservation with the call's usage; if that is None, all of the reservation counts as spent."""
        self._reserved -= call.reserved
        self._spent += self._settled_amount(call, usage)
        self._grant_waiting()

    def is_divisible(self, parts: int) -> bool:
        """Return whether the rest of each cap, divided into so many parts, is more than 0."""
        return all(self._share_of_cap(cap, parts) for cap in self._caps)

    def reserve_share(self, parts: int) -> BudgetShare:
        """Reserve a share of the rest for another process; no sum of shares and calls exceeds a cap.

        Args:
            parts: Number of parts into which the rest is divided.

        Returns:
            The share, to be settled exactly once.
        """
        part = {cap.key: self._share_of_cap(cap, parts) for cap in self._caps}
        held = amount_from_caps(part)
        own = {f"budget_{key}": value / NANO if key == "usd" else value for key, value in part.items()}
        self._reserved += held
        return BudgetShare(held, self._limits.model_copy(update=own))

    def settle_share(self, share: BudgetShare, took: UsageAmount | None) -> None:
        """Settle a share with what the other process spent; if that is None, all of the share counts as spent."""
        self._reserved -= share.reserved
        self._spent += share.reserved if took is None else took

    def as_whole_budget_error(self, error: BudgetError) -> BudgetError:
        """Return the error of a call that a share refused, with the numbers of the whole budget in its message."""
        start, separator, rest = str(error).partition(_SPENT)
        for cap in self._caps:
            if separator and start.startswith(f"limits.budget_{cap.key} is "):
                spent = cap.format_amount(cap.measure(self._spent))
                whole = f"limits.budget_{cap.key} is {cap.format_amount(cap.maximum)}: {spent}"
                error.args = (f"{whole}{separator}{rest}",)
        return error

    def _share_of_cap(self, cap: BudgetCap, parts: int) -> int:
        return max(cap.maximum - cap.measure(self._spent + self._reserved), 0) // parts

    def charge(self, usage: Usage) -> None:
        """Count usage that was never reserved."""
        self.settle(Reservation("", ZERO_AMOUNT, has_price=False), usage)

    def _settled_amount(self, call: Reservation, usage: Usage | None) -> UsageAmount:
        """Return the amount with which a call counts as spent, and update the correction factors of its model."""
        if usage is None:
            self._unsettled += 1
            self._priced &= call.has_price
            return call.reserved
        took = usage_amount(usage)
        self._unsettled += usage.unsettled
        self._priced &= call.has_price or usage.cost_usd is not None
        self.corrections[call.model] = self._correction(call.model).update(call.estimated, took)
        # Of a call with unknown parts the larger of usage and reservation counts, of an unpriced one the reserved cost.
        if usage.unsettled:
            return UsageAmount(*map(max, took, call.reserved))
        return took if usage.cost_usd is not None else took._replace(nano_usd=call.reserved.nano_usd)

    def _create_reservation(self, model: str, ceiling: CostBound | None) -> Reservation:
        if reason := explain_unenforceable(self._limits, model, ceiling):
            raise BudgetError(reason)
        return Reservation(model, bound_amount(ceiling), has_price=ceiling is not None and ceiling.cost_usd is not None)

    def _correction(self, model: str) -> EstimateCorrection:
        return self.corrections.get(model, EstimateCorrection())

    def _grant_waiting(self) -> None:
        """Grant or refuse calls from the front of the queue, up to one that has to wait."""
        while call := self._queue.peek():
            need = self._correction(call.model).apply(call.estimated)
            if short := self._exceeded_cap(self._spent, need):
                # 1. Refuse it if it doesn't fit into what isn't spent.
                self._queue.reject(call, self._error(short, need, self._spent))
            elif self._exceeded_cap(self._spent + self._reserved, need):
                # 2. Let it wait if it fits once calls in flight use less than is reserved for them.
                return
            elif self._journal and not self._journal.covers(
                self._spent + self._reserved + need, need, self._on_journal_written
            ):
                # 3. Let it wait until the journal covers it; `_on_journal_written` continues then.
                return
            else:
                # 4. Grant it.
                call.reserved = need
                self._reserved += need
                self._queue.grant_first()

    def _on_journal_written(self, error: TransientError | None) -> None:
        """Continue after a write of the journal; if it failed, refuse the first call with its error."""
        if error and (call := self._queue.peek()):
            self._queue.reject(call, error)
        self._grant_waiting()

    def _exceeded_cap(self, taken: UsageAmount, need: UsageAmount) -> BudgetCap | None:
        """Return a cap that the sum of both exceeds; None if there is none."""
        return next((cap for cap in self._caps if cap.measure(taken + need) > cap.maximum), None)

    def _error(self, cap: BudgetCap, need: UsageAmount, taken: UsageAmount) -> BudgetError:
        spent, most = cap.format_amount(cap.measure(taken)), cap.format_amount(cap.maximum)
        return BudgetError(
            f"limits.budget_{cap.key} is {most}: {spent}{_SPENT}{cap.format_amount(cap.measure(need))}. "
            "Raise it; what was answered is stored, and another run goes on from there."
        )
