"""Tables of a run: outcomes as a data frame, a Parquet file or a database table; lists of answers by their fields."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from importlib import import_module
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload
from uuid import uuid4

from prefect_dispatch.errors import JobError, SourceError
from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.sources import object_store
from prefect_dispatch.sources.dataframe import MAX_NAMED, column_values, key_texts, require_column, to_narwhals

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import narwhals as nw
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from pydantic import JsonValue
    from sqlalchemy import Connection, Engine, Table

    from prefect_dispatch.models.ledger import LedgerRow
    from prefect_dispatch.models.report import Report


Row = dict[str, "JsonValue"]


def build_rows(report: Report) -> list[Row]:
    """Return a row for each (brief, item) of a report, gaps included, by item and then by brief.

    A row has the result (`status`, `disposition`, `by`, `reason`), the answer (`answer`: a text as it is,
    anything else as JSON), the error (`error_kind`, `error`), the origin of the answer (`model`, `origin`,
    `fingerprint`), and the usage of its attempts, whenever they were paid for (`attempts` to `tiers`), with what this
    run has paid for them (`paid_usd`).

    Raises:
        JobError: If the report has no outcomes, as one that was read from `report.json`.

    Example:
        >>> from prefect_dispatch import Outcome, Report
        >>> outcome = Outcome(brief="terms", item="mit.txt", status="succeeded", value={"family": "permissive"})
        >>> [row] = build_rows(Report(status="complete", message="", outcomes=(outcome,)))
        >>> row["item"], row["answer"], row["error"]
        ('mit.txt', '{"family": "permissive"}', None)
    """
    ledger = {Ref.of(row): row for row in report.ledger}
    return [_build_row(outcome, ledger.get(Ref.of(outcome))) for outcome in sorted_outcomes(report)]


def sorted_outcomes(report: Report) -> list[Outcome]:
    """Return the outcomes of a report, by item and then by brief.

    Raises:
        JobError: If it has none, as one that was read from `report.json`.
    """
    if report.ledger and not report.outcomes:
        raise JobError(
            "The report has no outcomes: `report.json` leaves them out. Use the report that `dispatch` returns, or "
            "read outcomes.jsonl beside it."
        )
    return sorted(report.outcomes, key=lambda outcome: Ref.of(outcome).order)


def _build_row(outcome: Outcome, ledger: LedgerRow | None) -> Row:
    usages = [attempt.usage for attempt in outcome.attempts]
    costs = [usage.cost_usd for usage in usages if usage.cost_usd is not None]
    # A sum without the attempts of unknown cost would be too low.
    cost_usd = fsum(costs) if len(costs) == len(usages) else None
    tiers = sorted({share.tier for attempt in outcome.attempts for share in attempt.usage_shares})
    return {
        "brief": outcome.brief,
        "item": outcome.item,
        "status": outcome.status,
        "disposition": ledger.disposition if ledger else None,
        "by": str(ledger.by) if ledger and ledger.by else None,
        "reason": ledger.reason if ledger else None,
        "answer": as_text(outcome.value) if outcome.status == "succeeded" else None,
        "error_kind": outcome.error.kind if outcome.error else None,
        "error": outcome.error.message if outcome.error else None,
        "model": outcome.model or None,
        "origin": outcome.origin,
        "fingerprint": outcome.fingerprint or None,
        "attempts": len(usages),
        "tokens": sum(usage.tokens for usage in usages),
        "cost_usd": cost_usd,
        "paid_usd": cost_usd if outcome.origin == "asked" else 0.0,
        "reasks": sum(attempt.reasks for attempt in outcome.attempts),
        "tiers": ", ".join(tiers) or None,
        **{name: sum(getattr(usage, name) for usage in usages) for name in USAGE_COUNTS},
    }


LATER_COLUMNS = frozenset({"paid_usd", "reasks", "tiers"})
"""With `USAGE_COUNTS` the columns that a database table of an earlier version doesn't have."""
USAGE_COUNTS = ("requests", "prompt_tokens", "cached_tokens", "cache_write_tokens", "completion_tokens", "unsettled")
"""The columns that sum up a field of the usage of all attempts."""

COLUMNS = tuple(_build_row(Outcome(brief="", item="", status="skipped"), None))
"""The names of the columns."""


def as_text(value: JsonValue) -> str:
    """Return a string as it is, and any other value as JSON.

    Example:
        >>> as_text("two words"), as_text([1, None])
        ('two words', '[1, null]')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


FrameT = TypeVar("FrameT")
TypedColumn = tuple[Literal["Boolean", "Int64", "Float64", "String"], "Sequence[JsonValue]"]
"""The type and the values of a column."""

FRAME_LIBRARIES = ("pandas", "polars", "pyarrow")
"""The libraries of data frames that are supported by name."""

MAX_EXACT_FLOAT = 2**53
"""The largest integer up to which a float represents every integer."""

MAX_INT64 = 2**63 - 1
"""The largest signed integer of 64 bits."""

COLUMN_TYPES = {
    **dict.fromkeys(("attempts", "tokens", "reasks", *USAGE_COUNTS), "Int64"),
    **dict.fromkeys(("cost_usd", "paid_usd"), "Float64"),
}
"""The types of the columns that aren't texts."""


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

    The columns are `brief`, `item`, `status`, `disposition`, `by`, `reason`, `answer`, `error_kind`, `error`,
    `model`, `origin`, `fingerprint`; of the attempts `attempts`, `tokens`, `cost_usd`, `paid_usd` (0 where the answer
    was paid for before, or by an equal item), `reasks`, `tiers`, `requests`, `prompt_tokens`, `cached_tokens`,
    `cache_write_tokens`, `completion_tokens` and `unsettled`; and `answer.<field>` for each field of the
    answers that are objects, with booleans, numbers and texts as such, and mixed or nested values as JSON text.

    Args:
        report: What `dispatch` returned, or the `.report` of a `DispatchFailed`.
        like: The frame that the items came from, or the name of a library: `pandas`, `polars` or `pyarrow`.
        key: The column of that frame with the keys of the items. It comes first, in its own type, so that the
            two frames join on it; a column of the outcomes that has the same name becomes `outcome.<name>`.

    Raises:
        JobError: If the report has no outcomes, or has items that aren't in the frame.
        SourceError: If `like` is no data frame, or has no such keys.

    Example:
        >>> import polars as pl
        >>> from prefect_dispatch import Outcome, Report
        >>> outcome = Outcome(brief="terms", item="7", status="succeeded", value={"family": "permissive"})
        >>> report = Report(status="complete", message="", outcomes=(outcome,))
        >>> outcomes_frame(report, pl.DataFrame({"id": [7]}), key="id")["id", "answer.family"].rows()
        [(7, 'permissive')]
    """
    import narwhals as nw  # noqa: PLC0415 -- only needed for data frames

    columns = build_columns(report)
    if isinstance(like, str):
        if like not in FRAME_LIBRARIES:
            raise JobError(
                f"like: {like!r} is no library of frames; write one of {', '.join(map(repr, FRAME_LIBRARIES))}."
            )
        series = {each.name: each for each in build_series(columns, like)}
        return nw.from_dict(series, backend=cast("Any", like)).to_native()
    # 1. The row of each item in the frame.
    table = to_narwhals(like)
    require_column(table, key)
    items = [str(item) for item in columns["item"][1]]
    row_of = {name: number for number, name in enumerate(key_texts(column_values(table, key), key))}
    if unknown := sorted({item for item in items if item not in row_of}):
        more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
        raise JobError(
            f"The report has items that column {key!r} of the frame hasn't: "
            f"{', '.join(repr(item[:80]) for item in unknown[:MAX_NAMED])}{more}. Give the frame that was dispatched."
        )
    # 2. The frame's key column, in the order of the outcomes, with their columns beside it.
    if key in columns:
        columns = {f"outcome.{name}" if name == key else name: column for name, column in columns.items()}
        columns.pop("outcome.item", None)  # the same, as text
    keys = table.select(key)[[row_of[item] for item in items]]
    return nw.maybe_reset_index(keys).with_columns(*build_series(columns, str(table.implementation.value))).to_native()


def build_columns(report: Report) -> dict[str, TypedColumn]:
    """Return the columns of `outcomes_frame`, each with its type.

    Raises:
        JobError: If the report has no outcomes.

    Example:
        >>> from prefect_dispatch import Outcome, Report
        >>> outcome = Outcome(brief="b", item="x", status="succeeded", value={"n": 1})
        >>> build_columns(Report(status="complete", message="", outcomes=(outcome,)))["answer.n"]
        ('Int64', [1])
    """
    rows = build_rows(report)
    columns: dict[str, TypedColumn] = {
        name: cast("TypedColumn", (COLUMN_TYPES.get(name, "String"), [row[name] for row in rows])) for name in COLUMNS
    }
    objects = [each.value if isinstance(each.value, dict) else {} for each in sorted_outcomes(report)]
    fields = sorted({name for value in objects for name in value})
    return columns | {f"answer.{name}": infer_type([value.get(name) for value in objects]) for name in fields}


def infer_type(values: list[JsonValue]) -> TypedColumn:
    """Return a column with the narrowest type that represents its values exactly; without one, as JSON texts."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "Boolean", values
    integers = [value for value in values if isinstance(value, int)]
    if kinds == {int} and all(abs(value) <= MAX_INT64 for value in integers):
        return "Int64", values
    if kinds and kinds <= {int, float} and all(abs(value) <= MAX_EXACT_FLOAT for value in integers):
        return "Float64", [None if value is None else float(cast("float", value)) for value in values]
    if kinds <= {str}:
        return "String", values
    return "String", [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]


def build_series(columns: dict[str, TypedColumn], library: str) -> list[nw.Series[Any]]:
    """Return the columns as series of a library of data frames."""
    import narwhals as nw  # noqa: PLC0415 -- only needed for data frames

    if library != "pandas":
        return [
            nw.new_series(name, values, getattr(nw, kind), backend=cast("Any", library))
            for name, (kind, values) in columns.items()
        ]
    import pandas as pd  # noqa: PLC0415 -- the same

    # NumPy's integers and booleans can't be missing; pandas' own nullable types can.
    dtypes = {"Int64": "Int64", "Boolean": "boolean", "Float64": "float64", "String": None}
    series: list[Any] = [
        pd.Series(list(values), name=name, dtype=dtypes[kind]) for name, (kind, values) in columns.items()
    ]
    return [nw.from_native(each, series_only=True) for each in series]


Vanished = Literal["keep", "delete"]
"""What to do with rows of a job whose items aren't in its report any more."""

KEY_COLUMNS = ("job", "brief", "item")
"""The columns of the primary key."""

NUL_REPLACEMENT = "\u2400"
"""Replacement for the character NUL, which PostgreSQL doesn't accept in texts."""


def write_outcomes(
    engine: Engine, report: Report, table: str, *, schema: str | None, job: str, vanished: Vanished
) -> dict[str, int]:
    """Write the outcomes of a report into a database table, in one transaction; a missing table is created.

    Args:
        engine: The database: SQLite or PostgreSQL.
        report: The report; its gaps become rows, too.
        table: The table's name; it is always quoted, and may have any characters.
        schema: The schema of the table. None: the database's default.
        job: The first part of the primary key, so that several jobs can share a table.
        vanished: What to do with rows of the job that have no outcome in the report.

    Returns:
        The number of rows that were `written`, and that were `deleted`.

    Raises:
        JobError: If it is another kind of database, the table lacks a column, or two items have equal keys in it.
    """
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise JobError(f"Results are written to SQLite and PostgreSQL, not to {engine.dialect.name}.")
    from sqlalchemy import delete  # noqa: PLC0415 -- optional

    written_at = datetime.now(timezone.utc)
    rows = _database_rows(report, job, written_at)
    deleted = 0
    with engine.begin() as connection:
        target = _build_table(table, schema, _lacking_columns(connection, table, schema))
        target.create(connection, checkfirst=True)
        _require_columns(connection, target)
        if rows:
            rows = [{name: value for name, value in row.items() if name in target.c} for row in rows]
            connection.execute(_upsert(target, engine.dialect.name), rows)
        if vanished == "delete":
            # The rows that were just written have the time of this call.
            others = target.c.written_at.is_distinct_from(written_at)
            deleted = connection.execute(delete(target).where(target.c.job == _replace_nul(job), others)).rowcount
    return {"written": len(rows), "deleted": deleted}


def _database_rows(report: Report, job: str, written_at: datetime) -> list[dict[str, Any]]:
    """Return the rows to write.

    Raises:
        JobError: If two items have equal keys once NUL is replaced, or the report has no outcomes.
    """
    run = cast("dict[str, object]", report.run.get("flow_run") or {})
    more: dict[str, object] = {"job": job, "run": run.get("id"), "written_at": written_at}
    rows: list[dict[str, Any]] = [
        {name: _replace_nul(value) for name, value in {**row, **more}.items()} for row in build_rows(report)
    ]
    keys: set[tuple[Any, ...]] = set()
    for row in rows:
        key = tuple(row[part] for part in KEY_COLUMNS)
        if key in keys:
            raise JobError(f"Two items have the key {row['item']!r} once NUL is {NUL_REPLACEMENT}; give one another.")
        keys.add(key)
    return rows


def _replace_nul(value: object) -> object:
    """Return a value for the database: NUL in a text is replaced."""
    return value.replace("\0", NUL_REPLACEMENT) if isinstance(value, str) else value


def _lacking_columns(connection: Connection, table: str, schema: str | None) -> set[str]:
    """Return the columns that a table of an earlier version doesn't have; they stay out of it."""
    from sqlalchemy import inspect  # noqa: PLC0415 -- optional

    inspector = inspect(connection)
    if not inspector.has_table(table, schema=schema):
        return set()
    existing = {str(column["name"]) for column in inspector.get_columns(table, schema=schema)}
    return {*LATER_COLUMNS, *USAGE_COUNTS} - existing


def _build_table(name: str, schema: str | None, left_out: Collection[str]) -> Table:
    from sqlalchemy import Column, DateTime, Float, Integer, MetaData, Table, Text  # noqa: PLC0415 -- optional
    from sqlalchemy.sql import quoted_name  # noqa: PLC0415 -- the same

    types: dict[str, Any] = {"Int64": Integer, "Float64": Float}
    kinds = {name: types[kind] for name, kind in COLUMN_TYPES.items()}
    kinds["written_at"] = DateTime(timezone=True)
    names = [each for each in dict.fromkeys((*KEY_COLUMNS, *COLUMNS, "run", "written_at")) if each not in left_out]
    columns: list[Column[Any]] = [
        Column(each, kinds.get(each, Text), primary_key=each in KEY_COLUMNS) for each in names
    ]
    return Table(
        quoted_name(name, quote=True), MetaData(), *columns, schema=quoted_name(schema, quote=True) if schema else None
    )


def _require_columns(connection: Connection, table: Table) -> None:
    from sqlalchemy import inspect  # noqa: PLC0415 -- optional

    inspector = inspect(connection)
    existing = {str(column["name"]) for column in inspector.get_columns(table.name, schema=table.schema)}
    if missing := next((column.name for column in table.columns if column.name not in existing), None):
        raise JobError(
            f"Table {table.name!r} exists, but has no column {missing!r}: it holds something else. Name another "
            "table; it is created."
        )


def _upsert(table: Table, dialect: str) -> Any:  # noqa: ANN401 -- one class for each dialect
    """Return the statement that inserts rows, and updates those that exist."""
    from sqlalchemy.dialects import postgresql, sqlite  # noqa: PLC0415 -- optional

    statement: Any = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    others = [column.name for column in table.columns if column.name not in KEY_COLUMNS]
    return statement.on_conflict_do_update(
        index_elements=list(KEY_COLUMNS), set_={name: statement.excluded[name] for name in others}
    )


def file_url(path: str) -> str:
    """Return the URL of a Parquet file.

    Args:
        path: A path or a URL; unless it ends in `.parquet`, that of a folder for a file `outcomes.parquet`.

    Raises:
        JobError: If it is a URL with a password.

    Example:
        >>> file_url("s3://lake/results/"), file_url("/data/day=1.parquet")
        ('s3://lake/results/outcomes.parquet', 'file:///data/day=1.parquet')
    """
    try:
        object_store.without_password(path)
    except ValueError as error:
        raise JobError(f"{error}.") from None
    file = path if path.endswith(".parquet") else f"{path.rstrip('/')}/outcomes.parquet"
    return file if object_store.is_url(file) else f"file://{Path(file).absolute().as_posix()}"


def write_parquet_file(report: Report, url: str) -> int:
    """Write the outcomes of a report as a Parquet file, atomically.

    Returns:
        The number of rows.

    Raises:
        JobError: If pyarrow isn't installed, the file can't be written, or the report has no outcomes.
    """
    try:
        parquet: Any = import_module("pyarrow.parquet")  # optional, slow to import, and partly without types
    except ImportError:
        raise JobError("write_parquet needs pyarrow: pip install 'prefect-dispatch[parquet]'.") from None
    make: Any = outcomes_frame
    table: Any = make(report, "pyarrow")
    sink: Any = import_module("pyarrow").BufferOutputStream()
    parquet.write_table(table, sink)
    try:
        with object_store.storage_errors(f"Parquet {url!r}"):
            _write_bytes(url, sink.getvalue().to_pybytes())
    except SourceError as error:
        raise JobError(str(error).replace("can't be opened", "can't be written", 1)) from None
    return int(table.num_rows)


def _write_bytes(url: str, data: bytes) -> None:
    """Write a file atomically: object stores do so themselves, on a local disk a temporary file is renamed."""
    system, path = object_store.open_filesystem(url)
    if not system.__class__.__name__.startswith("Local"):
        system.pipe_file(path, data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}-{uuid4().hex[:8]}")
    try:
        part.write_bytes(data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
