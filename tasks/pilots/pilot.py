"""Pilot of a run: which work is asked first, and what its answers say about the rest.

The sample is stratified and deterministic: the same work gives the same sample in any order. The projected bill has a
prediction interval.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from operator import itemgetter
from statistics import fmean, median
from typing import TYPE_CHECKING, Literal, cast

from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.security.escaping import shorten, strip_control_chars, value_text
from prefect_dispatch.serialization.json_text import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.limits import Pilot
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.tasks.work_item import WorkItem


CONFIDENCE = 0.95
"""Probability with which the projected bill's interval covers the bill."""
MIN_FOR_LINE = 4
"""Answers that a line of cost over size needs; with fewer, the mean is projected."""
MAX_FIELDS = 10
"""Fields of the answers whose spread is described, at most."""
MAX_VALUE = 60
"""Characters of a value in such a description, at most."""
_EXTENSION = re.compile(r"\.[A-Za-z]\w{0,7}$")


def size_of(work: WorkItem) -> int:
    """Return the size of an item in characters, which its tokens and its cost depend on."""
    value = work.item.value
    return len(value) if isinstance(value, str) else len(canonical_json(value))


def stratum_of(work: WorkItem) -> tuple[str, str, str]:
    """Return the stratum of some work: its brief, and the folder and the kind of file in its item's key.

    Example:
        >>> from prefect_dispatch import Brief, Item
        >>> from prefect_dispatch.tasks.work_item import WorkItem
        >>> stratum_of(WorkItem(Brief(name="terms", instructions="Read it."), Item(key="old/mit.txt", value=""), ""))
        ('terms', 'old', '.txt')
    """
    folder, _, name = work.item.key.rpartition("/")
    extension = _EXTENSION.search(name)
    return work.brief.name, folder, extension[0].lower() if extension else ""


def draw_sample(work: Sequence[WorkItem], count: int) -> list[WorkItem]:
    """Return a stratified sample of some work, which depends on nothing but the work.

    Strata are briefs and sources (see `stratum_of`). Each gets at least one place, and the others are divided in
    proportion to their sizes by d'Hondt's method. Within a stratum, every k-th by size is taken: systematic sampling
    of an ordered list (Cochran, Sampling Techniques, 3rd edition, 1977, chapters 5 and 8). Where there are more strata
    than places, the whole, ordered by stratum and size, is sampled in that way.

    Args:
        work: The work, without equal ones; more than `count`.
        count: The size of the sample.
    """
    ordered = sorted(work, key=lambda each: (stratum_of(each), size_of(each), each.fingerprint))
    strata: dict[tuple[str, str, str], list[WorkItem]] = {}
    for each in ordered:
        strata.setdefault(stratum_of(each), []).append(each)
    if len(strata) > count:
        return _every_kth(ordered, count)
    # d'Hondt: the next place goes to the stratum that has most work for each place it would have.
    groups = list(strata.values())
    places = [1] * len(groups)
    for _ in range(count - len(groups)):
        pairs = zip(groups, places, strict=True)
        shares = [len(group) / (taken + 1) if taken < len(group) else 0.0 for group, taken in pairs]
        places[shares.index(max(shares))] += 1
    return [each for group, taken in zip(groups, places, strict=True) for each in _every_kth(group, taken)]


def _every_kth(ordered: Sequence[WorkItem], count: int) -> list[WorkItem]:
    """Return so many of a list at equal distances, from the middle of the first distance."""
    return [ordered[(2 * at + 1) * len(ordered) // (2 * count)] for at in range(count)]


class Interval(Strict):
    """A projected amount with its interval."""

    estimate: float
    """The most likely amount."""
    low: float | None
    """The lower end; empty where there are too few answers for an interval."""
    high: float | None
    """The upper end."""


def student_quantile(confidence: float, degrees: int) -> float:
    """Return the t that Student's distribution exceeds in absolute value with a probability of 1 - confidence.

    The distribution function is the finite sum for whole degrees of freedom (Abramowitz and Stegun, Handbook of
    Mathematical Functions, 1964, 26.7.3 and 26.7.4), inverted by bisection of the angle with tangent t/√degrees.

    Example:
        >>> [round(student_quantile(0.95, degrees), 3) for degrees in (1, 2, 5, 30)]
        [12.706, 4.303, 2.571, 2.042]
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        cosine, is_odd = math.cos(angle), degrees % 2
        # 1. Sum the powers of the cosine: each coefficient follows from the one before.
        term = total = (cosine if degrees > 1 else 0.0) if is_odd else 1.0
        for power in range(3 if is_odd else 2, degrees - 1, 2):
            term *= cosine * cosine * (power - 1) / power
            total += term
        # 2. Halve the interval of the angle.
        share = math.sin(angle) * total
        share = 2 / math.pi * (angle + share) if is_odd else share
        low, high = (angle, high) if share < confidence else (low, angle)
    return math.tan(low) * math.sqrt(degrees)


def project_total(
    sizes: Sequence[int], costs: Sequence[float], rest: Sequence[int], *, price_ratio: float = 1.0
) -> Interval:
    """Return what a sample has cost and the rest will cost, with a prediction interval.

    The rest's sum is predicted by the least-squares line of cost over size, or by the mean where sizes say nothing (all
    equal, a falling line, or fewer than four answers). Its interval is Student's for the sum of m new observations:
    t · s · √(m + m²·(1/n + (x̄ᵣ - x̄)²/Sxx)), with n - 2 degrees of freedom; for the mean without the last term, with
    n - 1. The prediction approach of Valliant, Dorfman and Royall, Finite Population Sampling and Inference, 2000,
    chapter 2; the formula also in Draper and Smith, Applied Regression Analysis, 3rd edition, 1998, section 3.1. It
    assumes that the sample's deviations are those of the rest: of few answers, a rare and very long one is missing.

    Args:
        sizes: The sizes of the sample's items.
        costs: Their costs in US dollars.
        rest: The sizes of the other items.
        price_ratio: The price of the rest divided by that of the sample.

    Example:
        >>> project_total([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], [10] * 5).estimate
        6.0
        >>> project_total([1], [0.5], [1]).high is None
        True
    """
    n, m = len(costs), len(rest)
    mean_size, mean_cost = fmean(sizes), fmean(costs)
    deviation = sum((size - mean_size) ** 2 for size in sizes)
    slope = 0.0
    if n >= MIN_FOR_LINE and deviation:
        products = ((size - mean_size) * (cost - mean_cost) for size, cost in zip(sizes, costs, strict=True))
        slope = max(0.0, math.fsum(products) / deviation)
    distance = fmean(rest) - mean_size if rest else 0.0
    spent, expected = math.fsum(costs), price_ratio * m * (mean_cost + slope * distance)
    degrees = n - 2 if slope else n - 1
    if degrees < 1:
        return Interval(estimate=round(spent + expected, 6), low=None, high=None)

    residuals = (cost - mean_cost - slope * (size - mean_size) for size, cost in zip(sizes, costs, strict=True))
    variance = math.fsum(each * each for each in residuals) / degrees
    lever = 1 / n + (distance**2 / deviation if slope else 0.0)
    quantile = student_quantile(CONFIDENCE, degrees)
    half = price_ratio * quantile * math.sqrt(variance * (m + m * m * lever))
    return Interval(
        estimate=round(spent + expected, 6),
        low=round(spent + max(0.0, expected - half), 6),
        high=round(spent + expected + half, 6),
    )


class PilotResult(Strict):
    """Figures of a pilot, and what was decided by them."""

    asked: int
    """How many asks were answered first."""
    rest: int
    """How many are left to ask."""
    valid: int
    """How many of the first have a valid answer."""
    reasked: int
    """How many needed a re-ask."""
    usd_each: tuple[float, float, float] | None
    """Cost of the cheapest, of the mean and of the dearest in US dollars; empty where a price is unknown."""
    projected_usd: Interval | None
    """The projected bill of all asks, the first included and the integrator's left out; empty where unknown."""
    spread: tuple[str, ...] = ()
    """How the valid answers differ: a sentence for each field."""
    problems: tuple[str, ...] = ()
    """Why there is no valid answer: kinds of failure with their counts."""
    gate: Literal["ask", "auto", "report"] = "ask"
    """The gate."""
    decision: Literal["go on", "stop", "open"] = "open"
    """What was decided; `open`: nothing yet, as no person could be asked."""
    why: str = ""
    """Why, in a sentence."""

    @property
    def lines(self) -> list[str]:
        """The figures as sentences; the spread holds text of answers."""
        projected = self.projected_usd
        bill = "Projected bill: unknown, as a price is unknown."
        if projected is not None:
            between = "" if projected.low is None else f" (95 %: ${projected.low:.4f} to ${projected.high:.4f})"
            bill = f"Projected bill: ${projected.estimate:.4f}{between}, without the integrator's own queries."
        each = "unknown"
        if self.usd_each is not None:
            low, mean, high = self.usd_each
            each = f"${mean:.6f} on average, ${low:.6f} to ${high:.6f}"
        lines = [
            f"Pilot: {self.asked} asked first, {self.rest} left.",
            f"Valid answers: {self.valid} of {self.asked}; {self.reasked} needed a re-ask.",
            f"Cost of each: {each}.",
            bill,
        ]
        return lines + ([f"No valid answer: {', '.join(self.problems)}."] if self.problems else [])


def missed_thresholds(result: PilotResult, limits: Pilot) -> Iterator[str]:
    """Yield a sentence for each threshold that a pilot missed.

    Args:
        result: The figures of the pilot.
        limits: Its limits.
    """
    asked = result.asked
    if limits.min_success is not None and result.valid / asked < limits.min_success:
        yield f"{result.valid} of {asked} are valid, and limits.pilot.min_success is {limits.min_success:g}"
    if limits.max_reask_rate is not None and result.reasked / asked > limits.max_reask_rate:
        rate = f"limits.pilot.max_reask_rate is {limits.max_reask_rate:g}"
        yield f"{result.reasked} of {asked} needed a re-ask, and {rate}"
    if limits.max_usd is not None:
        projected = result.projected_usd
        if projected is None:
            yield "the bill is unknown, and limits.pilot.max_usd is set"
        elif (most := projected.estimate if projected.high is None else projected.high) > limits.max_usd:
            yield f"the projected bill is up to ${most:.4f}, and limits.pilot.max_usd is {limits.max_usd:g}"


def evaluate_pilot(
    sample: Mapping[str, WorkItem],
    outcomes: Sequence[Outcome],
    rest: Sequence[WorkItem],
    pilot: Pilot,
    *,
    price_ratio: float = 1.0,
) -> PilotResult:
    """Return the figures of a pilot.

    Args:
        sample: The work of the pilot, by fingerprint.
        outcomes: An outcome for each of it.
        rest: The work that is left to ask, without equal ones.
        pilot: Its limits.
        price_ratio: The price of the rest divided by that of the sample.
    """
    sent = [outcome for outcome in outcomes if outcome.attempts]
    usages = [sum((attempt.usage for attempt in outcome.attempts), Usage()) for outcome in sent]
    sizes = [size_of(sample[outcome.fingerprint]) for outcome in sent]
    costs = [usage.cost_usd for usage in usages]
    projected = each = None
    if costs and None not in costs and not any(usage.unsettled for usage in usages):
        known = cast("list[float]", costs)
        each = min(known), fmean(known), max(known)
        projected = project_total(sizes, known, list(map(size_of, rest)), price_ratio=price_ratio)
    kinds = Counter(outcome.error.kind for outcome in outcomes if outcome.error)
    return PilotResult(
        asked=len(outcomes),
        rest=len(rest),
        valid=sum(outcome.status == "succeeded" for outcome in outcomes),
        reasked=sum(any(attempt.reasks for attempt in outcome.attempts) for outcome in outcomes),
        usd_each=each,
        projected_usd=projected,
        spread=tuple(describe_spread([outcome.value for outcome in outcomes if outcome.status == "succeeded"])),
        problems=tuple(f"{count} {kind}" for kind, count in sorted(kinds.items())),
        gate=pilot.gate,
    )


def describe_spread(values: Sequence[JsonValue]) -> Iterator[str]:
    """Yield how answers differ: for each top-level field, or for the whole where they aren't objects.

    Example:
        >>> list(describe_spread([{"year": 1987, "free": True}, {"year": 1991, "free": True}, {"year": 1988}]))
        ['free: given in 2 of 3; 1 different, most often true (2)', 'year: 1987 to 1991, median 1988']
    """
    if not values:
        return
    objects = [value for value in values if isinstance(value, dict)]
    if len(objects) < len(values):
        yield f"answers: {_describe_values(values)}"
        return
    for name in sorted({name for value in objects for name in value})[:MAX_FIELDS]:
        given = [value[name] for value in objects if name in value]
        lacking = f"given in {len(given)} of {len(objects)}; " if len(given) < len(objects) else ""
        yield f"{_format_figure(name)}: {lacking}{_describe_values(given)}"


def _describe_values(values: Sequence[JsonValue]) -> str:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(values):
        return f"{min(numbers):g} to {max(numbers):g}, median {median(numbers):g}"
    counts = Counter(map(canonical_json, values))
    text, times = max(counts.items(), key=itemgetter(1))
    common = next(value for value in values if canonical_json(value) == text)
    often = f", most often {_format_figure(value_text(common))} ({times})" if times > 1 else ""
    return f"{len(counts)} different{often}"


def _format_figure(text: str) -> str:
    return shorten(" ".join(strip_control_chars(text).split()), MAX_VALUE)
