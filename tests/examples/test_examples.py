"""Every example runs as its reader would run it."""

from __future__ import annotations

import csv
import json
import runpy
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from examples.own_executor import BRIEF, KeywordCounter
from examples.own_integrator import Shortest
from examples.pipeline import BRIEFS, pipeline
from prefect_dispatch.cli.commands import main
from prefect_dispatch.errors import RejectedError
from prefect_dispatch.executors.llm.local_model import has_smollm2
from prefect_dispatch.flows.job_file import load_job
from prefect_dispatch.integrators.accuracy import read_expected_answers
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch import Ask

EXAMPLES = Path(__file__).parents[2] / "examples"
LICENSES = EXAMPLES / "licenses"
JOB = LICENSES / "job.yaml"


def facts() -> list[dict[str, str]]:
    """Return the known facts."""
    with (LICENSES / "facts.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows(database: Path, query: str) -> list[tuple[object, ...]]:
    """Return what a query finds."""
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def test_each_licence_has_its_text_and_its_facts() -> None:
    """The facts name exactly the texts that are there, each of a length that a small model can read."""
    lengths = {path.stem: len(path.read_text(encoding="utf-8").split()) for path in LICENSES.glob("texts/*.txt")}
    assert sorted(lengths) == sorted(row["id"] for row in facts())
    assert len(lengths) >= 24
    assert all(80 <= length <= 400 for length in lengths.values())


def test_each_clause_is_part_of_its_licence_and_has_a_known_family() -> None:
    """No clause was written for the example, and the expected family is that of the facts, which the job offers."""
    clauses = {path.name: path.read_text(encoding="utf-8").strip() for path in LICENSES.glob("clauses/*.txt")}
    assert len(clauses) >= 20
    for name, clause in clauses.items():
        assert clause in " ".join((LICENSES / "texts" / name).read_text(encoding="utf-8").split())
    families = {row["id"]: row["family"] for row in facts()}
    expected = read_expected_answers("expected.csv", "item", LICENSES)
    assert expected == {f"clauses/{name}": {"family": families[name.removesuffix(".txt")]} for name in clauses}
    (brief,) = load_job(JOB).briefs
    assert set(json.loads(str(brief.output))["properties"]["family"]["enum"]) == set(families.values())


def read(ask: Ask) -> JsonValue:
    """Answer for the pipeline: the briefs disagree about 0BSD, and one refuses BlueOak."""
    key = ask.item.key
    if (ask.brief.name, key) == ("duties", "BlueOak-1.0.0"):
        raise RejectedError("Not this one.", kind="refused")
    if ask.brief.name == "use":
        return {"id": key, "family": "public-domain" if key == "0BSD" else "permissive", "commercial_use": True}
    return {"id": key, "family": "permissive", "keep_notice": key != "0BSD"}


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_pipeline_loads_records_and_gaps(tmp_path: Path) -> None:
    """A conflict, agreement, a failure: all are loaded, and the brief of the higher priority wins."""
    database = tmp_path / "licences.sqlite"
    assert pipeline(database, ScriptedExecutor(read), limit=3) == {"licences": 3, "ledger": 6, "gaps": 1}
    assert rows(database, "SELECT * FROM licence WHERE id IN ('0BSD', 'BlueOak-1.0.0') ORDER BY id") == [
        ("0BSD", "public-domain", 1, 0),
        ("BlueOak-1.0.0", "permissive", 1, None),
    ]
    assert rows(database, "SELECT brief, item FROM ledger WHERE disposition = 'failed'") == [
        ("duties", "BlueOak-1.0.0")
    ]
    # Its family lost, but its `keep_notice` stands in the record.
    assert rows(database, "SELECT disposition FROM ledger WHERE item = '0BSD' AND brief = 'duties'") == [("merged",)]


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_loading_again_closes_the_gap_and_repeats_nothing(tmp_path: Path) -> None:
    """The second run asks only for what is missing, and every row still stands once."""
    database = tmp_path / "licences.sqlite"
    pipeline(database, ScriptedExecutor(read), limit=3)
    mended = ScriptedExecutor(
        lambda ask: {"id": ask.item.key, "family": "permissive", "keep_notice": True}, fingerprint="scripted"
    )
    assert pipeline(database, mended, limit=3) == {"licences": 3, "ledger": 6, "gaps": 0}
    assert [ask.item.key for ask in mended.asks] == ["BlueOak-1.0.0"]


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_an_answer_about_another_licence_is_sent_back(tmp_path: Path) -> None:
    """An agent that mixes up the ids is told so, and its second answer counts."""

    def confused(ask: Ask) -> JsonValue:
        about = ask.item.key if ask.rejections else "MIT"
        field = "commercial_use" if ask.brief.name == BRIEFS[0].name else "keep_notice"
        return {"id": about, "family": "permissive", field: True}

    scripted = ScriptedExecutor(confused)
    assert pipeline(tmp_path / "licences.sqlite", scripted, limit=1)["gaps"] == 0
    assert scripted.calls == 4


def test_the_shortest_answer_does_not_depend_on_the_order() -> None:
    """Answers of equal length: the brief's name decides, whichever came first; a failure keeps its row."""
    said = [
        Outcome(brief="b", item="x", status="succeeded", value="two"),
        Outcome(brief="a", item="x", status="succeeded", value="one"),
        Outcome(brief="a", item="y", status="failed"),
    ]
    merge = Shortest().merge([], said)
    assert merge.value == [{"brief": "a", "item": "x", "value": "one"}]
    assert {(row.brief, row.item): row.disposition for row in merge.ledger} == {
        ("a", "x"): "merged",
        ("b", "x"): "overridden",
        ("a", "y"): "failed",
    }
    assert Shortest().merge([], said[::-1]).fields == merge.fields


def test_other_words_are_other_work() -> None:
    """What changes the answers of the user's own executor is in its fingerprint."""
    assert KeywordCounter("a").fingerprint != KeywordCounter("b").fingerprint
    assert BRIEF.name == "mentions"


@pytest.mark.slow
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        pytest.param(
            "own_executor.py", ["MIT: {'warranty': 1, 'copyright': 4}", "mentions/no-text (rejected)"], id="executor"
        ),
        pytest.param("own_integrator.py", ["vivid/cron: An alarm clock for commands.", "instead of"], id="integrator"),
    ],
)
def test_a_script_shows_what_it_is_about(name: str, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run from a shell without any key, an example prints something that a reader understands."""
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    said = capsys.readouterr().out
    assert all(part in said for part in shown), said


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.skipif(not has_smollm2(), reason="needs prefect-dispatch[local]")
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("store")
def test_the_job_runs_with_a_real_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real small model answers for each document, in the form that was asked for."""
    assert main(["run", str(JOB), "--limit", "3", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [row["disposition"] for row in report["ledger"]] == ["merged"] * 3
    assert {entry["value"]["family"] for entry in report["value"]["answers"]} <= {row["family"] for row in facts()}
    [figures] = next(table["rows"] for table in report["tables"] if table["name"] == "accuracy")
    assert (figures["known"], figures["answered"]) == (3, 3)
    printed = capsys.readouterr().out
    assert "Right answers: license-family, family: " in printed
    assert "a toy" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_scripts_are_checked_by_a_command(tmp_path: Path) -> None:
    """The job of commands runs as it is: two scripts parse, the one that doesn't is a gap with the shell's words."""
    assert main(["run", str(EXAMPLES / "scripts" / "job.yaml"), "--out", str(tmp_path)]) == 3
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {each["item"]: each["value"] for each in report["value"]["answers"]} == {
        "bin/backup.sh": {"lines": 7, "executable": True},
        "bin/greet.sh": {"lines": 2, "executable": True},
    }
    [gap] = report["gaps"]
    assert (gap["item"], gap["error"]["kind"]) == ("bin/unfinished.sh", "exit")
    assert "yntax error" in gap["error"]["message"]
