"""Tasks that write outcomes for other systems: a database table, a Parquet file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.assets import Asset
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from prefect_dispatch.errors import JobError
from prefect_dispatch.models.report import Report  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.reporting.tables import Vanished, file_url, write_outcomes, write_parquet_file
from prefect_dispatch.serialization.json_text import digest
from prefect_dispatch.sources.files import Glob
from prefect_dispatch.sources.object_store import is_url
from prefect_dispatch.sources.tabular import Csv, JsonLines, Parquet, Sql, open_database

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic import JsonValue
    from sqlalchemy import URL

    from prefect_dispatch.sources import Source


NAME = "prefect-dispatch"
"""The tool that materialised an asset, as events name it."""


def emit_materializations(
    keys: Iterable[str], *, made_of: Iterable[str] = (), metadata: Mapping[str, JsonValue]
) -> None:
    """Emit the events that some assets were written in the current flow or task run.

    These are the events of `prefect.assets.materialize`, which needs the keys where a task is defined.

    Args:
        keys: The assets.
        made_of: The assets that they were made of.
        metadata: Metadata of the materialization.
    """
    # Prefect links an asset to the assets that it was made of by these events.
    upstream = sorted(set(made_of))
    for key in upstream:
        emit_event("prefect.asset.referenced", resource={"prefect.resource.id": Asset(key=key).key})
    related = [{"prefect.resource.id": key, "prefect.resource.role": "asset"} for key in upstream]
    related.append({"prefect.resource.id": NAME, "prefect.resource.role": "asset-materialized-by"})
    for key in keys:
        emit_event(
            "prefect.asset.materialization.succeeded",
            resource={"prefect.resource.id": Asset(key=key).key},
            related=related,
            payload=dict(metadata),
        )


MAX_KEY_LENGTH = 512
"""Characters of an asset's key, at most."""


_INVALID_IN_KEY = re.compile(r"[^A-Za-z0-9._~:/@!$()*+,;=-]")
"""Characters that Prefect rejects in a key, or that have to be encoded in a URI."""


def asset_key(uri: str) -> str:
    """Return a URI as the key of an asset, the same for the same URI.

    Invalid characters become `_`, and part of a digest keeps the key unique.

    Example:
        >>> asset_key("s3://lake/day=1/rows.parquet")
        's3://lake/day=1/rows.parquet'
        >>> asset_key("file:///data/my report.json")
        'file:///data/my_report.json-4eb21c00'
    """
    key = _INVALID_IN_KEY.sub("_", uri)
    if key == uri and len(key) <= MAX_KEY_LENGTH:
        return key
    name = digest(uri)[:8]
    return f"{key[: MAX_KEY_LENGTH - len(name) - 1]}-{name}"


def file_key(path: Path) -> str:
    """Return the key of a file or folder on this machine.

    Example:
        >>> file_key(Path("/data/out/report.json"))
        'file:///data/out/report.json'
    """
    return asset_key(f"file://{path.absolute().as_posix()}")


def table_key(url: URL, *names: str | None) -> str:
    """Return the key of a table, or of a whole database: without user, password and driver.

    Args:
        url: The database's.
        names: Schema and table.

    Example:
        >>> from sqlalchemy import make_url
        >>> table_key(make_url("postgresql+psycopg2://me:secret@db.example.org:5432/lake"), "public", "results")
        'postgresql://db.example.org:5432/lake/public/results'
    """
    host = f"{url.host}:{url.port}" if url.host and url.port else url.host or ""
    database = url.database or ""
    if url.get_backend_name() == "sqlite" and database not in ("", ":memory:"):
        database = Path(database).absolute().as_posix().removeprefix("/")
    return asset_key("/".join([f"{url.get_backend_name()}://{host}", database, *filter(None, names)]))


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
    """Write the outcomes of a report into a table of SQLite or PostgreSQL; idempotent.

    There is a row for each (job, brief, item), gaps included, and a rerun replaces it: all in one transaction. The
    table is created if it does not exist; its columns are those of `build_rows`, with `job`, `run` and `written_at`.
    The table becomes an asset of Prefect.

    Args:
        report: The report that `dispatch` returned, or the `.report` of a `DispatchFailed`.
        table: The table's name.
        connection: The name of a block of type SQLAlchemy Connector (`prefect-sqlalchemy`).
        schema: The schema that the table is in. None: the database's default.
        job: A name for the rows, where several jobs share a table; needed to delete.
        vanished: How to handle the job's rows that the report has no outcome for: `keep` them as they are
            (`run` and `written_at` distinguish them), or `delete` them.

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
    with open_database(connection) as engine:
        counts = write_outcomes(engine, report, table, schema=schema, job=job, vanished=vanished)
        key = table_key(engine.url, schema, table)
    metadata: dict[str, JsonValue] = {"status": report.status, "job": job, **counts}
    emit_materializations([key], metadata=metadata)
    return counts


@task(name="write-parquet", cache_policy=NO_CACHE)
def write_parquet(report: Report, path: str) -> str:
    """Write the outcomes of a report as a Parquet file, atomically.

    There is a row for each (brief, item), gaps included; the columns are those of `outcomes_frame`. An existing file
    is replaced. The file becomes an asset of Prefect.

    Args:
        report: The report that `dispatch` returned, or the `.report` of a `DispatchFailed`.
        path: A path, or a URL that fsspec opens (`s3://lake/results/day=1.parquet`) with the credentials that its
            file system finds in the environment. Where it names no `.parquet` file, it is a folder, and the file
            in it `outcomes.parquet`.

    Returns:
        The URL of the file.

    Raises:
        JobError: If the path is empty, the file can't be written, or the report has no outcomes.
    """
    if not path.strip():
        raise JobError("path: the Parquet file has no name.")
    url = file_url(path)
    rows = write_parquet_file(report, url)
    emit_materializations([asset_key(url)], metadata={"status": report.status, "rows": rows})
    return url


def emit_file_assets(report: Report, files: Sequence[str], items: Source, folder: Path) -> None:
    """Emit the events that a run has written some files, each an asset under its `file://` URI or its URL.

    Args:
        report: The report that the files hold.
        files: The paths of the files, or their URLs.
        items: The source of the items.
        folder: The base of the source's relative paths.
    """
    metadata = {"status": report.status, "message": report.message[:1000]}
    emit_materializations(
        [asset_key(file) if "://" in file else file_key(Path(file).resolve()) for file in files],
        made_of=input_assets(items, folder),
        metadata={**metadata},
    )


def input_assets(items: Source, folder: Path) -> list[str]:
    """Return the assets that items came from: a file, a folder, a database; none for a list.

    Example:
        >>> from pathlib import Path
        >>> input_assets(Csv(csv="rows.csv"), Path("/data")), input_assets(Parquet(parquet="s3://lake/rows/"), Path())
        (['file:///data/rows.csv'], ['s3://lake/rows/'])
    """
    if isinstance(items, Sql):
        try:
            with open_database(items.connection) as engine:
                return [table_key(engine.url)]
        except JobError:  # the run could use it before; missing lineage is no reason to fail
            return []
    if isinstance(items, Glob):
        location, _ = items.place
    elif isinstance(items, Csv | JsonLines | Parquet):
        fields: dict[type[object], str] = {Csv: "csv", JsonLines: "jsonl", Parquet: "parquet"}
        location = str(getattr(items, fields[type(items)]))
    else:
        return []
    return [asset_key(location) if is_url(location) else file_key((folder / location).resolve())]
