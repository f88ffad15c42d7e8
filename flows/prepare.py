"""Preparation of a job: everything is validated before anything is spent.

Nothing here imports Prefect, which takes a second: an unusable job is refused without it.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from prefect_dispatch.calls.call_gate import require_enforceable_limits
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import BaseExecutor, executor_for, expand_samples, require_variety
from prefect_dispatch.executors.command_checks import require_item_variables
from prefect_dispatch.executors.llm.llm import LLM, apply_block, require_key
from prefect_dispatch.executors.llm.local_model import model_file, resolve_model_path
from prefect_dispatch.executors.llm.messages import is_local
from prefect_dispatch.executors.registry import default_executor
from prefect_dispatch.flows.runtime.part_joiner import PartJoiner
from prefect_dispatch.flows.runtime.prepared_job import JobSpec, PreparedJob, query_executors
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.merge_records.schema_conformance import require_check_fields
from prefect_dispatch.integrators.run_merge import prepare_integrator
from prefect_dispatch.models.brief import resolve_user_code
from prefect_dispatch.models.outcome import Failure
from prefect_dispatch.sources import key_notes, read_items
from prefect_dispatch.sources.inline import FailedItem, with_values
from prefect_dispatch.tasks.preflight import preflight, require_independence
from prefect_dispatch.tasks.work_item import (
    WorkItem,
    WorkResult,
    build_work,
    fingerprints_to_refresh,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from pathlib import Path

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.outcome import Outcome

BATCH_PROVIDER = "openai/"
"""Prefix of the models that can be asked in batches."""
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
    folder, limits = spec.place, spec.limits
    executor = BaseExecutor.of(spec.executor or default_executor()).resolve_paths(folder)
    integrator = spec.integrator or Collate()
    # 1. Resolve the briefs' code references, expand their samples, and check them against the executor.
    bound = [
        one
        for brief in spec.briefs
        for one in expand_samples(resolve_user_code(_resolve_model_path(brief, folder), folder))
    ]
    require_check_fields(bound)
    BaseExecutor.of(executor).require_supported(bound)
    require_variety(bound, executor)
    require_batches(bound, executor)
    for chosen in (executor_for(brief, executor) for brief in bound):
        if isinstance(chosen, LLM):
            chosen.require_providers()
    for each in (executor, *query_executors(integrator).values()):
        require_enforceable_limits(limits, each, bound)
    require_known_models(integrator, folder)
    # 2. Read the items; those whose task run failed have no value and become skipped outcomes.
    read = read_items(spec.items, folder, spec.limit)
    valid = with_values(read)
    if any(brief.command for brief in bound):
        require_item_variables(bound, valid)
    # 3. Prove the independence of the work, and prepare the merge.
    independence = preflight(bound, valid)
    require_independence(independence, limits.on_dependence)
    integrator = prepare_integrator(integrator, bound, valid, folder, executor)
    part_joiner = PartJoiner(bound, valid, folder)
    # 4. Build the work, and select what is asked again.
    work = build_work(bound, valid, executor)
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
        notes=key_notes(spec.items, valid),
    )


def require_batches(briefs: Iterable[Brief], executor: Executor) -> None:
    """Check that executors in batch mode support batches, and that no option for batches is set in live mode.

    Raises:
        JobError: If not.
    """
    for who in (executor_for(brief, executor) for brief in briefs):
        if isinstance(who, LLM) and who.mode == "live" and who.rounds > 1:
            raise JobError(
                f"executor.rounds is {who.rounds}, which counts batches, and executor.mode is live: set mode: batch, "
                "or leave rounds out."
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
