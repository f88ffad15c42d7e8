"""Three-way merge of two git trees: path by path, and line by line where both changed the same file.

Renames are not detected: a moved file counts as one deleted and one added, so a move against a change of the same
file is a conflict and never a silent success. The result depends on the three trees alone: nothing is checked out,
and no attribute, filter, merge driver or configuration of the repository or the user has an effect.

Lines are merged by `git merge-file`, which compares versions with Myers' diff. `git merge` takes the histogram diff:
where lines repeat, the two may pair different lines, so that one finds a conflict and the other none.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_dispatch.errors import DispatchError
from prefect_dispatch.integrators.merge_branches.syntax import (
    MAX_SHOWN,
    PROGRAM,
    find_double_definitions,
    merge_by_syntax,
)
from prefect_dispatch.security.escaping import join_names
from prefect_dispatch.workspaces.patches import SUBMODULE, diff_trees
from prefect_dispatch.workspaces.patches import display_path as shown_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prefect_dispatch.integrators.merge_branches.syntax import SyntaxMerge
    from prefect_dispatch.workspaces.git import Git
    from prefect_dispatch.workspaces.patches import Entry as PatchEntry


REGULAR = ("100644", "100755")
"""Modes of files that can be merged line by line."""


_NO_FILE_MODE = "000000"


class Entry(NamedTuple):
    """File at a path of a tree."""

    mode: str
    """The file mode, as git writes it."""
    blob: str
    """The object id of the content."""


class Difference(NamedTuple):
    """File at a path before and after a change; None: no file."""

    before: Entry | None
    after: Entry | None


Differences = dict[str, Difference]
"""Differences between two trees, by path; bytes that aren't UTF-8 are surrogates, as `os.fsdecode` returns them."""


def list_differences(git: Git, one: str, other: str) -> Differences:
    """Return the differences between two trees, or the trees of two commits, without rename detection.

    Args:
        git: The repository.
        one: The tree or commit before the change.
        other: The tree or commit after it.
    """
    return {
        each.path.decode("utf-8", "surrogateescape"): Difference(
            _convert_entry(each.before), _convert_entry(each.after)
        )
        for each in diff_trees(git, one, other)
    }


def _convert_entry(entry: PatchEntry) -> Entry | None:
    return None if entry.mode == _NO_FILE_MODE else Entry(entry.mode, entry.object)


def replace_entries(git: Git, tree: str, entries: Mapping[str, Entry | None]) -> str:
    """Return the id of a tree with some entries replaced, written to the repository.

    Args:
        git: The repository.
        tree: The tree or commit to start from.
        entries: The new entries by path; None removes the file.
    """
    if not entries:
        return git.output("rev-parse", "--verify", f"{tree}^{{tree}}")
    # Removals come first: a file may replace a folder, and a folder a file.
    ordered = sorted(entries.items(), key=lambda each: (each[1] is not None, each[0]))
    removed = Entry("0", "0" * len(tree))
    lines = "".join("{} {}\t{}\0".format(*(entry or removed), path) for path, entry in ordered)
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": os.fspath(Path(folder, "index"))}
        git.output_bytes("read-tree", tree, env=index)
        git.output_bytes(
            "update-index", "-z", "--index-info", stdin=lines.encode("utf-8", "surrogateescape"), env=index
        )
        return git.output("write-tree", env=index)


def write_blob(git: Git, content: bytes) -> str:
    """Write content to the repository's object store and return its id."""
    return git.output("hash-object", "-w", "--stdin", stdin=content)


def read_blob(git: Git, entry: Entry | None) -> bytes:
    """Return the content of a file; empty if there is no file."""
    return git.output_bytes("cat-file", "blob", entry.blob) if entry else b""


def display_path(path: str) -> str:
    r"""Return a path as text, with bytes that aren't UTF-8 written as `\xNN`.

    Example:
        >>> display_path(b"caf\xe9.txt".decode("utf-8", "surrogateescape"))
        'caf\\xe9.txt'
    """
    return shown_bytes(path.encode("utf-8", "surrogateescape"))


ConflictKind = Literal["lines", "add/add", "binary", "modify/delete", "type", "mode", "file/folder"]
"""Kind of a conflict.

`lines`: both change the same lines. `add/add`: both add the file. `binary`: the file has no lines. `modify/delete`: one
deletes the file. `type`: regular file or not. `mode`: executable or not. `file/folder`: file or folder at one path.
"""


_MAX_EXIT_CONFLICTS = 127
"""`git merge-file` exits with the number of conflicts up to this; larger codes are errors."""


class Conflict(NamedTuple):
    """Path on which two changes conflict."""

    path: str
    """The path."""
    kind: ConflictKind
    """The kind of conflict."""
    base: Entry | None
    """The file in the common base."""
    ours: Entry | None
    """The file in the change that has precedence."""
    theirs: Entry | None
    """The file in the other change."""
    result: Entry | None = None
    """The merge if `ours` has precedence: in a file with lines, for each group of lines separately."""
    marked: Entry | None = None
    """The file with both sides between conflict markers, if it has lines."""


DoubtKind = Literal["same name", "syntax", "merged by syntax"]
"""Kind of a doubt about a file that was merged without a conflict.

`same name`: both sides define a name. `syntax`: the syntax trees conflict, and the lines don't. `merged by syntax`: the
lines conflict, and the syntax trees don't.
"""


class Doubt(NamedTuple):
    """Doubt about a file that two changes touch, and that was merged without a conflict."""

    path: str
    """The path."""
    kind: DoubtKind
    """The kind of doubt."""
    text: str
    """The names, or the program."""


class MergedTree(NamedTuple):
    """Result of a three-way merge."""

    tree: str
    """The id of the merged tree; on conflicts, the change that has precedence counts."""
    conflicts: tuple[Conflict, ...]
    """The conflicts, sorted by path."""
    doubts: tuple[Doubt, ...] = ()
    """The doubts about merged files, sorted by path."""


def merge_trees(git: Git, base: str, ours: str, theirs: str) -> MergedTree:
    """Return the three-way merge of two changes of a base; where they conflict, the first one has precedence.

    In a file that both changed, precedence applies to each group of lines separately: lines that only the second change
    touches are merged.

    Args:
        git: The repository that has all three trees.
        base: The common base, a tree or commit.
        ours: The base after the change that has precedence.
        theirs: The base after the other change.

    Raises:
        DispatchError: If a change touches a submodule.
    """
    # 1. Diff each side against the base.
    our_changes, their_changes = list_differences(git, base, ours), list_differences(git, base, theirs)
    taken, conflicts, doubts = dict[str, "Entry | None"](), dict[str, Conflict](), list[Doubt]()
    # 2. Take what only `theirs` changed; merge files that both changed.
    for path, each in their_changes.items():
        if SUBMODULE in {entry.mode for entry in each if entry}:
            raise DispatchError(f"{display_path(path)!r} is a submodule, which can't be merged; change it by hand.")
        own_change = our_changes.get(path)
        if own_change is None:
            taken[path] = each.after
        elif own_change.after != each.after:
            ours_theirs = own_change.after, each.after
            taken[path], kind, marked, found = _merge_entries(git, path, each.before, *ours_theirs)
            doubts += found
            if kind:
                conflicts[path] = Conflict(path, kind, each.before, *ours_theirs, taken[path], marked)
    # 3. A path can't be a file on one side and a folder on the other: `ours` stays.
    for path in [*_file_folder_conflicts(our_changes, taken)]:
        before = their_changes[path].before
        conflicts[path] = Conflict(path, "file/folder", before, None, taken.pop(path))
    # 4. Write the tree.
    return MergedTree(
        replace_entries(git, ours, taken),
        tuple(conflicts[path] for path in sorted(conflicts)),
        tuple(sorted(each for each in doubts if each.path in taken)),
    )


class _MergedEntry(NamedTuple):
    """Merge of a file."""

    result: Entry | None
    kind: ConflictKind | None = None
    """The kind of conflict, if there is one."""
    marked: Entry | None = None
    """The file with conflict markers, if there are any."""
    doubts: tuple[Doubt, ...] = ()


def _merge_entries(git: Git, path: str, base: Entry | None, ours: Entry | None, theirs: Entry | None) -> _MergedEntry:
    """Return the merge of a file that both sides changed."""
    # 1. One side deletes the file.
    if ours is None or theirs is None:
        return _MergedEntry(ours, "modify/delete")
    # 2. A version is no regular file, or two equal additions differ in mode.
    if not {ours.mode, theirs.mode, base.mode if base else REGULAR[0]} <= {*REGULAR}:
        return _MergedEntry(ours, "type")
    if ours.blob == theirs.blob and base is None:
        return _MergedEntry(ours, "mode")
    # 3. Mode and content merge separately; content that only one side changed needs no line merge.
    mode = theirs.mode if base and ours.mode == base.mode else ours.mode
    if base and ours.blob in {theirs.blob, base.blob}:
        return _MergedEntry(Entry(mode, theirs.blob))
    if base and theirs.blob == base.blob:
        return _MergedEntry(Entry(mode, ours.blob))
    return _merge_lines(git, path, base, ours, theirs, mode)


def _merge_lines(git: Git, path: str, base: Entry | None, ours: Entry, theirs: Entry, mode: str) -> _MergedEntry:
    """Return the merge of a file by `git merge-file`, and by its syntax where lines conflict and that is possible."""
    versions = {label: read_blob(git, each) for label, each in (("ours", ours), ("base", base), ("theirs", theirs))}
    with tempfile.TemporaryDirectory() as folder:
        labels, files = list[str](), list[str]()
        for label, content in versions.items():
            Path(folder, label).write_bytes(content)
            labels += ("-L", label)
            files.append(str(Path(folder, label)))
        code, text = git.run("merge-file", "-p", "-q", "--diff3", *labels, *files)
        if code > _MAX_EXIT_CONFLICTS:  # a binary file, or one too large for git to compare
            return _MergedEntry(ours, "binary")
        by_syntax = merge_by_syntax(path, versions) if base else None
        if code and by_syntax and by_syntax.text is not None:
            doubt = Doubt(path, "merged by syntax", PROGRAM)
            return _MergedEntry(Entry(mode, write_blob(git, by_syntax.text)), doubts=(doubt,))
        marked = Entry(mode, write_blob(git, text))
        if code == 0 and (base or ours.mode == theirs.mode):  # two different additions merge cleanly if one is empty
            return _MergedEntry(marked, doubts=tuple(_find_doubts(path, versions, text, by_syntax)))
        if base is None:
            return _MergedEntry(ours, "add/add", marked) if code else _MergedEntry(ours, "mode")
        result = Entry(mode, write_blob(git, git.output_bytes("merge-file", "-p", "-q", "--ours", *files)))
    return _MergedEntry(result, "lines", marked)


def _find_doubts(
    path: str, versions: Mapping[str, bytes], merged: bytes, by_syntax: SyntaxMerge | None
) -> Iterator[Doubt]:
    """Yield what is doubtful about a file that git merged without a conflict."""
    if by_syntax and by_syntax.text is None:
        yield Doubt(path, "syntax", PROGRAM)
    if names := find_double_definitions(path, versions["base"], versions["ours"], versions["theirs"], merged):
        yield Doubt(path, "same name", join_names(map(repr, names), MAX_SHOWN))


def _file_folder_conflicts(ours: Differences, taken: Mapping[str, Entry | None]) -> Iterator[str]:
    """Yield the paths of `taken` that would be a file where `ours` has a folder, or be inside of a file of `ours`."""
    our_files = {path for path, each in ours.items() if each.after}
    folders = {*parent_folders(our_files)}
    for path, entry in taken.items():
        if entry and path not in our_files and (path in folders or not our_files.isdisjoint(parent_folders([path]))):
            yield path


def parent_folders(paths: Iterable[str]) -> Iterator[str]:
    """Yield the paths of all folders above some paths."""
    for path in paths:
        parts = path.split("/")
        yield from ("/".join(parts[:at]) for at in range(1, len(parts)))
