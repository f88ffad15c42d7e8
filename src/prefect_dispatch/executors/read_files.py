"""The files that a brief reads, known by their content: a command that reads another is another work."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError
from prefect_dispatch.globs import Glob, means

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PASSED_OVER = frozenset({".git", "__pycache__"})
"""Folders that change by being looked at."""


def digests(patterns: Iterable[str], folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that some globs mean, by its path as the globs begin it.

    Args:
        patterns: Globs, as in a brief's `reads`.
        folder: Where they begin.

    Raises:
        BriefError: If a glob can't be used.
        JobError: If a file can't be read.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        for name, path in _files(Glob.parse(pattern), folder):
            if name not in found:
                found[name] = _digest(path, pattern)
    return found


def _files(glob: Glob, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files that a glob means, links among them followed, links to folders not."""
    fixed = [*takewhile(lambda name: isinstance(name, str), glob.names)]
    top = Path(folder, glob.start, *map(str, fixed))
    rest = replace(glob, names=glob.names[len(fixed) :], start="")
    if _is_file(top):
        if rest.names in ((), (None,)) and not glob.text.endswith("/"):
            yield glob.text, top
        return
    for parent, folders, files in os.walk(top):
        folders[:] = sorted(set(folders) - PASSED_OVER)
        for file in sorted(files):
            path = Path(parent, file)
            below = path.relative_to(top).as_posix()
            if means(rest, below) and _is_file(path):
                yield glob.start + "/".join((*map(str, fixed), below)), path


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _digest(path: Path, pattern: str) -> str:
    try:
        with path.open("rb") as file:
            content = hashlib.sha256()
            while chunk := file.read(1 << 20):
                content.update(chunk)
    except OSError as error:
        raise JobError(f"reads: {pattern!r} means {str(path)!r}, which can't be read: {error.strerror}.") from None
    return content.hexdigest()
