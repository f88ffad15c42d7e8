"""What has no answer: in the ledger, as data, and in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_dispatch.ledger import LedgerRow, Ref
from prefect_dispatch.models import Failure, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import JsonValue

NAMED_GAPS = 20
"""How many gaps a sentence names one by one; the rest are counted."""


def unanswered(outcome: Outcome) -> LedgerRow | None:
    """Return the ledger row of an outcome that failed or was skipped, or None if it succeeded."""
    if outcome.status == "succeeded":
        return None
    return LedgerRow(brief=outcome.brief, item=outcome.item, disposition=outcome.status, reason=_reason(outcome))


def gaps(outcomes: Iterable[Outcome]) -> list[JsonValue]:
    """Return what a merged value says, as data, of the outcomes without an answer, in the order of every list.

    Example:
        >>> from prefect_dispatch.models import Failure, Outcome
        >>> lost = Outcome(brief="terms", item="a", status="failed", error=Failure(kind="timeout", message="Late."))
        >>> gaps([lost])
        [{'brief': 'terms', 'item': 'a', 'status': 'failed', 'reason': 'timeout: Late.'}]
    """
    return [
        {"brief": outcome.brief, "item": outcome.item, "status": outcome.status, "reason": _reason(outcome)}
        for outcome in _missing(outcomes)
    ]


def restated_gaps(value: JsonValue) -> list[Outcome]:
    """Return the outcomes that `gaps` told of, from a merged value that has them as its field `gaps`.

    Example:
        >>> told = {"brief": "terms", "item": "a", "status": "failed", "reason": "timeout: Late."}
        >>> [outcome.error for outcome in restated_gaps({"answers": [], "gaps": [told]})]
        [Failure(kind='timeout', message='Late.')]
    """
    told: Any = value.get("gaps") if isinstance(value, dict) else None
    return [
        Outcome(brief=gap["brief"], item=gap["item"], status=gap["status"], error=_failure(gap["reason"]))
        for gap in told or ()
    ]


def gap_sentence(outcomes: Iterable[Outcome]) -> str:
    """Return the same in words, for a value that is prose; empty if all have an answer.

    Example:
        >>> from prefect_dispatch.models import Failure, Outcome
        >>> lost = Outcome(brief="terms", item="a", status="failed", error=Failure(kind="timeout", message="Late."))
        >>> gap_sentence([lost, Outcome(brief="terms", item="b", status="succeeded", value=1)])
        'No answer for 1 of 2: terms/a (timeout).'
    """
    every = list(outcomes)
    missing = _missing(every)
    if not missing:
        return ""
    named = [f"{Ref.of(o)} ({o.error.kind if o.error else o.status})" for o in missing[:NAMED_GAPS]]
    more = f" and {len(missing) - NAMED_GAPS} more" if len(missing) > NAMED_GAPS else ""
    return f"No answer for {len(missing)} of {len(every)}: {', '.join(named)}{more}."


def _missing(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return sorted((o for o in outcomes if o.status != "succeeded"), key=lambda outcome: Ref.of(outcome).order)


def _failure(reason: str) -> Failure | None:
    kind, _, message = reason.partition(": ")
    return Failure(kind=kind, message=message) if reason else None


def _reason(outcome: Outcome) -> str:
    return f"{outcome.error.kind}: {outcome.error.message}" if outcome.error else ""
