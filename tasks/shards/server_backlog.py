"""Backpressure against Prefect's server, which records task runs with a delay, and a count of what it recorded.

A task run's states reach the server as messages that it records later, at some tens of task runs a second. Its queue
holds 10,000 messages, three or four for each; beyond that they are dropped, with a message in the server's log only.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.runtime import flow_run

from prefect_dispatch.models.base import Strict
from prefect_dispatch.tasks.bounded_api import UNAVAILABLE, bounded_client, raise_if_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable

FEW = 3000
"""Task runs up to which nothing is counted: the server's queue has capacity for all of them."""
LOOK = 250
"""Task runs between two counts."""
BEHIND = 1000
"""Unrecorded ended task runs, at most, before new ones wait: a third of the queue's capacity."""
POLL_S = 0.5
STALLED_S = 30.0
"""Seconds without a new record after which no more are expected."""
STALLS = 3
"""Stalls in a row after which nothing is waited for any more: a server may be busy, or record nothing."""
PATIENCE_S = 60.0
"""Seconds that a run waits for its last records, while some arrive."""
_ENDED = {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}


class Recorded(Strict):
    """Task runs of a fan-out, and how many of them the server has recorded."""

    made: int
    """The number of task runs."""
    recorded: int | None = None
    """How many the server has recorded as ended; empty where they were too few to count, or it did not answer."""
    note: str = ""
    """An explanation, where some are missing."""


class TaskRunCounter:
    """Counter of one fan-out's task runs: created ones, and those that the server has recorded.

    Attributes:
        created: The number of task runs created.
    """

    def __init__(self, count: Callable[[datetime], int | None] | None = None) -> None:
        """Start at zero.

        Args:
            count: Returns how many task runs that began before a time are recorded; by default by Prefect's API.
        """
        self.created = 0
        self._run = UUID(flow_run.get_id())
        self._count = count or self._query_recorded
        self._ended: datetime | None = None
        self._stalls = 0

    def count_started(self, under_way: int) -> None:
        """Count a new task run; wait where the server lags too far behind.

        Args:
            under_way: How many have not ended yet.

        Raises:
            CancelledRun: If the run was cancelled while it waited.
        """
        self.created += 1
        if self.created % LOOK or self._stalls == STALLS:
            return
        _, coming = self._wait_until_recorded(self.created - under_way - BEHIND, 10 * PATIENCE_S, check_cancelled=True)
        self._stalls = 0 if coming else self._stalls + 1

    def stop(self) -> None:
        """Stop counting; later task runs belong to another fan-out of the flow run."""
        self._ended = self._ended or datetime.now(timezone.utc)

    def report(self) -> Recorded:
        """Return how many are recorded; where there are many, after waiting for the last ones."""
        if self.created <= FEW:
            return Recorded(made=self.created)
        found, coming = self._wait_until_recorded(self.created, PATIENCE_S)
        if found is None:
            return Recorded(made=self.created)
        recorded = min(found, self.created)
        note = ""
        if recorded < self.created:
            lag = "so far; the rest is still coming" if coming else "and no more come"
            note = (
                f"Prefect's server has recorded {recorded:,} of {self.created:,} task runs {lag}. Nothing else is "
                "missing: every answer is stored and in the report. Leave limits.shard empty, or let the server "
                "record in batches (PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE)."
            )
        return Recorded(made=self.created, recorded=recorded, note=note)

    def _wait_until_recorded(
        self, enough: int, patience_s: float, *, check_cancelled: bool = False
    ) -> tuple[int | None, bool]:
        """Wait for a number of records.

        Args:
            enough: The number.
            patience_s: Seconds to wait, at most.
            check_cancelled: Whether to check that the run is not cancelled.

        Returns:
            How many are recorded (None if the server does not answer), and whether all are or more are still arriving.
        """
        start = grown_at = time.monotonic()
        last = -1
        # Stop waiting when enough is recorded, when nothing new is for a while, or when the time is up.
        while True:
            found, now = self._count(self._ended or datetime.now(timezone.utc)), time.monotonic()
            if found is None or found >= enough:
                return found, True
            if found > last:
                last, grown_at = found, now
            if now - grown_at > STALLED_S or now - start > patience_s:
                return found, now - grown_at <= STALLED_S
            if check_cancelled:
                raise_if_cancelled(self._run)
            time.sleep(POLL_S)

    def _query_recorded(self, until: datetime) -> int | None:
        """Return how many the server has recorded as ended; None if it does not answer."""
        query = {
            "flow_runs": {"id": {"any_": [str(self._run)]}},
            "task_runs": {"state": _ENDED, "expected_start_time": {"before_": until.isoformat()}},
        }
        try:
            with bounded_client() as client:
                return int(client.request("POST", "/task_runs/count", json=query).json())
        except UNAVAILABLE:
            return None
