"""Files that are there whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.serialization import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def broken() -> Iterator[str]:
    """Yield half of a file."""
    yield "half"
    raise InterruptedError


def test_what_breaks_leaves_what_was_there(tmp_path: Path) -> None:
    """No half file, and nothing beside it; who may read it stays, and a link of that name becomes a file."""
    file, link = tmp_path / "a", tmp_path / "b"
    write_atomically(file, ["one\r\n", "two"])
    assert file.read_bytes() == b"one\r\ntwo"
    assert file.stat().st_mode & 0o777 == 0o644
    file.chmod(0o600)
    with pytest.raises(InterruptedError):
        write_atomically(file, broken())
    link.symlink_to(file)
    write_atomically(link, ["three"])
    assert (file.read_bytes(), link.read_text()) == (b"one\r\ntwo", "three")
    write_atomically(file, [])
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert not link.is_symlink()
