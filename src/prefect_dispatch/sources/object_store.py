"""Access to files on this machine or by URL (fsspec): text in any encoding, and folders of Parquet."""

from __future__ import annotations

import codecs
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator

from prefect_dispatch.errors import SourceError
from prefect_dispatch.security.redaction import redact

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
    except ImportError as error:
        raise SourceError(f"{where} needs {_error_text(error)}.") from None
    except Exception as error:  # noqa: BLE001 -- each storage has errors of its own
        raise SourceError(f"{where} can't be opened: {_error_text(error)}.") from None


def _error_text(error: BaseException) -> str:
    text = redact(" ".join(str(error).split())[:MAX_MESSAGE]).rstrip(".")
    return text if isinstance(error, ImportError | ValueError) else f"{type(error).__name__}: {text}"


def open_filesystem(url: str) -> tuple[Any, str]:
    """Open the file system of a URL; return it, and the path in it.

    Raises:
        ImportError: If the package for its protocol isn't installed; the message says what is needed.
        ValueError: If the protocol is unknown.

    Example:
        >>> open_filesystem("memory://lake/rows.parquet")[1]
        '/lake/rows.parquet'
    """
    core: Any = import_module("fsspec.core")  # slow to import, and without types
    protocol = url.partition("://")[0]
    try:
        system, path = core.url_to_fs(url)
    except ImportError as error:
        if protocol not in EXTRAS:
            raise ImportError(f"a package that isn't installed: {error}") from None
        extra = f"prefect-dispatch[{EXTRAS[protocol]}]"
        raise ImportError(f"s3fs, which isn't installed: pip install '{extra}'") from None
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


_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def _require_codec(encoding: str) -> str:
    try:
        " ".encode(encoding or "utf-8")
    except (LookupError, ValueError):
        raise ValueError(f"{encoding!r} is not a known encoding of text; write utf-8, cp1252, shift_jis, …") from None
    return encoding


Encoding = Annotated[str, AfterValidator(_require_codec)]
"""The name of a text codec, or an empty text."""


def detect_bom(data: bytes) -> str | None:
    """Return the encoding of a byte order mark, or None.

    Example:
        >>> detect_bom("a".encode("utf-8-sig"))
        'utf-8-sig'
    """
    return next((name for mark, name in _MARKS if data.startswith(mark)), None)


def decode(data: bytes, otherwise: str = "") -> str:
    r"""Decode the content of a text file: by its byte order mark, else as UTF-8, else by `otherwise`, else by a guess.

    Line ends are not converted.

    Args:
        data: The content of the file.
        otherwise: The encoding of a file that isn't UTF-8; empty to guess it.

    Raises:
        ValueError: If it is no text.

    Example:
        >>> decode(b"na\xefve"), decode("ни".encode("utf-16"))
        ('naïve', 'ни')
    """
    encoding = detect_bom(data) or _detect_encoding(data, otherwise)
    try:
        text = data.decode(encoding)
    except UnicodeError:
        raise ValueError(f"it is not {encoding}") from None
    if "\0" in text:
        raise ValueError("it holds NUL bytes")
    return text


def _detect_encoding(data: bytes, otherwise: str) -> str:
    if b"\0" in data:
        return otherwise or "latin-1"  # which decodes any bytes, so that the NUL bytes are named
    try:
        data.decode()
    except UnicodeDecodeError:
        return otherwise or _guess_encoding(data)
    return "utf-8"


def _guess_encoding(data: bytes) -> str:
    from charset_normalizer import from_bytes  # noqa: PLC0415 -- slow to import, and most files are UTF-8

    matches = from_bytes(data)
    names = [name for match in matches for name in (match.encoding, *match.could_be_from_charset)]
    if not names:
        raise ValueError("it is not text in any known encoding")
    # A short text has many equal guesses in alphabetical order: with the first one, "niño" would become "nińo".
    return "cp1252" if "cp1252" in names else names[0]
