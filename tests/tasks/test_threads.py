"""Calls in another thread, from the shared loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from prefect_dispatch.tasks.event_loop import run_in_pool


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
