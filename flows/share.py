"""What an integrator's own questions will take, as far as it can tell before there is an answer."""

from __future__ import annotations

import math
from statistics import mean
from typing import TYPE_CHECKING, cast

from prefect_dispatch.executors.base import Countable
from prefect_dispatch.executors.variety import executor_for
from prefect_dispatch.integrators.base import AskingIntegrator, Expecting
from prefect_dispatch.tasks.plan import SAMPLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asks
    from prefect_dispatch.models import Brief
    from prefect_dispatch.tasks.plan import Plan


def with_share(plan: Plan, integrator: object, briefs: Sequence[Brief], executor: Executor) -> Plan:
    """Return a plan with the integrator's own tokens and cost in it, and a sentence on them.

    Args:
        plan: The plan of the work.
        integrator: Who merges what comes of it.
        briefs: The briefs of the work, whose answers the integrator shows to whom it asks.
        executor: Who answers them, and the integrator where it names nobody.
    """
    if not plan.work:  # nobody merges nothing
        return plan
    if not isinstance(integrator, Expecting):
        told = "The integrator asks as well; its share is not counted."
        return plan.model_copy(update={"integrator": told}) if isinstance(integrator, AskingIntegrator) else plan
    asks = [each for each in integrator.asks(plan.work) if each.times]
    if not asks:
        return plan
    told = f"The integrator asks as well, about {sum(each.times for each in asks)} times"
    if not all(isinstance(each.executor or executor, Countable) for each in asks):
        return plan.model_copy(update={"integrator": f"{told}; its share is not counted."})
    prompt, completion, cost = _counted(asks, briefs, executor)
    return plan.model_copy(
        update={
            "prompt_tokens": None if plan.prompt_tokens is None else plan.prompt_tokens + prompt,
            "completion_tokens": None if plan.completion_tokens is None else plan.completion_tokens + completion,
            "cost_usd": None if plan.cost_usd is None or cost is None else round(plan.cost_usd + cost, 6),
            "integrator": f"{told}, unless that is stored: {prompt} prompt and {completion} completion tokens, "
            "counted above.",
        }
    )


def _counted(asks: Sequence[Asks], briefs: Sequence[Brief], executor: Executor) -> tuple[int, int, float | None]:
    """Return the tokens to send and expected back, and their price; many questions are projected from some."""
    sample = asks[:: math.ceil(len(asks) / SAMPLE)]
    scale = sum(each.times for each in asks) / sum(each.times for each in sample)
    sent = expected = 0.0
    cost: float | None = 0.0
    for each in sample:
        who = cast("Countable", each.executor or executor)
        shown = each.answers * _answer_tokens(briefs, executor, who)
        more = each.times * (who.count_tokens(each.question.brief, each.question.item) + shown)
        back = each.times * who.expected_completion_tokens(each.question.brief)
        price = who.price()
        sent, expected = sent + more, expected + back
        cost = None if cost is None or price is None else cost + more * price[0] + back * price[1]
    return round(scale * sent), round(scale * expected), None if cost is None else scale * cost


def _answer_tokens(briefs: Sequence[Brief], executor: Executor, other: Countable) -> float:
    """Return how many tokens an answer to the briefs is expected to have; by another's guess where nobody knows."""
    answering = [(brief, executor_for(brief, executor)) for brief in briefs]
    return mean(
        (who if isinstance(who, Countable) else other).expected_completion_tokens(brief) for brief, who in answering
    )
