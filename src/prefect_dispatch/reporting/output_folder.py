"""Output folder of a report: a folder of this machine, or the URL of one in an object store."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import SplitResult, urlsplit
from urllib.request import url2pathname
from uuid import uuid4

from prefect_dispatch.errors import JobError
from prefect_dispatch.reporting.table_files import LIBRARIES
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.serialization.durable_files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Self


def ensure_folder(folder: Path) -> Path:
    """Create a folder if it is missing, check that it is writable, and return it.

    Raises:
        JobError: If it can't be created or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise JobError(f"The folder {str(folder)!r} can't be written to: {error.strerror}.") from None
    return folder


class Output(NamedTuple):
    """Where the files of a report are written."""

    folder: Path | str
    """The folder of the report; a text is the URL of one in an object store."""
    table: str = ""
    """The name of a file in it for the merged rows; empty if none was requested."""

    def place(self, name: str) -> str:
        """Return the path or the URL of a file in the folder; of the folder itself for an empty name."""
        return str(self.folder / name) if isinstance(self.folder, Path) else f"{self.folder}/{name}".rstrip("/")

    @property
    def target(self) -> str:
        """The parameter `out` for it, which doesn't depend on the current folder."""
        out = self.place(self.table)
        return str(Path(out).resolve()) if isinstance(self.folder, Path) else out

    def ensure(self) -> Self:
        """Check that the folder is writable, and return this; one on this machine is created if it is missing.

        Raises:
            JobError: If they can't.
        """
        if isinstance(self.folder, Path):
            ensure_folder(self.folder)
            return self
        probe = f".prefect-dispatch-{uuid4().hex}"
        try:
            self.write(probe, [b""])
            self.remove(probe)
        except Exception as error:  # noqa: BLE001 -- each storage has errors of its own
            raise JobError(f"out: {self.folder!r} can't be written to: {safe_message(error)}") from None
        return self

    def read(self, name: str) -> bytes:
        """Return the content of a file; empty if it can't be read."""
        try:
            if isinstance(self.folder, Path):
                return (self.folder / name).read_bytes()
            system, place = self._open_store(name)
            return bytes(system.cat_file(place))
        except Exception:  # noqa: BLE001 -- each storage has errors of its own
            return b""

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a file, whole or not at all."""
        if isinstance(self.folder, Path):
            write_atomically(self.folder / name, parts)
            return
        with tempfile.TemporaryDirectory() as folder:  # an upload that is interrupted changes nothing
            file = Path(folder, "file")
            write_atomically(file, parts)
            system, place = self._open_store(name)
            system.put_file(str(file), place)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if isinstance(self.folder, Path):
            (self.folder / name).unlink(missing_ok=True)
            return
        system, place = self._open_store(name)
        with suppress(FileNotFoundError):
            system.rm_file(place)

    def _open_store(self, name: str) -> tuple[Any, str]:
        """Return the file system of the URL (fsspec's, which has no types), and the path of a file in it."""
        from prefect_dispatch.sources.object_store import open_filesystem  # noqa: PLC0415 -- only for URLs

        return open_filesystem(self.place(name))


def parse_output(out: str, root: Path | None = None) -> Output:
    """Return the folder of a report, and the table file in it if the path or the URL names one by its suffix.

    A folder that exists is one, whatever its name.

    Args:
        out: The path or the URL of the folder, or of a table file in it.
        root: The folder that a relative path starts from; by default the current one.

    Raises:
        JobError: If it is no path and no URL without a password, or if the library that writes such a file isn't
            installed.

    Example:
        >>> parse_output("report").table, parse_output("s3://bucket/report/answers.csv")
        ('', Output(folder='s3://bucket/report', table='answers.csv'))
    """
    if "\0" in out:
        raise JobError("out: a path holds no NUL character; name a folder, such as report.")
    parts = _split_url(out) if "://" in out else None
    if parts and parts.scheme == "file":
        return parse_output(url2pathname(parts.path))
    path = Path(parts.path) if parts else Path(root or "", out)
    suffix = path.suffix.lower()
    is_folder = suffix not in LIBRARIES or (not parts and path.is_dir())
    if not is_folder and (library := LIBRARIES[suffix]) and find_spec(library) is None:
        extra = suffix[1:]
        raise JobError(f"out: a {suffix} file needs {library}: pip install 'prefect-dispatch[{extra}]'.")
    url = out.rstrip("/")
    if is_folder:
        return Output(url if parts else path)
    return Output(url.rpartition("/")[0] if parts else path.parent, path.name)


def _split_url(out: str) -> SplitResult:
    """Return the parts of a URL.

    Raises:
        JobError: If it is none, or has a password, a query or a fragment.
    """
    try:
        parts = urlsplit(out)
        is_plain = parts.password is None and not parts.query and not parts.fragment
    except ValueError:
        is_plain, parts = False, SplitResult("", "", "", "", "")
    if not is_plain or not parts.scheme:
        raise JobError(
            "out: the URL of a folder has no password, no ? and no #, such as s3://bucket/report; credentials belong "
            "into the environment."
        )
    return parts
