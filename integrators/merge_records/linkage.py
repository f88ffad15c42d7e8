"""Link identities that are the same although spelled differently: by similarity, and by reviewers' decisions.

The result depends on the distinct identities alone, not on their sources or their order: identities
are sorted, and pairs are processed by descending score, then by identity. A pair that a reviewer
decided keeps that decision; identities that must stay apart are never joined through a third one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import lru_cache
from itertools import combinations
from math import fsum
from typing import TYPE_CHECKING, NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import Indel

from prefect_dispatch.integrators.merge_records.identities import ITEM_KEY
from prefect_dispatch.integrators.merge_records.similarity import (
    LOOSE_EQUALITY_SCORE,
    ComparableText,
    Matching,
    compare_texts,
    prepare_order,
)
from prefect_dispatch.serialization.json_values import Key, Order

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence


class DisjointSets:
    """Disjoint sets (union-find) with pairs that must never be in one set.

    Example:
        >>> a, b, c = [(0, ((1, 0, name),)) for name in "abc"]
        >>> sets = DisjointSets([(a, c)])
        >>> sets.join(a, b)
        >>> sets.is_forbidden(b, c), sets.heads() == {a: a, b: a}
        (True, True)
    """

    def __init__(self, apart: Iterable[tuple[Key, Key]] = ()) -> None:
        """Create the sets.

        Args:
            apart: Pairs that must never be in one set.
        """
        self._head: dict[Key, Key] = {}
        self._members: dict[Key, list[Key]] = {}
        self._separations: dict[Key, set[Key]] = defaultdict(set)
        for one, other in apart:
            self._separations[one].add(other)
            self._separations[other].add(one)

    def head(self, key: Key) -> Key:
        """Return the current representative of the set that a key is in."""
        return self._head.get(key, key)

    def is_forbidden(self, one: Key, other: Key) -> bool:
        """Return whether joining the sets of two keys would put a forbidden pair into one set."""
        if not self._separations:
            return False
        head = self.head(other)
        return any(
            self.head(separated) == head
            for key in self._set(self.head(one))
            for separated in self._separations.get(key, ())
        )

    def join(self, one: Key, other: Key) -> None:
        """Join the sets of two keys: the smaller set moves into the larger one."""
        small, large = sorted((self.head(one), self.head(other)), key=lambda head: (len(self._set(head)), head))
        moved = self._members.pop(small, [small])
        self._members.setdefault(large, [large]).extend(moved)
        for key in moved:
            self._head[key] = large

    def heads(self) -> dict[Key, Key]:
        """Return, for each key that was joined with another, the smallest key of its set."""
        return {key: first for keys in self._members.values() for first in [min(keys)] for key in keys}

    def _set(self, head: Key) -> list[Key]:
        return self._members.get(head, [head])


MAX_BLOCKING_KEYS = 6
"""Maximum number of blocking keys of a text: its rarest n-grams and tokens."""
WINDOW = 32
"""Maximum number of texts in a block that a text is compared with."""


class Blocks:
    """Blocking index: finds, for each of many texts, the candidates to compare it with.

    Attributes:
        compared_pairs: How many pairs are compared.
        skipped_pairs: How many times two texts with a common blocking key were not compared under that key.

    Example:
        >>> from prefect_dispatch.integrators.merge_records.similarity import prepare_text
        >>> texts = sorted(["apache license", "apache licence", "mit"])
        >>> [(at, found) for at, found in Blocks([[prepare_text(text)] for text in texts]).pairs() if found]
        [(1, [0])]
    """

    def __init__(self, rows: Sequence[Sequence[ComparableText]], groups: Sequence[str] | None = None) -> None:
        """Split texts into parts, the possible blocking keys.

        Args:
            rows: The texts of each row (one for each field), rows sorted by text.
            groups: A name for each row; only rows of the same name are compared.
        """
        self.compared_pairs = self.skipped_pairs = 0
        self._parts = [
            [prefix + part for at, shape in enumerate(row) for part in _blocking_parts(shape, at)]
            for row, prefix in zip(rows, groups or [""] * len(rows), strict=True)
        ]
        self._counts = Counter(part for parts in self._parts for part in parts)

    def pairs(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the index of each row, with the indices of the preceding rows to compare it with."""
        blocks: dict[object, list[int]] = defaultdict(list)
        for row, parts in enumerate(self._parts):
            candidates: set[int] = set()
            for name in self._blocking_keys(parts):
                block = blocks[name]
                self.skipped_pairs += max(0, len(block) - WINDOW)
                candidates.update(block[-WINDOW:])
                block.append(row)
            self.compared_pairs += len(candidates)
            yield row, [*candidates]

    def _blocking_keys(self, parts: list[str]) -> list[object]:
        """Return the blocking keys of a row: its rare parts, and pairs of its common ones."""
        counts = self._counts
        shared = sorted([(counts[part], part) for part in parts if counts[part] > 1])[:MAX_BLOCKING_KEYS]
        rare = [part for count, part in shared if count <= WINDOW]
        # A common part selects too many texts; a pair of common parts is specific enough.
        common = sorted(part for count, part in shared if count > WINDOW)
        return [*rare, *(combinations(common, 2) if len(common) > 1 else common)]


def _blocking_parts(shape: ComparableText, at: int) -> set[str]:
    """Return the parts of a text, each prefixed with the index of its field: trigrams of words, other tokens whole."""
    parts: set[str] = set()
    for token in shape.tokens:
        if token in shape.exact_tokens or not token.isalpha():
            parts.add(f"{at}={token}")
        else:
            padded = f"^{token}$"
            parts.update([f"{at}{padded[i : i + 3]}" for i in range(len(padded) - 2)])
    return parts


_ROUNDING = 1e-3  # tolerance, because scores are rounded
_MOST_VALUES = 8  # values of one field, among the records of one identity, that are compared pairwise


class ComparableIdentity(NamedTuple):
    """Identity of some record, with everything that is compared."""

    key: Key
    """The key of the identity."""
    partition: str
    """The item's key, if it is a part of the identity: only identities with an equal one are compared."""
    texts: Mapping[str, ComparableText]
    """The fields of the identity, prepared for comparison."""
    evidence: Mapping[str, Sequence[ComparableText]]
    """The distinct values of each other compared field in the records of this identity."""

    @property
    def sorted_text(self) -> str:
        """The identity as one text, the words of each field sorted."""
        return "\n".join([each.sorted_text for each in self.texts.values()])

    @property
    def text(self) -> str:
        """The identity as one text."""
        return "\n".join([each.text for each in self.texts.values()])


class Match(NamedTuple):
    """Similarity of two identities."""

    score: float
    """The similarity, from 0 to 1."""
    why: str
    """The compared fields and their similarity, as a sentence."""
    sure: bool
    """Whether it is a certain match."""


def compare_identities(
    one: ComparableIdentity, other: ComparableIdentity, matching: Matching, words: Container[str] = ()
) -> Match | None:
    """Return the similarity of two identities, the mean over their fields; None if it is below the thresholds.

    Args:
        one: An identity.
        other: Another identity.
        matching: The thresholds.
        words: Established words: a difference between two of them is no typo.
    """
    # 1. Compare the identity's fields, the shortest first; stop when the threshold is out of reach.
    scores: dict[str, float] = dict.fromkeys(one.texts, 0.0)
    objections: dict[str, str] = dict.fromkeys(one.texts, "")
    shortfall = 0.0
    for name in sorted(one.texts, key=lambda name: len(one.texts[name].tokens)):
        scores[name], objections[name] = compare_texts(one.texts[name], other.texts[name], words)
        shortfall += 1 - scores[name]
        if shortfall > (1 - matching.propose) * (len(one.texts) + len(one.evidence)) + _ROUNDING:
            return None
    # 2. Compare the other fields, by their most similar values; a missing value doesn't count.
    for name, values in one.evidence.items():
        if values and other.evidence[name]:
            scores[name] = _best_similarity(values, other.evidence[name], words)
    # 3. Compute the score; an objection lowers it below the threshold of a certain match.
    score = min(round(fsum(scores.values()) / len(scores), 4), LOOSE_EQUALITY_SCORE)
    if score < matching.propose:
        return None
    objection = next(filter(None, objections.values()), "")
    if objection:
        score = min(score, max(matching.propose, round(matching.sure - 0.01, 4)))
    compared = ", ".join(f"{name!r} {value:g}" for name, value in scores.items())
    why = f"Alike: {compared}{'; but ' if objection else ''}{objection}."
    return Match(score, why, score >= matching.sure and not objection)


def _best_similarity(one: Sequence[ComparableText], other: Sequence[ComparableText], words: Container[str]) -> float:
    """Return the similarity of the two most similar values."""
    if {each.source for each in one} & {each.source for each in other}:
        return 1.0
    return max(compare_texts(a, b, words).score for a in one[:_MOST_VALUES] for b in other[:_MOST_VALUES])


_SLACK = 0.07
"""Tolerance of the prefilter: by how much the character similarity of a match may be below its word similarity."""
_CACHE_SIZE = 4
"""Number of cached results: comparing takes longest, and an audit compares the same identities again."""


Pairs = tuple[tuple[Key, Key], ...]


class Link(NamedTuple):
    """Two identities that are the same, or may be."""

    left: Key
    """The smaller identity key."""
    right: Key
    """The larger identity key."""
    score: float
    """Similarity, from 0 to 1."""
    why: str
    """The reason, as a sentence: the compared fields, or that a reviewer decided."""
    is_sure: bool = True
    """Whether it is a certain match."""
    is_decided: bool = False
    """Whether a reviewer decided it."""


class LinkResult(NamedTuple):
    """Result of linking identities."""

    heads: Mapping[Key, Key]
    """For each identity that is linked to others, the smallest of them; unlinked identities are left out."""
    links: tuple[Link, ...] = ()
    """The links between them: n - 1 links for n identities."""
    proposals: tuple[Link, ...] = ()
    """Pairs that may be the same; of two sets of identities, the most similar pair."""
    contradictory_pairs: Pairs = ()
    """Pairs decided to be the same that other decisions keep apart."""
    comparisons: int = 0
    """Number of compared pairs."""
    skipped_pairs: int = 0
    """How many times a pair with a common blocking key was not compared under it."""

    def head(self, key: Key) -> Key:
        """Return the identity that represents all linked to it."""
        return self.heads.get(key, key)


@lru_cache(maxsize=_CACHE_SIZE)
def link_keys(
    keys: tuple[Key, ...],
    fields: tuple[str, ...],
    evidence: tuple[tuple[tuple[Order, ...], ...], ...],
    matching: Matching | None,
    same: Pairs,
    apart: Pairs,
) -> LinkResult:
    """Return which identities are the same, and which may be; cached.

    Args:
        keys: The keys of the distinct identities.
        fields: The fields of the identities, and optionally `{key}`.
        evidence: For each identity, the distinct values of each other compared field, as sort keys.
        matching: Thresholds of the comparison; None: identities are not compared.
        same: Pairs decided to be the same.
        apart: Pairs decided to be different.
    """
    names: list[ComparableIdentity] = []
    for key, values in zip(keys, evidence, strict=True):
        parts = dict(zip(fields, key[1], strict=True))
        _, _, item = parts.pop(ITEM_KEY, (1, 0, ""))
        texts = {name: prepare_order(part) for name, part in parts.items()}
        compared = zip(matching.fields if matching else (), values, strict=True)
        names.append(
            ComparableIdentity(key, item, texts, {name: [*map(prepare_order, each)] for name, each in compared})
        )
    return link_identities(names, matching, same, apart)


def link_identities(
    names: Sequence[ComparableIdentity], matching: Matching | None, same: Pairs = (), apart: Pairs = ()
) -> LinkResult:
    """Return which identities are the same, and which may be.

    Args:
        names: The distinct identities, in any order.
        matching: Thresholds of the comparison; None: identities are not compared.
        same: Pairs decided to be the same.
        apart: Pairs decided to be different.
    """
    names = sorted(names, key=lambda name: (name.partition, name.text, name.key))
    sets = DisjointSets(apart)
    links: list[Link] = []
    broken: list[tuple[Key, Key]] = []
    # 1. Follow the decisions; one that contradicts earlier ones is reported.
    for left, right in sorted(same):
        if sets.is_forbidden(left, right):
            broken.append((left, right))
        elif sets.head(left) != sets.head(right):
            sets.join(left, right)
            links.append(Link(left, right, 1.0, "Decided to be the same.", is_decided=True))
    # 2. Join matches, the most similar first, unless a decision keeps the two sets apart.
    compared, matching = (names, matching) if matching else ([], Matching())
    blocks = Blocks([[*name.texts.values()] for name in compared], [name.partition for name in compared])
    pairs = sorted(_iter_matches(compared, blocks, matching), key=lambda pair: (-pair.score, pair.left, pair.right))
    for pair in pairs:
        is_new = pair.is_sure and sets.head(pair.left) != sets.head(pair.right)
        if is_new and not sets.is_forbidden(pair.left, pair.right):
            sets.join(pair.left, pair.right)
            links.append(pair)
    # 3. Propose the best remaining match between each two sets.
    proposals: dict[frozenset[Key], Link] = {}
    for pair in pairs:
        ends = frozenset((sets.head(pair.left), sets.head(pair.right)))
        if len(ends) > 1 and not sets.is_forbidden(pair.left, pair.right):
            proposals.setdefault(ends, pair)
    return LinkResult(
        sets.heads(),
        tuple(links),
        tuple(proposals.values()),
        tuple(broken),
        blocks.compared_pairs,
        blocks.skipped_pairs,
    )


def _iter_matches(names: Sequence[ComparableIdentity], blocks: Blocks, matching: Matching) -> Iterator[Link]:
    """Yield the identities that share a blocking key and are similar enough."""
    # Words used by two identities or more are not typos of one another.
    usage = Counter(
        token for name in names for token in {token for text in name.texts.values() for token in text.tokens}
    )
    words = {token for token, count in usage.items() if count > 1}
    texts = [name.text for name in names]
    ordered = [name.sorted_text for name in names]
    for row, others in blocks.pairs():
        # Prefilter by edit distance, of the words as they stand and sorted.
        near = {*_filter_similar(texts, row, others, matching), *_filter_similar(ordered, row, others, matching)}
        for other in sorted(near):
            if match := compare_identities(names[other], names[row], matching, words):
                left, right = sorted((names[other].key, names[row].key))
                yield Link(left, right, match.score, match.why, match.sure)


def _filter_similar(texts: Sequence[str], at: int, others: Sequence[int], matching: Matching) -> Iterator[int]:
    """Yield those of the other rows whose text is similar enough to be compared word by word."""
    for _, _, index in process.extract(
        texts[at],
        [texts[other] for other in others],
        scorer=Indel.normalized_similarity,
        processor=None,
        score_cutoff=max(0.0, matching.propose - _SLACK),
        limit=None,
    ):
        yield others[index]
