"""Jobs before they run: their parts as a flow's form gives them, and validated with their work and their integrator."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.executors.registry import is_executor
from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches
from prefect_dispatch.models.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.flows.runtime.part_joiner import PartJoiner
    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.sources import Source
    from prefect_dispatch.tasks.dependent_work import StartMerger
    from prefect_dispatch.tasks.preflight import Independence
    from prefect_dispatch.tasks.shards.options import ByDeployment, Dask, Processes, Ray, Threads
    from prefect_dispatch.tasks.work_item import WorkItem


@dataclass(frozen=True)
class JobSpec:
    """Parts of a job, which every flow builds from its own form; see the parameters of `dispatch`."""

    briefs: Sequence[Brief]
    items: Source
    executor: Executor | None = None
    integrator: AnyMerger | None = None
    limits: Limits = Limits()  # noqa: RUF009 -- frozen
    review: bool = False
    folder: str = "."
    out: str | None = None
    limit: int | None = None
    refresh: bool | str | Sequence[str] = False
    fan_out: ByDeployment | None = None
    task_runner: Threads | Processes | Dask | Ray | None = None
    name: str | None = None

    @property
    def place(self) -> Path:
        """The resolved path of the folder; a deployment that fetches its code has another folder in each run."""
        return Path(self.folder).resolve()


@dataclass(frozen=True)
class PreparedJob:
    """Validated job that is ready to run."""

    briefs: list[Brief]
    items: list[Item]
    work: list[WorkItem]
    """Each brief for each item, with its fingerprint."""
    executor: Executor
    integrator: AnyMerger
    """The integrator, prepared for these briefs and items."""
    limits: Limits
    independence: Independence
    """The result of the preflight."""
    part_joiner: PartJoiner
    """Joins the answers to the parts of an item that is too long."""
    again: frozenset[str] = frozenset()
    """The fingerprints that are asked even where an answer is stored."""
    skipped_outcomes: tuple[Outcome, ...] = ()
    """The outcomes of items without a value, for which there is no work."""
    notes: tuple[str, ...] = ()
    """Notes on the items, for the plan."""

    @property
    def merge_start(self) -> StartMerger | None:
        """The function that merges the changes which some work starts from, if the integrator has one."""
        if not isinstance(self.integrator, MergeBranches):
            return None
        return partial(self.integrator.merge_start, briefs=self.briefs)

    @property
    def resources(self) -> set[str]:
        """Every exclusive resource that the work declares."""
        declaring = (work for work in self.work if work.brief.resources)
        return {name for work in declaring for name in work.brief.fill_placeholders(work.item).resources}


def query_executors(integrator: AnyMerger) -> dict[str, Executor]:
    """Return the executors of an integrator's own queries, such as a judge, by their field in the job.

    Example:
        >>> from prefect_dispatch import LLM, Tournament
        >>> list(query_executors(Tournament(criterion="Which is clearer?", judge=LLM(model="openai/gpt-5-mini"))))
        ['integrator.judge']
    """
    return {f"integrator.{name}": each for name, each in vars(integrator).items() if is_executor(each)}
