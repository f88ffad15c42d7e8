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
    from collections.abc import Callable, Iterator, Sequence

    from pydantic import JsonValue


MAX_JSON_DEPTH = 100
"""Maximum nesting of lists and mappings: enough for any answer, and far from every parser's limit."""
_BLOCK = 100
"""Elements of a list per chunk of streamed JSON."""
_SPLIT_DEPTH = 2
"""Depth to which objects are split into chunks; deeper values are one chunk."""
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
    for chunk in _ChunkWriter(_canonical_bytes, sort=True).iter_part(value):
        sha256.update(chunk)
    return sha256.hexdigest()


def _canonical_bytes(value: JsonValue) -> bytes:
    return canonical_json(value).encode()


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
        raise ValueError("it is nested too deep") from None
    except ValueError:  # Python's limit for the digits of an integer
        raise UnsupportedJsonError("it holds a number of more digits than can be read") from None


class _ConstantError(ValueError):
    """A text has a number by name, such as NaN."""


def _reject_constant(name: str) -> None:
    raise _ConstantError(f"{name} is not JSON")


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    counts = Counter(name for name, _ in pairs)
    twice = next(name for name, count in counts.items() if count > 1)
    raise UnsupportedJsonError(f"the key {twice[:_MAX_SHOWN]!r} stands twice in one object")


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
    if isinstance(whole, BaseModel):
        fields = type(whole).model_fields.items()
        whole = {name: getattr(whole, name) for name, field in fields if not field.exclude}
    return _ChunkWriter(partial(to_json, by_alias=False, inf_nan_mode=odd), indent=indent, long=long).iter_part(whole)


class _ChunkWriter:
    """Serializer of a value in chunks: lists in blocks, and the outermost objects by their keys."""

    def __init__(
        self, dump: Callable[..., bytes], *, indent: int | None = None, long: int | None = None, sort: bool = False
    ) -> None:
        """Store the options; see `iter_json_chunks`.

        Args:
            dump: Serializes a part in one line, or with an `indent`.
            indent: Spaces of indentation per level. None: all in one line.
            long: Length beyond which an indented list is written with one element per line. None: all are indented.
            sort: Whether the keys of objects are sorted.
        """
        self._dump, self._long, self._sort = dump, long, sort
        self._write = dump if indent is None else partial(dump, indent=indent)
        self._line, self._end, self._colon = b"", b"", b":"
        if indent is not None:
            self._line, self._end, self._colon = b"\n" + b" " * indent, b"\n", b": "

    def iter_part(self, part: Any, depth: int = 0) -> Iterator[bytes]:  # noqa: ANN401 -- anything that can be serialized
        """Yield the chunks of a part; one that lies deeper than `_SPLIT_DEPTH` is one chunk."""
        if isinstance(part, (list, tuple)) and part:
            yield from self._iter_list(cast("Sequence[object]", part))
        elif isinstance(part, dict) and part and depth < _SPLIT_DEPTH:
            parts = cast("dict[Any, object]", part)
            for at, name in enumerate(sorted(parts) if self._sort else parts):
                yield (b"," if at else b"{") + self._line + self._dump({name: None})[1:-6] + self._colon
                for chunk in self.iter_part(parts[name], depth + 1):
                    yield chunk.replace(b"\n", self._line) if self._line else chunk
            yield self._end + b"}"
        else:
            yield self._write(part)

    def _iter_list(self, many: Sequence[object]) -> Iterator[bytes]:
        end = self._end + b"]"
        for at in range(0, len(many), _BLOCK):
            yield b"," if at else b"["
            block = many[at : at + _BLOCK]
            if self._long is not None and len(many) > self._long:
                yield b",".join(self._line + self._dump(each) for each in block)
            else:
                yield self._write(block)[1 : -len(end)]
        yield end
