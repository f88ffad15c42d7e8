"""The task: outcomes merged in one place, and the merge audited."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 -- Prefect reads the signature
from functools import partial

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_dispatch.errors import AuditError, JobError, MergeError
from prefect_dispatch.executors.base import Executor  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.executors.kinds import default_executor
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.base import AnyMerger, AskingIntegrator, unshared
from prefect_dispatch.integrators.merging import merge_by, require_writable
from prefect_dispatch.integrators.readiness import Seeing, seeing, unfit
from prefect_dispatch.integrators.reconcile import reconcile
from prefect_dispatch.ledger import LedgerRow, Merge, named, place_of
from prefect_dispatch.limits import Limits
from prefect_dispatch.models import Brief, Item, Outcome  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.sources import sound
from prefect_dispatch.tasks.desk import Desk, Recall
from prefect_dispatch.withhold import logged, withheld


@task(name="integrate", cache_policy=NO_CACHE)
def integrate(
    briefs: Sequence[Brief],
    items: Sequence[Item],
    outcomes: Sequence[Outcome],
    integrator: AnyMerger,
    executor: Executor | None = None,
    limits: Limits | None = None,
    *,
    refresh: bool = False,
    known: Sequence[Outcome] = (),
) -> Merge:
    """Return the audited merge of the outcomes, in the order of every list.

    Args:
        briefs: Every brief of the job.
        items: Every item of the job.
        outcomes: One for each (brief, item), failed and skipped ones included.
        integrator: How they are merged.
        executor: Who is asked where the integrator asks and names nobody. None: the model of the settings.
        limits: How the integrator's own questions are bounded.
        refresh: Whether its questions are asked even where an answer is stored.
        known: What came of its questions in an earlier merge of this run; those are not asked again.

    Raises:
        JobError: If what is to merge is no integrator.
        CoverageError: If there isn't exactly one outcome for each (brief, item).
        AuditError: If the merged value isn't what the outcomes say.
        MergeError: If the integrator raised or returned no merge, or the agent that it asks can't be asked at all.
    """
    if wrong := unfit(integrator):
        raise JobError(wrong)
    reconcile([named(brief.name, item.key) for item in items for brief in briefs], outcomes)
    if isinstance(integrator, Seeing):
        integrator = seeing(integrator, briefs, sound(items))
    asking = isinstance(integrator, AskingIntegrator)
    desk = Desk(executor or default_executor(), limits or Limits(), refresh=refresh, known=known) if asking else None
    # A copy: what the audit compares with is what agents said, whatever an integrator does to its input.
    given = [unshared(outcome) for outcome in outcomes]
    try:
        merge = merge_by(integrator, briefs, sorted(given, key=_place), desk)
        require_writable(merge, integrator)
    except MergeError as error:
        said = withheld(str(error), [item.value for item in items])
        logged(error.__cause__ or error)
        raise MergeError(said, desk.asked if desk else ()) from None
    del given  # the audit has copies of its own
    recall = Recall(desk) if desk else None
    violations = audit(merge, outcomes, briefs, integrator, again=partial(merge_by, integrator, briefs, ask=recall))
    merge = merge.model_copy(
        update={"ledger": tuple(sorted(merge.ledger, key=_place)), "asked": desk.asked if desk else ()}
    )
    if violations:
        raise AuditError(violations, merge)
    return merge


def _place(row: LedgerRow | Outcome) -> tuple[object, ...]:
    return place_of(row.brief, row.item)
