"""Items from plain values: their conversion, with the checks that all sources share, and the items of a list.

A list stands in the job itself, or is passed by the calling code or an upstream task.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard, cast
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from prefect_dispatch.errors import SourceError, first_problem
from prefect_dispatch.models.base import Strict, did_you_mean
from prefect_dispatch.models.item import Item
from prefect_dispatch.security.escaping import count_noun
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.serialization.json_text import digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pydantic import GetJsonSchemaHandler, JsonValue
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema


LONGEST_OWN_KEY = 80
"""Maximum characters of a text that is its own key."""


def content_key(value: object) -> str:
    """Return the default key of a value.

    Returns:
        The value itself if it is a short text of a single line; otherwise 12 hexadecimal digits of its digest.

    Raises:
        ValueError: If the value isn't JSON.

    Example:
        >>> content_key("Apache-2.0")
        'Apache-2.0'
        >>> content_key({"a": 1})
        '015abd7f5cc5'
    """
    if isinstance(value, str) and value.strip() and len(value) <= LONGEST_OWN_KEY and value.splitlines() == [value]:
        return value
    check_json(value)
    return digest(cast("JsonValue", value))[:12]


def make_item(key: object, value: object, priority: object = 0) -> Item:
    """Build an item, and validate that its value is JSON.

    Args:
        key: Text, or a whole number.
        value: Any value; an error unless it is JSON.
        priority: A whole number, its decimal text, or nothing (None or an empty text), which is 0.

    Raises:
        ValueError: If one of them is invalid; the message does not quote the value.

    Example:
        >>> make_item(7, {"name": "MIT"})
        Item(key='7', value={'name': 'MIT'}, priority=0)
    """
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if not isinstance(key, str) or not key:
        raise ValueError(f"the key must be text that isn't empty, or a whole number, not {key!r}.")
    try:
        return Item.model_validate({"key": key, "value": value, "priority": 0 if priority in (None, "") else priority})
    except ValidationError as error:
        check_json([key, value])  # raises an error with a better message
        where, message = first_problem(error)
        raise ValueError(f"{where.partition('.')[0]}: {message}.") from None


def check_json(value: object) -> None:
    """Check that a value can be written as JSON and read back.

    Raises:
        ValueError: If it has NaN, an infinity, half a surrogate pair, or another type.
    """
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no text and can't be written as UTF-8.") from None
    except RecursionError:
        raise ValueError("the value is nested too deeply.") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"the value is not JSON: {error}.") from None


def hashed_keys_note(items: Sequence[Item], source: str) -> str | None:
    """Return a note for items whose keys are hashes although one of their fields could be the key.

    Args:
        items: All items of a source.
        source: The key of the source in a job, such as `csv`.

    Returns:
        A sentence with the field, or None if no item with fields has a hash as its key.

    Example:
        >>> value = {"id": 7, "text": "A kettle."}
        >>> print(hashed_keys_note([make_item(content_key(value), value)], "csv"))
        1 item has no key and is named by a hash, such as f00860212d2b; to name each by its 'id', write items: \
{csv: …, key: id}.
    """
    # A key with the form of a hash may be the user's own: check the first one.
    hashed = [item for item in items if isinstance(item.value, dict) and _HASH.fullmatch(item.key)]
    if not hashed or hashed[0].key != content_key(hashed[0].value):
        return None
    rows = [cast("dict[str, JsonValue]", item.value) for item in hashed]
    field = next((name for name in _fields(rows[0]) if _could_name(rows, name)), None)
    write = f"items: {{{source}: …, key: {field or '…'}}}"
    fix = f"to name each by its {field!r}, write" if field else "to name each by one of its fields, write"
    have = "has no key and is" if len(rows) == 1 else "have no key and are"
    return f"{count_noun(len(rows), 'item')} {have} named by a hash, such as {hashed[0].key}; {fix} {write}."


_HASH = re.compile(r"[0-9a-f]{12}")


_PREFERRED = ("id", "key", "uuid", "name", "slug", "path", "url", "title")


def _fields(row: dict[str, JsonValue]) -> list[str]:
    """Return the fields that may be the key of a row, the likeliest first."""
    likely = [name for each in _PREFERRED for name in row if name.lower() == each]
    return [*likely, *(name for name in row if name.endswith(("_id", "Id", "ID")) and name not in likely)]


def _could_name(rows: Sequence[dict[str, JsonValue]], field: str) -> bool:
    """Return whether a field has a valid and distinct key in each row."""
    found: set[str] = set()
    for row in rows:
        value = row.get(field)
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip() or str(value) in found:
            return False
        found.add(str(value))
    return True


def to_json_value(value: object) -> JsonValue:
    """Convert a value of a table to JSON without loss.

    Dates and times become ISO 8601 text; decimals and UUIDs become text; NumPy's and pandas' numbers, texts and arrays
    become JSON's. Missing values become None.

    Args:
        value: One value of a table, nested ones included.

    Raises:
        ValueError: If it can't be converted without loss: NaN, an infinity, bytes, a duration, an object.

    Example:
        >>> from datetime import date
        >>> to_json_value({"day": date(2026, 1, 31), "price": Decimal("1.10")})
        {'day': '2026-01-31', 'price': '1.10'}
        >>> to_json_value(float("nan"))
        Traceback (most recent call last):
        ValueError: nan is no number in JSON
    """
    if value is None or type(value) in (bool, int, str):
        return cast("JsonValue", value)
    if isinstance(value, Mapping):
        parts = cast("Mapping[object, object]", value)
        if wrong := [key for key in parts if not isinstance(key, str)]:
            raise ValueError(f"it has the key {wrong[0]!r}, and in JSON keys are text")
        return {str(key): to_json_value(each) for key, each in parts.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(each) for each in cast("list[object]", value)]
    return _scalar_to_json(value)


def _scalar_to_json(value: object) -> JsonValue:
    if is_missing(value):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{float(value)!r} is no number in JSON")
        return float(value)
    if isinstance(value, date | time):
        return value.isoformat()  # pandas' Timestamp keeps its nanoseconds there
    if isinstance(value, str):
        return str.__str__(value)  # str() of an Enum of texts returns its name
    if isinstance(value, Decimal) and value.is_infinite():
        raise ValueError(f"{value!r} is no number in JSON")
    if isinstance(value, Decimal | UUID):
        return str(value)
    return int(value) if isinstance(value, int) else _numpy_to_json(value)


def _numpy_to_json(value: object) -> JsonValue:
    # Looked up without importing it: a value can only be NumPy's if NumPy is imported already.
    numpy: Any = sys.modules.get("numpy")
    if numpy and isinstance(value, numpy.ndarray):
        return to_json_value(cast("Any", value).tolist())
    if numpy and isinstance(value, numpy.datetime64):
        return str(value)
    if numpy and isinstance(value, numpy.number | numpy.bool_):
        inner: object = cast("Any", value).item()
        if isinstance(inner, bool | int | float) and not isinstance(value, numpy.timedelta64):
            return to_json_value(inner)
    raise ValueError(f"{type(value).__name__} is neither text, number, date nor time; cast the column to text")


def is_missing(value: object) -> bool:
    """Return whether a value is a missing one: None, and pandas' NaT and NA; NaN is a number.

    Example:
        >>> is_missing(None), is_missing("")
        (True, False)
    """
    pandas: Any = sys.modules.get("pandas")
    return value is None or (bool(pandas) and (value is pandas.NaT or value is pandas.NA))


def to_json_row(row: Mapping[str, object], place: str) -> dict[str, object]:
    """Convert the values of a row to JSON without loss.

    Args:
        row: The row.
        place: The place of the row, for error messages.

    Raises:
        SourceError: If a value can't be converted without loss; the message names place and column.

    Example:
        >>> to_json_row({"id": 1, "price": Decimal("1.10")}, "row 1")
        {'id': 1, 'price': '1.10'}
    """
    found: dict[str, object] = {}
    for name, value in row.items():
        try:
            found[name] = to_json_value(value)
        except (ValueError, RecursionError) as error:  # noqa: PERF203 -- the message names the column
            raise SourceError(f"{place}: column {name!r} has no form in JSON: {error}.") from None
    return found


_SCHEMA: JsonSchemaValue = {
    "title": "List",
    "description": "Texts, or items with a key of their own.",
    "type": "array",
    "items": {
        "anyOf": [
            {"title": "Text", "type": "string"},
            {
                "title": "Item",
                "type": "object",
                "properties": {
                    "key": {
                        "title": "Key",
                        "type": "string",
                        "description": "What the item is called everywhere; unique within a job.",
                        "position": 0,
                    },
                    "value": {
                        "title": "Value",
                        "description": "What the agent gets to see: text, or any JSON value.",
                        "anyOf": [{"title": "Text", "type": "string"}, {"title": "JSON"}],
                        "position": 1,
                    },
                    "priority": {
                        "title": "Priority",
                        "type": "integer",
                        "default": 0,
                        "description": "A higher one wins a conflict between briefs of equal priority.",
                        "position": 2,
                    },
                },
                "required": ["key", "value"],
            },
            {"title": "JSON", "description": "Any JSON value."},
        ]
    },
}
"""Schema for forms: the generated one of `Item`, whose value is any JSON, would render as an empty form."""
MAX_MESSAGE = 300
"""Maximum characters of an error that a message quotes."""
FRAME_MESSAGE = "a DataFrame doesn't say which of its columns names the items; write items_from(frame, key='…')"
"""Error for a DataFrame, which as an iterable would yield the names of its columns."""


def is_frame(data: object) -> bool:
    """Return whether data is a DataFrame of any library, lazy ones included.

    Example:
        >>> is_frame([{"id": 1}])
        False
    """
    kind = type(data)  # the class, as a lazy frame would have to read files to determine its columns
    return hasattr(kind, "columns") and (hasattr(kind, "shape") or hasattr(kind, "collect"))


def upstream_failure(error: BaseException) -> str:
    """Return the message for an error in place of data: the task run that it comes from has failed.

    Example:
        >>> upstream_failure(ValueError("no such page"))
        'the task run that it comes from failed: ValueError: no such page'
    """
    return f"the task run that it comes from failed: {safe_message(error)[:MAX_MESSAGE]}"


class FailedItem(Item):
    """Item without a value, as the task run that it comes from has failed; its outcomes are skipped.

    Example:
        >>> [item.key for item in Listed.model_validate(["MIT", ValueError("no such page")]).items]
        ['MIT', 'element 2']
    """

    why: str
    """The reason, without secrets."""


def with_values(items: Iterable[Item]) -> list[Item]:
    """Return the items with a value, in their order."""
    return [item for item in items if not isinstance(item, FailedItem)]


def is_listable(data: object) -> TypeGuard[Iterable[object]]:
    """Return whether data is a list of items: an iterable, but no text, mapping or model."""
    return isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping | BaseModel)


def _has_key(element: object) -> TypeGuard[Mapping[object, object]]:
    return isinstance(element, Mapping) and "key" in element and "value" in element


def _to_item(number: int, element: object) -> Item:
    if isinstance(element, FailedItem):
        return element
    if isinstance(element, Item):
        item = make_item(element.key, element.value, element.priority)
        # A run validates its items twice: reuse the object unless its value is mutable, to save memory.
        return item if isinstance(item.value, list | dict) or item != element else element
    # An element that contains an error in place of data becomes a failed item; other invalid elements are errors.
    try:
        return _item_from_element(element)
    except ValueError:
        if (failure := _find_failure(element)) is None:
            raise
        return _create_failed_item(number, element, failure)


def _to_plain(element: object) -> object:
    return element.model_dump(mode="json") if isinstance(element, BaseModel) else element


def _item_from_element(element: object) -> Item:
    element = _to_plain(element)
    if not _has_key(element):
        return make_item(content_key(element), element)
    for name in element:
        if name not in Item.model_fields:
            raise ValueError(
                f"unknown key {name!r}; {did_you_mean(str(name), list(Item.model_fields))} "
                "Data that has both 'key' and 'value' goes into a value: {key: …, value: {…}}."
            )
    return make_item(element["key"], element["value"], element.get("priority"))


def _find_failure(data: object) -> BaseException | None:
    """Return an error of a failed task run within data, or None."""
    pending, seen = [data], set[int]()
    while pending:
        part = pending.pop()
        if isinstance(part, BaseException):
            return part
        if id(part) not in seen:
            seen.add(id(part))  # Python data may be cyclic
            if isinstance(part, Mapping):
                pending += cast("Mapping[object, object]", part).values()
            elif isinstance(part, list | tuple):
                pending += cast("Iterable[object]", part)
    return None


def _create_failed_item(number: int, element: object, failure: BaseException) -> FailedItem:
    """Return the failed item for an element; if it has no key of its own, its position is the key."""
    why, key, priority = upstream_failure(failure), f"element {number}", 0
    if _has_key(element) and _find_failure(element["key"]) is None:
        item = make_item(element["key"], None, element.get("priority"))
        key, priority = item.key, item.priority
    return FailedItem(key=key, value=None, priority=priority, why=why)


def _elements_with_keys(data: Mapping[str, object]) -> object:
    """Return the elements of a list as items, each with the key from one of its fields.

    Args:
        data: The mapping `{list: […], key: id, priority: rank}`.
    """
    allowed = ("list", "key", "priority")
    for name in data:
        if name not in allowed:
            hint = did_you_mean(str(name), [*allowed])
            raise PydanticCustomError("unknown_key", "unknown key {key}; {hint}", {"key": repr(name), "hint": hint})
    elements, key, priority = (data.get(name) for name in allowed)
    if not is_listable(elements):
        raise PydanticCustomError("not_a_list", "must be a list of items")
    for name, field in (("key", key), ("priority", priority)):
        if field is not None and not isinstance(field, str):
            raise PydanticCustomError("field_name", "{name}: must be the name of a field", {"name": name})
    if not key:
        return elements
    return [_add_key(number, each, str(key), cast("str", priority or "")) for number, each in enumerate(elements, 1)]


def _add_key(number: int, element: object, key: str, priority: str) -> object:
    """Return an element as the mapping of an item, with the key from one of its fields."""
    value = _to_plain(element)
    if isinstance(value, BaseException):  # of a failed task run: becomes a failed item, as in any list
        return value
    fields = cast("Mapping[str, object]", value) if isinstance(value, Mapping) else dict[str, object]()
    if key not in fields:
        hint = did_you_mean(key, [*map(str, fields)]) if fields else "it has no fields."
        raise PydanticCustomError(
            "element", "element {number}: {why}", {"number": number, "why": f"no field {key!r}; {hint}"}
        )
    return {"key": fields[key], "value": fields, "priority": fields.get(priority)}


def _items(elements: object) -> tuple[Item, ...]:
    if not is_listable(elements):
        raise PydanticCustomError("not_a_list", "must be a list of items")
    items: list[Item] = []
    for number, element in enumerate(elements, 1):
        try:
            items.append(_to_item(number, element))
        except ValueError as error:  # noqa: PERF203 -- the message has the number
            context = {"number": number, "why": str(error)}
            raise PydanticCustomError("element", "element {number}: {why}", context) from None
    return tuple(items)


class Listed(Strict):
    """Items as a plain list, which is also its form in JSON.

    An element is an item (`key`, `value`, perhaps `priority`) or a bare JSON value. A short
    text of one line is its own key; other bare values are named by a hash of their content, unless
    `{list: […], key: id}` says which of their fields names them.

    Example:
        >>> [item.key for item in Listed.model_validate(["MIT", {"key": "gpl", "value": "GPL-3.0"}]).items]
        ['MIT', 'gpl']
        >>> [item.key for item in Listed.model_validate({"list": [{"id": 7, "text": "A kettle."}], "key": "id"}).items]
        ['7']
    """

    # Prefect rebuilds a list that passes through a flow's parameters without validating it.
    model_config = ConfigDict(title="List", revalidate_instances="always")

    items: Annotated[tuple[Item, ...], BeforeValidator(_items)]
    """The items."""

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, data: object) -> object:
        if is_listable(data):
            return {"items": data}
        given = data
        if isinstance(given, Mapping) and "list" in given:
            return {"items": _elements_with_keys(cast("Mapping[str, object]", given))}
        return data

    @model_serializer
    def _to_list(self) -> list[Item]:
        return list(self.items)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema of the list form."""
        return _SCHEMA

    def where(self, root: Path) -> str:  # noqa: ARG002 -- one signature for all sources
        """Return the description of this source for error messages."""
        return "the list of items"

    def stream(self, root: Path) -> Iterator[Item]:  # noqa: ARG002 -- one signature for all sources
        """Yield the items as listed."""
        yield from self.items
