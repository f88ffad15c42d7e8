"""Collating: every answer in the value, every outcome in the ledger."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators import accuracy
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from tests.integrators.said import entries, miss, say

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

BRIEF = Brief(name="terms", instructions="Read.", output={"type": "object", "properties": {"kind": {}, "paid": {}}})


def scored(folder: Path, text: str, name: str = "right.csv") -> Collate:
    """Return the integrator with a file of expected answers."""
    (folder / name).write_text(text, encoding="utf-8")
    return Collate(expected=name).resolve_paths(folder)


def test_answers_are_compared_with_the_expected_ones(tmp_path: Path) -> None:
    """A failure counts as wrong, an empty cell as unknown; numbers and truth values are read from their texts."""
    by = scored(
        tmp_path, "item,kind,paid,n,note\na,bill,true,1,x\nb,bill,FALSE,2.0,x\nc,fault,,no,x\nd,bill,true,3,x\n"
    )
    said = [
        say("a", {"kind": "bill", "paid": True, "n": 1}),
        say("b", {"kind": "fault", "paid": True, "n": 2}),
        say("c", {"kind": "fault", "paid": None, "n": 3}),
        miss("d"),
        say("e", {"kind": "bill"}),
        say("a", "a text", brief="other"),
    ]
    figures, wrong = by.merge([], said).tables
    assert [tuple(row.values()) for row in figures.rows] == [
        ("terms", "kind", 4, 3, 2, 0.5, 0.75),
        ("terms", "paid", 3, 2, 1, 0.3333, 0.6667),
        ("terms", "n", 4, 3, 2, 0.5, 0.25),
    ]
    assert figures.note.startswith("terms, kind: 2 of 4 right (50%); always 'bill' would be right in 3 (75%).")
    assert [(row["item"], row["field"], row["answer"], row["expected"]) for row in wrong.rows] == [
        ("b", "kind", "fault", "bill"),
        ("d", "kind", None, "bill"),
        ("b", "paid", True, "FALSE"),
        ("d", "paid", None, "true"),
        ("c", "n", 3, "no"),
        ("d", "n", None, "3"),
    ]
    assert by.merge([], said[::-1]) == by.merge([], said)


def test_json_lines_hold_any_expected_value(tmp_path: Path) -> None:
    """Lists are compared as such; where all answers are right, there is no table of wrong ones."""
    rows: list[JsonValue] = [{"item": "a", "kind": ["x", "y"]}, {"item": "b", "kind": None}]
    by = scored(tmp_path, "\n".join(map(json.dumps, rows)), "right.jsonl")
    [figures] = by.merge([], [say("a", {"kind": ["x", "y"]}), say("b", {"kind": []})]).tables
    assert (figures.rows[0]["known"], figures.rows[0]["right"]) == (1, 1)
    assert by.merge([], [say("c", {"kind": 1})]).tables == ()


def test_a_long_list_of_wrong_answers_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table says how many are missing, and the figures count all."""
    monkeypatch.setattr(accuracy, "MAX_WRONG", 1)
    by = scored(tmp_path, "item,kind\na,x\nb,x\n")
    figures, wrong = by.merge([], [say("a", {"kind": "y"}), say("b", {"kind": "y"})]).tables
    assert (len(wrong.rows), wrong.note, figures.rows[0]["right"]) == (1, "1 further one not listed.", 0)


def test_a_merge_without_a_run_reads_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called from Python, a relative path starts at the current folder."""
    scored(tmp_path, "item,kind\na,x\n")
    monkeypatch.chdir(tmp_path)
    assert Collate(expected="right.csv").merge([], [say("a", {"kind": "x"})]).tables[0].rows[0]["right"] == 1


@pytest.mark.parametrize(
    ("text", "output", "problem"),
    [
        pytest.param("item,kid\na,x\n", None, "'kid' is none; did you mean 'kind'?", id="column"),
        pytest.param("item,kind\na,\n", None, "all others are empty", id="empty"),
        pytest.param("item,kind\na,x\n", "text", "no fields to compare", id="text"),
        pytest.param("item,kind\nb,x\n", None, "the first item is 'a', and the first row is 'b'", id="items"),
    ],
)
def test_a_file_that_fits_nothing_is_refused(tmp_path: Path, text: str, output: str | None, problem: str) -> None:
    """Before anything is spent, the message says what doesn't fit."""
    by = scored(tmp_path, text)
    brief = BRIEF if output is None else Brief(name="terms", instructions="Read.")
    with pytest.raises(JobError, match=problem):
        by.with_items([brief], [Item(key="a", value=1)]).preflight([brief])


def test_a_file_that_fits_is_accepted(tmp_path: Path) -> None:
    """Nothing is refused, and neither is a job without expected answers."""
    scored(tmp_path, "item,kind\na,x\n").with_items([BRIEF], [Item(key="a", value=1)]).preflight([BRIEF])
    Collate().with_items([BRIEF], []).preflight([BRIEF])


def test_a_column_without_a_file_is_refused(tmp_path: Path) -> None:
    """A key column alone means that the file was forgotten; a file in an unknown form is refused when it is read."""
    with pytest.raises(ValidationError, match="name it under 'expected'"):
        Collate(expected_key="id")
    with pytest.raises(JobError, match="are in no known form; name a file that ends in"):
        Collate(expected="right.txt").resolve_paths(tmp_path)


def test_answers_stand_in_the_order_of_their_items_and_briefs() -> None:
    """Numbers inside keys count by their value; of one item, briefs come by name."""
    said = [say("f10", 1), say("f9", 2), say("f9", 3, brief="facts")]
    assert entries(Collate().merge([], said)) == [
        {"brief": "facts", "item": "f9", "value": 3},
        {"brief": "terms", "item": "f9", "value": 2},
        {"brief": "terms", "item": "f10", "value": 1},
    ]


def test_each_answer_is_traced() -> None:
    """A field row leads to each answer and names the outcome that it comes from."""
    [row] = Collate().merge([], [say("a", {"x": 1}), miss("b")]).fields
    assert (row.path, row.winner, row.rule, [*map(str, row.sources)]) == (
        "/answers/0/value",
        {"x": 1},
        "collate",
        ["terms/a"],
    )


def test_what_has_no_answer_is_in_the_ledger() -> None:
    """Failed and skipped outcomes are gaps of the value, and in the ledger with the reason."""
    merge = Collate().merge([], [miss("b"), miss("c", "skipped"), say("a", None)])
    assert [(row.item, row.disposition, row.reason) for row in merge.ledger] == [
        ("a", "merged", ""),
        ("b", "failed", "timeout: No answer."),
        ("c", "skipped", "timeout: No answer."),
    ]
    assert merge.value == {
        "answers": [{"brief": "terms", "item": "a", "value": None}],
        "gaps": [
            {"brief": "terms", "item": "b", "status": "failed", "reason": "timeout: No answer."},
            {"brief": "terms", "item": "c", "status": "skipped", "reason": "timeout: No answer."},
        ],
    }


def test_a_failure_without_a_reason_has_its_row() -> None:
    """An outcome that doesn't say why it failed is in the ledger all the same."""
    bare = miss("a").model_copy(update={"error": None})
    assert [row.reason for row in Collate().merge([], [bare]).ledger] == [""]
