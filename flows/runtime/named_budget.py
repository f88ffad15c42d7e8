"""Budgets with a name, shared by runs, jobs and machines: US dollars per day, week or month.

A `DispatchBudget` block says how much. What is left of a period is the free slots of a Prefect concurrency limit of
its own, a slot for each ten-thousandth of a dollar. Prefect's server takes slots in one transaction, and only if as
many are free: so however runs interleave, they never hold more than the budget. A run takes slots in steps, each
before the calls that need it are sent, and gives back at its end what it did not spend. The slots of a run that dies
stay taken: what it has reserved counts as spent.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, suppress
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, NamedTuple, cast
from zoneinfo import ZoneInfo

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.events import emit_event
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from prefect_dispatch.blocks import DispatchBudget
from prefect_dispatch.calls.budget import NANO
from prefect_dispatch.calls.call_gate import gate_for_run
from prefect_dispatch.errors import BudgetError, JobError, TransientError
from prefect_dispatch.executors.block_references import load_block
from prefect_dispatch.flows.publish import run_in_time
from prefect_dispatch.processes.ephemeral_server import use_server
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.tasks.event_loop import run_in_pool

if TYPE_CHECKING:
    from collections.abc import Generator

    from prefect_dispatch.calls.budget import Budget
    from prefect_dispatch.models.limits import Limits

SLOT = NANO // 10_000
"""Billionths of a US dollar of a slot."""
DENIED = {422, 423}
"""HTTP status of Prefect's server where there are too few slots in all, and where too few are free."""
SHARE_TRIES = 5
"""How often a run tries to take what is left, while other runs take some of it."""
SETTLE_S = 10.0
"""Seconds that giving slots back may take at the end of a run."""
WARNED_SHARES = (0.5, 0.8, 1.0)
"""Shares of the budget at which an event is emitted."""


class Period(NamedTuple):
    """A day, week or month of a budget."""

    key: str
    """Its name: `2026-12-02`, `2026-W49` or `2026-12`."""
    ends: datetime
    """When the next one begins, in the time zone of the budget."""


def find_period(per: str, zone: str, now: datetime) -> Period:
    """Return the period of a moment.

    Args:
        per: `day`, `week` (ISO 8601: from Monday) or `month`.
        zone: Time zone in which days begin.
        now: The moment, with its time zone.

    Example:
        >>> moment = datetime(2026, 12, 31, 23, 30, tzinfo=timezone.utc)
        >>> find_period("day", "Europe/Berlin", moment).key, find_period("week", "UTC", moment).key
        ('2027-01-01', '2026-W53')
    """
    day = now.astimezone(ZoneInfo(zone)).date()
    if per == "day":
        key, following = day.isoformat(), day + timedelta(days=1)
    elif per == "week":
        year, week, weekday = day.isocalendar()
        key, following = f"{year}-W{week:02}", day + timedelta(days=8 - weekday)
    else:
        key = f"{day:%Y-%m}"
        following = date(day.year + day.month // 12, day.month % 12 + 1, 1)
    return Period(key, datetime(following.year, following.month, following.day, tzinfo=ZoneInfo(zone)))


class BudgetState(NamedTuple):
    """What is known of a budget at a moment."""

    name: str
    usd: float
    """The budget of a period."""
    left_usd: float
    """What runs have neither spent nor reserved."""
    period: Period

    def __str__(self) -> str:
        """Return it as a sentence."""
        return (
            f"Budget {self.name!r}: {self.left_usd:.4f} of {self.usd:g} USD are left until "
            f"{self.period.ends:%Y-%m-%d %H:%M} ({self.period.ends.tzinfo})."
        )


class NamedBudget:
    """A budget that runs share, in the period in which this object was made.

    Attributes:
        name: The name of its block.
        block: How much it is.
        period: The period.
        limit: The name of the Prefect limit of the period.
    """

    def __init__(self, name: str, block: DispatchBudget) -> None:
        """Find the current period."""
        self.name, self.block = name, block
        self.period = find_period(block.per, block.timezone, datetime.now(timezone.utc))
        self.limit = f"prefect-dispatch-budget-{name}-{self.period.key}"

    @classmethod
    def load(cls, name: str) -> NamedBudget:
        """Load a budget from the server.

        Raises:
            JobError: If there is none of that name, or it can't be read.
        """
        return cls(name, load_block(DispatchBudget, name, "limits.budget"))

    @property
    def slots(self) -> int:
        """The budget in slots."""
        return round(self.block.usd * NANO) // SLOT

    def look_up(self) -> BudgetState:
        """Return how much is left; before the first run of a period, all of it.

        Raises:
            JobError: If somebody has deactivated its limit in Prefect, so that it bounds nothing.
        """
        taken = 0
        with use_server(), get_client(sync_client=True) as client, suppress(ObjectNotFound):
            found = client.read_global_concurrency_limit_by_name(self.limit)
            taken = found.active_slots
            if not found.active:
                raise JobError(
                    f"limits.budget: the Prefect limit {self.limit!r} is deactivated, so it can't hold the budget "
                    f"{self.name!r}; activate it: prefect gcl enable {self.limit}"
                )
        return BudgetState(self.name, self.block.usd, max(0, self.slots - taken) * SLOT / NANO, self.period)

    def open(self) -> BudgetState:
        """Make the limit of the period, unless there is one, and have it hold today's budget; return how much is left.

        Raises:
            JobError: If somebody has deactivated the limit.
        """
        with get_client(sync_client=True) as client:
            try:
                held = client.read_global_concurrency_limit_by_name(self.limit).limit
            except ObjectNotFound:
                held = self.slots
                with suppress(ObjectAlreadyExists):  # another run was quicker
                    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=self.limit, limit=held))
            if held != self.slots:
                client.update_global_concurrency_limit(self.limit, GlobalConcurrencyLimitUpdate(limit=self.slots))
        return self.look_up()

    def take(self, slots: int) -> None:
        """Take slots; a response that is lost on its way leaves them taken.

        Raises:
            BudgetError: If fewer are left, or somebody has deleted or deactivated the limit, so that it bounds nothing.
            TransientError: If the server can't be asked.
        """
        with _convert_errors(), get_client(sync_client=True) as client:
            try:
                client.increment_concurrency_slots([self.limit], slots, "concurrency")
                is_held = client.read_global_concurrency_limit_by_name(self.limit).active
            except ObjectNotFound:
                is_held = False
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in DENIED:
                    raise
                raise BudgetError(
                    f"limits.budget: {self.look_up()} Calls that may take {slots * SLOT / NANO:.4f} USD more are not "
                    "sent. Other runs may have reserved what they will not spend; else raise it, or wait. What was "
                    "answered is stored, and another run goes on from there."
                ) from None
        if not is_held:
            raise BudgetError(
                f"limits.budget: somebody has deleted or deactivated the Prefect limit {self.limit!r}, which holds the "
                f"budget {self.name!r}: activate it, or run again, which makes it anew."
            )

    def give_back(self, slots: int) -> None:
        """Give slots back."""
        with get_client(sync_client=True) as client:
            client.release_concurrency_slots([self.limit], slots, occupancy_seconds=1)


@contextmanager
def _convert_errors() -> Generator[None]:
    """Raise errors of the server as transient ones."""
    try:
        yield
    except httpx.HTTPError as error:
        raise TransientError(f"Prefect's API can't be asked for the budget: {safe_message(error)}") from None


class BudgetHold:
    """The slots of a budget that a run holds.

    Attributes:
        is_exhausted: Whether too few were left for a call.
    """

    def __init__(self, named: NamedBudget, budget: Budget) -> None:
        """Hold none; what the run has spent before counts already."""
        self._named, self._budget = named, budget
        self._base, self._taken = budget.spent_amount.nano_usd, 0
        self.is_exhausted = False

    async def cover(self, marks: dict[str, int]) -> None:
        """Take as many slots as the spending up to a mark may need, before it is spent; see `Budget.journal_to`.

        Raises:
            BudgetError: If fewer are left.
            TransientError: If the server can't be asked.
        """
        missing = math.ceil((marks["usd"] - self._base) / SLOT) - self._taken
        if missing > 0:
            try:
                await run_in_pool(self._named.take, missing)
            except BudgetError:
                self.is_exhausted = True
                raise
            self._taken += missing

    def take_share(self) -> int:
        """Take all that the run may spend, or all that is left, and return the rest in billionths of a dollar."""
        wanted = round(self._budget.remaining["usd"] * NANO)
        for _ in range(SHARE_TRIES):
            left_usd = self._named.look_up().left_usd
            slots = min(math.ceil(wanted / SLOT), round(left_usd * NANO) // SLOT)
            with suppress(BudgetError):  # another run was quicker
                if slots:
                    self._named.take(slots)
                self._taken += slots
                return max(0, wanted - slots * SLOT)
        return wanted

    def settle(self) -> None:
        """Give back what was not spent; take what a provider has counted beyond all that was reserved."""
        rest = self._taken - math.ceil((self._budget.spent_amount.nano_usd - self._base) / SLOT)
        if rest > 0:
            self._named.give_back(rest)
        elif rest < 0:
            self._named.take(-rest)
        self._taken -= rest


def with_named_budget(limits: Limits) -> tuple[Limits, str]:
    """Return the limits of a run with a budget of its own that is at most the shared one, and a note on what is left.

    Args:
        limits: The limits of the job, which name a budget.

    Raises:
        JobError: If there is no budget of that name.
    """
    named = NamedBudget.load(cast("str", limits.budget))
    own = named.block.usd if limits.budget_usd is None else min(limits.budget_usd, named.block.usd)
    return limits.model_copy(update={"budget_usd": own}), str(named.look_up())


@contextmanager
def hold_budget(limits: Limits, *, at_once: bool) -> Generator[None]:
    """Hold a run's part of its shared budget while the body runs.

    Args:
        limits: The limits of the current flow run, by `with_named_budget`; they name a budget.
        at_once: Whether all that the run may spend is taken before the body runs, as its calls are made in other
            processes, or by a provider's batch; else it is taken in steps.

    Raises:
        TransientError: If the server can't be asked; nothing was sent.
    """
    budget = gate_for_run(str(flow_run.get_id()), limits).budget
    named = NamedBudget.load(cast("str", limits.budget))
    before = named.open()
    hold = BudgetHold(named, budget)
    withheld = 0
    if at_once:
        withheld = hold.take_share()
        budget.withhold(withheld)
    else:
        budget.journal_to(hold.cover)
    try:
        yield
    finally:
        if at_once:
            budget.withhold(-withheld)
        else:
            budget.end_journal(hold.cover)
        if problem := run_in_time(hold.settle, SETTLE_S):
            get_run_logger().warning("Budget %r still counts what this run had reserved: %s", named.name, problem)
        run_in_time(lambda: _emit_warnings(before, named.look_up(), is_exhausted=hold.is_exhausted), SETTLE_S)


def _emit_warnings(before: BudgetState, after: BudgetState, *, is_exhausted: bool) -> None:
    """Emit an event for each share of the budget that was reached since an earlier state."""
    begun, ended = (1 - state.left_usd / state.usd for state in (before, after))
    for share in WARNED_SHARES:
        if begun < share <= (1.0 if is_exhausted else ended):
            emit_event(
                f"prefect-dispatch.budget.{share:.0%}",
                resource={"prefect.resource.id": f"prefect-dispatch.budget.{after.name}"},
                payload={"usd": after.usd, "left_usd": after.left_usd, "period": after.period.key},
            )
