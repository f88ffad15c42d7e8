"""The files of a run as assets of Prefect, with what the items came from as their lineage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.asset_keys import asset_key, file_key, table_key
from prefect_dispatch.databases import database
from prefect_dispatch.errors import JobError
from prefect_dispatch.sources import Csv, Glob, JsonLines, Parquet, Source, Sql
from prefect_dispatch.sources.lake import is_url
from prefect_dispatch.tasks.assets import materialized

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefect_dispatch.report import Report


def tell_files(report: Report, files: Sequence[Path], items: Source, folder: Path) -> None:
    """Tell Prefect of the files that a run has written, each an asset under its `file://` URI.

    Args:
        report: What stands in them.
        files: The files.
        items: Where the items came from.
        folder: Where relative paths of that start.
    """
    metadata = {"status": report.status, "message": report.message[:1000]}
    materialized([file_key(file.resolve()) for file in files], made_of=inputs(items, folder), metadata={**metadata})


def inputs(items: Source, folder: Path) -> list[str]:
    """Return the assets that items came from: a file, a folder, a database; none for a list.

    Example:
        >>> from pathlib import Path
        >>> inputs(Csv(csv="rows.csv"), Path("/data")), inputs(Parquet(parquet="s3://lake/rows/"), Path())
        (['file:///data/rows.csv'], ['s3://lake/rows/'])
    """
    if isinstance(items, Sql):
        try:
            with database(items.connection) as engine:
                return [table_key(engine.url)]
        except JobError:  # it was there a while ago; lineage is no reason to fail
            return []
    if isinstance(items, Glob):
        place, _ = items.place
    elif isinstance(items, Csv | JsonLines | Parquet):
        fields: dict[type[object], str] = {Csv: "csv", JsonLines: "jsonl", Parquet: "parquet"}
        place = str(getattr(items, fields[type(items)]))
    else:
        return []
    return [asset_key(place) if is_url(place) else file_key((folder / place).resolve())]
