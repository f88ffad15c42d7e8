"""Which pairs are judged, and in what rounds."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import TYPE_CHECKING

from prefect_dispatch.integrators.contests.matches import Match, Verdict, judging, questions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.contests.contests import Contest
    from prefect_dispatch.integrators.contests.matches import Pair

MATCHES_EACH = 12
"""Matches for each variant, where no number is set and there are more than 25: of 25, that is every pair."""


def played(
    contests: Sequence[Contest],
    criterion: str,
    ask: Asker,
    *,
    judge: Executor | None = None,
    most: int | None = None,
    inputs: Mapping[str, JsonValue] | None = None,
) -> list[Match]:
    """Return the matches of all contests; a round of each is asked at once.

    Args:
        contests: The contests.
        criterion: What makes one variant better.
        ask: Puts questions to the judge.
        judge: Who is asked. None: whoever `ask` takes.
        most: How many pairs of a contest may be judged at most (see `drawn`).
        inputs: What those who made the variants were given, by the contest's name.
    """
    brief, inputs = judging(criterion), inputs or {}
    matches: dict[str, list[Match]] = {contest.name: [] for contest in contests}
    while draw := [
        (contest, pair)
        for contest in contests
        for pair in drawn([variant.key for variant in contest.variants], matches[contest.name], most)
    ]:
        asked = [
            question
            for contest, pair in draw
            for question in questions(
                brief, contest, pair, {"context": inputs[contest.name]} if contest.name in inputs else {}
            )
        ]
        said = map(Verdict.of, ask(asked, judge))
        for (contest, pair), *verdicts in zip(draw, said, said, strict=True):
            matches[contest.name].append(Match(contest.name, pair, *verdicts))
    return [match for contest in contests for match in matches[contest.name]]


def pairs(variants: int, most: int | None) -> int:
    """Return how many pairs of so many variants are judged.

    Example:
        >>> pairs(6, None), pairs(25, None), pairs(40, None), pairs(6, 8)
        (15, 300, 480, 8)
    """
    return min(variants * (variants - 1) // 2, MATCHES_EACH * variants if most is None else most)


def drawn(keys: Sequence[str], played: Sequence[Match], most: int | None) -> list[Pair]:
    """Return the pairs of the next round; none if enough have been judged.

    All pairs in one round if that many may be judged. Otherwise first a ring, in the order of the
    keys, so that everything is compared with everything else by some way; then round after round
    those that stand closest to each other by their share of wins and haven't met.

    Args:
        keys: The variants' keys, in their order.
        played: The matches so far.
        most: How many pairs may be judged at most. None: every pair of up to 25 variants, and of
            more as many as make 12 matches for each.
    """
    every = list(combinations(keys, 2))
    met = {match.pair for match in played}
    if (most := pairs(len(keys), most)) == len(every):
        return [pair for pair in every if pair not in met]
    left = most - len(met)
    if not met:
        ring = [*pairwise(keys), (keys[0], keys[-1])]
        return ring[:left]
    return _closest(keys, played, met)[:left]


def _closest(keys: Sequence[str], played: Sequence[Match], met: set[Pair]) -> list[Pair]:
    waiting = sorted(keys, key=lambda key: (-_share(key, played), key))
    pairs: list[Pair] = []
    while waiting:
        one, *waiting = waiting
        near = next((two for two in waiting if (min(one, two), max(one, two)) not in met), None)
        if near is not None:
            waiting.remove(near)
            pairs.append((min(one, near), max(one, near)))
    return pairs


def _share(key: str, played: Sequence[Match]) -> float:
    """Return the share of its matches that a variant has won, ties counted as half."""
    results = [match.winner for match in played if match.counted and key in match.pair]
    points = sum(2 if winner == key else 1 if winner is None else 0 for winner in results)
    return points / (2 * len(results)) if results else 0.5
