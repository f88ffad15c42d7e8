"""Items from text files that globs match, on this machine or in an object store."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from functools import partial
from glob import escape
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

from pydantic import ConfigDict, Field, field_validator, model_validator

from prefect_dispatch.errors import SourceError
from prefect_dispatch.models.base import Strict, did_you_mean
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.sources.inline import make_item
from prefect_dispatch.sources.object_store import (
    Encoding,
    decode,
    is_url,
    open_filesystem,
    storage_errors,
    without_password,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Self

    from prefect_dispatch.models.item import Item


PARALLEL_READS = 64
"""Objects that are read from a store concurrently; each is no larger than `max_bytes`."""


class Glob(Strict):
    """The text of every file that a glob matches; the file's path below `root` is the key.

    `*`, `?` and `[…]` match within a name, `**` any folders. Names that begin with a dot are matched only by a pattern
    with a dot. Matching is case-sensitive on every system. Folders are skipped. A glob that matches no file, a link
    that leads out of `root`, and a file that is not text or too large are errors.

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
        for each in _as_tuple(glob):
            below = _split_url(without_password(each))[1] if is_url(each) else each
            if not _parts(below) or below.startswith("/") or Path(below).is_absolute() or ".." in _parts(below):
                raise ValueError(f"{each!r} must stay below its folder; name another folder as `root`")
        return glob

    @field_validator("root")
    @classmethod
    def _has_no_password(cls, root: str) -> str:
        return without_password(root)

    @model_validator(mode="after")
    def _is_in_one_place(self) -> Self:
        urls = [each for each in _as_tuple(self.glob) if is_url(each)]
        if urls and self.root != ".":
            raise ValueError(f"{urls[0]!r} is a URL and names its own place; leave `root` out")
        if urls and (len(urls) < len(_as_tuple(self.glob)) or len({_split_url(each)[0] for each in urls}) > 1):
            raise ValueError("the globs are in several places; write all of them as URLs of one bucket")
        return self

    @property
    def place(self) -> tuple[str, tuple[str, ...]]:
        """The folder, or the URL of the bucket, that the globs start from, and the globs below it."""
        globs = _as_tuple(self.glob)
        if not is_url(globs[0]):
            return self.root, globs
        return _split_url(globs[0])[0], tuple(_split_url(each)[1] for each in globs)

    def where(self, root: Path) -> str:
        """Return the description of this source for error messages."""
        place = self.place[0]
        return self._describe(redact(place) if is_url(place) else str((root / place).absolute()))

    def _describe(self, place: str) -> str:
        return f"the glob {', '.join(map(repr, self.place[1]))} in {place!r}"

    def stream(self, root: Path) -> Iterator[Item]:
        """Yield one item for each file, by path.

        Args:
            root: The job's own folder.

        Raises:
            SourceError: If a file or folder can't be read, or a file is rejected (see above).
        """
        place = self.place[0]
        if is_url(place):
            with storage_errors(self.where(root)):
                yield from self._read_objects(place)
            return
        try:
            base = Path(os.path.realpath(root / self.root, strict=True))
            matched = self._match(partial(_scan_folder, base))
            # Links are checked before anything is read; resolving each path would take longer than reading it.
            links = {name for found in matched.values() for name, entry in found.items() if entry.is_link}
            real = {name: _resolve_below(base, name) for name in links}
            for name in self._require_matches(matched, str(base), base):
                with real.get(name, base / name).open("rb") as file:
                    yield self._item(name, file.read(self.max_bytes + 1))
        except OSError as error:
            raise SourceError(f"{error.filename!r} can't be read: {error.strerror}.") from error

    def _match(self, entries: Callable[[str], Iterable[_Entry]]) -> dict[str, dict[str, _Entry]]:
        """Return the files that each glob matches by their paths; `entries` lists the folder at a path prefix."""
        return {glob: dict(_iter_matches(entries, _parts(glob))) for glob in self.place[1]}

    def _require_matches(
        self, matched: dict[str, dict[str, _Entry]], place: str, folder: Path | None = None
    ) -> dict[str, _Entry]:
        """Return the files that the globs match by their paths, sorted.

        Args:
            matched: The files that each glob matches.
            place: The folder or bucket, for error messages.
            folder: The folder, if it is on this machine.

        Raises:
            SourceError: If one of several globs matches none, or none of them does.
        """
        files = {name: entry for found in matched.values() for name, entry in found.items()}
        for glob in (glob for glob, found in matched.items() if not found):
            fix = _hint(folder, "/".join(_parts(glob))) if folder else ""
            if files or fix:
                nothing = "no file" if folder else "nothing"
                raise SourceError(
                    f"The glob {glob!r} matches {nothing} in {place!r}; {fix or 'correct it, or leave it out'}."
                )
        if not files:  # an error, as a misspelt glob looks the same
            hint = next(filter(None, (_missing_folder(folder, glob) for glob in matched)), "") if folder else ""
            raise SourceError(f"There are no items: {self._describe(place)} yields none.{hint}")
        return dict(sorted(files.items()))

    def _read_objects(self, place: str) -> Iterator[Item]:
        """Yield one item for each object of a bucket that the globs match; several are read concurrently."""
        system, base = open_filesystem(place)
        matched = self._match(partial(_list_objects, system, base.rstrip("/")))
        files = self._require_matches(matched, redact(place))
        # 1. Check all sizes before anything is read.
        for name, entry in files.items():
            if entry.size > self.max_bytes:
                self._refuse_size(name)
        # 2. Read in batches, one byte more than the limit, as an object may have grown.
        names = list(files)
        for at in range(0, len(names), PARALLEL_READS):
            batch = names[at : at + PARALLEL_READS]
            # An empty object has no range of bytes that could be requested.
            non_empty = [name for name in batch if files[name].size]
            paths = [f"{base.rstrip('/')}/{name}" for name in non_empty]
            found = system.cat_ranges(paths, [0] * len(paths), [self.max_bytes + 1] * len(paths), on_error="raise")
            contents = dict(zip(non_empty, found, strict=True))
            yield from (self._item(name, contents.get(name, b"")) for name in batch)

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


def _as_tuple(glob: str | tuple[str, ...]) -> tuple[str, ...]:
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


def _resolve_below(base: Path, name: str) -> Path:
    real = Path(os.path.realpath(base / name, strict=True))
    if not real.is_relative_to(base):
        raise SourceError(
            f"File {name!r} is a link that leads out of {str(base)!r}; set `root` to a folder that "
            "holds both, or copy the file."
        )
    return real


def _hint(base: Path, glob: str) -> str:
    """Return the suggested replacement of a glob that matches nothing but is the name of a file or folder."""
    if (base / glob).is_dir():
        return f"it is a folder: write '{escape(glob)}/*' for the files in it, '{escape(glob)}/**' for all below it"
    if (base / glob).is_file() and escape(glob) != glob:
        return f"a file is called that, and brackets stand for one character: write {escape(glob)!r}"
    return ""


_MAX_NAMED = 20
"""Most folders among which a similar name is looked for."""


def _missing_folder(base: Path, glob: str) -> str:
    """Return a sentence on the first folder of a glob that doesn't exist, with a similar one; empty if all exist."""
    path = base
    for part in _parts(glob)[:-1]:
        if escape(part) != part:
            break
        if not (path / part).is_dir():
            names = sorted(each.name for each in islice(path.iterdir(), _MAX_NAMED + 1) if each.is_dir())
            known = f"; {did_you_mean(part, names)}" if 0 < len(names) <= _MAX_NAMED else "."
            return f" There is no folder {(path / part).relative_to(base).as_posix()!r}{known}"
        path /= part
    return ""


class _Entry(NamedTuple):
    """Entry of a folder."""

    name: str
    is_folder: bool
    is_link: bool = False
    """Whether it is a link, or was reached through one."""
    size: int = 0


def _scan_folder(base: Path, prefix: str) -> Iterator[_Entry]:
    """Yield the files and folders in a folder of this machine; unlike in `Path.glob`, an unreadable one is an error."""
    with os.scandir(base / prefix) as scan:
        for entry in scan:
            # A pipe or a device is no item. A link to nothing, or one in a circle, is an error if a glob matches it.
            leads_nowhere = entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110 -- `Path.exists` may raise
            is_folder = not leads_nowhere and entry.is_dir()
            if leads_nowhere or is_folder or entry.is_file():
                yield _Entry(entry.name, is_folder, entry.is_symlink())


def _list_objects(system: Any, base: str, prefix: str) -> Iterator[_Entry]:  # noqa: ANN401 -- of fsspec
    """Yield the entries of a folder of an object store."""
    folder = f"{base}/{prefix}".rstrip("/")
    for entry in system.ls(folder, detail=True):
        path = str(entry["name"]).rstrip("/")
        if path != folder:  # the marker object of an empty folder that some tools create
            is_folder = entry["type"] == "directory"
            yield _Entry(path.rpartition("/")[2], is_folder, size=int(entry.get("size") or 0))


def _iter_matches(
    entries: Callable[[str], Iterable[_Entry]], parts: Sequence[str], prefix: str = "", *, through_link: bool = False
) -> Iterator[tuple[str, _Entry]]:
    """Yield the path and the entry of each matching file.

    Args:
        entries: Lists the folder at a path prefix.
        parts: The parts of the glob, below the prefix.
        prefix: The path of the present folder, empty or with a slash at its end.
        through_link: Whether the present folder was reached through a link.
    """
    first, *rest = parts
    found = [entry for entry in entries(prefix) if first.startswith(".") or not entry.name.startswith(".")]
    if first == "**":  # no folder, or each folder in turn with the same pattern; links could form a cycle
        yield from _iter_matches(entries, rest, prefix, through_link=through_link)
    for entry in found:
        path, is_link = prefix + entry.name, through_link or entry.is_link
        if first == "**":
            if entry.is_folder and not entry.is_link:
                yield from _iter_matches(entries, parts, f"{path}/", through_link=through_link)
        elif fnmatchcase(entry.name, first):
            if rest and entry.is_folder:
                yield from _iter_matches(entries, rest, f"{path}/", through_link=is_link)
            elif not rest and not entry.is_folder:
                yield path, entry._replace(is_link=is_link)
