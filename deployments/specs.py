"""Specifications of deployments: of the ready flows with an empty form, or of job files."""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentScheduleUpdate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import get_current_settings
from prefect.types.entrypoint import EntrypointType
from pydantic import BeforeValidator, Field, ValidationError

from prefect_dispatch.deployments.code_source import LOCAL, CodeSource
from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.job_file import read_job, validate_job
from prefect_dispatch.flows.runtime.form_flow import FormFlow
from prefect_dispatch.models.base import Strict
from prefect_dispatch.prefect_compat import has_next_date, require_known_parameters
from prefect_dispatch.serialization.json_text import canonical_json
from prefect_dispatch.serialization.strict_yaml import load_documents

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence
    from types import ModuleType

    from prefect import Flow
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.deployments.runner import RunnerDeployment

    from prefect_dispatch.flows.job_file import JobFile

    Given = DeploymentSchedule | DeploymentScheduleCreate | DeploymentScheduleUpdate


FILE = "prefect.yaml"


def _to_schedule(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule of `prefect.yaml` in the form of Prefect's client."""
    cron = {"cron": entry["cron"], "timezone": entry["timezone"]}
    return {"schedule": cron, "active": entry["active"], "slug": entry["slug"]}


class DeploymentSpec(Strict):
    """Deployment of a ready flow, as `prefect.yaml` describes it."""

    name: str
    """Its name; that of a job's deployment is its first brief's."""
    entrypoint: str
    """The flow, by its module's path: found wherever the package is installed, from any folder."""
    description: str
    """The description in Prefect's UI."""
    tags: list[str]
    """Its tags, and those of its runs."""
    enforce_parameter_schema: bool
    """Whether a run with invalid parameters is rejected before it is created."""
    concurrency_limit: ConcurrencyLimitConfig | None = None
    """The limit of concurrent runs, and what happens to further ones; None: limited by the workers only."""
    work_pool: dict[Literal["name"], str]
    """The default work pool of its runs."""
    schedules: Annotated[
        tuple[Annotated[DeploymentScheduleCreate, BeforeValidator(_to_schedule)], ...], Field(max_length=1)
    ] = ()
    """An inactive example; none if other runs start its runs."""

    @property
    def key(self) -> str:
        """The name of the flow in job files.

        Example:
            >>> ready_flows()["dispatch"].key
            'dispatch'
        """
        return self.entrypoint.rpartition(".")[2]

    @property
    def is_inner(self) -> bool:
        """Whether its runs are started by other runs: then it has no schedule and no folder of its own."""
        return not self.schedules

    @property
    def flow(self) -> Flow[..., Any]:
        """The flow object."""
        return load_flow_from_entrypoint(self.entrypoint)


@cache
def ready_flows() -> dict[str, DeploymentSpec]:
    """Return the deployments of the ready flows, by the name of the flow in job files.

    Example:
        >>> ready_flows()["dispatch"].entrypoint
        'prefect_dispatch.flows.dispatch.dispatch'
    """
    text = (resources.files("prefect_dispatch.deployments") / FILE).read_text(encoding="utf-8")
    (data,) = cast("list[dict[str, Any]]", load_documents(text))
    entries = [DeploymentSpec.model_validate(entry) for entry in data["deployments"]]
    return {entry.key: entry for entry in entries}


@contextmanager
def forget_imports(folder: Path) -> Generator[None]:
    """Remove the modules that the block imports from below a folder, and its changes of `sys.path`, afterwards.

    Args:
        folder: The folder of a job; a virtual environment inside it stays as it is.
    """
    path, before = [*sys.path], set(sys.modules)
    inside = [place for each in path if (place := Path(each).resolve()).is_relative_to(folder)]

    def is_job_code(module: ModuleType) -> bool:
        file: str | None = getattr(module, "__file__", None)
        homes = [file] if file else list(getattr(module, "__path__", ()))  # of a package without a file, its folders
        found = [Path(home).resolve() for home in homes]
        return any(
            home.is_relative_to(folder) and not any(home.is_relative_to(place) for place in inside) for home in found
        )

    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if is_job_code(sys.modules[name]):
                del sys.modules[name]


_ORIGIN = re.compile(r"\n\nJob file: `(.*)`\Z", re.DOTALL)


@dataclass(frozen=True)
class PlannedDeployment:
    """Deployment that is to be registered."""

    spec: DeploymentSpec
    """The specification of its flow."""
    deployment: RunnerDeployment
    """The deployment in the form of Prefect."""
    origins: tuple[str, ...] = ()
    """The possible origins of the job file in the description of a registered deployment; none for a ready flow."""
    notes: tuple[str, ...] = ()
    """Notes for the user."""

    @property
    def name(self) -> str:
        """Flow and name, as Prefect's commands take them."""
        return self.deployment.full_name


def plan_deployments(
    jobs: Sequence[Path], here: Path, name: str | None = None, source: CodeSource = LOCAL
) -> list[PlannedDeployment]:
    """Return the deployments to register: one for each job, or one for each ready flow if there is no job.

    Args:
        jobs: Job files.
        here: The folder that relative paths in an empty form start from.
        name: The name of the deployment of a single job; by default that of its first brief.
        source: Where runs find the folders of jobs.

    Raises:
        JobError: If a job is unusable, or two would have the same name.
    """
    if name is not None:
        if len(jobs) != 1:
            raise JobError(f"--name {name!r} names the deployment of one job file; {len(jobs)} are given.")
        if not name.strip() or re.search(r"[/%&<>\x00-\x1f]", name):
            raise JobError(f"--name {name!r}: a name is a text without any of / % & < >.")
        name = name.strip()
    found = [_from_job_file(path, name, source) for path in jobs] if jobs else list(_from_ready_flows(here, source))
    # Deployments are identified by flow and name.
    names = Counter(each.name for each in found)
    if twice := next((each for each, count in names.items() if count > 1), None):
        raise JobError(
            f"Two of the job files would be the deployment {twice!r}, which is named after the job: "
            "rename one of them (the first brief of a `dispatch` job, the `name` of any other), or deploy them one "
            "by one with --name."
        )
    return found


def job_file_of(description: str | None) -> str | None:
    r"""Return the job file of a deployment, as recorded in its description.

    Example:
        >>> job_file_of("Run briefs.\n\nJob file: `/srv/job.yaml`")
        '/srv/job.yaml'
    """
    match = _ORIGIN.search(description or "")
    return match[1] if match else None


def deployment(
    job: JobFile, folder: Path, name: str | None = None, file: Path | None = None, source: CodeSource = LOCAL
) -> RunnerDeployment:
    """Return the deployment of a job, with its content as the form's defaults.

    Args:
        job: The job.
        folder: The folder in which relative paths and the user's own code are looked up.
        name: The name of the deployment; by default that of the job, such as its first brief's.
        file: The job's file.
        source: Where runs find the job's folder.

    Raises:
        JobError: If it names a block that doesn't exist, or runs do not have the folder.
    """
    ready = ready_flows()[job.flow]
    description = ready.description + ("" if file is None else f"\n\nJob file: `{source.origin(file)}`")
    parameters: dict[str, Any] = job.form_parameters(folder)
    if not job.place(Path()).is_absolute():  # else the job itself names a folder of the machine that it runs on
        parameters["folder"] = source.folder(job.place(folder))
    return _create_deployment(ready, name or job.deployment_name, description, parameters)


def _from_ready_flows(here: Path, source: CodeSource) -> Iterable[PlannedDeployment]:
    for ready in ready_flows().values():
        # A shard's run uses the folder of its job, unless workers have that folder at another path.
        parameters = {} if ready.is_inner and source.root is None else {"folder": source.folder(here)}
        yield PlannedDeployment(ready, _create_deployment(ready, ready.name, ready.description, parameters))


def _from_job_file(path: Path, name: str | None, source: CodeSource) -> PlannedDeployment:
    job, file = read_job(path), path.resolve()
    with forget_imports(file.parent):
        validate_job(job, file.parent)
    new = deployment(job, file.parent, name, file, source)
    max_size = get_current_settings().server.api.max_parameter_size
    size = len(canonical_json(new.parameters).encode())
    if 0 < max_size < size:
        raise JobError(
            f"{file.name}: as a deployment the job takes {size} bytes, and Prefect keeps {max_size} at most: "
            "put the items into a file (items: {jsonl: …} or {glob: …})."
        )
    notes = tuple(source.lost_write_notes(new.parameters))
    return PlannedDeployment(ready_flows()[job.flow], new, source.origins(file), notes)


def _create_deployment(
    ready: DeploymentSpec, name: str, description: str, parameters: dict[str, Any]
) -> RunnerDeployment:
    new: Any = ready.flow.to_deployment(
        name,
        parameters=parameters,
        description=description,
        tags=ready.tags,
        enforce_parameter_schema=ready.enforce_parameter_schema,
        concurrency_limit=ready.concurrency_limit,
        schedules=[*ready.schedules],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    require_known_parameters(new, [*inspect.signature(ready.flow.fn).parameters])
    return cast("RunnerDeployment", new)


_FIELDS = 5
"""Fields of a cron expression."""


@dataclass(frozen=True)
class ScheduleOverride:
    """Options of the command line for the schedule."""

    cron: str | None = None
    """The cron expression; None: unchanged."""
    timezone: str | None = None
    """The time zone; None: unchanged."""
    active: bool = False
    """Whether to activate it; False: unchanged."""

    def __post_init__(self) -> None:
        """Validate the options.

        Raises:
            JobError: If one is invalid.
        """
        if self.cron is not None and not _is_valid_cron(self.cron):
            raise JobError(
                f"--cron {self.cron!r} is no cron expression, or is never due: write five fields (minute, hour, day, "
                "month, day of the week), such as '0 6 * * 1-5'."
            )
        try:
            CronSchedule(cron="@daily", timezone="UTC" if self.timezone is None else self.timezone or "-")
        except ValidationError:
            raise JobError(
                f"--timezone {self.timezone!r} is no time zone: use an IANA name, such as 'Europe/Berlin'."
            ) from None

    def merge_schedules(
        self, example: DeploymentScheduleCreate | None, before: Sequence[Given]
    ) -> list[DeploymentScheduleUpdate]:
        """Return the schedules that a deployment is to have.

        Args:
            example: The example of its flow; None if other runs start its runs.
            before: Its present schedules, which stay unless the options change them.
        """
        if example is None:
            return [_to_update(each) for each in before]
        # The options apply to the example's schedule only, which its slug identifies.
        own = next((each for each in before if each.slug == example.slug), None)
        others = [_to_update(each) for each in before if each is not own]
        if own is None and self == ScheduleOverride():
            return others
        return [*others, self._override_example(own or example, example)]

    def _override_example(self, own: Given, example: DeploymentScheduleCreate) -> DeploymentScheduleUpdate:
        update = _to_update(own).model_copy(update={"active": self.active or bool(own.active)})
        if self.cron is None and self.timezone is None:
            return update
        was: Any = own.schedule if isinstance(own.schedule, CronSchedule) else example.schedule
        cron = was.model_copy(
            update={"cron": self.cron or was.cron, "timezone": self.timezone or was.timezone}  # both are valid
        )
        return update.model_copy(update={"schedule": cron})


def nest_parameters(
    schedules: Sequence[DeploymentScheduleUpdate], planned: PlannedDeployment
) -> list[DeploymentScheduleUpdate]:
    """Return schedules whose own parameters are in the groups of the form, as those of their deployment are.

    An earlier version stored them by themselves, beside which a group of the deployment would be a second value.

    Args:
        schedules: The schedules.
        planned: Their deployment.
    """
    flow = planned.spec.flow
    if not isinstance(flow, FormFlow):
        return [*schedules]
    layout = flow.form.layout
    base = planned.deployment.parameters
    return [
        each.model_copy(update={"parameters": layout.nest(each.parameters, base)}) if each.parameters else each
        for each in schedules
    ]


def describe_schedules(schedules: Iterable[Given]) -> str:
    """Describe schedules in words.

    Example:
        >>> daily = CronSchedule(cron="0 6 * * *", timezone="UTC")
        >>> describe_schedules([DeploymentScheduleUpdate(schedule=daily, active=False)])
        "'0 6 * * *' (UTC), not active"
    """
    return (
        "; ".join(f"{_describe_schedule(each.schedule)}{'' if each.active else ', not active'}" for each in schedules)
        or "none"
    )


def _describe_schedule(schedule: object) -> str:
    if isinstance(schedule, CronSchedule):
        return f"{schedule.cron!r} ({schedule.timezone or 'UTC'})"
    return f"every {schedule.interval}" if isinstance(schedule, IntervalSchedule) else "by a recurrence rule"


def _to_update(each: Given) -> DeploymentScheduleUpdate:
    return DeploymentScheduleUpdate.model_validate(each, from_attributes=True)


def _is_valid_cron(cron: str) -> bool:
    """Return whether a cron expression has five fields, or is a name such as `@daily`, and matches any date."""
    words = cron.split()
    if len(words) != _FIELDS and not (len(words) == 1 and cron.startswith("@")):
        return False
    try:
        return has_next_date(cron)
    except ValueError:  # from pydantic, or from the parser for a date that never occurs
        return False
