"""The caps of a budget, and how far ahead what is spent under them is noted."""

from __future__ import annotations

import asyncio
from decimal import ROUND_FLOOR, Decimal
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.amounts import NANO, Amount
from prefect_dispatch.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from prefect_dispatch.limits import Limits

BUDGETS = ("budget_usd", "budget_tokens", "budget_requests")
"""The limits that a budget holds."""
_PARTS = 16
"""Into how many steps a budget is divided at least, where what is spent is noted ahead."""
_CALLS = 256
"""For how many calls more it is noted at most."""


class Cap(NamedTuple):
    """One limit of a budget."""

    key: str
    most: int
    of: Callable[[Amount], int]

    def show(self, amount: int) -> str:
        """Return an amount as it is written."""
        return f"{Decimal(amount) / NANO:f} USD" if self.key == "usd" else f"{amount} {self.key}"


def caps_of(limits: Limits) -> list[Cap]:
    """Return the caps among some limits: `usd` in billionths, `tokens`, `requests`."""
    usd = limits.budget_usd
    nano_usd = None if usd is None else int((Decimal(str(usd)) * NANO).to_integral_value(ROUND_FLOOR))
    most = {
        "usd": (nano_usd, attrgetter("nano_usd")),
        "tokens": (limits.budget_tokens, attrgetter("tokens")),
        "requests": (limits.budget_requests, attrgetter("requests")),
    }
    return [Cap(key, cap, of) for key, (cap, of) in most.items() if cap is not None]


def amount_of(parts: Mapping[str, int]) -> Amount:
    """Return so much of each cap as one amount.

    Example:
        >>> amount_of({"usd": 5, "requests": 2})
        Amount(requests=2, prompt=0, completion=0, nano_usd=5)
    """
    return Amount(parts.get("requests", 0), parts.get("tokens", 0), nano_usd=parts.get("usd", 0))


class Advance:
    """Marks up to which may be spent, each noted before anything is spent beyond the one before.

    So whoever finds the last note of a process that died knows the most that it can have spent.

    Args:
        caps: What is bounded.
        note: Notes marks, one for each cap.
    """

    def __init__(self, caps: Sequence[Cap], note: Callable[[dict[str, int]], Awaitable[None]]) -> None:
        """Start with nothing noted."""
        self._caps, self._note = caps, note
        self._marks = dict.fromkeys((cap.key for cap in caps), 0)
        self._noting: asyncio.Task[None] | None = None

    def holds(self, total: Amount, need: Amount, then: Callable[[TransientError | None], None]) -> bool:
        """Return whether so much is noted; if not, note it.

        Args:
            total: What would be spent or held with the next call.
            need: What that takes at most.
            then: Called once it is noted, or couldn't be.
        """
        if all(cap.of(total) <= self._marks[cap.key] for cap in self._caps):
            return True
        if self._noting is None:
            ahead = {cap.key: min(cap.most // _PARTS, _CALLS * cap.of(need)) for cap in self._caps}
            marks = {cap.key: min(cap.of(total) + ahead[cap.key], cap.most) for cap in self._caps}
            self._noting = asyncio.ensure_future(self._raise(marks, then))
        return False

    async def _raise(self, marks: dict[str, int], then: Callable[[TransientError | None], None]) -> None:
        error: TransientError | None = None
        try:
            await self._note(marks)
            self._marks = marks
        except TransientError as failed:
            error = failed
        self._noting = None
        then(error)
