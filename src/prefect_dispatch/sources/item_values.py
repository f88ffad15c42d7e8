"""Conversion of keys and values to items, with the checks that all sources share."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from pydantic import ValidationError

from prefect_dispatch.errors import SourceError, first_problem
from prefect_dispatch.models.item import Item
from prefect_dispatch.serialization.json_text import digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue


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
    count = "1 item has no key and is" if len(rows) == 1 else f"{len(rows)} items have no key and are"
    return f"{count} named by a hash, such as {hashed[0].key}; {fix} {write}."


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
        return _mapping_to_json(cast("Mapping[object, object]", value))
    if isinstance(value, list | tuple):
        return [to_json_value(each) for each in cast("list[object]", value)]
    return _scalar_to_json(value)


def _mapping_to_json(value: Mapping[object, object]) -> dict[str, JsonValue]:
    if wrong := [key for key in value if not isinstance(key, str)]:
        raise ValueError(f"it has the key {wrong[0]!r}, and in JSON keys are text")
    return {str(key): to_json_value(each) for key, each in value.items()}


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
    if value is None:
        return True
    pandas: Any = sys.modules.get("pandas")
    return bool(pandas) and (value is pandas.NaT or value is pandas.NA)


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
