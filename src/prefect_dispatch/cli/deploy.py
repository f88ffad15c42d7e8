"""The commands `deploy`, `serve` and `automations`, which register jobs with Prefect.

Prefect is imported only by the command that needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_dispatch.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.deployments.code_source import CodeSource
    from prefect_dispatch.deployments.register import RegisteredDeployment
    from prefect_dispatch.deployments.specs import PlannedDeployment, ScheduleOverride

LEAST_S = 30
"""Minimum of `--start-timeout` in seconds."""


def add_commands(commands: Any) -> None:  # noqa: ANN401 -- the type is private to argparse
    """Add the commands to those of a parser."""
    deploy = commands.add_parser(
        "deploy",
        help="register jobs, or the ready flows, with Prefect, for a worker to run",
        description="Register a deployment of each job file with Prefect, or of each ready flow if there is none, for "
        "a worker to run. Running it again updates them; schedules that were changed in Prefect stay.",
    )
    deploy.set_defaults(command=_deploy)
    deploy.add_argument(
        "--work-pool",
        metavar="P",
        help="the pool whose workers run it (by default Prefect's default, or else the process pool 'dispatch', which "
        "is made if it isn't there)",
    )
    _add_code_options(deploy)
    serve = commands.add_parser(
        "serve",
        help="the same, run by this very process as long as it lasts",
        description="Register a deployment of each job file with Prefect, or of each ready flow if there is none, and "
        "run what Prefect's UI, schedules or API ask for, until interrupted.",
    )
    serve.set_defaults(command=_serve)
    for parser in (deploy, serve):
        parser.add_argument(
            "jobs", metavar="JOB", nargs="*", type=Path, help="a job file whose content fills in the form"
        )
        parser.add_argument("--name", metavar="N", help="what the deployment of the one job is called")
        parser.add_argument("--cron", metavar="C", help="when it is due, such as '0 6 * * 1-5'")
        parser.add_argument("--timezone", metavar="Z", help="in which time zone, such as Europe/Berlin (else UTC)")
        parser.add_argument("--active", action="store_true", help="have the schedule make runs")

    automations = commands.add_parser(
        "automations",
        help="the automations that end runs whose worker died",
        description="Show the automations that mark a run as Crashed once its worker or its process has died, or "
        "apply them.",
    )
    automations.set_defaults(command=_automations)
    automations.add_argument("--apply", action="store_true", help="create them, or bring them up to date")
    automations.add_argument(
        "--start-timeout",
        metavar="S",
        type=_seconds,
        help="seconds that a run may take from when a worker takes it until it begins (by default 600); more where "
        "large images are pulled",
    )


def _seconds(text: str) -> int:
    if text.isdecimal() and int(text) >= LEAST_S:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {LEAST_S} or more")


def _add_code_options(deploy: argparse.ArgumentParser) -> None:
    code = deploy.add_argument_group(
        "where runs find the job's folder",
        "By default under the path that it has here. All else that a run needs is in the worker's environment, or in "
        "the image.",
    )
    code.add_argument("--git", action="store_true", help="workers clone the job's git repository before each run")
    code.add_argument("--git-url", metavar="URL", help="its address for workers (by default the remote's)")
    code.add_argument("--git-branch", metavar="B", help="what they clone (by default the branch checked out here)")
    code.add_argument("--git-commit", metavar="C", help="the commit to check out instead, such as HEAD")
    code.add_argument(
        "--git-credentials", metavar="TYPE/NAME", help="a saved block with which they clone it, such as secret/github"
    )
    code.add_argument("--image", metavar="I", help="the image that runs start from, in a Docker or Kubernetes pool")
    code.add_argument(
        "--folder",
        metavar="DIR",
        help="the folder that has, where runs work, what the current folder has here (with --image by default the "
        "image's working directory)",
    )
    code.add_argument(
        "--job-variable",
        metavar="K=V",
        action="append",
        default=[],
        type=_variable,
        dest="job_variables",
        help="a setting of the work pool's jobs; V is JSON, or else a text",
    )


def _variable(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no K=V")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def _code_source(arguments: argparse.Namespace) -> CodeSource:
    from prefect_dispatch.deployments.code_source import CodeOptions, code_source  # noqa: PLC0415 -- imports Prefect

    options = CodeOptions(
        git=arguments.git,
        url=arguments.git_url,
        branch=arguments.git_branch,
        commit=arguments.git_commit,
        credentials=arguments.git_credentials,
        image=arguments.image,
        folder=arguments.folder,
        job_variables=dict(arguments.job_variables),
    )
    folder = arguments.jobs[0].resolve().parent if arguments.git and arguments.jobs else Path.cwd()
    return code_source(options, folder)


def _plan_deployments(
    arguments: argparse.Namespace, source: CodeSource | None = None
) -> tuple[list[PlannedDeployment], ScheduleOverride]:
    from prefect_dispatch.deployments.code_source import LOCAL  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.deployments.specs import (  # noqa: PLC0415 -- imports Prefect
        ScheduleOverride,
        plan_deployments,
    )

    timing = ScheduleOverride(arguments.cron, arguments.timezone, arguments.active)
    return plan_deployments(arguments.jobs, Path.cwd(), arguments.name, source or LOCAL), timing


def _deploy(arguments: argparse.Namespace) -> int:
    from prefect_dispatch.deployments.register import register  # noqa: PLC0415 -- imports Prefect

    # 1. Register.
    source = _code_source(arguments)
    deployments, timing = _plan_deployments(arguments, source)
    pool, registered = register(deployments, timing, work_pool=arguments.work_pool, source=source)
    print(f"Work pool {pool.name!r}, of type {pool.kind}{', made just now' if pool.is_new else ''}.")
    _print_deployments(registered)
    for note in [*source.notes, *(f"{each.name}: {note}" for each in deployments for note in each.notes)]:
        print(f"Note: {note}", file=sys.stderr)
    _warn_if_open()
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
    print("Once for each server, so that a run whose worker died is marked as Crashed:")
    print("  prefect-dispatch automations --apply")
    return 0


def _own_repository(arguments: argparse.Namespace) -> str:
    """Return the address that the first job's repository has at its remote; empty if the job is not committed there."""
    from prefect_dispatch.deployments.code_source import Checkout  # noqa: PLC0415 -- imports Prefect

    if not arguments.jobs:
        return ""
    file = arguments.jobs[0].resolve()
    with suppress(JobError):  # there is no git
        checkout = Checkout.find(file.parent)
        return checkout.url if checkout is not None and checkout.is_committed(file) else ""
    return ""


def _serve(arguments: argparse.Namespace) -> int:  # pragma: no cover -- never ends; test_worker runs it as a process
    from prefect_dispatch.deployments.serve import serve  # noqa: PLC0415 -- imports Prefect

    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "NOTSET"
    deployments, timing = _plan_deployments(arguments)

    def on_registered(registered: Sequence[RegisteredDeployment]) -> None:
        _print_deployments(registered)
        _warn_if_open()

    serve(deployments, timing, on_registered)
    return 0


def _automations(arguments: argparse.Namespace) -> int:
    from prefect_dispatch.deployments.automations import (  # noqa: PLC0415 -- imports Prefect
        START_S,
        apply,
        as_yaml,
        silent_run_automation,
        unstarted_run_automation,
    )

    automations = [silent_run_automation(), unstarted_run_automation(arguments.start_timeout or START_S)]
    print("\n".join(map(apply, automations)) if arguments.apply else as_yaml(automations))
    return 0


def _print_deployments(registered: Sequence[RegisteredDeployment]) -> None:
    from prefect.settings import PREFECT_API_URL  # noqa: PLC0415 -- imports Prefect

    if not PREFECT_API_URL.value():
        print(
            "Note: PREFECT_API_URL isn't set, so this stands in the database of this machine, where no worker looks "
            "until a server is started here (prefect server start); for another server, set it and deploy again.",
            file=sys.stderr,
        )
    for each in registered:
        paused = " (the deployment is paused)" if each.paused else ""
        print("\n  ".join(filter(None, [each.name, f"schedule: {each.schedule}{paused}", each.url])))


def _warn_if_open() -> None:
    """Print a warning if Prefect's API accepts requests without credentials."""
    from prefect_dispatch.deployments.register import find_open_api  # noqa: PLC0415 -- imports Prefect

    if address := find_open_api():
        print(
            f"Warning: Prefect's API at {address} lets anybody run these deployments: set "
            "PREFECT_SERVER_API_AUTH_STRING on the server and PREFECT_API_AUTH_STRING here, or bind it to 127.0.0.1.",
            file=sys.stderr,
        )
