"""Whether two globs can mean the same path: decided from their texts, without looking at a disk.

`*`, `?` and `[...]` stay within one name and match hidden ones too; `**` as a
whole name stands for any number of folders. A path without any of these means
itself and all that lies below it, and so does a glob that ends in `/`. Letters
count in the case in which they are written; links are not followed. `/x`, `x`
and `../x` have different beginnings and never mean the same, as nothing here
knows the working folder.
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
    """A glob in its one form; two with the same text are the same."""

    text: str
    """The glob as it reads without `.`, `..`, double and, on a plain path, last slashes."""
    names: tuple[_Name | None, ...] = field(compare=False, repr=False)
    """What each name of a path must match."""
    start: str = field(compare=False, repr=False)
    """`/`, nothing, or one `../` for each folder above the working folder."""
    head: str = field(compare=False, repr=False)
    """The text that every path which it means begins with, `/` after each name."""
    tail: str = field(compare=False, repr=False)
    """The text that every such path ends with."""

    @classmethod
    def parse(cls, pattern: str) -> Glob:
        """Return the glob that a pattern writes down.

        Raises:
            BriefError: If it goes up from `**` by `..`.

        Example:
            >>> Glob.parse("./out//x/../{key}.json").text
            'out/{key}.json'
        """
        start = "/" if pattern.startswith("/") else ""
        names: list[_Name | None] = []
        shown: list[str] = []
        for text in pattern.split("/"):
            if text == ".." and names and names[-1] is None:
                raise BriefError(f"The glob {pattern!r} goes up from '**' by '..'; write where it leads instead.")
            if text == ".." and names:
                names.pop()
                shown.pop()
            elif text == "..":
                start += "" if start == "/" else "../"
            elif text not in {"", "."} and not (text == "**" and names and names[-1] is None):
                name = None if text == "**" else _name(text)
                names.append(name)
                shown.append(escape(name) if isinstance(name, str) else text)
        plain = all(isinstance(name, str) for name in names)
        below = plain or pattern.endswith(("/", "/.", "/.."))
        text = start + "/".join(shown) + ("/" if below and not plain else "")
        if below and names[-1:] != [None]:
            names.append(None)
        known = list(_known(names))
        head = start + "".join(takewhile(bool, known))
        tail = "".join(takewhile(bool, reversed(known)))[::-1]
        return cls(text=text or ".", names=tuple(names), start=start, head=head, tail=tail)


def overlap(one: Glob, other: Glob) -> bool:
    """Return whether some path is meant by both.

    Example:
        >>> overlap(Glob.parse("src/"), Glob.parse("src/*/a.py"))
        True
        >>> overlap(Glob.parse("out/*.json"), Glob.parse("out/[ab].md"))
        False
    """
    return one.start == other.start and _meet(one.names, other.names, _names_meet)


def means(glob: Glob, path: str) -> bool:
    """Return whether a glob means one path below the working folder, which is a file's and so means nothing below it.

    Example:
        >>> means(Glob.parse("src/"), "src/a.py"), means(Glob.parse("src/a.py"), "src")
        (True, False)
    """
    names: list[_Name | None] = [*path.split("/")]
    return not glob.start and _meet(glob.names, names, _names_meet)


def overlaps(globs: Sequence[Glob]) -> Iterator[tuple[Glob, Glob]]:
    """Yield each pair of different globs that overlap.

    Two globs can only overlap if one's head begins the other's, and the same holds
    for their tails. Sorting brings such pairs together, so that ten thousand paths
    aren't compared with one another.
    """
    by_head = sorted((glob.head, glob) for glob in set(globs))
    by_tail = sorted((glob.tail[::-1], glob) for glob in set(globs))
    fewest = min(by_head, by_tail, key=lambda order: sum(len(above) for _, above in _nested(order)))
    for glob, above in _nested(fewest):
        for _, other in above:
            if overlap(glob, other):
                yield min(glob, other), max(glob, other)


def _nested(ordered: list[tuple[str, Glob]]) -> Iterator[tuple[Glob, list[tuple[str, Glob]]]]:
    """Yield each glob with those before it whose text begins its own; the list changes later."""
    above: list[tuple[str, Glob]] = []
    for text, glob in ordered:
        while above and not text.startswith(above[-1][0]):
            above.pop()
        yield glob, above
        above.append((text, glob))


def _meet(one: Sequence[_T | None], other: Sequence[_T | None], agree: Callable[[_T, _T], bool]) -> bool:
    """Return whether two sequences, in which None stands for any number of parts, can be the same."""
    seen: set[tuple[int, int]] = set()
    open_ = [(0, 0)]
    while open_:
        i, j = place = open_.pop()
        if place in seen:
            continue
        seen.add(place)
        if i == len(one) and j == len(other):
            return True
        if i < len(one) and one[i] is None:
            open_ += [(i + 1, j)] if j == len(other) else [(i + 1, j), (i, j + 1)]
        elif j < len(other) and other[j] is None:
            open_ += [(i, j + 1)] if i == len(one) else [(i, j + 1), (i + 1, j)]
        elif i < len(one) and j < len(other):
            left, right = one[i], other[j]
            if left is not None and right is not None and agree(left, right):
                open_.append((i + 1, j + 1))
    return False


@lru_cache(maxsize=65536)
def _names_meet(one: _Name, other: _Name) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one == other
    return _meet(_parts(one), _parts(other), _ranges_meet)


def _ranges_meet(one: _Ranges, other: _Ranges) -> bool:
    return any(max(a, c) <= min(b, d) for a, b in one for c, d in other)


def _parts(name: _Name) -> Sequence[_Ranges | None]:
    return [((ord(char), ord(char)),) for char in name] if isinstance(name, str) else name


def _name(text: str) -> _Name:
    """Return a name that holds no wildcard as its text, any other as what each character may be."""
    parts: list[_Ranges | None] = []
    for token in _TOKEN.finditer(text):
        if token["star"]:
            parts.append(None)
        elif token["set"] is not None:
            parts.append(_set(token["set"]))
        else:
            parts.append(((0, _LAST),) if token["any"] else ((ord(token["char"]), ord(token["char"])),))
    chars = [_char(part) for part in parts]
    return "".join(chars) if all(chars) else tuple(parts)


def _char(part: _Ranges | None) -> str:
    """Return the one character that a part may be, or nothing if there are more."""
    return chr(part[0][0]) if part and len(part) == 1 and part[0][0] == part[0][1] else ""


def _known(names: Sequence[_Name | None]) -> Iterator[str]:
    """Yield the characters of a path as far as they are known, and nothing for an unknown one."""
    for name in names:
        yield from [""] if name is None else [*(name if isinstance(name, str) else map(_char, name)), "/"]


def _set(text: str) -> _Ranges:
    spans = [
        (ord(span["low"] or span["char"]), ord(span["high"] or span["char"]))
        for span in _SPAN.finditer(text.removeprefix("!"))
    ]
    ranges = sorted(span for span in spans if span[0] <= span[1])
    if not text.startswith("!"):
        return tuple(ranges)
    gaps: list[tuple[int, int]] = []
    low = 0
    for first, last in ranges:
        if low < first:
            gaps.append((low, first - 1))
        low = max(low, last + 1)
    return (*gaps, (low, _LAST))
