"""Changes made commits again: of equal changes, equal ones, in whichever clone has the base."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.errors import RejectedError
from prefect_dispatch.workspaces.difference import between, files_of
from prefect_dispatch.workspaces.git import GitError
from prefect_dispatch.workspaces.sharing import MAIL, NAME

if TYPE_CHECKING:
    from collections.abc import Generator

    from prefect_dispatch.change import Change
    from prefect_dispatch.workspaces.git import Git

_APPLY = ("apply", "--cached", "--unidiff-zero", "--binary", "--whitespace=nowarn", "--no-ignore-whitespace")


def commit_of(git: Git, change: Change, message: str) -> str:
    """Return the commit that a change is: a child of its base, with its tree, a message, and the date of the base.

    Its name is a function of the change and the message. It is written among the repository's objects; no branch,
    no tag, no index and no file of a checkout is touched.

    Args:
        git: A repository that has the base.
        change: The change.
        message: What the commit says.

    Raises:
        RejectedError: If the repository hasn't the base, or the patch doesn't make the tree, or touches other
            files than the change says.
    """
    with applied(git, change):
        date = git.out("show", "--no-patch", "--format=%ct", change.base)
    who = {
        f"GIT_{role}_{name}": value
        for role in ("AUTHOR", "COMMITTER")
        for name, value in (("NAME", NAME), ("EMAIL", MAIL), ("DATE", f"@{date} +0000"))
    }
    return git.out("commit-tree", change.tree, "-p", change.base, stdin=f"{message}\n".encode(), env=who)


@contextmanager
def applied(git: Git, change: Change) -> Generator[dict[str, str], None, None]:
    """Have an index, and the variable that names it, with the tree of a change in it, which was found to be right.

    Raises:
        RejectedError: If the change isn't what it says.
    """
    _require_base(git, change)
    with tempfile.TemporaryDirectory(prefix="prefect-dispatch-") as folder:
        index = {"GIT_INDEX_FILE": os.fspath(Path(folder, "index"))}
        git.out("read-tree", change.base, env=index)
        try:
            if change.patch:
                git.out(*_APPLY, stdin=change.bytes, env=index)
            tree = git.out("write-tree", env=index)
        except GitError as error:
            raise _refusal(change, f"its patch can't be applied ({error.said})") from None
        if tree != change.tree:
            raise _refusal(change, f"its patch makes the tree {tree[:12]}, not {change.tree[:12]}")
        if files_of(between(git, change.base, tree)) != change.files:
            raise _refusal(change, "its patch touches other files than it says")
        yield index


def _require_base(git: Git, change: Change) -> None:
    try:
        kind = git.out("cat-file", "-t", change.base)
    except GitError:
        kind = ""
    if kind != "commit":
        raise _refusal(change, "its base isn't a commit that this repository has; fetch it first")


def _refusal(change: Change, why: str) -> RejectedError:
    return RejectedError(f"The change of {change.base[:12]} is not used: {why}.", kind="change")
