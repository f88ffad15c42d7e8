"""Differences of two merged reports as text: entries and fields of the value, dispositions, and what is in doubt."""

from __future__ import annotations

import difflib
from collections import Counter
from typing import TYPE_CHECKING

from prefect_dispatch.models.ledger import Flag, Proposal, Ref
from prefect_dispatch.security.escaping import count_noun, shorten, strip_control_chars
from prefect_dispatch.serialization.json_text import canonical_json
from prefect_dispatch.serialization.json_values import get_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.report import Report

MAX_LINES = 40
"""Most lines of one kind; further ones are counted."""
MAX_VALUE_LENGTH = 200
"""Most characters of a value in a line."""


def describe_difference(before: Report, after: Report, identity: Sequence[str] = ()) -> str:
    """Return how a merge differs from an earlier one of the same outcomes, as plain text.

    Lines begin with `+` for what only the later one has, `-` for what only the earlier one has, and `~` for what has
    changed. Entries of a list are compared with each other if they are about the same brief and item, or have the
    same identity, and otherwise by their whole content, so that their order makes no difference.

    Args:
        before: The earlier report.
        after: The later report.
        identity: The dotted paths of the fields that identify a record.

    Example:
        >>> from prefect_dispatch.models.report import Report
        >>> was, now = ({"records": [{"name": "MIT", "year": year}]} for year in (1987, 1988))
        >>> first, second = (Report(status="complete", message="", value=value) for value in (was, now))
        >>> print(describe_difference(first, second, ["name"]))
        The merged value (1 difference):
          ~ records, name "MIT": year 1987 -> 1988
    """
    sections = {
        "The merged value": _value_lines(before.value, after.value, identity),
        "The ledger": _ledger_lines(before, after),
        "Flags": _list_lines(before.flags, after.flags),
        "Proposals": _list_lines(before.proposals, after.proposals),
        "Shortfalls": _list_lines(before.shortfalls, after.shortfalls),
        "Violations": _list_lines(before.violations, after.violations),
        # A report of an older version doesn't have any.
        "Requirements": _list_lines(before.requirements, after.requirements) if before.requirements else (),
    }
    lines: list[str] = []
    for title, found in sections.items():
        changes = list(found)
        if changes:
            lines.append(f"{title} ({count_noun(len(changes), 'difference')}):")
            lines += [f"  {strip_control_chars(line)}" for line in changes[:MAX_LINES]]
            if len(changes) > MAX_LINES:
                lines.append(f"  … and {len(changes) - MAX_LINES} more.")
    return "\n".join(lines) or "Nothing differs."


def _value_lines(before: JsonValue, after: JsonValue, identity: Sequence[str]) -> Iterator[str]:
    """Yield the differences of two merged values."""
    if isinstance(before, str) and isinstance(after, str):
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
        yield from (f"{line[0]} {line[1:]}" for line in lines if not line.startswith(("---", "+++", "@@")))
        return
    if not (isinstance(before, dict) and isinstance(after, dict)):
        if before != after:
            yield f"~ {_show(before)} -> {_show(after)}"
        return
    for name in dict.fromkeys((*before, *after)):
        was, now = before.get(name), after.get(name)
        if isinstance(was, list) and isinstance(now, list):
            yield from _entry_lines(name, was, now, identity)
        elif was != now:
            yield _change_line(name, was, now)


def _entry_lines(
    name: str, before: Sequence[JsonValue], after: Sequence[JsonValue], identity: Sequence[str]
) -> Iterator[str]:
    """Yield the differences of two lists of entries."""
    was, now = (_group_entries(entries, identity) for entries in (before, after))
    for key in dict.fromkeys((*was, *now)):
        old, new = was.get(key, []), now.get(key, [])
        if len(old) == len(new) == 1 and isinstance(old[0], dict) and isinstance(new[0], dict):
            first, second = old[0], new[0]
            changes = [
                _change_line(field, first.get(field), second.get(field))[2:]
                for field in dict.fromkeys((*first, *second))
                if first.get(field) != second.get(field)
            ]
            if changes:
                yield f"~ {name}, {key}: {'; '.join(changes)}"
            continue
        # Several of one identity, or none: those of equal content are the same.
        counts = Counter(map(canonical_json, new))
        counts.subtract(Counter(map(canonical_json, old)))
        for text, count in counts.items():
            yield from [f"{'+' if count > 0 else '-'} {name}: {shorten(text, MAX_VALUE_LENGTH)}"] * abs(count)


def _group_entries(entries: Iterable[JsonValue], identity: Sequence[str]) -> dict[str, list[JsonValue]]:
    """Return the entries of a list by the text that names each: brief and item, identity, or the whole content."""
    groups: dict[str, list[JsonValue]] = {}
    for entry in entries:
        groups.setdefault(_name_entry(entry, identity), []).append(entry)
    return groups


def _name_entry(entry: JsonValue, identity: Sequence[str]) -> str:
    if isinstance(entry, dict):
        if isinstance(entry.get("brief"), str) and isinstance(entry.get("item"), str):
            return f"{entry['brief']}/{entry['item']}"
        if identity:
            return ", ".join(f"{path} {_show(get_at(entry, path.split('.')))}" for path in identity)
    return canonical_json(entry)


def _ledger_lines(before: Report, after: Report) -> Iterator[str]:
    """Yield the outcomes whose disposition has changed, or that were merged with another outcome than before."""
    was, now = ({Ref.of(row): row for row in report.ledger} for report in (before, after))
    for ref in dict.fromkeys((*was, *now)):
        old, new = (
            f"{row.disposition}{f' {row.by}' if row.by else ''}" if row else "not there"
            for row in (was.get(ref), now.get(ref))
        )
        if old != new:
            yield f"~ {ref}: {old} -> {new}"


def _list_lines(before: Iterable[object], after: Iterable[object]) -> Iterator[str]:
    """Yield what only one of two lists has."""
    was, now = (dict.fromkeys(map(_describe, entries)) for entries in (before, after))
    yield from (f"- {text}" for text in was if text not in now)
    yield from (f"+ {text}" for text in now if text not in was)


def _describe(entry: object) -> str:
    """Return a flag, proposal, shortfall, violation or requirement in a line."""
    if isinstance(entry, Flag):
        return f"{entry.path or '/'}: {entry.kind}: {shorten(entry.text, MAX_VALUE_LENGTH)}: {entry.message}"
    if isinstance(entry, Proposal):
        return f"{_show(entry.left)} and {_show(entry.right)}: {entry.why}"
    return str(entry)


def _change_line(name: str, before: JsonValue, after: JsonValue) -> str:
    return f"~ {name} {_show(before)} -> {_show(after)}"


def _show(value: JsonValue) -> str:
    return shorten(canonical_json(value), MAX_VALUE_LENGTH)
