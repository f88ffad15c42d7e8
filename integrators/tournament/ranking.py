"""Bradley-Terry model: strengths, intervals and ranks from the results of matches.

The library choix fits it (`opt_pairwise`, Newton's method). The prior, normal with mean 0 and standard
deviation 2 in log-odds, keeps the strength of a variant that won or lost everything finite; with it, the
intervals contained the true strength in 91 to 100 % of simulated contests of 3 to 10 variants that met once
each, for true strengths with a standard deviation of 0.5, 1 and 2. A tie counts as half a win for each: every
match is passed to choix twice, and the precision of the prior is doubled to match. The intervals come from
the curvature (Hessian) at the optimum, relative to the mean of all strengths. `ep_pairwise` would give
strengths and variances at once, but uses NumPy's global random numbers.
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
"""Standard deviation of the prior of strengths, in log-odds."""

CONFIDENCE = 0.95
"""Confidence level of intervals and of comparisons with the best."""

_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_DIGITS = 4


class MatchResult(NamedTuple):
    """Result of a match."""

    one: str
    """The key of one variant."""
    two: str
    """The key of the other variant."""
    winner: str | None
    """The key of the winner; None for a tie."""


class Standing(NamedTuple):
    """Rank and figures of a variant."""

    key: str
    """The variant's key."""
    rank: int
    """1 is best; equal strengths share a rank."""
    score: float
    """The probability that it wins against a variant of average strength."""
    low: float
    """The lower end of the score's interval."""
    high: float
    """The upper end."""
    p_vs_best: float | None
    """p-value, two-sided, of the lead of the first variant over it, if both were equally good; None for the first."""
    wins: int
    """Matches won."""
    losses: int
    """Matches lost."""
    ties: int
    """Matches that ended without a winner."""


class Ranking(NamedTuple):
    """Ranking of a contest's variants."""

    standings: tuple[Standing, ...]
    """The ranked variants, best first."""
    unconnected: tuple[str, ...]
    """The keys of the variants that aren't connected with the ranked ones by matches."""
    cycles: tuple[tuple[str, ...], ...]
    """For each group of variants that beat each other in cycles, a shortest cycle."""


def require_library() -> None:
    """Check that the libraries are installed.

    Raises:
        JobError: If they aren't; the message has the command that installs them.
    """
    if find_spec("choix") is None:
        raise JobError("A tournament needs choix, which isn't installed: pip install 'prefect-dispatch[tournament]'.")


def rank_variants(keys: Sequence[str], results: Sequence[MatchResult]) -> Ranking:
    """Return the ranking of variants; the order of keys and results doesn't matter.

    Args:
        keys: The keys of the variants.
        results: The results of the matches.

    Example:
        >>> results = [MatchResult("a", "b", "a"), MatchResult("b", "c", None), MatchResult("a", "c", "a")]
        >>> ranking = rank_variants(["a", "b", "c"], results)
        >>> [(each.key, each.rank, each.score) for each in ranking.standings]
        [('a', 1, 0.7638), ('b', 2, 0.3573), ('c', 2, 0.3573)]
    """
    # 1. Only variants that are connected by matches can be compared: take the largest such group.
    keys, results = sorted(keys), sorted(results, key=lambda result: (*result[:2], result.winner or ""))
    group = max(
        _strong_components(keys, [*((r.one, r.two) for r in results), *((r.two, r.one) for r in results)]), key=len
    )
    if len(group) < 2:  # noqa: PLR2004 -- it takes two
        return Ranking((), tuple(keys), ())
    # 2. Fit the model.
    inside = [result for result in results if result.one in group]
    strengths, covariance = _fit_strengths(group, inside)
    # 3. Rank by strength, equal ones by key.
    order = sorted(range(len(group)), key=lambda at: (-strengths[at], group[at]))
    best = order[0]
    scores = [_win_probability(strength) for strength in strengths]
    standings = [
        Standing(
            group[at],
            1 + sum(score > scores[at] for score in scores),  # rounded scores: equal ones must share a rank
            scores[at],
            _win_probability(strengths[at] - _Z * sqrt(covariance[at][at])),
            _win_probability(strengths[at] + _Z * sqrt(covariance[at][at])),
            None if at == best else _lead_p_value(strengths, covariance, best, at),
            sum(result.winner == group[at] for result in inside),
            sum(group[at] in result[:2] and result.winner not in (None, group[at]) for result in inside),
            sum(group[at] in result[:2] and result.winner is None for result in inside),
        )
        for at in order
    ]
    ranked = [standing.key for standing in standings]
    return Ranking(tuple(standings), tuple(key for key in keys if key not in group), _find_cycles(ranked, results))


def _fit_strengths(keys: Sequence[str], results: Sequence[MatchResult]) -> tuple[list[float], list[list[float]]]:
    """Fit the model.

    Returns:
        The strengths in log-odds, with mean 0; and the covariance matrix of their errors.
    """
    choix: Any = import_module("choix")
    numpy: Any = import_module("numpy")
    index = {key: at for at, key in enumerate(keys)}
    # 1. Every match counts as two half wins: for a tie, one for each variant.
    half_wins: list[tuple[int, int]] = []
    for one, two, winner in results:
        a, b = index[one], index[two]
        half_wins += [(a, b), (b, a)] if winner is None else [(index[winner], a + b - index[winner])] * 2
    # 2. choix minimizes the loss plus alpha * |strengths|², so alpha is precision / 2, doubled as the matches are.
    precision = 1 / PRIOR_SD**2
    fitted = choix.opt_pairwise(len(keys), half_wins, alpha=precision, tol=1e-10)
    # 3. The curvature at the optimum: the prior's precision, and p * (1 - p) for each match.
    curvature = precision * numpy.identity(len(keys))
    for one, two, _ in results:
        a, b = index[one], index[two]
        chance = 1 / (1 + numpy.exp(fitted[b] - fitted[a]))
        curvature[[a, b, a, b], [a, b, b, a]] += chance * (1 - chance) * numpy.array([1, 1, -1, -1])
    # 4. Only differences of strengths have a meaning: center them on their mean.
    centre = numpy.identity(len(keys)) - 1 / len(keys)
    # Added to 0.0, a rounded -0.0 is 0.0.
    strengths = [round(float(strength), _DIGITS) + 0.0 for strength in centre @ fitted]
    return strengths, (centre @ numpy.linalg.inv(curvature) @ centre).tolist()


def _win_probability(strength: float) -> float:
    """Return the probability to win against a variant of strength 0, from a strength in log-odds."""
    return round(1 / (1 + exp(-strength)), _DIGITS)


def _lead_p_value(strengths: Sequence[float], covariance: Sequence[Sequence[float]], best: int, at: int) -> float:
    """Return the two-sided p-value of the difference of two strengths."""
    error = sqrt(covariance[best][best] + covariance[at][at] - 2 * covariance[best][at])
    return round(erfc((strengths[best] - strengths[at]) / error / sqrt(2)), _DIGITS)


def _strong_components(keys: Sequence[str], edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return the strongly connected components of a directed graph, each in the order of the keys."""
    numpy: Any = import_module("numpy")
    graphs: Any = import_module("scipy.sparse.csgraph")
    index = {key: at for at, key in enumerate(keys)}
    matrix = numpy.zeros((len(keys), len(keys)))
    for one, two in edges:
        matrix[index[one], index[two]] = 1
    _, labels = graphs.connected_components(matrix, directed=True, connection="strong")
    groups: dict[int, list[str]] = {}
    for key, label in zip(keys, labels.tolist(), strict=True):
        groups.setdefault(label, []).append(key)
    return list(groups.values())


def _find_cycles(keys: Sequence[str], results: Sequence[MatchResult]) -> tuple[tuple[str, ...], ...]:
    """Return, for each group of keys that beat each other in cycles, a shortest cycle from the first key of it."""
    beats = [(r.winner, r.two if r.winner == r.one else r.one) for r in results if r.winner is not None]
    beats = [(winner, loser) for winner, loser in beats if winner in keys]
    return tuple(_shortest_cycle(group, beats) for group in _strong_components(keys, beats) if len(group) > 1)


def _shortest_cycle(group: Sequence[str], beats: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Return a shortest cycle through the first key of a group, by breadth-first search.

    Args:
        group: Keys that beat each other in cycles (a strongly connected component).
        beats: Pairs of a winner and a loser.
    """
    losers = {key: sorted(loser for winner, loser in beats if winner == key and loser in group) for key in group}
    paths: deque[tuple[str, ...]] = deque([(group[0],)])
    reached = {group[0]}
    while group[0] not in losers[paths[0][-1]]:  # the queue has the shortest paths first
        path = paths.popleft()
        paths.extend((*path, loser) for loser in losers[path[-1]] if loser not in reached)
        reached.update(losers[path[-1]])
    return paths[0]
