"""What the real agents may write, read and see, as the documentation says it of each."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.errors import ExecutorError, RejectedError, TerminalError
from tests.executors.coding.agent_server import Request, Turn
from tests.executors.coding.fake_agents import BRIEF, KEY, asked, failed
from tests.executors.coding.real_agents import ending, program, real_agent

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from prefect_dispatch.executors.base import Reply
    from tests.workspaces.repositories import Repository

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]

TEMPORARY = Path("/tmp")  # noqa: S108 -- the folder that all programs share is what is tried
EVERYWHERE = {"workspace", "git", "own TMPDIR", "own HOME", "parent", "shared", "checkout"}
MARK = f"of-an-agent-{os.getpid()}"
"""The name of a file that an agent tries to write."""
HIDDEN_KEY = f"{KEY[:-1]}[{KEY[-1]}]"
"""A pattern of the key, which isn't the key itself: what the model is told holds the command, too."""
UNCONFINED: Mapping[str, Mapping[str, Any]] = {
    "claude": {"allowed_tools": ["Bash"]},
    "codex": {"sandbox": "danger-full-access"},
    "opencode": {},
    "mini": {},
}
"""How each of them runs commands that no system holds back."""


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder that lies beside the checkout in the shared temporary folder."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def shared(tmp_path: Path) -> Generator[None]:
    """The temporary folder that every program shares, in which the user's checkout lies here."""
    assert tmp_path.is_relative_to(TEMPORARY), "pytest's folders have to lie in /tmp for these tests"
    yield
    (TEMPORARY / MARK).unlink(missing_ok=True)


def probe(repository: Repository) -> tuple[str, dict[str, str]]:
    """Return a command that tries to write everywhere, and the places by the paths that it prints."""
    places = {
        "workspace": "a.py",
        "git": f".git/{MARK}",
        "own TMPDIR": f"$TMPDIR/{MARK}",
        "own HOME": f"$HOME/{MARK}",
        "parent": f"../{MARK}",
        "shared": str(TEMPORARY / MARK),
        "checkout": str(repository.path / "a.py"),
    }
    tries = "; ".join(
        f"(echo 'A = 1' > {path}) 2>/dev/null && echo WROTE:{name.replace(' ', '_')}:" for name, path in places.items()
    )
    return f"{tries}; true", places


def commands_said(request: Request) -> str:
    """Return what the model was told of the commands that the agent ran."""
    return json.dumps(request.messages)


def run(
    name: str,
    repository: Repository,
    command: str,
    params: Mapping[str, Any],
    **more: Any,  # noqa: ANN401 -- fields
) -> tuple[Reply | ExecutorError, str]:
    """Return what comes of an agent that runs a command, and what that printed."""
    said = ""

    def script(request: Request) -> Turn:
        nonlocal said
        if request.turn == 0:
            return Turn(run=(command,))
        said = commands_said(request)
        return ending(request)

    with real_agent(name, repository, script, params=params, **more) as (executor, _):
        try:
            return asked(executor, BRIEF), said
        except ExecutorError as error:
            return error, said


def wrote(said: str, places: Mapping[str, str]) -> set[str]:
    """Return where a command could write."""
    return {name for name in places if f"WROTE:{name.replace(' ', '_')}:" in said.replace("&& echo WROTE", "")}


def has_sandbox() -> bool:
    """Return whether Codex can make its sandbox on this machine."""
    tried = [str(program("codex")), "sandbox", "--", "true"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0  # noqa: S603 -- our own words


def test_codex_writes_only_in_its_workspace(repository: Repository, state: Path) -> None:
    """Not in the temporary folder of all programs, where the user's checkout lies; nor in its own `.git` and HOME."""
    if not has_sandbox():
        pytest.skip("this machine lets nobody make user namespaces")
    command, places = probe(repository)
    reply, said = run("codex", repository, command, {})
    assert not isinstance(reply, ExecutorError)
    assert wrote(said, places) == {"workspace", "own TMPDIR"}
    assert reply.change is not None
    assert (repository.path / "a.py").read_text() == "A = 0\n"
    assert not {".git", ".codex", ".agents"} & {path.name for path in state.parent.iterdir()}


@pytest.mark.parametrize("name", list(UNCONFINED))
def test_who_has_no_sandbox_writes_everywhere(name: str, repository: Repository, state: Path) -> None:
    """Only that it has written into the user's checkout is found out, and then its work doesn't count."""
    command, places = probe(repository)
    error, said = run(name, repository, command, UNCONFINED[name])
    assert wrote(said, places) == EVERYWHERE
    assert isinstance(error, RejectedError)
    assert error.kind == "outside"
    assert str(repository.path) in str(error)


@pytest.mark.parametrize("name", list(UNCONFINED))
def test_a_foreign_file_in_the_checkout_is_traced_by_the_output(name: str, repository: Repository, state: Path) -> None:
    """Each of them prints the commands that it runs, or writes them into its trajectory."""
    error, _ = run(name, repository, f"echo x > {repository.path}/notes.txt; echo 'A = 1' > a.py", UNCONFINED[name])
    assert isinstance(error, RejectedError)
    assert error.kind == "outside"
    assert "Its output names that folder" in str(error)


@pytest.mark.parametrize("place", ["parent", "shared", "checkout", "own HOME", "own TMPDIR", "git"])
def test_claude_without_commands_writes_only_in_its_workspace(place: str, repository: Repository, state: Path) -> None:
    """Its own permissions deny the rest, and a denial fails the work."""

    def script(request: Request) -> Turn:
        if request.turn:
            return ending(request)
        (folder,) = state.glob("leases/*/home")
        path = (
            probe(repository)[1][place]
            .replace("$HOME", str(folder))
            .replace("$TMPDIR", str(folder.parent / "tmp"))
            .replace("a.py", "new.py")
        )
        return Turn(call=("Write", {"file_path": path, "content": "A = 1\n"}))

    with real_agent("claude", repository, script) as (executor, _):
        error = failed(executor, RejectedError)
    assert error.kind == "denied"
    assert repository.git("status", "--porcelain") == ""


@pytest.mark.parametrize("path", ["/etc/passwd", "key"])
def test_claude_without_commands_reads_only_in_its_workspace(path: str, repository: Repository, state: Path) -> None:
    """Neither the machine's files nor its own key."""
    answers = ""

    def script(request: Request) -> Turn:
        nonlocal answers
        if request.turn:
            answers = commands_said(request)
            return ending(request)
        (home,) = state.glob("leases/*/home")
        return Turn(call=("Read", {"file_path": str(home / path)}))

    with real_agent("claude", repository, script) as (executor, _):
        assert failed(executor, RejectedError).kind == "denied"
    assert KEY not in answers
    assert "root:" not in answers


SEES = 'env | grep {key}; cat "$HOME/key" 2>/dev/null; tr "\\0" "\\n" < /proc/$PPID/environ | grep {key}; echo 1 > a.py'
"""Looks for the key in its environment, in its HOME, and in the environment of the agent."""


@pytest.mark.parametrize(
    ("name", "params", "sees"),
    [
        pytest.param("claude", UNCONFINED["claude"], True, id="claude"),
        pytest.param("codex", {}, False, id="codex"),
        pytest.param("codex", UNCONFINED["codex"], True, id="codex-without-its-sandbox"),
        pytest.param("opencode", {}, True, id="opencode"),
        pytest.param("mini", {}, True, id="mini"),
    ],
)
def test_who_can_get_at_its_key(
    name: str,
    params: Mapping[str, Any],
    sees: bool,  # noqa: FBT001 -- a column
    repository: Repository,
    state: Path,
) -> None:
    """No command has it in its environment; without a sandbox it is in a file, or in the agent's environment."""
    if name == "codex" and not params and not has_sandbox():
        pytest.skip("this machine lets nobody make user namespaces")
    _, said = run(name, repository, SEES.format(key=HIDDEN_KEY), params)
    assert (KEY in said) is sees
    _, said = run(name, repository, f"env | grep {HIDDEN_KEY}; true", params)
    assert KEY not in said


def test_codex_reads_what_its_user_can(repository: Repository, state: Path) -> None:
    """Its sandbox holds back writes and the network, and no reads."""
    if not has_sandbox():
        pytest.skip("this machine lets nobody make user namespaces")
    _, said = run("codex", repository, f"cat {repository.path}/a.py /etc/passwd; echo 1 > a.py", {})
    assert "A = 0" in said
    assert "root:" in said


def test_codex_without_a_sandbox_runs_nothing(repository: Repository, state: Path, tmp_path: Path) -> None:
    """Where it may make none, no command of it is run, and every item would end alike: the run is told so."""
    namespaces = "echo 0 > /proc/sys/user/max_user_namespaces"
    drop = 'exec setpriv --bounding-set=-all --no-new-privs "$@"'
    inside = shlex.quote(f"{namespaces} && {drop}")
    confined = ["unshare", "--user", "--map-root-user", "sh", "-c", f"{namespaces} && {drop}", "sh", "true"]
    if subprocess.run(confined, capture_output=True, check=False).returncode:  # noqa: S603 -- our own words
        pytest.skip("this machine lets nobody take namespaces away")
    wrapper = tmp_path / "codex"
    wrapper.write_text(f'#!/bin/sh\nexec unshare --user --map-root-user sh -c {inside} sh {program("codex")} "$@"\n')
    wrapper.chmod(0o755)
    error, _ = run("codex", repository, "echo 1 > a.py", {}, program=str(wrapper))
    assert isinstance(error, TerminalError)
    assert error.kind == "sandbox"
    assert "can't make its sandbox on this machine" in str(error)
