"""What Prefect's server has recorded of a run's task runs: it isn't outrun, and what it lost is told.

A task run's states reach the server as messages that it records later, at some tens of task runs a second. Its queue
holds 10,000 messages, three or four for each; beyond that they are dropped, with a word in the server's log only.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.runtime import flow_run

from prefect_dispatch.strict import Strict
from prefect_dispatch.tasks.bounded_api import UNAVAILABLE, bounded_client, require_wanted

if TYPE_CHECKING:
    from collections.abc import Callable

FEW = 3000
"""Task runs up to which nothing is counted: the server's queue has room for all of them."""
LOOK = 250
"""Task runs after which the server is asked again how many it has."""
BEHIND = 1000
"""How many ended task runs the server may lack before no more are begun: a third of what it has room for."""
POLL_S = 0.5
STALLED_S = 30.0
"""Seconds without a new record after which no more are expected."""
STALLS = 3
"""How often in a row that may be before nothing is waited for any more: a server may be busy, or record nothing."""
PATIENCE_S = 60.0
"""Seconds that a run waits for its last records, while some come."""
_ENDED = {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}


class Recorded(Strict):
    """How many task runs a fan-out made, and how many of them the server has."""

    made: int
    """How many it made."""
    recorded: int | None = None
    """How many the server knows to have ended; empty where they were too few to count, or it didn't say."""
    note: str = ""
    """What that means, where some are lacking."""


class Records:
    """The task runs of one fan-out, made and recorded.

    Attributes:
        made: How many were made.
    """

    def __init__(self, count: Callable[[datetime], int | None] | None = None) -> None:
        """Begin with none.

        Args:
            count: Says how many that began before a time are recorded; by default Prefect's API.
        """
        self.made = 0
        self._run = UUID(flow_run.get_id())
        self._count = count or self._counted
        self._ended: datetime | None = None
        self._stalls = 0

    def begun(self, under_way: int) -> None:
        """Reckon with one more task run; wait where the server lags too far behind.

        Args:
            under_way: How many have not ended yet.

        Raises:
            CancelledRun: If somebody cancelled the run meanwhile.
        """
        self.made += 1
        if self.made % LOOK or self._stalls == STALLS:
            return
        _, coming = self._wait(self.made - under_way - BEHIND, 10 * PATIENCE_S, wanted=True)
        self._stalls = 0 if coming else self._stalls + 1

    def end(self) -> None:
        """Make no more; task runs that begin from now on are somebody else's."""
        self._ended = self._ended or datetime.now(timezone.utc)

    def told(self) -> Recorded:
        """Return what is recorded of them; where there are many, after waiting for the last."""
        if self.made <= FEW:
            return Recorded(made=self.made)
        found, coming = self._wait(self.made, PATIENCE_S)
        if found is None:
            return Recorded(made=self.made)
        recorded = min(found, self.made)
        note = ""
        if recorded < self.made:
            lag = "so far; the rest is still coming" if coming else "and no more come"
            note = (
                f"Prefect's server has recorded {recorded:,} of {self.made:,} task runs {lag}. Nothing else is lacking:"
                " every answer is stored and in the report. Leave limits.shard empty, or let the server record in"
                " batches (PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE)."
            )
        return Recorded(made=self.made, recorded=recorded, note=note)

    def _wait(self, enough: int, patience_s: float, *, wanted: bool = False) -> tuple[int | None, bool]:
        """Wait until so many are recorded; return how many are, and whether all are or more are coming."""
        start = grown = time.monotonic()
        last = -1
        while True:
            found, now = self._count(self._ended or datetime.now(timezone.utc)), time.monotonic()
            if found is None or found >= enough:
                return found, True
            if found > last:
                last, grown = found, now
            if now - grown > STALLED_S or now - start > patience_s:
                return found, now - grown <= STALLED_S
            if wanted:
                require_wanted(self._run)
            time.sleep(POLL_S)

    def _counted(self, until: datetime) -> int | None:
        """Return how many the server knows to have ended; None if it doesn't answer."""
        asked = {
            "flow_runs": {"id": {"any_": [str(self._run)]}},
            "task_runs": {"state": _ENDED, "expected_start_time": {"before_": until.isoformat()}},
        }
        try:
            with bounded_client() as client:
                return int(client.request("POST", "/task_runs/count", json=asked).json())
        except UNAVAILABLE:
            return None
