"""How one ballot is decided: by counting votes, by what lies in the middle, or element by element."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple

from rapidfuzz import fuzz

from prefect_dispatch.integrators.records.decision import Decision
from prefect_dispatch.integrators.values import content, normal, order

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.records.rules import Claim
    from prefect_dispatch.integrators.votes.ballots import Ballot

ELEMENTS = "consensus:elements"
"""The rule of a row whose list holds what more than half of the agents have in theirs."""
OUTLYING = 3.5
"""Iglewicz and Hoaglin (How to Detect and Handle Outliers, 1993): the modified z-score above which a number is out."""
_TO_SIGMA = 1.4826
"""What makes the median absolute deviation of normal numbers their standard deviation."""
_DIGITS = 9
"""Decimals of a score; what differs less is a tie, however it was summed."""


class Verdict(NamedTuple):
    """How a ballot ended."""

    decision: Decision
    """The winner, and who said what."""
    tie: tuple[JsonValue, ...] = ()
    """The answers between which only preference decided, the winner first."""


def opinion(value: JsonValue) -> str:
    """Return what is equal for answers that are one: texts compare regardless of case, width and white space.

    Example:
        >>> opinion(" Yes") == opinion("yes") != opinion("no")
        True
    """
    return content(normal(value))


def elected(ballot: Ballot, scores: Mapping[str, float], rule: str) -> Verdict:
    """Return the verdict for the opinion of the highest score, as most of those who hold it write it.

    Args:
        ballot: The ballot.
        scores: The score of each opinion; one that is missing has none.
        rule: The rule's name.
    """
    held: dict[str, list[Claim]] = defaultdict(list)
    for claim in ballot.claims:
        held[opinion(claim.value)].append(claim)
    rounded = {each: round(scores.get(each, 0.0), _DIGITS) for each in held}
    best = max(rounded.values())
    tied = [each for each in held if rounded[each] == best]
    winners = held[tied[0]]
    written = Counter(claim.text for claim in winners)
    winner = max(winners, key=lambda claim: written[claim.text])
    tie = (winner.value, *(held[each][0].value for each in tied[1:])) if len(tied) > 1 else ()
    return Verdict(_picked(ballot, winner, rule), tie)


def counted(ballot: Ballot, weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the votes for each opinion, each agent's counting once or by its weight."""
    votes: dict[str, list[float]] = defaultdict(list)
    for claim in ballot.claims:
        votes[opinion(claim.value)].append(1.0 if weights is None else weights.get(claim.source.brief, 1.0))
    return {each: math.fsum(cast) for each, cast in votes.items()}


def preferred(ballot: Ballot) -> Verdict:
    """Return the verdict for the agent of the highest priority."""
    return Verdict(_picked(ballot, ballot.claims[0], "priority"))


def medoid(ballot: Ballot) -> Verdict:
    """Return the verdict for the text that is most like all the others (rapidfuzz's ratio, summed)."""
    said = Counter(_text(claim) for claim in ballot.claims)
    sums = {
        text: math.fsum(times * fuzz.ratio(text, other, processor=None) for other, times in said.items())
        for text in said
    }
    near = {opinion_: round(total, _DIGITS) for opinion_, total in sums.items()}
    winner = max(ballot.claims, key=lambda claim: near[_text(claim)])
    tied = [text for text in said if near[text] == near[_text(winner)]]
    tie = (winner.value, *(text for text in tied if text != _text(winner))) if len(tied) > 1 else ()
    return Verdict(_picked(ballot, winner, "medoid"), tie)


def middle(ballot: Ballot, rule: str) -> Verdict:
    """Return the verdict that a function of the numbers gives; it may be a number that nobody said.

    Where half or more say something else than a number, the most frequent answer is taken instead.
    """
    numbers = [claim for claim in ballot.claims if is_number(claim.value)]
    if 2 * len(numbers) <= len(ballot.claims):
        return elected(ballot, counted(ballot), "majority")
    if len({claim.text for claim in numbers}) == 1:
        return Verdict(_picked(ballot, numbers[0], "majority"))
    result = COMPUTED[rule]([claim.value for claim in numbers])  # type: ignore[misc]
    text = content(result)
    winner = next((claim.value for claim in numbers if claim.text == text), result)
    losing = [claim for claim in ballot.claims if claim.text != text]
    return Verdict(Decision(ballot.path, rule, winner, ballot.claims, losing, ballot.claims))


def gathered(ballot: Ballot) -> Verdict:
    """Return the verdict on lists: the list that more than half have, or else what more than half have in theirs."""
    whole = Counter(claim.text for claim in ballot.claims)
    most = max(ballot.claims, key=lambda claim: whole[claim.text])
    if 2 * whole[most.text] > len(ballot.claims):
        return Verdict(_picked(ballot, most, "majority"))
    kept = elements(ballot.claims)
    texts = {content(element) for element in kept}
    backers: list[Claim] = []
    losing: list[Claim] = []
    for claim in ballot.claims:
        said = claim.value if isinstance(claim.value, list) else [claim.value]
        if not kept or any(content(element) in texts for element in said):
            backers.append(claim)
        out = [element for element in said if content(element) not in texts]
        losing += [claim._replace(value=element, text=content(element)) for element in out]
        if kept and not said:
            losing.append(claim)
    return Verdict(Decision(ballot.path, ELEMENTS, kept, backers, losing, backers))


def elements(claims: Sequence[Claim]) -> list[JsonValue]:
    """Return what more than half of the agents have in their lists, each as most of them write it, sorted."""
    held: dict[str, dict[int, JsonValue]] = defaultdict(dict)
    for claim in claims:
        for element in claim.value if isinstance(claim.value, list) else ():
            held[opinion(element)].setdefault(claim.rank[-1], element)
    kept: list[JsonValue] = []
    for said in held.values():
        if 2 * len(said) > len(claims):
            written = Counter(map(content, said.values()))
            kept.append(min(said.values(), key=lambda element: (-written[content(element)], content(element))))
    return sorted(kept, key=lambda element: (order(element), content(element)))


def is_number(value: JsonValue) -> bool:
    """Return whether a value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def robust_mean(numbers: Sequence[float]) -> float:
    """Return the mean of what is left without outliers.

    A number is left out if it is further than 3.5 times the scaled median absolute deviation
    from the median; where more than half are equal, that is their mean.

    Example:
        >>> robust_mean([10, 11, 12, 500])
        11
    """
    return _safely(_robust_mean, numbers)


def median(numbers: Sequence[float]) -> float:
    """Return the number in the middle, or half-way between the two in the middle."""
    return _safely(statistics.median, numbers)


def _robust_mean(numbers: Sequence[float]) -> float:
    centre = statistics.median(numbers)
    spread = _TO_SIGMA * statistics.median(abs(number - centre) for number in numbers)
    if spread == 0:
        return centre
    return statistics.mean(number for number in numbers if abs(number - centre) <= OUTLYING * spread)


def _safely(function: Callable[[Sequence[float]], float], numbers: Sequence[float]) -> float:
    """Return the result: exactly, where it is whole or somebody said it, else at fifteen digits.

    Of numbers too large to compute with, the lower one in the middle.
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


def _rounded(function: Callable[[Sequence[float]], float]) -> Callable[[Sequence[float]], float]:
    return lambda numbers: round(function(numbers))


COMPUTED: dict[str, Callable[[Sequence[float]], float]] = {
    "consensus:mean": robust_mean,
    "consensus:mean_rounded": _rounded(robust_mean),
    "consensus:median": median,
    "consensus:median_rounded": _rounded(median),
}
"""The rules that may give a number nobody said, by the name that field rows hold: the audit computes them again."""


def _picked(ballot: Ballot, winner: Claim, rule: str) -> Decision:
    backers = [claim for claim in ballot.claims if claim.text == winner.text]
    losing = [claim for claim in ballot.claims if claim.text != winner.text]
    return Decision(ballot.path, rule, winner.value, backers, losing, backers[:1])


def _text(claim: Claim) -> str:
    return claim.value if isinstance(claim.value, str) else claim.text
