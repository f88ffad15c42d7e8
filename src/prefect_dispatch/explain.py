"""The story of one item or one field, told from a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rapidfuzz import process

from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.inert import plain
from prefect_dispatch.ledger import Ref

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.ledger import FieldRow, LedgerRow
    from prefect_dispatch.report import Gap, Report


def explain(report: Report, what: str | None = None) -> str:
    """Return how a field, or an item, of a report came about.

    Args:
        report: The report.
        what: A JSON Pointer of a field (`/0/name`), a field's name (`name`), an item's key, or
            `brief/item`. None for the report as a whole.

    Raises:
        LookupError: If the report has nothing of that name; the message names the nearest.
    """
    if what is None:
        return "\n".join(map(plain, _whole(report)))
    rows = [row for row in report.ledger if what in (row.item, str(Ref.of(row)))]
    fields = [row for row in report.fields if row.path == what or (not rows and row.path.endswith(f"/{what}"))]
    if not rows and not fields:
        known = [row.item for row in report.ledger] + [row.path for row in report.fields]
        near = [match[0] for match in process.extract(what, known, limit=3)]
        raise LookupError(f"The report has no item and no field {what!r}; near are {', '.join(map(repr, near))}.")
    gaps = {Ref.of(gap): gap for gap in report.gaps}
    stories = [_item(row, gaps.get(Ref.of(row)), report.fields) for row in rows] + [_field(row) for row in fields]
    return "\n\n".join("\n".join(map(plain, story)) for story in stories)


def _whole(report: Report) -> list[str]:
    counts: dict[str, int] = {}
    for row in report.ledger:
        counts[row.disposition] = counts.get(row.disposition, 0) + 1
    conflicts = [row.path for row in report.fields if row.losers]
    lines = [report.message, "Ledger: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))]
    lines += [f"Violation: {violation}" for violation in report.violations]
    lines += [f"Gap: {Ref.of(gap)}: {gap.error.kind}: {gap.error.message}" for gap in report.gaps]
    if conflicts:
        lines.append(f"Conflicts at {', '.join(conflicts)}")
    return lines


def _item(row: LedgerRow, gap: Gap | None, fields: Sequence[FieldRow]) -> list[str]:
    ref = Ref.of(row)
    lines = [f"{ref}: {row.disposition}" + (f" {row.by}" if row.by else "") + (f": {row.reason}" if row.reason else "")]
    if gap:
        lines.append(f"  {gap.error.kind}: {gap.error.message}")
    lines += [f"  gave {field.path} = {canonical(field.winner)}" for field in fields if ref in field.sources]
    lines += [
        f"  lost {field.path} = {canonical(loser.value)} by {field.rule}"
        for field in fields
        for loser in field.losers
        if ref in loser.sources
    ]
    return lines


def _field(row: FieldRow) -> list[str]:
    lines = [f"{row.path} = {_said(row.winner, row.sources)}", f"  rule: {row.rule}"]
    lines += [f"  not kept: {_said(loser.value, loser.sources)}" for loser in row.losers]
    return lines


def _said(value: JsonValue, sources: Sequence[Ref]) -> str:
    return f"{canonical(value)} (from {', '.join(map(str, sources))})"
