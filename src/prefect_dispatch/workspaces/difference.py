"""What differs between two trees, as git tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.change import ChangedFile
from prefect_dispatch.errors import RejectedError
from prefect_dispatch.inert import plain, refs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prefect_dispatch.workspaces.git import Git

SUBMODULE = "160000"
"""The mode of a submodule, which is a commit of another repository."""
NAMED = 10
"""How many paths a message names."""

_RAW = ("-r", "-z", "--raw", "--no-abbrev", "--no-renames", "--ignore-submodules=none")
_KINDS = {"A": "added", "M": "modified", "D": "deleted", "T": "typechange"}
_WIDEST = 200


class Entry(NamedTuple):
    """What stands at a path; all zeros where nothing does."""

    mode: str
    """Its mode, as git has it."""
    object: str
    """The name of its content."""


class Difference(NamedTuple):
    """One path on which two trees differ."""

    path: bytes
    """The path; names may be any bytes."""
    before: Entry
    """What stood there."""
    after: Entry
    """What stands there now."""
    kind: str
    """`A`, `M`, `D` or `T`: added, modified, deleted, or of another type."""


def between(git: Git, one: str, other: str) -> list[Difference]:
    """Return what differs between two trees, or the trees of commits, in the order of the paths."""
    return [*_read(git.raw("diff-tree", *_RAW, "--no-commit-id", one, other))]


def staged(git: Git, base: str) -> list[Difference]:
    """Return what differs between a tree and the index of a repository, in the order of the paths."""
    return [*_read(git.raw("diff-index", "--cached", *_RAW, base))]


def files_of(differences: Sequence[Difference]) -> tuple[ChangedFile, ...]:
    """Return the same as a change has it.

    Raises:
        RejectedError: If a submodule is among it.
    """
    if found := [each.path for each in differences if SUBMODULE in (each.before.mode, each.after.mode)]:
        raise RejectedError(
            f"{named(found)}: a submodule was added, moved or removed, which can't be collected; leave it as it is.",
            kind="submodule",
        )
    return tuple(
        ChangedFile.model_validate(
            {"path": shown(path), "change": _KINDS[kind], "mode": "" if kind == "D" else after.mode}
        )
        for path, _, after, kind in differences
    )


def shown(path: bytes) -> str:
    r"""Return a path as text; bytes that are no UTF-8 as `\xNN`.

    Example:
        >>> shown(b"caf\xe9.txt")
        'caf\\xe9.txt'
    """
    return path.decode("utf-8", "backslashreplace")


def named(paths: Iterable[bytes | str]) -> str:
    """Return paths as a message names them: not too many, none too long, and inert.

    Example:
        >>> named([b"a.py", "b.py"])
        "'a.py', 'b.py'"
    """
    texts = [plain(shown(path) if isinstance(path, bytes) else path) for path in paths]
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return refs(repr(text if len(text) <= _WIDEST else f"{text[:_WIDEST]}…") for text in texts[:NAMED]) + more


def _read(raw: bytes) -> Iterator[Difference]:
    parts = iter(raw.split(b"\0"))
    for head in parts:
        if head:
            before, after, one, other, kind = head[1:].decode().split(" ")
            yield Difference(next(parts), Entry(before, one), Entry(after, other), kind)
