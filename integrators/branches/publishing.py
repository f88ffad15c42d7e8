"""A merge put where it is to be: on a branch, if nothing that anybody made is lost by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.base import Delivery
from prefect_dispatch.integrators.branches.patches import PATCH
from prefect_dispatch.workspaces.git import GitError

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def published(git: Git, branch: str, commit: str, *, force: bool = False) -> Delivery:
    """Return what came of moving a branch to a commit; it is moved only from what it was seen to be just before.

    A branch that isn't there is made. One that is there is moved forward, to a commit that has all of it; with `force`
    also to one that lacks commits of it, whoever made them. One that is checked out in any worktree stays as it is. The
    reflog, where the repository keeps one, has what it was before.

    Args:
        git: The repository.
        branch: The branch.
        commit: What is published.
        force: Whether the user asked that commits which the branch has, and `commit` lacks, are taken off it.
    """
    ref = _HEADS + branch
    instead = f"It stays as it was; {_by_hand(commit)}"
    if where := _checked_out(git, branch):
        return Delivery(shortfall=f"The branch {branch!r} is checked out in {where!r} by now. {instead}")
    if other := _link_target(git, ref):
        return Delivery(shortfall=f"The branch {branch!r} is only another name of {other!r}. {instead}")
    code, said = git.tried("rev-parse", "--verify", "--quiet", ref)
    old = said.decode().strip() if code == 0 else ""
    if old == commit:
        return Delivery(done=f"The branch {branch!r} is at {commit[:12]} already.")
    lost = git.out("rev-list", old, f"^{commit}").split() if old else []
    if lost and not force:
        return Delivery(
            shortfall=f"The branch {branch!r} has {_commits(lost)} that the merge lacks, such as {lost[0][:12]}, and "
            f"can't be moved forward from {old[:12]} to {commit[:12]}. {instead} Set 'force' to have it replaced."
        )
    try:
        git.out("update-ref", "-m", "prefect-dispatch: merge", ref, commit, old or _UNBORN * len(commit))
    except GitError as error:
        return Delivery(shortfall=f"The branch {branch!r} could not be moved ({error.said}). {instead}")
    return Delivery(done=f"The branch {branch!r} {_how(old, commit, lost)}.")


def left(commit: str) -> Delivery:
    """Return what is told where no branch is named."""
    return Delivery(done=f"What was merged is in {PATCH}: {_by_hand(commit)}")


def unaccepted(branch: str) -> Delivery:
    """Return what is told of a merge that the acceptance command fails on."""
    return Delivery(shortfall=f"The branch {branch!r} is not moved, as what is merged isn't accepted; see {PATCH}.")


def _by_hand(commit: str) -> str:
    return f"`git apply --index {PATCH}` on the base takes it over, as does `git merge {commit[:12]}`."


def _how(old: str, commit: str, lost: Sequence[str]) -> str:
    """Return how a branch came to be where it is."""
    if not old:
        return f"was made at {commit[:12]}"
    if not lost:
        return f"was moved forward from {old[:12]} to {commit[:12]}"
    return f"was moved by force from {old[:12]} to {commit[:12]}, and has {_commits(lost)} less"


def _commits(commits: Sequence[str]) -> str:
    return "1 commit" if len(commits) == 1 else f"{len(commits)} commits"


def _link_target(git: Git, ref: str) -> str:
    """Return the branch that a symbolic ref stands for, which a move would move in its place; or nothing."""
    code, said = git.tried("symbolic-ref", "--quiet", ref)
    return "" if code else said.decode("utf-8", "backslashreplace").strip().removeprefix(_HEADS)


def _checked_out(git: Git, branch: str) -> str:
    """Return the worktree in which a branch is checked out, or nothing."""
    where = ""
    for line in git.raw("worktree", "list", "--porcelain", "-z").decode("utf-8", "backslashreplace").split("\0"):
        name, _, value = line.partition(" ")
        where = value if name == "worktree" else where
        if name == "branch" and value == _HEADS + branch:
            return where
    return ""
