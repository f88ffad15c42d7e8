"""Comparison of answers with expected answers from a table: how many are right, per brief and field."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, cast

from prefect_dispatch.errors import JobError
from prefect_dispatch.models.base import did_you_mean
from prefect_dispatch.models.ledger import ACCURACY, Table, sort_key
from prefect_dispatch.models.output_schema import schema_of
from prefect_dispatch.security.escaping import count_noun
from prefect_dispatch.serialization.json_text import canonical_json
from prefect_dispatch.sources import read_items
from prefect_dispatch.sources.tabular import table_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.outcome import Outcome

WRONG = "wrong-answers"
"""Name of the table with the answers that differ from the expected ones."""
MAX_WRONG = 1_000
"""Most rows of the table with the wrong answers."""

ExpectedAnswers = dict[str, dict[str, "JsonValue"]]
"""The expected value of each known field, by the item's key."""


def read_expected_answers(file: str, key: str, folder: Path) -> ExpectedAnswers:
    """Return the expected answers in a table; an empty cell means that the right answer is unknown.

    Args:
        file: A CSV, JSON Lines or Parquet file.
        key: The column with the item's key.
        folder: The folder in which a relative path starts.

    Raises:
        JobError: If the file can't be read, lacks the column, or has a key twice.
    """
    rows = read_items(table_source(file, key, "The expected answers"), folder)
    expected: ExpectedAnswers = {}
    for row in rows:
        cells = cast("dict[str, JsonValue]", row.value).items()
        expected[row.key] = {name: value for name, value in cells if name != key and value is not None and value != ""}
    return expected


def require_comparable(expected: ExpectedAnswers, file: str, briefs: Sequence[Brief]) -> None:
    """Check that expected answers have a column that is a field of an answer.

    Args:
        expected: The expected answers.
        file: The name of their file, for the message.
        briefs: The briefs of the job.

    Raises:
        JobError: If they have none.
    """
    columns = {name: None for row in expected.values() for name in row}
    fields = [name for brief in briefs for name in (schema_of(brief.output) or {}).get("properties", ())]
    if not fields:
        raise JobError(f"expected: the answers have no fields to compare with {file!r}; give 'output' some properties.")
    if not columns.keys() & set(fields):
        column = next(iter(columns), "")
        hint = f"{column!r} is none; {did_you_mean(column, fields)}" if column else "all others are empty."
        raise JobError(f"expected: {file!r} has no column that is a field of an answer: {hint}")


def require_known_items(expected: ExpectedAnswers, file: str, items: Sequence[Item]) -> None:
    """Check that the right answer is known for one item at least.

    Raises:
        JobError: If it is for none; the message shows a key of an item, and one of the file.
    """
    if items and not any(item.key in expected for item in items):
        row = next(iter(expected), "")
        raise JobError(
            f"expected: {file!r} has no row for any of the items: the first item is {items[0].key!r}, and the first "
            f"row is {row!r}."
        )


def compare_with_expected(expected: ExpectedAnswers, outcomes: Iterable[Outcome]) -> tuple[Table, ...]:
    """Return the accuracy per brief and field as a table, and the wrong answers as another.

    An item without an answer counts as wrong. The base rate is the share that one constant answer would get right.

    Example:
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> given = {"a": {"kind": "bill"}, "b": {"kind": "fault"}}
        >>> answers = [
        ...     Outcome(brief="sort", item=key, status="succeeded", value={"kind": "bill"}) for key in ("a", "b")
        ... ]
        >>> compare_with_expected(given, answers)[0].note
        "sort, kind: 1 of 2 right (50%); always 'bill' would be right in 1 (50%)."
    """
    by_brief: defaultdict[str, list[Outcome]] = defaultdict(list)
    for outcome in sorted(outcomes, key=lambda each: sort_key(each.brief, each.item)):
        by_brief[outcome.brief].append(outcome)
    rows: list[dict[str, JsonValue]] = []
    wrong: list[dict[str, JsonValue]] = []
    sentences: list[str] = []
    for brief, answers in by_brief.items():
        answered = {name for each in answers if isinstance(each.value, dict) for name in each.value}
        for field in dict.fromkeys(name for each in answers for name in expected.get(each.item, ())):
            if field not in answered:
                continue
            known = [(each, row[field]) for each in answers if field in (row := expected.get(each.item, {}))]
            differing = [(each, right) for each, right in known if not _is_right(_field_of(each, field), right)]
            constant, count = Counter(map(_as_text, (right for _, right in known))).most_common(1)[0]
            right, total = len(known) - len(differing), len(known)
            rows.append(
                {
                    "brief": brief,
                    "field": field,
                    "known": total,
                    "answered": sum(each.status == "succeeded" for each, _ in known),
                    "right": right,
                    "accuracy": round(right / total, 4),
                    "base_rate": round(count / total, 4),
                }
            )
            wrong += [
                {"brief": brief, "item": each.item, "field": field, "answer": _field_of(each, field), "expected": value}
                for each, value in differing
            ]
            sentences.append(
                f"{brief}, {field}: {right} of {total} right ({right / total:.0%}); "
                f"always {constant!r} would be right in {count} ({count / total:.0%})."
            )
    if not rows:
        return ()
    more = len(wrong) - MAX_WRONG
    note = f"{count_noun(more, 'further one')} not listed." if more > 0 else ""
    figures = Table(
        name=ACCURACY, title="Answers compared with the expected ones", rows=tuple(rows), note=" ".join(sentences)
    )
    listed = Table(
        name=WRONG, title="Answers that differ from the expected ones", rows=tuple(wrong[:MAX_WRONG]), note=note
    )
    return (figures, listed) if wrong else (figures,)


def _field_of(outcome: Outcome, field: str) -> JsonValue:
    """Return a field of an outcome's answer; None where there is none."""
    return outcome.value.get(field) if isinstance(outcome.value, dict) else None


def _is_right(value: JsonValue, expected: JsonValue) -> bool:
    """Return whether a value is the expected one; in a CSV file, numbers and `true` are texts, too."""
    if isinstance(expected, str) and not isinstance(value, str):
        text = expected.lower() if expected.lower() in {"true", "false"} else expected
        try:
            expected = json.loads(text)
        except (ValueError, RecursionError):
            return False
    return value == expected and isinstance(value, bool) == isinstance(expected, bool)


def _as_text(value: JsonValue) -> str:
    return value if isinstance(value, str) else canonical_json(value)
