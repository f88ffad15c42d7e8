"""What an answer says, so that figures and quotations of a text can be looked up in it.

Numbers are compared by value, dates by what both tell, quotations letter by letter but for white
space and the form of quotation marks. The name of an item gives evidence of names alone: that an item
is called `doc-7` doesn't make seven of anything.
"""

from __future__ import annotations

import json
import re
import unicodedata
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.inert import plain
from prefect_dispatch.integrators.prose.figures import Date, Figure, figures
from prefect_dispatch.ledger import Ref

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models import Outcome

_MARKS = str.maketrans("“”„‟«»‘’‚‛", '""""""' + "''''")  # noqa: RUF001 -- all forms of quotation marks
_LEFT_OUT = re.compile(r"\[?(?:…|\.\.\.)\]?")
_EDGES = " .,;:!?\x00"


class Evidence:
    """An index of what one answer says."""

    def __init__(self, value: JsonValue, label: str) -> None:
        """Read an answer and the name of what it is about."""
        self._numbers: set[Decimal] = set()
        self._percents: set[Decimal] = set()
        self._dates: set[Date] = set()
        self._texts = [_even(label)]
        self._names: list[str] = []
        for part in _parts(value):
            if isinstance(part, str):
                self._texts.append(_even(part))
                self._read(part)
            elif isinstance(part, (int, float)) and not isinstance(part, bool):
                self._numbers.add(Decimal(part) if isinstance(part, int) else Decimal(repr(part)))
                self._read(json.dumps(part))
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
        if " one " in f" {text.casefold()} ":
            self._numbers.add(Decimal(1))

    def has(self, figure: Figure) -> bool:
        """Return whether a figure stands in the answer."""
        if figure.name and figure.name in self._found:
            return True
        if figure.kind == "date":
            return any(_agrees(told, known) for told in figure.dates for known in self._dates)
        if figure.kind == "name":
            return False
        if figure.percent:
            plainly = (figure.value, figure.value / 100)
            return figure.value in self._percents or not self._numbers.isdisjoint(plainly)
        return figure.value in self._numbers or figure.value in self._percents or figure.value * 100 in self._percents

    def quotes(self, quotation: str) -> bool:
        """Return whether the answer says something in these words; what an ellipsis leaves out may be anything."""
        wanted = [part for piece in _LEFT_OUT.split(quotation) if (part := _even(piece).strip(_EDGES))]
        return bool(wanted) and any(_in_turn(wanted, text) for text in self._texts)


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
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def indented(text: str) -> str:
    """Return a text with each line set in."""
    return "\n".join("    " + line for line in text.splitlines() or [""])


def _parts(value: JsonValue) -> Iterator[JsonValue]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from _parts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _parts(part)
    else:
        yield value


def _even(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text.translate(_MARKS)).replace("\x00", " ").split())


def _agrees(told: Date, known: Date) -> bool:
    return all(part is None or part == other for part, other in zip(told, known, strict=True))


def _in_turn(wanted: Sequence[str], text: str) -> bool:
    at = 0
    for part in wanted:
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True
