"""What was merged as one patch, which `git apply --index` takes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.ledger import Document
from prefect_dispatch.workspaces.sharing import Objects, sharing

if TYPE_CHECKING:
    from prefect_dispatch.integrators.branches.ground import Ground

PATCH = "merged.patch"
"""The name of the file."""
_DIFF = (
    *("diff-tree", "-r", "-p", "--binary", "--full-index", "--no-renames", "--no-ext-diff", "--no-textconv"),
    *("--no-color", "--src-prefix=a/", "--dst-prefix=b/", "--diff-algorithm=histogram", "--no-indent-heuristic"),
)


def merged_patch(ground: Ground, tree: str) -> Document:
    """Return what was merged as a patch of the base; files that are no UTF-8 stand in it as binary ones.

    It is made in a repository of our own, in which neither the settings of the user's nor the attributes of what is
    checked out there count.
    """
    with tempfile.TemporaryDirectory(prefix="prefect-dispatch-") as folder:
        own = sharing(Objects.of(ground.git), Path(folder, "git"), checkout=False)
        found = own.raw(*_DIFF, ground.base, tree)
        try:
            text = found.decode()
        except UnicodeDecodeError:
            Path(folder, "git", "info", "attributes").write_text("* -diff\n", encoding="utf-8")
            text = own.raw(*_DIFF, ground.base, tree).decode()
    return Document(name=PATCH, title="What was merged, as a patch", text=text)
