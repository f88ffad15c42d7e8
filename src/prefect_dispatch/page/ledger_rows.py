"""The rows of a page's ledger, and when each attempt ran."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from prefect_dispatch.ledger import Ref
from prefect_dispatch.page.texts import text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prefect_dispatch.models import Attempt, Outcome
    from prefect_dispatch.page.texts import Texts
    from prefect_dispatch.report import Report

MOST_ROWS = 20_000
"""Rows that a page shows; of more, those that came to nothing go before."""
COLUMNS = (
    *("brief", "item", "disposition", "by", "reason", "status", "origin", "model", "attempts", "reasks", "waits"),
    *("tokens", "cost", "seconds", "kind", "error", "change", "answer"),
)
"""What stands in a row, in this order."""

_SHORT = 160
"""Characters of an answer or a reason in a row."""


def shown_outcomes(report: Report, most: int = MOST_ROWS) -> Sequence[Outcome]:
    """Return the outcomes that have a row, in the order of every list."""
    if len(report.outcomes) <= most:
        return report.outcomes
    chosen = sorted(report.outcomes, key=lambda outcome: outcome.status == "succeeded")[:most]
    return sorted(chosen, key=lambda outcome: Ref.of(outcome).order)


def rows(report: Report, outcomes: Sequence[Outcome], texts: Texts) -> Iterator[list[Any]]:
    """Yield a row for each outcome, as `COLUMNS` has it."""
    ledger = {Ref.of(row): row for row in report.ledger}
    changes = {ref: name for name, refs in report.changes.lists.items() for ref in refs}
    for outcome in outcomes:
        ref = Ref.of(outcome)
        row = ledger.get(ref)
        spent = [attempt.usage for attempt in outcome.attempts]
        costs = [usage.cost_usd for usage in spent]
        yield [
            outcome.brief,
            outcome.item,
            row.disposition if row else "",
            str(row.by) if row and row.by else "",
            texts.line(row.reason, _SHORT) if row else "",
            outcome.status,
            outcome.origin or "",
            outcome.model,
            len(outcome.attempts),
            sum(attempt.reasks for attempt in outcome.attempts),
            sum(attempt.waits for attempt in outcome.attempts),
            sum(usage.tokens for usage in spent),
            None if None in costs else round(sum(filter(None, costs)), 9),
            round(sum(attempt.seconds for attempt in outcome.attempts), 3),
            outcome.error.kind if outcome.error else "",
            texts.line(outcome.error.message, _SHORT) if outcome.error else "",
            changes.get(ref, ""),
            texts.line(text_of(outcome.value), _SHORT) if outcome.status == "succeeded" else "",
        ]


def spans(report: Report, outcomes: Sequence[Outcome]) -> Iterator[list[Any]]:
    """Yield when each attempt of a run ran: row, seconds since its start, seconds, of which waited, number, failed.

    The row is -1 for the integrator's own questions, whose names come last instead.
    """
    start = started(report.run)
    for number, outcome in enumerate(outcomes):
        yield from _spans(outcome, number, "", start)
    for outcome in report.asked:
        yield from _spans(outcome, -1, str(Ref.of(outcome)), start)


def _spans(outcome: Outcome, row: int, name: str, start: datetime | None) -> Iterator[list[Any]]:
    for number, attempt in enumerate(outcome.spent, 1):
        if attempt.started is not None and start is not None:
            offset = round((attempt.started - start).total_seconds(), 3)
            took = round(attempt.seconds + attempt.waited_s, 3)
            yield [row, offset, took, attempt.waited_s, number, int(attempt.error is not None), name]


def started(run: Mapping[str, Any]) -> datetime | None:
    """Return when a run started, if its report says so."""
    try:
        return datetime.fromisoformat(str(run.get("started")))
    except ValueError:
        return None


def untimed(outcomes: Iterable[Outcome]) -> int:
    """Return how many attempts of a run have no time: those in a batch."""
    attempts: list[Attempt] = [attempt for outcome in outcomes for attempt in outcome.spent]
    return sum(attempt.started is None for attempt in attempts)
