"""A storage elsewhere, in memory, that fails as told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect.filesystems import WritableFileSystem
from pydantic import Field, PrivateAttr

Watch = Callable[[str], None]
"""Told of each moment: `to read KEY`, `to write KEY`, `written KEY`; what it raises is the storage's failure."""


class Elsewhere(WritableFileSystem):
    """Keeps bytes in memory, as object stores keep them: whole, and nowhere that a lock could be."""

    _block_type_slug = "elsewhere"

    content: dict[str, bytes] = Field(default_factory=dict[str, bytes])
    """What stands where."""
    _watchers: list[Watch] = PrivateAttr(default_factory=list[Watch])

    def watched(self, watch: Watch) -> Elsewhere:
        """Tell somebody of each moment."""
        self._watchers.append(watch)
        return self

    def read_path(self, path: str, **_: Any) -> bytes:  # type: ignore[override]  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride] -- Prefect's are both sync and async
        """Read, or fail."""
        self._tell(f"to read {path}")
        if path not in self.content:
            raise ValueError(f"Path {path} does not exist.")
        return self.content[path]

    def write_path(self, path: str, content: bytes, **_: Any) -> None:  # type: ignore[override]  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride] -- the same
        """Write, or fail."""
        self._tell(f"to write {path}")
        self.content[path] = content
        self._tell(f"written {path}")

    def _tell(self, moment: str) -> None:
        for watch in self._watchers:
            watch(moment)
