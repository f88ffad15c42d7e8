"""A published report, audited again from its files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import (
    Brief,
    Collate,
    Consensus,
    Item,
    Limits,
    MergeRecords,
    Synthesize,
    TestMatrix,
    Tournament,
    dispatch,
)
from prefect_dispatch.cli.commands import COMPLETE, FAILED, GAPS, UNUSABLE, main
from prefect_dispatch.errors import DispatchFailed, RejectedError
from prefect_dispatch.flows.finalize import audit_inputs
from prefect_dispatch.flows.publish import write_files
from prefect_dispatch.integrators.audit.published_report import audit_report
from prefect_dispatch.models.bill import create_bill
from prefect_dispatch.models.ledger import LedgerRow, Merge
from prefect_dispatch.models.outcome import Attempt, Usage
from prefect_dispatch.models.report import Report, Spending
from prefect_dispatch.models.test_run import Result, TestCase, TestRun
from prefect_dispatch.reporting.output_folder import Output
from prefect_dispatch.testing import ScriptedExecutor
from tests.integrators.said import say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from prefect_dispatch import Ask
    from prefect_dispatch.integrators.base import Integrator
    from prefect_dispatch.models.outcome import Outcome

BRIEF = Brief(
    name="terms",
    instructions="Read it.",
    output={"type": "object", "properties": {"name": {"type": "string"}, "year": {"type": "integer"}}},
)
QUICK = Limits(retry_delay_s=0, retries=0, reasks=0)


class Count:
    """An integrator of the user's own."""

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Count the answers."""
        rows = [LedgerRow(brief=each.brief, item=each.item, disposition="merged") for each in outcomes]
        return Merge(value=len(rows), ledger=tuple(rows))


def publish(folder: Path, integrator: Integrator, outcomes: Sequence[Outcome], **more: Any) -> Path:  # noqa: ANN401 -- parts of a report
    """Write the report of a merge, as a run does; return where it is."""
    merge = integrator.merge([BRIEF], outcomes)
    described: Any = integrator
    name = type(integrator).__name__
    run = {
        "integrator": described.model_dump(mode="json") if hasattr(integrator, "model_dump") else name,
        "audit": audit_inputs([BRIEF], integrator),
    }
    parts = {
        each: getattr(merge, each) for each in ("value", "ledger", "fields", "rules", "flags", "tables", "documents")
    }
    report = Report(
        status="complete", message="All.", outcomes=tuple(outcomes), usage=Spending.of(outcomes), run=run, **parts
    )
    write_files(report.model_copy(update=more), Output(folder))
    return folder / "report.json"


def records() -> list[Outcome]:
    """Return answers that agree and disagree."""
    said = [("a", "MIT", 1988), ("b", "MIT", 1989), ("c", "ISC", 2007)]
    return [say(key, {"name": name, "year": year}) for key, name, year in said]


def change(file: Path, edit: Callable[[Any], object]) -> None:
    """Change a report, which stays valid JSON."""
    report = json.loads(file.read_text())
    edit(report)
    file.write_text(json.dumps(report))


def suite(key: str, result: Result) -> Outcome:
    """Return the outcome of a suite with one test."""
    run = TestRun(exit=int(result == "failed"), cases=(TestCase(name="test_a", result=result),))
    return say(key, run.model_dump(mode="json"))


SUITES = [suite("3.10", "passed"), suite("3.13", "failed")]


@pytest.mark.parametrize(
    ("integrator", "outcomes", "checked"),
    [
        pytest.param(Collate(), records(), "the merge, computed once more", id="collate"),
        pytest.param(MergeRecords(identity=("name",)), records(), "the merge, computed once more", id="records"),
        pytest.param(
            Consensus(),
            [say(key, {"x": value}, brief=brief) for brief, key, value in [("terms", "a", 1), ("other", "a", 1)]],
            "the merge, computed once more",
            id="consensus",
        ),
        pytest.param(TestMatrix(on_red="report"), SUITES, "the merge, computed once more", id="matrix"),
        pytest.param(Count(), records(), "the ledger against the outcomes", id="own"),
    ],
)
def test_what_was_published_holds(
    integrator: Integrator, outcomes: list[Outcome], checked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever merged: the exit status is 0, and the command says what it checked, and what it can't check."""
    status = "gaps" if isinstance(integrator, TestMatrix) else "complete"
    more = {"status": status, "shortfalls": integrator.merge([BRIEF], outcomes).shortfalls}
    file = publish(tmp_path, integrator, outcomes, **more)
    for path in (file, tmp_path):
        assert main(["audit", str(path)]) == COMPLETE, capsys.readouterr().out
        told = capsys.readouterr().out
        assert told.startswith("Held.\n")
        assert checked in told
        assert "Not checked: A change that was made in all files alike isn't found." in told
        assert ("Count is code of your own" in told) == isinstance(integrator, Count)


def _drop_row(report: Any) -> None:  # noqa: ANN401 -- JSON
    del report["ledger"][0]


def _set_value(report: Any) -> None:  # noqa: ANN401 -- JSON
    report["value"]["records"][0]["year"] = 1999


def _set_value_and_row(report: Any) -> None:  # noqa: ANN401 -- JSON
    report["value"]["records"][1]["year"] = 1999
    for row in report["fields"]:
        if row["path"] == "/records/1/year":
            row["winner"] = 1999


def _other_winner(report: Any) -> None:  # noqa: ANN401 -- JSON
    """Let the other of two values win, which an answer says as well."""
    for row in report["fields"]:
        if row["losers"]:
            won, lost = row["winner"], row["losers"][0]
            report["value"]["records"][int(row["path"].split("/")[2])]["year"] = lost["value"]
            row["winner"], lost["value"] = lost["value"], won
            row["sources"], lost["sources"] = lost["sources"], row["sources"]


def _add_field(report: Any) -> None:  # noqa: ANN401 -- JSON
    report["value"]["records"][0]["verified"] = True


def _drop_record(report: Any) -> None:  # noqa: ANN401 -- JSON
    del report["value"]["records"][0]


def _say_failed(report: Any) -> None:  # noqa: ANN401 -- JSON
    report["ledger"][0]["disposition"] = "failed"


def _spend_less(report: Any) -> None:  # noqa: ANN401 -- JSON
    report["usage"]["tokens"] = 1


def _tell_a_gap(report: Any) -> None:  # noqa: ANN401 -- JSON
    report["gaps"] = [{"brief": "terms", "item": "a", "status": "failed", "error": {"kind": "x", "message": "x"}}]


def _change_rules(report: Any) -> None:  # noqa: ANN401 -- JSON
    report["rules"] = "Trust us."


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        pytest.param(_drop_row, "conservation at terms/a: it has no ledger row.", id="a-ledger-row"),
        pytest.param(_set_value, "precision at /records/0/year", id="a-value"),
        pytest.param(_set_value_and_row, "precision at /records/1/year", id="a-value-and-its-row"),
        pytest.param(_other_winner, "idempotence at /: merged again", id="another-winner"),
        pytest.param(_add_field, "precision at /records/0/verified", id="a-field"),
        pytest.param(_drop_record, "recall at ", id="a-record"),
        pytest.param(
            _say_failed, "conservation at terms/a: it succeeded, but its ledger row says 'failed'", id="an-end"
        ),
        pytest.param(_spend_less, "conservation at /usage: it is not the sum over the outcomes.", id="usage"),
        pytest.param(_tell_a_gap, "conservation at /gaps: these are not the gaps among the outcomes.", id="a-gap"),
        pytest.param(_change_rules, "its 'rules' differs", id="rules"),
    ],
)
def test_tampering_is_found(
    edit: Callable[[Any], object], found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each change of a report is a violation, and the exit status 1."""
    file = publish(tmp_path, MergeRecords(identity=("name",)), records())
    change(file, edit)
    assert main(["audit", str(file)]) == FAILED
    assert found in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bill_usd", "usage_usd", "places"),
    [
        pytest.param(0.5, 0.5, set[str](), id="same"),
        pytest.param(0.500000001, 0.500000001, set[str](), id="rounded-by-row"),
        pytest.param(0.4, 0.5, {"/bill"}, id="lowered-bill"),
        pytest.param(0.4, 0.4, {"/usage"}, id="lowered-both"),
        pytest.param(None, None, {"/usage"}, id="hidden"),
    ],
)
def test_a_bill_is_the_usage_of_the_outcomes(
    bill_usd: float | None, usage_usd: float | None, places: set[str], tmp_path: Path
) -> None:
    """Costs may differ by what rounding each row makes of them, and by no more."""
    attempt = Attempt(usage=Usage(requests=1, cost_usd=0.5))
    outcomes = [each.model_copy(update={"origin": "asked"}) for each in records()]
    outcomes[0] = outcomes[0].model_copy(update={"attempts": (attempt,)})
    [row] = create_bill(outcomes)
    costs = {"known_usd": bill_usd or 0.0, "cost_usd": bill_usd, "unpriced": int(bill_usd is None)}
    usage = Spending.of(outcomes).model_copy(update={"cost_usd": usage_usd})
    more: dict[str, Any] = {"bill": (row.model_copy(update=costs),), "usage": usage}
    file = publish(tmp_path, MergeRecords(identity=("name",)), outcomes, **more)
    assert {each.where for each in audit_report(file).violations} == places


def test_a_changed_outcome_is_found(tmp_path: Path) -> None:
    """The report no longer says what it says."""
    file = publish(tmp_path, MergeRecords(identity=("name",)), records())
    lines = tmp_path / "outcomes.jsonl"
    lines.write_text(lines.read_text().replace("2007", "2008"))
    assert {each.law for each in audit_report(file).violations} >= {"precision", "recall"}


def test_gaps_and_a_status_go_together(tmp_path: Path) -> None:
    """A run with shortfalls isn't complete."""
    file = publish(tmp_path, Collate(), records(), shortfalls=("Not delivered.",))
    assert [each.where for each in audit_report(file).violations] == ["/status"]


def test_code_of_the_users_own_is_not_run(tmp_path: Path) -> None:
    """A rule that names a function is told; what doesn't need it is checked."""
    file = publish(tmp_path, MergeRecords(identity=("name",)), records())
    change(file, lambda report: report["run"]["integrator"].update(default={"rule": "os:abort"}))
    found = audit_report(file)
    assert found.violations == ()
    assert "A rule is code of your own (os:abort), which isn't run: nothing is merged once more." in found.unchecked
    change(file, _set_value)
    assert [str(each) for each in audit_report(file).violations if each.law == "precision"]


@pytest.mark.parametrize(
    ("integrator", "told"),
    [
        ({"kind": "merge_branches"}, "The changes are in a git repository, which isn't read"),
        ({"kind": "tournament", "results": "ab.csv"}, "The results in 'ab.csv' aren't in the report"),
        ({"kind": "tournament", "metric": "own:length"}, "A rule is code of your own (own:length)"),
        ({"kind": "of_another_version"}, "is code of your own"),
    ],
)
def test_what_is_not_in_the_report_is_told(integrator: dict[str, str], told: str, tmp_path: Path) -> None:
    """The rest is audited all the same."""
    file = publish(tmp_path, Count(), records())
    change(file, lambda report: report["run"].update(integrator=integrator))
    found = audit_report(file)
    assert found.violations == ()
    assert any(told in each for each in found.unchecked)
    assert any("isn't traced" in each for each in found.unchecked)
    change(file, _drop_row)
    assert len(audit_report(file).violations) == 1


def test_a_report_of_an_older_version(tmp_path: Path) -> None:
    """Without its briefs it isn't merged once more, and is traced."""
    file = publish(tmp_path, MergeRecords(identity=("name",)), records())
    change(file, lambda report: report["run"].pop("audit"))
    found = audit_report(file)
    assert found.violations == ()
    assert any("as it is of an older version" in each for each in found.unchecked)
    large = [Brief(name="large", instructions="x", output={"type": "object", "description": "x" * 1_000_001})]
    assert audit_inputs(large, Collate()) is None


def test_how_an_answer_was_joined_is_no_difference(tmp_path: Path) -> None:
    """The ledger of a run says of what parts an answer was made, which the integrator doesn't know."""
    joined = [each.model_copy(update={"joined": "3 parts"}) for each in records()]
    file = publish(tmp_path, MergeRecords(identity=("name",)), joined)

    def say_so(report: Any) -> None:  # noqa: ANN401 -- JSON
        for row in report["ledger"]:
            row["reason"] = "; ".join(filter(None, ("3 parts", row["reason"])))

    change(file, say_so)
    assert audit_report(file).violations == ()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("report.json", None, "report.json' can't be read: No such file"),
        ("report.json", "[]", "is not a report.json as a run writes it: Input should be an object"),
        ("report.json", '{"status": "complete", "message": "", "x": 1}', "unknown key 'x'"),
        ("outcomes.jsonl", None, "outcomes.jsonl' can't be read: No such file or directory. It is beside"),
        ("outcomes.jsonl", "{}\n", "outcomes.jsonl', line 1, is not an outcome"),
    ],
)
def test_what_is_no_report_is_refused(
    name: str, content: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit status 2, and the file."""
    publish(tmp_path, Collate(), records())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    assert main(["audit", str(tmp_path)]) == UNUSABLE
    assert told in capsys.readouterr().err


def test_what_a_run_found_itself_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that failed its audit fails it again; of one that merged nothing there is nothing to audit."""
    file = publish(tmp_path, Collate(), records(), status="failed", value=None)
    assert main(["audit", str(file)]) == UNUSABLE
    assert "The run failed before there was a merged value" in capsys.readouterr().err
    violation = {"law": "recall", "where": "/", "message": "it is lost."}
    change(file, lambda report: report.update(violations=[violation]))
    assert main(["audit", str(file)]) == FAILED
    assert "recall at /: it is lost.\n1 violation.\nNot checked: The run itself found" in capsys.readouterr().out
    change(file, lambda report: report["run"].update(audit={"briefs": 3}))
    change(file, lambda report: report.update(violations=[], status="complete"))
    assert main(["audit", str(file)]) == UNUSABLE


def _answer(ask: Ask) -> Any:  # noqa: ANN401 -- JSON
    """Write, judge by length, or answer."""
    shown: Any = ask.item.value
    if ask.brief.name == "judge":
        return {
            "reason": "It is longer.",
            "winner": "first" if len(shown["first"]) > len(shown["second"]) else "second",
        }
    if ask.item.key == "lost":
        raise RejectedError("refused")
    return {"name": ask.item.key[:1], "year": 1988} if ask.brief.name == "terms" else f"{ask.brief.name} [1]."


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["records", "tournament", "synthesize"])
def test_what_a_run_publishes_holds(kind: str, store: Path, tmp_path: Path) -> None:
    """With decisions and gaps, with questions of the integrator's own: as it is written by `dispatch`."""
    (tmp_path / "decisions.yaml").write_text("same:\n- [{name: a}, {name: b}]\n")
    variants = [Brief(name=name, instructions=f"Write like {name}.") for name in ("short", "longer")]
    integrator, briefs = {
        "records": (MergeRecords(identity=("name",), aliases="decisions.yaml"), [BRIEF]),
        "tournament": (Tournament(criterion="Longer."), variants),
        "synthesize": (Synthesize(instructions="Sum up."), variants),
    }[kind]
    items = [Item(key=key, value=key) for key in ("a1", "b1", "c1", *(["lost"] if kind == "records" else []))]
    folder = tmp_path / "out"
    try:
        dispatch(
            briefs,
            items,
            executor=ScriptedExecutor(_answer),
            integrator=integrator,
            limits=QUICK,
            folder=str(tmp_path),
            out=str(folder),
        )
    except DispatchFailed as failed:
        pytest.fail(str(failed))
    found = audit_report(folder)
    assert found.violations == ()
    assert any("faithful" in each for each in found.unchecked) == (kind == "synthesize")
    assert ("the merge, computed once more" in found.checked) == (kind != "synthesize")
    change(folder / "report.json", _drop_row)
    assert audit_report(folder).violations != ()


def test_expected_answers_are_not_in_a_report(tmp_path: Path) -> None:
    """So a table of accuracy can't be computed again, which is said."""
    integrator = Collate(expected="right.csv")
    file = publish(tmp_path, Collate(), records())
    report = json.loads(file.read_text())
    report["run"]["integrator"] = integrator.model_dump(mode="json")
    file.write_text(json.dumps(report))
    assert any("The expected answers in " in each for each in audit_report(file).unchecked)


def test_a_run_states_what_the_brief_requires(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A merged value that violates its brief is published with gaps; a changed verdict is found by the audit."""
    output: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}, "maxProperties": 2}
    check = {"kind": "max_words", "field": "name", "words": 2}
    brief = Brief.model_validate({**dict(BRIEF), "scope": "One licence.", "output": output, "checks": [check]})
    answers: Any = {"a": {"name": "MIT", "x": 1}, "b": {"name": "mit", "y": 2}, "c": {"name": "ISC"}}
    report = dispatch(
        [brief],
        [Item(key=key, value=key) for key in answers],
        executor=ScriptedExecutor(lambda ask: answers[ask.item.key]),
        integrator=MergeRecords(identity=("name",)),
        limits=QUICK,
    )
    assert (report.status, report.gaps, report.violations) == ("gaps", (), ())
    assert report.message == (
        "3 of 3 answered. The merged value violates 1 requirement: output of terms at /records/1."
    )
    assert [(row.kind, row.verdict) for row in report.requirements] == [
        ("output", "violated"),
        ("check", "met"),
        ("scope", "not_checkable"),
    ]
    write_files(report, Output(tmp_path))
    text = (tmp_path / "report.md").read_text()
    assert "## What the briefs require" in text
    assert "/records/1 (a, b)" in text
    assert main(["audit", str(tmp_path)]) == COMPLETE
    assert main(["explain", str(tmp_path)]) == COMPLETE
    assert "Requirement violated: output of terms: Each answer conforms" in capsys.readouterr().out
    assert main(["merge", str(tmp_path), "--without", "b"]) == GAPS
    assert "+ met: output of terms" in capsys.readouterr().out
    assert main(["merge", str(tmp_path), "--without", "b", "--without", "a"]) == GAPS
    assert "no answer for 2 (2 left_out)" in capsys.readouterr().out
    published = (tmp_path / "report.json").read_text()

    def audited(edit: Callable[[Any], object]) -> str:
        (tmp_path / "report.json").write_text(published)
        change(tmp_path / "report.json", edit)
        assert main(["audit", str(tmp_path)]) == FAILED
        return capsys.readouterr().out

    def embellish(given: Any) -> None:  # noqa: ANN401 -- a report
        given |= {"requirements": [], "status": "complete", "shortfalls": []}

    assert "the report lacks 'Requirement violated" in audited(embellish)
    assert "the report lacks 'Requirement met" in audited(lambda given: given["requirements"].pop(1))
    assert "has another verdict than" in audited(lambda given: given["requirements"][0].update(verdict="met"))
    assert "has another verdict than" in audited(lambda given: given["requirements"][2].update(verdict="met"))
    assert "the briefs have no" in audited(lambda given: given["requirements"][2].update(text="It is true."))
    assert "beside gaps, shortfalls or violated requirements" in audited(
        lambda given: given.update(status="complete", shortfalls=[])
    )
