"""Curator: `bespokelabs-curator`, its OpenAI backend, which sends by aiohttp."""

from __future__ import annotations

import os
from importlib import import_module
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from benchmarks.cell import print_measurement
from benchmarks.loads import PROMPT
from benchmarks.peers.offline import use_bundled_tokenizers

if TYPE_CHECKING:
    from benchmarks.loads import Workload

NO_LIMIT = 100_000_000


use_bundled_tokenizers()
os.environ.update(CURATOR_DISABLE_RICH_DISPLAY="1", TELEMETRY_ENABLED="false")
curator: Any = import_module("bespokelabs.curator")


def _prompt(_self: object, row: dict[str, str]) -> str:
    return f"{PROMPT} {row['item']}"


def _parse(_self: object, row: dict[str, str], said: str) -> dict[str, str]:
    return {"item": row["item"], "said": said}


Say: Any = type("Say", (curator.LLM,), {"prompt": _prompt, "parse": _parse})


def ask(load: Workload, url: str, folder: str | None = None) -> int:
    """Process all items and return the number of answers."""
    says = Say(
        model_name="gpt-4o-mini",
        backend="openai",
        backend_params={
            "base_url": url,
            "max_requests_per_minute": NO_LIMIT,
            "max_tokens_per_minute": NO_LIMIT,
            "max_concurrent_requests": load.concurrency,
        },
    )
    rows = [{"item": f"item {at} of {load.items}"} for at in range(load.items)]
    return len(says(rows, working_dir=folder or mkdtemp()).dataset)


if __name__ == "__main__":
    print_measurement(ask)
