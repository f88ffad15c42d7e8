"""A rate that nobody stated, learned from what a provider lets through.

Between two refusals is an epoch. What passed in it, divided by its length (the time included in which
nothing was let through), is what the provider allows, however it counts: by the minute, by a sliding
window, by a bucket. From there the rate creeps up as a cubic does: it starts a little below, is flat
near what was learned, and grows ever faster beyond it, so that a rate learned too low isn't kept.
"""

from __future__ import annotations

MINUTE = 60.0
BELOW = 0.03
"""How far below the learned rate an epoch begins, as a share of it."""
ALIKE = 0.1
"""Two rates that differ by less than this share confirm one another."""
SHORTEST_S, LONGEST_S = 30.0, 120.0
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
        >>> creep.reopen(60.0, teaches=True)
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

    def reopen(self, now: float, *, teaches: bool) -> None:
        """Begin a new epoch with one call; the one that ends teaches its rate, or leaves the rate as it was."""
        if teaches and self.opened is not None:
            learned = max(self.started - self.refused, 1) / (now - self.opened)
            confirmed = self._rate is not None and abs(learned - self._rate) <= ALIKE * self._rate
            self._calm_s = min(2 * self._calm_s, LONGEST_S) if confirmed else SHORTEST_S
            self._rate = learned
        self.opened, self.started, self.refused = now, 1, 0

    def gap_s(self, now: float) -> float:
        """Return the seconds between one call and the next; 0 while nothing has been learned."""
        if self._rate is None or self.opened is None:
            return 0.0
        along = (now - self.opened - self._calm_s) / self._calm_s
        return 1 / (self._rate * (1 + BELOW * along**3))
