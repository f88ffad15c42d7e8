"""A merge put on a branch: only from what the branch was, and only where nothing of anybody's is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.merge_branches.publish_branch import move_branch, require_branch
from prefect_dispatch.workspaces.git import Git
from prefect_dispatch.workspaces.patches import create_commit
from tests.integrators.repos import WHO, Files, change_of, merging, repository

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BASE: Files = {"a.py": "1\n"}
BRANCH = "agents/merged"


@pytest.fixture
def repo(tmp_path: Path) -> tuple[Git, str]:
    """A repository with one commit."""
    (tmp_path / "repo").mkdir()
    return repository(tmp_path / "repo", BASE)


def ours(git: Git, base: str, text: str) -> str:
    """Return a commit that a run of ours makes."""
    return create_commit(git, change_of(git, base, {"a.py": text}), "Merge")


def theirs(git: Git, base: str) -> str:
    """Return a commit that somebody makes."""
    return git.output("commit-tree", f"{base}^{{tree}}", "-p", base, stdin=b"Mine\n", env=WHO)


def at(git: Git, branch: str = BRANCH) -> str:
    """Return the commit of a branch; nothing if it isn't there."""
    return git.run("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}")[1].decode().strip()


def test_a_branch_is_made_and_moved_forward(repo: tuple[Git, str]) -> None:
    """Made where it isn't there, moved where nothing is lost; and "forward" is said of nothing else."""
    git, base = repo
    one = ours(git, base, "2\n")
    assert move_branch(git, BRANCH, one).done == f"The branch 'agents/merged' was made at {one[:12]}."
    assert move_branch(git, BRANCH, one).done == f"The branch 'agents/merged' is at {one[:12]} already."
    further = ours(git, one, "3\n")
    moved = f"The branch 'agents/merged' was moved forward from {one[:12]} to {further[:12]}."
    assert move_branch(git, BRANCH, further) == (moved, "")
    assert at(git) == further
    ahead = ours(git, theirs(git, base), "4\n")
    git.output("update-ref", "refs/heads/of-others", theirs(git, base))
    assert "was moved forward from" in move_branch(git, "of-others", ahead).done
    assert at(git, "of-others") == ahead


def test_no_commit_is_lost_without_force(repo: tuple[Git, str]) -> None:
    """Neither one of somebody's, nor one of an earlier run: somebody may have built on it."""
    git, base = repo
    mine, earlier = theirs(git, base), ours(git, base, "2\n")
    for commit in (mine, earlier, theirs(git, earlier), ours(git, mine, "5\n")):
        git.output("update-ref", f"refs/heads/{BRANCH}", commit)
        said = move_branch(git, BRANCH, new := ours(git, base, "3\n"))
        assert f"that the merge lacks, such as {commit[:12]}, and can't be moved forward" in said.shortfall
        assert f"from {commit[:12]} to {new[:12]}" in said.shortfall
        assert "`git apply --index merged.patch`" in said.shortfall
        assert said.shortfall.endswith("Set 'force' to have it replaced.")
        assert (said.done, at(git)) == ("", commit)


def test_force_replaces_what_the_branch_has(repo: tuple[Git, str]) -> None:
    """It says so, and how many commits the branch has less; where it can be moved forward, it is."""
    git, base = repo
    new, earlier = ours(git, base, "3\n"), ours(git, base, "2\n")
    for commit, less in ((earlier, "1 commit"), (theirs(git, earlier), "2 commits")):
        git.output("update-ref", f"refs/heads/{BRANCH}", commit)
        moved = f"was moved by force from {commit[:12]} to {new[:12]}, and has {less} less."
        assert move_branch(git, BRANCH, new, force=True) == (f"The branch 'agents/merged' {moved}", "")
        assert at(git) == new
    assert "was moved forward" in move_branch(git, BRANCH, ours(git, new, "4\n"), force=True).done


@pytest.mark.parametrize("force", [False, True])
def test_a_branch_that_moves_at_the_last_moment_stays(repo: tuple[Git, str], force: bool) -> None:  # noqa: FBT001 -- a column
    """It is moved only from what it was seen to be: of two at the same moment, one is told that it came too late."""
    git, base = repo
    first, mine = ours(git, base, "2\n"), theirs(git, ours(git, base, "2\n"))
    git.output("update-ref", f"refs/heads/{BRANCH}", first)
    late = LateGit(git.repo, late_ref=f"refs/heads/{BRANCH}", late_commit=mine)
    said = move_branch(late, BRANCH, ours(git, first, "3\n"), force=force)
    assert "could not be moved" in said.shortfall
    assert at(git) == mine
    absent = LateGit(git.repo, late_ref="refs/heads/new", late_commit=mine)
    assert "could not be moved" in move_branch(absent, "new", first, force=force).shortfall
    assert at(git, "new") == mine


@dataclass(frozen=True)
class LateGit(Git):
    """A git in whose repository somebody moves a branch just before it moves one."""

    late_ref: str = ""
    late_commit: str = ""

    def run(
        self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, most: int = 255
    ) -> tuple[int, bytes]:
        """Return git's exit code, and what it writes."""
        if args[0] == "update-ref":
            super().run("update-ref", self.late_ref, self.late_commit)
        return super().run(*args, stdin=stdin, env=env, most=most)


def test_another_name_of_a_branch_stays(repo: tuple[Git, str]) -> None:
    """To move it would move the branch that it stands for, which may be checked out."""
    git, base = repo
    git.output("symbolic-ref", f"refs/heads/{BRANCH}", "refs/heads/main")
    said = move_branch(git, BRANCH, ours(git, base, "2\n"), force=True)
    assert "is a symbolic ref to 'main'" in said.shortfall
    assert at(git, "main") == base


def test_what_is_checked_out_stays(repo: tuple[Git, str], tmp_path: Path) -> None:
    """In the repository's own folder, or in any worktree of it."""
    git, base = repo
    new = ours(git, base, "2\n")
    assert "is checked out in" in move_branch(git, "main", new).shortfall
    assert at(git, "main") == base
    git.output("branch", BRANCH, base)
    git.output("worktree", "add", "--quiet", str(tmp_path / "tree"), BRANCH)
    assert f"is checked out in '{tmp_path / 'tree'}' by now" in move_branch(git, BRANCH, new).shortfall
    assert at(git) == base
    with pytest.raises(JobError, match="branch: 'agents/merged' is checked out in"):
        require_branch(git, BRANCH)


def test_what_git_refuses_is_told(repo: tuple[Git, str]) -> None:
    """Somebody else writes the branch at this moment, or there is one in whose folder it would have to be."""
    git, base = repo
    new = ours(git, base, "2\n")
    lock = git.repo / ".git" / "refs" / "heads" / "agents" / "merged.lock"
    lock.parent.mkdir()
    lock.touch()
    assert "could not be moved" in move_branch(git, BRANCH, new).shortfall
    lock.unlink()
    git.output("branch", BRANCH, base)
    assert "could not be moved" in move_branch(git, f"{BRANCH}/x", new).shortfall


@pytest.mark.parametrize("branch", ["a..b", "-x", "HEAD", "a b", "a.lock", "/", "@{-1}", "a\nb"])
def test_what_is_no_branch(repo: tuple[Git, str], branch: str) -> None:
    """Told before anything is spent, with what would be one."""
    with pytest.raises(JobError, match=r"is not a valid name of a branch; use letters"):
        require_branch(repo[0], branch)


def value(base: str, commit: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 -- JSON
    """Return what is looked at of a merged value."""
    return {"base": base, "commit": commit, "accepted": None, **more}


def test_what_is_delivered(repo: tuple[Git, str], tmp_path: Path) -> None:
    """Nothing of nothing; a patch where no branch is named; a branch only of what is known to be accepted."""
    git, base = repo
    new = ours(git, base, "2\n")
    assert merging(git, branch=BRANCH).deliver(None, tmp_path) == ("", "")
    assert merging(git, branch=BRANCH).deliver(value(base, base), tmp_path) == ("", "")
    assert f"`git merge {new[:12]}`" in merging(git).deliver(value(base, new), tmp_path).done
    tried = merging(git, branch=BRANCH, accept={"run": "true"})
    for accepted in (None, False):
        said = tried.deliver(value(base, new, accepted=accepted), tmp_path)
        assert "is not moved, as what is merged isn't accepted" in said.shortfall
    assert at(git) == ""
    assert tried.deliver(value(base, new, accepted=True), tmp_path).done
    assert at(git) == new
    assert merging(git, branch="untried").deliver(value(base, new), tmp_path).done
