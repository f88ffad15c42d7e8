"""The README keeps its word: its job file, its Python, its commands."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import yaml

from prefect_dispatch import Item, Outcome
from prefect_dispatch.flows.job_file import Job
from prefect_dispatch.flows.runtime.part_joiner import PartJoiner
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from tests.fences import fences
from tests.openai_server import Behaviour, document, openai_server

FENCES = fences(Path(__file__).parent.parent / "README.md")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language; `test_docs.py` holds all of them to what any page is held to."""
    return [fence.text for fence in FENCES if fence.language == language]


def test_it_opens_with_two_commands() -> None:
    """The first shell block has exactly two, one for the job and one for the tests, each of them whole."""
    run, test = blocks("sh")[0].splitlines()
    assert run.endswith("prefect-dispatch run examples/licenses/job.yaml --out report")
    assert test.endswith("pytest -n logical --dist worksteal")
    assert all(command.startswith("python3 -m venv .venv && ") for command in (run, test))


def test_its_job_is_a_job() -> None:
    """The job file that it shows is taken as it stands."""
    job = Job.model_validate(yaml.safe_load(blocks("yaml")[0]))
    assert job.briefs[0].name == "license-terms"
    assert job.integrator is not None


def test_its_integrator_is_an_integrator() -> None:
    """So is the part of a job that shows how records are merged."""
    job = {"briefs": [{"name": "a", "instructions": "Say it."}], "items": ["a"], **yaml.safe_load(blocks("yaml")[1])}
    assert isinstance(Job.model_validate(job).integrator, MergeRecords)


def test_its_rule_for_long_items_is_one(tmp_path: Path) -> None:
    """And so is the brief that shows how an item is cut and its parts' answers are joined."""
    (text,) = [block for block in blocks("yaml") if "split:" in block]
    job = Job.model_validate({"items": [{"text": "A contract."}], **yaml.safe_load(text)})
    items = [Item(key="a", value={"text": "A contract."})]
    parts = [Outcome(brief="people", item="a", status="succeeded", value=[{"name": name}]) for name in ("Ada", "ada")]
    assert PartJoiner(job.briefs, items, tmp_path)(job.briefs[0], parts) == (
        [{"name": "Ada"}],
        "2 parts, joined by merge_records; removed: name ada by priority",
    )


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_its_pipeline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python that it shows merges two answers about one person, and prints how many it accounts for."""

    def answer(request: dict[str, object], n: int) -> Behaviour:
        name = "Ada Lovelace" if "Ada" in document(request) else "ada lovelace"
        return Behaviour(content=f'{{"name": "{name}", "year": 1843}}')

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.setenv("PREFECT_DISPATCH_MODEL", "openai/test")
    (tmp_path / "pipeline.py").write_text(blocks("python")[0])
    with openai_server(answer) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        runpy.run_path(str(tmp_path / "pipeline.py"))
        assert server.count == 2
    assert capsys.readouterr().out.splitlines()[-1] == "2"
