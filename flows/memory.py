"""What a job remembers from run to run: a record of its own beside the stored answers, plain JSON.

A job is known by the names of its briefs, the source of its items (a list is a list, whatever
is in it), its limit, and where it runs: by which deployment and from which folder. So what
changes between two runs of a schedule, or of a job file, is a change of the same job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.logging import get_run_logger
from prefect.runtime import deployment
from pydantic import BaseModel, Field, JsonValue, ValidationError

from prefect_dispatch.changes import Changes, LastRun, Memory, compare, known
from prefect_dispatch.errors import TransientError
from prefect_dispatch.fingerprint import digest, digest_in_pieces
from prefect_dispatch.sources import Listed
from prefect_dispatch.tasks.run_brief import answer_shelf

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefect_dispatch.changes import Known
    from prefect_dispatch.models import Brief
    from prefect_dispatch.report import Report
    from prefect_dispatch.sources import Source

KEY = "prefect-dispatch.job-"
TAG = "prefect-dispatch-memory"


class JobMemory:
    """What the last run of a job knew, and where that is kept."""

    def __init__(self, briefs: Sequence[Brief], items: Source, folder: str, place: Path, limit: int | None) -> None:
        """Name the job.

        Args:
            briefs: Its briefs, as they were given.
            items: Where its items come from.
            folder: Its folder, as it was given: where a deployment fetches code, the real one is another each time.
            place: The same folder, wherever that is now.
            limit: How many items it takes.
        """
        deployed: str | None = deployment.id
        job: list[JsonValue] = [
            [*sorted(brief.name for brief in briefs)],
            None if isinstance(items, Listed) else items.model_dump(mode="json"),
            limit,
            [deployed, folder] if deployed else str(place),
        ]
        self._key = KEY + digest(job)
        self._last: Memory | None = None
        self._work: tuple[Known, ...] = ()
        self._value = ""
        self._keeps = True

    def compared(self, report: Report) -> Report:
        """Return a report that says what is otherwise than after the last run, and know what it says."""
        self._value = "" if report.value is None else digest_in_pieces(report.value)
        try:
            self._last = _read(answer_shelf().read(self._key))
        except (TransientError, ValueError) as error:
            self._keeps = isinstance(error, ValueError)  # else what stands there may be whole
            get_run_logger().warning("What the last run of this job left can't be read: %s", error)
            self._work = known(report.outcomes)
            return report.model_copy(update={"changes": Changes(earlier="unreadable")})
        self._work = known(report.outcomes, self._last.work if self._last else ())
        if self._last is None:
            return report
        changes = compare(self._last.work, self._work, (self._last.value, self._value))
        run = {**report.run, "since": self._last.run.model_dump(mode="json")}
        return report.model_copy(update={"changes": changes, "run": run})

    def keep(self, report: Report) -> None:
        """Remember a run that was compared and has ended, for the next one.

        A run without any answer leaves what the last one left.
        """
        nothing = report.status == "complete" and not report.outcomes  # the source was empty, and that is news, too
        if not self._keeps or not (nothing or any(outcome.status == "succeeded" for outcome in report.outcomes)):
            return
        value = self._value or (self._last.value if self._last else "")
        run = LastRun.model_validate({name: report.run[name] for name in LastRun.model_fields})
        try:
            answer_shelf().write(self._key, _written(Memory(run=run, work=self._work, value=value)))
        except TransientError as error:
            get_run_logger().warning("The next run of this job will not know what changed since this one: %s", error)


class _Record(BaseModel):
    memory: Memory = Field(alias=TAG)


def _written(memory: Memory) -> bytes:
    return _Record.model_construct(memory=memory).model_dump_json(by_alias=True).encode()


def _read(blob: bytes | None) -> Memory | None:
    """Return what was remembered, or None where nothing was.

    Raises:
        ValueError: If it is no such record.
    """
    if blob is None:
        return None
    try:
        return _Record.model_validate_json(blob).memory
    except ValidationError:
        raise ValueError("it is damaged, or another record") from None
