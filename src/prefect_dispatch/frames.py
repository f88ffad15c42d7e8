"""DataFrames in and out: pandas, Polars, Arrow, and whatever else narwhals reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from prefect_dispatch.errors import SourceError
from prefect_dispatch.sources.keys import make_item
from prefect_dispatch.sources.listed import upstream
from prefect_dispatch.sources.plain import plain
from prefect_dispatch.strict import nearest

if TYPE_CHECKING:
    import narwhals as nw
    from prefect.futures import PrefectFuture
    from pydantic import JsonValue

    from prefect_dispatch.models import Item

    Frame = nw.DataFrame[Any]

SHOWN = 5
"""How many keys, or rows of one key, a message names."""


def items_from(frame: object, *, key: str, priority: str = "") -> list[Item]:
    """Return an item for each row of a DataFrame, its value being the whole row.

    What is missing (None, NaN of pandas, NaT, NA) is null. Dates, times, decimals and UUIDs become text.

    Args:
        frame: A frame of pandas, Polars, Arrow, or another that narwhals reads; a lazy one is collected. Or the future
            of a task run that returns one.
        key: The column that names the items: text or whole numbers, each once.
        priority: The column with the items' priority; empty if there is none.

    Raises:
        SourceError: If it is no frame, a column isn't there, a key is missing or stands twice, or a value has no
            form in JSON that keeps all of it; the message names column and row.

    Example:
        >>> import polars as pl
        >>> items_from(pl.DataFrame({"id": [7], "text": ["Permission is hereby granted"]}), key="id")
        [Item(key='7', value={'id': 7, 'text': 'Permission is hereby granted'}, priority=0)]
    """
    table = opened(frame)
    for column in (key, priority) if priority else (key,):
        require_column(table, column)
    columns = {str(name): values_of(table, str(name)) for name in table.columns}
    keys = key_texts(columns[key], key)
    items: list[Item] = []
    for number, (name, values) in enumerate(zip(keys, zip(*columns.values(), strict=True), strict=True), 1):
        row = dict(zip(columns, values, strict=True))
        try:
            items.append(make_item(name, row, row[priority] if priority else None))
        except ValueError as error:
            raise SourceError(f"The frame, row {number}: {error}") from None
    return items


def opened(frame: object) -> Frame:
    """Return a frame that narwhals reads, collected if it was lazy.

    Raises:
        SourceError: If it is none, or its columns have no names of their own.
    """
    import narwhals as nw  # noqa: PLC0415 -- only those who have frames need it
    from prefect.futures import PrefectFuture  # noqa: PLC0415 -- only those who have frames need it

    if isinstance(frame, PrefectFuture):
        frame = _awaited(cast("PrefectFuture[object]", frame))
    try:
        table: Any = nw.from_native(cast("Any", frame))
        table = table.collect() if isinstance(table, nw.LazyFrame) else table
        names: list[object] = list(table.columns)
    except TypeError:
        raise SourceError(
            f"Not a DataFrame: {type(frame).__name__}; give one of pandas, Polars or Arrow. A list of items needs no "
            "items_from."
        ) from None
    except nw.exceptions.DuplicateError as error:
        raise SourceError(f"The frame has two columns of one name: {error} Rename one.") from None
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise SourceError(f"The frame has a column {wrong[0]!r}, whose name is no text; rename it.")
    return cast("Frame", table)


def _awaited(future: PrefectFuture[object]) -> object:
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001 -- whatever the task raised
        raise SourceError(f"The frame: {upstream(error)}.") from None


def require_column(table: Frame, column: str) -> None:
    """Raise SourceError unless a frame has a column."""
    if column in table.columns:
        return
    index: Any = getattr(table.to_native(), "index", None)
    if column and column in getattr(index, "names", ()):
        raise SourceError(f"{column!r} is the frame's index, not a column; use frame.reset_index().")
    raise SourceError(f"The frame has no column {column!r}; {nearest(str(column), table.columns)}")


def key_texts(values: list[JsonValue], column: str) -> list[str]:
    """Return the keys in a column, as text.

    Raises:
        SourceError: If one is missing, is no key, or stands twice.

    Example:
        >>> key_texts([1, "b"], "id")
        ['1', 'b']
    """
    if empty := [number for number, value in enumerate(values, 1) if value is None or value == ""]:
        raise SourceError(
            f"Column {column!r} names the items, and is empty in {_rows(empty)}; drop these rows, or fill it."
        )
    rows: dict[str, list[int]] = {}
    for number, value in enumerate(values, 1):
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise SourceError(
                f"Column {column!r}, row {number}: a key is text or a whole number, not {str(value)[:80]!r}; cast "
                "the column."
            )
        rows.setdefault(str(value), []).append(number)
    if twice := {key: numbers for key, numbers in rows.items() if len(numbers) > 1}:
        said = ", ".join(f"{key[:80]!r} ({_rows(numbers)})" for key, numbers in list(twice.items())[:SHOWN])
        more = f", and {len(twice) - SHOWN} more" if len(twice) > SHOWN else ""
        raise SourceError(f"Keys in column {column!r} must be unique, and aren't: {said}{more}; keep one row of each.")
    return list(rows)


def _rows(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:SHOWN]))
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{more}"


def values_of(table: Frame, column: str) -> list[JsonValue]:
    """Return the values of a column as JSON; what is missing is None."""
    series = table[column]
    _require_microseconds(series)
    pairs = zip(series.to_list(), series.is_null().to_list(), strict=True)
    return [None if missing else _cell(value, column, number) for number, (value, missing) in enumerate(pairs, 1)]


def _cell(value: object, column: str, number: int) -> JsonValue:
    try:
        return plain(value)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"Column {column!r}, row {number}: {error}.") from None


def _require_microseconds(series: nw.Series[Any]) -> None:
    """Raise SourceError where Python's own times, which is what a frame yields, would lose nanoseconds.

    pandas yields times of its own, which keep them.
    """
    import narwhals as nw  # noqa: PLC0415 -- only those who have frames need it

    if series.implementation.is_pandas_like():
        return
    if _is_fine(series.dtype):
        lost = [number for number, ns in enumerate(series.dt.nanosecond().to_list(), 1) if (ns or 0) % 1000]
        where = f", row {lost[0]}" if lost else None
    else:
        where = "" if isinstance(series.dtype, nw.Struct | nw.List | nw.Array) and _holds_fine(series.dtype) else None
    if where is not None:
        raise SourceError(
            f"Column {series.name!r}{where}: nanoseconds would be lost; cast the times to microseconds or to text."
        )


def _is_fine(dtype: object) -> bool:
    import narwhals as nw  # noqa: PLC0415 -- only those who have frames need it

    return isinstance(dtype, nw.Time) or (isinstance(dtype, nw.Datetime) and dtype.time_unit == "ns")


def _holds_fine(dtype: Any) -> bool:  # noqa: ANN401 -- narwhals's types know no common base of those that nest
    inner = [getattr(dtype, "inner", None), *(field.dtype for field in getattr(dtype, "fields", ()))]
    return any(_is_fine(each) or _holds_fine(each) for each in inner if each is not None)
