"""A published report merged again: under other rules, or without some of its outcomes, and what rests on which."""

from __future__ import annotations

import json
import shlex
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import Collate, Consensus, MergeRecords, Synthesize
from prefect_dispatch.cli.commands import COMPLETE, FAILED, GAPS, UNUSABLE, main
from prefect_dispatch.cli.merge import merge_again
from prefect_dispatch.integrators.audit.published_report import audit_report
from prefect_dispatch.models.ledger import DIFFERENCE, FieldRow, Ref
from prefect_dispatch.models.outcome import Citation
from prefect_dispatch.models.report import Report
from tests.fences import fences
from tests.flows.test_report_audit import Count, publish, records
from tests.integrators.said import say
from tests.openai_server import Behaviour, openai_server

if TYPE_CHECKING:
    from prefect_dispatch.models.outcome import Outcome

PAGE = Path(__file__).parents[2] / "docs/merge-again.md"
RECORDS = MergeRecords(identity=("name",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a report: two answers about MIT that disagree, and one about ISC."""
    (folder := tmp_path / "report").mkdir()
    publish(folder, RECORDS, records())
    return folder


def load(folder: Path) -> Report:
    """Return a report with its outcomes."""
    return Report.model_validate_json((folder / "report.json").read_bytes())


def test_without_an_outcome_the_rest_decides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is left out is a gap, the other value wins, and the published files stay as they are."""
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert main(["merge", str(folder), "--without", "a"]) == GAPS
    shown = capsys.readouterr().out
    assert '~ records, name "MIT", year: 1988 -> 1989' in shown
    assert "~ terms/a: merged -> skipped" in shown
    assert "Complete with gaps: 2 of 3 answered; no answer for 1 (1 left_out): terms/a (left_out)." in shown
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_pages_of_what_is_left_out_are_no_sources(tmp_path: Path) -> None:
    """The table of the pages that web searches returned lists those of the outcomes that were merged."""
    pages = {key: Citation(url=f"https://{key}.example/", retrieved=date(2026, 12, 1)) for key in "ab"}
    outcomes = [say(key, {"name": key, "year": 1}).model_copy(update={"citations": (pages[key],)}) for key in "ab"]
    publish(tmp_path, RECORDS, outcomes)
    report = merge_again(tmp_path, without=["a"]).report
    assert [row["url"] for table in report.tables for row in table.rows if "url" in row] == ["https://b.example/"]


def test_other_rules_in_a_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report of the new merge is a report like any other: it can be audited, and costs nothing."""
    (tmp_path / "rules.yaml").write_text("kind: merge_records\nidentity: [name]\nrules: {year: max}\n")
    out = tmp_path / "again"
    command = ["merge", str(folder / "report.json"), "--rules", str(tmp_path / "rules.yaml"), "--out", str(out)]
    assert main(command) == COMPLETE
    assert '~ records, name "MIT", year: 1988 -> 1989' in capsys.readouterr().out
    report = load(out)
    assert report.value == {
        "records": [{"name": "ISC", "year": 2007}, {"name": "MIT", "year": 1989}],
        "gaps": [],
    }
    assert report.run["merged_again"] == {"without": [], "rules": "rules.yaml"}
    assert (report.usage.asked, report.usage.cached, report.usage.cost_usd) == (0, 3, 0)
    assert audit_report(out).violations == ()
    [table] = [each for each in report.tables if each.name == DIFFERENCE]
    assert [(row["place"], row["before"], row["after"]) for row in table.rows] == [
        ('records, name "MIT", year', "1988", "1989"),
        ("terms/b", "overridden terms/a", "merged"),
    ]
    assert table.title in (out / "report.html").read_text()
    assert table.title in (out / "report.md").read_text()
    assert (out / f"{DIFFERENCE}.csv").read_text().splitlines()[0] == '"part","change","place","before","after"'


def test_the_page_shows_what_is_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of the documentation, one after the other."""
    monkeypatch.chdir(folder.parent)
    page = fences(PAGE)
    for fence, after in pairwise([*page, page[0]]):
        if fence.language == "yaml":
            Path(fence.title).write_text(fence.text)
        if fence.language == "console":
            main(shlex.split(fence.text)[1:])
            shown = capsys.readouterr().out
            assert after.title != "output" or shown.split() == after.text.split(), shown
    assert (folder.parent / "again/report.json").exists()


def test_the_same_rules_make_no_difference(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Merging again is idempotent."""
    assert main(["merge", str(folder)]) == COMPLETE
    assert capsys.readouterr().out.startswith("Nothing differs.\n")


def test_the_integrator_of_a_job_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A job file has more than rules; its items are not read, and a report as a table is written on request."""
    job: dict[str, Any] = {
        "briefs": [{"name": "terms", "instructions": "Say it."}],
        "items": {"glob": "not-there/*.txt"},
        "integrator": {"kind": "collate"},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    command = ["merge", str(folder), "--rules", str(tmp_path / "job.yaml"), "--out", str(tmp_path / "again/all.csv")]
    assert main(command) == COMPLETE
    assert "+ answers" in (shown := capsys.readouterr().out) or "~ answers" in shown
    assert (tmp_path / "again/all.csv").read_text().splitlines()[0] == '"brief","item","name","year"'


def _drop_briefs(report: dict[str, Any]) -> None:
    report["run"]["audit"] = None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--without", "zz"], "--without: the report has no item 'zz'; near are", id="unknown-item"),
        pytest.param(["--without", "*"], "--without: nothing would be left to merge.", id="nothing-left"),
        pytest.param(["--rules", "missing.yaml"], "can't be read: No such file", id="no-file"),
        pytest.param(
            ["--rules", "slip.yaml"],
            "slip.yaml: line 2: the job: unknown key 'ruls'; did you mean 'rules'?",
            id="wrong-key",
        ),
        pytest.param(["--rules", "branches.yaml"], "MergeBranches merges changes in a git repository", id="branches"),
        pytest.param(["--rules", "text.yaml"], "allow it with --allow-calls", id="calls"),
        pytest.param(["--out", "."], "holds the report that is merged; name another folder", id="own-folder"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is written, and the message names the option and the way out."""
    monkeypatch.chdir(folder)
    (folder / "slip.yaml").write_text("kind: merge_records\nruls: {year: max}\nidentity: [name]\n")
    (folder / "branches.yaml").write_text("kind: merge_branches\n")
    (folder / "text.yaml").write_text("kind: synthesize\ninstructions: Sum up.\n")
    assert main(["merge", ".", *arguments]) == UNUSABLE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("integrator", "message"),
    [
        pytest.param(Count(), "is code of your own, which isn't run", id="own"),
        pytest.param(Synthesize(instructions="Sum up."), "allow it with --allow-calls", id="text"),
    ],
)
def test_code_and_models_that_a_report_names_are_not_used(
    integrator: Any,  # noqa: ANN401 -- any integrator
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A report is data: what it names is neither imported nor called."""
    file = publish(tmp_path, Collate(), records())
    report = json.loads(file.read_text())
    described = integrator.model_dump(mode="json") if isinstance(integrator, Synthesize) else "Count"
    report["run"]["integrator"] = described
    file.write_text(json.dumps(report))
    assert main(["merge", str(tmp_path)]) == UNUSABLE
    assert message in capsys.readouterr().err
    assert main(["merge", str(tmp_path), "--allow-calls"]) == UNUSABLE
    assert "--rules" in capsys.readouterr().err


def test_a_report_without_its_briefs_takes_those_of_the_job(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report of an older version doesn't have them."""
    report = json.loads((folder / "report.json").read_text())
    _drop_briefs(report)
    (folder / "report.json").write_text(json.dumps(report))
    assert main(["merge", str(folder)]) == UNUSABLE
    assert "--rules" in capsys.readouterr().err
    (tmp_path / "rules.yaml").write_text("kind: collate\n")
    assert main(["merge", str(folder), "--rules", str(tmp_path / "rules.yaml")]) == UNUSABLE
    assert "The report doesn't have the briefs of its job" in capsys.readouterr().err
    (tmp_path / "job.yaml").write_text("briefs: [{name: terms, instructions: -, output: {}}]\nitems: [a]\n")
    assert main(["merge", str(folder), "--rules", str(tmp_path / "job.yaml")]) == COMPLETE


def test_a_judge_of_several_briefs_is_not_asked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be shown the items, which a report doesn't have."""
    report = json.loads((folder / "report.json").read_text())
    _drop_briefs(report)
    (folder / "report.json").write_text(json.dumps(report))
    (tmp_path / "job.yaml").write_text(
        "briefs: [{name: terms, instructions: -, output: {}}, {name: other, instructions: -, output: {}}]\n"
        "items: [a]\nintegrator: {kind: tournament, criterion: The shorter one.}\n"
    )
    assert main(["merge", str(folder), "--rules", str(tmp_path / "job.yaml"), "--allow-calls"]) == UNUSABLE
    assert "The judge is shown the items, which a report doesn't contain" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other files are written."""
    (tmp_path / "again" / "report.html" / "kept").mkdir(parents=True)
    assert main(["merge", str(folder), "--out", str(tmp_path / "again")]) == COMPLETE
    assert "report.html was not written; the other files are." in capsys.readouterr().err
    assert (tmp_path / "again" / "report.json").is_file()


def test_rules_that_do_not_fit_fail(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An integrator that raises is a failure with its reason."""
    (tmp_path / "mine.py").write_text("def largest(values):\n    raise ValueError('no year')\n")
    (tmp_path / "rules.yaml").write_text("kind: merge_records\nidentity: [name]\nrules: {year: 'mine:largest'}\n")
    assert main(["merge", str(folder), "--rules", str(tmp_path / "rules.yaml")]) == FAILED
    assert "no year" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_text_is_written_again_where_calls_are_allowed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the integrator's own query is sent, to the model that the user's file names."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with openai_server(Behaviour(content="MIT is of 1988 or 1989 [1][2]. ISC is of 2007 [3].")) as server:
        writer = {"kind": "llm", "model": "openai/x", "api_base": server.url}
        rules = {"kind": "synthesize", "instructions": "Sum up.", "executor": writer}
        (tmp_path / "rules.yaml").write_text(json.dumps(rules))
        command = ["merge", str(folder), "--rules", str(tmp_path / "rules.yaml"), "--allow-calls"]
        assert main([*command, "--out", str(tmp_path / "again")]) == COMPLETE
        assert server.count == 1
    assert "ISC is of 2007" in capsys.readouterr().out
    assert load(tmp_path / "again").integration.asked == 1


def test_what_rests_on_an_item(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fields from it alone, fields that others support, and values that a rule removed."""
    assert main(["explain", str(folder), "--from", "a"]) == COMPLETE
    shown = capsys.readouterr().out
    assert shown.startswith("1 of 3 outcomes: terms/a\n")
    assert "In the merged value from them alone (1):\n  /records/1/year = 1988" in shown
    assert 'In the merged value from them and others (1):\n  /records/1/name = "MIT" (also from terms/b)' in shown
    assert main(["explain", str(folder), "--from", "terms/b"]) == COMPLETE
    assert "Values of theirs that a rule removed (1):\n  /records/1/year = 1989 by" in capsys.readouterr().out


def test_of_a_text_the_sentences_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And not the whole text, which rests on all answers."""
    text = "MIT is of 1988 or 1989 [1][2]. ISC is of 2007 [3].\n\n## Sources\n\n[1] terms/a\n[2] terms/b\n[3] terms/c"
    refs = tuple(Ref.of(each) for each in records())
    row = FieldRow(path="", winner=text, losers=(), rule="cited", sources=refs)
    publish(tmp_path, Collate(), records(), value=text, fields=(row,))
    assert main(["explain", str(tmp_path), "--from", "c"]) == COMPLETE
    assert capsys.readouterr().out == (
        "1 of 3 outcomes: terms/c\nSentences that cite them alone (1):\n  ISC is of 2007 [3].\n"
    )


def test_sources_are_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown item, and a value beside items."""
    assert main(["explain", str(folder), "--from", "zz"]) == UNUSABLE
    assert "The report has no item 'zz'; near are" in capsys.readouterr().err
    assert main(["explain", str(folder), "year", "--from", "a"]) == UNUSABLE
    assert "not both" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("integrator", "outcomes", "expected"),
    [
        pytest.param(Collate(), records(), "In the merged value from them alone (1):", id="collate"),
        pytest.param(
            Consensus(),
            [say("a", {"x": 1}), say("a", {"x": 1}, brief="other"), say("b", {"x": 2})],
            "In the merged value from them and others",
            id="consensus",
        ),
    ],
)
def test_sources_of_other_integrators(
    integrator: Collate | Consensus,
    outcomes: list[Outcome],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever merged, as long as it traces fields."""
    publish(tmp_path, integrator, outcomes)
    assert main(["explain", str(tmp_path), "--from", "terms/a"]) == COMPLETE
    assert expected in capsys.readouterr().out
