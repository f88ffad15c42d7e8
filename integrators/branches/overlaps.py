"""Which changes touch the same files, found before any of them is merged."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from prefect_dispatch.integrators.branches.trees import REGULAR, shown
from prefect_dispatch.ledger import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.branches.ground import Ground
    from prefect_dispatch.integrators.branches.lining import Branch

How = Literal["same content", "same lines", "near lines", "same file", "whole file", "file and folder"]
"""How close two changes come in a file."""
NEAR = 3
"""Lines: what is this close to each other belongs together to a reader, as the context of a patch does."""
_HUNK = re.compile(rb"^@@ -(\d+)(?:,(\d+))? \+", re.MULTILINE)
_NOTE = (
    "Every pair of changes that touch one file, as they were before anything was merged. `same content`: both leave "
    f"the same there. `same lines`: their lines meet, and may be a conflict. `near lines`: they are within {NEAR}. "
    "`same file`: further apart. `whole file`: one of them adds, deletes or replaces it, or it has no lines."
)


def overlaps(ground: Ground, branches: Sequence[Branch]) -> Table:
    """Return the table of changes that touch one file."""
    rows: list[dict[str, JsonValue]] = [
        {"path": shown(path), "one": str(one.ref), "other": str(other.ref), "how": how}
        for path, one, other, how in sorted(
            _pairs(ground, branches), key=lambda each: (each[0], each[1].ref.order, each[2].ref.order)
        )
    ]
    return Table(name="overlaps", title="What several changes touch", rows=tuple(rows), note=_NOTE)


def _pairs(ground: Ground, branches: Sequence[Branch]) -> Iterator[tuple[str, Branch, Branch, How]]:
    touching: dict[str, list[Branch]] = defaultdict(list)
    folders: dict[str, list[Branch]] = defaultdict(list)
    for branch in branches:
        for path, each in branch.files.items():
            touching[path].append(branch)
            parts = path.split("/")
            for at in range(1, len(parts)) if each.after else ():
                folders["/".join(parts[:at])].append(branch)
    for path, several in touching.items():
        lines = {branch.commit: _lines(ground, branch, path) for branch in several} if len(several) > 1 else {}
        for one, other in combinations(several, 2):
            yield path, one, other, _how(one, other, path, lines)
        for branch in several:
            if branch.files[path].after:
                for other in {each.commit: each for each in folders[path] if each is not branch}.values():
                    yield path, branch, other, "file and folder"


def _how(one: Branch, other: Branch, path: str, lines: dict[str, list[tuple[int, int]] | None]) -> How:
    if one.files[path].after == other.files[path].after:
        return "same content"
    left, right = lines[one.commit], lines[other.commit]
    if left is None or right is None:
        return "whole file"
    apart = min((max(a, c) - min(b, d) for a, b in left for c, d in right), default=NEAR + 1)
    return "same lines" if apart <= 0 else "near lines" if apart <= NEAR else "same file"


def _lines(ground: Ground, branch: Branch, path: str) -> list[tuple[int, int]] | None:
    """Return the lines of the base that a change replaces, from and to; None where it isn't about lines."""
    before, after = branch.files[path]
    if not before or not after or not {before.mode, after.mode} <= {*REGULAR}:
        return None
    said = ground.git.raw("diff", "--no-ext-diff", "--no-textconv", "-U0", before.blob, after.blob)
    if b"\nBinary files " in said:
        return None
    found = [(int(each[1]), int(each[2] or 1)) for each in _HUNK.finditer(said)]
    # What is put in behind a line, and replaces none, stands between that line and the next.
    return [(first, first + count) if count else (first + 1, first + 1) for first, count in found]
