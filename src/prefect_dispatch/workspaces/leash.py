"""git on a leash: as soon as nobody wants any more what it does, it is ended, and whoever waits for it goes on."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator


class Leash:
    """Holds what is run for one purpose, by whichever threads."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._lock = Lock()
        self._held: set[subprocess.Popen[bytes]] = set()
        self._is_pulled = False

    def pull(self) -> None:
        """End what is held, and whatever will be."""
        with self._lock:
            self._is_pulled = True
            for process in self._held:
                process.kill()

    @contextmanager
    def holding(self, process: subprocess.Popen[bytes]) -> Generator[None, None, None]:
        """Hold a process as long as this lasts."""
        with self._lock:
            self._held.add(process)
            if self._is_pulled:
                process.kill()
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(process)


_leash: ContextVar[Leash | None] = ContextVar("prefect-dispatch-leash", default=None)


@contextmanager
def leashed() -> Generator[None, None, None]:
    """Have each git that is run inside on a leash, in threads that are begun inside as well."""
    token = _leash.set(Leash())
    try:
        yield
    finally:
        _leash.reset(token)


@contextmanager
def held(process: subprocess.Popen[bytes]) -> Generator[None, None, None]:
    """Hold a process by the leash that there is, if there is one."""
    leash = _leash.get()
    if leash is None:
        yield
        return
    with leash.holding(process):
        yield


def pull() -> None:
    """Pull the leash that there is, if there is one."""
    if leash := _leash.get():
        leash.pull()
