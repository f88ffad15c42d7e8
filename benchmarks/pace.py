"""Measures the learned rate: how much of a provider's unknown rate limit is used, and how many calls are refused.

Run `python -m benchmarks.pace [--seconds 180]`: two real HTTP servers on this machine allow 600 requests in any
60 seconds; one sends `Retry-After`, the other doesn't. Prints JSON, and draws a plot.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_dispatch import LLM, Brief, Item, Limits
from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.calls.call_gate import CallGate
from prefect_dispatch.errors import ExecutorError
from tests.openai_server import Behaviour, RateLimiter, openai_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ALLOWED = 600
"""Requests that the servers accept in any minute."""
MINUTE_S = 60
ANSWER_S = 0.3
"""Seconds until an answer."""
BRIEF = Brief(name="words", instructions="Say a word.")
PLOT = Path(__file__).with_suffix(".png")


async def send_calls(url: str, limits: Limits, seconds: float) -> None:
    """Send calls for a number of seconds with the concurrency of the limits, through one call gate."""
    executor, gate = LLM(model="openai/test", api_base=url), CallGate(limits)
    await executor.warm_up()
    numbers, end = count(), time.monotonic() + seconds

    async def send_repeatedly() -> None:
        while time.monotonic() < end:
            word = Item(key="word", value=f"word-{next(numbers)}")
            try:
                await run_attempt(executor, BRIEF, word, limits=limits, gate=gate)
            except ExecutorError as error:
                print(json.dumps({"failed": str(error)}))

    tasks = [asyncio.create_task(send_repeatedly()) for _ in range(limits.concurrency)]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def summarize(name: str, limiter: RateLimiter, seconds: int) -> dict[str, Any]:
    """Return the figures of one server."""
    accepted = sum(_within(limiter.accepted, 0, seconds))
    late, refused = (sum(_within(each, MINUTE_S, seconds)) for each in (limiter.accepted, limiter.refused))
    return {
        "server": name,
        "seconds": seconds,
        "allowed": ALLOWED * seconds // MINUTE_S,
        "accepted": accepted,
        "throughput": round(accepted * MINUTE_S / (ALLOWED * seconds), 4),
        "refused": sum(_within(limiter.refused, 0, seconds)),
        "refused_after_a_minute": refused,
        "share_refused_after_a_minute": round(refused / max(1, refused + late), 4),
        "accepted_by_minute": [
            sum(_within(limiter.accepted, start, start + MINUTE_S)) for start in range(0, seconds, MINUTE_S)
        ],
    }


def draw(limiters: Mapping[str, RateLimiter], seconds: int, path: Path) -> None:
    """Plot the accepted and the refused calls per second."""
    from matplotlib.figure import Figure  # noqa: PLC0415 -- only what draws needs it

    figure: Any = Figure(figsize=(8, 5), layout="constrained")
    for axes, (name, limiter) in zip(figure.subplots(len(limiters), sharex=True), limiters.items(), strict=True):
        axes.step(range(seconds), list(_within(limiter.accepted, 0, seconds)), label="accepted")
        axes.step(range(seconds), list(_within(limiter.refused, 0, seconds)), label="refused (429)")
        axes.axhline(ALLOWED / MINUTE_S, linestyle=":", color="grey", label="allowed, spread evenly")
        axes.set(ylabel="calls a second", title=f"a server {name}", yscale="symlog")
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure both servers at the same time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--concurrency", type=int, default=50)
    arguments = parser.parse_args()
    os.environ.setdefault("OPENAI_API_KEY", "sk-none")
    limits = Limits(concurrency=arguments.concurrency, wait_s=900)
    asyncio.run(LLM(model="openai/test").warm_up())  # takes seconds, which must not count
    with ExitStack() as stack:
        limiters = {
            name: RateLimiter(ALLOWED, window_s=MINUTE_S, says_when=says, behaviour=Behaviour(delay_s=ANSWER_S))
            for name, says in (("with Retry-After", True), ("without Retry-After", False))
        }
        urls = [stack.enter_context(openai_server(limiter)).url for limiter in limiters.values()]

        async def both() -> None:
            await asyncio.gather(*(send_calls(url, limits, arguments.seconds) for url in urls))

        asyncio.run(both())
        for name, limiter in limiters.items():
            print(json.dumps(summarize(name, limiter, arguments.seconds)), flush=True)
    draw(limiters, arguments.seconds, PLOT)


def _within(counts: Mapping[int, int], start: int, end: int) -> Iterator[int]:
    return (counts.get(second, 0) for second in range(start, end))


if __name__ == "__main__":
    main()
