"""The commands that bring jobs into Prefect: `deploy`, `serve` and `automations`.

Prefect and everything behind it is imported only by the command that needs it.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from prefect_dispatch.deployments.building import Wanted
    from prefect_dispatch.deployments.registering import Registered
    from prefect_dispatch.deployments.timing import Timing


def add_commands(commands: Any) -> None:  # noqa: ANN401 -- argparse keeps the name of this type to itself
    """Add the commands to those of a parser."""
    deploy = commands.add_parser(
        "deploy",
        help="register jobs, or the ready flows, with Prefect, for a worker to run",
        description="Register a deployment of each job file with Prefect, or of each ready flow if there is none, for "
        "a worker to run. Again, it brings them up to date; schedules that were set meanwhile stay.",
    )
    deploy.set_defaults(command=_deploy)
    deploy.add_argument(
        "--work-pool",
        metavar="P",
        help="the pool whose workers run it (by default Prefect's default, or else the process pool 'dispatch', which "
        "is made if it isn't there)",
    )
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
        help="the automation that ends runs whose worker died",
        description="Show the automation that marks a run as Crashed once its worker has died, or apply it.",
    )
    automations.set_defaults(command=_automations)
    automations.add_argument("--apply", action="store_true", help="create it, or bring it up to date")


def _wanted(arguments: argparse.Namespace) -> tuple[list[Wanted], Timing]:
    from prefect_dispatch.deployments.building import wanted  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.deployments.timing import Timing  # noqa: PLC0415 -- imports Prefect

    timing = Timing(arguments.cron, arguments.timezone, arguments.active)
    return wanted(arguments.jobs, Path.cwd(), arguments.name), timing


def _deploy(arguments: argparse.Namespace) -> int:
    from prefect_dispatch.deployments.registering import register  # noqa: PLC0415 -- imports Prefect

    deployments, timing = _wanted(arguments)
    pool, registered = register(deployments, timing, work_pool=arguments.work_pool)
    print(f"Work pool {pool.name!r}, of type {pool.kind}{', made just now' if pool.made else ''}.")
    _tell(registered)
    _warn()
    print("\nStart a worker where the folders are, with the models' keys in its environment:")
    print(f"  prefect worker start --pool {shlex.quote(pool.name)}")
    print("Run it:")
    for each in (each for each in registered if not each.is_inner):
        needs = "" if arguments.jobs else " --params '{…}'"
        print(f"  prefect deployment run {shlex.quote(each.name)}{needs}")
    print("Once for each server, so that a run whose worker died is marked as Crashed:")
    print("  prefect-dispatch automations --apply")
    return 0


def _serve(arguments: argparse.Namespace) -> int:  # pragma: no cover -- never ends; test_worker runs it as a process
    from prefect_dispatch.deployments.serve import serve  # noqa: PLC0415 -- imports Prefect

    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "NOTSET"
    deployments, timing = _wanted(arguments)

    def tell(registered: Sequence[Registered]) -> None:
        _tell(registered)
        _warn()

    serve(deployments, timing, tell)
    return 0


def _automations(arguments: argparse.Namespace) -> int:
    from prefect_dispatch.deployments.automations import apply, as_yaml, zombies  # noqa: PLC0415 -- imports Prefect

    print(apply(zombies()) if arguments.apply else as_yaml(zombies()))
    return 0


def _tell(registered: Sequence[Registered]) -> None:
    from prefect.settings import PREFECT_API_URL  # noqa: PLC0415 -- imports Prefect

    if not PREFECT_API_URL.value():
        print(
            "Note: PREFECT_API_URL isn't set, so this stands in the database of this machine, where no worker looks "
            "until a server is started here (prefect server start); for another server, set it and deploy again.",
            file=sys.stderr,
        )
    for each in registered:
        paused = " (the deployment is paused)" if each.paused else ""
        print("\n  ".join(filter(None, [each.name, f"schedule: {each.due}{paused}", each.url])))


def _warn() -> None:
    """Say so if anybody can use the API."""
    from prefect_dispatch.deployments.openness import open_address  # noqa: PLC0415 -- imports Prefect

    if address := open_address():
        print(
            f"Warning: Prefect's API at {address} lets anybody run these deployments: set "
            "PREFECT_SERVER_API_AUTH_STRING on the server and PREFECT_API_AUTH_STRING here, or bind it to 127.0.0.1.",
            file=sys.stderr,
        )
