"""Killed at any moment, the same command goes on: no item is lost, and nothing that was heard is paid for again."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.tasks.get_or_compute import SUFFIX
from prefect_dispatch.tasks.result_store import PREFIX, parse_record
from tests.faults.lives import CONCURRENCY, kill, lives
from tests.faults.words import await_calls, needed, said, sizes
from tests.openai_server import Behaviour, document, openai_server, share

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("items", "kills", "seed"),
    [
        pytest.param(40, 4, 1, marks=pytest.mark.slow, id="quick"),
        pytest.param(300, 50, 2, id="whole", marks=[pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_it_goes_on_where_it_was_killed(store: Path, tmp_path: Path, items: int, kills: int, seed: int) -> None:
    """Two at once, killed one after the other, again and again: each kill loses at most what was under way.

    That is counted, and all the rest is paid for once.
    """
    chance = random.Random(seed)
    words = [f"word-{n}" for n in range(items)]
    with openai_server(sizes) as server, lives(tmp_path) as processes:
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

    answers = {path.name: parse_record(path.read_bytes()) for path in store.glob(f"{PREFIX}*") if path.suffix != SUFFIX}
    assert len(answers) == items
    assert None not in answers.values()
    left = {path.stem for path in store.glob(f"{PREFIX}*{SUFFIX}")}
    assert left <= answers.keys()  # killed between storing an answer and taking its draft away

    heard = needed(server, items)
    spent = [attempt.usage for each in answers.values() if each for attempt in each.attempts]
    lost = sum(usage.unsettled for usage in spent)
    assert sum(usage.requests for usage in spent) == heard + lost
    assert sum(usage.prompt_tokens for usage in spent) == 10 * heard
    assert asked - heard <= lost <= kills * CONCURRENCY


SAMPLE = 60
LEARNING = {
    "usd_per_million": (20, 20),
    "params": {"max_tokens": 5},
    "cascade": {
        "cheap": "openai/cheap",
        "usd_per_million": (1, 1),
        "samples": 2,
        "learn": {"items": SAMPLE, "target": 0.95, "confidence": 0.95},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_cascade_goes_on_where_it_was_killed(store: Path, tmp_path: Path, seed: int) -> None:
    """The same items teach the rule, whoever was killed, and each kill loses at most what was under way."""
    items, kills, chance = 90, 4, random.Random(seed)
    words = [f"word-{n}" for n in range(items)]
    calls = Counter[tuple[str, int]]()

    def answer(request: dict[str, Any], _n: int) -> Behaviour:
        """Answer as a cheap model does that guesses about every third word, and as a strong one that knows all."""
        model, number = str(request["model"]), int(re.findall(r"word-(\d+)", document(request))[0])
        calls[model, number] += 1
        guess = model == "cheap" and number % 3 == 0
        size = 1000 + calls[model, number] if guess else number
        return Behaviour(content=f'{{"size": {size}}}', delay_s=0.01 + share(request, "delay") * 0.05)

    with openai_server(answer) as server, lives(tmp_path) as processes:
        job = {
            "url": server.url,
            "items": words,
            "out": str(tmp_path / "report.json"),
            "storage": None,
            "executor": LEARNING,
        }
        for _ in range(kills):
            [life] = processes.begin([job])
            await_calls(server, chance.randint(10, 70))
            kill(life)
            assert processes.ended() == [-9]
        [report] = processes.whole([job])
        paid = calls.total()
        [again] = processes.whole([job])
        assert (calls.total(), again.usage.cached) == (paid, items)
    assert said(report) == said(again) == {f"word-{n}": {"size": n} for n in range(items)}
    reasons = [row.reason for row in report.ledger]
    assert sum("both models were asked" in reason for reason in reasons) == SAMPLE
    assert [row.reason for row in again.ledger] == reasons
    answered_by_strong = sum("openai/strong" in reason or "openai/test answered" in reason for reason in reasons)
    assert paid <= 2 * items + answered_by_strong + kills * CONCURRENCY
    answers = [parse_record(path.read_bytes()) for path in store.glob(f"{PREFIX}*") if path.suffix != SUFFIX]
    spent = [attempt.usage for each in answers if each for attempt in each.attempts]
    assert sum(usage.requests for usage in spent) >= paid


@pytest.mark.slow
def test_a_pilot_goes_on_where_it_was_killed(store: Path, tmp_path: Path) -> None:
    """There is one pilot, whoever was killed: what it was answered is not asked again, and its decision is kept."""
    items, kills, chance = 40, 4, random.Random(1)
    words = [f"word-{n}" for n in range(items)]
    with openai_server(sizes) as server, lives(tmp_path) as processes:
        job = {
            "url": server.url,
            "items": words,
            "out": str(tmp_path / "report.json"),
            "storage": None,
            "limits": {"pilot": {"items": 12, "gate": "auto", "min_success": 0.5}},
        }
        for _ in range(kills):
            [life] = processes.begin([job])
            await_calls(server, chance.randint(2, 14))
            kill(life)
            assert processes.ended() == [-9]
        [report] = processes.whole([job])
    assert report.status == "complete"
    assert said(report) == {f"word-{n}": {"size": n} for n in range(items)}
    heard = needed(server, items)
    assert server.count <= heard + kills * CONCURRENCY
    answers = [parse_record(path.read_bytes()) for path in store.glob(f"{PREFIX}*") if path.suffix != SUFFIX]
    spent = [attempt.usage for each in answers if each for attempt in each.attempts]
    assert sum(usage.requests for usage in spent) == heard + sum(usage.unsettled for usage in spent)
