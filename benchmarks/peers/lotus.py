"""LOTUS: `sem_map` over a DataFrame."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.cell import print_measurement

if TYPE_CHECKING:
    from benchmarks.loads import Workload

lotus: Any = import_module("lotus")
models: Any = import_module("lotus.models")
pandas: Any = import_module("pandas")


def ask(load: Workload, url: str) -> int:
    """Process all items and return the number of answers."""
    model = models.LM(model="openai/gpt-4o-mini", api_base=url, max_batch_size=load.concurrency)
    lotus.settings.configure(lm=model)
    frame = pandas.DataFrame({"item": [f"item {at}" for at in range(load.items)]})
    return int((frame.sem_map("Say fine of {item}.")["_map"] == "fine").sum())


if __name__ == "__main__":
    print_measurement(ask)
