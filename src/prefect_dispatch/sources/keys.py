"""From a key and a value to an item: what every source checks."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from prefect_dispatch.fingerprint import digest
from prefect_dispatch.models import Item

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

LONGEST_OWN_KEY = 80
"""Characters up to which a text can be its own key."""


def content_key(value: object) -> str:
    """Return the key of a value that was given none.

    Returns:
        A short text of a single line itself; otherwise 12 hexadecimal digits of the value's digest.

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
    """Return an item whose value is pure JSON.

    Args:
        key: Text, or a whole number.
        value: Anything; only JSON is let through.
        priority: A whole number, its decimal text, or nothing (None or an empty text), which is 0.

    Raises:
        ValueError: If one of them is something else, in a sentence that doesn't repeat the value.

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
        check_json([key, value])  # which says it in its own words
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{first['loc'][0]}: {first['msg']}.") from None


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
    """Return what to tell people whose items are named by hashes although a field could name them.

    Args:
        items: All items of a source.
        source: The key of the source in a job, such as `csv`.

    Returns:
        A sentence with the field, or None where no item that has fields is named by a hash.

    Example:
        >>> value = {"id": 7, "text": "A kettle."}
        >>> print(hashed_keys_note([make_item(content_key(value), value)], "csv"))
        1 item has no key and is named by a hash, such as f00860212d2b; to name each by its 'id', write items: \
{csv: …, key: id}.
    """
    hashed = [item for item in items if isinstance(item.value, dict) and _HASH.fullmatch(item.key)]
    if not hashed or hashed[0].key != content_key(hashed[0].value):
        return None
    rows = [cast("dict[str, JsonValue]", item.value) for item in hashed]
    field = next((name for name in _fields(rows[0]) if _could_name(rows, name)), None)
    write = f"items: {{{source}: …, key: {field or '…'}}}"
    way = f"to name each by its {field!r}, write" if field else "to name each by one of its fields, write"
    count = "1 item has no key and is" if len(rows) == 1 else f"{len(rows)} items have no key and are"
    return f"{count} named by a hash, such as {hashed[0].key}; {way} {write}."


_HASH = re.compile(r"[0-9a-f]{12}")
_PREFERRED = ("id", "key", "uuid", "name", "slug", "path", "url", "title")


def _fields(row: dict[str, JsonValue]) -> list[str]:
    """Return the fields that may name a row, the likeliest first."""
    likely = [name for each in _PREFERRED for name in row if name.lower() == each]
    return [*likely, *(name for name in row if name.endswith(("_id", "Id", "ID")) and name not in likely)]


def _could_name(rows: Sequence[dict[str, JsonValue]], field: str) -> bool:
    """Return whether a field is a key in each row, and another one in each."""
    found: set[str] = set()
    for row in rows:
        value = row.get(field)
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip() or str(value) in found:
            return False
        found.add(str(value))
    return True
