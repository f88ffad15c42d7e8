"""A TCP proxy that can hang: while it does, it takes connections and data, and passes nothing on."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator


class HangingProxy:
    """Passes on what it gets, unless it hangs.

    Attributes:
        port: The port it listens on.
        flows: Cleared while it hangs.
    """

    def __init__(self, port: int) -> None:
        """Listen, and keep the port of this machine to pass everything on to."""
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listening.getsockname()[1])
        self.flows = threading.Event()
        self.flows.set()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Close all connections."""
        self.flows.set()
        for each in (self._listening, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += near, far
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.flows.wait()
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def hanging_proxy(port: int) -> Generator[HangingProxy]:
    """Run a proxy for a port of this machine for as long as the block lasts."""
    proxy = HangingProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
