"""Killed at any moment, the same command goes on: no item is lost, and nothing that was heard is paid for again."""

from __future__ import annotations

import random
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.tasks.drafts import SUFFIX
from prefect_dispatch.tasks.store import PREFIX, answer_in
from tests.faults.lives import CONCURRENCY, kill, lives
from tests.openai_server import Behaviour, document, openai_server, share

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch import Report
    from tests.openai_server import OpenAIServer

AWKWARD = 0.15
"""The share of the words whose first answer is invalid."""
LONGEST_S = 20.0
"""How long to wait at most for the moment of a kill."""


def number(request: dict[str, Any]) -> int:
    """Return the number that a request is about."""
    found = re.search(r"word-(\d+)", document(request))
    assert found
    return int(found[1])


def answer(request: dict[str, Any], n: int) -> Behaviour:
    """Answer after a moment; for some words an invalid answer comes first, until it was sent back."""
    first = sum(message["role"] == "user" for message in request["messages"]) == 1
    content = "Hm." if first and share(request) < AWKWARD else f'{{"size": {number(request)}}}'
    return Behaviour(content=content, delay_s=0.01 + share(request, "delay") * 0.05)


def said(report: Report) -> dict[str, Any]:
    """Return every item's answer."""
    value: Any = report.value
    return {each["item"]: each["value"] for each in value["answers"]}


def await_calls(server: OpenAIServer, calls: int) -> None:
    """Wait for so many more calls, or a good while."""
    enough, waited = server.count + calls, time.monotonic()
    while server.count < enough and time.monotonic() - waited < LONGEST_S:
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("items", "kills", "seed"),
    [
        pytest.param(40, 4, 1, id="quick"),
        pytest.param(300, 50, 2, id="whole", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_it_goes_on_where_it_was_killed(store: Path, tmp_path: Path, items: int, kills: int, seed: int) -> None:
    """Two at once, killed one after the other, again and again: each kill loses at most what was under way.

    That is counted, and all the rest is paid for once.
    """
    chance = random.Random(seed)
    words = [f"word-{n}" for n in range(items)]
    with openai_server(answer) as server, lives(tmp_path) as processes:
        job = {"url": server.url, "items": words, "out": str(tmp_path / "report.json"), "storage": None}
        for _ in range(kills // 2):
            for life in processes.begin([job, job]):
                await_calls(server, chance.randint(1, max(2, items // kills * 3 // 2)))
                time.sleep(chance.random() * 0.05)
                kill(life)
            assert processes.ended() == [-9, -9]
        [report] = processes.whole([job])
        asked = server.count
        [again] = processes.whole([job])
        assert (server.count, again.usage.cached) == (asked, items)
    assert report.status == again.status == "complete"
    assert said(report) == said(again) == {f"word-{n}": {"size": n} for n in range(items)}

    answers = {path.name: answer_in(path.read_bytes()) for path in store.glob(f"{PREFIX}*") if path.suffix != SUFFIX}
    assert len(answers) == items
    assert None not in answers.values()
    left = {path.stem for path in store.glob(f"{PREFIX}*{SUFFIX}")}
    assert left <= answers.keys()  # killed between storing an answer and taking its draft away

    needed = items + len({number(each.body) for each in server.requests if share(each.body) < AWKWARD})
    spent = [attempt.usage for each in answers.values() if each for attempt in each.attempts]
    lost = sum(usage.unsettled for usage in spent)
    assert sum(usage.requests for usage in spent) == needed + lost
    assert sum(usage.prompt_tokens for usage in spent) == 10 * needed
    assert asked - needed <= lost <= kills * CONCURRENCY
