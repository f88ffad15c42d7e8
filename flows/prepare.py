"""Everything that is proven before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.attempts import answering_models
from prefect_dispatch.binding import bind
from prefect_dispatch.bounds import require_bounded
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import Executor, Placed
from prefect_dispatch.executors.fitting import require_fit
from prefect_dispatch.executors.item_mentions import require_seen
from prefect_dispatch.executors.kinds import default_executor
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.executors.local import located
from prefect_dispatch.executors.variety import require_variety, sampled
from prefect_dispatch.flows.batch import require_batches
from prefect_dispatch.flows.joining import Joins
from prefect_dispatch.flows.own_executors import own_executors, require_known
from prefect_dispatch.flows.review import require_deciding
from prefect_dispatch.flows.share import with_share
from prefect_dispatch.flows.sharing import share_of
from prefect_dispatch.flows.unasked import unasked
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.promises import require_checked
from prefect_dispatch.integrators.readiness import ready
from prefect_dispatch.ledger import Ref
from prefect_dispatch.limits import Limits
from prefect_dispatch.models import Brief
from prefect_dispatch.sources import note_on_keys, read_items, sound, source
from prefect_dispatch.tasks.foreseen import with_notes
from prefect_dispatch.tasks.independence import Independence, require_independence
from prefect_dispatch.tasks.plan import Found, Plan, estimate
from prefect_dispatch.tasks.preflight import preflight
from prefect_dispatch.tasks.refresh import asked_again
from prefect_dispatch.tasks.run_brief import answer_shelf
from prefect_dispatch.tasks.work import Work, work_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.models import Answer, Item, Outcome
    from prefect_dispatch.sources import Source


@dataclass(frozen=True)
class Prepared:
    """A job that is ready to run."""

    briefs: list[Brief]
    items: list[Item]
    work: list[Work]
    executor: Executor
    integrator: AnyMerger
    limits: Limits
    independence: Independence
    joins: Joins
    """What joins the answers to the parts of an item that is too long."""
    again: frozenset[str] = frozenset()
    """The fingerprints that are asked again even where an answer is stored."""
    unasked: tuple[Outcome, ...] = ()
    """What became of items whose value isn't there; there is no work on them."""
    notes: tuple[str, ...] = ()
    """What to tell people of the items."""

    @property
    def resources(self) -> set[str]:
        """Every exclusive resource that some of the work declares."""
        wanting = (work for work in self.work if work.brief.resources)
        return {name for work in wanting for name in work.brief.rendered(work.item).resources}

    def without(self, outcomes: Sequence[Outcome]) -> Prepared:
        """Return the job with the work alone that has no outcome yet.

        Args:
            outcomes: Some outcomes of its work.
        """
        known = {Ref.of(outcome) for outcome in outcomes}
        return replace(self, work=[work for work in self.work if work.ref not in known]) if known else self


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
) -> Prepared:
    """Return a job with its code bound, its items read and its independence proven.

    Args:
        briefs: What is asked.
        items: Where the items come from.
        executor: Who is asked; by default the model of the settings, else the local one.
        integrator: How outcomes are merged; by default they are collated.
        limits: How the run is bounded.
        folder: Where relative paths and the user's own code are looked up.
        limit: Take the first so many items only.
        refresh: What is asked again even where an answer is stored.

    Raises:
        JobError: If the job is unusable; the message says what to change.
    """
    if not briefs:
        raise JobError("There is no brief; give at least one under 'briefs'.")
    limits = limits or Limits()
    executor = executor or default_executor()
    if isinstance(executor, Placed):
        executor = executor.placed(folder)
    integrator = integrator or Collate()
    bound = [one for brief in briefs for one in sampled(bind(_placed(brief, folder), folder))]
    require_checked(bound)
    require_fit(bound, executor)
    require_variety(bound, executor)
    require_batches(bound, executor)
    for who in (executor, *own_executors(integrator).values()):
        require_bounded(limits, who, bound)
    require_known(integrator, folder)
    read = read_items(items, folder, limit)
    there = sound(read)
    require_seen(bound, there)
    independence = preflight(bound, there)
    require_independence(independence, limits.on_dependence)
    integrator = ready(integrator, bound, there, folder, executor)
    joins = Joins(bound, there, folder)
    work = work_of(bound, there, executor)
    again = asked_again(work, refresh)
    without = unasked(bound, read)
    return Prepared(
        bound, read, work, executor, integrator, limits, independence, joins, again, without, note_on_keys(items, there)
    )


def _placed(brief: Brief, folder: Path) -> Brief:
    """Return a brief with the file of a model of its own looked up from a folder."""
    return brief.model_copy(update={"model": located(brief.model, folder)}) if brief.model else brief


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
    """Return what a job will take; nothing is asked.

    Args:
        briefs: What is asked: one brief or several.
        items: Where the items come from: a source, its mapping, or an iterable of items and JSON values.
        executor: Who would be asked.
        integrator: How outcomes would be merged.
        limits: How the run would be bounded.
        folder: Where relative paths and the user's own code are looked up.
        limit: Take the first so many items only.
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
    return planned(*looked_up(replace(job, limits=share_of(job.limits))))


def looked_up(job: Prepared) -> tuple[Prepared, Found]:
    """Return a job, and the answers that are stored for it; what is stored and can't be used is asked again.

    That is what another model answered than the one that was asked, where the executor's `strict_model` is set.

    Raises:
        TransientError: If the storage can't be read.
    """
    stored = Found(job.work, answer_shelf(), job.again)
    executor = job.executor
    if isinstance(executor, LLM) and executor.strict_model:
        pairs = {name: answering_models(answer.attempts) for name, answer in stored.answers.items()}
        other = {name for name, found in pairs.items() if not all(executor.is_expected(*pair) for pair in found)}
        for name in other:
            del stored.answers[name]
        job = replace(job, again=job.again | other)
    return job, stored


def keep_refreshed(job: Prepared, since: datetime | None) -> Prepared:
    """Return a job that doesn't ask again what an earlier attempt of the same run has asked again.

    Args:
        job: The job.
        since: When the first attempt began. None: there is no earlier attempt.

    Raises:
        TransientError: If the storage can't be read.
    """
    if since is None:
        return job
    stored = Found([each for each in job.work if each.fingerprint in job.again], answer_shelf())
    refreshed = {name for name, answer in stored.answers.items() if _is_since(answer, since)}
    return replace(job, again=job.again - refreshed)


def _is_since(answer: Answer, since: datetime) -> bool:
    started = answer.attempts[-1].started if answer.attempts else None
    return started is not None and started >= since


def planned(job: Prepared, stored: Found) -> Plan:
    """Return the plan of a job that is ready, its integrator's share included.

    Args:
        job: The job.
        stored: The answers that are stored for it.
    """
    work = estimate(job.work, job.executor, job.limits, stored, again=job.again)
    whole = with_share(work, job.integrator, job.briefs, job.executor)
    noted = with_notes(whole, job.executor, job.limits)
    return noted.model_copy(update={"notes": (*noted.notes, *job.notes, *stored.notes)})
