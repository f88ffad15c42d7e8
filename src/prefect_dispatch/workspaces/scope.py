"""What was written, held against what was declared, and searched for secrets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefect_dispatch.errors import RejectedError
from prefect_dispatch.globs import Glob, means
from prefect_dispatch.inert import plain
from prefect_dispatch.scrub import scrubber, teller
from prefect_dispatch.workspaces.difference import named

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from prefect_dispatch.change import ChangedFile
    from prefect_dispatch.workspaces.git import Git

_SECTION = re.compile(rb"^(?=diff --git )", re.MULTILINE)
_BINARY = re.compile(rb"^index [0-9a-f]+\.\.([0-9a-f]+)[^\n]*\nGIT binary patch$", re.MULTILINE)
_ADDED, _REMOVED = re.compile(rb"^\+(.*)$", re.MULTILINE), re.compile(rb"^-(.*)$", re.MULTILINE)
_PRINTABLE = re.compile(rb"[\t -~]{6,}")
_AT_ONCE = 200_000
"""Characters that are searched at once."""
_QUOTED = 120


def require_declared(files: Iterable[ChangedFile], writes: Sequence[str]) -> None:
    """Check that every file that was touched is one that the brief says it writes; a rename touches two.

    Args:
        files: What was changed.
        writes: The globs that the brief declares, from the top of the repository. Case counts.

    Raises:
        RejectedError: If one isn't, with a list of them.
        BriefError: If a glob can't be used.
    """
    globs = [Glob.parse(glob) for glob in writes]
    outside = [each.path for each in files if not any(means(glob, each.path) for glob in globs)]
    if outside:
        declared = f"it declares {', '.join(map(repr, writes))}" if writes else "it declares no 'writes'"
        raise RejectedError(
            f"The brief changed what it doesn't declare: {named(outside)}; {declared}. Declare these under 'writes', "
            "or tell it to leave them alone.",
            kind="scope",
        )


def require_no_secrets(git: Git, files: Sequence[ChangedFile], patch: bytes) -> None:
    """Check that nothing that was written, and no name of a file, holds a secret.

    What was taken out may, and so may what stood in the repository before, and was only moved.

    Args:
        git: The repository that has what was written.
        files: What was changed.
        patch: The difference, without lines around it.

    Raises:
        RejectedError: If something does; the message names the file, and not the secret.
    """
    tells = teller()
    for each in files:
        if tells(each.path):
            raise _refusal(scrubber()(each.path), "its name")
    removed = {line.strip() for line in _REMOVED.findall(patch)}
    # what became of another type is taken out in one section, and added in the next
    paths = [each.path for each in files for _ in range(1 + (each.change == "typechange"))]
    for path, section in zip(paths, _SECTION.split(patch)[1:], strict=True):
        for text in _pieces(_written(git, section, removed)):
            if tells(text):
                raise _refusal(path, _where(text))


def _written(git: Git, section: bytes, removed: Container[bytes]) -> Iterator[str]:
    """Yield the lines that were written into one file; of one without lines, whatever can be read."""
    if binary := _BINARY.search(section):
        content = git.raw("cat-file", "blob", binary[1].decode()) if binary[1].strip(b"0") else b""
        yield from (run.decode() for run in _PRINTABLE.findall(content))
    else:
        added = (line for line in _ADDED.findall(section) if line.strip() not in removed)
        yield from (line.decode("utf-8", "replace") for line in added)


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines joined, so many at a time that a search of them takes no long."""
    piece, size = list[str](), 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size > _AT_ONCE:
            yield "\n".join(piece)
            piece, size = [], 0
    yield "\n".join(piece)


def _where(text: str) -> str:
    clean, tells = scrubber(), teller()
    for line in text.split("\n"):
        if tells(line):
            return f"the line {clean(plain(line).strip())[:_QUOTED]!r}"
    return "some lines of it"


def _refusal(path: str, where: str) -> RejectedError:
    return RejectedError(
        f"{named([path])} holds what looks like a secret: {where}. Nothing of the change is kept; tell the brief to "
        "read secrets from the environment, and to make up none that look like one.",
        kind="secret",
    )
