"""What a job will take, told before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import LLM, Ask, Brief, Item, Limits, Synthesize, Tournament, dispatch, plan
from prefect_dispatch.cli.console import plan_table
from prefect_dispatch.errors import JobError, TransientError
from prefect_dispatch.executors.base import CostBound
from prefect_dispatch.integrators.base import QueryEstimate, Question
from prefect_dispatch.tasks.plan import MAX_UNREADABLE, SAMPLE, budget_note
from prefect_dispatch.tasks.result_store import storage_key
from prefect_dispatch.tasks.work_item import build_work
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome

pytestmark = pytest.mark.usefixtures("store")

BRIEF = Brief(name="say", instructions="Say it.")


class Priced(ScriptedExecutor):
    """A scripted executor that knows its prompts and its price."""

    counted = 0

    def require_available(self) -> None:
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


class Free(Priced):
    """Counts tokens, and has no price."""

    def price(self) -> tuple[float, float] | None:
        """Tell nothing."""
        return None


class Quiet:
    """Asks, and doesn't say beforehand what."""

    def merge_asking(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker) -> Merge:
        """Never be called."""
        raise NotImplementedError


class Loud(Quiet):
    """Says what it will ask: something else of each answer."""

    def estimate_queries(self, work: int, _: object) -> list[QueryEstimate]:
        """Return a kind of question for each."""
        puts = [Question(brief=BRIEF, item=Item(key=str(at), value=None)) for at in range(work)]
        return [QueryEstimate(put, answers=1, times=2) for put in puts]


PLAIN = ScriptedExecutor(lambda _: "said")
PRICED = Priced(lambda _: "said")
COUNTED, UNCOUNTED = "counted above.", "its share is not counted."


def summing(writer: ScriptedExecutor | None = None, judge: ScriptedExecutor | None = None) -> Synthesize:
    """Return what writes a text of the answers."""
    return Synthesize(instructions="Sum up.", executor=writer, judge=judge)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "integrator", "tokens", "cost", "told"),
    [
        # Three asks of 10 tokens in, 50 out; then one that shows the three answers.
        pytest.param(PRICED, summing(), (30 + 160, 200), 1.9 + 4, COUNTED, id="text"),
        pytest.param(PRICED, summing(judge=PRICED), (190 + 180, 350), 3.7 + 7, COUNTED, id="judge"),
        pytest.param(PRICED, summing(judge=Free(lambda _: "said")), (370, 350), None, COUNTED, id="no-price"),
        pytest.param(PLAIN, summing(PRICED), (None, None), None, "160 prompt and 50 completion", id="its-own-alone"),
        pytest.param(PRICED, summing(judge=PLAIN), (30, 150), 0.3 + 3, UNCOUNTED, id="not-counted"),
        # Three pairs, in both orders, of two answers each.
        pytest.param(PRICED, Tournament(criterion="Short."), (30 + 660, 450), 6.9 + 9, COUNTED, id="matches"),
        pytest.param(PRICED, Tournament(metric=max), (30, 150), 0.3 + 3, "", id="asks-nothing"),
        pytest.param(PRICED, Quiet(), (30, 150), 0.3 + 3, UNCOUNTED, id="tells-nothing"),
        pytest.param(PRICED, Loud(), (30 + 360, 450), 3.9 + 9, COUNTED, id="of-ones-own"),
        pytest.param(PRICED, None, (30, 150), 0.3 + 3, "", id="collate"),
    ],
)
def test_the_integrators_own_questions_are_counted(
    executor: ScriptedExecutor,
    integrator: Any,  # noqa: ANN401 -- anybody's
    tokens: tuple[int | None, int | None],
    cost: float | None,
    told: str,
) -> None:
    """Tokens and cost hold what it says that it will ask; what can't be counted is told."""
    planned = plan([BRIEF], ["a", "b", "c"], executor, integrator=integrator)
    assert (planned.prompt_tokens, planned.completion_tokens) == tokens
    assert planned.cost_usd == (None if cost is None else pytest.approx(cost))
    assert told in planned.integrator
    assert bool(told) is bool(planned.integrator)


def test_many_questions_are_projected_from_some() -> None:
    """What is counted stays little, whatever an integrator asks."""
    executor = Priced(lambda _: "said")
    planned = plan([BRIEF], [f"i{n}" for n in range(450)], executor, integrator=Loud())
    assert planned.prompt_tokens == 4500 + 900 * 60
    assert executor.counted <= 2 * SAMPLE
    assert "about 900 times" in planned.integrator


@pytest.mark.parametrize(
    ("limits", "seconds", "told"),
    [
        pytest.param({"requests_per_minute": 45}, 600.0, "time bound by limits.requests_per_minute", id="requests"),
        pytest.param({"tokens_per_minute": 1000}, 1620.0, "time bound by limits.tokens_per_minute", id="tokens"),
        pytest.param({"requests_per_minute": 6000}, 90.0, "", id="a-rate-that-bounds-nothing"),
    ],
)
def test_stated_rates_bound_the_time(limits: dict[str, int], seconds: float, told: str) -> None:
    """However many are under way at once: 450 asks of 60 tokens, ten at once, two seconds each."""
    given = Limits.model_validate({"concurrency": 10, **limits})
    planned = plan([BRIEF], [f"i{n}" for n in range(450)], Metered(lambda _: "said"), limits=given)
    assert planned.seconds_in_parallel == seconds
    assert planned.seconds_in_turn >= seconds
    assert told in planned.basis
    assert bool(told) is ("time bound" in planned.basis)


class Metered(Priced):
    """Says beforehand what a call takes."""

    name = "metered"

    def cost_bound(self, ask: Ask) -> CostBound:
        """Return what it is counted at."""
        return CostBound(prompt_tokens=10, completion_tokens=50, cost_usd=1.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "notes"),
    [
        pytest.param({"budget_requests": 0}, ["limits.budget_requests is 0, so nothing is asked"], id="nothing"),
        pytest.param({"budget_usd": 0}, ["limits.budget_usd is 0, so nothing is asked"], id="no-money"),
        pytest.param({"budget_requests": 1}, ["limits.budget_requests is 1, and 2 asks are planned"], id="requests"),
        pytest.param({"budget_tokens": 119}, ["budget_tokens is 119, and about 120 tokens are planned"], id="tokens"),
        pytest.param({"budget_usd": 2.19}, ["budget_usd is 2.19, and about 2.2 USD are planned"], id="usd"),
        pytest.param({"budget_requests": 2, "budget_tokens": 120, "budget_usd": 2.2}, [], id="enough"),
    ],
)
def test_what_a_cap_will_stop_is_told(limits: dict[str, float], notes: list[str]) -> None:
    """Before anything is spent: two asks of 60 tokens, 1.1 USD each."""
    planned = plan([BRIEF], ["a", "b"], Metered(lambda _: "said"), limits=Limits.model_validate(limits))
    assert [wanted in note for wanted, note in zip(notes, planned.notes, strict=True)] == [True] * len(notes)
    assert all(note in plan_table(planned) for note in planned.notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "limits", "told"),
    [
        pytest.param(
            LLM(model="openai/gpt-5-mini"), {"budget_tokens": 1000}, "of 1,000 tokens allows 0 of 1 call,", id="tokens"
        ),
        pytest.param(
            LLM(model="openai/gpt-5-mini", params={"max_tokens": 50}), {"budget_tokens": 1000}, "", id="short"
        ),
        pytest.param(LLM(model="openai/gpt-5-mini"), {"budget_usd": 50, "budget_tokens": 900_000}, "", id="enough"),
        pytest.param(
            LLM(model="openai/gpt-5-mini", mode="flex", params={"max_tokens": 1000}),
            {"budget_usd": 0.0015},
            "of $0.0015 allows 0 of 1 call, because a call in the flex tier is only sent if the budget holds its "
            "regular price, here up to $0.0021: set limits.budget_usd to that at least",
            id="flex",
        ),
        pytest.param(
            LLM(model="openai/gpt-5-mini", mode="flex", params={"max_tokens": 1000}),
            {"budget_usd": 0.0021},
            "",
            id="flex-enough",
        ),
        pytest.param(PLAIN, {"budget_usd": 0.05}, "", id="nothing-known"),
    ],
)
def test_a_budget_below_a_call_is_told(executor: Any, limits: dict[str, float], told: str) -> None:  # noqa: ANN401 -- any executor
    """What the longest answer takes is reserved before a call, so that none would be sent."""
    work = build_work([BRIEF], [Item(key="a", value="a")], executor)
    note = budget_note(work, executor, Limits.model_validate(limits))
    assert told in note
    assert bool(told) == bool(note)


def test_a_cap_means_nothing_where_nothing_is_asked_and_is_told_where_nothing_is_counted() -> None:
    """What is stored costs nothing; requests are counted without tokens."""
    assert plan([BRIEF], ["a", "b"], PLAIN, limits=Limits(budget_requests=1)).notes != ()
    dispatch([BRIEF], ["a", "b"], executor=PLAIN)
    assert plan([BRIEF], ["a", "b"], PLAIN, limits=Limits(budget_requests=0)).notes == ()


def test_more_task_runs_than_the_server_can_record_are_told_of() -> None:
    """A small shard makes many; left empty, there are few."""
    keys = [f"i{at}" for at in range(3001)]
    (note,) = plan([BRIEF], keys, PLAIN, limits=Limits(shard=1)).notes
    assert note.startswith("limits.shard is 1, which makes 3,001 task runs")
    assert plan([BRIEF], keys, PLAIN, limits=Limits(shard=2)).notes == plan([BRIEF], keys, PLAIN).notes == ()


@pytest.mark.slow
def test_what_a_batch_leaves_to_be_asked_live_is_told() -> None:
    """By whom, and under which limit: these hold for no batch."""
    who = LLM(model="openai/gpt-4o", mode="batch", fallbacks=("openai/gpt-4o-mini",), idle_s=9)
    (note,) = plan([BRIEF], ["a"], who).notes
    told = "live. executor.fallbacks (openai/gpt-4o-mini) are asked and executor.idle_s (9) holds only there."
    assert note.endswith(told)
    (note,) = plan([BRIEF], ["a"], LLM(model="openai/gpt-4o", mode="batch")).notes
    assert note.endswith("is asked live.")


def test_a_plan_refuses_what_a_run_would() -> None:
    """Rounds without batches; a shared pace that Prefect doesn't have."""
    with pytest.raises(JobError, match=r"executor\.rounds is 2.*set mode: batch, or leave rounds out"):
        plan([BRIEF], ["a"], LLM(model="openai/gpt-4o", rounds=2))
    with pytest.raises(JobError, match=r"limits\.pace_limit: Prefect has no concurrency limit 'none'.*gcl create none"):
        plan([BRIEF], ["a"], PLAIN, limits=Limits(pace_limit="none"))


def test_small_jobs_are_not_worth_it() -> None:
    """One ask, or a few quick ones, gain nothing; equal items are counted once."""
    items = [Item(key=key, value="same") for key in "abc"]
    planned = plan([BRIEF], items, Priced(lambda _: "said"))
    assert (planned.to_ask, planned.shared) == (1, 2)
    assert planned.advice.startswith("Not worth fanning out: 1 ask,")


@pytest.mark.slow
def test_time_is_taken_from_what_was_measured() -> None:
    """Once answers are stored, a plan rests on how long they took."""
    executor = Priced(lambda _: "said")
    dispatch([BRIEF], ["a", "b"], executor=executor)
    planned = plan([BRIEF], ["a", "b", "c"], executor)
    assert (planned.stored, planned.to_ask) == (2, 1)
    assert "time as measured for 2 stored answers" in planned.basis
    assert plan([BRIEF], ["a", "b"], executor, refresh=True).to_ask == 2


@pytest.mark.slow
def test_a_record_that_can_not_be_read_is_told(store: Path) -> None:
    """It counts as none, and the run makes a gap of its item, naming the place; of too many nothing is planned."""
    items, limits = [Item(key=f"{n}", value=n) for n in range(MAX_UNREADABLE + 1)], Limits(retries=0)
    work = build_work([BRIEF], items, PLAIN)
    for each in work[:1]:
        (store / storage_key(each.fingerprint)).mkdir(parents=True)
    planned = plan([BRIEF], items[:2], PLAIN)
    assert (planned.to_ask, planned.stored) == (2, 0)
    assert "unreadable records: 1, the first: The result storage can't be read: IsADirectoryError" in planned.basis
    report = dispatch([BRIEF], items[:2], executor=PLAIN, limits=limits)
    (gap,) = report.gaps
    assert (gap.item, gap.error.kind) == ("0", "storage")
    assert str(store / storage_key(work[0].fingerprint)) in gap.error.message
    for each in work[2:]:
        (store / storage_key(each.fingerprint)).mkdir()
    assert plan([BRIEF], items[:-1], PLAIN).to_ask == MAX_UNREADABLE - 1
    (store / storage_key(work[1].fingerprint)).unlink()
    (store / storage_key(work[1].fingerprint)).mkdir()
    with pytest.raises(TransientError, match="can't be read: IsADirectoryError"):
        plan([BRIEF], items, PLAIN)


def test_a_wrong_job_has_no_plan() -> None:
    """It is refused as a run would be."""
    with pytest.raises(JobError, match="There are no items"):
        plan([BRIEF], {"glob": "nope/*"}, Priced(lambda _: "said"))
