"""Sources as a field of a model, a parameter of a flow, and a form."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import is_valid
from pydantic import JsonValue, ValidationError

from prefect_dispatch.models.item import Item
from prefect_dispatch.sources import ItemsInput, source
from prefect_dispatch.sources.inline import Listed
from tests.test_sources import Job, json_values


@flow
def takes_items(items: ItemsInput) -> None:
    """Take items.

    Args:
        items: The inputs.
    """


@given(values=st.lists(json_values, max_size=4))
def test_a_list_of_any_json_survives_json(values: list[JsonValue]) -> None:
    """Dumped and read again, as Prefect does with parameters, a list is the same."""
    keyed = [Item(key=f"k{number}", value=value) for number, value in enumerate(values)]
    job = Job(items=cast("Any", keyed))
    assert Job.model_validate_json(job.model_dump_json()) == job
    assert json.loads(job.model_dump_json())["items"] == [item.model_dump() for item in keyed]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"glob": "*.txt"}, id="glob"),
        pytest.param({"glob": ["*.txt", "*.md"], "root": "docs", "max_bytes": 5}, id="globs"),
        pytest.param({"jsonl": "a", "key": "id"}, id="jsonl"),
        pytest.param({"csv": "a", "delimiter": r"\t"}, id="csv"),
        pytest.param({"parquet": "a", "priority": "p"}, id="parquet"),
        pytest.param(["a", 1, {"key": "k", "value": [1]}], id="list"),
    ],
)
def test_every_form_passes_the_form_the_server_and_the_flow(data: JsonValue) -> None:
    """What fits the schema is what the flow takes, and it survives the way through the API."""
    schema = parameter_schema(takes_items).model_dump()
    assert is_valid({"items": data}, schema)
    taken = takes_items.validate_parameters({"items": data})
    sent = takes_items.serialize_parameters(taken)
    assert is_valid(sent, schema)
    assert takes_items.validate_parameters(sent) == taken == {"items": source(data)}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"csv": "a", "keey": "b"}, id="unknown-key"),
        pytest.param({"csv": "a", "glob": "b"}, id="two"),
        pytest.param("a", id="text"),
        pytest.param(3, id="number"),
    ],
)
def test_the_schema_refuses_what_the_flow_refuses(data: JsonValue) -> None:
    """A wrong source is told in the form, before there is a run."""
    assert not is_valid({"items": data}, parameter_schema(takes_items).model_dump())


def test_the_form_has_a_titled_tab_for_each_source() -> None:
    """Every tab and every field in it has a title and a description; items of a list can be typed."""
    schema = parameter_schema(takes_items).model_dump()
    tabs = [schema["definitions"][tab["$ref"].rpartition("/")[2]] for tab in schema["properties"]["items"]["anyOf"]]
    assert [tab["title"] for tab in tabs] == ["Files", "JSON Lines", "CSV", "Parquet", "SQL", "List"]
    fields = [field for tab in tabs for field in tab.get("properties", {}).values()]
    assert all(len(part["description"]) > 10 and "\n" not in part["description"] for part in [*tabs, *fields])
    assert {"title": "Text", "type": "string"} in tabs[-1]["items"]["anyOf"]


def test_a_list_that_was_rebuilt_around_something_else_is_refused() -> None:
    """Prefect puts a block in the place of a value with `$ref` without asking; the block goes no further."""
    rebuilt = Listed.model_construct(items=(Item.model_construct(key="a", value=cast("Any", object()), priority=0),))
    with pytest.raises(ValidationError, match="element 1: the value is not JSON: Object of type object"):
        Job(items=rebuilt)
