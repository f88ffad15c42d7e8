"""A rate that nobody stated, learned from what a provider lets through.

From one block to the next is an epoch. What passed in it, divided by its length (the block that ended it
included), is what the provider allows at least, whether it counts by the minute, in a sliding window or in
a bucket; the rate at the epoch's end, times the share of it in which calls were let through, is what it
allows at most. What is learned lies between. From a little below it the rate creeps up as a cubic does:
flat near what was learned, ever faster beyond, so that a rate learned too low isn't kept.

A rate that few calls taught, or a provider that refused again after as long as it had said, is doubted until
another is alike: it doubles with half as many calls as taught it. So it costs about as long as it took to learn.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_dispatch.block import Block

TICK_S = 1e-3
"""The shortest epoch."""
BELOW = 0.03
"""How far below what was learned the rate begins, as a share."""
SHORTEST_S, LONGER_S, LONGEST_S = 10.0, 45.0, 120.0
"""How long it takes back to there: as long as the epoch that taught it, between the first two; once it has
been confirmed twice as long each time, up to the last."""
FEW = 10
"""So few calls tell little, as others may have used up what the provider allows: a known rate is only met halfway."""
ALIKE = 0.15
"""Rates that differ by less than this share are alike."""
TWICE, MANY, LONG_S = 2, 100, 20.0
"""They confirm each other if there are more of them, if more calls taught them, or if the epoch was as long. A
provider that once refused beyond what it had told is doubted up to so many calls, others up to `FEW`."""
MOST_DOUBLED = 60.0
"""How often a rate that is doubted is doubled: then there is as good as none."""
STRAY, AMONG = 0.01, 600.0
"""A provider that refuses less than this share of the last calls, about so many, refuses at random: nothing is
learned from a lone refusal then, or ever fewer calls would be made, and as many of them be refused."""
FORGOTTEN = 0.98
"""How much of the highest rate that was learned is remembered each time that another is learned."""
STRAY_BELOW, FAR_BELOW = 0.1, 0.5
"""The same where it refuses less than this share, at this share of the rate that it was learned to allow."""


class Creep:
    """The learned rate, and what is counted to learn it.

    Attributes:
        opened: When the provider last opened.
        started: Calls started since then.
        refused: Those of them that it refused.

    Example:
        >>> from prefect_dispatch.block import Block
        >>> creep = Creep()
        >>> creep.gap_s(now=0.0)
        0.0
        >>> creep.opened, creep.started, creep.refused = 0.0, 620, 20
        >>> creep.reopen(Block("rate_limit", teaches=True, since=4.0, until=60.0, surely=59.0), now=60.0)
        >>> round(60 / creep.gap_s(now=60.0))
        582
    """

    def __init__(self) -> None:
        """Start without a rate."""
        self.opened: float | None = None
        self.started = self.refused = 0
        self._rate = math.inf
        self._calm_s = SHORTEST_S
        self._doubling = math.inf
        self._unrefused = self._taught = self._alike = 0
        self._misled = False
        self._learned_at = 0.0
        self._calls = self._refusals = 0.0
        self._most = 0.0

    def start(self, now: float, *, idle_s: float) -> None:
        """Count a call that starts, and not the time before in which nobody wanted one."""
        self.started += 1
        self.opened = now if self.opened is None else self.opened + idle_s
        self._unrefused += 1
        self._learned_at += idle_s

    def reopen(self, block: Block, now: float) -> None:
        """Begin a new epoch with one call, after the one that ended with a block."""
        passed = self.started - self.refused
        if self._is_stray(block):
            self._learned_at += now - block.since
        else:
            if block.teaches and passed and self.opened is not None:
                self._learn(block, passed, max(block.until - self.opened, TICK_S))
            self._learned_at = now
        self.opened, self.started, self.refused = now, 1, 0

    def gap_s(self, now: float) -> float:
        """Return the seconds from one call to the next; 0 while nothing has been learned."""
        return 1 / self._rate_at(now)

    def _is_stray(self, block: Block) -> bool:
        """Return whether a block came of a lone refusal by a provider that refuses few."""
        kept = 0.5 ** (self.started / AMONG)
        self._calls = kept * self._calls + self.started
        self._refusals = kept * self._refusals + self.refused
        far_below = self._rate_at(block.since) < FAR_BELOW * self._most
        stray = STRAY_BELOW if far_below else STRAY
        return block.is_short and self.refused == 1 and self._refusals < stray * self._calls

    def _learn(self, block: Block, passed: int, whole_s: float) -> None:
        least = passed / whole_s
        most = min(self._rate_at(block.since), 2 * least) * (1 - (block.surely - block.since) / whole_s)
        learned = math.sqrt(least * max(least, most))
        if passed <= FEW and self._rate < math.inf:
            learned = math.sqrt(learned * self._rate)
        alike = abs(learned - self._rate) <= ALIKE * self._rate < math.inf
        self._alike = 1 + alike * self._alike
        self._taught = passed + alike * self._taught
        confirmed = alike and (self._alike > TWICE or self._taught > MANY or whole_s >= LONG_S)
        self._misled |= block.misled
        doubted = not confirmed and passed <= (MANY if self._misled else FEW)
        self._doubling = max(self._taught / 2, 1.0) if doubted else math.inf
        self._unrefused = 0
        doubtful_s = min(max(whole_s, SHORTEST_S), LONGER_S if passed > FEW else SHORTEST_S)
        self._calm_s = min(2 * self._calm_s, LONGEST_S) if confirmed else doubtful_s
        self._rate = learned
        self._most = max(learned if confirmed else 0.0, FORGOTTEN * self._most)

    def _rate_at(self, now: float) -> float:
        along = (now - self._calm_s - self._learned_at) / self._calm_s
        doubled = 2 ** min(self._unrefused / self._doubling, MOST_DOUBLED)
        return self._rate * (1 + BELOW * along**3) * doubled
