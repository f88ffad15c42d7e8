"""git, run for one repository: without anybody's configuration, hooks, filters, prompts, or network.

What a repository says of itself may come from an agent. So nothing in it may have a program run: settings that name
one are overridden, no transport is allowed, and settings of the user and of the system don't count, but for
`safe.directory`, without which git refuses a repository of somebody else. Filters, drivers and conversions have names
that somebody made up, and can't be overridden: files of a checkout are only read by repositories of ours (`sharing`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError, TransientError
from prefect_dispatch.scrub import scrub
from prefect_dispatch.workspaces.leash import held

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

OLDEST = (2, 38)
"""The first version that has all that is used."""
LIMIT_S = 600.0
"""How long one call may take, unless somebody says otherwise."""

_QUOTED = 2_000
"""Characters of what git said that an error quotes."""
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
"""What counts, whatever a repository says."""
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
    "GIT_LITERAL_PATHSPECS": "1",  # a file may be called `*`
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",  # to look at a checkout must not write its index
    "GIT_PAGER": "cat",
    "GIT_TERMINAL_PROMPT": "0",
    "SSH_ASKPASS": "",
}
_SHOWING, _PLAIN = frozenset({"diff", "log", "show"}), ("--no-ext-diff", "--no-textconv")
"""What is added to commands that would else have programs of the repository's settings show a difference."""


class GitError(TransientError):
    """git could not do what it was told to.

    Attributes:
        exit: Its exit code; None if it took too long.
        said: What it wrote on standard error.
    """

    default_kind = "git"

    def __init__(self, message: str, *, exit: int | None = None, said: str = "") -> None:  # noqa: A002 -- its name
        """Keep the exit code and what git said."""
        super().__init__(message)
        self.exit = exit
        self.said = said


@dataclass(frozen=True)
class Git:
    """Runs git for one repository; calls block, so an event loop puts them into a thread.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     git = Git(Path(folder))
        ...     _ = git.out("init", "--quiet")
        ...     git.out("rev-parse", "--is-inside-work-tree")
        'true'
    """

    repo: Path
    """The folder in which it runs: that of a repository, bare or not, or one inside of it."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """More variables for each call."""
    limit_s: float = LIMIT_S
    """Seconds after which a call is ended: git waits for ever on a pipe that is called like a file it reads."""

    def out(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        """Return what git writes, without the line break at its end; bytes that are no UTF-8 as half characters.

        Args:
            args: What git is told.
            stdin: What it reads.
            env: More variables, for this call.

        Raises:
            GitError: If its exit code isn't 0.
            JobError: If there is no git.
        """
        return self.raw(*args, stdin=stdin, env=env).decode("utf-8", "surrogateescape").rstrip("\n")

    def raw(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        """Return what git writes, as it is; see `out`."""
        return self.tried(*args, stdin=stdin, env=env, most=0)[1]

    def tried(
        self,
        *args: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        most: int = 255,
    ) -> tuple[int, bytes]:
        """Return git's exit code, and what it writes.

        Args:
            args: What git is told.
            stdin: What it reads.
            env: More variables, for this call.
            most: The highest exit code that is no error.

        Raises:
            GitError: If its exit code is higher, or a signal ended it, or it took longer than `limit_s`.
            JobError: If there is no git.
        """
        command = [program(), args[0], *(_PLAIN if args[0] in _SHOWING else ()), *args[1:]]
        try:
            exit_code, out, err = self._ran(command, stdin, _environment({**self.env, **(env or {})}))
        except subprocess.TimeoutExpired:
            raise GitError(f"git {args[0]} took more than {self.limit_s:g} s in {str(self.repo)!r}.") from None
        except OSError as error:
            raise GitError(f"git can't run in {str(self.repo)!r}: {error.strerror or error}.") from None
        if 0 <= exit_code <= most:
            return exit_code, out
        said = scrub(err[-_QUOTED:].decode("utf-8", "replace").strip())
        raise GitError(f"git {args[0]} failed ({exit_code}): {said}", exit=exit_code, said=said)

    def _ran(self, command: list[str], stdin: bytes, env: dict[str, str]) -> tuple[int, bytes, bytes]:
        with (
            subprocess.Popen(  # noqa: S603 -- no shell, and what git is told is ours
                command,
                cwd=self.repo,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for us: what is being cleared away is cleared away
            ) as process,
            held(process),
        ):
            try:
                out, err = process.communicate(stdin, self.limit_s)
            except BaseException:
                process.kill()
                raise
        return process.returncode, out, err


def program() -> str:
    """Return where git is.

    Raises:
        JobError: If it isn't there, or too old.
    """
    found = shutil.which("git")
    if found is None:
        raise JobError("There is no git on the PATH: install git 2.38 or newer.")
    if (version := _version(found)) < OLDEST:
        raise JobError(f"git {'.'.join(map(str, version))} ({found}) is too old: install git 2.38 or newer.")
    return found


@lru_cache(maxsize=8)
def _version(found: str) -> tuple[int, ...]:
    try:
        said = _ambient(found, "version")
    except OSError as error:
        raise JobError(f"{found!r} can't be run ({error.strerror}): install git 2.38 or newer.") from None
    match = re.match(r"git version (\d+)\.(\d+)", said)
    return tuple(map(int, match.groups())) if match else (0, 0)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the complete environment of one call."""
    where = tuple(os.environ.get(name, "") for name in ("HOME", "XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL"))
    trusted = [("safe.directory", folder) for folder in _trusted(program(), where)]
    settings = [*_SETTINGS.items(), *trusted]
    numbered = {
        f"GIT_CONFIG_{what}_{number}": text
        for number, setting in enumerate(settings)
        for what, text in zip(("KEY", "VALUE"), setting, strict=True)
    }
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return {**kept, **_ENVIRONMENT, **numbered, "GIT_CONFIG_COUNT": str(len(settings)), **more}


@lru_cache(maxsize=8)
def _trusted(found: str, _where: tuple[str, ...]) -> tuple[str, ...]:
    """Return the folders of others that the user, or the system, has git trust."""
    said = _ambient(found, "config", "--type=path", "--null", "--get-all", "safe.directory")
    return tuple(said.split("\0")[:-1])


def _ambient(found: str, *args: str) -> str:
    """Return what git says outside of any repository, with the settings of user and system."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    plain |= {name: value for name, value in os.environ.items() if name.startswith("GIT_CONFIG_")}
    done = subprocess.run(  # noqa: S603 -- as above
        [found, *args], cwd="/", env={**plain, "LC_ALL": "C"}, capture_output=True, check=False, timeout=LIMIT_S
    )
    return done.stdout.decode("utf-8", "surrogateescape")
