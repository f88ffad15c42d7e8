"""Access to files on this machine or by URL (fsspec): text files, and Parquet, also in partitioned folders."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prefect_dispatch.errors import SourceError
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.sources.encoding import detect_bom

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

MAX_MESSAGE = 300
"""Maximum characters of a storage's error that a message quotes."""
EXTRAS = {"s3": "s3", "s3a": "s3"}
"""The extra of this package that installs the requirements of a URL's protocol."""


def is_url(path: str) -> bool:
    """Return whether a path is a URL.

    Example:
        >>> is_url("s3://bucket/day=1/rows.parquet"), is_url("rows.parquet")
        (True, False)
    """
    return "://" in path


def without_password(path: str) -> str:
    """Validate that a path holds no password, and return it.

    Raises:
        ValueError: If it is a URL with one: a job is stored in plain text.

    Example:
        >>> without_password("https://me:secret@example.org/rows.parquet")
        Traceback (most recent call last):
        ValueError: a URL with a password would be kept in plain text; leave it out, and set it in the environment
    """
    if is_url(path):
        try:
            secret = urlsplit(path).password
        except ValueError:
            raise ValueError("it is no URL") from None
        if secret is not None:
            raise ValueError(
                "a URL with a password would be kept in plain text; leave it out, and set it in the environment"
            )
    return path


@contextmanager
def storage_errors(where: str) -> Generator[None]:
    """Convert any error of a storage to a `SourceError` that names the source and quotes no secret.

    Raises:
        SourceError: If the body raises any error.
    """
    try:
        yield
    except SourceError:
        raise
    except MissingExtraError as error:
        raise SourceError(f"{where} needs {error}.") from None
    except ImportError as error:
        raise SourceError(f"{where} needs a package that isn't installed: {_error_text(error)}.") from None
    except Exception as error:  # noqa: BLE001 -- each storage has errors of its own
        raise SourceError(f"{where} can't be opened: {_error_text(error)}.") from None


def _error_text(error: BaseException) -> str:
    text = redact(" ".join(str(error).split())[:MAX_MESSAGE]).rstrip(".")
    return text if isinstance(error, ImportError | ValueError) else f"{type(error).__name__}: {text}"


class MissingExtraError(ImportError):
    """A package of an optional extra isn't installed; the message says how to install it."""


def open_filesystem(url: str) -> tuple[Any, str]:
    """Open the file system of a URL; return it, and the path in it.

    Raises:
        MissingExtraError: If an extra of this package would install the requirements of the protocol.
        ImportError: If the package for its protocol isn't installed.
        ValueError: If the protocol is unknown.

    Example:
        >>> open_filesystem("memory://lake/rows.parquet")[1]
        '/lake/rows.parquet'
    """
    core: Any = import_module("fsspec.core")  # slow to import, and without types
    protocol = url.partition("://")[0]
    try:
        system, path = core.url_to_fs(url)
    except ImportError:
        if protocol not in EXTRAS:
            raise
        extra = f"prefect-dispatch[{EXTRAS[protocol]}]"
        raise MissingExtraError(f"s3fs, which isn't installed: pip install '{extra}'") from None
    system.invalidate_cache()  # fsspec caches listings for the life of the process: weeks, for a served flow
    return system, str(path)


@contextmanager
def read_errors(path: str, where: str) -> Generator[None]:
    """Convert errors of reading a file or a URL to a `SourceError` that names the source.

    Raises:
        SourceError: If a storage raises any error, or the local file system an `OSError`.
    """
    if is_url(path):
        with storage_errors(where):
            yield
        return
    try:
        yield
    except OSError as error:
        raise SourceError(f"{where} can't be read: {error.strerror}.") from error


@contextmanager
def open_text(path: str, root: Path, encoding: str, newline: str) -> Generator[TextIOWrapper]:
    """Open a text file on this machine or by a URL; it is read in blocks.

    Args:
        path: A path, or a URL.
        root: The folder that a relative path starts from.
        encoding: Its encoding; a byte order mark overrides it.
        newline: The handling of line ends, as for `open`.

    Yields:
        The open file.

    Raises:
        ImportError: If the requirements of the protocol aren't installed.
        Exception: Any error of the storage.
    """
    if is_url(path):
        system, place = open_filesystem(path)
        file = system.open(place, "rb")
    else:
        file = (root / path).open("rb")
    with file:
        # Enough bytes for any byte order mark.
        mark = detect_bom(file.read(4))
        file.seek(0)
        with TextIOWrapper(file, encoding=mark or encoding, newline=newline) as text:
            yield text


def iter_batches(path: str, root: Path, rows: int) -> Iterator[tuple[str, list[str], Iterator[Any]]]:
    """Yield each Parquet file of a folder or a URL: its path, the columns of all files, and its batches.

    Names of folders such as `day=1` become columns. A column that only some files have is null in the others.

    Args:
        path: The folder, or the URL of a file or a folder.
        root: The folder that a relative path starts from.
        rows: Maximum number of rows in a batch.

    Raises:
        ImportError: If pyarrow, fsspec or the requirements of the protocol aren't installed.
        Exception: Any error of the storage or of pyarrow.
    """
    import pyarrow as pa  # noqa: PLC0415 -- optional, and slow to import
    import pyarrow.dataset as ds  # noqa: PLC0415 -- the same

    system, place = open_filesystem(path) if is_url(path) else (None, str(root / path))
    # The unified schema has the columns of all files and of the folders' names.
    lake: Any = ds.dataset(place, filesystem=system, format="parquet", partitioning="hive")
    files = sorted(lake.get_fragments(), key=lambda file: str(file.path))
    schema: Any = pa.unify_schemas([lake.schema, *(file.physical_schema for file in files)])
    for file in files:
        yield str(file.path), list(schema.names), file.to_batches(schema=schema, batch_size=rows)
