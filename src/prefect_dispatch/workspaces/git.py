"""Run git in one repository, isolated from configuration, hooks, filters, prompts and the network.

The configuration of a repository may come from an agent, so nothing in it may start a program: settings that name one
are overridden, no transport is allowed, and settings of the user and the system don't apply, except for
`safe.directory`, without which git refuses a repository of another user. Filters, drivers and conversions have
arbitrary names, and can't be overridden: so files of a checkout are only read by repositories of ours
(`create_with_alternates`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event
from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError, TransientError
from prefect_dispatch.processes.state_folder import CEILINGS
from prefect_dispatch.security.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping


POLL_S = 0.1
"""Seconds between two checks whether a running command was cancelled."""
_cancelled: ContextVar[Event | None] = ContextVar("prefect-dispatch-git-cancelled", default=None)
"""The event of the current cancellation scope; `asyncio.to_thread` copies it to its threads."""


@contextmanager
def cancellation_scope() -> Generator[Event, None, None]:
    """Yield an event that ends each git command that is run inside, also in threads that are started inside."""
    token = _cancelled.set(cancelled := Event())
    try:
        yield cancelled
    finally:
        _cancelled.reset(token)


MIN_VERSION = (2, 38)
"""The oldest version of git that has all features in use."""
_INSTALL = f"install git {'.'.join(map(str, MIN_VERSION))} or newer"


LIMIT_S = 600.0
"""Default time limit of one call in seconds."""


_QUOTED = 2_000
"""Characters of the end of git's error output that an error quotes."""


_SETTINGS = {
    "advice.detachedHead": "false",
    "commit.gpgSign": "false",
    "core.askPass": "",
    "core.attributesFile": os.devnull,
    "core.autocrlf": "false",
    "core.eol": "lf",
    "core.excludesFile": os.devnull,
    "core.fileMode": "true",
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.pager": "cat",
    "core.quotePath": "true",
    "core.safecrlf": "false",
    "core.splitIndex": "false",
    "core.symlinks": "true",
    "core.untrackedCache": "false",
    "credential.helper": "",
    "diff.ignoreSubmodules": "all",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "protocol.allow": "never",
    "submodule.recurse": "false",
    "tag.gpgSign": "false",
}
"""Settings that override those of a repository."""


_ENVIRONMENT = {
    "HOME": os.devnull,
    "LC_ALL": "C",
    "TZ": "UTC",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_ASKPASS": "",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_EDITOR": ":",
    "GIT_LITERAL_PATHSPECS": "1",  # a file may have the name `*`
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",  # reading a checkout must not write its index
    "GIT_PAGER": "cat",
    "GIT_TERMINAL_PROMPT": "0",
    "SSH_ASKPASS": "",
}


_REPOSITORY_VARIABLE = re.compile(r"GIT_(?!CONFIG_)")
"""Variables of git, except those that name settings."""
_SHOWING, _PLAIN = frozenset({"diff", "log", "show"}), ("--no-ext-diff", "--no-textconv")
"""Options for commands that would otherwise run the repository's own programs to show differences."""


class GitError(TransientError):
    """A git command failed.

    Attributes:
        exit: Its exit code; None if it timed out or couldn't be run.
        stderr: Its output on standard error.
    """

    default_kind = "git"

    def __init__(self, message: str, *, exit: int | None = None, stderr: str = "") -> None:  # noqa: A002 -- its name
        """Create the error.

        Args:
            message: The message.
            exit: The exit code of git.
            stderr: The redacted end of its output on standard error.
        """
        super().__init__(message)
        self.exit = exit
        self.stderr = stderr


@dataclass(frozen=True)
class Git:
    """Runner of git commands in one repository; calls block, so coroutines have to use a thread.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     git = Git(Path(folder))
        ...     _ = git.output("init", "--quiet")
        ...     git.output("rev-parse", "--is-inside-work-tree")
        'true'
    """

    repo: Path
    """The folder in which it runs: that of a repository, bare or not, or one inside of it."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """More variables for each call."""
    limit_s: float = LIMIT_S
    """Seconds after which a call is killed: git blocks for ever on a named pipe in place of a file that it reads."""

    def output(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        """Run git, and return its output as text without trailing line breaks; invalid UTF-8 becomes surrogates.

        Args:
            args: The arguments of git.
            stdin: Its standard input.
            env: Further environment variables for this call.

        Raises:
            GitError: If its exit code isn't 0.
            JobError: If there is no git.
        """
        return self.output_bytes(*args, stdin=stdin, env=env).decode("utf-8", "surrogateescape").rstrip("\n")

    def output_bytes(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        """Run git, and return its output as bytes; see `output`."""
        return self.run(*args, stdin=stdin, env=env, most=0)[1]

    def run(
        self,
        *args: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        most: int = 255,
    ) -> tuple[int, bytes]:
        """Run git, and return its exit code and its output.

        Args:
            args: The arguments of git.
            stdin: Its standard input.
            env: Further environment variables for this call.
            most: The highest exit code that is no error.

        Raises:
            GitError: If its exit code is higher, or a signal ended it, or it took longer than `limit_s`.
            JobError: If there is no git.
        """
        command = [find_git(), args[0], *(_PLAIN if args[0] in _SHOWING else ()), *args[1:]]
        try:
            out, err, exit_code = self._execute(command, stdin, _environment({**self.env, **(env or {})}))
        except subprocess.TimeoutExpired:
            raise GitError(f"git {args[0]} took more than {self.limit_s:g} s in {str(self.repo)!r}.") from None
        except OSError as error:
            raise GitError(f"git can't run in {str(self.repo)!r}: {error.strerror or error}.") from None
        if 0 <= exit_code <= most:
            return exit_code, out
        message = redact(err[-_QUOTED:].decode("utf-8", "replace").strip())
        raise GitError(f"git {args[0]} failed ({exit_code}): {message}", exit=exit_code, stderr=message)

    def _execute(self, command: list[str], stdin: bytes, env: dict[str, str]) -> tuple[bytes, bytes, int]:
        """Run a command within the current cancellation scope; return output, error output and exit code."""
        cancelled, deadline = _cancelled.get() or Event(), time.monotonic() + self.limit_s
        # A file and no pipe: `communicate` doesn't send the rest of its input after it has timed out once.
        with TemporaryFile() as input_file:
            input_file.write(stdin)
            input_file.seek(0)
            with subprocess.Popen(  # noqa: S603 -- no shell, and the arguments are ours
                command,
                cwd=self.repo,
                env=env,
                stdin=input_file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C must not end a git that cleans up
            ) as process:
                try:
                    while not cancelled.is_set() and time.monotonic() < deadline:
                        with suppress(subprocess.TimeoutExpired):
                            return (*process.communicate(timeout=POLL_S), process.returncode)
                finally:
                    process.kill()  # does nothing if it has ended
        raise subprocess.TimeoutExpired(command, self.limit_s)


def find_git() -> str:
    """Return the path of git's program.

    Raises:
        JobError: If git isn't installed, or too old.
    """
    path = shutil.which("git")
    if path is None:
        raise JobError(f"There is no git on the PATH: {_INSTALL}.")
    if (version := _version(path)) < MIN_VERSION:
        raise JobError(f"git {'.'.join(map(str, version))} ({path}) is too old: {_INSTALL}.")
    return path


@lru_cache(maxsize=8)
def _version(git_path: str) -> tuple[int, ...]:
    """Return the major and the minor version of a git program; (0, 0) if they are unknown."""
    try:
        output = _run_outside(git_path, "version")
    except OSError as error:
        raise JobError(f"{git_path!r} can't be run ({error.strerror}): {_INSTALL}.") from None
    match = re.match(r"git version (\d+)\.(\d+)", output)
    return tuple(map(int, match.groups())) if match else (0, 0)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the complete environment of one call, with all settings in variables `GIT_CONFIG_…`."""
    # 1. The overriding settings, and the folders that git trusts by the settings of user and system.
    where = tuple(os.environ.get(name, "") for name in ("HOME", "XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL"))
    trusted = [("safe.directory", folder) for folder in _safe_directories(find_git(), where)]
    settings = [*_SETTINGS.items(), *trusted]
    # 2. git reads settings from numbered pairs of variables, which win over any configuration file.
    numbered = {
        f"GIT_CONFIG_{what}_{number}": text
        for number, setting in enumerate(settings)
        for what, text in zip(("KEY", "VALUE"), setting, strict=True)
    }
    inherited = {name: os.environ[name] for name in ("PATH", "TMPDIR", CEILINGS) if name in os.environ}
    return {**inherited, **_ENVIRONMENT, **numbered, "GIT_CONFIG_COUNT": str(len(settings)), **more}


@lru_cache(maxsize=8)
def _safe_directories(git_path: str, _where: tuple[str, ...]) -> tuple[str, ...]:
    """Return the folders in `safe.directory` of the user and the system.

    Args:
        git_path: The program.
        _where: The variables that locate the user's settings; a part of the cache's key only.
    """
    output = _run_outside(git_path, "config", "--type=path", "--null", "--get-all", "safe.directory")
    return tuple(output.split("\0")[:-1])


def _run_outside(git_path: str, *args: str) -> str:
    """Run git outside of any repository, with the settings of user and system, and return its output."""
    own = {name: os.environ[name] for name in os.environ if _REPOSITORY_VARIABLE.match(name) is None}
    done = subprocess.run(  # noqa: S603 -- as above
        [git_path, *args], cwd="/", env={**own, "LC_ALL": "C"}, capture_output=True, check=False, timeout=LIMIT_S
    )
    return done.stdout.decode("utf-8", "surrogateescape")


NAME, MAIL = "prefect-dispatch", "prefect-dispatch@localhost"
"""Name and e-mail address of the committer."""


_NO_CONVERSION = b"* -text !eol -filter -ident !working-tree-encoding\n"
"""Attributes that override all others: the content of a file equals that in the repository, byte for byte."""


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


@dataclass(frozen=True)
class ObjectStore:
    """Location and format of a repository's object store."""

    common: Path
    """The git folder, which all worktrees of the repository share."""
    hash: str
    """The object format: `sha1` or `sha256`."""
    alternates: tuple[str, ...]
    """Further object folders that the repository reads itself, in the syntax of an alternates file."""

    @classmethod
    def of(cls, git: Git) -> ObjectStore:
        """Return the object store of a repository, given any of its worktrees, or a folder in one."""
        output = git.output("rev-parse", "--path-format=absolute", "--git-common-dir", "--show-object-format")
        common, _, kind = output.rpartition("\n")
        statistics = git.output("count-objects", "-v").split("\n")
        elsewhere = tuple(line.removeprefix("alternate: ") for line in statistics if line.startswith("alternate: "))
        return cls(Path(common), kind, elsewhere)


def create_with_alternates(objects: ObjectStore, folder: Path, *, checkout: bool) -> Git:
    """Create a repository that reads the objects of another one, and writes its own.

    Args:
        objects: The object store to read.
        folder: Where to create the repository.
        checkout: Whether the folder is to have files; else the repository is bare.
    """
    kind = () if checkout else ("--bare",)
    Git(folder.parent).output(
        *("init", "--quiet", "--template=", f"--object-format={objects.hash}", *kind, "--", str(folder))
    )
    git_dir = folder / ".git" if checkout else folder
    alternates = [_quote_path(str(objects.common / "objects")), *objects.alternates]
    _write_file(git_dir / "objects" / "info" / "alternates", os.fsencode("".join(f"{each}\n" for each in alternates)))
    _write_file(git_dir / "info" / "attributes", _NO_CONVERSION)
    # The commits without parents of a shallow clone, and the ignore rules of this clone only.
    for name in ("shallow", "info/exclude"):
        if (objects.common / name).is_file():
            shutil.copyfile(objects.common / name, git_dir / name)
    return Git(folder)


def create_checkout(source: Git, objects: ObjectStore, base: str, folder: Path) -> Git:
    """Create a repository with a commit checked out, and with the branches and tags of its source.

    Args:
        source: The repository that has the commit.
        objects: Its object store.
        base: The commit.
        folder: Where to create the repository.
    """
    repository = create_with_alternates(objects, folder, checkout=True)
    # All refs are written at once, as a file of packed refs.
    refs = source.output_bytes(
        "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags", "refs/remotes"
    )
    _write_file(folder / ".git" / "packed-refs", refs)
    repository.output("checkout", "--quiet", "--force", "--detach", base)
    return repository


def with_work_tree(git: Git, files: Path, more: Mapping[str, str] | None = None) -> Git:
    """Return a repository of ours with a folder as its work tree, regardless of any `.git` in that folder.

    Args:
        git: The repository.
        files: The folder.
        more: Further environment variables for each call.
    """
    return Git(files, {"GIT_DIR": str(git.repo), "GIT_WORK_TREE": str(files), **(more or {})})


def _quote_path(path: str) -> str:
    """Quote a path for an alternates file if necessary; a path may contain any character."""
    if not path.startswith(('"', "#")) and "\n" not in path:
        return path
    return f'"{path.translate(_ESCAPES)}"'


def _write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
