"""Bradley and Terry's model: order, intervals, circles, and what matches can't connect."""

from __future__ import annotations

import random
import sys
from itertools import combinations
from math import exp, log
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.tournament.ranking import MatchResult, rank_variants, require_library

KEYS = ["a", "b", "c", "d", "e", "f"]
SURE = settings(deadline=None, max_examples=60)


def beats(text: str) -> list[MatchResult]:
    """Return results written as `a>b b=c`."""
    return [MatchResult(each[0], each[2], each[0] if each[1] == ">" else None) for each in text.split()]


@st.composite
def results(draw: st.DrawFn) -> list[MatchResult]:
    """Return some results among some keys."""
    pairs = draw(st.lists(st.sampled_from(list(combinations(KEYS, 2))), max_size=15))
    return [MatchResult(one, two, draw(st.sampled_from([one, two, None]))) for one, two in pairs]


@given(st.permutations(KEYS))
@SURE
def test_a_clear_order_is_found(order: list[str]) -> None:
    """Where everyone beats all that come after, the ranks are that order, each of its own."""
    found = rank_variants(KEYS, [MatchResult(one, two, one) for one, two in combinations(order, 2)])
    assert [(each.key, each.rank) for each in found.standings] == list(zip(order, range(1, 7), strict=True))
    assert (found.unconnected, found.cycles) == ((), ())


@given(st.data(), results())
@SURE
def test_the_order_of_results_does_not_matter(data: st.DataObject, played: list[MatchResult]) -> None:
    """Shuffled results and keys give the same ranking, to the last digit."""
    assert rank_variants(data.draw(st.permutations(KEYS)), data.draw(st.permutations(played))) == rank_variants(
        KEYS, played
    )


@given(results())
@SURE
def test_what_holds_of_any_ranking(played: list[MatchResult]) -> None:
    """Every key is ranked or apart; figures are in order and inside their intervals; matches add up."""
    found = rank_variants(KEYS, played)
    assert sorted([*(each.key for each in found.standings), *found.unconnected]) == KEYS
    scores = [each.score for each in found.standings]
    assert scores == sorted(scores, reverse=True)
    for each in found.standings:
        assert 0 <= each.low <= each.score <= each.high <= 1
        assert each.rank == 1 + sum(other.score > each.score for other in found.standings)
        assert (each.p_vs_best is None) == (each is found.standings[0])
        assert each.p_vs_best is None or 0 <= each.p_vs_best <= 1
    inside = [each for each in played if each.one not in found.unconnected]
    assert sum(each.wins + each.losses + each.ties for each in found.standings) == 2 * len(inside)
    assert sum(each.wins for each in found.standings) == sum(each.winner is not None for each in inside)


def test_scores_that_are_equal_as_shown_share_a_rank() -> None:
    """The strengths of `a` and `c` differ in their fourth digit, their scores do not."""
    found = rank_variants(KEYS, beats("b>c d>f d=e b>e c=e f>c d=e c>b d>b c=e f>a a=d b=d b>e"))
    shown = {each.key: (each.rank, each.score) for each in found.standings}
    assert len({rank for rank, _ in shown.values()}) == len({score for _, score in shown.values()})
    assert shown["a"][0] == 4


def test_of_two_by_hand() -> None:
    """The strength of two after one match is where its likelihood and the prior balance: d + 4 / (1 + e**d) … = 4."""
    first, second = rank_variants(["a", "b"], beats("a>b")).standings
    lead = 2 * log(first.score / (1 - first.score))
    # With strengths d/2 and -d/2, prior variance 4: the likelihood's slope 1 / (1 + e**d) is d / 8.
    assert 1 / (1 + exp(lead)) == pytest.approx(lead / 8, abs=2e-4)
    assert second.score == pytest.approx(1 - first.score, abs=1e-4)


def test_ties_only() -> None:
    """Where nobody wins, all share the first rank with even chances, and no sign of zero shows."""
    found = rank_variants(["a", "b", "c"], beats("a=b b=c a=c"))
    assert {(each.rank, str(each.score), each.ties) for each in found.standings} == {(1, "0.5", 2)}


def test_a_tie_is_half_a_win_for_each() -> None:
    """A win each, and two ties, come to the same order and scores, with the same number of matches."""
    won = rank_variants(["a", "b", "c"], beats("a>b b>a b>c"))
    tied = rank_variants(["a", "b", "c"], beats("a=b a=b b>c"))
    assert [each[:5] for each in won.standings] == [each[:5] for each in tied.standings]


def test_more_matches_make_surer() -> None:
    """The same share of wins over more matches has a narrower interval, and becomes a difference."""
    few, many = (rank_variants(["a", "b"], beats("a>b a>b a>b b>a") * times).standings for times in (1, 10))
    assert many[0].high - many[0].low < few[0].high - few[0].low
    assert few[1].p_vs_best is not None
    assert many[1].p_vs_best is not None
    assert many[1].p_vs_best < 0.05 < few[1].p_vs_best


def test_what_no_match_connects() -> None:
    """Only the largest group that matches connect is ranked: strengths of others can't be compared with theirs."""
    found = rank_variants(KEYS, beats("a>b b>c d>e"))
    assert [each.key for each in found.standings] == ["a", "b", "c"]
    assert found.unconnected == ("d", "e", "f")
    assert rank_variants(KEYS, []).unconnected == tuple(KEYS)
    assert rank_variants(["a"], []).unconnected == ("a",)


def test_of_groups_of_equal_size_the_first_is_ranked() -> None:
    """Ties between groups are broken by their keys."""
    assert rank_variants(["a", "b", "c", "d"], beats("c>d a>b")).unconnected == ("c", "d")


@pytest.mark.parametrize(
    ("played", "cycles"),
    [
        pytest.param("a>b b>c a>c", set[frozenset[str]](), id="none"),
        pytest.param("a>b b>c c>a", {frozenset("abc")}, id="three"),
        pytest.param("a>b b=c c>a", set[frozenset[str]](), id="a-tie-breaks-it"),
        pytest.param("a>b b>c c>a c>d d>e e>f f>d", {frozenset("abc"), frozenset("def")}, id="two"),
        pytest.param("a>b b>c c>d d>a a>c d>b", {frozenset("acd")}, id="a-shorter-one-inside"),
        pytest.param("a>b b>a", {frozenset("ab")}, id="two-matches-of-a-pair"),
    ],
)
def test_circles(played: str, cycles: set[frozenset[str]]) -> None:
    """Each group that beats itself in circles is told by a shortest one through its best, in order of the beating."""
    found = rank_variants(KEYS, beats(played))
    assert {frozenset(cycle) for cycle in found.cycles} == cycles
    won = {(each.winner, each.two if each.winner == each.one else each.one) for each in beats(played)}
    for cycle in found.cycles:
        assert all(step in won for step in zip(cycle, (*cycle[1:], cycle[0]), strict=True))


@pytest.mark.slow
def test_intervals_hold_what_they_promise() -> None:
    """In simulated contests of known strengths, at least 90 % of the intervals at 95 % hold the true score."""
    chance = random.Random(7)
    held: list[bool] = []
    for spread in (0.5, 1.0, 2.0):
        for _ in range(25):
            true = {key: chance.gauss(0, spread) for key in KEYS}
            mean = fmean(true.values())
            played = [
                MatchResult(one, two, one if chance.random() < 1 / (1 + exp(true[two] - true[one])) else two)
                for one, two in combinations(KEYS, 2)
            ]
            held += [
                each.low <= 1 / (1 + exp(mean - true[each.key])) <= each.high
                for each in rank_variants(KEYS, played).standings
            ]
    assert fmean(held) >= 0.9


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing extra is told together with how to get it."""
    require_library()
    monkeypatch.setitem(sys.modules, "choix", None)
    with pytest.raises(JobError, match=r"pip install 'prefect-dispatch\[tournament\]'"):
        require_library()
