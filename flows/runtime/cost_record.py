"""Cost records: what each attempt of a flow run has paid, as plain JSON in the result storage beside the answers.

Prefect finds the runs again: each has a tag, and the key of a record is made of the run's id and the number of the
attempt. So runs that end at the same time never write the same record, no storage has to list its keys, and a record
that is missing is noticed, as its run is known. What an attempt found stored, or took over from the process before a
suspension, is in the record of the attempt that paid for it, and in no other: the records of a run add up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterStartTime, FlowRunFilterTags
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.runtime import deployment
from pydantic import Field, ValidationError

from prefect_dispatch.errors import TransientError
from prefect_dispatch.flows.publish import run_in_time
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.bill import BillRow, create_bill, merge_briefs, rows_paid
from prefect_dispatch.security.escaping import join_names
from prefect_dispatch.tasks.run_brief import result_store_for_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from prefect.client.schemas.objects import FlowRun
    from typing_extensions import Self

    from prefect_dispatch.flows.pilot_gate import PilotGate
    from prefect_dispatch.flows.runtime.prepared_job import JobSpec, PreparedJob
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.tasks.fan_out import FanOut
    from prefect_dispatch.tasks.result_store import BlobStore

TAG = "prefect-dispatch-run"
"""Tag of every flow run that may pay."""
KEY = "prefect-dispatch.costs-"
MAX_ROWS = 1_000
"""Most rows of a record; a larger bill has no briefs."""
NAMED_BRIEFS = 5
"""Most briefs that the name of a job without one consists of."""
PAGE = 200
"""Flow runs for which one request asks: most that Prefect's server returns."""
WRITE_S = 5.0
"""Seconds that setting the tag, and writing a record, may take."""


class CostRecord(Strict):
    """What an attempt of a flow run has paid."""

    kind: Literal["prefect-dispatch-costs"] = "prefect-dispatch-costs"
    """What the record is."""
    job: str
    """The name of the job; see `name_job`."""
    folder: str | None
    """The folder of the job; None for a deployment, which may have another one in each run."""
    items: int = Field(ge=0)
    """Number of (brief, item) pairs of the run."""
    asked: int = Field(ge=0)
    """Number of pairs that the attempt has asked."""
    bill: tuple[BillRow, ...]
    """What the attempt has paid."""


def name_job(spec: JobSpec) -> str:
    """Return the name of a job; without one, that of its deployment, or those of its briefs."""
    deployed: str | None = deployment.name
    return spec.name or deployed or join_names(sorted(brief.name for brief in spec.briefs), NAMED_BRIEFS)


def record_key(run_id: str, attempt: int) -> str:
    """Return the key of the record of an attempt at a flow run, from 1."""
    return f"{KEY}{run_id}-{attempt}"


class CostRecorder:
    """Writes the record of the current attempt when its body ends, however it does.

    Attributes:
        asked: The outcomes of the integrator's own queries, once there are any.
    """

    def __init__(
        self, spec: JobSpec, job: PreparedJob, fan_out: FanOut, pilot: PilotGate, known: Sequence[Outcome]
    ) -> None:
        """Prepare the record.

        Args:
            spec: The job.
            job: The same, prepared.
            fan_out: Its fan-out.
            pilot: Its pilot.
            known: The outcomes from before a suspension, the integrator's own queries included.
        """
        self.asked: Sequence[Outcome] = ()
        self._spec, self._size = spec, len(job.work) + len(job.skipped_outcomes)
        self._fan_out, self._pilot = fan_out, pilot
        self._known = {_identify(outcome) for outcome in known}
        self._run = cast("FlowRun", cast("Any", FlowRunContext.get()).flow_run)

    def __enter__(self) -> Self:
        """Set the tag, before anything is paid."""
        if TAG not in self._run.tags and (problem := run_in_time(self._set_tag, WRITE_S)):
            get_run_logger().warning("`prefect-dispatch costs` will not find this run: %s", problem)
        return self

    def __exit__(self, *_: object) -> None:
        """Write the record; the run goes on without it."""
        if problem := run_in_time(self._write, WRITE_S):
            get_run_logger().warning("`prefect-dispatch costs` will not know what this run has paid: %s", problem)

    def _set_tag(self) -> None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(self._run.id, tags=[*self._run.tags, TAG])

    def _write(self) -> None:
        blobs, key = result_store_for_run(), record_key(str(self._run.id), self._run.run_count)
        # A run that is resumed goes on within its attempt: what it has paid since is added.
        content = blobs.load(key)
        own = None if content is None else CostRecord.model_validate_json(content)
        known = self._known if own or self._run.run_count > 1 else set[tuple[str, str, str]]()
        outcomes, asked = (
            [outcome for outcome in group if _identify(outcome) not in known]
            for group in (tuple(self._fan_out.outcomes), self.asked)
        )
        bill = rows_paid(create_bill(outcomes, asked, self._pilot.sampled), "run")
        bill = [*(own.bill if own else ()), *bill]
        record = CostRecord(
            job=name_job(self._spec),
            folder=None if deployment.id else str(self._spec.place),
            items=self._size,
            asked=sum(outcome.origin == "asked" for outcome in outcomes) + (own.asked if own else 0),
            bill=tuple(bill if len(bill) <= MAX_ROWS else merge_briefs(bill)),
        )
        blobs.write(key, record.model_dump_json().encode())


def _identify(outcome: Outcome) -> tuple[str, str, str]:
    return outcome.brief, outcome.item, outcome.fingerprint


def list_runs(since: datetime | None = None) -> Iterator[FlowRun]:
    """Yield the flow runs with the tag, from the first; of a moment or later, if one is given."""
    started = FlowRunFilterStartTime.model_validate({"after_": since}) if since else None
    wanted = FlowRunFilter(tags=FlowRunFilterTags(all_=[TAG]), start_time=started)
    offset, is_last = 0, False
    with get_client(sync_client=True) as client:
        while not is_last:
            page = client.read_flow_runs(
                flow_run_filter=wanted, sort=FlowRunSort.START_TIME_ASC, limit=PAGE, offset=offset
            )
            yield from page
            offset, is_last = offset + PAGE, len(page) < PAGE


class RecordedRun(NamedTuple):
    """What is known of the costs of a flow run."""

    records: list[CostRecord]
    """The records of its attempts."""
    missing: list[int]
    """The attempts that have ended without a record."""
    unreadable: list[int]
    """The attempts whose record can't be read."""
    goes_on: bool
    """Whether the run is paying still, by what Prefect knows."""


def load_run(blobs: BlobStore, run: FlowRun) -> RecordedRun:
    """Return what is known of the costs of a flow run.

    Args:
        blobs: The result storage.
        run: The flow run; while it goes on, its last attempt needs no record.
    """
    goes_on = run.state is not None and (run.state.is_running() or run.state.is_cancelling())
    found = RecordedRun([], [], [], goes_on)
    for attempt in range(1, run.run_count + 1):
        try:
            content = blobs.load(record_key(str(run.id), attempt))
            record = None if content is None else CostRecord.model_validate_json(content)
        except (TransientError, ValidationError):
            found.unreadable.append(attempt)
            continue
        if record is not None:
            found.records.append(record)
        elif not goes_on or attempt < run.run_count:
            found.missing.append(attempt)
    return found
