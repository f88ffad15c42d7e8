"""Record of the last run of a job, with which the next run is compared: plain JSON beside the stored answers.

A job with a name is identified by it and by its flow; a job without one by the names of its briefs and the source of
its items. A list of items has no identity of its own: it is the list of the last run if the two share at least half of
the keys of the shorter one. In both cases the identity also has the place where the job runs (the deployment and the
folder), and its limit. So the runs of a schedule, or of a job file, are compared with each other, and unrelated calls
from one folder are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from pydantic import BaseModel, Field, JsonValue, ValidationError

from prefect_dispatch.errors import TransientError
from prefect_dispatch.models.report import Changes, LastRun, RunSnapshot, compare, is_same_list, update_known_answers
from prefect_dispatch.serialization.json_text import digest, streamed_digest
from prefect_dispatch.sources.inline import Listed
from prefect_dispatch.tasks.run_brief import result_store_for_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.flows.runtime.prepared_job import JobSpec
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.models.report import KnownAnswer, Report

KEY = "prefect-dispatch.job-"
TAG = "prefect-dispatch-memory"


class LastRunStore:
    """Store for the record of a job's last run.

    Attributes:
        is_deployed: Whether the run is a deployment's.
    """

    def __init__(self, spec: JobSpec) -> None:
        """Identify the job."""
        deployed: str | None = deployment.id
        self.is_deployed = deployed is not None
        # A deployment that fetches code has a new real folder in each run.
        where: JsonValue = [deployed, spec.folder] if deployed else str(spec.place)
        self._is_list = isinstance(spec.items, Listed)
        source = None if self._is_list else spec.items.model_dump(mode="json")
        names: list[JsonValue] = [*sorted(brief.name for brief in spec.briefs)]
        unnamed = KEY + digest([names, source, spec.limit, where])
        # A job that gets a name is compared with its last run before that.
        name = None if spec.name is None else ["name", flow_run.flow_name, spec.name, spec.limit, where]
        self._keys = [*([] if name is None else [KEY + digest(name)]), unnamed]
        self._last: RunSnapshot | None = None
        self._work: tuple[KnownAnswer, ...] = ()
        self._value = ""
        self._keeps = True

    def compare_with_last(self, report: Report) -> Report:
        """Return the report with the changes since the last run, and remember its results for `save`."""
        self._value = "" if report.value is None else streamed_digest(report.value)
        try:
            self._last = self._load_last(report.outcomes)
        except (TransientError, ValueError) as error:
            self._keeps = isinstance(error, ValueError)  # do not overwrite a record that may be intact
            get_run_logger().warning("What the last run of this job left can't be read: %s", error)
            self._work = update_known_answers(report.outcomes)
            return report.model_copy(update={"changes": Changes(earlier="unreadable")})
        # Where this run has a gap, the answer of an earlier run stays in the record.
        self._work = update_known_answers(report.outcomes, self._last.work if self._last else ())
        if self._last is None:
            return report
        changes = compare(self._last.work, self._work, (self._last.value, self._value))
        run = {**report.run, "since": self._last.run.model_dump(mode="json")}
        return report.model_copy(update={"changes": changes, "run": run})

    def _load_last(self, outcomes: Sequence[Outcome]) -> RunSnapshot | None:
        """Return the record of the last run of the same job, or None if there is none.

        Raises:
            TransientError: If the storage can't be read.
            ValueError: If the record is damaged.
        """
        store = result_store_for_run()
        *named, unnamed = self._keys
        for key in named:
            if last := _parse_record(store.load(key)):
                return last
        last = _parse_record(store.load(unnamed))
        if last is None or not self._is_list or is_same_list(last.work, outcomes):
            return last
        get_run_logger().info(
            "The last run of these briefs in this folder had other items, so this one is not compared with it. Give "
            "each job a name of its own (name), and its runs are compared regardless of their items."
        )
        return None

    def save(self, report: Report) -> None:
        """Store the record of a run that was compared and has ended, for the next run.

        A run without any answer does not replace the record.
        """
        is_empty = report.status == "complete" and not report.outcomes  # an empty source is a result, too
        if not self._keeps or not (is_empty or any(outcome.status == "succeeded" for outcome in report.outcomes)):
            return
        value = self._value or (self._last.value if self._last else "")
        run = LastRun.model_validate({name: report.run[name] for name in LastRun.model_fields})
        record = _Record.model_construct(memory=RunSnapshot(run=run, work=self._work, value=value))
        try:
            result_store_for_run().write(self._keys[0], record.model_dump_json(by_alias=True).encode())
        except TransientError as error:
            get_run_logger().warning("The next run of this job will not know what changed since this one: %s", error)


class _Record(BaseModel):
    memory: RunSnapshot = Field(alias=TAG)


def _parse_record(blob: bytes | None) -> RunSnapshot | None:
    """Parse a record; None if there is none.

    Raises:
        ValueError: If it is damaged or no such record.
    """
    if blob is None:
        return None
    try:
        return _Record.model_validate_json(blob).memory
    except ValidationError:
        raise ValueError("it is damaged, or another record") from None
