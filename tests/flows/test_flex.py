"""OpenAI's flex tier: what is sent, paid, refused and planned; and plans by a deadline."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from prefect_dispatch import LLM, Ask, Brief, Cascade, Item, Limits, dispatch, plan
from prefect_dispatch.calls.attempt import MAX_OVERTAKEN
from prefect_dispatch.cli.commands import COMPLETE, UNUSABLE, main
from prefect_dispatch.cli.console import plan_table, summary
from prefect_dispatch.errors import DispatchFailed, JobError
from prefect_dispatch.executors.llm.discounts import FLEX_TIMEOUT_S, listed_prefix_cache
from prefect_dispatch.flows.prepare import prepare
from prefect_dispatch.flows.runtime.form_fields import limits_from_fields
from prefect_dispatch.flows.runtime.prepared_job import JobSpec
from prefect_dispatch.sources import source
from prefect_dispatch.tasks.plan import format_span, parse_deadline
from tests.openai_server import Behaviour, failure, openai_server

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch import Report

pytestmark = pytest.mark.usefixtures("store")

SUM = Brief(name="sum", instructions="Sum it up.")
LONG = Brief(name="long", instructions=" ".join(f"Rule {at}: look for the word {at}." for at in range(300)))
MINI = "openai/gpt-5-mini"
PRICE = {"live": 10 * 0.25e-6 + 5 * 2e-6, "flex": (10 * 0.25e-6 + 5 * 2e-6) / 2}
"""US dollars of a call of `gpt-5-mini` with ten tokens in and five out."""


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")


def in_tier(request: dict[str, Any], _n: int = 1) -> Behaviour:
    """Answer in the tier that is asked for, as OpenAI says it."""
    return Behaviour(service_tier=str(request.get("service_tier", "default")))


def by_tier(report: Report) -> dict[str, float | None]:
    """Return what was paid in this run by price tier."""
    return {row.tier: row.cost_usd for row in report.bill}


@pytest.mark.parametrize("way", ["api_base", "OPENAI_BASE_URL", "stream"])
def test_each_call_is_sent_and_paid_in_the_tier(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the price, named in the bill; the time limit is the one that the tier needs."""
    with openai_server(in_tier) as server:
        if way == "OPENAI_BASE_URL":
            monkeypatch.setenv(way, server.url)
        base = None if way == "OPENAI_BASE_URL" else server.url
        executor = LLM(model=MINI, api_base=base, mode="flex", idle_s=60 if way == "stream" else None)
        report = dispatch([SUM], ["a", "b"], executor=executor)
    assert [request.body["service_tier"] for request in server.requests] == ["flex", "flex"]
    assert by_tier(report) == {"flex": pytest.approx(2 * PRICE["flex"])}
    assert report.usage.cost_usd == pytest.approx(2 * PRICE["flex"])


def test_what_the_provider_served_in_another_tier_is_billed_there() -> None:
    """At the regular price, which the bill shows beside the other one."""

    def behave(_request: dict[str, Any], n: int) -> Behaviour:
        served.append(n)
        return Behaviour(service_tier="flex" if len(served) == 1 else "default")

    served: list[int] = []
    with openai_server(behave) as server:
        executor = LLM(model=MINI, api_base=server.url, mode="flex")
        report = dispatch([SUM], ["a", "b"], executor=executor, limits=Limits(concurrency=1))
    assert by_tier(report) == {each: pytest.approx(usd) for each, usd in PRICE.items()}
    assert "By tier: live $0.0000, flex $0.0000" in summary(report, None)


def test_a_stated_price_is_halved_where_the_tier_is_named() -> None:
    """A server that names no tier is paid the whole price."""
    for behave, usd in ((in_tier, 10e-6), (Behaviour(), 20e-6)):
        with openai_server(behave) as server:
            executor = LLM(model="openai/test", api_base=server.url, mode="flex", usd_per_million=(1, 2))
            report = dispatch([SUM], ["a"], executor=executor, refresh=True)
            planned = plan([SUM], ["c"], executor)
        assert report.usage.cost_usd == pytest.approx(usd)
        assert planned.cost_usd == pytest.approx(((planned.prompt_tokens or 0) + 2 * 500) / 2e6, abs=1e-6)


def test_a_priority_call_is_billed_as_one() -> None:
    """The tier that `params` asks for is in the bill, too."""
    with openai_server(in_tier) as server:
        executor = LLM(model=MINI, api_base=server.url, params={"service_tier": "priority"})
        report = dispatch([SUM], ["a"], executor=executor)
    assert [*by_tier(report)] == ["priority"]


def test_a_budget_holds_what_the_asked_tier_costs() -> None:
    """Priority costs more than the regular price; a budget between the two sends nothing; the plan has its price."""
    executor = LLM(model=MINI, params={"service_tier": "priority", "max_tokens": 1000})
    regular = executor.model_copy(update={"params": {"max_tokens": 1000}})
    ask = Ask(brief=SUM, item=Item(key="a", value="a"))
    most, least = (each.cost_bound(ask).cost_usd or 0.0 for each in (executor, regular))
    assert most > 1.7 * least
    assert (plan([SUM], ["a"], executor).cost_usd or 0.0) > 1.7 * (plan([SUM], ["a"], regular).cost_usd or 1.0)
    with openai_server(in_tier) as server, pytest.raises(DispatchFailed):
        dispatch(
            [SUM],
            ["a"],
            executor=executor.model_copy(update={"api_base": server.url}),
            limits=Limits(budget_usd=(most + least) / 2, retries=0),
        )
    assert server.count == 0
    stated = executor.model_copy(update={"usd_per_million": (1, 2)})
    assert (
        stated.cost_bound(ask).cost_usd
        == regular.model_copy(update={"usd_per_million": (1, 2)}).cost_bound(ask).cost_usd
    )


def test_a_call_that_others_overtake_waits_for_capacity() -> None:
    """That the tier takes other calls meanwhile is normal; only `wait_s` ends the waiting."""
    refused: list[int] = []

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        if "unlucky" in str(request["messages"]) and n <= MAX_OVERTAKEN + 3:
            refused.append(n)
            return failure(429, "no capacity", code="resource_unavailable", retry_after=0.01)
        return replace(in_tier(request), delay_s=0.02)

    with openai_server(behave) as server:
        executor = LLM(model=MINI, api_base=server.url, mode="flex")
        items = ["unlucky", *(f"text {at}" for at in range(60))]
        report = dispatch([SUM], items, executor=executor, limits=Limits(concurrency=2, retries=0))
    assert (report.status, len(refused)) == ("complete", MAX_OVERTAKEN + 3)


def test_answers_of_one_mode_count_in_the_other() -> None:
    """The mode changes no answer: what flex refused is asked live, and nothing else."""

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        busy = request.get("service_tier") == "flex" and "item-b" in str(request["messages"])
        return failure(429, "no capacity", code="resource_unavailable") if busy else in_tier(request, n)

    with openai_server(behave) as server:
        flex = LLM(model=MINI, api_base=server.url, mode="flex")
        first = dispatch([SUM], ["item-a", "item-b"], executor=flex, limits=Limits(wait_s=0.2, retries=0))
        second = dispatch([SUM], ["item-a", "item-b"], executor=flex.model_copy(update={"mode": "live"}))
    assert [(each.item, each.status) for each in first.outcomes] == [("item-a", "succeeded"), ("item-b", "failed")]
    assert (second.status, second.usage.asked, second.usage.cached) == ("complete", 1, 1)


def test_a_tier_that_is_busy_for_a_moment_is_waited_for() -> None:
    """A refusal for lack of capacity costs nothing and is no failed attempt."""

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        busy = failure(429, "no capacity", code="resource_unavailable", retry_after=0.05)
        return busy if n == 1 else in_tier(request, n)

    with openai_server(behave) as server:
        report = dispatch([SUM], ["a"], executor=LLM(model=MINI, api_base=server.url, mode="flex"))
    assert (report.status, server.count) == ("complete", 2)
    assert report.usage.cost_usd == pytest.approx(PRICE["flex"])


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        pytest.param(LLM(model="openai/gpt-4o-mini", mode="flex"), "'openai/gpt-4o-mini' has no price", id="no-tier"),
        pytest.param(LLM(model="anthropic/claude-sonnet-4-5", mode="flex"), "has no price", id="another-provider"),
        pytest.param(LLM(model="local/smollm2", mode="flex"), "set mode to 'live'", id="local"),
        pytest.param(
            LLM(model=MINI, mode="flex", fallbacks=("openai/gpt-4o-mini",)), "'openai/gpt-4o-mini'", id="fallback"
        ),
        pytest.param(LLM(model=MINI, mode="flex", rounds=2), "executor.mode is flex: set mode: batch", id="rounds"),
    ],
)
def test_what_has_no_such_tier_is_refused(executor: LLM, message: str) -> None:
    """By the plan and by the run, before anything is sent."""
    for ask in (lambda: plan([SUM], ["a"], executor), lambda: dispatch([SUM], ["a"], executor=executor)):
        with pytest.raises((JobError, DispatchFailed), match=message):
            ask()


def test_two_tiers_contradict_each_other() -> None:
    """`mode` and `params` name one each."""
    with pytest.raises(ValidationError, match=r"params\.service_tier names one, too"):
        LLM(model=MINI, mode="flex", params={"service_tier": "priority"})
    with pytest.raises(ValidationError, match=r"params\.service_tier names one, too"):
        LLM(model=MINI, mode="flex", params={"extra_body": {"service_tier": "priority"}})
    cheap = Cascade(cheap="openai/gpt-5-nano", samples=1, params={"service_tier": "priority"})
    with pytest.raises(ValidationError, match=r"params\.service_tier names one, too"):
        LLM(model=MINI, mode="flex", cascade=cheap)


def test_stated_prices_are_enough() -> None:
    """For the models of a server of one's own: a fallback, and the cheap model of a cascade."""
    own = LLM(model="openai/mine", fallbacks=("openai/other",), usd_per_million=(1, 2), mode="flex")
    cheap = Cascade(cheap="openai/small", samples=1, usd_per_million=(0.1, 0.2))
    for executor in (own, LLM(model=MINI, mode="flex", cascade=cheap)):
        assert plan([SUM], ["a"], executor).cost_usd


def test_a_cascade_in_the_tier() -> None:
    """Both models are asked there."""
    with openai_server(in_tier) as server:
        cascade = Cascade(cheap="openai/gpt-5-nano", samples=1)
        executor = LLM(model=MINI, api_base=server.url, mode="flex", cascade=cascade)
        report = dispatch([SUM], ["a"], executor=executor)
    assert [request.body["service_tier"] for request in server.requests] == ["flex"]
    assert [*by_tier(report)] == ["flex"]


def test_the_time_limit_of_the_tier(tmp_path: Path) -> None:
    """15 minutes in place of the default, also of a form; another one holds, and the plan says what is recommended."""
    executor = LLM(model=MINI, mode="flex")
    of_a_form = limits_from_fields(None, concurrency=4, budget_usd=None)
    for limits, seconds in ((Limits(), FLEX_TIMEOUT_S), (of_a_form, FLEX_TIMEOUT_S), (Limits(timeout_s=60), 60)):
        job = prepare(JobSpec([SUM], source(["a"]), executor, limits=limits, folder=str(tmp_path)))
        assert job.limits.timeout_s == seconds
    assert any(
        "OpenAI recommends 900" in note for note in plan([SUM], ["a"], executor, limits=Limits(timeout_s=60)).notes
    )
    (note,) = plan([SUM], ["a"], executor).notes
    assert note.startswith("mode: flex: a call may take up to 900 s")


def test_cached_prefixes_have_the_price_of_the_tier() -> None:
    """By litellm's table, as all other tokens."""
    live, flex = (listed_prefix_cache(MINI, tier) for tier in ("live", "flex"))
    assert live is not None
    assert flex is not None
    assert live.prices
    assert flex.prices == pytest.approx([usd / 2 for usd in live.prices])
    half = [plan([LONG], ["a", "b"], LLM(model=MINI, mode=mode)).cost_usd for mode in ("live", "flex")]
    assert half[0] == pytest.approx(2 * (half[1] or 0), abs=2e-6)


def test_a_plan_compares_the_modes() -> None:
    """Live, flex and batch side by side; whatever mode the job has, the comparison is the same."""
    texts = [f"text {at}" for at in range(20)]
    plans = [plan([SUM], texts, LLM(model=MINI, mode=mode)) for mode in ("live", "flex", "batch")]
    assert len({found.modes for found in plans}) == 1
    assert [each.mode for each in plans[0].modes] == ["live", "flex", "batch"]
    for found, each in zip(plans, plans[0].modes, strict=True):
        assert found.cost_usd == pytest.approx(each.cost_usd, abs=1e-6)
    assert [each.seconds for each in plans[0].modes][1:] == [3 * 900, 86400]
    assert "By mode: live $0.0206, about 33 s; flex $0.0103, up to 45 min; batch $0.0103, up to 1 d." in plan_table(
        plans[0]
    )


@pytest.mark.parametrize(
    "executor",
    [
        pytest.param(LLM(model="openai/test"), id="price-unknown"),
        pytest.param(LLM(model="anthropic/claude-sonnet-4-5"), id="one-mode"),
        pytest.param(LLM(model=MINI, cascade=Cascade(cheap="openai/gpt-5-nano", samples=1)), id="cascade"),
        pytest.param(LLM(model="openai/gpt-4o-search-preview", web_search=True), id="web-search"),
        pytest.param(LLM(model=MINI, fallbacks=("openai/gpt-5",)), id="fallbacks"),
        pytest.param(LLM(model=MINI, params={"service_tier": "priority"}), id="tier-in-params"),
        pytest.param(LLM(model=MINI, usd_per_million=(1, 2)), id="own-price"),
        pytest.param(LLM(model=MINI, usd_per_million=(0, 0), mode="flex"), id="free"),
    ],
)
def test_where_there_is_nothing_to_compare(executor: LLM) -> None:
    """The plan names no modes."""
    assert plan([SUM], ["a"], executor).modes == ()


def test_briefs_with_models_of_their_own_are_not_compared() -> None:
    """Each may have other modes."""
    brief = SUM.model_copy(update={"model": "openai/gpt-5-nano"})
    assert plan([brief], ["a"], LLM(model=MINI)).modes == ()


def test_modes_that_the_job_could_not_have_are_not_compared() -> None:
    """Batches in a row are for batches; a server with a price of its own has the mode that its owner names."""
    batches = LLM(model=MINI, mode="batch", rounds=2)
    assert [(each.mode, each.seconds) for each in plan([SUM], ["a"], batches).modes][1:] == [("batch", 2 * 86400)]
    own = LLM(model="openai/mine", mode="flex", usd_per_million=(1, 2))
    assert [each.mode for each in plan([SUM], ["a"], own).modes] == ["live", "flex"]


def test_the_time_of_flex_is_the_most_that_it_may_take() -> None:
    """By the job's time limit and by its rates."""
    for limits, seconds in (
        (Limits(timeout_s=3600, concurrency=20), 3600),
        (Limits(timeout_s=60, concurrency=10), 120),
        (Limits(requests_per_minute=1, concurrency=20), 1200),
    ):
        found = plan([SUM], [f"text {at}" for at in range(20)], LLM(model=MINI), limits=limits)
        assert found.modes[1].seconds == seconds


def test_a_job_whose_own_mode_may_be_too_late_is_told_so() -> None:
    """The times of the advice are those of live calls."""
    for mode, told in (("live", False), ("flex", False), ("batch", True)):
        executor = LLM.model_validate({"model": MINI, "mode": mode})
        advice = plan([SUM], ["a", "b"], executor, deadline="1h").advice
        assert (f"As it is written (mode: {mode}), the job may take longer." in advice) is told


def test_a_limit_of_silence_is_told_of() -> None:
    """It would end calls that wait in the tier."""
    notes = plan([SUM], ["a"], LLM(model=MINI, mode="flex", idle_s=5)).notes
    assert any(note.startswith("executor.idle_s is 5, which ends a call that is silent") for note in notes)


@pytest.mark.parametrize(
    ("deadline", "recommendation", "advice"),
    [
        pytest.param(
            "1h",
            "not-worth-fanning-out",
            "No fan-out is needed: one after another takes about 3.7 min, within",
            id="in-turn",
        ),
        pytest.param(
            "2m", "fan-out", "Fan out: in parallel takes about 33 s, within the deadline of 2 min", id="parallel"
        ),
        pytest.param("5s", "fan-out", "The deadline of 5 s is missed: in parallel takes about 33 s.", id="missed"),
    ],
)
def test_a_deadline_decides_whether_to_fan_out(deadline: str, recommendation: str, advice: str) -> None:
    """One after another, in parallel, or not at all."""
    texts = [f"text {at}" for at in range(20)]
    found = plan([SUM], texts, LLM(model=MINI), deadline=deadline)
    assert (found.recommendation, found.deadline_s) == (recommendation, parse_deadline(deadline))
    assert found.advice.startswith(advice)


@pytest.mark.parametrize(("deadline", "mode"), [("2min", "live"), ("1h", "flex"), ("1d", "flex"), ("5s", None)])
def test_the_cheapest_mode_within_a_deadline(deadline: str, mode: str | None) -> None:
    """Of two with one price the first; none where none is in time."""
    texts = [f"text {at}" for at in range(20)]
    advice = plan([SUM], texts, LLM(model=MINI), deadline=deadline).advice
    assert advice.partition("Cheapest within the deadline, in parallel: mode: ")[2] == (f"{mode}." if mode else "")


def test_without_anything_to_ask_a_deadline_changes_nothing() -> None:
    """There are no items."""
    assert plan([SUM], [], LLM(model=MINI), deadline="1h").advice == "Nothing to ask: there are no items."


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "0s", "2 weeks", "1e3s", "400d", "nan s", "२h", "7200"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """With an example of one."""
    with pytest.raises(JobError, match="such as '2h'"):
        plan([SUM], ["a"], LLM(model=MINI), deadline=text)


def test_durations_in_words() -> None:
    """In a unit of which there are at least two, or one."""
    assert [format_span(each) for each in (0, 59, 119, 120, 3600, 7199, 172800, 86400)] == [
        *("0 s", "59 s", "119 s", "2 min", "1 h", "120 min", "2 d", "1 d"),
    ]


def test_a_deadline_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan says what to do; a wrong one is refused."""
    job = tmp_path / "job.yaml"
    job.write_text(
        f"briefs: [{{name: sum, instructions: Sum it up.}}]\nitems: [a, b]\nexecutor: {{model: {MINI}}}\n",
        encoding="utf-8",
    )
    assert main(["plan", str(job), "--deadline", "2h"]) == COMPLETE
    assert (
        "within the deadline of 2 h. Cheapest within the deadline, in parallel: mode: flex." in capsys.readouterr().out
    )
    assert main(["plan", str(job), "--deadline", "soon"]) == UNUSABLE
    assert "deadline: 'soon' is no duration" in capsys.readouterr().err
