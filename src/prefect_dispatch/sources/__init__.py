"""Sources of items: lists, files, and the rows of tables.

The source of a mapping is identified by its one key of `glob`, `jsonl`, `csv`, `parquet`, `sql` and `list`. The content
of a source is data: it is decoded and parsed, never evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import BeforeValidator, Discriminator, Tag, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from prefect_dispatch.errors import SourceError
from prefect_dispatch.models.base import Tabs
from prefect_dispatch.models.ledger import sort_key
from prefect_dispatch.security.redaction import redact, secret_detector
from prefect_dispatch.sources.files import Glob
from prefect_dispatch.sources.inline import (
    FRAME_MESSAGE,
    FailedItem,
    Listed,
    hashed_keys_note,
    is_frame,
    is_listable,
    upstream_failure,
    with_values,
)
from prefect_dispatch.sources.tabular import Csv, JsonLines, Parquet, Sql

if TYPE_CHECKING:
    import logging
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from prefect_dispatch.models.item import Item

__all__ = [
    "Csv",
    "FailedItem",
    "Glob",
    "ItemsInput",
    "JsonLines",
    "Listed",
    "Parquet",
    "Source",
    "Sql",
    "key_notes",
    "read_items",
    "source",
    "validate_items",
    "with_values",
]

Source = Glob | JsonLines | Csv | Parquet | Sql | Listed
"""Any source."""
_TAGS = {"glob": Glob, "jsonl": JsonLines, "csv": Csv, "parquet": Parquet, "sql": Sql, "list": Listed}
_OFFER = "write a list, or one of {glob: …}, {jsonl: …}, {csv: …}, {parquet: …}, {sql: …}, {list: …, key: …}."


def _validate_tag(data: object) -> object:
    if isinstance(data, Mapping):
        tags = [tag for tag in _TAGS if tag in data]
        if len(tags) != 1:
            has = f"has both {' and '.join(map(repr, tags))}" if tags else f"has none of {', '.join(map(repr, _TAGS))}"
            raise PydanticCustomError("source", "a source {has}; {offer}", {"has": has, "offer": _OFFER})
    elif isinstance(data, BaseException):
        raise PydanticCustomError("source", "{why}; nothing was asked", {"why": upstream_failure(data)})
    elif is_frame(data):
        raise PydanticCustomError("source", "{why}", {"why": FRAME_MESSAGE})
    elif not is_listable(data) and not isinstance(data, Source):
        raise PydanticCustomError(
            "source", "not a source: {data}; {offer}", {"data": redact(repr(data)[:1000])[:80], "offer": _OFFER}
        )
    return cast("object", data)


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
    BeforeValidator(_validate_tag),
    Tabs(),
]
"""A source in any of its forms, as a field of a model or a parameter of a flow.

Takes a source, the mapping of one, a list, or any iterable of items and JSON values.
"""
MAX_NAMED = 10
"""Maximum number of empty items that a warning names."""
_ADAPTER: TypeAdapter[Source] = TypeAdapter(ItemsInput)


def source(data: object) -> Source:
    """Convert data to a source.

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


NO_ITEMS = (
    "There are no items: the list is empty; name some, or a source that may be empty, such as a table or a query."
)


def validate_items(items: Source) -> Source:
    """Validate the items of a job file.

    Raises:
        ValueError: If they are an empty list.

    Example:
        >>> validate_items(Listed.model_validate(["MIT"])).items[0].key
        'MIT'
    """
    if isinstance(items, Listed) and not items.items:
        raise ValueError(NO_ITEMS)
    return items


def _path(location: tuple[int | str, ...]) -> str:
    return f"{'.'.join(map(str, location))}: " if location else ""


def read_items(source: Source, root: Path, limit: int | None = None) -> list[Item]:
    """Read all items of a source, sorted in the order of every list of items in a report.

    Args:
        source: The source; a table or a query may be empty.
        root: The job's own folder, which relative paths start from.
        limit: Maximum number of items, from the start of that order; None for all of them.

    Raises:
        SourceError: If two have the same key, a key holds a secret, something can't be read, or a glob matches no file.

    Example:
        >>> from pathlib import Path
        >>> [item.key for item in read_items(Listed(items=["v10", "v9", "v1"]), Path(), limit=2)]
        ['v1', 'v9']
    """
    if limit is not None and limit < 1:
        raise SourceError(f"The limit must be at least 1, not {limit}.")
    numbers: dict[str, int] = {}
    has_secret = secret_detector()
    items: list[Item] = []
    with closing(cast("Generator[Item, None, None]", source.stream(root))) as stream:  # closes its files, too
        for number, item in enumerate(stream, 1):
            if has_secret(item.key):  # keys are shown in logs and reports
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
    selected = sorted(items, key=lambda item: sort_key("", item.key))[:limit]
    _warn_of_blanks([item.key for item in selected if isinstance(item.value, str) and not item.value.strip()])
    return selected


def key_notes(source: Source, items: Sequence[Item]) -> tuple[str, ...]:
    """Return notes on items without a key of their own.

    Args:
        source: The source of the items.
        items: All items.
    """
    note = hashed_keys_note(items, _tag(source))
    return (note,) if note else ()


def _warn_of_blanks(keys: list[str]) -> None:
    """Log a warning that names the empty items; they are asked about, as one empty file must not stop all others."""
    if not keys:
        return
    from prefect.exceptions import MissingContextError  # noqa: PLC0415 -- models of job files need no Prefect
    from prefect.logging import get_logger, get_run_logger  # noqa: PLC0415

    try:
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] = get_run_logger()
    except MissingContextError:  # outside of a run, such as in a plan
        log = get_logger("prefect_dispatch")
    listed = ", ".join(map(repr, keys[:MAX_NAMED])) + (", …" if len(keys) > MAX_NAMED else "")
    log.warning("Items that are empty, of which an answer can say nothing: %d (%s); leave them out.", len(keys), listed)
