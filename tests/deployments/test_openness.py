"""A server that anybody can use is told of, and what the page on security says of a server holds."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from prefect.settings import PREFECT_API_SSL_CERT_FILE, PREFECT_API_URL, temporary_settings

from prefect_dispatch.cli.commands import main
from prefect_dispatch.deployments import register
from prefect_dispatch.deployments.register import find_open_api
from tests.deployments.conftest import Place
from tests.openai_server import openai_server
from tests.ui import prefect_server

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

AUTH = "admin:correct horse"


@pytest.fixture(scope="module")
def own() -> str:
    """The address of this machine among others."""
    addresses = list(register.own_addresses())
    if not addresses:
        pytest.skip("This machine has no address but the loopback one.")
    return addresses[0]


@contextmanager
def serving(folder: Path, host: str, **settings: str) -> Generator[Place]:
    """Run a server, and what finds it at a loopback address."""
    with prefect_server(folder, host, **settings) as prefect:
        yield Place(prefect.env, folder)


def at(place: Place, host: str) -> str:
    """Return the server's API at another address."""
    return place.env["PREFECT_API_URL"].replace("127.0.0.1", host)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_anybody_can_use_is_told_of(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever the API is used at, it is asked where others would; one line says what to set, and where."""
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path, "0.0.0.0") as place:  # noqa: S104 -- on purpose, for as long as the block lasts
        for host in ("127.0.0.1", "localhost", own):
            with temporary_settings({PREFECT_API_URL: at(place, host)}):
                assert find_open_api() == at(place, own)
        with temporary_settings({PREFECT_API_URL: at(place, own)}):
            assert main(["deploy"]) == 0
        with temporary_settings({PREFECT_API_URL: at(place, f"admin:secret@{own}")}):
            assert find_open_api() == at(place, own)
    told = capsys.readouterr().err
    (line,) = (line for line in told.splitlines() if line.startswith("Warning"))
    assert f"Prefect's API at {at(place, own)} lets anybody run these deployments" in line
    assert "PREFECT_SERVER_API_AUTH_STRING" in line
    assert "PREFECT_API_AUTH_STRING" in line


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_the_page_says_makes_a_server_safe(own: str, tmp_path: Path) -> None:
    """With credentials set, nobody else gets in; no page of another origin does; a write needs a token."""
    settings = {
        "PREFECT_SERVER_API_AUTH_STRING": AUTH,
        "PREFECT_API_AUTH_STRING": AUTH,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": "https://prefect.example.org",
    }
    with serving(tmp_path, "0.0.0.0", **settings) as place:  # noqa: S104 -- on purpose, for as long as the block lasts
        for host in ("127.0.0.1", own):
            with temporary_settings({PREFECT_API_URL: at(place, host)}):
                assert find_open_api() is None
        api, auth = at(place, own), httpx.BasicAuth(*AUTH.split(":"))
        assert httpx.get(f"{api}/admin/version").status_code == 401
        assert httpx.post(f"{api}/deployments/filter", json={}).status_code == 403  # it has no token either
        assert httpx.get(f"{api}/health").status_code == 200  # this alone is anybody's
        assert httpx.post(f"{api}/deployments/filter", json={}, auth=auth).status_code == 403  # without a token
        for origin, allowed in (("https://prefect.example.org", True), ("https://elsewhere.example.org", False)):
            asked = httpx.get(f"{api}/admin/version", headers={"Origin": origin}, auth=auth)
            assert (asked.headers.get("Access-Control-Allow-Origin") == origin) is allowed
        place.run("prefect_dispatch", "deploy")  # Prefect's client brings credentials and token
        wrong = Place({**place.env, "PREFECT_API_AUTH_STRING": ""}, tmp_path)
        assert "set PREFECT_API_AUTH_STRING to what the server has" in wrong.run("prefect_dispatch", "deploy", code=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_on_a_loopback_address_is_nobody_elses(server: Place, own: str) -> None:
    """It is open, and can't be reached: no warning. Yet what a page in a browser may do is why the settings matter."""
    with temporary_settings({PREFECT_API_URL: server.env["PREFECT_API_URL"]}):
        assert find_open_api() is None
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{at(server, own)}/health")
    asked = httpx.get(f"{server.env['PREFECT_API_URL']}/admin/version", headers={"Origin": "https://any.example.org"})
    assert asked.headers["Access-Control-Allow-Origin"] == "*"  # as it comes, any page may read


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("", id="a-server-for-one-process"),
        pytest.param("https://api.prefect.cloud/api/accounts/1/workspaces/2", id="cloud"),
        pytest.param("http://127.0.0.1:9/api", id="nothing-there"),
        pytest.param("http://no-such-host.invalid:4200/api", id="no-such-host"),
    ],
)
def test_no_warning_without_a_proof(url: str) -> None:
    """Nothing is said of an API that hasn't answered, nor of Prefect Cloud."""
    with temporary_settings({PREFECT_API_URL: url or None}):
        assert find_open_api() is None


def test_what_answers_but_is_no_prefect_is_not_told_of(own: str) -> None:
    """A proxy's page to sign in is no open API; a certificate of one's own is heeded."""
    with openai_server() as other:
        assert not register.is_open_api(httpx.URL(other.url))
    with temporary_settings({PREFECT_API_SSL_CERT_FILE: "/no/such/file.pem"}):
        assert not register.is_open_api(httpx.URL("http://127.0.0.1:9/api"))
