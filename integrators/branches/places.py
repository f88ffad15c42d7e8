"""Who works in a workspace that holds some commit of a merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from prefect_dispatch.executors.base import Placed
from prefect_dispatch.executors.shell import Shell
from prefect_dispatch.workspaces.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.executors.base import Executor


def works_in_files(executor: object) -> bool:
    """Return whether somebody writes files of a repository as a brief says; a `Shell` runs commands."""
    is_agent = isinstance(executor, BaseModel) and not isinstance(executor, Shell)
    return is_agent and isinstance(getattr(executor, "workspace", None), Workspace)


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
