"""The throughput of one brief over many items, beside the loops that people write by hand.

Run `python -m benchmarks.run [--quick]`: each way to ask has a process of its own, all ask one local server of a set
latency that none of them can exhaust, and Prefect's server is one of its own. Prints a table, and JSON with `--json`.
The ideal is what a machine without any cost of its own would take: ceil(N / C) times L.
Imports are not counted: each way has loaded what it takes before its clock starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from benchmarks.latency_server import latency_server

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT = "Say fine."


class Workload(NamedTuple):
    """What is asked."""

    items: int
    concurrency: int
    median_s: float
    sigma: float = 0.0

    @property
    def ideal_s(self) -> float:
        """Seconds without any cost but the latency."""
        return math.ceil(self.items / self.concurrency) * self.median_s

    def __str__(self) -> str:
        """Return its figures."""
        spread = f", lognormal {self.sigma:g}" if self.sigma else ""
        return f"N {self.items:,}, C {self.concurrency}, L {self.median_s:g} s{spread}"


WORKLOADS = (Workload(1000, 100, 1.0), Workload(5000, 500, 1.0), Workload(2000, 100, 1.0, 0.4))
QUICK = (Workload(300, 50, 0.5),)


def aiohttp_loop(load: Workload, url: str) -> int:
    """Ask in a loop of one's own, without any client: the least that it can cost."""
    import aiohttp  # noqa: PLC0415 -- each way loads what it takes, and nothing else

    async def all_of_them() -> int:
        places = asyncio.Semaphore(load.concurrency)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def ask(at: int) -> str:
                body = {"model": "test", "messages": [{"role": "user", "content": f"{PROMPT} {at}"}]}
                async with places, session.post(f"{url}/chat/completions", json=body) as response:
                    said: Any = await response.json()
                    return str(said["choices"][0]["message"]["content"])

            return len(await asyncio.gather(*map(ask, range(load.items))))

    return asyncio.run(all_of_them())


def litellm_loop(load: Workload, url: str) -> int:
    """Ask in a loop of one's own, through litellm."""
    litellm = _litellm()

    async def all_of_them() -> int:
        places = asyncio.Semaphore(load.concurrency)

        async def ask(at: int) -> str:
            chat = [{"role": "user", "content": f"{PROMPT} {at}"}]
            async with places:
                response = await litellm.acompletion(model="openai/test", api_base=url, messages=chat)
            return str(response.choices[0].message.content)

        return len(await asyncio.gather(*map(ask, range(load.items))))

    return asyncio.run(all_of_them())


def litellm_batch(load: Workload, url: str) -> int:
    """Ask by `litellm.batch_completion`."""
    chats = [[{"role": "user", "content": f"{PROMPT} {at}"}] for at in range(load.items)]
    said = _litellm().batch_completion(model="openai/test", api_base=url, messages=chats, max_workers=load.concurrency)
    return sum(hasattr(each, "choices") for each in said)


def prefect_map(load: Workload, url: str) -> int:
    """Ask by `.map` of a task, on as many threads as may be under way, through litellm."""
    from prefect import flow, task  # noqa: PLC0415 -- as above
    from prefect.task_runners import ThreadPoolTaskRunner  # noqa: PLC0415 -- as above

    litellm = _litellm()

    @task
    def ask(at: int) -> str:
        chat = [{"role": "user", "content": f"{PROMPT} {at}"}]
        return str(litellm.completion(model="openai/test", api_base=url, messages=chat).choices[0].message.content)

    runner = cast("Any", ThreadPoolTaskRunner)(max_workers=load.concurrency)

    @flow(task_runner=runner)
    def all_of_them() -> int:
        return len(ask.map(range(load.items)).result())

    return all_of_them()


def ours(load: Workload, url: str) -> int:
    """Ask by `dispatch`: every item stored, audited and in the ledger."""
    from prefect_dispatch import LLM, Brief, Limits, dispatch  # noqa: PLC0415 -- as above
    from prefect_dispatch.executors.provider import provider  # noqa: PLC0415 -- as above

    provider()
    report = dispatch(
        [Brief(name="say", instructions=PROMPT)],
        [f"item {at}" for at in range(load.items)],
        executor=LLM(model="openai/test", api_base=url),
        limits=Limits(concurrency=load.concurrency),
    )
    assert len(report.ledger) == load.items  # noqa: S101 -- a benchmark that loses items measures nothing
    return sum(outcome.status == "succeeded" for outcome in report.outcomes)


def again(load: Workload, url: str) -> int:
    """Ask by `dispatch` what is stored already."""
    return ours(load, url)


WAYS: dict[str, Callable[[Workload, str], int]] = {
    way.__name__: way for way in (aiohttp_loop, litellm_loop, litellm_batch, prefect_map, ours, again)
}
IN_PREFECT = {"prefect_map", "ours", "again"}


def _litellm() -> Any:  # noqa: ANN401 -- a module
    from prefect_dispatch.executors.provider import provider  # noqa: PLC0415 -- as above

    return provider()  # loaded as we load it, so that no way pays for its import


def measure(way: str, load: Workload, url: str) -> dict[str, Any]:
    """Return what one way takes for one workload, in this process."""
    if way != "aiohttp_loop":
        _litellm()
    if way not in IN_PREFECT:
        return _timed(WAYS[way], load, url)
    from benchmarks.soak import quiet  # noqa: PLC0415 -- as above

    with TemporaryDirectory() as folder, quiet(Path(folder)):
        if way == "again":
            ours(load, url)
        return _timed(WAYS[way], load, url)


def _timed(way: Callable[[Workload, str], int], load: Workload, url: str) -> dict[str, Any]:
    start, cpu = time.perf_counter(), time.process_time()
    done = way(load, url)
    seconds, spent = time.perf_counter() - start, time.process_time() - cpu
    return {
        "way": way.__name__,
        "workload": str(load),
        "done": done,
        "seconds": round(seconds, 2),
        "ratio": round(seconds / load.ideal_s, 2),
        "cpu_ms_per_item": round(1000 * spent / load.items, 2),
        "rss_mb": round(_peak_mb()),
    }


def _peak_mb() -> float:
    import resource  # noqa: PLC0415 -- not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure every way, each in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small workload")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, items, concurrency, median_s, sigma, url = arguments.one
        load = Workload(int(items), int(concurrency), float(median_s), float(sigma))
        print(json.dumps(measure(way, load, url)))
        return
    rows: list[dict[str, Any]] = []
    for load in QUICK if arguments.quick else WORKLOADS:
        for way in arguments.ways:
            with latency_server(load.median_s, load.sigma) as server:
                rows.append({**_apart(way, load, server.url), "requests": server.count})
            print(json.dumps(rows[-1]) if arguments.json else _row(rows[-1]), flush=True)


def _apart(way: str, load: Workload, url: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.run", "--one", way, *map(str, load), url]
    environment = {**os.environ, "OPENAI_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603 -- this file
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    if ended.returncode or not lines:
        return {"way": way, "workload": str(load), "failed": ended.stderr[-500:]}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def _row(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"| {row['workload']} | {row['way']} | failed: {row['failed']} |"
    return (
        f"| {row['workload']} | {row['way']} | {row['done']} | {row['seconds']} | {row['ratio']} | "
        f"{row['cpu_ms_per_item']} | {row['rss_mb']} | {row['requests']} |"
    )


if __name__ == "__main__":
    main()
