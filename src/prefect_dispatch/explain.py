"""The story of one value or one item, told from a report."""

from __future__ import annotations

import json
import re
from itertools import chain, islice
from typing import TYPE_CHECKING

from rapidfuzz import process

from prefect_dispatch.inert import plain, refs, shown
from prefect_dispatch.ledger import Ref
from prefect_dispatch.places import called, dotted, named, record_names, tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.ledger import FieldRow, Flag, LedgerRow, Proposal
    from prefect_dispatch.report import Report

MOST = 20
"""Stories, or lines of one kind in a story, that are told; more are counted."""
KNOWN = 20_000
"""Names that are searched for the nearest one to an unknown name."""

LONG = 300
"""Characters of a value that the story of an item shows."""

_CITATION = re.compile(r"\[(\d[\d ,;–-]{0,200})\]")  # noqa: RUF001 -- a dash of ranges
_RANGE = re.compile(r"(\d{1,9})(?: ?[-–] ?(\d{1,9}))?")  # noqa: RUF001 -- see above
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?!\[)|(?<=\])\s+(?=[A-Z])|\n+")


def explain(report: Report, what: str | None = None) -> str:
    """Return how a value, or an item, of a report came about.

    Args:
        report: The report.
        what: A JSON Pointer (`/records/0/year`), a dotted path (`records.0.year`), a field's name (`year`), a
            record by one of its values with or without a field (`MIT.year`), an item's key, or `brief/item`.
            None for the report as a whole.

    Raises:
        LookupError: If the report has nothing of that name; the message names the nearest.
    """
    if what is None:
        return "\n".join(map(plain, _whole(report)))
    rows = [row for row in report.ledger if what in (row.item, str(Ref.of(row)))]
    fields = [] if rows and not what.startswith("/") else named(what, report.fields, report.value)
    if not rows and not fields:
        known = [*dict.fromkeys(chain((row.item for row in report.ledger), called(report.fields, report.value)))]
        near = ", ".join(repr(match[0]) for match in process.extract(what, known[:KNOWN], limit=3))
        hint = f"near are {near}" if near else "it traces no fields"
        raise LookupError(f"The report has no item and no value {what!r}; {hint}.")
    told = [_item(row, report) for row in rows] + [_value(row, report) for row in fields]
    stories = ["\n".join(map(plain, story)) for story in islice(told, MOST)]
    return "\n\n".join([*stories, *_more(len(told), "of that name; say more precisely which")])


def _whole(report: Report) -> Iterator[str]:
    counts: dict[str, int] = {}
    for row in report.ledger:
        counts[row.disposition] = counts.get(row.disposition, 0) + 1
    yield report.message
    yield "Ledger: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    if report.changes.earlier != "none":
        yield f"Since the last run: {report.changes}"
    yield from (f"Violation: {violation}" for violation in report.violations)
    yield from (f"Gap: {Ref.of(gap)}: {gap.error.kind}: {gap.error.message}" for gap in report.gaps)
    yield from (f"Shortfall: {shortfall}" for shortfall in report.shortfalls)
    yield from map(_flag, report.flags)
    yield from map(_proposal, report.proposals)
    if conflicts := [row.path for row in report.fields if row.losers]:
        yield f"Conflicts at {', '.join(conflicts)}"
    if report.rules:
        yield f"Rules: {report.rules}"


def _item(row: LedgerRow, report: Report) -> list[str]:
    ref = Ref.of(row)
    lines = [f"{ref}: {row.disposition}" + (f" {row.by}" if row.by else "") + (f": {row.reason}" if row.reason else "")]
    whole = next((each.failure for each in report.outcomes if Ref.of(each) == ref), "")
    lines += [f"  {whole or f'{gap.error.kind}: {gap.error.message}'}" for gap in report.gaps if Ref.of(gap) == ref]
    lines += [f"  since the last run: {name}" for name, names in report.changes.lists.items() if ref in names]
    lines += _some(
        f"  gave {field.path or '/'} = {_brief(field.winner)}" for field in report.fields if ref in field.sources
    )
    lines += _some(
        f"  lost {field.path} = {_brief(loser.value)} by {field.rule}"
        for field in report.fields
        for loser in field.losers
        if ref in loser.sources
    )
    lines += _some(f"  {_proposal(p)}" for p in report.proposals if ref in (*p.left_sources, *p.right_sources))
    lines += _some(f"  {_flag(flag)}" for flag in report.flags if ref in flag.sources)
    return [*lines, *_tables(report, {row.item, str(ref)}), *_cited(ref, report.value)]


def _value(row: FieldRow, report: Report) -> list[str]:
    lines = [f"{row.path} = {_said(row.winner, row.sources)}", f"  rule: {row.rule}"]
    lines += [f"  in words: {words}" for words in _words(row, report.rules)]
    lines += _some(f"  not kept: {_said(loser.value, loser.sources)}" for loser in row.losers)
    lines += _some(f"  {_flag(flag)}" for flag in report.flags if _meet(flag.path, row.path))
    beside = [other for other in report.fields if tokens(other.path)[:2] == tokens(row.path)[:2]]
    names = {name for found in record_names(beside, report.value).values() for name in found}
    lines += _some(f"  {_proposal(p)}" for p in report.proposals if _is(p.left, names) or _is(p.right, names))
    sources = {*row.sources, *(ref for loser in row.losers for ref in loser.sources)}
    about = {row.path, dotted(row.path), *tokens(row.path)[-1:], *map(str, sources), *(ref.brief for ref in sources)}
    return [*lines, *_tables(report, about)]


def _words(row: FieldRow, rules: str) -> list[str]:
    """Return the sentences of the rules that name the field or its rule."""
    names = [re.escape(name) for name in (row.rule, *tokens(row.path)[-1:]) if name and not name.isdecimal()]
    found = re.compile(rf"(?<!\w)(?:{'|'.join(names)})(?!\w)")
    return [sentence for sentence in _SENTENCE.split(rules) if names and found.search(sentence)]


def _proposal(proposal: Proposal) -> str:
    left, right = _said(proposal.left, proposal.left_sources), _said(proposal.right, proposal.right_sources)
    return f"Open: are {left} and {right} one? {proposal.score:.3f} alike: {proposal.why}"


def _flag(flag: Flag) -> str:
    looked = f" (looked into {refs(flag.sources)})" if flag.sources else ""
    return f"Flag at {flag.path or '/'}: {flag.kind}: {flag.text!r}: {flag.message}{looked}"


def _meet(one: str, other: str) -> bool:
    """Return whether one of two places is the other, or a part of it."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _is(identity: JsonValue, names: set[str]) -> bool:
    """Return whether a record that may be called by some names has an identity."""
    parts = identity.values() if isinstance(identity, dict) else [identity]
    said = [shown(part) for part in parts if part is not None]
    return bool(said) and names.issuperset(said)


def _cited(ref: Ref, value: JsonValue) -> list[str]:
    """Return the sentences of a text that cite an outcome, by the number that it has in the text's list of sources."""
    if not isinstance(value, str):
        return []
    lines = re.compile(rf"^\[([0-9]{{1,9}})\] {re.escape(plain(str(ref)))}:? *$", re.MULTILINE)
    numbers = {int(number) for number in lines.findall(value)}
    sentences = (each.strip() for each in _SENTENCE.split(value.partition("\n## ")[0]))
    return _some(f"  cited: {each}" for each in sentences if numbers.intersection(_citations(each)))


def _citations(sentence: str) -> Iterator[int]:
    """Yield the numbers in brackets, those of ranges included."""
    for inside in _CITATION.findall(sentence):
        for first, last in _RANGE.findall(inside):
            yield from range(int(first), min(int(last or first), int(first) + KNOWN) + 1)


def _tables(report: Report, about: set[str]) -> Iterator[str]:
    """Yield the rows of tables in which one of some names stands."""
    for table in report.tables:
        yield from _some(
            f"  {table.title}: " + ", ".join(f"{name} {shown(part)}" for name, part in row.items() if part is not None)
            for row in table.rows
            if any(isinstance(part, str) and part in about for part in row.values())
        )


def _some(lines: Iterable[str]) -> list[str]:
    every = list(lines)
    return [*every[:MOST], *(f"  {more}" for more in _more(len(every), "like these"))]


def _more(total: int, what: str) -> list[str]:
    return [f"… and {total - MOST} more {what}."] if total > MOST else []


def _said(value: JsonValue, sources: Sequence[Ref]) -> str:
    return f"{_json(value)} (from {refs(sources)})"


def _brief(value: JsonValue) -> str:
    text = _json(value)
    return text if len(text) <= LONG else f"{text[: LONG - 1]}…"


def _json(value: JsonValue) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
