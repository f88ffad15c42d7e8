"""The commands `mcp` and `jobs`: the MCP server for coding agents, and the jobs that agents have started."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pydantic import ValidationError

from prefect_dispatch.agents.job_store import ENDED, all_stores, is_nested
from prefect_dispatch.agents.policy import Policy
from prefect_dispatch.cli.commands import COMPLETE
from prefect_dispatch.errors import JobError, first_problem
from prefect_dispatch.executors.llm.local_model import SMOLLM2, has_smollm2
from prefect_dispatch.processes.state_folder import state_folder
from prefect_dispatch.reporting.progress import format_activity, format_usd
from prefect_dispatch.security.escaping import count_noun, strip_control_chars
from prefect_dispatch.settings import settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from prefect_dispatch.agents.job_store import Job, JobStatus


def create_policy(arguments: argparse.Namespace, *, check_root: bool = True) -> Policy:
    """Return what the user allows by the options of `mcp`.

    Args:
        arguments: The options.
        check_root: Whether the root is known by now.

    Raises:
        JobError: If the root is no folder or holds the state folder, or an option is out of range.
    """
    root: Path = arguments.root
    if check_root:
        _check_root(root)
    default = settings().model or (SMOLLM2 if has_smollm2() else None)
    models = arguments.models or ([default] if default else [])
    try:
        return Policy(
            root=str(root.resolve()),
            models=tuple(models),
            max_usd=arguments.max_usd,
            max_usd_total=arguments.max_usd_total,
            max_items=arguments.max_items,
            max_concurrency=arguments.max_concurrency,
            allow=tuple(dict.fromkeys(arguments.allow)),
        )
    except ValidationError as error:
        name, message = first_problem(error)
        raise JobError(f"--{name.partition('.')[0].replace('_', '-')}: {message}.") from None


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise JobError(f"--root: there is no folder {str(root)!r}.")
    if (state := state_folder()).resolve().is_relative_to(root.resolve()):
        raise JobError(
            f"--root: the state folder {str(state)!r} is below {str(root)!r}, where an agent could change what jobs "
            "may do and have spent; name a narrower folder, or set PREFECT_DISPATCH_STATE to one outside."
        )


def require_extra() -> None:
    """Check that the extra for the server is installed.

    Raises:
        JobError: If it isn't.
    """
    if find_spec("mcp") is None:
        raise JobError("The MCP server needs an extra: pip install 'prefect-dispatch[mcp]'.")


def serve(arguments: argparse.Namespace) -> int:
    """Serve the tools over standard input and output, until the client ends it.

    Raises:
        JobError: If an agent of a job started it, the extra isn't installed, or an option is wrong.
    """
    if is_nested():
        raise JobError(
            "This process works for a job already, and gets no jobs of its own, or it would fan out without end."
        )
    policy = create_policy(arguments)
    require_extra()

    from prefect_dispatch.agents.server import create_server  # noqa: PLC0415 -- an extra, and slow to import

    create_server(policy).run("stdio")
    return COMPLETE


def show_jobs(arguments: argparse.Namespace) -> int:
    """Print the jobs of all roots, or the status of one; cancel that one, if requested.

    Raises:
        JobError: If there is no such job, or the state folder can't be used.
    """
    wanted: str | None = arguments.job
    found = [job for store in all_stores() for job in store.jobs]
    if wanted is None:
        statuses = [(job, job.status()) for job in found]
        if arguments.as_json:
            print(json.dumps([status.model_dump(mode="json") for _, status in statuses], indent=2))
        else:
            print("\n".join(_line(job, status) for job, status in statuses) or "There are no jobs.")
        return COMPLETE
    job = next((each for each in found if each.id.startswith(wanted)), None)
    if job is None:
        raise JobError(f"There is no job {wanted!r}; `prefect-dispatch jobs` lists those that are there.")
    if arguments.cancel and (run := job.last_run) and run.is_alive:
        run.request_cancel()
        print("It is being cancelled; calls in flight get the grace of the job's limits.", file=sys.stderr)
    status = job.status()
    print(status.model_dump_json(indent=2) if arguments.as_json else "\n".join(_lines(job, status)))
    return COMPLETE


def _line(job: Job, status: JobStatus) -> str:
    cost = format_usd(status.cost_usd)
    return f"{job.id}  {status.state:<9}  {status.done}/{status.total}  {cost}  {status.name}  {job.record.folder}"


def _lines(job: Job, status: JobStatus) -> Iterator[str]:
    yield f"{status.name}: {status.state}. {status.message}"
    yield f"{status.done} of {status.total} done, {status.failed} failed, {status.skipped} skipped"
    budget = "" if status.budget_usd is None else f" of {format_usd(status.budget_usd)}"
    yield f"{count_noun(status.runs, 'run')}, {status.tokens} tokens, cost {format_usd(status.cost_usd)}{budget}"
    for activity in status.working:
        yield f"working: {strip_control_chars(format_activity(activity))}"
    for gap in status.gaps:
        yield f"no answer for {gap.brief}/{gap.item}: {gap.error}"
    yield f"folder: {job.folder}"
    if status.report:
        yield f"report: {status.report}{os.sep}report.html"
    if (run := job.last_run) and status.state not in ENDED:
        yield f"log: {run.folder / 'log.txt'}"
