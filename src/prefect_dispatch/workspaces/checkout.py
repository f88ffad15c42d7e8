"""The user's own checkout: what its status is, and whether it changed while work went on elsewhere.

It is only read. git runs with settings of ours and a repository of ours, so that no program runs that the checkout's
own settings name, and nothing is written, not even to refresh its index.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError
from prefect_dispatch.workspaces.difference import shown
from prefect_dispatch.workspaces.git import Git, GitError
from prefect_dispatch.workspaces.sharing import Objects, reading, sharing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PLACES = (("--show-toplevel",), ("--git-path", "index"))
_STATUS = ("status", "--porcelain", "-z", "--untracked-files=all", "--ignore-submodules=all", "--no-renames")
_SETTINGS = ("config", "info/attributes", "info/exclude")
"""Files of a git folder that decide what git does; `hooks` are looked at, too."""

_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Checkout:
    """What a checkout was like at one moment; two are compared by `changes_since`."""

    top: Path
    """Its top folder; of a bare repository the git folder."""
    files: Mapping[bytes, tuple[bytes, _Stamp | None]] = field(
        default_factory=dict[bytes, tuple[bytes, "_Stamp | None"]]
    )
    """What isn't as it is in HEAD: its status, and by what it is known to be as it was."""
    git: Mapping[str, object] = field(default_factory=dict[str, object])
    """HEAD, branches, tags and settings, by the names by which a message tells them."""

    @classmethod
    def read(cls, repo: Path) -> Checkout | None:
        """Return what a checkout is like now; None where that can't be found out.

        Args:
            repo: A folder in it; of a bare repository only HEAD, branches, tags and settings are looked at.
        """
        git = Git(repo)
        try:
            common = Objects.of(git).common
            state = dict(_git_state(git, common))
            if git.out("rev-parse", "--is-inside-work-tree") != "true":
                return cls(common, {}, state)
            top = Path(git.out("rev-parse", "--path-format=absolute", "--show-toplevel"))
            lines = _read_status(repo)
        except (GitError, JobError, OSError):
            return None
        return cls(top, {line[3:]: (line[:2], _stamp(top, line[3:])) for line in lines}, state)

    def changes_since(self, before: Checkout) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the files that have changed, and what of the repository itself has; both as messages show them."""
        files = {path for path in {*self.files, *before.files} if self.files.get(path) != before.files.get(path)}
        parts = {name for name in {*self.git, *before.git} if self.git.get(name) != before.git.get(name)}
        return tuple(map(shown, sorted(files))), tuple(sorted(parts))


def _read_status(repo: Path) -> list[bytes]:
    """Return what git says of the files of a checkout that aren't as they are in HEAD: two letters, a space, a path."""
    git = Git(repo)
    top, index = (git.out("rev-parse", "--path-format=absolute", *what) for what in _PLACES)
    head = git.out("rev-parse", "--verify", "--quiet", "--end-of-options", "HEAD^{commit}")
    with tempfile.TemporaryDirectory() as folder:
        own = sharing(Objects.of(git), Path(folder, "git"), checkout=False)
        (own.repo / "HEAD").write_text(f"{head}\n", encoding="ascii")
        for part in Path(index).parent.glob("sharedindex.*"):
            shutil.copy(part, own.repo)
        looking = reading(own, Path(top), {"GIT_INDEX_FILE": index})
        return [line for line in looking.raw(*_STATUS).split(b"\0") if line]


def _git_state(git: Git, common: Path) -> Iterator[tuple[str, object]]:
    """Yield HEAD, every ref and every setting, each under the name by which a message tells it."""
    yield "HEAD", git.tried("symbolic-ref", "--quiet", "HEAD") + git.tried("rev-parse", "--verify", "--quiet", "HEAD")
    for line in git.raw("for-each-ref", "--format=%(refname) %(objectname)").splitlines():
        ref, _, target = line.rpartition(b" ")
        yield shown(ref), target
    hooks = common / "hooks"
    names = sorted(os.listdir(hooks)) if hooks.is_dir() else []  # noqa: PTH208 -- names alone
    for setting in (*_SETTINGS, *(f"hooks/{name}" for name in names)):
        yield setting, _stamp(common, os.fsencode(setting))


def _stamp(folder: Path, path: bytes) -> _Stamp | None:
    """Return by what a file is known to be as it was; None where there is nothing."""
    try:
        found = os.lstat(os.path.join(os.fsencode(folder), path))  # noqa: PTH118 -- a `Path` has no bytes
    except OSError:
        return None
    return found.st_mode, found.st_size, found.st_mtime_ns, found.st_ino
