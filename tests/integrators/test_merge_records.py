"""Merging records: what is one record, which value stands, and where each outcome ended."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.integrators.registry import AnyIntegrator, PluggableIntegrator
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.ledger import Merge
from prefect_dispatch.models.output_schema import validate_output
from tests.integrators.said import entries, miss, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_records.field_rules import Claim
    from prefect_dispatch.models.outcome import Outcome


def merged(outcomes: Sequence[Outcome], **options: object) -> Merge:
    """Return an audited merge."""
    integrator = MergeRecords.model_validate({"identity": ["name"], **options})
    merge = integrator.merge([], outcomes)
    assert audit(merge, outcomes, [], integrator) == ()
    return merge


def rows(merge: Merge) -> list[tuple[str, str, str | None]]:
    """Return item, disposition and by of each ledger row."""
    return [(row.item, row.disposition, row.by.item if row.by else None) for row in merge.ledger]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param("MIT", " mit\n", True, id="case-and-space"),
        pytest.param("Straße  1", "STRASSE 1", True, id="folding"),
        pytest.param("\ufb01le", "file", True, id="compatibility-forms"),
        pytest.param("e\u0301", "\u00e9", True, id="combining-marks"),
        pytest.param(1, 1.0, True, id="numbers"),
        pytest.param(1, "1", False, id="number-and-text"),
        pytest.param(1, True, False, id="number-and-true"),
        pytest.param(["A", {"x": "B"}], ["a", {"x": "b"}], True, id="nested"),
        pytest.param("", "", False, id="blank"),
        pytest.param(None, None, False, id="null"),
        pytest.param([], [], False, id="empty-list"),
        pytest.param(float("nan"), float("nan"), True, id="not-a-number"),
    ],
)
def test_identity_is_compared_normalised(one: JsonValue, other: JsonValue, *, same: bool) -> None:
    """Records are the same if their identity is, whatever its spelling; what is no identity equals nothing."""
    merge = merged([say("a", {"name": one}), say("b", {"name": other})])
    assert len(entries(merge)) == (1 if same else 2)


def test_records_come_in_order_of_identity_and_the_rest_last() -> None:
    """Identities are sorted, numbers by size; what has none follows."""
    said: list[JsonValue] = [{"name": 10}, "free text", {"name": "b"}, {"x": 1}, {"name": 9}, {"name": "A"}]
    assert entries(merged([say("a", said)])) == [
        {"name": 9},
        {"name": 10},
        {"name": "A"},
        {"name": "b"},
        "free text",
        {"x": 1},
    ]


SILENT: list[JsonValue] = [None, {}]


@pytest.mark.parametrize(
    ("value", "records", "expected"),
    [
        pytest.param({"name": "a"}, "", [{"name": "a"}], id="one-record"),
        pytest.param([{"name": "a"}], "", [{"name": "a"}], id="list"),
        pytest.param({"in": {"list": [{"name": "a"}]}}, "in.list", [{"name": "a"}], id="path"),
        pytest.param({"list": [], "name": "a", "x": None}, "list", [{"name": "a", "x": None}], id="beside-the-list"),
        pytest.param({"in": {"list": [1], "y": 2}, "x": 3}, "in.list", [1, {"in": {"y": 2}, "x": 3}], id="beside-deep"),
        pytest.param({"name": "a"}, "list", [{"name": "a"}], id="no-list-there"),
        pytest.param([{"name": "a"}], "list", [{"name": "a"}], id="a-list-anyway"),
        pytest.param("text", "", ["text"], id="text"),
        pytest.param(None, "", [], id="null"),
        pytest.param([], "", [], id="empty"),
        pytest.param(SILENT, "", [], id="silent-elements"),
        pytest.param({"__class__": "x", "name": "a"}, "", [{"__class__": "x", "name": "a"}], id="odd-key"),
        pytest.param({"name": "a", "b/c": {"~": 1}, "": 2}, "", [{"": 2, "b/c": {"~": 1}, "name": "a"}], id="escapes"),
    ],
)
def test_nothing_of_an_answer_is_lost(value: JsonValue, records: str, expected: JsonValue) -> None:
    """Whatever shape an answer has, all that it says is in the value."""
    merge = merged([say("a", value)], records=records)
    assert entries(merge) == expected
    assert [row.reason for row in merge.ledger if not expected] == ["no records"] * (not expected)


def test_priority_goes_by_brief_then_item_then_content() -> None:
    """A brief's priority outweighs an item's; what ties is taken from one record throughout."""
    low = say("a", {"name": "n", "x": "low"}, item_first=9)
    high = say("b", {"name": "n", "x": "high", "y": None}, brief_first=1)
    tie = say("c", {"name": "n", "x": "other", "y": "filled", "z": [1]})
    merge = merged([low, high, tie])
    assert entries(merge) == [{"name": "n", "x": "high", "y": "filled", "z": [1]}]
    row = next(row for row in merge.fields if row.path == "/records/0/x")
    assert [(loser.value, [*map(str, loser.sources)]) for loser in row.losers] == [
        ("low", ["terms/a"]),
        ("other", ["terms/c"]),
    ]


def test_rules_are_for_fields_and_for_parts_of_objects() -> None:
    """A rule for `a.b` merges the objects at `a` key by key, others of their keys by the default."""
    said = [
        say("a", {"name": "n", "meta": {"stars": 1, "tags": ["x"]}, "year": 1}),
        say("b", {"name": "n", "meta": {"stars": 3, "tags": ["y"]}, "year": 2}),
        say("c", {"name": "n", "meta": {}, "year": None}),
    ]
    merge = merged(said, rules={"meta.stars": "max", "year": {"rule": "min"}}, default="union")
    assert entries(merge) == [{"meta": {"stars": 3, "tags": ["x", "y"]}, "name": "n", "year": 1}]
    assert [(row.path, row.rule) for row in merge.fields] == [
        ("/records/0/meta/stars", "max"),
        ("/records/0/meta/tags", "union"),
        ("/records/0/name", "priority"),
        ("/records/0/year", "min"),
    ]


def test_an_object_is_decided_whole_where_a_record_has_none() -> None:
    """Where one record has a text at `a`, a rule for `a.b` doesn't take `a` apart."""
    said = [say("a", {"name": "n", "meta": "see below"}, brief_first=1), say("b", {"name": "n", "meta": {"x": 1}})]
    assert entries(merged(said, rules={"meta.x": "max"})) == [{"meta": "see below", "name": "n"}]


def test_a_rule_for_an_object_is_for_its_parts_too() -> None:
    """Keys of an object that is merged by parts follow the object's rule."""
    said = [say("a", {"name": "n", "m": {"x": 1, "y": 1}}), say("b", {"name": "n", "m": {"x": 2, "y": 2}})]
    assert entries(merged(said, rules={"m": "max", "m.x": "min"})) == [{"m": {"x": 1, "y": 2}, "name": "n"}]


def test_identity_inside_an_object_survives() -> None:
    """A default that gathers leaves the identity a single value."""
    said = [say("a", {"id": {"n": "X", "at": 1}}), say("b", {"id": {"n": "x", "at": 2}})]
    merge = merged(said, identity=["id.n"], default="union", rules={"id.at": "union"})
    assert entries(merge) == [{"id": {"at": [1, 2], "n": "X"}}]


def total(claims: Sequence[Claim]) -> JsonValue:
    """Add up."""
    return sum(claim.value for claim in claims if isinstance(claim.value, int))


def test_a_function_computes_a_field() -> None:
    """The row names the function; what went in stands among the losers, from all who said it."""
    said = [say("a", {"name": "n", "x": 1}), say("b", {"name": "n", "x": 2})]
    merge = merged(said, rules={"x": total})
    row = next(row for row in merge.fields if row.path == "/records/0/x")
    assert (row.winner, row.rule, len(row.sources)) == (3, f"{__name__}:total", 2)
    assert [loser.value for loser in row.losers] == [1, 2]
    assert rows(merge) == [("a", "merged", None), ("b", "merged", None)]


def test_functions_of_a_job_file_are_loaded_by_the_caller() -> None:
    """Names are listed, loaded by whoever may, and then they decide; the JSON form holds the names."""
    named = MergeRecords.model_validate({"identity": ["name"], "rules": {"x": "sums:total"}, "default": "max"})
    assert named.references == ("sums:total",)
    loaded = named.resolve_references({"sums:total": total}.__getitem__)
    assert loaded.references == ()
    assert entries(loaded.merge([], [say("a", {"name": "n", "x": 5})])) == [{"name": "n", "x": 5}]
    [rule] = loaded.model_dump(mode="json")["rules"]
    assert (rule["field"], rule["rule"]) == ("x", f"{__name__}:total")


@pytest.mark.parametrize(
    ("answers", "expected", "reason"),
    [
        pytest.param([{"name": "n"}, {"name": "n"}], ("b", "duplicate_of", "a"), "equal record", id="equal"),
        pytest.param([{"name": "n", "x": 1}, {"name": "n"}], ("b", "duplicate_of", "a"), "equal record", id="less"),
        pytest.param(
            [{"name": "n", "x": 1}, {"name": "n", "x": 2}],
            ("b", "overridden", "a"),
            "rule 'priority' on field 'x'",
            id="overridden",
        ),
        pytest.param(
            [{"name": "n", "x": 1, "y": 1}, {"name": "n", "x": 2, "y": 2}],
            ("b", "overridden", "a"),
            "rule 'priority' on field 'x' and 1 more",
            id="overridden-twice",
        ),
        pytest.param(
            [{"name": "n", "x": 1}, {"name": "n", "x": 2, "y": 3}], ("b", "merged", None), "1 record merged", id="adds"
        ),
        pytest.param(
            [{"name": "n"}, {"x": 1}],
            ("b", "merged", None),
            "kept as it is, for it has no identity",
            id="no-identity",
        ),
        pytest.param(
            [[{"name": "n"}, {"name": "m"}], [{"name": "n"}, {"name": "m"}]],
            ("b", "duplicate_of", "a"),
            "2 duplicate of terms/a",
            id="two-duplicates",
        ),
        pytest.param(
            [[{"name": "n", "x": 1}, {"name": "m"}], [{"name": "n", "x": 2}, {"name": "m"}, {"name": "o"}, "text"]],
            ("b", "merged", None),
            "1 record merged, 1 kept without identity, 1 duplicate of terms/a, 1 overridden by terms/a",
            id="of-each-kind",
        ),
    ],
)
def test_the_ledger_says_where_the_second_answer_ended(
    answers: list[JsonValue], expected: tuple[str, str, str | None], reason: str
) -> None:
    """Merged if it brings anything; overridden if it lost something; else a duplicate."""
    first, second = answers
    merge = merged([say("a", first, item_first=1), say("b", second), miss("c")])
    assert rows(merge)[1:] == [expected, ("c", "failed", None)]
    assert merge.ledger[1].reason == reason


def test_many_others_are_summed_up() -> None:
    """Of several outcomes that say the same records, the first is named."""
    said = [
        say("a", {"name": "m"}, item_first=1),
        say("b", {"name": "n"}, item_first=1),
        say("c", [{"name": "m"}, {"name": "n"}]),
    ]
    assert merged(said).ledger[2].reason == "2 duplicate of terms/a and others"


def test_what_only_an_empty_list_says_is_told() -> None:
    """Where values are gathered, an answer that says there are none lost to those that say some."""
    said = [say("a", {"name": "n", "x": ["y"]}), say("b", {"name": "n", "x": []})]
    merge = merged(said, rules={"x": "union"})
    assert [loser.value for row in merge.fields for loser in row.losers] == [[]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"identity": []}, "at least 1 item", id="no-identity"),
        *(
            pytest.param(options, f"'{re.escape(path)}' is no path to a field.* 'author.name'", id=f"{key}={path}")
            for path in ("a..b", ".", "a.", ".a")
            for key, options in {
                "identity": {"identity": ["name", path]},
                "records": {"records": path},
                "rules": {"rules": {path: "max"}},
                "by": {"default": {"rule": "newest", "by": path}},
                "elements": {"rules": {"x": {"rule": "union", "identity": [path]}}},
                "match": {"match": {"fields": [path]}},
            }.items()
        ),
        pytest.param({"identity": [""]}, "'' is no path to a field", id="no-path"),
        pytest.param({"rules": {"": "max"}}, "'' is no path to a field", id="rule-for-nothing"),
        pytest.param({"identity": ["a", "a.b"]}, "'a' and 'a.b', which is a part of it; keep one", id="overlap"),
        pytest.param({"identity": ["a.b", "a"]}, "'a' and 'a.b', which is a part of it; keep one", id="overlap-too"),
        pytest.param({"identity": ["{key}", "key.x"]}, "'{key}' and 'key.x', which is a part", id="overlap-key"),
        pytest.param({"rules": {"name": "union"}}, "'name' belongs to the identity", id="identity-gathered"),
        pytest.param({"identity": ["a.b"], "rules": {"a": total}}, "'a' belongs to the identity", id="identity-inside"),
        pytest.param({"rules": [{"field": "x"}, {"field": "x"}]}, "'x' has more than one rule", id="two-rules"),
        pytest.param({"rules": {"x": "mx"}}, "did you mean 'max'", id="misspelt-rule"),
        pytest.param({"identiy": ["name"]}, "did you mean 'identity'", id="misspelt-option"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    """An integrator that can't work is refused when it is made."""
    with pytest.raises(ValidationError, match=message):
        MergeRecords.model_validate({"identity": ["name"], **options})


def closed(*names: str) -> dict[str, Any]:
    """Return the schema of an object that has these fields and no others."""
    return {"type": "object", "properties": dict.fromkeys(names, True), "additionalProperties": False}


def listed(items: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that holds a list of records, in the field `found`."""
    return {"type": "object", "properties": {"found": {"type": "array", **items}}}


A_OR_B: dict[str, Any] = {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
A: dict[str, JsonValue] = {"name": "n", "a": 1}
B: dict[str, JsonValue] = {"name": "n", "b": 2}
KINDS: dict[str, Any] = {
    "properties": {"kind": {"enum": ["x", "y"]}},
    "if": {"properties": {"kind": {"const": "x"}}},
    "then": listed({"items": closed("name", "a")}),
    "else": listed({"items": closed("name", "b")}),
}


OBJECT: dict[str, Any] = {"type": "object", "properties": {"name": {}, "year": {}}}
STARS: dict[str, Any] = {"anyOf": [{"type": "null"}, {"properties": {"stars": {}}}, {"$ref": "#/$defs/stars"}]}
NESTED: dict[str, Any] = {
    "properties": {"name": {}, "year": {}, "meta": {"$ref": "#/$defs/stars"}, "any": True},
    "$defs": {"stars": STARS},
}
TYPED: dict[str, Any] = {
    "properties": {
        "name": {"type": "string"},
        "year": {"anyOf": [{"type": "integer"}, {"const": None}]},
        "kind": {"enum": ["a", "b"]},
        "size": {"allOf": [{"type": ["number", "string"]}, {"$ref": "#/$defs/number"}]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "any": {"description": "Anything."},
        "list": {"type": "array"},
        "self": {"$ref": "#/properties/self"},
    },
    "$defs": {"number": {"type": "number"}},
}


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        pytest.param(NESTED, {"rules": {"meta.stars": "max", "year": "max"}}, None, id="fine"),
        pytest.param(
            {"type": "array", "items": OBJECT}, {"default": {"rule": "newest", "by": "year"}}, None, id="list"
        ),
        pytest.param({"properties": {"list": {"items": OBJECT}}}, {"records": "list"}, None, id="path"),
        pytest.param({"type": "object"}, {"records": "list", "rules": {"x": "max"}}, None, id="open-schema"),
        pytest.param("shapes:Licence", {}, None, id="not-loaded-yet"),
        pytest.param(KINDS, {"records": "found", "rules": {"a": "max", "b": "min"}}, None, id="if-around-the-list"),
        pytest.param({"prefixItems": [OBJECT, True]}, {"rules": {"year": "max"}}, None, id="by-place"),
        pytest.param({"prefixItems": [OBJECT]}, {"identity": ["nme"]}, "did you mean 'name'", id="by-place-unknown"),
        pytest.param(TYPED, {"rules": {"year.x": "max"}}, "'year' is integer or null, which has no", id="no-object"),
        pytest.param(TYPED, {"identity": ["name.first"]}, "'name' is string, which has no fields", id="no-object-id"),
        pytest.param(
            TYPED, {"default": {"rule": "newest", "by": "kind.x"}}, "'kind' is string, which", id="no-object-by"
        ),
        pytest.param(TYPED, {"rules": {"tags.x": "max"}}, "'tags' is string, which has no fields", id="no-objects"),
        pytest.param(TYPED, {"rules": {"size.x": "max"}}, "'size' is integer or number, which", id="no-object-number"),
        pytest.param(
            TYPED, {"rules": {"any.x": "max", "list.x": "max", "self.self": "max"}}, None, id="may-be-objects"
        ),
        pytest.param(
            TYPED, {"records": "name"}, "'name' .'records'. leads to no list .* to string; name", id="no-list"
        ),
        pytest.param({"type": "string"}, {}, "'name' is not in .* it is string, which has no fields", id="no-record"),
        pytest.param({"allOf": [{"type": "string"}, {"type": "null"}]}, {}, "it is nothing, which", id="impossible"),
        pytest.param(NESTED, {"rules": {"any.thing": "max"}}, None, id="any-property"),
        pytest.param({**OBJECT, "allOf": [True]}, {"rules": {"name.first": "max"}}, None, id="anything"),
        pytest.param("text", {}, "Brief 'terms' answers with text", id="text"),
        pytest.param(OBJECT, {"identity": ["nme"]}, "'nme' is not in .* did you mean 'name'", id="identity"),
        pytest.param(NESTED, {"rules": {"meta.star": "max"}}, "did you mean 'stars'", id="rule"),
        pytest.param(OBJECT, {"rules": {"x": {"rule": "newest", "by": "yaer"}}}, "'x' has a rule, but no", id="field"),
        pytest.param(OBJECT, {"default": {"rule": "newest", "by": "yaer"}}, "did you mean 'year'", id="by"),
        pytest.param({"properties": {"list": {}}}, {"records": "lists"}, "'lists'.*did you mean 'list'", id="records"),
    ],
)
def test_preflight_compares_with_the_schema(
    output: dict[str, Any] | str, options: dict[str, Any], message: str | None
) -> None:
    """Fields that no answer can have are noticed before anything is spent."""
    brief = Brief.model_validate({"name": "terms", "instructions": "Read.", "output": output})
    integrator = MergeRecords.model_validate({"identity": ["name"], **options})
    if message is None:
        integrator.preflight([brief])
    else:
        with pytest.raises(JobError, match=message):
            integrator.preflight([brief])


def test_a_brief_that_is_not_loaded_yet_may_have_any_field() -> None:
    """Only what is known can be missing; the other briefs are still compared."""
    outputs = ("shapes:Licence", OBJECT)
    briefs = [
        Brief.model_validate({"name": f"b{at}", "instructions": "Read.", "output": output})
        for at, output in enumerate(outputs)
    ]
    MergeRecords.model_validate({"identity": ["name"], "rules": {"x": "max"}}).preflight(briefs)
    with pytest.raises(JobError, match="Identity field 'x' is not in the schema of brief 'b1'"):
        MergeRecords(identity=("x",)).preflight(briefs)


def test_a_field_of_one_brief_may_have_a_rule() -> None:
    """A rule is fine if any brief's records have its field."""
    briefs = [
        Brief.model_validate({"name": name, "instructions": "Read.", "output": {"properties": {"name": {}, field: {}}}})
        for name, field in (("terms", "x"), ("facts", "y"))
    ]
    MergeRecords.model_validate({"identity": ["name"], "rules": {"x": "max", "y": "min"}}).preflight(briefs)


def test_a_job_file_names_the_kind() -> None:
    """`kind` tells the built-in integrators apart, and what was given comes back from the JSON form."""
    adapter: TypeAdapter[Any] = TypeAdapter(AnyIntegrator)
    given = adapter.validate_python({"kind": "merge_records", "identity": ["name"], "rules": {"x": "max"}})
    assert isinstance(given, MergeRecords)
    assert adapter.validate_json(given.model_dump_json()) == given
    assert adapter.validate_python({"kind": "collate"}) == Collate()


class Own:
    """An integrator of the user's own."""

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Merge nothing."""
        return Merge(value=None, ledger=())


def test_any_object_with_a_merge_method_is_an_integrator() -> None:
    """An object of the user's own passes as it is; one that can't merge is refused."""
    adapter: TypeAdapter[Any] = TypeAdapter(PluggableIntegrator)
    own = Own()
    assert adapter.validate_python(own) is own
    assert adapter.validate_python({"kind": "collate"}) == Collate()
    with pytest.raises(ValidationError, match="int is not an integrator: it needs a method 'merge'"):
        adapter.validate_python(5)


@pytest.mark.parametrize(
    ("output", "answers", "options", "flagged"),
    [
        pytest.param(A_OR_B, [A, B], {}, ["/records/0"], id="one-of"),
        pytest.param({"anyOf": [closed("name", "a"), closed("name", "b")]}, [A, B], {}, ["/records/0"], id="any-of"),
        pytest.param({"maxProperties": 2}, [A, B], {}, ["/records/0"], id="max-properties"),
        pytest.param(
            {"dependentRequired": {"a": ["c"]}}, [{"name": "n", "a": 1, "c": None}, B], {}, [], id="dependent-fits"
        ),
        pytest.param(
            {"dependentSchemas": {"a": {"properties": {"b": {"type": "null"}}}}},
            [A, B],
            {},
            ["/records/0/b"],
            id="dependent",
        ),
        pytest.param(
            {"if": {"required": ["a"]}, "then": {"properties": {"b": {"type": "null"}}}},
            [A, B],
            {},
            ["/records/0/b"],
            id="if",
        ),
        pytest.param(A_OR_B, [A, {**A, "name": "m"}], {}, [], id="nothing-to-merge"),
        pytest.param(A_OR_B, [A, B], {"default": "union"}, [], id="may-have-another-type"),
        pytest.param({"items": A_OR_B}, [[A, B]], {}, ["/records/0"], id="in-one-answer"),
        pytest.param(
            listed({"items": A_OR_B}), [{"found": [A, B]}], {"records": "found"}, ["/records/0"], id="in-list"
        ),
        pytest.param(
            listed({"prefixItems": [closed("name"), closed("name", "a", "b")], "items": False}),
            [{"found": [{"name": "m"}, A]}, {"found": [{"name": "o"}, B]}],
            {"records": "found"},
            [],
            id="by-place",
        ),
        pytest.param(
            {"prefixItems": [closed("name"), closed("name", "a")]},
            [[{"name": "n"}, A], [{"name": "m"}, {"name": "n"}]],
            {},
            [],
            id="fits-in-one-place",
        ),
        pytest.param(
            KINDS,
            [{"kind": "y", "found": [B]}, {"kind": "y", "found": [{**B, "b": 3}]}],
            {"records": "found"},
            [],
            id="if-around-the-list",
        ),
        pytest.param(
            KINDS,
            [{"kind": "x", "found": [A]}, {"kind": "y", "found": [B]}],
            {"records": "found"},
            ["/records/0"],
            id="if-around-the-list-refuses",
        ),
        pytest.param(
            {**listed({"items": closed("name", "a")}), "required": ["found"]},
            [{"found": [A], "name": "n", "b": 2}],
            {"records": "found"},
            [],
            id="beside-the-list",
        ),
        pytest.param(
            {"minProperties": 1}, [{"key": 5}, {"key": "other"}], {"identity": ["{key}"]}, [], id="said-its-key"
        ),
    ],
)
def test_what_does_not_fit_together_is_flagged(
    output: dict[str, Any], answers: list[JsonValue], options: dict[str, Any], flagged: list[str]
) -> None:
    """Valid answers never fail a run: a merged record that its schema refuses stands, and is flagged."""
    brief = Brief.model_validate({"name": "terms", "instructions": "Read.", "output": output})
    said = [say(str(at), answer) for at, answer in enumerate(answers)]
    assert [problem for each in said for problem in validate_output(brief.output, each.value)[1]] == []
    integrator = MergeRecords.model_validate({"identity": ["name"], **options})
    merge = integrator.merge([brief], said)
    assert audit(merge, said, [brief], integrator) == ()
    assert [flag.path for flag in merge.flags] == flagged
    assert all(flag.kind == "schema" and "brief 'terms' asks for: " in flag.message for flag in merge.flags)


def test_a_record_that_does_not_fit_needs_its_flag() -> None:
    """The audit asks for the flag: without it, or with it on what nobody merged, the schema is not kept."""
    brief = Brief.model_validate({"name": "terms", "instructions": "Read.", "output": A_OR_B})
    said, integrator = [say("a", A), say("b", B)], MergeRecords(identity=("name",))
    bare = integrator.merge([brief], said).model_copy(update={"flags": ()})
    assert {found.law for found in audit(bare, said, [brief], integrator)} == {"precision", "schema"}
    alone = [say("a", {**A, **B})]
    assert [found.law for found in audit(integrator.merge([brief], alone), alone, [brief], integrator)] == ["schema"]


def test_a_flag_on_a_large_record_stays_short() -> None:
    """What a schema says quotes the whole record: the beginning of it will do."""
    brief = Brief.model_validate({"name": "terms", "instructions": "Read.", "output": {"maxProperties": 2}})
    said = [say("a", {**A, "a": "x" * 5000}), say("b", B)]
    [flag] = MergeRecords(identity=("name",)).merge([brief], said).flags
    assert len(flag.message) < 700
