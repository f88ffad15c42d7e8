"""Budget of a run: what its calls may cost is reserved before they are sent.

No call is sent unless its upper bound fits into what is neither spent nor reserved, so no order of events can exceed a
cap. Only a call that uses more than was reserved for it can, because its provider counts tokens in another way. A
safety factor is added beforehand for that; where it wasn't enough, the usage counts in full, and the factor of that
model grows for every later call.
"""

from __future__ import annotations

import asyncio
import math
import operator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.calls.rate_limiter import FifoWaiters
from prefect_dispatch.errors import BudgetError, JobError, TransientError
from prefect_dispatch.executors.base import Ask, BaseExecutor, executor_for
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.outcome import Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from prefect_dispatch.executors.base import CostBound, Executor
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.limits import Limits


NANO = 10**9
"""Units of money in a US dollar: integers of billionths add up exactly."""

FIRST_CORRECTION = (Fraction(5, 4), Fraction(1), Fraction(5, 4))
"""Initial correction factors of estimated prompt tokens, completion tokens and money: the provider may count more."""


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
        return UsageAmount(*map(operator.add, self, other))

    def __sub__(self, other: UsageAmount) -> UsageAmount:
        """Return the difference, part by part."""
        return UsageAmount(*map(operator.sub, self, other))


ZERO_AMOUNT = UsageAmount()


def to_amount(requests: int, prompt: int, completion: int, usd: float | None) -> UsageAmount:
    """Return an amount, with the US dollars in billionths, rounded up; an unknown cost is 0.

    Example:
        >>> to_amount(1, 0, 0, 0.1).nano_usd, to_amount(1, 0, 0, 1e-12).nano_usd
        (100000000, 1)
    """
    return UsageAmount(requests, prompt, completion, math.ceil(Decimal(str(usd)) * NANO) if usd else 0)


def usage_amount(usage: Usage) -> UsageAmount:
    """Return the usage of a call as an amount, an unknown cost as 0."""
    return to_amount(usage.requests, usage.prompt_tokens, usage.completion_tokens, usage.cost_usd)


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


BUDGET_FIELDS = ("budget_usd", "budget_tokens", "budget_requests")
"""The fields of `Limits` that a budget enforces."""


def amount_from_caps(parts: Mapping[str, int]) -> UsageAmount:
    """Return the parts of each cap as one amount.

    Example:
        >>> amount_from_caps({"usd": 5, "requests": 2})
        UsageAmount(requests=2, prompt=0, completion=0, nano_usd=5)
    """
    return UsageAmount(parts.get("requests", 0), parts.get("tokens", 0), nano_usd=parts.get("usd", 0))


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
    for brief in briefs:
        ask = Ask(brief=brief, item=Item(key="any", value=""))
        for tier in BaseExecutor.of(executor_for(brief, executor)).fallback_chain:
            if reason := _explain_unenforceable(limits, executor_name(tier), find_cost_bound(limits, tier, ask)):
                raise JobError(reason)


def executor_name(executor: Executor) -> str:
    """Return the name of an executor: those with one name share a rate limiter."""
    return BaseExecutor.of(executor).name


def find_cost_bound(limits: Limits, executor: Executor, ask: Ask) -> CostBound | None:
    """Return the upper bound of a call; None if the executor has none, or no limit needs it."""
    is_needed = any(getattr(limits, key) is not None for key in _INSTEAD)
    return BaseExecutor.of(executor).cost_bound(ask) if is_needed else None


def _explain_unenforceable(limits: Limits, name: str, ceiling: CostBound | None) -> str | None:
    """Return why a limit can't be enforced for a call, and what to change; None if all can be."""
    held = [key for key in _INSTEAD if getattr(limits, key) is not None]
    if not held:
        return None
    key, why = held[0], ""
    if ceiling is None:
        why = f"{name!r} doesn't say beforehand what a call takes; set limits.{_INSTEAD[key]} in its place"
    elif ceiling.instead and held != ["budget_usd"]:  # a call that runs a program: only its cost can be bounded
        key = next(each for each in held if each != "budget_usd")
        tokens = f"{name!r} doesn't say beforehand how many tokens a run takes"
        why = f"{tokens}; set limits.{_INSTEAD[key]} in its place"
    elif ceiling.instead and ceiling.cost_usd is None:
        unbounded = f"nothing bounds what a run of {name!r} costs"
        why = f"{unbounded}; {ceiling.instead}, or limits.budget_requests in place of the budget"
    elif not ceiling.instead and ceiling.completion_tokens is None and key.startswith("budget"):
        why = f"nothing bounds the answers of {name!r}; set max_tokens among its params"
    elif not ceiling.instead and ceiling.cost_usd is None and limits.budget_usd is not None:
        why = f"the price of {name!r} is unknown; give it usd_per_million, or set limits.budget_tokens in its place"
    if why and limits.budget is not None:  # what needs no price bounds no money that runs share
        key, why = "budget", why.partition(", or set limits.")[0]
    return f"limits.{key} can't be held: {why}." if why else None


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


_JOURNAL_PARTS, _JOURNAL_CALLS = 16, 256
"""Upper bounds of a step of the spending journal: this fraction of the cap, and this many calls."""

_SPENT = " are spent, and this call could take "


class Budget:
    """Budget of a run: grants calls in order of arrival, as long as the caps allow.

    Args:
        limits: Limits of the run.
        sibling: A budget whose correction factors it shares.

    Attributes:
        spent_amount: The usage so far, in integers.
        corrections: Correction factors of the estimates by the executor's name: used divided by estimated, at most so
            far; see `FIRST_CORRECTION`.
    """

    def __init__(self, limits: Limits, sibling: Budget | None = None) -> None:
        """Start with nothing spent."""
        self._limits = limits
        usd = limits.budget_usd
        caps = (
            ("usd", None if usd is None else int(Decimal(str(usd)) * NANO), operator.attrgetter("nano_usd")),
            ("tokens", limits.budget_tokens, operator.attrgetter("tokens")),
            ("requests", limits.budget_requests, operator.attrgetter("requests")),
        )
        self._caps = [BudgetCap(key, maximum, measure) for key, maximum, measure in caps if maximum is not None]
        self.spent_amount = self._reserved = ZERO_AMOUNT
        self._priced = True
        self._unsettled = 0
        self.corrections: dict[str, Sequence[Fraction]] = sibling.corrections if sibling else {}
        self._is_shared_held = False
        self._journals: list[Callable[[dict[str, int]], Awaitable[None]]] = []
        self._marks = {cap.key: 0 for cap in self._caps}
        self._writing: asyncio.Task[None] | None = None
        self._queue: FifoWaiters[Reservation] = FifoWaiters(
            self._grant_waiting, lambda unsent: self.settle(unsent, Usage())
        )

    @property
    def spent(self) -> Usage:
        """The usage so far; a call of unknown usage counts with its reservation."""
        requests, prompt, completion, nano_usd = self.spent_amount
        return Usage(
            requests=requests,
            prompt_tokens=prompt,
            completion_tokens=completion,
            cost_usd=nano_usd / NANO if self._priced else None,
            unsettled=self._unsettled,
        )

    @property
    def remaining(self) -> dict[str, float]:
        """The rest of each cap that is neither spent nor reserved: `usd`, `tokens`, `requests`."""
        return {key: left / NANO if key == "usd" else left for key, left in self._divide(1).items()}

    def journal_to(self, write: Callable[[dict[str, int]], Awaitable[None]]) -> None:
        """Write a journal ahead of all spending: marks beyond which the spending never goes.

        So the last marks of a process that died are an upper bound of what it has spent.

        Args:
            write: Writes the marks, one for each cap. A call is refused with the `TransientError` that it raises, or
                with its `BudgetError`, if it raises one even for the marks that the call needs.
        """
        self._journals.append(write)
        self._marks = dict.fromkeys(self._marks, 0)

    def end_journal(self, write: Callable[[dict[str, int]], Awaitable[None]]) -> None:
        """Write no marks any more by a function that was given to `journal_to`."""
        self._journals.remove(write)

    def withhold(self, nano_usd: int) -> None:
        """Keep an amount of money from being spent; a negative one is released again.

        What is not withheld of a shared budget (`limits.budget`) was taken from it.
        """
        self._is_shared_held = True
        self._reserved += UsageAmount(nano_usd=nano_usd)

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
            self._grant(call, call.estimated)
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
        need, taken = self._need(call), self.spent_amount + self._reserved
        if not sent and (short := self._exceeded_cap(taken + need)):
            raise self._error(short, need, taken)
        self._grant(call, need)
        return call

    def require_unspent(self, calls: Sequence[tuple[str, CostBound | None]]) -> None:
        """Check that several calls, one after another, fit into what isn't spent; nothing is reserved.

        Args:
            calls: The name of the executor and the upper bound of each.

        Raises:
            BudgetError: If they don't fit.
        """
        need = ZERO_AMOUNT
        for call in calls:
            need += self._need(self._create_reservation(*call))
        if short := self._exceeded_cap(self.spent_amount + need):
            raise self._error(short, need, self.spent_amount)

    def settle(self, call: Reservation, usage: Usage | None) -> None:
        """Settle a reservation with the call's usage; if that is None, all of the reservation counts as spent."""
        self._reserved -= call.reserved
        self.spent_amount += self._settled_amount(call, usage)
        self._grant_waiting()

    def charge(self, usage: Usage) -> None:
        """Count usage that was never reserved."""
        self.settle(Reservation("", ZERO_AMOUNT, has_price=False), usage)

    def is_divisible(self, parts: int) -> bool:
        """Return whether the rest of each cap, divided into so many parts, is more than 0."""
        return all(self._divide(parts).values())

    def reserve_share(self, parts: int) -> BudgetShare:
        """Reserve a share of the rest for another process; no sum of shares and calls exceeds a cap.

        Args:
            parts: Number of parts into which the rest is divided.

        Returns:
            The share, to be settled exactly once.
        """
        part = self._divide(parts)
        share = BudgetShare(
            amount_from_caps(part),
            self._limits.model_copy(
                update={f"budget_{key}": value / NANO if key == "usd" else value for key, value in part.items()}
            ),
        )
        self._reserved += share.reserved
        return share

    def settle_share(self, share: BudgetShare, took: UsageAmount | None) -> None:
        """Settle a share with what the other process spent; if that is None, all of the share counts as spent."""
        self._reserved -= share.reserved
        self.spent_amount += share.reserved if took is None else took

    def as_whole_budget_error(self, error: BudgetError) -> BudgetError:
        """Return the error of a call that a share refused, with the numbers of the whole budget in its message."""
        start, separator, rest = str(error).partition(_SPENT)
        for cap in self._caps:
            if separator and start.startswith(f"limits.budget_{cap.key} is "):
                error.args = (f"{self._describe_spent(cap, self.spent_amount)}{separator}{rest}",)
        return error

    def _divide(self, parts: int) -> dict[str, int]:
        """Return an equal part of what is neither spent nor reserved, by the cap's key."""
        taken = self.spent_amount + self._reserved
        return {cap.key: max(cap.maximum - cap.measure(taken), 0) // parts for cap in self._caps}

    def _settled_amount(self, call: Reservation, usage: Usage | None) -> UsageAmount:
        """Return the amount with which a call counts as spent, and update the correction factors of its model."""
        if usage is None:
            self._unsettled += 1
            self._priced &= call.has_price
            return call.reserved
        took = usage_amount(usage)
        self._unsettled += usage.unsettled
        self._priced &= call.has_price or usage.cost_usd is not None
        if any(call.estimated[1:]):
            factors = self.corrections.get(call.model, FIRST_CORRECTION)
            parts = zip(factors, call.estimated[1:], took[1:], strict=True)
            self.corrections[call.model] = [
                max(by, Fraction(used, counted)) if counted else by for by, counted, used in parts
            ]
        # Of a call with unknown parts the larger of usage and reservation counts, of an unpriced one the reserved cost.
        if usage.unsettled:
            return UsageAmount(*map(max, took, call.reserved))
        return took if usage.cost_usd is not None else took._replace(nano_usd=call.reserved.nano_usd)

    def _create_reservation(self, model: str, ceiling: CostBound | None) -> Reservation:
        if self._limits.budget is not None and not (self._journals or self._is_shared_held):
            raise BudgetError(
                f"limits.budget: {self._limits.budget!r} is held for whole runs, by `dispatch` and the ready flows."
            )
        if reason := _explain_unenforceable(self._limits, model, ceiling):
            raise BudgetError(reason)
        if ceiling is None:
            return Reservation(model, UsageAmount(requests=1), has_price=False)
        estimated = to_amount(1, ceiling.prompt_tokens, ceiling.completion_tokens or 0, ceiling.cost_usd)
        return Reservation(model, estimated, has_price=ceiling.cost_usd is not None)

    def _need(self, call: Reservation) -> UsageAmount:
        """Return the amount to reserve for a call: its corrected estimate."""
        if not any(call.estimated[1:]):  # no limit needs an estimate, so there is none
            return call.estimated
        factors = self.corrections.get(call.model, FIRST_CORRECTION)
        corrected = (math.ceil(one * by) for one, by in zip(call.estimated[1:], factors, strict=True))
        return UsageAmount(call.estimated.requests, *corrected)

    def _grant(self, call: Reservation, need: UsageAmount) -> None:
        call.reserved = need
        self._reserved += need

    def _grant_waiting(self) -> None:
        """Grant or refuse calls from the front of the queue, up to one that has to wait."""
        while call := self._queue.peek():
            need = self._need(call)
            total = self.spent_amount + self._reserved + need
            if short := self._exceeded_cap(self.spent_amount + need):
                # 1. Refuse it if it doesn't fit into what isn't spent.
                self._queue.reject(call, self._error(short, need, self.spent_amount))
            elif self._exceeded_cap(total) or not self._is_journaled(total, need):
                # 2. Let it wait if it fits once calls in flight use less than is reserved for them, or once the
                #    journal covers it.
                return
            else:
                # 3. Grant it.
                self._grant(call, need)
                self._queue.grant_first()

    def _is_journaled(self, total: UsageAmount, need: UsageAmount) -> bool:
        """Return whether the journal's marks cover an amount; if not, start to write higher ones.

        Args:
            total: What would be spent or reserved with the next call.
            need: Upper bound of that call alone.
        """
        if not self._journals or all(cap.measure(total) <= self._marks[cap.key] for cap in self._caps):
            return True
        if self._writing is None:
            least = {cap.key: cap.measure(total) for cap in self._caps}
            ahead: dict[str, int] = {}
            for cap in self._caps:
                more = min(cap.maximum // _JOURNAL_PARTS, _JOURNAL_CALLS * cap.measure(need))
                ahead[cap.key] = min(least[cap.key] + more, cap.maximum)
            self._writing = asyncio.ensure_future(self._raise_marks(ahead, least))
        return False

    async def _raise_marks(self, ahead: dict[str, int], least: dict[str, int]) -> None:
        """Use new marks when they are written; if that fails, refuse the first call with the error.

        Args:
            ahead: The marks to write.
            least: The marks that the first call needs, where those are too high.
        """
        try:
            try:
                await self._write_marks(ahead)
            except BudgetError:
                await self._write_marks(least)
        except (TransientError, BudgetError) as error:
            self._writing = None
            if isinstance(error, BudgetError) and self._reserved != ZERO_AMOUNT:
                return  # what calls in flight don't use may cover it: the next one that is settled tries again
            if call := self._queue.peek():
                self._queue.reject(call, error)
        self._writing = None
        self._grant_waiting()

    async def _write_marks(self, marks: dict[str, int]) -> None:
        for write in self._journals:
            await write(marks)
        self._marks = marks

    def _exceeded_cap(self, total: UsageAmount) -> BudgetCap | None:
        """Return a cap that an amount exceeds; None if there is none."""
        return next((cap for cap in self._caps if cap.measure(total) > cap.maximum), None)

    def _error(self, cap: BudgetCap, need: UsageAmount, taken: UsageAmount) -> BudgetError:
        return BudgetError(
            f"{self._describe_spent(cap, taken)}{_SPENT}{cap.format_amount(cap.measure(need))}. "
            "Raise it; what was answered is stored, and another run goes on from there."
        )

    @staticmethod
    def _describe_spent(cap: BudgetCap, taken: UsageAmount) -> str:
        whole, spent = cap.format_amount(cap.maximum), cap.format_amount(cap.measure(taken))
        return f"limits.budget_{cap.key} is {whole}: {spent}"
