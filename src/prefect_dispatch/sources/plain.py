"""From the values that tables hold to JSON: without loss, or not at all."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect_dispatch.errors import SourceError

if TYPE_CHECKING:
    from pydantic import JsonValue


def plain(value: object) -> JsonValue:
    """Return a value as JSON.

    Dates and times become ISO 8601 text; decimals and UUIDs become text; NumPy's and pandas'
    numbers, texts and arrays become JSON's. None stands for what is missing.

    Args:
        value: One value of a table, nested ones included.

    Raises:
        ValueError: If it has no form in JSON that keeps all of it: NaN, an infinity, bytes, a duration, an object.

    Example:
        >>> from datetime import date
        >>> plain({"day": date(2026, 1, 31), "price": Decimal("1.10")})
        {'day': '2026-01-31', 'price': '1.10'}
        >>> plain(float("nan"))
        Traceback (most recent call last):
        ValueError: nan is no number in JSON
    """
    if value is None or type(value) in (bool, int, str):
        return cast("JsonValue", value)
    if isinstance(value, Mapping):
        return _object(cast("Mapping[object, object]", value))
    if isinstance(value, list | tuple):
        return [plain(each) for each in cast("list[object]", value)]
    return _scalar(value)


def _object(value: Mapping[object, object]) -> dict[str, JsonValue]:
    if wrong := [key for key in value if not isinstance(key, str)]:
        raise ValueError(f"it has the key {wrong[0]!r}, and in JSON keys are text")
    return {str(key): plain(each) for key, each in value.items()}


def _scalar(value: object) -> JsonValue:
    if is_missing(value):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{float(value)!r} is no number in JSON")
        return float(value)
    if isinstance(value, date | time):
        return value.isoformat()  # pandas' Timestamp keeps its nanoseconds there
    if isinstance(value, str):
        return str.__str__(value)  # an Enum of texts has another of its own
    if isinstance(value, Decimal) and value.is_infinite():
        raise ValueError(f"{value!r} is no number in JSON")
    if isinstance(value, Decimal | UUID):
        return str(value)
    return int(value) if isinstance(value, int) else _of_numpy(value)


def _of_numpy(value: object) -> JsonValue:
    numpy: Any = sys.modules.get("numpy")
    if numpy and isinstance(value, numpy.ndarray):
        return plain(cast("Any", value).tolist())
    if numpy and isinstance(value, numpy.datetime64):
        return str(value)
    if numpy and isinstance(value, numpy.number | numpy.bool_):
        inner: object = cast("Any", value).item()
        if isinstance(inner, bool | int | float) and not isinstance(value, numpy.timedelta64):
            return plain(inner)
    raise ValueError(f"{type(value).__name__} is neither text, number, date nor time; cast the column to text")


def is_missing(value: object) -> bool:
    """Return whether a value stands for none: None, and pandas' NaT and NA; NaN is a number.

    Example:
        >>> is_missing(None), is_missing("")
        (True, False)
    """
    if value is None:
        return True
    pandas: Any = sys.modules.get("pandas")
    return bool(pandas) and (value is pandas.NaT or value is pandas.NA)


def plain_row(row: Mapping[str, object], place: str) -> dict[str, object]:
    """Return a row whose values are JSON.

    Args:
        row: The row.
        place: Where it stands, for messages.

    Raises:
        SourceError: If a value has no form in JSON that keeps all of it; the message names place and column.

    Example:
        >>> plain_row({"id": 1, "price": Decimal("1.10")}, "row 1")
        {'id': 1, 'price': '1.10'}
    """
    found: dict[str, object] = {}
    for name, value in row.items():
        try:
            found[name] = plain(value)
        except (ValueError, RecursionError) as error:  # noqa: PERF203 -- the message names the column
            raise SourceError(f"{place}: column {name!r} has no form in JSON: {error}.") from None
    return found
