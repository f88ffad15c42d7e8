"""What the asks of a plan cost: with the caches of providers, in each mode of the executor, and by a deadline."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Literal

from prefect_dispatch.calls.prompt_prefixes import prefix_key
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import BaseExecutor, executor_for
from prefect_dispatch.executors.llm.cascade import cascade_of
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.llm.service_tiers import BATCH_PROVIDER, FLEX_TIMEOUT_S
from prefect_dispatch.models.base import Strict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models.limits import Limits
    from prefect_dispatch.tasks.plan import Plan
    from prefect_dispatch.tasks.work_item import WorkItem

BATCH_S = 86_400.0
"""Seconds within which a provider completes a batch."""
MAX_DEADLINE_S = 365 * 86_400.0
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(s|m|min|h|d)", re.ASCII)

Mode = Literal["live", "flex", "batch"]


class PlannedMode(Strict):
    """What the asks of a plan take in one mode of the executor."""

    mode: Mode
    """The mode."""
    cost_usd: float
    """US dollars, without the integrator's own queries."""
    seconds: float
    """Seconds with the job's concurrency: as planned for `live`; at most, for `flex` and `batch`."""


def parse_deadline(text: str) -> float:
    """Return the seconds of a duration such as `2h`.

    Raises:
        JobError: If it is none, or longer than a year.

    Example:
        >>> parse_deadline("2h"), parse_deadline("1.5 min")
        (7200.0, 90.0)
    """
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS["min" if found[2] == "m" else found[2]] if found else 0.0
    if not 0 < seconds <= MAX_DEADLINE_S:
        raise JobError(f"deadline: {text[:40]!r} is no duration: write a number and s, min, h or d, such as '2h'.")
    return seconds


def estimate_cached(asks: Sequence[WorkItem], executor: Executor) -> tuple[int, float]:
    """Return the prompt tokens that providers will find in their caches, and the US dollars that this saves.

    The first call of each brief writes its beginning into the cache, and all others read it there.

    Args:
        asks: What is asked.
        executor: The executor.
    """
    cached, saved = 0, 0.0
    counts = Counter(prefix_key(each.brief) for each in asks)
    for key, brief in {prefix_key(each.brief): each.brief for each in asks}.items():
        chosen = BaseExecutor.of(executor_for(brief, executor))
        if cascade_of(chosen):  # how often each model is asked isn't known
            continue
        others = counts[key] - 1
        tokens = chosen.prefix_tokens(brief) if others else 0
        cached += others * tokens
        price, prices = chosen.price(), chosen.prefix_prices()
        if tokens and price and prices:
            read, write = prices
            saved += tokens * (others * (price[0] - read) + price[0] - write)
    return cached, saved


def compare_modes(asks: Sequence[WorkItem], executor: Executor, limits: Limits, plan: Plan) -> tuple[PlannedMode, ...]:
    """Return what some asks cost in each mode of their executor, in the order of `Mode`.

    None where there is nothing to compare: with a price that is unknown, a cascade, a web search, briefs that name
    models of their own, or a model that has one mode.

    Args:
        asks: What is asked.
        executor: The executor.
        limits: The limits of the run.
        plan: The plan of the asks, as the executor sends them.
    """
    if not asks or not isinstance(executor, LLM) or executor.cascade or executor.search_options is not None:
        return ()
    if plan.cost_usd is None or plan.prompt_tokens is None or any(each.brief.model for each in asks):
        return ()
    found: list[PlannedMode] = []
    for variant in _variants(executor):
        cost = _cost(asks, variant, plan)
        if cost is not None:
            seconds = _seconds(len(asks), variant, limits, plan)
            found.append(PlannedMode(mode=variant.mode, cost_usd=cost, seconds=seconds))
    return tuple(found) if len(found) > 1 else ()


def _variants(executor: LLM) -> Iterator[LLM]:
    """Yield the executor in each mode that its models have."""
    yield executor.model_copy(update={"mode": "live"})
    flex = executor.model_copy(update={"mode": "flex"})
    if "service_tier" not in executor.params and flex.price() is not None:
        yield flex
    if executor.model.startswith(BATCH_PROVIDER):
        yield executor.model_copy(update={"mode": "batch"})


def _cost(asks: Sequence[WorkItem], variant: LLM, plan: Plan) -> float | None:
    price = variant.price()
    if price is None or plan.prompt_tokens is None:
        return None
    _, saved = estimate_cached(asks, variant)
    return round(plan.prompt_tokens * price[0] + (plan.completion_tokens or 0) * price[1] - saved, 6)


def _seconds(count: int, variant: LLM, limits: Limits, plan: Plan) -> float:
    if variant.mode == "batch":
        return BATCH_S * variant.rounds
    if variant.mode == "flex":
        return FLEX_TIMEOUT_S * math.ceil(count / limits.concurrency)
    return plan.seconds_in_parallel


def describe_modes(modes: Sequence[PlannedMode]) -> str:
    """Return a line on modes side by side; empty where there are none.

    Example:
        >>> describe_modes([PlannedMode(mode="live", cost_usd=1, seconds=9), PlannedMode(mode="batch", cost_usd=0.5,
        ...     seconds=86400)])
        'By mode: live $1.0000, about 9 s; batch $0.5000, up to 1 d.'
    """
    if not modes:
        return ""
    parts = [
        f"{each.mode} ${each.cost_usd:.4f}, {'about' if each.mode == 'live' else 'up to'} {format_span(each.seconds)}"
        for each in modes
    ]
    return f"By mode: {'; '.join(parts)}."


def format_span(seconds: float) -> str:
    """Return a duration in its largest unit that leaves at least two of it, or a whole one.

    Example:
        >>> format_span(9.44), format_span(5400), format_span(7200), format_span(86400)
        ('9.4 s', '90 min', '2 h', '1 d')
    """
    for unit, size in reversed(_UNITS.items()):
        if seconds >= 2 * size or seconds == size or unit == "s":
            break
    return f"{round(seconds / size, 1):g} {unit}"


def with_deadline(plan: Plan, deadline_s: float) -> Plan:
    """Return a plan with a recommendation by a deadline: whether to fan out, and the cheapest mode that meets it.

    Args:
        plan: The plan.
        deadline_s: The deadline, in seconds from the start.
    """
    if not plan.to_ask:
        return plan.model_copy(update={"deadline_s": deadline_s})
    deadline = format_span(deadline_s)
    in_turn, parallel = format_span(plan.seconds_in_turn), format_span(plan.seconds_in_parallel)
    recommendation = plan.recommendation
    if plan.seconds_in_turn <= deadline_s:
        recommendation = "not-worth-fanning-out"
        advice = f"No fan-out is needed: one after another takes about {in_turn}, within the deadline of {deadline}."
    elif plan.seconds_in_parallel <= deadline_s:
        recommendation = "fan-out"
        advice = (
            f"Fan out: in parallel takes about {parallel}, within the deadline of {deadline}; one after another takes "
            f"about {in_turn}."
        )
    else:
        advice = (
            f"The deadline of {deadline} is missed: in parallel takes about {parallel}. Raise limits.concurrency or "
            "the rate limits, or ask less."
        )
    in_time = [each for each in plan.modes if each.seconds <= deadline_s]
    if in_time:
        cheapest = min(in_time, key=lambda each: each.cost_usd)
        advice += f" Cheapest within the deadline: mode: {cheapest.mode}."
    update = {"deadline_s": deadline_s, "recommendation": recommendation, "advice": advice}
    return plan.model_copy(update=update)
