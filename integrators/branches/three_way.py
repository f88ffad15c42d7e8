"""Two changes of one tree made into one: path by path, and line by line where both changed the same file.

Nothing is renamed by guess: a file that was moved is gone from one place and new in another, so a move against a
change of the same file is a conflict and never a silent success. No attribute, filter, driver or configuration of a
repository or of a user counts, and nothing is checked out: what comes out depends on the three trees alone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_dispatch.errors import DispatchError
from prefect_dispatch.integrators.branches.trees import (
    REGULAR,
    Difference,
    Entry,
    changed,
    content,
    differences,
    shown,
    stored,
)
from prefect_dispatch.workspaces.difference import SUBMODULE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prefect_dispatch.integrators.branches.trees import Differences
    from prefect_dispatch.workspaces.git import Git

Kind = Literal["lines", "add/add", "binary", "modify/delete", "type", "mode", "file/folder"]
"""What two changes can't agree on: some lines; a file that both add; a file without lines; whether there is one; what
kind of file it is; whether it can be run; whether a file or a folder stands there."""
_MOST_CONFLICTS = 127
"""git counts no further."""


class Conflict(NamedTuple):
    """One path on which two changes contradict each other."""

    path: str
    """The path."""
    kind: Kind
    """What they can't agree on."""
    base: Entry | None
    """What both began from."""
    ours: Entry | None
    """What stands there by the change that comes first."""
    theirs: Entry | None
    """What the other one wants there."""
    result: Entry | None = None
    """What comes of both where the first one counts: of a file with lines, group by group."""
    marked: Entry | None = None
    """Both sides between markers, where the file has lines."""


class Merged(NamedTuple):
    """What two changes make together."""

    tree: str
    """The tree; where they contradict each other, by the change that comes first."""
    conflicts: tuple[Conflict, ...]
    """Where they do, in the order of the paths."""


def merged(git: Git, base: str, ours: str, theirs: str) -> Merged:
    """Return the tree of two changes of a base; where they contradict each other, the first one counts.

    In a file that both changed, each group of lines counts by itself: what only the second one changed is taken.

    Args:
        git: The repository that has all of them.
        base: The tree, or the commit, that both began from.
        ours: What the change made of it that comes first.
        theirs: What the other one made of it.

    Raises:
        DispatchError: If a change touches a submodule.
    """
    mine, other = differences(git, base, ours), differences(git, base, theirs)
    taken, conflicts = dict[str, "Entry | None"](), dict[str, Conflict]()
    for path, each in other.items():
        if SUBMODULE in {entry.mode for entry in each if entry}:
            raise DispatchError(f"{shown(path)!r} is a submodule, which can't be merged; change it by hand.")
        found = mine.get(path)
        if found is None:
            taken[path] = each.after
        elif found.after != each.after:
            taken[path], conflict = _both(git, path, Difference(each.before, found.after), each.after)
            if conflict:
                conflicts[path] = conflict
    for path in [*_clashes(mine, taken)]:
        before = other[path].before
        conflicts[path] = Conflict(path, "file/folder", before, None, taken.pop(path))
    return Merged(changed(git, ours, taken), tuple(conflicts[path] for path in sorted(conflicts)))


def _both(git: Git, path: str, ours: Difference, theirs: Entry | None) -> tuple[Entry | None, Conflict | None]:
    """Return what two changes make of one file, and what they can't agree on."""
    base, mine = ours
    if mine is None or theirs is None:
        return mine, Conflict(path, "modify/delete", base, mine, theirs, mine)
    if not {mine.mode, theirs.mode, base.mode if base else REGULAR[0]} <= {*REGULAR}:
        return mine, Conflict(path, "type", base, mine, theirs, mine)
    if mine.blob == theirs.blob and base is None:
        return mine, Conflict(path, "mode", base, mine, theirs, mine)
    mode = theirs.mode if base and mine.mode == base.mode else mine.mode
    if base and mine.blob in {theirs.blob, base.blob}:
        return Entry(mode, theirs.blob), None
    if base and theirs.blob == base.blob:
        return Entry(mode, mine.blob), None
    return _lines(git, path, base, mine, theirs, mode)


def _lines(
    git: Git, path: str, base: Entry | None, mine: Entry, theirs: Entry, mode: str
) -> tuple[Entry, Conflict | None]:
    with tempfile.TemporaryDirectory() as folder:
        names = [Path(folder, name) for name in ("ours", "base", "theirs")]
        for name, entry in zip(names, (mine, base, theirs), strict=True):
            name.write_bytes(content(git, entry))
        files = [str(name) for name in names]
        labels = [word for label in ("ours", "base", "theirs") for word in ("-L", label)]
        code, text = git.tried("merge-file", "-p", "-q", "--diff3", *labels, *files)
        if code > _MOST_CONFLICTS:  # a file without lines, or too large for git to compare
            return mine, Conflict(path, "binary", base, mine, theirs, mine)
        marked = Entry(mode, stored(git, text))
        if code == 0 and (base or mine.mode == theirs.mode):  # of two that add a file, one may leave it empty
            return marked, None
        if base is None:
            kind: Kind = "add/add" if code else "mode"
            return mine, Conflict(path, kind, base, mine, theirs, mine, marked if code else None)
        result = Entry(mode, stored(git, git.raw("merge-file", "-p", "-q", "--ours", *files)))
    return result, Conflict(path, "lines", base, mine, theirs, result, marked)


def _clashes(ours: Differences, taken: Mapping[str, Entry | None]) -> Iterator[str]:
    """Yield what can't be taken, as it would be a file where a folder has to be, or in a folder that is a file."""
    standing = {path for path, each in ours.items() if each.after}
    folders = {*_above(standing)}
    for path, entry in taken.items():
        if entry and path not in standing and (path in folders or not standing.isdisjoint(_above([path]))):
            yield path


def _above(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        parts = path.split("/")
        yield from ("/".join(parts[:at]) for at in range(1, len(parts)))
