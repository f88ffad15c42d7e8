"""How far agents agree: one ballot's agreement, and Krippendorff's alpha over many."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from rapidfuzz import fuzz

from prefect_dispatch.integrators.votes.voting import is_number, opinion

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

DIGITS = 4
"""Decimals of a figure."""


class Alpha(NamedTuple):
    """Krippendorff's alpha, or why there is none."""

    value: float | None
    """1: they agree; 0: as often as by chance; below: less often. Empty where it is undefined."""
    why: str = ""
    """Why it is undefined."""


def likeness(said: JsonValue, answer: JsonValue, kind: str) -> float:
    """Return how near something that was said comes to the answer: 1 is equal, 0 as far as can be.

    Args:
        said: What an agent says.
        answer: What stands.
        kind: `label`: equal or not. `number`: the difference as a share of the greater one. `text`:
            rapidfuzz's ratio. `list`: the elements in both as a share of those in either.

    Example:
        >>> likeness(8, 10, "number"), likeness(["a", "b"], ["b"], "list"), likeness("Yes", "yes", "label")
        (0.8, 0.5, 1.0)
    """
    same = type(said) is type(answer) and said == answer and not isinstance(said, (list, dict))  # which is cheap
    if same or opinion(said) == opinion(answer):
        return 1.0
    if kind == "number" and is_number(said) and is_number(answer):
        return _near(said, answer)  # type: ignore[arg-type]
    if kind == "text" and isinstance(said, str) and isinstance(answer, str):
        return fuzz.ratio(said, answer) / 100
    if kind == "list" and isinstance(said, list) and isinstance(answer, list):
        one, other = set(map(opinion, said)), set(map(opinion, answer))
        return len(one & other) / len(one | other)
    return 0.0


def krippendorff(units: Iterable[Sequence[JsonValue]], measure: Literal["nominal", "interval"]) -> Alpha:
    """Return Krippendorff's alpha (Content Analysis, 2004, chapter 11), any number of agents missing anywhere.

    Computed from counts (nominal) or squares (interval) rather than from pairs, so that it takes
    as long as there are votes; crowd-kit's and nltk's own take the square of the distinct values.

    Args:
        units: For each item what agents say about it, in any order.
        measure: The distance of two answers: `nominal`, whether they differ; `interval`, the
            square of the difference.

    Example:
        >>> krippendorff([["a", "a"], ["b", "b"], ["a", "b"]], "nominal").value
        0.4444
        >>> krippendorff([["a", "a"]], "nominal").why
        'all say the same throughout'
    """
    paired = [unit for unit in units if len(unit) > 1]
    if not paired:
        return Alpha(None, "no item has two answers")
    count = sum(map(len, paired))
    try:
        distance = _differing if measure == "nominal" else partial(_squares, _centre(paired))
        within = math.fsum(distance(unit) / (len(unit) - 1) for unit in paired) / count
        across = distance([value for unit in paired for value in unit]) / (count * (count - 1))
    except OverflowError:
        across = within = math.inf
    if across == 0:
        return Alpha(None, "all say the same throughout")
    if not math.isfinite(across):
        return Alpha(None, "numbers too large to compute with")
    return Alpha(round(1 - within / across, DIGITS) + 0.0)


def _differing(values: Sequence[JsonValue]) -> float:
    """Return how many ordered pairs differ."""
    return len(values) ** 2 - sum(count**2 for count in Counter(map(opinion, values)).values())


def _centre(units: Sequence[Sequence[JsonValue]]) -> float:
    numbers = [_number(value) for unit in units for value in unit]
    return math.fsum(numbers) / len(numbers)


def _squares(centre: float, values: Sequence[JsonValue]) -> float:
    """Return the squared differences of all ordered pairs, summed; shifted by a centre, for precision's sake."""
    off = [_number(value) - centre for value in values]
    mean = math.fsum(off) / len(off)
    return 2 * len(off) * math.fsum((each - mean) ** 2 for each in off)


def _number(value: JsonValue) -> float:
    return float(value)  # type: ignore[arg-type]


def _near(said: float, answer: float) -> float:
    try:
        return max(0.0, 1 - abs(said - answer) / max(abs(said), abs(answer)))
    except OverflowError:
        return 0.0
