"""The report as text: Markdown for an artifact or a file, rows for a table.

Keys, answers and error messages are other people's text: inside a table every
character that Markdown or HTML could act on becomes a character reference.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.ledger import Ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.ledger import FieldRow
    from prefect_dispatch.report import Report

MAX_CHARACTERS = 200_000
"""A longer report is cut, and says so; Prefect's UI has to show it."""
MAX_ROWS = 500
MAX_CELL = 200
MAX_VALUE = 50_000

_HIDDEN = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_ACTIVE = re.compile(r"[\\`*_{}\[\]<>()#+!|~&:@$]")


def cell(value: object) -> str:
    r"""Return a text as it stands in a table: one line, cut to length, inert.

    Example:
        >>> cell("a|b\n<img>")
        'a&#124;b &#60;img&#62;'
    """
    text = value if isinstance(value, str) else str(value)
    flat = " ".join(plain(text).split())
    short = flat if len(flat) <= MAX_CELL else flat[: MAX_CELL - 1] + "…"
    return _ACTIVE.sub(lambda match: f"&#{ord(match[0])};", short)


def plain(text: str) -> str:
    r"""Return a text as a line for a terminal: what an agent said must not steer it.

    Example:
        >>> plain("one\x1b[31m\ntwo")
        'one [31m two'
    """
    return "".join(character if character.isprintable() else " " for character in text)


def markdown(report: Report) -> str:
    """Return the report as Markdown, at most `MAX_CHARACTERS` long."""
    parts = [f"# {_title(report)}", cell(report.message), _numbers(report)]
    if report.violations:
        found = [(each.law, each.where, each.message) for each in report.violations]
        parts += ["## What the audit found", _table(("law", "where", "what"), found)]
    if report.gaps:
        gaps = [(gap.brief, gap.item, gap.status, gap.error.kind, gap.error.message) for gap in report.gaps]
        parts += ["## Gaps", _table(("brief", "item", "status", "kind", "why"), gaps)]
    conflicts = [row for row in report.fields if row.losers]
    if conflicts:
        parts += ["## Conflicts", _conflicts(conflicts)]
    if report.value is not None:
        parts += ["## Merged value", _code(report.value)]
    rows = [(row.brief, row.item, row.disposition, row.by or "", row.reason) for row in report.ledger]
    parts += ["## Ledger", _table(("brief", "item", "disposition", "by", "reason"), rows)]
    text = "\n\n".join(parts) + "\n"
    if len(text) > MAX_CHARACTERS:
        text = text[:MAX_CHARACTERS] + "\n\n… cut here; `report.json` has everything.\n"
    return text


def outcome_rows(report: Report) -> list[dict[str, Any]]:
    """Return one row for each outcome, at most `MAX_ROWS`, failures first."""
    ledger = {Ref.of(row): row for row in report.ledger}
    ordered = sorted(report.outcomes, key=lambda o: (o.status == "succeeded", Ref.of(o).order))
    return [
        {
            "brief": outcome.brief,
            "item": cell(outcome.item),
            "status": outcome.status,
            "disposition": row.disposition if (row := ledger.get(Ref.of(outcome))) else "",
            "origin": outcome.origin or "",
            "attempts": len(outcome.attempts),
            "tokens": sum(attempt.usage.tokens for attempt in outcome.attempts),
            "answer": cell(_shown(outcome.value)) if outcome.status == "succeeded" else "",
            "error": cell(f"{outcome.error.kind}: {outcome.error.message}") if outcome.error else "",
        }
        for outcome in ordered[:MAX_ROWS]
    ]


def _title(report: Report) -> str:
    return {"complete": "Complete", "gaps": "Complete with gaps", "failed": "Failed"}[report.status]


def _numbers(report: Report) -> str:
    usage, planned = report.usage, report.plan
    rows = [
        ("answers from the store", planned.get("stored"), usage.cached),
        ("shared with an equal item", planned.get("shared"), usage.shared),
        ("asked", planned.get("to_ask"), usage.asked),
        ("requests", planned.get("to_ask"), usage.requests),
        ("prompt tokens", planned.get("prompt_tokens"), usage.prompt_tokens),
        ("completion tokens", planned.get("completion_tokens"), usage.completion_tokens),
        ("cost in USD", planned.get("cost_usd"), usage.cost_usd),
        ("seconds", planned.get("seconds_in_parallel"), report.run.get("seconds")),
    ]
    shown = [(name, *("unknown" if figure is None else figure for figure in figures)) for name, *figures in rows]
    return _table(("", "planned", "happened"), shown)


def _conflicts(rows: Sequence[FieldRow]) -> str:
    return _table(
        ("field", "kept", "from", "rule", "not kept"),
        [
            (
                row.path,
                _shown(row.winner),
                _refs(row.sources),
                row.rule,
                "; ".join(f"{_shown(loser.value)} (from {_refs(loser.sources)})" for loser in row.losers),
            )
            for row in rows
        ],
    )


def _refs(refs: Iterable[Ref]) -> str:
    return ", ".join(map(str, refs))


def _shown(value: JsonValue) -> str:
    return value if isinstance(value, str) else canonical(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in rows[:MAX_ROWS]]
    if len(rows) > MAX_ROWS:
        lines.append(f"\n… and {len(rows) - MAX_ROWS} more rows in `report.json`.")
    return "\n".join(lines)


def _code(value: JsonValue) -> str:
    text = _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, indent=2, ensure_ascii=False))
    if len(text) > MAX_VALUE:
        text = text[:MAX_VALUE] + "\n… cut here; `report.json` has everything."
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"{fence}json\n{text}\n{fence}"
