"""DocETL: a `map` over a list."""

from __future__ import annotations

import os
from importlib import import_module
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from benchmarks.cell import print_measurement
from benchmarks.peers.offline import use_bundled_tokenizers

if TYPE_CHECKING:
    from benchmarks.loads import Workload

use_bundled_tokenizers()
os.environ["DOCETL_HOME_DIR"] = mkdtemp()  # its cache
docetl: Any = import_module("docetl")


def ask(load: Workload, url: str) -> int:
    """Process all items and return the number of answers."""
    rows = docetl.from_list([{"item": f"item {at} of {load.items}"} for at in range(load.items)])
    asked = rows.map(
        prompt="Say fine of {{ input.item }}.",
        output={"schema": {"said": "string"}, "mode": "structured_output"},
        model="openai/gpt-4o-mini",
        litellm_completion_kwargs={"api_base": url},
    )
    return sum(row["said"] == "fine" for row in asked.collect(max_threads=load.concurrency))


if __name__ == "__main__":
    print_measurement(ask)
