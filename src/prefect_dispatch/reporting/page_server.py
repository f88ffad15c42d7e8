"""HTTP server on the loopback address that shows the kept report pages.

Of several processes with one state folder, one serves the pages of all of them, and another one takes over when it
ends. The port stays the same across restarts, unless another program uses it, so that links in artifacts go on working.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import threading
import time
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from typing_extensions import override

from prefect_dispatch.errors import JobError
from prefect_dispatch.reporting.kept_pages import (
    HOST,
    KEPT_DAYS,
    PageAddress,
    load_address,
    open_page,
    prune_pages,
    save_address,
    server_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from filelock import BaseFileLock

PORTS = range(20_000, 30_000)
"""Ports from which one is chosen; the operating system gives none of them to outgoing connections."""
TRIES = 20
"""Most tries to use the earlier port, and then to use another one."""
RETRY_S = 0.05
"""Seconds between two tries to use the earlier port."""
TAKE_OVER_S = 1.0
"""Seconds between two checks whether the process that serves the pages has ended."""
POLL_S = 0.5
"""Seconds between two checks whether the server is to end."""
TIMEOUT_S = 10.0
"""Seconds that a browser may take to send or to accept data."""
MAX_CONNECTIONS = 32
"""Most connections at the same time; a further one is closed."""
HEADERS = {
    # A page allows its own scripts only, by their digests, and both policies hold. A frame can be forbidden here only.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address of a page is its key
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Headers of every response."""
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]+)?", re.IGNORECASE)
"""The host of a request. A web page whose own name resolves to this machine (DNS rebinding) sends another one."""
_PATH = re.compile(r"/([^/]+)/report\.html")
_log = logging.getLogger("prefect_dispatch")


@contextmanager
def serve_pages(notify: Callable[[str], None]) -> Generator[None]:
    """Serve the kept pages within the body: at once, or when the process that serves them now ends.

    Args:
        notify: Called with a sentence for people: the address, or that another process serves the pages.

    Raises:
        JobError: If the state folder or no port can be used.
    """
    stop = threading.Event()
    try:
        # The lock is the operating system's, and ends with its process, however that ends.
        lock = FileLock(server_folder() / "server.lock", thread_local=False)
        server = _start_server(lock, notify)
    except OSError as error:
        raise JobError(f"Report pages can't be served: {error}.") from None
    if server is None:
        notify("Report pages are served by another process here; this one takes over when that one ends.")

    def take_over() -> None:
        nonlocal server
        while server is None and not stop.wait(TAKE_OVER_S):
            with suppress(JobError, OSError):  # such as a full disk, which may pass
                server = _start_server(lock, notify)

    thread = threading.Thread(target=take_over, name="prefect-dispatch-pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if server is not None:
            server.shutdown()
            server.server_close()
        lock.release()


def _start_server(lock: BaseFileLock, notify: Callable[[str], None]) -> _PageServer | None:
    """Start the server, if no other process serves the pages of this state folder; else return None.

    Raises:
        JobError: If the state folder or no port can be used.
        OSError: If the address can't be stored.
    """
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    server = None
    try:
        before = load_address()
        server = _bind(before)
        port = server.server_address[1]
        if before and before.port != port:
            notify(f"Another program uses port {before.port}: earlier links to report pages don't open any more.")
        address = PageAddress(port=port, secret=before.secret if before else secrets.token_hex(32))
        save_address(address)
        prune_pages()
    except BaseException:
        if server is not None:
            server.server_close()
        lock.release()
        raise
    threading.Thread(target=server.serve_forever, args=(POLL_S,), name="prefect-dispatch-pages", daemon=True).start()
    notify(f"Report pages are served at {address.url}; artifacts of runs link to them.")
    return server


def _bind(before: PageAddress | None) -> _PageServer:
    """Return a server that listens at its earlier port, or else at a free one.

    Raises:
        JobError: If no port is free.
    """
    for attempt in range(2 * TRIES):
        earlier = before if attempt < TRIES else None
        with suppress(OSError):
            return _PageServer((HOST, earlier.port if earlier else secrets.choice(PORTS)), PageRequest)
        if earlier:  # a process that was killed may still be closing it
            time.sleep(RETRY_S)
    raise JobError(f"Report pages can't be served: no port of {HOST} from {PORTS[0]} to {PORTS[-1]} could be used.")


class _PageServer(ThreadingHTTPServer):
    """Server with a limited number of connections."""

    request_queue_size = MAX_CONNECTIONS

    def __init__(self, *address: Any) -> None:  # noqa: ANN401 -- of the base class
        """Listen at an address."""
        self._connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*address)

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # pragma: no cover -- no thread could be started
            self._connections.release()
            raise

    @override
    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error, such as a connection that the browser closed, without the traceback of the base class."""
        _log.debug("A request for a report page failed.", exc_info=True)


class PageRequest(BaseHTTPRequestHandler):
    """Request for a page: GET and HEAD of `/ID/report.html`, nothing else."""

    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        """Send a page."""
        # 1. Refuse what doesn't name this server, and what is no page.
        hosts: list[str] = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, explain=f"Open it at http://{HOST}.")
            return
        path = _PATH.fullmatch(self.path)
        page = open_page(path[1]) if path else None
        if page is None:
            explanation = (
                f"There is no such report page here. A page is kept for {KEPT_DAYS} days at most; the artifact of its "
                "run says whether the report is stored in a folder, too."
            )
            self.send_error(HTTPStatus.NOT_FOUND, explain=explanation)
            return
        # 2. Send it.
        with page:
            self._send_head(HTTPStatus.OK, "text/html; charset=utf-8", page.seek(0, 2))
            if self.command == "GET":
                page.seek(0)
                shutil.copyfileobj(page, self.wfile)

    do_HEAD = do_GET  # noqa: N815 -- of the base class

    @override
    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send an error as plain text; the base class writes HTML."""
        text = f"{explain or HTTPStatus(code).phrase}\n".encode()
        self.close_connection = True
        self._send_head(code, "text/plain; charset=utf-8", len(text))
        if self.command != "HEAD":
            self.wfile.write(text)

    def _send_head(self, code: int, kind: str, size: int) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": kind, "Content-Length": str(size), **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()

    @override
    def version_string(self) -> str:
        return "prefect-dispatch"

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the address of a page is its key."""
