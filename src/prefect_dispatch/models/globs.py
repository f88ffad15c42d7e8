"""Intersection of globs: whether two of them can match the same path, decided from their texts without a disk.

`*`, `?` and `[...]` match within one name, hidden names included; `**` as a whole name matches any number of folders.
A path without any of these matches itself and everything below it, and so does a glob that ends in `/`. Matching is
case-sensitive; links are not followed. `/x`, `x` and `../x` never match the same path, as the working folder is
unknown here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from glob import escape
from itertools import takewhile
from typing import TYPE_CHECKING, TypeVar

from prefect_dispatch.errors import BriefError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_T = TypeVar("_T")
_Ranges = tuple[tuple[int, int], ...]
_Name = str | tuple[_Ranges | None, ...]  # None is `*` in a name, and `**` among names

_TOKEN = re.compile(r"(?P<star>\*+)|(?P<any>\?)|\[(?P<set>!.[^\]]*|[^!][^\]]*)\]|(?P<char>.)", re.DOTALL)
_SPAN = re.compile(r"(?P<low>.)-(?P<high>.)|(?P<char>.)", re.DOTALL)
_LAST = 0x10FFFF


@dataclass(frozen=True, order=True)
class Glob:
    """A glob in normalized form; two globs with equal texts are equal."""

    text: str
    """The glob without `.`, `..`, double slashes and, for a plain path, trailing slashes."""
    names: tuple[_Name | None, ...] = field(compare=False, repr=False)
    """The patterns of the names of a path, in order."""
    start: str = field(compare=False, repr=False)
    """`/`, nothing, or one `../` for each folder above the working folder."""
    head: str = field(compare=False, repr=False)
    """The text with which every matching path begins, `/` after each name."""
    tail: str = field(compare=False, repr=False)
    """The text with which every matching path ends."""

    @classmethod
    def parse(cls, pattern: str) -> Glob:
        """Parse a pattern.

        Raises:
            BriefError: If `..` follows `**`.

        Example:
            >>> Glob.parse("./out//x/../{key}.json").text
            'out/{key}.json'
        """
        start = "/" if pattern.startswith("/") else ""
        names: list[_Name | None] = []
        shown: list[str] = []
        # 1. Normalize: resolve `..`, and drop `.`, empty names and a repeated `**`.
        for text in pattern.split("/"):
            if text == ".." and names and names[-1] is None:
                raise BriefError(f"The glob {pattern!r} goes up from '**' by '..'; write where it leads instead.")
            if text == ".." and names:
                names.pop()
                shown.pop()
            elif text == "..":
                start += "" if start == "/" else "../"
            elif text not in {"", "."} and not (text == "**" and names and names[-1] is None):
                name = None if text == "**" else _parse_name(text)
                names.append(name)
                shown.append(escape(name) if isinstance(name, str) else text)
        # 2. A path without wildcards, or with a slash at its end, matches everything below it, too.
        plain = all(isinstance(name, str) for name in names)
        below = plain or pattern.endswith(("/", "/.", "/.."))
        text = start + "/".join(shown) + ("/" if below and not plain else "")
        if below and names[-1:] != [None]:
            names.append(None)
        # 3. The fixed characters up to the first variable one from either end.
        chars = list(_known_characters(names))
        head = start + "".join(takewhile(bool, chars))
        tail = "".join(takewhile(bool, reversed(chars)))[::-1]
        return cls(text=text or ".", names=tuple(names), start=start, head=head, tail=tail)


def overlap(one: Glob, other: Glob) -> bool:
    """Return whether some path matches both globs.

    Example:
        >>> overlap(Glob.parse("src/"), Glob.parse("src/*/a.py"))
        True
        >>> overlap(Glob.parse("out/*.json"), Glob.parse("out/[ab].md"))
        False
    """
    return one.start == other.start and _can_be_equal(one.names, other.names, _names_can_be_equal)


def matches_path(glob: Glob, path: str) -> bool:
    """Return whether a glob matches a path below the working folder; the path is that of a file.

    Example:
        >>> matches_path(Glob.parse("src/"), "src/a.py"), matches_path(Glob.parse("src/a.py"), "src")
        (True, False)
    """
    names: list[_Name | None] = [*path.split("/")]
    return not glob.start and _can_be_equal(glob.names, names, _names_can_be_equal)


def find_overlaps(globs: Sequence[Glob]) -> Iterator[tuple[Glob, Glob]]:
    """Yield each pair of different globs that overlap.

    Two globs can only overlap if the head of one is a prefix of the other's, and the same holds for their tails.
    Sorting brings such pairs together, so that not every pair of ten thousand paths is compared.
    """
    by_head = sorted((glob.head, glob) for glob in set(globs))
    by_tail = sorted((glob.tail[::-1], glob) for glob in set(globs))
    # Compare pairs along the order that yields fewer of them.
    fewest = min(by_head, by_tail, key=lambda order: sum(len(above) for _, above in _nested(order)))
    for glob, above in _nested(fewest):
        for _, other in above:
            if overlap(glob, other):
                yield min(glob, other), max(glob, other)


def _nested(ordered: list[tuple[str, Glob]]) -> Iterator[tuple[Glob, list[tuple[str, Glob]]]]:
    """Yield each glob with those before it whose text is a prefix of its own; the yielded list is reused."""
    above: list[tuple[str, Glob]] = []
    for text, glob in ordered:
        while above and not text.startswith(above[-1][0]):
            above.pop()
        yield glob, above
        above.append((text, glob))


def _can_be_equal(one: Sequence[_T | None], other: Sequence[_T | None], agree: Callable[[_T, _T], bool]) -> bool:
    """Return whether two sequences can be equal, in which None stands for any number of parts.

    A depth-first search over pairs of positions.

    Args:
        one: A sequence.
        other: Another one.
        agree: Returns whether two parts can be equal.
    """
    seen: set[tuple[int, int]] = set()
    stack = [(0, 0)]
    while stack:
        i, j = positions = stack.pop()
        if positions in seen:
            continue
        seen.add(positions)
        if i == len(one) and j == len(other):
            return True
        if i < len(one) and one[i] is None:
            stack += [(i + 1, j)] if j == len(other) else [(i + 1, j), (i, j + 1)]
        elif j < len(other) and other[j] is None:
            stack += [(i, j + 1)] if i == len(one) else [(i, j + 1), (i + 1, j)]
        elif i < len(one) and j < len(other):
            left, right = one[i], other[j]
            if left is not None and right is not None and agree(left, right):
                stack.append((i + 1, j + 1))
    return False


@lru_cache(maxsize=65536)
def _names_can_be_equal(one: _Name, other: _Name) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one == other
    return _can_be_equal(_parts(one), _parts(other), _ranges_intersect)


def _ranges_intersect(one: _Ranges, other: _Ranges) -> bool:
    return any(max(a, c) <= min(b, d) for a, b in one for c, d in other)


def _parts(name: _Name) -> Sequence[_Ranges | None]:
    return [((ord(char), ord(char)),) for char in name] if isinstance(name, str) else name


def _parse_name(text: str) -> _Name:
    """Parse a name: without wildcards it is its text, else the ranges that each character may be in."""
    parts: list[_Ranges | None] = []
    for token in _TOKEN.finditer(text):
        if token["star"]:
            parts.append(None)
        elif token["set"] is not None:
            parts.append(_parse_set(token["set"]))
        else:
            parts.append(((0, _LAST),) if token["any"] else ((ord(token["char"]), ord(token["char"])),))
    chars = [_char(part) for part in parts]
    return "".join(chars) if all(chars) else tuple(parts)


def _char(part: _Ranges | None) -> str:
    """Return the only character that matches a part, or an empty text if there are several."""
    return chr(part[0][0]) if part and len(part) == 1 and part[0][0] == part[0][1] else ""


def _known_characters(names: Sequence[_Name | None]) -> Iterator[str]:
    """Yield the fixed characters of a path in order, and an empty text for each variable one."""
    for name in names:
        yield from [""] if name is None else [*(name if isinstance(name, str) else map(_char, name)), "/"]


def _parse_set(text: str) -> _Ranges:
    """Parse the inside of `[...]` into the ranges of code points that match it."""
    spans = [
        (ord(span["low"] or span["char"]), ord(span["high"] or span["char"]))
        for span in _SPAN.finditer(text.removeprefix("!"))
    ]
    ranges = sorted(span for span in spans if span[0] <= span[1])
    if not text.startswith("!"):
        return tuple(ranges)
    # A negated set matches the gaps between its ranges.
    gaps: list[tuple[int, int]] = []
    low = 0
    for first, last in ranges:
        if low < first:
            gaps.append((low, first - 1))
        low = max(low, last + 1)
    return (*gaps, (low, _LAST))
