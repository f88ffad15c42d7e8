"""The measured ways that run in this project's environment: hand-written loops, litellm, Prefect's tasks, `dispatch`.

`benchmarks.run` runs one with `python -m benchmarks.ways WAY LOAD URL`, with a Prefect server where it needs one.
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from benchmarks.cell import print_measurement
from benchmarks.loads import LONG_PROMPT, PROMPT, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from prefect_dispatch import Executor, Report
    from prefect_dispatch.executors.base import Ask, Reply


def aiohttp_loop(load: Workload, url: str) -> int:
    """Send the requests with aiohttp in a hand-written loop: the lower bound of the cost."""
    import aiohttp  # noqa: PLC0415 -- each way imports only its own libraries

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
    """Call litellm in a hand-written loop."""
    ask = _create_litellm_call(url)

    async def all_of_them() -> int:
        places = asyncio.Semaphore(load.concurrency)

        async def one(at: int) -> str:
            async with places:
                return await ask(at)

        return len(await asyncio.gather(*map(one, range(load.items))))

    return asyncio.run(all_of_them())


def litellm_batch(load: Workload, url: str) -> int:
    """Call `litellm.batch_completion`."""
    chats = [[{"role": "user", "content": f"{PROMPT} {at}"}] for at in range(load.items)]
    said = _litellm().batch_completion(model="openai/test", api_base=url, messages=chats, max_workers=load.concurrency)
    return sum(hasattr(each, "choices") for each in said)


def prefect_map(load: Workload, url: str) -> dict[str, Any]:
    """Call litellm in a task with `.map`, with as many threads as the concurrency."""
    litellm = _litellm()

    def ask(at: int) -> str:
        chat = [{"role": "user", "content": f"{PROMPT} {at}"}]
        return str(litellm.completion(model="openai/test", api_base=url, messages=chat).choices[0].message.content)

    return _run_map(load, ask)


def prefect_async_map(load: Workload, url: str) -> dict[str, Any]:
    """Call litellm in a coroutine task with `.map`."""
    return _run_map(load, _create_litellm_call(url))


def prefect_map_nothing(load: Workload, _url: str) -> dict[str, Any]:
    """Run an empty task with `.map`: the cost of Prefect itself."""

    def ask(at: int) -> str:
        return f"fine {at}"

    return _run_map(load, ask)


def prefect_gathered(load: Workload, url: str) -> dict[str, Any]:
    """Call litellm in coroutine tasks that an async flow gathers, with a semaphore around each."""
    from prefect import flow, task  # noqa: PLC0415 -- as above

    one = task(_create_litellm_call(url))

    @flow
    async def all_of_them() -> int:
        places = asyncio.Semaphore(load.concurrency)

        async def placed(at: int) -> str:
            async with places:
                return await one(at)

        return len(await asyncio.gather(*map(placed, range(load.items))))

    return {"done": asyncio.run(all_of_them()), "made": load.items}


def ours(load: Workload, url: str) -> dict[str, Any]:
    """Call the model with `dispatch`: every item is stored, audited and in the ledger."""
    from prefect_dispatch import LLM  # noqa: PLC0415 -- as above

    return _run_dispatch(load, LLM(model="openai/test", api_base=url))


def answer_hosted(load: Workload, url: str, provider: str) -> int:
    """Call a hosted provider by `LLM.answer` in a hand-written loop: the executor without Prefect and the storage."""
    from prefect_dispatch import Ask, Brief, Item  # noqa: PLC0415 -- as above

    executor = _create_hosted_executor(provider, url)
    brief = Brief(name="say", instructions=PROMPT)

    async def all_of_them() -> int:
        places = asyncio.Semaphore(load.concurrency)

        async def one(at: int) -> object:
            async with places:
                return await executor.answer(Ask(brief=brief, item=Item(key=f"{at}", value=f"{LONG_PROMPT} {at}")))

        return len(await asyncio.gather(*map(one, range(load.items))))

    return asyncio.run(all_of_them())


def litellm_hosted(load: Workload, url: str, provider: str) -> int:
    """Call a hosted provider by litellm in a hand-written loop."""
    executor = _create_hosted_executor(provider, url)
    call = partial(_litellm().acompletion, model=executor.model, api_base=executor.api_base, max_retries=0)

    async def all_of_them() -> int:
        places = asyncio.Semaphore(load.concurrency)

        async def one(at: int) -> object:
            async with places:
                return await call(messages=[{"role": "user", "content": f"{LONG_PROMPT} {at}"}])

        return len(await asyncio.gather(*map(one, range(load.items))))

    return asyncio.run(all_of_them())


def ours_hosted(load: Workload, url: str, provider: str) -> dict[str, Any]:
    """Call a hosted provider with `dispatch`: every item is stored, audited and in the ledger."""
    return _run_dispatch(load, _create_hosted_executor(provider, url), prompt=LONG_PROMPT)


def ours_alone(load: Workload, url: str) -> dict[str, Any]:
    """Call the model with `dispatch`, with one task run per item."""
    from prefect_dispatch import LLM  # noqa: PLC0415 -- as above

    return _run_dispatch(load, LLM(model="openai/test", api_base=url), shard=1)


def ours_nobody(load: Workload, _url: str) -> dict[str, Any]:
    """Run `dispatch` in shards with an executor that only waits for the latency."""
    return _run_dispatch(load, _create_waiting_executor(load.median_s))


def ours_nobody_alone(load: Workload, _url: str) -> dict[str, Any]:
    """Run `dispatch` with an executor that only waits, with one task run per item."""
    return _run_dispatch(load, _create_waiting_executor(load.median_s), shard=1)


def ours_planned(load: Workload, _url: str) -> dict[str, Any]:
    """Plan the work without calls: look up stored answers, estimate cost and time."""
    from prefect_dispatch import Brief, Limits, plan  # noqa: PLC0415 -- as above

    items = [f"item {at} of {load.items}" for at in range(load.items)]
    limits = Limits(concurrency=load.concurrency)
    planned = plan(
        [Brief(name="say", instructions=PROMPT)], items, _create_waiting_executor(load.median_s), limits=limits
    )
    return {"done": planned.to_ask, "made": 0}


HOSTED = {
    "openai": "openai/gpt-4o-mini",
    "anthropic": "anthropic/claude-haiku-4-5",
    "gemini": "gemini/gemini-2.5-flash",
}
"""A model of each hosted provider whose protocol the server speaks."""

_LOCAL_WAYS: dict[str, Callable[[Workload, str], int | dict[str, Any]]] = {
    way.__name__: way
    for way in (
        aiohttp_loop,
        litellm_loop,
        litellm_batch,
        prefect_map,
        prefect_async_map,
        prefect_map_nothing,
        prefect_gathered,
        ours,
        ours_alone,
        ours_nobody,
        ours_nobody_alone,
        ours_planned,
    )
}
_HOSTED_WAYS: dict[str, Callable[[Workload, str], int | dict[str, Any]]] = {
    f"{name}_{provider}": partial(way, provider=provider)
    for name, way in (("litellm", litellm_hosted), ("answer", answer_hosted), ("ours", ours_hosted))
    for provider in HOSTED
}
WAYS = {**_LOCAL_WAYS, **_HOSTED_WAYS}


def _create_hosted_executor(provider: str, url: str) -> Any:  # noqa: ANN401 -- an LLM, whose import takes seconds
    """Return an executor that finds a provider as users' do: its key is in the environment, and OpenAI's address."""
    from prefect_dispatch import LLM  # noqa: PLC0415 -- as above

    os.environ[f"{provider.upper()}_API_KEY"] = "sk-benchmark"
    if provider == "openai":
        os.environ["OPENAI_BASE_URL"] = url
        return LLM(model=HOSTED[provider])
    return LLM(model=HOSTED[provider], api_base=url.removesuffix("/v1"))


def _litellm() -> Any:  # noqa: ANN401 -- a module
    from prefect_dispatch.executors.llm.litellm_adapter import load_litellm  # noqa: PLC0415 -- as above

    return load_litellm()  # imported as the package does, so that no way includes the import


def _create_litellm_call(url: str) -> Callable[[int], Coroutine[Any, Any, str]]:
    litellm = _litellm()

    async def ask(at: int) -> str:
        chat = [{"role": "user", "content": f"{PROMPT} {at}"}]
        response = await litellm.acompletion(model="openai/test", api_base=url, messages=chat)
        return str(response.choices[0].message.content)

    return ask


def _run_map(load: Workload, ask: Callable[[int], Any]) -> dict[str, Any]:
    from prefect import flow, task  # noqa: PLC0415 -- as above
    from prefect.task_runners import ThreadPoolTaskRunner  # noqa: PLC0415 -- as above

    runner = cast("Any", ThreadPoolTaskRunner)(max_workers=load.concurrency)
    each = task(ask)

    @flow(task_runner=runner)
    def all_of_them() -> int:
        return len(each.map(range(load.items)).result())

    return {"done": all_of_them(), "made": load.items}


def _create_waiting_executor(wait_s: float) -> Executor:
    from prefect_dispatch import Reply, Usage  # noqa: PLC0415 -- as above

    class WaitingExecutor:
        """Answers after a fixed time."""

        fingerprint = "nobody"

        async def answer(self, ask: Ask) -> Reply:
            """Wait, then answer."""
            if wait_s:
                await asyncio.sleep(wait_s)
            return Reply(value=f"fine {ask.item.key}", model="nobody", usage=Usage())

    return WaitingExecutor()


def _run_dispatch(load: Workload, executor: Executor, shard: int | None = None, prompt: str = "item") -> dict[str, Any]:
    from prefect_dispatch import Brief, Limits, dispatch  # noqa: PLC0415 -- as above

    report: Report = dispatch(
        [Brief(name="say", instructions=PROMPT)],
        [f"{prompt} {at} of {load.items}" for at in range(load.items)],
        executor=executor,
        limits=Limits(concurrency=load.concurrency, shard=shard),
    )
    assert len(report.ledger) == load.items  # noqa: S101 -- a benchmark that loses items measures nothing
    runs: Any = report.run["task_runs"]
    done = sum(outcome.status == "succeeded" for outcome in report.outcomes)
    return {"done": done, "made": runs["made"] + 1, "task_runs": runs}  # one more is the integrator's


def load_way(way: str) -> Callable[[Workload, str], int | dict[str, Any]]:
    """Return a way after importing its libraries, so that the import is not measured."""
    if way == "aiohttp_loop":
        import_module("aiohttp")
    elif "nobody" not in way and "nothing" not in way:
        _litellm()
    if way.startswith(("prefect", "ours")):
        import_module("prefect").flow  # noqa: B018 -- loaded on first use
    if way.startswith("ours"):
        import_module("prefect_dispatch").dispatch  # noqa: B018 -- the same
    return WAYS[way]


if __name__ == "__main__":
    print_measurement(load_way(sys.argv.pop(1)))
