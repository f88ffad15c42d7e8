"""Budgets that runs share: never exceeded together, in any interleaving; what is not spent is given back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from prefect_dispatch import LLM, Brief, DispatchBudget, Item, Limits, dispatch, run_brief
from prefect_dispatch.calls.budget import NANO, Budget
from prefect_dispatch.cli.commands import COMPLETE, UNUSABLE, main
from prefect_dispatch.errors import BudgetError, JobError, TransientError
from prefect_dispatch.executors.base import CostBound
from prefect_dispatch.flows.prepare import plan
from prefect_dispatch.flows.runtime import named_budget
from prefect_dispatch.flows.runtime.named_budget import SLOT, BudgetHold, NamedBudget, find_period
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.tasks.shards.options import Processes
from tests.openai_server import Behaviour, openai_server
from tests.virtual_time import run as run_virtually
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from prefect_dispatch import Report
    from tests.openai_server import OpenAIServer

SAY = Brief(name="say", instructions="Say it.")
PRICE = (1000.0, 2000.0)
"""US dollars per million tokens read, and per million written: an answer costs some cents."""


def say(_request: dict[str, Any], _number: int) -> Behaviour:
    """Answer at once."""
    return Behaviour(content="Said.")


def say_late(_request: dict[str, Any], _number: int) -> Behaviour:
    """Answer after a minute."""
    return Behaviour(content="Said.", delay_s=60)


class Slots:
    """Slots as Prefect's server has them: taken in one step, and only if as many are free."""

    def __init__(self, free: int) -> None:
        """Start with all of them free."""
        self.free, self.most = free, free

    def take(self, slots: int) -> None:
        """Take slots."""
        if slots > self.free:
            raise BudgetError("limits.budget: too few are left.")
        self.free -= slots

    def give_back(self, slots: int) -> None:
        """Give slots back."""
        self.free += slots
        assert self.free <= self.most


@pytest.mark.parametrize(
    ("per", "zone", "key", "ends"),
    [
        ("day", "UTC", "2026-12-31", "2027-01-01T00:00:00+00:00"),
        ("day", "Europe/Berlin", "2027-01-01", "2027-01-02T00:00:00+01:00"),
        ("week", "UTC", "2026-W53", "2027-01-04T00:00:00+00:00"),
        ("month", "UTC", "2026-12", "2027-01-01T00:00:00+00:00"),
        ("month", "Pacific/Auckland", "2027-01", "2027-02-01T00:00:00+13:00"),
    ],
)
def test_periods(per: str, zone: str, key: str, ends: str) -> None:
    """Of a moment half an hour before the year ends in UTC."""
    period = find_period(per, zone, datetime(2026, 12, 31, 23, 30, tzinfo=timezone.utc))
    assert (period.key, period.ends.isoformat()) == (key, ends)


@settings(max_examples=1000, deadline=None)
@given(
    slots=st.integers(0, 60),
    runs=st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.floats(0, 3)), max_size=6), max_size=4),
    dies=st.integers(0, 5),
)
@pytest.mark.slow
def test_runs_never_spend_more_together(slots: int, runs: list[list[tuple[int, int, float]]], dies: int) -> None:
    """Several runs with calls at random times, each of which costs at most what it reserved; one may die.

    What is not free at the end is what was spent, and what the dead run had taken.
    """
    shared = Slots(slots)
    spent: list[int] = []

    async def call(budget: Budget, bound: int, cost: int, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        try:
            # The factor that is added to a bound for estimates is taken off, so that it is whole.
            reservation = await budget.reserve(
                "model", CostBound(prompt_tokens=1, completion_tokens=1, cost_usd=bound * SLOT / NANO / 1.25)
            )
        except BudgetError:
            return
        await asyncio.sleep(delay_s)
        took = min(cost, bound)
        spent.append(took)
        assert sum(spent) <= slots
        budget.settle(reservation, Usage(requests=1, cost_usd=took * SLOT / NANO))

    async def work(number: int, calls: list[tuple[int, int, float]]) -> None:
        budget = Budget(Limits(budget_usd=1, budget="team"))
        hold = BudgetHold(cast("NamedBudget", shared), budget)
        budget.journal_to(hold.cover)
        await asyncio.gather(*(call(budget, *each) for each in calls))
        if number != dies:
            hold.settle()

    async def story() -> None:
        await asyncio.gather(*(work(number, calls) for number, calls in enumerate(runs)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(named_budget, "run_in_pool", _take_a_while)
        run_virtually(story())
    assert 0 <= shared.free <= slots - sum(spent)
    if dies >= len(runs):
        assert shared.free == slots - sum(spent)


async def _take_a_while(step: Callable[[int], None], slots: int) -> None:
    """Ask a server that takes some time."""
    await asyncio.sleep(0.1)
    step(slots)


@pytest.fixture
def server() -> Any:  # noqa: ANN401 -- a generator of a server
    """A provider whose answers have ten tokens; a key in the environment, as users have it."""
    with pytest.MonkeyPatch.context() as patch, openai_server(say) as running:
        patch.setenv("OPENAI_API_KEY", "sk-of-the-user-0123456789")
        yield running


def executor(server: OpenAIServer, **params: Any) -> LLM:  # noqa: ANN401 -- any parameter
    """Return an executor with a price."""
    params = {"max_tokens": 20, **params}
    return LLM(model="openai/test", api_base=server.url, params=params, usd_per_million=PRICE)


def saved(name: str, usd: float, **options: Any) -> NamedBudget:  # noqa: ANN401 -- fields of the block
    """Save a budget."""
    DispatchBudget(usd=usd, **options).save(name, overwrite=True)
    return NamedBudget.load(name)


def run_items(server: OpenAIServer, name: str, *items: str, **limits: Any) -> Report:  # noqa: ANN401 -- any limit
    """Return the report of a run within a budget."""
    bounds = Limits(budget=name, retries=0, **limits)
    return dispatch([SAY], list(items), executor=executor(server), limits=bounds)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_what_is_left_is_what_was_not_spent(server: OpenAIServer, capsys: pytest.CaptureFixture[str]) -> None:
    """After runs in this process and in others; the plan says it; a larger budget lets the next run go on."""
    budget = saved("shared-left", 1000, per="week", timezone="Europe/Berlin")
    assert budget.look_up().left_usd == 1000
    first = run_items(server, "shared-left", *"abc")
    assert first.status == "complete"
    left = budget.look_up().left_usd
    assert left == pytest.approx(1000 - (first.usage.cost_usd or 0), abs=2 * SLOT / NANO)
    limits = Limits(budget="shared-left", concurrency=4)
    second = dispatch(
        [SAY], list("defghijk"), executor=executor(server), limits=limits, task_runner=Processes(workers=2)
    )
    assert second.status == "complete"
    spent = (first.usage.cost_usd or 0) + (second.usage.cost_usd or 0)
    assert budget.look_up().left_usd == pytest.approx(1000 - spent, abs=3 * SLOT / NANO)
    # A call reserves some 25 cents and spends 2: two of four fit.
    saved("shared-left", spent + 0.28, per="week", timezone="Europe/Berlin")
    expected = plan([SAY], list("lmno"), executor=executor(server), limits=limits)
    assert any("Budget 'shared-left': 0.2" in note for note in expected.notes)
    assert main(["budget", "shared-left"]) == COMPLETE
    assert main(["budget"]) == COMPLETE
    assert capsys.readouterr().out.count("Budget 'shared-left': 0.2") == 2
    third = run_items(server, "shared-left", *"lmno", concurrency=1)
    skipped = [gap for gap in third.gaps if gap.error.kind == "budget"]
    assert third.status == "gaps"
    assert len(skipped) == 2
    assert "limits.budget: Budget 'shared-left'" in skipped[0].error.message
    saved("shared-left", spent + 10, per="week", timezone="Europe/Berlin")
    asked = server.count
    assert run_items(server, "shared-left", *"lmno").status == "complete"
    assert server.count == asked + len(skipped)


RUN = """
import sys
from prefect_dispatch import LLM, Brief, Limits, dispatch
url, first = sys.argv[1:]
executor = LLM(model="openai/test", api_base=url, params={"max_tokens": 20}, usd_per_million=(1000.0, 2000.0))
limits = Limits(budget="shared-many", concurrency=8, retries=0)
items = [f"{first}{at}" for at in range(40)]
dispatch([Brief(name="say", instructions="Say it.")], items, executor=executor, limits=limits)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_processes_share_a_budget(server: OpenAIServer) -> None:
    """Three at once, with a budget for some of their calls; the provider never bills more."""
    each_usd = run_items(server, saved("shared-one", 100).name, "a").usage.cost_usd or 0
    budget = saved("shared-many", 30 * each_usd)
    before = server.count
    command = [sys.executable, "-c", RUN, server.url]
    env = {**os.environ, "PREFECT_API_URL": _api_url()}
    runs = [subprocess.Popen([*command, first], env=env, stderr=subprocess.DEVNULL) for first in "xyz"]  # noqa: S603 -- ours
    for each in runs:
        each.wait(300)
    answered = server.count - before
    assert 5 <= answered <= 30
    assert budget.look_up().left_usd == pytest.approx((30 - answered) * each_usd, abs=4 * SLOT / NANO)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_what_a_killed_run_has_reserved_stays_spent(server: OpenAIServer) -> None:
    """Nobody knows what its calls have cost."""
    budget = saved("shared-many", 10)
    with openai_server(say_late) as slow:
        command = [sys.executable, "-c", RUN, slow.url, "k"]
        env = {**os.environ, "PREFECT_API_URL": _api_url()}
        process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)  # noqa: S603 -- ours
        wait_until(lambda: slow.count > 0, "a call was sent")
        process.kill()
        process.wait(60)
    assert budget.look_up().left_usd < 10


def _api_url() -> str:
    with get_client(sync_client=True) as client:
        return str(client.api_url)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_budget_that_cannot_be_held_is_refused(server: OpenAIServer) -> None:
    """Before anything is sent: an unknown name, a limit that somebody has deactivated, a price that nobody knows."""
    assert main(["budget", "shared-off"]) == UNUSABLE
    with pytest.raises(
        JobError, match=r"limits\.budget: .* has no DispatchBudget block 'shared-off'.*Did you mean|There are"
    ):
        run_items(server, "shared-off", "a")
    budget = saved("shared-off", 5)
    assert run_items(server, "shared-off", "a").status == "complete"
    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(budget.limit, GlobalConcurrencyLimitUpdate(active=False))
    with pytest.raises(BudgetError, match="deactivated the Prefect limit"):
        budget.take(1)
    asked = server.count
    with pytest.raises(JobError, match=rf"{budget.limit!r} is deactivated.*prefect gcl enable"):
        run_items(server, "shared-off", "b")
    with get_client(sync_client=True) as client:
        client.delete_global_concurrency_limit_by_name(budget.limit)
    with pytest.raises(BudgetError, match="deleted or deactivated"):
        budget.take(1)
    assert budget.open().left_usd == 5
    with pytest.raises(BudgetError, match=r"5\.0000 of 5 USD are left"):
        budget.take(10 * budget.slots)
    unpriced = LLM(model="openai/nobody-knows-it", api_base=server.url, params={"max_tokens": 20})
    unknown = r"limits\.budget can't be held: the price of .* is unknown; give it usd_per_million\.$"
    with pytest.raises(JobError, match=unknown):
        dispatch([SAY], ["b"], executor=unpriced, limits=Limits(budget=saved("shared-price", 5).name))

    @flow
    def own() -> Any:  # noqa: ANN401 -- of a task
        return run_brief(
            SAY, Item(key="c", value="c"), executor=executor(server), limits=Limits(budget="shared-price", budget_usd=1)
        )

    with pytest.raises(BudgetError, match="held for whole runs"):
        own()
    assert server.count == asked


def test_a_server_that_is_away_is_a_transient_error() -> None:
    """The call is tried again like any other."""
    away = temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0})
    with away, pytest.raises(TransientError, match="can't be asked for the budget"):
        NamedBudget("team", DispatchBudget(usd=1)).take(1)


def test_what_a_provider_counts_beyond_a_reservation_is_taken_at_the_end() -> None:
    """So the next run has less."""
    shared = Slots(100)

    async def story() -> None:
        budget = Budget(Limits(budget_usd=1, budget="team"))
        hold = BudgetHold(cast("NamedBudget", shared), budget)
        budget.journal_to(hold.cover)
        reservation = await budget.reserve("model", CostBound(prompt_tokens=1, completion_tokens=1, cost_usd=0.0008))
        budget.settle(reservation, Usage(requests=1, cost_usd=0.005))
        hold.settle()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(named_budget, "run_in_pool", _take_a_while)
        run_virtually(story())
    assert shared.free == 50


@pytest.mark.parametrize(("lefts", "withheld_usd"), [([1.0, 0.0], 0.5), ([1.0, 0.2], 0.3), ([1.0] * 9, 0.5)])
def test_a_share_that_is_taken_at_once(lefts: list[float], withheld_usd: float) -> None:
    """Another run may be quicker: then what is left by now is taken, or after some tries nothing."""
    states = iter(lefts)

    class Raced(Slots):
        """Slots of which another run takes all but a part between the look and the first take."""

        tries = 0

        def look_up(self) -> SimpleNamespace:
            return SimpleNamespace(left_usd=next(states))

        def take(self, slots: int) -> None:
            self.tries += 1
            if self.tries == 1 or len(lefts) > 2:
                raise BudgetError("limits.budget: too few are left.")
            super().take(slots)

    budget = Budget(Limits(budget_usd=0.5, budget="team"))
    withheld = BudgetHold(cast("NamedBudget", Raced(10**6)), budget).take_share()
    assert withheld == pytest.approx(withheld_usd * NANO)


def test_a_mark_that_is_covered_takes_nothing() -> None:
    """Slots that the run holds already are enough."""
    shared = Slots(10)
    hold = BudgetHold(cast("NamedBudget", shared), Budget(Limits(budget_usd=1, budget="team")))
    asyncio.run(hold.cover({"usd": 0}))
    assert shared.free == 10


def test_a_server_that_fails_is_no_spent_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a refusal of slots is; another status may pass."""
    asked = httpx.Request("POST", "http://127.0.0.1/api")

    class Failing:
        """A client whose server is in trouble."""

        def __init__(self, **_: object) -> None:
            """Connect to nothing."""

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            """Leave."""

        def increment_concurrency_slots(self, *_: object) -> None:
            raise httpx.HTTPStatusError("no", request=asked, response=httpx.Response(503, request=asked))

    monkeypatch.setattr(named_budget, "get_client", Failing)
    with pytest.raises(TransientError, match="can't be asked for the budget"):
        NamedBudget("team", DispatchBudget(usd=1)).take(1)


@pytest.mark.usefixtures("store")
@pytest.mark.slow
def test_all_budgets_of_a_server_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """By name; where there is none, it says how to make one."""
    saved("to-be-deleted", 1)
    with get_client(sync_client=True) as client:
        for found in client.read_block_documents_by_type("dispatch-budget", include_secrets=False):
            client.delete_block_document(found.id)
        kind = client.read_block_type_by_slug("dispatch-budget")
    assert main(["budget"]) == UNUSABLE
    assert "has no budget that runs share" in capsys.readouterr().err
    with get_client(sync_client=True) as client:
        client.delete_block_type(kind.id)  # as where none was ever saved
    assert main(["budget"]) == UNUSABLE
    assert "has no budget that runs share" in capsys.readouterr().err
    saved("one-of-two", 1)
    saved("two-of-two", 2)
    assert main(["budget"]) == COMPLETE
    said = capsys.readouterr().out
    assert said.index("one-of-two") < said.index("two-of-two")


def test_values_that_are_refused() -> None:
    """With the field that is wrong."""
    with pytest.raises(ValueError, match="'Mars/Olympus' is no time zone"):
        DispatchBudget(usd=1, timezone="Mars/Olympus")
    with pytest.raises(ValueError, match="greater than 0"):
        DispatchBudget(usd=0)
    with pytest.raises(ValueError, match="budget"):
        Limits(budget="Team Research")
