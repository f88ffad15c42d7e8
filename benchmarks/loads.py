"""Workloads: the number of items, the concurrency, and the latency of the server."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

PROMPT = "Say fine."
LONG_PROMPT = " ".join(["All work and no play makes Jack a dull boy, said she."] * 14)
"""A text of about 200 tokens."""


class Workload(NamedTuple):
    """One workload."""

    items: int
    concurrency: int
    median_s: float
    sigma: float = 0.0

    @property
    def ideal_s(self) -> float:
        """Seconds of a run that consists of latency alone; 0 if there is no latency, or if it varies."""
        return 0.0 if self.sigma else math.ceil(self.items / self.concurrency) * self.median_s

    @property
    def text(self) -> str:
        """The workload as an argument of a command."""
        return json.dumps(self)

    def __str__(self) -> str:
        """Return the workload as text for tables."""
        spread = f", lognormal {self.sigma:g}" if self.sigma else ""
        return f"N {self.items:,}, C {self.concurrency}, L {self.median_s:g} s{spread}"


def parse_workload(text: str) -> Workload:
    """Parse the workload from a command's argument.

    Example:
        >>> str(parse_workload(Workload(1000, 100, 1.0, 0.4).text))
        'N 1,000, C 100, L 1 s, lognormal 0.4'
    """
    return Workload(*json.loads(text))


THOUSAND = Workload(1000, 100, 1.0)
FIVE_THOUSAND = Workload(5000, 500, 1.0)
VARIED = Workload(2000, 100, 1.0, 0.4)
QUICK = Workload(200, 50, 0.2)
"""Small workload that checks within seconds that everything runs; its figures are not meaningful."""
