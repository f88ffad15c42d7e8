"""Outcomes as a DataFrame that joins back on the frame that the items came from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from prefect_dispatch.errors import JobError
from prefect_dispatch.frames import SHOWN, key_texts, opened, require_column, values_of
from prefect_dispatch.rows import COLUMNS, outcomes_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import narwhals as nw
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from pydantic import JsonValue

    from prefect_dispatch.report import Report

FrameT = TypeVar("FrameT")
Column = tuple[Literal["Boolean", "Int64", "Float64", "String"], "Sequence[JsonValue]"]

LIBRARIES = ("pandas", "polars", "pyarrow")
EXACT = 2**53
"""The largest whole number up to which a float holds each."""
WIDEST = 2**63 - 1
"""The largest whole number of 64 bits."""
FIXED = {"attempts": "Int64", "tokens": "Int64", "cost_usd": "Float64"}


@overload
def outcomes_frame(report: Report, like: Literal["pandas"]) -> pd.DataFrame: ...
@overload
def outcomes_frame(report: Report, like: Literal["polars"]) -> pl.DataFrame: ...
@overload
def outcomes_frame(report: Report, like: Literal["pyarrow"]) -> pa.Table: ...
@overload
def outcomes_frame(report: Report, like: FrameT, *, key: str) -> FrameT: ...
def outcomes_frame(report: Report, like: object, *, key: str = "") -> object:
    """Return a DataFrame with a row for each (brief, item), gaps included.

    The columns are those of `rows_of`, and `answer.<field>` for each field of the answers that are objects:
    flags, numbers and texts as such, what is mixed or nested as JSON text.

    Args:
        report: What `dispatch` returned, or the `.report` of a `DispatchFailed`.
        like: The frame that the items came from, or the name of a library: `pandas`, `polars` or `pyarrow`.
        key: The column of that frame that named the items. It comes first, in its own type, so that the two
            frames join on it; a column of the outcomes that has the same name becomes `outcome.<name>`.

    Raises:
        JobError: If the report has no outcomes, or has items that the frame hasn't.
        SourceError: If the frame is none, or has no such keys.

    Example:
        >>> import polars as pl
        >>> from prefect_dispatch import Outcome, Report
        >>> said = Outcome(brief="terms", item="7", status="succeeded", value={"family": "permissive"})
        >>> report = Report(status="complete", message="", outcomes=(said,))
        >>> outcomes_frame(report, pl.DataFrame({"id": [7]}), key="id")["id", "answer.family"].rows()
        [(7, 'permissive')]
    """
    columns = columns_of(report)
    if isinstance(like, str):
        if like not in LIBRARIES:
            raise JobError(f"like: {like!r} is no library of frames; write one of {', '.join(map(repr, LIBRARIES))}.")
        return _built(columns, like).to_native()
    table = opened(like)
    require_column(table, key)
    items = [str(item) for item in columns["item"][1]]
    row_of = {name: number for number, name in enumerate(key_texts(values_of(table, key), key))}
    if unknown := sorted({item for item in items if item not in row_of}):
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise JobError(
            f"The report has items that column {key!r} of the frame hasn't: "
            f"{', '.join(repr(item[:80]) for item in unknown[:SHOWN])}{more}. Give the frame that was dispatched."
        )
    if key in columns:
        columns = {f"outcome.{name}" if name == key else name: column for name, column in columns.items()}
        columns.pop("outcome.item", None)  # the same, as text
    named = table.select(key)[[row_of[item] for item in items]]
    import narwhals as nw  # noqa: PLC0415 -- only those who have frames need it

    return nw.maybe_reset_index(named).with_columns(*_series(columns, _library(table))).to_native()


def columns_of(report: Report) -> dict[str, Column]:
    """Return the columns of `outcomes_frame`, with the type of each.

    Raises:
        JobError: If the report has no outcomes.

    Example:
        >>> from prefect_dispatch import Outcome, Report
        >>> said = Outcome(brief="b", item="x", status="succeeded", value={"n": 1})
        >>> columns_of(Report(status="complete", message="", outcomes=(said,)))["answer.n"]
        ('Int64', [1])
    """
    rows, outcomes = rows_of(report), outcomes_of(report)
    columns: dict[str, Column] = {
        name: cast("Column", (FIXED.get(name, "String"), [row[name] for row in rows])) for name in COLUMNS
    }
    said = [outcome.value if isinstance(outcome.value, dict) else {} for outcome in outcomes]
    fields = dict.fromkeys(name for value in said for name in value)  # each once, in the order of the items
    return columns | {f"answer.{name}": _typed([value.get(name) for value in said]) for name in sorted(fields)}


def _typed(values: list[JsonValue]) -> Column:
    there = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in there) and there:
        return "Boolean", values
    numbers = [value for value in there if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(there) and there:
        if all(isinstance(value, int) and abs(value) <= WIDEST for value in numbers):
            return "Int64", values
        if all(isinstance(value, float) or abs(value) <= EXACT for value in numbers):
            return "Float64", [None if value is None else float(cast("float", value)) for value in values]
    if all(isinstance(value, str) for value in there):
        return "String", values
    return "String", [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]


def _built(columns: dict[str, Column], library: str) -> nw.DataFrame[Any]:
    import narwhals as nw  # noqa: PLC0415 -- only those who have frames need it

    return nw.from_dict({each.name: each for each in _series(columns, library)}, backend=cast("Any", library))


def _library(table: nw.DataFrame[Any]) -> str:
    return str(table.implementation.value)


def _series(columns: dict[str, Column], library: str) -> list[nw.Series[Any]]:
    import narwhals as nw  # noqa: PLC0415 -- only those who have frames need it

    if library != "pandas":
        return [
            nw.new_series(name, values, getattr(nw, kind), backend=cast("Any", library))
            for name, (kind, values) in columns.items()
        ]
    import pandas as pd  # noqa: PLC0415 -- the same

    # NumPy has no whole number and no flag that is missing; pandas has.
    own = {"Int64": "Int64", "Boolean": "boolean", "Float64": "float64", "String": None}
    made: list[Any] = [pd.Series(list(values), name=name, dtype=own[kind]) for name, (kind, values) in columns.items()]
    return [nw.from_native(each, series_only=True) for each in made]
