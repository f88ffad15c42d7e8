"""The report as text: complete, bounded, and inert whatever it has to quote."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.explain import explain
from prefect_dispatch.ledger import FieldRow, LedgerRow, Loser, Ref, Violation
from prefect_dispatch.models import Failure, Outcome
from prefect_dispatch.render import MAX_CHARACTERS, MAX_ROWS, cell, markdown, outcome_rows
from prefect_dispatch.report import Gap, Report
from prefect_dispatch.terminal import summary

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
    assert len(cell("y\n" * 500)) == 200
    assert cell(3) == "3"


def test_the_table_of_outcomes_starts_with_what_failed() -> None:
    """Failures first, each with its reason; answers as JSON."""
    rows = outcome_rows(report())
    assert [row["status"] for row in rows] == ["failed", "succeeded"]
    assert rows[0]["error"].startswith("rejected: x&#124;y")
    assert (rows[1]["answer"], rows[1]["origin"]) == ('{"a":[1]}', "asked")


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
