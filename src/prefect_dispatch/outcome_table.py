"""Outcomes as rows of a table: one for each (job, brief, item), however often they are written."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, cast

from prefect_dispatch.errors import JobError
from prefect_dispatch.rows import COLUMNS, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine, Table

    from prefect_dispatch.report import Report

Vanished = Literal["keep", "delete"]

KEY = ("job", "brief", "item")
"""What names a row."""
NUL = "\u2400"
"""What stands for the character NUL, which PostgreSQL takes in no text."""


def write_outcomes(
    engine: Engine, report: Report, table: str, *, schema: str | None, job: str, vanished: Vanished
) -> dict[str, int]:
    """Write the outcomes of a report into a table, in one transaction; the table is made if it isn't there.

    Args:
        engine: The database: SQLite or PostgreSQL.
        report: Whose outcomes; gaps are rows, too.
        table: The table's name, quoted whatever is in it.
        schema: The schema that it is in. None: the database's own.
        job: The first part of the key, for several jobs in one table.
        vanished: What becomes of rows of the job that the report has no outcome for.

    Returns:
        How many rows were `written`, and how many `deleted`.

    Raises:
        JobError: If the database is another one, the table has other columns, or two keys are one there.
    """
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise JobError(f"Results are written to SQLite and PostgreSQL, not to {engine.dialect.name}.")
    rows = _rows(report, job)
    made = _table(table, schema)
    with engine.begin() as connection:
        made.create(connection, checkfirst=True)
        _require_columns(connection, made)
        if rows:
            connection.execute(_upsert(made, engine.dialect.name), rows)
        gone = _gone(connection, made, job, rows) if vanished == "delete" else []
        if gone:
            connection.execute(_deletion(made), gone)
    return {"written": len(rows), "deleted": len(gone)}


def _rows(report: Report, job: str) -> list[dict[str, Any]]:
    run = cast("dict[str, object]", report.run.get("flow_run") or {})
    more: dict[str, object] = {"job": job, "run": run.get("id"), "written_at": datetime.now(timezone.utc)}
    rows: list[dict[str, Any]] = [
        {name: _text(value) for name, value in {**row, **more}.items()} for row in rows_of(report)
    ]
    names: dict[tuple[Any, ...], int] = {}
    for number, row in enumerate(rows):
        name = tuple(row[part] for part in KEY)
        if names.setdefault(name, number) != number:
            raise JobError(f"Two items have the key {row['item']!r} once NUL is {NUL}; give one another.")
    return rows


def _text(value: object) -> object:
    return value.replace("\0", NUL) if isinstance(value, str) else value


def _table(name: str, schema: str | None) -> Table:
    from sqlalchemy import Column, DateTime, Float, Integer, MetaData, Table, Text  # noqa: PLC0415 -- optional
    from sqlalchemy.sql import quoted_name  # noqa: PLC0415 -- the same

    kinds: dict[str, Any] = {
        "attempts": Integer,
        "tokens": Integer,
        "cost_usd": Float,
        "written_at": DateTime(timezone=True),
    }
    columns: list[Column[Any]] = [Column(part, Text, primary_key=True) for part in KEY]
    columns += [Column(each, kinds.get(each, Text)) for each in (*COLUMNS, "run", "written_at") if each not in KEY]
    return Table(
        quoted_name(name, quote=True), MetaData(), *columns, schema=quoted_name(schema, quote=True) if schema else None
    )


def _require_columns(connection: Connection, table: Table) -> None:
    from sqlalchemy import inspect  # noqa: PLC0415 -- optional

    inspector = inspect(connection)
    there = {str(column["name"]) for column in inspector.get_columns(table.name, schema=table.schema)}
    if missing := [column.name for column in table.columns if column.name not in there]:
        raise JobError(
            f"Table {table.name!r} is there, and has no column {missing[0]!r}: it holds something else. Name another "
            "table; it is made."
        )


def _upsert(table: Table, dialect: str) -> Any:  # noqa: ANN401 -- one class for each dialect
    from sqlalchemy.dialects import postgresql, sqlite  # noqa: PLC0415 -- optional

    statement: Any = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    others = [column.name for column in table.columns if column.name not in KEY]
    return statement.on_conflict_do_update(
        index_elements=list(KEY), set_={name: statement.excluded[name] for name in others}
    )


def _gone(connection: Connection, table: Table, job: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the keys of the job's rows that are not among those just written."""
    from sqlalchemy import select  # noqa: PLC0415 -- optional

    kept = {(row["brief"], row["item"]) for row in rows}
    there = connection.execute(select(table.c.brief, table.c.item).where(table.c.job == _text(job)))
    return [
        {"a_job": str(_text(job)), "a_brief": brief, "an_item": item}
        for brief, item in there
        if (brief, item) not in kept
    ]


def _deletion(table: Table) -> Any:  # noqa: ANN401 -- SQLAlchemy's
    from sqlalchemy import bindparam, delete  # noqa: PLC0415 -- optional

    names = {"job": "a_job", "brief": "a_brief", "item": "an_item"}
    return delete(table).where(*(table.c[part] == bindparam(names[part]) for part in KEY))
