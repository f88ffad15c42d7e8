"""Folders of the living and of the dead, the logs of programs, and what clears them away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import JobError
from prefect_dispatch.processes import state_folder as module
from prefect_dispatch.processes.state_folder import (
    LEASE,
    build_environment,
    end_own_leases,
    lease,
    reap,
    reap_periodically,
    remove_abandoned,
    remove_tree,
    require_passable,
    state_folder,
)
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.workspaces.git import Git
from tests.processes.programs import Crowd, said_by
from tests.workspaces.repositories import Repository

if TYPE_CHECKING:
    from collections.abc import Generator

    from prefect_dispatch.processes.state_folder import Lease

DIES = (
    "import os, subprocess, time\n"
    "from prefect_dispatch.processes.state_folder import lease\n"
    "with lease(about={'folder': '/somewhere'}) as mine:\n"
    "    (mine.path / 'work').mkdir()\n"
    "    (mine.path / 'work' / 'a').write_text('x')\n"
    "    (mine.path / 'work').chmod(0o500)\n"
    "    env = {'PREFECT_DISPATCH_LEASE': mine.id, 'PATH': '/usr/bin:/bin'}\n"
    "    what = ['sh', '-c', os.environ['RUNS']]\n"
    "    subprocess.Popen(what, env=env, start_new_session=True, stdout=subprocess.DEVNULL)\n"
    "    print(mine.id, flush=True)\n"
    "    time.sleep(1000)\n"
)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def living() -> Generator[list[subprocess.Popen[str]]]:
    """Processes that are ended after the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        with process:
            process.kill()


def owner(living: list[subprocess.Popen[str]], runs: str = "true") -> tuple[subprocess.Popen[str], str]:
    """Start a process with a lease; return both."""
    env = {**os.environ, "RUNS": runs}
    process = subprocess.Popen([sys.executable, "-c", DIES], stdout=subprocess.PIPE, text=True, env=env)  # noqa: S603 -- this interpreter, a fixed text
    living.append(process)
    assert process.stdout
    return process, process.stdout.readline().strip()


def left(state: Path) -> list[str]:
    """Return what there is of leases."""
    return sorted(path.name for path in (state / "leases").iterdir())


def test_a_lease_ends_with_its_block(state: Path) -> None:
    """Nobody else can look into it; whatever is in it goes, links are not followed."""
    outside = state.parent / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    with lease(about={"for": "a test"}) as mine, lease() as other:
        assert mine.path != other.path
        assert mine.path.stat().st_mode & 0o777 == 0o700
        assert state.stat().st_mode & 0o777 == 0o700
        (mine.path / "closed").mkdir(mode=0o700)
        (mine.path / "closed" / "file").write_text("x")
        (mine.path / "closed").chmod(0)
        (mine.path / "link").symlink_to(outside)
        assert remove_abandoned(lambda _: None) == []
    assert left(state) == []
    assert (outside / "kept").read_text() == "x"


def test_the_end_of_a_process_ends_its_leases(state: Path) -> None:
    """A run that is cancelled doesn't wait for what it was doing; those of a parent stay."""
    script = (
        "import os, threading, time\n"
        "from prefect_dispatch.processes.state_folder import lease\n"
        "def hold():\n"
        "    with lease() as mine:\n"
        "        there.set()\n"
        "        time.sleep(1000)\n"
        "there = threading.Event()\n"
        "threading.Thread(target=hold, daemon=True).start()\n"
        "there.wait()\n"
        "if os.fork() == 0:\n"
        "    raise SystemExit\n"
        "os.wait()\n"
        "print(len(os.listdir(os.environ['PREFECT_DISPATCH_STATE'] + '/leases')))\n"
    )
    assert said_by(script) == "2\n"
    assert left(state) == []
    with lease() as mine:
        end_own_leases()
        assert not mine.path.exists()
    assert left(state) == []


def test_a_process_that_was_forked_ends_no_lease_of_its_parent(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a copy of what its parent held, and comes to an end of its own."""
    with lease() as mine:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            end_own_leases()
        assert mine.path.exists()
    assert left(state) == []


@pytest.mark.slow
def test_two_that_clear_away_at_once(state: Path, living: list[subprocess.Popen[str]]) -> None:
    """What somebody else has cleared away meanwhile is passed over."""
    owners = [owner(living) for _ in range(2)]
    for process, _ in owners:
        process.kill()
        process.wait()
    others: list[str] = []
    mine = remove_abandoned(lambda _: others.extend(each.id for each in reap()) if not others else None)
    assert sorted([*others, *(each.id for each in mine)]) == sorted(name for _, name in owners)
    assert len(mine) == len(others) == 1
    assert left(state) == []


def test_what_is_kept_stays(state: Path) -> None:
    """Neither its end nor a reaper takes it away."""
    with lease() as mine:
        mine.keep()
    assert remove_abandoned(lambda _: None) == []
    assert left(state) == [mine.id]


@pytest.mark.slow
def test_what_the_dead_have_left_is_cleared_away(state: Path, living: list[subprocess.Popen[str]]) -> None:
    """Killed without a word: the next process ends what still runs for it, and takes its folder away."""
    crowd = Crowd()
    dead, name = owner(living, f"exec {crowd.waits}")
    _, alive = owner(living)
    crowd.require(1)
    assert reap() == []
    os.kill(dead.pid, signal.SIGKILL)
    dead.wait()
    found = reap()
    assert [each.id for each in found] == [name]
    assert found[0].about["folder"] == "/somewhere"
    assert crowd.alive == []
    assert left(state) == [alive, f"{alive}.lock"]


@pytest.mark.slow
def test_two_reapers_at_once(state: Path, living: list[subprocess.Popen[str]]) -> None:
    """Each lease is cleared away by one of them."""
    for _ in range(3):
        dead, _ = owner(living)
        dead.kill()
        dead.wait()
    cleared: list[str] = []

    def clear(found: Lease) -> None:
        time.sleep(0.05)
        cleared.append(found.id)

    threads = [threading.Thread(target=remove_abandoned, args=(clear,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(cleared)) == len(cleared) == 3
    assert left(state) == []


def test_a_reaper_that_fails_leaves_it_to_the_next(state: Path, living: list[subprocess.Popen[str]]) -> None:
    """The folder of the dead is gone all the same; a lock without a folder is taken away, a damaged note is no note."""
    dead, name = owner(living)
    dead.kill()
    dead.wait()
    (state / "leases" / name / "lease.json").write_text("[")
    notes: list[object] = []

    def fail(found: Lease) -> None:
        notes.append(found.about)
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        remove_abandoned(fail)
    assert notes == [{}]
    (state / "leases" / "empty.lock").touch()
    assert [each.id for each in remove_abandoned(lambda _: None)] == ["empty"]
    assert left(state) == []


def test_a_folder_that_cannot_be_removed_is_tried_again(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock stays beside it, without an owner, so that a reaper finds it."""

    def nothing(folder: Path) -> None:
        del folder

    with monkeypatch.context() as patch:
        patch.setattr(module, "remove_tree", nothing)
        with lease() as mine:
            pass
        assert left(state) == [mine.id, f"{mine.id}.lock"]
    assert [each.id for each in remove_abandoned(lambda _: None)] == [mine.id]
    assert left(state) == []


def test_a_lease_that_cannot_begin_leaves_nothing(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails in the middle of it: no lock, no folder."""
    monkeypatch.setattr(module, "_ABOUT", "no/such/folder")
    with pytest.raises(FileNotFoundError), lease():
        raise AssertionError
    assert left(state) == []


def test_now_and_then(state: Path, living: list[subprocess.Popen[str]], caplog: pytest.LogCaptureFixture) -> None:
    """A process looks when it runs its first program, and then once a minute."""
    caplog.set_level("INFO", "prefect_dispatch")
    reap_periodically()
    dead, name = owner(living)
    dead.kill()
    dead.wait()
    reap_periodically()
    assert name in left(state)
    module._next_clean_up.clear()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] -- a minute passes
    reap_periodically()
    assert left(state) == []
    assert f"had left: {state / 'leases' / name}" in caplog.text


@pytest.mark.parametrize(
    ("state_is", "told"),
    [
        ("a-file", "can't be used (File exists)"),
        ("in-a-repository", "is in the repository"),
        ("nowhere", "can't be used ("),
    ],
)
def test_a_state_folder_that_cannot_be_used(state_is: str, told: str, state: Path) -> None:
    """Told with the way out."""
    if state_is == "a-file":
        state.write_text("in the way")
    elif state_is == "in-a-repository":
        Repository.init(state)
    else:
        state.symlink_to("/proc/nowhere/at/all")
    with pytest.raises(JobError) as caught:
        state_folder()
    assert told in str(caught.value)
    assert "set PREFECT_DISPATCH_STATE to a folder of your own" in str(caught.value)


def test_a_state_folder_in_a_worktree_is_refused(state: Path, tmp_path: Path) -> None:
    """A linked worktree is a checkout, too; once its repository is gone, it is none."""
    main = Repository.init(tmp_path / "main")
    main.commit("Begin")
    main.git("worktree", "add", "--quiet", "--detach", str(state))
    with pytest.raises(JobError, match="is in the repository"):
        state_folder()
    remove_tree(main.path)
    assert state_folder() == state


def test_a_repository_above_a_ceiling_is_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As git does it: for the state folder, and for the checkouts that git itself looks for."""
    repository = Repository.init(tmp_path / "home")
    repository.commit("Begin")
    folder = repository.path / "tmp" / "state"
    folder.mkdir(parents=True)
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(folder))
    with pytest.raises(JobError, match="is in the repository"):
        state_folder()
    assert Git(folder).run("rev-parse", "--git-dir")[0] == 0
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", f"/elsewhere:{repository.path}")
    assert state_folder() == folder
    assert Git(folder).run("rev-parse", "--git-dir")[0] != 0


@pytest.mark.parametrize(
    "left", ["empty-folder", "folder-without-objects", "empty-file", "other-file", "long-name", "pipe"]
)
def test_a_git_folder_that_is_no_repository_is_ignored(left: str, state: Path) -> None:
    """Sandboxes leave empty `.git` folders in the temporary folder; git takes them for no repository either."""
    found = state.parent / ".git"
    if left == "empty-folder":
        found.mkdir()
    elif left == "folder-without-objects":
        (found / "refs").mkdir(parents=True)
        (found / "HEAD").write_text("ref: refs/heads/main\n")
    elif left == "empty-file":
        found.touch()
    elif left == "other-file":
        found.write_text("gitdir: nowhere\n")
    elif left == "long-name":
        found.write_text(f"gitdir: {'x' * 5000}\n")
    else:
        os.mkfifo(found)
    assert state_folder() == state


def test_a_state_folder_that_others_may_look_into_is_closed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be there already; without a home it has to be named."""
    state.mkdir(mode=0o755)
    state.chmod(0o755)
    assert state_folder().stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", "~nobody-of-that-name/state")
    with pytest.raises(JobError, match="can't be used"):
        state_folder()


def test_an_environment_is_what_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is named beside it; PATH is never missing, what is set wins, and a secret is hidden from then on."""
    monkeypatch.setenv("SOME_TOKEN", "correct-horse-battery")
    monkeypatch.setenv("OTHER", "x")
    monkeypatch.delenv("PATH")
    with lease() as mine:
        given = build_environment(mine, pass_env=("SOME_TOKEN",), more={"LANG": "de", "HOME": "/there"})
        assert (given["PATH"], given["LANG"], given["HOME"]) == (os.defpath, "de", "/there")
        assert (given["SOME_TOKEN"], given[LEASE]) == ("correct-horse-battery", mine.id)
        assert "OTHER" not in given
        assert Path(given["TMPDIR"]).stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("SOME_TOKEN")
    assert redact("a correct-horse-battery") == "a ***"
    for name, told in (("TMPDIR", "can't be passed"), ("ITEM_X", "can't be passed"), ("GONE_4711", "is not set here")):
        with pytest.raises(JobError, match=told):
            require_passable([name])


def test_trees_are_removed_whatever_is_in_them(tmp_path: Path) -> None:
    """One that isn't there is none."""
    remove_tree(tmp_path / "none")
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    deep.chmod(0o500)
    remove_tree(tmp_path / "a")
    assert not (tmp_path / "a").exists()
