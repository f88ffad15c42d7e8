"""Items from the rows of a DataFrame of pandas, Polars, Arrow, or any other library that narwhals supports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from prefect_dispatch.errors import SourceError
from prefect_dispatch.models.base import did_you_mean
from prefect_dispatch.security.escaping import join_names
from prefect_dispatch.sources.inline import make_item, to_json_value, upstream_failure

if TYPE_CHECKING:
    import narwhals as nw
    from prefect.futures import PrefectFuture
    from pydantic import JsonValue

    from prefect_dispatch.models.item import Item

    Frame = nw.DataFrame[Any]

MAX_NAMED = 5
"""Maximum number of keys, or of rows of one key, that an error message names."""


def items_from(frame: object, *, key: str, priority: str = "") -> list[Item]:
    """Return an item for each row of a DataFrame, its value being the whole row.

    Missing values (None, NaN of pandas, NaT, NA) are null. Dates, times, decimals and UUIDs become text.

    Args:
        frame: A frame of pandas, Polars, Arrow, or another that narwhals reads; a lazy one is collected. Or the future
            of a task run that returns one.
        key: The column that names the items: text or whole numbers, each once.
        priority: The column with the items' priority; empty if there is none.

    Raises:
        SourceError: If it is no frame, a column doesn't exist, a key is missing or duplicate, or a value can't be
            converted to JSON without loss; the message names column and row.

    Example:
        >>> import polars as pl
        >>> items_from(pl.DataFrame({"id": [7], "text": ["Permission is hereby granted"]}), key="id")
        [Item(key='7', value={'id': 7, 'text': 'Permission is hereby granted'}, priority=0)]
    """
    table = to_narwhals(frame)
    for column in (key, priority) if priority else (key,):
        require_column(table, column)
    columns = {str(name): column_values(table, str(name)) for name in table.columns}
    keys = key_texts(columns[key], key)
    items: list[Item] = []
    for number, (name, values) in enumerate(zip(keys, zip(*columns.values(), strict=True), strict=True), 1):
        row = dict(zip(columns, values, strict=True))
        try:
            items.append(make_item(name, row, row[priority] if priority else None))
        except ValueError as error:
            raise SourceError(f"The frame, row {number}: {error}") from None
    return items


def to_narwhals(frame: object) -> Frame:
    """Convert a frame to a narwhals DataFrame; a lazy one is collected, and a future is awaited.

    Raises:
        SourceError: If it is no frame, or its column names are not distinct texts.
    """
    import narwhals as nw  # noqa: PLC0415 -- only those who have frames need it
    from prefect.futures import PrefectFuture  # noqa: PLC0415 -- only those who have frames need it

    if isinstance(frame, PrefectFuture):
        frame = _wait_for_frame(cast("PrefectFuture[object]", frame))
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


def _wait_for_frame(future: PrefectFuture[object]) -> object:
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001 -- the task may raise anything
        raise SourceError(f"The frame: {upstream_failure(error)}.") from None


def require_column(table: Frame, column: str) -> None:
    """Raise SourceError unless a frame has a column."""
    if column in table.columns:
        return
    index: Any = getattr(table.to_native(), "index", None)
    if column and column in getattr(index, "names", ()):
        raise SourceError(f"{column!r} is the frame's index, not a column; use frame.reset_index().")
    raise SourceError(f"The frame has no column {column!r}; {did_you_mean(str(column), table.columns)}")


def key_texts(values: list[JsonValue], column: str) -> list[str]:
    """Return the keys in a column, as text.

    Raises:
        SourceError: If one is missing, invalid or duplicate.

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
        listed = join_names((f"{key[:80]!r} ({_rows(numbers)})" for key, numbers in twice.items()), MAX_NAMED)
        raise SourceError(f"Keys in column {column!r} must be unique, and aren't: {listed}; keep one row of each.")
    return list(rows)


def _rows(numbers: list[int]) -> str:
    return f"row{'s' if len(numbers) > 1 else ''} {join_names(numbers, MAX_NAMED)}"


def column_values(table: Frame, column: str) -> list[JsonValue]:
    """Return the values of a column as JSON; missing values are None."""
    series = table[column]
    _require_microseconds(series)
    cells: list[JsonValue] = []
    for number, (value, missing) in enumerate(zip(series.to_list(), series.is_null().to_list(), strict=True), 1):
        try:
            cells.append(None if missing else to_json_value(value))
        except (ValueError, RecursionError) as error:  # noqa: PERF203 -- the message names the row
            raise SourceError(f"Column {column!r}, row {number}: {error}.") from None
    return cells


def _require_microseconds(series: nw.Series[Any]) -> None:
    """Raise SourceError if the conversion of a column to Python's own times would lose nanoseconds.

    pandas has times of its own, which keep them.
    """
    import narwhals as nw  # noqa: PLC0415 -- only those who have frames need it

    if series.implementation.is_pandas_like() or not _has_nanoseconds(series.dtype):
        return
    where = ""
    if not isinstance(series.dtype, nw.Struct | nw.List | nw.Array):
        rows = [number for number, ns in enumerate(series.dt.nanosecond().to_list(), 1) if (ns or 0) % 1000]
        if not rows:
            return
        where = f", row {rows[0]}"
    raise SourceError(
        f"Column {series.name!r}{where}: nanoseconds would be lost; cast the times to microseconds or to text."
    )


def _has_nanoseconds(dtype: Any) -> bool:  # noqa: ANN401 -- narwhals has no common base type of nested types
    """Return whether a type, or one nested in it, is a time in nanoseconds."""
    import narwhals as nw  # noqa: PLC0415 -- only those who have frames need it

    inner = [getattr(dtype, "inner", None), *(field.dtype for field in getattr(dtype, "fields", ()))]
    is_fine_datetime = isinstance(dtype, nw.Datetime) and dtype.time_unit == "ns"
    return isinstance(dtype, nw.Time) or is_fine_datetime or any(map(_has_nanoseconds, filter(None, inner)))
