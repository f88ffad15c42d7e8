"""The plainest merge: every answer, side by side."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prefect_dispatch.integrators.auditing.forms import unlike, untold
from prefect_dispatch.integrators.gaps import gaps, restated_gaps, unanswered
from prefect_dispatch.integrators.values import pointer
from prefect_dispatch.ledger import FieldRow, LedgerRow, Merge, Ref, Violation, place_of
from prefect_dispatch.models import Outcome
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models import Brief


class Collate(Strict):
    """Puts every answer into one list, in the order of the items' keys.

    The value is `{"answers": [{"brief": …, "item": …, "value": …}], "gaps": [{"brief": …, "item": …,
    "status": …, "reason": …}]}`: one answer for each outcome that succeeded, one gap for each other
    one. Nothing is compared, so nothing is ever a duplicate or overridden.

    Example:
        >>> from prefect_dispatch.models import Outcome
        >>> said = [Outcome(brief="terms", item=key, status="succeeded", value=key.upper()) for key in ("b", "a")]
        >>> Collate().merge([], said).value["answers"]
        [{'brief': 'terms', 'item': 'a', 'value': 'A'}, {'brief': 'terms', 'item': 'b', 'value': 'B'}]
    """

    kind: Literal["collate"] = "collate"
    """Tells the integrators apart."""

    entries: ClassVar[str] = "answers"
    """Where, in the merged value, the answers stand."""

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:  # noqa: ARG002 -- the signature of every integrator
        """Return every answer, with a field row and a ledger row for each."""
        ranked = sorted(outcomes, key=lambda outcome: place_of(outcome.brief, outcome.item))
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

    def restated(self, merge: Merge) -> list[Outcome]:
        """Return the answers of a merged value as the outcomes that they were, and its gaps."""
        value: Any = merge.value
        answers = [Outcome(status="succeeded", **entry) for entry in value[self.entries]]
        return [*answers, *restated_gaps(value)]

    def broken(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:
        """Yield each answer without one entry of its own, or in another form than asked for; and gaps not told."""
        yield from untold(merge, outcomes)
        yield from unlike(merge, briefs, at=self.entries)
        sources = Counter(source for row in merge.fields for source in row.sources)
        for outcome in outcomes:
            if outcome.status == "succeeded" and sources[Ref.of(outcome)] != 1:
                yield Violation(law="recall", where=str(Ref.of(outcome)), message="it has no entry, or more than one.")
