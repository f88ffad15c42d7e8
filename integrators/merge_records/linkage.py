"""Link identities that are the same although spelled differently: by similarity, and by reviewers' decisions.

The result depends on the distinct identities alone, not on their sources or their order: identities
are sorted, and pairs are processed by descending score, then by identity. A pair that a reviewer
decided keeps that decision; identities that must stay apart are never joined through a third one.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass, field
from itertools import combinations
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import Indel

from prefect_dispatch.integrators.merge_records.similarity import Matching, compare_identities
from prefect_dispatch.serialization.json_text import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_records.similarity import ComparableIdentity, ComparableText
    from prefect_dispatch.serialization.json_values import Key


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
        self.skipped_pairs = 0
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
                if len(block) > WINDOW:
                    self.skipped_pairs += len(block) - WINDOW
                    candidates.update(block[-WINDOW:])
                else:
                    candidates.update(block)
                block.append(row)
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


_SLACK = 0.07
"""Tolerance of the prefilter: by how much the character similarity of a match may be below its word similarity."""
_CACHE_SIZE = 4
"""Number of cached results: comparing takes longest, and an audit compares the same identities again."""


Pairs = tuple[tuple["Key", "Key"], ...]


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


_cache: OrderedDict[str, LinkResult] = OrderedDict()


def get_or_compute(inputs: JsonValue, compute: Callable[[], LinkResult]) -> LinkResult:
    """Return the cached result for these inputs, or compute and cache it.

    Args:
        inputs: Everything that the result depends on.
        compute: Computes the result.
    """
    name = digest(inputs)
    if name not in _cache:
        _cache[name] = compute()
        while len(_cache) > _CACHE_SIZE:
            _cache.popitem(last=False)
    return _cache[name]


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
    candidates = _compare_candidates(names, matching) if matching else _MatchResult()
    candidates.pairs.sort(key=lambda pair: (-pair[0].score, pair[0].left, pair[0].right))
    for each, sure in candidates.pairs:
        if sure and sets.head(each.left) != sets.head(each.right) and not sets.is_forbidden(each.left, each.right):
            sets.join(each.left, each.right)
            links.append(each)
    # 3. Propose the best remaining match between each two sets.
    proposals: dict[frozenset[Key], Link] = {}
    for each, _ in candidates.pairs:
        ends = frozenset((sets.head(each.left), sets.head(each.right)))
        if len(ends) > 1 and not sets.is_forbidden(each.left, each.right):
            proposals.setdefault(ends, each)
    best_proposals = tuple(proposals.values())
    return LinkResult(
        sets.heads(), tuple(links), best_proposals, tuple(broken), candidates.comparisons, candidates.skipped_pairs
    )


@dataclass
class _MatchResult:
    """Matches found by comparing identities."""

    pairs: list[tuple[Link, bool]] = field(default_factory=list[tuple[Link, bool]])
    """Links that are similar enough, each with whether it is certain."""
    comparisons: int = 0
    skipped_pairs: int = 0


def _compare_candidates(names: Sequence[ComparableIdentity], matching: Matching) -> _MatchResult:
    """Compare the identities that share a blocking key."""
    # Words used by two identities or more are not typos of one another.
    usage = Counter(token for name in names for token in _tokens(name))
    words = {token for token, count in usage.items() if count > 1}
    texts = [name.text for name in names]
    ordered = [name.sorted_text for name in names]
    blocks = Blocks([[*name.texts.values()] for name in names], [name.partition for name in names])
    candidates = _MatchResult()
    for row, others in blocks.pairs():
        candidates.comparisons += len(others)
        # Prefilter by edit distance, of the words as they stand and sorted.
        near = (
            {*_filter_similar(texts, row, others, matching), *_filter_similar(ordered, row, others, matching)}
            if others
            else ()
        )
        for other in sorted(near):
            if alike := compare_identities(names[other], names[row], matching, words):
                left, right = sorted((names[other].key, names[row].key))
                candidates.pairs.append((Link(left, right, alike.score, alike.why), alike.sure))
    candidates.skipped_pairs = blocks.skipped_pairs
    return candidates


def _filter_similar(texts: Sequence[str], at: int, others: Sequence[int], matching: Matching) -> Iterator[int]:
    """Yield those of the other rows whose text is similar enough to be compared word by word."""
    for _, _, index in process.extract(
        texts[at],
        itemgetter(*others)(texts) if len(others) > 1 else [texts[others[0]]],
        scorer=Indel.normalized_similarity,
        processor=None,
        score_cutoff=max(0.0, matching.propose - _SLACK),
        limit=None,
    ):
        yield others[index]


def _tokens(name: ComparableIdentity) -> set[str]:
    return {token for each in name.texts.values() for token in each.tokens}
