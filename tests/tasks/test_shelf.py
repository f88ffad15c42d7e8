"""The storage as bytes under keys: whole or not at all, on this machine and elsewhere."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest
from prefect.filesystems import LocalFileSystem, RemoteFileSystem

from prefect_dispatch.errors import TransientError
from prefect_dispatch.tasks.result_store import BlobStore
from tests.tasks.storages import Elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "prefect-dispatch-404" + "0" * 61


def failing(said: str, times: int = 1) -> BlobStore:
    """Return a storage elsewhere that fails so many times, with these words."""
    left = [said] * times

    def watch(moment: str) -> None:
        if left:
            raise RuntimeError(left.pop().format(path=moment.rsplit(maxsplit=1)[-1]))

    return BlobStore(Elsewhere().watched(watch))


@pytest.fixture(params=["local", "remote"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """A folder that isn't there yet, and a storage of fsspec's."""
    if request.param == "local":
        return BlobStore(LocalFileSystem(basepath=str(tmp_path / "deep" / "store")))
    return BlobStore(RemoteFileSystem(basepath=f"memory://{tmp_path.name}"))


def test_what_is_written_is_read(shelf: BlobStore) -> None:
    """Nothing, then something, then something else, then nothing that is an answer."""
    assert shelf.load(KEY) is None
    for content in (b"one", b"another" * 1000):
        shelf.write(KEY, content)
        assert shelf.load(KEY) == content
    shelf.remove(KEY)
    assert shelf.load(KEY) in {None, b"{}"}
    shelf.remove(KEY)


def test_it_is_used_from_an_async_flow_too() -> None:
    """Where Prefect's blocks would hand out coroutines, they are told not to."""

    async def inside() -> bytes | None:
        shelf = BlobStore(RemoteFileSystem(basepath="memory://async"))
        shelf.write(KEY, b"x")
        return shelf.load(KEY)

    assert asyncio.run(inside()) == b"x"


def test_a_reader_never_sees_half_of_it(tmp_path: Path) -> None:
    """While one thread writes long and short in turn, each read is one of them."""
    shelf = BlobStore(LocalFileSystem(basepath=str(tmp_path)))
    ended = threading.Event()
    contents = (b"a" * 100_000, b"b")
    shelf.write(KEY, contents[0])

    def write() -> None:
        for turn in range(60):
            shelf.write(KEY, contents[turn % 2])
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen: set[bytes | None] = set()
    while not ended.is_set():
        seen.add(shelf.load(KEY))
    thread.join()
    assert seen <= {*contents}
    assert [path.name for path in tmp_path.iterdir()] == [KEY]


def test_others_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    """A store that several users share stays readable for them."""
    shelf = BlobStore(LocalFileSystem(basepath=str(tmp_path)))
    before = os.umask(0o027)
    try:
        shelf.write(KEY, b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / KEY).stat().st_mode) == 0o640


def spoilt(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield stores in which nothing can be written, and why."""
    (folder / "a").mkdir()
    (folder / "a" / KEY).mkdir()
    (folder / "a" / KEY / "kept").write_text("somebody's")
    yield "a-folder-in-its-place", folder / "a"
    (folder / "b").write_text("")
    yield "a-file-as-the-folder", folder / "b"


@pytest.mark.slow
def test_what_cannot_be_used_says_so(tmp_path: Path) -> None:
    """Worth a retry, with the storage's own words; nothing is left behind, and nothing of others' is touched."""
    for why, folder in spoilt(tmp_path):
        shelf = BlobStore(LocalFileSystem(basepath=str(folder)))
        with pytest.raises(TransientError, match="can't be written") as caught:
            shelf.write(KEY, b"x")
        assert caught.value.kind == "storage", why
        with pytest.raises(TransientError, match=r"can't be read: .*directory"):
            shelf.load(KEY)
        with pytest.raises(TransientError, match="can't be written"):
            shelf.remove(KEY)
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", KEY, "kept"}


@pytest.mark.parametrize(
    "said",
    [
        "An error occurred (404) when calling the HeadObject operation: Not Found",
        "An error occurred (NoSuchKey) when calling the GetObject operation",
        "404 GET https://storage/{path}: No such object",
        "The specified blob does not exist. ErrorCode:BlobNotFound",
        "Path /store/{path} does not exist.",
    ],
)
def test_what_is_not_there_is_nothing(said: str) -> None:
    """Storages have many words for it."""
    assert failing(said).load(KEY) is None


@pytest.mark.parametrize(
    "said",
    [
        "An error occurred (403) when calling the HeadObject operation: Forbidden {path}",
        "Could not connect to the endpoint URL: http://127.0.0.1:4041/bucket/{path}",
        "An error occurred (SlowDown) when calling the GetObject operation",
    ],
)
def test_what_cannot_be_read_is_not_taken_for_nothing(said: str) -> None:
    """Else it would be paid for again; a key that holds 404 misleads nobody."""
    with pytest.raises(TransientError, match="can't be read: RuntimeError") as caught:
        failing(said).load(KEY)
    assert caught.value.usage is not None
    assert caught.value.usage.requests == 0


@pytest.mark.slow
@pytest.mark.parametrize(("times", "written"), [(0, True), (2, True), (3, False)])
def test_a_write_is_tried_several_times(times: int, written: bool) -> None:  # noqa: FBT001
    """A storage that is out of breath gets a moment: what is written was paid for."""
    shelf = failing("SlowDown", times)
    if written:
        shelf.write(KEY, b"x")
        assert shelf.load(KEY) == b"x"
    else:
        with pytest.raises(TransientError, match="can't be written: RuntimeError: SlowDown"):
            shelf.write(KEY, b"x")
