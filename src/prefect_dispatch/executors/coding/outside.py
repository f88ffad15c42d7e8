"""Whether an agent wrote into the user's own checkout, instead of into its workspace.

Most agents have no sandbox, and a workspace names the repository that it reads, so that an agent can find the way. What
it changes there is never collected. But work that went astray isn't done, and the user has to be told.

That the checkout changed while an agent worked is no proof: the user may work there, too, and other agents are at work
at the same time. A change is traced to an agent by what only that agent could explain: the file is one that its brief
has it write, its content is what the agent left in its workspace, or the agent's output names the checkout.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from prefect_dispatch.errors import RejectedError
from prefect_dispatch.globs import Glob, means
from prefect_dispatch.workspaces.checkout import Checkout
from prefect_dispatch.workspaces.difference import named, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from prefect_dispatch.executors.coding.adapter import Printed

LARGEST = 16 * 1024 * 1024
"""Bytes of a file that is compared with what an agent left."""
_MOST_COMPARED = 100
"""Files of the checkout that are compared with those of the workspace."""


class OutsideWatch:
    """Compares a checkout before and after an agent's work; calls block."""

    def __init__(self, repo: Path, workspace: Path, writes: Sequence[str], program: str) -> None:
        """Look at the checkout before the work begins.

        Args:
            repo: A folder in the checkout.
            workspace: The folder that the agent is to work in.
            writes: The globs, from the top of the repository, of the files that it is to write.
            program: The path of the agent's program, which may lie in the checkout and name itself in its messages.
        """
        self._repo, self._workspace, self._program = repo, workspace, program
        self._writes = [Glob.parse(glob) for glob in writes]
        self._before = Checkout.read(repo)

    def require_inside(self, printed: Printed) -> str:
        """Return what changed in the checkout that can't be traced to the agent, in a sentence; or nothing.

        Args:
            printed: What the agent left behind.

        Raises:
            RejectedError: If a change of the checkout is traced to the agent.
        """
        if self._before is None:
            return ""
        now = Checkout.read(self._repo)
        if now is None:
            return f"While it worked, the repository {str(self._repo)!r} became unreadable; nothing says who did that."
        files, parts = now.changes_since(self._before)
        if not files and not parts:
            return ""
        seen = f"While it worked, the checkout {str(now.top)!r} changed: {named((*files, *parts))}"
        if why := self._trace(now, files, printed):
            raise RejectedError(
                f"{seen}. {why}, so the agent wrote outside of its workspace, and nothing of its work is used. Undo "
                "there what isn't yours, and give the agent a sandbox, fewer permissions or a machine of its own.",
                kind="outside",
            )
        return f"{seen}; nothing traces that to the agent."

    def _trace(self, now: Checkout, files: Iterable[str], printed: Printed) -> str:
        """Return why a change is the agent's, or nothing."""
        if written := [path for path in files if any(means(glob, path) for glob in self._writes)]:
            return f"The brief has it write {named(written)}"
        # What the user put back to what the workspace began from is of equal content, too, and is in no status.
        dirty = {shown(path) for path in now.files}
        compared = [path for path in files if path in dirty][:_MOST_COMPARED]
        if same := [path for path in compared if self._is_same(now.top / path, self._workspace / path)]:
            return f"The content of {named(same)} is what it left in its workspace"
        folders = {str(now.top), str(now.top.resolve()), str(self._repo), str(self._repo.resolve())}
        naming = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(folders)))})(?![\w.-])")
        texts = (printed.stdout, printed.stderr, *printed.files.values())
        is_named = any(naming.search(text.replace(self._program, "")) for text in texts)
        return "Its output names that folder" if is_named else ""

    @staticmethod
    def _is_same(one: Path, other: Path) -> bool:
        """Return whether two files have the same content, and any at all."""
        with suppress(OSError):
            if one.is_symlink() or other.is_symlink() or not one.is_file() or not other.is_file():
                return False
            size = one.stat().st_size
            return 0 < size == other.stat().st_size <= LARGEST and one.read_bytes() == other.read_bytes()
        return False
