"""The command line: parse, call a flow, print.

Prefect and everything behind it is imported only by the command that needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_dispatch._version import __version__
from prefect_dispatch.cli_deploy import add_commands
from prefect_dispatch.errors import DispatchError, DispatchFailed, JobError
from prefect_dispatch.process_exit import ExitGuard, interruptible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.flows.job_kinds import AnyJob
    from prefect_dispatch.report import Report
    from prefect_dispatch.tasks.plan import Plan

_CODES = {"complete": 0, "failed": 1, "gaps": 3}
REPORTED_S = 180.0
"""Seconds that Prefect's API has to take the artifacts and the state of a run whose report is written."""
STORED = "What came back is stored: the same command goes on from there."
UNREPORTED = "Prefect's API did not take the end of the run; its report is complete without that."
COMPLETE, FAILED, UNUSABLE, GAPS, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        0 complete, 3 complete with gaps, 1 failed, 2 unusable job (nothing was spent), 130 interrupted.
    """
    arguments = _parser().parse_args(argv)
    # A process of a caller's own is not ended by force.
    arguments.guard = guard = ExitGuard(os._exit if argv is None else None)
    code = _guarded(arguments)
    with suppress(OSError):
        sys.stdout.flush()
    guard.settle(code)
    return code


def _guarded(arguments: argparse.Namespace) -> int:
    """Return the exit status of a command; what it meets is a message."""
    # Prefect's own lines would run through the progress line; they are kept with the run all the same.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # Without a server of the user's, Prefect starts one for the run; on a busy machine 20 s are not enough for it.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    # An event that did not arrive is no matter of the terminal; Prefect would print all of it.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL", "CRITICAL")
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()
    except JobError as error:
        print(f"prefect-dispatch: {error}", file=sys.stderr)
        return UNUSABLE
    except DispatchError as error:  # the result storage, say: the job is a good one
        print(f"prefect-dispatch: {error}", file=sys.stderr)
        return FAILED
    except SystemExit as error:  # by code that a command runs: a status of its choice would say that all is well
        from prefect_dispatch.scrub import told  # noqa: PLC0415 -- only here

        print(
            f"prefect-dispatch: code that the command runs ended it ({told(error)}). What came back is stored: the "
            "same command goes on from there.",
            file=sys.stderr,
        )
        return FAILED
    except BrokenPipeError:  # whoever read along has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:  # before the run began, or once more while it ended
        print("\nInterrupted. What came back is stored: the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prefect-dispatch",
        description="Run explicit briefs over many inputs, merge the answers, and account for every input.",
        epilog="Exit status: 0 complete, 3 completed with gaps, 1 failed, 2 unusable job (nothing was spent), "
        "130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _job_command(commands, "run", _run, "run a job")
    run.add_argument("--out", metavar="DIR", type=_folder, help="write the report, every outcome and every table there")
    _job_command(commands, "plan", _plan, "say what a job would take; nothing is asked")

    explain = commands.add_parser("explain", help="tell how a value or an item of a report came about")
    explain.set_defaults(command=_explain)
    explain.add_argument("report", metavar="REPORT", type=Path, help="a report.json")
    explain.add_argument(
        "what", metavar="FIELD|KEY", nargs="?", help="a value (`records.0.year`, `year`, `MIT.year`) or an item's key"
    )

    audit = commands.add_parser("audit", help="audit a published report again from its outcomes; nothing is asked")
    audit.set_defaults(command=_audit)
    audit.add_argument("report", metavar="REPORT", type=Path, help="a report.json, or the folder that holds it")

    add_commands(commands)
    return parser


def _job_command(
    commands: Any,  # noqa: ANN401 -- argparse keeps the name of this type to itself
    name: str,
    command: object,
    text: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    parser.set_defaults(command=command)
    parser.add_argument("job", metavar="JOB", type=Path, help="the job file (YAML or JSON)")
    parser.add_argument("--model", metavar="M", help="the model to ask instead of the one in the job")
    parser.add_argument(
        "--set", metavar="a.b=c", action="append", default=[], dest="changes", help="change one value of the job"
    )
    parser.add_argument("--limit", metavar="N", type=_positive, help="take the first N items only")
    parser.add_argument(
        "--refresh",
        metavar="PATTERN",
        nargs="*",
        help="ask again even where an answer is stored: all of it, or what patterns name (`terms/*.txt`, `mit.txt`)",
    )
    return parser


def _folder(text: str) -> Path:
    if text.strip():
        return Path(text)
    raise argparse.ArgumentTypeError("it is empty; name a folder, such as report, or leave it out")


def _positive(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")


def _refresh(arguments: argparse.Namespace) -> bool | list[str]:
    patterns: list[str] | None = arguments.refresh
    return patterns or patterns is not None


def _loaded(arguments: argparse.Namespace) -> AnyJob:
    from prefect_dispatch.flows.job import read_job  # noqa: PLC0415 -- imports Prefect

    return read_job(arguments.job, arguments.changes, model=arguments.model)


def _run(arguments: argparse.Namespace) -> int:
    from prefect.exceptions import CancelledRun  # noqa: PLC0415 -- imports Prefect

    from prefect_dispatch.flows.files import ready_folder  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.flows.job_kinds import checked  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.prefect_compat import is_unreachable  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.progress import finished  # noqa: PLC0415 -- imports pydantic
    from prefect_dispatch.scrub import told  # noqa: PLC0415 -- only here
    from prefect_dispatch.tasks.bounded_api import UNAVAILABLE  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.temporary_server import use_server  # noqa: PLC0415 -- only here
    from prefect_dispatch.terminal import shown_progress, summary  # noqa: PLC0415 -- imports rich

    job, folder = _loaded(arguments), arguments.job.resolve().parent
    # Refused here, a wrong job needs no server and leaves no run behind.
    bounds: dict[str, Any] = {"limit": arguments.limit, "refresh": _refresh(arguments)}
    ready = checked(job, folder, **bounds)
    print(f"{len(ready.briefs)} x {len(ready.items)} to answer; starting Prefect …", file=sys.stderr, flush=True)
    out = job.report_folder(folder) if arguments.out is None else arguments.out
    files = None if out is None else str(ready_folder(out.resolve()))
    written: list[Report] = []

    def take(report: Report) -> None:
        """Keep the report, which is complete without what Prefect's API still takes of the run."""
        written.append(report)
        arguments.guard.arm(REPORTED_S, _CODES[report.status], UNREPORTED, summary=summary(report, out))

    token = finished.set(take)
    try:
        with (
            interruptible(arguments.guard, ready.limits.grace_s, INTERRUPTED),
            shown_progress() as show,
            use_server(show),
        ):
            report = job.run(folder, out=files, **bounds)
    except DispatchFailed as error:
        report = error.report
    except CancelledRun as error:
        print(f"\n{error}", file=sys.stderr)
        return INTERRUPTED
    except (*UNAVAILABLE, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_unreachable(error):
            raise
        if not written:
            print(f"prefect-dispatch: Prefect's API can't be used: {told(error)} {STORED}", file=sys.stderr)
            return FAILED
        report = written[-1]
        print(f"{UNREPORTED} ({told(error)})", file=sys.stderr)
    finally:
        finished.reset(token)
    print(summary(report, out))
    return _CODES[report.status]


def _plan(arguments: argparse.Namespace) -> int:
    from prefect_dispatch.flows.job_kinds import plan_of  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.terminal import plan_table  # noqa: PLC0415 -- imports rich

    folder = arguments.job.resolve().parent
    planned: Plan = plan_of(_loaded(arguments), folder, limit=arguments.limit, refresh=_refresh(arguments))
    print(plan_table(planned))
    return COMPLETE


def _explain(arguments: argparse.Namespace) -> int:
    from pydantic import ValidationError  # noqa: PLC0415 -- only here

    from prefect_dispatch.explain import explain  # noqa: PLC0415 -- only here
    from prefect_dispatch.report import Report  # noqa: PLC0415 -- only here

    try:
        report = Report.model_validate_json(arguments.report.read_bytes())
        print(explain(report, arguments.what))
    except OSError as error:
        raise JobError(f"{str(arguments.report)!r} can't be read: {error.strerror}.") from None
    except ValidationError:
        raise JobError(f"{str(arguments.report)!r} is not a report.json.") from None
    except LookupError as error:
        raise JobError(str(error)) from None
    return COMPLETE


def _audit(arguments: argparse.Namespace) -> int:
    from prefect_dispatch.inert import plain  # noqa: PLC0415 -- only here
    from prefect_dispatch.integrators.report_audit import audit_report  # noqa: PLC0415 -- imports every integrator

    found = audit_report(arguments.report)
    for violation in found.violations:
        print(plain(str(violation)))
    count = len(found.violations)
    print(f"{count} violation{'s' if count > 1 else ''}." if count else "Held.")
    if found.checked:
        print(f"Checked: {'; '.join(found.checked)}.")
    for sentence in found.unchecked:
        print(f"Not checked: {plain(sentence)}")
    return FAILED if found.violations else COMPLETE
