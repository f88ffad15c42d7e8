"""Items from text files, found by glob."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field, field_validator

from prefect_dispatch.errors import SourceError
from prefect_dispatch.sources.keys import make_item
from prefect_dispatch.sources.texts import Encoding, decode
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.models import Item


class Glob(Strict):
    """The text of every file that a glob matches; the file's path below `root` is the key.

    `*`, `?` and `[…]` match within a name, `**` any folders. Names that begin with a dot
    must be asked for with a dot. Capitals count on every system. Folders are passed over;
    a glob that matches no file, a link that leads out of `root`, a file that is no text or
    too large is refused by name.

    Example:
        >>> Glob(glob="licenses/**/*.txt").max_bytes
        1000000
    """

    model_config = ConfigDict(title="Files", json_schema_extra={"description": "The text of files, found by glob."})

    glob: Annotated[str, Field(title="One")] | Annotated[tuple[str, ...], Field(title="Several")] = Field(
        min_length=1, json_schema_extra={"position": 0}
    )
    """One glob or several, such as `licenses/*.txt`; a file that several match is one item."""
    root: str = Field(default=".", json_schema_extra={"position": 1})
    """The folder that the globs start from, relative to the job's own folder, or absolute."""
    encoding: Encoding = Field(default="", json_schema_extra={"position": 2})
    """The encoding of files that are neither UTF-8 nor marked as UTF-16; empty to have it guessed."""
    max_bytes: int = Field(default=1_000_000, ge=1, json_schema_extra={"position": 3})
    """The size in bytes over which a file is refused."""

    @field_validator("glob")
    @classmethod
    def _stays_below(cls, glob: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for each in _several(glob):
            if not _parts(each) or each.startswith("/") or Path(each).is_absolute() or ".." in _parts(each):
                raise ValueError(f"{each!r} must stay below its folder; name another folder as `root`")
        return glob

    def where(self, root: Path) -> str:
        """Return the words that name this source."""
        return f"the glob {', '.join(map(repr, _several(self.glob)))} in {str((root / self.root).absolute())!r}"

    def stream(self, root: Path) -> Iterator[Item]:
        """Yield one item for each file, by path.

        Args:
            root: The job's own folder.

        Raises:
            SourceError: If a file or folder can't be read, or a file isn't wanted (see above).
        """
        try:
            base = Path(os.path.realpath(root / self.root, strict=True))
            files = self._files(base)
            if not files:  # a misspelt glob looks the same
                raise SourceError(f"There are no items: {self.where(root)} yields none.")
            for name, real in files:
                yield self._item(name, real)
        except OSError as error:
            raise SourceError(f"{error.filename!r} can't be read: {error.strerror}.") from error

    def _files(self, base: Path) -> list[tuple[str, Path]]:
        """Return the files that the globs match, each of them once; a glob that matches none is refused."""
        matched = {glob: set(_matches(base, _parts(glob))) for glob in _several(self.glob)}
        names = sorted({name for found in matched.values() for name in found})
        files = {name: real for name in names if (real := _below(base, name)).is_file()}
        for glob in (glob for glob, found in matched.items() if not files.keys() & found):
            hint = _hint(base, "/".join(_parts(glob)))
            if files or hint:
                way = hint or "mend it, or leave it out"
                raise SourceError(f"The glob {glob!r} matches no file in {str(base)!r}; {way}.")
        return list(files.items())

    def _item(self, name: str, path: Path) -> Item:
        with path.open("rb") as file:
            data = file.read(self.max_bytes + 1)
        if len(data) > self.max_bytes:
            raise SourceError(
                f"File {name!r} is larger than {self.max_bytes} bytes; narrow the glob, or raise `max_bytes`."
            )
        try:
            text = decode(data, self.encoding)
        except ValueError as error:
            raise SourceError(
                f"File {name!r} is not text: {error}; narrow the glob, or set `encoding` if it is text."
            ) from None
        try:
            return make_item(name, text)
        except ValueError as error:
            raise SourceError(f"File {name!r} can't be an item: {error}") from None


def _several(glob: str | tuple[str, ...]) -> tuple[str, ...]:
    return (glob,) if isinstance(glob, str) else glob


def _parts(glob: str) -> list[str]:
    parts = [part for part in glob.split("/") if part not in ("", ".")]
    return [*parts, "*"] if parts[-1:] == ["**"] else parts


def _below(base: Path, name: str) -> Path:
    real = Path(os.path.realpath(base / name, strict=True))
    if not real.is_relative_to(base):
        raise SourceError(
            f"File {name!r} is a link that leads out of {str(base)!r}; set `root` to a folder that "
            "holds both, or copy the file."
        )
    return real


def _hint(base: Path, glob: str) -> str:
    """Return what to write in place of a glob that matches nothing, where its plain reading tells."""
    if (base / glob).is_dir():
        return f"it is a folder: write '{escape(glob)}/*' for the files in it, '{escape(glob)}/**' for all below it"
    if (base / glob).is_file() and escape(glob) != glob:
        return f"a file is called that, and brackets stand for one character: write {escape(glob)!r}"
    return ""


def _matches(folder: Path, parts: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Yield the paths of matching files; unlike `Path.glob`, an unreadable folder is an error, not nothing."""
    first, *rest = parts
    with os.scandir(folder) as scan:
        entries = [entry for entry in scan if first.startswith(".") or not entry.name.startswith(".")]
    if first == "**":
        yield from _matches(folder, rest, prefix)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _matches(folder / entry.name, parts, f"{prefix}{entry.name}/")
        return
    for entry in entries:
        if not fnmatchcase(entry.name, first):
            continue
        if not rest and not entry.is_dir():
            yield prefix + entry.name
        elif rest and entry.is_dir():
            yield from _matches(folder / entry.name, rest, f"{prefix}{entry.name}/")
