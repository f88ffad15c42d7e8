"""Differences of two merged reports as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.models.ledger import Flag, LedgerRow, Proposal
from prefect_dispatch.models.report import Report
from prefect_dispatch.reporting.difference import MAX_LINES, describe_difference

if TYPE_CHECKING:
    from pydantic import JsonValue


def report(value: JsonValue = None, **parts: object) -> Report:
    """Return a report with a merged value."""
    return Report.model_validate({"status": "complete", "message": "All.", "value": value, **parts})


def difference(before: JsonValue, after: JsonValue) -> list[str]:
    """Return the lines on two merged values, without the title."""
    return describe_difference(report(before), report(after), ["name"]).splitlines()[1:]


def test_equal_reports_have_none() -> None:
    """A sentence says so."""
    assert describe_difference(report({"a": 1}), report({"a": 1})) == "Nothing differs."
    assert describe_difference(report([1]), report([1])) == "Nothing differs."


def test_texts_differ_line_by_line() -> None:
    """Lines that both have are left out."""
    assert difference("one\ntwo\nthree", "one\n2\nthree") == ["  - two", "  + 2"]


def test_values_of_other_types_differ_as_a_whole() -> None:
    """A text against a list, or a list against a number."""
    assert difference("one", ["one"]) == ['  ~ "one" -> ["one"]']
    assert difference([1], 1) == ["  ~ [1] -> 1"]


def test_fields_beside_the_entries_differ_by_name() -> None:
    """An object of the merged value that is no list."""
    assert difference({"winner": "a", "n": 1}, {"winner": "b", "n": 1}) == ['  ~ winner "a" -> "b"']


def test_entries_differ_by_their_names() -> None:
    """By brief and item, by identity, or by their content; several of one name are compared as a whole."""
    record: JsonValue = {"name": "m", "n": 1}
    before: JsonValue = {"answers": [{"brief": "b", "item": "x", "value": 1}, 7, 7], "records": [record]}
    after: JsonValue = {"answers": [{"brief": "b", "item": "x", "value": 2}, 7], "records": [record, record]}
    assert difference(before, after) == [
        "  ~ answers, b/x: value 1 -> 2",
        "  - answers: 7",
        '  + records: {"n":1,"name":"m"}',
    ]


def test_entries_without_an_identity_differ_by_their_content() -> None:
    """Their order makes no difference."""
    before, after = report({"list": [{"a": 1}, {"a": 2}]}), report({"list": [{"a": 2}, {"a": 3}]})
    assert describe_difference(before, after).splitlines()[1:] == ['  - list: {"a":1}', '  + list: {"a":3}']


def test_the_rest_of_a_report_differs_line_by_line() -> None:
    """Dispositions, flags, proposals and shortfalls."""
    row = LedgerRow(brief="b", item="x", disposition="merged")
    flag = Flag(path="/a", kind="conflict", text="1", message="They disagree.")
    proposal = Proposal(
        left={"name": "a"}, right={"name": "b"}, score=0.9, why="Alike.", left_sources=(), right_sources=()
    )
    before = report(ledger=(row,), flags=(flag, flag.model_copy(update={"path": ""})))
    after = report(proposals=(proposal,), shortfalls=("Half is missing.",))
    assert describe_difference(before, after).splitlines() == [
        "The ledger (1 difference):",
        "  ~ b/x: merged -> not there",
        "Flags (2 differences):",
        "  - /a: conflict: 1: They disagree.",
        "  - /: conflict: 1: They disagree.",
        "Proposals (1 difference):",
        '  + {"name":"a"} and {"name":"b"}: Alike.',
        "Shortfalls (1 difference):",
        "  + Half is missing.",
    ]


def test_long_lists_are_counted() -> None:
    """The first lines are shown."""
    lines = difference([], {"list": []})
    assert lines == ['  ~ [] -> {"list":[]}']
    lines = difference({"list": []}, {"list": list(range(MAX_LINES + 2))})
    assert len(lines) == MAX_LINES + 1
    assert lines[-1] == "  … and 2 more."
