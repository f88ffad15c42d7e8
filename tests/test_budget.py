"""The budget: never exceeded, in any interleaving."""

from __future__ import annotations

import asyncio
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prefect_dispatch.calls.budget import Budget, Reservation
from prefect_dispatch.errors import BudgetError, TransientError
from prefect_dispatch.executors.base import CostBound
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Usage
from tests.virtual_time import VirtualLoop, run

MODEL = "provider/model"
SMALL = CostBound(prompt_tokens=8, completion_tokens=20, cost_usd=0.08)
"""With what is added, 10 and 20 tokens, and 0.1 USD."""


def spend(amount: float, **more: int) -> Usage:
    """Return the usage of a call that cost so much."""
    return Usage(requests=1, cost_usd=amount, **more)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        pytest.param(
            Limits(budget_usd=0.3),
            r"budget_usd is 0\.3 USD: 0\.3 USD are spent, and this call could take 0\.1 USD\. Raise it",
            id="usd",
        ),
        pytest.param(
            Limits(budget_tokens=119),
            r"budget_tokens is 119 tokens: 90 tokens are spent, and this call could take 30 tokens\.",
            id="tokens",
        ),
        pytest.param(
            Limits(budget_requests=3),
            r"budget_requests is 3 requests: 3 requests are spent, and this call could take 1 requests\.",
            id="requests",
        ),
    ],
)
def test_a_call_that_no_longer_fits_is_refused(limits: Limits, said: str) -> None:
    """To the last unit, naming the cap, what is spent, and what it could take."""

    async def story() -> Usage:
        budget = Budget(limits)
        for _ in range(3):
            call = await budget.reserve(MODEL, SMALL)
            budget.settle(call, spend(0.1, prompt_tokens=10, completion_tokens=20))
        with pytest.raises(BudgetError, match=said):
            await budget.reserve(MODEL, SMALL)
        return budget.spent

    assert run(story()) == Usage(requests=3, prompt_tokens=30, completion_tokens=60, cost_usd=0.3)


def test_a_call_waits_for_what_others_may_leave() -> None:
    """Until it fits, or nothing is under way that could make room."""

    async def story() -> list[str]:
        budget = Budget(Limits(budget_usd=0.25))
        first, second = await budget.reserve(MODEL, SMALL), await budget.reserve(MODEL, SMALL)
        waiting = [asyncio.create_task(budget.reserve(MODEL, SMALL)) for _ in range(2)]
        states: list[str] = []

        async def look() -> None:
            await asyncio.sleep(1)
            states.append("".join("w" if not task.done() else "f" if task.exception() else "g" for task in waiting))

        await look()
        budget.settle(first, spend(0.04))
        await look()
        budget.settle(second, spend(0.1))
        await look()
        budget.settle(waiting[0].result(), spend(0.02))
        await look()
        assert budget.remaining == {"usd": 0.09}
        return states

    assert run(story()) == ["ww", "gw", "gw", "gf"]


@pytest.mark.parametrize(
    ("usage", "spent"),
    [
        pytest.param(
            None,
            Usage(requests=1, prompt_tokens=10, completion_tokens=20, cost_usd=0.1, unsettled=1),
            id="nothing-is-known",
        ),
        pytest.param(
            Usage(requests=2, completion_tokens=30, unsettled=1),
            Usage(requests=2, prompt_tokens=10, completion_tokens=30, cost_usd=0.1, unsettled=1),
            id="cut-off",
        ),
        pytest.param(
            Usage(requests=1, prompt_tokens=7, completion_tokens=1, cost_usd=None),
            Usage(requests=1, prompt_tokens=7, completion_tokens=1, cost_usd=0.1),
            id="no-price-came",
        ),
        pytest.param(spend(0.000_000_000_1), Usage(requests=1, cost_usd=0.000_000_001), id="rounded-up"),
        pytest.param(Usage(), Usage(), id="never-sent"),
    ],
)
def test_what_nobody_knows_stays_spent(usage: Usage | None, spent: Usage) -> None:
    """With all that was reserved for it."""

    async def story() -> Usage:
        budget = Budget(Limits(budget_usd=1))
        budget.settle(await budget.reserve(MODEL, SMALL), usage)
        assert budget.remaining == {"usd": pytest.approx(1 - (spent.cost_usd or 0))}
        return budget.spent

    assert run(story()) == spent


@pytest.mark.parametrize(
    ("ceiling", "usage", "cost_usd"),
    [
        pytest.param(None, None, None, id="nothing-counted-and-lost"),
        pytest.param(CostBound(prompt_tokens=1), Usage(requests=1, cost_usd=None), None, id="no-price"),
        pytest.param(None, spend(0.5), 0.5, id="the-provider-told"),
    ],
)
def test_without_a_price_the_sum_is_unknown(ceiling: CostBound | None, usage: Usage | None, cost_usd: float) -> None:
    """Rather than too low; there is no cap to hold then."""

    async def story() -> Usage:
        budget = Budget(Limits(budget_requests=5))
        budget.settle(await budget.reserve(MODEL, ceiling), usage)
        assert budget.remaining == {"requests": 4}
        return budget.spent

    assert run(story()).cost_usd == cost_usd


def test_a_call_that_took_more_teaches_to_reserve_more() -> None:
    """The highest share counts, for this model alone; what was really used counts in full."""

    async def story() -> list[float]:
        budget = Budget(Limits(budget_tokens=1000))
        left: list[float] = []
        for used in (8, 24, 16):
            call = await budget.reserve(MODEL, SMALL)
            left.append(budget.remaining["tokens"])
            budget.settle(call, Usage(requests=1, prompt_tokens=used, completion_tokens=used))
        await budget.reserve(MODEL, SMALL)
        left.append(budget.remaining["tokens"])
        await budget.reserve("another", SMALL)
        return [*left, budget.remaining["tokens"]]

    assert run(story()) == [970, 954, 888, 856, 826]


def test_an_estimate_that_was_wrong_shows() -> None:
    """Nothing more is sent after it."""

    async def story() -> None:
        budget = Budget(Limits(budget_usd=0.1))
        budget.settle(await budget.reserve(MODEL, SMALL), spend(0.4))
        assert (budget.spent.cost_usd, budget.remaining) == (0.4, {"usd": 0})
        with pytest.raises(BudgetError, match=r"0\.4 USD are spent, and this call could take 0\.4 USD"):
            await budget.reserve(MODEL, SMALL)

    run(story())


def test_a_cap_of_nothing_sends_nothing() -> None:
    """Not even a first call."""
    with pytest.raises(BudgetError):
        run(Budget(Limits(budget_requests=0)).reserve(MODEL, None))


def test_a_share_that_is_refused_is_told_as_all_of_the_budget() -> None:
    """By the cap that refused it, with what the whole run has; another error stays as it is."""
    budget = Budget(Limits(budget_requests=10, budget_tokens=1000))
    share = budget.reserve_share(2)
    nothing = Budget(share.limits.model_copy(update={"budget_requests": 0}))
    with pytest.raises(BudgetError, match=r"limits\.budget_requests is 0 requests:") as caught:
        run(nothing.reserve(MODEL, CostBound(prompt_tokens=1, completion_tokens=1)))
    assert "limits.budget_requests is 10 requests:" in str(budget.as_whole_budget_error(caught.value))
    assert str(budget.as_whole_budget_error(BudgetError("something else"))) == "something else"


def test_a_call_without_a_maximum_is_not_sent_under_a_cap() -> None:
    """Whatever a fallback or an executor of the user's says at the last moment."""
    with pytest.raises(BudgetError, match=r"limits\.budget_tokens can't be held: nothing bounds the answers"):
        run(Budget(Limits(budget_tokens=10**6)).reserve(MODEL, CostBound(prompt_tokens=1)))


@given(
    costs=st.lists(st.integers(1, 100), min_size=1, max_size=60),
    abreast=st.integers(1, 8),
    fails=st.sets(st.integers(0, 20)),
)
def test_nothing_is_spent_that_is_not_noted(costs: list[int], abreast: int, fails: set[int]) -> None:
    """Whoever finds the last note knows the most that was spent; a call that can't be noted isn't sent."""
    marks = [{"usd": 0, "requests": 0}]
    tries: list[dict[str, int]] = []

    async def note(more: dict[str, int]) -> None:
        await asyncio.sleep(1)
        tries.append(more)
        if len(tries) in fails:
            raise TransientError("no room on the disk")
        marks.append(more)

    async def story() -> None:
        budget, places = Budget(Limits(budget_usd=2.0, budget_requests=40)), asyncio.Semaphore(abreast)
        left: list[Exception] = []
        budget.journal_to(note)

        async def call(cents: int) -> None:
            async with places:
                try:
                    held = await budget.reserve(
                        MODEL, CostBound(prompt_tokens=1, completion_tokens=1, cost_usd=cents / 500)
                    )
                except (BudgetError, TransientError) as error:
                    left.append(error)
                    return
                await asyncio.sleep(1)
                budget.settle(held, spend(cents / 500))
                assert budget.spent_amount.nano_usd <= marks[-1]["usd"] <= 2 * 10**9
                assert budget.spent_amount.requests <= marks[-1]["requests"] <= 40

        await asyncio.gather(*map(call, costs))
        assert budget.spent_amount.requests + len(left) == len(costs)

    run(story())
    assert len(tries) <= len(costs)


class AnyInterleaving(RuleBasedStateMachine):
    """Calls of two models ask, are granted, settled, lost and cancelled in any order.

    What they really take is known here: at most what was counted, scaled as the budget says.
    """

    def __init__(self) -> None:
        """Start with caps that a few calls reach."""
        super().__init__()
        self.loop = VirtualLoop()
        self.limits = Limits(budget_usd=1.0, budget_tokens=400, budget_requests=12)
        self.budget = Budget(self.limits)
        self.waiting: list[tuple[asyncio.Task[Reservation], CostBound]] = []
        self.under_way: list[tuple[Reservation, CostBound]] = []
        self.requests = self.tokens = 0
        self.usd = Fraction(0)

    def teardown(self) -> None:
        """Leave no task behind."""
        for task, _ in self.waiting:
            task.cancel()
        self.turn()
        self.loop.close()

    def turn(self) -> None:
        """Let the loop do what it can; sort out who was granted."""

        async def a_while() -> None:
            await asyncio.sleep(1)

        self.loop.run_until_complete(a_while())
        for place in list(self.waiting):
            task, ceiling = place
            if task.done():
                self.waiting.remove(place)
                if not task.cancelled() and not task.exception():
                    self.under_way.append((task.result(), ceiling))

    @rule(
        model=st.sampled_from("ab"),
        prompt=st.integers(0, 60),
        completion=st.integers(0, 60),
        usd=st.floats(0, 0.3),
        cancel=st.booleans(),
    )
    def ask(self, model: str, prompt: int, completion: int, usd: float, *, cancel: bool) -> None:
        """A call comes; it may be cancelled as it is granted."""
        ceiling = CostBound(prompt_tokens=prompt, completion_tokens=completion, cost_usd=usd)
        task = self.loop.create_task(self.budget.reserve(model, ceiling))
        self.waiting.append((task, ceiling))
        if cancel:
            self.loop.call_later(0, task.cancel)
        self.turn()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), make_room=st.booleans())
    def cancel(self, data: st.DataObject, *, make_room: bool) -> None:
        """A call that waits is cancelled, perhaps in the same moment in which room is made for it."""
        task, _ = data.draw(st.sampled_from(self.waiting))
        if self.under_way and make_room:
            self.end(0, self.under_way.pop())
        task.cancel()
        self.turn()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), share=st.sampled_from([Fraction(0), Fraction(1, 3), Fraction(1), Fraction(5, 4), None]))
    def settle(self, data: st.DataObject, share: Fraction | None) -> None:
        """A call ends, having taken some share of what was counted; or nobody knows."""
        place = data.draw(st.sampled_from(self.under_way))
        self.under_way.remove(place)
        self.end(share, place)
        self.turn()

    def end(self, share: Fraction | int | None, place: tuple[Reservation, CostBound]) -> None:
        """Settle a call, and count what it really took."""
        call, ceiling = place
        real = Fraction(5, 4) if share is None else share
        took = Usage(
            requests=1,
            prompt_tokens=math.floor(ceiling.prompt_tokens * real),
            completion_tokens=math.floor((ceiling.completion_tokens or 0) * min(real, 1)),
            cost_usd=float(Fraction(ceiling.cost_usd or 0) * real),
        )
        self.budget.settle(call, None if share is None else took)
        self.requests += 1
        self.tokens += took.tokens
        self.usd += Fraction(ceiling.cost_usd or 0) * real

    @invariant()
    def never_exceeded(self) -> None:
        """By what was really spent, nor by what the budget says."""
        said = self.budget.spent
        assert max(self.requests, said.requests) <= 12
        assert max(self.tokens, said.tokens) <= 400
        assert max(self.usd, said.cost_usd or 0) <= 1

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """Who waits, waits for a call under way."""
        assert self.under_way or not self.waiting

    @invariant()
    def nothing_leaks(self) -> None:
        """What is neither spent nor held is left."""
        held = sum(call.reserved.requests for call, _ in self.under_way)
        assert self.budget.remaining["requests"] == 12 - self.requests - held
        assert self.budget.spent.requests == self.requests


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
