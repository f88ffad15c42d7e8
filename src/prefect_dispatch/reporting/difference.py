"""Differences of two merged reports, place by place: values, records, sentences, dispositions, and what is in doubt."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections import Counter
from itertools import takewhile, zip_longest
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_dispatch.models.ledger import DIFFERENCE, Flag, Proposal, Ref, Table
from prefect_dispatch.reporting.explain import get_child, pointer_tokens
from prefect_dispatch.security.escaping import count_noun, shorten, strip_control_chars
from prefect_dispatch.serialization.json_text import canonical_json
from prefect_dispatch.serialization.json_values import get_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.report import Report

MAX_LINES = 40
"""Most lines of one section; further ones are counted."""
MAX_ROWS = 1000
"""Most rows of the table of differences; further ones are counted."""
MAX_VALUE_LENGTH = 200
"""Most characters of a value in a line."""
MAX_CELL_LENGTH = 1000
"""Most characters of a value in the table."""
_SHOWN_BEFORE = 40
"""Characters that are shown before the place where two long values begin to differ."""
_MIN_PROSE = 80
"""Length of a text from which on it is compared sentence by sentence."""

VALUE = "The merged value"
"""Section of the differences of the merged value."""
_NAMING = (("brief", "item"), ("item",), ("key",), ("suite", "classname", "name"), ("path",), ("id",), ("name",))
"""Fields that name an entry which has no identity, the first that it has."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?!\[)|(?<=\])\s+(?=[A-Z])|\n+")
"""Pattern of what separates two sentences."""
_LISTED = re.compile(r"^\[([0-9]{1,9})\] (.+?):? *$", re.MULTILINE)
"""Pattern of a line that says which outcome the number of a citation stands for."""
_CITED = re.compile(r"\[([0-9]{1,9}(?:, ?[0-9]{1,9})*)\]")

Kind = Literal["added", "removed", "changed"]
_SIGNS: dict[Kind, str] = {"added": "+", "removed": "-", "changed": "~"}


class Difference(NamedTuple):
    """One difference of two reports."""

    section: str
    """Which part of the report it is about."""
    kind: Kind
    """Whether only the later report has it, only the earlier one, or both in different ways."""
    place: str
    """Where it is, in words such as `records, name "MIT", year`; empty for the whole."""
    before: str = ""
    """What the earlier report has."""
    after: str = ""
    """What the later report has."""

    def format(self) -> str:
        """Return the difference as a line."""
        before, after = _shorten_pair(self.before, self.after, MAX_VALUE_LENGTH)
        texts = f"{before} -> {after}" if self.kind == "changed" else before or after
        return f"{_SIGNS[self.kind]} {self.place}{': ' if self.place else ''}{texts}"


def list_differences(before: Report, after: Report, identity: Sequence[str] = ()) -> list[Difference]:
    """Return how a merge differs from an earlier one of the same outcomes.

    Entries of a list are compared with each other if they are about the same brief and item, or have the same
    identity or name, and otherwise by their whole content, so that their order makes no difference. Within an entry,
    each value is compared on its own. Texts are compared sentence by sentence, with the names of the outcomes that they
    cite instead of their numbers, which change if an outcome is left out.

    Args:
        before: The earlier report.
        after: The later report.
        identity: The dotted paths of the fields that identify a record.
    """
    comparison = _Comparison(identity)
    return [
        *comparison.compare_values(*(_name_cited(each.value) for each in (before, after))),
        *_compare_ledgers(before, after),
        *_compare_lists("Flags", comparison.describe_flags(before), comparison.describe_flags(after)),
        *_compare_lists("Proposals", *(map(_describe_proposal, each.proposals) for each in (before, after))),
        *_compare_lists("Shortfalls", before.shortfalls, after.shortfalls),
        *_compare_lists("Violations", *(map(str, each.violations) for each in (before, after))),
        # A report of an older version doesn't have any.
        *_compare_lists(
            "Requirements", *(map(str, each.requirements if before.requirements else ()) for each in (before, after))
        ),
    ]


def describe_differences(differences: Sequence[Difference]) -> str:
    """Return differences as plain text, in sections.

    Lines begin with `+` for what only the later report has, `-` for what only the earlier one has, and `~` for what has
    changed.

    Example:
        >>> from prefect_dispatch.models.report import Report
        >>> was, now = ({"records": [{"name": "MIT", "year": year}]} for year in (1987, 1988))
        >>> first, second = (Report(status="complete", message="", value=value) for value in (was, now))
        >>> print(describe_differences(list_differences(first, second, ["name"])))
        The merged value (1 difference):
          ~ records, name "MIT", year: 1987 -> 1988
    """
    lines: list[str] = []
    for title in dict.fromkeys(each.section for each in differences):
        found = [each for each in differences if each.section == title]
        lines.append(f"{title} ({count_noun(len(found), 'difference')}):")
        lines += [f"  {strip_control_chars(each.format())}" for each in found[:MAX_LINES]]
        if len(found) > MAX_LINES:
            lines.append(f"  … and {len(found) - MAX_LINES} more.")
    return "\n".join(lines) or "Nothing differs."


def build_difference_table(differences: Sequence[Difference]) -> Table:
    """Return differences as a table of a report."""
    rows: list[dict[str, JsonValue]] = []
    for each in differences[:MAX_ROWS]:
        before, after = _shorten_pair(each.before, each.after, MAX_CELL_LENGTH)
        rows.append({"part": each.section, "change": each.kind, "place": each.place, "before": before, "after": after})
    more = len(differences) - MAX_ROWS
    note = f"{more} more are not listed." if more > 0 else "" if rows else "Nothing differs."
    return Table(
        name=DIFFERENCE, title="Differences from the report that was merged again", rows=tuple(rows), note=note
    )


class _Comparison:
    """Compares merged values whose records have an identity."""

    def __init__(self, identity: Sequence[str]) -> None:
        self._identity = identity

    def compare_values(self, before: JsonValue, after: JsonValue) -> Iterator[Difference]:
        """Yield the differences of two merged values."""
        # Without a merged value, as after a violation, every entry of the other one is new.
        if isinstance(before, dict | None) and isinstance(after, dict | None):
            was, now = before or {}, after or {}
            for name in dict.fromkeys((*was, *now)):
                old, new = was.get(name), now.get(name)
                # Another integrator has other lists: their entries are added or removed one by one.
                if isinstance(old, list | None) and isinstance(new, list | None):
                    yield from self._compare_entries(name, old or [], new or [])
                else:
                    yield from self._compare_fields(name, was, now, name)
        else:
            yield from self._compare("", before, after)

    def _compare(self, place: str, before: JsonValue, after: JsonValue) -> Iterator[Difference]:
        """Yield the differences of two values at a place."""
        # Compared as JSON, in which 1, 1.0 and true differ.
        if canonical_json(before) == canonical_json(after):
            return
        if isinstance(before, dict) and isinstance(after, dict):
            for name in dict.fromkeys((*before, *after)):
                yield from self._compare_fields(_join(place, name), before, after, name)
        elif isinstance(before, list) and isinstance(after, list):
            found = [*self._compare_entries(place, before, after)]
            yield from found or [_make_change(place, before, after)]  # only their order differs
        elif isinstance(before, str) and isinstance(after, str) and (not place or _is_prose(before, after)):
            yield from _compare_texts(place, before, after)
        else:
            yield _make_change(place, before, after)

    def _compare_fields(
        self, place: str, before: dict[str, JsonValue], after: dict[str, JsonValue], name: str
    ) -> Iterator[Difference]:
        """Yield the differences of one field of two objects, of which one may not have it."""
        if name not in before:
            yield Difference(VALUE, "added", place, after=_show(after[name]))
        elif name not in after:
            yield Difference(VALUE, "removed", place, before=_show(before[name]))
        else:
            yield from self._compare(place, before[name], after[name])

    def _compare_entries(
        self, place: str, before: Sequence[JsonValue], after: Sequence[JsonValue]
    ) -> Iterator[Difference]:
        """Yield the differences of two lists of entries."""
        was, now = (self._group_entries(entries) for entries in (before, after))
        for key in dict.fromkeys((*was, *now)):
            old, new = was.get(key, []), now.get(key, [])
            named = _join(place, key) if key else place
            if len(old) == len(new) == 1:
                yield from self._compare(named, old[0], new[0])
                continue
            # Several of one name, or none: those of equal content are the same.
            counts = Counter(map(canonical_json, new))
            counts.subtract(Counter(map(canonical_json, old)))
            shown = {canonical_json(each): _show(each) for each in (*old, *new)}
            for text, count in counts.items():
                for _ in range(abs(count)):
                    if count > 0:
                        yield Difference(VALUE, "added", named, after=shown[text])
                    else:
                        yield Difference(VALUE, "removed", named, before=shown[text])

    def _group_entries(self, entries: Iterable[JsonValue]) -> dict[str, list[JsonValue]]:
        """Return the entries of a list by the text that names each; those without a name are one group."""
        groups: dict[str, list[JsonValue]] = {}
        for entry in entries:
            groups.setdefault(self._name_entry(entry), []).append(entry)
        return groups

    def _name_entry(self, entry: JsonValue) -> str:
        """Return the name of an entry of a list: brief and item, identity, or a name that it has; empty without any."""
        if not isinstance(entry, dict):
            return ""
        if isinstance(entry.get("brief"), str) and isinstance(entry.get("item"), str):
            return f"{entry['brief']}/{entry['item']}"
        found = [(path, get_at(entry, path.split("."))) for path in self._identity]
        if any(part is not None for _, part in found):
            return ", ".join(f"{path} {_show(part)}" for path, part in found)
        for names in _NAMING:
            parts = [entry.get(name) for name in names]
            if all(isinstance(part, str) for part in parts):
                return ", ".join(f"{name} {_show(part)}" for name, part in zip(names, parts, strict=True) if part)
        return ""

    def describe_flags(self, report: Report) -> list[str]:
        """Return the flags of a report, with the names of entries in place of their positions."""
        return [
            f"{self._name_place(each, report.value)}: {each.kind}: {shorten(each.text, MAX_VALUE_LENGTH)}: "
            f"{each.message}"
            for each in report.flags
        ]

    def _name_place(self, flag: Flag, value: JsonValue) -> str:
        """Return the place of a flag in words; its path if the merged value doesn't have it."""
        place = ""
        for token in pointer_tokens(flag.path):
            value = get_child(value, token)
            place = _join(place, self._name_entry(value) or token)
        return place or "/"


def _is_prose(*texts: str) -> bool:
    return any(len(text) > _MIN_PROSE or "\n" in text for text in texts)


def _compare_texts(place: str, before: str, after: str) -> Iterator[Difference]:
    """Yield the sentences in which two texts differ."""
    was, now = map(_split_sentences, (before, after))
    if was == now and before.split() == after.split():
        yield _make_change(place, before, after)  # only white space differs
    parts = [_list_headings(each) for each in (was, now)]
    for kind, first, last, start, end in difflib.SequenceMatcher(None, was, now).get_opcodes():
        if kind == "equal":
            continue
        for at, (old, new) in enumerate(zip_longest(was[first:last], now[start:end])):
            part = parts[1][start + at] if old is None else parts[0][first + at]
            where = _join(place, part) if part and place else part or place
            if old is None:
                yield Difference(VALUE, "added", where, after=new)
            elif new is None:
                yield Difference(VALUE, "removed", where, before=old)
            elif _look_alike(old, new):
                yield _make_change(where, old, new)
            else:
                yield Difference(VALUE, "changed", where, old, new)


def _list_headings(sentences: Iterable[str]) -> list[str]:
    """Return the heading below which each sentence stands; empty above the first one."""
    heading = ""
    headings: list[str] = []
    for sentence in sentences:
        headings.append(heading)
        if sentence.startswith("#"):
            heading = sentence.lstrip("# ")
    return headings


def _split_sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in _SENTENCE.split(text) if sentence and not sentence.isspace()]


def _name_cited(value: JsonValue) -> JsonValue:
    """Return a merged value with the names of the outcomes that it cites in place of their numbers."""
    # A text lists what its numbers stand for below the last sentence.
    if isinstance(value, str):
        return _name_in_text(_LISTED.sub(r"\2", value), dict(_LISTED.findall(value)))
    # A value by a schema has the outcomes by their numbers, and the numbers by the place that they support.
    sources = value.get("sources") if isinstance(value, dict) else None
    if not (isinstance(value, dict) and isinstance(sources, dict) and isinstance(cited := value.get("cited"), dict)):
        return value
    names = {
        number: f"{each.get('brief')}/{each.get('item')}" for number, each in sources.items() if isinstance(each, dict)
    }
    return {
        **value,
        "value": _name_in_value(value.get("value"), names),
        "sources": list(sources.values()),
        "cited": {
            path: [names.get(str(each), each) for each in numbers] if isinstance(numbers, list) else numbers
            for path, numbers in cited.items()
        },
    }


def _name_in_value(value: JsonValue, names: Mapping[str, str]) -> JsonValue:
    """Return a value with names in place of the numbers in its texts."""
    if isinstance(value, dict):
        return {name: _name_in_value(part, names) for name, part in value.items()}
    if isinstance(value, list):
        return [_name_in_value(part, names) for part in value]
    return _name_in_text(value, names) if isinstance(value, str) else value


def _name_in_text(text: str, names: Mapping[str, str]) -> str:
    """Return a text with names in place of the numbers in its citations."""

    def name_citation(match: re.Match[str]) -> str:
        numbers = re.split(", ?", match[1])
        return f"[{', '.join(names[each] for each in numbers)}]" if set(numbers) <= names.keys() else match[0]

    return _CITED.sub(name_citation, text)


def _compare_ledgers(before: Report, after: Report) -> Iterator[Difference]:
    """Yield the outcomes whose disposition has changed, or that were merged with another outcome than before."""
    was, now = (
        {Ref.of(row): f"{row.disposition}{f' {row.by}' if row.by else ''}" for row in report.ledger}
        for report in (before, after)
    )
    for ref in dict.fromkeys((*was, *now)):
        old, new = (each.get(ref, "not there") for each in (was, now))
        if old != new:
            yield Difference("The ledger", "changed", str(ref), old, new)


def _compare_lists(section: str, before: Iterable[str], after: Iterable[str]) -> Iterator[Difference]:
    """Yield what only one of two lists has."""
    was, now = (dict.fromkeys(entries) for entries in (before, after))
    yield from (Difference(section, "removed", "", before=text) for text in was if text not in now)
    yield from (Difference(section, "added", "", after=text) for text in now if text not in was)


def _describe_proposal(proposal: Proposal) -> str:
    return f"{_show(proposal.left)} and {_show(proposal.right)}: {proposal.why}"


def _join(place: str, name: str) -> str:
    return f"{place}, {name}" if place else name


def _make_change(place: str, before: JsonValue, after: JsonValue) -> Difference:
    """Return a change of a value."""
    old, new = map(_show, (before, after))
    if _look_alike(old, new):
        old, new = map(canonical_json, (before, after))
    return Difference(VALUE, "changed", place, old, new)


def _look_alike(*texts: str) -> bool:
    """Return whether a reader sees no difference of texts, such as of two normal forms of one letter."""
    return len({unicodedata.normalize("NFC", strip_control_chars(text)) for text in texts}) == 1


def _show(value: JsonValue) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _shorten_pair(before: str, after: str, length: int) -> tuple[str, str]:
    """Return two texts of at most so many characters; of long ones that begin alike, the part where they differ."""
    start = 0
    if before and after and max(len(before), len(after)) > length:
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
        start = max(0, sum(1 for _ in alike) - _SHOWN_BEFORE)
    before, after = (shorten(f"{'…' if start else ''}{text[start:]}", length) for text in (before, after))
    return before, after
