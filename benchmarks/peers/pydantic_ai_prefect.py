"""pydantic-ai on Prefect's durability: each model request is a task run, in a flow run for each agent's run."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.cell import print_measurement
from benchmarks.peers.pydantic_ai_gathered import agent_of, gathered

if TYPE_CHECKING:
    from benchmarks.loads import Workload

prefect: Any = import_module("prefect")
durable: Any = import_module("pydantic_ai.durable_exec.prefect")


def ask(load: Workload, url: str) -> dict[str, Any]:
    """Process all items and return the number of answers."""
    agent = durable.PrefectAgent(agent_of(url))

    async def all_of_them() -> int:
        return await gathered(agent, load)

    return {"done": asyncio.run(prefect.flow(all_of_them)()), "made": load.items}


if __name__ == "__main__":
    print_measurement(ask)
