"""Preparation of a job: everything is validated and planned before anything is spent.

The preparation imports no Prefect, which takes a second: an unusable job is refused without it. The plan does.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from statistics import mean
from typing import TYPE_CHECKING

from prefect_dispatch.calls.budget import require_enforceable_limits
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import BaseExecutor, executor_for, expand_briefs, original_name, require_variety
from prefect_dispatch.executors.block_references import require_key
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.executors.command_checks import require_item_variables
from prefect_dispatch.executors.llm.cascade import cascade_of
from prefect_dispatch.executors.llm.discounts import BATCH_PROVIDER, FLEX, flex_timeout_s
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.llm.local_model import model_file, resolve_model_path
from prefect_dispatch.executors.llm.messages import is_local
from prefect_dispatch.executors.registry import default_executor
from prefect_dispatch.flows.runtime.part_joiner import PartJoiner
from prefect_dispatch.flows.runtime.prepared_job import JobSpec, PreparedJob, query_executors
from prefect_dispatch.integrators.base import AskingIntegrator, BaseIntegrator
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches
from prefect_dispatch.integrators.merge_records.schema_conformance import require_cascade_fields, require_check_fields
from prefect_dispatch.integrators.run_merge import prepare_integrator
from prefect_dispatch.models.brief import Brief, resolve_user_code
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import LIVE, Failure, answering_models
from prefect_dispatch.sources import key_notes, read_items, source
from prefect_dispatch.sources.inline import FailedItem, with_values
from prefect_dispatch.tasks.event_loop import require_open_files
from prefect_dispatch.tasks.preflight import preflight, require_independence
from prefect_dispatch.tasks.work_item import (
    WorkItem,
    WorkResult,
    build_work,
    fingerprints_to_refresh,
    group_equal_work,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import AnyMerger, QueryEstimate
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.ledger import Ref
    from prefect_dispatch.models.outcome import Answer, Outcome
    from prefect_dispatch.tasks.plan import Plan, StoredAnswers

KIND = "upstream"
"""The failure kind of items without a value, in outcomes and reports."""
_prepared: ContextVar[list[PreparedJob] | None] = ContextVar("_prepared", default=None)
"""The job that the caller of a flow has prepared; the list is emptied by the run's first attempt."""


def outcomes_of_failed_items(briefs: Sequence[Brief], items: Sequence[Item]) -> tuple[Outcome, ...]:
    """Return a skipped outcome for each brief and each item without a value."""
    found: list[Outcome] = []
    for item in items:
        if isinstance(item, FailedItem):
            error = Failure(kind=KIND, message=f"Not asked: {item.why}")
            for work in (WorkItem(brief, item, "") for brief in briefs):
                found += WorkResult(work, "skipped", error=error).to_outcomes([work], ())
    return tuple(found)


@contextmanager
def as_prepared(job: PreparedJob) -> Generator[None]:
    """Have the flow run that the block starts use a job that is prepared already."""
    token = _prepared.set([job])
    try:
        yield
    finally:
        _prepared.reset(token)


def take_prepared() -> PreparedJob | None:
    """Return the job that was prepared for this flow run, once; None if there is none."""
    jobs = _prepared.get()
    return jobs.pop() if jobs else None


def prepare(spec: JobSpec) -> PreparedJob:
    """Return a job with its code bound, its items read and its independence proven.

    Args:
        spec: The parts of the job; relative paths and the user's own code are looked up in its folder.

    Raises:
        JobError: If the job is unusable; the message says what to change.
    """
    if not spec.briefs:
        raise JobError("There is no brief; give at least one under 'briefs'.")
    folder, limits, budget_note = spec.place, spec.limits, ""
    if limits.budget is not None:
        from prefect_dispatch.flows.runtime.named_budget import with_named_budget  # noqa: PLC0415 -- imports Prefect

        limits, budget_note = with_named_budget(limits)
    executor = BaseExecutor.of(spec.executor or default_executor()).resolve_paths(folder)
    integrator = spec.integrator or Collate()
    # 1. Resolve the briefs' code references, expand their samples, and check them against the executor.
    bound = expand_briefs([resolve_user_code(_resolve_model_path(brief, folder), folder) for brief in spec.briefs])
    require_check_fields(bound)
    BaseExecutor.of(executor).require_supported(bound)
    require_variety(bound, executor)
    require_batches(bound, executor)
    require_cascade(bound, executor, limits)
    for chosen in (executor_for(brief, executor) for brief in bound):
        if isinstance(chosen, LLM):
            chosen.require_providers()
    is_flex = getattr(executor, "mode", LIVE) == FLEX
    limits = limits.model_copy(update={"timeout_s": flex_timeout_s(limits)}) if is_flex else limits
    for each in (executor, *query_executors(integrator).values()):
        require_enforceable_limits(limits, each, bound)
    require_known_models(integrator, folder)
    # 2. Read the items; those whose task run failed have no value and become skipped outcomes.
    read = read_items(spec.items, folder, spec.limit)
    valid = with_values(read)
    if any(brief.command for brief in bound):
        require_item_variables(bound, valid)
    # 3. Prove the independence of the work, and prepare the merge.
    alternatives: Mapping[str, str] = {}
    if getattr(executor, "workspace", None):
        alternatives = BaseIntegrator.of(integrator).alternatives(bound)
    independence = preflight(bound, valid, alternatives)
    require_independence(independence, limits.on_dependence)
    if limits.on_dependence == "merge" or any(brief.needs for brief in bound):
        require_separate_checkouts(spec, bound, executor)
        independence = independence.model_copy(update={"locks": {}, "stages": {}})
    elif alternatives and limits.on_dependence == "refuse":  # each candidate has a checkout of its own
        independence = independence.model_copy(update={"locks": {}})
    integrator = prepare_integrator(integrator, bound, valid, folder, executor)
    part_joiner = PartJoiner(bound, valid, folder)
    # 4. Build the work, and select what is asked again.
    work = build_work(bound, valid, executor)
    require_open_files(min(limits.concurrency, len(work)))
    return PreparedJob(
        briefs=bound,
        items=read,
        work=work,
        executor=executor,
        integrator=integrator,
        limits=limits,
        independence=independence,
        part_joiner=part_joiner,
        again=fingerprints_to_refresh(work, spec.refresh),
        skipped_outcomes=outcomes_of_failed_items(bound, read),
        notes=(*key_notes(spec.items, valid), *filter(None, [budget_note])),
    )


def require_separate_checkouts(spec: JobSpec, briefs: Sequence[Brief], executor: Executor) -> None:
    """Check that changes are made in separate checkouts and merged, where briefs need others or write the same files.

    Args:
        spec: The parts of the job.
        briefs: The briefs.
        executor: The executor.

    Raises:
        JobError: If not, or if the job also asks to run work one after another, or in other processes.
    """
    first = next((brief for brief in briefs if brief.needs), None)
    what = f"needs: {first.name!r} needs {first.needs[0]!r}" if first else "limits.on_dependence is 'merge'"
    if not (isinstance(executor, CodingAgent) and executor.workspace and isinstance(spec.integrator, MergeBranches)):
        raise JobError(
            f"{what}, which takes changes of a repository: an executor of kind 'coding' with a workspace, and the "
            "integrator 'merge_branches'. Use both, or leave it out."
        )
    _require_early_choice(briefs, spec.integrator)
    if first and spec.limits.on_dependence == "serialize":
        raise JobError(f"{what}, and limits.on_dependence is 'serialize': 'needs' is an order by itself; set 'merge'.")
    if first and (spec.fan_out or spec.task_runner):
        key = "fan_out" if spec.fan_out else "task_runner"
        raise JobError(f"{what}, and what it starts from is made in the process of the run; leave {key!r} out.")


def _require_early_choice(briefs: Sequence[Brief], integrator: MergeBranches) -> None:
    """Check that no candidate that other work needs is chosen when all candidates are done, which is too late.

    Raises:
        JobError: If one is.
    """
    key = "metric" if integrator.metric else "criterion" if integrator.criterion else ""
    candidates = {brief.name: brief for brief in briefs if brief.sample}
    needed = next((name for brief in briefs for name in brief.needs if name in candidates), None)
    if key and needed:
        raise JobError(
            f"integrator.{key}: it chooses between candidates when all of them are done, and what needs "
            f"{original_name(candidates[needed])!r}, which has candidates, starts before that: leave {key!r} out, so "
            "that the first accepted candidate counts, or give that brief no 'samples'."
        )


def require_cascade(briefs: Sequence[Brief], executor: Executor, limits: Limits) -> None:
    """Check that a cascade, if there is one, fits the briefs and limits of its job.

    Raises:
        JobError: If not; the message names the key.
    """
    cascade = cascade_of(executor)
    if cascade is None:
        return
    require_cascade_fields(briefs, cascade)
    if cascade.rule:
        raise JobError("executor.cascade.rule is what a run learns by 'learn'; leave it out.")
    if cascade.learn and limits.pilot:
        raise JobError(
            "executor.cascade.learn and limits.pilot both ask a sample first; leave one of them out: 'learn' shows no "
            "bill, and a pilot learns no rule."
        )


def require_batches(briefs: Iterable[Brief], executor: Executor) -> None:
    """Check that executors in batch mode support batches, and that no option for batches is set in live mode.

    Raises:
        JobError: If not.
    """
    for who in (executor_for(brief, executor) for brief in briefs):
        if isinstance(who, LLM) and who.mode != "batch" and who.rounds > 1:
            raise JobError(
                f"executor.rounds is {who.rounds}, which counts batches, and executor.mode is {who.mode}: set mode: "
                "batch, or leave rounds out."
            )
        if isinstance(who, LLM) and who.mode == "batch" and not who.model.startswith(BATCH_PROVIDER):
            raise JobError(
                f"Model {who.model!r} can't be asked with mode: batch, which is for OpenAI and for servers that speak "
                f"its protocol: name it as {BATCH_PROVIDER}… (with an api_base, if it is a server), or set mode: live."
            )


def _resolve_model_path(brief: Brief, folder: Path) -> Brief:
    """Return a brief whose own model, if it is a local file, has an absolute path."""
    return brief.model_copy(update={"model": resolve_model_path(brief.model, folder)}) if brief.model else brief


def require_known_models(integrator: AnyMerger, folder: Path) -> None:
    """Check that the models of an integrator's own queries, and the blocks that they name, exist.

    Args:
        integrator: Any integrator.
        folder: The folder in which the files of local models are looked up.

    Raises:
        JobError: If not; the message names the field.
    """
    for where, llm in _query_models(integrator):
        if llm.cascade:
            raise JobError(f"{where}.cascade: the integrator's own queries have one model; leave the cascade out.")
        llm.with_block(where)
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
        model = llm.with_block(where)
        if not is_local(model.model) and not model.api_base:
            require_key(model.credentials, model.model, where)


def _query_models(integrator: AnyMerger) -> Iterator[tuple[str, LLM]]:
    return ((where, each) for where, each in query_executors(integrator).items() if isinstance(each, LLM))


def plan(  # noqa: PLR0913 -- the parameters are the job
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
    deadline: str | None = None,
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
        deadline: The time that the job has, such as `2h`, which the recommendation then counts with.

    Raises:
        JobError: If the job is unusable; the message says what to change.
    """
    from prefect_dispatch.flows.review import require_deciding  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.flows.runtime.concurrency import rate_limit_share  # noqa: PLC0415 -- imports Prefect

    briefs = [briefs] if isinstance(briefs, Brief) else briefs
    shared = rate_limit_share(limits or Limits())
    spec = JobSpec(
        briefs, source(items), executor, integrator, shared, review, str(folder), limit=limit, refresh=refresh
    )
    if spec.review:
        require_deciding(spec.integrator)
    return plan_prepared(prepare(spec), spec, deadline)


def plan_prepared(job: PreparedJob, spec: JobSpec, deadline: str | None = None) -> Plan:
    """Return the plan of a job that is prepared.

    Args:
        job: The job.
        spec: Its parts, of which it was prepared.
        deadline: The time that it has, such as `2h`.

    Raises:
        JobError: If it can't run where it is to.
    """
    from prefect_dispatch.flows.remote_targets import resolve_deployment, shard_target  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.tasks.plan import parse_deadline, with_deadline  # noqa: PLC0415 -- imports Prefect

    deadline_s = None if deadline is None else parse_deadline(deadline)
    plan = build_plan(*load_stored_answers(job))
    if deadline_s is not None:
        plan = with_deadline(plan, deadline_s, getattr(job.executor, "mode", LIVE))
    way = resolve_deployment(spec.fan_out, job.work, job.executor, spec.place)
    shard_target(spec.task_runner, job.executor, way.target)
    return plan.model_copy(update={"notes": (*plan.notes, *way.notes)})


def load_stored_answers(job: PreparedJob) -> tuple[PreparedJob, StoredAnswers]:
    """Load the stored answers of a job; return the job with the unusable ones added to those to ask again.

    Unusable is an answer of another model than the requested one, if the executor's `strict_model` is set.

    Raises:
        TransientError: If the storage can't be read.
    """
    from prefect_dispatch.tasks.plan import StoredAnswers  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.tasks.run_brief import result_store_for_run  # noqa: PLC0415 -- imports Prefect

    stored = StoredAnswers(job.work, result_store_for_run(), job.again)
    if any(brief.needs for brief in job.briefs):
        job = _resolve_stored_starts(job, stored)
    executor = job.executor
    if isinstance(executor, LLM) and executor.strict_model:
        pairs = {name: answering_models(answer.attempts) for name, answer in stored.answers.items()}
        other = {name for name, found in pairs.items() if not all(executor.is_expected(*pair) for pair in found)}
        for name in other:
            del stored.answers[name]
        job = replace(job, again=job.again | other)
    return job, stored


def _resolve_stored_starts(job: PreparedJob, stored: StoredAnswers) -> PreparedJob:
    """Look up the answers to work that needs other work, as far as what it needs is stored; return the job with it."""
    from prefect_dispatch.tasks.dependent_work import DependentWork  # noqa: PLC0415 -- imports the executors' calls

    dependent = DependentWork(job.work, job.briefs, job.executor, job.merge_start)
    resolved: dict[Ref, WorkItem] = {}
    found = [each for each in job.work if not each.brief.needs]
    again = set(job.again)
    while found:
        answers = ((each, stored.answers.get(each.fingerprint)) for each in found)
        for each, answer in answers:
            if answer:
                dependent.add(WorkResult(each, "succeeded", answer, stored=True).to_outcomes([each], ()))
        pairs = [(work, then) for work, then in dependent.pop_ready() if isinstance(then, WorkItem)]
        found = [then for _, then in pairs]
        resolved |= {then.ref: then for then in found}
        again |= {then.fingerprint for work, then in pairs if work.fingerprint in again}
        stored.add(found, again)
    return replace(job, work=[resolved.get(each.ref, each) for each in job.work], again=frozenset(again))


def seems_stored(job: PreparedJob) -> bool:
    """Return whether the answers to a job seem to be stored, by a sample; False where only a server knows where.

    Args:
        job: The job.
    """
    from prefect_dispatch.tasks.plan import SAMPLE, StoredAnswers  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.tasks.result_store import BlobStore, default_folder  # noqa: PLC0415 -- imports Prefect

    if not (folder := default_folder()):
        return False
    sample = job.work[:: -(-len(job.work) // SAMPLE) or 1]
    stored = StoredAnswers(sample, BlobStore(folder), job.again)
    return all(each.fingerprint in stored.answers for each in sample)


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
    from prefect_dispatch.tasks.plan import StoredAnswers  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.tasks.run_brief import result_store_for_run  # noqa: PLC0415 -- imports Prefect

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
    from prefect_dispatch.tasks.plan import budget_note, estimate, pilot_note, with_notes  # noqa: PLC0415 -- imports Prefect

    work = estimate(job.work, job.executor, job.limits, stored, again=job.again)
    alone = BaseExecutor.of(job.executor).without_cascade
    total = add_query_cost(work, job.integrator, job.briefs, alone)
    result = with_notes(total, job.executor, job.limits)
    unanswered = [group[0] for name, group in group_equal_work(job.work).items() if name not in stored.answers]
    notes = [pilot_note(len(unanswered), job.limits), budget_note(unanswered, job.executor, job.limits)]
    return result.model_copy(update={"notes": (*filter(None, notes), *result.notes, *job.notes, *stored.notes)})


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
    queries = BaseIntegrator.of(integrator).estimate_queries(plan.work, briefs)
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
    from prefect_dispatch.tasks.plan import SAMPLE  # noqa: PLC0415 -- imports Prefect

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
