"""The form of an answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft4Validator, Draft202012Validator
from pydantic import BaseModel, Field

from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.output_schema import (
    LONGEST,
    conforms_simply,
    normalize_output,
    read_json,
    schema_of,
    serialize_output,
    validate_output,
)

if TYPE_CHECKING:
    from pydantic import JsonValue


class Licence(BaseModel):
    """A model to test with."""

    name: str
    years: list[int] = Field(default=[1])


CLOSED: dict[str, Any] = {"type": "object", "properties": {"x": {}}, "additionalProperties": False}
SCHEMA = '{"properties":{"n":{"type":"integer"}},"required":["n"],"type":"object"}'
TREE = '{"$defs":{"N":{"properties":{"kids":{"items":{"$ref":"#/$defs/N"},"type":"array"}}}},"$ref":"#/$defs/N"}'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("text", "text", id="text"),
        pytest.param("shapes:Licence", "shapes:Licence", id="a-name"),
        pytest.param(json.loads(SCHEMA), SCHEMA, id="a-schema"),
        pytest.param(f"  {json.dumps(json.loads(SCHEMA), indent=2)}", SCHEMA, id="the-text-of-one"),
        pytest.param(json.loads(TREE), TREE, id="one-that-refers-to-itself"),
        pytest.param(Licence, Licence, id="a-model"),
        pytest.param({}, "{}", id="any-json"),
    ],
)
def test_one_form(value: object, expected: object) -> None:
    """An output is kept in one form, which stays as it is when read again."""
    assert normalize_output(value) == expected
    assert normalize_output(normalize_output(value)) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(
            "Text", "must be 'text', a JSON Schema, or 'module:Name' of a pydantic model, not 'Text'", id="word"
        ),
        pytest.param(3, "not 3", id="number"),
        pytest.param(int, "int is not a pydantic model", id="class"),
        pytest.param("{'type': 'object'}", "not JSON: ", id="no-json"),
        pytest.param('{"a":' * 99_999, "not JSON: it is nested too deep", id="bottomless-text"),
        pytest.param({"type": "obj"}, r"not a valid JSON Schema: \$\.type: ", id="no-schema"),
        pytest.param({"pattern": "("}, r"not a valid JSON Schema: \$\.pattern", id="no-pattern"),
        pytest.param({"$ref": "#/$defs/nope"}, "'/.defs/nope' is not in it, and nothing is fetched", id="no-part"),
        pytest.param({"items": [{"$ref": "http://127.0.0.1/a"}]}, "not a valid JSON Schema", id="items-of-old"),
        pytest.param({"anyOf": [{"$ref": "http://127.0.0.1/a"}]}, "'http://127.0.0.1/a' is not in it", id="elsewhere"),
        pytest.param(
            {"type": "object", "required": ["a"], "properties": {"a": {**CLOSED, "required": ["x", "y"]}}},
            r"no answer can be valid, as \$\.a requires 'y', which is not among .* or take it from 'required'",
            id="impossible",
        ),
    ],
)
def test_refused(value: object, message: str) -> None:
    """What is no form of an answer is told before anything is spent."""
    with pytest.raises(ValueError, match=message):
        normalize_output(value)


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({**CLOSED, "required": ["x"]}, id="listed"),
        pytest.param({**CLOSED, "required": ["y"], "patternProperties": {"^y": True}}, id="by-a-pattern"),
        pytest.param({"type": "object", "required": ["y"]}, id="open"),
        pytest.param({"$schema": "http://json-schema.org/draft-03/schema#", **CLOSED, "required": True}, id="old"),
        pytest.param({**CLOSED, "required": ["y"], "type": ["object", "null"]}, id="or-nothing"),
        pytest.param({"type": "object", "properties": {"a": {**CLOSED, "required": ["y"]}}}, id="left-out"),
    ],
)
def test_what_some_answer_satisfies_is_taken(schema: dict[str, Any]) -> None:
    """Only a schema that no answer at all can satisfy is refused."""
    assert schema_of(str(normalize_output(schema))) == schema


def test_a_bottomless_schema() -> None:
    """A schema that is nested beyond reading is an error like any other."""
    schema: dict[str, Any] = {}
    for _ in range(5_000):
        schema = {"not": schema}
    with pytest.raises(ValueError, match="nested too deep"):
        normalize_output(schema)


def test_shown_and_as_schema() -> None:
    """A model can be written down as its schema; text has none."""
    assert json.loads(serialize_output(Licence)) == Licence.model_json_schema() == schema_of(Licence)
    assert serialize_output("text") == "text"
    assert schema_of("text") is None
    assert schema_of(SCHEMA) == schema_of(json.loads(SCHEMA)) == json.loads(SCHEMA)


@pytest.mark.parametrize(
    ("output", "answer", "value", "found"),
    [
        pytest.param("text", "Yes.", "Yes.", [], id="text"),
        pytest.param("text", {"a": 1}, {"a": 1}, ["The answer must be text."], id="no-text"),
        pytest.param("text", "half \ud83d", "half \ud83d", ["The answer holds half of a character"], id="half"),
        pytest.param(SCHEMA, '{"n": 1}', {"n": 1}, [], id="json"),
        pytest.param(SCHEMA, {"n": 1}, {"n": 1}, [], id="a-value"),
        pytest.param(SCHEMA, '```json\n{"n": 1}\n```', {"n": 1}, [], id="fenced"),
        pytest.param(SCHEMA, '\n```\r\n{"n": 1}\r\n```\r\n', {"n": 1}, [], id="fenced-elsewhere"),
        pytest.param(SCHEMA, "It is 1.", "It is 1.", ["The answer is not JSON: "], id="prose"),
        pytest.param(SCHEMA, '{"n": NaN}', '{"n": NaN}', ["The answer is not JSON: NaN is not JSON."], id="nan"),
        pytest.param(
            SCHEMA,
            '{"m": [{"n": 1, "n": 1}], "n": 2}',
            ...,
            ["The answer can't be taken: the key 'n' stands twice in one object."],
            id="twice",
        ),
        pytest.param(SCHEMA, '{"m": [{"n": 1}, {"n": 1}], "n": 2}', ..., [], id="once-in-each"),
        pytest.param(
            SCHEMA,
            '{"n": ' + "9" * 5000 + "}",
            ...,
            ["The answer can't be taken: it holds a number of more digits than can be read."],
            id="too-many-digits",
        ),
        pytest.param(SCHEMA, '{"m": "x"}', {"m": "x"}, ["$: 'n' is a required property"], id="missing"),
        pytest.param(SCHEMA, '{"n": "x"}', {"n": "x"}, ["$.n: 'x' is not of type 'integer'"], id="wrong"),
        pytest.param('{"type":"number"}', "1e999", float("inf"), ["The answer holds NaN or an infinity"], id="huge"),
        pytest.param("{}", "[" * 102 + "]" * 102, ..., ["The answer is nested more than 100 deep."], id="deep"),
        pytest.param("{}", "[" * 99_999, ..., ["The answer is not JSON: it is nested too deep."], id="bottomless"),
        pytest.param(TREE, '{"kids":[{"kids":1}]}', ..., ["$.kids[0].kids: 1 is not of type 'array'"], id="tree"),
        pytest.param(Licence, '{"name": "MIT"}', {"name": "MIT", "years": [1]}, [], id="model-fills-in"),
        pytest.param(Licence, '{"years": [1, "x"]}', ..., ["$.name: Field required", "$.years[1]: "], id="model"),
    ],
)
def test_problems(output: str | type[BaseModel], answer: JsonValue, value: object, found: list[str]) -> None:
    """An answer is kept as JSON, or each thing that is wrong with it is said where it stands."""
    kept, wrong = validate_output(output, answer)
    assert len(wrong) == len(found)
    assert all(said.startswith(start) for said, start in zip(wrong, found, strict=True)), wrong
    assert value is ... or kept == value


def test_a_problem_does_not_quote_the_whole_answer() -> None:
    """A validator quotes what it refuses; what is sent back stays short."""
    _, wrong = validate_output('{"type":"integer"}', json.dumps("x" * 100_000))
    assert [len(said) for said in wrong] == [LONGEST + 2]


@given(text=st.text())
def test_no_text_breaks_the_reading(text: str) -> None:
    """Whatever an agent says is a value or an error, in a fence or not."""
    for said in (text, f"```json\n{text}\n```"):
        try:
            value = read_json(said)
        except ValueError:
            continue
        assert json.loads(text.strip()) == value or said == text


def test_keys_keep_the_order_in_which_they_were_written() -> None:
    """A model answers in the order of the schema, so the order is kept, and counts as part of the work."""
    reason_first: dict[str, Any] = {"type": "object", "properties": {"why": {}, "family": {}}}
    verdict_first: dict[str, Any] = {"type": "object", "properties": {"family": {}, "why": {}}}
    item = Item(key="a", value="a")
    briefs = [Brief(name="b", instructions="Judge.", output=form) for form in (reason_first, verdict_first)]
    assert str(briefs[0].output).index("why") < str(briefs[0].output).index("family")
    assert briefs[0].identity(item) != briefs[1].identity(item)


@pytest.mark.parametrize(
    ("form", "right", "wrong", "told"),
    [
        ("date", "2026-02-28", "2026-02-29", "no date of the calendar; write it like 2026-11-25"),
        ("date", "2026-11-25", "25.11.2026", "no date of the calendar; write it like 2026-11-25"),
        ("email", "a@example.org", "a at example.org", "no e-mail address; write it like name@example.org"),
        ("ipv4", "192.0.2.1", "192.0.2.256", "no IPv4 address; write it like 192.0.2.1"),
        ("ipv6", "2001:db8::1", "2001:db8", "no IPv6 address; write it like 2001:db8::1"),
        ("uuid", "123e4567-e89b-42d3-a456-426614174000", "123e4567", "no UUID; write it like 123e4567-e89b-42d3"),
    ],
)
@pytest.mark.parametrize("draft", ["", "http://json-schema.org/draft-07/schema#"], ids=["newest", "draft-7"])
def test_a_text_has_the_format_that_its_schema_names(form: str, right: str, wrong: str, told: str, draft: str) -> None:
    """What is wrong is told in a few words, with how to write it."""
    schema = {
        **({"$schema": draft} if draft else {}),
        "properties": {"x": {"type": ["string", "null"], "format": form}},
    }
    assert validate_output(schema, {"x": right})[1] == []
    assert validate_output(schema, {"x": None})[1] == []
    (problem,) = validate_output(schema, {"x": wrong})[1]
    assert problem.startswith(f"$.x: {wrong!r} is {told}")
    assert len(validate_output(schema, {"x": "z" * 9999})[1][0]) < 200


def test_a_format_that_nobody_can_tell_is_a_remark() -> None:
    """As JSON Schema has it."""
    assert validate_output({"format": "uri"}, '"no address"')[1] == []


NAMES = st.sampled_from("ab")
LEAVES = st.none() | st.booleans() | st.sampled_from([0, 1, 1.0, 1.5, "", "a", "b"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2), max_leaves=5
)
TYPES = st.sampled_from(["array", "boolean", "integer", "null", "number", "object", "string"])
SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.fixed_dictionaries({}, optional={"type": TYPES, "enum": st.lists(LEAVES, min_size=1, max_size=3)}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES,
            "items": inner,
            "properties": st.dictionaries(NAMES, inner, max_size=2),
            "additionalProperties": st.booleans() | inner,
            "required": st.lists(NAMES, min_size=1, unique=True),
            "minItems": st.just(1),
        },
    ),
    max_leaves=5,
)


@given(schema=SCHEMAS, value=VALUES)
def test_a_value_that_conforms_simply_is_valid(schema: dict[str, Any], value: JsonValue) -> None:
    """The quick look at a schema of common keywords accepts nothing that a validator refuses, of any draft."""
    if conforms_simply(schema, value):
        drafts: list[Any] = [Draft202012Validator, Draft4Validator]  # whose types are partly unknown
        assert all(draft(schema).is_valid(value) for draft in drafts)


@pytest.mark.parametrize(
    ("schema", "value", "simple"),
    [
        pytest.param(json.loads(SCHEMA), {"n": 1, "more": [None]}, True, id="valid"),
        pytest.param(json.loads(SCHEMA), {"n": 1.0}, False, id="valid-for-most-drafts"),
        pytest.param(CLOSED, {"x": "anything"}, True, id="closed"),
        pytest.param(CLOSED, {"y": 1}, False, id="invalid"),
        pytest.param({"items": {"enum": ["a"]}, "title": "Letters"}, ["a", "a"], True, id="list"),
        pytest.param({"items": [{"type": "string"}]}, ["a"], False, id="by-place"),
        pytest.param({"type": ["string", "null"]}, "a", False, id="two-types"),
        pytest.param({"minLength": 1}, "a", False, id="another-keyword"),
        pytest.param({"properties": {"x": True}}, {"x": 1}, False, id="no-schema"),
        pytest.param({"properties": {"x": {"required": True}}}, {"x": {}}, False, id="draft-3"),
    ],
)
def test_only_common_keywords_are_looked_at(schema: dict[str, Any], value: JsonValue, *, simple: bool) -> None:
    """Whatever is not a matter of a few keywords is left to a validator."""
    assert conforms_simply(schema, value) is simple
