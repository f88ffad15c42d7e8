"""Agents in containers of podman and docker, where these run; refusals everywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from prefect_dispatch.errors import JobError, TransientError
from prefect_dispatch.executors.coding import container
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.executors.coding.container import find_address
from tests.executors.coding.fake_agents import BRIEF, KEY, asked

if TYPE_CHECKING:
    from tests.workspaces.repositories import Repository

IMAGE = "prefect-dispatch-test:1"
CONFIG = '[containers]\ndefault_ulimits=["nofile=1024:1024","nproc=1024:1024"]\n[engine]\nruntime="runc"\n'
"""Configuration for podman on a machine that may raise no limit."""


def build_root(path: Path) -> None:
    """Write an image's files as an archive: a shell and some programs of this machine, with their libraries."""
    names = ("sh", "cat", "env", "ls", "sleep", "python3")
    programs = [Path(found).resolve() for each in names if (found := shutil.which(each, path="/usr/bin:/bin"))]
    listed = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout  # noqa: S603, S607
    with tarfile.open(path, "w", dereference=True) as archive:
        for place in ("bin", "lib", "lib64", "lib/x86_64-linux-gnu", "usr", "usr/lib"):
            folder = tarfile.TarInfo(place)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        for name, program in zip(names, programs, strict=True):
            archive.add(program, f"bin/{name}")
        for library in sorted(set(re.findall(r"(/\S+\.so\S*)", listed))):
            archive.add(library, library.lstrip("/"))
        for library_folder in Path("/usr/lib").glob("python3.*"):
            archive.add(
                library_folder,
                str(library_folder).lstrip("/"),
                filter=lambda each: None if "test" in each.name else each,
            )


@pytest.fixture(params=["podman", "docker"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An engine that runs here, the only one that is looked for, with an image."""
    name, path = request.param, shutil.which(request.param)
    if path is None:
        pytest.skip(f"{name} is not installed here")
    monkeypatch.setattr(container, "ENGINES", (name,))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")  # else an engine is found in the cache
    if name == "podman":
        (tmp_path / "containers.conf").write_text(CONFIG)
        monkeypatch.setenv("CONTAINERS_CONF", str(tmp_path / "containers.conf"))
    build_root(tmp_path / "image.tar")
    for words in (["import", str(tmp_path / "image.tar"), IMAGE], ["run", "--rm", "--network", "none", IMAGE, "ls"]):
        done = subprocess.run([path, *words], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            pytest.skip(f"{name} runs no container here: {done.stderr[-300:]}")
    return str(name)


def executor_of(repository: Repository, script: str, **more: Any) -> CodingAgent:  # noqa: ANN401 -- fields
    """Return an executor whose agent is a shell script in a container."""
    agent = {"name": "script", "argv": ["sh", "-c", script], "key": "OPENAI_API_KEY"}
    fields: dict[str, Any] = {"agent": agent, "model": "openai/m", "workspace": {"repo": str(repository.path)}}
    fields |= {"pass_env": ["OPENAI_API_KEY"], "container": {"image": IMAGE, "network": "none"}, "idle_s": 60, **more}
    return CodingAgent.model_validate(fields).resolve_paths(repository.path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_an_agent_in_a_container_reaches(engine: str, repository: Repository, tmp_path: Path) -> None:
    """Its checkout, its HOME and TMPDIR, and its key in a variable; no other folder of this machine, and no network."""
    secret = tmp_path / "secret.txt"
    secret.write_text("of the host")
    script = (
        f"echo 'A = 1' > a.py; (echo x > /x) 2>/dev/null && echo ROOT; (cat {secret}) 2>/dev/null; "
        f"(echo x > {repository.path}/a.py) 2>/dev/null; echo x > $HOME/x && echo HOME; "
        f'[ "$OPENAI_API_KEY" ] && echo KEY; ls /sys/class/net'
    )
    reply = asked(executor_of(repository, script))
    assert str(reply.value).split() == ["HOME", "KEY", "lo"]
    assert reply.change is not None
    assert "+A = 1" in reply.change.patch
    assert KEY not in str(reply)
    assert (repository.path / "a.py").read_text() == "A = 0\n"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_only_the_provider_is_reached(engine: str, repository: Repository) -> None:
    """By a relay to the one address in the job; the acceptance command has no network, and runs in a container, too."""
    import asyncio  # noqa: PLC0415 -- for the server alone

    async def serve() -> str:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(4)
            writer.write(b"provider")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        call = f"import socket; s = socket.create_connection(('127.0.0.1', {port})); s.send(b'ping'); print(s.recv(9))"
        fields = {"container": {"image": IMAGE}, "api_base": f"http://127.0.0.1:{port}"}
        executor = await asyncio.to_thread(
            executor_of, repository, f'python3 -c "{call}"; echo "A = 1" > a.py', **fields
        )
        from prefect_dispatch.executors.base import Ask  # noqa: PLC0415
        from prefect_dispatch.models.brief import Command  # noqa: PLC0415
        from prefect_dispatch.models.item import Item  # noqa: PLC0415

        command = Command(run=("sh", "-c", f'! python3 -c "{call}" 2>/dev/null && [ -e /run/prefect-dispatch ]'))
        brief = BRIEF.model_copy(update={"command": command})
        reply = await executor.answer(Ask(brief=brief, item=Item(key="a", value="A")))
        server.close()
        assert reply.problems == ()
        return str(reply.value)

    assert "provider" in asyncio.run(serve())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_silent_agent_is_ended_with_its_container(engine: str, repository: Repository) -> None:
    """No container is left, although the process ignores SIGTERM."""
    if engine == "docker":
        pytest.skip("not established with docker: the documentation says so")
    executor = executor_of(repository, "trap '' TERM; sleep 600; sleep 600", idle_s=3)
    with pytest.raises(TransientError, match="silent"):
        asked(executor)
    left = subprocess.run([engine, "ps", "-aq", "--filter", "name=prefect-dispatch"], capture_output=True, check=True)  # noqa: S603
    assert left.stdout == b""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_read_access_mounts_the_checkout_read_only(engine: str, repository: Repository) -> None:
    """A write fails in the container itself."""
    brief = BRIEF.model_copy(update={"writes": ()})
    reply = asked(executor_of(repository, "(echo x > a.py) 2>/dev/null || echo DENIED", access="read"), brief)
    assert reply.value == "DENIED"


@pytest.mark.slow
def test_an_image_without_the_program_is_refused(engine: str, repository: Repository) -> None:
    """Before anything is spent, and so is an image that isn't there."""
    with pytest.raises(JobError, match="has no program 'missing'"):
        executor_of(repository, "true", program="missing")
    with pytest.raises(JobError, match=rf"executor.container.image: 'nowhere:1'.*{engine} pull nowhere:1"):
        executor_of(repository, "true", container={"image": "nowhere:1"})
    with pytest.raises(JobError, match="path on this machine"):
        executor_of(repository, "true", program="./agent")


def test_no_engine(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says which programs can be installed."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").symlink_to(shutil.which("git") or "git")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(JobError, match="neither podman nor docker"):
        executor_of(repository, "true")


@pytest.mark.parametrize(
    ("model", "base", "host", "port"),
    [
        ("anthropic/x", "", "api.anthropic.com", 443),
        ("openai/x", "http://gateway.example:81/v1", "gateway.example", 81),
        ("openai/x", "http://127.0.0.1", "127.0.0.1", 80),
    ],
)
def test_addresses(model: str, base: str, host: str, port: int) -> None:
    """The provider's own, or that of the job."""
    assert find_address(model, base) == (host, port)


@pytest.mark.parametrize("base", ["", "http://10.0.0.1", "ftp://a.example", "http://a.example:x"])
def test_addresses_that_cannot_be_reached(base: str) -> None:
    """An unknown provider, a plain number, another scheme."""
    with pytest.raises(JobError, match="executor"):
        find_address("unknown/x", base)


def test_what_does_not_go_with_a_container() -> None:
    """Web tools, and Codex's own sandbox."""
    for fields in ({"agent": "claude", "web_search": True}, {"agent": "codex"}):
        with pytest.raises(ValidationError, match="container"):
            CodingAgent.model_validate({"model": "m", "container": {"image": IMAGE}, **fields})


def test_the_image_counts() -> None:
    """Another image may answer otherwise; another limit doesn't."""

    def made(**more: Any) -> str:  # noqa: ANN401 -- fields
        return CodingAgent.model_validate({"model": "m", **more}).fingerprint

    assert len({made(), made(container={"image": "a"}), made(container={"image": "b"})}) == 3
    assert made(container={"image": "a"}) == made(container={"image": "a", "cpus": 1})
