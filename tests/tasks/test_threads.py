"""Calls in another thread, from the shared loop; the open files that calls need."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import threading

import pytest

from prefect_dispatch.errors import JobError
from prefect_dispatch.tasks.event_loop import OPEN_FILES, allow_open_files, require_open_files, run_in_pool


def test_a_call_in_a_thread_ends_before_its_cancelled_caller() -> None:
    """What is being written is written whole, and nobody goes on as if it weren't."""
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        assert go.wait(60)
        ended.set()

    async def interrupt() -> None:
        caller = asyncio.ensure_future(run_in_pool(write))
        await asyncio.to_thread(begun.wait, 60)
        caller.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert ended.is_set()

    asyncio.run(interrupt())


def test_calls_of_one_moment_share_threads_and_each_has_its_own_end() -> None:
    """Whatever another one returns, raises, or how long it takes."""
    slow = threading.Event()

    def call(number: int) -> int:
        if number % 7 == 0:
            raise ValueError(str(number))
        if number == 1:
            slow.wait(60)
        return number * 2

    async def all_of_them() -> list[int | BaseException]:
        calls = [asyncio.ensure_future(run_in_pool(call, number)) for number in range(300)]
        await asyncio.wait(calls[4:])  # the first few may share the thread of the slow one
        slow.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    for number, said in enumerate(asyncio.run(all_of_them())):
        if number % 7:
            assert said == number * 2
        else:
            assert isinstance(said, ValueError)
            assert str(said) == str(number)


def test_calls_come_back_while_more_are_made() -> None:
    """No thread has to have looked at the right moment."""

    async def one_after_another(first: int) -> list[int]:
        return [await run_in_pool(int, number) for number in range(first, first + 200)]

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(one_after_another(first) for first in range(0, 4000, 200)))

    assert [each for several in asyncio.run(all_of_them()) for each in several] == list(range(4000))


LIMITS = """
import resource, sys
from prefect_dispatch.errors import JobError
from prefect_dispatch.tasks.event_loop import allow_open_files, require_open_files
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(allow_open_files())
try:
    require_open_files(500)
except JobError as error:
    print(error)
"""


def test_open_files_are_raised_to_what_calls_need_or_the_job_is_refused() -> None:
    """A system that allows few open files by default, and one that allows no more."""

    def allowed(soft: int, hard: int) -> list[str]:
        command = [sys.executable, "-c", LIMITS, str(soft), str(hard)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)  # noqa: S603 -- ours
        return ran.stdout.splitlines()

    assert allowed(256, 8_000) == ["8000"]
    assert allowed(9_000, 20_000) == ["10240"]
    assert allowed(12_000, 20_000) == ["12000"]
    few, refusal = allowed(256, 512)
    assert few == "512"
    assert refusal.startswith("limits.concurrency: 500 calls at once need about 600 open files")
    assert "choose at most 412" in refusal


def test_more_calls_than_any_process_may_have_are_refused() -> None:
    """The message says how many there may be."""
    with pytest.raises(JobError, match=r"limits\.concurrency: 100000000 calls at once need about 100000100 open files"):
        require_open_files(100_000_000)


@pytest.mark.parametrize("soft", [256, resource.RLIM_INFINITY])
def test_open_files_without_a_limit(soft: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the constant, or as are there already; a limit that can't be raised stays."""
    limits = [(soft, resource.RLIM_INFINITY)]

    def get(_: int) -> tuple[int, int]:
        return limits[-1]

    def change(_: int, wanted: tuple[int, int]) -> None:
        limits.append(wanted)

    monkeypatch.setattr(resource, "getrlimit", get)
    monkeypatch.setattr(resource, "setrlimit", change)
    assert allow_open_files() == (OPEN_FILES if soft == 256 else sys.maxsize)

    def refuse(*_: object) -> None:
        raise ValueError("not permitted")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    limits[:] = [(256, resource.RLIM_INFINITY)]
    assert allow_open_files() == 256
