"""Items from text files, found by glob: on this machine, or in an object store."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from functools import partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

from pydantic import ConfigDict, Field, field_validator, model_validator

from prefect_dispatch.errors import SourceError
from prefect_dispatch.scrub import scrub
from prefect_dispatch.sources import lake
from prefect_dispatch.sources.keys import make_item
from prefect_dispatch.sources.texts import Encoding, decode
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Self

    from prefect_dispatch.models import Item


AT_ONCE = 64
"""Objects that are read from a store at once; each is no larger than `max_bytes`."""


class Glob(Strict):
    """The text of every file that a glob matches; the file's path below `root` is the key.

    `*`, `?` and `[…]` match within a name, `**` any folders. Names that begin with a dot
    must be asked for with a dot. Capitals count on every system. Folders are passed over;
    a glob that matches no file, a link that leads out of `root`, a file that is no text or
    too large is refused by name.

    A glob, or `root`, may be a URL such as `s3://bucket/licenses/*.txt`; fsspec opens it, with the credentials that its
    file system finds in the environment. Below a `root` the key is the path there, else the path in the bucket.

    Example:
        >>> Glob(glob="licenses/**/*.txt").max_bytes
        1000000
        >>> Glob(glob="s3://bucket/licenses/*.txt").place
        ('s3://bucket', ('licenses/*.txt',))
    """

    model_config = ConfigDict(title="Files", json_schema_extra={"description": "The text of files, found by glob."})

    glob: Annotated[str, Field(title="One")] | Annotated[tuple[str, ...], Field(title="Several")] = Field(
        min_length=1, json_schema_extra={"position": 0}
    )
    """One glob or several, such as `licenses/*.txt` or `s3://bucket/*.txt`; a file that several match is one item."""
    root: str = Field(default=".", json_schema_extra={"position": 1})
    """The folder that the globs start from, relative to the job's own folder, or absolute; or a URL."""
    encoding: Encoding = Field(default="", json_schema_extra={"position": 2})
    """The encoding of files that are neither UTF-8 nor marked as UTF-16; empty to have it guessed."""
    max_bytes: int = Field(default=1_000_000, ge=1, json_schema_extra={"position": 3})
    """The size in bytes over which a file is refused."""

    @field_validator("glob")
    @classmethod
    def _stays_below(cls, glob: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for each in _several(glob):
            below = each
            if lake.is_url(each):
                lake.without_password(each)
                below = _split_url(each)[1]
            if not _parts(below) or below.startswith("/") or Path(below).is_absolute() or ".." in _parts(below):
                raise ValueError(f"{each!r} must stay below its folder; name another folder as `root`")
        return glob

    @field_validator("root")
    @classmethod
    def _has_no_password(cls, root: str) -> str:
        return lake.without_password(root)

    @model_validator(mode="after")
    def _is_in_one_place(self) -> Self:
        urls = [each for each in _several(self.glob) if lake.is_url(each)]
        if urls and self.root != ".":
            raise ValueError(f"{urls[0]!r} is a URL and names its own place; leave `root` out")
        if urls and (len(urls) < len(_several(self.glob)) or len({_split_url(each)[0] for each in urls}) > 1):
            raise ValueError("the globs are in several places; write all of them as URLs of one bucket")
        return self

    @property
    def place(self) -> tuple[str, tuple[str, ...]]:
        """The folder, or the URL of the bucket, that the globs start from, and the globs below it."""
        globs = _several(self.glob)
        if not lake.is_url(globs[0]):
            return self.root, globs
        return _split_url(globs[0])[0], tuple(_split_url(each)[1] for each in globs)

    def where(self, root: Path) -> str:
        """Return the words that name this source."""
        place, globs = self.place
        folder = scrub(place) if lake.is_url(place) else str((root / place).absolute())
        return f"the glob {', '.join(map(repr, globs))} in {folder!r}"

    def stream(self, root: Path) -> Iterator[Item]:
        """Yield one item for each file, by path.

        Args:
            root: The job's own folder.

        Raises:
            SourceError: If a file or folder can't be read, or a file isn't wanted (see above).
        """
        place, _ = self.place
        if lake.is_url(place):
            with lake.told(self.where(root)):
                yield from self._objects(place, self.where(root))
            return
        try:
            base = Path(os.path.realpath(root / self.root, strict=True))
            files = self._files(base)
            if not files:  # a misspelt glob looks the same
                raise SourceError(f"There are no items: {self.where(root)} yields none.")
            for name, real in files:
                with real.open("rb") as file:
                    yield self._item(name, file.read(self.max_bytes + 1))
        except OSError as error:
            raise SourceError(f"{error.filename!r} can't be read: {error.strerror}.") from error

    def _objects(self, place: str, where: str) -> Iterator[Item]:
        """Yield one item for each object of a bucket that the globs match, several read at once."""
        system, base = lake.opened(place)
        sizes: dict[str, int] = {}

        def entries(prefix: str) -> list[_Entry]:
            return [*_listed(system, base, prefix, sizes)]

        matched = {glob: set(_matches(entries, _parts(glob))) for glob in self.place[1]}
        for glob, found in matched.items():
            if not found and len(matched) > 1:
                raise SourceError(
                    f"The glob {glob!r} matches nothing in {scrub(place)!r}; correct it, or leave it out."
                )
        names = sorted({name for found in matched.values() for name in found})
        if not names:
            raise SourceError(f"There are no items: {where} yields none.")
        for name in names:
            if sizes[name] > self.max_bytes:
                self._refuse_size(name)
        for at in range(0, len(names), AT_ONCE):
            # An object without content has no range of bytes that could be asked for.
            some = [name for name in names[at : at + AT_ONCE] if sizes[name]]
            paths = [f"{base.rstrip('/')}/{name}" for name in some]
            found = system.cat_ranges(paths, [0] * len(paths), [self.max_bytes + 1] * len(paths), on_error="raise")
            contents = dict(zip(some, found, strict=True))
            yield from (self._item(name, contents.get(name, b"")) for name in names[at : at + AT_ONCE])

    def _files(self, base: Path) -> list[tuple[str, Path]]:
        """Return the files that the globs match, each of them once; a glob that matches none is refused."""
        matched = {glob: set(_matches(partial(_scanned, base), _parts(glob))) for glob in _several(self.glob)}
        names = sorted({name for found in matched.values() for name in found})
        files = {name: real for name in names if (real := _below(base, name)).is_file()}
        for glob in (glob for glob, found in matched.items() if not files.keys() & found):
            hint = _hint(base, "/".join(_parts(glob)))
            if files or hint:
                way = hint or "mend it, or leave it out"
                raise SourceError(f"The glob {glob!r} matches no file in {str(base)!r}; {way}.")
        return list(files.items())

    def _refuse_size(self, name: str) -> NoReturn:
        raise SourceError(
            f"File {name!r} is larger than {self.max_bytes} bytes; narrow the glob, or raise `max_bytes`."
        )

    def _item(self, name: str, data: bytes) -> Item:
        if len(data) > self.max_bytes:
            self._refuse_size(name)
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


def _split_url(url: str) -> tuple[str, str]:
    """Return the URL of a bucket, and the glob in it.

    Example:
        >>> _split_url("s3://bucket/a/*.txt"), _split_url("file:///a/*.txt")
        (('s3://bucket', 'a/*.txt'), ('file:///', 'a/*.txt'))
    """
    protocol, _, rest = url.partition("://")
    bucket, _, glob = rest.partition("/")
    return f"{protocol}://{bucket or '/'}", glob


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


class _Entry(NamedTuple):
    """What stands in a folder."""

    name: str
    is_folder: bool
    is_link: bool = False


def _scanned(base: Path, prefix: str) -> list[_Entry]:
    """Return what stands in a folder of this machine; unlike in `Path.glob`, an unreadable one is an error."""
    with os.scandir(base / prefix) as scan:
        return [_Entry(entry.name, entry.is_dir(), entry.is_symlink()) for entry in scan]


def _listed(system: Any, base: str, prefix: str, sizes: dict[str, int]) -> Iterator[_Entry]:  # noqa: ANN401 -- of fsspec
    """Yield what stands in a folder of an object store, and note the size of each object."""
    folder = f"{base.rstrip('/')}/{prefix}".rstrip("/")
    for entry in system.ls(folder, detail=True):
        path = str(entry["name"])
        name = path.rstrip("/").rpartition("/")[2]
        is_folder = entry["type"] == "directory"
        if path.rstrip("/") == folder:  # the mark of an empty folder that some tools leave
            continue
        if not is_folder:
            sizes[f"{prefix}{name}"] = int(entry.get("size") or 0)
        yield _Entry(name, is_folder)


def _matches(entries: Callable[[str], Iterable[_Entry]], parts: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Yield the paths of matching files."""
    first, *rest = parts
    found = [entry for entry in entries(prefix) if first.startswith(".") or not entry.name.startswith(".")]
    if first == "**":
        yield from _matches(entries, rest, prefix)
        for entry in found:
            if entry.is_folder and not entry.is_link:
                yield from _matches(entries, parts, f"{prefix}{entry.name}/")
        return
    for entry in found:
        if not fnmatchcase(entry.name, first):
            continue
        if not rest and not entry.is_folder:
            yield prefix + entry.name
        elif rest and entry.is_folder:
            yield from _matches(entries, rest, f"{prefix}{entry.name}/")
