"""Measures of agreement: the similarity of two answers, and Krippendorff's alpha of all answers."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from typing import TYPE_CHECKING, Literal, NamedTuple

from rapidfuzz import fuzz

from prefect_dispatch.integrators.consensus.number_rules import is_number
from prefect_dispatch.integrators.consensus.vote_rules import comparison_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

DIGITS = 4
"""Decimals of the figures in tables."""


class Alpha(NamedTuple):
    """Krippendorff's alpha, or the reason why it is undefined."""

    value: float | None
    """1: agreement; 0: agreement as often as by chance; below 0: less often. None where it is undefined."""
    why: str = ""
    """Reason why it is undefined."""


def score_similarity(given: JsonValue, answer: JsonValue, kind: str) -> float:
    """Return the similarity of a given answer to the winning one, from 0 to 1 (equal).

    Args:
        given: The answer of an agent.
        answer: The answer that won.
        kind: `label`: equal or not. `number`: 1 minus the difference as a share of the greater number. `text`:
            rapidfuzz's ratio. `list`: the elements in both as a share of those in either (Jaccard index).

    Example:
        >>> score_similarity(8, 10, "number"), score_similarity(["a", "b"], ["b"], "list")
        (0.8, 0.5)
        >>> score_similarity("Yes", "yes", "label")
        1.0
    """
    # Equal scalars are by far the most frequent case, and cheaper to compare than opinions.
    same = type(given) is type(answer) and given == answer and not isinstance(given, (list, dict))
    if same or comparison_key(given) == comparison_key(answer):
        return 1.0
    if kind == "number" and is_number(given) and is_number(answer):
        return _relative_similarity(given, answer)  # type: ignore[arg-type]
    if kind == "text" and isinstance(given, str) and isinstance(answer, str):
        return fuzz.ratio(given, answer) / 100
    if kind == "list" and isinstance(given, list) and isinstance(answer, list):
        one, other = set(map(comparison_key, given)), set(map(comparison_key, answer))
        return len(one & other) / len(one | other)
    return 0.0


def krippendorff(units: Iterable[Sequence[JsonValue]], measure: Literal["nominal", "interval"]) -> Alpha:
    """Return Krippendorff's alpha (Content Analysis, 2004, chapter 11); any agent's answer to any item may be missing.

    Computed from counts (nominal) or squares (interval) rather than from pairs, so that the time is linear
    in the number of votes; crowd-kit's and nltk's implementations are quadratic in the number of distinct values.

    Args:
        units: The answers to each item, in any order.
        measure: The distance of two answers: `nominal`, whether they differ; `interval`, the
            square of the difference.

    Example:
        >>> krippendorff([["a", "a"], ["b", "b"], ["a", "b"]], "nominal").value
        0.4444
        >>> krippendorff([["a", "a"]], "nominal").why
        'all say the same throughout'
    """
    # 1. Only items with at least two answers form pairs.
    paired = [unit for unit in units if len(unit) > 1]
    if not paired:
        return Alpha(None, "no item has two answers")
    # 2. Observed disagreement, within items, and expected disagreement, across all of them.
    values = [value for unit in paired for value in unit]
    count = len(values)
    try:
        centre = statistics.fmean(map(_number, values)) if measure == "interval" else None
        within = math.fsum(_sum_distances(unit, centre) / (len(unit) - 1) for unit in paired) / count
        across = _sum_distances(values, centre) / (count * (count - 1))
    except OverflowError:
        across = within = math.inf
    # 3. Alpha is 1 minus their ratio; `+ 0.0` turns -0.0 into 0.0.
    if across == 0:
        return Alpha(None, "all say the same throughout")
    if not math.isfinite(across):
        return Alpha(None, "numbers too large to compute with")
    return Alpha(round(1 - within / across, DIGITS) + 0.0)


def _sum_distances(values: Sequence[JsonValue], centre: float | None) -> float:
    """Return the sum of the distances of all ordered pairs.

    Args:
        values: The answers.
        centre: By which numbers are shifted for precision; None: the distance is whether opinions differ.
    """
    if centre is None:
        return len(values) ** 2 - sum(count**2 for count in Counter(map(comparison_key, values)).values())
    deviations = [_number(value) - centre for value in values]
    mean = statistics.fmean(deviations)
    return 2 * len(deviations) * math.fsum((each - mean) ** 2 for each in deviations)


def _number(value: JsonValue) -> float:
    return float(value)  # type: ignore[arg-type]


def _relative_similarity(given: float, answer: float) -> float:
    try:
        return max(0.0, 1 - abs(given - answer) / max(abs(given), abs(answer)))
    except OverflowError:
        return 0.0
