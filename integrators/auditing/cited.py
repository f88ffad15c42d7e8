"""The audit of what a model wrote: holds for whatever integrator gives a field the rule `cited`.

Answers are numbered by their place in the order of every list. Each citation names one of them; each
number, date and quotation stands in what its sentence cites, or is flagged where it stands, and marked
in a text that is published; each answer is cited, or stands word for word below the text or beside the
value; and what has no answer is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from prefect_dispatch.integrators.gaps import gaps
from prefect_dispatch.integrators.prose.doubts import findings, known, named
from prefect_dispatch.integrators.prose.drafts import Leaf, leaf_findings
from prefect_dispatch.integrators.prose.evidence import numbered
from prefect_dispatch.integrators.prose.publishing import MARK, placed, taken_apart, unmarked
from prefect_dispatch.integrators.prose.writing import CITED, VALUE, flagged, leaf_flags, listed, unverified
from prefect_dispatch.integrators.values import find, get
from prefect_dispatch.ledger import Violation

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.prose.evidence import Source
    from prefect_dispatch.ledger import FieldRow, Flag, Merge
    from prefect_dispatch.models import Outcome


class CitedAudit:
    """What an audit knows of the fields that a model wrote."""

    def __init__(self, merge: Merge, outcomes: Sequence[Outcome]) -> None:
        """Check every row with the rule `cited`."""
        self._merge, self._outcomes = merge, outcomes
        self._rows = [row for row in merge.fields if row.rule == CITED]
        self._sources: list[Source] = numbered(outcomes) if self._rows else []
        self._numbers = {source.ref: source.number for source in self._sources}
        self._flags = {_place(flag) for flag in merge.flags}
        self._known = _named(get(merge.value, ["cited"])) if self._structured else {}
        self.vouched: set[str] = set()
        """The answers that are accounted for: cited, or told word for word below a text."""
        self.violations: list[Violation] = [found for row in self._rows for found in self._checked(row)]
        self.violations += self._untold()

    @property
    def _structured(self) -> bool:
        return any(row.path == VALUE or row.path.startswith(VALUE + "/") for row in self._rows)

    @property
    def told(self) -> dict[str, JsonValue]:
        """The parts of the value that follow from the rest of the merge, by their paths, as they must be."""
        if not self._structured:
            return {}
        refs = {row.path: [self._numbers.get(ref, 0) for ref in row.sources] for row in self._rows}
        return {
            "/sources": listed(self._sources),
            "/cited": {path: cast("JsonValue", numbers) for path, numbers in refs.items() if path in self._known},
            "/unverified": unverified(self._merge.flags),
        }

    @property
    def merge(self) -> Merge:
        """The merge for whoever compares words: what a model wrote goes by a rule that computes."""
        rows = [
            row.model_copy(update={"rule": f"model:{CITED}"}) if row.rule == CITED else row
            for row in self._merge.fields
        ]
        return self._merge.model_copy(update={"fields": tuple(rows)})

    def unexplained(self, found: Iterable[Violation]) -> Iterator[Violation]:
        """Yield the violations that whoever compares words finds, but for those that are none here."""
        if not (found := list(found)):
            return
        rows = {row.path for row in self._merge.fields}
        told = [path for path, value in self.told.items() if get(self._merge.value, [path[1:]]) == value]
        for each in found:
            cited_answer = each.law == "recall" and each.where in self.vouched
            derived = each.law == "precision" and each.where not in rows
            if not cited_answer and not (derived and any(f"{each.where}/".startswith(f"{path}/") for path in told)):
                yield each

    def _checked(self, row: FieldRow) -> Iterator[Violation]:
        try:
            value, _ = find(self._merge.value, row.path)
        except LookupError:
            return  # told by whoever looks at precision
        if row.path in self._known or self._structured:
            yield from self._leaf(row, value)
        elif isinstance(value, str):
            yield from self._text(row, value)
        else:
            yield _unfounded(row.path, "its rule is 'cited', but it is no text.")

    def _text(self, row: FieldRow, text: str) -> Iterator[Violation]:
        """Check a text with everything that belongs below it."""
        body, also, wrong = taken_apart(text, self._sources, self._outcomes)
        yield from (Violation(law="conservation", where=row.path or "/", message=each) for each in wrong)
        prose, ends = unmarked(body)
        numbers = known(prose, len(self._sources))
        yield from self._sourced(row, numbers)
        self.vouched |= {self._name(number) for number in (*numbers, *also)}
        for mark in placed(prose, ends, findings(prose, self._sources)):
            flag = flagged(row.path, mark.finding, mark.text, mark.start, self._sources)
            if _place(flag) not in self._flags:
                yield _unflagged(flag)
        places: set[int] = set()
        for flag in self._merge.flags:
            if flag.path == row.path and flag.start is not None:
                end = flag.start + len(flag.text)
                places.add(end)
                if body[flag.start : end] != flag.text or not body.startswith(MARK, end):
                    yield _unfounded(row.path, f"a flag is on {flag.text!r}, which doesn't stand there with a mark.")
        marks = {end + len(MARK) * at for at, end in enumerate(ends)}
        if marks != places:
            yield _unfounded(row.path, "what is marked is not what is flagged.")

    def _leaf(self, row: FieldRow, value: JsonValue) -> Iterator[Violation]:
        """Check a part of a value that stands beside what it rests on."""
        told = self._known.get(row.path, ())
        given = [number for number in told if 1 <= number <= len(self._sources)]
        own, found = leaf_findings(Leaf.at(self._merge.value, row.path, given), self._sources)
        if own != told:
            yield _unfounded(row.path, f"it rests on {named(own) or 'nothing'}, but other answers are named for it.")
        yield from self._sourced(row, own)
        self.vouched |= {self._name(number) for number in own}
        for flag in leaf_flags(row.path, value, found, self._sources):
            if _place(flag) not in self._flags:
                yield _unflagged(flag)

    def _sourced(self, row: FieldRow, numbers: Sequence[int]) -> Iterator[Violation]:
        expected = [self._sources[number - 1].ref for number in numbers] or [each.ref for each in self._sources]
        if list(row.sources) != expected:
            yield _unfounded(row.path, "its sources are not the answers that it cites.")

    def _untold(self) -> Iterator[Violation]:
        """Yield what a value has to tell of itself and doesn't."""
        texts = [row for row in self._rows if isinstance(row.winner, str) and not self._structured]
        if self._rows and not texts and get(self._merge.value, ["gaps"]) != gaps(self._outcomes):
            yield Violation(law="conservation", where="/gaps", message="they are not the outcomes without an answer.")
        for path, value in self.told.items():
            if get(self._merge.value, [path[1:]]) != value:
                yield _unfounded(path, "it is not what follows from the rest of the merge.")

    def _name(self, number: int) -> str:
        return str(self._sources[number - 1].ref)


def _named(value: JsonValue) -> dict[str, tuple[int, ...]]:
    """Return which answers a value names for its parts; what isn't of that form names none."""
    parts = value if isinstance(value, dict) else {}
    return {
        path: tuple(number for number in numbers if isinstance(number, int))
        for path, numbers in parts.items()
        if isinstance(numbers, list)
    }


def unruly(merge: Merge) -> Iterator[Violation]:
    """Yield the fields of a synthesis that neither a model wrote nor an answer says word for word."""
    for row in merge.fields:
        if row.rule not in (CITED, "verbatim"):
            yield _unfounded(row.path, f"its rule is {row.rule!r}, which is none of a synthesis.")


def _place(flag: Flag) -> Hashable:
    return flag.path, flag.kind, flag.start, flag.text, flag.sources


def _unflagged(flag: Flag) -> Violation:
    return _unfounded(flag.path, f"the {flag.kind} {flag.text!r} is doubtful, and not flagged there.")


def _unfounded(path: str, message: str) -> Violation:
    return Violation(law="precision", where=path, message=message)
