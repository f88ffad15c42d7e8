"""Integrator `Collate`: lists all answers without comparing them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prefect_dispatch.integrators.base import BaseIntegrator, gap_violations, gaps, gaps_as_outcomes, unanswered
from prefect_dispatch.integrators.merge_records.schema_conformance import iter_schema_violations, schemas_of
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.ledger import FieldRow, LedgerRow, Merge, Ref, Violation, sort_key
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.serialization.json_values import get_at, pointer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.brief import Brief


class Collate(BaseIntegrator, Strict):
    """Puts every answer into one list, sorted by the items' keys.

    The value is `{"answers": [{"brief": …, "item": …, "value": …}], "gaps": [{"brief": …, "item": …,
    "status": …, "reason": …}]}`: one answer for each outcome that succeeded, one gap for each of the others.
    Answers aren't compared, so none is ever a duplicate or overridden.

    Example:
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> outcomes = [Outcome(brief="terms", item=key, status="succeeded", value=key.upper()) for key in ("b", "a")]
        >>> Collate().merge([], outcomes).value["answers"]
        [{'brief': 'terms', 'item': 'a', 'value': 'A'}, {'brief': 'terms', 'item': 'b', 'value': 'B'}]
    """

    kind: Literal["collate"] = "collate"
    """Discriminates between integrators."""

    entries: ClassVar[str] = "answers"
    """The name of the value's field that has the answers."""

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
            rules="Every answer was kept as it came, in the order of the items' keys (numbers inside by their value), "
            "then of the briefs' names. Nothing was compared, merged or removed.",
        )

    def as_outcomes(self, merge: Merge) -> list[Outcome]:
        """Return the answers and gaps of a merged value as the outcomes that they were made from."""
        value: Any = merge.value
        answers = [Outcome(status="succeeded", **entry) for entry in value[self.entries]]
        return [*answers, *gaps_as_outcomes(value)]

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
        sources = Counter(source for row in merge.fields for source in row.sources)
        for outcome in outcomes:
            if outcome.status == "succeeded" and sources[Ref.of(outcome)] != 1:
                yield Violation(law="recall", where=str(Ref.of(outcome)), message="it has no entry, or more than one.")
