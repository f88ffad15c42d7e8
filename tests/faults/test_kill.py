"""Killed at any moment, the same command goes on: no item is lost, and nothing that was heard is paid for again."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.tasks.get_or_compute import SUFFIX
from prefect_dispatch.tasks.result_store import PREFIX, parse_record
from tests.faults.lives import CONCURRENCY, kill, lives
from tests.faults.words import await_calls, needed, said, sizes
from tests.openai_server import openai_server

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
