"""How a command gets to see its item: by variables or on standard input, and never in its own text."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError, RejectedError
from prefect_dispatch.models import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import JsonValue

    from prefect_dispatch.models import Item

MOST = 100_000
"""Bytes of one variable; the system takes no more than 128 KiB."""
KEY, VALUE = "ITEM_KEY", "ITEM_VALUE"

_NO_LETTER = re.compile(r"[^A-Z0-9]")
_STDIN = "set the command's stdin: true, so that the value is on standard input, read or not"


def on_stdin(item: Item) -> bytes:
    """Return an item's value as a command reads it: a text as it is, anything else as JSON."""
    return _text(item.value).encode()


def variables(item: Item, *, stdin: bool) -> dict[str, str]:
    """Return the variables that stand for an item.

    `ITEM_KEY` is its key. Unless the value is on standard input, `ITEM_VALUE` is its value, a text as it is and
    anything else as JSON; and where it is an object, each of its texts, numbers and truth values stands in a variable
    of its own, such as `ITEM_UNIT_PRICE` for `unit-price`.

    Args:
        item: The item.
        stdin: Whether the value is on standard input.

    Raises:
        RejectedError: If a variable can't hold what it has to, or would have to hold two things.

    Example:
        >>> from prefect_dispatch.models import Item
        >>> item = Item(key="a", value={"unit-price": 2.5, "ok": True, "tags": []})
        >>> list(variables(item, stdin=False).items())[2:]
        [('ITEM_UNIT_PRICE', '2.5'), ('ITEM_OK', 'true')]
    """
    given, clash = _given(item, stdin=stdin)
    if clash:
        raise _refusal("fields", clash)
    for name, text in given.items():
        if "\0" in text:
            way_out = "give it a key without one" if name == KEY else _STDIN
            raise _refusal("nul", f"{name} can't hold a NUL character", way_out)
        if len(text.encode()) > MOST:
            raise _refusal("too_large", f"{name} would take {len(text.encode()):,} bytes, and holds {MOST:,}")
    return given


def require_variables(items: Iterable[Item]) -> None:
    """Check that each field of each item has a variable of its own, for a command that doesn't read standard input.

    Raises:
        JobError: If not: it names the item, the variable and both that it would be.
    """
    for item in items:
        if clash := _given(item, stdin=False)[1]:
            raise JobError(f"Item {item.key!r}: {clash}: call one of them something else, or {_STDIN}.")


def _given(item: Item, *, stdin: bool) -> tuple[dict[str, str], str]:
    """Return the variables of an item, and what one of them would have to be as well; nothing if there is none."""
    if stdin:
        return {KEY: item.key}, ""
    given = {KEY: item.key, VALUE: _text(item.value)}
    meant = {KEY: "the key", VALUE: "the whole value"}
    for field, value in plain_fields(item).items():
        name = variable_of(field)
        if given.get(name) == _text(value):  # a column that is the key
            continue
        if name in meant:
            return given, f"{name} would be {meant[name]} and the field {field!r}"
        meant[name], given[name] = f"the field {field!r}", _text(value)
    return given, ""


def plain_fields(item: Item) -> dict[str, JsonValue]:
    """Return the fields of an item that have variables of their own: its texts, numbers and truth values."""
    if not isinstance(item.value, dict):
        return {}
    fields = item.value.items()
    return {name: value for name, value in fields if value is not None and not isinstance(value, (list, dict))}


def variable_of(field: str) -> str:
    """Return the variable that stands for a field of an item.

    Example:
        >>> variable_of("unit-price")
        'ITEM_UNIT_PRICE'
    """
    return "ITEM_" + _NO_LETTER.sub("_", field.upper())


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _refusal(kind: str, why: str, way_out: str = _STDIN) -> RejectedError:
    message = f"The item doesn't fit into a command's environment: {why}; {way_out}."
    return RejectedError(message, kind=kind, usage=Usage())
