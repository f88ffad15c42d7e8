"""One at a time: in a process, between processes, whatever becomes of the folder or of who holds it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.tasks.get_or_compute import LOCK_FILE, ExclusiveKey

if TYPE_CHECKING:
    from collections.abc import Generator

HOLD = """
import asyncio, sys
from pathlib import Path
from prefect_dispatch.tasks.get_or_compute import ExclusiveKey

async def hold():
    async with ExclusiveKey(sys.argv[1], Path(sys.argv[2])) as alone:
        print("alone" if alone else "not alone", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(hold())
"""


@contextmanager
def another_process(key: str, folder: Path) -> Generator[subprocess.Popen[str]]:
    """A process that holds a key until it is told to end, or is killed."""
    command = [sys.executable, "-c", HOLD, key, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout
        assert process.stdout.readline() == "alone\n"
        try:
            yield process
        finally:
            process.kill()


async def at_once(key: str, folder: Path | None) -> bool:
    """Return whether a key can be held without waiting."""
    try:
        async with ExclusiveKey(key, folder):
            return True
    except asyncio.CancelledError:
        return False


async def is_free(key: str, folder: Path | None) -> bool:
    """Return whether nobody holds a key."""
    asking = asyncio.ensure_future(at_once(key, folder))
    for _ in range(10):
        await asyncio.sleep(0)
    asking.cancel()
    return await asking


def handles(folder: Path) -> int:
    """Return how many handles of the lock file this process has."""
    count = 0
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            count += str(handle.readlink()).startswith(f"{folder}/{LOCK_FILE}")
    return count


@pytest.mark.parametrize("remote", [False, True])
def test_one_at_a_time_in_a_process(remote: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """Of the same key; other keys, and the same key of another storage, are free meanwhile."""
    folder = None if remote else tmp_path

    async def script() -> None:
        async with ExclusiveKey("a", folder) as alone:
            assert alone is (not remote)
            assert not await is_free("a", folder)
            assert await is_free("b", folder)
            assert await is_free("a", tmp_path / "other")
            assert not await is_free("a", folder)
        assert await is_free("a", folder)

    asyncio.run(script())
    assert handles(tmp_path) == 0


def test_who_waits_comes_one_after_another(tmp_path: Path) -> None:
    """Ten at once: never two inside, and whoever raises or is cancelled lets the next one in."""
    inside: list[int] = []

    async def work(number: int) -> None:
        async with ExclusiveKey("a", tmp_path):
            inside.append(number)
            assert len(inside) == 1
            await asyncio.sleep(0)
            inside.remove(number)
            if number % 3 == 0:
                raise LookupError

    async def script() -> None:
        tasks = [asyncio.ensure_future(work(number)) for number in range(10)]
        await asyncio.sleep(0)
        tasks[5].cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        for number, end in enumerate(ends):
            assert isinstance(end, LookupError) is (number % 3 == 0)
            assert isinstance(end, asyncio.CancelledError) is (number == 5)
        assert await is_free("a", tmp_path)

    asyncio.run(script())
    assert handles(tmp_path) == 0


@pytest.mark.slow
def test_another_process_keeps_it_until_it_is_killed(tmp_path: Path) -> None:
    """Whoever is killed lets go at once; other keys are free all the time; nobody who gave up keeps anything."""

    async def script(process: subprocess.Popen[str]) -> None:
        assert not await is_free("a", tmp_path)
        assert await is_free("b", tmp_path)
        waiting = asyncio.ensure_future(at_once("a", tmp_path))
        await asyncio.sleep(0)
        assert not waiting.done()
        process.kill()
        process.wait()
        assert await waiting

    with another_process("a", tmp_path) as process:
        asyncio.run(script(process))
    assert handles(tmp_path) == 0


def test_a_folder_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    """Removed and made again while something is held there: the next ones meet at the new file, and nothing leaks."""
    folder = tmp_path / "store"

    async def script() -> None:
        async with ExclusiveKey("a", folder):
            shutil.rmtree(folder)
            async with ExclusiveKey("b", folder) as alone:
                assert alone
                assert handles(folder) == 2
                with another_process("c", folder):
                    assert not await is_free("c", folder)
                    assert await is_free("d", folder)
        assert await is_free("a", folder)

    asyncio.run(script())
    assert handles(folder) == 0


def test_where_no_file_can_be_locked_others_are_not_kept_out(tmp_path: Path) -> None:
    """It is still held within the process, and says that it is no more than that."""
    (tmp_path / "a-folder" / LOCK_FILE).mkdir(parents=True)
    (tmp_path / "a-file").write_text("")

    async def script(folder: Path) -> None:
        async with ExclusiveKey("a", folder) as alone:
            assert not alone
            assert not await is_free("a", folder)

    for name in ("a-folder", "a-file"):
        asyncio.run(script(tmp_path / name))


@pytest.mark.slow
def test_a_forked_process_holds_nothing_of_its_parents(tmp_path: Path) -> None:
    """It waits for its parent like any other process, and doesn't let go for it when it ends."""

    def fork() -> int:
        """Return what a forked process finds: whether the key is free."""
        pid = os.fork()
        if not pid:
            os._exit(int(asyncio.new_event_loop().run_until_complete(is_free("a", tmp_path))))
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    async def script() -> None:
        async with ExclusiveKey("a", tmp_path):
            assert fork() == 0
            with another_process("b", tmp_path):
                assert not await is_free("b", tmp_path)

    asyncio.run(script())
