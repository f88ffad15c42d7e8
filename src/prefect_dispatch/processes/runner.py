"""Run a program, and end its whole process tree: the only module that starts programs.

`run` starts the program, and returns when none of its processes is left. `ProcessSupervisor` supervises it in a thread:
it reads its output into bounded buffers and a log file, and ends it when it is cancelled or silent for too long.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import selectors
import socket
import subprocess
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Literal, cast
from uuid import uuid4

import anyio

from prefect_dispatch.errors import ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.processes.kill_tree import (
    KILL_TIMEOUT_S,
    ExitStatus,
    Mark,
    end_processes,
    open_exit_handle,
    poll_exit_status,
)
from prefect_dispatch.processes.watchdog import get_watchdog
from prefect_dispatch.security.redaction import redact, redactor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_SCARCE = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})


def start_program(program: Program, marks: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own.

    Args:
        program: What to run.
        marks: Environment variables in addition to the program's, by which its processes are found.

    Raises:
        ExecutorError: If it can't be started; nothing was spent. It is terminal if it would fail for every item.
    """
    try:
        return subprocess.Popen(  # noqa: S603 -- the job's own program; items are only in its environment and input
            list(program.argv),
            env={**program.env, **marks},
            cwd=program.cwd,
            stdin=subprocess.PIPE if program.stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
    except ValueError:  # NUL
        raise RejectedError("A NUL character can't be passed to a program.", kind="nul", usage=Usage()) from None
    except OSError as error:
        raise _start_error(program, error) from None


def _start_error(program: Program, error: OSError) -> ExecutorError:
    """Classify a failed start: terminal, rejected for this item, or transient."""
    name, reason = redact(repr(program.argv[0])), error.strerror
    if not program.cwd.is_dir():
        return TerminalError(f"The folder {str(program.cwd)!r} isn't there.", kind="missing_folder", usage=Usage())
    if error.errno == errno.E2BIG:
        return RejectedError(
            f"{name} can't be started: its arguments and environment are too long.", kind="too_large", usage=Usage()
        )
    if error.errno in _SCARCE:
        return TransientError(f"{name} can't be started now: {reason}.", kind="resources", usage=Usage())
    if isinstance(error, FileNotFoundError):
        return TerminalError(f"{name} {_describe_missing(program)}.", kind="missing_program", usage=Usage())
    hint = "; a script begins with a line such as #!/bin/sh" if error.errno == errno.ENOEXEC else ""
    return TerminalError(f"{name} can't be run: {reason}{hint}.", kind="not_executable", usage=Usage())


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
"""Bytes that are read or written at a time."""


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


GRACE_S = 3.0
"""Seconds that a program has to end itself, after SIGTERM."""
LINGER_S = 0.5
"""Seconds in which descendants of a program that has ended may still print."""
LOOK_S = 0.05
"""Seconds between two polls for a program's end, where the system has no handle for it."""


class StopSignal:
    """Stop signal for a running program, which any thread can set; a socket pair wakes the supervising selector.

    Attributes:
        read_socket: The socket that becomes readable when the signal is set.
        is_set: Whether the signal was set.
    """

    def __init__(self) -> None:
        """Create an unset signal."""
        self.read_socket, self._write_socket = socket.socketpair()
        self.is_set = False

    def request_stop(self) -> None:
        """Set the signal; has no effect once the program has ended."""
        with suppress(OSError):
            self._write_socket.send(b"!")

    def acknowledge(self) -> None:
        """Read the socket, and note that the signal is set."""
        self.is_set = bool(self.read_socket.recv(16))

    def close(self) -> None:
        """Close both sockets."""
        self.read_socket.close()
        self._write_socket.close()


class ProcessSupervisor:
    """Supervisor of one running program: moves its input and output, and ends its process tree."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        program: Program,
        mark: Mark,
        log: LogFile,
        stop: StopSignal,
        selector: selectors.BaseSelector,
    ) -> None:
        """Prepare the supervision of a started program.

        Args:
            process: The process, with pipes.
            program: What was started.
            mark: The mark in the environment of its processes.
            log: The log file for its output.
            stop: The signal that ends it.
            selector: The selector to wait with; created before the program starts, so that it can't fail afterwards.
        """
        self._process, self._mark, self._log, self._stop_signal = process, mark, log, stop
        self._stdout = OutputBuffer(cast("IO[bytes]", process.stdout), program.keep)
        self._stderr = OutputBuffer(cast("IO[bytes]", process.stderr), program.keep)
        self._pending_input, self._idle_s = memoryview(program.stdin), program.idle_s
        self._selector = selector
        self._handle = open_exit_handle(process)
        self._start = self._last_output = time.monotonic()
        self._stopped: Literal["", "idle"] = ""
        self._exit_status: ExitStatus | None = None
        self._end_time = 0.0
        self._end_thread: Thread | None = None
        self._is_gone = False

    def run(self) -> CompletedProgram:
        """Supervise the program; return its result once its whole process tree is gone."""
        try:
            # 1. Handle events until the process tree is gone.
            self._register_events()
            while not self._is_over():
                for key, _ in self._selector.select(self._timeout_s()):
                    key.data()
            # 2. Read what is still in the pipes; no process is left to write more.
            for stream in (self._stdout, self._stderr):
                while stream.is_open and self._read_output(stream):
                    pass  # pragma: no cover -- output of the very last moment
            seconds = round(time.monotonic() - self._start, 3)
            code, number = self._exit_status or ExitStatus()
            return CompletedProgram(
                code, number, self._stdout.captured_output, self._stderr.captured_output, seconds, self._stopped
            )
        finally:
            self._close()

    def _register_events(self) -> None:
        """Register the stop signal, the pipes and the exit handle; the data of each key is its callback."""
        register = self._selector.register
        register(self._stop_signal.read_socket, selectors.EVENT_READ, self._stop_signal.acknowledge)
        for stream in (self._stdout, self._stderr):
            register(stream.pipe, selectors.EVENT_READ, partial(self._read_output, stream))
        if stdin := self._process.stdin:
            os.set_blocking(stdin.fileno(), False)
            register(stdin, selectors.EVENT_WRITE, partial(self._write_input, stdin))
        if self._handle is not None:
            register(self._handle, selectors.EVENT_READ, partial(self._selector.unregister, self._handle))

    def _timeout_s(self) -> float | None:
        """Return the seconds to wait for the next event; None waits without a limit."""
        if self._end_thread:  # it sets the stop signal when it is done
            return None
        if self._handle is None:
            return LOOK_S
        if self._exit_status:
            return LINGER_S
        return None if self._idle_s is None else max(0.0, self._last_output + self._idle_s - time.monotonic())

    def _read_output(self, stream: OutputBuffer) -> bool:
        """Read the available output of a stream, and log it; return whether there was any."""
        chunk = stream.read_available()
        if chunk:
            self._last_output = time.monotonic()
            self._log.write("stdout" if stream is self._stdout else "stderr", chunk)
        if not stream.is_open:
            self._selector.unregister(stream.pipe)
        return bool(chunk)

    def _write_input(self, stdin: IO[bytes]) -> None:
        """Write the next part of the program's input; close the pipe at its end."""
        try:
            self._pending_input = self._pending_input[os.write(stdin.fileno(), self._pending_input[:CHUNK]) :]
        except BrokenPipeError:  # it has closed its standard input
            self._pending_input = self._pending_input[:0]
        if not self._pending_input:
            self._selector.unregister(stdin)
            stdin.close()

    def _is_over(self) -> bool:
        """Return whether the process tree is gone; start to end it when it is time."""
        now = time.monotonic()
        # 1. Note the program's own end.
        if self._exit_status is None and (found := poll_exit_status(self._process)):
            self._exit_status, self._end_time = found, now
        # 2. Once the tree is being ended, only that thread decides.
        if self._end_thread:
            return self._is_gone
        # 3. End the tree if a stop was requested, if the program has ended (and its descendants have closed the pipes
        #    or had their time), or if it was silent for too long.
        silent = not (self._stdout.is_open or self._stderr.is_open)
        idle = self._idle_s is not None and now >= self._last_output + self._idle_s
        finished = self._exit_status and (silent or now >= self._end_time + LINGER_S)
        if self._stop_signal.is_set or finished or idle:
            self._stopped = "idle" if idle and not finished and not self._stop_signal.is_set else ""
            self._end_thread = Thread(target=self._end_tree, daemon=True)
            self._end_thread.start()
        return False

    def _end_tree(self) -> None:
        """End the program and all its descendants."""
        # An empty `ExitStatus`: other code has reaped the process, so its id may belong to another one by now.
        is_ours = self._exit_status is None or self._exit_status != ExitStatus()
        end_processes(self._mark, [self._process.pid] if is_ours else [], grace_s=GRACE_S)
        self._is_gone = True
        self._stop_signal.request_stop()

    def _close(self) -> None:
        """Close all handles; after an error, end the process tree first."""
        if self._end_thread is None:
            self._end_tree()
        for pipe in (self._process.stdin, self._stdout.pipe, self._stderr.pipe):
            if pipe:
                pipe.close()
        if self._handle is not None:
            os.close(self._handle)
        # Reap the process, after which its id may be reused; its threads may still be exiting.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_TIMEOUT_S)


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
    """Redacting log file of a program: complete lines are written at once, and lines of two streams never mix."""

    def __init__(self, path: Path) -> None:
        """Create the file, readable by its owner only.

        Raises:
            OSError: If it can't be created.
            JobError: If a configured pattern for secrets is invalid.
        """
        self._scrub = redactor()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
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
        self._write_redacted(pending[:cut])

    def finish(self, ran: CompletedProgram) -> None:
        """Write the rest, and if the log is full, how many bytes were left out and how the streams end."""
        for pending in self._pending.values():
            self._write_redacted(pending)
        if left_out := ran.stdout.size + ran.stderr.size - self._size:
            note = f"\n… {left_out:,} bytes left out, as a log holds {MAX_LOG_BYTES:,}. How the streams end …"
            self._write("\n".join((note, ran.stdout.end_text(LOG_END_BYTES), ran.stderr.end_text(LOG_END_BYTES))))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write_redacted(self, text: bytes) -> None:
        """Count output, redact it, and write it."""
        self._size += len(text)
        self._write(self._scrub(text.decode("utf-8", "replace")))

    def _write(self, text: str) -> None:
        """Write a text; a full disk must not end the program."""
        rest = text.encode()
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


__all__ = ["COOKIE", "KEEP", "CapturedOutput", "CompletedProgram", "Program", "run"]
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
    loop = asyncio.get_running_loop()
    done: asyncio.Future[CompletedProgram] = loop.create_future()
    stop = StopSignal()

    def settle(outcome: CompletedProgram | BaseException) -> None:
        if isinstance(outcome, CompletedProgram):
            done.set_result(outcome)
        else:
            done.set_exception(outcome)

    def work() -> None:
        outcome: CompletedProgram | BaseException
        try:
            outcome = _run(program, log, stop)
        except BaseException as error:  # noqa: BLE001 -- raised where it is waited for
            outcome = error
        with suppress(RuntimeError):  # the loop is closed, so nothing waits for the result
            loop.call_soon_threadsafe(settle, outcome)

    Thread(target=work, name="prefect-dispatch-program", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        stop.request_stop()
        await _wait_until_done(done)
        raise
    finally:
        stop.request_stop()


async def _wait_until_done(done: asyncio.Future[CompletedProgram]) -> None:
    """Wait until a program that is being ended is gone, even if this is cancelled again."""
    with anyio.CancelScope(shield=True):
        while not done.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([done])
    done.exception()  # mark it as retrieved, else asyncio logs it


def _run(program: Program, log: Path, stop: StopSignal) -> CompletedProgram:
    """Run a program; blocks, so it is called in a thread of its own."""
    cookie = Mark(COOKIE, uuid4().hex)
    with closing(stop), selectors.DefaultSelector() as selector:
        guard = get_watchdog()
        with closing(LogFile(log)) as log_file:
            process = start_program(program, dict((cookie, guard.mark)))
            with guard.watch(process.pid):
                ran = ProcessSupervisor(process, program, cookie, log_file, stop, selector).run()
            log_file.finish(ran)
    return ran
