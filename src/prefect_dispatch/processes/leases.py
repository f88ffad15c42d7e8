"""Folders that belong to somebody who is alive: what is left of the dead is found and cleared away.

The owner holds an operating system's lock for as long as it lives, so that no process number has to be
believed. Lock files are made, looked for and removed under one lock of the state folder; between two
processes there is no moment in which a folder that is about to be used looks abandoned.
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
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock, Timeout
from platformdirs import user_state_path

from prefect_dispatch.errors import JobError
from prefect_dispatch.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from filelock import BaseFileLock
    from pydantic import JsonValue

WAIT_S = 30.0
"""How long to wait for the lock of the state folder, which is held for milliseconds."""

_ABOUT, _KEPT = "lease.json", "kept"
_POINTER, _LONGEST_POINTER = b"gitdir:", 8192
"""How a file `.git` begins that names the folder of its repository, and how many bytes of it are read."""
_mine: dict[str, tuple[int, Lease, BaseFileLock]] = {}
"""The leases of this process, each with its number: a forked child sees its parent's, too."""
_lock_of = partial(FileLock, thread_local=False)  # one thread may take it, another let it go


@dataclass(frozen=True)
class Lease:
    """A folder that somebody has for as long as they live."""

    id: str
    """12 hexadecimal digits; programs that run for it carry them in `PREFECT_DISPATCH_LEASE`."""
    path: Path
    """The folder; nobody but the owner's user can look into it."""
    about: Mapping[str, JsonValue] = field(default_factory=dict[str, "JsonValue"])
    """What it is for, for whoever finds it."""

    def keep(self) -> None:
        """Leave the folder where it is for people to look at: neither its end nor a reaper removes it."""
        (self.path / _KEPT).touch()


def state_folder() -> Path:
    """Return the folder for what outlives a process: `PREFECT_DISPATCH_STATE`, by default that of the user's state.

    Raises:
        JobError: If it can't be used, or lies inside a repository, or others may look into it.
    """
    said = settings().state or str(user_state_path("prefect-dispatch"))
    way_out = "set PREFECT_DISPATCH_STATE to a folder of your own outside of every repository"
    try:
        folder = Path(said).expanduser().absolute()
        inside = next((parent for parent in (folder, *folder.parents) if _is_repository(parent)), None)
        if inside is not None:
            raise JobError(f"The state folder {str(folder)!r} is in the repository {str(inside)!r}: {way_out}.")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            folder.chmod(0o700)
    except (OSError, RuntimeError) as error:  # a RuntimeError where there is no home
        reason = getattr(error, "strerror", None) or error
        raise JobError(f"The state folder {said!r} can't be used ({reason}): {way_out}.") from None
    return folder


@contextmanager
def lease(*, about: Mapping[str, JsonValue] | None = None) -> Generator[Lease, None, None]:
    """Have a new folder; at the end it is removed, whatever is in it.

    Args:
        about: What it is for, for whoever finds it.

    Raises:
        JobError: If the state folder can't be used.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     os.environ["PREFECT_DISPATCH_STATE"] = folder
        ...     with lease() as mine:
        ...         _ = (mine.path / "note.txt").write_text("Mine.")
        ...     left = mine.path.exists()
        ...     del os.environ["PREFECT_DISPATCH_STATE"]
        >>> left
        False
    """
    root = _root()
    name = token_hex(6)  # no longer: the path of a socket in its TMPDIR has room for 107 bytes in all
    mine = Lease(name, root / name, about or {})
    with _alone(root):
        lock = _lock_of(root / f"{name}.lock")
        lock.acquire(timeout=0)
    _mine[name] = os.getpid(), mine, lock
    try:
        mine.path.mkdir(mode=0o700)
        said = {"pid": os.getpid(), **mine.about}
        (mine.path / _ABOUT).write_text(json.dumps(said), encoding="utf-8")
        yield mine
    finally:
        if _mine.pop(name, None):
            _end(mine, lock)


@atexit.register  # here, so that it is done after a guard has ended what runs
def end_all() -> None:
    """End every lease of this process: it ends, and nobody comes to the end of what those were for."""
    for name, (pid, mine, lock) in [*_mine.items()]:
        if pid == os.getpid() and _mine.pop(name, None) is not None:
            _end(mine, lock)


def clear_abandoned(clear: Callable[[Lease], None]) -> list[Lease]:
    """Remove the folders of the dead; return whose they were.

    Args:
        clear: Called before a folder is removed, to end what still runs for it. Meanwhile the lease is held, so that
            nobody else clears the same away.

    Raises:
        JobError: If the state folder can't be used.
    """
    root, cleared = _root(), list[Lease]()
    for file in sorted(root.glob("*.lock")):
        with _alone(root):
            lock = _held(file)
        if lock is not None:
            left = _read(root / file.stem)
            try:
                clear(left)
            finally:
                _end(left, lock)
            cleared.append(left)
    return cleared


def remove_tree(folder: Path) -> None:
    """Remove a folder and what is in it, folders included that nobody may write to; links are not followed."""
    for parent, _, _ in os.walk(folder):
        with suppress(OSError):
            Path(parent).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _is_repository(folder: Path) -> bool:
    """Return whether a folder is the top of a git checkout, by the same marks as git itself.

    A mere folder `.git` is none: Codex, for one, leaves empty ones behind where its sandbox was ended. git is not
    asked, because it refuses to look into a repository of another user, and need not be installed here.
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
        # A linked worktree has its objects where the repository has them.
        common = git_dir / os.fsdecode(shared.read_bytes()[:_LONGEST_POINTER].strip()) if shared.is_file() else git_dir
        return (common / "objects").is_dir() and (common / "refs").is_dir()
    except OSError:  # what this user can't read, git can't either
        return False


def _root() -> Path:
    folder = state_folder() / "leases"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _alone(root: Path) -> BaseFileLock:
    return _lock_of(root.with_name("leases.lock"), timeout=WAIT_S)


def _held(file: Path) -> BaseFileLock | None:
    """Return the lock of a lease whose owner is gone, or None if it lives, or somebody else has cleared it away."""
    if not file.exists():
        return None
    lock = _lock_of(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _read(folder: Path) -> Lease:
    """Return what a folder says of its lease; nothing, if its owner died before it said anything."""
    about: object = None
    with suppress(OSError, ValueError):
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    return Lease(folder.name, folder, cast("dict[str, Any]", about) if isinstance(about, dict) else {})


def _end(ended: Lease, lock: BaseFileLock) -> None:
    """Remove the folder of a lease, unless it is to be kept, and then its lock; what stays is tried again later."""
    kept = (ended.path / _KEPT).exists()
    if not kept:
        remove_tree(ended.path)
    with _alone(ended.path.parent):
        if kept or not ended.path.exists():
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
