"""What fsspec opens by a URL such as `s3://bucket/folder/`: text files, and Parquet, also in partitioned folders."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prefect_dispatch.errors import SourceError
from prefect_dispatch.scrub import scrub
from prefect_dispatch.sources.texts import marked

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

MAX_SAID = 300
"""Characters of what a storage says that a message repeats."""
EXTRAS = {"s3": "s3", "s3a": "s3"}
"""The extra of this package that brings what the protocol of a URL needs."""


def is_url(path: str) -> bool:
    """Return whether a path is a URL.

    Example:
        >>> is_url("s3://bucket/day=1/rows.parquet"), is_url("rows.parquet")
        (True, False)
    """
    return "://" in path


def without_password(path: str) -> str:
    """Return a path that holds no password.

    Raises:
        ValueError: If it is a URL with one: a job is kept in plain text.

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
def told(where: str) -> Generator[None]:
    """Turn whatever a storage raises into an error that says what can't be opened; no secret is repeated.

    Raises:
        SourceError: If anything else is raised.
    """
    try:
        yield
    except SourceError:
        raise
    except MissingExtraError as error:
        raise SourceError(f"{where} needs {error}.") from None
    except ImportError as error:
        raise SourceError(f"{where} needs a package that isn't installed: {_said(error)}.") from None
    except Exception as error:  # noqa: BLE001 -- each storage has errors of its own
        raise SourceError(f"{where} can't be opened: {_said(error)}.") from None


def _said(error: BaseException) -> str:
    text = scrub(" ".join(str(error).split())[:MAX_SAID]).rstrip(".")
    return text if isinstance(error, ImportError | ValueError) else f"{type(error).__name__}: {text}"


class MissingExtraError(ImportError):
    """A package that an extra of this one brings isn't installed; the message says how to install it."""


def opened(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it.

    Raises:
        MissingExtraError: If an extra of this package would bring what the protocol needs.
        ImportError: If the package for its protocol isn't installed.
        ValueError: If nothing knows the protocol.

    Example:
        >>> opened("memory://lake/rows.parquet")[1]
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
    system.invalidate_cache()  # fsspec keeps listings as long as the process lives, and a served flow lives for weeks
    return system, str(path)


@contextmanager
def reading(path: str, where: str) -> Generator[None]:
    """Turn what is raised while a file is read into an error that says what can't be read.

    Raises:
        SourceError: If anything else is raised by a storage, or the file system.
    """
    if is_url(path):
        with told(where):
            yield
        return
    try:
        yield
    except OSError as error:
        raise SourceError(f"{where} can't be read: {error.strerror}.") from error


@contextmanager
def open_text(path: str, root: Path, encoding: str, newline: str) -> Generator[TextIOWrapper]:
    """Open a text file, on this machine or by a URL; it is read in blocks.

    Args:
        path: A path, or a URL.
        root: Where a relative path starts.
        encoding: Its encoding; a byte order mark overrules it.
        newline: Which line ends are kept, as for `open`.

    Raises:
        ImportError: If what the protocol needs isn't installed.
        Exception: Whatever the storage raises.
    """
    if is_url(path):
        system, place = opened(path)
        file = system.open(place, "rb")
    else:
        file = (root / path).open("rb")
    with file:
        mark = marked(file.read(4))
        file.seek(0)
        with TextIOWrapper(file, encoding=mark or encoding, newline=newline) as text:
            yield text


def batches(path: str, root: Path, rows: int) -> Iterator[tuple[str, list[str], Iterator[Any]]]:
    """Yield each file of a folder or a URL: its path, the columns of all files, and its batches.

    Names of folders such as `day=1` become columns. A column that only some files have is null in the others.

    Args:
        path: The folder, or the URL of a file or a folder.
        root: Where a relative path starts.
        rows: How many rows a batch has at most.

    Raises:
        ImportError: If pyarrow, fsspec or what the protocol needs isn't installed.
        Exception: Whatever the storage or pyarrow raises.
    """
    import pyarrow as pa  # noqa: PLC0415 -- optional, and slow to import
    import pyarrow.dataset as ds  # noqa: PLC0415 -- the same

    system, place = opened(path) if is_url(path) else (None, str(root / path))
    lake: Any = ds.dataset(place, filesystem=system, format="parquet", partitioning="hive")
    files = sorted(lake.get_fragments(), key=lambda file: str(file.path))
    schema: Any = pa.unify_schemas([lake.schema, *(file.physical_schema for file in files)])
    for file in files:
        yield str(file.path), list(schema.names), file.to_batches(schema=schema, batch_size=rows)
