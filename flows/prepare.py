"""Preparation of a job: everything is validated and planned before anything is spent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.calls.budget import require_enforceable_limits
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import BaseExecutor, Executor
from prefect_dispatch.executors.command_checks import require_item_variables
from prefect_dispatch.executors.fingerprint import expand_samples, require_variety
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.llm.local_model import resolve_model_path
from prefect_dispatch.executors.registry import default_executor
from prefect_dispatch.flows.review import require_deciding
from prefect_dispatch.flows.runtime.batch_phase import require_batches
from prefect_dispatch.flows.runtime.concurrency import rate_limit_share
from prefect_dispatch.flows.runtime.part_joiner import PartJoiner
from prefect_dispatch.flows.runtime.prepared_job import PreparedJob
from prefect_dispatch.flows.runtime.query_executors import add_query_cost, query_executors, require_known_models
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.readiness import prepare_integrator, require_check_fields
from prefect_dispatch.models.brief import Brief, resolve_user_code
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Failure, answering_models
from prefect_dispatch.sources import key_notes, read_items, source
from prefect_dispatch.sources.inline import FailedItem, with_values
from prefect_dispatch.tasks.plan import Plan, StoredAnswers, estimate, with_notes
from prefect_dispatch.tasks.preflight import preflight, require_independence
from prefect_dispatch.tasks.run_brief import result_store_for_run
from prefect_dispatch.tasks.work_item import WorkItem, WorkResult, build_work, fingerprints_to_refresh

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.outcome import Answer, Outcome
    from prefect_dispatch.sources import Source


KIND = "upstream"
"""The failure kind of items without a value, in outcomes and reports."""


def outcomes_of_failed_items(briefs: Sequence[Brief], items: Sequence[Item]) -> tuple[Outcome, ...]:
    """Return a skipped outcome for each brief and each item without a value."""
    failed = [item for item in items if isinstance(item, FailedItem)]
    return tuple(outcome for item in failed for brief in briefs for outcome in _skipped_outcomes(brief, item))


def _skipped_outcomes(brief: Brief, item: FailedItem) -> list[Outcome]:
    work = WorkItem(brief, item, "")
    error = Failure(kind=KIND, message=f"Not asked: {item.why}")
    return WorkResult(work, "skipped", error=error).to_outcomes([work], ())


def prepare(
    briefs: Sequence[Brief],
    items: Source,
    executor: Executor | None,
    integrator: AnyMerger | None,
    limits: Limits | None,
    *,
    folder: Path,
    limit: int | None = None,
    refresh: bool | str | Sequence[str] = False,
) -> PreparedJob:
    """Return a job with its code bound, its items read and its independence proven.

    Args:
        briefs: The briefs.
        items: The source of the items.
        executor: The executor; by default the model of the settings, else the local one.
        integrator: How outcomes are merged; by default they are collated.
        limits: The limits of the run.
        folder: The folder in which relative paths and the user's own code are looked up.
        limit: Maximum number of items to take, from the first.
        refresh: What is asked again even where an answer is stored.

    Raises:
        JobError: If the job is unusable; the message says what to change.
    """
    if not briefs:
        raise JobError("There is no brief; give at least one under 'briefs'.")
    limits = limits or Limits()
    executor = executor or default_executor()
    executor = BaseExecutor.of(executor).resolve_paths(folder)
    integrator = integrator or Collate()
    # 1. Resolve the briefs' code references, expand their samples, and check them against the executor.
    bound = [
        one for brief in briefs for one in expand_samples(resolve_user_code(_resolve_model_path(brief, folder), folder))
    ]
    require_check_fields(bound)
    BaseExecutor.of(executor).require_supported(bound)
    require_variety(bound, executor)
    require_batches(bound, executor)
    for each in (executor, *query_executors(integrator).values()):
        require_enforceable_limits(limits, each, bound)
    require_known_models(integrator, folder)
    # 2. Read the items; those whose task run failed have no value and become skipped outcomes.
    read = read_items(items, folder, limit)
    valid = with_values(read)
    require_item_variables(bound, valid)
    # 3. Prove the independence of the work, and prepare the merge.
    independence = preflight(bound, valid)
    require_independence(independence, limits.on_dependence)
    integrator = prepare_integrator(integrator, bound, valid, folder, executor)
    joins = PartJoiner(bound, valid, folder)
    # 4. Build the work, and select what is asked again.
    work = build_work(bound, valid, executor)
    again = fingerprints_to_refresh(work, refresh)
    skipped = outcomes_of_failed_items(bound, read)
    return PreparedJob(
        bound, read, work, executor, integrator, limits, independence, joins, again, skipped, key_notes(items, valid)
    )


def _resolve_model_path(brief: Brief, folder: Path) -> Brief:
    """Return a brief whose own model, if it is a local file, has an absolute path."""
    return brief.model_copy(update={"model": resolve_model_path(brief.model, folder)}) if brief.model else brief


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
    if review:
        require_deciding(integrator)
    place = Path(folder).resolve()
    briefs = [briefs] if isinstance(briefs, Brief) else briefs
    job = prepare(briefs, source(items), executor, integrator, limits, folder=place, limit=limit, refresh=refresh)
    return build_plan(*load_stored_answers(replace(job, limits=rate_limit_share(job.limits))))


def load_stored_answers(job: PreparedJob) -> tuple[PreparedJob, StoredAnswers]:
    """Load the stored answers of a job; return the job with the unusable ones added to those to ask again.

    Unusable is an answer of another model than the requested one, if the executor's `strict_model` is set.

    Raises:
        TransientError: If the storage can't be read.
    """
    stored = StoredAnswers(job.work, result_store_for_run(), job.refresh_fingerprints)
    executor = job.executor
    if isinstance(executor, LLM) and executor.strict_model:
        pairs = {name: answering_models(answer.attempts) for name, answer in stored.answers.items()}
        other = {name for name, found in pairs.items() if not all(executor.is_expected(*pair) for pair in found)}
        for name in other:
            del stored.answers[name]
        job = replace(job, refresh_fingerprints=job.refresh_fingerprints | other)
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
    stored = StoredAnswers(
        [each for each in job.work if each.fingerprint in job.refresh_fingerprints], result_store_for_run()
    )
    refreshed = {name for name, answer in stored.answers.items() if _started_since(answer, since)}
    return replace(job, refresh_fingerprints=job.refresh_fingerprints - refreshed)


def _started_since(answer: Answer, since: datetime) -> bool:
    started = answer.attempts[-1].started if answer.attempts else None
    return started is not None and started >= since


def build_plan(job: PreparedJob, stored: StoredAnswers) -> Plan:
    """Return the plan of a prepared job, with the cost of its integrator's own queries.

    Args:
        job: The job.
        stored: The stored answers.
    """
    work = estimate(job.work, job.executor, job.limits, stored, again=job.refresh_fingerprints)
    total = add_query_cost(work, job.integrator, job.briefs, job.executor)
    result = with_notes(total, job.executor, job.limits)
    return result.model_copy(update={"notes": (*result.notes, *job.notes, *stored.notes)})
