"""Audit of fields that a model wrote: those whose field row has the rule `cited`, from any integrator.

Answers are numbered by their position in the canonical order of outcomes. The audit checks that

- each citation names one of the answers;
- each number, date and quotation occurs in an answer that its sentence cites, or is flagged at its position, and
  marked in a text that is published;
- each answer is cited, or quoted word for word below the text or beside the value;
- items without an answer are listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from prefect_dispatch.integrators.base import gaps
from prefect_dispatch.integrators.synthesize.answer_index import cited_numbers, format_citation, number_answers
from prefect_dispatch.integrators.synthesize.findings import WORDING_KINDS, check_claims, check_prose
from prefect_dispatch.integrators.synthesize.output_format import (
    CITED,
    MARK,
    VALUE,
    Leaf,
    check_leaf,
    flag_findings,
    index_sources,
    mentions_wording,
    remove_marks,
    split_document,
    unverified_entries,
)
from prefect_dispatch.models.ledger import Violation
from prefect_dispatch.serialization.json_values import get_at, resolve_pointer

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.synthesize.answer_index import Source
    from prefect_dispatch.models.ledger import FieldRow, Flag, Merge
    from prefect_dispatch.models.outcome import Outcome


class CitedAudit:
    """Checks of the fields of a merge that a model wrote.

    Attributes:
        accounted_refs: The references of the answers that are accounted for: cited, or quoted below a text.
        violations: What the checks found.
    """

    def __init__(self, merge: Merge, outcomes: Sequence[Outcome]) -> None:
        """Check every field row with the rule `cited`."""
        self._merge, self._outcomes = merge, outcomes
        self._rows = [row for row in merge.fields if row.rule == CITED]
        self._sources: list[Source] = number_answers(outcomes) if self._rows else []
        self._numbers = {source.ref: source.number for source in self._sources}
        self._flags = {_flag_key(flag) for flag in merge.flags}
        self._cited_numbers = _parse_cited(get_at(merge.value, ["cited"])) if self._is_structured else {}
        self.accounted_refs: set[str] = set()
        self.violations: list[Violation] = [found for row in self._rows for found in self._check_row(row)]
        self.violations += self._check_derived_parts()

    @property
    def _is_structured(self) -> bool:
        """Whether the model wrote a value with fields, not a text."""
        return any(row.path == VALUE or row.path.startswith(VALUE + "/") for row in self._rows)

    @property
    def derived_parts(self) -> dict[str, JsonValue]:
        """The parts of the value that are derived from the rest of the merge: their expected content by path."""
        if not self._is_structured:
            return {}
        refs = {row.path: [self._numbers.get(ref, 0) for ref in row.sources] for row in self._rows}
        return {
            "/sources": index_sources(self._sources),
            "/cited": {
                path: cast("JsonValue", numbers) for path, numbers in refs.items() if path in self._cited_numbers
            },
            "/unverified": unverified_entries(self._merge.flags),
        }

    @property
    def merge_for_trace(self) -> Merge:
        """The merge as `Trace` checks it: fields that a model wrote have a rule that computes its value."""
        rows = [
            row.model_copy(update={"rule": f"model:{CITED}"}) if row.rule == CITED else row
            for row in self._merge.fields
        ]
        return self._merge.model_copy(update={"fields": tuple(rows)})

    def filter_violations(self, found: Iterable[Violation]) -> Iterator[Violation]:
        """Yield the violations that `Trace` found, without those that don't apply to what a model wrote.

        Those are recall violations of answers that are cited or quoted, and precision violations in parts that are
        derived from the rest of the merge and correct.
        """
        if not (found := list(found)):
            return
        rows = {row.path for row in self._merge.fields}
        correct = [path for path, value in self.derived_parts.items() if get_at(self._merge.value, [path[1:]]) == value]
        for each in found:
            cited_answer = each.law == "recall" and each.where in self.accounted_refs
            derived = each.law == "precision" and each.where not in rows
            if not cited_answer and not (derived and any(f"{each.where}/".startswith(f"{path}/") for path in correct)):
                yield each

    def _check_row(self, row: FieldRow) -> Iterator[Violation]:
        """Yield the violations of one field that a model wrote."""
        try:
            value, _ = resolve_pointer(self._merge.value, row.path)
        except LookupError:
            return  # `Trace` reports it as a precision violation
        if row.path in self._cited_numbers or self._is_structured:
            yield from self._check_leaf(row, value)
        elif isinstance(value, str):
            yield from self._check_text(row, value)
        else:
            yield _precision_violation(row.path, "its rule is 'cited', but it is no text.")

    def _check_text(self, row: FieldRow, text: str) -> Iterator[Violation]:
        """Yield the violations of a text, with its list of sources and the other sections below it."""
        # 1. Split off the sections below the text, which are generated.
        body, quoted, wrong = split_document(text, self._sources, self._outcomes)
        yield from (Violation(law="conservation", where=row.path or "/", message=each) for each in wrong)
        # 2. The answers that the text cites are the sources of its field row.
        prose, ends = remove_marks(body)
        numbers = cited_numbers(prose, len(self._sources))
        yield from self._check_sources(row, numbers)
        self.accounted_refs |= {self._ref_of_number(number) for number in (*numbers, *quoted)}
        # 3. Each unsupported number, date or quotation has a flag, and so has each doubt about the wording.
        found = [*check_prose(prose, self._sources), *check_claims(prose, self._sources)]
        yield from self._check_flags(flag_findings(row.path, prose, found, self._sources, ends))
        # 4. Each flag is at the text that it quotes, and the marks in the text are at the flags.
        flag_ends: set[int] = set()
        for flag in self._merge.flags:
            if flag.path == row.path and flag.start is not None:
                end = flag.start + len(flag.text)
                if flag.kind in WORDING_KINDS:
                    has_mark = True  # such a flag needs none
                else:
                    has_mark = body.startswith(MARK, end)
                    flag_ends.add(end)
                if body[flag.start : end] != flag.text or not has_mark:
                    yield _precision_violation(row.path, f"a flag is on {flag.text!r}, which isn't there with a mark.")
        # `ends` are positions without the marks; each mark before one moves it by its length.
        mark_positions = {end + len(MARK) * at for at, end in enumerate(ends)}
        if mark_positions != flag_ends:
            yield _precision_violation(row.path, "what is marked is not what is flagged.")

    def _check_leaf(self, row: FieldRow, value: JsonValue) -> Iterator[Violation]:
        """Yield the violations of a leaf of a value, which has the numbers of its answers beside it."""
        numbers = self._cited_numbers.get(row.path, ())
        valid = [number for number in numbers if 1 <= number <= len(self._sources)]
        expected, found = check_leaf(Leaf.from_pointer(self._merge.value, row.path, valid), self._sources)
        if expected != numbers:
            answers = format_citation(expected) or "nothing"
            yield _precision_violation(row.path, f"it rests on {answers}, but other answers are named for it.")
        yield from self._check_sources(row, expected)
        self.accounted_refs |= {self._ref_of_number(number) for number in expected}
        yield from self._check_flags(flag_findings(row.path, value, found, self._sources))

    def _check_flags(self, expected: Iterable[Flag]) -> Iterator[Violation]:
        """Yield a violation for each flag that the merge lacks.

        Flags on the wording are expected where the merge's rules name them: an earlier version had none.
        """
        has_wording = mentions_wording(self._merge.rules)
        for flag in expected:
            if _flag_key(flag) not in self._flags and (has_wording or flag.kind not in WORDING_KINDS):
                yield _unflagged_violation(flag)

    def _check_sources(self, row: FieldRow, numbers: Sequence[int]) -> Iterator[Violation]:
        """Yield a violation if the sources of a row are not the answers of some numbers (all, if there are none)."""
        expected = [self._sources[number - 1].ref for number in numbers] or [each.ref for each in self._sources]
        if list(row.sources) != expected:
            yield _precision_violation(row.path, "its sources are not the answers that it cites.")

    def _check_derived_parts(self) -> Iterator[Violation]:
        """Yield the violations of the parts of a value that list its gaps, its sources and what is unverified."""
        texts = [row for row in self._rows if isinstance(row.winner, str) and not self._is_structured]
        if self._rows and not texts and get_at(self._merge.value, ["gaps"]) != gaps(self._outcomes):
            yield Violation(law="conservation", where="/gaps", message="they are not the outcomes without an answer.")
        for path, value in self.derived_parts.items():
            if get_at(self._merge.value, [path[1:]]) != value:
                yield _precision_violation(path, "it is not what follows from the rest of the merge.")

    def _ref_of_number(self, number: int) -> str:
        return str(self._sources[number - 1].ref)


def _parse_cited(value: JsonValue) -> dict[str, tuple[int, ...]]:
    """Return the numbers of the answers that a value names for its parts, by their paths.

    Args:
        value: The field `cited` of a merged value; it may have been tampered with, and malformed parts are left out.
    """
    parts = value if isinstance(value, dict) else {}
    return {
        path: tuple(number for number in numbers if isinstance(number, int))
        for path, numbers in parts.items()
        if isinstance(numbers, list)
    }


def rule_violations(merge: Merge) -> Iterator[Violation]:
    """Yield the fields of a synthesis whose rule is none of its own: neither `cited` nor `verbatim`."""
    for row in merge.fields:
        if row.rule not in (CITED, "verbatim"):
            yield _precision_violation(row.path, f"its rule is {row.rule!r}, which is none of a synthesis.")


def _flag_key(flag: Flag) -> Hashable:
    """Return what identifies a flag: all of it but its message."""
    return flag.path, flag.kind, flag.start, flag.text, flag.sources


def _unflagged_violation(flag: Flag) -> Violation:
    return _precision_violation(flag.path, f"the {flag.kind} {flag.text!r} is doubtful, and not flagged there.")


def _precision_violation(path: str, message: str) -> Violation:
    return Violation(law="precision", where=path, message=message)
