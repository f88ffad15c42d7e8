"""A workspace while it is open, and what is left of it afterwards: nothing, unless that was asked for."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.models.brief import Command
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.processes.state_folder import remove_abandoned
from prefect_dispatch.workspaces.git import Git, find_git
from prefect_dispatch.workspaces.workspace import OpenWorkspace, Workspace, open_workspace, to_thread_shielded
from tests.workspaces.inside import changed_by, leases, sh, within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefect_dispatch.models.outcome import Change
    from tests.workspaces.repositories import Repository


def test_what_is_in_it(repository: Repository, state: Path, sprung: Path) -> None:
    """The base, byte for byte, whatever attributes and the user's settings say; git works, and waits for nobody."""
    workspace = Workspace().resolve(repository.path)
    repository.git("tag", "v1")
    repository.git("update-ref", "refs/remotes/origin/main", "HEAD~1")

    async def look(room: OpenWorkspace) -> None:
        assert sh(room, "git rev-parse --show-toplevel HEAD --abbrev-ref HEAD").split() == [
            str(room.path),
            repository.head,
            "HEAD",
        ]
        assert sh(room, "git status --porcelain") == ""
        assert sh(room, "git log --oneline --format=%s v1 -- README.md") == "Begin"
        assert sh(room, "git diff --stat origin/main main -- bin") != ""
        assert (room.path / "crlf.txt").read_bytes() == b"one\r\ntwo\r\n"
        assert (room.path / "bytes.bin").read_bytes() == bytes(range(256)) * 8
        assert (room.path / 'names/é\nnew line "q" \\ *.txt').read_text() == "odd\n"
        assert (room.path / "names/link").readlink() == Path("../src/a.py")
        assert os.access(room.path / "bin/run", os.X_OK)
        sh(room, "echo >> src/a.py && git commit -qam 'As somebody'")
        sh(room, "git rebase -q --interactive HEAD~1")
        assert sh(room, "git remote") == ""

    within(workspace, look)
    assert leases(state) == []
    assert not sprung.exists()


def test_its_environment(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """HOME, TMPDIR and ports are its own, nothing else is inherited, and what is passed is passed."""
    monkeypatch.setenv("PASSED_ON", "yes")
    monkeypatch.setenv("KEPT_BACK", "no")
    monkeypatch.setenv("GIT_DIR", "/nowhere")

    async def look(room: OpenWorkspace) -> None:
        for folder in (Path(room.env[name]) for name in ("HOME", "TMPDIR")):
            assert folder.is_dir()
            assert folder.is_relative_to(room.lease.path)
            assert not folder.is_relative_to(room.path)
        assert room.env["PASSED_ON"] == "yes"
        assert not {"KEPT_BACK", "GIT_DIR"} & {*room.env}
        assert room.env["PORT"] == room.env["PORTS"].split()[0]
        assert [int(port) - int(room.env["PORT"]) for port in room.env["PORTS"].split()] == [0, 1, 2]

    within(Workspace(ports=3).resolve(repository.path), look, pass_env=("PASSED_ON",))


def test_sockets_in_its_temporary_folder(repository: Repository, state: Path) -> None:
    """The path of a socket has 107 bytes: in the usual state folder those that Python's multiprocessing makes fit."""

    async def look(room: OpenWorkspace) -> str:
        return room.env["TMPDIR"].replace(str(state), "/home/somebody/.local/state/prefect-dispatch")

    folder = within(Workspace().resolve(repository.path), look)
    assert len(f"{folder}/pymp-12345678/listener-12345678") <= 107


def test_containers_are_its_own(repository: Repository) -> None:
    """Docker Compose names what it starts by the project, and as it comes that is the folder's name."""

    async def look(room: OpenWorkspace) -> str:
        return room.env["COMPOSE_PROJECT_NAME"]

    workspace = Workspace().resolve(repository.path)
    names = {within(workspace, look) for _ in range(2)}
    assert len(names) == 2
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) for name in names)


def test_without_ports(repository: Repository) -> None:
    """Where no ports are asked for, no variable says that there are."""

    async def look(room: OpenWorkspace) -> None:
        assert not {"PORT", "PORTS"} & {*room.env}

    within(Workspace().resolve(repository.path), look)


def test_the_set_up_is_no_part_of_the_change(repository: Repository) -> None:
    """What the set-up wrote isn't the agent's, unless the agent changed it."""
    script = (
        "echo locked > lock.json; echo both > both.txt; echo set-up >> README.md; rm bin/run; mkdir build; >build/x"
    )
    workspace = Workspace(setup=Command(run=script, env={"UNUSED": ""})).resolve(repository.path)

    async def work(room: OpenWorkspace) -> None:
        assert (await room.capture_change(())).files == ()
        (room.path / "both.txt").write_text("agent")
        (room.path / "README.md").unlink()
        (room.path / "src" / "c.py").write_text("c = 3\n")
        change = await room.capture_change((".",))
        assert [(each.path, each.change) for each in change.files] == [
            ("README.md", "deleted"),
            ("both.txt", "added"),
            ("src/c.py", "added"),
        ]
        assert "set-up" not in change.patch

    within(workspace, work)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "error", "message"),
    [
        pytest.param(
            {"run": "echo out; echo err >&2; exit 3"}, RejectedError, "set-up failed (exit code 3): out\nerr", id="exit"
        ),
        pytest.param({"run": "exit 1"}, RejectedError, "set-up failed (exit code 1): it printed nothing", id="silent"),
        pytest.param({"run": "kill -9 $$"}, RejectedError, "set-up failed (signal 9)", id="signal"),
        pytest.param({"run": "exit 75", "retry": [75]}, TransientError, "set-up failed (exit code 75)", id="retry"),
        pytest.param({"run": "seq 3000; exit 1"}, RejectedError, "\n2999\n3000", id="long"),
    ],
)
def test_a_set_up_that_fails(
    command: dict[str, object], error: type[ExecutorError], message: str, repository: Repository, state: Path
) -> None:
    """It fails the item, or is worth a retry if its exit code says so; the end of what it said is in the error."""
    workspace = Workspace(setup=Command.model_validate(command)).resolve(repository.path)
    with pytest.raises(error) as caught:
        within(workspace, _never)
    assert (caught.value.kind, caught.value.usage) == ("setup", Usage())
    assert message in str(caught.value)
    assert len(str(caught.value)) < 2_200
    assert leases(state) == []


def test_a_set_up_that_succeeds_by_another_code(repository: Repository) -> None:
    """The brief's author says which codes are success."""

    async def nothing(room: OpenWorkspace) -> str:
        return "done"

    assert within(Workspace(setup=Command(run="exit 4", ok=(4,))).resolve(repository.path), nothing) == "done"


async def _never(room: OpenWorkspace) -> None:
    raise AssertionError


async def _fails(room: OpenWorkspace) -> None:
    raise RejectedError("It didn't work.", kind="exit")


async def _breaks(room: OpenWorkspace) -> None:
    raise ValueError(room.path)


async def _is_cancelled(room: OpenWorkspace) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("do", [_fails, _breaks, _is_cancelled])
def test_what_fails_is_kept_if_asked_for(
    do: Callable[[OpenWorkspace], Awaitable[None]],
    repository: Repository,
    state: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The error says where it is, or the log does; what clears away after the dead leaves it."""
    caplog.set_level(logging.WARNING, "prefect_dispatch")
    with pytest.raises((ExecutorError, ValueError, asyncio.CancelledError)) as caught:
        within(Workspace(keep="failed").resolve(repository.path), do)
    remove_abandoned(lambda lease: None)
    (kept,) = (path for path in (state / "leases").iterdir() if path.is_dir())
    said = f"The workspace was kept: {kept / 'work'}"
    assert (str(caught.value) == f"It didn't work. {said}") if do is _fails else (said in caplog.text)
    assert (kept / "work" / "README.md").read_text() == "Read me.\n"


@pytest.mark.parametrize("do", [_fails, _breaks, _is_cancelled])
def test_else_nothing_is_kept(
    do: Callable[[OpenWorkspace], Awaitable[None]],
    repository: Repository,
    state: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As it comes, a workspace is removed however it ended, and success removes it in any case."""
    with suppress(ExecutorError, ValueError, asyncio.CancelledError):
        within(Workspace().resolve(repository.path), do)

    async def nothing(room: OpenWorkspace) -> None: ...

    within(Workspace(keep="failed").resolve(repository.path), nothing)
    assert leases(state) == []
    assert caplog.text == ""


def test_what_cannot_be_made(repository: Repository, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base that is gone, a variable that isn't set, a disk that fails: told, and nothing is left."""
    with pytest.raises(TerminalError, match="isn't there; fetch it first"):
        within(Workspace(repo=str(repository.path), base="1" * 40), _never)
    placed = Workspace().resolve(repository.path)
    with pytest.raises(TerminalError, match="'NOT_THERE' is not set") as refused:
        within(placed, _never, pass_env=("NOT_THERE",))
    assert (refused.value.kind, refused.value.usage) == ("workspace", Usage())
    assert leases(state) == []
    (state / "leases").rmdir()
    (state / "leases").write_text("in the way")
    with pytest.raises(TransientError, match=r"A workspace can't be made: File exists\.") as caught:
        within(placed, _never)
    assert (caught.value.kind, caught.value.usage) == ("workspace", Usage())


@pytest.mark.slow
def test_cancelled_at_any_moment_nothing_is_left(repository: Repository, state: Path) -> None:
    """However early or often it is cancelled, what was made is cleared away before the cancellation goes on."""
    workspace = Workspace(setup=Command(run="sleep 60")).resolve(repository.path)

    async def open_and_wait() -> None:
        async with open_workspace(workspace):
            raise AssertionError

    async def cancelled_after(wait_s: float) -> None:
        task = asyncio.create_task(open_and_wait())
        await asyncio.sleep(wait_s)
        while not task.done():
            task.cancel()
            await asyncio.sleep(0.001)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert leases(state) == []

    for wait_s in (0.0, 0.005, 0.02, 0.05, 0.1, 0.5):
        asyncio.run(cancelled_after(wait_s))


def test_a_checkout_is_not_waited_for_once_nobody_wants_it(
    repository: Repository, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long git would still take: it is ended, nothing of it is left, and the cancellation goes on."""
    workspace = Workspace().resolve(repository.path)
    real, there = find_git(), tmp_path / "there"
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\n[ "$1" = checkout ] && touch "{there}" && exec sleep 1000\nexec {real} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")

    async def cancel() -> None:
        task = asyncio.create_task(_enter(workspace))
        while not there.exists():  # noqa: ASYNC110 -- another process makes it
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert leases(state) == []


async def _enter(workspace: Workspace) -> None:
    async with open_workspace(workspace):
        raise AssertionError


def test_a_commit_that_has_no_place_on_this_disk(repository: Repository, state: Path) -> None:
    """A name that is too long is so tomorrow as well: no retry; a full disk may not be full then."""
    blob = repository.git("rev-parse", "HEAD:README.md")
    tree = Git(repository.path).output("mktree", stdin=f"100644 blob {blob}\t{'x' * 300}\n".encode())
    commit = repository.git("commit-tree", tree, "-m", "Long")
    with pytest.raises(
        RejectedError, match=f"The commit {commit[:12]} can't be checked out here: .*too long"
    ) as caught:
        within(Workspace(base=commit).resolve(repository.path), _never)
    assert (caught.value.kind, caught.value.usage) == ("workspace", Usage())
    assert leases(state) == []


def test_a_disk_that_is_full_may_have_room_later(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is worth another try."""
    workspace = Workspace().resolve(repository.path)
    real, fake = find_git(), tmp_path / "bin" / "git"
    fake.parent.mkdir()
    full = "echo 'error: unable to write file a: No space left on device' >&2; exit 128"
    fake.write_text(f'#!/bin/sh\nif [ "$1" = checkout ]; then {full}; fi\nexec {real} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    with pytest.raises(TransientError, match="No space left on device"):
        within(workspace, _never)


def test_a_loop_that_ends_waits_for_nobody() -> None:
    """Where the event loop itself ends, what it had begun is cancelled with it."""

    async def leave() -> asyncio.Task[None]:
        task = asyncio.create_task(to_thread_shielded(time.sleep, 0.2))
        await asyncio.sleep(0.05)
        return task

    assert asyncio.run(leave()).cancelled()


def test_work_goes_on_where_it_ended(repository: Repository) -> None:
    """A change that is applied to a new workspace is the same change, and whatever is added belongs to it."""
    workspace = Workspace(setup=Command(run="echo set-up >> README.md; mkdir -p made; echo x > made/x")).resolve(
        repository.path
    )

    async def first(room: OpenWorkspace) -> Change:
        sh(
            room,
            "rm -r bin names/link; mkdir names/link; echo x > names/link/y; ln -sfn .. src/b.py; chmod +x src/a.py",
        )
        sh(room, "printf '\\0\\1' > bytes.bin; echo more >> crlf.txt; rm -r made; echo file > made")
        return await room.capture_change((".",))

    async def second(room: OpenWorkspace) -> None:
        await room.apply(change)
        assert await room.capture_change((".",)) == change
        assert not (room.path / "bin").exists()
        assert (room.path / "README.md").read_text() == "Read me.\nset-up\n"
        with pytest.raises(RejectedError, match="can't go on in a workspace of"):
            await room.apply(change.model_copy(update={"base": "1" * 40}))
        with pytest.raises(RejectedError, match="its patch makes the tree"):
            await room.apply(change.model_copy(update={"tree": "1" * 40}))

    change = within(workspace, first)
    within(workspace, second)


def test_nothing_is_removed_behind_a_link(repository: Repository, tmp_path: Path) -> None:
    """A set-up may have put one in place of a folder whose files a change removes."""
    change = changed_by(repository, "rm -r bin")
    outside = tmp_path / "outside"
    for each in change.files:
        (outside / each.path).parent.mkdir(parents=True, exist_ok=True)
        (outside / each.path).write_text("mine")

    async def again(room: OpenWorkspace) -> None:
        sh(room, f"rm -r bin; ln -s '{outside}/bin' bin")
        await room.apply(change)

    within(Workspace().resolve(repository.path), again)
    assert [(outside / each.path).read_text() for each in change.files] == ["mine"] * len(change.files)
    assert change.files
