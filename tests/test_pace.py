"""The pace: as fast as a provider takes it, hardly ever refused, and fair."""

from __future__ import annotations

import asyncio
import math
import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch.calls.rate_limiter import RateLimiter
from prefect_dispatch.errors import BusyError, PatienceError
from prefect_dispatch.models.limits import Limits
from tests.providers import ALLOWED, Bucket, FixedWindow, Provider, SlidingWindow
from tests.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_dispatch.calls.rate_limiter import PendingCall

MINUTES = 10
PROVIDERS: dict[str, Callable[[], Provider]] = {
    "fixed-window": FixedWindow,
    "fixed-window-nearly-over": lambda: FixedWindow(past_s=50),
    "sliding-window": SlidingWindow,
    "bucket-of-10": lambda: Bucket(10),
    "bucket-of-600": lambda: Bucket(600),
}
HINTS: dict[str, Callable[[float], float | None]] = {
    "no-hint": lambda _: None,
    "exact-hint": lambda refusal_s: refusal_s,
    "whole-seconds": math.ceil,
}


class Seen:
    """When a provider took a request, and when it refused one."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.passed: list[float] = []
        self.refused: list[float] = []


async def simulate(
    provider: Provider, limits: Limits, latency_s: float, hint: Callable[[float], float | None], minutes: int = MINUTES
) -> Seen:
    """Ask a provider as fast as the pace lets `limits.concurrency` callers; leave out the first minute."""
    loop = asyncio.get_running_loop()
    pace = RateLimiter("simulated", limits)
    seen = Seen()

    async def ask_on() -> None:
        while True:
            turn = await pace.enter()
            await asyncio.sleep(latency_s / 2)
            refusal_s = provider.refusal_s(loop.time())
            if loop.time() >= 60:
                (seen.passed if refusal_s is None else seen.refused).append(loop.time())
            await asyncio.sleep(latency_s / 2)
            if refusal_s is None:
                pace.on_success(turn)
            else:
                pace.on_rejected(turn, BusyError("429", retry_after_s=hint(refusal_s)))

    callers = [asyncio.create_task(ask_on()) for _ in range(limits.concurrency)]
    await asyncio.sleep(minutes * 60)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return seen


def check_learned(provider: str, hint: str, concurrency: int, latency_s: float, seed: int) -> None:
    """Nine tenths of what is allowed, and fewer than one in fifty refused."""
    random.seed(seed)
    seen = run(simulate(PROVIDERS[provider](), Limits(concurrency=concurrency), latency_s, HINTS[hint]))
    allowed = min(ALLOWED, concurrency / latency_s * 60) * (MINUTES - 1)
    assert len(seen.passed) >= 0.9 * allowed
    assert len(seen.refused) < 0.02 * (len(seen.refused) + len(seen.passed))


@pytest.mark.slow
@pytest.mark.parametrize("hint", ["no-hint", "whole-seconds"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_rate_that_nobody_stated_is_learned(provider: str, hint: str) -> None:
    """However a provider counts, and whether or not it says when to come back."""
    check_learned(provider, hint, concurrency=50, latency_s=1.0, seed=1)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("latency_s", [0.05, 1.0])
@pytest.mark.parametrize("concurrency", [8, 50, 200])
@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_rate_is_learned_at_any_speed(
    provider: str, hint: str, concurrency: int, latency_s: float, seed: int
) -> None:
    """Few slow calls or many quick ones."""
    check_learned(provider, hint, concurrency, latency_s, seed)


@pytest.mark.slow
@pytest.mark.parametrize(("concurrency", "latency_s"), [(8, 0.05), (200, 1.0)])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_stated_rate_is_used_and_not_exceeded(provider: str, concurrency: int, latency_s: float) -> None:
    """Nothing is refused, and 95 % are used."""
    limits = Limits(concurrency=concurrency, requests_per_minute=ALLOWED)
    seen = run(simulate(PROVIDERS[provider](), limits, latency_s, HINTS["no-hint"], minutes=4))
    assert not seen.refused
    assert len(seen.passed) >= 0.95 * ALLOWED * 3


class AtRandom:
    """Refuses one call in a hundred, whatever the rate."""

    def refusal_s(self, now: float) -> float | None:
        """Return a moment, now and then."""
        del now
        return 0.5 if random.random() < 0.01 else None


@pytest.mark.slow
@pytest.mark.parametrize("hint", ["no-hint", "whole-seconds"])
def test_refusals_at_random_starve_nobody(hint: str) -> None:
    """They don't grow fewer with the calls: after a while they are borne."""
    random.seed(1)
    seen = run(simulate(AtRandom(), Limits(concurrency=50), 1.0, HINTS[hint]))
    last = [moment for moment in seen.passed if moment > 60 * (MINUTES - 1)]
    assert len(last) > 300


REFUSED_TWICE = {
    "in-a-row-at-once": range(9, 20),
    "in-a-row-soon": range(20, 31),
    "in-a-row-late": range(100, 111),
    "here-and-there": range(5, 300, 27),
}
"""Which of 300 items are."""


async def refuse_twice(items: range, concurrency: int, latency_s: float) -> float:
    """Ask for 300 items; return for how long, where a refusal says to wait for a second."""
    pace = RateLimiter("m", Limits(concurrency=concurrency))
    refusals = dict.fromkeys(items, 2)
    left = iter(range(300))

    async def ask_on() -> None:
        for item in left:
            while True:
                turn = await pace.enter()
                await asyncio.sleep(latency_s * random.uniform(0.8, 1.2))
                if not refusals.get(item):
                    break
                refusals[item] -= 1
                pace.on_rejected(turn, BusyError("429", retry_after_s=1))
            pace.on_success(turn)

    await asyncio.gather(*(ask_on() for _ in range(concurrency)))
    return now()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("concurrency", "latency_s"), [(10, 0.02), (10, 0.5), (50, 0.5)])
@pytest.mark.parametrize("items", REFUSED_TWICE)
def test_a_few_refusals_cost_little_more_than_what_they_say(
    items: str, concurrency: int, latency_s: float, seed: int
) -> None:
    """Whatever rate is learned of them, it isn't kept: all of it within three times as long, not in an hour."""
    random.seed(seed)
    told_s = 22 + 300 * latency_s / concurrency
    assert run(refuse_twice(REFUSED_TWICE[items], concurrency, latency_s)) < 3 * told_s


def test_a_provider_is_asked_again_when_it_said_and_not_later() -> None:
    """Ten times; if it goes on to say so, it's asked less and less often."""

    async def story() -> list[float]:
        pace = RateLimiter("m", Limits())
        tries: list[float] = []
        for _ in range(60):
            turn = await pace.enter(patience_s=math.inf)
            tries.append(now())
            pace.on_rejected(turn, BusyError("429", retry_after_s=1))
        return tries

    pauses = [later - sooner for sooner, later in pairwise(run(story()))]
    assert pauses[:10] == pytest.approx([1] * 10)
    assert min(pauses[-10:]) >= 6
    assert max(pauses) <= 10


def now() -> float:
    """Return the time of the loop."""
    return asyncio.get_running_loop().time()


async def starts(pace: RateLimiter, calls: int, tokens: Callable[[int], int] = lambda _: 0) -> list[tuple[float, int]]:
    """Start calls that take no time; return when each started, and which."""
    started: list[tuple[float, int]] = []

    async def one(number: int) -> None:
        turn = await pace.enter(tokens(number))
        started.append((round(now(), 3), number))
        pace.on_success(turn)

    await asyncio.gather(*map(one, range(calls)))
    return started


async def later(seconds: float, pace: RateLimiter, turn: PendingCall, error: BusyError) -> None:
    """Refuse a call after some time."""
    await asyncio.sleep(seconds)
    pace.on_rejected(turn, error)


def test_all_wait_as_long_as_one_was_told_then_one_tries_then_the_rest_go() -> None:
    """To the second; whoever waits already and whoever comes later."""

    async def story() -> list[float]:
        pace = RateLimiter("m", Limits(concurrency=3))
        turns = [await pace.enter() for _ in range(3)]
        started: list[float] = []

        async def one(at: float) -> None:
            await asyncio.sleep(at)
            turn = await pace.enter()
            started.append(now())
            await asyncio.sleep(1)
            pace.on_success(turn)

        waiting = [asyncio.create_task(one(at)) for at in (0, 0, 5)]
        await asyncio.sleep(1)
        for turn, told_s in zip(turns, (7, 3, 5), strict=True):
            pace.on_rejected(turn, BusyError("429", retry_after_s=told_s))
        await asyncio.gather(*waiting)
        return started

    first, second, third = run(story())
    assert first == 8
    assert 9 <= second < third


@pytest.mark.parametrize("told_s", [None, 0.0, -1.0, math.nan])
def test_without_a_usable_hint_the_pauses_double(told_s: float | None) -> None:
    """Up to eight seconds, a quarter more or less."""

    async def story() -> list[float]:
        pace = RateLimiter("m", Limits(concurrency=1, wait_s=60))
        tries: list[float] = []
        try:
            while True:
                turn = await pace.enter(patience_s=60 - now())
                tries.append(now())
                pace.on_rejected(turn, BusyError("429", retry_after_s=told_s))
        except PatienceError:
            return tries

    tries = run(story())
    for pause, expected in zip(
        (later - sooner for sooner, later in pairwise(tries)), (0.5, 1, 2, 4, 8, 8), strict=False
    ):
        assert 0.75 * expected <= pause <= 1.25 * expected
    assert 50 < tries[-1] <= 60


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [("capacity", "raise it, or run it again with mode: live."), ("overloaded", "run again later.")],
)
def test_who_waits_for_a_tier_without_capacity_is_told_of_the_regular_one(kind: str, way_out: str) -> None:
    """Any other refusal would meet live calls, too."""

    async def story() -> str:
        pace = RateLimiter("m in flex", Limits(concurrency=1, wait_s=60))
        pace.on_rejected(await pace.enter(), BusyError("429", retry_after_s=60, kind=kind))
        with pytest.raises(PatienceError) as late:
            await pace.enter(patience_s=1)
        return str(late.value)

    assert run(story()).endswith(way_out)


def test_who_would_wait_too_long_is_told_at_once() -> None:
    """Those who wait, those who come, and not those who may wait longer."""

    async def story() -> list[float]:
        pace = RateLimiter("m", Limits(concurrency=1, wait_s=60))
        turn = await pace.enter()
        waiting = [asyncio.create_task(pace.enter(patience_s=59)) for _ in range(2)]
        patient = asyncio.create_task(pace.enter())
        await asyncio.sleep(1)
        pace.on_rejected(turn, BusyError("503", retry_after_s=60, kind="overloaded"))
        failed = [*await asyncio.gather(*waiting, return_exceptions=True)]
        told = r"'m' accepts no more calls for another .* may still wait: 59\.0 s, of limits\.wait_s 60; raise it"
        with pytest.raises(PatienceError, match=told) as late:
            await pace.enter(patience_s=59)
        for error in (*failed, late.value):
            assert isinstance(error, PatienceError)
            assert error.kind == "overloaded"
        at = now()
        await patient
        return [at, now()]

    assert run(story()) == [1, 61]


@pytest.mark.parametrize("told_s", [61.0, 1e9, 1e20, math.inf])
def test_a_pause_longer_than_any_call_may_wait_is_not_believed(told_s: float) -> None:
    """The provider is tried again after doubling pauses, so that one absurd header fails no other call."""

    async def story() -> tuple[list[float], float]:
        pace = RateLimiter("m", Limits(concurrency=2, wait_s=60))
        absurd, other = await pace.enter(), asyncio.create_task(pace.enter())
        pace.on_rejected(absurd, BusyError("429", retry_after_s=told_s))
        tries: list[float] = []
        pace.on_success(await other)
        try:
            while True:  # the call that is refused again and again
                turn = await pace.enter(patience_s=60 - now())
                tries.append(now())
                pace.on_rejected(turn, BusyError("429", retry_after_s=told_s))
        except PatienceError:
            return tries, now()

    tries, ended = run(story())
    assert len(tries) > 5
    assert 50 < ended <= 60


def test_a_provider_that_stays_busy_is_waited_for_so_long_and_no_longer() -> None:
    """However often it is tried in between: all the time until one passes counts."""

    async def story() -> list[float]:
        pace = RateLimiter("m", Limits(concurrency=1))
        turn = await pace.enter()
        first, second, third = (asyncio.create_task(pace.enter(patience_s=left_s)) for left_s in (4, 10, 18))
        await later(1, pace, turn, BusyError("429", retry_after_s=4))
        turn = await first
        at = [now(), turn.blocked_s]
        await later(2, pace, turn, BusyError("429", retry_after_s=4))
        turn = await second
        at += [now(), turn.blocked_s]
        await later(1, pace, turn, BusyError("429", retry_after_s=8))
        with pytest.raises(PatienceError):
            await third
        return [*at, now()]

    assert run(story()) == [5, 4, 11, 10, 12]


def test_a_stated_pace_is_waited_for_as_long_as_it_takes() -> None:
    """Patience is for providers that refuse."""
    pace = RateLimiter("m", Limits(requests_per_minute=1, wait_s=0))
    assert [round(at) for at, _ in run(starts(pace, 10))] == [round(number * 60 / 0.98) for number in range(10)]


def test_calls_start_in_the_order_in_which_they_came() -> None:
    """No small call passes a big one."""
    pace = RateLimiter("m", Limits(concurrency=2, tokens_per_minute=1000))
    started = run(starts(pace, 30, lambda number: 900 if number % 7 == 3 else 10))
    assert [number for _, number in started] == list(range(30))


@pytest.mark.parametrize("tokens", [10, 70, 300, 334, 501, 1000])
def test_no_minute_takes_more_tokens_than_stated(tokens: int) -> None:
    """However big the calls are; and as many pass as whole ones fit in."""
    pace = RateLimiter("m", Limits(tokens_per_minute=1000))
    fit = 1000 // tokens
    at = [at for at, _ in run(starts(pace, 3 * fit, lambda _: tokens))]
    for first in at:
        assert sum(tokens for other in at if first <= other < first + 60) <= 1000
    assert at[-1] <= 3 * 60 / 0.98


def test_tokens_that_were_not_taken_are_given_back() -> None:
    """The pace is that of what was used; a call over the stated limit passes alone."""

    async def story() -> list[float]:
        pace = RateLimiter("m", Limits(tokens_per_minute=1000))
        at: list[float] = []
        for used in (500, 100, None, 0):
            turn = await pace.enter(2000)
            at.append(round(now() * 0.98, 3))
            if used == 0:
                pace.on_rejected(turn, BusyError("429", retry_after_s=1))
            else:
                pace.on_success(turn, used)
        await pace.enter(2000)
        return [*at, round(now() * 0.98, 3)]

    assert run(story()) == [0, 30, 36, 156, pytest.approx(156.98)]


def test_a_burst_of_refusals_halves_what_is_under_way_which_then_creeps_back() -> None:
    """By one whenever all of them have passed; a single refusal halves nothing."""

    async def under_way(pace: RateLimiter) -> list[PendingCall]:
        tasks = [asyncio.create_task(pace.enter()) for _ in range(20)]
        await asyncio.sleep(100)
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        return [turn for turn in done if not isinstance(turn, BaseException)]

    async def story(refused: int) -> list[int]:
        pace = RateLimiter("m", Limits(concurrency=8))
        turns = await under_way(pace)
        counts = [len(turns)]
        for turn in turns[:refused]:
            pace.on_rejected(turn, BusyError("429", kind="overloaded"))
        for turn in turns[refused:]:
            pace.on_success(turn)
        pace.on_success(await pace.enter())
        for _ in range(8):
            turns = await under_way(pace)
            counts.append(len(turns))
            for turn in turns:
                pace.on_success(turn)
        return counts

    full, half, *then = run(story(8))
    assert (full, half, then[-1]) == (8, 4, 8)
    assert all(one <= other <= one + 1 for one, other in pairwise([half, *then]))
    assert run(story(1)) == [8] * 9


def test_a_provider_that_is_overloaded_teaches_no_rate() -> None:
    """What passed before says nothing of what it takes later."""

    async def story(kind: str) -> float:
        pace = RateLimiter("m", Limits())
        await starts(pace, 2)
        pace.on_rejected(await pace.enter(), BusyError("busy", retry_after_s=60, kind=kind))
        await starts(pace, 10)
        return now()

    assert run(story("overloaded")) == 60
    assert run(story("rate_limit")) > 80


def test_refusals_before_anything_passed_teach_no_rate() -> None:
    """Others used up what the provider allows: that says nothing of it."""

    async def story() -> float:
        pace = RateLimiter("m", Limits())
        for _ in range(3):
            pace.on_rejected(await pace.enter(), BusyError("429", retry_after_s=20))
        await starts(pace, 10)
        return now()

    assert run(story()) == 60


@pytest.mark.parametrize("told_s", [5e-324, 1e-9])
def test_a_hint_of_next_to_nothing_breaks_nothing(told_s: float) -> None:
    """The next try may come at once."""

    async def story() -> float:
        pace = RateLimiter("m", Limits())
        await starts(pace, 2)
        pace.on_rejected(await pace.enter(), BusyError("429", retry_after_s=told_s))
        await starts(pace, 10)
        return now()

    assert run(story()) < 0.1


def test_a_rate_learned_far_too_low_is_not_kept() -> None:
    """Three calls passed in a minute that others had used up; a hundred times as many are soon let through."""

    async def story() -> float:
        pace = RateLimiter("m", Limits(concurrency=100))
        await starts(pace, 3)
        pace.on_rejected(await pace.enter(), BusyError("429", retry_after_s=60))
        await starts(pace, 1000)
        return now() - 60

    assert 20 < run(story()) < 120


def test_a_try_that_takes_long_holds_nobody_back() -> None:
    """A refusal comes fast: who isn't refused within twice the time that one took is being answered."""

    async def story() -> list[float]:
        pace = RateLimiter("m", Limits())
        await later(0.5, pace, await pace.enter(), BusyError("429", retry_after_s=10))
        trying = await pace.enter()
        at = [now()]
        second = await pace.enter()
        at.append(now())
        pace.on_success(second)
        pace.on_rejected(trying, BusyError("429", retry_after_s=7))  # it was one after all
        await pace.enter()
        return [*at, now()]

    first, second, third = run(story())
    assert (first, third - second) == (10.5, 7)
    assert second >= 11.5


@pytest.mark.parametrize("end", ["cancelled", "lost"])
def test_a_try_that_comes_to_nothing_is_followed_by_another(end: str) -> None:
    """At once: the time to wait is over."""

    async def story() -> float:
        pace = RateLimiter("m", Limits())
        pace.on_rejected(await pace.enter(), BusyError("429", retry_after_s=10))
        trying = asyncio.create_task(pace.enter())
        await asyncio.sleep(5 if end == "cancelled" else 10.1)
        if end == "cancelled":
            trying.cancel()
        else:
            pace.on_unknown(await trying)
        await pace.enter()
        return now()

    assert run(story()) == (10 if end == "cancelled" else 10.1)


def test_a_late_refusal_counts_only_for_what_it_says() -> None:
    """A call of before the block tells nothing new, unless how long to wait."""

    async def story(told_s: float | None) -> float:
        pace = RateLimiter("m", Limits())
        one, two = await pace.enter(), await pace.enter()
        pace.on_rejected(one, BusyError("429", retry_after_s=1))
        pace.on_success(await pace.enter())
        began = now()
        pace.on_rejected(two, BusyError("429", retry_after_s=told_s))
        pace.on_success(await pace.enter())
        pace.on_success(await pace.enter())
        return now() - began

    assert run(story(None)) < 5
    assert 30 <= run(story(30)) < 35


def test_time_in_which_nobody_asked_teaches_nothing() -> None:
    """A rest doesn't make a provider slower."""

    async def story(rest_s: float) -> float:
        pace = RateLimiter("m", Limits())
        await starts(pace, 50)
        await asyncio.sleep(rest_s)
        turn = await pace.enter()
        await later(5, pace, turn, BusyError("429", retry_after_s=5))
        began = now()
        await starts(pace, 10)
        return now() - began

    assert run(story(3600)) == pytest.approx(run(story(0)))


@given(
    st.lists(
        st.tuples(st.floats(0, 20), st.floats(0, 30), st.sampled_from(["passed", "refused", "lost"])),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 5),
)
@settings(max_examples=150, deadline=None)
def test_nobody_who_is_cancelled_takes_a_place_along(calls: list[tuple[float, float, str]], concurrency: int) -> None:
    """Wherever it is cancelled: in the line, as its turn comes, under way; the limit holds all along."""

    async def story() -> None:
        pace = RateLimiter("m", Limits(concurrency=concurrency, wait_s=10**5, requests_per_minute=600))
        under_way = 0

        async def one(end: str) -> None:
            nonlocal under_way
            turn = await pace.enter()
            under_way += 1
            assert under_way <= concurrency
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                end = "lost"
                raise
            finally:
                under_way -= 1
                ends: dict[str, Callable[[], None]] = {
                    "passed": lambda: pace.on_success(turn),
                    "refused": lambda: pace.on_rejected(turn, BusyError("429")),
                    "lost": lambda: pace.on_unknown(turn),
                }
                ends[end]()

        async def cancelled(start: float, after: float, end: str) -> None:
            await asyncio.sleep(start)
            task = asyncio.create_task(one(end))
            await asyncio.sleep(after)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        await asyncio.gather(*(cancelled(*call) for call in calls))
        for _ in range(concurrency * concurrency):  # gets the window back to its full size
            pace.on_success(await pace.enter())
        await asyncio.gather(*(pace.enter() for _ in range(concurrency)))

    run(story())
