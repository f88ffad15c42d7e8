"""What a run may spend: reserved before each call, settled after it.

No call is sent unless the most that it can take fits into what is neither spent nor reserved, so no order
of events can exceed a cap. One thing can: a call that takes more than was reserved for it, because its
provider counts tokens in another way. Some is added beforehand for that; where it wasn't enough, what was
taken counts in full, and as much more is reserved for every later call of that model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.amounts import NANO, NOTHING, Amount, Scale, counted, used
from prefect_dispatch.bounds import unbounded
from prefect_dispatch.caps import Advance, Cap, amount_of, caps_of
from prefect_dispatch.errors import BudgetError, TransientError
from prefect_dispatch.line import Line
from prefect_dispatch.models import Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefect_dispatch.executors.base import Ceiling
    from prefect_dispatch.limits import Limits


_SPENT = " are spent, and this call could take "


class Share(NamedTuple):
    """What another process may spend."""

    held: Amount
    """What is held for it until it is settled."""
    limits: Limits
    """The limits, with so much as their budget."""


@dataclass(eq=False)
class Reservation:
    """What is held for one call until it is settled."""

    model: str
    counted: Amount
    priced: bool
    held: Amount = NOTHING


class Budget:
    """Grants calls in the order in which they ask, as long as there is room.

    Args:
        limits: What bounds the run.
        beside: A budget that learns with it.

    Attributes:
        scales: How much more than estimated the calls of each model take.
    """

    def __init__(self, limits: Limits, beside: Budget | None = None) -> None:
        """Start with nothing spent."""
        self._limits = limits
        self._caps = tuple(caps_of(limits))
        self._spent = self._held = NOTHING
        self._priced = True
        self._unsettled = 0
        self.scales: dict[str, Scale] = beside.scales if beside else {}
        self._advance: Advance | None = None
        self._line: Line[Reservation] = Line(self._pump, lambda unsent: self.settle(unsent, Usage()))

    @property
    def spent(self) -> Usage:
        """What was spent; a call of which nobody knows counts with what was reserved for it."""
        return Usage(
            requests=self._spent.requests,
            prompt_tokens=self._spent.prompt,
            completion_tokens=self._spent.completion,
            cost_usd=self._spent.nano_usd / NANO if self._priced else None,
            unsettled=self._unsettled,
        )

    @property
    def took(self) -> Amount:
        """What was spent, in whole units."""
        return self._spent

    @property
    def left(self) -> dict[str, float]:
        """What is neither spent nor reserved, of each cap: `usd`, `tokens`, `requests`."""
        taken = self._spent + self._held
        left = {cap.key: max(cap.most - cap.of(taken), 0) for cap in self._caps}
        return {key: value / NANO if key == "usd" else value for key, value in left.items()}

    def note_ahead(self, note: Callable[[dict[str, int]], Awaitable[None]]) -> None:
        """Have what may be spent of each cap noted before it is; where that raises a `TransientError`, nothing is."""
        self._advance = Advance(self._caps, note) if self._caps else None

    async def reserve(self, model: str, ceiling: Ceiling | None) -> Reservation:
        """Wait until there is room for a call, and hold it.

        Args:
            model: Who is asked.
            ceiling: The most that the call can take, where that is known.

        Returns:
            What is held, to be settled exactly once.

        Raises:
            BudgetError: If there won't be room, whatever the calls under way leave.
        """
        call = self._reservation(model, ceiling)
        if self._caps:
            await self._line.wait(call)
        else:
            call.held = call.counted
            self._held += call.held
        return call

    def hold(self, model: str, ceiling: Ceiling | None, *, sent: bool = False) -> Reservation:
        """Hold room for a call that may be under way for hours: at once, as nothing else will make room for it.

        Args:
            model: Who is asked.
            ceiling: The most that the call can take, where that is known.
            sent: Whether it was sent before, so that it counts in any case.

        Raises:
            BudgetError: If there is no room.
        """
        call = self._reservation(model, ceiling)
        call.held = self._scale(model).applied(call.counted)
        taken = self._spent + self._held
        if not sent and (short := self._short(taken, call.held)):
            raise self._error(short, call.held, taken)
        self._held += call.held
        return call

    def settle(self, call: Reservation, usage: Usage | None) -> None:
        """Count what a call took; where nobody knows, what was reserved for it stays spent."""
        self._held -= call.held
        self._spent += self._taken(call, usage)
        self._pump()

    def divides(self, parts: int) -> bool:
        """Return whether there is something of everything that is left where it is divided into so many parts."""
        return all(self._part(cap, parts) for cap in self._caps)

    def share(self, parts: int) -> Share:
        """Hold a share of what is left for another process; no sum of shares and calls exceeds a cap.

        Args:
            parts: Into how many what is left is to be divided.

        Returns:
            The share, to be settled exactly once.
        """
        part = {cap.key: self._part(cap, parts) for cap in self._caps}
        held = amount_of(part)
        own = {f"budget_{key}": value / NANO if key == "usd" else value for key, value in part.items()}
        self._held += held
        return Share(held, self._limits.model_copy(update=own))

    def settle_share(self, share: Share, took: Amount | None) -> None:
        """Count what another process took of its share; where nobody knows, all of it."""
        self._held -= share.held
        self._spent += share.held if took is None else took

    def in_all(self, error: BudgetError) -> BudgetError:
        """Return the refusal of a call by a share as one by all of the budget."""
        said, taken, need = str(error).partition(_SPENT)
        for cap in self._caps:
            if taken and said.startswith(f"limits.budget_{cap.key} is "):
                found = f"limits.budget_{cap.key} is {cap.show(cap.most)}: {cap.show(cap.of(self._spent))}"
                error.args = (f"{found}{taken}{need}",)
        return error

    def _part(self, cap: Cap, parts: int) -> int:
        return max(cap.most - cap.of(self._spent + self._held), 0) // parts

    def charge(self, usage: Usage) -> None:
        """Count what was taken, and never reserved."""
        self.settle(Reservation("", NOTHING, priced=False), usage)

    def _taken(self, call: Reservation, usage: Usage | None) -> Amount:
        if usage is None:
            self._unsettled += 1
            self._priced &= call.priced
            return call.held
        took = used(usage)
        self._unsettled += usage.unsettled
        self._priced &= call.priced or usage.cost_usd is not None
        self.scales[call.model] = self._scale(call.model).learned(call.counted, took)
        if usage.unsettled:
            return Amount(*map(max, took, call.held))
        return took if usage.cost_usd is not None else took._replace(nano_usd=call.held.nano_usd)

    def _reservation(self, model: str, ceiling: Ceiling | None) -> Reservation:
        if reason := unbounded(self._limits, model, ceiling):
            raise BudgetError(reason)
        return Reservation(model, counted(ceiling), priced=ceiling is not None and ceiling.cost_usd is not None)

    def _scale(self, model: str) -> Scale:
        return self.scales.get(model, Scale())

    def _pump(self) -> None:
        """Grant or refuse from the front of the queue, up to a call that has to wait."""
        while call := self._line.first():
            need = self._scale(call.model).applied(call.counted)
            if short := self._short(self._spent, need):
                self._line.refuse(call, self._error(short, need, self._spent))
            elif self._short(self._spent + self._held, need):
                return  # what is under way may take less than is held for it
            elif self._advance and not self._advance.holds(self._spent + self._held + need, need, self._noted):
                return
            else:
                call.held = need
                self._held += need
                self._line.grant()

    def _noted(self, error: TransientError | None) -> None:
        if error and (call := self._line.first()):
            self._line.refuse(call, error)
        self._pump()

    def _short(self, taken: Amount, need: Amount) -> Cap | None:
        """Return a cap that doesn't hold both."""
        return next((cap for cap in self._caps if cap.of(taken + need) > cap.most), None)

    def _error(self, cap: Cap, need: Amount, taken: Amount) -> BudgetError:
        spent, most = cap.show(cap.of(taken)), cap.show(cap.most)
        return BudgetError(
            f"limits.budget_{cap.key} is {most}: {spent}{_SPENT}{cap.show(cap.of(need))}. "
            "Raise it; what was answered is stored, and another run goes on from there."
        )
