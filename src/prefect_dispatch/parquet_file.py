"""Outcomes as a Parquet file, wherever fsspec can write."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from prefect_dispatch.errors import JobError, SourceError
from prefect_dispatch.frames_out import outcomes_frame
from prefect_dispatch.sources import lake

if TYPE_CHECKING:
    from prefect_dispatch.report import Report


def file_url(path: str) -> str:
    """Return the URL of the Parquet file that a path means.

    Raises:
        JobError: If it is a URL that holds a password.

    Example:
        >>> file_url("s3://lake/results/"), file_url("/data/day=1.parquet")
        ('s3://lake/results/outcomes.parquet', 'file:///data/day=1.parquet')
    """
    try:
        lake.without_password(path)
    except ValueError as error:
        raise JobError(f"{error}.") from None
    named = path if path.endswith(".parquet") else f"{path.rstrip('/')}/outcomes.parquet"
    return named if lake.is_url(named) else f"file://{Path(named).absolute().as_posix()}"


def write_file(report: Report, url: str) -> int:
    """Write the outcomes of a report as a Parquet file, whole or not at all, and return the number of its rows.

    Raises:
        JobError: If pyarrow isn't there, the file can't be written, or the report has no outcomes.
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
        with lake.told(f"Parquet {url!r}"):
            _put(url, sink.getvalue().to_pybytes())
    except SourceError as error:
        raise JobError(str(error).replace("can't be opened", "can't be written", 1)) from None
    return int(table.num_rows)


def _put(url: str, data: bytes) -> None:
    system, path = lake.opened(url)
    if not system.__class__.__name__.startswith("Local"):
        system.pipe_file(path, data)  # object stores put whole objects
        return
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}-{uuid4().hex[:8]}")
    try:
        part.write_bytes(data)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
