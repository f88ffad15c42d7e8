"""Where records disagree: the rule decides, all values are kept, or the field is flagged; unless somebody chose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.decisions import Choice, Decisions
from tests.integrators.said import entries, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_records.field_rules import Claim
    from prefect_dispatch.models.ledger import Merge


NONE: list[JsonValue] = []


def merged(*said: JsonValue, choices: Sequence[Choice] = (), **options: Any) -> Merge:  # noqa: ANN401 -- any options
    """Return an audited merge of what answers say at `x`, the first one preferred; a null doesn't say it."""
    outcomes = [say(f"{at}", {"name": "n", "x": x}, item_first=-at) for at, x in enumerate(said)]
    integrator = MergeRecords.model_validate({"identity": ["name"], **options})
    integrator = integrator.with_decisions(Decisions(fields=tuple(choices)))
    merge = integrator.merge([], outcomes)
    assert audit(merge, outcomes, [], integrator) == ()
    return merge


def stands(merge: Merge) -> JsonValue:
    """Return what stands at `x`."""
    [record] = entries(merge)
    assert isinstance(record, dict)
    return record["x"]


def chosen(value: JsonValue, field: str = "x", name: JsonValue = "n") -> Choice:
    """Return somebody's choice."""
    return Choice(record={"name": name}, field=field, value=value)


def hushed(claims: Sequence[Claim]) -> JsonValue:
    """A function of the user's that takes what is said last."""
    return claims[-1].value


@pytest.mark.parametrize(
    ("said", "options", "expected"),
    [
        pytest.param([2, 1], {}, [2, 1], id="all-values"),
        pytest.param([1, 1.0, 1], {}, 1, id="agreement-is-plain"),
        pytest.param([1, None], {}, 1, id="null-is-no-conflict"),
        pytest.param([["a"], ["a", "b"], "c"], {}, ["a", "b", "c"], id="lists"),
        pytest.param([["a"], "a"], {}, ["a"], id="a-list-of-one"),
        pytest.param([NONE, "a"], {}, ["a"], id="none-and-one"),
        pytest.param([2, 1], {"rules": {"x": {"rule": "max", "conflicts": "resolve"}}}, 2, id="overridden"),
        pytest.param([2, 1], {"rules": {"x": "union"}}, [1, 2], id="gathered-anyway"),
        pytest.param([2, 1], {"rules": {"x": hushed}}, [2, 1], id="no-function-decides"),
        pytest.param([2, 2], {"rules": {"x": hushed}}, 2, id="a-function-where-all-agree"),
        pytest.param([3, 1], {"conflicts": "flag", "rules": {"x": {"conflicts": "keep_all"}}}, [3, 1], id="of-a-rule"),
    ],
)
def test_all_values_are_kept(said: list[JsonValue], options: dict[str, Any], expected: JsonValue) -> None:
    """Values that differ stand side by side, preferred ones first; what all agree on stays plain."""
    policy = options.get("conflicts", "keep_all")
    merge = merged(*said, conflicts=policy, rules=options.get("rules", {}))
    assert stands(merge) == expected
    assert merge.flags == ()


def test_what_was_kept_competes_value_by_value_with_what_comes_later() -> None:
    """A list of kept values and one of them, merged in a later run, are the same list: it counts as its elements."""
    kept = stands(merged(2, 1, conflicts="keep_all"))
    assert stands(merged(kept, 1, 3, conflicts="keep_all")) == [2, 1, 3]
    assert stands(merged(kept, conflicts="keep_all")) == kept


def test_kept_values_need_not_have_the_schema_of_one() -> None:
    """A list where a number was asked for is no violation where all values are kept; it is where a rule picks."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "x": {"type": "integer"}}}
    brief = Brief.model_validate({"name": "terms", "instructions": "Read.", "output": schema})
    said = [say("a", {"name": "n", "x": 1}), say("b", {"name": "n", "x": 2})]
    keeping = MergeRecords.model_validate({"identity": ["name"], "conflicts": "keep_all"})
    assert audit(keeping.merge([], said), said, [brief], keeping) == ()
    picking = MergeRecords(identity=("name",))
    assert {found.law for found in audit(keeping.merge([], said), said, [brief], picking)} >= {"schema"}


def test_a_flag_names_both_sides() -> None:
    """The rule decides, and a reviewer sees who says what."""
    merge = merged(2, 1, 1, conflicts="flag", rules={"x": "max"})
    [flag] = merge.flags
    assert (flag.path, flag.kind, flag.text, stands(merge)) == ("/records/0/x", "conflict", "2", 2)
    assert flag.message == "Records disagree, and rule 'max' decided. terms/0: 2; terms/1, terms/2: 1."
    assert [source.item for source in flag.sources] == ["0", "1", "2"]


def test_a_flag_stays_short() -> None:
    """Of long values the beginning is shown, of many sources the first."""
    [flag] = merged("x" * 500, *["y"] * 9, conflicts="flag").flags
    assert len(flag.message) < 250
    assert "and 6 more" in flag.message


def test_agreement_and_identity_are_not_flagged() -> None:
    """Equal values are no conflict, nor are two spellings of one identity."""
    said = [say("a", {"name": "MIT", "x": 1}), say("b", {"name": "mit ", "x": 1.0})]
    assert MergeRecords.model_validate({"identity": ["name"], "conflicts": "flag"}).merge([], said).flags == ()
    keeping = MergeRecords.model_validate({"identity": ["name"], "conflicts": "keep_all"})
    assert entries(keeping.merge([], said)) == [{"name": "MIT", "x": 1}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"rules": {"name": {"conflicts": "keep_all"}}}, "'name' belongs to the identity", id="identity"),
        pytest.param({"rules": {"x": {"rule": "union", "conflicts": "flag"}}}, "nothing for 'conflicts'", id="union"),
        pytest.param({"conflicts": "flagged"}, "'resolve', 'keep_all' or 'flag'", id="unknown"),
        pytest.param({"rules": {"x": {"rule": "max", "of": "item"}}}, "'max' doesn't take it", id="of-without-trust"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    """The message names the field and the way out."""
    with pytest.raises(ValidationError, match=message):
        MergeRecords.model_validate({"identity": ["name"], **options})


@pytest.mark.parametrize(
    ("said", "options", "expected"),
    [
        pytest.param([2, 1, 3], {"rules": {"x": "max"}}, 1, id="before-the-rule"),
        pytest.param([2, 1], {"conflicts": "keep_all"}, 1, id="before-the-policy"),
        pytest.param([2, 1.0], {"rules": {"x": "union"}}, 1.0, id="instead-of-gathering"),
        pytest.param([2, 1], {"conflicts": "flag"}, 1, id="nothing-left-to-flag"),
    ],
)
def test_a_choice_stands_where_some_record_says_it(
    said: list[JsonValue], options: dict[str, Any], expected: JsonValue
) -> None:
    """What somebody chose wins over every rule, and the row says that it was decided."""
    merge = merged(*said, choices=[chosen(1)], **options)
    assert stands(merge) == expected
    row = next(row for row in merge.fields if row.path == "/records/0/x")
    assert (row.rule, merge.flags) == ("decided", ())
    assert sorted(loser.value for loser in row.losers if isinstance(loser.value, int)) == sorted(
        x for x in said if isinstance(x, int) and x != 1
    )


def test_a_choice_that_no_record_says_is_noted() -> None:
    """The rule decides as ever, and the field is flagged with what was chosen."""
    merge = merged(2, 1, choices=[chosen(9)], rules={"x": "max"})
    assert stands(merge) == 2
    [flag] = merge.flags
    assert (flag.kind, flag.path) == ("decision", "/records/0/x")
    assert flag.message == "The chosen value 9 is in no record; the rule decided instead."


UNKNOWN = "Decided on, but named by no record: "
UNPLACED = "Chosen for what is no field of that record, or is decided with others: "


@pytest.mark.parametrize(
    ("choice", "options", "told"),
    [
        pytest.param(chosen(1, name="other"), {}, UNKNOWN + '{"name":"other"}.', id="another-record"),
        pytest.param(
            Choice(record={"title": "n"}, field="x", value=1), {}, UNKNOWN + '{"title":"n"}.', id="another-identity"
        ),
        pytest.param(chosen(1, field="y"), {}, UNPLACED + '\'y\' of {"name":"n"}.', id="another-field"),
        pytest.param(chosen(1, field="x.y"), {}, UNPLACED + '\'x.y\' of {"name":"n"}.', id="inside-a-whole"),
        pytest.param(
            Choice(record={"key": "0", "name": "n"}, field="name", value="N"),
            {"identity": ["{key}", "name"]},
            UNPLACED + '\'name\' of {"key":"0","name":"n"}.',
            id="identity",
        ),
    ],
)
def test_a_choice_about_something_else_changes_nothing_and_is_told(
    choice: Choice, options: dict[str, Any], told: str
) -> None:
    """A decisions file may know of records and fields that this run has not; who mistyped one sees it in the rules."""
    without, merge = merged(2, 1, **options), merged(2, 1, choices=[choice], **options)
    assert (merge.value, merge.flags) == (without.value, ())
    assert f" {told} " in merge.rules
    assert told not in without.rules


def test_a_choice_reaches_into_objects_that_are_merged_key_by_key() -> None:
    """A dotted path leads to the part of an object, if some rule takes it apart; records go by their normal form."""
    said: list[JsonValue] = [{"a": 1, "b": 1}, {"a": 2, "b": 2}]
    merge = merged(*said, choices=[chosen(2, field="x.a", name=" N")], rules={"x.b": "max"})
    assert stands(merge) == {"a": 2, "b": 2}
    assert stands(merged(*said, choices=[chosen(said[1])], rules={"x.b": "min"})) == said[1]
