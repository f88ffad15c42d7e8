"""Where items come from: a list, files, or the rows of a table.

Which source a mapping means is told by the one key that is there: `glob`,
`jsonl`, `csv`, `parquet`, `sql` or `list`. What a source reads is data: it is decoded and
parsed, never evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, cast

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger
from pydantic import BeforeValidator, Discriminator, Tag, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from prefect_dispatch.errors import SourceError
from prefect_dispatch.form import Tabs
from prefect_dispatch.ledger import place_of
from prefect_dispatch.scrub import scrub, teller
from prefect_dispatch.sources.files import Glob
from prefect_dispatch.sources.keys import hashed_keys_note
from prefect_dispatch.sources.listed import FRAME, Listed, Lost, is_frame, is_listable, sound, upstream
from prefect_dispatch.sources.parquet import Parquet
from prefect_dispatch.sources.sql import Sql
from prefect_dispatch.sources.tables import Csv, JsonLines

if TYPE_CHECKING:
    import logging
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from prefect_dispatch.models import Item

__all__ = [
    "Csv",
    "Glob",
    "ItemsInput",
    "JsonLines",
    "Listed",
    "Lost",
    "Parquet",
    "Source",
    "Sql",
    "note_on_keys",
    "read_items",
    "sound",
    "source",
]

Source = Glob | JsonLines | Csv | Parquet | Sql | Listed
"""Any source."""

_TAGS = {"glob": Glob, "jsonl": JsonLines, "csv": Csv, "parquet": Parquet, "sql": Sql, "list": Listed}
_OFFER = "write a list, or one of {glob: …}, {jsonl: …}, {csv: …}, {parquet: …}, {sql: …}, {list: …, key: …}."


def _check_tag(data: object) -> None:
    if isinstance(data, Mapping):
        tags = [tag for tag in _TAGS if tag in data]
        if len(tags) != 1:
            has = f"has both {' and '.join(map(repr, tags))}" if tags else f"has none of {', '.join(map(repr, _TAGS))}"
            raise PydanticCustomError("source", "a source {has}; {offer}", {"has": has, "offer": _OFFER})
    elif isinstance(data, BaseException):
        raise PydanticCustomError("source", "{why}; nothing was asked", {"why": upstream(data)})
    elif is_frame(data):
        raise PydanticCustomError("source", "{why}", {"why": FRAME})
    elif not is_listable(data) and not isinstance(data, Source):
        raise PydanticCustomError(
            "source", "not a source: {data}; {offer}", {"data": scrub(repr(data)[:1000])[:80], "offer": _OFFER}
        )


def _recognised(data: object) -> object:
    _check_tag(data)
    return data


def _tag(data: object) -> str:
    if isinstance(data, Mapping):
        return next(tag for tag in _TAGS if tag in data)
    return next((tag for tag, kind in _TAGS.items() if isinstance(data, kind)), "list")


ItemsInput = Annotated[
    Annotated[Glob, Tag("glob")]
    | Annotated[JsonLines, Tag("jsonl")]
    | Annotated[Csv, Tag("csv")]
    | Annotated[Parquet, Tag("parquet")]
    | Annotated[Sql, Tag("sql")]
    | Annotated[Listed, Tag("list")],
    Discriminator(_tag),
    BeforeValidator(_recognised),
    Tabs(),
]
"""A source in any of its forms, as a field of a model or a parameter of a flow.

Takes a source, the mapping of one, a list, or any iterable of items and JSON values.
"""

SHOWN = 10
"""How many empty items are named."""

_ADAPTER: TypeAdapter[Source] = TypeAdapter(ItemsInput)


def source(data: object) -> Source:
    """Return the source that data stands for.

    Args:
        data: A source, the mapping of one, a list, or any iterable of items and JSON values.

    Raises:
        SourceError: If it isn't one of them, or has unknown keys.

    Example:
        >>> source({"glob": "licenses/*.txt"}).glob
        'licenses/*.txt'
        >>> source(["MIT", "ISC"]).items[1].key
        'ISC'
    """
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
        raise SourceError("items: " + " ".join(f"{_path(each['loc'])}{each['msg']}" for each in wrong)) from None


def _path(location: tuple[int | str, ...]) -> str:
    return f"{'.'.join(map(str, location))}: " if location else ""


def read_items(source: Source, root: Path, limit: int | None = None) -> list[Item]:
    """Return all items of a source, in the order that every list of them has; of one that is empty today, none.

    Args:
        source: Where they come from.
        root: The job's own folder; relative paths start there.
        limit: How many to keep, from the start of that order; all of them if there is none.

    Raises:
        SourceError: If two have the same key, a key holds a secret, something can't be read, or a glob means no file.

    Example:
        >>> from pathlib import Path
        >>> [item.key for item in read_items(Listed(items=["v10", "v9", "v1"]), Path(), limit=2)]
        ['v1', 'v9']
    """
    if limit is not None and limit < 1:
        raise SourceError(f"The limit must be at least 1, not {limit}.")
    numbers: dict[str, int] = {}
    tells = teller()
    items: list[Item] = []
    with closing(cast("Generator[Item, None, None]", source.stream(root))) as stream:  # and what it holds open
        for number, item in enumerate(stream, 1):
            if tells(item.key):  # keys stand in every list
                raise SourceError(
                    f"The key of item number {number} of {source.where(root)} holds a secret, or what a pattern of "
                    "PREFECT_DISPATCH_REDACT matches, and keys stand in logs and reports: give it another."
                )
            first = numbers.setdefault(item.key, number)
            if first != number:
                raise SourceError(
                    f"Two items have the key {item.key!r}: numbers {first} and {number} of {source.where(root)}. "
                    "Keys must be unique: remove one, or give each a key of its own."
                )
            items.append(item)
    kept = sorted(items, key=lambda item: place_of("", item.key))[:limit]
    _warn_of_blanks([item.key for item in kept if isinstance(item.value, str) and not item.value.strip()])
    return kept


def note_on_keys(source: Source, items: Sequence[Item]) -> tuple[str, ...]:
    """Return what to tell people of items that have no key of their own, if anything.

    Args:
        source: Where the items come from.
        items: All of them.
    """
    note = hashed_keys_note(items, _tag(source))
    return (note,) if note else ()


def _warn_of_blanks(keys: list[str]) -> None:
    """Say which items hold nothing: each is asked about, since one empty file must not stop all others."""
    if not keys:
        return
    try:
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] = get_run_logger()
    except MissingContextError:  # a plan, say
        log = get_logger("prefect_dispatch")
    named = ", ".join(map(repr, keys[:SHOWN])) + (", …" if len(keys) > SHOWN else "")
    log.warning("Items that are empty, of which an answer can say nothing: %d (%s); leave them out.", len(keys), named)
