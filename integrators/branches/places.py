"""Who works in a workspace that holds some commit of a merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from prefect_dispatch.executors.base import Placed
from prefect_dispatch.workspaces.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.executors.base import Executor


def has_workspace(executor: object) -> bool:
    """Return whether somebody works in a repository."""
    return isinstance(executor, BaseModel) and isinstance(getattr(executor, "workspace", None), Workspace)


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
