"""What is there for one program as long as it runs: feeds it, drains it, sees it end, ends what it leaves behind.

It has a thread of its own and no part in the event loop: a program that prints without end waits itself
until its output has been searched for secrets, and holds up nobody else.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import time
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import IO, TYPE_CHECKING, Literal, cast

from prefect_dispatch.processes.ending import Ending, exit_handle, how_it_ended
from prefect_dispatch.processes.program import Ran
from prefect_dispatch.processes.stream import CHUNK, Stream
from prefect_dispatch.processes.sweep import LAST_S, end

if TYPE_CHECKING:
    from prefect_dispatch.processes.log_file import LogFile
    from prefect_dispatch.processes.program import Program
    from prefect_dispatch.processes.sweep import Mark

GRACE_S = 3.0
"""Seconds that a program has to end itself, once it is asked to."""
LINGER_S = 0.5
"""Seconds in which what a program that has ended left behind may still print."""
LOOK_S = 0.05
"""How often to look whether a program has ended, where the system doesn't tell."""


class Bell:
    """Rung by those who want a program to end, from whichever thread."""

    def __init__(self) -> None:
        """Hang it up."""
        self.rung, self._rope = socket.socketpair()
        self.is_rung = False

    def ring(self) -> None:
        """Ring; nobody hears it where the program has ended already."""
        with suppress(OSError):
            self._rope.send(b"!")

    def hear(self) -> None:
        """Note that it was rung."""
        self.is_rung = bool(self.rung.recv(16))

    def close(self) -> None:
        """Take it down."""
        self.rung.close()
        self._rope.close()


class Pump:
    """One program that runs."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        program: Program,
        mark: Mark,
        log: LogFile,
        bell: Bell,
        selector: selectors.BaseSelector,
    ) -> None:
        """Keep what there is to do.

        Args:
            process: The program, with pipes.
            program: What was started.
            mark: What it carries in its environment.
            log: Where its output goes.
            bell: Rung when it is to end.
            selector: Tells what happens; there before the program, so that nothing is missing for it.
        """
        self._process, self._mark, self._log, self._bell = process, mark, log, bell
        self._stdout = Stream(cast("IO[bytes]", process.stdout), program.keep)
        self._stderr = Stream(cast("IO[bytes]", process.stderr), program.keep)
        self._unfed, self._idle_s = memoryview(program.stdin), program.idle_s
        self._selector = selector
        self._handle = exit_handle(process)
        self._began = self._heard = time.monotonic()
        self._stopped: Literal["", "idle"] = ""
        self._ending: Ending | None = None
        self._ended = 0.0
        self._ender: Thread | None = None
        self._is_gone = False

    def run(self) -> Ran:
        """Return what came of the program, once neither it nor anything that it started is there."""
        try:
            self._watch()
            while not self._is_over():
                for key, _ in self._selector.select(self._patience()):
                    key.data()
            for stream in (self._stdout, self._stderr):  # whoever could write is gone
                while stream.is_open and self._drain(stream):
                    pass  # pragma: no cover -- what was printed in the very last moment
            seconds = round(time.monotonic() - self._began, 3)
            code, number = self._ending or Ending()
            return Ran(code, number, self._stdout.kept, self._stderr.kept, seconds, self._stopped)
        finally:
            self._close()

    def _watch(self) -> None:
        watch = self._selector.register
        watch(self._bell.rung, selectors.EVENT_READ, self._bell.hear)
        for stream in (self._stdout, self._stderr):
            watch(stream.pipe, selectors.EVENT_READ, partial(self._drain, stream))
        if stdin := self._process.stdin:
            os.set_blocking(stdin.fileno(), False)
            watch(stdin, selectors.EVENT_WRITE, partial(self._feed, stdin))
        if self._handle is not None:
            watch(self._handle, selectors.EVENT_READ, partial(self._selector.unregister, self._handle))

    def _patience(self) -> float | None:
        """Return how long to wait for something to happen."""
        if self._ender:  # it rings
            return None
        if self._handle is None:
            return LOOK_S
        if self._ending:
            return LINGER_S
        return None if self._idle_s is None else max(0.0, self._heard + self._idle_s - time.monotonic())

    def _drain(self, stream: Stream) -> bool:
        """Take what has come on a stream; return whether anything has."""
        chunk = stream.read()
        if chunk:
            self._heard = time.monotonic()
            self._log.write("stdout" if stream is self._stdout else "stderr", chunk)
        if not stream.is_open:
            self._selector.unregister(stream.pipe)
        return bool(chunk)

    def _feed(self, stdin: IO[bytes]) -> None:
        """Give the program more to read, or the end of it."""
        try:
            self._unfed = self._unfed[os.write(stdin.fileno(), self._unfed[:CHUNK]) :]
        except BrokenPipeError:  # it doesn't want to read more
            self._unfed = self._unfed[:0]
        if not self._unfed:
            self._selector.unregister(stdin)
            stdin.close()

    def _is_over(self) -> bool:
        """Return whether all is gone; begin to end it if it is time."""
        now = time.monotonic()
        if self._ending is None and (found := how_it_ended(self._process)):
            self._ending, self._ended = found, now
        if self._ender:
            return self._is_gone
        silent = not (self._stdout.is_open or self._stderr.is_open)
        idle = self._idle_s is not None and now >= self._heard + self._idle_s
        left = self._ending and (silent or now >= self._ended + LINGER_S)
        if self._bell.is_rung or left or idle:
            self._stopped = "idle" if idle and not left and not self._bell.is_rung else ""
            self._ender = Thread(target=self._end, daemon=True)
            self._ender.start()
        return False

    def _end(self) -> None:
        """End the program and whatever it started."""
        known = self._ending is None or self._ending != Ending()  # if not, its number may be somebody else's
        end(self._mark, [self._process.pid] if known else [], grace_s=GRACE_S)
        self._is_gone = True
        self._bell.ring()

    def _close(self) -> None:
        """Leave nothing open; whatever went wrong, nothing runs on."""
        if self._ender is None:
            self._end()
        for pipe in (self._process.stdin, self._stdout.pipe, self._stderr.pipe):
            if pipe:
                pipe.close()
        if self._handle is not None:
            os.close(self._handle)
        with suppress(subprocess.TimeoutExpired):  # its threads may still be dying when it looks dead
            self._process.wait(LAST_S)  # from here on its number is anybody's
