"""The page server shows kept report pages to a browser on the machine, and nothing else to anybody."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

import httpx
import pytest

from prefect_dispatch.errors import JobError
from prefect_dispatch.reporting import kept_pages, page_server
from prefect_dispatch.reporting.kept_pages import PageAddress, keep_page, load_address, open_page, save_address
from prefect_dispatch.reporting.page_server import serve_pages
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

CLIENT = httpx.Client(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # without certificates, which take time to load
PAGE = ["<!doctype html>", "<title>é</title>"]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(page_server, "TAKE_OVER_S", 0.01)
    monkeypatch.setattr(page_server, "POLL_S", 0.01)
    return tmp_path / "state"


@contextmanager
def served() -> Generator[PageAddress]:
    """Serve pages within the block."""
    with serve_pages(lambda _: None):
        yield address()


def address() -> PageAddress:
    """Return the address of the page server."""
    found = load_address()
    assert found
    return found


def send(request: bytes) -> bytes:
    """Send bytes to the server; return all that comes back."""
    with socket.create_connection(("127.0.0.1", address().port)) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def is_shown(link: str) -> bool:
    """Return whether a page is shown."""
    try:
        return CLIENT.get(link).is_success
    except httpx.TransportError:
        return False


def pages(state: Path) -> list[str]:
    """Return the names of the kept pages."""
    return sorted(file.name for file in (state / "reports" / "pages").iterdir())


def test_a_page_is_shown_at_its_link_and_stays_there_after_a_restart(state: Path) -> None:
    """At the same port with the same id, only for this user; a page of the same run replaces it."""
    with served() as first:
        link = keep_page(first, "run", PAGE)
        found = CLIENT.get(link)
        assert (found.status_code, found.text) == (200, "".join(PAGE))
        assert found.headers["content-type"] == "text/html; charset=utf-8"
        for name, value in page_server.HEADERS.items():
            assert found.headers[name] == value
        assert "Python" not in found.headers["server"]
        head = CLIENT.head(link)
        assert (head.status_code, head.headers["content-length"], head.content) == (200, "32", b"")
        assert CLIENT.get(link.replace("127.0.0.1", "localhost")).is_success
    with pytest.raises(httpx.TransportError):
        CLIENT.get(link)
    with served() as second:
        assert second == first
        assert CLIENT.get(link).is_success
        assert keep_page(second, "run", ["later"]) == link
        assert CLIENT.get(link).text == "later"
    for file, mode in ((state, 0o700), (state / "reports", 0o700), (state / "reports" / "address.json", 0o600)):
        assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/{id}",
        "/{id}/",
        "/{id}/report.json",
        "/{id}/report.html/",
        "/{id}/report.html?a=b",
        "/{id}/../{id}/report.html",
        "//{id}/report.html",
        "/pages/{id}",
        "/../address.json",
        "/%2e%2e/address.json",
        "/..%2faddress.json/report.html",
        "/../../../../../../etc/passwd",
        "/" + "0" * 64 + "/report.html",
        "/{upper}/report.html",
        "/{short}/report.html",
        "/{id}%00/report.html",
        "http://127.0.0.1/{id}/report.html",
    ],
)
def test_any_other_path_finds_nothing(path: str) -> None:
    """Wrong ids and paths out of the folder get the same plain text, without a listing."""
    with served() as server:
        own = server.page_id("run")
        keep_page(server, "run", PAGE)
        path = path.format(id=own, upper=own.upper(), short=own[:-1])
        found = send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        if path.startswith("//"):  # the base class takes several slashes for one, as a link with them is none to a host
            assert b" 200 " in found
            return
        assert found.startswith(b"HTTP/1.0 404 ")
        assert b"text/plain" in found
        assert found.endswith(b"whether the report is stored in a folder, too.\n")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Host: evil.example", 421),
        ("Host: evil.example:{port}", 421),
        ("Host: 127.0.0.1.evil.example", 421),
        ("Host: 127.0.0.1@evil.example", 421),
        ("Host: 127.0.0.1\r\nHost: evil.example", 421),
        ("Host: [", 421),
        ("Host: ", 421),
        ("Accept: */*", 421),
        ("Host: LOCALHOST:1", 200),
        ("Host: 127.0.0.1:{port}", 200),
    ],
)
def test_a_request_under_another_host_name_is_refused(head: str, status: int) -> None:
    """As it comes from a web page whose name resolves to this machine."""
    with served() as server:
        keep_page(server, "run", PAGE)
        head = head.format(port=server.port)
        found = send(f"GET /{server.page_id('run')}/report.html HTTP/1.1\r\n{head}\r\n\r\n".encode())
        assert found.startswith(f"HTTP/1.0 {status} ".encode())
        assert (b"<title>" in found) is (status == 200)


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("POST {path} HTTP/1.1", 501),
        ("DELETE {path} HTTP/1.1", 501),
        ("OPTIONS {path} HTTP/1.1", 501),
        ("GET {path} HTTP/9.9", 505),
        ("GET", 400),
        ("GET <script>alert(1)</script> x HTTP/1.1", 400),
        (f"GET /{'a' * 70_000} HTTP/1.1", 414),
        ("HEAD /nothing HTTP/1.1", 404),
    ],
)
def test_any_other_request_is_refused_as_plain_text(request_line: str, status: int) -> None:
    """With the same headers, and nothing of the request."""
    with served() as server:
        keep_page(server, "run", PAGE)
        line = request_line.format(path=f"/{server.page_id('run')}/report.html")
        found = send(f"{line}\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert b"<script" not in found
        if HTTPStatus(status).phrase.encode() + b"\n" != found:  # without a version of HTTP there are no headers
            assert found.startswith(f"HTTP/1.0 {status} ".encode())
            assert b"nosniff" in found


def test_neither_links_nor_pipes_nor_folders_are_pages(state: Path, tmp_path: Path) -> None:
    """A link that leads out of the folder is not followed, and a pipe keeps no request waiting."""
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    with served() as server:
        keep_page(server, "run", PAGE)
        folder = state / "reports" / "pages"
        names = [server.page_id(kind) for kind in ("link", "pipe", "folder", "dangling")]
        (folder / names[0]).symlink_to(tmp_path / "secret")
        os.mkfifo(folder / names[1])
        (folder / names[2]).mkdir()
        (folder / names[3]).symlink_to(tmp_path / "missing")
        for name in names:
            assert open_page(name) is None
            assert CLIENT.get(f"{server.url}/{name}/report.html").status_code == 404


def test_a_folder_that_vanishes_is_made_again(state: Path) -> None:
    """Links to what it held find nothing; later pages are shown."""
    with served() as server:
        link = keep_page(server, "run", PAGE)
        shutil.rmtree(state / "reports" / "pages")
        assert CLIENT.get(link).status_code == 404
        assert keep_page(server, "run", PAGE) == link
        assert CLIENT.get(link).is_success


def test_pages_are_bounded_by_their_number_size_and_age(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest ones go first; what can't be removed fails no run."""
    monkeypatch.setattr(kept_pages, "MAX_PAGES", 3)
    monkeypatch.setattr(kept_pages, "MAX_TOTAL_BYTES", 100)
    server = PageAddress(port=1, secret="0" * 64)
    folder = state / "reports" / "pages"
    for number in range(20):
        keep_page(server, str(number), ["x"])
        written = time.time() - 100 + number
        os.utime(folder / server.page_id(str(number)), (written, written))
    assert pages(state) == sorted(server.page_id(str(number)) for number in (17, 18, 19))
    keep_page(server, "large", ["x" * 99])
    assert pages(state) == sorted(server.page_id(name) for name in ("large", "19"))
    old = time.time() - kept_pages.KEPT_DAYS * 86_400 - 60
    os.utime(folder / server.page_id("19"), (old, old))
    (folder / "folder").mkdir()
    os.utime(folder / "folder", (old, old))
    kept_pages.prune_pages()
    assert pages(state) == sorted([server.page_id("large"), "folder"])


def test_one_process_serves_and_another_takes_over(state: Path) -> None:
    """At the same port, when the first one has ended; each says what it does."""
    said: list[str] = []
    with serve_pages(said.append):
        assert len(said) == 1
    with ExitStack() as second:
        with ExitStack() as first:
            first.enter_context(serve_pages(said.append))
            link = keep_page(address(), "run", PAGE)
            second.enter_context(serve_pages(said.append))
            assert said[-1].startswith("Report pages are served by another process here")
        wait_until(lambda: len(said) == 4, "the second one serves")
        assert CLIENT.get(link).is_success
    assert (
        said[0] == said[1] == said[3] == f"Report pages are served at {address().url}; artifacts of runs link to them."
    )
    assert state.exists()


def test_a_process_that_stood_by_ends_without_having_served() -> None:
    """And leaves the server of the other one alone."""
    with served() as server:
        with serve_pages(lambda _: None):
            pass
        assert CLIENT.get(keep_page(server, "run", PAGE)).is_success


def test_a_port_that_another_program_uses_is_changed_and_said() -> None:
    """The secret stays, so that the links of later pages have the same ids; earlier links are said to be lost."""
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        save_address(PageAddress(port=taken, secret="ab" * 32))
        with serve_pages(said.append):
            assert address().port in page_server.PORTS
            assert address().secret == "ab" * 32
            assert CLIENT.get(keep_page(address(), "run", PAGE)).is_success
    assert said[0] == f"Another program uses port {taken}: earlier links to report pages don't open any more."


def test_without_a_free_port_nothing_is_served_and_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process can serve afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with monkeypatch.context() as patch:
            patch.setattr(page_server, "PORTS", range(taken, taken + 1))
            with pytest.raises(JobError, match=rf"no port of 127\.0\.0\.1 from {taken} to {taken} could be used"):
                serve_pages(lambda _: None).__enter__()
    with served():
        pass


def test_an_address_that_can_not_be_stored_is_an_error_in_words(state: Path) -> None:
    """Nothing is left that would keep another process from serving."""
    (state / "reports" / "address.json").mkdir(parents=True)
    with pytest.raises(JobError, match=r"Report pages can't be served: .*address\.json"):
        serve_pages(lambda _: None).__enter__()
    (state / "reports" / "address.json").rmdir()
    with served():
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"port": 0, "secret": ""}', '{"port": 80, "secret": "../x"}'])
def test_a_damaged_address_is_replaced(state: Path, content: str) -> None:
    """Runs link to nothing until then."""
    (state / "reports").mkdir(parents=True)
    (state / "reports" / "address.json").write_text(content, encoding="utf-8")
    assert load_address() is None
    with served() as server:
        assert len(server.secret) == 64


def test_too_many_connections_are_closed_and_a_silent_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before them go on."""
    monkeypatch.setattr(page_server, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(page_server.PageRequest, "timeout", 0.3)
    with served() as server, ExitStack() as stack:
        link = keep_page(server, "run", PAGE)
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(3)]
        assert silent[2].recv(1) == b""
        assert [each.recv(1) for each in silent[:2]] == [b"", b""]
        wait_until(lambda: is_shown(link), "a connection is free")


def test_a_browser_that_leaves_early_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """It is no error of the server."""
    with served() as server:
        link = keep_page(server, "run", ["x" * 20_000_000])
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            path = link.removeprefix(server.url)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            connection.recv(10)
        assert CLIENT.get(link).is_success
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_after_kill_9_another_process_serves_at_the_same_port(state: Path) -> None:
    """The lock and the port are those of the dead process, and free at once."""
    script = "from prefect_dispatch.cli.commands import main; main(['reports'])"
    env = {**os.environ, "PREFECT_DISPATCH_STATE": str(state)}

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603 -- our own command
            [sys.executable, "-c", script], env=env, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr
        assert process.stderr.readline().startswith("Report pages are served at http://127.0.0.1:")
        return process

    with start() as first:
        link = keep_page(address(), "run", PAGE)
        assert CLIENT.get(link).is_success
        first.kill()
    with start() as second:
        assert CLIENT.get(link).is_success
        second.send_signal(signal.SIGINT)
        assert second.wait(60) == 0
