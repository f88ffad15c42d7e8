"""Answers on a report's page by their fields: columns, types, order, bounds, and the tables of a merged value."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.reporting.html.answers import (
    MAX_COLUMNS,
    MAX_DEPTH,
    MAX_HEADLINES,
    MAX_TABLE_ROWS,
    build_answer_cells,
    build_value_view,
    flatten_fields,
)
from prefect_dispatch.reporting.html.document import LENGTHS, TextPreviews

if TYPE_CHECKING:
    import pytest
    from pydantic import JsonValue

TERMS = Brief(
    name="terms",
    instructions="Read it.",
    output={"type": "object", "properties": {"year": {"type": "integer"}, "family": {"type": "string"}}},
)


def answered(value: JsonValue, item: str = "a", brief: str = "terms") -> Outcome:
    """Return an outcome with an answer."""
    return Outcome(brief=brief, item=item, status="succeeded", value=value)


def test_fields_are_columns_in_the_order_of_the_schema() -> None:
    """Objects in an answer have columns of their own, lists are one text, booleans and numbers stay what they are."""
    value: JsonValue = {
        "family": "copyleft",
        "free": True,
        "patents": {"granted": False},
        "year": 1989,
        "by": ["A", "B"],
    }
    outcomes = [answered(value), answered("A text.", "b"), answered({"year": None, "note": {}}, "c")]
    failed = Outcome(brief="terms", item="d", status="failed")
    found = build_answer_cells([*outcomes, failed], {"terms": TERMS}, TextPreviews())
    assert found == {
        "columns": {"terms": ["year", "family", "free", "patents.granted", "by", "note"]},
        "more": {},
        "length": LENGTHS[0],
        "rows": [[1989, "copyleft", True, False, "A; B", None], None, [None, None, None, None, None, ""], None],
    }


def test_briefs_have_columns_of_their_own() -> None:
    """A brief that the page doesn't know has its fields in the order in which they come."""
    outcomes = [answered({"b": 1, "a": 2}, brief="one"), answered({"c": 3}, brief="two"), answered([1], brief="three")]
    found = build_answer_cells(outcomes, {}, TextPreviews())
    assert found
    assert found["columns"] == {"one": ["b", "a"], "two": ["c"]}
    assert build_answer_cells([answered("text"), answered({})], {}, TextPreviews()) is None


def test_columns_and_cells_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields that most answers have are shown; long texts end in an ellipsis, and secrets are redacted."""
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    many: dict[str, JsonValue] = {f"rare{n}": n for n in range(MAX_COLUMNS + 5)}
    outcomes = [
        answered(many),
        *(answered({"common": "x" * 5_000, "key": "correct-horse-battery"}, str(n)) for n in range(2)),
    ]
    found = build_answer_cells(outcomes, {}, TextPreviews())
    assert found
    assert len(found["columns"]["terms"]) == MAX_COLUMNS
    assert {"common", "key"} <= {*found["columns"]["terms"]}
    assert found["more"] == {"terms": 7}
    common = found["rows"][1][found["columns"]["terms"].index("common")]
    assert common == "x" * LENGTHS[0] + "…"
    assert "correct-horse" not in json.dumps(found)


def test_what_is_deep_is_text() -> None:
    """Beyond some levels an object is a text, however deep it is."""
    deep: dict[str, JsonValue] = {"a": 1}
    for _ in range(50):
        deep = {"a": deep}
    ((path, _),) = flatten_fields(deep)
    assert len(path) == MAX_DEPTH


def test_a_merged_value_as_tables() -> None:
    """An entry's answer has columns of its own, a field that the entry has, too, keeps its name; gaps are left out."""
    outcomes = [
        answered({"family": "copyleft", "item": "note", "year": 1989}),
        answered("A text.", "b"),
        Outcome(brief="terms", item="c", status="skipped"),
    ]
    found = build_value_view(Collate().merge([TERMS], outcomes).value, [TERMS], TextPreviews())
    assert found == {
        "tables": [
            {
                "name": "answers",
                "columns": ["brief", "item", "value", "year", "family", "value.item"],
                "more": 0,
                "rows": [["terms", "a", None, 1989, "copyleft", "note"], ["terms", "b", "A text.", None, None, None]],
                "of": 2,
            }
        ],
        "facts": [],
        "winners": [],
    }


def test_other_fields_of_a_merged_value() -> None:
    """They are named with their text; empty ones are left out; a list is a table, and a text or nothing is neither."""
    found = build_value_view(
        {"commit": "abc", "names": ["a", "b"], "empty": [], "gaps": [{"item": "c"}]}, (), TextPreviews()
    )
    assert found == {"tables": [], "facts": [["commit", ["abc"]], ["names", ["a; b"]]], "winners": []}
    (only,) = build_value_view([{"a": n} for n in range(MAX_TABLE_ROWS + 1)], (), TextPreviews())["tables"]
    assert (len(only["rows"]), only["of"]) == (MAX_TABLE_ROWS, MAX_TABLE_ROWS + 1)
    for value in (None, "A finding."):
        assert build_value_view(value, (), TextPreviews()) == {"tables": [], "facts": [], "winners": []}


def test_winners_come_first() -> None:
    """Every entry of first rank is a winner, up to a few; a ranking of anything else has none."""
    entries: list[JsonValue] = [
        {"rank": 1, "brief": "b", "item": str(n), "value": {"n": n}, "score": 0.5} for n in range(9)
    ]
    found = build_value_view({"ranking": [*entries, {"rank": 2, "value": "x"}, {"rank": 1}]}, (), TextPreviews())
    assert len(found["winners"]) == MAX_HEADLINES
    assert found["winners"][1] == {"brief": "b", "item": "1", "score": 0.5, "text": ['{\n  "n": 1\n}']}
    (text,) = build_value_view({"ranking": [{"rank": 1, "value": "Buy it."}]}, (), TextPreviews())["winners"]
    assert (text["text"], text["score"]) == (["Buy it."], None)
    assert not build_value_view({"ranking": "none"}, (), TextPreviews())["winners"]
    assert not build_value_view({"ranking": ["text"]}, (), TextPreviews())["winners"]
