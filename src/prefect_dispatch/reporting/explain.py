"""Explanation of a value or an item of a report, by its origin and rule, or of all that rests on some items."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import chain, compress, islice
from typing import TYPE_CHECKING

from rapidfuzz import process

from prefect_dispatch.models.ledger import Ref, select_refs
from prefect_dispatch.security.escaping import join_names, strip_control_chars, value_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.ledger import FieldRow, Flag, LedgerRow, Proposal
    from prefect_dispatch.models.report import Report


MAX_NAME_LENGTH = 80
"""Most characters of a value that can serve as the name of a record."""


def pointer_tokens(path: str) -> list[str]:
    """Return the keys and indexes of a JSON Pointer.

    Example:
        >>> pointer_tokens("/records/0/a~1b")
        ['records', '0', 'a/b']
    """
    return [token.replace("~1", "/").replace("~0", "~") for token in path.split("/")[1:]]


def to_dotted_path(path: str) -> str:
    """Return a JSON Pointer as a dotted path.

    Example:
        >>> to_dotted_path("/records/0/year")
        'records.0.year'
    """
    return ".".join(pointer_tokens(path))


def find_field_rows(what: str, fields: Sequence[FieldRow], value: JsonValue) -> list[FieldRow]:
    """Return the field rows that a query means, in the order of the rows.

    Args:
        what: A JSON Pointer, a dotted path, the name of a field, a record (any of its short values), or
            `record.field`. A path inside a field stands for the field, one above several fields for all of them.
        fields: All field rows.
        value: The merged value.

    Returns:
        The rows of the first interpretation of the query that matches any; empty if none does.
    """
    # A query is compared with paths in its own notation.
    sign = "/" if what.startswith("/") else "."
    query = what.removesuffix("/")
    paths = [row.path if sign == "/" else to_dotted_path(row.path) for row in fields]
    is_at = [path in (what, query) for path in paths]
    is_below = [query != "" and path.startswith(f"{query}{sign}") for path in paths]
    is_above = [f"{query}{sign}".startswith(f"{path}{sign}") for path in paths]
    is_called = [pointer_tokens(row.path)[-1:] == [what] for row in fields]
    for matches in (is_at, is_below, is_above, is_called):
        if any(matches):
            return list(compress(fields, matches))
    # A record by one of its values, with or without a field.
    names = record_names(fields, value)
    return [row for row in fields if _names_record(what, row, names[_record_path(row)])]


def record_names(fields: Sequence[FieldRow], value: JsonValue) -> dict[tuple[str, ...], list[str]]:
    """Return the names of each record: its short values, including those that a merge removed.

    Args:
        fields: The field rows.
        value: The merged value.

    Returns:
        The names by the path of the record, as tokens.
    """
    names: dict[tuple[str, ...], list[str]] = {}
    for row in fields:
        path = _record_path(row)
        if path not in names:
            entry = value
            for token in path:
                entry = get_child(entry, token)
            parts = (each for each in (entry, get_child(entry, "value")) if isinstance(each, dict))
            names[path] = list(_short_texts(chain.from_iterable(part.values() for part in parts)))
        names[path] += _short_texts(loser.value for loser in row.losers)
    return names


def candidate_names(fields: Sequence[FieldRow], value: JsonValue) -> Iterator[str]:
    """Yield the paths and names by which rows can be queried, as candidates for suggestions."""
    names = record_names(fields, value)
    for row in fields:
        yield row.path
        yield to_dotted_path(row.path)
        if inside := pointer_tokens(row.path)[2:]:
            yield from (f"{name}.{inside[-1]}" for name in names[_record_path(row)])


def _record_path(row: FieldRow) -> tuple[str, ...]:
    """Return the path, as tokens, of the record that a row is about: an entry of a list of the value."""
    return tuple(pointer_tokens(row.path)[:2])


def _short_texts(values: Iterable[JsonValue]) -> Iterator[str]:
    """Yield the values that are short enough for a name, as text."""
    for value in values:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            text = value_text(value)
            if 0 < len(text) <= MAX_NAME_LENGTH:
                yield text


def _names_record(what: str, row: FieldRow, names: Iterable[str]) -> bool:
    """Return whether a query names the record of a row, alone or with any tail of the field's path."""
    query, inside = _fold_case(what), pointer_tokens(row.path)[2:]
    tails = ["", *(f".{'.'.join(inside[at:])}" for at in range(len(inside)))]
    return any(query == _fold_case(f"{name}{tail}") for name in names for tail in tails)


def get_child(value: JsonValue, token: str) -> JsonValue:
    """Return the child of a value at a token of a path; None if there is none."""
    if isinstance(value, dict):
        return value.get(token)
    if isinstance(value, list) and token.isdecimal() and len(token) < MAX_NAME_LENGTH and int(token) < len(value):
        return value[int(token)]
    return None


def _fold_case(text: str) -> str:
    """Return a text for comparisons that ignore case and whitespace."""
    return re.sub(r"\s+", " ", text).strip().casefold()


MAX_ENTRIES = 20
"""Most explanations, and most lines of one kind in an explanation; further ones are counted."""

MAX_CANDIDATES = 20_000
"""Most names that are searched for suggestions; also the most numbers of one citation range."""

MAX_VALUE_LENGTH = 300
"""Most characters of a value in the explanation of an item."""

_CITATION = re.compile(r"\[(\d[\d ,;–-]{0,200})\]")  # noqa: RUF001 -- the dash of ranges
_RANGE = re.compile(r"(\d{1,9})(?: ?[-–] ?(\d{1,9}))?")  # noqa: RUF001 -- the dash of ranges
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?!\[)|(?<=\])\s+(?=[A-Z])|\n+")


def explain(report: Report, what: str | None = None) -> str:
    """Return an explanation of a value, an item, or a whole report, as plain text.

    Args:
        report: The report.
        what: A JSON Pointer (`/records/0/year`), a dotted path (`records.0.year`), a field's name (`year`), a
            record by one of its values with or without a field (`MIT.year`), an item's key, or `brief/item`.
            None for the report as a whole.

    Raises:
        LookupError: If the report has nothing of that name; the message suggests the nearest names.
    """
    if what is None:
        return "\n".join(map(strip_control_chars, _report_lines(report)))
    rows = [row for row in report.ledger if what in (row.item, str(Ref.of(row)))]
    fields = [] if rows and not what.startswith("/") else find_field_rows(what, report.fields, report.value)
    if not rows and not fields:
        known = [
            *dict.fromkeys(chain((row.item for row in report.ledger), candidate_names(report.fields, report.value)))
        ]
        near = ", ".join(repr(match[0]) for match in process.extract(what, known[:MAX_CANDIDATES], limit=3))
        hint = f"near are {near}" if near else "it traces no fields"
        raise LookupError(f"The report has no item and no value {what!r}; {hint}.")
    found = [_item_lines(row, report) for row in rows] + [_value_lines(row, report) for row in fields]
    explanations = ["\n".join(map(strip_control_chars, lines)) for lines in islice(found, MAX_ENTRIES)]
    return "\n\n".join([*explanations, *_remainder_line(len(found), "of that name; say more precisely which")])


def explain_sources(report: Report, patterns: Sequence[str]) -> str:
    """Return, as plain text, what in a merged value rests on some items: alone, or together with others.

    Args:
        report: The report.
        patterns: Names of items; see `select_refs`.

    Raises:
        LookupError: If a pattern selects nothing; the message suggests the nearest names.
    """
    # 1. The outcomes of these items.
    known = [Ref.of(row) for row in report.ledger]
    refs: set[Ref] = set()
    for pattern in patterns:
        if not (found := select_refs(pattern, known)):
            near = process.extract(pattern, [str(ref) for ref in known[:MAX_CANDIDATES]], limit=3)
            hint = f"near are {', '.join(repr(match[0]) for match in near)}" if near else "it has no items"
            raise LookupError(f"The report has no item {pattern!r}; {hint}.")
        refs |= found
    # 2. What rests on them: field by field; in a text, sentence by sentence.
    alone: list[str] = []
    shared: list[str] = []
    citing = [*_iter_citing(refs, known, report.value)]
    for row in report.fields:
        # Of a text whose sentences cite them, the sentences are listed, and not the whole.
        if refs.intersection(row.sources) and not (citing and row.path == ""):
            others = [ref for ref in row.sources if ref not in refs]
            line = f"{row.path or '/'} = {_short_json(row.winner)}"
            (shared if others else alone).append(f"{line} (also from {join_names(others)})" if others else line)
    rows = [(Ref.of(row), row) for row in report.ledger]
    sections = {
        "In the merged value from them alone": alone,
        "In the merged value from them and others": shared,
        "Sentences that cite them alone": [sentence for sentence, is_alone in citing if is_alone],
        "Sentences that cite them and others": [sentence for sentence, is_alone in citing if not is_alone],
        "Values of theirs that a rule removed": [
            f"{row.path} = {_short_json(loser.value)} by {row.rule}"
            for row in report.fields
            for loser in row.losers
            if refs.intersection(loser.sources)
        ],
        "Answers to others that they stand for": [
            f"{ref}: {row.disposition} {row.by}" for ref, row in rows if row.by in refs and ref not in refs
        ],
        "Theirs without a part in the merged value": [
            f"{ref}: {row.disposition}{f' {row.by}' if row.by else ''}"
            for ref, row in rows
            if ref in refs and row.disposition != "merged"
        ],
        "Proposals about them": [
            _format_proposal(each)
            for each in report.proposals
            if refs.intersection((*each.left_sources, *each.right_sources))
        ],
        "Flags about them": [_format_flag(flag) for flag in report.flags if refs.intersection(flag.sources)],
    }
    # 3. Each with its number, as long lists are truncated.
    lines = [f"{len(refs)} of {len(known)} outcomes: {join_names(ref for ref in dict.fromkeys(known) if ref in refs)}"]
    for title, entries in sections.items():
        if entries:
            lines += [f"{title} ({len(entries)}):", *(f"  {line}" for line in _limit_lines(entries))]
    if not (report.fields or citing) and report.value is not None:
        lines.append("The merged value doesn't say which outcome each part of it is from.")
    elif not (alone or shared or citing):
        lines.append("Nothing in the merged value rests on them.")
    return "\n".join(map(strip_control_chars, lines))


def _report_lines(report: Report) -> Iterator[str]:
    """Yield the lines on a report as a whole: ledger, changes, problems, conflicts and rules."""
    counts = Counter(row.disposition for row in report.ledger)
    yield report.message
    yield "Ledger: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    if report.changes.earlier != "none":
        yield f"Since the last run: {report.changes}"
    yield from (f"Violation: {violation}" for violation in report.violations)
    yield from (f"Gap: {Ref.of(gap)}: {gap.error.kind}: {gap.error.message}" for gap in report.gaps)
    yield from (f"Shortfall: {shortfall}" for shortfall in report.shortfalls)
    yield from (f"Requirement {row}" for row in report.requirements)
    yield from map(_format_flag, report.flags)
    yield from map(_format_proposal, report.proposals)
    if conflicts := [row.path for row in report.fields if row.losers]:
        yield f"Conflicts at {', '.join(conflicts)}"
    if report.rules:
        yield f"Rules: {report.rules}"


def _item_lines(row: LedgerRow, report: Report) -> list[str]:
    """Return the lines on an item: what became of it, and which parts of the value it is a source of."""
    ref = Ref.of(row)
    # The failure of an outcome has details that the reason lacks.
    whole = next((each.failure for each in report.outcomes if Ref.of(each) == ref), "")
    gaps = [f"  {whole or f'{gap.error.kind}: {gap.error.message}'}" for gap in report.gaps if Ref.of(gap) == ref]
    reason = f": {row.reason}" if row.reason and not gaps else ""
    lines = [f"{ref}: {row.disposition}{f' {row.by}' if row.by else ''}{reason}", *gaps]
    lines += [f"  since the last run: {name}" for name, names in report.changes.lists.items() if ref in names]
    lines += _limit_lines(
        f"  gave {field.path or '/'} = {_short_json(field.winner)}" for field in report.fields if ref in field.sources
    )
    lines += _limit_lines(
        f"  lost {field.path} = {_short_json(loser.value)} by {field.rule}"
        for field in report.fields
        for loser in field.losers
        if ref in loser.sources
    )
    lines += _limit_lines(
        f"  {_format_proposal(p)}" for p in report.proposals if ref in (*p.left_sources, *p.right_sources)
    )
    lines += _limit_lines(f"  {_format_flag(flag)}" for flag in report.flags if ref in flag.sources)
    return [*lines, *_table_lines(report, {row.item, str(ref)}), *_citation_lines(ref, report.value)]


def _value_lines(row: FieldRow, report: Report) -> list[str]:
    """Return the lines on a field of the value: its sources, its rule, what was removed, and what is in doubt."""
    lines = [f"{row.path} = {_format_value(row.winner, row.sources)}", f"  rule: {row.rule}"]
    lines += [f"  in words: {words}" for words in _rule_sentences(row, report.rules)]
    lines += _limit_lines(f"  not kept: {_format_value(loser.value, loser.sources)}" for loser in row.losers)
    lines += _limit_lines(f"  {_format_flag(flag)}" for flag in report.flags if _paths_overlap(flag.path, row.path))
    beside = [other for other in report.fields if pointer_tokens(other.path)[:2] == pointer_tokens(row.path)[:2]]
    names = {name for found in record_names(beside, report.value).values() for name in found}
    lines += _limit_lines(
        f"  {_format_proposal(p)}"
        for p in report.proposals
        if _is_identity_of(p.left, names) or _is_identity_of(p.right, names)
    )
    sources = {*row.sources, *(ref for loser in row.losers for ref in loser.sources)}
    about = {row.path, to_dotted_path(row.path), *pointer_tokens(row.path)[-1:]}
    about |= {name for ref in sources for name in (str(ref), ref.brief)}
    return [*lines, *_table_lines(report, about)]


def _rule_sentences(row: FieldRow, rules: str) -> list[str]:
    """Return the sentences of the rules text that name the field or its rule."""
    names = [re.escape(name) for name in (row.rule, *pointer_tokens(row.path)[-1:]) if name and not name.isdecimal()]
    found = re.compile(rf"(?<!\w)(?:{'|'.join(names)})(?!\w)")
    return [sentence for sentence in _SENTENCE.split(rules) if names and found.search(sentence)]


def _format_proposal(proposal: Proposal) -> str:
    left = _format_value(proposal.left, proposal.left_sources)
    right = _format_value(proposal.right, proposal.right_sources)
    return f"Open: are {left} and {right} one? {proposal.score:.3f} alike: {proposal.why}"


def _format_flag(flag: Flag) -> str:
    looked = f" (looked into {join_names(flag.sources)})" if flag.sources else ""
    return f"Flag at {flag.path or '/'}: {flag.kind}: {flag.text!r}: {flag.message}{looked}"


def _paths_overlap(one: str, other: str) -> bool:
    """Return whether two paths are equal, or one is above the other."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _is_identity_of(identity: JsonValue, names: set[str]) -> bool:
    """Return whether an identity is that of the record that has some names."""
    parts = identity.values() if isinstance(identity, dict) else [identity]
    texts = [value_text(part) for part in parts if part is not None]
    return bool(texts) and names.issuperset(texts)


def _citation_lines(ref: Ref, value: JsonValue) -> list[str]:
    """Return the sentences of a text that cite an outcome; empty if the value isn't a text."""
    return _limit_lines(f"  cited: {sentence}" for sentence, _ in _iter_citing({ref}, [ref], value))


def _iter_citing(refs: Collection[Ref], known: Sequence[Ref], value: JsonValue) -> Iterator[tuple[str, bool]]:
    """Yield each sentence of a text that cites some outcomes, and whether it cites no other.

    Args:
        refs: The outcomes.
        known: All outcomes whose numbers are looked up.
        value: The merged value; if it isn't a text, nothing is cited.
    """
    if not isinstance(value, str):
        return
    # The number of an outcome is in the text's list of sources, below the first heading.
    is_meant = {strip_control_chars(str(ref)): ref in refs for ref in known}
    listed = re.findall(r"^\[([0-9]{1,9})\] (.+?):? *$", value, re.MULTILINE)
    numbers = {int(number) for number, name in listed if is_meant.get(name)}
    for sentence in _SENTENCE.split(value.partition("\n## ")[0]):
        cited = {*_citations(sentence)}
        if cited & numbers:
            yield sentence.strip(), cited <= numbers


def _citations(sentence: str) -> Iterator[int]:
    """Yield the numbers in the brackets of a sentence, including those of ranges."""
    for inside in _CITATION.findall(sentence):
        for first, last in _RANGE.findall(inside):
            # A text may have any range: its length is limited.
            yield from range(int(first), min(int(last or first), int(first) + MAX_CANDIDATES) + 1)


def _table_lines(report: Report, about: set[str]) -> Iterator[str]:
    """Yield a line for each row of the report's tables that has one of some texts in a cell."""
    for table in report.tables:
        yield from _limit_lines(
            f"  {table.title}: "
            + ", ".join(f"{name} {value_text(part)}" for name, part in row.items() if part is not None)
            for row in table.rows
            if any(isinstance(part, str) and part in about for part in row.values())
        )


def _limit_lines(lines: Iterable[str]) -> list[str]:
    """Return at most `MAX_ENTRIES` lines, and one with the number of the others."""
    every = list(lines)
    return [*every[:MAX_ENTRIES], *(f"  {more}" for more in _remainder_line(len(every), "like these"))]


def _remainder_line(total: int, what: str) -> list[str]:
    return [f"… and {total - MAX_ENTRIES} more {what}."] if total > MAX_ENTRIES else []


def _format_value(value: JsonValue, sources: Sequence[Ref]) -> str:
    return f"{_to_json(value)} (from {join_names(sources)})"


def _short_json(value: JsonValue) -> str:
    text = _to_json(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[: MAX_VALUE_LENGTH - 1]}…"


def _to_json(value: JsonValue) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
