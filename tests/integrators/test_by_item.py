"""Answers merged by the key of the item that they are about, which no agent has to copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.decisions import Decisions
from tests.integrators.said import entries, miss, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome


def merged(said: Sequence[Outcome], briefs: Sequence[Brief] = (), **options: object) -> Merge:
    """Return an audited merge."""
    integrator = MergeRecords.model_validate({"identity": ["{key}"], **options})
    integrator.preflight(briefs)
    merge = integrator.merge(briefs, said)
    assert audit(merge, said, briefs, integrator) == ()
    return merge


def test_answers_about_one_item_become_one_record() -> None:
    """Several briefs about an item make one record, which has the item's key, traced to all of them."""
    said = [
        say("page 2", {"licence": "MIT"}, brief="terms"),
        say("page 2", {"author": "Ann"}, brief="facts"),
        say("page 10", {"author": "Bob"}, brief="facts"),
        miss("page 10", brief="terms"),
    ]
    merge = merged(said)
    assert entries(merge) == [
        {"author": "Bob", "key": "page 10"},
        {"author": "Ann", "key": "page 2", "licence": "MIT"},
    ]
    row = next(row for row in merge.fields if row.path == "/records/1/key")
    assert (row.winner, row.rule, [*map(str, row.sources)]) == ("page 2", "priority", ["facts/page 2", "terms/page 2"])
    assert [(row.brief, row.item, row.disposition) for row in merge.ledger] == [
        ("facts", "page 2", "merged"),
        ("terms", "page 2", "merged"),
        ("facts", "page 10", "merged"),
        ("terms", "page 10", "failed"),
    ]


def test_keys_are_what_they_are() -> None:
    """Items whose keys differ in case alone are two items."""
    assert len(entries(merged([say("a", {"x": 1}), say("A", {"x": 1})]))) == 2


def test_what_an_answer_says_its_key_is_gives_way_to_the_key() -> None:
    """A key that an agent copied wrongly is named among what was removed, and misleads nobody."""
    merge = merged([say("page 2", {"key": "page 3", "x": 1}), say("page 3", {"x": 2}, brief="facts")])
    assert entries(merge) == [{"key": "page 2", "x": 1}, {"key": "page 3", "x": 2}]
    row = next(row for row in merge.fields if row.path == "/records/0/key")
    assert [(loser.value, [*map(str, loser.sources)]) for loser in row.losers] == [("page 3", ["terms/page 2"])]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param([{"x": 1}, {"x": 2}], [{"x": 1}, {"x": 2}], id="a-list"),
        pytest.param([{"x": 1}], [{"key": "a", "x": 1}], id="a-list-of-one"),
        pytest.param([{"x": 1}, "and so on"], ["and so on", {"x": 1}], id="a-list-and-more"),
        pytest.param("text", ["text"], id="text"),
        pytest.param({}, [], id="nothing"),
        pytest.param({"key": None}, [{"key": "a"}], id="nothing-but-a-null"),
        pytest.param([{"key": "b"}, {"key": "b"}], [{"key": "b"}, {"key": "b"}], id="a-list-with-keys"),
    ],
)
def test_what_a_key_cannot_tell_apart_is_kept(value: JsonValue, expected: list[JsonValue]) -> None:
    """Several records in one answer about one item are not made one; all that was said is there."""
    assert entries(merged([say("a", value)])) == expected


def test_a_list_has_records_of_its_own_with_a_field_beside_the_key() -> None:
    """With a further field, records of one item are told apart by it, and by the item from others of that name."""
    said = [
        say("a", [{"name": "Zo\u00eb", "x": 1}, {"name": "Ann"}, {"x": 5}]),
        say("a", [{"name": "zoe", "y": 2}], brief="facts"),
        say("b", {"name": "Zoe"}),
    ]
    merge = merged(said, identity=["{key}", "name"], match={}, rules={"x": "max"})
    names: list[Any] = [each for each in entries(merge) if isinstance(each, dict)]
    assert [(each.get("key"), each.get("x"), each.get("y")) for each in names] == [
        ("a", None, None),
        ("a", 1, 2),
        ("b", None, None),
        (None, 5, None),
    ]
    assert "They are the same only if they are about one item" in merge.rules


def test_items_may_be_decided_to_be_the_same() -> None:
    """A decision brings items together, by their keys; the preferred one's key stands, the other is named."""
    said = [say("a", {"x": 1}), say("b", {"y": 2}, item_first=1)]
    for field in ("key", "{key}"):
        integrator = MergeRecords(identity=("{key}",)).with_decisions(Decisions(same=(({field: "a"}, {field: "b"}),)))
        merge = integrator.merge([], said)
        assert entries(merge) == [{"key": "b", "x": 1, "y": 2}]
        assert audit(merge, said, [], integrator) == ()


ONE: dict[str, Any] = {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": False}


def brief(output: object) -> Brief:
    """Return a brief."""
    return Brief.model_validate({"name": "terms", "instructions": "Read.", "output": output})


def test_the_schema_of_an_answer_knows_nothing_of_the_key() -> None:
    """What a schema asks for is compared without the key, which isn't the agent's to say."""
    merge = merged([say("a", {"x": 1}), say("b", {"x": 2})], [brief(ONE)])
    assert entries(merge) == [{"key": "a", "x": 1}, {"key": "b", "x": 2}]


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        pytest.param({"properties": {"key": {}, "x": {}}}, {}, "asks for a field 'key', where '{key}'", id="property"),
        pytest.param({"required": ["key"]}, {}, "leave it out of the schema", id="required"),
        pytest.param({"type": "array", "items": ONE}, {}, "a list of records, which '{key}' alone", id="list"),
        pytest.param(
            {"properties": {"found": {"items": ONE}}}, {"records": "found"}, "add a field of theirs", id="list-inside"
        ),
        pytest.param("text", {}, "answers with text", id="text"),
        pytest.param({"type": "array", "items": ONE}, {"identity": ["{key}", "x"]}, None, id="a-field-beside"),
        pytest.param(ONE, {}, None, id="one-record"),
    ],
)
def test_briefs_that_leave_no_room_for_the_key_are_refused(
    output: object, options: dict[str, Any], message: str | None
) -> None:
    """Before anything is spent, a brief that asks for the key, or for a list, is refused with the way out."""
    integrator = MergeRecords.model_validate({"identity": ["{key}"], **options})
    if message is None:
        integrator.preflight([brief(output)])
    else:
        with pytest.raises(JobError, match=message):
            integrator.preflight([brief(output)])
