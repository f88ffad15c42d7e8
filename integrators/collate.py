"""Integrator `Collate`: lists all answers without comparing them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, model_validator

from prefect_dispatch.integrators.accuracy import (
    ExpectedAnswers,
    compare_with_expected,
    read_expected_answers,
    require_comparable,
    require_known_items,
)
from prefect_dispatch.integrators.base import BaseIntegrator, gap_violations, gaps, gaps_as_outcomes, unanswered
from prefect_dispatch.integrators.merge_records.schema_conformance import iter_schema_violations, schemas_of
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.ledger import FieldRow, LedgerRow, Merge, Ref, Violation, sort_key
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.serialization.json_values import get_at, pointer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue
    from typing_extensions import Self

    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item


_RULES = (
    "Every answer was kept as it came, in the order of the items' keys (numbers inside by their value), then of the "
    "briefs' names. Nothing was compared, merged or removed."
)


class Collate(BaseIntegrator, Strict):
    """Puts every answer into one list, sorted by the items' keys.

    The value is `{"answers": [{"brief": …, "item": …, "value": …}], "gaps": [{"brief": …, "item": …,
    "status": …, "reason": …}]}`: one answer for each outcome that succeeded, one gap for each of the others.
    Answers aren't compared with each other, so none is ever a duplicate or overridden.

    **Expected answers** (`expected`). A table with a row for each item whose right answer is known: one column has the
    item's key, each other column is a field of the answer. The tables `accuracy` and `wrong-answers` of the report say
    how many answers are right, beside what one constant answer would reach. No agent sees the table.

    Example:
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> outcomes = [Outcome(brief="terms", item=key, status="succeeded", value=key.upper()) for key in ("b", "a")]
        >>> Collate().merge([], outcomes).value["answers"]
        [{'brief': 'terms', 'item': 'a', 'value': 'A'}, {'brief': 'terms', 'item': 'b', 'value': 'B'}]
    """

    kind: Literal["collate"] = "collate"
    """Discriminates between integrators."""
    expected: str = ""
    """A CSV, JSON Lines or Parquet file with the right answers, as far as they are known. Empty: there is none."""
    expected_key: str = Field(default="item", min_length=1)
    """The column of that file with the key of an item."""

    entries: ClassVar[str] = "answers"
    """The name of the value's field that has the answers."""
    _expected: ExpectedAnswers | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _require_file_of_key(self) -> Self:
        if self.expected_key != type(self).model_fields["expected_key"].default and not self.expected:
            raise ValueError("'expected_key' is for the file with the right answers; name it under 'expected'")
        return self

    def resolve_paths(self, folder: Path) -> Collate:
        """Return this integrator with the expected answers read.

        Raises:
            JobError: If they can't be read.
        """
        copy = self.model_copy()
        if self.expected:
            copy._expected = read_expected_answers(self.expected, self.expected_key, folder)  # noqa: SLF001 -- its own copy
        return copy

    def with_items(self, briefs: Sequence[Brief], items: Sequence[Item]) -> Collate:  # noqa: ARG002 -- the signature of every integrator
        """Return this integrator, if the right answer is known for one of the items.

        Raises:
            JobError: If it is for none.
        """
        if self.expected:
            require_known_items(self._expected_answers, self.expected, items)
        return self

    def preflight(self, briefs: Sequence[Brief]) -> None:
        """Check that the expected answers can be compared with those to the briefs.

        Raises:
            JobError: If they have no column that is a field of an answer.
        """
        if self.expected:
            require_comparable(self._expected_answers, self.expected, briefs)

    @property
    def _expected_answers(self) -> ExpectedAnswers:
        if self._expected is not None:
            return self._expected
        return read_expected_answers(self.expected, self.expected_key, Path())  # merged without a run

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:  # noqa: ARG002 -- the signature of every integrator
        """Return every answer, with a field row and a ledger row for each."""
        ranked = sorted(outcomes, key=lambda outcome: sort_key(outcome.brief, outcome.item))
        answered = [outcome for outcome in ranked if outcome.status == "succeeded"]
        answers: list[JsonValue] = [{"brief": o.brief, "item": o.item, "value": o.value} for o in answered]
        return Merge(
            value={self.entries: answers, "gaps": gaps(ranked)},
            ledger=tuple(
                unanswered(outcome) or LedgerRow(brief=outcome.brief, item=outcome.item, disposition="merged")
                for outcome in ranked
            ),
            fields=tuple(
                FieldRow(path=pointer(self.entries, at, "value"), winner=o.value, rule="collate", sources=(Ref.of(o),))
                for at, o in enumerate(answered)
            ),
            tables=compare_with_expected(self._expected_answers, ranked) if self.expected else (),
            rules=_RULES,
        )

    def as_outcomes(self, merge: Merge) -> list[Outcome]:
        """Return the answers and gaps of a merged value as the outcomes that they were made from."""
        value: Any = merge.value
        answers = [Outcome(status="succeeded", **entry) for entry in value[self.entries]]
        return [*answers, *gaps_as_outcomes(value)]

    def recompute(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Merge | None:  # noqa: ARG002 -- the signature of every integrator
        """Return the merge that the outcomes result in: an entry, a field row and a ledger row for each answer."""
        entries: list[JsonValue] = []
        fields: list[FieldRow] = []
        ledger: list[LedgerRow] = []
        for ref, outcome in sorted(((Ref.of(each), each) for each in outcomes), key=lambda pair: pair[0].order):
            if row := unanswered(outcome):
                ledger.append(row)
                continue
            path = pointer(self.entries, len(entries), "value")
            entries.append({"brief": ref.brief, "item": ref.item, "value": outcome.value})
            fields.append(FieldRow(path=path, winner=outcome.value, rule=self.kind, sources=(ref,)))
            ledger.append(LedgerRow(brief=ref.brief, item=ref.item, disposition="merged"))
        return Merge(
            value={self.entries: entries, "gaps": gaps(outcomes)},
            ledger=tuple(ledger),
            fields=tuple(fields),
            tables=compare_with_expected(self._expected_answers, outcomes) if self.expected else (),
            rules=_RULES,
        )

    def verify(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:
        """Yield the violations of the integrator's own guarantees.

        These are: each answer has exactly one entry, every entry has the form that its brief asks for, and all gaps
        are listed.
        """
        yield from gap_violations(merge, outcomes)
        schemas = schemas_of(briefs)
        entries = get_at(merge.value, [self.entries])
        for number, entry in enumerate(entries if isinstance(entries, list) else []):
            if isinstance(entry, dict) and (schema := schemas.get(str(entry.get("brief")))):
                for fault in iter_schema_violations(schema, entry.get("value")):
                    where = pointer(self.entries, number, "value", *fault.path)
                    yield Violation(law="schema", where=where, message=fault.message)
        sources = Counter((source.brief, source.item) for row in merge.fields for source in row.sources)
        for outcome in outcomes:
            if outcome.status == "succeeded" and sources[outcome.brief, outcome.item] != 1:
                yield Violation(law="recall", where=str(Ref.of(outcome)), message="it has no entry, or more than one.")
