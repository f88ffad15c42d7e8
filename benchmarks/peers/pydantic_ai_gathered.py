"""pydantic-ai: agents' runs, gathered."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.cell import print_measurement
from benchmarks.loads import PROMPT

if TYPE_CHECKING:
    from benchmarks.loads import Workload

pydantic_ai: Any = import_module("pydantic_ai")
openai_models: Any = import_module("pydantic_ai.models.openai")
openai_provider: Any = import_module("pydantic_ai.providers.openai")


def agent_of(url: str) -> Any:  # noqa: ANN401 -- of a library that this project doesn't install
    """Return an agent whose model is the local server."""
    provider = openai_provider.OpenAIProvider(base_url=url, api_key="none")
    return pydantic_ai.Agent(openai_models.OpenAIChatModel("test", provider=provider), name="say")


async def gathered(agent: Any, load: Workload) -> int:  # noqa: ANN401 -- the same
    """Run the agent for all items, with the workload's concurrency."""
    places = asyncio.Semaphore(load.concurrency)

    async def one(at: int) -> bool:
        async with places:
            said = await agent.run(f"{PROMPT} {at} of {load.items}")
        return bool(said.output == "fine")

    return sum(await asyncio.gather(*map(one, range(load.items))))


def ask(load: Workload, url: str) -> int:
    """Process all items and return the number of answers."""
    return asyncio.run(gathered(agent_of(url), load))


if __name__ == "__main__":
    print_measurement(ask)
