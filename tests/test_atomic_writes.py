"""Atomic writes of files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.serialization.durable_files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator


def broken() -> Iterator[bytes]:
    """Yield half of a file."""
    yield b"half"
    raise InterruptedError


def test_what_breaks_leaves_what_was_there(tmp_path: Path) -> None:
    """No half file, and nothing beside it; who may read it stays, and a link of that name becomes a file."""
    file, link = tmp_path / "a", tmp_path / "b"
    write_atomically(file, [b"one\r\n", b"two"])
    assert file.read_bytes() == b"one\r\ntwo"
    file.chmod(0o600)
    with pytest.raises(InterruptedError):
        write_atomically(file, broken())
    link.symlink_to(file)
    write_atomically(link, [b"three"])
    assert (file.read_bytes(), link.read_text()) == (b"one\r\ntwo", "three")
    write_atomically(file, [])
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert not link.is_symlink()


def test_a_private_file_is_never_readable_by_others(tmp_path: Path) -> None:
    """The temporary file of a private one is private, too, before its content is written."""
    file = tmp_path / "secret"
    file.touch(mode=0o600)

    def look() -> Iterator[bytes]:
        (temporary,) = tmp_path.glob(".secret-*")
        assert temporary.stat().st_mode & 0o777 == 0o600
        yield b"content"

    write_atomically(file, look())
    assert file.read_bytes() == b"content"


def test_a_new_file_has_the_permissions_of_the_process(tmp_path: Path) -> None:
    """Permissions follow the process's mask, as those of every file do."""
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", [b""])
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_relative_path_is_below_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without a folder is written where the process is; a folder that is missing is created."""
    monkeypatch.chdir(tmp_path)
    write_atomically("name", [b"1"], durable=True)
    write_atomically(Path("folder/name"), [b"2"], durable=True)
    assert (Path("name").read_bytes(), Path("folder/name").read_bytes()) == (b"1", b"2")
