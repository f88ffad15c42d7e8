"""The flow, served from this process to Prefect's UI, schedules and API."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from prefect import serve as serve_deployments
from prefect.types.entrypoint import EntrypointType

from prefect_dispatch.flows.dispatch import dispatch

if TYPE_CHECKING:
    from pathlib import Path

    from prefect.deployments.runner import RunnerDeployment

    from prefect_dispatch.flows.job import Job


def deployment(job: Job | None, folder: Path) -> RunnerDeployment:
    """Return the deployment of the flow, with a job's content as the form's defaults.

    Args:
        job: The job, or None for an empty form.
        folder: What relative paths in the form are relative to.
    """
    given: dict[str, Any] = {} if job is None else job.model_dump(mode="json", exclude={"flow"}, exclude_none=True)
    for brief in given.get("briefs", ()):
        for hidden in ("sample", "part"):  # set while a job runs; no form has them, and Prefect refuses what none has
            del brief[hidden]
        brief["output"] = _legible(brief["output"])
    made: Any = dispatch.to_deployment(
        name="dispatch" if job is None else job.briefs[0].name,
        parameters={**given, "folder": str(folder)},
        entrypoint_type=EntrypointType.MODULE_PATH,
        tags=["prefect-dispatch"],
    )
    return cast("RunnerDeployment", made)


def _legible(output: str) -> str:
    """Return a JSON Schema over several lines, as a form shows it; it means the same."""
    return json.dumps(json.loads(output), indent=2, ensure_ascii=False) if output.startswith("{") else output


def serve(job: Job | None, folder: Path) -> None:
    """Serve the flow until interrupted."""
    serve_deployments(deployment(job, folder), limit=1)  # pragma: no cover -- never ends; test_ui runs it as a process
