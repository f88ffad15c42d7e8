"""Comparison of two merges, part by part, by their exact content: `1` and `1.0` differ, and so do `1` and `true`."""

from __future__ import annotations

from operator import eq
from typing import TYPE_CHECKING, Any

from prefect_dispatch.models.ledger import Merge, Violation
from prefect_dispatch.serialization.json_text import iter_json_chunks
from prefect_dispatch.serialization.json_values import exact_text, is_identical, pointer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pydantic import JsonValue

COMPARED = tuple(name for name in Merge.model_fields if name != "asked")
"""The parts of a merge that are compared; `asked` is filled in by the run."""
_UNORDERED = ("ledger", "fields")


def is_part_equal(one: Merge, other: Merge, name: str) -> bool:
    """Return whether a part of two merges is equal; the rows of `ledger` and `fields` may be in any order.

    Args:
        one: A merge.
        other: Another merge.
        name: The name of the part.
    """
    left, right = getattr(one, name), getattr(other, name)
    if name == "value":
        return is_identical(left, right)
    # 1. Fast path: rows are mostly in the same order, and the keys of objects, too.
    if len(left) == len(right) and all(map(eq, iter_json_chunks(left), iter_json_chunks(right))):
        return True
    # 2. Else the content of each row counts.
    rows = (_row_texts(left, is_sorted=name in _UNORDERED), _row_texts(right, is_sorted=name in _UNORDERED))
    return rows[0] == rows[1]


def _row_texts(rows: Any, *, is_sorted: bool) -> list[str]:  # noqa: ANN401 -- rows of any model, or a text
    texts = [exact_text(row if isinstance(row, str) else row.model_dump(mode="json")) for row in rows]
    return sorted(texts) if is_sorted else texts


def difference_violations(merge: Merge, expected: Merge, *, unknown: Collection[str] = ()) -> Iterator[Violation]:
    """Yield a violation for each part of a merge that differs from the expected one.

    Args:
        merge: The merge.
        expected: The merge as it was recomputed from the outcomes and from evidence.
        unknown: Names of parts that are not known of the merge.
    """
    for path in _differing_paths("", merge.value, expected.value):
        yield _violation(path or "/", "recomputed from the evidence, it differs.")
    for name in COMPARED:
        if name != "value" and name not in unknown and not is_part_equal(merge, expected, name):
            yield _violation("/", f"recomputed from the evidence, its {name!r} differs.")


def _differing_paths(path: str, one: JsonValue, two: JsonValue) -> Iterator[str]:
    """Yield the JSON Pointers of the innermost parts in which two values differ."""
    if is_identical(one, two):
        return
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        for name in one:
            yield from _differing_paths(path + pointer(name), one[name], two[name])
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for at, (left, right) in enumerate(zip(one, two, strict=True)):
            yield from _differing_paths(path + pointer(at), left, right)
    else:
        yield path


def _violation(where: str, message: str) -> Violation:
    return Violation(law="precision", where=where, message=message)
