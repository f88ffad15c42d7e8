"""The command `costs`: what runs have paid, by their records in the result storage, with sums."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.cli.commands import COMPLETE, GAPS
from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.runtime.cost_record import list_runs, load_run, name_job
from prefect_dispatch.models.bill import SPLITS, split_bill, sum_costs
from prefect_dispatch.processes.ephemeral_server import use_server
from prefect_dispatch.reporting.costs import describe_bill, describe_cost
from prefect_dispatch.security.escaping import count_noun, join_names, shorten, strip_control_chars
from prefect_dispatch.tasks.run_brief import result_store_for_run

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from prefect.client.schemas.objects import FlowRun
    from pydantic import JsonValue

    from prefect_dispatch.flows.runtime.cost_record import RecordedRun
    from prefect_dispatch.models.bill import BillRow

MAX_NAME = 60
"""Characters of a name in a line."""
MAX_NAMES = 10
"""Names that an error lists."""


class RunCosts(NamedTuple):
    """A flow run with its records."""

    run: FlowRun
    found: RecordedRun

    @property
    def job(self) -> str | None:
        """The name of its job, if a record says it."""
        return self.found.records[-1].job if self.found.records else None

    @property
    def bill(self) -> list[BillRow]:
        """What all its attempts have paid."""
        return [row for record in self.found.records for row in record.bill]

    @property
    def state(self) -> str:
        """The name of its state."""
        return str(self.run.state_name)

    @property
    def problem(self) -> str:
        """What of it is unknown; empty if nothing is."""
        attempts = [
            *(f"no record of attempt {each}" for each in self.found.missing),
            *(f"the record of attempt {each} can't be read" for each in self.found.unreadable),
        ]
        return ", ".join(attempts)


def show_costs(arguments: argparse.Namespace) -> int:
    """Print what runs have paid, and the sums; return 3 if the record of one is missing.

    Raises:
        JobError: If there is no run of the job.
    """
    with use_server():
        blobs = result_store_for_run()
        runs = [RunCosts(run, load_run(blobs, run)) for run in list_runs(arguments.since)]
    if arguments.job is not None:
        runs = _filter_job(runs, arguments.job)
    print(json.dumps(_to_json(runs), indent=2) if arguments.as_json else "\n".join(_lines(runs)))
    return GAPS if any(each.problem for each in runs) else COMPLETE


def _filter_job(runs: list[RunCosts], job: str) -> list[RunCosts]:
    """Return the runs of a job, and those without any record, as it may be theirs.

    Args:
        runs: The runs.
        job: The name of the job, or its file.

    Raises:
        JobError: If there are none; the message lists the names that there are.
    """

    def has_name(each: RunCosts) -> bool:
        return each.job == job

    is_meant = _match_file(Path(job)) if Path(job).is_file() else has_name
    if not any(is_meant(each) for each in runs):
        names = dict.fromkeys(_shorten(each.job) for each in reversed(runs) if each.job is not None)
        known = f"there are runs of {join_names(names, MAX_NAMES)}" if names else "there are no runs with a record"
        raise JobError(f"No run of the job {_shorten(job)!r} has a record of its costs; {known}.")
    return [each for each in runs if each.job is None or is_meant(each)]


def _match_file(file: Path) -> Callable[[RunCosts], bool]:
    """Return whether a run is one of a job file: run in its folder, or by its deployment."""
    from prefect_dispatch.flows.job_file import read_job  # noqa: PLC0415 -- imports every model

    job = read_job(file)
    spec = job.spec(file.resolve().parent)
    own, deployed = (name_job(spec), str(spec.place)), (job.deployment_name, None)
    return lambda each: bool(each.found.records) and (each.job, each.found.records[-1].folder) in (own, deployed)


def _lines(runs: list[RunCosts]) -> Iterator[str]:
    """Yield a line for each run, the sums, and what is not in them."""
    if not runs:
        yield "No run has a record of its costs."
        return
    for each in runs:
        yield _line(each)
    jobs = _by_job(runs)
    for name, group in jobs.items() if len(jobs) > 1 else ():
        yield f"Job {_shorten(name)}: {count_noun(len(group), 'run')}, {_describe(_rows(group))}"
    yield from describe_bill(_rows(runs))
    yield f"Total of {count_noun(len(runs), 'run')} since {_moment(runs[0].run)}: {_describe(_rows(runs))}"
    if lost := sum(bool(each.problem) for each in runs):
        yield (
            f"Not in the sums: attempts of {count_noun(lost, 'run')} without a record that can be read here. They were "
            "killed, have another result storage, or could not write it."
        )
    if going_on := sum(each.found.goes_on for each in runs):
        yield f"Not in the sums: the current attempt of {count_noun(going_on, 'run')} in progress, or killed."


def _line(each: RunCosts) -> str:
    name, job = _shorten(str(each.run.name)), _shorten(each.job or "-")
    records, rows = each.found.records, each.bill
    parts = [_moment(each.run), name, job, each.state]
    if records:
        asked = sum(record.asked for record in records)
        parts += [f"{asked} of {count_noun(records[-1].items, 'item')} asked", _describe(rows)]
    return "  ".join([*parts, *filter(None, [each.problem and f"unknown: {each.problem}"])])


def _describe(rows: Iterable[BillRow]) -> str:
    costs = sum_costs(rows)
    cut_off = f", {count_noun(costs.unsettled, 'call')} cut off" if costs.unsettled else ""
    return f"{count_noun(costs.requests, 'request')}, {describe_cost(costs)}{cut_off}"


def _moment(run: FlowRun) -> str:
    return f"{run.start_time:%Y-%m-%d %H:%M} UTC"


def _shorten(text: str) -> str:
    return shorten(strip_control_chars(text), MAX_NAME)


def _rows(runs: Iterable[RunCosts]) -> list[BillRow]:
    return [row for each in runs for row in each.bill]


def _by_job(runs: Iterable[RunCosts]) -> dict[str, list[RunCosts]]:
    groups: defaultdict[str, list[RunCosts]] = defaultdict(list)
    for each in runs:
        if each.job is not None:
            groups[each.job].append(each)
    return dict(groups)


def _to_json(runs: list[RunCosts]) -> JsonValue:
    rows = _rows(runs)
    return {
        "runs": [
            {
                "id": str(each.run.id),
                "name": each.run.name,
                "started": None if each.run.start_time is None else each.run.start_time.isoformat(),
                "state": each.state,
                "job": each.job,
                "items": each.found.records[-1].items if each.found.records else None,
                "asked": sum(record.asked for record in each.found.records),
                "goes_on": each.found.goes_on,
                "missing": [*each.found.missing],
                "unreadable": [*each.found.unreadable],
                "costs": _costs_json(each.bill),
            }
            for each in runs
        ],
        "jobs": {name: _costs_json(_rows(group)) for name, group in _by_job(runs).items()},
        "by": {
            column: {value: costs.model_dump(mode="json") for value, costs in split_bill(rows, column).items()}
            for column in SPLITS
        },
        "total": _costs_json(rows),
        "incomplete": sum(bool(each.problem) for each in runs),
    }


def _costs_json(rows: Iterable[BillRow]) -> JsonValue:
    return sum_costs(rows).model_dump(mode="json")
