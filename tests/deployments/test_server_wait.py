"""A Prefect server that is still starting is waited for, and for a bounded time."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_dispatch.cli.commands import main
from tests.deployments.conftest import ROOT, Place
from tests.deployments.test_deploy import job
from tests.openai_server import openai_server
from tests.ui import environment, free_port

if TYPE_CHECKING:
    from pathlib import Path

    from prefect.client.orchestration import SyncPrefectClient


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_deploy_waits_for_a_server_that_starts_in_the_background(tmp_path: Path) -> None:
    """Begun before the server, it says that it waits, and registers once the server answers."""
    port = free_port()
    place = Place({**environment(tmp_path, port), "PYTHONPATH": str(ROOT / "src")}, tmp_path)
    server = [place.python, "-W", "ignore", "-m", "prefect", "server"]
    said = tmp_path / "said"
    waiting = {"PREFECT_DISPATCH_SERVER_WAIT_S": "240"}
    with replace(place, env={**place.env, **waiting}).running("prefect_dispatch", "deploy", job(tmp_path)) as deploy:
        place.wait(lambda: "does not answer yet" in said.read_text(), "it says that it waits")
        started = subprocess.run(  # noqa: S603 -- our own command
            [*server, "start", "--background", "--host", "127.0.0.1", "--port", str(port)],
            env=place.env,
            cwd=tmp_path,
            check=False,
            capture_output=True,
        )
        try:
            assert started.returncode == 0, started.stderr
            place.wait(lambda: deploy.poll() is not None, "it has registered")
        finally:
            subprocess.run([*server, "stop"], env=place.env, cwd=tmp_path, check=False, capture_output=True)  # noqa: S603
    assert deploy.returncode == 0, said.read_text()
    assert "dispatch/terms" in said.read_text()
    assert said.read_text().count("does not answer yet") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["deploy", "serve", "automations"])
def test_the_wait_is_bounded(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then the command refuses, and says how to start a server."""
    monkeypatch.setenv("PREFECT_DISPATCH_SERVER_WAIT_S", "0.1")
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # restored after `serve` has changed it
    with temporary_settings({PREFECT_API_URL: f"http://admin:secret@127.0.0.1:{free_port()}/api"}):
        assert main([command, *(["--apply"] if command == "automations" else [job(tmp_path)])]) == 2
    said = capsys.readouterr().err
    assert "does not answer yet" in said
    assert "waiting up to 0.1 s for it" in said
    assert "start it with `prefect server start`, or set PREFECT_API_URL" in said
    assert "secret" not in said


def test_a_proxy_may_stand_before_a_server_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a proxy answers for it is waited out; what the server answers then counts."""
    looks = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal looks
        if not request.path.endswith("/health"):
            return web.json_response({"detail": "in conflict"}, status=409)
        looks += 1
        return web.Response(status=504 if looks == 1 else 200)

    def routes(app: web.Application) -> None:
        app.router.add_route("*", "/starting/{path:.*}", answer)

    monkeypatch.setenv("PREFECT_DISPATCH_SERVER_WAIT_S", "120")
    with (
        openai_server(routes=routes) as server,
        temporary_settings({PREFECT_API_URL: server.url.replace("/v1", "/starting/api")}),
    ):
        assert main(["deploy", job(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "does not answer yet" in said
    assert said.endswith("refuses it (409): in conflict\n")
    assert looks == 2


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_deploying_registers_the_blocks_that_forms_offer(tmp_path: Path) -> None:
    """Nobody has to run `prefect block register` once the server answers."""
    slugs = ("llm-credentials", "dispatch-profile")
    with get_client(sync_client=True) as client:
        for slug in slugs:
            if _has(client, slug):
                client.delete_block_type(client.read_block_type_by_slug(slug).id)
        assert main(["deploy", job(tmp_path), "--name", "with-blocks"]) == 0
        assert all(_has(client, slug) for slug in slugs)


def _has(client: SyncPrefectClient, slug: str) -> bool:
    try:
        client.read_block_type_by_slug(slug)
    except ObjectNotFound:
        return False
    return True
