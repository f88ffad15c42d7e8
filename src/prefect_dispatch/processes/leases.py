"""Leases: temporary folders that are bound to the life of a process, and removed after it dies.

The owner holds a lock of the operating system on a file for as long as it lives, so no process id has to be
trusted. Lock files are created, listed and removed under one lock of the state folder, so a new folder never looks
abandoned to another process.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock, Timeout
from platformdirs import user_state_path

from prefect_dispatch.errors import JobError
from prefect_dispatch.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from filelock import BaseFileLock
    from pydantic import JsonValue

CEILINGS = "GIT_CEILING_DIRECTORIES"
"""git's own variable: folders in which, and above which, no repository is looked for."""
WAIT_S = 30.0
"""Seconds to wait for the lock of the state folder, which is held for milliseconds."""

_ABOUT, _KEPT = "lease.json", "kept"
_POINTER, _LONGEST_POINTER = b"gitdir:", 8192
"""Start of a file `.git` that names the folder of its repository, and how many bytes of it are read."""
_own_leases: dict[str, tuple[int, Lease, BaseFileLock]] = {}
"""The leases of this process, with its process id, as a forked child inherits the entries of its parent."""
_lock_of = partial(FileLock, thread_local=False)  # one thread may acquire it, and another release it


@dataclass(frozen=True)
class Lease:
    """A folder that exists as long as the process that owns it."""

    id: str
    """12 hexadecimal digits; programs that run for it have them in the variable `PREFECT_DISPATCH_LEASE`."""
    path: Path
    """The folder, accessible to its user only."""
    about: Mapping[str, JsonValue] = field(default_factory=dict[str, "JsonValue"])
    """Description of its purpose, for people and for the clean-up."""

    def keep(self) -> None:
        """Keep the folder for inspection: neither the end of the lease nor the reaper removes it."""
        (self.path / _KEPT).touch()


def state_folder() -> Path:
    """Return the folder for files that outlive a process: `PREFECT_DISPATCH_STATE`, else in the user's state folder.

    It is created if it doesn't exist, and made accessible to its user only.

    Raises:
        JobError: If it can't be used, or is inside a repository.
    """
    configured = settings().state or str(user_state_path("prefect-dispatch"))
    way_out = "set PREFECT_DISPATCH_STATE to a folder of your own outside of every repository"
    try:
        folder = Path(configured).expanduser().absolute()
        repository = next(filter(_is_repository, _searched_folders(folder)), None)
        if repository is not None:
            raise JobError(f"The state folder {str(folder)!r} is in the repository {str(repository)!r}: {way_out}.")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            folder.chmod(0o700)
    except (OSError, RuntimeError) as error:  # a RuntimeError if the user has no home folder
        reason = getattr(error, "strerror", None) or error
        raise JobError(f"The state folder {configured!r} can't be used ({reason}): {way_out}.") from None
    return folder


@contextmanager
def lease(*, about: Mapping[str, JsonValue] | None = None) -> Generator[Lease, None, None]:
    """Lease a new folder; it is removed with all its content at the end.

    Args:
        about: Description of its purpose, for people and for the clean-up.

    Yields:
        The lease.

    Raises:
        JobError: If the state folder can't be used.

    Example:
        >>> with lease() as mine:
        ...     _ = (mine.path / "note.txt").write_text("Mine.")
        ...     there = mine.path.exists()
        >>> there, mine.path.exists()
        (True, False)
    """
    root = _leases_folder()
    name = token_hex(6)  # short, as the path of a socket in its TMPDIR is limited to 107 bytes
    mine = Lease(name, root / name, about or {})
    # Lock first, so that the folder never exists without a lock that is held.
    with _state_lock(root):
        lock = _lock_of(root / f"{name}.lock")
        lock.acquire(timeout=0)
    _own_leases[name] = os.getpid(), mine, lock
    try:
        mine.path.mkdir(mode=0o700)
        record = {"pid": os.getpid(), **mine.about}
        (mine.path / _ABOUT).write_text(json.dumps(record), encoding="utf-8")
        yield mine
    finally:
        if _own_leases.pop(name, None):
            _end_lease(mine, lock)


@atexit.register  # registered at import, so that it runs after the watchdog has ended the programs
def end_own_leases() -> None:
    """End every lease of this process at its exit, as the code that owns them doesn't get to its end."""
    for name, (pid, mine, lock) in [*_own_leases.items()]:
        if pid == os.getpid() and _own_leases.pop(name, None) is not None:
            _end_lease(mine, lock)


def remove_abandoned(clear: Callable[[Lease], None]) -> list[Lease]:
    """Remove the folders of processes that died; return their leases.

    Args:
        clear: Called before a folder is removed, to end the programs that still run for it. The lease is locked
            until then, so that no other process clears the same one.

    Raises:
        JobError: If the state folder can't be used.
    """
    root, cleared = _leases_folder(), list[Lease]()
    for file in sorted(root.glob("*.lock")):
        # 1. A lock that can be acquired is one whose owner has died.
        with _state_lock(root):
            lock = _acquire_abandoned(file)
        # 2. End its programs, then remove its folder and its lock.
        if lock is not None:
            abandoned = _read_lease(root / file.stem)
            try:
                clear(abandoned)
            finally:
                _end_lease(abandoned, lock)
            cleared.append(abandoned)
    return cleared


def remove_tree(folder: Path) -> None:
    """Remove a folder and its content, read-only folders included; links are not followed."""
    for parent, _, _ in os.walk(folder):
        with suppress(OSError):
            Path(parent).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _searched_folders(folder: Path) -> Iterator[Path]:
    """Yield a folder and its parents, in which git looks for a repository: up to `GIT_CEILING_DIRECTORIES`."""
    ceilings = {Path(each) for each in os.environ.get(CEILINGS, "").split(os.pathsep) if each}
    yield folder
    yield from takewhile(lambda parent: parent not in ceilings, folder.parents)


def _is_repository(folder: Path) -> bool:
    """Return whether a folder is the top of a git checkout, by the same criteria as git itself.

    An empty folder `.git` doesn't make it one: Codex, for one, leaves such folders behind when its sandbox is ended.
    git itself is not called, because it refuses to read a repository of another user, and may not be installed.
    """
    git_dir = folder / ".git"
    try:
        if git_dir.is_file():  # a linked worktree or a submodule names the folder of its repository
            pointer = git_dir.read_bytes()[:_LONGEST_POINTER]
            if not pointer.startswith(_POINTER):
                return False
            git_dir = folder / os.fsdecode(pointer.removeprefix(_POINTER).strip())
        head, shared = git_dir / "HEAD", git_dir / "commondir"
        if not (head.is_file() or head.is_symlink()):
            return False
        # A linked worktree has its objects in the folder of the main repository.
        common = git_dir / os.fsdecode(shared.read_bytes()[:_LONGEST_POINTER].strip()) if shared.is_file() else git_dir
        return (common / "objects").is_dir() and (common / "refs").is_dir()
    except OSError:  # what this user can't read, git can't either
        return False


def _leases_folder() -> Path:
    """Return the folder of all leases and their lock files; create it if it doesn't exist."""
    folder = state_folder() / "leases"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _state_lock(root: Path) -> BaseFileLock:
    """Return the lock of the state folder, for exclusive access to the lock files."""
    return _lock_of(root.with_name("leases.lock"), timeout=WAIT_S)


def _acquire_abandoned(file: Path) -> BaseFileLock | None:
    """Acquire and return the lock of a lease whose owner died; None if it lives, or another process has cleared it."""
    if not file.exists():
        return None
    lock = _lock_of(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _read_lease(folder: Path) -> Lease:
    """Read the lease of a folder; its description is empty if the owner died before writing it."""
    about: object = None
    with suppress(OSError, ValueError):
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    return Lease(folder.name, folder, cast("dict[str, Any]", about) if isinstance(about, dict) else {})


def _end_lease(finished: Lease, lock: BaseFileLock) -> None:
    """Remove the folder of a lease, unless it is to be kept, and then its lock.

    If the folder can't be removed completely, its lock file stays, so that a later clean-up tries again.
    """
    keep = (finished.path / _KEPT).exists()
    if not keep:
        remove_tree(finished.path)
    with _state_lock(finished.path.parent):
        if keep or not finished.path.exists():
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
