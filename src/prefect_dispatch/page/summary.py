"""What a page says of a run as a whole: everything but its rows."""

from __future__ import annotations

from collections import Counter
from math import fsum
from typing import TYPE_CHECKING, Any

from prefect_dispatch._version import __version__
from prefect_dispatch.course import course
from prefect_dispatch.inert import columns
from prefect_dispatch.inert import shown as shown_value
from prefect_dispatch.page.texts import text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.ledger import FieldRow, Proposal, Ref, Table
    from prefect_dispatch.models import Outcome
    from prefect_dispatch.page.texts import Texts
    from prefect_dispatch.report import Report

MOST = 2_000
"""Entries of one list: conflicts, flags, proposals, rows of a table, names of what changed."""
VALUE = 1_000_000
"""Characters of the merged value."""
LONG = 2_000
"""Characters of any other text."""

SHORT = 500
"""Characters of a value in a conflict."""
FEW = 20
"""Losers of a conflict, and sources of a value."""

_EXACT = 2**53


def summary(report: Report, texts: Texts) -> dict[str, Any]:
    """Return what a page says of a run as a whole."""
    usage, own = report.usage.model_dump(mode="json"), report.integration.model_dump(mode="json")
    conflicts = [row for row in report.fields if row.losers]
    return {
        "version": __version__,
        "status": report.status,
        "message": report.message,
        "run": report.run,
        "usage": usage,
        "integration": own,
        "plan": report.plan,
        "course": [each._asdict() for each in course(report)],
        "spending": list(_spending([*report.outcomes, *report.asked])),
        "failures": dict(Counter(gap.error.kind for gap in report.gaps).most_common()),
        "dispositions": dict(Counter(row.disposition for row in report.ledger).most_common()),
        "rules": report.rules,
        "shortfalls": report.shortfalls,
        "violations": [[each.law, each.where, each.message] for each in report.violations[:MOST]],
        "flags": list(_flags(texts, report)),
        "proposals": [_proposal(texts, each) for each in report.proposals[:MOST]],
        "conflicts": [_conflict(texts, row) for row in conflicts[:MOST]],
        "decided": report.decided.model_dump(mode="json"),
        "tables": [_table(texts, each) for each in report.tables],
        "changes": _changes(report),
        "value": None if report.value is None else texts.beginning(report.value, VALUE),
        "prose": isinstance(report.value, str),
        "counts": {
            "gaps": len(report.gaps),
            "violations": len(report.violations),
            "flags": len(report.flags),
            "proposals": len(report.proposals),
            "conflicts": len(conflicts),
            "fields": len(report.fields),
        },
    }


def _spending(outcomes: Iterable[Outcome]) -> Iterator[list[Any]]:
    """Yield what this run spent for each brief and model: requests, tokens in and out, US dollars or None."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.spent:
            groups.setdefault((outcome.brief, outcome.model), []).append(outcome)
    for (brief, model), group in sorted(groups.items()):
        spent = [attempt.usage for outcome in group for attempt in outcome.spent]
        costs = [usage.cost_usd for usage in spent]
        yield [
            brief,
            model,
            len(group),
            sum(usage.requests for usage in spent),
            sum(usage.prompt_tokens for usage in spent),
            sum(usage.completion_tokens for usage in spent),
            None if None in costs else round(fsum(filter(None, costs)), 9),
        ]


def _flags(texts: Texts, report: Report) -> Iterator[dict[str, Any]]:
    for flag in report.flags[:MOST]:
        yield {
            "path": flag.path,
            "kind": flag.kind,
            "text": texts.preview(flag.text, LONG),
            "message": flag.message,
            "sources": _sources(flag.sources),
        }


def _proposal(texts: Texts, proposal: Proposal) -> dict[str, Any]:
    return {
        "left": texts.preview(shown_value(proposal.left), LONG),
        "right": texts.preview(shown_value(proposal.right), LONG),
        "score": proposal.score,
        "why": proposal.why,
        "leftSources": _sources(proposal.left_sources),
        "rightSources": _sources(proposal.right_sources),
    }


def _conflict(texts: Texts, row: FieldRow) -> dict[str, Any]:
    return {
        "path": row.path,
        "rule": row.rule,
        "winner": texts.preview(shown_value(row.winner), SHORT),
        "sources": _sources(row.sources),
        "losers": [
            {"value": texts.preview(shown_value(each.value), SHORT), "sources": _sources(each.sources)}
            for each in row.losers[:FEW]
        ],
        "of": len(row.losers),
    }


def _table(texts: Texts, table: Table) -> dict[str, Any]:
    names = columns(table.rows)
    return {
        "name": table.name,
        "title": table.title,
        "note": table.note,
        "columns": names,
        "rows": [[_figure(texts, row.get(name)) for name in names] for row in table.rows[:MOST]],
        "of": len(table.rows),
    }


def _figure(texts: Texts, value: JsonValue) -> JsonValue:
    """Return a value as a table shows and sorts it: a number as one, if a browser can hold it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < _EXACT):
        return value
    return str(texts.preview(text_of(value), LONG)[0])


def _changes(report: Report) -> dict[str, Any]:
    return {
        "earlier": report.changes.earlier,
        "said": str(report.changes),
        "counts": {name: len(refs) for name, refs in report.changes.lists.items()},
        "names": {name: _named(refs) for name, refs in report.changes.lists.items()},
    }


def _named(refs: Sequence[Ref]) -> list[list[str]]:
    return [[ref.brief, ref.item] for ref in refs[:MOST]]


def _sources(refs: Sequence[Ref]) -> dict[str, Any]:
    return {"names": _named(refs[:FEW]), "of": len(refs)}
