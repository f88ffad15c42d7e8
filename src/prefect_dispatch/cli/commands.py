"""Command line interface: run a command, call a flow, print the result.

Prefect is imported only by the commands that need it, so that the others start quickly.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect_dispatch.cli.parser import create_parser
from prefect_dispatch.errors import DispatchError, DispatchFailed, JobError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Generator, Sequence

    from prefect_dispatch.flows.job_file import JobFile
    from prefect_dispatch.flows.runtime.prepared_job import PreparedJob
    from prefect_dispatch.models.report import Report
    from prefect_dispatch.reporting.output_folder import Output
    from prefect_dispatch.tasks.plan import Plan


EXIT_S = 15.0
"""Time limit in seconds for the process to exit by itself, once its command has ended."""
INTERRUPTED_S = 4.5
"""Time limit in seconds, beyond the grace period, for an interrupted run to end by itself."""
POLL_S = 0.2  # seconds between two checks of the time
SHOW_CURSOR = "\x1b[?25h"
COLLECT_EVERY = 100_000
"""Number of new objects after which the process collects garbage."""
INTERRUPTED_MESSAGE = "\nInterrupted. Answers received so far are stored: the same command goes on from there."


class ExitGuard:
    """Watchdog that ends this process by force if it does not exit by itself in time."""

    def __init__(self, leave: Callable[[int], object] | None) -> None:
        """Create the guard without a deadline.

        Args:
            leave: Ends the process with an exit status. None: the process belongs to a caller and is never ended.
        """
        self._leave = leave
        self._lock = threading.Lock()
        self._until = float("inf")
        self._code, self._summary, self._message = 0, "", ""
        self._thread: threading.Thread | None = None

    def arm(self, seconds: float, code: int, message: str = "", *, summary: str = "") -> None:
        """Set the deadline; of several deadlines the earliest counts.

        Args:
            seconds: Seconds from now.
            code: The exit status.
            message: Printed on standard error at the deadline.
            summary: Printed on standard output at the deadline.
        """
        until = time.monotonic() + seconds
        with self._lock:
            if self._leave is None or until >= self._until:
                return
            self._until, self._code, self._message, self._summary = until, code, message, summary
            if self._thread is None:
                self._thread = threading.Thread(target=self._wait, name="prefect-dispatch-exit", daemon=True)
                self._thread.start()

    def finish(self, code: int) -> None:
        """Set the deadline for a command that has ended and printed its output: only the process has to exit."""
        with self._lock:
            self._code, self._message, self._summary = code, "", ""
        self.arm(EXIT_S, code)

    def _wait(self) -> None:
        while (rest_s := self._until - time.monotonic()) > 0:
            time.sleep(min(rest_s, POLL_S))
        with self._lock:
            # A live display hides the cursor, and is not ended in this case.
            if sys.__stderr__ is not None and sys.__stderr__.isatty():
                print(SHOW_CURSOR, end="", file=sys.__stderr__, flush=True)
            if self._summary:
                print(self._summary, flush=True)
            if self._message:
                print(self._message, file=sys.stderr, flush=True)
        if "prefect_dispatch.processes.ephemeral_server" in sys.modules:
            import_module("prefect_dispatch.processes.ephemeral_server").kill_server()
        cast("Callable[[int], object]", self._leave)(self._code)


@contextmanager
def interruptible(guard: ExitGuard, grace_s: float, code: int) -> Generator[None]:
    """Arm the guard when Ctrl-C, SIGTERM or a cancellation interrupts the body, so that the process ends soon after.

    Args:
        guard: Ends the process.
        grace_s: Grace period in seconds for calls in flight.
        code: The exit status of an interrupted run.
    """
    from prefect_dispatch.reporting.progress import on_interrupted  # noqa: PLC0415 -- imports pydantic, loaded by then

    def on_signal(number: int, frame: Any) -> None:  # noqa: ANN401 -- a frame
        guard.arm(grace_s + INTERRUPTED_S, code, INTERRUPTED_MESSAGE)
        signal.default_int_handler(number, frame)

    token = on_interrupted.set(lambda: guard.arm(INTERRUPTED_S, code, INTERRUPTED_MESSAGE))
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)
        on_interrupted.reset(token)


CODES = {"complete": 0, "failed": 1, "gaps": 3}
REPORT_TIMEOUT_S = 180.0
"""Time limit in seconds for Prefect's API to accept the artifacts and the state of a run whose report is written."""
RESUME_HINT = "Answers received so far are stored: the same command goes on from there."
NOT_REPORTED = "Prefect's API did not take the end of the run; its report is complete without that."
COMPLETE, FAILED, UNUSABLE, GAPS, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        0 complete, 3 complete with gaps, 1 failed, 2 unusable job (nothing was spent), 130 interrupted.
    """
    if argv is None:
        # Modules are no garbage: Python would traverse what they create repeatedly, and once more at the end.
        gc.set_threshold(COLLECT_EVERY, *gc.get_threshold()[1:])
        atexit.register(gc.freeze)
    arguments = create_parser().parse_args(argv)
    # Never kill the process of a caller that passes arguments.
    arguments.guard = guard = ExitGuard(os._exit if argv is None else None)
    code = _run_command(arguments)
    with suppress(OSError):
        sys.stdout.flush()
    guard.finish(code)
    return code


def _run_command(arguments: argparse.Namespace) -> int:
    """Run a command and return its exit status; errors become messages on standard error."""
    # Prefect's log lines would break the progress line; they are stored with the run anyway.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # Without a server of the user's, Prefect starts one; on a busy machine the default of 20 s is too short.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    # Prefect would print an event that could not be delivered in full.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL", "CRITICAL")
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()
    except JobError as error:
        print(f"prefect-dispatch: {error}", file=sys.stderr)
        return UNUSABLE
    except DispatchError as error:  # the job is valid; the result storage failed, for example
        print(f"prefect-dispatch: {error}", file=sys.stderr)
        return FAILED
    except SystemExit as error:  # raised by the user's code: its status must not become that of the command
        from prefect_dispatch.security.redaction import safe_message  # noqa: PLC0415 -- only here

        print(
            f"prefect-dispatch: code that the command runs ended it ({safe_message(error)}). Answers received so far "
            "are stored: the same command goes on from there.",
            file=sys.stderr,
        )
        return FAILED
    except BrokenPipeError:  # the reader of standard output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:  # before the run began, or a second one while it ended
        print(f"\nInterrupted. {RESUME_HINT}", file=sys.stderr)
        return INTERRUPTED
    return code


def _refresh(arguments: argparse.Namespace) -> bool | list[str]:
    patterns: list[str] | None = arguments.refresh
    return patterns or patterns is not None


def _load_job(arguments: argparse.Namespace) -> JobFile:
    from prefect_dispatch.flows.runtime.job_document import read_document  # noqa: PLC0415 -- imports pydantic

    document = read_document(arguments.job, arguments.changes, model=arguments.model)

    from prefect_dispatch.flows.job_file import parse_job  # noqa: PLC0415 -- imports every model

    return parse_job(document)


def run(arguments: argparse.Namespace) -> int:
    """Run a job file, and return the exit status."""
    job, folder = _load_job(arguments), arguments.job.resolve().parent

    from prefect_dispatch.flows.job_file import validate_job  # noqa: PLC0415 -- imports every model
    from prefect_dispatch.reporting.output_folder import parse_output  # noqa: PLC0415 -- imports pydantic

    # 1. Validate the job, without Prefect: an invalid one needs no server and leaves no flow run behind.
    own: str | None = getattr(job, "out", None)
    out, root = (own, job.place(folder)) if arguments.out is None else (arguments.out, Path())
    output = parse_output(out, root) if out else None
    bounds: dict[str, Any] = {"limit": arguments.limit, "refresh": _refresh(arguments)}
    ready = validate_job(job, folder, **bounds)
    if output:
        output.ensure()
    print(f"{len(ready.briefs)} x {len(ready.items)} to answer; starting Prefect …", file=sys.stderr, flush=True)
    # 2. Run it.
    return run_ready(job, folder, ready, output, arguments.guard, **bounds)


def run_ready(
    job: JobFile,
    folder: Path,
    ready: PreparedJob,
    output: Output | None,
    guard: ExitGuard,
    *,
    limit: int | None = None,
    refresh: bool | list[str] = False,
) -> int:
    """Run a job that is validated, print its summary, and return the exit status.

    Args:
        job: The job.
        folder: The folder of its file.
        ready: The job, prepared.
        output: The folder of the report's files.
        guard: Ends the process if it doesn't exit by itself.
        limit: Number of items to take, in place of the job's own.
        refresh: Which items to ask again, in place of the job's own.
    """
    # 1. Import what the run needs, while the temporary server starts in a process of its own. Python drops an interrupt
    #    that hits a finalizer, and imports have many: the guard ends the process then.
    with interruptible(guard, ready.limits.grace_s, INTERRUPTED):
        _begin_server(job, ready)

        from prefect.exceptions import CancelledRun  # noqa: PLC0415 -- imports Prefect

        from prefect_dispatch.cli.console import show_progress, summary  # noqa: PLC0415 -- imports rich
        from prefect_dispatch.flows.prepare import as_prepared  # noqa: PLC0415 -- imports every model
        from prefect_dispatch.prefect_compat import is_unreachable  # noqa: PLC0415 -- imports Prefect
        from prefect_dispatch.processes.ephemeral_server import use_server  # noqa: PLC0415 -- only here
        from prefect_dispatch.reporting.progress import on_report  # noqa: PLC0415 -- imports pydantic
        from prefect_dispatch.security.redaction import safe_message  # noqa: PLC0415 -- only here
        from prefect_dispatch.tasks.stop_conditions import UNAVAILABLE  # noqa: PLC0415 -- imports Prefect

    # 2. Run it.
    reports: list[Report] = []
    notify = on_report.get()

    def on_finished(report: Report) -> None:
        """Store the report, which is complete even if Prefect's API does not accept the end of the run."""
        reports.append(report)
        if notify:
            notify(report)
        guard.arm(REPORT_TIMEOUT_S, CODES[report.status], NOT_REPORTED, summary=summary(report, output))

    token = on_report.set(on_finished)
    try:
        with (
            interruptible(guard, ready.limits.grace_s, INTERRUPTED),
            show_progress() as show,
            use_server(show),
            as_prepared(ready),
        ):
            report = job.run(folder, out=output and output.target, limit=limit, refresh=refresh)
    except DispatchFailed as error:
        report = error.report
    except CancelledRun as error:
        print(f"\n{error}", file=sys.stderr)
        return INTERRUPTED
    except (*UNAVAILABLE, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_unreachable(error):
            raise
        if not reports:
            print(
                f"prefect-dispatch: Prefect's API can't be used: {safe_message(error)} {RESUME_HINT}", file=sys.stderr
            )
            return FAILED
        report = reports[-1]
        print(f"{NOT_REPORTED} ({safe_message(error)})", file=sys.stderr)
    finally:
        on_report.reset(token)
    print(summary(report, output))
    return CODES[report.status]


def _begin_server(job: JobFile, ready: PreparedJob) -> None:
    """Start the temporary server, if the run needs one, and import what takes long while it starts."""
    from prefect_dispatch.executors.llm.litellm_adapter import load_litellm  # noqa: PLC0415 -- imports every model
    from prefect_dispatch.executors.llm.llm import LLM  # noqa: PLC0415 -- imports every model
    from prefect_dispatch.flows.job_file import load_flow  # noqa: PLC0415 -- imports every model
    from prefect_dispatch.flows.prepare import seems_stored  # noqa: PLC0415 -- imports every model
    from prefect_dispatch.processes.ephemeral_server import begin_server  # noqa: PLC0415 -- only here

    if begin_server():
        load_flow(job.flow)
        if isinstance(ready.executor, LLM) and not seems_stored(ready):
            load_litellm()


def plan(arguments: argparse.Namespace) -> int:
    """Print the plan of a job file."""
    job, folder = _load_job(arguments), arguments.job.resolve().parent  # first, as it imports no Prefect

    from prefect_dispatch.cli.console import plan_table  # noqa: PLC0415 -- imports rich
    from prefect_dispatch.flows.job_file import plan_job  # noqa: PLC0415 -- imports every model

    found: Plan = plan_job(job, folder, limit=arguments.limit, refresh=_refresh(arguments), deadline=arguments.deadline)
    print(plan_table(found))
    return COMPLETE
