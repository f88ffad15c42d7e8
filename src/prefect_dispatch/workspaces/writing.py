"""A change written into the files of a workspace, so that work goes on where it ended."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prefect_dispatch.workspaces.commits import applied
from prefect_dispatch.workspaces.difference import between
from prefect_dispatch.workspaces.sharing import reading
from prefect_dispatch.workspaces.standing import Standing

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.change import Change
    from prefect_dispatch.workspaces.git import Git


def write_change(change: Change, git: Git, files: Path) -> None:
    """Write what a change says over the files of its base, once it was found to be right; nothing through a link.

    Args:
        change: The change.
        git: A repository of ours that has the base.
        files: The folder.

    Raises:
        RejectedError: If the change isn't what it says.
    """
    standing = Standing(os.fsencode(files))
    with applied(git, change) as index:
        differences = between(git, change.base, change.tree)
        for each in differences:
            if each.kind == "D" and standing.file(each.path):
                _remove(files, each.path)
        there = b"".join(each.path + b"\0" for each in differences if each.kind != "D")
        reading(git, files, index).out("checkout-index", "--force", "-z", "--stdin", stdin=there)


def _remove(files: Path, path: bytes) -> None:
    """Remove a file, and the folders that are empty then."""
    file = files / os.fsdecode(path)
    file.unlink()
    folder = file.parent
    while folder != files and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
