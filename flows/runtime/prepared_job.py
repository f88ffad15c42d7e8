"""Prepared jobs: validated, with their work and their integrator, ready to run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prefect_dispatch.models.ledger import Ref

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.flows.runtime.part_joiner import PartJoiner
    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.limits import Limits
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.tasks.preflight import Independence
    from prefect_dispatch.tasks.work_item import WorkItem


@dataclass(frozen=True)
class PreparedJob:
    """Validated job that is ready to run."""

    briefs: list[Brief]
    items: list[Item]
    work: list[WorkItem]
    executor: Executor
    integrator: AnyMerger
    limits: Limits
    independence: Independence
    part_joiner: PartJoiner
    """Joins the answers to the parts of an item that is too long."""
    refresh_fingerprints: frozenset[str] = frozenset()
    """The fingerprints that are asked again even where an answer is stored."""
    skipped_outcomes: tuple[Outcome, ...] = ()
    """The outcomes of items without a value, for which there is no work."""
    notes: tuple[str, ...] = ()
    """Notes on the items, for the plan."""

    @property
    def resources(self) -> set[str]:
        """Every exclusive resource that the work declares."""
        declaring = (work for work in self.work if work.brief.resources)
        return {name for work in declaring for name in work.brief.fill_placeholders(work.item).resources}

    def without_outcomes(self, outcomes: Sequence[Outcome]) -> PreparedJob:
        """Return the job with only the work that has no outcome yet.

        Args:
            outcomes: Some outcomes of its work.
        """
        done = {Ref.of(outcome) for outcome in outcomes}
        return replace(self, work=[work for work in self.work if work.ref not in done]) if done else self
