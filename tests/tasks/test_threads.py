"""Calls in another thread, from the shared loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from prefect_dispatch.tasks.loop import in_thread


def test_a_call_in_a_thread_ends_before_its_cancelled_caller() -> None:
    """What is being written is written whole, and nobody goes on as if it weren't."""
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        assert go.wait(60)
        ended.set()

    async def interrupt() -> None:
        caller = asyncio.ensure_future(in_thread(write))
        await asyncio.to_thread(begun.wait, 60)
        caller.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert ended.is_set()

    asyncio.run(interrupt())
