"""A merge put where it is to be: on a branch, if nothing that anybody made is lost by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.base import Delivery
from prefect_dispatch.integrators.branches.patches import PATCH
from prefect_dispatch.workspaces.git import GitError
from prefect_dispatch.workspaces.sharing import MAIL

if TYPE_CHECKING:
    from prefect_dispatch.workspaces.git import Git

_HEADS = "refs/heads/"
_UNBORN = "0"


def require_branch(git: Git, branch: str) -> None:
    """Check that a branch can be published to, as far as that is plain beforehand.

    Raises:
        JobError: If it is no name of a branch, or it is checked out somewhere.
    """
    code, _ = git.tried("check-ref-format", f"{_HEADS}{branch}")
    if code or branch.startswith("-") or branch == "HEAD":
        raise JobError(
            f"branch: {branch!r} is no name that git takes for a branch; take letters, digits, '-', '_' and '/', such "
            "as 'agents/merged'."
        )
    if where := _checked_out(git, branch):
        raise JobError(
            f"branch: {branch!r} is checked out in {where!r}, and a checkout is never touched; name another branch, or "
            "switch to another one there."
        )


def published(git: Git, branch: str, commit: str) -> Delivery:
    """Return what came of moving a branch to a commit; it is moved only from what it was seen to be just before.

    A branch that isn't there is made. One that is there is moved forward; or, where it isn't an ancestor, only if
    all that would be lost of it was committed by us, that is, by an earlier run. One that is checked out in any
    worktree stays as it is. The reflog keeps what it was before.
    """
    ref = _HEADS + branch
    instead = f"It stays as it was; {_by_hand(commit)}"
    if where := _checked_out(git, branch):
        return Delivery(shortfall=f"The branch {branch!r} is checked out in {where!r} by now. {instead}")
    code, said = git.tried("rev-parse", "--verify", "--quiet", ref)
    old = said.decode().strip() if code == 0 else ""
    if old == commit:
        return Delivery(done=f"The branch {branch!r} is at {commit[:12]} already.")
    if old and (whose := _lost(git, old, commit)):
        return Delivery(
            shortfall=f"The branch {branch!r} has commits that the merge lacks, such as {whose[:12]}, and they aren't "
            f"ours. {instead}"
        )
    try:
        git.out("update-ref", "-m", "prefect-dispatch: merge", ref, commit, old or _UNBORN * len(commit))
    except GitError as error:
        return Delivery(shortfall=f"The branch {branch!r} could not be moved ({error.said}). {instead}")
    return Delivery(done=f"The branch {branch!r} is at {commit[:12]}.")


def left(commit: str) -> Delivery:
    """Return what is told where no branch is named."""
    return Delivery(done=f"What was merged is in {PATCH}: {_by_hand(commit)}")


def unaccepted(branch: str) -> Delivery:
    """Return what is told of a merge that the acceptance command fails on."""
    return Delivery(shortfall=f"The branch {branch!r} is not moved, as what is merged isn't accepted; see {PATCH}.")


def _by_hand(commit: str) -> str:
    return f"`git apply --index {PATCH}` on the base takes it over, as does `git merge {commit[:12]}`."


def _lost(git: Git, old: str, new: str) -> str:
    """Return a commit that somebody else made and that would be lost, or nothing."""
    for line in git.out("rev-list", "--no-commit-header", "--format=%H %ce", old, f"^{new}").splitlines():
        commit, _, mail = line.partition(" ")
        if mail != MAIL:
            return commit
    return ""


def _checked_out(git: Git, branch: str) -> str:
    """Return the worktree in which a branch is checked out, or nothing."""
    where = ""
    for line in git.raw("worktree", "list", "--porcelain", "-z").decode("utf-8", "backslashreplace").split("\0"):
        name, _, value = line.partition(" ")
        where = value if name == "worktree" else where
        if name == "branch" and value == _HEADS + branch:
            return where
    return ""
