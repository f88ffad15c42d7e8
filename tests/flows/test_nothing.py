"""A source that is empty today: the run completes, asks nobody, and says so; a misspelt one is refused all the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import polars as pl
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.flow_engine import run_flow

from prefect_dispatch import (
    Brief,
    Limits,
    MergeRecords,
    Synthesize,
    Tournament,
    dispatch,
    items_from,
    outcomes_frame,
    plan,
    write_table,
)
from prefect_dispatch.cli.commands import COMPLETE, UNUSABLE, main
from prefect_dispatch.errors import JobError, SourceError
from prefect_dispatch.models.brief import Split
from prefect_dispatch.testing import ScriptedExecutor
from tests.databases import filled, found

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch import Report

pytestmark = pytest.mark.usefixtures("store")

BRIEF = Brief(name="rows", instructions="Say {text} louder.", output={"type": "object"})
AGENT = ScriptedExecutor(lambda ask: {"said": str(ask.item.key)})
SAID = "There were no items, so nothing was asked."


def night(folder: Path, *rows: str) -> Report:
    """Run the job of a night over the rows that a table has then."""
    (folder / "rows.csv").write_text("\n".join(["id,text", *rows]) + "\n")
    return dispatch(
        [BRIEF],
        {"csv": "rows.csv", "key": "id"},
        AGENT,
        MergeRecords(identity=("said",)),
        Limits(min_success=0.9),
        folder=str(folder),
        out=str(folder / "out"),
        refresh=["7"] if not rows else False,
    )


@pytest.mark.slow
def test_a_night_without_rows_is_complete_and_the_next_one_compares_with_it(tmp_path: Path) -> None:
    """Nobody is asked, files and artifacts are written, all is gone; then nothing changed; then it is new."""
    night(tmp_path, "7,a", "8,b")
    asked = AGENT.calls
    empty = night(tmp_path)
    assert (AGENT.calls, empty.status, empty.message, empty.value) == (asked, "complete", SAID, None)
    assert [str(ref) for ref in empty.changes.gone] == ["rows/7", "rows/8"]
    assert (empty.ledger, empty.gaps, empty.usage.requests, empty.plan["advice"]) == (
        (),
        (),
        0,
        "Nothing to ask: there are no items.",
    )
    out = tmp_path / "out"
    assert (out / "outcomes.jsonl").read_text() == ""
    assert SAID in (out / "report.html").read_text()
    assert "<title>rows: complete</title>" in (out / "report.html").read_text()
    assert SAID in (out / "report.md").read_text()
    assert json.loads((out / "report.json").read_text())["status"] == "complete"
    run: Any = empty.run["flow_run"]
    with get_client(sync_client=True) as client:
        only = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run["id"]]))
        artifacts = {each.key: each for each in client.read_artifacts(artifact_filter=only)}
    assert artifacts.keys() - {None} == {"rows-report", "rows-outcomes", "rows-progress"}
    assert artifacts["rows-progress"].data == 100.0
    assert str(night(tmp_path).changes) == "nothing changed"
    assert [str(ref) for ref in night(tmp_path, "7,a").changes.new] == ["rows/7"]


@pytest.mark.slow
def test_an_empty_report_is_written_like_any_other(tmp_path: Path) -> None:
    """A frame without rows, and a table from which what is gone is deleted."""
    frame = pl.DataFrame({"id": [1], "text": ["a"]})
    full = dispatch([BRIEF], items_from(frame, key="id"), AGENT)
    empty = dispatch([BRIEF], items_from(frame.clear(), key="id"), AGENT)
    assert (empty.status, len(outcomes_frame(empty, frame.clear(), key="id"))) == ("complete", 0)
    name = filled(tmp_path / "results.db", "")
    write: Any = write_table.fn
    assert write(full, "rows", name, job="j") == {"written": 1, "deleted": 0}
    assert write(empty, "rows", name, job="j", vanished="delete") == {"written": 0, "deleted": 1}
    assert found(tmp_path / "results.db", "SELECT * FROM rows") == []


@pytest.mark.parametrize(
    "integrator",
    [Synthesize(instructions="Sum up."), Tournament(criterion="Which is better?", matches=1)],
    ids=["writes", "judges"],
)
def test_who_asks_an_agent_isnt_planned_for(integrator: Synthesize | Tournament) -> None:
    """Nothing is merged, so nothing is written or judged; no rule for what is too long needs a text."""
    brief = Brief(name="rows", instructions="Say {text} louder.", split=Split(by="lines", field="text"))
    planned = plan([brief], [], AGENT, integrator=integrator)
    assert (planned.work, planned.to_ask, planned.integrator) == (0, 0, "")
    assert (planned.recommendation, planned.advice) == ("nothing-to-ask", "Nothing to ask: there are no items.")


JOB = """
briefs: [{name: rows, instructions: "Say {text} louder."}]
items: {jsonl: rows.jsonl, key: id}
executor: {model: openai/nobody, api_base: "http://127.0.0.1:9"}
"""


@pytest.mark.slow
def test_the_command_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 0 for a plan and a run; a glob that means no file, and an empty list in a file, are unusable."""
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    (tmp_path / "rows.jsonl").touch()
    assert main(["plan", str(job)]) == COMPLETE
    assert "Nothing to ask: there are no items." in capsys.readouterr().out
    assert main(["run", str(job), "--out", str(tmp_path / "out")]) == COMPLETE
    assert f"Complete: {SAID}" in capsys.readouterr().out
    for items in ("[]", "{glob: '*.txt'}"):
        assert main(["run", str(job), "--set", f"items={items}"]) == UNUSABLE
        assert "There are no items: " in capsys.readouterr().err


@pytest.mark.slow
def test_an_empty_list_in_a_form_is_refused() -> None:
    """A deployment's list is written down by somebody; the same list that code makes is nothing to do today."""
    with get_client(sync_client=True) as client:
        id_ = client.create_deployment(client.create_flow(dispatch), name="form")
        flow_run = client.create_flow_run_from_deployment(id_)
    parameters: dict[str, Any] = {"briefs": [BRIEF], "items": [], "executor": AGENT}
    with pytest.raises(SourceError, match="There are no items: the list is empty; name some, or a source that may be"):
        cast("Any", run_flow)(dispatch, flow_run=flow_run, parameters=parameters)
    assert dispatch(**parameters).message == SAID


def test_the_rest_of_an_empty_job_is_checked() -> None:
    """What is wrong with it would fail tomorrow."""
    with pytest.raises(JobError, match="answers with text"):
        dispatch([Brief(name="b", instructions="Say.")], [], AGENT, MergeRecords(identity=("name",)))
