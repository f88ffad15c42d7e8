"""Plan of a prepared job: what is stored, and the tokens, cost and time of the rest with the integrator's queries."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import mean
from typing import TYPE_CHECKING

from prefect_dispatch.executors.base import BaseExecutor, executor_for
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.flows.prepare import prepare
from prefect_dispatch.flows.remote_targets import resolve_deployment, shard_target
from prefect_dispatch.flows.review import require_deciding
from prefect_dispatch.flows.runtime.concurrency import rate_limit_share
from prefect_dispatch.flows.runtime.prepared_job import JobSpec
from prefect_dispatch.integrators.base import AskingIntegrator, BaseIntegrator
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import answering_models
from prefect_dispatch.sources import source
from prefect_dispatch.tasks.plan import SAMPLE, Plan, StoredAnswers, budget_note, estimate, with_notes
from prefect_dispatch.tasks.run_brief import result_store_for_run
from prefect_dispatch.tasks.work_item import group_equal_work

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.flows.runtime.prepared_job import PreparedJob
    from prefect_dispatch.integrators.base import AnyMerger, QueryEstimate
    from prefect_dispatch.models.outcome import Answer


def plan(
    briefs: Brief | Sequence[Brief],
    items: object,
    executor: Executor | None = None,
    *,
    integrator: AnyMerger | None = None,
    limits: Limits | None = None,
    folder: str | Path = ".",
    limit: int | None = None,
    review: bool = False,
    refresh: bool | str | Sequence[str] = False,
) -> Plan:
    """Return the plan of a job: its calls, tokens, cost and time; nothing is asked.

    Args:
        briefs: What is asked: one brief or several.
        items: Where the items come from: a source, its mapping, or an iterable of items and JSON values.
        executor: The executor.
        integrator: How outcomes would be merged.
        limits: The limits of the run.
        folder: The folder in which relative paths and the user's own code are looked up.
        limit: Maximum number of items to take, from the first.
        review: Whether people would decide before the run publishes.
        refresh: True to count no answer as stored, or patterns of names: those that are asked again (see `dispatch`).

    Raises:
        JobError: If the job is unusable; the message says what to change.
    """
    briefs = [briefs] if isinstance(briefs, Brief) else briefs
    shared = rate_limit_share(limits or Limits())
    spec = JobSpec(
        briefs, source(items), executor, integrator, shared, review, str(folder), limit=limit, refresh=refresh
    )
    if spec.review:
        require_deciding(spec.integrator)
    return plan_prepared(prepare(spec), spec)


def plan_prepared(job: PreparedJob, spec: JobSpec) -> Plan:
    """Return the plan of a job that is prepared.

    Args:
        job: The job.
        spec: Its parts, of which it was prepared.

    Raises:
        JobError: If it can't run where it is to.
    """
    plan = build_plan(*load_stored_answers(job))
    way = resolve_deployment(spec.fan_out, job.work, job.executor, spec.place)
    shard_target(spec.task_runner, job.executor, way.target)
    return plan.model_copy(update={"notes": (*plan.notes, *way.notes)})


def load_stored_answers(job: PreparedJob) -> tuple[PreparedJob, StoredAnswers]:
    """Load the stored answers of a job; return the job with the unusable ones added to those to ask again.

    Unusable is an answer of another model than the requested one, if the executor's `strict_model` is set.

    Raises:
        TransientError: If the storage can't be read.
    """
    stored = StoredAnswers(job.work, result_store_for_run(), job.again)
    executor = job.executor
    if isinstance(executor, LLM) and executor.strict_model:
        pairs = {name: answering_models(answer.attempts) for name, answer in stored.answers.items()}
        other = {name for name, found in pairs.items() if not all(executor.is_expected(*pair) for pair in found)}
        for name in other:
            del stored.answers[name]
        job = replace(job, again=job.again | other)
    return job, stored


def keep_refreshed(job: PreparedJob, since: datetime | None) -> PreparedJob:
    """Return a job that does not refresh again what an earlier attempt of the same run has refreshed.

    Args:
        job: The job.
        since: When the first attempt began. None: there is no earlier attempt.

    Raises:
        TransientError: If the storage can't be read.
    """
    if since is None:
        return job
    stored = StoredAnswers([each for each in job.work if each.fingerprint in job.again], result_store_for_run())
    refreshed = {name for name, answer in stored.answers.items() if _started_since(answer, since)}
    return replace(job, again=job.again - refreshed)


def _started_since(answer: Answer, since: datetime) -> bool:
    started = answer.attempts[-1].started if answer.attempts else None
    return started is not None and started >= since


def build_plan(job: PreparedJob, stored: StoredAnswers) -> Plan:
    """Return the plan of a prepared job, with the cost of its integrator's own queries.

    Args:
        job: The job.
        stored: The stored answers.
    """
    work = estimate(job.work, job.executor, job.limits, stored, again=job.again)
    total = add_query_cost(work, job.integrator, job.briefs, job.executor)
    result = with_notes(total, job.executor, job.limits)
    unanswered = [group[0] for name, group in group_equal_work(job.work).items() if name not in stored.answers]
    note = budget_note(unanswered, job.executor, job.limits)
    return result.model_copy(update={"notes": (*filter(None, [note]), *result.notes, *job.notes, *stored.notes)})


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
