"""The report as text: Markdown for an artifact or a file, rows for a table.

What a reader has to act on comes first: what is broken, missing, doubtful, undecided. Then
the figures, the rules, the value, and at last where every item ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_dispatch.course import course
from prefect_dispatch.decisions import Decisions
from prefect_dispatch.inert import (
    CUT,
    MAX_ROWS,
    cell,
    code,
    columns,
    fenced,
    paragraph,
    plain,
    prose,
    refs,
    shown,
    table,
)
from prefect_dispatch.ledger import Ref, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.ledger import FieldRow, Proposal
    from prefect_dispatch.ledger import Table as Figures
    from prefect_dispatch.report import Report, ServedModel

__all__ = ["MAX_CHARACTERS", "MAX_ROWS", "cell", "markdown", "outcome_rows", "plain"]

MAX_CHARACTERS = 200_000
"""A longer report is cut, and says so; Prefect's UI has to show it."""
MAX_PROBLEMS = 100
"""Rows of a list that stands before the merged value."""
MAX_NAMES = 20
"""Names of what changed, for each kind of change."""
MAX_PAIRS = 20
"""Proposals whose lines for the decisions file are written out."""

TO_DECIDE = "to-decide.md"
"""The document with lines for the decisions file, of a run that ended with matters to decide."""

TITLES = {"complete": "Complete", "gaps": "Complete with gaps", "failed": "Failed"}
"""How a run ended, in a title."""


def markdown(report: Report) -> str:
    """Return the report as Markdown, at most `MAX_CHARACTERS` long."""
    parts = [f"# {TITLES[report.status]}", paragraph(report.message), *_problems(report)]
    if report.changes.earlier != "none":
        parts += ["## Since the last run", *_changes(report)]
    parts += ["## Numbers", _numbers(report)]
    if went := course(report):
        parts += ["## How it went", table(("", "how many", "by class"), went)]
    if any(each.served for each in report.models):
        models = [(each.asked, each.served or "not named", each.answers, _verdict(each)) for each in report.models]
        parts += ["## Which models answered", table(("asked", "named by its responses", "answers", ""), models)]
    if report.rules:
        parts += ["## How the answers were merged", paragraph(report.rules)]
    if report.value is not None:
        parts += ["## Merged value", prose(report.value) if isinstance(report.value, str) else code(report.value)]
    for figures in report.tables:
        parts += _figures(figures)
    rows = [(row.brief, row.item, row.disposition, row.by or "", row.reason) for row in report.ledger]
    parts += ["## Ledger", table(("brief", "item", "disposition", "by", "reason"), rows)]
    text = "\n\n".join(parts) + "\n"
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]}\n\n{CUT}\n"
    return text


def outcome_rows(report: Report) -> list[dict[str, Any]]:
    """Return one row for each outcome, at most `MAX_ROWS`, failures first."""
    ledger = {(row.brief, row.item): row for row in report.ledger}
    ordered = sorted(report.outcomes, key=lambda o: (o.status == "succeeded", place_of(o.brief, o.item)))
    return [
        {
            "brief": outcome.brief,
            "item": cell(outcome.item),
            "status": outcome.status,
            "disposition": row.disposition if (row := ledger.get((outcome.brief, outcome.item))) else "",
            "origin": outcome.origin or "",
            "attempts": len(outcome.attempts),
            "tokens": sum(attempt.usage.tokens for attempt in outcome.attempts),
            "answer": cell(shown(outcome.value)) if outcome.status == "succeeded" else "",
            "error": cell(outcome.failure),
        }
        for outcome in ordered[:MAX_ROWS]
    ]


def _problems(report: Report) -> Iterator[str]:
    """Yield what a reader has to act on: a heading and its list each."""
    if report.violations:
        found = [(each.law, each.where, each.message) for each in report.violations]
        yield from ("## What the audit found", table(("law", "where", "what"), found, MAX_PROBLEMS))
    if report.shortfalls:
        yield from ("## What could not be done", "\n".join(f"- {paragraph(each)}" for each in report.shortfalls))
    if report.gaps:
        whole = {Ref.of(each): each.failure.partition(": ")[2] for each in report.outcomes if each.error}
        gaps = [
            (gap.brief, gap.item, gap.status, gap.error.kind, whole.get(Ref.of(gap), gap.error.message))
            for gap in report.gaps
        ]
        yield from ("## Gaps", table(("brief", "item", "status", "kind", "why"), gaps, MAX_PROBLEMS))
    if report.flags:
        flags = [(flag.path, flag.kind, flag.text, flag.message, refs(flag.sources)) for flag in report.flags]
        yield "## Not to be taken on trust"
        yield table(("where", "what", "words", "why", "looked into"), flags, MAX_PROBLEMS)
    if decided := _decided(report.decided):
        yield from ("## Decided in this run's review", table(("what", "this", "and this"), decided))
    if report.proposals:
        yield from ("## To decide: one or two?", *_proposals(report.proposals))
    if conflicts := [row for row in report.fields if row.losers]:
        yield from ("## Conflicts", _conflicts(conflicts))


def _proposals(proposals: Sequence[Proposal]) -> Iterator[str]:
    rows = [
        (f"{p.score:.3f}", shown(p.left), shown(p.right), p.why, refs(p.left_sources), refs(p.right_sources))
        for p in proposals
    ]
    yield table(("alike", "this", "and this", "why", "this from", "that from"), rows, MAX_PROBLEMS)
    # The identity of a record is an object; what an integrator of the user's own proposes may be anything.
    pairs = [(p.left, p.right) for p in proposals if isinstance(p.left, dict) and isinstance(p.right, dict)]
    if pairs:
        yield (
            "They were left apart. Decide with `review` on, or in the decisions file that the integrator's `aliases` "
            "names: the pairs that are one stay under `same`, the others go under `different`."
        )
        yield fenced(Decisions(same=tuple(pairs[:MAX_PAIRS])).text().rstrip(), "yaml")


def _changes(report: Report) -> Iterator[str]:
    """Yield what is otherwise than after the last run: counts, then some names of each kind."""
    since: Any = report.run.get("since") or {}
    run = f" {since['flow_run']['name']} of {since['started']}" if since else ""
    yield paragraph(f"Compared with the run{run}: {report.changes}.")
    lines = [f"- {name}: {paragraph(_some(names))}" for name, names in report.changes.lists.items()]
    if lines:
        yield "\n".join(lines)


def _some(names: Sequence[Ref]) -> str:
    more = f" and {len(names) - MAX_NAMES} more in report.json" if len(names) > MAX_NAMES else ""
    return refs(names[:MAX_NAMES]) + more


def _decided(decisions: Decisions) -> list[tuple[str, ...]]:
    return [
        *(("same", shown(left), shown(right)) for left, right in decisions.same),
        *(("different", shown(left), shown(right)) for left, right in decisions.different),
        *((each.field, shown(each.record), shown(each.value)) for each in decisions.fields),
    ]


def _verdict(model: ServedModel) -> str:
    return "" if model.expected else "another model"


def _numbers(report: Report) -> str:
    usage, planned, own = report.usage, report.plan, report.integration
    rows: list[tuple[object, ...]] = [
        ("answers from the store", planned.get("stored"), usage.cached, own.cached),
        ("shared with an equal item", planned.get("shared"), usage.shared, own.shared),
        ("asked", planned.get("to_ask"), usage.asked, own.asked),
        ("requests", planned.get("to_ask"), usage.requests, own.requests),
        ("prompt tokens", planned.get("prompt_tokens"), usage.prompt_tokens, own.prompt_tokens),
        ("completion tokens", planned.get("completion_tokens"), usage.completion_tokens, own.completion_tokens),
        ("cost in USD", planned.get("cost_usd"), usage.cost_usd, own.cost_usd),
        ("seconds", planned.get("seconds_in_parallel"), report.run.get("seconds"), ""),
    ]
    if usage.estimated_usd:
        rows.insert(-1, ("of that estimated", "", usage.estimated_usd, own.estimated_usd))
    rows = [tuple("unknown" if figure is None else figure for figure in row) for row in rows]
    header = ("", "planned", "happened", "of that the integrator's own")
    asks = own.asked + own.cached + own.shared > 0
    return table(header, rows) if asks else table(header[:3], [row[:3] for row in rows])


def _conflicts(rows: Sequence[FieldRow]) -> str:
    return table(
        ("field", "kept", "from", "rule", "not kept"),
        [
            (
                row.path,
                shown(row.winner),
                refs(row.sources),
                row.rule,
                "; ".join(f"{shown(loser.value)} (from {refs(loser.sources)})" for loser in row.losers),
            )
            for row in rows
        ],
        MAX_PROBLEMS,
    )


def _figures(figures: Figures) -> Iterator[str]:
    names = columns(figures.rows)
    yield f"## {cell(figures.title)}"
    if figures.note:
        yield paragraph(figures.note)
    yield table(names, [[_figure(row.get(name)) for name in names] for row in figures.rows]) if names else "No rows."


def _figure(value: JsonValue) -> str:
    return "" if value is None else shown(value)
