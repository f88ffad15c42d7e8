"""What is asked: so many items, so many at once, of a server that takes so long."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

PROMPT = "Say fine."


class Workload(NamedTuple):
    """What is asked."""

    items: int
    concurrency: int
    median_s: float
    sigma: float = 0.0

    @property
    def ideal_s(self) -> float:
        """Seconds without any cost but the latency; 0 where there is none, or where it varies."""
        return 0.0 if self.sigma else math.ceil(self.items / self.concurrency) * self.median_s

    @property
    def text(self) -> str:
        """The same as text, for a command."""
        return json.dumps(self)

    def __str__(self) -> str:
        """Return its figures."""
        spread = f", lognormal {self.sigma:g}" if self.sigma else ""
        return f"N {self.items:,}, C {self.concurrency}, L {self.median_s:g} s{spread}"


def load_of(text: str) -> Workload:
    """Return the workload that a command was given.

    Example:
        >>> str(load_of(Workload(1000, 100, 1.0, 0.4).text))
        'N 1,000, C 100, L 1 s, lognormal 0.4'
    """
    return Workload(*json.loads(text))


THOUSAND = Workload(1000, 100, 1.0)
FIVE_THOUSAND = Workload(5000, 500, 1.0)
VARIED = Workload(2000, 100, 1.0, 0.4)
QUICK = Workload(200, 50, 0.2)
"""What shows in seconds that everything runs; its figures say little."""
