"""What a job will take, told before anything is spent."""

from __future__ import annotations

import pytest

from prefect_dispatch import Brief, Item, Limits, dispatch, plan
from prefect_dispatch.errors import JobError
from prefect_dispatch.tasks.plan import SAMPLE
from prefect_dispatch.testing import ScriptedExecutor

pytestmark = pytest.mark.usefixtures("store")

BRIEF = Brief(name="say", instructions="Say it.")


class Priced(ScriptedExecutor):
    """A scripted executor that knows its prompts and its price."""

    counted = 0

    def require_known(self) -> None:
        """Know everybody."""

    def count_tokens(self, brief: Brief, item: Item) -> int:
        """Count ten for each."""
        self.counted += 1
        return 10

    def expected_completion_tokens(self, brief: Brief) -> int:
        """Expect fifty."""
        return 50

    def price(self) -> tuple[float, float] | None:
        """Cost a cent in, two out."""
        return 0.01, 0.02


def test_a_large_job_is_projected_from_a_sample() -> None:
    """Some prompts are counted, the rest is projected; time and money follow; nothing is asked."""
    executor = Priced(lambda _: "said")
    planned = plan([BRIEF], [f"i{n}" for n in range(450)], executor, limits=Limits(concurrency=10))
    assert executor.calls == 0
    assert 0 < executor.counted <= SAMPLE
    assert (planned.work, planned.to_ask, planned.prompt_tokens, planned.completion_tokens) == (450, 450, 4500, 22500)
    assert planned.cost_usd == pytest.approx(45 + 450)
    assert (planned.seconds_in_turn, planned.seconds_in_parallel) == (900.0, 90.0)
    assert "150 of 450 prompts counted" in planned.basis
    assert planned.recommendation == "fan-out"


def test_small_jobs_are_not_worth_it() -> None:
    """One ask, or a few quick ones, gain nothing; equal items are counted once."""
    items = [Item(key=key, value="same") for key in "abc"]
    planned = plan([BRIEF], items, Priced(lambda _: "said"))
    assert (planned.to_ask, planned.shared) == (1, 2)
    assert planned.advice.startswith("Not worth fanning out: 1 ask,")


def test_time_is_taken_from_what_was_measured() -> None:
    """Once answers are stored, a plan rests on how long they took."""
    executor = Priced(lambda _: "said")
    dispatch([BRIEF], ["a", "b"], executor=executor)
    planned = plan([BRIEF], ["a", "b", "c"], executor)
    assert (planned.stored, planned.to_ask) == (2, 1)
    assert "time as measured for 2 stored answers" in planned.basis
    assert plan([BRIEF], ["a", "b"], executor, refresh=True).to_ask == 2


def test_a_wrong_job_has_no_plan() -> None:
    """It is refused as a run would be."""
    with pytest.raises(JobError, match="There are no items"):
        plan([BRIEF], [], Priced(lambda _: "said"))
