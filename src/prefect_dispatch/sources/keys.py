"""From a key and a value to an item: what every source checks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from prefect_dispatch.fingerprint import digest
from prefect_dispatch.models import Item

if TYPE_CHECKING:
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
