"""What `serve` offers to Prefect's UI: a form that holds the job."""

from __future__ import annotations

from pathlib import Path

from prefect_dispatch.deployments.specs import deployment
from prefect_dispatch.executors.base import fingerprint
from prefect_dispatch.flows.dispatch import dispatch
from prefect_dispatch.flows.job_file import load_job
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item

EXAMPLE = Path(__file__).parent.parent / "examples" / "licenses" / "job.yaml"


def test_a_job_becomes_the_defaults_of_the_form() -> None:
    """Named after its brief, found from any folder, and the parameters come back as the same work."""
    job = load_job(EXAMPLE, model="openai/test")
    made = deployment(job, EXAMPLE.parent)
    assert made.name == "license-family"
    assert made.entrypoint == "prefect_dispatch.flows.dispatch.dispatch"
    assert made.parameters["folder"] == str(EXAMPLE.parent)
    back = dispatch.validate_parameters(made.parameters)
    assert isinstance(back["briefs"][0], Brief)
    assert job.executor is not None
    item = Item(key="a", value="text")
    assert fingerprint(back["briefs"][0], item, back["executor"]) == fingerprint(job.briefs[0], item, job.executor)
    assert back["limits"] == job.limits
    assert back["integrator"] == job.integrator
