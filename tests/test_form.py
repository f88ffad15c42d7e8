"""The run form: order of fields, texts, and tabs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, Discriminator, Field, Tag, TypeAdapter

from prefect_dispatch.flows.dispatch import dispatch
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
