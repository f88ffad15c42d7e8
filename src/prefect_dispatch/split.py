"""How an item that is too long is cut into parts: where its brief says so, and nowhere else."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import JsonValue, StringConstraints, model_validator

from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from prefect_dispatch.models import Item

By = Literal["pages", "paragraphs", "lines", "sentences", "words"]

_UNITS: Mapping[By, re.Pattern[str]] = {
    "pages": re.compile(r"\f"),
    "paragraphs": re.compile(r"\n[^\S\n]*\n\s*"),
    "lines": re.compile(r"\n"),
    "sentences": re.compile(r"""[.!?…]["'”\u2019»)\]]*\s+|[。\uff01\uff1f]["'”\u2019」』\uff09]*\s*|\n[^\S\n]*\n\s*"""),
    "words": re.compile(r"\s+"),
}


class Split(Strict):
    """How an item that is too long is cut, and how the answers to its parts are joined.

    Nothing here is in the fingerprint of the work: an item that isn't too long is asked as if no rule
    were there, and its stored answer outlives a change of the rule. A part has a fingerprint of its own,
    and the joined answer one that names this rule.

    Example:
        >>> Split(by="sentences").cut("One. Two! Three?", 2)
        ['One. Two! ', 'Three?']
    """

    by: By = "paragraphs"
    """What is never cut: `paragraphs`, `lines`, `sentences`, `words`, or `pages` (that end with a form feed)."""
    separator: Annotated[str, StringConstraints(min_length=1)] | None = None
    """A text, in place of `by`: it is cut behind each, and nowhere else."""
    field: str = ""
    """Where an item is an object: the field that holds its text. The other fields go with every part."""
    join: dict[str, JsonValue] | None = None
    """Who makes one answer of the parts' answers: an integrator that asks nobody. Empty: texts and lists are joined."""

    @model_validator(mode="after")
    def _is_one_rule(self) -> Self:
        if self.separator is not None and "by" in self.model_fields_set:
            msg = "'by' and 'separator' both say where to cut; keep one"
            raise ValueError(msg)
        return self

    @property
    def unit(self) -> str:
        """What is never cut, in words."""
        return f"text between {self.separator!r}" if self.separator is not None else self.by.removesuffix("s")

    def text(self, item: Item) -> str | None:
        """Return the text of an item that may be cut, or None if it has none."""
        value = item.value
        if isinstance(value, dict) and self.field:
            value = value.get(self.field)
        return value if isinstance(value, str) else None

    def part(self, item: Item, text: str) -> Item:
        """Return an item with a part of its text in place of the whole."""
        value = {**item.value, self.field: text} if isinstance(item.value, dict) else text
        return item.model_copy(update={"value": value})

    def cut(self, text: str, most: int) -> list[str]:
        """Return a text in so many parts at most, the longest as short as can be; joined, they are the text.

        Example:
            >>> Split(by="words").cut("a bb ccc", 2), Split(by="words").cut("unbreakable", 2)
            (['a bb ', 'ccc'], ['unbreakable'])
        """
        ends = self.ends(text)
        longest = max((end - start for start, end in pairwise((0, *ends))), default=0)
        size = bisect_left(
            range(len(text)),
            1,
            lo=max(longest, len(text) // most),
            key=lambda size: len(_filled(ends, size)) <= most + 1,
        )
        return [text[start:end] for start, end in pairwise(_filled(ends, size))]

    def ends(self, text: str) -> list[int]:
        """Return where the text may be cut, its end included; what is blank stays with what is before it."""
        unit = _UNITS[self.by] if self.separator is None else re.compile(re.escape(self.separator))
        ends: list[int] = []
        start, said = 0, False
        for end in (*(found.end() for found in unit.finditer(text)), len(text)):
            says = not text[start:end].isspace()
            if ends and not (says and said):
                ends[-1] = end
            elif end > start:
                ends.append(end)
            start, said = end, says or (said and bool(ends))
        return ends


def _filled(ends: list[int], size: int) -> list[int]:
    """Return where parts end that are as long as can be, and none longer than a size, which no unit exceeds."""
    filled = [0]
    while ends and filled[-1] < ends[-1]:
        filled.append(ends[bisect_right(ends, filled[-1] + size) - 1])
    return filled
