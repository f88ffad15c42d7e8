"""Command line interface: parse the arguments, call a flow, print the result.

Prefect is imported only by the commands that need it, so that the others start quickly.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect_dispatch import __version__
from prefect_dispatch.errors import DispatchError, DispatchFailed, JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from prefect_dispatch.flows.job_file import JobFile
    from prefect_dispatch.flows.runtime.prepared_job import PreparedJob
    from prefect_dispatch.models.report import Report
    from prefect_dispatch.reporting.output_folder import Output
    from prefect_dispatch.tasks.plan import Plan


LEAST_S = 30
"""Minimum of `--start-timeout` in seconds."""
EXIT_S = 15.0
"""Time limit in seconds for the process to exit by itself, once its command has ended."""
INTERRUPTED_S = 4.5
"""Time limit in seconds, beyond the grace period, for an interrupted run to end by itself."""
POLL_S = 0.2  # seconds between two checks of the time
SHOW_CURSOR = "\x1b[?25h"
MAX_DIGITS = 9
"""Digits of a number in an option."""
MAX_SHOWN = 40
"""Characters of a wrong value that a message shows."""
FLOW_NAMES = ("dispatch", "analyze_files", "research_topics", "content_variants", "build_modules", "test_matrix")
"""The flows as job files name them; a tuple here, as the help imports no module."""
_SEVERAL_ITEMS: Any = {"metavar": "ITEM", "nargs": "+", "action": "extend"}
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


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands, from which completions of a shell can be generated, too."""
    parser = argparse.ArgumentParser(
        prog="prefect-dispatch",
        description="Run explicit briefs over many inputs, merge the answers, and account for every input.",
        epilog="Exit status: 0 complete, 3 completed with gaps, 1 failed, 2 unusable job (nothing was spent), "
        "130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _job_command(commands, "run", _run, "run a job")
    run.add_argument(
        "--out",
        metavar="DIR",
        type=_text,
        help="write the report, every outcome and every table there: into a folder, or a URL such as "
        "s3://bucket/report; a file in it, such as DIR/answers.xlsx (or .csv, .parquet): the merged rows as well",
    )
    _job_command(commands, "plan", _plan, "say what a job would take; nothing is asked")

    explain = commands.add_parser("explain", help="explain how a value or an item of a report came about")
    explain.set_defaults(command=_command_of("report_commands", "explain"))
    explain.add_argument("report", metavar="REPORT", type=_path, help="a report.json, or the folder that holds it")
    explain.add_argument(
        "what", metavar="FIELD|KEY", nargs="?", help="a value (`records.0.year`, `year`, `MIT.year`) or an item's key"
    )
    explain.add_argument(
        "--from",
        **_SEVERAL_ITEMS,
        dest="sources",
        help="list what in the merged value rests on these items (keys, `brief/item` or patterns such as `*.txt`)",
    )

    audit = commands.add_parser("audit", help="audit a published report again from its outcomes; nothing is asked")
    audit.set_defaults(command=_command_of("report_commands", "audit"))
    audit.add_argument("report", metavar="REPORT", type=_path, help="a report.json, or the folder that holds it")

    merge = commands.add_parser(
        "merge",
        help="merge the outcomes of a report again, under other rules or without some of them; nothing is asked",
        description="Merge the stored outcomes of a report again, audit the merge, and show how it differs. No item is "
        "asked again, and the report stays as it is.",
    )
    merge.set_defaults(command=_command_of("report_commands", "merge"))
    merge.add_argument("report", metavar="REPORT", type=_path, help="a report.json, or the folder that holds it")
    merge.add_argument(
        "--without",
        **_SEVERAL_ITEMS,
        default=[],
        help="leave these outcomes out (keys, `brief/item` or patterns such as `draft-*`)",
    )
    merge.add_argument(
        "--rules",
        metavar="FILE",
        type=_path,
        help="merge with the integrator of this job file, or with the one that is the only content of the file",
    )
    merge.add_argument("--out", metavar="DIR", type=_text, help="write the report of this merge there")
    merge.add_argument(
        "--allow-calls", action="store_true", help="allow the integrator in the file of --rules to query a model"
    )

    check = commands.add_parser(
        "check",
        help="compare a text with its sources, sentence by sentence",
        description="Compare each sentence of a text with the sources that it cites by their number, such as [2] for "
        "the second one; without citations, with all of them. Exit status: 0 no doubt, 3 doubts, 2 a file can't be "
        "read or is empty.",
    )
    check.set_defaults(command=_command_of("report_commands", "check"))
    check.add_argument("text", metavar="TEXT", type=_path, help="the text, or Markdown")
    check.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        type=_path,
        help="a text or a JSON document; or a report.json or its folder: each of its answers",
    )
    check.add_argument("--judge", metavar="M", type=_text, help="a model that judges each statement after the rules")
    check.add_argument("--json", action="store_true", dest="as_json", help="print each verdict as JSON")

    opened = commands.add_parser("open", help="open the page of a report in the browser")
    opened.set_defaults(command=_command_of("report_commands", "open_page"))
    opened.add_argument(
        "report", metavar="REPORT", type=_path, help="the folder of a report, or its report.html or report.json"
    )

    init = commands.add_parser(
        "init",
        help="write a commented job file and sample items to begin with",
        description="Write a commented job file and three sample items. Nothing is overwritten.",
    )
    init.set_defaults(command=_command_of("init", "init"))
    init.add_argument(
        "flow",
        metavar="FLOW",
        nargs="?",
        default="dispatch",
        choices=FLOW_NAMES,
        help=f"{', '.join(FLOW_NAMES)} (by default dispatch)",
    )
    init.add_argument("folder", metavar="DIR", nargs="?", type=_path, help="the folder (by default named as the flow)")

    _add_deploy_commands(commands)
    _add_agent_commands(commands)
    return parser


def _command_of(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """Return a command of another module, which is imported when it is run."""

    def command(arguments: argparse.Namespace) -> int:
        run: Callable[[argparse.Namespace], int] = getattr(import_module(f"prefect_dispatch.cli.{module}"), name)
        return run(arguments)

    return command


def _job_command(
    commands: Any,  # noqa: ANN401 -- the type is private to argparse
    name: str,
    command: object,
    text: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    parser.set_defaults(command=command)
    parser.add_argument("job", metavar="JOB", type=_path, help="the job file (YAML or JSON)")
    parser.add_argument("--model", metavar="M", type=_text, help="the model to ask instead of the one in the job")
    parser.add_argument(
        "--set", metavar="a.b=c", action="append", default=[], dest="changes", help="change one value of the job"
    )
    parser.add_argument("--limit", metavar="N", type=_positive, help="take the first N items only")
    parser.add_argument(
        "--refresh",
        metavar="PATTERN",
        nargs="*",
        action="extend",
        help="ask again even where an answer is stored: all of it, or what patterns name (`terms/*.txt`, `mit.txt`)",
    )
    return parser


def _add_deploy_commands(commands: Any) -> None:  # noqa: ANN401 -- the type is private to argparse
    deploy = commands.add_parser(
        "deploy",
        help="register jobs, or the ready flows, with Prefect, for a worker to run",
        description="Register a deployment of each job file with Prefect, or of each ready flow if there is none, for "
        "a worker to run. Running it again updates them; schedules that were changed in Prefect stay.",
    )
    deploy.set_defaults(command=_register("deploy"))
    deploy.add_argument(
        "--work-pool",
        metavar="P",
        type=_text,
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
    serve.set_defaults(command=_register("serve"))
    for parser in (deploy, serve):
        parser.add_argument(
            "jobs", metavar="JOB", nargs="*", type=_path, help="a job file whose content fills in the form"
        )
        parser.add_argument("--name", metavar="N", help="what the deployment of the one job is called")
        parser.add_argument("--cron", metavar="C", help="when it is due, such as '0 6 * * 1-5'")
        parser.add_argument(
            "--timezone", metavar="Z", type=_text, help="in which time zone, such as Europe/Berlin (else UTC)"
        )
        parser.add_argument("--active", action="store_true", help="have the schedule make runs")

    reports = commands.add_parser(
        "reports",
        help="serve the report pages to which artifacts link, beside a worker",
        description="Serve the report pages of runs on this machine at a loopback address until interrupted; artifacts "
        "of later runs link to them. `serve` does the same by itself.",
    )
    reports.set_defaults(command=_command_of("report_commands", "serve_reports"))

    automations = commands.add_parser(
        "automations",
        help="the automations that end runs whose worker died",
        description="Show the automations that mark a run as Crashed once its worker or its process has died, or "
        "apply them.",
    )
    automations.set_defaults(command=_register("show_automations"))
    automations.add_argument("--apply", action="store_true", help="create them, or bring them up to date")
    automations.add_argument(
        "--start-timeout",
        metavar="S",
        type=_seconds,
        help="seconds that a run may take from when a worker takes it until it begins (by default 600); more where "
        "large images are pulled",
    )


def _add_agent_commands(commands: Any) -> None:  # noqa: ANN401 -- the type is private to argparse
    limit = argparse.ArgumentParser(add_help=False)
    limit.add_argument(
        "--root", metavar="DIR", type=_path, default=Path(), help="what jobs read lies below it (by default .)"
    )
    limit.add_argument(
        "--models",
        metavar="M,…",
        type=_names,
        help="the models that may be asked, or globs such as 'openai/*' (by default PREFECT_DISPATCH_MODEL alone)",
    )
    limit.add_argument("--max-usd", metavar="X", type=float, default=1.0, help="what one job may spend (by default 1)")
    limit.add_argument(
        "--max-usd-total", metavar="X", type=float, help="what all jobs under the root may spend (by default --max-usd)"
    )
    limit.add_argument(
        "--max-items", metavar="N", type=_positive, default=200, help="most (brief, item) pairs of a job"
    )
    limit.add_argument(
        "--max-concurrency", metavar="N", type=_positive, default=8, help="most calls in flight of a job"
    )
    limit.add_argument(
        "--allow",
        metavar="KIND",
        nargs="+",
        action="extend",
        default=[],
        choices=("shell", "python", "coding"),
        help="let jobs run commands (shell), code of the folder (python), coding agents (coding)",
    )
    mcp = commands.add_parser(
        "mcp",
        parents=[limit],
        help="serve jobs as tools for coding agents (MCP)",
        description="Let a coding agent plan, start, watch and redrive jobs over standard input and output, as far as "
        "these options allow. They stand where the agent is configured, which it can't write.",
    )
    mcp.set_defaults(command=_command_of("jobs", "serve"))
    plugin = commands.add_parser(
        "plugin",
        parents=[limit],
        help="install the skill and the server of `mcp` into Claude Code or Codex",
        description="Install the plugin (skill and MCP server) for all projects of this account, with these limits.",
    )
    plugin.set_defaults(command=_command_of("plugin", "install"))
    plugin.add_argument("action", choices=("install",), help="install it, or install it again with other options")
    plugin.add_argument("agent", choices=("claude", "codex"), help="the agent")
    plugin.add_argument("--print", action="store_true", dest="print_only", help="print what would be done")
    budget = commands.add_parser("budget", help="show what is left of the budgets that runs share")
    budget.set_defaults(command=_command_of("shared_budgets", "show_budgets"))
    budget.add_argument("names", metavar="NAME", nargs="*", type=_text, help="these only")
    jobs = commands.add_parser("jobs", help="show the jobs that coding agents have started")
    jobs.set_defaults(command=_command_of("jobs", "show_jobs"))
    jobs.add_argument("job", metavar="ID", nargs="?", type=_text, help="show this one")
    jobs.add_argument("--cancel", action="store_true", help="cancel it; what was answered stays stored")
    jobs.add_argument("--json", action="store_true", dest="as_json", help="print JSON")


def _names(text: str) -> list[str]:
    return [_text(name).strip() for name in text.split(",")]


def _register(name: str) -> Callable[[argparse.Namespace], int]:
    """Return a command of the module that imports Prefect's deployments."""

    def command(arguments: argparse.Namespace) -> int:
        if name == "serve":  # its log is its output
            os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "NOTSET"
        return _command_of("deploy", name)(arguments)

    return command


def _seconds(text: str) -> int:
    return _whole_number(text, LEAST_S)


def _add_code_options(deploy: argparse.ArgumentParser) -> None:
    code = deploy.add_argument_group(
        "where runs find the job's folder",
        "By default under the path that it has here. All else that a run needs is in the worker's environment, or in "
        "the image.",
    )
    code.add_argument("--git", action="store_true", help="workers clone the job's git repository before each run")
    code.add_argument(
        "--git-url", dest="url", metavar="URL", type=_text, help="its address for workers (by default the remote's)"
    )
    code.add_argument(
        "--git-branch",
        dest="branch",
        metavar="B",
        type=_text,
        help="what they clone (by default the branch checked out here)",
    )
    code.add_argument(
        "--git-commit", dest="commit", metavar="C", type=_text, help="the commit to check out instead, such as HEAD"
    )
    code.add_argument(
        "--git-credentials",
        dest="credentials",
        metavar="TYPE/NAME",
        type=_text,
        help="a saved block with which they clone it, such as secret/github",
    )
    code.add_argument(
        "--image", metavar="I", type=_text, help="the image that runs start from, in a Docker or Kubernetes pool"
    )
    code.add_argument(
        "--folder",
        metavar="DIR",
        type=_text,
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


def _text(text: str) -> str:
    """Return a value of an option; an empty one is refused, as an unset variable of a shell gives it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; give it a value, or leave it out")
    if "\0" in text:
        raise argparse.ArgumentTypeError("it holds a NUL character")
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def _positive(text: str) -> int:
    return _whole_number(text, 1)


def _whole_number(text: str, least: int) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS and int(text) >= least:
        return int(text)
    shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    raise argparse.ArgumentTypeError(
        f"{shown!r} is not a whole number of {least} or more, with {MAX_DIGITS} digits at most"
    )


def _refresh(arguments: argparse.Namespace) -> bool | list[str]:
    patterns: list[str] | None = arguments.refresh
    return patterns or patterns is not None


def _load_job(arguments: argparse.Namespace) -> JobFile:
    from prefect_dispatch.flows.runtime.job_document import read_document  # noqa: PLC0415 -- imports pydantic

    document = read_document(arguments.job, arguments.changes, model=arguments.model)

    from prefect_dispatch.flows.job_file import parse_job  # noqa: PLC0415 -- imports every model

    return parse_job(document)


def _run(arguments: argparse.Namespace) -> int:
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
    # 1. Import what the run needs, while the temporary server starts in a process of its own.
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


def _plan(arguments: argparse.Namespace) -> int:
    job, folder = _load_job(arguments), arguments.job.resolve().parent  # first, as it imports no Prefect

    from prefect_dispatch.cli.console import plan_table  # noqa: PLC0415 -- imports rich
    from prefect_dispatch.flows.job_file import plan_job  # noqa: PLC0415 -- imports every model

    plan: Plan = plan_job(job, folder, limit=arguments.limit, refresh=_refresh(arguments))
    print(plan_table(plan))
    return COMPLETE
