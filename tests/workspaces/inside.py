"""What is done in a workspace, as an agent would do it."""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING, TypeVar

from prefect_dispatch.workspaces.workspace import OpenWorkspace, Workspace, open_workspace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from prefect_dispatch.models.outcome import Change
    from tests.workspaces.repositories import Repository

T = TypeVar("T")


def within(workspace: Workspace, do: Callable[[OpenWorkspace], Awaitable[T]], pass_env: tuple[str, ...] = ()) -> T:
    """Return what something returns that is done in a workspace."""

    async def inside() -> T:
        async with open_workspace(workspace, pass_env=pass_env) as room:
            return await do(room)

    return asyncio.run(inside())


def sh(room: OpenWorkspace, script: str) -> str:
    """Return what a shell says that runs in a workspace, as an agent would run it."""
    done = subprocess.run(  # noqa: S603 -- our own words
        ["/bin/sh", "-ec", script], cwd=room.path, env=dict(room.env), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8", "surrogateescape").strip()


def leases(state: Path) -> list[str]:
    """Return what is left in the state folder."""
    return sorted(path.name for path in (state / "leases").glob("*"))


def changed_by(repository: Repository, script: str, writes: Sequence[str] = (".",)) -> Change:
    """Return what a script changes in a workspace."""

    async def work(room: OpenWorkspace) -> Change:
        sh(room, script)
        return await room.capture_change(writes)

    return within(Workspace().resolve(repository.path), work)


def told(change: Change) -> list[tuple[str, str, str]]:
    """Return path, kind and mode of each file of a change."""
    return [(each.path, each.change, each.mode) for each in change.files]
