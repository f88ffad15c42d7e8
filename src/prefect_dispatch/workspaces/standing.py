"""What stands in a folder that somebody else has worked in: looked at without following a link."""

from __future__ import annotations

import os
import stat
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILES = (stat.S_IFREG, stat.S_IFLNK)
_READ_BY_GIT = frozenset({b".gitattributes", b".gitignore", b".gitmodules"})


class Standing:
    """What stands in a folder; paths in it are bytes, with `/` between names."""

    def __init__(self, folder: bytes) -> None:
        """Look at a folder, whose own path leads through no link."""
        self._folder = folder
        self._is_real = cache(_is_real)

    def file(self, path: bytes) -> os.stat_result | None:
        """Return what is known of a file or a link; None if no such thing stands there, or only behind a link."""
        whole = os.path.join(self._folder, path)  # noqa: PTH118 -- a `Path` has no bytes
        try:
            found = os.lstat(whole)
        except OSError:
            return None
        real = self._is_real(os.path.dirname(whole))  # noqa: PTH120 -- the same
        return found if real and stat.S_IFMT(found.st_mode) in _FILES else None

    def module(self, path: bytes) -> bool | None:
        """Return whether the folder of a submodule holds something; None if something else stands in its place."""
        whole = os.path.join(self._folder, path)  # noqa: PTH118 -- the same
        try:
            return bool(os.listdir(whole)) if stat.S_ISDIR(os.lstat(whole).st_mode) else None  # noqa: PTH208 -- the same
        except FileNotFoundError:
            return False

    def below(self, path: bytes = b"") -> Iterator[tuple[bytes, os.DirEntry[bytes] | None]]:
        """Yield what isn't a folder, wherever below one, and folders that can't be read, as None.

        What is called `.git`, and what is in it, is passed over.
        """
        open_ = [path]
        while open_:
            inside = open_.pop()
            try:
                with os.scandir(os.path.join(self._folder, inside)) as found:  # noqa: PTH118 -- the same
                    entries = [entry for entry in found if entry.name != b".git"]
            except OSError:
                yield inside, None
                continue
            for entry in entries:
                at = os.path.join(inside, entry.name)  # noqa: PTH118 -- the same
                if entry.is_dir(follow_symlinks=False):
                    open_.append(at)
                else:
                    yield at, entry

    def obstacles(self) -> tuple[list[bytes], list[bytes]]:
        """Return what git would read by itself and wait on for ever, and folders that can't be read."""
        pipes, closed = list[bytes](), list[bytes]()
        for path, entry in self.below():
            if entry is None:
                closed.append(path)
            elif entry.name in _READ_BY_GIT and not (entry.is_file(follow_symlinks=False) or entry.is_symlink()):
                pipes.append(path)
        return pipes, closed


def _is_real(folder: bytes) -> bool:
    return os.path.realpath(folder) == folder
