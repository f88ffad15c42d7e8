"""Agents in containers of podman, where it runs; refusals, and how podman is called, everywhere."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from pydantic import ValidationError

from prefect_dispatch.errors import JobError, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.base import Ask
from prefect_dispatch.executors.coding import container, provider_relay
from prefect_dispatch.executors.coding.adapter import Launch
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.executors.coding.container import find_address
from prefect_dispatch.executors.coding.session import remove_files, write_files
from prefect_dispatch.models.brief import Command
from prefect_dispatch.models.item import Item
from prefect_dispatch.processes.state_folder import lease, state_folder
from tests.executors.coding.fake_agents import BRIEF, ITEM, KEY, FakeAgent, asked, claude_end, failed
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.workspaces.repositories import Repository

CONFIG = '[containers]\ndefault_ulimits=["nofile=1024:1024","nproc=1024:1024"]\n[engine]\nruntime="runc"\n'
"""Configuration for podman on a machine that may raise no limit."""
HOLDS_ON = "trap '' TERM; echo started > started; exec env -i /bin/sleep 600"
"""Ignores requests to end, and takes off every mark in its environment; it is the first process of its container."""
RUNS = (
    "import asyncio, sys\n"
    "from prefect_dispatch.executors.base import Ask\n"
    "from prefect_dispatch.executors.coding.coding_agent import CodingAgent\n"
    "executor = CodingAgent.model_validate_json(sys.argv[1])\n"
    "asyncio.run(executor.answer(Ask.model_validate_json(sys.argv[2])))\n"
)
"""A run, as the text of a program."""


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


def podman(*words: str) -> str:
    """Return what podman prints."""
    return subprocess.run(["podman", *words], capture_output=True, text=True, check=True).stdout  # noqa: S603, S607


def containers() -> list[str]:
    """Return the names of the containers of runs with this test's state folder."""
    return podman(
        "ps", "--all", "--filter", f"label=prefect-dispatch.state={state_folder()}", "--format", "{{.Names}}"
    ).split()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of podman."""
    path = tmp_path_factory.mktemp("podman") / "containers.conf"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def built(config: Path) -> Generator[str, None, None]:
    """An image of this machine's programs; skips where podman runs no container."""
    path, name = shutil.which("podman"), f"localhost/prefect-dispatch-test:{os.getpid()}"
    if path is None:
        pytest.skip("podman is not installed here")
    env = {**os.environ, "CONTAINERS_CONF": str(config)}
    build_root(config.with_name("image.tar"))
    try:
        for words in (
            ["import", str(config.with_name("image.tar")), name],
            ["run", "--rm", "--network", "none", name, "ls"],
        ):
            done = subprocess.run([path, *words], env=env, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode:
                pytest.skip(f"podman runs no container here: {done.stderr[-300:]}")
        yield name
    finally:
        subprocess.run([path, "rmi", "--force", name], env=env, capture_output=True, check=False)  # noqa: S603


@pytest.fixture
def image(built: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The image, for podman as it is configured here."""
    monkeypatch.setenv("CONTAINERS_CONF", str(config))
    return built


def executor_of(repository: Repository, script: str, image: str = "any", **more: Any) -> CodingAgent:  # noqa: ANN401 -- fields
    """Return an executor whose agent is a shell script in a container."""
    agent = {"name": "script", "argv": ["sh", "-c", script], "key": "OPENAI_API_KEY"}
    fields: dict[str, Any] = {"agent": agent, "model": "openai/m", "workspace": {"repo": str(repository.path)}}
    fields |= {"pass_env": ["OPENAI_API_KEY"], "container": {"image": image, "network": "none"}, "idle_s": 60, **more}
    return CodingAgent.model_validate(fields).resolve_paths(repository.path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_an_agent_in_a_container_reaches(image: str, repository: Repository, tmp_path: Path) -> None:
    """Its checkout, its HOME and TMPDIR, and its key in a variable; no other folder of this machine, and no network."""
    secret = tmp_path / "secret.txt"
    secret.write_text("of the host")
    script = (
        f"cat setup.log; echo 'A = 1' > a.py; (echo x > /x) 2>/dev/null && echo ROOT; (cat {secret}) 2>/dev/null; "
        f"(echo x > {repository.path}/a.py) 2>/dev/null; echo x > $HOME/x && echo HOME; "
        f"echo x > $TMPDIR/x && echo TMP; "
        f"(echo x > {repository.path}/.git/objects/x) 2>/dev/null && echo OBJECTS; "
        f'[ "$OPENAI_API_KEY" ] && echo KEY; ls /sys/class/net'
    )
    setup = ["sh", "-c", f'[ -e /run/prefect-dispatch ] && ! [ "$OPENAI_API_KEY" ] && ls {secret.parent} > setup.log']
    workspace = {"repo": str(repository.path), "setup": {"run": setup}}
    reply = asked(executor_of(repository, script, image, workspace=workspace))
    assert str(reply.value).split() == ["repo", "HOME", "TMP", "KEY", "lo"]  # of the repository, its objects alone
    assert reply.change is not None
    assert "+A = 1" in reply.change.patch
    assert KEY not in str(reply)
    assert (repository.path / "a.py").read_text() == "A = 0\n"
    assert containers() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_items_and_keys_are_no_arguments(image: str, repository: Repository) -> None:
    """What podman is called with, which every user of the machine can read, holds neither; no shell reads an item."""
    item = Item(key="a", value="$(touch a.py); --privileged")
    script = "cat $PROMPT > prompt 2>/dev/null; cat > seen; echo started > started; sleep 600"

    async def look() -> list[list[str]]:
        running = asyncio.ensure_future(executor_of(repository, script, image).answer(Ask(brief=BRIEF, item=item)))
        await asyncio.to_thread(wait_until, lambda: any(started()), "the agent runs")
        (name,) = containers()
        lines = [each.cmdline() for each in psutil.process_iter() if each.status() != psutil.STATUS_ZOMBIE]
        running.cancel()
        await asyncio.wait([running])
        return [line for line in lines if name in line]

    calls = asyncio.run(look())
    assert calls
    assert not [word for line in calls for word in line if KEY in word or "$(touch" in word or "--privileged" in word]
    assert containers() == []


def started() -> list[Path]:
    """Return what agents have written once they had begun."""
    return [*(state_folder() / "leases").glob("*/work/started")]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_only_the_provider_is_reached(image: str, repository: Repository) -> None:
    """By a relay to the one address in the job; the acceptance command has no network, and runs in a container, too."""

    async def serve() -> str:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(4)
            writer.write(b"provider")
            writer.close()

        server, other = [await asyncio.start_server(answer, "127.0.0.1", 0) for _ in range(2)]
        port, closed = (each.sockets[0].getsockname()[1] for each in (server, other))
        call = "import socket; s = socket.create_connection(('127.0.0.1', {})); s.send(b'ping'); print(s.recv(9))"
        fields = {"container": {"image": image}, "api_base": f"http://127.0.0.1:{port}"}
        script = (
            f'python3 -c "{call.format(port)}"; python3 -c "{call.format(closed)}" 2>/dev/null || echo CLOSED; '
            "echo 'A = 1' > a.py"
        )
        executor = await asyncio.to_thread(executor_of, repository, script, image, **fields)
        command = Command(
            run=("sh", "-c", f'! python3 -c "{call.format(port)}" 2>/dev/null && [ -e /run/prefect-dispatch ]')
        )
        brief = BRIEF.model_copy(update={"command": command})
        reply = await executor.answer(Ask(brief=brief, item=Item(key="a", value="A")))
        server.close()
        other.close()
        assert reply.problems == ()
        return str(reply.value)

    assert asyncio.run(serve()).split() == ["b'provider'", "CLOSED"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_name_of_a_provider_is_that_of_the_relay(image: str, repository: Repository) -> None:
    """At the usual port, too; no other name is known."""
    connects = "import socket; socket.create_connection(('{}', 443)).close(); print('{}')"
    tries = "; ".join(
        f'python3 -c "{connects.format(host, host)}" 2>/dev/null' for host in ("api.openai.com", "api.anthropic.com")
    )
    reply = asked(executor_of(repository, f"{tries}; echo 'A = 1' > a.py", image, container={"image": image}))
    assert reply.value == "api.openai.com"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_silent_agent_is_ended_with_its_container(image: str, repository: Repository) -> None:
    """No container is left, although its process ignores SIGTERM and has no mark."""
    with pytest.raises(TransientError, match="silent"):
        asked(executor_of(repository, HOLDS_ON, image, idle_s=1))
    assert containers() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_time_limit_ends_the_container(image: str, repository: Repository) -> None:
    """It cancels the answer, as the end of a run does: the container is gone when that is done."""
    executor = executor_of(repository, HOLDS_ON, image)

    async def limited() -> None:
        running = asyncio.ensure_future(executor.answer(Ask(brief=BRIEF, item=ITEM)))
        await asyncio.to_thread(wait_until, lambda: any(started()), "the agent runs")
        assert len(containers()) == 1
        await asyncio.wait_for(running, timeout=0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(limited())
    assert containers() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_death_of_a_run_is_that_of_its_container(image: str, repository: Repository) -> None:
    """By `kill -9`: the watchdog removes it, although its process ignores SIGTERM and has no mark."""
    executor = executor_of(repository, HOLDS_ON, image)
    words = (executor.model_dump_json(), Ask(brief=BRIEF, item=ITEM).model_dump_json())
    with subprocess.Popen([sys.executable, "-c", RUNS, *words], start_new_session=True) as process:  # noqa: S603 -- a fixed text
        wait_until(lambda: any(started()), "the agent runs")
        (name,) = containers()
        first = psutil.Process(int(podman("inspect", "--format", "{{.State.Pid}}", name)))
        assert first.cmdline() == ["/bin/sleep", "600"]
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not containers(), "the container is removed")
    assert not first.is_running()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_next_start_removes_what_is_left(image: str, repository: Repository) -> None:
    """Such as after the death of the watchdog itself; a container of a living run stays."""
    label = f"prefect-dispatch.state={state_folder()}"
    with lease() as mine:
        for owner in (mine.id, "0123456789ab"):
            podman(
                "run",
                "--detach",
                "--stop-timeout",
                "0",
                "--label",
                label,
                "--network",
                "none",
                "--name",
                f"prefect-dispatch-{owner}-1",
                image,
                "sleep",
                "600",
            )
        asyncio.run(executor_of(repository, "true", image).warm_up())
        assert containers() == [f"prefect-dispatch-{mine.id}-1"]
    asyncio.run(executor_of(repository, "true", image).warm_up())
    assert containers() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_memory_is_limited(image: str, repository: Repository) -> None:
    """A program that needs more is killed, and the agent goes on."""
    script = "python3 -c 'b = bytearray(400 << 20)' 2>/dev/null || echo KILLED; echo 'A = 1' > a.py"
    limited = {"image": image, "network": "none", "memory_gb": 0.1}
    assert asked(executor_of(repository, script, image, container=limited)).value == "KILLED"
    assert asked(executor_of(repository, script.replace("<<", "//"), image)).value != "KILLED"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_read_access_mounts_the_checkout_read_only(image: str, repository: Repository) -> None:
    """A write fails in the container itself; without a repository there is an empty folder."""
    brief = BRIEF.model_copy(update={"writes": ()})
    script = "(echo x > a.py) 2>/dev/null || echo DENIED"
    assert asked(executor_of(repository, script, image, access="read"), brief).value == "DENIED"
    assert asked(executor_of(repository, f"{script}; echo WROTE", image, workspace=None), brief).value == "WROTE"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_image_that_lacks_something_is_refused(image: str, repository: Repository, tmp_path: Path) -> None:
    """Before anything is spent: the program, Python for the relay, the image itself."""
    with pytest.raises(JobError, match="has no program 'missing'"):
        executor_of(repository, "true", image, program="missing")
    with pytest.raises(JobError, match=r"executor.container.image: 'nowhere:1' isn't .*: podman pull nowhere:1"):
        executor_of(repository, "true", "nowhere:1")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    podman("import", str(tmp_path / "empty.tar"), f"{image}-empty")
    try:
        with pytest.raises(JobError, match=r"executor.container: podman can't run a container .* sh -c true"):
            executor_of(repository, "true", f"{image}-empty")
    finally:
        podman("rmi", "--force", f"{image}-empty")


PLAYED = """#!/bin/sh
shift
[ "$1" = run ] || {{ echo "$@" >> {folder}/calls; exit {exists}; }}
printf '%s\\n' "$@" > {folder}/run
{fails}
while [ "$1" != --entrypoint ]; do [ "$1" = --pidfile ] && echo 1 > "$2"; shift; done
program=$2; shift 3
exec "$program" "$@"
"""
"""Stands for podman, and runs programs on this machine."""


@pytest.fixture
def played(programs: Path) -> Path:
    """A program that plays podman; returned is its folder."""
    play(programs)
    return programs


def play(programs: Path, fails: str = "", exists: int = 0) -> None:
    """Have podman do something in place of running a container, and say whether it has the image."""
    (programs / "podman").write_text(PLAYED.format(folder=programs, fails=fails, exists=exists))
    (programs / "podman").chmod(0o755)


def test_how_podman_is_called(played: Path, repository: Repository) -> None:
    """For this machine's containers alone; values are in variables, and the container is removed by its name."""
    script = 'cat > /dev/null; [ "$OPENAI_API_KEY" ] && echo "A = 1" > a.py'
    item = Item(key="a", value="$(touch b.py); --privileged")
    reply = asked(
        executor_of(repository, script, workspace={"repo": str(repository.path), "setup": {"run": "true"}}), item=item
    )
    assert reply.change is not None
    (words,) = [each.read_text().splitlines() for each in played.glob("run")]
    assert {"--rm", "--read-only", "OPENAI_API_KEY", "PREFECT_DISPATCH_GUARD", "ITEM"} - {*words} == {"ITEM"}
    assert not [word for word in words if KEY in word or "touch" in word]
    mounts = [word.split(",")[1:] for word in words if word.startswith("type=bind")]
    state, objects = state_folder(), repository.path / ".git" / "objects"
    assert [each[0].removeprefix("src=") for each in mounts if str(state) not in each[0]] == [str(objects)]
    assert [each[2:] for each in mounts if str(objects) in each[0]] == [["readonly"]]
    assert (played / "calls").read_text().count("rm --force --ignore --volumes prefect-dispatch-") == 2


def test_a_container_that_cannot_be_made(played: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure of podman is tried again; the same exit code of an agent in a container is the agent's own."""
    executor = executor_of(repository, "echo 'Error: no' >&2; exit 125")
    assert "script ended with exit code 125" in str(failed(executor, RejectedError))
    play(played, fails="echo 'Error: no' >&2; exit 125")
    error = failed(executor, TransientError)
    assert (error.kind, error.usage.requests if error.usage else None) == ("container", 0)
    assert "podman couldn't run a container: Error: no" in str(error)
    with monkeypatch.context() as full:
        full.setattr(shutil, "copyfile", refuse)
        assert failed(executor, TransientError).kind == "container"
    (played / "podman").unlink()
    (played / "git").symlink_to(shutil.which("git") or "git")
    monkeypatch.setenv("PATH", str(played))
    assert failed(executor, TerminalError).kind == "container"


def refuse(*_: object) -> None:
    """Fail like a full disk."""
    raise OSError(28, "No space left on device")


def test_a_folder_that_cannot_be_mounted(
    played: Path, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comma would begin another option of the mount."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "a,readonly"))
    error = failed(executor_of(repository, "true"), TerminalError)
    assert error.kind == "container"
    assert "comma" in str(error)


@pytest.mark.parametrize("fails", ["echo 'Error: no' >&2; exit 125", "exit 1", "exec sleep 600"])
def test_a_podman_that_runs_nothing_is_refused(
    fails: str, played: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it said, before anything is spent."""
    play(played, fails=fails)
    monkeypatch.setattr(container, "CALL_S", 0.5 if "sleep" in fails else 60.0)
    reason = {"e": "Error: no", "1": "exit code 1", "0": "it didn't answer"}["e" if "Error" in fails else fails[-1]]
    with pytest.raises(JobError, match=rf"executor.container: podman can't run .*\({reason}.*leave 'container' out"):
        executor_of(repository, "true")


def test_a_podman_that_is_broken_is_refused(played: Path, repository: Repository) -> None:
    """It isn't taken for an image that is missing."""
    play(played, exists=125)
    with pytest.raises(JobError, match=r"executor.container: podman can't run .*\(exit code 125\)"):
        executor_of(repository, "true")


@pytest.mark.parametrize(
    ("code", "match"),
    [(71, "executor.container.image: .* has no program 'sh'"), (72, "executor.container.network: 'providers' takes")],
)
def test_an_image_without_a_program(code: int, match: str, played: Path, repository: Repository) -> None:
    """It is refused before anything is spent."""
    play(played, fails=f"exit {code}")
    with pytest.raises(JobError, match=match):
        executor_of(repository, "true", api_base="http://127.0.0.1", container={"image": "any"})


def test_the_version_in_an_image(played: Path, repository: Repository) -> None:
    """It is checked like that of a program on this machine."""
    fields: dict[str, Any] = {"agent": "claude", "model": "claude-sonnet-4-5", "pass_env": ["ANTHROPIC_API_KEY"]}
    play(played, fails="echo '1.0.1 (Claude Code)'; exit 0")
    with pytest.raises(JobError, match="older than what is understood"):
        executor_of(repository, "true", **fields)
    play(played, fails="echo '2.1.197 (Claude Code)'; exit 0")
    assert executor_of(repository, "true", **fields).executable == "claude"
    with pytest.raises(JobError, match="path on this machine"):
        executor_of(repository, "true", program="./agent")


def test_without_podman(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what can be installed, and why docker isn't enough."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").symlink_to(shutil.which("git") or "git")
    (tmp_path / "bin" / "docker").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(
        JobError, match=r"executor.container: there is no podman in PATH .docker isn't supported.*apt install"
    ):
        executor_of(repository, "true")


def test_what_is_left_is_removed_by_its_lease(
    played: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start of the next run, unless the lease is held."""
    executor = executor_of(repository, "true")
    with lease() as mine:
        names = f"prefect-dispatch-{mine.id}-1 prefect-dispatch-0123456789ab-1"
        (played / "podman").write_text(f'#!/bin/sh\necho "$@" >> {played}/calls\n[ "$2" != ps ] || echo {names}\n')
        asyncio.run(executor.warm_up())
    removed = [line for line in (played / "calls").read_text().splitlines() if " rm " in line]
    assert [line.split()[-1] for line in removed] == ["prefect-dispatch-0123456789ab-1"]


def test_links_in_home_lead_nowhere(tmp_path: Path) -> None:
    """Files of a launch are neither written nor removed through what an agent has left in place of their folders."""
    home, outside = tmp_path / "home", tmp_path / "outside"
    for each in (home, outside):
        each.mkdir()
    (outside / "key").write_text("of the host")
    launch = Launch(argv=("true",), cwd=home, env={}, files={home / "a" / "b" / "key": KEY, home / "key": KEY})
    for place in ("a", "a/b"):
        write_files(launch, home)
        assert (home / "a/b/key").read_text() == (home / "key").read_text() == KEY
        shutil.rmtree(home / place)
        (home / place).symlink_to(outside, target_is_directory=True)
        remove_files(launch, home)
        assert not (home / "key").exists()
        (home / place).parent.mkdir(exist_ok=True)
        (home / place).unlink(missing_ok=True)
        (home / place).symlink_to(outside, target_is_directory=True)
    write_files(launch, home)
    assert [each.name for each in outside.iterdir()] == ["key"]
    assert (outside / "key").read_text() == "of the host"


def test_git_settings_in_home_lead_nowhere(programs: Path, repository: Repository, tmp_path: Path) -> None:
    """An agent that is asked again has left a link in their place."""
    outside = tmp_path / "outside"
    outside.write_text("of the host")
    agent = FakeAgent(programs, "claude")
    agent.does(f"ln -sf {outside} $HOME/.gitconfig; echo 'A = 1' > a.py", agent.prints(claude_end()))
    fields = {
        "model": "claude-sonnet-4-5",
        "pass_env": ["ANTHROPIC_API_KEY"],
        "workspace": {"repo": str(repository.path)},
    }
    executor = CodingAgent.model_validate(fields).resolve_paths(repository.path)

    async def twice() -> None:
        async with executor.conversation():
            for _ in range(2):
                await executor.answer(Ask(brief=BRIEF, item=ITEM))

    asyncio.run(twice())
    assert outside.read_text() == "of the host"


def test_the_relay(tmp_path: Path) -> None:
    """Both of its ends: bytes arrive in both directions, and an address that isn't reached ends the connection."""

    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"ping")
        writer.write_eof()
        said = await reader.read()
        writer.close()
        return said

    async def relayed() -> list[bytes]:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read() + b" pong")
            writer.close()

        provider = await asyncio.start_server(echo, "127.0.0.1", 0)
        address = provider.sockets[0].getsockname()
        listener = socket.create_server(("127.0.0.1", 0))
        said = list[bytes]()
        async with provider_relay.serve_address(str(tmp_path), *address):
            inner = asyncio.ensure_future(provider_relay.serve_port(listener, str(tmp_path / provider_relay.SOCKET)))
            port = listener.getsockname()[1]
            said += await asyncio.gather(*(ask(port) for _ in range(3)))
            provider.close()
            await provider.wait_closed()
            said.append(await ask(port))
            hangs = await asyncio.open_connection("127.0.0.1", port)
            inner.cancel()
            await asyncio.wait([inner])
            hangs[1].close()
        return said

    assert asyncio.run(relayed()) == [b"ping pong"] * 3 + [b""]


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
            CodingAgent.model_validate({"model": "m", "container": {"image": "any"}, **fields})


def test_the_image_counts() -> None:
    """Another image may answer otherwise; another limit doesn't."""

    def made(**more: Any) -> str:  # noqa: ANN401 -- fields
        return CodingAgent.model_validate({"model": "m", **more}).fingerprint

    assert len({made(), made(container={"image": "a"}), made(container={"image": "b"})}) == 3
    assert made(container={"image": "a"}) == made(container={"image": "a", "cpus": 1})
