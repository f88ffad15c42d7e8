"""A rate that nobody stated, learned from what a provider lets through.

Between two refusals is an epoch. What passed in it, divided by its length (the time included in which
nothing was let through), is what the provider allows, however it counts: by the minute, by a sliding
window, by a bucket. From there the rate creeps up as a cubic does: it starts a little below, is flat
near what was learned, and grows ever faster beyond it, so that a rate learned too low isn't kept.
"""

from __future__ import annotations

import math

MINUTE = 60.0
BELOW = 0.03
"""How far below the learned rate an epoch begins, as a share of it."""
ALIKE = 0.15
"""Two rates that differ by less than this share confirm one another."""
SHORTEST_S, LONGER_S, LONGEST_S = 10.0, 30.0, 120.0
"""How long the rate takes to creep back to what was learned: at first, and once that has been confirmed."""


class Creep:
    """The learned rate, and what is counted to learn it.

    Attributes:
        started: Calls started since the provider last opened.
        refused: Those of them that it refused.

    Example:
        >>> creep = Creep()
        >>> creep.gap_s(now=0.0)
        0.0
        >>> creep.opened, creep.started, creep.refused = 0.0, 620, 20
        >>> creep.reopen(4.0, 60.0, teaches=True)
        >>> round(1 / creep.gap_s(now=60.0), 2)
        9.7
    """

    def __init__(self) -> None:
        """Start without a rate."""
        self.started = self.refused = 0
        self.opened: float | None = None
        self._rate: float | None = None
        self._calm_s = SHORTEST_S

    def start(self, now: float) -> None:
        """Count a call that starts; the first one begins the first epoch."""
        self.started += 1
        if self.opened is None:
            self.opened = now

    def reopen(self, blocked: float, shut_s: float, now: float, *, teaches: bool) -> None:
        """Begin a new epoch with one call; the one that ends teaches its rate, or leaves the rate as it was.

        Args:
            blocked: When the provider took no more.
            now: When it took the one call.
            teaches: Whether to learn from it.
        """
        if teaches and self.opened is not None:
            whole_s = now - self.opened
            least = max(self.started - self.refused, 1) / whole_s
            most = min(self._rate_at(blocked), 2 * least) * (1 - shut_s / whole_s)
            learned = math.sqrt(least * max(least, most))
            confirmed = self._rate is not None and abs(learned - self._rate) <= ALIKE * self._rate
            self._calm_s = min(2 * self._calm_s, LONGEST_S) if confirmed else min(max(whole_s, SHORTEST_S), LONGER_S)
            self._rate = learned
        self.opened, self.started, self.refused = now, 1, 0

    def gap_s(self, now: float) -> float:
        """Return the seconds between one call and the next; 0 while nothing has been learned."""
        return 1 / self._rate_at(now)

    def _rate_at(self, now: float) -> float:
        if self._rate is None or self.opened is None:
            return float("inf")
        along = (now - self.opened - self._calm_s) / self._calm_s
        return self._rate * (1 + BELOW * along**3)
