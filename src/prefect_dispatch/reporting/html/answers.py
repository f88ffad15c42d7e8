"""Answers and merged values of a report's page as tables: a column for each field instead of JSON."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from prefect_dispatch.models.output_schema import schema_of
from prefect_dispatch.reporting.html.document import fit_length
from prefect_dispatch.reporting.table_files import spread_fields
from prefect_dispatch.security.escaping import value_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.reporting.html.document import TextPreviews

MAX_COLUMNS = 40
"""Most columns of the answers to one brief, or of a table of the merged value: those that most answers have."""
MAX_DEPTH = 3
"""Most levels of an answer that become columns of their own; what is deeper is text."""
MAX_ANSWER_CELLS = 8_000_000
"""Most characters of the cells of all answers together."""
MAX_TABLE_ROWS = 2_000
"""Most rows of one table of the merged value."""
MAX_TABLE_CELL = 2_000
"""Most characters of a cell of a table of the merged value."""
MAX_HEADLINES = 5
"""Most winners that are shown in full."""
_LEADING = ("rank", "brief", "item", "value", "score")
"""Names of the fields that come first in a table of the merged value."""
_MAX_EXACT_NUMBER = 2**53
"""The integer up to which JavaScript's numbers represent every integer."""

Path = tuple[str, ...]
"""The names of the fields that lead to a value."""


def flatten_fields(value: Mapping[str, JsonValue], prefix: Path = ()) -> Iterator[tuple[Path, JsonValue]]:
    """Yield the fields of an object, those of the objects in it included, each with its path.

    Example:
        >>> list(flatten_fields({"name": "MIT", "patents": {"granted": True}, "notes": {}}))
        [(('name',), 'MIT'), (('patents', 'granted'), True), (('notes',), {})]
    """
    for name, part in value.items():
        path = (*prefix, name)
        if isinstance(part, dict) and part and len(path) < MAX_DEPTH:
            yield from flatten_fields(part, path)
        else:
            yield path, part


def format_plain(value: JsonValue) -> str:
    """Return a value as text for a cell, without the syntax of JSON as far as that is readable.

    Example:
        >>> format_plain(["keep notices", "state changes"]), format_plain([{"name": "MIT", "year": 1988}])
        ('keep notices; state changes', 'name: MIT, year: 1988')
    """
    if isinstance(value, list):
        return "; ".join(map(format_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}: {format_plain(part)}" for name, part in value.items())
    return value_text(value)


def table_cell(value: JsonValue, texts: TextPreviews, length: int = MAX_TABLE_CELL) -> JsonValue:
    """Return a value for display and sorting: booleans, and numbers that JavaScript represents exactly, stay as such.

    Args:
        value: The value.
        texts: Truncates and redacts texts.
        length: Most characters of a text; a longer one ends in `…`.
    """
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < _MAX_EXACT_NUMBER):
        return value
    text = format_plain(value)
    shown = str(texts.preview(text, length)[0])
    return shown if len(text) <= length else f"{shown}…"


def build_answer_cells(
    outcomes: Sequence[Outcome], briefs: Mapping[str, Brief], texts: TextPreviews
) -> dict[str, Any] | None:
    """Return the answers that are objects as rows with a column for each field; None if there are none.

    Args:
        outcomes: The outcomes, in the order of the page's rows.
        briefs: The briefs of the run by name; the fields of an output schema come first, in its order.
        texts: Truncates and redacts texts.

    Returns:
        `columns`: the names of the columns by brief. `more`: by brief, the number of columns that were left out.
        `length`: most characters of a cell. `rows`: for each outcome its cells, or None if its answer is no object.
    """
    fields = [_fields_of(outcome) for outcome in outcomes]
    if not any(fields):
        return None
    counts: dict[str, Counter[Path]] = {}
    for outcome, own in zip(outcomes, fields, strict=True):
        counts.setdefault(outcome.brief, Counter()).update(own.keys())
    paths = {name: _choose_paths(count, _schema_names(briefs.get(name))) for name, count in counts.items() if count}
    length = fit_length(
        (len(value) if isinstance(value, str) else 20 for own in fields for value in own.values()), MAX_ANSWER_CELLS
    )

    def cells(outcome: Outcome, own: dict[Path, JsonValue]) -> list[JsonValue] | None:
        return [table_cell(own.get(path), texts, length) for path in paths[outcome.brief]] if own else None

    return {
        "columns": {name: [*map(_column_name, own)] for name, own in paths.items()},
        "more": {name: len(counts[name]) - len(own) for name, own in paths.items() if len(counts[name]) > len(own)},
        "length": length,
        "rows": [cells(*each) for each in zip(outcomes, fields, strict=True)],
    }


def _fields_of(outcome: Outcome) -> dict[Path, JsonValue]:
    """Return the fields of an answer by path; empty if it is no object."""
    if outcome.status != "succeeded" or not isinstance(outcome.value, dict):
        return {}
    return dict(flatten_fields(outcome.value))


def _schema_names(brief: Brief | None) -> list[str]:
    """Return the names of the fields in a brief's output schema, in its order."""
    schema = schema_of(brief.output) if brief else None
    properties = (schema or {}).get("properties")
    return [*cast("dict[str, object]", properties)] if isinstance(properties, dict) else []


def _choose_paths(counts: Counter[Path], names: Sequence[str]) -> list[Path]:
    """Return the paths that become columns: those that most answers have, the ones of the schema first.

    Args:
        counts: How many answers have a value at each path.
        names: The names of the schema's fields.
    """
    chosen = {path for path, _ in counts.most_common(MAX_COLUMNS)}
    rank = {name: number for number, name in enumerate(names)}
    return sorted((path for path in counts if path in chosen), key=lambda path: rank.get(path[0], len(rank)))


def _column_name(path: Path) -> str:
    return ".".join(path)[:200]


def build_value_view(value: JsonValue, briefs: Iterable[Brief], texts: TextPreviews) -> dict[str, Any]:
    """Return a merged value for reading: its lists as tables, its other fields as texts, and the winners of a ranking.

    Args:
        value: The merged value.
        briefs: The briefs of the run; the fields of their output schemas keep their order.
        texts: Truncates and redacts texts.

    Returns:
        `tables`: name, columns, rows, and the number of all rows, of each list of objects; `gaps` is left out, as the
        page lists them elsewhere. `facts`: name and text of each other field that isn't empty. `winners`: for each
        entry of first rank its brief, item, score and text.
    """
    parts = value if isinstance(value, dict) else {"value": value} if isinstance(value, list) else {}
    order = [name for brief in briefs for name in _schema_names(brief)]
    tables = [_value_table(name, part, order, texts) for name, part in parts.items() if _is_table(name, part)]
    facts = [
        [name, texts.preview(format_plain(part), MAX_TABLE_CELL)]
        for name, part in islice(parts.items(), MAX_COLUMNS)
        if name != "gaps" and not _is_table(name, part) and part not in (None, [], {}, "")
    ]
    return {"tables": tables, "facts": facts, "winners": [*islice(_winners(parts, texts), MAX_HEADLINES)]}


def _is_table(name: str, part: JsonValue) -> bool:
    return name != "gaps" and isinstance(part, list) and bool(part) and all(isinstance(row, dict) for row in part)


def _value_table(name: str, part: JsonValue, order: Sequence[str], texts: TextPreviews) -> dict[str, Any]:
    """Return a list of objects as a table; what names an entry comes first, then fields in an order of names."""
    entries = cast("list[dict[str, JsonValue]]", part)
    shown = entries[:MAX_TABLE_ROWS]
    taken = {name for entry in shown for name in entry} - {"value"}
    # The fields of an answer, which an entry has as `value`, are columns as in the table files.
    rows = [dict(flatten_fields(spread_fields(entry, "value", taken))) for entry in shown]
    rank = {name: number for number, name in enumerate(dict.fromkeys((*_LEADING, *order)))}
    names = sorted(dict.fromkeys(path for row in rows for path in row), key=lambda path: rank.get(path[0], len(rank)))
    paths = names[:MAX_COLUMNS]
    return {
        "name": name,
        "columns": [*map(_column_name, paths)],
        "more": len(names) - len(paths),
        "rows": [[table_cell(row.get(path), texts) for path in paths] for row in rows],
        "of": len(entries),
    }


def _winners(parts: Mapping[str, JsonValue], texts: TextPreviews) -> Iterator[dict[str, Any]]:
    """Yield the entries of first rank in a ranking, each with its answer as text."""
    ranking = parts.get("ranking")
    for entry in ranking if isinstance(ranking, list) else ():
        if isinstance(entry, dict) and entry.get("rank") == 1 and "value" in entry:
            answer = entry["value"]
            text = answer if isinstance(answer, str) else json.dumps(answer, indent=2, ensure_ascii=False)
            yield {
                "brief": str(entry.get("brief", "")),
                "item": str(entry.get("item", "")),
                "score": table_cell(entry.get("score"), texts),
                "text": texts.preview(text, MAX_TABLE_CELL),
            }
