"""A storage elsewhere, in memory, that fails as told."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

from prefect.filesystems import WritableFileSystem
from pydantic import Field, PrivateAttr

if TYPE_CHECKING:
    from collections.abc import Callable


class Elsewhere(WritableFileSystem):
    """Keeps bytes in memory, as object stores keep them: whole, and nowhere that a lock could be."""

    _block_type_slug = "elsewhere"

    content: dict[str, bytes] = Field(default_factory=dict[str, bytes])
    """What stands where."""
    operations: list[str] = Field(default_factory=list[str])
    """What was done so far, as `read key` and `write key`."""
    _fails: Callable[[str], str | None] | None = PrivateAttr(default=None)
    _lock: Any = PrivateAttr(default_factory=Lock)

    def failing(self, fails: Callable[[str], str | None]) -> Elsewhere:
        """Fail where this function of an operation returns words, and with these."""
        self._fails = fails
        return self

    def read_path(self, path: str, **_: Any) -> bytes:  # type: ignore[override]  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride] -- Prefect's are both sync and async
        """Read, or fail."""
        self._do(f"read {path}")
        if path not in self.content:
            raise ValueError(f"Path {path} does not exist.")
        return self.content[path]

    def write_path(self, path: str, content: bytes, **_: Any) -> None:  # type: ignore[override]  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride] -- the same
        """Write, or fail."""
        self._do(f"write {path}")
        self.content[path] = content

    def _do(self, operation: str) -> None:
        with self._lock:
            self.operations.append(operation)
        if self._fails and (words := self._fails(operation)):
            raise RuntimeError(words)
