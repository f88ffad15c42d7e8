"""What a job remembers from run to run: a record of its own beside the stored answers, plain JSON.

A job that has a name is known by it, and by its flow. One that has none is known by the names of its briefs and the
source of its items. A list has no name of its own: it is the list of the last run if the two share at least half of
the keys of the shorter one. In both cases a job belongs to where it runs (by which deployment and from which
folder), and to its limit. So what changes between two runs of a schedule, or of a job file, is a change of the same
job, and two calls of one folder that have nothing to do with each other are not compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from pydantic import BaseModel, Field, JsonValue, ValidationError

from prefect_dispatch.changes import Changes, LastRun, Memory, compare, is_same_list, known
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

    def __init__(
        self,
        briefs: Sequence[Brief],
        items: Source,
        folder: str,
        place: Path,
        *,
        limit: int | None = None,
        name: str | None = None,
    ) -> None:
        """Identify the job.

        Args:
            briefs: Its briefs, as they were given.
            items: Where its items come from.
            folder: Its folder, as it was given: where a deployment fetches code, the real one is another each time.
            place: The same folder, wherever that is now.
            limit: How many items it takes.
            name: Its name, if it has one.
        """
        deployed: str | None = deployment.id
        where: JsonValue = [deployed, folder] if deployed else str(place)
        self._is_list = isinstance(items, Listed)
        source = None if self._is_list else items.model_dump(mode="json")
        unnamed = KEY + digest([[*sorted(brief.name for brief in briefs)], source, limit, where])
        # A job that gets a name is compared with its last run before that.
        named = [] if name is None else [KEY + digest(["name", flow_run.flow_name, name, limit, where])]
        self._keys = [*named, unnamed]
        self._last: Memory | None = None
        self._work: tuple[Known, ...] = ()
        self._value = ""
        self._keeps = True

    def compared(self, report: Report) -> Report:
        """Return a report that says what is otherwise than after the last run, and know what it says."""
        self._value = "" if report.value is None else digest_in_pieces(report.value)
        try:
            self._last = self._read(known(report.outcomes))
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

    def _read(self, work: Sequence[Known]) -> Memory | None:
        """Return what the last run knew of the same job as some work, or None if there was none.

        Raises:
            TransientError: If the storage can't be read.
            ValueError: If its record can't be.
        """
        shelf = answer_shelf()
        *named, unnamed = self._keys
        for key in named:
            if last := _read(shelf.read(key)):
                return last
        last = _read(shelf.read(unnamed))
        if last is None or not self._is_list or is_same_list(last.work, work):
            return last
        get_run_logger().info(
            "The last run of these briefs in this folder had other items, so this one is not compared with it. Give "
            "each job a name of its own (name), and its runs are compared whatever their items."
        )
        return None

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
            answer_shelf().write(self._keys[0], _written(Memory(run=run, work=self._work, value=value)))
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
