"""The report as text: complete, bounded, and inert whatever it has to quote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from prefect_dispatch.cli.console import summary
from prefect_dispatch.models.decisions import Choice, Decisions
from prefect_dispatch.models.ledger import (
    Document,
    FieldRow,
    Flag,
    Gap,
    LedgerRow,
    Loser,
    Proposal,
    Ref,
    Table,
    Violation,
)
from prefect_dispatch.models.outcome import Failure, Outcome
from prefect_dispatch.models.report import Report, Spending
from prefect_dispatch.reporting.explain import explain
from prefect_dispatch.reporting.markdown import MAX_CHARACTERS, MAX_COLUMNS, markdown, outcome_rows
from prefect_dispatch.reporting.output_folder import Output
from prefect_dispatch.security.escaping import MAX_ROWS, escape_cell

if TYPE_CHECKING:
    from pydantic import JsonValue

HOSTILE = "x|y\n<img src=x onerror=alert(1)> ![a](http://e.example/b.png) `code` \x1b[31m # head"


def report(value: JsonValue = None, rows: int = 1) -> Report:
    """Return a failed report that quotes hostile text everywhere."""
    ref = Ref(brief="b", item=HOSTILE)
    return Report(
        status="failed",
        message=f"Failed: {HOSTILE}",
        value=value,
        ledger=tuple(
            LedgerRow(brief="b", item=f"{n} {HOSTILE}", disposition="failed", reason=HOSTILE) for n in range(rows)
        ),
        fields=(
            FieldRow(
                path="/0/name",
                winner="kept",
                losers=(Loser(value={"a": HOSTILE}, sources=(ref,)),),
                rule="priority",
                sources=(ref,),
            ),
        ),
        gaps=(Gap(brief="b", item=HOSTILE, status="failed", error=Failure(kind="rejected", message=HOSTILE)),),
        violations=(Violation(law="recall", where=HOSTILE, message=HOSTILE),),
        outcomes=(
            Outcome(brief="b", item=HOSTILE, status="failed", error=Failure(kind="rejected", message=HOSTILE)),
            Outcome(brief="b", item="ok", status="succeeded", value={"a": [1]}, origin="asked"),
        ),
    )


def test_what_is_quoted_cannot_act() -> None:
    """No line of the report but its own holds markup: no image, no tag, no heading, no broken table."""
    text = markdown(report())
    for line in text.splitlines():
        if line.startswith(("# ", "## ")) or not line or set(line) <= set("|- "):
            continue
        assert "<img" not in line
        assert "![" not in line
        assert "`" not in line.replace("`report.json`", "")
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| b |")]
    assert set(columns) == {6}


def test_a_value_cannot_end_its_fence() -> None:
    """A merged value with fences of its own stays inside one that is longer."""
    value: JsonValue = ["```", "`````\n# head"]
    text = markdown(report(value))
    opening = next(line for line in text.splitlines() if line.endswith("json") and line.startswith("`"))
    fence = opening.removesuffix("json")
    assert len(fence) == 6
    inside = text.split(opening + "\n")[1].split("\n" + fence)[0]
    assert json.loads(inside) == value


def test_a_large_report_is_cut_and_says_so() -> None:
    """Rows, value and the whole are bounded; each cut is told."""
    many = tuple(LedgerRow(brief="b", item=str(n), disposition="merged") for n in range(MAX_ROWS + 3))
    text = markdown(Report(status="complete", message="All.", value=["x" * 60_000], ledger=many))
    assert "… and 3 more rows in `report.json`." in text
    assert "… cut here; `report.json` has everything." in text
    wide = tuple(LedgerRow(brief="b", item=f"{n}" + "|" * 200, disposition="merged") for n in range(MAX_ROWS))
    text = markdown(Report(status="complete", message="All.", ledger=wide))
    assert text.endswith("… cut here; `report.json` has everything.\n")
    assert len(text) <= MAX_CHARACTERS + 100


def test_cells_are_short_and_flat() -> None:
    """A long text is cut to length, on one line."""
    assert len(escape_cell("y\n" * 500)) == 200
    assert escape_cell(3) == "3"


def test_the_table_of_outcomes_starts_with_what_failed() -> None:
    """Failures first, each with its reason; a column for each field of the answers, the same columns in each row."""
    rows = outcome_rows(report())
    assert [row["status"] for row in rows] == ["failed", "succeeded"]
    assert rows[0]["error"].startswith("rejected: x&#124;y")
    assert [row["a"] for row in rows] == ["", "[1]"]
    assert rows[1]["origin"] == "asked"
    assert list(rows[0]) == list(rows[1])
    assert "answer" not in rows[0]


def outcomes_of(*values: JsonValue) -> Report:
    """Return a report with these answers."""
    outcomes = tuple(
        Outcome(brief="b", item=str(n), status="succeeded", value=value, origin="asked")
        for n, value in enumerate(values)
    )
    return Report(status="complete", message="All.", outcomes=outcomes)


def test_the_table_of_outcomes_keeps_other_answers_and_further_fields() -> None:
    """Texts have a column; so have the fields for which there is no room, and a field named like another column."""
    rows = outcome_rows(outcomes_of("a text", {"status": "in force", "of|": None}, [1]))
    assert [row["answer"] for row in rows] == ["a text", "", "[1]"]
    assert [row["answer.status"] for row in rows] == ["", "in force", ""]
    assert rows[1]["status"] == "succeeded"
    many: JsonValue = {f"f{n}": n for n in range(MAX_COLUMNS + 2)}
    (row,) = outcome_rows(outcomes_of(many))
    assert (row["f0"], row["answer"]) == ("0", '{"f20":20,"f21":21}')


def value_of(value: JsonValue) -> str:
    """Return the section of a report with the merged value."""
    return (
        markdown(Report(status="complete", message="All.", value=value)).split("## Result\n\n")[1].split("\n\n## ")[0]
    )


def test_answers_that_are_objects_are_a_table() -> None:
    """One column for each field; the brief's only where there are several."""
    answers: JsonValue = [
        {"brief": "b", "item": "x|y", "value": {"family": "permissive", "item": 3}},
        {"brief": "b", "item": "z", "value": {"family": None, "year": 1843, "free": True}},
    ]
    assert value_of({"answers": answers, "gaps": []}).splitlines() == [
        "| item | family | value.item | year | free |",
        "| --- | --- | --- | --- | --- |",
        "| x&#124;y | permissive | 3 |  |  |",
        "| z |  |  | 1843 | true |",
    ]
    assert value_of(answers).startswith("| item | family |")
    assert "| brief | item | value |" in value_of([{"brief": name, "item": "x", "value": "text"} for name in "ab"])
    assert value_of([{"brief": "b"}]).startswith("| brief |")


def test_answers_that_are_records_have_a_row_for_each() -> None:
    """A list of records, or an object with nothing else; an answer without any still has its row."""
    records: JsonValue = [{"name": "Ada"}, {"name": "Alan"}]
    answers: list[tuple[JsonValue, JsonValue]] = [({"records": records}, {"records": []}), (records, [])]
    for first, second in answers:
        entries: JsonValue = [{"item": "one", "value": first}, {"item": "two", "value": second}]
        assert value_of({"answers": entries}).splitlines()[2:] == ["| one | Ada |", "| one | Alan |", "| two |  |"]
    mixed: JsonValue = [{"item": "one", "value": [{"n": 1}]}, {"item": "two", "value": 3}]
    assert '| one | &#91;{"n":1}] |' in value_of({"answers": mixed})
    assert '| one | &#91;"a"] |' in value_of({"answers": [{"item": "one", "value": {"tags": ["a"]}}]})


def test_several_lists_of_a_value_have_a_heading_each() -> None:
    """What is no list of objects stands below as JSON; empty lists and gaps are left out."""
    text = value_of({"records": [{"a": 1}], "also_reported": [{"b": 2}], "commit": "87b4", "none": [], "gaps": []})
    assert "### Records\n\n| a |" in text
    assert "### Also reported\n\n| b |" in text
    assert text.endswith('```json\n{\n  "commit": "87b4"\n}\n```')
    assert value_of({"records": [], "gaps": []}) == "No rows."
    assert value_of(0) == "```json\n0\n```"


def test_the_winner_stands_first_and_in_full() -> None:
    """Longer than a cell; all of them where the first place is shared."""
    text = "word " * 100
    ranking: JsonValue = [
        {"brief": "plain", "item": "kettle", "value": text, "rank": 1, "score": 0.6},
        {"brief": "short", "item": "kettle", "value": {"title": "Tea"}, "rank": 1, "score": 0.6},
        {"brief": "poor", "item": "kettle", "value": "no", "rank": 2, "score": 0.1},
    ]
    value = value_of({"ranking": ranking, "unranked": [], "gaps": []})
    assert value.startswith(f"### First: plain/kettle\n\n> {text.strip()}\n\n### First: short/kettle\n\n")
    assert "| title | Tea |" in value
    assert "| poor | kettle | no | 2 | 0.1 |" in value


def test_a_finding_with_a_form_stands_before_what_is_said_about_it() -> None:
    """And a test matrix as the tables that are made for reading."""
    value = value_of({"value": {"title": "Tea"}, "also_reported": [{"item": "a"}], "cited": {"/value/title": [1]}})
    assert value.startswith('```json\n{\n  "title": "Tea"\n}\n```\n\n| item |')
    assert value.endswith("```")
    assert value.count("Tea") == 1
    matrix = Table(name="test-matrix", title="Tests", rows=({"test": "a"},))
    text = markdown(rich(tables=(matrix,), value={"environments": [{"key": "python"}]}))
    assert re.findall("(?m)^## (.*)", text)[0] == "Tests"
    assert "python" not in text


def test_answers_of_a_run_without_a_merge_are_shown() -> None:
    """Of a cancelled run, say; a text as prose."""
    text = markdown(outcomes_of({"year": 1843}).model_copy(update={"status": "failed", "run": {"cancelled": True}}))
    assert text.startswith("# Cancelled\n\nAll.\n\n## Answers, not merged\n\n| item | year |")
    assert "## Answers, not merged\n\n**b/0**\n\n> word word" in markdown(outcomes_of("word " * 100))


def test_what_a_table_leaves_out_is_said() -> None:
    """Rows, columns and texts are bounded, all together as well."""
    many = value_of([{"n": n} for n in range(MAX_ROWS + 3)])
    assert many.endswith("Not shown: 3 more rows; `report.json` has everything.")
    wide = value_of([{f"f{n}": n for n in range(MAX_COLUMNS + 1)}])
    assert wide.endswith("Not shown: 1 more column (f20); `report.json` has everything.")
    long = value_of([{"item": "a", "note": "x" * 300}])
    assert long.endswith("Not shown: what is beyond 200 characters in a cell; `report.json` has everything.")
    large = value_of([{f"f{n}": "x" * 200 for n in range(MAX_COLUMNS)} for _ in range(50)])
    assert large.count("\n| x") == 12
    assert "38 more rows" in large


def test_long_answers_that_are_texts_are_read_as_prose() -> None:
    """Each under its item, line by line, up to the most that a value may take."""
    text = "# One.\n\n" + "word " * 100
    entries: list[JsonValue] = [{"brief": "b", "item": str(n), "value": text} for n in range(200)]
    value = value_of({"answers": entries, "gaps": []})
    assert value.startswith("**b/0**\n\n> &#35; One.\n>\n> word ")
    assert re.search(r"Not shown: \d+ more answers; `report.json` has everything\.$", value)
    assert len(value) < 60_000
    assert "Not shown" not in value_of(entries[:2])


def test_the_rules_are_last_and_folded() -> None:
    """However long the rest is."""
    for value in ("short", ["x" * 40] * 400):
        ledger = tuple(LedgerRow(brief="b", item=f"{n}" + "|" * 200, disposition="merged") for n in range(MAX_ROWS))
        text = markdown(rich(value=value, ledger=ledger))
        assert text.endswith(
            "<details>\n<summary>How the answers were merged</summary>\n\n"
            "Everything &#42;counts&#42; once.\n\n</details>\n"
        )
        assert len(text) <= MAX_CHARACTERS + 100


def test_the_terminal_is_not_steered() -> None:
    """Control characters of an agent or a key never reach the terminal."""
    assert "\x1b" not in markdown(report([HOSTILE, "\x9b31m\u202e"]))
    assert "\\u009b31m\\u202e" in markdown(report([HOSTILE, "\x9b31m\u202e"]))
    assert "\x1b" not in summary(report(), None)
    assert "\x1b" not in explain(report())
    assert "\x1b" not in explain(report(), "/0/name")
    assert "\x1b" not in explain(report(), f"0 {HOSTILE}")


def test_a_report_explains_itself() -> None:
    """As a whole: verdict, counts, violations, gaps, conflicts. By field: winner, rule, losers."""
    whole = explain(report())
    assert "Ledger: 1 failed" in whole
    assert "Violation: recall at" in whole
    assert "Conflicts at /0/name" in whole
    story = explain(report(), "name")
    assert '/0/name = "kept" (from b/x|y' in story
    assert "rule: priority" in story
    assert "not kept: " in story
    with pytest.raises(LookupError, match="near are"):
        explain(report(), "nam")


def test_an_item_tells_what_it_gave_and_lost() -> None:
    """By item: its disposition, the fields that it gave, and those that a rule took."""
    one, two = (Ref(brief="b", item=key) for key in ("one", "two"))
    told = Report(
        status="gaps",
        message="2 of 3 answered.",
        ledger=(
            LedgerRow(brief="b", item="one", disposition="merged"),
            LedgerRow(brief="b", item="two", disposition="overridden", by=one, reason="priority: name"),
            LedgerRow(brief="b", item="three", disposition="failed", reason="timeout: no answer"),
        ),
        fields=(
            FieldRow(
                path="/0/name",
                winner="A",
                losers=(Loser(value="B", sources=(two,)),),
                rule="priority",
                sources=(one,),
            ),
        ),
        gaps=(Gap(brief="b", item="three", status="failed", error=Failure(kind="timeout", message="no answer")),),
    )
    assert explain(told, "one") == 'b/one: merged\n  gave /0/name = "A"'
    assert explain(told, "b/two") == 'b/two: overridden b/one: priority: name\n  lost /0/name = "B" by priority'
    assert "timeout: no answer" in explain(told, "three")
    assert explain(told.model_copy(update={"fields": ()})).count("\n") == 2


def rich(**changes: object) -> Report:
    """Return a report that has everything a report can have."""
    one, two = (Ref(brief="b", item=key) for key in ("one", "two"))
    said: dict[str, object] = {
        "status": "gaps",
        "message": "2 of 2 answered. It fell short.",
        "value": "# A finding\n\nIt holds [1].\n- so",
        "ledger": tuple(LedgerRow(brief="b", item=ref.item, disposition="merged") for ref in (one, two)),
        "rules": "Everything *counts* once.",
        "shortfalls": ("It fell short.", "And\n# again."),
        "flags": (Flag(path="", kind="number", text="17", start=3, message="Nobody says 17.", sources=(one,)),),
        "proposals": (
            Proposal(
                left={"name": "MIT"},
                right={"name": 'MIT: "`\u202e'},
                score=0.91234,
                why="Alike.",
                left_sources=(one,),
                right_sources=(two,),
            ),
            Proposal(left="x", right="y", score=0.5, why="Own.", left_sources=(), right_sources=()),
        ),
        "tables": (
            Table(
                name="trust", title="Whom to *trust*", rows=({"who": "b|c", "weight": 0.5, "note": None},), note="Read."
            ),
            Table(name="empty", title="Nothing"),
        ),
        "decided": Decisions(
            same=(({"name": "A"}, {"name": "B"}),),
            different=(({"name": "A"}, {"name": "C"}),),
            fields=(Choice(record={"name": "A"}, field="year", value=1),),
        ),
        "usage": Spending(asked=3, requests=3),
        "integration": Spending(asked=1, requests=2, cost_usd=None),
    }
    return Report.model_validate({**said, **changes})


def test_a_report_tells_the_result_first_and_then_what_a_reader_has_to_act_on() -> None:
    """The result, then problems, tables, figures, the ledger; each under a heading of its own."""
    headings = [line.removeprefix("## ") for line in markdown(rich()).splitlines() if line.startswith("## ")]
    assert headings == [
        "Result",
        "What could not be done",
        "Not to be taken on trust",
        "Decided in this run's review",
        "To decide: one or two?",
        "Whom to &#42;trust&#42;",
        "Nothing",
        "Numbers",
        "Ledger",
    ]


def test_prose_is_read_as_prose() -> None:
    """A text stands there line by line, not as a JSON string, and opens no heading."""
    text = markdown(rich())
    assert "> &#35; A finding\n>\n> It holds [1].  \n> &#45; so" in text
    assert "\\n" not in text


def test_a_report_says_how_to_decide() -> None:
    """The lines for the decisions file can be taken as they stand: they load as the decision on that pair."""
    text = markdown(rich())
    (pair,) = [line for line in text.splitlines() if line.startswith('| 0.912 | {"name":"MIT"} |')]
    assert pair.endswith("| Alike. | b/one | b/two |")
    lines = text.split("```yaml\n")[1].split("\n```")[0]
    assert all(line.isprintable() for line in lines.split("\n"))
    loaded = Decisions.model_validate(yaml.safe_load(lines))
    assert loaded.same == (({"name": "MIT"}, {"name": 'MIT: "`\u202e'}),)
    nothing = rich(proposals=(rich().proposals[1],))
    assert "```yaml" not in markdown(nothing)


def test_the_integrators_share_stands_beside_the_whole() -> None:
    """A column of its own where it asked anything, and none where it did not."""
    assert "| asked | unknown | 3 | 1 |" in markdown(rich())
    assert "| cost in USD | unknown | 0.0 | unknown |" in markdown(rich())
    assert "of that the integrator" not in markdown(rich(integration=Spending()))
    assert "of that estimated" not in markdown(rich())
    estimated = rich(usage=Spending(asked=3, cost_usd=0.5, estimated_usd=0.25))
    assert "| of that estimated |  | 0.25 | 0.0 |" in markdown(estimated)


def test_a_table_says_how_to_read_it() -> None:
    """Title, note, columns; a table without rows says so."""
    text = markdown(rich())
    assert "Read.\n\n| who | weight | note |\n| --- | --- | --- |\n| b&#124;c | 0.5 |  |" in text
    assert "## Nothing\n\nNo rows." in text


def test_the_summary_names_what_needs_a_look() -> None:
    """Shortfalls that the message has not, how many flags, pairs and conflicts, the integrator's share, every file."""
    told = summary(rich(), Output(Path("out"))).splitlines()
    assert told[0] == "Complete with gaps: 2 of 2 answered. It fell short."
    assert told[1:3] == ["Shortfall: And # again.", "To look at: 1 flag, 2 proposals"]
    assert told[4] == "of that the integrator: asked 1, from the store 0, requests 2, tokens 0, cost unknown"
    assert told[5] == "No report.html: the log of the run says why."
    assert told[6].endswith("out/trust.csv, out/empty.csv")
    beside = (Document(name="junit.xml", title="All", text="<testsuites/>"),)
    assert "out/report.md, out/junit.xml, out/report.json" in summary(rich(documents=beside), Output(Path("out")))
    asked = (Outcome(brief="q", item="a", status="succeeded", value=1),)
    assert summary(rich(asked=asked), Output(Path("out"))).endswith("out/questions.jsonl")


def test_each_conflict_is_counted_once() -> None:
    """As the tables list them: several in one file, one whose file is gone, and one that nobody was to see."""
    refs = tuple(Ref(brief="b", item=key) for key in ("one", "two"))
    fields = [
        FieldRow(path=f"/files/{at}", winner=1, losers=(Loser(value=2, sources=refs[1:]),), rule="r", sources=refs[:1])
        for at in (0, 1)
    ]
    flags = [
        Flag(path=path, kind="conflict", text="a", message="m", sources=refs)
        for path in ("/files/0", "/files/0", "/files")
    ]
    told = summary(rich(fields=fields, flags=(*rich().flags, *flags)), Output(Path("out"))).splitlines()
    assert "To look at: 1 flag, 2 proposals, 4 conflicts" in told


def test_a_report_tells_how_it_went() -> None:
    """What did not go smoothly is counted by class, most first; a run that went smoothly says nothing of it."""
    usage = Spending(reasks=2, unsettled=1, retried={"connection": 1, "timeout": 3}, escalated={"invalid_output": 1})
    rough = rich(usage=usage, run={"seconds": 9, "waits": 4, "waited_s": 12.6})
    table = markdown(rough).split("## How it went\n\n")[1].split("\n\n")[0].splitlines()
    assert table[2:] == [
        "| waits for a busy provider | 4 |  |",
        "| seconds waited, all calls together | 13 |  |",
        "| retries | 4 | 3 timeout, 1 connection |",
        "| re-asks | 2 |  |",
        "| escalations to the next model | 1 | 1 invalid_output |",
        "| calls of unknown cost | 1 |  |",
    ]
    (line,) = [line for line in summary(rough, None).splitlines() if line.startswith("How it went: ")]
    assert "retries 4 (3 timeout, 1 connection), re-asks 2, " in line
    assert "How it went" not in markdown(rich()) + summary(rich(), None)


def test_a_summary_names_the_files(tmp_path: Path) -> None:
    """The page stands first; where there is none, the summary says so."""
    told = summary(Report(status="complete", message="All."), Output(tmp_path))
    assert f"Report: {tmp_path / 'report.md'}, " in told
    assert "No report.html: the log of the run says why." in told
    (tmp_path / "report.html").touch()
    told = summary(Report(status="complete", message="All."), Output(tmp_path))
    assert f"Report: {tmp_path / 'report.html'}, {tmp_path / 'report.md'}, " in told
    assert "No report.html" not in told
