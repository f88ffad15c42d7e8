"""What an answer says, so that figures and quotations of a text can be looked up in it.

Numbers are compared by value, dates by what both tell, quotations letter by letter but for white
space, stars, and the form of quotation marks. The name of an item gives evidence of names alone: that an item
is called `doc-7` doesn't make seven of anything.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.inert import plain
from prefect_dispatch.integrators.prose.citations import sentences
from prefect_dispatch.integrators.prose.dates import Date, agrees
from prefect_dispatch.integrators.prose.figures import Figure, figures
from prefect_dispatch.integrators.prose.numerals import times
from prefect_dispatch.integrators.values import parts
from prefect_dispatch.ledger import Ref

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models import Outcome

_MARKS = str.maketrans(dict.fromkeys('“”„‟«»‹›「」『』‘’‚‛"', "'") | {"*": None})  # noqa: RUF001 -- all forms of quotation marks
_LEFT_OUT = re.compile(r"[\[(]?(?:…|\.\.\.)[\])]?")
_EDGES = " .,;:!?'\x00"


class Evidence:
    """An index of what one answer says."""

    def __init__(self, value: JsonValue, label: str) -> None:
        """Read an answer and the name of what it is about."""
        self._value = value
        self._numbers: set[Decimal] = set()
        self._percents: set[Decimal] = set()
        self._dates: set[Date] = set()
        self._texts = [_even(label)]
        self._names: list[str] = []
        for text in _texts(value):
            self._texts.append(_even(text))
            self._read(text)
        if not isinstance(value, str):
            self._texts.append(_even(shown(value)))
        self._numbers |= {Decimal(year) for year, _, _ in self._dates if year}
        self._names += [figure.name for figure in figures(label)]
        self._found = "\n".join(self._names)

    def _read(self, text: str) -> None:
        for figure in figures(text):
            self._names.append(figure.name)
            self._dates |= set(figure.dates)
            if figure.kind == "number":
                (self._percents if figure.percent else self._numbers).add(figure.value)

    def has(self, figure: Figure) -> bool:
        """Return whether a figure stands in the answer."""
        if figure.name and figure.name in self._found:
            return True
        if figure.kind == "date":
            return any(agrees(told, known) for told in figure.dates for known in self._dates)
        if figure.kind == "name":
            return False
        if figure.percent:
            plainly = (figure.value, times(figure.value, 1, -2))
            return figure.value in self._percents or not self._numbers.isdisjoint(plainly)
        return not {figure.value, times(figure.value, 100)}.isdisjoint(self._percents) or figure.value in self._numbers

    def quotes(self, quotation: str) -> bool:
        """Return whether the answer says something in these words; what an ellipsis leaves out may be anything."""
        wanted = [part for piece in _LEFT_OUT.split(quotation) if (part := _even(piece).strip(_EDGES))]
        return bool(wanted) and any(_in_turn(wanted, text) for text in self._texts)

    def says(self, sentence: str) -> bool:
        """Return whether the answer says this, and it holds a whole sentence of it, or a whole entry of a value."""
        words = _even(sentence)
        return self.quotes(sentence) and any(
            unit in words and re.search(rf"(?<!\w){re.escape(unit)}(?!\w)", words) for unit in self._units
        )

    @cached_property
    def _units(self) -> set[str]:
        units = [shown(self._value)]
        for _, part in parts(self._value):
            if isinstance(part, str):
                units += [part[each.start : each.end] for each in sentences(part, 0)]
            elif isinstance(part, dict):
                units += [f"{_json(name)}: {_json(inside)}" for name, inside in part.items()]
        return {_even(unit).strip(_EDGES) for unit in units} - {""}


class Source(NamedTuple):
    """An answer with its number."""

    number: int
    """Its place among the answers, from 1."""
    ref: Ref
    """Whose it is."""
    label: str
    """The same as a line of text."""
    text: str
    """What it says, as text."""
    value: JsonValue
    """What it says."""
    evidence: Evidence
    """What can be looked up in it."""

    @property
    def block(self) -> str:
        """The answer under its number; its lines are indented, so that none can pass for another's number."""
        return f"[{self.number}] {self.label}:\n{indented(self.text)}"


def numbered(outcomes: Sequence[Outcome]) -> list[Source]:
    """Return the answers among the outcomes with their numbers, which are their places in the order of every list.

    Example:
        >>> from prefect_dispatch.models import Outcome
        >>> said = [Outcome(brief="terms", item=key, status="succeeded", value={"years": 5}) for key in "ba"]
        >>> print(numbered(said)[0].block)
        [1] terms/a:
            {"years": 5}
    """
    answered = sorted((o for o in outcomes if o.status == "succeeded"), key=lambda outcome: Ref.of(outcome).order)
    return [_source(at, outcome) for at, outcome in enumerate(answered, 1)]


def _source(number: int, outcome: Outcome) -> Source:
    label = plain(str(Ref.of(outcome)))
    return Source(number, Ref.of(outcome), label, shown(outcome.value), outcome.value, Evidence(outcome.value, label))


def shown(value: JsonValue) -> str:
    """Return an answer as it is put before a model: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else _json(value)


def _json(value: JsonValue) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def indented(text: str) -> str:
    """Return a text with each line set in."""
    return "\n".join("    " + line for line in text.splitlines() or [""])


def _texts(value: JsonValue) -> Iterator[str]:
    """Yield what a value says as texts: its strings, its numbers, and the names in it."""
    for _, part in parts(value):
        if isinstance(part, dict):
            yield from part
        elif isinstance(part, str):
            yield part
        elif isinstance(part, (int, float)) and not isinstance(part, bool):
            yield json.dumps(part)


def _even(text: str) -> str:
    even = unicodedata.normalize("NFKC", html.unescape(text).translate(_MARKS))
    return " ".join(even.replace("\x00", " ").split())


def _in_turn(wanted: Sequence[str], text: str) -> bool:
    at = 0
    for part in wanted:
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True
