"""The gate: budget and pace around each call, whatever becomes of it."""

from __future__ import annotations

import asyncio
import math
import random
from datetime import timedelta

import pytest
from pydantic import ValidationError

from prefect_dispatch.calls.attempt import Checkpoint, run_attempt
from prefect_dispatch.calls.budget import require_enforceable_limits
from prefect_dispatch.calls.call_gate import CallGate, ConcurrencySlot
from prefect_dispatch.errors import BudgetError, BusyError, ExecutorError, JobError, PatienceError, TransientError
from prefect_dispatch.executors.base import Ask, CostBound, Executor, Reply
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Attempt, Usage
from tests.virtual_time import run

BRIEF = Brief(name="label", instructions="Label it.")
ASK = Ask(brief=BRIEF, item=Item(key="a", value="text"))
CEILING = CostBound(prompt_tokens=8, completion_tokens=20, cost_usd=0.08)
TOOK = Usage(requests=1, prompt_tokens=5, completion_tokens=5, cost_usd=0.01)
HELD = Usage(requests=1, prompt_tokens=10, completion_tokens=20, cost_usd=0.1, unsettled=1)
CAPPED = Limits(budget_usd=1, wait_s=60)


class Plain:
    """An executor that says nothing beforehand."""

    fingerprint = "plain"

    async def answer(self, ask: Ask) -> Reply:
        """Answer at once."""
        return Reply(value="yes", usage=TOOK)


class Counted(Plain):
    """One that says what a call can take."""

    def __init__(self, name: str = "counted", ceiling: CostBound | None = CEILING) -> None:
        """Keep what it says; None: nobody may ask for it."""
        self.name = name
        self.most = ceiling

    def cost_bound(self, ask: Ask) -> CostBound:
        """Return the most that a call can take."""
        assert self.most
        return self.most


class Fallbacks(Counted):
    """One that asks others where it fails."""

    def __init__(self, *tiers: Executor) -> None:
        """Keep the others."""
        super().__init__()
        self.fallback_chain = tiers


async def asked(gate: CallGate, executor: Executor, error: BaseException | None = None) -> float:
    """Make a call that takes a second; return when it was sent."""
    async with gate.call(executor, ASK) as call:
        sent = asyncio.get_running_loop().time()
        await asyncio.sleep(1)
        if error:
            raise error
        call.usage = (await executor.answer(ASK)).usage
    return sent


@pytest.mark.parametrize(
    ("error", "spent"),
    [
        pytest.param(None, TOOK, id="answered"),
        pytest.param(TransientError("500", usage=TOOK), TOOK, id="failed-and-told"),
        pytest.param(TransientError("500"), HELD, id="failed-and-not-told"),
        pytest.param(BusyError("429"), Usage(requests=1), id="refused"),
        pytest.param(BusyError("429", usage=TOOK), TOOK, id="refused-in-the-middle"),
        pytest.param(TimeoutError(), HELD, id="timed-out"),
        pytest.param(KeyboardInterrupt(), HELD, id="interrupted"),
        pytest.param(asyncio.CancelledError(), HELD, id="cancelled"),
    ],
)
def test_every_way_out_settles_the_call(error: BaseException | None, spent: Usage) -> None:
    """With what is known to have been spent, or with all that was reserved; the place is free again."""

    async def story() -> Usage:
        gate = CallGate(CAPPED.model_copy(update={"concurrency": 1}))
        if error:
            with pytest.raises(type(error)):
                async with gate.call(Counted(), ASK):
                    raise error
        else:
            await asked(gate, Counted())
        seen = gate.budget.spent
        await asked(gate, Counted())
        assert gate.budget.remaining["usd"] == pytest.approx(1 - (spent.cost_usd or 0) - 0.01)
        return seen

    assert run(story()) == spent


def test_a_caller_that_says_nothing_spent_everything() -> None:
    """An answer without a usage is no free one."""

    async def story() -> Usage:
        gate = CallGate(CAPPED)
        async with gate.call(Counted(), ASK):
            pass
        return gate.budget.spent

    assert run(story()) == HELD


def test_usage_that_came_before_a_failure_counts() -> None:
    """Once a reply is there, what it took is known."""

    async def story() -> Usage:
        gate = CallGate(CAPPED)
        call = gate.call(Counted(), ASK)
        with pytest.raises(ExecutorError):  # noqa: PT012 -- what is raised within is the point
            async with call:
                call.usage = TOOK
                raise ExecutorError("The answer is nonsense.")
        return gate.budget.spent

    assert run(story()) == TOOK


def test_a_refused_call_makes_all_others_of_its_model_wait() -> None:
    """And those of no other model."""

    async def story() -> tuple[float, float, float, float]:
        gate = CallGate(Limits())
        with pytest.raises(BusyError):
            await asked(gate, Counted("one"), BusyError("429", retry_after_s=30))
        same, again = asked(gate, Counted("one", None)), gate.call(Counted("one"), ASK)
        other, plain = asked(gate, Counted("two")), asked(gate, Plain())
        times = await asyncio.gather(same, other, plain)
        async with again:
            pass
        assert again.sent
        assert (again.waited_s, again.blocked_s) == (0, 0)
        return (*times, gate.waited_s)

    assert run(story()) == (31, 1, 1, 30)


def test_a_call_that_has_no_patience_left_costs_nothing() -> None:
    """It says that it was never sent, and gives back what was reserved for it."""

    async def story() -> None:
        gate = CallGate(CAPPED)
        with pytest.raises(BusyError):
            await asked(gate, Counted(), BusyError("429", retry_after_s=60))
        hurried, patient = gate.call(Counted(), ASK, wait_s=59), gate.call(Counted(), ASK)
        with pytest.raises(PatienceError, match=r"may still wait: 59\.0 s, of limits\.wait_s 60"):
            await hurried.__aenter__()
        assert not hurried.sent
        assert gate.budget.spent == Usage(requests=1)
        async with patient:
            assert (patient.sent, patient.blocked_s, patient.waited_s) == (True, 60, 60)

    run(story())


def test_a_call_that_is_cancelled_while_it_waits_costs_nothing() -> None:
    """Neither in the line for the budget, nor in that for its turn."""

    async def story() -> Usage:
        gate = CallGate(Limits(budget_usd=0.2, concurrency=1))
        calls = [asyncio.create_task(asked(gate, Counted())) for _ in range(4)]
        await asyncio.sleep(0.5)
        for call in calls[1:]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert gate.budget.remaining == {"usd": 0.19}
        return gate.budget.spent

    assert run(story()) == TOOK


def test_a_call_over_budget_is_never_sent() -> None:
    """Nor does it wait for its turn."""

    async def story() -> None:
        gate = CallGate(Limits(budget_usd=0.09))
        with pytest.raises(BudgetError):
            await asked(gate, Counted())
        assert gate.budget.spent == Usage()

    run(story())


def test_tokens_are_paced_by_what_a_call_can_take_and_corrected_by_what_it_took() -> None:
    """Of 300 tokens a minute, ten calls of 30 at most; of those that took 10, thirty."""

    async def story() -> list[float]:
        gate = CallGate(Limits(tokens_per_minute=300))
        times = [await asked(gate, Counted()) for _ in range(3)]
        with pytest.raises(ExecutorError):
            await asked(gate, Counted(), TransientError("cut off", usage=Usage(requests=1, unsettled=1)))
        return [*times, await asked(gate, Counted())]

    gap = 60 / 0.98
    times = [0, gap / 30, gap / 15, gap / 5]
    assert run(story()) == pytest.approx(times)


def test_a_closed_gate_lets_nobody_through() -> None:
    """Neither who comes nor who waits; who is under way goes on, and nothing stays reserved."""

    async def story() -> Usage:
        gate = CallGate(CAPPED.model_copy(update={"concurrency": 1}))
        first, waiting = (asyncio.create_task(asked(gate, Counted())) for _ in range(2))
        await asyncio.sleep(0.5)
        gate.close()
        await first
        for late in (waiting, asked(gate, Counted())):
            with pytest.raises(ExecutorError, match="Interrupted") as error:
                await late
            assert error.value.kind == "interrupted"
        assert gate.budget.remaining == {"usd": 0.99}
        return gate.budget.spent

    assert run(story()) == TOOK


def test_calls_that_a_provider_took_are_counted() -> None:
    """Answered or failed, but not refused; each model's apart."""

    async def story() -> tuple[int, int]:
        gate = CallGate(Limits())
        one, other = Counted("one"), Counted("other")
        for error in (None, TransientError("500"), BusyError("429"), TimeoutError()):
            await asyncio.gather(asked(gate, one, error), return_exceptions=True)
        await asked(gate, other)
        return gate.processed_calls(one), gate.processed_calls(other)

    assert run(story()) == (2, 1)


def test_executors_may_be_other_ones_each_time() -> None:
    """They share what their names share, however many there are."""

    async def story() -> int:
        gate = CallGate(Limits())
        for _ in range(200):
            await asked(gate, Counted("one"))
        return gate.processed_calls(Counted("one"))

    assert run(story()) == 200


COUNTS = Counted("m")
UNPRICED = Counted("m", CEILING.model_copy(update={"cost_usd": None}))
ENDLESS = Counted("m", CEILING.model_copy(update={"completion_tokens": None, "cost_usd": None}))


@pytest.mark.parametrize(
    ("limits", "executor", "way_out"),
    [
        pytest.param({"budget_usd": 1}, COUNTS, None, id="usd"),
        pytest.param({"budget_usd": 1}, UNPRICED, "usd.*'m' is unknown; give it usd_per_million, or", id="no-price"),
        pytest.param({"budget_usd": 1}, ENDLESS, "usd .*bounds the answers of 'm'; set max_tokens", id="no-maximum"),
        pytest.param({"budget_tokens": 1}, UNPRICED, None, id="tokens"),
        pytest.param({"budget_tokens": 1}, ENDLESS, "_tokens .*; set max_tokens among its", id="tokens-no-maximum"),
        pytest.param({"budget_tokens": 1}, Plain(), r"'Plain' .*; set limits\.budget_requests", id="not-counted"),
        pytest.param({"budget_requests": 1}, Plain(), None, id="requests"),
        pytest.param({"requests_per_minute": 1}, Plain(), None, id="pace"),
        pytest.param({"tokens_per_minute": 1}, ENDLESS, None, id="token-pace"),
        pytest.param({"tokens_per_minute": 1}, Plain(), r"; set limits\.requests_per_minute", id="pace-not-counted"),
        pytest.param({"budget_usd": 1}, Fallbacks(COUNTS, UNPRICED), "price of 'm' is unknown", id="fallback"),
        pytest.param({"budget_usd": 1}, Fallbacks(COUNTS), None, id="good-fallback"),
    ],
)
def test_a_limit_that_cannot_be_held_is_refused_beforehand(
    limits: dict[str, int], executor: Executor, way_out: str | None
) -> None:
    """With the way out; nothing is spent on it."""
    if way_out is None:
        require_enforceable_limits(Limits.model_validate(limits), executor, [BRIEF])
    else:
        with pytest.raises(JobError, match=f"limits.*{way_out}"):
            require_enforceable_limits(Limits.model_validate(limits), executor, [BRIEF])


def test_without_briefs_nothing_is_asked() -> None:
    """And so nothing has to be held."""
    require_enforceable_limits(Limits(budget_usd=1), Plain(), [])


@pytest.mark.parametrize("broken", [{"cost_usd": math.inf}, {"cost_usd": -0.1}, {"prompt_tokens": -1}])
def test_a_maximum_that_is_none_is_no_ceiling(broken: dict[str, float]) -> None:
    """What an executor of the user's says can't make room that isn't there."""
    with pytest.raises(ValidationError):
        CostBound.model_validate({**CEILING.model_dump(), **broken})


@pytest.mark.parametrize("usd", [math.inf, math.nan, -1.0])
def test_money_is_finite(usd: float) -> None:
    """A budget without an end is none."""
    with pytest.raises(ValidationError):
        Limits(budget_usd=usd)
    with pytest.raises(ValidationError):
        Usage(cost_usd=usd)


async def interleaving(chance: random.Random) -> None:
    """Run some calls that fail, wait, are refused and cancelled at any moment; look that no cap was exceeded."""
    limits = Limits(budget_usd=0.4, budget_tokens=130, budget_requests=7, concurrency=3, wait_s=20)
    gate = CallGate(limits)
    real: list[Usage] = []

    async def one(executor: Executor) -> None:
        await asyncio.sleep(chance.choice((0, 0, 1, 2.5)))
        async with gate.call(executor, ASK) as call:
            took = Usage(
                requests=1,
                prompt_tokens=chance.randint(0, 10),
                completion_tokens=chance.randint(0, 20),
                cost_usd=chance.randint(0, 10**8) / 10**9,
            )
            real.append(took)
            await asyncio.sleep(chance.choice((0, 0, 1, 2.5)))
            end = chance.random()
            if end < 0.2:
                real.remove(took)
                raise BusyError("429", retry_after_s=chance.choice((None, 0.5, 5, 30)))
            if end < 0.4:
                raise TransientError("500", usage=chance.choice((None, took)))
            if end < 0.5:
                raise TimeoutError
            call.usage = took

    calls = [asyncio.create_task(one(Counted(chance.choice("ab")))) for _ in range(8)]
    for call in calls:
        if chance.random() < 0.3:
            asyncio.get_running_loop().call_later(chance.choice((0, 0.5, 1, 2.5, 3.5)), call.cancel)
    await asyncio.gather(*calls, return_exceptions=True)
    spent = sum(real, Usage())
    for usage in (spent, gate.budget.spent):
        assert usage.requests <= 7
        assert usage.tokens <= 130
        assert (usage.cost_usd or 0) <= 0.4 + 1e-12
    assert gate.budget.spent.cost_usd is not None
    assert gate.budget.remaining["usd"] == pytest.approx(0.4 - gate.budget.spent.cost_usd)
    assert gate.budget.remaining["tokens"] == 130 - gate.budget.spent.tokens
    assert gate.budget.remaining["requests"] == 7 - gate.budget.spent.requests


def interleavings(seeds: range) -> None:
    """Run as many, each by a seed of its own."""
    for seed in seeds:
        run(interleaving(random.Random(seed)))


def test_no_interleaving_exceeds_a_budget() -> None:
    """Nor leaves anything reserved."""
    interleavings(range(150))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_none_of_ten_thousand_interleavings_exceeds_a_budget() -> None:
    """The same, many times over."""
    interleavings(range(1000, 11_000))


def test_a_place_is_kept_after_a_call_that_failed() -> None:
    """The next call of the same work goes first, and finds it; at the end it is given back, once."""

    async def story() -> list[int]:
        places, wanted = asyncio.Semaphore(1), list[int]()
        turn = ConcurrencySlot(places, lambda: wanted.append(1))
        for _ in range(2):
            with pytest.raises(TransientError):
                async with turn:
                    raise TransientError("cut")
            assert places.locked()
        turn.close()
        turn.close()
        async with turn:
            assert places.locked()
        assert not places.locked()
        return wanted

    assert run(story()) == [1]


class SlowCheckpoint(Checkpoint):
    """A checkpoint that stores a reply only when another attempt has ended."""

    def __init__(self, after: asyncio.Event) -> None:
        """Wait for an event."""
        self._after = after

    async def record_reply(self, tier: int, reply: Reply | None, *, at_once: bool = True) -> None:
        """Wait."""
        await self._after.wait()


class Slow(Plain):
    """An executor whose answer takes a moment."""

    async def answer(self, ask: Ask) -> Reply:
        """Answer after a moment."""
        await asyncio.sleep(0.03)
        return await super().answer(ask)


def test_the_times_of_an_attempt_are_those_of_its_slot() -> None:
    """What follows a call without a slot counts as no time of the attempt, which so ends before the next one starts."""

    async def story() -> None:
        places, second_ended = asyncio.Semaphore(1), asyncio.Event()

        async def attempt(checkpoint: Checkpoint) -> Attempt:
            slot = ConcurrencySlot(places, lambda: None)
            answer = await run_attempt(Slow(), BRIEF, ASK.item, limits=Limits(), checkpoint=checkpoint, slot=slot)
            second_ended.set()
            return answer.attempts[0]

        first, second = await asyncio.gather(attempt(SlowCheckpoint(second_ended)), attempt(Checkpoint()))
        assert first.started
        assert second.started
        rounding = timedelta(seconds=0.003)
        assert first.started + timedelta(seconds=first.seconds + first.waited_s) <= second.started + rounding

    asyncio.run(story())
