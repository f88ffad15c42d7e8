"""Canonical JSON and digests, strict parsing, and streamed serialization."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel
from pydantic_core import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue


MAX_JSON_DEPTH = 100
"""Maximum nesting of lists and mappings: enough for any answer, and far from every parser's limit."""
_BLOCK = 100
"""Elements of a list per chunk of streamed JSON."""
_CANONICAL_SPLIT_DEPTH = 2
"""Depth to which mappings are split into chunks of canonical JSON; deeper values are one chunk."""
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


_PLAIN = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def canonical_json(value: JsonValue) -> str:
    r"""Return the canonical JSON of a value: sorted keys, no spaces, ASCII only.

    Raises:
        ValueError: If the value holds NaN or an infinity, which JSON does not have.

    Example:
        >>> canonical_json({"b": [1, 2.0], "a": "é"})
        '{"a":"\\u00e9","b":[1,2.0]}'
    """
    return _CANONICAL.encode(value)


def find_json_problem(value: JsonValue) -> str | None:
    """Return the reason why a value can't be stored as JSON, or None if it can.

    Example:
        >>> find_json_problem({"a": [1, "b"]})
        >>> find_json_problem(float("inf"))
        'holds NaN or an infinity, which JSON has not'
    """
    # Breadth first, one layer at a time, so that a deep value does not exhaust the recursion limit.
    depth, layer = 0, [value]
    while layer:
        if depth > MAX_JSON_DEPTH:
            return f"is nested more than {MAX_JSON_DEPTH} deep"
        containers = [each for each in layer if isinstance(each, (list, dict))]
        layer = [child for each in containers for child in (each.values() if isinstance(each, dict) else each)]
        depth += 1
    try:
        _PLAIN.encode(value).encode()
    except UnicodeEncodeError:
        return "holds half of a character (a lone surrogate)"
    except ValueError:
        return "holds NaN or an infinity, which JSON has not"
    return None


def digest(value: JsonValue) -> str:
    """Return the SHA-256 of a value's canonical JSON in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def streamed_digest(value: JsonValue) -> str:
    """Return the digest of a large value without building its whole canonical text in memory.

    Example:
        >>> streamed_digest({"b": [1, 2.0], "a": "é"}) == digest({"b": [1, 2.0], "a": "é"})
        True
    """
    sha256 = hashlib.sha256()
    for chunk in _iter_canonical_chunks(value, 0):
        sha256.update(chunk.encode())
    return sha256.hexdigest()


def _iter_canonical_chunks(value: JsonValue, depth: int) -> Iterator[str]:
    if isinstance(value, list) and value:
        for at in range(0, len(value), _BLOCK):
            yield "," if at else "["
            yield canonical_json(value[at : at + _BLOCK])[1:-1]
        yield "]"
    elif isinstance(value, dict) and value and depth < _CANONICAL_SPLIT_DEPTH:
        for at, name in enumerate(sorted(value)):
            yield f"{',' if at else '{'}{canonical_json(name)}:"
            yield from _iter_canonical_chunks(value[name], depth + 1)
        yield "}"
    else:
        yield canonical_json(value)


_MAX_SHOWN = 100
"""Maximum characters of a key that an error message quotes."""


class UnsupportedJsonError(ValueError):
    """A text is valid JSON that can't be used: it has a duplicate key, or a number with too many digits."""


def loads(text: str, *, unique_keys: bool = False) -> JsonValue:
    """Parse strict JSON.

    Args:
        text: The text.
        unique_keys: Whether duplicate keys of an object are rejected. Else the last one counts.

    Raises:
        UnsupportedJsonError: If it has duplicate keys, or a number with more digits than Python converts.
        ValueError: If it isn't JSON, or has NaN or infinities by name.

    Example:
        >>> loads('{"n": 1, "n": 2}')
        {'n': 2}
        >>> loads('{"n": 1, "n": 2}', unique_keys=True)
        Traceback (most recent call last):
        prefect_dispatch.serialization.json_text.UnsupportedJsonError: the key 'n' stands twice in one object
    """
    try:
        value = json.loads(
            text, parse_constant=_reject_constant, object_pairs_hook=_reject_duplicate_keys if unique_keys else None
        )
        return cast("JsonValue", value)
    except (json.JSONDecodeError, UnsupportedJsonError, _ConstantError):
        raise
    except RecursionError:
        msg = "it is nested too deep"
        raise ValueError(msg) from None
    except ValueError:  # Python's limit for the digits of an integer
        msg = "it holds a number of more digits than can be read"
        raise UnsupportedJsonError(msg) from None


class _ConstantError(ValueError):
    """A text has a number by name, such as NaN."""


def _reject_constant(name: str) -> None:
    msg = f"{name} is not JSON"
    raise _ConstantError(msg)


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    counts = Counter(name for name, _ in pairs)
    twice = next(name for name, count in counts.items() if count > 1)
    msg = f"the key {twice[:_MAX_SHOWN]!r} stands twice in one object"
    raise UnsupportedJsonError(msg)


_SPLIT_DEPTH = 2
"""Depth to which objects are split into chunks; deeper values are one chunk."""


def iter_json_chunks(
    whole: object, *, indent: int | None = None, odd: Literal["null", "constants"] = "null", long: int | None = None
) -> Iterator[bytes]:
    """Serialize a model or a value in chunks, whose concatenation is what pydantic writes.

    Args:
        whole: The value.
        indent: Spaces of indentation per level. None: all in one line.
        odd: Whether NaN and infinities become null, or are written by their names.
        long: Length beyond which an indented list is written with one element per line. None: all are indented.

    Raises:
        PydanticSerializationError: If a part can't be serialized.

    Example:
        >>> b"".join(iter_json_chunks({"a": [1, float("nan")], "b": []}, odd="constants"))
        b'{"a":[1,NaN],"b":[]}'
    """
    write = _Writer(indent, odd, long)
    if isinstance(whole, BaseModel):
        fields = type(whole).model_fields.items()
        parts: dict[Any, object] = {name: getattr(whole, name) for name, field in fields if not field.exclude}
        return _iter_object(parts, write, indent, 0)
    return _iter_part(whole, write, indent, 0)


class _Writer:
    """Serializer of the parts that are one chunk."""

    def __init__(self, indent: int | None, odd: Literal["null", "constants"], long: int | None) -> None:
        """Store the options; see `iter_json_chunks`."""
        self._write = partial(to_json, by_alias=False, inf_nan_mode=odd)
        self._indent, self._long = indent, long

    def __call__(self, part: object) -> bytes:
        """Return the JSON of a part, indented."""
        return self._write(part, indent=self._indent)

    def is_long(self, many: Sequence[object]) -> bool:
        """Return whether a list is written with one element per line."""
        return self._indent is not None and self._long is not None and len(many) > self._long

    def lines(self, many: Sequence[object]) -> bytes:
        """Return the JSON of elements, each on an indented line of its own."""
        start = b"\n" + b" " * (self._indent or 0)
        return b",".join(start + self._write(each) for each in many)


def _iter_part(part: object, write: _Writer, indent: int | None, depth: int) -> Iterator[bytes]:
    if isinstance(part, (list, tuple)) and part:
        many = cast("Sequence[object]", part)
        end = b"]" if indent is None else b"\n]"
        if write.is_long(many):
            for at in range(0, len(many), _BLOCK):
                yield (b"," if at else b"[") + write.lines(many[at : at + _BLOCK])
            yield end
            return
        for at in range(0, len(many), _BLOCK):
            yield b"," if at else b"["
            yield write(many[at : at + _BLOCK])[1 : -len(end)]
        yield end
    elif isinstance(part, dict) and part and depth < _SPLIT_DEPTH:
        yield from _iter_object(cast("dict[Any, object]", part), write, indent, depth)
    else:
        yield write(part)  # pyright: ignore[reportUnknownArgumentType] -- any value


def _iter_object(parts: dict[Any, object], write: _Writer, indent: int | None, depth: int) -> Iterator[bytes]:
    line, colon = (b"", b":") if indent is None else (b"\n" + b" " * indent, b": ")
    for at, (name, part) in enumerate(parts.items()):
        yield (b"," if at else b"{") + line + to_json({name: None})[1:-6] + colon
        for chunk in _iter_part(part, write, indent, depth + 1):
            yield chunk.replace(b"\n", line) if line else chunk
    yield b"}" if indent is None else b"\n}"
