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

from prefect_dispatch.errors import JobError
from prefect_dispatch.models.item import Item
from prefect_dispatch.sources import ItemsInput, source
from prefect_dispatch.sources.inline import Listed
from prefect_dispatch.sources.pasted import MAX_CHARACTERS, MAX_ITEMS, PastedItems
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


def test_pasted_lines_are_items() -> None:
    """Blank lines are left out; a long line is named by a digest; nothing in a line is read as more than text."""
    long = "x" * 200
    items = PastedItems(pasted=f" MIT \r\n\r\n{long}\r=cmd()\u2028{{key}}").to_items("files")
    assert [item.value for item in items] == ["MIT", long, "=cmd()\u2028{key}"]
    assert (items[0].key, len(items[1].key)) == ("MIT", 12)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_pasted_table_has_items_with_fields(delimiter: str) -> None:
    """As a spreadsheet copies it, or as CSV: a quoted value may have line breaks; the first column is the key."""
    rows = [("id", "text"), ("7", '"two\nlines"'), ("", ""), ("8", "b")]
    text = "\ufeff\n" + "\r\n".join(delimiter.join(row) for row in rows)
    items = PastedItems(pasted=text, layout="table").to_items("files")
    assert [(item.key, item.value) for item in items] == [
        ("7", {"id": "7", "text": "two\nlines"}),
        ("8", {"id": "8", "text": "b"}),
    ]
    assert PastedItems(pasted=text, layout="table", key="text").to_items("files")[1].key == "b"


@pytest.mark.parametrize(
    ("pasted", "key", "told"),
    [
        pytest.param("a,b\n1", "", "line 2 has 1 values; the header names 2", id="ragged"),
        pytest.param("a,b\n1,2\n\n1,3", "", "lines 2 and 4: '1' stands there twice.*another 'key'", id="twice"),
        pytest.param('a,b\n1,"2', "", "line 2 can't be read as CSV", id="no-csv"),
        pytest.param("a,b", "", "below the header there is no row", id="only-a-header"),
        pytest.param("a, a\n1,2", "", "line 1: the column 'a' is there twice", id="a-column-twice"),
        pytest.param("name,b\n1,2", "nam", "no column 'nam' for 'key'; did you mean 'name'?", id="no-such-column"),
        pytest.param("a,b\n ,2", "", "line 2: the column 'a', which names the item, is empty", id="no-key"),
        pytest.param(f"a\n{'x' * 2000}", "", "line 2: key: ", id="a-key-that-is-too-long"),
    ],
)
def test_a_pasted_table_that_can_not_be_is_refused(pasted: str, key: str, told: str) -> None:
    """The message begins with the field of the form, and names the line."""
    with pytest.raises(JobError, match=f"^topics: pasted items.*{told}"):
        PastedItems(pasted=pasted, layout="table", key=key).to_items("topics")


def test_pasted_texts_are_bounded() -> None:
    """By their characters and by the number of items; a key is for tables only."""
    with pytest.raises(ValidationError, match="at most"):
        PastedItems(pasted="x" * (MAX_CHARACTERS + 1))
    with pytest.raises(ValidationError, match="pattern"):
        PastedItems(pasted=" \n ")
    with pytest.raises(JobError, match="more than 10,000 pasted items; put them into a file"):
        PastedItems(pasted="\n".join(map(str, range(MAX_ITEMS + 1)))).to_items("files")
    with pytest.raises(JobError, match="'key' is for a table"):
        PastedItems(pasted="a", key="a").to_items("files")
