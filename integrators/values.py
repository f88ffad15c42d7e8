"""JSON values: when two are equal, how they are ordered, and where their parts stand.

All of it depends on content alone, so that whatever is built on it depends
on content alone too. `1` and `1.0` are one number; `true` and `1` differ.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic import JsonValue

Order = tuple[int, float, str]
Key = tuple[int, tuple[Order, ...]]
"""What parts that belong together share: whether they have an identity, and it (or what they say)."""

_BLOCK = 100
"""Parts of a list that are compared at once."""
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_quoted = json.encoder.encode_basestring_ascii
_INDEX = re.compile(r"0|[1-9][0-9]{0,17}")
_BAD_ESCAPE = re.compile(r"~(?![01])")


def content(value: JsonValue) -> str:
    """Return the text that equal values share: canonical JSON, numbers by their value.

    Example:
        >>> content({"b": 1.0, "a": True}) == content({"a": True, "b": 1})
        True
    """
    if isinstance(value, str):
        return _quoted(value)
    return repr(value) if type(value) is int else _ENCODER.encode(_plain(value))


def exact(value: JsonValue) -> str:
    """Return the text that only identical values share: canonical JSON, `1` and `1.0` told apart."""
    return _quoted(value) if isinstance(value, str) else _ENCODER.encode(value)


def same(one: JsonValue, other: JsonValue) -> bool:
    """Return whether two values are identical, part by part: a text of each may be larger than all else.

    Example:
        >>> same([{"a": 1, "b": 2}], [{"b": 2, "a": 1}]), same([1], [1.0]), same({"a": [1]}, {"a": [1, 2]})
        (True, False, False)
    """
    if isinstance(one, list) and isinstance(other, list):
        blocks = range(0, len(one), _BLOCK)
        return len(one) == len(other) and all(
            exact(one[at : at + _BLOCK]) == exact(other[at : at + _BLOCK]) for at in blocks
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(part, other[name]) for name, part in one.items())
    return exact(one) == exact(other)


def order(value: JsonValue) -> Order:
    """Return the place of a value among others: numbers by size, then texts, then the rest by its JSON.

    Example:
        >>> sorted(["b", 10, "a", 9.5, [1]], key=order)
        [9.5, 10, 'a', 'b', [1]]
    """
    if isinstance(value, str):
        return (1, 0, value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and (isinstance(value, int) or _finite(value)):
        return (0, value, "")
    return (2, 0, content(value))


def normal(value: JsonValue) -> JsonValue:
    r"""Return a value as identities are compared: NFKC, case folded, white space collapsed and stripped.

    Example:
        >>> normal("  The  Straße\n")
        'the strasse'
    """
    if isinstance(value, str):
        folded = unicodedata.normalize("NFKC", value).casefold()
        return " ".join(unicodedata.normalize("NFKC", folded).split())
    if isinstance(value, list):
        return [normal(part) for part in value]
    if isinstance(value, dict):
        return {name: normal(part) for name, part in value.items()}
    return value


def silent(value: JsonValue) -> bool:
    """Return whether a value says nothing: null or `{}`; `[]` says that there are none."""
    return value is None or value == {}


def get(value: JsonValue, path: Iterable[str]) -> JsonValue:
    """Return what stands at a path of keys, or None where nothing does.

    Example:
        >>> get({"a": {"b": 1}}, ["a", "b"])
        1
    """
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return value


def copied(value: JsonValue) -> JsonValue:
    """Return a value that shares no list and no object with the one given: a deep copy, ten times as fast.

    Example:
        >>> said = {"a": [1]}
        >>> copied(said) == said, copied(said)["a"] is said["a"]
        (True, False)
    """
    if isinstance(value, dict):
        return {name: copied(part) for name, part in value.items()}
    return [copied(part) for part in value] if isinstance(value, list) else value


def pointer(*tokens: str | int) -> str:
    """Return the JSON Pointer (RFC 6901) of a path.

    Example:
        >>> pointer(0, "a/b", "c~d")
        '/0/a~1b/c~0d'
    """
    path = "".join([f"/{token}" for token in tokens])
    if "~" not in path and path.count("/") == len(tokens):
        return path
    return "".join(["/" + str(token).replace("~", "~0").replace("/", "~1") for token in tokens])


def find(value: JsonValue, path: str) -> tuple[JsonValue, str | None]:
    """Return what stands at a JSON Pointer, and the last key (not index) on the way there.

    Raises:
        LookupError: If the pointer is malformed, or nothing stands there.

    Example:
        >>> find([{"tags": ["x"]}], "/0/tags/0")
        ('x', 'tags')
    """
    escaped = "~" in path
    if (path and not path.startswith("/")) or (escaped and _BAD_ESCAPE.search(path)):
        raise LookupError(path)
    name: str | None = None
    for token in path.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~") if escaped else token
        if isinstance(value, dict) and key in value:
            name, value = key, value[key]
        elif isinstance(value, list) and _INDEX.fullmatch(key) and int(key) < len(value):
            value = value[int(key)]
        else:
            raise LookupError(path)
    return value, name


class Node(NamedTuple):
    """A value, or a part of one."""

    name: str | None
    """The last key (not index) on the way there."""
    text: str
    """Its content."""
    value: JsonValue
    """What stands there."""


def nodes(value: JsonValue, name: str | None = None) -> list[Node]:
    """Return every part of a value, each after its own parts, the value itself last.

    Example:
        >>> [(node.name, node.text) for node in nodes({"a": [1, 2.0]})]
        [('a', '1'), ('a', '2'), ('a', '[1,2]'), (None, '{"a":[1,2]}')]
    """
    if not isinstance(value, (dict, list)):
        return [Node(name, content(value), value)]
    found: list[Node] = []
    _walk(name, value, found)
    return found


def _walk(name: str | None, value: JsonValue, found: list[Node]) -> str:
    """Return the content of a value after adding its parts; no closure, whose cycle would keep all of them."""
    if isinstance(value, dict):
        text = "{" + ",".join([f"{exact(key)}:{_walk(key, value[key], found)}" for key in sorted(value)]) + "}"
    elif isinstance(value, list):
        text = "[" + ",".join([_walk(name, part, found) for part in value]) + "]"
    else:
        text = content(value)
    found.append(Node(name, text, value))
    return text


def parts(value: JsonValue) -> Iterator[tuple[str, JsonValue]]:
    """Yield every part of a value with its JSON Pointer: the value itself, then its parts in their order.

    Example:
        >>> list(parts({"a": [1]}))
        [('', {'a': [1]}), ('/a', [1]), ('/a/0', 1)]
    """
    todo: list[tuple[str, JsonValue]] = [("", value)]
    while todo:
        path, part = todo.pop()
        yield path, part
        inside = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        todo += reversed([(path + pointer(name), each) for name, each in inside])


def is_leaf(value: JsonValue) -> bool:
    """Return whether a value has no parts: a scalar, or an empty list or object."""
    return not (isinstance(value, (dict, list)) and value)


def _plain(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return value


def _finite(value: float) -> bool:
    return math.isfinite(value)
