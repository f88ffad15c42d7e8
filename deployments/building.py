"""What a deployment is to be: of a ready flow with an empty form, or of a job."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect.settings import get_current_settings
from prefect.types.entrypoint import EntrypointType

from prefect_dispatch.deployments.apart import own_code
from prefect_dispatch.deployments.code_source import LOCAL, CodeSource
from prefect_dispatch.deployments.ready import ready_flows
from prefect_dispatch.errors import JobError
from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.flows.job import read_job
from prefect_dispatch.flows.job_kinds import checked

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefect.deployments.runner import RunnerDeployment

    from prefect_dispatch.deployments.ready import Ready
    from prefect_dispatch.flows.job_kinds import AnyJob

_ORIGIN = re.compile(r"\n\nJob file: `(.*)`\Z", re.DOTALL)


@dataclass(frozen=True)
class Wanted:
    """A deployment that is to be registered."""

    ready: Ready
    """What the package says of its flow."""
    made: RunnerDeployment
    """The deployment, as Prefect registers it."""
    origins: tuple[str, ...] = ()
    """What the job file may be called in the description of its deployment; none for a ready flow's."""
    notes: tuple[str, ...] = ()
    """What a person should know."""

    @property
    def name(self) -> str:
        """Flow and name, as Prefect's commands take them."""
        return self.made.full_name


def wanted(jobs: Sequence[Path], here: Path, name: str | None = None, source: CodeSource = LOCAL) -> list[Wanted]:
    """Return what is to be registered: a deployment of each job, or of each ready flow if there is no job.

    Args:
        jobs: Job files.
        here: What relative paths in an empty form are relative to.
        name: What the deployment of the one job is called; by default like its first brief.
        source: Where runs find the folders of jobs.

    Raises:
        JobError: If a job is unusable, or two would have one name.
    """
    if name is not None and len(jobs) != 1:
        raise JobError(f"--name {name!r} names the deployment of one job file; {len(jobs)} are given.")
    if name is not None and (not name.strip() or re.search(r"[/%&<>\x00-\x1f]", name)):
        raise JobError(f"--name {name!r}: a name is a text without any of / % & < >.")
    name = name.strip() if name else None
    found = [_of_job(path, name, source) for path in jobs] if jobs else list(_of_ready(here, source))
    for at, each in enumerate(found):
        if each.name in (other.name for other in found[:at]):
            raise JobError(
                f"Two of the job files would be the deployment {each.name!r}, which is named after the job: "
                "rename one of them (the first brief of a `dispatch` job, the `name` of any other), or deploy them one "
                "by one with --name."
            )
    return found


def origin(description: str | None) -> str | None:
    r"""Return the job file that a deployment is made of, as its description tells.

    Example:
        >>> origin("Run briefs.\n\nJob file: `/srv/job.yaml`")
        '/srv/job.yaml'
    """
    told = _ORIGIN.search(description or "")
    return told[1] if told else None


def deployment(
    job: AnyJob, folder: Path, name: str | None = None, file: Path | None = None, source: CodeSource = LOCAL
) -> RunnerDeployment:
    """Return the deployment of a job, with its content as the form's defaults.

    Args:
        job: The job.
        folder: What relative paths, and code of the user's own, are looked up in.
        name: What it is called; by default as the job says, such as its first brief.
        file: The job's file.
        source: Where runs find the job's folder.

    Raises:
        JobError: If it names a block that isn't there, or runs do not have the folder.
    """
    ready = ready_flows()[job.flow]
    description = ready.description + ("" if file is None else f"\n\nJob file: `{source.origin(file)}`")
    parameters: dict[str, Any] = job.form_parameters(folder)
    own = job.place(Path()).is_absolute()  # the job itself names a folder of the machine that it runs on
    if not own:
        parameters["folder"] = source.folder(job.place(folder))
    return _made(ready, name or job.deployment_name, description, parameters)


def _of_ready(here: Path, source: CodeSource) -> Iterable[Wanted]:
    for ready in ready_flows().values():
        # A run of a shard looks in the folder of its job, which has the same path there only with the same paths here.
        parameters = {} if ready.is_inner and source.root is None else {"folder": source.folder(here)}
        yield Wanted(ready, _made(ready, ready.name, ready.description, parameters))


def _of_job(path: Path, name: str | None, source: CodeSource) -> Wanted:
    job, file = read_job(path), path.resolve()
    with own_code(file.parent):
        checked(job, file.parent)
    made = deployment(job, file.parent, name, file, source)
    _require_room(made, file)
    return Wanted(ready_flows()[job.flow], made, source.origins(file), tuple(source.lost(made.parameters)))


def _made(ready: Ready, name: str, description: str, parameters: dict[str, Any]) -> RunnerDeployment:
    made: Any = ready.flow.to_deployment(
        name,
        parameters=parameters,
        description=description,
        tags=ready.tags,
        enforce_parameter_schema=ready.enforce_parameter_schema,
        concurrency_limit=ready.concurrency_limit,
        schedules=[each.schedule() for each in ready.schedules],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return cast("RunnerDeployment", made)


def _require_room(made: RunnerDeployment, file: Path) -> None:
    """Check that Prefect can keep a job's parameters.

    Raises:
        JobError: If not.
    """
    most = get_current_settings().server.api.max_parameter_size
    size = len(canonical(made.parameters).encode())
    if 0 < most < size:
        raise JobError(
            f"{file.name}: as a deployment the job takes {size} bytes, and Prefect keeps {most} at most: "
            "put the items into a file (items: {jsonl: …} or {glob: …})."
        )
