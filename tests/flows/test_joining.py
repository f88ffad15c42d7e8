"""How the answers to the parts of an item become one answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from prefect_dispatch import Brief, Item, Outcome
from prefect_dispatch.errors import InvalidOutput
from prefect_dispatch.flows.runtime.part_joiner import MAX_NAMED, MAX_SHOWN, PartJoiner
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch import Merge

ITEM = Item(key="k", value="a text")
RECORD: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "year": {"type": "integer"}, "tags": {"type": "array"}},
}
LIST = {"type": "array", "items": RECORD}


def joined(output: object, join: object, values: Sequence[JsonValue]) -> tuple[JsonValue, str]:
    """Return what values become."""
    brief = Brief.model_validate(
        {"name": "b", "instructions": "Do.", "output": output, "split": {"by": "lines", "join": join}}
    )
    parts = [Outcome(brief="b", item="k", status="succeeded", value=value) for value in values]
    return PartJoiner([brief], [ITEM], Path())(brief, parts)


@pytest.mark.parametrize(
    ("output", "join", "values", "value", "how"),
    [
        pytest.param("text", None, ["a", "b", "a"], "a\n\nb\n\na", "3 parts, one after another", id="texts"),
        pytest.param(
            {"type": "array"},
            None,
            [[2, {"a": 1, "b": 2}], [], [{"b": 2, "a": 1}, 1, 2.0, True]],
            [2, {"a": 1, "b": 2}, 1, 2.0, True],
            "3 parts, their lists joined without duplicates",
            id="lists",
        ),
        pytest.param(
            LIST,
            {"kind": "merge_records", "identity": ["name"], "rules": {"year": "max"}},
            [[{"name": "MIT", "year": 1987}], [{"name": "mit", "year": 1988}, {"name": "BSD"}]],
            [{"name": "BSD"}, {"name": "MIT", "year": 1988}],
            "2 parts, joined by merge_records; removed: name mit by priority, year 1987 by max",
            id="records",
        ),
        pytest.param(
            RECORD,
            {"kind": "merge_records", "identity": ["{key}"], "rules": {"tags": "union"}},
            [{"name": "MIT", "tags": ["a"]}, {"name": None, "year": 1988, "tags": ["b"]}],
            {"name": "MIT", "tags": ["a", "b"], "year": 1988},
            "2 parts, joined by merge_records",
            id="one-record",
        ),
        pytest.param(
            RECORD,
            {"kind": "merge_records", "identity": ["name"]},
            [{"name": "MIT"}, {"name": "mit", "year": 1988}],
            {"name": "MIT", "year": 1988},
            "2 parts, joined by merge_records; removed: name mit by priority",
            id="one-record-by-name",
        ),
        pytest.param(
            {"type": "object", "properties": {"all": {"type": "object", "properties": {"found": LIST}}}},
            {"kind": "merge_records", "identity": ["name"], "records": "all.found"},
            [{"all": {"found": [{"name": "b"}]}}, {"all": {"found": [{"name": "a"}, {"name": "B"}]}}],
            {"all": {"found": [{"name": "a"}, {"name": "B"}]}},
            "2 parts, joined by merge_records; removed: name b by priority",
            id="records-inside",
        ),
        pytest.param(
            {"type": "object", "properties": {"free": {"type": "boolean"}}},
            {"kind": "consensus"},
            [{"free": True}, {"free": False}, {"free": True}],
            {"free": True},
            "3 parts, joined by consensus; removed: free false by majority",
            id="consensus",
        ),
    ],
)
def test_parts_become_one(output: object, join: object, values: list[JsonValue], value: JsonValue, how: str) -> None:
    """In the form that the brief asks for; and it says how."""
    assert joined(output, join, values) == (value, how)


@pytest.mark.parametrize(
    ("output", "join", "values", "why"),
    [
        pytest.param(
            RECORD,
            {"kind": "merge_records", "identity": ["name"]},
            [{"name": "MIT"}, {"name": "BSD"}],
            r"make 2 answers, and not one; .* identity: \['{key}'\] makes one record of all parts",
            id="several-records",
        ),
        pytest.param({"type": "boolean"}, {"kind": "consensus", "min_votes": 3}, [True] * 2, "make 0", id="undecided"),
    ],
)
def test_parts_that_do_not_become_one(output: object, join: object, values: list[JsonValue], why: str) -> None:
    """An answer that isn't one is no answer; the reason names the way out."""
    with pytest.raises(InvalidOutput, match=why):
        joined(output, join, values)


class Tags(BaseModel):
    """A model whose schema is an object."""

    tags: list[str]


def test_a_model_is_joined_by_its_schema() -> None:
    """As any object."""
    join = {"kind": "merge_records", "identity": ["{key}"], "rules": {"tags": "union"}}
    assert joined(Tags, join, [{"tags": ["b"]}, {"tags": ["a"]}])[0] == {"tags": ["a", "b"]}


def test_what_a_join_removes_is_told() -> None:
    """Each value, with the rule that removed it: parts have no rows of their own. Of many, and of long ones, some."""
    parts: list[JsonValue] = [[{"name": f"n{n}", "year": n + at} for n in range(MAX_NAMED + 3)] for at in (0, 1)]
    how = joined(LIST, {"kind": "merge_records", "identity": ["name"], "rules": {"year": "min"}}, parts)[1]
    assert how.startswith("2 parts, joined by merge_records; removed: year 1 by min, ")
    assert how.endswith(" by min and 3 more")
    record = {"kind": "merge_records", "identity": ["{key}"]}
    how = joined(RECORD, record, [{"name": "a"}, {"name": "x" * 500}])[1]
    assert how.endswith(f"removed: name {'x' * (MAX_SHOWN - 1)}… by priority")


def test_a_join_that_drops_what_a_part_says_is_a_failed_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is held to the audit, as the merge of a run is."""
    whole = MergeRecords.merge

    def dropping(self: MergeRecords, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        merge = whole(self, briefs, outcomes)
        value: Any = merge.value
        return merge.model_copy(update={"value": {**value, "records": value["records"][:1]}})

    monkeypatch.setattr(MergeRecords, "merge", dropping)
    with pytest.raises(InvalidOutput, match=r"The joined answer failed its audit: .*recall"):
        joined(LIST, {"kind": "merge_records", "identity": ["name"]}, [[{"name": "a"}], [{"name": "b"}]])


def test_an_integrator_that_breaks_is_a_failed_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a failed run."""

    def broken(self: MergeRecords, briefs: object, outcomes: object) -> Merge:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(MergeRecords, "merge", broken)
    with pytest.raises(InvalidOutput, match=r"can't be joined: The integrator MergeRecords raised .*by zero"):
        joined(LIST, {"kind": "merge_records", "identity": ["name"]}, [[], []])
