"""The state folder: leases and environments of programs, and the clean-up after processes that died.

A lease is a temporary folder that is bound to the life of a process, and removed after it dies. The owner holds a lock
of the operating system on a file for as long as it lives, so no process id has to be trusted. Lock files are created,
listed and removed under one lock of the state folder, so a new folder never looks abandoned to another process.

A program gets the variables listed here, and those that a job passes explicitly. Its whole output is in a log file,
which is kept for a week.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import shutil
import stat
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated, Any, cast

from filelock import FileLock, Timeout
from platformdirs import user_state_path
from pydantic import StringConstraints

from prefect_dispatch.errors import JobError
from prefect_dispatch.processes.process_tree import Mark, end_processes
from prefect_dispatch.security.redaction import register_secrets, secrets_in
from prefect_dispatch.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from filelock import BaseFileLock
    from pydantic import JsonValue

CEILINGS = "GIT_CEILING_DIRECTORIES"
"""git's own variable: folders in which, and above which, no repository is looked for."""
WAIT_S = 30.0
"""Seconds to wait for the lock of the state folder, which is held for milliseconds."""
CLEAN_UP_EVERY_S = 60.0
"""Shortest time in seconds between two clean-ups by one process."""
GRACE_S = 1.0
"""Seconds that a program of a dead run has to end itself."""
INHERITED = (
    "PATH",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_COLLATE",
    "LC_CTYPE",
    "LC_MESSAGES",
    "LC_NUMERIC",
    "LC_TIME",
    "TZ",
    "USER",
    "LOGNAME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
)
"""The variables that every program gets: for the search path, the language, the time zone and certificates. Neither
proxies, whose addresses may contain a password, nor keys."""
LEASE = "PREFECT_DISPATCH_LEASE"
"""The variable that marks the processes of a lease for the clean-up."""
SET_PER_PROGRAM = re.compile(r"PREFECT_DISPATCH_.*|ITEM_.*|REPORT_DIR")
"""Names of variables that are set separately for each program, and can't be set elsewhere."""
RESERVED = re.compile(rf"{SET_PER_PROGRAM.pattern}|HOME|TMPDIR|TMP|TEMP")
"""Names of variables that can't be passed."""
LOG_RETENTION_DAYS = 7
"""Days after which a log is removed."""
MAX_TOTAL_LOG_BYTES = 1_000_000_000
"""Most bytes of all logs together; beyond it the oldest ones are removed."""
LOG_DESCRIPTION = ".json"
"""Suffix of the file beside a log that describes what it belongs to (`program_logs`)."""

Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]
"""The name of an environment variable."""

_ABOUT, _KEPT = "lease.json", "kept"
_POINTER, _LONGEST_POINTER = b"gitdir:", 8192
"""Start of a file `.git` that names the folder of its repository, and how many bytes of it are read."""
_own_leases: dict[str, tuple[int, Lease, BaseFileLock]] = {}
"""The leases of this process, with its process id, as a forked child inherits the entries of its parent."""
_lock_of = partial(FileLock, thread_local=False)  # one thread may acquire it, and another release it
_log = logging.getLogger("prefect_dispatch")
_clean_up_lock = threading.Lock()
_next_clean_up: dict[str, float] = {}
"""Time of the next clean-up, by state folder."""


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
        # git looks for a repository in a folder and its parents, up to `GIT_CEILING_DIRECTORIES`.
        ceilings = {*map(Path, os.environ.get(CEILINGS, "").split(os.pathsep))}
        searched = (folder, *takewhile(lambda parent: parent not in ceilings, folder.parents))
        if repository := next(filter(_is_repository, searched), None):
            raise JobError(f"The state folder {str(folder)!r} is in the repository {str(repository)!r}: {way_out}.")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            folder.chmod(0o700)
    except (OSError, RuntimeError) as error:  # a RuntimeError if the user has no home folder
        reason = getattr(error, "strerror", None) or error
        raise JobError(f"The state folder {configured!r} can't be used ({reason}): {way_out}.") from None
    return folder


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
        # A linked worktree has its objects in the folder of the main repository.
        common = git_dir / os.fsdecode(shared.read_bytes()[:_LONGEST_POINTER].strip()) if shared.is_file() else git_dir
        has_head = head.is_file() or head.is_symlink()
        return has_head and (common / "objects").is_dir() and (common / "refs").is_dir()
    except OSError:  # what this user can't read, git can't either
        return False


def private_folder(path: Path) -> Path:
    """Create a folder that only its user can access, if it doesn't exist, and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


@dataclass(frozen=True)
class Lease:
    """A folder that exists as long as the process that owns it."""

    id: str
    """12 hexadecimal digits; programs that run for it have them in the variable `PREFECT_DISPATCH_LEASE`."""
    path: Path
    """The folder, accessible to its user only."""
    about: Mapping[str, JsonValue]
    """Description of its purpose, for people and for the clean-up."""

    def keep(self) -> None:
        """Keep the folder for inspection: neither the end of the lease nor the clean-up removes it."""
        (self.path / _KEPT).touch()


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
        lock = _lock_of(file)
        with suppress(Timeout), _state_lock(root):
            if file.exists():  # else another process has just cleared it
                lock.acquire(timeout=0)
        # 2. End its programs, then remove its folder and its lock.
        if lock.is_locked:
            abandoned = _read_lease(root / file.stem)
            try:
                clear(abandoned)
            finally:
                _end_lease(abandoned, lock)
            cleared.append(abandoned)
    return cleared


def reap() -> list[Lease]:
    """Clean up after processes that died, and return their leases; those of living processes are not touched.

    Raises:
        JobError: If the state folder can't be used.
    """
    prune_logs()
    return remove_abandoned(lambda abandoned: end_processes(Mark(LEASE, abandoned.id), grace_s=GRACE_S))


def reap_periodically() -> None:
    """Clean up, unless this process has done so within `CLEAN_UP_EVERY_S`; called before a program is run.

    Raises:
        JobError: If the state folder can't be used.
    """
    folder = str(state_folder())
    with _clean_up_lock:
        if time.monotonic() < _next_clean_up.get(folder, 0.0):
            return
        _next_clean_up[folder] = time.monotonic() + CLEAN_UP_EVERY_S
    for abandoned in reap():
        _log.info("Cleared away what a run that died had left: %s", abandoned.path)


def remove_tree(folder: Path) -> None:
    """Remove a folder and its content, read-only folders included; links are not followed."""
    for parent, _, _ in os.walk(folder):
        with suppress(OSError):
            Path(parent).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _leases_folder() -> Path:
    """Return the folder of all leases and their lock files; create it if it doesn't exist."""
    return private_folder(state_folder() / "leases")


def _state_lock(root: Path) -> BaseFileLock:
    """Return the lock of the state folder, for exclusive access to the lock files."""
    return _lock_of(root.with_name("leases.lock"), timeout=WAIT_S)


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


def build_environment(
    lease: Lease, *, pass_env: Sequence[str] = (), more: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the complete environment of a program, which inherits nothing else.

    HOME and TMPDIR are folders of its own in that of its lease. Git never searches for a repository above the
    state folder. The values of variables with names such as `…_TOKEN` or `…_KEY` are redacted from here on.

    Args:
        lease: The lease that the program runs for.
        pass_env: Names of further variables that it gets as they are set here.
        more: Variables with other values; these win.

    Raises:
        JobError: If one of the named variables isn't set.
    """
    require_passable(pass_env)
    home, temporary = (private_folder(lease.path / name) for name in ("home", "tmp"))
    inherited = {name: os.environ[name] for name in (*INHERITED, *pass_env) if name in os.environ}
    register_secrets(secrets_in(inherited))
    # Later entries win: nothing replaces the id of the lease, by which the reaper finds the processes.
    return {
        "PATH": os.defpath,
        **inherited,
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "GIT_CEILING_DIRECTORIES": str(lease.path.parent),
        **(more or {}),
        LEASE: lease.id,
    }


def require_passable(names: Sequence[str]) -> None:
    """Check that variables can be passed to a program.

    Raises:
        JobError: If one isn't set, or is reserved.
    """
    for name in names:
        if RESERVED.fullmatch(name):
            raise JobError(f"pass_env: {name!r} is set separately for each program, and can't be passed; leave it out.")
        if name not in os.environ:
            raise JobError(f"pass_env: the environment variable {name!r} is not set here: set it, or leave it out.")


def read_end(log: Path, most: int) -> str:
    """Return the end of a log without trailing whitespace; empty if it can't be read.

    Args:
        log: The log, which is already redacted.
        most: Most bytes of the text; whole lines, if any fit.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            end = file.read(most)
    except OSError:
        return ""
    text = end.decode("utf-8", "replace").rstrip()
    lines = text[text.find("\n") + 1 :]
    return text if size <= most else f"…{lines if lines.strip() else text}"


def prune_logs() -> None:
    """Remove the logs that are older than `LOG_RETENTION_DAYS`, and the oldest ones beyond `MAX_TOTAL_LOG_BYTES`.

    Raises:
        JobError: If the state folder can't be used.
    """
    logs = list[tuple[float, int, Path]]()
    for log in (state_folder() / "logs").glob("*/*.log"):
        with suppress(FileNotFoundError):  # another process has removed it
            status = log.stat()
            logs.append((status.st_mtime, status.st_size, log))
    budget, oldest = MAX_TOTAL_LOG_BYTES, time.time() - LOG_RETENTION_DAYS * 86_400
    for changed, size, log in sorted(logs, reverse=True):
        budget -= size
        if changed < oldest or budget < 0:
            log.unlink(missing_ok=True)
            log.with_suffix(LOG_DESCRIPTION).unlink(missing_ok=True)
    for description in (state_folder() / "logs").glob(f"*/*{LOG_DESCRIPTION}"):  # also of programs that never started
        with suppress(FileNotFoundError):
            if description.stat().st_mtime < oldest:
                description.unlink()
