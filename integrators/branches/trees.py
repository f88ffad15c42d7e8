"""Trees of git without a checkout: what differs between two, and how one becomes another."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.workspaces.difference import between
from prefect_dispatch.workspaces.difference import shown as shown_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_dispatch.workspaces.difference import Entry as Found
    from prefect_dispatch.workspaces.git import Git

REGULAR = ("100644", "100755")
"""Modes of files that have lines."""
_NOTHING = "000000"


class Entry(NamedTuple):
    """What stands at a path."""

    mode: str
    """Its mode, as git has it."""
    blob: str
    """The name of its content."""


class Difference(NamedTuple):
    """What stood at a path, and what stands there now; None: nothing."""

    before: Entry | None
    after: Entry | None


Differences = dict[str, Difference]
"""What differs, by path: bytes that are no UTF-8 are half characters, as `os.fsdecode` has them."""


def differences(git: Git, one: str, other: str) -> Differences:
    """Return what differs between two trees, or the trees of commits; what was renamed is gone here and new there."""
    return {
        each.path.decode("utf-8", "surrogateescape"): Difference(_entry(each.before), _entry(each.after))
        for each in between(git, one, other)
    }


def _entry(found: Found) -> Entry | None:
    return None if found.mode == _NOTHING else Entry(found.mode, found.object)


def changed(git: Git, tree: str, entries: Mapping[str, Entry | None]) -> str:
    """Return the tree that a tree becomes with some entries put in, or taken out where they are None."""
    if not entries:
        return git.out("rev-parse", "--verify", f"{tree}^{{tree}}")
    # What goes, first: a file may stand where there was a folder, and the other way round.
    ordered = sorted(entries.items(), key=lambda each: (each[1] is not None, each[0]))
    gone = Entry("0", "0" * len(tree))
    lines = "".join("{} {}\t{}\0".format(*(entry or gone), path) for path, entry in ordered)
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": os.fspath(Path(folder, "index"))}
        git.raw("read-tree", tree, env=index)
        git.raw("update-index", "-z", "--index-info", stdin=lines.encode("utf-8", "surrogateescape"), env=index)
        return git.out("write-tree", env=index)


def stored(git: Git, content: bytes) -> str:
    """Return the name of some content, once it is kept among the repository's objects."""
    return git.out("hash-object", "-w", "--stdin", stdin=content)


def content(git: Git, entry: Entry | None) -> bytes:
    """Return what a file consists of; nothing where there is none."""
    return git.raw("cat-file", "blob", entry.blob) if entry else b""


def shown(path: str) -> str:
    r"""Return a path as it is told: bytes that are no UTF-8 as `\xNN`.

    Example:
        >>> shown(b"caf\xe9.txt".decode("utf-8", "surrogateescape"))
        'caf\\xe9.txt'
    """
    return shown_bytes(path.encode("utf-8", "surrogateescape"))
