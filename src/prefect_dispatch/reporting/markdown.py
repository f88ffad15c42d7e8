"""The report as Markdown, for an artifact or a file; and its outcomes as rows of a table artifact.

The result comes first: a finding, the winner, or the merged lists as tables. What a reader must act on follows:
violations, shortfalls, gaps, flags, open decisions. Then come the integrator's tables, the numbers and the ledger. The
rules of the merge are last, and folded.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from prefect_dispatch.models.bill import rows_paid
from prefect_dispatch.models.decisions import Decisions
from prefect_dispatch.models.ledger import Ref, sort_key
from prefect_dispatch.reporting.costs import bill_rows, describe_paid_before
from prefect_dispatch.reporting.progress import run_issues
from prefect_dispatch.reporting.table_files import answer_rows, spread_fields, value_tables
from prefect_dispatch.security.escaping import (
    MAX_CELL,
    MAX_ROWS,
    MAX_VALUE,
    TRUNCATION_NOTE,
    column_names,
    count_noun,
    escape_cell,
    escape_paragraph,
    escape_prose,
    fence_text,
    join_names,
    json_block,
    markdown_table,
    strip_control_chars,
    value_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.ledger import FieldRow, Proposal, Requirement
    from prefect_dispatch.models.ledger import Table as Figures
    from prefect_dispatch.models.report import Report, ServedModel
    from prefect_dispatch.reporting.tables import Row

__all__ = ["MAX_CHARACTERS", "MAX_ROWS", "escape_cell", "markdown", "outcome_rows", "strip_control_chars"]

MAX_CHARACTERS = 200_000
"""Most characters of a report, so that Prefect's UI can show it; a longer one is truncated, with a note."""
MAX_PROBLEMS = 100
"""Most rows of a table before the merged value."""
MAX_COLUMNS = 20
"""Most columns of a table of answers."""
MAX_WINNERS = 5
"""Most answers in the first place that are shown in full."""
MAX_NAMES = 20
"""Most outcomes that are named for each kind of change."""
MAX_ITEMS = 3
"""Most places of a violated requirement, and most items of a place, that are named."""
MAX_PAIRS = 20
"""Most proposals with lines for the decisions file."""

MATRIX = "test-matrix"
"""Name of the table with the result of a test matrix."""

TITLES = {"complete": "Complete", "gaps": "Complete with gaps", "failed": "Failed"}
"""Titles by the status of a report."""


def title_of(report: Report) -> str:
    """Return the title of a report: whether the run is complete, or was cancelled."""
    return "Cancelled" if report.run.get("cancelled") else TITLES[report.status]


def markdown(report: Report) -> str:
    """Return the report as Markdown, at most `MAX_CHARACTERS` long."""
    parts = [f"# {title_of(report)}", escape_paragraph(report.message)]
    is_matrix = any(figures.name == MATRIX for figures in report.tables)
    if is_matrix:  # its tables say the same as its value, and are made for reading
        parts += chain.from_iterable(map(_table_section, report.tables))
    elif report.value is not None:
        parts += ["## Result", *_value_section(report.value)]
    elif answers := answer_rows(report):
        parts += ["## Answers, not merged", *(_entry_texts if _are_long_texts(answers) else answer_table)(answers)]
    parts += _problem_sections(report)
    if report.changes.earlier != "none":
        parts += ["## Since the last run", *_change_section(report)]
    if not is_matrix:
        parts += chain.from_iterable(map(_table_section, report.tables))
    parts += _requirement_section(report.requirements)
    parts += ["## Numbers", _numbers_table(report), *_bill_tables(report)]
    if issues := run_issues(report):
        parts += ["## How it went", markdown_table(("", "how many", "by class"), issues)]
    parts += _model_section(report.models)
    rows = [(row.brief, row.item, row.disposition, row.by or "", row.reason) for row in report.ledger]
    parts += ["## Ledger", markdown_table(("brief", "item", "disposition", "by", "reason"), rows)]
    text, rules = "\n\n".join(parts) + "\n", ""
    if report.rules:  # Prefect's UI folds it, as most renderers do; the others show it in full
        rules = f"{_RULES_START}\n\n{escape_paragraph(report.rules)}\n\n</details>\n"
    if len(text) > MAX_CHARACTERS - len(rules):
        text = f"{text[: MAX_CHARACTERS - len(rules)]}\n\n{TRUNCATION_NOTE}\n"
    return f"{text}\n{rules}" if rules else text


_RULES_START = "<details>\n<summary>How the answers were merged</summary>"


def _value_section(value: JsonValue) -> Iterator[str]:
    """Yield the merged value: a text as it is, the winner in full, lists of objects as tables, and the rest as JSON."""
    if isinstance(value, str):
        yield escape_prose(value)
        return
    tables, left = value_tables(value), MAX_VALUE
    if isinstance(value, dict) and isinstance(finding := value.get("value"), dict):  # of a synthesis with a schema
        value = {name: part for name, part in value.items() if name != "value"}
        yield json_block(finding)
    winners = tables.get("ranking", [])
    for row in (row for row in winners[:MAX_WINNERS] if row.get("rank") == 1):
        yield f"### First: {escape_cell(_entry_name(row))}"
        yield from _winner(row)
    for name, rows in tables.items():
        if len(tables) > 1:
            yield f"### {escape_cell(name.replace('_', ' ').capitalize())}"
        for part in _entry_texts(rows) if _are_long_texts(rows) else answer_table(rows, left):
            left -= len(part)
            yield part
    rest: JsonValue = None if tables else value
    if isinstance(value, dict):  # the gaps have a section of their own
        rest = {name: part for name, part in value.items() if name not in tables and name != "gaps" and part != []}
    if rest or not (tables or isinstance(value, dict)):
        yield json_block(rest)
    elif not tables:
        yield "No rows."


def answer_table(rows: Sequence[Row], most: int = MAX_VALUE) -> Iterator[str]:
    """Yield rows as a Markdown table of at most `MAX_COLUMNS` columns, and a sentence on what was left out.

    A column `brief` is left out where all rows have the same one.

    Args:
        rows: The rows.
        most: Characters after which no further row begins.
    """
    every = column_names(rows)
    if len({value_text(row.get("brief")) for row in rows}) == 1:
        every = [name for name in every if name != "brief"] or every
    names = every[:MAX_COLUMNS]
    shown: list[list[str]] = []
    is_cut = False
    for row in rows[:MAX_ROWS]:
        cells = [_text_or_empty(row.get(name)) for name in names]
        most -= sum(min(len(cell), MAX_CELL) for cell in cells)
        if most < 0 and shown:
            break
        is_cut = is_cut or any(len(cell) > MAX_CELL for cell in cells)
        shown.append(cells)
    yield markdown_table(names, shown)
    missing = [count_noun(len(rows) - len(shown), "more row")] if len(shown) < len(rows) else []
    if more := every[MAX_COLUMNS:]:
        missing.append(f"{count_noun(len(more), 'more column')} ({escape_cell(join_names(more, MAX_NAMES))})")
    if is_cut:
        missing.append(f"what is beyond {MAX_CELL} characters in a cell")
    if missing:
        yield f"Not shown: {', '.join(missing)}; `report.json` has everything."


def _entry_name(row: Row) -> str:
    """Return the name of an entry of a merged list: its brief and item, as far as it has them."""
    return "/".join(value_text(row[name]) for name in ("brief", "item") if name in row)


def _winner(row: Row) -> Iterator[str]:
    """Yield the answer of a winner in full."""
    if isinstance(text := row.get("value"), str):
        yield escape_prose(text)
    else:
        yield markdown_table(("", ""), [(name, _text_or_empty(part)) for name, part in row.items()])


def _are_long_texts(rows: Sequence[Row]) -> bool:
    """Return whether the rows are answers that are texts, some too long for a cell."""
    return all(row.keys() <= {"brief", "item", "value"} and isinstance(row.get("value"), str) for row in rows) and any(
        len(str(row["value"])) > MAX_CELL for row in rows
    )


def _entry_texts(rows: Sequence[Row]) -> Iterator[str]:
    """Yield answers that are texts, each under the name of its brief and item, up to `MAX_VALUE` characters."""
    left = MAX_VALUE
    for number, row in enumerate(rows):
        text = escape_prose(str(row["value"]))
        left -= len(text)
        if left < 0 and number:
            yield f"Not shown: {count_noun(len(rows) - number, 'more answer')}; `report.json` has everything."
            return
        yield f"**{escape_cell(_entry_name(row))}**"
        yield text


def outcome_rows(report: Report) -> list[dict[str, Any]]:
    """Return one row for each outcome, at most `MAX_ROWS`, failures first, with a column for each field of an answer.

    Other answers are in the column `answer`; so are, as JSON, the fields beyond the first `MAX_COLUMNS`.
    """
    ledger = {(row.brief, row.item): row for row in report.ledger}
    ordered = sorted(report.outcomes, key=lambda o: (o.status == "succeeded", sort_key(o.brief, o.item)))[:MAX_ROWS]
    answers: list[JsonValue] = [outcome.value if outcome.status == "succeeded" else None for outcome in ordered]
    names = column_names([answer for answer in answers if isinstance(answer, dict)])[:MAX_COLUMNS]
    columns: list[list[str]] = [
        [escape_cell(_text_or_empty(_field_of(each, name))) for each in answers] for name in names
    ]
    others = [escape_cell(_text_or_empty(_without_fields(each, names))) for each in answers]
    rows: list[dict[str, Any]] = []
    for at, outcome in enumerate(ordered):
        row = ledger.get((outcome.brief, outcome.item))
        before: dict[str, Any] = {
            "brief": outcome.brief,
            "item": escape_cell(outcome.item),
            "status": outcome.status,
            "disposition": row.disposition if row else "",
        }
        after: dict[str, Any] = {
            "origin": outcome.origin or "",
            "attempts": len(outcome.attempts),
            "tokens": sum(attempt.usage.tokens for attempt in outcome.attempts),
            "error": escape_cell(outcome.failure),
        }
        rest = {} if names and not any(others) else {"answer": others[at]}
        taken = before.keys() | after.keys() | rest.keys()
        # Each row has all columns: Prefect's UI takes them from the first one.
        fields: JsonValue = {name: column[at] for name, column in zip(names, columns, strict=True)}
        rows.append(before | spread_fields({"answer": fields}, "answer", taken) | rest | after)
    return rows


def _field_of(answer: JsonValue, name: str) -> JsonValue:
    return answer.get(name) if isinstance(answer, dict) else None


def _without_fields(answer: JsonValue, names: Sequence[str]) -> JsonValue:
    """Return an answer without some of its fields; None if nothing is left."""
    if not isinstance(answer, dict):
        return answer
    return {name: part for name, part in answer.items() if name not in names} or None


def _problem_sections(report: Report) -> Iterator[str]:
    """Yield the sections that a reader must act on, each as a heading and its content."""
    if report.violations:
        found = [(each.law, each.where, each.message) for each in report.violations]
        yield from ("## What the audit found", markdown_table(("law", "where", "what"), found, MAX_PROBLEMS))
    if report.shortfalls:
        yield from ("## What could not be done", "\n".join(f"- {escape_paragraph(each)}" for each in report.shortfalls))
    if report.gaps:
        # The failure of an outcome also names its log; a report that was read from a file has no outcomes.
        failures = {Ref.of(each): each.failure.partition(": ")[2] for each in report.outcomes if each.error}
        gaps = [
            (gap.brief, gap.item, gap.status, gap.error.kind, failures.get(Ref.of(gap), gap.error.message))
            for gap in report.gaps
        ]
        yield from ("## Gaps", markdown_table(("brief", "item", "status", "kind", "why"), gaps, MAX_PROBLEMS))
    if report.flags:
        flags = [(flag.path, flag.kind, flag.text, flag.message, join_names(flag.sources)) for flag in report.flags]
        yield "## Not to be taken on trust"
        yield markdown_table(("where", "what", "words", "why", "looked into"), flags, MAX_PROBLEMS)
    if decided := _decision_rows(report.decided):
        yield from ("## Decided in this run's review", markdown_table(("what", "this", "and this"), decided))
    if report.proposals:
        yield from ("## To decide: one or two?", *_proposal_section(report.proposals))
    if conflicts := [row for row in report.fields if row.losers]:
        yield from ("## Conflicts", _conflicts_table(conflicts))


def _proposal_section(proposals: Sequence[Proposal]) -> Iterator[str]:
    """Yield the table of proposals, and lines for the decisions file with the first pairs."""
    rows = [
        (
            f"{p.score:.3f}",
            value_text(p.left),
            value_text(p.right),
            p.why,
            join_names(p.left_sources),
            join_names(p.right_sources),
        )
        for p in proposals
    ]
    yield markdown_table(("alike", "this", "and this", "why", "this from", "that from"), rows, MAX_PROBLEMS)
    # The identity of a record is an object; what a user's integrator proposes may be any value.
    pairs = [(p.left, p.right) for p in proposals if isinstance(p.left, dict) and isinstance(p.right, dict)]
    if pairs:
        yield (
            "They were left apart. Decide with `review` on, or in the decisions file that the integrator's `aliases` "
            "names: the pairs that are one stay under `same`, the others go under `different`."
        )
        yield fence_text(Decisions(same=tuple(pairs[:MAX_PAIRS])).text().rstrip(), "yaml")


def _change_section(report: Report) -> Iterator[str]:
    """Yield what changed since the last run: counts, then some names for each kind of change."""
    since: Any = report.run.get("since") or {}
    run = f" {since['flow_run']['name']} of {since['started']}" if since else ""
    yield escape_paragraph(f"Compared with the run{run}: {report.changes}.")
    lines = [f"- {name}: {escape_paragraph(_limit_refs(names))}" for name, names in report.changes.lists.items()]
    if lines:
        yield "\n".join(lines)


def _limit_refs(names: Sequence[Ref]) -> str:
    more = f" and {len(names) - MAX_NAMES} more in report.json" if len(names) > MAX_NAMES else ""
    return join_names(names[:MAX_NAMES]) + more


def _decision_rows(decisions: Decisions) -> list[tuple[str, ...]]:
    """Return the rows of the table of decisions."""
    return [
        *(("same", value_text(left), value_text(right)) for left, right in decisions.same),
        *(("different", value_text(left), value_text(right)) for left, right in decisions.different),
        *((each.field, value_text(each.record), value_text(each.value)) for each in decisions.fields),
    ]


def _model_section(models: Sequence[ServedModel]) -> Iterator[str]:
    """Yield the table of the models that answered, if a response named one."""
    if any(each.served for each in models):
        yield "## Which models answered"
        rows = [(each.asked, each.served or "not named", each.answers, _model_remark(each)) for each in models]
        yield markdown_table(("asked", "named by its responses", "answers", ""), rows)


def _model_remark(model: ServedModel) -> str:
    return "" if model.expected else "another model"


def _numbers_table(report: Report) -> str:
    """Return the table of planned and actual usage, with a column for the integrator if it asked questions."""
    usage, planned, own = report.usage, report.plan, report.integration
    rows: list[tuple[object, ...]] = [
        ("answers from the store", planned.get("stored"), usage.cached, own.cached),
        ("shared with an equal item", planned.get("shared"), usage.shared, own.shared),
        ("asked", planned.get("to_ask"), usage.asked, own.asked),
        ("requests", planned.get("to_ask"), usage.requests, own.requests),
        ("prompt tokens", planned.get("prompt_tokens"), usage.prompt_tokens, own.prompt_tokens),
        *_cached_tokens_row(report),
        ("completion tokens", planned.get("completion_tokens"), usage.completion_tokens, own.completion_tokens),
        ("cost in USD", planned.get("cost_usd"), usage.cost_usd, own.cost_usd),
        ("seconds", planned.get("seconds_in_parallel"), report.run.get("seconds"), ""),
    ]
    if usage.estimated_usd:
        rows.insert(-1, ("of that estimated", "", usage.estimated_usd, own.estimated_usd))
    rows = [tuple("unknown" if figure is None else figure for figure in row) for row in rows]
    header = ("", "planned", "happened", "of that the integrator's own")
    asks = own.asked + own.cached + own.shared > 0
    return markdown_table(header, rows) if asks else markdown_table(header[:3], [row[:3] for row in rows])


def _cached_tokens_row(report: Report) -> Iterator[tuple[object, ...]]:
    """Yield the row of the tokens that providers found in their caches, if there were any."""
    if report.usage.cached_tokens:
        yield ("of that from the provider's cache", "", report.usage.cached_tokens, report.integration.cached_tokens)


def _bill_tables(report: Report) -> Iterator[str]:
    """Yield the bill of a run by each column that has several values, and what was paid for before, if anything was."""
    if rows := bill_rows(rows_paid(report.bill, "run")):
        header = ("by", "", "requests", "prompt tokens", "of that cached", "completion tokens", "cost in USD")
        yield "### What cost how much"
        yield markdown_table(header, rows)
    if before := describe_paid_before(report.bill):
        yield escape_paragraph(f"Paid before this run, for the answers from the store: {before}.")


def _conflicts_table(rows: Sequence[FieldRow]) -> str:
    return markdown_table(
        ("field", "kept", "from", "rule", "not kept"),
        [
            (
                row.path,
                value_text(row.winner),
                join_names(row.sources),
                row.rule,
                "; ".join(f"{value_text(loser.value)} (from {join_names(loser.sources)})" for loser in row.losers),
            )
            for row in rows
        ],
        MAX_PROBLEMS,
    )


def _requirement_section(requirements: Sequence[Requirement]) -> Iterator[str]:
    """Yield the table of requirements, each with the places that violate it."""
    if not requirements:
        return
    yield "## What the briefs require"
    yield markdown_table(
        ("brief", "what", "requirement", "verdict", "of", "where", "why"),
        [
            (
                row.brief,
                row.kind,
                row.text,
                row.verdict.replace("_", " "),
                row.checked or "",
                describe_places(row),
                "; ".join(filter(None, (*(each.message for each in row.places[:1]), row.note))),
            )
            for row in requirements
        ],
        MAX_PROBLEMS,
    )


def describe_places(row: Requirement) -> str:
    """Return where a requirement is violated, each place with the items that it comes from."""
    places = [
        f"{each.path or '/'} ({join_names((ref.item for ref in each.sources), MAX_ITEMS)})"
        if each.sources
        else each.path or "/"
        for each in row.places[:MAX_ITEMS]
    ]
    more = row.violations - len(places)
    return ", ".join(places) + (f" and {more} more" if more > 0 else "")


def _table_section(figures: Figures) -> Iterator[str]:
    names = column_names(figures.rows)
    yield f"## {escape_cell(figures.title)}"
    if figures.note:
        yield escape_paragraph(figures.note)
    yield (
        markdown_table(names, [[_text_or_empty(row.get(name)) for name in names] for row in figures.rows])
        if names
        else "No rows."
    )


def _text_or_empty(value: JsonValue) -> str:
    return "" if value is None else value_text(value)
