"""What a conflict is about, as short texts: the disputed lines, or how a file begins."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefect_dispatch.integrators.branches.trees import content
from prefect_dispatch.scrub import scrub

if TYPE_CHECKING:
    from prefect_dispatch.integrators.branches.three_way import Conflict
    from prefect_dispatch.integrators.branches.trees import Entry
    from prefect_dispatch.workspaces.git import Git

LONGEST = 600
"""Characters of an excerpt."""
_HUNK = re.compile(
    rb"^<<<<<<< ours\r?\n(?P<ours>.*?)^\|{7} base\r?\n(?P<base>.*?)^=======\r?\n(?P<theirs>.*?)^>>>>>>> theirs\r?$",
    re.MULTILINE | re.DOTALL,
)


def excerpts(git: Git, conflict: Conflict) -> tuple[str, str, str]:
    """Return what base, ours and theirs say where they contradict each other."""
    if conflict.marked:
        hunks = [*_HUNK.finditer(content(git, conflict.marked))]
        base, ours, theirs = (_cut(b"\n".join(each[side] for each in hunks)) for side in ("base", "ours", "theirs"))
        return base, ours, theirs
    return _start(git, conflict.base), _start(git, conflict.ours), _start(git, conflict.theirs)


def _start(git: Git, entry: Entry | None) -> str:
    return _cut(content(git, entry))


def _cut(found: bytes) -> str:
    if b"\0" in found:
        return f"({len(found):,} bytes, no text)"
    text = scrub(found[: 4 * LONGEST].decode("utf-8", "replace"))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
