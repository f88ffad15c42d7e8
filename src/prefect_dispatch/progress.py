"""How far a run is, told to whoever listens in this process."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from prefect_dispatch.models import Outcome, Usage
from prefect_dispatch.strict import Strict


class Progress(Strict):
    """How far a run is."""

    total: int
    """How many (brief, item) there are."""
    done: int = 0
    """How many have an outcome."""
    cached: int = 0
    """How many of them came from the store."""
    failed: int = 0
    """How many of them failed."""
    skipped: int = 0
    """How many of them were not asked."""
    usage: Usage = Usage()
    """What was spent so far."""

    def plus(self, outcome: Outcome) -> Progress:
        """Return the progress after one more outcome."""
        return Progress(
            total=self.total,
            done=self.done + 1,
            cached=self.cached + (outcome.origin == "stored"),
            failed=self.failed + (outcome.status == "failed"),
            skipped=self.skipped + (outcome.status == "skipped"),
            usage=self.usage + outcome.usage,
        )


Listener = Callable[[Progress], None]

listener: ContextVar[Listener | None] = ContextVar("prefect-dispatch-progress", default=None)
"""Set it before a flow is called, and it is told of every outcome."""

announce: ContextVar[Callable[[str], None] | None] = ContextVar("prefect-dispatch-announce", default=None)
"""Set it before a flow is called, and it is told, in a sentence, what the run waits for."""
