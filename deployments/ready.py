"""The deployments of the ready flows, as `prefect.yaml` says them: Prefect's own command reads the same file."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, cast

from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint
from pydantic import Field

from prefect_dispatch.strict import Strict
from prefect_dispatch.yaml_text import documents

if TYPE_CHECKING:
    from prefect import Flow

FILE = "prefect.yaml"


class Timed(Strict):
    """An example of a schedule."""

    slug: str
    """What the schedule is known by among those of its deployment."""
    cron: str
    """When it is due."""
    timezone: str
    """In which time zone, by its IANA name."""
    active: bool
    """Whether it makes runs."""

    def schedule(self) -> DeploymentScheduleCreate:
        """Return it as Prefect's client takes it."""
        cron = CronSchedule(cron=self.cron, timezone=self.timezone)
        return DeploymentScheduleCreate(schedule=cron, active=self.active, slug=self.slug)


class WorkPool(Strict):
    """Where runs are worked on."""

    name: str
    """Its name."""


class Ready(Strict):
    """The deployment of a ready flow."""

    name: str
    """Its name; that of a job's deployment is its first brief's."""
    entrypoint: str
    """The flow, by its module's path: found wherever the package is installed, from any folder."""
    description: str
    """What Prefect's UI says of it."""
    tags: list[str]
    """Its tags, and those of its runs."""
    enforce_parameter_schema: bool
    """Whether a run with wrong parameters is refused before it is made."""
    concurrency_limit: ConcurrencyLimitConfig | None = None
    """How many of its runs work at once, and what becomes of one more; None: as many as there are workers for."""
    work_pool: WorkPool
    """Where its runs are worked on, unless somebody says otherwise."""
    schedules: Annotated[tuple[Timed, ...], Field(max_length=1)] = ()
    """An example, not active; none where other runs start its runs."""

    @property
    def key(self) -> str:
        """What a job file calls the flow.

        Example:
            >>> ready_flows()["dispatch"].key
            'dispatch'
        """
        return self.entrypoint.rpartition(".")[2]

    @property
    def is_inner(self) -> bool:
        """Whether other runs start its runs: then it has no schedule, and is told no folder."""
        return not self.schedules

    @property
    def flow(self) -> Flow[..., Any]:
        """The flow itself."""
        return load_flow_from_entrypoint(self.entrypoint)


@cache
def ready_flows() -> dict[str, Ready]:
    """Return every ready flow's deployment, by what a job file calls the flow.

    Example:
        >>> ready_flows()["dispatch"].entrypoint
        'prefect_dispatch.flows.dispatch.dispatch'
    """
    text = (resources.files("prefect_dispatch.deployments") / FILE).read_text(encoding="utf-8")
    (data,) = cast("list[dict[str, Any]]", documents(text))
    entries = [Ready.model_validate(entry) for entry in data["deployments"]]
    return {entry.key: entry for entry in entries}
