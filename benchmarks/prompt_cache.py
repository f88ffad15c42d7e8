"""What waiting for the first call of a brief brings: `python -m benchmarks.prompt_cache [ITEMS] [CONCURRENCY]`.

A server of our own caches prompts as OpenAI does: a beginning of 1,024 tokens or more, once a request with it has been
answered, in steps of 128 tokens; it counts tokens by OpenAI's tokenizer. The same job is run without waiting and with
it, and its plan is compared with the bill by litellm's prices.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from prefect_dispatch import Outcome

MODEL = "openai/gpt-4o-mini"
BRIEF_TOKENS, ITEM_TOKENS = 4_000, 300
LATENCY_S = 1.0
REPEAT = 3
"""Runs of each kind, in turns; the quickest is printed."""
ANSWER = "fine " * 499 + "fine"
"""An answer of 500 tokens, which a plan assumes."""


def text_of(tokens: int, seed: object) -> str:
    """Return a text of random words with so many tokens, the same for the same seed."""
    import tiktoken  # noqa: PLC0415 -- slow to import

    from prefect_dispatch.executors.llm.litellm_adapter import count_prompt_tokens  # noqa: PLC0415 -- as above

    count_prompt_tokens(MODEL, [])  # so that the tokenizer's file is litellm's, without a network
    encoding, draw = tiktoken.get_encoding("o200k_base"), random.Random(str(seed))
    words = ("".join(draw.choices("aeionrstlmdk", k=draw.randint(2, 5))) for _ in range(tokens))
    return encoding.decode(encoding.encode(" ".join(words))[:tokens])


@contextlib.contextmanager
def replaced_attribute(kind: type, name: str, value: object) -> Generator[None]:
    """Replace an attribute of a class within the body."""
    before = getattr(kind, name)
    setattr(kind, name, value)
    try:
        yield
    finally:
        setattr(kind, name, before)


def measure(items: int, concurrency: int, *, waits: bool) -> dict[str, Any]:
    """Return the figures of one run.

    Args:
        items: The number of items.
        concurrency: The calls at once.
        waits: Whether the first call of the brief goes ahead.
    """
    from prefect_dispatch import LLM, Brief, Limits, dispatch  # noqa: PLC0415 -- after the environment is set
    from prefect_dispatch.calls.prompt_prefixes import PromptPrefix  # noqa: PLC0415 -- as above
    from tests.openai_server import Behaviour, PrefixCache, openai_server  # noqa: PLC0415 -- as above

    async def enter(*_: object) -> bool:
        """Wait for nothing."""
        return False

    patched = contextlib.nullcontext() if waits else replaced_attribute(PromptPrefix, "enter", enter)
    cache = PrefixCache(Behaviour(content=ANSWER, delay_s=LATENCY_S, completion_tokens=500))
    brief = Brief(name="words", instructions=text_of(BRIEF_TOKENS, time.time()))
    with patched, openai_server(cache) as server:
        start = time.perf_counter()
        report = dispatch(
            [brief],
            [text_of(ITEM_TOKENS, at) for at in range(items)],
            executor=LLM(model=MODEL, api_base=server.url),
            limits=Limits(concurrency=concurrency),
        )
        seconds = time.perf_counter() - start
    planned: Any = report.plan
    return {
        "waits": waits,
        "answered": report.usage.asked,
        "fan_out_s": round(_span(report.outcomes), 2),
        "seconds": round(seconds, 2),
        "prompt_tokens": cache.prompt_tokens,
        "cached": round(cache.cached_tokens / cache.prompt_tokens, 4),
        "reported_cached": round(report.usage.cached_tokens / report.usage.prompt_tokens, 4),
        "bill_usd": report.usage.cost_usd,
        "plan_usd": planned["cost_usd"],
        "plan_off": round(planned["cost_usd"] / (report.usage.cost_usd or 1) - 1, 4),
    }


def _span(outcomes: Sequence[Outcome]) -> float:
    """Return the seconds from the first call to the end of the last."""
    last = [outcome.attempts[-1] for outcome in outcomes]
    starts = [each.started.timestamp() for each in last if each.started]
    return max(start + each.seconds for start, each in zip(starts, last, strict=True)) - min(starts)


if __name__ == "__main__":
    os.environ |= {"OPENAI_API_KEY": "none", "PREFECT_HOME": mkdtemp(), "PREFECT_LOGGING_LEVEL": "ERROR"}
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    count, at_once = map(int, sys.argv[1:3] or ("1000", "100"))
    measure(20, 10, waits=True)  # imports and connections
    rows = [measure(count, at_once, waits=wait) for _ in range(REPEAT) for wait in (True, False)]
    for wait in (True, False):
        print(json.dumps(min((row for row in rows if row["waits"] == wait), key=lambda row: row["fan_out_s"])))
