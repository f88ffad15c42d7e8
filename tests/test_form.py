"""The run form: order of fields, texts, and tabs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, Discriminator, Field, Tag, TypeAdapter

from prefect_dispatch.flows.analyze_files import LAYOUT, analyze_files
from prefect_dispatch.flows.content_variants import content_variants
from prefect_dispatch.flows.dispatch import dispatch
from prefect_dispatch.flows.research_topics import research_topics
from prefect_dispatch.models.base import Tabs, arrange_fields


class Cat(BaseModel):
    """A pet."""

    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    """Another."""

    kind: Literal["dog"] = "dog"


SCHEMA = parameter_schema(dispatch.fn).model_dump()
MODELS = {name: model for name, model in SCHEMA["definitions"].items() if "properties" in model}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_field_has_its_place_and_its_text(model: dict[str, Any]) -> None:
    """No two fields of a model share a place; each has a description, as has the model, in one paragraph."""
    fields = model["properties"].values()
    assert len({field["position"] for field in fields}) == len(fields)
    assert all("\n\n" not in part["description"] and part["description"] for part in [model, *fields])


def test_no_union_is_left_out() -> None:
    """The older UI shows nothing for `oneOf`, and the newer one a tab without a name for a union in a union."""
    assert "oneOf" not in repr(SCHEMA)
    assert "'anyOf': [{'anyOf'" not in repr(SCHEMA)


def test_defaults_are_of_the_type_that_the_schema_demands() -> None:
    """The form sends a default as it stands, and the server refuses one of the wrong type."""
    types: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "array": (list,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
    }
    fields = [field for model in MODELS.values() for field in model["properties"].values() if "default" in field]
    assert all(isinstance(field["default"], types[field["type"]]) for field in fields if field.get("type") in types)


def test_what_needs_no_layout_is_left() -> None:
    """A place that is given stays; a model without fields or text is no error."""
    assert arrange_fields({}) == {}
    assert arrange_fields({"properties": {"x": {"position": 7}}}) == {"properties": {"x": {"position": 7}}}


def test_unions_in_unions_become_one_row_of_tabs() -> None:
    """However a union came about, each member is one tab."""
    inner = Annotated[Cat | Dog, Field(discriminator="kind")]
    union: Any = Annotated[
        Annotated[inner, Tag("pet")] | Annotated[int, Tag("int")],
        Discriminator(lambda value: "int" if isinstance(value, int) else "pet"),
        Tabs(),
    ]
    schema = TypeAdapter(union).json_schema()
    assert schema["anyOf"] == [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}, {"type": "integer"}]


@pytest.mark.parametrize("flow", [analyze_files, research_topics, content_variants], ids=lambda flow: flow.name)
def test_a_form_for_analysts_is_short(flow: Any) -> None:  # noqa: ANN401 -- a flow
    """At most eight fields, then groups that begin without fields; labels are words; nothing is lost."""
    schema = flow.parameters.model_dump()
    fields = [name for name in schema["properties"] if name not in flow.form.layout.groups]
    assert len(fields) <= 8
    for name, group in flow.form.layout.groups.items():
        shape = schema["properties"][name]
        assert shape["title"] == group.title
        assert shape["description"] == group.description
        assert [each.get("title") for each in shape["anyOf"]] == ["Default", None]
        assert shape["default"] is None
    shown = {*fields, *flow.form.layout.group_of, *flow.form.layout.groups, *flow.form.layout.hidden}
    assert shown == flow.form.defaults.keys()
    assert all(schema["properties"][name]["title"].replace(" ", "").isalpha() for name in fields)
    assert flow.with_options(retries=1).form is flow.form


def test_messages_name_fields_as_the_form_does() -> None:
    """What a message begins with, and what stands in backticks; other words stay as they are."""
    assert LAYOUT.to_labels("merge: say under `fields` what; 'name' stays.") == (
        "Merging > Merge: say under 'Fields' what; 'name' stays."
    )
    assert LAYOUT.to_labels("fields.0.choices: wrong.") == "Fields > 1 > choices: wrong."
    assert LAYOUT.to_labels("There are no items.") == "There are no items."
    assert (LAYOUT.label("limits"), LAYOUT.label("limits.limit")) == ("Limits", "Limits > First files only")


def test_parameters_of_an_earlier_version_move_into_groups() -> None:
    """What a schedule overrides stays together with what its deployment has in the same group."""
    base = {"files": "*", "limits": {"budget_usd": 1, "limit": 9}}
    nested = LAYOUT.nest({"limit": 3, "merge": "merge records", "match": True}, base)
    assert nested == {
        "limits": {"budget_usd": 1, "limit": 3},
        "merging": {"merge": "merge records", "match": True},
    }
