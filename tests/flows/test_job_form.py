"""Job files for the flows with a flat form."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_dispatch import DispatchProfile, LLMCredentials
from prefect_dispatch.cli.commands import COMPLETE, UNUSABLE, main
from prefect_dispatch.errors import DependenceError, JobError
from prefect_dispatch.flows.job_file import load_job, plan_job, read_job, validate_job
from prefect_dispatch.flows.runtime.form_layout import with_form_messages
from tests.openai_server import Behaviour, openai_server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "forms"
ANALYSIS = """
flow: analyze_files
files: "*.txt"
folder: texts
instructions: Note it.
fields: [name, {name: year, kind: whole number}]
merge: merge records
identity: [name]
model: openai/test
credentials: of-the-job
limit: 1
"""
VARIANTS = """
flow: content_variants
product: A kettle.
instructions: Write.
variants: [{name: a, angle: x}, {name: b, angle: "y"}]
model: openai/test
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a job, and texts below it."""
    (tmp_path / "texts").mkdir()
    for name in "ab":
        (tmp_path / "texts" / f"{name}.txt").write_text(name, encoding="utf-8")
    (tmp_path / "job.yaml").write_text(ANALYSIS, encoding="utf-8")
    (tmp_path / "variants.yaml").write_text(VARIANTS, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("instructions:", "instrctions:", "unknown key 'instrctions'; did you mean 'instructions'?"),
        ("analyze_files", "analyse_files", "flow: there is no 'analyse_files'; did you mean 'analyze_files'?"),
        ("kind: whole number", "kind: year", "fields[1].kind: Input should be 'text'"),
        ("merge records", "merged", "merge: Input should be 'side by side' or 'merge records' (it is 'merged')"),
        ("identity: [name]", "identity: []", "identity: name the field"),
        ('files: "*.txt"', 'files: "*.pdf"', "There are no items: the glob '*.pdf'"),
        ("credentials: of-the-job", "credentials: nobody", "no LLMCredentials block 'nobody'"),
    ],
)
@pytest.mark.usefixtures("store")
def test_a_wrong_job_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, told: str
) -> None:
    """By `run` before there is a run, with the key of the file, its value and the way out."""
    assert old in ANALYSIS
    LLMCredentials().save("of-the-job", overwrite=True)
    (folder / "job.yaml").write_text(ANALYSIS.replace(old, new), encoding="utf-8")
    assert main(["run", str(folder / "job.yaml")]) == UNUSABLE
    said = capsys.readouterr()
    assert told in said.err
    assert said.out == ""


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_job_runs_plans_and_is_deployed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file for all of it: what is said on the way goes before what the file says."""
    with openai_server(Behaviour(content='{"name": "x", "year": 1}')) as server:
        block = LLMCredentials.model_validate({"api_key": "sk-none-needed", "api_base": server.url})
        block.save("of-the-job", overwrite=True)
        DispatchProfile().save("empty", overwrite=True)
        job = read_job(folder / "job.yaml")
        assert (job.flow, job.deployment_name) == ("analyze_files", "analysis")
        assert len(validate_job(job, folder).items) == 1
        assert plan_job(job, folder, limit=2).work == 2
        assert main(["plan", str(folder / "job.yaml")]) == COMPLETE
        assert main(["run", str(folder / "job.yaml"), "--limit", "2", "--out", str(folder / "out")]) == COMPLETE
        assert server.count == 2
        changes = ["--set", "profile=empty", "--set", "out=told"]
        assert main(["run", str(folder / "job.yaml"), *changes, "--refresh", "a.txt"]) == COMPLETE
        assert (folder / "texts" / "told" / "report.json").is_file()
        assert server.count == 3
    report = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["value"]["records"] == [{"name": "x", "year": 1}]
    parameters: dict[str, Any] = job.form_parameters(folder)
    assert parameters["credentials"].keys() == {"$ref"}
    assert parameters["folder"] == str(folder / "texts")
    assert parameters["fields"][0]["name"] == "name"
    assert "min_success" not in parameters
    assert "Complete" in capsys.readouterr().out


def test_what_a_flow_does_not_take(folder: Path) -> None:
    """Variants are all compared; a job for one flow is none for another; a review needs no server."""
    with pytest.raises(JobError, match="--limit: content_variants has no items"):
        validate_job(read_job(folder / "variants.yaml"), folder, limit=1)
    assert len(validate_job(read_job(folder / "variants.yaml", model="openai/other"), folder).briefs) == 2
    with pytest.raises(JobError, match="a job for 'dispatch' is wanted here, and this one is for 'content_variants'"):
        load_job(folder / "variants.yaml")
    reviewed = read_job(folder / "job.yaml", ["review=true", "credentials="])
    assert plan_job(reviewed, folder).work == 1
    with temporary_settings({PREFECT_API_URL: None}):  # it ends as NeedsReview, and names what to decide
        assert len(validate_job(reviewed, folder).items) == 1


def test_a_schema_is_legible_in_a_form(folder: Path) -> None:
    """What stands on one line in a file stands on several in the editor, and means the same."""
    text = VARIANTS.replace("flow: content_variants", "flow: analyze_files").partition("product")[0]
    (folder / "schema.yaml").write_text(
        f"{text}files: '*'\ninstructions: x\noutput: {{type: object, properties: {{a: {{type: array}}}}}}\n",
        encoding="utf-8",
    )
    parameters = read_job(folder / "schema.yaml").form_parameters(folder)
    assert parameters["output"] == json.dumps({"type": "object", "properties": {"a": {"type": "array"}}}, indent=2)


@pytest.mark.parametrize("name", ["analyze_files", "research_topics", "content_variants"])
def test_the_examples_are_jobs(name: str) -> None:
    """Each example is ready to run as it stands; here with a model that nobody asks."""
    path = EXAMPLES / f"{name}.yaml"
    ready = validate_job(read_job(path, model="openai/test"), path.parent)
    assert (len(ready.briefs), len(ready.items)) == {"analyze_files": (1, 3), "research_topics": (1, 2)}.get(
        name, (2, 1)
    )


def test_work_that_is_not_independent_is_told_as_it_is() -> None:
    """The pairs that an error names are kept with it."""

    def dependent() -> None:
        raise DependenceError(["a and b write the same file."])

    with pytest.raises(DependenceError, match="The work is not independent: a and b write the same") as caught:
        with_form_messages(dependent)
    assert caught.value.findings == ("a and b write the same file.",)


def test_a_job_may_use_the_groups_of_the_form(folder: Path) -> None:
    """They mean the same as flat keys, and a deployment has each value in the group in which its form shows it."""
    grouped = ANALYSIS.replace(
        "merge: merge records\nidentity: [name]", "merging: {merge: merge records, identity: [name]}"
    )
    grouped = grouped.replace("limit: 1", "limits: {limit: 1, max_tokens: 50}\nreport: {out: told}")
    grouped = grouped.replace("credentials: of-the-job", "advanced: {scope: A licence.}")
    (folder / "grouped.yaml").write_text(grouped, encoding="utf-8")
    job = read_job(folder / "grouped.yaml")
    spec = job.spec(folder, limit=2)
    assert (spec.limit, spec.executor.params, spec.briefs[0].scope) == (2, {"max_tokens": 50}, "A licence.")  # type: ignore[union-attr]
    assert (job.parameters(folder)["out"], job.place(folder)) == ("told", folder / "texts")
    parameters = job.form_parameters(folder)
    assert parameters["merging"] == {"merge": "merge records", "identity": ["name"]}
    assert parameters["limits"] == {"limit": 1, "max_tokens": 50}
    flat = read_job(folder / "job.yaml", ["credentials="]).form_parameters(folder)
    assert flat["merging"] == parameters["merging"]
    assert read_job(folder / "grouped.yaml", ["limits.limit=3"]).spec(folder).limit == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("identity=[year]", "identity: it is given both in the group `merging` and by itself"),
        ("limits.concurency=2", "did you mean 'concurrency'?"),
    ],
)
def test_a_wrong_group_is_refused(folder: Path, change: str, told: str) -> None:
    """A value that is given twice, and a key that the group doesn't have."""
    (folder / "job.yaml").write_text(f"{ANALYSIS}merging: {{identity: [name]}}\n", encoding="utf-8")
    changes = [change] if change.startswith("identity") else ["merging=", change]
    with pytest.raises(JobError, match=re.escape(told)):
        read_job(folder / "job.yaml", changes)


def test_a_plan_says_that_a_budget_is_less_than_a_call_may_cost(folder: Path) -> None:
    """The most that a model may answer is reserved before a call: without a limit of it, a small budget sends none."""
    settings = ["model=openai/gpt-5-mini", "credentials=", "limit=2"]
    plan = plan_job(read_job(folder / "job.yaml", [*settings, "budget_usd=0.05"]), folder)
    assert plan.notes[0] == (
        "The budget of $0.05 allows 0 of 2 calls, because each may take 128,000 tokens; set a limit of answer length "
        "(`max_tokens`)."
    )
    bounded = plan_job(read_job(folder / "job.yaml", [*settings, "budget_usd=0.05", "max_tokens=500"]), folder)
    assert "allows" not in " ".join(bounded.notes)
    assert "budget" not in " ".join(plan_job(read_job(folder / "job.yaml", settings), folder).notes)
