"""The JSON of a report or a merge, piece by piece: it may be as large as all answers, and its text a multiple of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel
from pydantic_core import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BLOCK = 100
"""Parts of a list that are written at once."""
_DEEPEST = 2
"""How deep objects are taken apart; what is in them further down is written at once."""


def pieces(
    whole: object, *, indent: int | None = None, odd: Literal["null", "constants"] = "null", long: int | None = None
) -> Iterator[bytes]:
    """Yield the JSON of a model or a value in pieces; together they are what pydantic writes.

    Args:
        whole: What is written.
        indent: How far the parts of a part are indented; all in one line if empty.
        odd: Whether a number that JSON has not, in a value, is null or stands there by its name.
        long: Elements beyond which an indented list has each element in one line. None: each is indented.

    Raises:
        PydanticSerializationError: If a part can't be written.

    Example:
        >>> b"".join(pieces({"a": [1, float("nan")], "b": []}, odd="constants"))
        b'{"a":[1,NaN],"b":[]}'
    """
    write = _Writer(indent, odd, long)
    if isinstance(whole, BaseModel):
        fields = type(whole).model_fields.items()
        parts: dict[Any, object] = {name: getattr(whole, name) for name, field in fields if not field.exclude}
        return _object(parts, write, indent, 0)
    return _part(whole, write, indent, 0)


class _Writer:
    """Writes what is not taken apart any further."""

    def __init__(self, indent: int | None, odd: Literal["null", "constants"], long: int | None) -> None:
        """Keep how."""
        self._write = partial(to_json, by_alias=False, inf_nan_mode=odd)
        self._indent, self._long = indent, long

    def __call__(self, part: object) -> bytes:
        """Return the JSON of a part, indented."""
        return self._write(part, indent=self._indent)

    def is_long(self, many: Sequence[object]) -> bool:
        """Return whether each element of a list is in one line."""
        return self._indent is not None and self._long is not None and len(many) > self._long

    def lines(self, many: Sequence[object]) -> bytes:
        """Return elements, each in a line that is indented."""
        start = b"\n" + b" " * (self._indent or 0)
        return b",".join(start + self._write(each) for each in many)


def _part(part: object, write: _Writer, indent: int | None, depth: int) -> Iterator[bytes]:
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
    elif isinstance(part, dict) and part and depth < _DEEPEST:
        yield from _object(cast("dict[Any, object]", part), write, indent, depth)
    else:
        yield write(part)  # pyright: ignore[reportUnknownArgumentType] -- any value


def _object(parts: dict[Any, object], write: _Writer, indent: int | None, depth: int) -> Iterator[bytes]:
    line, colon = (b"", b":") if indent is None else (b"\n" + b" " * indent, b": ")
    for at, (name, part) in enumerate(parts.items()):
        yield (b"," if at else b"{") + line + to_json({name: None})[1:-6] + colon
        for piece in _part(part, write, indent, depth + 1):
            yield piece.replace(b"\n", line) if line else piece
    yield b"}" if indent is None else b"\n}"
