"""Executors of an integrator's own queries, such as a judge: validation before the run, and their cost in the plan."""

from __future__ import annotations

import math
from statistics import mean
from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import BaseExecutor, executor_for
from prefect_dispatch.executors.llm.llm import LLM, apply_block, require_key
from prefect_dispatch.executors.llm.local_model import model_file, resolve_model_path
from prefect_dispatch.executors.llm.messages import is_local
from prefect_dispatch.executors.registry import is_executor
from prefect_dispatch.integrators.base import AskingIntegrator, BaseIntegrator
from prefect_dispatch.tasks.plan import SAMPLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import AnyMerger, QueryEstimate
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.tasks.plan import Plan


def query_executors(integrator: AnyMerger) -> dict[str, Executor]:
    """Return the executors of an integrator's own queries by their field in the job.

    Example:
        >>> from prefect_dispatch import Tournament
        >>> list(query_executors(Tournament(criterion="Which is clearer?", judge=LLM(model="openai/gpt-5-mini"))))
        ['integrator.judge']
    """
    return {f"integrator.{name}": each for name, each in vars(integrator).items() if is_executor(each)}


def require_known_models(integrator: AnyMerger, folder: Path) -> None:
    """Check that the models of an integrator's own queries, and the blocks that they name, exist.

    Args:
        integrator: Any integrator.
        folder: The folder in which the files of local models are looked up.

    Raises:
        JobError: If not; the message names the field.
    """
    for where, llm in _query_models(integrator):
        apply_block(llm, where)
        try:
            llm.require_available()
            for model in filter(is_local, llm.models):
                model_file(resolve_model_path(model, folder))
        except JobError as error:
            raise JobError(f"{where}: {error}") from None


def require_keys(integrator: AnyMerger) -> None:
    """Check that there are keys for the models of an integrator's own queries, in the environment of the run.

    Raises:
        JobError: If there is none.
    """
    for where, llm in _query_models(integrator):
        require_key(apply_block(llm, where), where)


def _query_models(integrator: AnyMerger) -> Iterator[tuple[str, LLM]]:
    return ((where, each) for where, each in query_executors(integrator).items() if isinstance(each, LLM))


def add_query_cost(plan: Plan, integrator: object, briefs: Sequence[Brief], executor: Executor) -> Plan:
    """Add the tokens and the cost of the integrator's own queries to a plan, with a sentence on them.

    Args:
        plan: The plan of the work.
        integrator: The integrator.
        briefs: The briefs of the work, whose answers are part of the integrator's queries.
        executor: The executor of the briefs, and of queries that name no executor of their own.
    """
    if not plan.work:  # without work there is no merge
        return plan
    queries = BaseIntegrator.of(integrator).estimate_queries(plan.work)
    if queries is None:
        note = "The integrator asks as well; its share is not counted."
        return plan.model_copy(update={"integrator": note}) if isinstance(integrator, AskingIntegrator) else plan
    asks = [each for each in queries if each.times]
    if not asks:
        return plan
    note = f"The integrator asks as well, about {sum(each.times for each in asks)} times"
    estimate = _estimate_queries(asks, briefs, executor)
    if estimate is None:
        return plan.model_copy(update={"integrator": f"{note}; its share is not counted."})
    prompt, completion, cost = estimate
    return plan.model_copy(
        update={
            "prompt_tokens": None if plan.prompt_tokens is None else plan.prompt_tokens + prompt,
            "completion_tokens": None if plan.completion_tokens is None else plan.completion_tokens + completion,
            "cost_usd": None if plan.cost_usd is None or cost is None else round(plan.cost_usd + cost, 6),
            "integrator": f"{note}, unless that is stored: {prompt} prompt and {completion} completion tokens, "
            "counted above.",
        }
    )


def _estimate_queries(
    asks: Sequence[QueryEstimate], briefs: Sequence[Brief], executor: Executor
) -> tuple[int, int, float | None] | None:
    """Estimate the prompt tokens, completion tokens and cost of queries; None if an executor can't count tokens.

    Many queries are projected from a sample.
    """
    # Counting tokens is slow, so at most SAMPLE queries are counted and scaled up.
    sample = asks[:: math.ceil(len(asks) / SAMPLE)]
    scale = sum(each.times for each in asks) / sum(each.times for each in sample)
    sent = expected = 0.0
    cost: float | None = 0.0
    for each in sample:
        answering = BaseExecutor.of(each.executor or executor)
        question_tokens = answering.count_tokens(each.question.brief, each.question.item)
        completion_tokens = answering.expected_completion_tokens(each.question.brief)
        if question_tokens is None or completion_tokens is None:
            return None
        prompt = each.times * (question_tokens + each.answers * _answer_tokens(briefs, executor, answering))
        completion = each.times * completion_tokens
        price = answering.price()
        sent, expected = sent + prompt, expected + completion
        cost = None if cost is None or price is None else cost + prompt * price[0] + completion * price[1]
    return round(scale * sent), round(scale * expected), None if cost is None else scale * cost


def _answer_tokens(briefs: Sequence[Brief], executor: Executor, other: BaseExecutor) -> float:
    """Return the expected tokens of an answer to the briefs; `other` estimates for executors that can't."""
    expected = [BaseExecutor.of(executor_for(brief, executor)).expected_completion_tokens(brief) for brief in briefs]
    substitutes = (other.expected_completion_tokens(brief) or 0 for brief in briefs)
    return mean(tokens if own is None else own for own, tokens in zip(expected, substitutes, strict=True))
