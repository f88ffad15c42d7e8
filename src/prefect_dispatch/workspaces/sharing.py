"""A repository of our own that reads the objects of another: its settings, its refs and its index are not the other's.

That is what a workspace is, and what its files are collected by. A linked worktree (`git worktree add`) would share
branches, tags, the stash, settings and hooks with the user's own checkout: an agent that stashes or tags would do it
there, sixteen of them added at once fail now and then, and a crash leaves entries behind. Here nothing of the user's
repository is written to, so there is nothing to lock and nothing to tidy up but a folder.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.workspaces.git import Git

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME, MAIL = "prefect-dispatch", "prefect-dispatch@localhost"
"""Who commits."""

_NO_CONVERSION = b"* -text !eol -filter -ident !working-tree-encoding\n"
"""Attributes that win over all others: what stands in a file is what stands in the repository, byte for byte."""
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}


@dataclass(frozen=True)
class Objects:
    """What has to be known of a repository to read its objects."""

    common: Path
    """Its git folder, which all of its worktrees share."""
    hash: str
    """`sha1` or `sha256`."""
    elsewhere: tuple[str, ...]
    """Folders of further objects that it reads itself, as a file of alternates has them."""

    @classmethod
    def of(cls, git: Git) -> Objects:
        """Return what has to be known of a repository; the folder may be any worktree, or a folder in one."""
        said = git.out("rev-parse", "--path-format=absolute", "--git-common-dir", "--show-object-format")
        common, _, kind = said.rpartition("\n")
        counted = git.out("count-objects", "-v").split("\n")
        elsewhere = tuple(line.removeprefix("alternate: ") for line in counted if line.startswith("alternate: "))
        return cls(Path(common), kind, elsewhere)


def sharing(objects: Objects, folder: Path, *, checkout: bool) -> Git:
    """Return a new repository that reads the objects of another and writes its own.

    Args:
        objects: Whose objects it reads.
        folder: Where it is made.
        checkout: Whether the folder is to hold files; else it is bare.
    """
    kind = () if checkout else ("--bare",)
    Git(folder.parent).out(
        *("init", "--quiet", "--template=", f"--object-format={objects.hash}", *kind, "--", str(folder))
    )
    made = folder / ".git" if checkout else folder
    read = [_quoted(str(objects.common / "objects")), *objects.elsewhere]
    _put(made / "objects" / "info" / "alternates", os.fsencode("".join(f"{each}\n" for each in read)))
    _put(made / "info" / "attributes", _NO_CONVERSION)
    for name in ("shallow", "info/exclude"):  # which commits have no parents here, and what is ignored here alone
        if (objects.common / name).is_file():
            shutil.copyfile(objects.common / name, made / name)
    return Git(folder)


def checked_out(source: Git, objects: Objects, base: str, folder: Path) -> Git:
    """Return a new repository with a commit checked out; branches and tags are there as the source has them.

    Args:
        source: The repository that the commit is in.
        objects: The same.
        base: The commit.
        folder: Where it is made.
    """
    made = sharing(objects, folder, checkout=True)
    listed = source.raw("for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags", "refs/remotes")
    _put(folder / ".git" / "packed-refs", listed)
    made.out("checkout", "--quiet", "--force", "--detach", base)
    return made


def reading(git: Git, files: Path, more: Mapping[str, str] | None = None) -> Git:
    """Return a repository of ours as the one of the files in some folder, whatever that folder says itself."""
    return Git(files, {"GIT_DIR": str(git.repo), "GIT_WORK_TREE": str(files), **(more or {})})


def _quoted(path: str) -> str:
    """Return a path as a file of alternates has it; one may hold anything."""
    if not path.startswith(('"', "#")) and "\n" not in path:
        return path
    return '"' + "".join(_ESCAPES.get(character, character) for character in path) + '"'


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
