"""The tasks that write outcomes where other steps find them: a table, a Parquet file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_dispatch.asset_keys import asset_key, table_key
from prefect_dispatch.databases import database
from prefect_dispatch.errors import JobError
from prefect_dispatch.outcome_table import Vanished, write_outcomes
from prefect_dispatch.parquet_file import file_url, write_file
from prefect_dispatch.report import Report  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.tasks.assets import materialized

if TYPE_CHECKING:
    from pydantic import JsonValue


@task(name="write-table", cache_policy=NO_CACHE)
def write_table(
    report: Report,
    table: str,
    connection: str,
    *,
    schema: str | None = None,
    job: str = "",
    vanished: Vanished = "keep",
) -> dict[str, int]:
    """Write the outcomes of a report into a table of SQLite or PostgreSQL, as often as you like.

    There is a row for each (job, brief, item), gaps included, and a rerun replaces it: all in one transaction. The
    table is made if it isn't there; its columns are those of `rows_of`, with `job`, `run` and `written_at`. The
    table becomes an asset of Prefect.

    Args:
        report: What `dispatch` returned, or the `.report` of a `DispatchFailed`.
        table: The table's name.
        connection: The name of a block of type SQLAlchemy Connector (`prefect-sqlalchemy`).
        schema: The schema that the table is in. None: the database's own.
        job: A name for the rows, where several jobs share a table; needed to delete.
        vanished: What becomes of the job's rows that the report has no outcome for: `keep` them as they are
            (`run` and `written_at` tell them apart), or `delete` them.

    Returns:
        How many rows were `written`, and how many `deleted`.

    Raises:
        JobError: If the connection can't be used, the table holds something else, or the report has no outcomes.
    """
    if not table:
        raise JobError("The table has no name.")
    if vanished not in ("keep", "delete"):
        raise JobError(f"vanished: {vanished!r} is neither 'keep' nor 'delete'.")
    if vanished == "delete" and not job:
        raise JobError("vanished: 'delete' takes away the rows of one job; say which by 'job', such as job='triage'.")
    with database(connection) as engine:
        done = write_outcomes(engine, report, table, schema=schema, job=job, vanished=vanished)
        key = table_key(engine.url, schema, table)
    metadata: dict[str, JsonValue] = {"status": report.status, "job": job, **done}
    materialized([key], metadata=metadata)
    return done


@task(name="write-parquet", cache_policy=NO_CACHE)
def write_parquet(report: Report, path: str) -> str:
    """Write the outcomes of a report as a Parquet file, whole or not at all.

    There is a row for each (brief, item), gaps included; the columns are those of `outcomes_frame`. What was there
    is replaced. The file becomes an asset of Prefect.

    Args:
        report: What `dispatch` returned, or the `.report` of a `DispatchFailed`.
        path: A path, or a URL that fsspec opens (`s3://lake/results/day=1.parquet`) with the credentials that its
            file system finds in the environment. Where it names no `.parquet` file, it is a folder, and the file
            in it `outcomes.parquet`.

    Returns:
        The URL of the file.

    Raises:
        JobError: If it has no name, can't be written, or the report has no outcomes.
    """
    if not path.strip():
        raise JobError("path: the Parquet file has no name.")
    url = file_url(path)
    rows = write_file(report, url)
    materialized([asset_key(url)], metadata={"status": report.status, "rows": rows})
    return url
