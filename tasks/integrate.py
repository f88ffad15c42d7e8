"""The task: outcomes merged in one place, and the merge audited."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 -- Prefect reads the signature

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_dispatch.errors import AuditError
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.base import Integrator  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.integrators.reconcile import reconcile
from prefect_dispatch.ledger import LedgerRow, Merge, Ref
from prefect_dispatch.models import Brief, Item, Outcome  # noqa: TC001 -- Prefect reads the signature


@task(name="integrate", cache_policy=NO_CACHE)
def integrate(
    briefs: Sequence[Brief], items: Sequence[Item], outcomes: Sequence[Outcome], integrator: Integrator
) -> Merge:
    """Return the audited merge of the outcomes, in the order of every list.

    Args:
        briefs: Every brief of the job.
        items: Every item of the job.
        outcomes: One for each (brief, item), failed and skipped ones included.
        integrator: How they are merged.

    Raises:
        CoverageError: If there isn't exactly one outcome for each (brief, item).
        AuditError: If the merged value isn't what the outcomes say.
    """
    reconcile([Ref(brief=brief.name, item=item.key) for item in items for brief in briefs], outcomes)
    # A copy: what the audit compares with is what agents said, whatever an integrator does to its input.
    given = [outcome.model_copy(deep=True) for outcome in outcomes]
    merge = integrator.merge(briefs, sorted(given, key=lambda outcome: Ref.of(outcome).order))
    violations = audit(merge, outcomes, briefs, integrator)
    if violations:
        raise AuditError(violations, merge)
    return Merge(
        value=merge.value,
        ledger=tuple(sorted(merge.ledger, key=_place)),
        fields=merge.fields,
    )


def _place(row: LedgerRow) -> tuple[object, ...]:
    return Ref.of(row).order
