"""Items from the rows of Parquet files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field

from prefect_dispatch.errors import SourceError
from prefect_dispatch.sources import lake
from prefect_dispatch.sources.plain import plain_row
from prefect_dispatch.sources.tables import Columns, FilePath, name_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefect_dispatch.models import Item

BATCH_ROWS = 1024
"""How many rows are in memory at once."""


class Parquet(Columns):
    """The rows of a Parquet file, or of all files in a folder, read in batches.

    A URL is opened by fsspec, with the credentials that its file system finds in the environment. Folders
    named like `day=1` become columns. A column that only some files have is null in the others.

    Dates and times become ISO 8601 text; decimals and UUIDs become text. Binary values,
    durations, NaN and infinities are refused.

    Example:
        >>> Parquet(parquet="topics.parquet", key="id").key
        'id'
        >>> from pathlib import Path
        >>> Parquet(parquet="s3://lake/topics/", key="id").where(Path())
        "Parquet 's3://lake/topics/'"
    """

    model_config = ConfigDict(title="Parquet", json_schema_extra={"description": "The rows of Parquet files."})

    parquet: FilePath = Field(title="File", json_schema_extra={"position": 0})
    """The file or folder, relative to the job's own folder, or absolute; or a URL such as `s3://bucket/folder/`."""

    def where(self, root: Path) -> str:
        """Return the words that name this source."""
        return f"Parquet {'' if lake.is_url(self.parquet) else 'file '}{name_file(self.parquet, root)}"

    def stream(self, root: Path) -> Iterator[Item]:
        """Yield one item for each row, in the file's order.

        Args:
            root: The job's own folder.

        Raises:
            SourceError: If pyarrow isn't there, the file can't be read, or a value has no form in JSON.
        """
        where = self.where(root)
        try:
            import_module("pyarrow")  # optional, and slow to import
        except ImportError:
            raise SourceError(
                f"{where} needs pyarrow, which isn't installed: pip install 'prefect-dispatch[parquet]'."
            ) from None
        if lake.is_url(self.parquet) or (root / self.parquet).is_dir():
            yield from self.items(self._lake(root, where))
        else:
            yield from self.items(self._rows(root / self.parquet, where))

    def _lake(self, root: Path, where: str) -> Iterator[tuple[str, dict[str, object]]]:
        found = False
        with lake.told(where):
            for path, columns, batches in lake.batches(self.parquet, root, BATCH_ROWS):
                found = True
                self.check_columns(columns, where)
                rows = (row for batch in batches for row in batch.to_pylist())
                for number, row in enumerate(rows, 1):
                    yield _placed(row, f"Parquet file {path!r}, row {number}")
        if not found:  # a misspelt folder looks the same
            raise SourceError(f"There are no items: {where} has no Parquet file in it.")

    def _rows(self, path: Path, where: str) -> Iterator[tuple[str, dict[str, object]]]:
        import pyarrow as pa  # noqa: PLC0415 -- optional, and slow to import
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415 -- the same

        number = 0
        try:
            with path.open("rb") as opened, ParquetFile(opened) as file:
                self.check_columns(file.schema_arrow.names, where)
                for batch in file.iter_batches(BATCH_ROWS):  # pyright: ignore[reportUnknownMemberType] -- a bare list in the stubs
                    for row in batch.to_pylist():
                        yield _placed(row, f"{where}, row {number + 1}")
                        number += 1
        except (ValueError, pa.ArrowException) as error:
            raise SourceError(f"{where} can't be read after row {number}: {error}.") from error
        except OSError as error:
            raise SourceError(f"{where} can't be read: {error.strerror or error}.") from error


def _placed(row: dict[str, object], place: str) -> tuple[str, dict[str, object]]:
    """Return a row as JSON, with its place.

    Raises:
        ValueError: If a time has nanoseconds, which pyarrow itself refuses only where pandas isn't installed.
        SourceError: If a value has no form in JSON.
    """
    if fine := [name for name, value in row.items() if getattr(value, "nanosecond", 0)]:
        raise ValueError(f"Nanoseconds in column {fine[0]!r} would be lost")
    return place, plain_row(row, place)
