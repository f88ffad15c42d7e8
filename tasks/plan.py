"""What a job will take, before anything is spent."""

from __future__ import annotations

import math
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Literal, cast

from prefect_dispatch.bounds import name_of
from prefect_dispatch.executors.base import Abrupt, Countable
from prefect_dispatch.executors.variety import executor_for
from prefect_dispatch.strict import Strict
from prefect_dispatch.tasks.cutting import asks_of, stored_join
from prefect_dispatch.tasks.shelf import Lenient
from prefect_dispatch.tasks.store import stored_answer
from prefect_dispatch.tasks.work import Work, equal_work

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.limits import Limits
    from prefect_dispatch.models import Answer
    from prefect_dispatch.tasks.shelf import Shelf

SAMPLE = 200
"""How many prompts are counted at most; more are projected from these, spread evenly."""
ASSUMED_LATENCY_S = 1.0
ASSUMED_TOKENS_PER_S = 50.0
"""Where nothing was measured yet: a second, then fifty tokens a second."""
NAMED = 5
"""Damaged answers that a note names."""
MOST_UNREAD = 10
"""Records that can't be read, at most: where there are more, nobody knows what is stored."""
WORTHWHILE_S = 20.0
"""Work that takes less than this one after another gains nothing from a fan-out: starting one costs seconds."""

NO_ITEMS = "Nothing to ask: there are no items."


class Plan(Strict):
    """What a job will take."""

    briefs: int
    """How many briefs."""
    items: int
    """How many items."""
    work: int
    """How many (brief, item)."""
    stored: int
    """How many have a stored answer."""
    shared: int
    """How many are equal to another of this job and share its answer."""
    to_ask: int
    """How many are put to an agent; of an item that is too long for it, each part that its brief's rule makes."""
    parts: int = 0
    """How many of those are such parts."""
    prompt_tokens: int | None
    """Tokens to send, the integrator's own among them, without re-asks and retries; empty where nobody can count."""
    completion_tokens: int | None
    """Tokens expected back."""
    cost_usd: float | None
    """US dollars for both; empty where the price is unknown."""
    seconds_in_turn: float
    """Time if one were asked after another."""
    seconds_in_parallel: float
    """Time with the job's concurrency."""
    basis: str
    """What these figures rest on."""
    recommendation: Literal["nothing-to-ask", "not-worth-fanning-out", "fan-out"]
    """What to do."""
    advice: str
    """The same in a sentence."""
    integrator: str = ""
    """What the integrator asks as well, in a sentence; empty where it asks nobody. No time is planned for it."""
    notes: tuple[str, ...] = ()
    """What the limits will stop, and what else to reckon with, a sentence each."""


class Found:
    """The stored answers to the work of a job.

    Attributes:
        answers: By the fingerprint of what they answer.
        shelf: Where they were looked up; a record that can't be read counts as none, and is told.
    """

    def __init__(self, work: Sequence[Work], shelf: Shelf, again: Collection[str] = ()) -> None:
        """Look them up.

        Args:
            work: Every (brief, item).
            shelf: Where answers are stored.
            again: The fingerprints whose stored answers are to be ignored.

        Raises:
            TransientError: If the storage can't be read.
        """
        self.shelf = Lenient(shelf, MOST_UNREAD)
        self.answers: dict[str, Answer] = {}
        for each in work:
            if each.fingerprint in again or each.fingerprint in self.answers:
                continue
            if answer := stored_answer(self.shelf, each) or stored_join(self.shelf, each):
                self.answers[each.fingerprint] = answer

    @property
    def notes(self) -> tuple[str, ...]:
        """What to tell people of damaged records, if there are any."""
        names = [*self.shelf.damaged.values()]
        if not names:
            return ()
        named = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
        what = "1 stored answer was" if len(names) == 1 else f"{len(names)} stored answers were"
        again = "is" if len(names) == 1 else "are"
        return (f"{what} altered or cut off in the store ({named}), and {again} asked again.",)


def estimate(
    work: Sequence[Work], executor: Executor, limits: Limits, stored: Found, *, again: Collection[str] = ()
) -> Plan:
    """Return the plan of some work; nothing is asked.

    Args:
        work: Every (brief, item), in order.
        executor: Who would answer.
        limits: Its concurrency gives the time in parallel.
        stored: The answers that are stored.
        again: The fingerprints whose stored answers are to be ignored.
    """
    groups, found, shelf = equal_work(work), stored.answers, stored.shelf
    wholes = [group[0] for name, group in groups.items() if name not in found]
    known = sum(len(group) for name, group in groups.items() if name in found)
    for who in {work.brief.model: executor_for(work.brief, executor) for work in wholes}.values():
        if isinstance(who, Countable):
            who.require_known()
    asked = [ask for each in wholes for ask in asks_of(each, executor, shelf, afresh=each.fingerprint in again)]
    prompt, completion, cost, counted = _tokens(asked, executor)
    most_s = limits.timeout_s if isinstance(executor, Abrupt) else None
    seconds, timed = _seconds_each(list(found.values()), completion, len(asked), most_s)
    side_by_side = seconds * math.ceil(len(asked) / limits.concurrency)
    paced, rate = _paced(asked, executor, limits, None if completion is None else (prompt or 0) + completion)
    in_turn = round(max(seconds * len(asked), paced), 1)
    recommendation, advice = _advise(len(asked), in_turn) if work else ("nothing-to-ask", NO_ITEMS)
    basis = (counted, timed, rate if paced > side_by_side else "", "re-asks and retries not included", _unread(shelf))
    return Plan(
        briefs=len({each.brief.name for each in work}),
        items=len({each.item.key for each in work}),
        work=len(work),
        stored=known,
        shared=len(work) - known - len(wholes),
        to_ask=len(asked),
        parts=sum(each.brief.part for each in asked),
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_usd=cost,
        seconds_in_turn=in_turn,
        seconds_in_parallel=round(max(side_by_side, paced), 1),
        basis="; ".join(filter(None, basis)),
        recommendation=recommendation,
        advice=advice,
    )


def _tokens(asked: Sequence[Work], executor: Executor) -> tuple[int | None, int | None, float | None, str]:
    if not asked:
        return 0, 0, 0.0, "nothing to count"
    if not isinstance(executor, Countable):
        return None, None, None, "this executor can't count tokens"
    sample = asked[:: max(1, math.ceil(len(asked) / SAMPLE))]
    scale = len(asked) / len(sample)
    models = {each.brief.model: executor_for(each.brief, executor) for each in sample}
    sent = expected = 0
    cost: float | None = 0.0
    for each in sample:
        who = cast("Countable", models[each.brief.model])
        more, price = (who.count_tokens(each.brief, each.item), who.expected_completion_tokens(each.brief)), who.price()
        sent, expected = sent + more[0], expected + more[1]
        cost = None if cost is None or price is None else cost + more[0] * price[0] + more[1] * price[1]
    prompt, completion = round(scale * sent), round(scale * expected)
    cost = None if cost is None else round(scale * cost, 6)
    counted = "all prompts counted" if len(sample) == len(asked) else f"{len(sample)} of {len(asked)} prompts counted"
    return prompt, completion, cost, counted if cost is not None else f"{counted}, price unknown"


def _paced(asked: Sequence[Work], executor: Executor, limits: Limits, tokens: int | None) -> tuple[float, str]:
    """Return the seconds that the stated rates take for the model that is asked most, and which of them does."""
    names = {each.brief.model: name_of(executor_for(each.brief, executor)) for each in asked}
    most = max(Counter(names[each.brief.model] for each in asked).values(), default=0)
    rates = {
        "requests_per_minute": (most, limits.requests_per_minute),
        "tokens_per_minute": ((tokens or 0) * most / max(len(asked), 1), limits.tokens_per_minute),
    }
    seconds = {name: 60 * amount / rate for name, (amount, rate) in rates.items() if rate}
    slowest = max(seconds, key=lambda name: seconds[name], default="")
    return seconds.get(slowest, 0.0), f"time bound by limits.{slowest}"


def _unread(shelf: Lenient) -> str:
    """Return how many records can't be read, and why the first of them can't."""
    return f"{len(shelf.unread)} looked up in vain: {shelf.unread[0]}" if shelf.unread else ""


def _seconds_each(
    stored: Sequence[Answer], completion: int | None, asked: int, most_s: float | None
) -> tuple[float, str]:
    """Return the seconds that an ask takes; of the run of a program nobody knows more than that it will be ended."""
    last = [answer.attempts[-1] for answer in stored if answer.attempts]
    measured = [attempt.seconds for attempt in last if attempt.seconds or attempt.started]  # in a batch: neither
    if measured:
        return median(measured), f"time as measured for {len(measured)} stored answers"
    if most_s is not None:
        return most_s, f"time at most: {most_s:g} s a run, by its time limit"
    each = (completion or 0) / asked if asked else 0.0
    return ASSUMED_LATENCY_S + each / ASSUMED_TOKENS_PER_S, (
        f"time assumed: {ASSUMED_LATENCY_S:g} s a call and {ASSUMED_TOKENS_PER_S:g} tokens a second"
    )


def _advise(asked: int, in_turn: float) -> tuple[Literal["nothing-to-ask", "not-worth-fanning-out", "fan-out"], str]:
    if not asked:
        return "nothing-to-ask", "Nothing to ask: every answer is stored."
    if asked == 1 or in_turn < WORTHWHILE_S:
        return "not-worth-fanning-out", (
            f"Not worth fanning out: {asked} {'ask' if asked == 1 else 'asks'}, about {in_turn:g} s one after another."
        )
    return "fan-out", f"Fan out: {asked} asks would take about {in_turn:g} s one after another."
