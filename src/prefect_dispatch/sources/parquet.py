"""Items from the rows of a Parquet file."""

from __future__ import annotations

import json
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from pydantic import ConfigDict, Field

from prefect_dispatch.errors import SourceError
from prefect_dispatch.sources.tables import Columns, FilePath

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefect_dispatch.models import Item

BATCH_ROWS = 1024
"""How many rows are in memory at once."""


class Parquet(Columns):
    """The rows of a Parquet file, read in batches.

    Dates and times become ISO 8601 text; decimals and UUIDs become text. Binary values,
    durations, NaN and infinities are refused.

    Example:
        >>> Parquet(parquet="topics.parquet", key="id").key
        'id'
    """

    model_config = ConfigDict(title="Parquet", json_schema_extra={"description": "The rows of a Parquet file."})

    parquet: FilePath = Field(title="File", json_schema_extra={"position": 0})
    """The file, relative to the job's own folder, or absolute."""

    def where(self, root: Path) -> str:
        """Return the words that name this source."""
        return f"Parquet file {str((root / self.parquet).absolute())!r}"

    def stream(self, root: Path) -> Iterator[Item]:
        """Yield one item for each row, in the file's order.

        Args:
            root: The job's own folder.

        Raises:
            SourceError: If pyarrow isn't there, the file can't be read, or a value has no form in JSON.
        """
        yield from self.items(self._rows(root / self.parquet, self.where(root)))

    def _rows(self, path: Path, where: str) -> Iterator[tuple[str, dict[str, object]]]:
        try:
            import pyarrow as pa  # noqa: PLC0415 -- optional, and slow to import
            from pyarrow.parquet import ParquetFile  # noqa: PLC0415 -- the same
        except ImportError:
            raise SourceError(
                f"{where} needs pyarrow, which isn't installed: pip install 'prefect-dispatch[parquet]'."
            ) from None
        number = 0
        try:
            with path.open("rb") as opened, ParquetFile(opened) as file:
                self.check_columns(file.schema_arrow.names, where)
                for batch in file.iter_batches(BATCH_ROWS):  # pyright: ignore[reportUnknownMemberType] -- a bare list in the stubs
                    for row in batch.to_pylist():
                        _require_microseconds(row)
                        number += 1
                        place = f"{where}, row {number}"
                        yield place, {name: _plain(value, name, place) for name, value in row.items()}
        except (ValueError, pa.ArrowException) as error:
            raise SourceError(f"{where} can't be read after row {number}: {error}.") from error
        except OSError as error:
            raise SourceError(f"{where} can't be read: {error.strerror or error}.") from error


def _require_microseconds(row: dict[str, object]) -> None:
    """Raise ValueError for a time with nanoseconds, which pyarrow does only where pandas isn't installed."""
    if fine := [name for name, value in row.items() if getattr(value, "nanosecond", 0)]:
        raise ValueError(f"Nanoseconds in column {fine[0]!r} would be lost")


def _plain(value: object, name: str, place: str) -> object:
    if value is None or isinstance(value, str | int):
        return value
    try:
        return cast("object", json.loads(json.dumps(value, default=_text, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise SourceError(f"{place}: column {name!r} has no form in JSON: {error}.") from None


def _text(value: Any) -> str:  # noqa: ANN401 -- json calls it with whatever it doesn't know
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    msg = f"{type(value).__name__} is neither text, number, date nor time"
    raise TypeError(msg)
