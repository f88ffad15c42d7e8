"""One pace for many runs, and caps that can't be held."""

from __future__ import annotations

import threading
from contextvars import copy_context
from typing import TYPE_CHECKING

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

from prefect_dispatch import LLM, Brief, Item, Limits, Synthesize, Tournament, dispatch, plan
from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.runtime.concurrency import rate_limit_share
from prefect_dispatch.testing import ScriptedExecutor
from tests.waiting import wait_until

if TYPE_CHECKING:
    from prefect_dispatch.executors.base import Ask

SAY = Brief(name="say", instructions="Say it.")
UNPRICED = LLM(model="openai/nobody-knows-it", params={"max_tokens": 10})
PRICED = UNPRICED.model_copy(update={"usd_per_million": (1.0, 2.0)})
ENDLESS = LLM(model="openai/nobody-knows-it", usd_per_million=(1.0, 2.0))


def made(name: str, slots: int) -> str:
    """Make a limit in Prefect; return its name."""
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))
    return name


@pytest.mark.usefixtures("store")
def test_a_run_takes_as_much_of_the_rates_as_of_the_slots() -> None:
    """A quarter of the slots is a quarter of what a minute allows, and never nothing."""
    name = made("shared-rates", 20)
    limits = Limits(concurrency=5, pace_limit=name, requests_per_minute=600, tokens_per_minute=3)
    share = rate_limit_share(limits)
    assert (share.requests_per_minute, share.tokens_per_minute, share.concurrency) == (150, 1, 5)
    assert rate_limit_share(Limits(requests_per_minute=600)).requests_per_minute == 600


@pytest.mark.usefixtures("store")
def test_a_pace_that_cannot_be_shared_is_refused() -> None:
    """There is no such limit, or it is too small: the way out is named."""
    with pytest.raises(JobError, match="prefect gcl create no-such-pace --limit 100"):
        dispatch([SAY], ["a"], executor=ScriptedExecutor(lambda _: "a"), limits=Limits(pace_limit="no-such-pace"))
    limits = Limits(concurrency=3, pace_limit=made("two", 2))
    with pytest.raises(JobError, match="3 are more than the 2 slots of 'two'"):
        dispatch([SAY], ["a"], executor=ScriptedExecutor(lambda _: "a"), limits=limits)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_runs_that_share_a_pace_wait_for_their_slots() -> None:
    """A run that has all slots goes first; the other one starts when it is over."""
    limits = Limits(concurrency=2, pace_limit=made("one-after-another", 2))
    go, order = threading.Event(), list[str]()

    def script(ask: Ask) -> str:
        order.append(ask.item.key)
        if ask.item.key == "first":
            assert go.wait(60)
        return "fine"

    def run(item: str) -> None:
        dispatch([SAY], [Item(key=item, value=item)], executor=ScriptedExecutor(script), limits=limits)

    threads = [threading.Thread(target=copy_context().run, args=(run, name)) for name in ("first", "second")]
    threads[0].start()
    wait_until(lambda: order == ["first"], "the first is under way")
    threads[1].start()
    threads[1].join(3)  # time enough to ask, if nothing held it back
    assert order == ["first"]
    go.set()
    for thread in threads:
        thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    ("executor", "limits", "told"),
    [
        pytest.param(UNPRICED, Limits(budget_usd=1), "budget_usd can't be held: the price of", id="no-price"),
        pytest.param(ENDLESS, Limits(budget_usd=1), "set max_tokens among its params", id="no-longest-answer"),
        pytest.param(
            ScriptedExecutor(lambda _: "a"), Limits(budget_tokens=9), "set limits.budget_requests", id="no-model"
        ),
    ],
)
def test_a_cap_that_cannot_be_held_is_refused_before_anything_is_spent(
    executor: LLM | ScriptedExecutor, limits: Limits, told: str
) -> None:
    """Each with the way out."""
    with pytest.raises(JobError, match=told):
        plan([SAY], ["a"], executor=executor, limits=limits)


@pytest.mark.parametrize(
    "integrator",
    [Tournament(criterion="Which is better?", judge=UNPRICED), Synthesize(instructions="Sum up.", judge=UNPRICED)],
)
def test_an_integrators_judge_is_under_the_same_cap(integrator: Tournament | Synthesize) -> None:
    """Its calls count, so they have to be countable."""
    with pytest.raises(JobError, match="price of 'openai/nobody-knows-it' is unknown"):
        plan([SAY], ["a", "b"], executor=PRICED, integrator=integrator, limits=Limits(budget_usd=1))
