"""Atomic writes of files, one by one, or many at once through a journal as a result storage on this machine needs them.

What is stored counts once it would survive a power failure. To sync a file and its folder takes longer than everything
else that is done to store an answer. So on a local file system the changes that wait at the same time are appended to a
journal, which is synced once for all of them (a group commit), and then each file is written without a sync of its own.

Readers only ever read the files; a process that is killed loses none of them, as the system has them. The journal is
read after the operating system has stopped: the next process that uses the folder writes files again that were lost
(`restore`). Journals of processes that have ended are removed once their files are synced (`remove_synced`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import stat
import sys
import threading
import time
import zlib
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, cast
from uuid import uuid4

from prefect_dispatch.security.escaping import count_noun

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence


if sys.platform == "linux":  # pragma: no branch -- other systems have no journal
    import fcntl


# This module uses `os` directly: pathlib and open take several times as long as the system calls themselves.


def write_atomically(path: Path | str, parts: Iterable[bytes], *, durable: bool = False) -> None:
    """Write a file atomically, with the permissions of an existing one; its folder is created if it doesn't exist.

    Args:
        path: The path; a symbolic link is replaced by a file.
        parts: The content.
        durable: Whether it has to survive a power failure, too.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name[:100]}-{uuid4().hex}")  # noqa: PTH118 -- see above
    # 1. Write a temporary file in the same folder: others may not read it if the existing one is private.
    mode = _mode_of_file(path)
    handle = _create(temporary, 0o666 if mode is None else 0o600)
    try:
        try:
            for part in parts:
                _write_all(handle, part)
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)
        # 2. Rename it.
        if mode is not None:
            os.chmod(temporary, mode)  # noqa: PTH101 -- see above
        os.replace(temporary, path)  # noqa: PTH105 -- see above
    except BaseException:
        os.unlink(temporary)  # noqa: PTH108 -- see above
        raise
    # 3. Sync the folder, so that the rename is durable, too.
    if durable:
        _sync_folder(folder or ".")


def create_quickly(path: str, content: bytes) -> bool:
    """Create a file in place, and return whether it is new: an existing one is not touched.

    A reader may see its beginning only, and a power failure may lose it.

    Args:
        path: The absolute path.
        content: The content.
    """
    try:
        handle = _create(path)
    except FileExistsError:
        return False
    try:
        _write_all(handle, content)
    except BaseException:
        os.unlink(path)  # noqa: PTH108 -- see above
        raise
    finally:
        os.close(handle)
    return True


def _create(path: str, mode: int = 0o666) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags, mode)
    except FileNotFoundError:  # the folder is missing
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, mode)


def _mode_of_file(path: Path | str) -> int | None:
    """Return the permissions of a regular file; None where there is none."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    return stat.S_IMODE(mode) if stat.S_ISREG(mode) else None


def _write_all(handle: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _sync_folder(folder: str | Path) -> None:
    with suppress(OSError):  # some systems can't sync folders
        _sync(folder)


def _sync(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


JOURNALS = ".prefect-dispatch.journals"
"""Folder of the journals, within that of the files."""

SUFFIX = ".journal"

MAX_BATCH = 1000
"""Commits that are synced together, at most."""

MAX_OPEN = 8
"""Journals that are open, at most: one for each folder."""

MAX_JOURNAL_BYTES = 64_000_000
"""Size of a journal beyond which another one is begun."""

SETTLE_S = 60.0
"""Age in seconds of a finished journal from which its files are synced: the system has written most of them by then."""

LOCAL_FILE_SYSTEMS = frozenset({"ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "tmpfs", "overlay"})
"""File systems whose files are on disks of this machine, and that lose unsynced files only when the system stops."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""The file with the identity of the running system."""

MOUNTS = Path("/proc/self/mountinfo")
"""The system's list of mounted file systems."""

Change = tuple[str, bytes | None]
"""Key of a file, and its new content; None: it is removed."""

_PLAIN = re.compile(r"[\w-][\w.-]*")
"""Keys in a journal: they name files in the folder itself, even where another program has written the journal."""

_log = logging.getLogger("prefect_dispatch")


class GroupCommit:
    """Commits changes of files, in a thread of its own; those that wait at the same time are synced together.

    Args:
        boot: The identity of the running system.
    """

    def __init__(self, boot: str) -> None:
        """Start the thread."""
        self._boot = boot
        self._waiting = SimpleQueue[_Commit]()
        self._journals: dict[Path, _Journal] = {}
        threading.Thread(target=self._run, name="prefect-dispatch-commit", daemon=True).start()

    async def commit(self, folder: Path, *changes: Change) -> bool:
        """Make changes in a folder durable, in their order; return whether that was done.

        It is waited for even where this coroutine is cancelled before. Where the journal or a file can't be written, or
        a key is none that a journal may have, False is returned: the caller has to write the files in another way,
        which raises the reason.
        """
        if not all(_PLAIN.fullmatch(key) for key, _ in changes):
            return False
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._waiting.put(_Commit(folder, changes, loop, done))
        try:
            return cast("bool", await asyncio.shield(done))
        except asyncio.CancelledError:
            await asyncio.wait({done})
            raise

    def _run(self) -> None:
        while True:
            self._commit_waiting()

    def _commit_waiting(self) -> None:
        # 1. Take what waits: one commit, and those that were added while the last ones were written.
        batch = [self._waiting.get()]
        with suppress(Empty):
            while len(batch) < MAX_BATCH:
                batch.append(self._waiting.get_nowait())
        # 2. Sync the journal, then write the files.
        synced = {folder: self._append(folder, batch) for folder in {each.folder for each in batch}}
        results = [(each, synced[each.folder] and _write_files(each)) for each in batch]
        # 3. Wake up those who wait: once for each event loop, as that takes a system call.
        for loop in {each.loop for each in batch}:
            with suppress(RuntimeError):  # the loop is closed, so that nothing waits there
                loop.call_soon_threadsafe(_resolve, [result for result in results if result[0].loop is loop])

    def _append(self, folder: Path, batch: Sequence[_Commit]) -> bool:
        """Append the changes of a folder to its journal and sync it; return whether that was possible."""
        try:
            journal = self._journals.get(folder)
            if journal is not None and not journal.is_in_place():
                self._journals.pop(folder).close()
                journal = None
            if journal is None:
                while len(self._journals) >= MAX_OPEN:
                    self._journals.pop(next(iter(self._journals))).close()
                journal = self._journals[folder] = _Journal(folder, self._boot)
                threading.Thread(target=remove_synced, args=(folder, self._boot), daemon=True).start()
            journal.append(change for commit in batch if commit.folder == folder for change in commit.changes)
            if journal.size > MAX_JOURNAL_BYTES:
                self._journals.pop(folder).close()
        except Exception as error:  # noqa: BLE001 -- the thread has to go on; the caller writes the files itself
            _log.debug("The journal of the result storage can't be written: %s", error)
            if journal := self._journals.pop(folder, None):
                journal.close()
            return False
        return True


def _write_files(commit: _Commit) -> bool:
    """Write files that a journal has; return whether that was possible."""
    try:
        for key, content in commit.changes:
            path = f"{commit.folder}/{key}"
            if content is None:
                with suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108 -- see above
            else:
                write_atomically(path, [content])
    except Exception as error:  # noqa: BLE001 -- as above
        _log.debug("A file of the result storage can't be written: %s", error)
        return False
    return True


class _Commit(NamedTuple):
    folder: Path
    changes: Sequence[Change]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[bool]


def _resolve(results: Sequence[tuple[_Commit, bool]]) -> None:
    for commit, is_done in results:
        commit.done.set_result(is_done)


class _Journal:
    """Journal of this process, which is locked as long as it is open.

    It begins with a line that identifies the running system. Each change follows as a line with the key, the time, and
    length and checksum of the content, then the content.
    """

    def __init__(self, folder: Path, boot: str) -> None:
        """Create it, and make it durable itself."""
        journals = folder / JOURNALS
        journals.mkdir(parents=True, exist_ok=True)
        self._path = journals / f"{uuid4().hex}{SUFFIX}"
        new = self._path.with_suffix(".new")
        self._handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self.size = 0
        try:
            _lock(self._handle, wait=False)
            self._write(json.dumps({"prefect-dispatch-journal": 1, "boot": boot}).encode() + b"\n")
            new.rename(self._path)  # other processes see it whole, and locked
            for each in (journals, folder):
                _sync(each)
            _sync_folder(folder.parent)  # the folder may be new
        except BaseException:
            self.close()
            raise

    def is_in_place(self) -> bool:
        """Return whether it is still where the next process looks for it: its folder may have been deleted."""
        try:
            return os.path.samestat(os.fstat(self._handle), self._path.stat())
        except FileNotFoundError:
            return False

    def append(self, changes: Iterator[Change]) -> None:
        """Append changes and sync them. After an error nothing may be appended any more."""
        now = time.time_ns()
        self._write(b"".join(format_change(key, now, content) for key, content in changes))

    def _write(self, content: bytes) -> None:
        _write_all(self._handle, content)
        os.fdatasync(self._handle)
        self.size += len(content)

    def close(self) -> None:
        """Close it, without what an error may have left at its end."""
        with suppress(OSError):
            os.ftruncate(self._handle, self.size)
        os.close(self._handle)


def format_change(key: str, at: int, content: bytes | None) -> bytes:
    """Return a change as a journal has it.

    Args:
        key: The key.
        at: When it is appended, in nanoseconds since the epoch.
        content: The content; None: the key is removed.
    """
    head = (key, at, None) if content is None else (key, at, len(content), zlib.crc32(content))
    return b"%b\n%b\n" % (json.dumps(head).encode(), content or b"")


class _Recorded(NamedTuple):
    """Change in a journal."""

    at: int
    """When it was appended, in nanoseconds since the epoch."""
    content: memoryview | None
    """Its part of the journal in memory; None: the key was removed."""


class _Records(NamedTuple):
    """Content of a journal."""

    boot: str
    """The system that it was written in; empty if that is unreadable."""
    last: dict[str, _Recorded]
    """The last change of each key."""
    unread: int
    """Bytes at its end that can't be read."""


def _read_journal(path: Path) -> _Records:
    data, read = path.read_bytes(), 0
    boot, last = "", dict[str, _Recorded]()
    # Reading ends at what is no whole record.
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        end = data.index(b"\n")
        boot, read = str(json.loads(data[:end])["boot"]), end + 1
        while read < len(data):
            end = data.index(b"\n", read)
            key, at, length, *checksum = json.loads(data[read:end])
            begin, end = end + 1, end + 1 + max(length or 0, 0)
            content = None if length is None else memoryview(data)[begin:end]
            if data[end : end + 1] != b"\n" or (content is not None and [zlib.crc32(content)] != checksum):
                break
            last[str(key)] = _Recorded(int(at), content)
            read = end + 1
    return _Records(boot, last, len(data) - read)


def restore(folder: Path) -> None:
    """Write files of a folder again that were lost when the operating system stopped, as its journals have them.

    It is done once by each process, before it reads anything in the folder. Others wait meanwhile. Journals are kept
    where that fails, which is logged.
    """
    if (os.getpid(), folder) in _restored or not _is_local(folder):  # elsewhere the journals are another machine's
        return
    _restored.add((os.getpid(), folder))
    boot = boot_id()
    try:
        with _locked_journals(folder) as paths:
            journals = {path: _read_journal(path) for path in paths}
            earlier = {path: journal for path, journal in journals.items() if journal.boot != boot}
            if earlier:
                _restore_files(folder, earlier)
    except OSError as error:
        _log.warning(
            "Answers that were stored right before this machine stopped could not be restored (%s), and may be asked "
            "again. Their journals stay in %s.",
            error,
            folder / JOURNALS,
        )


_restored: set[tuple[int, Path]] = set()
"""Process and folder where files were restored."""


def _restore_files(folder: Path, journals: dict[Path, _Records]) -> None:
    # 1. The last change of each key, over all journals.
    last: dict[str, _Recorded] = {}
    for path, journal in journals.items():
        if journal.unread:
            _log.warning(
                "The last %s of the journal %s can't be read. They were being written when this machine stopped, "
                "and what is in them did not count as stored yet.",
                count_noun(journal.unread, "byte"),
                path,
            )
        for key, change in journal.last.items():
            if (known := last.get(key)) is None or known.at < change.at:
                last[key] = change
    # 2. Write what is missing, and sync everything.
    restored = 0
    for key, change in last.items():
        if change.content is not None and _PLAIN.fullmatch(key):
            if not _has_newer(folder / key, change):
                write_atomically(folder / key, [bytes(change.content)])
                restored += 1
            _sync(folder / key)
    _sync_folder(folder)
    # 3. Then the journals have no use any more.
    for path in journals:
        path.unlink()
    if restored:
        _log.warning("%s restored that this machine had lost when it stopped.", count_noun(restored, "stored file"))


def _has_newer(path: Path, change: _Recorded) -> bool:
    """Return whether a file has the content of a change, or that of a later one."""
    try:
        content = path.read_bytes()
        if content == bytes(change.content or b""):
            return True
        json.loads(content)  # a torn file is none
        return path.stat().st_mtime_ns >= change.at
    except (FileNotFoundError, ValueError, RecursionError):
        return False


def remove_synced(folder: Path, boot: str) -> None:
    """Sync the files of journals whose processes have ended, and remove these journals."""
    with suppress(OSError), _locked_journals(folder) as paths:
        for path in paths:
            handle = os.open(path, os.O_RDONLY)
            try:
                if time.time() - os.fstat(handle).st_mtime < SETTLE_S or not _lock(handle, wait=False):
                    continue
                journal = _read_journal(path)
                if journal.boot != boot:  # pragma: no cover -- restored by the process that has created the folder
                    continue
                for key in journal.last:
                    with suppress(FileNotFoundError):
                        _sync(folder / key)
                _sync_folder(folder)
                path.unlink()
            finally:
                os.close(handle)


@contextmanager
def _locked_journals(folder: Path) -> Generator[list[Path]]:
    """Yield the journals of a folder, while no other process or thread restores or removes any."""
    journals = folder / JOURNALS
    try:
        names = os.listdir(journals)  # noqa: PTH208 -- see above
    except OSError:
        names = []
    if not any(name.endswith(SUFFIX) for name in names):
        yield []
        return
    handle = os.open(journals / "lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        _lock(handle, wait=True)
        yield sorted(journals.glob(f"*{SUFFIX}"))
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Lock an open file; return False where another handle has locked it. The lock ends with the handle."""
    if sys.platform == "linux":  # pragma: no branch -- other systems have no journal
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
    return True


def group_commit_for(folder: Path) -> GroupCommit | None:
    """Return the group commit of this process, for a folder; None where a file system or operating system has none."""
    return _group_commit(os.getpid()) if boot_id() and _is_local(folder) else None


@lru_cache(maxsize=1)
def _group_commit(process: int) -> GroupCommit:  # noqa: ARG001 -- a fork has no thread of its parent's
    return GroupCommit(boot_id())


@lru_cache(maxsize=64)
def _is_local(folder: Path) -> bool:
    return file_system_of(folder) in LOCAL_FILE_SYSTEMS


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return the identity of the running system, which changes when it starts again; empty where there is none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def file_system_of(folder: Path) -> str:
    """Return the type of the file system of a folder, which need not exist, such as `ext4`; empty if it is unknown."""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return ""
    found = Path(), ""
    for line in lines:
        before, _, after = line.partition(" - ")
        mount = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4]))
        # A later mount at the same place hides the one before.
        if folder.is_relative_to(mount) and len(mount.parts) >= len(found[0].parts):
            found = mount, after.split()[0]
    return found[1]
