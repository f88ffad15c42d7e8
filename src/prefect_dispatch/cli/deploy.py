"""The commands `deploy`, `serve` and `automations`, which register jobs with Prefect."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.settings import PREFECT_API_URL

from prefect_dispatch.deployments import automations
from prefect_dispatch.deployments.code_source import LOCAL, Checkout, CodeOptions, CodeSource, code_source
from prefect_dispatch.deployments.register import POOL_TYPE, find_open_api, register
from prefect_dispatch.deployments.register import serve as serve_deployments
from prefect_dispatch.deployments.specs import PlannedDeployment, ScheduleOverride, plan_deployments
from prefect_dispatch.errors import JobError
from prefect_dispatch.reporting.page_server import serve_pages

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from prefect_dispatch.deployments.register import RegisteredDeployment


def deploy(arguments: argparse.Namespace) -> int:
    """Register deployments for workers, and print the next steps."""
    # 1. Register.
    options = {each.name: getattr(arguments, each.name) for each in fields(CodeOptions)}
    options["job_variables"] = dict(arguments.job_variables)
    folder = arguments.jobs[0].resolve().parent if arguments.git and arguments.jobs else Path.cwd()
    source = code_source(CodeOptions(**options), folder)
    deployments, timing = _plan_deployments(arguments, source)
    pool, registered = register(deployments, timing, work_pool=arguments.work_pool, source=source)
    print(f"Work pool {pool.name!r}, of type {pool.kind}{', made just now' if pool.is_new else ''}.")
    _print_deployments(registered)
    for note in [*source.notes, *(f"{each.name}: {note}" for each in deployments for note in each.notes)]:
        print(f"Note: {note}", file=sys.stderr)
    # 2. Print the next steps.
    where = " where the folders are," if source.root is None else ""
    print(f"\nStart a worker{where} with the models' keys in its environment:")
    print(f"  prefect worker start --pool {shlex.quote(pool.name)}")
    if source.root is None and (url := _own_repository(arguments)):
        print(f"Workers without these folders can clone them, from {url}: add --git.")
    print("Run it:")
    for each in (each for each in registered if not each.is_inner):
        needs = "" if arguments.jobs else " --params '{…}'"
        print(f"  prefect deployment run {shlex.quote(each.name)}{needs}")
    if pool.kind == POOL_TYPE:
        print("Beside the worker, so that artifacts link to the report pages of its runs:")
        print("  prefect-dispatch reports")
    print("Once for each server, so that a run whose worker died is marked as Crashed:")
    print("  prefect-dispatch automations --apply")
    return 0


def serve(arguments: argparse.Namespace) -> int:  # pragma: no cover -- never ends; test_worker runs it as a process
    """Register deployments and run them in this process, and serve report pages, until interrupted."""
    deployments, timing = _plan_deployments(arguments, LOCAL)
    notify = partial(print, file=sys.stderr, flush=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(serve_pages(notify))
        except JobError as error:  # schedules don't depend on pages
            notify(str(error))
        serve_deployments(deployments, timing, _print_deployments)
    return 0


def show_automations(arguments: argparse.Namespace) -> int:
    """Print or apply the automations that end runs whose worker died."""
    start_s = arguments.start_timeout or automations.START_S
    found = [automations.silent_run_automation(), automations.unstarted_run_automation(start_s)]
    print("\n".join(map(automations.apply, found)) if arguments.apply else automations.as_yaml(found))
    return 0


def _plan_deployments(
    arguments: argparse.Namespace, source: CodeSource
) -> tuple[list[PlannedDeployment], ScheduleOverride]:
    timing = ScheduleOverride(arguments.cron, arguments.timezone, arguments.active)
    return plan_deployments(arguments.jobs, Path.cwd(), arguments.name, source), timing


def _own_repository(arguments: argparse.Namespace) -> str:
    """Return the address that the first job's repository has at its remote; empty if the job is not committed there."""
    file = arguments.jobs[0].resolve() if arguments.jobs else None
    with suppress(JobError):  # there is no git
        checkout = Checkout.find(file.parent) if file else None
        return checkout.url if file and checkout is not None and checkout.is_committed(file) else ""
    return ""


def _print_deployments(registered: Sequence[RegisteredDeployment]) -> None:
    """Print deployments, and a warning if Prefect's API accepts requests without credentials."""
    if not PREFECT_API_URL.value():
        print(
            "Note: PREFECT_API_URL isn't set, so this stands in the database of this machine, where no worker looks "
            "until a server is started here (prefect server start); for another server, set it and deploy again.",
            file=sys.stderr,
        )
    for each in registered:
        paused = " (the deployment is paused)" if each.paused else ""
        print("\n  ".join(filter(None, [each.name, f"schedule: {each.schedule}{paused}", each.url])))
    if address := find_open_api():
        print(
            f"Warning: Prefect's API at {address} lets anybody run these deployments: set "
            "PREFECT_SERVER_API_AUTH_STRING on the server and PREFECT_API_AUTH_STRING here, or bind it to 127.0.0.1.",
            file=sys.stderr,
        )
