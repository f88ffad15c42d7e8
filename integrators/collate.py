"""The plainest merge: every answer, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prefect_dispatch.integrators.base import unanswered
from prefect_dispatch.integrators.values import pointer
from prefect_dispatch.ledger import FieldRow, LedgerRow, Merge, Ref
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models import Brief, Outcome


class Collate(Strict):
    """Puts every answer into one list, in the order of the items' keys.

    The value is a list of `{"brief": …, "item": …, "value": …}`, one for each outcome that
    succeeded. Nothing is compared, so nothing is ever a duplicate or overridden.

    Example:
        >>> from prefect_dispatch.models import Outcome
        >>> said = [Outcome(brief="terms", item=key, status="succeeded", value=key.upper()) for key in ("b", "a")]
        >>> Collate().merge([], said).value
        [{'brief': 'terms', 'item': 'a', 'value': 'A'}, {'brief': 'terms', 'item': 'b', 'value': 'B'}]
    """

    kind: Literal["collate"] = "collate"
    """Tells the integrators apart."""

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:  # noqa: ARG002 -- the signature of every integrator
        """Return every answer, with a field row and a ledger row for each."""
        ranked = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
        answered = [outcome for outcome in ranked if outcome.status == "succeeded"]
        value: list[JsonValue] = [{"brief": o.brief, "item": o.item, "value": o.value} for o in answered]
        return Merge(
            value=value,
            ledger=tuple(
                unanswered(outcome) or LedgerRow(brief=outcome.brief, item=outcome.item, disposition="merged")
                for outcome in ranked
            ),
            fields=tuple(
                FieldRow(path=pointer(at, "value"), winner=o.value, rule="collate", sources=(Ref.of(o),))
                for at, o in enumerate(answered)
            ),
        )
