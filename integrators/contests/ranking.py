"""Bradley and Terry's model: strengths, intervals and ranks from the results of matches.

choix fits it (`opt_pairwise`, Newton). The prior, normal with mean 0 and standard deviation 2 in
log-odds, keeps the strength of a variant that won or lost everything finite; with it, the intervals
held the true strength in 91 to 100 % of simulated contests of 3 to 10 variants that met once each,
for true strengths spread by 0.5, 1 and 2. A tie counts as half a win for each: every match is given
to choix twice, and the prior is doubled with it. The intervals come from the curvature there, as
seen from the mean of all strengths. `ep_pairwise` would give both at once, but draws from NumPy's
global random numbers.
"""

from __future__ import annotations

from collections import deque
from importlib import import_module
from importlib.util import find_spec
from math import erfc, exp, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Sequence

PRIOR_SD = 2.0
"""The standard deviation of strengths, in log-odds, that is taken for granted before the first match."""

SURE = 0.95
"""How sure intervals and comparisons with the best are."""

_Z = NormalDist().inv_cdf((1 + SURE) / 2)
_DIGITS = 4


class Result(NamedTuple):
    """How a match ended."""

    one: str
    """One variant."""
    two: str
    """The other one."""
    winner: str | None
    """Which of them won; None for a tie."""


class Standing(NamedTuple):
    """Where a variant stands."""

    key: str
    """The variant."""
    rank: int
    """1 is best; equal strengths share a rank."""
    score: float
    """The chance that it wins against a variant of average strength."""
    low: float
    """The lower end of the score's interval."""
    high: float
    """The upper end."""
    p_vs_best: float | None
    """How likely a lead like the first one's over it would be if they were equally good; None for the first."""
    wins: int
    """Matches won."""
    losses: int
    """Matches lost."""
    ties: int
    """Matches that ended without a winner."""


class Ranking(NamedTuple):
    """What follows from the matches of a contest."""

    standings: tuple[Standing, ...]
    """Best first."""
    apart: tuple[str, ...]
    """Variants that no way of matches connects with those."""
    cycles: tuple[tuple[str, ...], ...]
    """For each group of variants that beat each other in a circle, a shortest such circle."""


def require_library() -> None:
    """Check that the libraries are there.

    Raises:
        JobError: If they aren't; it says how to get them.
    """
    if find_spec("choix") is None:
        raise JobError("A tournament needs choix, which isn't installed: pip install 'prefect-dispatch[tournament]'.")


def rank(keys: Sequence[str], results: Sequence[Result]) -> Ranking:
    """Return where each variant stands; the order of keys and results doesn't matter.

    Example:
        >>> found = rank(["a", "b", "c"], [Result("a", "b", "a"), Result("b", "c", None), Result("a", "c", "a")])
        >>> [(each.key, each.rank, each.score) for each in found.standings]
        [('a', 1, 0.7638), ('b', 2, 0.3573), ('c', 2, 0.3573)]
    """
    keys, results = sorted(keys), sorted(results, key=lambda result: (*result[:2], result.winner or ""))
    group = max(_groups(keys, [*((r.one, r.two) for r in results), *((r.two, r.one) for r in results)]), key=len)
    if len(group) < 2:  # noqa: PLR2004 -- it takes two
        return Ranking((), tuple(keys), ())
    inside = [result for result in results if result.one in group]
    strengths, spread = _fitted(group, inside)
    order = sorted(range(len(group)), key=lambda at: (-strengths[at], group[at]))
    best = order[0]
    scores = [_chance(strength) for strength in strengths]
    standings = [
        Standing(
            group[at],
            1 + sum(score > scores[at] for score in scores),  # as shown: strengths may differ in a digit more
            scores[at],
            _chance(strengths[at] - _Z * sqrt(spread[at][at])),
            _chance(strengths[at] + _Z * sqrt(spread[at][at])),
            None if at == best else _chance_of_lead(strengths, spread, best, at),
            sum(result.winner == group[at] for result in inside),
            sum(group[at] in result[:2] and result.winner not in (None, group[at]) for result in inside),
            sum(group[at] in result[:2] and result.winner is None for result in inside),
        )
        for at in order
    ]
    ranked = [standing.key for standing in standings]
    return Ranking(tuple(standings), tuple(key for key in keys if key not in group), _cycles(ranked, results))


def _fitted(keys: Sequence[str], results: Sequence[Result]) -> tuple[list[float], list[list[float]]]:
    """Return strengths in log-odds, their mean being 0, and the covariance of their errors."""
    choix: Any = import_module("choix")
    numpy: Any = import_module("numpy")
    place = {key: at for at, key in enumerate(keys)}
    halves: list[tuple[int, int]] = []
    for one, two, winner in results:
        a, b = place[one], place[two]
        halves += [(a, b), (b, a)] if winner is None else [(place[winner], a + b - place[winner])] * 2
    precision = 1 / PRIOR_SD**2
    found = choix.opt_pairwise(len(keys), halves, alpha=precision, tol=1e-10)  # twice precision / 2, see above
    curvature = precision * numpy.identity(len(keys))
    for one, two, _ in results:
        a, b = place[one], place[two]
        chance = 1 / (1 + numpy.exp(found[b] - found[a]))
        curvature[[a, b, a, b], [a, b, b, a]] += chance * (1 - chance) * numpy.array([1, 1, -1, -1])
    centre = numpy.identity(len(keys)) - 1 / len(keys)
    # Added to 0.0, a rounded -0.0 is 0.0.
    strengths = [round(float(strength), _DIGITS) + 0.0 for strength in centre @ found]
    return strengths, (centre @ numpy.linalg.inv(curvature) @ centre).tolist()


def _chance(strength: float) -> float:
    return round(1 / (1 + exp(-strength)), _DIGITS)


def _chance_of_lead(strengths: Sequence[float], spread: Sequence[Sequence[float]], best: int, at: int) -> float:
    error = sqrt(spread[best][best] + spread[at][at] - 2 * spread[best][at])
    return round(erfc((strengths[best] - strengths[at]) / error / sqrt(2)), _DIGITS)


def _groups(keys: Sequence[str], arrows: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return the keys that can reach each other along arrows, each group in the order of the keys."""
    numpy: Any = import_module("numpy")
    graphs: Any = import_module("scipy.sparse.csgraph")
    place = {key: at for at, key in enumerate(keys)}
    matrix = numpy.zeros((len(keys), len(keys)))
    for one, two in arrows:
        matrix[place[one], place[two]] = 1
    _, labels = graphs.connected_components(matrix, directed=True, connection="strong")
    groups: dict[int, list[str]] = {}
    for key, label in zip(keys, labels.tolist(), strict=True):
        groups.setdefault(label, []).append(key)
    return list(groups.values())


def _cycles(keys: Sequence[str], results: Sequence[Result]) -> tuple[tuple[str, ...], ...]:
    """Return, for each group of keys that beat each other in a circle, a shortest circle from the first of them."""
    beats = [(r.winner, r.two if r.winner == r.one else r.one) for r in results if r.winner is not None]
    beats = [(winner, loser) for winner, loser in beats if winner in keys]
    return tuple(_circle(group, beats) for group in _groups(keys, beats) if len(group) > 1)


def _circle(group: Sequence[str], beats: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    lost = {key: sorted(loser for winner, loser in beats if winner == key and loser in group) for key in group}
    ways: deque[tuple[str, ...]] = deque([(group[0],)])
    reached = {group[0]}
    while group[0] not in lost[ways[0][-1]]:  # the shortest ways stand first
        way = ways.popleft()
        ways.extend((*way, loser) for loser in lost[way[-1]] if loser not in reached)
        reached.update(lost[way[-1]])
    return ways[0]
