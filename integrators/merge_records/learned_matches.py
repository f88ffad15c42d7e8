"""Matches learned without labels: how much agreement in each field says about records being the same.

The model is that of Fellegi and Sunter (A Theory for Record Linkage, JASA 1969), fitted by expectation maximization.
Records are compared as bags of words: a word counts as much as it is rare, in each field, in all fields together, and
the numbers and codes of all fields once more. So neither a long text with one telling word, nor values in the wrong
field, need any configuration. Of each comparison only the level of agreement counts, from none to equal; a missing
value has none. Every level is some evidence for or against a match: the logarithm of its share among matches, divided
by that among other pairs. Both shares, and how many pairs match, are estimated from all compared pairs in turns.

Only a pair of which one record is the most similar to the other can be a match while the model learns: any other pair
that agrees as well is an example of what agrees by chance. Weights of words are integers, and nothing is drawn at
random, so that equal records give equal results, byte for byte.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache
from heapq import heappush, heapreplace
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from rapidfuzz.distance import OSA

from prefect_dispatch.integrators.merge_records.similarity import ComparableText, prepare_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from prefect_dispatch.integrators.merge_records.similarity import Matching

NEAREST = 5
"""Number of the most similar candidates of a record that are compared word by word."""
_BOUNDS = (0.15, 0.35, 0.55, 0.75, 0.97)
"""Similarities at which the next level of agreement begins."""
_MATCHES = (0.02, 0.03, 0.05, 0.1, 0.2, 0.6)
_OTHERS = (0.4, 0.25, 0.15, 0.1, 0.06, 0.04)
"""Shares of the levels among matches, and among other pairs, before any are counted."""
_PRIOR = 5
"""Number of pairs that these shares count as much as."""
_PRIOR_MATCHES = 0.1
"""Share of matches among the compared pairs, before any are counted."""
_ROUNDS, _PRECISION = 100, 1e-6
_LEAST_MEAN = 0.5  # probability between two sets of records that are linked
_ALIKE = 0.7  # similarity of words from which they may be spellings of one
_MIN_LENGTH, _MIN_DIGITS = 4, 5  # characters of a word, and of a number or code, that may be misspelt
_WHOLE, _MARKS = "all words", "numbers and codes"
Candidates = Iterable[tuple[int, list[int]]]
"""Indices of records, each with those of preceding records that it may be the same as."""
_Pair = tuple[int, int]
_Pattern = tuple[int, ...]
"""The level of agreement in each column, -1 where a value is missing."""


class LearnedMatch(NamedTuple):
    """Two records that may be the same."""

    left: int
    """The index of the first record."""
    right: int
    """The index of the second record, which is greater."""
    probability: float
    """The probability that they are the same."""
    is_sure: bool
    """Whether it is a certain match."""
    why: str
    """The compared columns and their similarity, as a sentence."""


class _Column:
    """The words of all records in one field, or in several, with the weight of each word."""

    def __init__(self, name: str, bags: Sequence[frozenset[str]], *, exact: bool = False) -> None:
        """Weigh the words: by the logarithm of the number of records for one that has it, in thousandths."""
        self.name, self.bags, self._exact = name, bags, exact
        counts = Counter(word for bag in bags for word in bag)
        self._weights = {word: 10 + round(1000 * math.log((len(bags) + 1) / count)) for word, count in counts.items()}
        self._totals = [sum(map(self._weights.__getitem__, bag)) for bag in bags]

    def shared_weight(self, one: int, other: int) -> float:
        """Return the share of the weight of two records' words that both have."""
        common = self.bags[one] & self.bags[other]
        return 2 * sum(map(self._weights.__getitem__, common)) / (self._totals[one] + self._totals[other] or 1)

    def similarity(self, one: int, other: int) -> float | None:
        """Return the share of the weight of words that both have, spelt alike at least; None if one has no words."""
        left, right = self.bags[one], self.bags[other]
        if not left or not right:
            return None
        if left == right:
            return 1.0
        # 1. Equal words.
        common, weights = left & right, self._weights
        found: float = 2 * sum(map(weights.__getitem__, common))
        # 2. Of the others, pair what is spelt alike, the most similar first.
        if not self._exact and len(common) < min(len(left), len(right)):
            alike = sorted(
                (-score, a, b)
                for a in left - common
                for b in right - common
                if (score := _word_similarity(a, b) if a < b else _word_similarity(b, a))
            )
            free = {*left, *right} - common
            for score, a, b in alike:
                if a in free and b in free:
                    free -= {a, b}
                    found -= score * (weights[a] + weights[b])
        return found / (self._totals[one] + self._totals[other])


@lru_cache(maxsize=1 << 18)
def _word_similarity(one: str, other: str) -> float:
    """Return the similarity of two different words; 0 if they are no spellings of one."""
    short, long = sorted((one, other), key=len)
    if short.isalpha() and long.isalpha():
        if len(short) >= _MIN_LENGTH and (score := OSA.normalized_similarity(short, long, score_cutoff=_ALIKE)):
            return score
        return _ALIKE if long.startswith(short) else 0.0
    # A number or code with one character less, more or another may be another one: it counts for less.
    close = len(short) >= _MIN_DIGITS and OSA.distance(short, long, score_cutoff=1) <= 1
    return 0.8 * OSA.normalized_similarity(short, long) if close else 0.0


def learn_matches(
    records: Sequence[Mapping[str, Sequence[ComparableText]]],
    find_candidates: Callable[[Sequence[ComparableText]], Candidates],
    matching: Matching,
) -> list[LearnedMatch]:
    """Return the pairs of records that are probably the same.

    Args:
        records: The values of each field of the records, in an order that does not depend on chance.
        find_candidates: Returns the candidates of each record, by all words of the records.
        matching: The probabilities from which pairs are certain, and are proposed.
    """
    columns = _make_columns(records)
    *_, whole, _ = columns
    candidates = find_candidates([ComparableText("", tuple(sorted(bag)), ()) for bag in whole.bags])
    # 1. Compare each record with its nearest candidates.
    pairs = sorted(_nearest_pairs(whole, candidates))
    similarities = [tuple(column.similarity(*pair) for column in columns) for pair in pairs]
    patterns = [tuple(map(_level, values)) for values in similarities]
    # 2. Learn from the pairs of which one is the most similar to the other, and from all others as no matches.
    scores = [values[-2] or 0.0 for values in similarities]
    may_match = _find_nearest(pairs, scores)
    by_pattern = fit(Counter(zip(may_match, patterns, strict=True)))
    probability = {pair: by_pattern[pattern] for pair, pattern in zip(pairs, patterns, strict=True)}
    # 3. Of three records or more that are the same, each is nearest to one alone: link what fits the whole set.
    best_first = sorted(zip(scores, pairs, strict=True), key=lambda each: (-each[0], each[1]))
    sure = link_sets([pair for _, pair in best_first if probability[pair] >= matching.sure], probability)
    return [
        LearnedMatch(*pair, round(probability[pair], 4), pair in sure, _explain(columns, values))
        for pair, values, may in zip(pairs, similarities, may_match, strict=True)
        if pair in sure or (may and probability[pair] >= matching.propose)
    ]


def _find_nearest(pairs: Sequence[_Pair], scores: Sequence[float]) -> list[bool]:
    """Return for each pair whether no other record is more similar to one of the two."""
    best: defaultdict[int, float] = defaultdict(float)
    for pair, score in zip(pairs, scores, strict=True):
        for at in pair:
            best[at] = max(best[at], score)
    return [any(score >= best[at] for at in pair) for pair, score in zip(pairs, scores, strict=True)]


def link_sets(pairs: Iterable[_Pair], probability: Mapping[_Pair, float]) -> set[_Pair]:
    """Return the pairs that link records to sets in which most are the same as most: average linkage.

    Args:
        pairs: Pairs that are certain by themselves, the most similar first.
        probability: The probability of each compared pair; any other is no match.
    """
    linked: set[_Pair] = set()
    heads: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    for pair in pairs:
        one, other = (heads.get(at, at) for at in pair)
        left, right = (members.get(head, [head]) for head in (one, other))
        if one == other:
            continue
        mean = math.fsum(probability.get((min(cross), max(cross)), 0.0) for cross in product(left, right))
        if mean >= _LEAST_MEAN * len(left) * len(right):
            members[one] = [*left, *right]
            heads |= dict.fromkeys(members[one], one)
            linked.add(pair)
    return linked


def _make_columns(records: Sequence[Mapping[str, Sequence[ComparableText]]]) -> list[_Column]:
    """Return the columns that are compared: each field, all fields together, and their numbers and codes."""
    bags: dict[str, list[frozenset[str]]] = defaultdict(list)
    for record in records:
        for name, values in record.items():
            bags[name].append(_words(values))
    whole = [frozenset[str]().union(*parts) for parts in zip(*bags.values(), strict=True)]
    marks = [frozenset(word for word in bag if not word.isalpha()) for bag in whole]
    return [
        *(_Column(name, each) for name, each in bags.items()),
        _Column(_WHOLE, whole),
        _Column(_MARKS, marks, exact=True),
    ]


def _words(values: Iterable[ComparableText]) -> frozenset[str]:
    """Return the words of a field's values; of a list or an object, those of its JSON."""
    return frozenset(
        word
        for value in values
        for word in (prepare_text(value.source) if value.tokens == (value.source,) else value).tokens
        if any(map(str.isalnum, word))
    )


def _nearest_pairs(whole: _Column, candidates: Candidates) -> set[_Pair]:
    """Return the pairs of candidates of which one is among the nearest of the other, by the words they share."""
    nearest: dict[int, list[tuple[float, int]]] = defaultdict(list)  # a heap for each record, the farthest first
    for row, others in candidates:
        for other in others:
            score = whole.shared_weight(row, other)
            for at, to in ((row, other), (other, row)):
                heap = nearest[at]
                if len(heap) < NEAREST:
                    heappush(heap, (score, -to))
                elif (score, -to) > heap[0]:
                    heapreplace(heap, (score, -to))
    return {(min(at, -to), max(at, -to)) for at, heap in nearest.items() for _, to in heap}


def _level(similarity: float | None) -> int:
    return -1 if similarity is None else bisect_right(_BOUNDS, similarity)


def fit(patterns: Mapping[tuple[bool, _Pattern], int]) -> dict[_Pattern, float]:
    """Return the probability of a match for each pattern of agreement, by expectation maximization.

    Args:
        patterns: How many pairs have each pattern; and whether these may be matches.

    Example:
        >>> [round(each, 2) for each in fit({(True, (5, 5)): 50, (True, (0, 1)): 450}).values()]
        [0.0, 1.0]
    """
    ordered = sorted(patterns.items())
    width = len(ordered[0][0][1]) if ordered else 0
    total = sum(patterns.values())
    # 1. Begin with the shares that are assumed.
    weights = [[math.log(m / u) for m, u in zip(_MATCHES, _OTHERS, strict=True)] for _ in range(width)]
    share, found = _PRIOR_MATCHES, [0.0] * len(ordered)
    for _ in range(_ROUNDS):
        # 2. Expectation: the probability of a match, by the weights.
        lead, before = math.log(share / (1 - share)), found
        found = [_probability(lead, pattern, weights) for (_, pattern), _ in ordered]
        if max(map(_distance, before, found), default=0.0) < _PRECISION:
            break
        # 3. Maximization: the shares of the levels, by the probabilities.
        expected = [may * probability * count for probability, ((may, _), count) in zip(found, ordered, strict=True)]
        share = (math.fsum(expected) + _PRIOR * _PRIOR_MATCHES) / (total + _PRIOR)
        for column in range(width):
            matches, others = ([_PRIOR * each for each in prior] for prior in (_MATCHES, _OTHERS))
            for ((_, pattern), count), matching in zip(ordered, expected, strict=True):
                if pattern[column] >= 0:
                    matches[pattern[column]] += matching
                    others[pattern[column]] += count - matching
            weights[column] = [
                math.log(m / sum(matches) / (u / sum(others))) for m, u in zip(matches, others, strict=True)
            ]
    return {pattern: probability for ((_, pattern), _), probability in zip(ordered, found, strict=True)}


def _probability(lead: float, pattern: _Pattern, weights: Sequence[Sequence[float]]) -> float:
    odds = lead + math.fsum(each[level] for each, level in zip(weights, pattern, strict=True) if level >= 0)
    return 1 / (1 + math.exp(-max(-700.0, odds)))


def _distance(one: float, other: float) -> float:
    return abs(one - other)


def _explain(columns: Sequence[_Column], values: Sequence[float | None]) -> str:
    compared = [
        f"{column.name if column.name in (_WHOLE, _MARKS) else repr(column.name)} {round(value, 2):g}"
        for column, value in zip(columns, values, strict=True)
        if value is not None
    ]
    return f"Learned from all records: {', '.join(compared)}."
