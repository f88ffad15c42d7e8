"""The forms of a source, the list among them, and the reading of all items."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue, ValidationError

from prefect_dispatch.errors import SourceError
from prefect_dispatch.models.checks import MaxWords
from prefect_dispatch.models.item import Item
from prefect_dispatch.sources import ItemsInput, Source, key_notes, read_items, source
from prefect_dispatch.sources.files import Glob
from prefect_dispatch.sources.inline import FailedItem, Listed, with_values
from prefect_dispatch.sources.tabular import Csv, JsonLines, Parquet

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTILE = [
    "{{ 7 * 7 }}",
    "${HOME} $(id) `id`",
    "{key.__class__}",
    {"__class__": "subprocess.getoutput", "data": {"cmd": "id"}},
    {"__prefect_kind": "jinja", "template": "{{ 7 * 7 }}"},
    {"$ref": "#/definitions/Item"},
    "__import__('os').system('id')",
    "'; DROP TABLE items; --",
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Job(BaseModel):
    """A model with a source as a field."""

    items: ItemsInput


def keys(found: list[Item]) -> list[str]:
    """Return the keys of items."""
    return [item.key for item in found]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param({"glob": "*.txt"}, Glob(glob="*.txt"), id="glob"),
        pytest.param({"glob": ["a/*", "b/*"], "root": ".."}, Glob(glob=("a/*", "b/*"), root=".."), id="globs"),
        pytest.param({"jsonl": "a.jsonl", "key": "id"}, JsonLines(jsonl="a.jsonl", key="id"), id="jsonl"),
        pytest.param({"csv": "a.csv", "delimiter": ";"}, Csv(csv="a.csv", delimiter=";"), id="csv"),
        pytest.param({"parquet": "a", "priority": "p"}, Parquet(parquet="a", priority="p"), id="parquet"),
        pytest.param(["a"], Listed(items=(Item(key="a", value="a"),)), id="list"),
        pytest.param(("a",), Listed(items=(Item(key="a", value="a"),)), id="tuple"),
        pytest.param(iter([Item(key="b", value=1)]), Listed(items=(Item(key="b", value=1),)), id="iterator"),
        pytest.param(Glob(glob="*.md"), Glob(glob="*.md"), id="a-source-itself"),
    ],
)
def test_the_key_that_is_there_tells_the_source(data: object, expected: Source) -> None:
    """A mapping with one of the four keys, or any iterable, becomes its source."""
    assert source(data) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(
            {}, "none of 'glob', 'jsonl', 'csv', 'parquet', 'sql', 'list'; write a list, or one of {glob: …}", id="none"
        ),
        pytest.param({"glob": "a", "csv": "b"}, "has both 'glob' and 'csv'", id="two"),
        pytest.param({"csv": "a", "keey": "b"}, "csv: unknown key 'keey'; did you mean 'key'?", id="unknown-key"),
        pytest.param({"glob": "a", "max_byte": 1}, "did you mean 'max_bytes'?", id="unknown-key-of-glob"),
        pytest.param({"list": [{"a": 1}], "keey": "a"}, "unknown key 'keey'; did you mean 'key'?", id="key-of-list"),
        pytest.param(
            {"list": [{"id": 1}, {"ib": 2}], "key": "id"}, "element 2: no field 'id'; known are 'ib'.", id="no-field"
        ),
        pytest.param({"list": ["a"], "key": "id"}, "element 1: no field 'id'; it has no fields.", id="a-text"),
        pytest.param({"list": 3}, "must be a list of items", id="no-list"),
        pytest.param({"list": [], "key": 3}, "key: must be the name of a field", id="no-name"),
        pytest.param({"list": [{"id": [1]}], "key": "id"}, "element 1: the key must be text", id="list-as-key"),
        pytest.param("licenses/*.txt", "not a source: 'licenses/*.txt'; write a list", id="bare-text"),
        pytest.param(5, "not a source: 5", id="number"),
        pytest.param(None, "not a source: None", id="nothing"),
        pytest.param({"jsonl": ""}, "jsonl.jsonl: String should have at least 1 character", id="no-path"),
        pytest.param({"csv": "a", "encoding": "zip"}, "'zip' is not a known encoding of text", id="no-text-codec"),
        pytest.param({"csv": "a", "encoding": "utf-9"}, "'utf-9' is not a known encoding", id="no-codec"),
        pytest.param({"csv": "a", "encoding": "a\0"}, "is not a known encoding", id="nul-in-codec"),
        pytest.param({"csv": "a", "delimiter": "ab"}, "should match pattern", id="long-delimiter"),
        pytest.param({"csv": "a", "delimiter": "\n"}, "should match pattern", id="newline-delimiter"),
        pytest.param({"glob": "a", "max_bytes": 0}, "greater than or equal to 1", id="no-bytes"),
        pytest.param([1.5, float("nan")], "element 2: the value is not JSON: Out of range float", id="nan"),
        pytest.param([float("inf")], "element 1: the value is not JSON", id="infinity"),
        pytest.param([{"a"}], "element 1: the value is not JSON: Object of type set", id="set"),
        pytest.param([b"a"], "element 1: the value is not JSON: Object of type bytes", id="bytes"),
        pytest.param(["\ud800"], "element 1: half of a surrogate pair", id="surrogate"),
        pytest.param([{"key": "\ud800", "value": 1}], "element 1: half of a surrogate pair", id="surrogate-in-key"),
        pytest.param([{"a": (1, 2)}], "element 1: value: input was not a valid JSON value", id="tuple-in-value"),
        pytest.param([{"key": "", "value": 1}], "the key must be text that isn't empty", id="empty-key"),
        pytest.param([{"key": None, "value": 1}], "or a whole number, not None", id="no-key"),
        pytest.param([{"key": True, "value": 1}], "or a whole number, not True", id="boolean-key"),
        pytest.param([{"key": "k" * 1025, "value": 1}], "at most 1024 characters", id="long-key"),
        pytest.param(
            [{"key": "a", "value": 1, "priority": "high"}], "priority: Input should be a valid", id="priority"
        ),
        pytest.param(
            [{"key": "a", "value": 1, "priorty": 2}],
            "element 1: unknown key 'priorty'; did you mean 'priority'? Data that has both 'key' and 'value' goes "
            "into a value",
            id="misspelt-item",
        ),
    ],
)
def test_what_is_no_source_is_refused_with_the_way_out(data: object, message: str) -> None:
    """A source error names the key, the value or the element, and what to write."""
    with pytest.raises(SourceError) as caught:
        source(data)
    assert message in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_a_value_nested_too_deeply_is_refused() -> None:
    """A list in a list in a list … is an error, not a crash."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(SourceError, match=r"element 1: .*nested too deeply"):
        source([value])


@pytest.mark.parametrize(
    ("value", "key"),
    [
        pytest.param("MIT", "MIT", id="short"),
        pytest.param(" naïve 🙂 ", " naïve 🙂 ", id="unicode"),
        pytest.param("x" * 80, "x" * 80, id="80-characters"),
        pytest.param("x" * 81, "ce9a3ad79716", id="81-characters"),
        pytest.param("a\nb", "8cb67f89f9ff", id="two-lines"),
        pytest.param("a\n", "0a38bb8c01ea", id="newline-at-the-end"),
        pytest.param("", "12ae32cb1ec0", id="empty"),
        pytest.param(" ", "52109349dabf", id="blank"),
        pytest.param(None, "74234e98afe7", id="null"),
        pytest.param(True, "b5bea41b6c62", id="true"),
        pytest.param({"b": 1, "a": 2}, "d3626ac30a87", id="mapping"),
        pytest.param({"a": 2, "b": 1}, "d3626ac30a87", id="mapping-in-another-order"),
        pytest.param({"key": "k"}, "9d51e365f1c8", id="mapping-with-a-key-only"),
    ],
)
def test_a_bare_value_is_named_by_itself_or_its_content(value: JsonValue, key: str) -> None:
    """A short text of one line is its own key; other values get 12 digits of their digest."""
    item = Listed(items=cast("Any", [value])).items[0]
    assert item.value == value
    assert item.key == key


def test_an_item_in_a_list_may_be_written_as_a_mapping() -> None:
    """Key, value and priority are taken; a whole number as the key becomes text."""
    listed = source([{"key": 2024, "value": {"a": [1]}, "priority": 3}, {"key": "b", "value": None}])
    assert list(listed.stream(cast("Path", None))) == [
        Item(key="2024", value={"a": [1]}, priority=3),
        Item(key="b", value=None),
    ]


def test_an_item_is_held_once_where_nobody_can_change_it() -> None:
    """A run validates its items twice; what whoever gave it may still change is copied."""
    text, parts = Item(key="a", value="MIT"), Item(key="b", value=["MIT"])
    listed = source([text, parts]).stream(cast("Path", None))
    assert next(listed) is text
    copied = next(listed)
    assert copied == parts
    assert copied.value is not parts.value


def test_a_list_of_items_is_not_made_of_text() -> None:
    """Text is no list of its characters."""
    with pytest.raises(ValidationError, match="must be a list of items"):
        Listed(items=cast("Any", "abc"))


def test_items_may_come_from_a_generator(tmp_path: Path) -> None:
    """Whatever the code or a task before yields is taken as the list."""

    def upstream() -> Iterator[Item]:
        for number in range(3):
            yield Item(key=f"n{number}", value=number)

    assert keys(read_items(source(upstream()), tmp_path)) == ["n0", "n1", "n2"]


@pytest.mark.parametrize("value", [pytest.param(value, id=str(number)) for number, value in enumerate(HOSTILE)])
def test_hostile_values_stay_data(value: JsonValue, tmp_path: Path) -> None:
    """Templates, commands and class names come out as they went in."""
    assert read_items(source([value]), tmp_path)[0].value == value
    assert Job.model_validate_json(Job(items=source([value])).model_dump_json()).items == source([value])


def test_items_come_in_natural_order_whatever_the_source_says(tmp_path: Path) -> None:
    """Numbers inside a key count by their value."""
    assert keys(read_items(source(["v10", "v9", "b", "v1"]), tmp_path)) == ["b", "v1", "v9", "v10"]


@given(names=st.sets(st.text(min_size=1, max_size=8), min_size=1), data=st.data())
def test_the_order_of_a_list_does_not_matter(names: set[str], data: st.DataObject) -> None:
    """Shuffled, a list gives the same items in the same order, and a limit keeps the first of them."""
    shuffled = data.draw(st.permutations(sorted(names)))
    every = [Item(key=name, value=name) for name in shuffled]
    found = read_items(source(every), cast("Path", None))
    assert found == read_items(source(sorted(every, key=lambda item: item.key)), cast("Path", None))
    assert read_items(source(every), cast("Path", None), limit=2) == found[:2]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        pytest.param(1, ["a"], id="one"),
        pytest.param(2, ["a", "b"], id="two"),
        pytest.param(9, ["a", "b", "c"], id="more-than-there-are"),
        pytest.param(None, ["a", "b", "c"], id="none"),
    ],
)
def test_a_limit_takes_the_first(limit: int | None, expected: list[str], tmp_path: Path) -> None:
    """The first in the order of all lists, not of the source."""
    assert keys(read_items(source(["c", "a", "b"]), tmp_path, limit)) == expected


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int, tmp_path: Path) -> None:
    """It would drop items from the end, or all of them."""
    with pytest.raises(SourceError, match=f"limit must be at least 1, not {limit}"):
        read_items(source(["a"]), tmp_path, limit)


def test_empty_items_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of them doesn't stop the others, and what is left out by the limit isn't spoken of."""
    blank = [{"key": f"k{n:02}", "value": "" if n % 2 else " \n"} for n in range(12)]
    full: list[object] = [{"key": "a", "value": "text"}, {"key": "b", "value": None}]
    assert len(read_items(source([*full, *blank]), tmp_path)) == 14
    assert "Items that are empty, of which an answer can say nothing: 12 ('k00', " in caplog.text
    assert "'k09', …)" in caplog.text
    caplog.clear()
    read_items(source([*full, *blank]), tmp_path, 3)
    assert "nothing: 1 ('k00'); leave them out." in caplog.text
    caplog.clear()
    read_items(source([*full, *blank]), tmp_path, 2)
    assert not caplog.text


def test_a_list_that_code_made_may_be_empty(tmp_path: Path) -> None:
    """A night without a new row is no failure; a list that somebody writes down is a job file's to refuse."""
    assert read_items(source([]), tmp_path) == []
    assert read_items(source(iter(())), tmp_path, limit=3) == []


def test_an_element_that_failed_upstream_is_lost_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named by its key if it has one, else by its place; what went wrong is told in short, without secrets."""
    monkeypatch.setenv("THE_API_KEY", "sk-proj-0123456789abcdef")
    gone = LookupError("no page for sk-proj-0123456789abcdef " + "x" * 500)
    given = ["a", gone, {"key": 7, "value": {"page": [gone]}, "priority": 2}, {"key": gone, "value": 1}, {"page": gone}]
    listed = source(given)
    items = {item.key: item for item in read_items(listed, tmp_path)}
    assert list(items) == ["7", "a", "element 2", "element 4", "element 5"]
    assert [item.key for item in with_values(items.values())] == ["a"]
    lost = items["7"]
    assert isinstance(lost, FailedItem)
    assert (lost.priority, lost.value) == (2, None)
    assert lost.why.startswith("the task run that it comes from failed: LookupError: no page for *** xxx")
    assert len(lost.why) < 400
    assert read_items(source(listed), tmp_path) == [*items.values()]


def test_a_failed_element_with_an_impossible_key_is_refused() -> None:
    """The key is the job's own mistake, whatever failed."""
    with pytest.raises(SourceError, match="element 1: the key must be text"):
        source([{"key": None, "value": LookupError("gone")}])


def test_equal_keys_are_refused_with_both_places(tmp_path: Path) -> None:
    """The message names the key and which two items have it."""
    same = ["a", "b", {"key": "a", "value": 1}]
    with pytest.raises(SourceError, match="key 'a': numbers 1 and 3 of the list of items"):
        read_items(source(same), tmp_path, limit=1)


def test_the_python_names_take_the_forms_too() -> None:
    """`Listed` is made from a list, or by name."""
    assert Listed.model_validate(["a"]) == Listed(items=cast("Any", ["a"])) == Listed.model_validate({"items": ["a"]})


def test_data_that_holds_itself() -> None:
    """It is no JSON, and told as such; what stands in it twice is looked at once for a task run that failed."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValidationError, match="element 1: the value is not JSON: Circular reference detected"):
        Listed.model_validate([loop])
    twice = [{"a": 1}]
    (lost,) = Listed.model_validate([{"key": "a", "value": [ValueError("No."), twice, twice]}]).items
    assert (lost.key, lost.value) == ("a", None)


def test_a_field_may_name_the_items_of_a_list() -> None:
    """As a column names those of a table; the value is the whole object, and a field may rank it."""
    rows: list[dict[str, object]] = [{"id": 7, "rank": 2, "text": "a"}, {"id": "x", "text": "b"}]
    found = source({"list": rows, "key": "id", "priority": "rank"})
    assert isinstance(found, Listed)
    assert [(item.key, item.value, item.priority) for item in found.items] == [("7", rows[0], 2), ("x", rows[1], 0)]
    assert source({"list": ["a", "b"]}) == source(["a", "b"])
    models = source({"list": [MaxWords(words=3)], "key": "words"})
    assert isinstance(models, Listed)
    assert [item.key for item in models.items] == ["3"]
    lost = source({"list": [ValueError("no such page"), {"id": "b"}], "key": "id"})
    assert isinstance(lost, Listed)
    assert [(item.key, isinstance(item, FailedItem)) for item in lost.items] == [("element 1", True), ("b", False)]


@pytest.mark.parametrize(
    ("data", "note"),
    [
        pytest.param(
            [{"id": 1}, {"id": 2}],
            "2 items have no key and are .* by its 'id', write items: {list: …, key: id}",
            id="id",
        ),
        pytest.param([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "by its 'name', write", id="id-twice"),
        pytest.param([{"orderId": "a"}], "1 item has no key and is .* by its 'orderId', write", id="like-an-id"),
        pytest.param([{"text": "a"}], "to name each by one of its fields, write items: {list: …, key: …}", id="none"),
        pytest.param([{"id": True}], "by one of its fields", id="no-key"),
        pytest.param([{"key": "a", "value": {"id": 1}}, "MIT", "a long text " * 20], None, id="keys-of-their-own"),
        pytest.param([{"key": "0123456789ab", "value": {"id": 1}}], None, id="a-key-like-a-hash"),
        pytest.param({"list": [{"id": 1}], "key": "id"}, None, id="a-key"),
    ],
)
def test_a_note_names_the_field_that_could_be_the_key(data: object, note: str | None) -> None:
    """Where items with fields are named by hashes; what they are called stays as it is."""
    found = source(data)
    (said,) = key_notes(found, read_items(found, Path())) or ("",)
    assert re.search(note, said) if note else said == ""
