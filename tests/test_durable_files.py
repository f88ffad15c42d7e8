"""What is synced together is durable like what is synced alone: a journal has it until the files are on the disk."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, cast

import pytest
from prefect.filesystems import LocalFileSystem

from prefect_dispatch import Brief, dispatch
from prefect_dispatch.errors import TransientError
from prefect_dispatch.serialization import durable_files
from prefect_dispatch.serialization.durable_files import (
    JOURNALS,
    GroupCommit,
    boot_id,
    create_quickly,
    file_system_of,
    format_change,
    group_commit_for,
    remove_synced,
    restore,
)
from prefect_dispatch.tasks.result_store import PREFIX, BlobStore
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.serialization.durable_files import Change

pytestmark = pytest.mark.skipif(not boot_id(), reason="the system has no identity, so that nothing is synced together")

KEYS = [f"{PREFIX}{n}" for n in range(6)]


def content(n: int) -> bytes:
    """Return a record."""
    return json.dumps({"n": n}).encode()


@pytest.fixture
def commits() -> GroupCommit:
    """A group commit with journals of its own."""
    return GroupCommit(boot_id())


def commit(commits: GroupCommit, folder: Path, *changes: Change) -> bool:
    """Commit changes together."""
    return asyncio.run(commits.commit(folder, *changes))


def journals(folder: Path) -> list[Path]:
    """Return the journals of a folder."""
    return sorted((folder / JOURNALS).glob("*.journal"))


def stop_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a folder look as after another start of the machine: to the journals, and to this process."""
    for journal in journals(folder):
        journal.write_bytes(journal.read_bytes().replace(boot_id().encode(), b"before"))
    monkeypatch.setattr(durable_files, "_restored", set[Any]())


def stored(folder: Path) -> dict[str, bytes]:
    """Return what stands in the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.glob(f"{PREFIX}*")}


def test_what_waits_is_synced_together(tmp_path: Path, commits: GroupCommit) -> None:
    """Many that commit at once share a journal; each file is there when its commit is."""

    async def one(n: int) -> bool:
        done = await commits.commit(tmp_path / "new", (f"{PREFIX}{n}", content(n)), (f"{PREFIX}{n}.draft", None))
        return done and (tmp_path / "new" / f"{PREFIX}{n}").read_bytes() == content(n)

    async def all_of_them() -> list[bool]:
        return await asyncio.gather(*map(one, range(50)))

    assert asyncio.run(all_of_them()) == [True] * 50
    assert len(journals(tmp_path / "new")) == 1
    assert len(stored(tmp_path / "new")) == 50


def test_a_commit_ends_though_its_caller_is_cancelled(tmp_path: Path, commits: GroupCommit) -> None:
    """Nothing is half stored when a run is interrupted."""

    async def interrupted() -> None:
        task = asyncio.ensure_future(commits.commit(tmp_path, (KEYS[0], content(0))))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stored(tmp_path) == {KEYS[0]: content(0)}

    asyncio.run(interrupted())


def test_what_a_power_failure_took_is_restored(
    tmp_path: Path, commits: GroupCommit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is missing, torn or older than the journal is written again; a later or a removed one is not."""
    missing, torn, older, later, removed, same = (tmp_path / key for key in KEYS)
    for n, path in enumerate((missing, torn, older, later, removed, same)):
        assert commit(commits, tmp_path, (path.name, content(n)))
    assert commit(commits, tmp_path, (removed.name, None))
    missing.unlink()
    torn.write_bytes(content(1)[:4])
    older.write_bytes(b"{}")
    os.utime(older, (1, 1))
    later.write_bytes(b"[]")
    stop_machine(tmp_path, monkeypatch)
    BlobStore(LocalFileSystem(basepath=str(tmp_path)))
    assert stored(tmp_path) == {
        **{path.name: content(n) for n, path in enumerate((missing, torn, older))},
        later.name: b"[]",
        same.name: content(5),
    }
    assert not journals(tmp_path)
    assert "3 stored files restored that this machine had lost when it stopped." in caplog.text


def test_the_later_of_two_journals_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes have stored the same, one after the other; their journals are read in any order."""
    for n in range(6):
        assert commit(GroupCommit(boot_id()), tmp_path, (KEYS[0], content(n)))
    (tmp_path / KEYS[0]).unlink()
    stop_machine(tmp_path, monkeypatch)
    restore(tmp_path)
    assert stored(tmp_path) == {KEYS[0]: content(5)}


def test_a_torn_journal_loses_its_end_only(
    tmp_path: Path, commits: GroupCommit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever the machine stopped in the last record, or that is altered: the record before it is restored."""
    sizes = list[int]()
    for n in range(2):
        assert commit(commits, tmp_path, (KEYS[n], content(n)))
        sizes.append(journals(tmp_path)[0].stat().st_size)
    [journal] = journals(tmp_path)
    whole = journal.read_bytes()
    spoilt = [whole[:length] for length in range(sizes[0] + 1, sizes[1])]
    spoilt += [whole[:at] + b"\x00" + whole[at + 1 :] for at in range(sizes[0], sizes[1])]
    for text in spoilt:
        for key in KEYS[:2]:
            (tmp_path / key).unlink(missing_ok=True)
        journal.write_bytes(text)
        stop_machine(tmp_path, monkeypatch)
        caplog.clear()
        restore(tmp_path)
        assert stored(tmp_path) == {KEYS[0]: content(0)}
        assert "bytes of the journal" in caplog.text.replace("byte of", "bytes of")


def test_what_is_no_journal_of_ours_writes_nothing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that leads out of the folder is ignored, as is a file of another kind."""
    (tmp_path / "store" / JOURNALS).mkdir(parents=True)
    record = format_change("../x", 1, b"{}")
    head = b'{"prefect-dispatch-journal": 1, "boot": "before"}\n'
    (tmp_path / "store" / JOURNALS / "a.journal").write_bytes(head + record)
    (tmp_path / "store" / JOURNALS / "b.journal").write_bytes(b"\xff\x00")
    monkeypatch.setattr(durable_files, "_restored", set[Any]())
    restore(tmp_path / "store")
    assert not (tmp_path / "x").exists()
    assert "The last 2 bytes of the journal" in caplog.text
    assert asyncio.run(GroupCommit(boot_id()).commit(tmp_path / "store", ("../x", b"{}"))) is False


def test_what_cannot_be_restored_is_said(
    tmp_path: Path, commits: GroupCommit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder is in the place of an answer: the journals stay, and the user learns of it."""
    assert commit(commits, tmp_path, (KEYS[0], content(0)))
    (tmp_path / KEYS[0]).unlink()
    (tmp_path / KEYS[0]).mkdir()
    stop_machine(tmp_path, monkeypatch)
    restore(tmp_path)
    assert "could not be restored" in caplog.text
    assert len(journals(tmp_path)) == 1


def test_while_the_machine_runs_a_removed_answer_stays_removed(
    tmp_path: Path, commits: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever deletes a file has its item asked again."""
    assert commit(commits, tmp_path, (KEYS[0], content(0)))
    (tmp_path / KEYS[0]).unlink()
    monkeypatch.setattr(durable_files, "_restored", set[Any]())
    restore(tmp_path)
    assert not stored(tmp_path)


def test_journals_of_ended_processes_are_removed(
    tmp_path: Path, commits: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of a process that runs, and not before the system has had the time to write the files."""
    assert commit(commits, tmp_path, (KEYS[0], content(0)))
    with monkeypatch.context() as small:
        small.setattr(durable_files, "MAX_JOURNAL_BYTES", 1)  # each commit ends its journal
        for n in range(2):
            assert commit(GroupCommit(boot_id()), tmp_path, (KEYS[n], content(n)), (KEYS[5], None))
    before = journals(tmp_path)
    remove_synced(tmp_path, boot_id())
    assert journals(tmp_path) == before
    for path in before:
        os.utime(path, (1, 1))
    remove_synced(tmp_path, boot_id())
    assert len(before) == 3
    assert len(journals(tmp_path)) == 1


def test_only_some_journals_are_open(tmp_path: Path, commits: GroupCommit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that uses many folders does not run out of handles."""
    monkeypatch.setattr(durable_files, "MAX_OPEN", 2)
    for n in (1, 2, 3, 1):
        assert commit(commits, tmp_path / f"{n}", (KEYS[0], content(n)))
    assert [len(journals(tmp_path / f"{n}")) for n in (1, 2, 3)] == [2, 1, 1]


def test_on_a_full_disk_nothing_is_torn(tmp_path: Path, commits: GroupCommit) -> None:
    """A journal that can't grow is given up, without what was half written; the next one goes on."""
    assert commit(commits, tmp_path, (KEYS[0], content(0)))
    [journal] = journals(tmp_path)
    size = journal.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        assert not commit(commits, tmp_path, (KEYS[1], content(1)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert journal.stat().st_size == size
    assert commit(commits, tmp_path, (KEYS[1], content(1)))
    assert len(journals(tmp_path)) == 2


def test_a_journal_that_was_deleted_is_replaced(tmp_path: Path, commits: GroupCommit) -> None:
    """Whoever deletes a store while a process runs does not make its next answers less durable."""
    assert commit(commits, tmp_path / "store", (KEYS[0], content(0)))
    rmtree(tmp_path / "store")
    assert commit(commits, tmp_path / "store", (KEYS[1], content(1)))
    assert stored(tmp_path / "store") == {KEYS[1]: content(1)}
    assert len(journals(tmp_path / "store")) == 1


@pytest.mark.slow
def test_where_a_journal_cannot_be_all_is_as_without(tmp_path: Path) -> None:
    """The files are written one by one; where that can't be done either, its error is raised."""
    (tmp_path / JOURNALS).write_text("")
    (tmp_path / "folder" / KEYS[0]).mkdir(parents=True)

    async def store(folder: Path) -> None:
        await BlobStore(LocalFileSystem(basepath=str(folder))).store((KEYS[0], content(0)), (KEYS[1], None))

    asyncio.run(store(tmp_path))
    assert stored(tmp_path) == {KEYS[0]: content(0)}
    with pytest.raises(TransientError, match="can't be written: IsADirectoryError"):
        asyncio.run(store(tmp_path / "folder"))


def test_on_other_file_systems_each_file_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's disks may lose what this machine has not."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw\n2 1 8:2 / /a\\040b rw - nfs4 server:/ rw\n"
        "3 1 8:3 / /c rw - xfs /dev/c rw\n4 1 8:4 / /c rw - fuse.x x rw\n"
    )
    monkeypatch.setattr(durable_files, "MOUNTS", mounts)
    found = [file_system_of(Path(path)) for path in ("/", "/a", "/a b/c", "/c/d")]
    assert found == ["ext4", "ext4", "nfs4", "fuse.x"]
    assert group_commit_for(Path("/a b")) is None
    mounts.unlink()
    assert not file_system_of(Path("/"))


def test_a_system_without_an_identity_syncs_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it has started again since could not be known."""
    monkeypatch.setattr(durable_files, "BOOT_ID", tmp_path / "none")
    monkeypatch.setattr(durable_files, "boot_id", boot_id.__wrapped__)
    assert not durable_files.boot_id()
    assert group_commit_for(tmp_path) is None


def test_no_batch_is_longer_than_its_limit(
    tmp_path: Path, commits: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More changes than that are synced in several steps."""
    monkeypatch.setattr(durable_files, "MAX_BATCH", 2)

    async def commit_all() -> list[bool]:
        return await asyncio.gather(*(commits.commit(tmp_path, (key, content(1))) for key in KEYS))

    assert asyncio.run(commit_all()) == [True] * len(KEYS)
    assert stored(tmp_path) == {key: content(1) for key in KEYS}


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """Neither a file nor a journal begins where the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            create_quickly(str(tmp_path / "file"), b"longer than that")
        assert not commit(GroupCommit(boot_id()), tmp_path, (KEYS[0], content(0)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stored(tmp_path) == {}
    assert not (tmp_path / "file").exists()
    assert journals(tmp_path) == []


@pytest.mark.usefixtures("prefect_server")
def test_after_a_power_failure_nothing_is_asked_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files of a run are lost, as none of them was synced; the journal was."""
    executor = ScriptedExecutor(lambda ask: ask.item.key)
    job = cast("Any", [Brief(name="say", instructions="Say it.")]), ["a", "b", "c"]
    first = dispatch(*job, executor=executor)
    lost = [path for path in store.glob(f"{PREFIX}*") if executor.calls]
    for path in lost:
        path.write_bytes(b"")
    stop_machine(store, monkeypatch)
    again = dispatch(*job, executor=executor)
    assert (executor.calls, again.value) == (3, first.value)


LIFE = """
import asyncio, sys
from pathlib import Path
from prefect_dispatch.serialization.durable_files import group_commit_for
folder, name = Path(sys.argv[1]), sys.argv[2]
commits = group_commit_for(folder)
async def one(worker):
    for n in range(100_000):
        key = f"prefect-dispatch-{name}-{worker}-{n}"
        assert await commits.commit(folder, (key, b'{"key": "%s"}' % key.encode()))
        sys.stdout.write(key + "\\n")
        sys.stdout.flush()
async def main():
    await asyncio.gather(*map(one, range(20)))
asyncio.run(main())
"""


def _live(folder: Path, names: Sequence[str]) -> list[list[str]]:
    """Run processes that commit, kill them, and return what each of them was sure of."""
    lives = [
        subprocess.Popen(  # noqa: S603 -- this interpreter
            [sys.executable, "-c", LIFE, str(folder), name], stdout=subprocess.PIPE, text=True
        )
        for name in names
    ]
    sure = [[cast("Any", life.stdout).readline()] for life in lives]
    time.sleep(random.Random(1).random() * 0.2)
    for life in lives:
        life.send_signal(signal.SIGKILL)
    for life, keys in zip(lives, sure, strict=True):
        # The last line may be cut off.
        keys += [line for line in life.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
    return [[key.strip() for key in keys] for keys in sure]


@pytest.mark.slow
def test_killed_in_the_middle_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes commit in one folder and are killed: what they were sure of is in the files and the journals."""
    keys = {key for each in _live(tmp_path, ("a", "b")) for key in each}
    expected = {key: b'{"key": "%s"}' % key.encode() for key in keys}
    assert len(journals(tmp_path)) == 2
    assert expected.items() <= stored(tmp_path).items()
    for path in tmp_path.glob(f"{PREFIX}*"):
        path.unlink()
    stop_machine(tmp_path, monkeypatch)
    restore(tmp_path)
    assert expected.items() <= stored(tmp_path).items()
    assert all(json.loads(text)["key"] == key for key, text in stored(tmp_path).items())
