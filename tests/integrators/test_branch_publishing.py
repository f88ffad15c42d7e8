"""A merge put on a branch: only from what the branch was, and only where nothing of anybody's is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.branches.publishing import published, require_branch
from prefect_dispatch.workspaces.commits import commit_of
from tests.integrators.repos import WHO, Files, change_of, merging, repository

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.workspaces.git import Git

BASE: Files = {"a.py": "1\n"}
BRANCH = "agents/merged"


@pytest.fixture
def repo(tmp_path: Path) -> tuple[Git, str]:
    """A repository with one commit."""
    (tmp_path / "repo").mkdir()
    return repository(tmp_path / "repo", BASE)


def ours(git: Git, base: str, text: str) -> str:
    """Return a commit that a run of ours makes."""
    return commit_of(git, change_of(git, base, {"a.py": text}), "Merge")


def theirs(git: Git, base: str) -> str:
    """Return a commit that somebody makes."""
    return git.out("commit-tree", f"{base}^{{tree}}", "-p", base, stdin=b"Mine\n", env=WHO)


def at(git: Git, branch: str = BRANCH) -> str:
    """Return the commit of a branch; nothing if it isn't there."""
    return git.tried("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}")[1].decode().strip()


def test_a_branch_is_made_and_moved_by_runs_alone(repo: tuple[Git, str]) -> None:
    """Made where it isn't there; a later run replaces what an earlier one left; and says if there is nothing to do."""
    git, base = repo
    one, other = ours(git, base, "2\n"), ours(git, base, "3\n")
    assert published(git, BRANCH, one).done == f"The branch 'agents/merged' is at {one[:12]}."
    assert published(git, BRANCH, one).done == f"The branch 'agents/merged' is at {one[:12]} already."
    assert published(git, BRANCH, other).shortfall == ""
    assert at(git) == other
    ahead = ours(git, theirs(git, base), "4\n")
    git.out("update-ref", "refs/heads/of-others", theirs(git, base))
    assert published(git, "of-others", ahead).done  # forward, and nothing is lost
    assert at(git, "of-others") == ahead


def test_commits_of_others_stay(repo: tuple[Git, str]) -> None:
    """Also below one of ours: somebody may have built on it, or it on somebody's."""
    git, base = repo
    mine = theirs(git, base)
    for commit in (mine, theirs(git, ours(git, base, "2\n")), ours(git, mine, "5\n")):
        git.out("update-ref", f"refs/heads/{BRANCH}", commit)
        said = published(git, BRANCH, ours(git, base, "3\n"))
        assert "has commits that the merge lacks" in said.shortfall
        assert "`git apply --index merged.patch`" in said.shortfall
        assert (said.done, at(git)) == ("", commit)


def test_what_is_checked_out_stays(repo: tuple[Git, str], tmp_path: Path) -> None:
    """In the repository's own folder, or in any worktree of it."""
    git, base = repo
    new = ours(git, base, "2\n")
    assert "is checked out in" in published(git, "main", new).shortfall
    assert at(git, "main") == base
    git.out("branch", BRANCH, base)
    git.out("worktree", "add", "--quiet", str(tmp_path / "tree"), BRANCH)
    assert f"is checked out in '{tmp_path / 'tree'}' by now" in published(git, BRANCH, new).shortfall
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
    assert "could not be moved" in published(git, BRANCH, new).shortfall
    lock.unlink()
    git.out("branch", BRANCH, base)
    assert "could not be moved" in published(git, f"{BRANCH}/x", new).shortfall


@pytest.mark.parametrize("branch", ["a..b", "-x", "HEAD", "a b", "a.lock", "/", "@{-1}", "a\nb"])
def test_what_is_no_branch(repo: tuple[Git, str], branch: str) -> None:
    """Told before anything is spent, with what would be one."""
    with pytest.raises(JobError, match=r"is no name that git takes for a branch; take letters"):
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
