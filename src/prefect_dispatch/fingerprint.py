"""The identity of a piece of work.

A fingerprint covers everything that can change an answer and nothing
that cannot: what the brief says once the item's fields stand in it, the
item's value, the executor's own fingerprint, and the files or the commit
that it starts from. Names, priorities,
limits, keys of items and credentials are no part of it, so equal work
is recognised across jobs, runs and machines.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from typing_extensions import Protocol, runtime_checkable  # see executors.base

from prefect_dispatch.executors.variety import executor_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models import Brief, Item

FORMAT = 1
"""Raised when stored answers of an older version must not be reused."""

DEEPEST = 100
"""How deep lists and mappings may be nested: enough for any answer, and far from every parser's limit."""

_BLOCK = 100
"""Parts of a list that are written at once, where a value is written in pieces."""
_DEEPEST_IN_PIECES = 2
"""How deep mappings are taken apart there; what is in them further down is written at once."""
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_PLAIN = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def canonical(value: JsonValue) -> str:
    r"""Return the one JSON text of a value: sorted keys, no spaces, ASCII only.

    Raises:
        ValueError: If the value holds NaN or an infinity, which JSON has not.

    Example:
        >>> canonical({"b": [1, 2.0], "a": "é"})
        '{"a":"\\u00e9","b":[1,2.0]}'
    """
    return _CANONICAL.encode(value)


def flaw(value: JsonValue) -> str | None:
    """Return why a value can't be kept as JSON, or None if it can.

    Example:
        >>> flaw({"a": [1, "b"]})
        >>> flaw(float("inf"))
        'holds NaN or an infinity, which JSON has not'
    """
    depth, layer = 0, [value]
    while layer:
        if depth > DEEPEST:
            return f"is nested more than {DEEPEST} deep"
        insides = [each for each in layer if isinstance(each, (list, dict))]
        layer = [child for each in insides for child in (each.values() if isinstance(each, dict) else each)]
        depth += 1
    try:
        _PLAIN.encode(value).encode()
    except UnicodeEncodeError:
        return "holds half of a character (a lone surrogate)"
    except ValueError:
        return "holds NaN or an infinity, which JSON has not"
    return None


def digest(value: JsonValue) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def digest_in_pieces(value: JsonValue) -> str:
    """Return the digest of a value whose canonical text may be larger than all else; no text of the whole is made.

    Example:
        >>> digest_in_pieces({"b": [1, 2.0], "a": "é"}) == digest({"b": [1, 2.0], "a": "é"})
        True
    """
    found = hashlib.sha256()
    for piece in _pieces(value, 0):
        found.update(piece.encode())
    return found.hexdigest()


def _pieces(value: JsonValue, depth: int) -> Iterator[str]:
    if isinstance(value, list) and value:
        for at in range(0, len(value), _BLOCK):
            yield "," if at else "["
            yield canonical(value[at : at + _BLOCK])[1:-1]
        yield "]"
    elif isinstance(value, dict) and value and depth < _DEEPEST_IN_PIECES:
        for at, name in enumerate(sorted(value)):
            yield f"{',' if at else '{'}{canonical(name)}:"
            yield from _pieces(value[name], depth + 1)
        yield "}"
    else:
        yield canonical(value)


@runtime_checkable
class Situated(Protocol):
    """An executor whose answers depend on more than words: on a commit, on the content of files."""

    def situation(self, brief: Brief, item: Item) -> JsonValue:
        """Return all that an answer depends on beside the brief, the item's value and the executor's fingerprint.

        Args:
            brief: The brief, with the item's fields in place.
            item: The item.

        Raises:
            JobError: If it can't be found out.
        """
        ...


def fingerprint(brief: Brief, item: Item, executor: Executor) -> str:
    """Return the identity of answering `brief` for `item` with `executor`.

    Args:
        brief: The brief; placeholders of item fields count as what they stand for.
        item: The item; its key counts only where the brief uses it.
        executor: The executor that would answer; asking the brief's own model, if that names one.

    Returns:
        64 hexadecimal characters.

    Raises:
        BriefError: If the brief uses a field that the item has not, or names a model that can't be asked.
    """
    return fingerprints(brief, executor)(item)


def fingerprints(brief: Brief, executor: Executor, *, alike: bool = False) -> Callable[[Item], str]:
    """Return what gives items their fingerprints, many of them for one brief.

    Args:
        brief: The brief.
        executor: The executor that would answer.
        alike: Whether the brief is the same for every item, and so is looked at once.

    Raises:
        BriefError: If the brief names a model that can't be asked.
    """
    who = executor_for(brief, executor)
    situated = who if isinstance(who, Situated) else None
    said = asked = ""

    def of(item: Item) -> str:
        nonlocal said, asked
        asked = asked or canonical(who.fingerprint)
        if not (alike and said):
            said = canonical(brief.identity(item))
        # The canonical text of an object, put together of those of its parts.
        text = f'{{"brief":{said},"executor":{asked},"format":{FORMAT},"item":{canonical(item.value)}'
        if situated:
            text += f',"situation":{canonical(situated.situation(brief.rendered(item), item))}'
        return hashlib.sha256(f"{text}}}".encode()).hexdigest()

    return of
