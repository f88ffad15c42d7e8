"""Executor that runs a command once for each item: a script, a test suite, or any other program.

The command comes from the brief, or from a ShellOperation block. It runs in the job's folder or in a workspace of
its own; its answer is what it prints, or the parsed report of a test run.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
from asyncio import CancelledError
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, Field, JsonValue, PrivateAttr, WithJsonSchema

from prefect_dispatch.errors import ExecutorError, JobError, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.base import Ask, BaseExecutor, CostBound, Reply
from prefect_dispatch.executors.block_references import SLUGS, block_name, load_block, shell_operation
from prefect_dispatch.executors.command_checks import (
    file_digests,
    item_environment,
    normalize_cwd,
    require_command,
    require_program,
    resolve_cwd,
    stdin_bytes,
)
from prefect_dispatch.executors.junit import read_report
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.brief import Brief, Command, Text
from prefect_dispatch.models.globs import Glob, matches_path
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.models.test_run import RUN
from prefect_dispatch.processes.process_tree import get_watchdog
from prefect_dispatch.processes.program_logs import new_log, quote_end
from prefect_dispatch.processes.runner import Program, run
from prefect_dispatch.processes.state_folder import (
    Variable,
    build_environment,
    lease,
    private_folder,
    read_end,
    reap_periodically,
    require_passable,
    state_folder,
)
from prefect_dispatch.security.redaction import SECRET_NAME, register_secrets, secrets_in
from prefect_dispatch.serialization.json_text import digest
from prefect_dispatch.workspaces.workspace import Workspace, open_workspace, to_thread_shielded

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence

    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.outcome import Change
    from prefect_dispatch.models.test_run import TestRun
    from prefect_dispatch.processes.runner import CompletedProgram
    from prefect_dispatch.workspaces.workspace import OpenWorkspace


MAX_KEPT_BYTES = 1024 * 1024
"""Bytes of the beginning and of the end of a command's output that are kept; an answer is both at most."""
MAX_QUOTED_BYTES = 600
"""Bytes of the end of a command's output that an error quotes."""
MAX_EXCERPT_BYTES = 4_000
"""Bytes of the end of the output that are kept with a test run whose report and exit code disagree."""
MAX_REPORT_BYTES = 50_000_000
"""Most bytes of all report files together."""
FileStamps = dict[str, tuple[int, int, int]]
"""Modification time in ns, size and inode of files, by name."""


def require_success(ran: CompletedProgram, command: Command, log: Path) -> None:
    """Check that a command succeeded; one that writes a report may have any exit code.

    Args:
        ran: Its result.
        command: The command, with its exit codes for success and for another try.
        log: The file with its whole output, which an error names.

    Raises:
        TransientError: If its exit code asks for another try, or it was silent for too long.
        RejectedError: If it failed.
    """
    kind: type[ExecutorError] = RejectedError
    if ran.stopped:
        kind, code, how = TransientError, "idle", "printed nothing for too long, and was ended"
    elif ran.signal is not None:
        why = " (as the system does where memory runs out)" if ran.signal == signal.SIGKILL else ""
        code, how = "signal", f"was ended by {_signal_name(ran.signal)}{why}"
    elif ran.exit is None:
        kind, code, how = TransientError, "lost", "ended, and something else in this process took its exit code"
    elif ran.exit in command.retry:
        kind, code, how = TransientError, "retry", f"asks for another try (exit code {ran.exit})"
    elif ran.exit not in command.ok and not command.report:
        code, how = "exit", f"failed (exit code {ran.exit})"
    else:
        return
    # The end of what it printed on standard error, else on standard output.
    ends = (stream.end_text(MAX_QUOTED_BYTES).strip() for stream in (ran.stderr, ran.stdout))
    output = next(filter(None, ends), "it printed nothing")
    raise kind(f"The command {how}: {output}", kind=code).add_trace(_log_note(log))


def output_text(ran: CompletedProgram, log: Path) -> str:
    """Return the standard output of a command as its answer, without line breaks at the end.

    Raises:
        RejectedError: If it is too long for an answer, or no UTF-8 text.
    """
    if not ran.stdout.is_whole:
        kind, why = "too_large", f"printed {ran.stdout.size:,} bytes, and an answer has {2 * MAX_KEPT_BYTES:,} at most"
    else:
        try:
            return (ran.stdout.head + ran.stdout.tail).decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            kind, why = "not_text", f"printed no UTF-8 text (at byte {error.start:,})"
    raise RejectedError(f"The command {why}.", kind=kind).add_trace(_log_note(log))


def stamp_files(patterns: Iterable[str], folder: Path) -> FileStamps:
    """Return the stamps of the files that match a report's globs, before the command runs."""
    return {name: _stamp(status) for name, status in _iter_matching(patterns, folder)}


def read_test_run(
    ran: CompletedProgram, command: Command, places: dict[Path, FileStamps], root: str, log: Path
) -> TestRun:
    """Read and parse the report of a command, and check it against the exit code.

    Args:
        ran: The command's result.
        command: The command, with the globs of its report.
        places: The folders that the globs are relative to, each with the stamps of its files before the run; an
            unchanged file is no report of this run.
        root: The folder that the command ran in.
        log: The file with its whole output, which a failed run names.

    Raises:
        RejectedError: If the files are too large, or one is no plain file: an incomplete report must not count.
    """
    # 1. Read the files that are new or changed.
    files: dict[str, bytes] = {}
    budget = MAX_REPORT_BYTES
    for folder, before in places.items():
        for name, status in _iter_matching(command.report, folder):
            if before.get(name) != _stamp(status):
                if not stat.S_ISREG(status.st_mode):
                    why = f"The report {name!r} is no plain file, and a link is not followed: have it written there."
                    raise RejectedError(why, kind="report")
                budget -= status.st_size
                if budget < 0:
                    why = f"The reports of the command have more than {MAX_REPORT_BYTES:,} bytes together."
                    raise RejectedError(why, kind="too_large")
                files[f"./{name}" if name in files else name] = (folder / name).read_bytes()
    # 2. Parse them.
    run = read_report(files, ran.exit, ok=command.ok, seconds=ran.seconds, root=root)
    if run.verdict != "failed":
        return run
    # 3. A failed run names its log; checks of the run itself that failed show the end of it.
    end = read_end(log, MAX_EXCERPT_BYTES) if run.problems else ""
    cases = [case.model_copy(update={"text": end}) if case.suite == RUN else case for case in run.cases]
    return run.model_copy(update={"log": str(log), "cases": tuple(cases)})


def _iter_matching(patterns: Iterable[str], folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files below a folder that match globs, with their status; untrusted links are not followed."""
    globs = [Glob.parse(pattern) for pattern in patterns]
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - {".git"})
        for file in sorted(files):
            name = os.path.relpath(os.path.join(parent, file), folder)  # noqa: PTH118 -- thousands of them
            if any(matches_path(glob, name) for glob in globs):
                yield name, os.lstat(os.path.join(folder, name))  # noqa: PTH118 -- the same


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _log_note(log: Path) -> str:
    return f"(all of it: {log})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


SHELLS = frozenset({"sh", "bash", "dash", "ksh", "zsh"})
"""The shells that stop at the first failed command with the option `-e`."""
_operations: dict[str, Operation] = {}
"""Cache of the blocks that this process has loaded; their secret variables are kept nowhere else."""
OperationName = Annotated[
    str,
    BeforeValidator(partial(block_name, "operation")),
    WithJsonSchema({"title": "Shell Operation", "type": "object", "block_type_slug": SLUGS["operation"]}),
]
"""The name of a ShellOperation block; a form shows a picker for it, and Python code may pass the block itself."""


@dataclass(frozen=True)
class Operation:
    """Content of a ShellOperation block."""

    command: Command
    """Its commands as one shell script, which stops at the first failure."""
    env: Mapping[str, str]
    """Its environment variables, some of which may be secret."""
    cwd: Path | None
    """Its working directory."""

    @property
    def identity(self) -> dict[str, JsonValue]:
        """The part that can change an answer; of secret variables only the names."""
        public = {name: value for name, value in self.env.items() if not SECRET_NAME.search(name)}
        return {
            "command": self.command.model_dump(mode="json"),
            "env": cast("JsonValue", dict(sorted(public.items()))),
            "secrets": cast("JsonValue", sorted(self.env.keys() - public.keys())),
            "cwd": None if self.cwd is None else str(self.cwd),
        }


def operation(name: str) -> Operation:
    """Return the content of a block from the cache of this process; load it if it isn't there.

    Raises:
        JobError: If there is no such block, or it can't be used.
    """
    return _operations.get(name) or load_operation(name)


def load_operation(name: str) -> Operation:
    """Load a block, and cache its content; the values of its secret variables are redacted from here on.

    Raises:
        JobError: If there is no such block, or its shell or its folder can't be used.
    """
    block = cast("Any", load_block(shell_operation(), name, "executor.operation"))
    # `-e` stops the commands at the first failure; a shell without it would go on.
    shell = block.shell or "bash"
    if PurePath(shell).name not in SHELLS:
        raise JobError(
            f"executor.operation: the block {name!r} wants the shell {shell!r}; these can be used: "
            f"{', '.join(sorted(SHELLS))}."
        )
    register_secrets(secrets_in(block.env))
    command = Command(run=(shell, "-e", "-c", "\n".join(block.commands)))
    _operations[name] = Operation(command, dict(block.env), block.working_dir and Path(block.working_dir))
    return _operations[name]


REPORTS = "REPORT_DIR"
"""The environment variable that names the folder for reports; each run has one of its own."""
SILENT = "(printed nothing)"
"""The answer of a command that succeeded and printed nothing, as many do."""
_log = logging.getLogger("prefect_dispatch")


@dataclass(frozen=True)
class _RunPlace:
    """Where one run of a command takes place."""

    folder: Path
    """The folder that the command runs in."""
    env: Mapping[str, str]
    """Its environment, without the variables of brief and item."""
    reports: Path
    """The folder for its report, which no other run shares."""
    workspace: OpenWorkspace | None = None
    """The open workspace that the folder is in, if any."""


async def run_command(shell: Shell, ask: Ask) -> Reply:
    """Run a command for one item, and return its answer.

    Args:
        shell: The executor, with resolved paths.
        ask: The brief and the item.

    Raises:
        ExecutorError: If it fails, or can't be run.
    """
    # 1. The command, and the variables that it gets for the item.
    block = await to_thread_shielded(operation, shell.operation) if shell.operation else None
    command = block.command if block else ask.brief.command
    if command is None:
        raise TerminalError(f"Brief {ask.brief.name!r} has no command to run.", kind="command", usage=Usage())
    item_env = item_environment(ask.item, stdin=command.stdin)
    async with _open_place(shell, block.cwd if block else None) as place:
        # 2. Run it.
        program = Program(
            argv=command.argv,
            env={**place.env, **(block.env if block else {}), **command.env, **item_env},
            cwd=place.folder,
            stdin=stdin_bytes(ask.item) if command.stdin else b"",
            idle_s=shell.idle_s,
            keep=MAX_KEPT_BYTES,
        )
        log = new_log("command")
        before = (
            await to_thread_shielded(stamp_files, command.report, place.folder) if place.workspace else FileStamps()
        )
        try:
            ran = await run(program, log=log)
        except CancelledError:
            quote_end(log, MAX_QUOTED_BYTES)
            _log.warning("%s/%s was ended; what it printed: %s", ask.brief.name, ask.item.key, log)
            raise
        _log.debug("%s/%s printed: %s", ask.brief.name, ask.item.key, log)
        # 3. Its answer: the test run that its report describes, or what it printed.
        require_success(ran, command, log)
        if command.report:
            places = {place.reports: FileStamps(), **({place.folder: before} if place.workspace else {})}
            run_of_tests = await to_thread_shielded(read_test_run, ran, command, places, str(place.folder), log)
            value: JsonValue = run_of_tests.model_dump(mode="json")
        else:
            value = output_text(ran, log)
        # 4. The change of the repository, if the brief has it write files.
        change = (
            await place.workspace.capture_change(ask.brief.writes) if place.workspace and ask.brief.writes else None
        )
        if isinstance(value, str) and not value.strip() and (change or ask.brief.output == "text"):
            value = _describe_change(change)
        return Reply(value=value, model=shell.name, change=change)


@asynccontextmanager
async def _open_place(shell: Shell, cwd: Path | None) -> AsyncGenerator[_RunPlace, None]:
    """Provide the folders for one run, and remove what is temporary among them afterwards."""
    if shell.workspace:
        async with open_workspace(shell.workspace, pass_env=shell.pass_env) as workspace:
            reports = private_folder(workspace.lease.path / "reports")
            folder = await to_thread_shielded(resolve_cwd, workspace.path, shell.cwd)
            yield _RunPlace(folder, {**workspace.env, REPORTS: str(reports)}, reports, workspace)
        return
    stack = ExitStack()
    try:
        yield await to_thread_shielded(_open_folder, stack, shell, cwd or shell.folder)
    finally:
        await to_thread_shielded(stack.close)


def _open_folder(stack: ExitStack, shell: Shell, folder: Path) -> _RunPlace:
    mine = stack.enter_context(lease(about={"folder": str(folder)}))
    reports = private_folder(mine.path / "reports")
    return _RunPlace(folder, build_environment(mine, pass_env=shell.pass_env, more={REPORTS: str(reports)}), reports)


def _describe_change(change: Change | None) -> str:
    """Return the answer of a command that printed nothing: the files that it changed, if it has a change."""
    if change is None:
        return SILENT
    return "\n".join(f"{file.change} {file.path}" for file in change.files) or "nothing changed"


class Shell(BaseExecutor, Strict):
    """Executor that runs the command of a brief once for each item, and answers with what it prints.

    An item is passed in variables (`ITEM_KEY`, `ITEM_VALUE`, `ITEM_<FIELD>`) or on standard input, never in the
    command's text. A command gets few variables of this environment, and a HOME and TMPDIR of its own; its whole
    process tree is ended when it ends, is cancelled, or the process that runs it dies.

    Example:
        >>> Shell(pass_env=["HTTPS_PROXY"], idle_s=60).cwd
        '.'
    """

    cancel_immediately: ClassVar[bool] = True
    runs_programs: ClassVar[bool] = True

    kind: Literal["shell"] = "shell"
    """Discriminator of the kinds of executors."""
    cwd: Text = "."
    """The folder to run in, within the job's folder, or within the workspace."""
    pass_env: tuple[Variable, ...] = ()
    """Variables of this environment that commands get, such as a key. Values of variables whose names mark a secret
    are redacted in the output of commands."""
    idle_s: Annotated[float, Field(title="Idle limit", gt=0, le=86400)] | None = Field(
        default=None, title="Idle limit in seconds"
    )
    """Seconds without any output after which a command is ended. None: only the time limit ends it."""
    operation: OperationName | None = None
    """A ShellOperation block whose commands are run in place of those of briefs."""
    workspace: Workspace | None = None
    """A checkout of its own for each item. None: commands run in the job's folder, side by side."""

    _home: Path | None = PrivateAttr(default=None)
    _digests: dict[tuple[str, ...], JsonValue] = PrivateAttr(default_factory=dict[tuple[str, ...], JsonValue])

    @property
    def folder(self) -> Path:
        """The folder that commands run in, without a workspace."""
        return Path(self._home or "", self.cwd)

    @property
    def name(self) -> str:
        """Key of the rate limiter that its runs share: all commands have the same."""
        return "shell"

    @property
    def ignores_feedback(self) -> bool:
        """True: a command gets no feedback."""
        return True

    @property
    def fingerprint(self) -> str:
        """Digest of everything that can change an answer; of passed variables only the names.

        Raises:
            JobError: If its folder, its block or its workspace can't be found.
        """
        if self._home is None:
            return self.resolve_paths(Path()).fingerprint
        return digest(
            {
                "shell": 1,
                "folder": self.cwd if self.workspace else str(self.folder),
                "pass_env": [*sorted(self.pass_env)],
                "operation": operation(self.operation).identity if self.operation else None,
                "workspace": self.workspace.identity if self.workspace else None,
            }
        )

    def resolve_paths(self, folder: Path) -> Shell:
        """Return the executor with its folder, its block and its workspace resolved and validated.

        Args:
            folder: The job's folder, which relative paths count from.

        Raises:
            JobError: If one of them doesn't exist, or leads out of the folder that it has to be in.
        """
        # 1. What doesn't depend on the folder: variables, the state folder, the block.
        require_passable(self.pass_env)
        state_folder()
        block = load_operation(self.operation) if self.operation else None
        if block and block.cwd and self.workspace:
            raise JobError(
                f"executor.operation: the block {self.operation!r} names a working directory, and a workspace is one: "
                "leave one of them out."
            )
        # 2. The folder to run in, in the job's folder or in the workspace's commit; a set-up may create it.
        cwd = normalize_cwd(self.cwd, None if self.workspace else folder)
        workspace = self.workspace.resolve(folder) if self.workspace else None
        if workspace and not workspace.setup and not workspace.has_folder(cwd):
            raise JobError(
                f"executor.cwd: the commit {workspace.base[:12]} has no folder {cwd!r}; name one that it has."
            )
        resolved = self.model_copy(update={"workspace": workspace, "cwd": cwd})
        resolved._home, resolved._digests = folder.resolve(), {}  # noqa: SLF001 -- its own copy
        return resolved

    def require_supported(self, briefs: Sequence[Brief]) -> None:
        """Check that the executor can answer some briefs.

        Raises:
            JobError: If it can't; the message says what to change.
        """
        set_up = self.workspace is not None and self.workspace.setup is not None
        for brief in briefs:
            command = require_command(brief, self.operation)
            if command and not set_up:  # a set-up may install the program
                require_program(brief.name, command, None if self.workspace else self.folder)

    @property
    def has_external_inputs(self) -> bool:
        """True: see `external_inputs`."""
        return True

    def external_inputs(self, brief: Brief, item: Item) -> JsonValue:
        """Return digests of the files that a brief reads; None in a workspace, where the base commit covers them.

        Raises:
            JobError: If one can't be read.
        """
        if self.workspace:
            return None
        if self._home is None:
            return self.resolve_paths(Path()).external_inputs(brief, item)
        if brief.reads not in self._digests:  # once a run, so that what commands write in the run doesn't count
            self._digests[brief.reads] = dict(sorted(file_digests(brief.reads, self._home).items()))
        return self._digests[brief.reads]

    async def warm_up(self) -> None:
        """Start the watchdog process, and clean up after runs that died.

        Raises:
            JobError: If the state folder can't be used.
            TerminalError: If the watchdog doesn't start.
        """
        await to_thread_shielded(_warm_up)

    async def answer(self, ask: Ask) -> Reply:
        """Run the command; cancelling this ends its whole process tree.

        Raises:
            ExecutorError: If it fails, or can't be run.
            JobError: If its folder, its block, its workspace or a variable doesn't exist.
        """
        here = self if self._home else self.resolve_paths(Path())
        try:
            return await run_command(here, ask)
        except ExecutorError as error:
            error.usage = error.usage or Usage(requests=1)  # a command costs nothing, even if it fails
            raise

    def count_tokens(self, brief: Brief, item: Item) -> int:  # noqa: ARG002 -- the protocol's signature
        """Return 0: a command takes no tokens."""
        return 0

    def expected_completion_tokens(self, brief: Brief) -> int:  # noqa: ARG002 -- the protocol's signature
        """Return 0: a command produces no tokens."""
        return 0

    def price(self) -> tuple[float, float]:
        """Return a price of 0 per token."""
        return 0.0, 0.0

    def cost_bound(self, ask: Ask) -> CostBound:  # noqa: ARG002 -- the protocol's signature
        """Return the cost bound of a command: it uses nothing of a budget but one request."""
        return CostBound(prompt_tokens=0, completion_tokens=0, cost_usd=0.0)


def _warm_up() -> None:
    get_watchdog()
    reap_periodically()
