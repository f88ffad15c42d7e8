"""Who works in a workspace that holds some commit of a merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import Placed
from prefect_dispatch.executors.shell import Shell
from prefect_dispatch.workspaces.git import Git
from prefect_dispatch.workspaces.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.executors.base import Executor


def works_in_files(executor: object) -> bool:
    """Return whether somebody writes files of a repository as a brief says; a `Shell` runs commands."""
    is_agent = isinstance(executor, BaseModel) and not isinstance(executor, Shell)
    return is_agent and isinstance(getattr(executor, "workspace", None), Workspace)


def require_base(repo: Path, theirs: Workspace) -> None:
    """Check that a repository has the commit that changes begin from; that it is there at all is checked elsewhere.

    Args:
        repo: The repository that they are to be merged in.
        theirs: The workspace that they are made in, placed.

    Raises:
        JobError: If it hasn't.
    """
    if repo.is_dir() and Git(repo).tried("cat-file", "-e", f"{theirs.base}^{{commit}}")[0]:
        raise JobError(
            f"integrator.workspace.repo: {str(repo)!r} has no commit {theirs.base[:12]}, from which the changes begin "
            f"that are made in {theirs.repo!r}: leave it out, and the executor's counts, or fetch that commit."
        )


def workspace_at(executor: Executor, repo: Path, commit: str) -> Executor:
    """Return who works as an executor does, in a workspace that begins from a commit.

    Args:
        executor: One that has a workspace.
        repo: The repository that has the commit.
        commit: The commit.
    """
    working: Any = executor
    moved: Any = working.workspace.model_copy(update={"repo": str(repo), "base": commit})
    found: Executor = working.model_copy(update={"workspace": moved})
    return found.placed(repo) if isinstance(found, Placed) else found
