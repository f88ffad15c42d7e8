"""Rules that compute one number from the numbers of several voters."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


OUTLIER_LIMIT = 3.5
"""Modified z-score above which a number is an outlier, by Iglewicz and Hoaglin.

Source: How to Detect and Handle Outliers, 1993. It is the distance from the median in units of the scaled median
absolute deviation.
"""

_MAD_TO_SIGMA = 1.4826
"""Factor from the median absolute deviation of normally distributed numbers to their standard deviation."""

GROSS_LIMIT = 100
"""Median absolute deviations from the median above which one of five numbers or more is a gross error.

Doubled for four numbers and again for three, of which two are often close to each other by chance.
"""
GROSS_FACTOR = 10
"""Factor to or from the median at which, where most numbers are equal, a number is a gross error.

It is what a digit too many or too few makes of it, or the next unit. A zero is never one: it is a common value.
"""
_MOST_GROSS = 10
"""A number is a gross error only if no more than one in so many is, or a single one of fewer."""
_FEWEST = 3
_USUAL = 5


def is_number(value: object) -> bool:
    """Return whether a value is a number; booleans are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def mean(numbers: Sequence[float]) -> float:
    """Return the arithmetic mean.

    Example:
        >>> mean([0, 0, 0, 90, 95])
        37
    """
    return _compute_safely(statistics.mean, numbers)


def median(numbers: Sequence[float]) -> float:
    """Return the median; of an even count, the mean of the two numbers in the middle."""
    return _compute_safely(statistics.median, numbers)


def robust_mean(numbers: Sequence[float]) -> float:
    """Return the mean of the numbers that are no outliers.

    An outlier is further from the median than 3.5 times the scaled median absolute deviation. Where that
    deviation is 0, because more than half of the numbers are equal, the median is returned.

    Example:
        >>> robust_mean([10, 11, 12, 500])
        11
    """
    return _compute_safely(_robust_mean, numbers)


def screened_mean(numbers: Sequence[float]) -> float:
    """Return the mean without gross errors: a single number that is out by an order of magnitude.

    With normal, skewed or rounded numbers, or many zeros, it is nearly always the mean, which is best there.

    Example:
        >>> screened_mean([10, 11, 12, 500]), screened_mean([70, 70, 7]), screened_mean([0, 0, 0, 90, 95])
        (11, 70, 37)
    """
    return _compute_safely(lambda given: statistics.mean(_without_gross_errors(given)), numbers)


def _robust_mean(numbers: Sequence[float]) -> float:
    # 1. Centre and spread by medians, which outliers don't move.
    centre = statistics.median(numbers)
    spread = _MAD_TO_SIGMA * statistics.median(abs(number - centre) for number in numbers)
    if spread == 0:
        return centre
    # 2. The mean of what lies within the limit.
    return statistics.mean(_within(numbers, centre, OUTLIER_LIMIT * spread))


def _without_gross_errors(numbers: Sequence[float]) -> Sequence[float]:
    """Return the numbers without gross errors; all of them if there are too many."""
    count = len(numbers)
    if count < _FEWEST:
        return numbers
    # 1. The spread of the others or, where most are equal, the size of the numbers says what is far.
    centre = statistics.median(numbers)
    spread = statistics.median(abs(number - centre) for number in numbers)
    if spread:
        near = _within(numbers, centre, GROSS_LIMIT * 2 ** max(_USUAL - count, 0) * spread)
    else:
        near = [number for number in numbers if _has_size(number, centre)]
    # 2. Several numbers far away are another opinion, and no error.
    return near if count - len(near) <= max(count // _MOST_GROSS, 1) else numbers


def _has_size(number: float, centre: float) -> bool:
    """Return whether a number is of the same order of magnitude as the median; of a median of zero, any number is."""
    low, high = sorted((abs(number), abs(centre)))
    return low == 0 or high < GROSS_FACTOR * low


def _within(numbers: Sequence[float], centre: float, limit: float) -> list[float]:
    return [number for number in numbers if abs(number - centre) <= limit]


def find_outliers(rule: str, numbers: Sequence[float]) -> list[float]:
    """Return the numbers that a rule left out of its mean, in their order.

    Args:
        rule: The rule's name in field rows, a key of `STATISTICS`.
        numbers: All numbers.

    Example:
        >>> find_outliers("consensus:robust_mean", [0, 0, 0, 90, 95]), find_outliers("consensus:median", [0, 0, 90])
        ([90, 95], [])
    """
    try:
        if rule.startswith("consensus:mean"):
            near = _without_gross_errors(numbers)
        elif rule.startswith("consensus:robust_mean"):
            centre = statistics.median(numbers)
            spread = _MAD_TO_SIGMA * statistics.median(abs(number - centre) for number in numbers)
            near = _within(numbers, centre, OUTLIER_LIMIT * spread)
        else:
            return []
    except OverflowError:
        return []
    return [number for number in numbers if number not in near]


def _compute_safely(function: Callable[[Sequence[float]], float], numbers: Sequence[float]) -> float:
    """Return the result of a function of numbers: exact if it is whole or one of the numbers, else to 15 digits.

    For numbers too large to compute with, return the lower median instead.
    """
    try:
        result = function(numbers)
        if not math.isfinite(result):
            return statistics.median_low(numbers)
    except OverflowError:
        return statistics.median_low(numbers)
    if isinstance(result, int) or result in numbers:
        return result
    result = float(f"{result:.15g}")
    whole = all(isinstance(number, int) for number in numbers) and result.is_integer()
    return int(result) if whole else result


ROW_RULES = {
    "screened_mean": "consensus:mean",
    "mean": "consensus:arithmetic_mean",
    "robust_mean": "consensus:robust_mean",
    "median": "consensus:median",
}
"""The names in field rows of the rules that compute a number; the first is the rule of numbers without another."""

STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "consensus:mean": screened_mean,
    "consensus:mean_rounded": lambda numbers: round(screened_mean(numbers)),
    "consensus:arithmetic_mean": mean,
    "consensus:arithmetic_mean_rounded": lambda numbers: round(mean(numbers)),
    "consensus:robust_mean": robust_mean,
    "consensus:robust_mean_rounded": lambda numbers: round(robust_mean(numbers)),
    "consensus:median": median,
    "consensus:median_rounded": lambda numbers: round(median(numbers)),
}
"""Functions of the rules that may give a new number, by their names in field rows; the audit recomputes them."""
