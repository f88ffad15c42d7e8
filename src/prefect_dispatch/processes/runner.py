"""Run a program, and end its whole process tree: the only module that starts programs.

`run` starts the program, and returns when none of its processes is left. `ProcessSupervisor` supervises it in a thread:
it reads its output into bounded buffers and a log file, and ends it when it is cancelled or silent for too long.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import math
import os
import re
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import IO, TYPE_CHECKING, Literal, TypeVar, cast
from uuid import uuid4

import anyio

from prefect_dispatch.errors import ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.processes.process_tree import KILL_TIMEOUT_S, Mark, end_processes, get_watchdog
from prefect_dispatch.security.redaction import redact, redactor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_T = TypeVar("_T")
_SCARCE = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC})


def start_program(program: Program, marks: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own.

    Args:
        program: What to run.
        marks: Environment variables in addition to the program's, by which its processes are found.

    Raises:
        ExecutorError: If it can't be started; nothing was spent. It is terminal if it would fail for every item.
    """
    try:
        with tempfile.TemporaryFile() as stdin:
            stdin.write(program.stdin)
            stdin.seek(0)
            return subprocess.Popen(  # noqa: S603 -- the job's own program; items are only in its environment and input
                list(program.argv),
                env={**program.env, **marks},
                cwd=program.cwd,
                stdin=stdin if program.stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
    except (OSError, ValueError) as error:
        error_class, kind, message = _classify_start_error(program, error)
        raise error_class(message, kind=kind, usage=Usage()) from None


def _classify_start_error(program: Program, error: OSError | ValueError) -> tuple[type[ExecutorError], str, str]:
    """Return the class, the kind and the message for a failed start: terminal, rejected for this item, or transient."""
    if isinstance(error, ValueError):
        return RejectedError, "nul", "A NUL character can't be passed to a program."
    name, reason = redact(repr(program.argv[0])), error.strerror
    if not program.cwd.is_dir():
        return TerminalError, "missing_folder", f"The folder {str(program.cwd)!r} isn't there."
    if error.errno == errno.E2BIG:
        return RejectedError, "too_large", f"{name} can't be started: its arguments and environment are too long."
    if error.errno in _SCARCE:
        return TransientError, "resources", f"{name} can't be started now: {reason}."
    if isinstance(error, FileNotFoundError):
        return TerminalError, "missing_program", f"{name} {_describe_missing(program)}."
    hint = "; a script begins with a line such as #!/bin/sh" if error.errno == errno.ENOEXEC else ""
    return TerminalError, "not_executable", f"{name} can't be run: {reason}{hint}."


def _describe_missing(program: Program) -> str:
    """Return what is missing, as part of a message: the program, or the interpreter in its first line."""
    if Path(program.cwd, program.argv[0]).is_file():
        return "can't be run: what its first line names isn't there"
    return "is not installed here" + ("" if "/" in program.argv[0] else ": it is in no folder of PATH")


KEEP = 256 * 1024
"""Bytes of the beginning and of the end of a program's output that are kept by default."""
EDGE = 4096
"""Most bytes that are dropped next to a gap, up to the next line: a cut secret can't be recognised."""


@dataclass(frozen=True)
class Program:
    """A program to run, with its input and its environment."""

    argv: Sequence[str]
    """The program and its arguments; no shell interprets them."""
    env: Mapping[str, str]
    """Its whole environment: nothing is inherited."""
    cwd: Path
    """The folder that it runs in."""
    stdin: bytes = b""
    """Its whole standard input."""
    idle_s: float | None = None
    """Seconds without any output after which it is ended. None: no limit."""
    keep: int = KEEP
    """Bytes of the beginning and of the end of each stream that are kept."""


@dataclass(frozen=True)
class CapturedOutput:
    r"""Captured output of one stream: its beginning and its end.

    Example:
        >>> CapturedOutput(head=b"one two", tail=b" three", size=13).text
        'one two three'
        >>> CapturedOutput(head=b"first\nsec", tail=b"mber\nlast", size=1_000_020).text
        'first\n… 1,000,010 bytes left out …\nlast'
    """

    head: bytes
    """The beginning of the output."""
    tail: bytes
    """The end of the output, as far as it isn't in `head`."""
    size: int
    """Bytes of the whole output."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing was left out."""
        return self.size == len(self.head) + len(self.tail)

    @property
    def text(self) -> str:
        """The output as redacted text; a note stands for bytes that were left out."""
        if self.is_whole:
            return _redact(self.head + self.tail)
        head = self.head[: _line_end(self.head)]
        tail = self.tail[_line_start(self.tail) :]
        return f"{_redact(head)}… {self.size - len(head) - len(tail):,} bytes left out …\n{_redact(tail)}"

    def end_text(self, most: int) -> str:
        r"""Return the end of the output as redacted text: whole lines, if any fit.

        Args:
            most: Bytes of the text, about.

        Example:
            >>> CapturedOutput(head=b"", tail=b"first\nsecond\nlast", size=17).end_text(12)
            '…second\nlast'
            >>> CapturedOutput(head=b"", tail=b"." * 100_000 + b"the end", size=100_007).end_text(10)
            '…...the end'
        """
        if self.size <= most:
            return self.text
        whole = self.head + self.tail if self.is_whole else self.tail
        # A cut secret can't be recognised. So take more than is returned, drop its first line, redact the rest, and
        # cut it to length only then.
        end = whole[-(most + EDGE) :]
        text = _redact(end if len(end) == self.size else end[_line_start(end) :])
        if len(text) > most:
            text = text[-most:]
            lines = text[text.find("\n") + 1 :]
            text = lines if lines.strip() else text
        return f"…{text}"


@dataclass(frozen=True)
class CompletedProgram:
    """Result of a program that has ended."""

    exit: int | None
    """Its exit code. None: a signal ended it, or other code in this process has reaped it."""
    signal: int | None
    """The signal that ended it."""
    stdout: CapturedOutput
    """Its standard output."""
    stderr: CapturedOutput
    """Its standard error."""
    seconds: float
    """How long it ran."""
    stopped: Literal["", "idle"] = ""
    """Why it was ended, if it didn't end itself."""

    def describe(self, most: int) -> tuple[str, str]:
        """Return how it ended, and the end of its output, as parts of a message.

        Args:
            most: Bytes of the end of each stream.
        """
        status = f"exit code {self.exit}" if self.signal is None else f"signal {self.signal}"
        ends = (stream.end_text(most).strip() for stream in (self.stdout, self.stderr))
        return status, "\n".join(filter(None, ends))


def _redact(part: bytes) -> str:
    """Decode output, and redact it."""
    return redact(part.decode("utf-8", "replace"))


def _line_end(head: bytes) -> int:
    """Return where the last whole line of a beginning ends, or `EDGE` bytes before its end if that line is longer."""
    return max(head.rfind(b"\n") + 1, len(head) - EDGE, 0)


def _line_start(tail: bytes) -> int:
    """Return where the first whole line of an end begins, at most `EDGE` bytes after its start."""
    line = tail.find(b"\n") + 1
    return min(line or EDGE, EDGE, len(tail))


CHUNK = 64 * 1024
"""Bytes that are read at a time."""


class OutputBuffer:
    """Bounded buffer for one output stream of a program.

    Attributes:
        pipe: The pipe that it reads from, in non-blocking mode.
        is_open: Whether more output may follow.
    """

    def __init__(self, pipe: IO[bytes], keep: int) -> None:
        """Set the pipe to non-blocking mode.

        Args:
            pipe: The pipe to read from.
            keep: Bytes of its beginning, and of its end, that are kept.
        """
        self.pipe, self.is_open = pipe, True
        self._keep, self._head, self._tail, self._size = keep, bytearray(), bytearray(), 0
        os.set_blocking(pipe.fileno(), False)

    def read_available(self) -> bytes:
        """Read the available output into the buffer, and return it; empty if there is none."""
        try:
            chunk = os.read(self.pipe.fileno(), CHUNK)
        except BlockingIOError:
            return b""
        self.is_open = bool(chunk)
        self._size += len(chunk)
        missing = self._keep - len(self._head)
        self._head += chunk[:missing]
        self._tail += chunk[missing:]
        # The tail may grow to about twice its size before it is cut, so that few bytes are moved in all.
        if len(self._tail) > 2 * self._keep + CHUNK:
            del self._tail[: len(self._tail) - self._keep]
        return chunk

    @property
    def captured_output(self) -> CapturedOutput:
        """The captured output so far."""
        return CapturedOutput(bytes(self._head), bytes(self._tail[max(0, len(self._tail) - self._keep) :]), self._size)


def wait_for_exit(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for the end of a program without reaping it, so that its id isn't reused.

    Returns:
        Its exit code, or the negative number of the signal that ended it; None if other code has reaped it.
    """
    if sys.platform == "darwin":  # pragma: no cover -- without `waitid` before Python 3.13
        return process.wait()
    try:
        ended = cast("os.waitid_result", os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT))
    except ChildProcessError:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


GRACE_S = 3.0
"""Seconds that a program has to end itself, after SIGTERM."""
LINGER_S = 0.5
"""Seconds in which descendants of a program that has ended may still print."""
POLL_S = 0.1
"""Seconds between two checks whether a stop is requested."""


@dataclass
class ProcessSupervisor:
    """Supervisor of one running program: reads its output, and ends its process tree."""

    process: subprocess.Popen[bytes]
    """The process, with pipes."""
    program: Program
    """What was started."""
    mark: Mark
    """The mark in the environment of its processes."""
    log: LogFile
    """The log file for its output."""
    stop: Event
    """The event that ends it."""

    def run(self) -> CompletedProgram:
        """Supervise the program; return its result once its whole process tree is gone."""
        start = self._last_output = time.monotonic()
        self._exit_code: int | None = None
        self._end_time: float | None = None
        try:
            with selectors.DefaultSelector() as self._selector:
                # 1. Register the pipes, and wait for its end in a thread.
                self._streams = [self._register_stream(name) for name in ("stdout", "stderr")]
                self._waiter = Thread(target=self._wait_for_exit, name="prefect-dispatch-program-exit", daemon=True)
                self._waiter.start()
                # 2. Read its output until it has ended, or is to be ended; end what is left of it.
                stopped = self._read_until_over()
                self._end_tree(self._read_for)
                # 3. Read what is still in the pipes; no process is left to write more.
                self._waiter.join(KILL_TIMEOUT_S)
                self._read_available(0.0)
        except BaseException:
            self._end_tree(time.sleep)
            raise
        finally:
            self._close()
        seconds = round(time.monotonic() - start, 3)
        stdout, stderr = (stream.captured_output for stream in self._streams)
        code = self._exit_code
        exit_code, number = (code, None) if code is None or code >= 0 else (None, -code)
        return CompletedProgram(exit_code, number, stdout, stderr, seconds, stopped)

    def _register_stream(self, name: str) -> OutputBuffer:
        """Return the buffer for an output stream, after registering its pipe."""
        stream = OutputBuffer(getattr(self.process, name), self.program.keep)
        self._selector.register(stream.pipe, selectors.EVENT_READ, partial(self._read_output, name, stream))
        return stream

    def _read_output(self, name: str, stream: OutputBuffer) -> None:
        """Read the available output of a stream, and log it."""
        if chunk := stream.read_available():
            self._last_output = time.monotonic()
            self.log.write(name, chunk)
        if not stream.is_open:
            self._selector.unregister(stream.pipe)

    def _wait_for_exit(self) -> None:
        """Note the end of the program itself; runs in a thread of its own."""
        self._exit_code = wait_for_exit(self.process)
        self._end_time = time.monotonic()

    def _read_until_over(self) -> Literal["", "idle"]:
        """Read output until a stop is requested, the program has ended, or it was silent for too long.

        Descendants of a program that has ended may print for `LINGER_S`, unless they have closed the pipes.
        """
        idle_s = math.inf if self.program.idle_s is None else self.program.idle_s
        while not self.stop.is_set():
            end_time, is_open = self._end_time, bool(self._selector.get_map())
            if end_time and not is_open:
                break
            wait_s = (end_time + LINGER_S if end_time else self._last_output + idle_s) - time.monotonic()
            if wait_s <= 0:
                return "" if end_time else "idle"
            (self._read_available if is_open else self._waiter.join)(min(wait_s, POLL_S))
        return ""

    def _read_available(self, wait_s: float) -> None:
        """Wait for output, at most some seconds, and read it."""
        for key, _ in self._selector.select(wait_s):
            key.data()

    def _read_for(self, seconds: float) -> None:
        """Read output for some seconds."""
        end = time.monotonic() + seconds
        while (wait_s := end - time.monotonic()) > 0:
            self._read_available(wait_s)

    def _end_tree(self, pause: Callable[[float], object]) -> None:
        """End the program and all its descendants."""
        # Once other code has reaped the process, its id may belong to another one.
        is_reaped = self._end_time is not None and self._exit_code is None
        end_processes(self.mark, () if is_reaped else (self.process.pid,), grace_s=GRACE_S, pause=pause)

    def _close(self) -> None:
        """Close the pipes, and reap the process, after which its id may be reused; its threads may still be exiting."""
        for pipe in (self.process.stdout, self.process.stderr):
            cast("IO[bytes]", pipe).close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(KILL_TIMEOUT_S)


MAX_LOG_BYTES = 20_000_000
"""Most bytes of output in a log, before the ends of both streams are added. Redacting that many takes 3 s."""
LOG_END_BYTES = 32 * 1024
"""Bytes of the end of each stream that are added to a full log."""
MAX_PENDING_BYTES = 64 * 1024
"""Most bytes that are buffered until the end of their line, or of a private key."""
_KEY = b"-----BEGIN"
_KEY_END = re.compile(rb"-----END[^\n]*\n")
_EDGE = re.compile(rb"[\s\"'](?=[^\s\"']*\Z)")
"""The last delimiter, at which no secret is cut."""


class LogFile:
    """Redacting log file of a program: complete lines are written at once, and lines of two streams never mix.

    It is locked until it is closed, or this process dies, so that readers know whether more follows.
    """

    def __init__(self, path: Path) -> None:
        """Create the file, readable by its owner only.

        Raises:
            OSError: If it can't be created.
            JobError: If a configured pattern for secrets is invalid.
        """
        self._scrub = redactor()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # not every file system has locks; the log is written all the same
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._pending: dict[str, bytes] = {}
        self._size = 0

    def write(self, stream: str, chunk: bytes) -> None:
        """Add output of a stream, and write its complete lines.

        Args:
            stream: `stdout` or `stderr`.
            chunk: The output.
        """
        if self._size >= MAX_LOG_BYTES:
            return
        pending = self._pending.get(stream, b"") + chunk
        cut = _writable_length(pending)
        self._pending[stream] = pending[cut:]
        self._write(pending[:cut])

    def finish(self, ran: CompletedProgram) -> None:
        """Write the rest, and if the log is full, how many bytes were left out and how the streams end."""
        for pending in self._pending.values():
            self._write(pending)
        if left_out := ran.stdout.size + ran.stderr.size - self._size:
            note = f"\n… {left_out:,} bytes left out, as a log holds {MAX_LOG_BYTES:,}. How the streams end …"
            ends = (ran.stdout.end_text(LOG_END_BYTES), ran.stderr.end_text(LOG_END_BYTES))
            self._write("\n".join((note, *ends)).encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, text: bytes) -> None:
        """Count output, redact it, and write it; a full disk must not end the program."""
        self._size += len(text)
        rest = self._scrub(text.decode("utf-8", "replace")).encode()
        with suppress(OSError):
            while rest:
                rest = rest[os.write(self._file, rest) :]


def _writable_length(pending: bytes) -> int:
    """Return how many of the buffered bytes can be written: whole lines, and no part of a private key."""
    end = pending.rfind(b"\n") + 1
    # A private key spans lines: wait for its last one.
    key = pending.rfind(_KEY, 0, end)
    if key >= 0 and not _KEY_END.search(pending, key, end):
        end = key
    if len(pending) - end < MAX_PENDING_BYTES:
        return end
    # The buffer is full: cut at the last delimiter.
    edge = _EDGE.search(pending, len(pending) - 4096)
    return edge.end() if edge else len(pending)


COOKIE = "PREFECT_DISPATCH_COOKIE"
"""The environment variable that marks the processes of one program."""


async def run(program: Program, *, log: Path) -> CompletedProgram:
    """Run a program to its end.

    It runs in a session of its own. When this coroutine is cancelled, or the program is silent for too long, its
    whole process tree gets SIGTERM and then SIGKILL. Processes that it leaves behind are ended, too, and all of them
    are when this process dies.

    Args:
        program: What to run.
        log: The file for its redacted output, up to 20 MB; only its owner can read it.

    Returns:
        How it ended, and the beginning and the end of its output; none of its processes is left.

    Raises:
        ExecutorError: If it can't be started; see `start_program`.
        OSError: If the log can't be written.
    """
    done, stop = Future[CompletedProgram](), Event()

    def work() -> None:
        try:
            done.set_result(_run(program, log, stop))
        except BaseException as error:  # noqa: BLE001 -- raised where it is waited for
            done.set_exception(error)

    Thread(target=work, name="prefect-dispatch-program", daemon=True).start()
    try:
        return await wait_shielded(asyncio.wrap_future(done), stop.set)
    finally:
        stop.set()


ProgramRunner = Callable[[Program, Path], Awaitable[CompletedProgram]]
"""Function that runs a program to its end, given the file for its output: `run_here`, or one that encloses it."""


async def run_here(program: Program, log: Path) -> CompletedProgram:
    """Run a program on this machine; see `run`."""
    return await run(program, log=log)


async def wait_shielded(task: asyncio.Future[_T], on_cancel: Callable[[], object] = lambda: None) -> _T:
    """Return the result of a task that a cancellation must not leave running.

    Args:
        task: The task.
        on_cancel: Called at the first cancellation, to have the task end soon; its end is waited for, even if this is
            cancelled again.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        on_cancel()
        with anyio.CancelScope(shield=True):
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # mark it as retrieved, else asyncio logs it
        raise


def _run(program: Program, log: Path, stop: Event) -> CompletedProgram:
    """Run a program; blocks, so it is called in a thread of its own."""
    cookie, watchdog = Mark(COOKIE, uuid4().hex), get_watchdog()
    with closing(LogFile(log)) as log_file:
        process = start_program(program, dict((cookie, watchdog.mark)))
        with watchdog.watch(process.pid):
            ran = ProcessSupervisor(process, program, cookie, log_file, stop).run()
        log_file.finish(ran)
    return ran
