"""One row for each (brief, item): what a frame, a Parquet file or a table of a database takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError
from prefect_dispatch.ledger import Ref
from prefect_dispatch.models import Outcome

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch.ledger import LedgerRow
    from prefect_dispatch.report import Report

Row = dict[str, "JsonValue"]


def rows_of(report: Report) -> list[Row]:
    """Return a row for each (brief, item) of a report, gaps included, by item and then by brief.

    A row says how it ended (`status`, `disposition`, `by`, `reason`), the answer (`answer`: a text as it is,
    anything else as JSON), why there is none (`error_kind`, `error`), and where it comes from and what it took
    (`model`, `origin`, `fingerprint`, `attempts`, `tokens`, `cost_usd`).

    Raises:
        JobError: If the report has no outcomes, as one that was read from `report.json` hasn't.

    Example:
        >>> from prefect_dispatch import Outcome, Report
        >>> said = Outcome(brief="terms", item="mit.txt", status="succeeded", value={"family": "permissive"})
        >>> [row] = rows_of(Report(status="complete", message="", outcomes=(said,)))
        >>> row["item"], row["answer"], row["error"]
        ('mit.txt', '{"family": "permissive"}', None)
    """
    outcomes = outcomes_of(report)
    ledger = {Ref.of(row): row for row in report.ledger}
    return [_row(outcome, ledger.get(Ref.of(outcome))) for outcome in outcomes]


def outcomes_of(report: Report) -> list[Outcome]:
    """Return the outcomes of a report, by item and then by brief.

    Raises:
        JobError: If it has none, as one that was read from `report.json` hasn't.
    """
    if report.ledger and not report.outcomes:
        raise JobError(
            "The report has no outcomes: `report.json` leaves them out. Use the report that `dispatch` returns, or "
            "read outcomes.jsonl beside it."
        )
    return sorted(report.outcomes, key=lambda outcome: Ref.of(outcome).order)


def _row(outcome: Outcome, ledger: LedgerRow | None) -> Row:
    used = [attempt.usage for attempt in outcome.attempts]
    costs = [usage.cost_usd for usage in used if usage.cost_usd is not None]
    return {
        "brief": outcome.brief,
        "item": outcome.item,
        "status": outcome.status,
        "disposition": ledger.disposition if ledger else None,
        "by": str(ledger.by) if ledger and ledger.by else None,
        "reason": ledger.reason if ledger else None,
        "answer": as_text(outcome.value) if outcome.status == "succeeded" else None,
        "error_kind": outcome.error.kind if outcome.error else None,
        "error": outcome.error.message if outcome.error else None,
        "model": outcome.model or None,
        "origin": outcome.origin,
        "fingerprint": outcome.fingerprint or None,
        "attempts": len(used),
        "tokens": sum(usage.tokens for usage in used),
        "cost_usd": sum(costs) if len(costs) == len(used) else None,
    }


COLUMNS = tuple(_row(Outcome(brief="", item="", status="skipped"), None))
"""The names of the columns."""


def as_text(value: JsonValue) -> str:
    """Return a text as it is, and anything else as JSON.

    Example:
        >>> as_text("two words"), as_text([1, None])
        ('two words', '[1, null]')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
