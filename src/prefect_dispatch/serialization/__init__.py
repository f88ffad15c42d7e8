"""Canonical and strict JSON, strict YAML, and atomic writes of files."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def write_atomically(path: Path, parts: Iterable[str]) -> None:
    """Write a text file atomically, with the permissions of an existing one.

    Args:
        path: The file; a symbolic link is replaced by a file.
        parts: Its text; line ends are not converted.
    """
    write_bytes_atomically(path, (part.encode() for part in parts))


def write_bytes_atomically(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file atomically, with the permissions of an existing one.

    Args:
        path: The file; a symbolic link is replaced by a file.
        parts: Its content.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
        Path(name).chmod(_mode(path))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def _mode(path: Path) -> int:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return 0o644
    return stat.S_IMODE(mode) if stat.S_ISREG(mode) else 0o644
