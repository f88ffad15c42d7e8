"""Link identities that are the same although spelled differently: by similarity, and by reviewers' decisions.

The result depends on the distinct identities alone, not on their sources or their order: identities
are sorted, and pairs are processed by descending score, then by identity. A pair that a reviewer
decided keeps that decision; identities that must stay apart are never joined through a third one.

Fields beside the identity are evidence. Where two records agree in one, the doubt that their identities leave is
multiplied by the share of the records that agree in it by chance; records that contradict each other in one are no
certain match, not even through a third one or if their identities are equal (`split_vectors`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import combinations, permutations, product
from math import fsum
from typing import TYPE_CHECKING, NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import Indel

from prefect_dispatch.integrators.merge_records.identities import ITEM_KEY, MISSING
from prefect_dispatch.integrators.merge_records.similarity import (
    LOOSE_EQUALITY_SCORE,
    MOST_LETTERS,
    MOST_TOKENS,
    ComparableText,
    Matching,
    compare_texts,
    prepare_order,
)
from prefect_dispatch.serialization.json_values import Key, Order

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping


class DisjointSets:
    """Disjoint sets (union-find) with pairs that must never be in one set.

    Example:
        >>> a, b, c = [(0, ((1, 0, name),)) for name in "abc"]
        >>> sets = DisjointSets([(a, c)])
        >>> sets.join(a, b)
        >>> sets.is_forbidden(b, c), sets.heads() == {a: a, b: a}
        (True, True)
    """

    def __init__(self, apart: Iterable[tuple[Key, Key]] = (), evidence: Mapping[Key, Evidence] | None = None) -> None:
        """Create the sets.

        Args:
            apart: Pairs that must never be in one set.
            evidence: The values of the compared fields of each key, which may contradict each other.
        """
        self._evidence = dict(evidence or {})
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

    def is_contradictory(self, one: Key, other: Key) -> bool:
        """Return whether joining the sets of two keys would put values that contradict each other into one set."""
        return contradict(self._evidence.get(self.head(one), ()), self._evidence.get(self.head(other), ()))

    def join(self, one: Key, other: Key) -> None:
        """Join the sets of two keys: the smaller set moves into the larger one."""
        small, large = sorted((self.head(one), self.head(other)), key=lambda head: (len(self._set(head)), head))
        if self._evidence:
            fields = zip(self._evidence.pop(small), self._evidence[large], strict=True)
            self._evidence[large] = [[*{*some, *others}] for some, others in fields]
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


# Evidence: the values of compared fields.

Vector = tuple[Order, ...]
"""The values of the compared fields in a record, as sort keys; `MISSING` where it has none."""
Evidence = Sequence[Collection[ComparableText]]
"""The values of each compared field, prepared for comparison."""
MOST_VECTORS = 300
"""Maximum number of different vectors of one identity that are compared; of more, only equal ones are the same."""


_DATE = re.compile(r"[0-9]{4}(?:-[0-9]{2}){0,2}")
"""Pattern of the tokens of a date, joined by hyphens."""


@lru_cache(maxsize=1 << 16)
def is_contradiction(one: ComparableText, other: ComparableText) -> bool:
    """Return whether two values of a field can't both be true of one thing.

    Spellings of one value can, up to a typo in a word, and a value that only says more ("1950" and "1950-05-01", "J."
    and "John"). So can lists and objects, each of which may have a part of what there is, and long texts.

    Example:
        >>> from prefect_dispatch.integrators.merge_records.similarity import prepare_value
        >>> year, born, other, city = map(prepare_value, (1950, "1 May 1950", "1999", "Zürich"))
        >>> is_contradiction(year, born), is_contradiction(born, other), is_contradiction(city, prepare_value("zurich"))
        (False, True, False)
    """
    if one.source == other.source or any(map(_is_composite, (one, other))):
        return False
    if all(map(_is_date, (one, other))):
        # `3 April` has the numbers of `4 March`, and `5 May` more than those of `7 May`.
        return any(a != b for a, b in zip(one.tokens, other.tokens, strict=False))
    if _is_part(one, other) or _is_part(other, one):
        return False
    first, second = sorted((one, other))
    return bool(compare_texts(first, second).objection)


def _is_composite(text: ComparableText) -> bool:
    """Return whether a value is a list, an object or a long text, of which two can differ and both be true."""
    if len(text.tokens) > MOST_TOKENS or len(text.source) > MOST_LETTERS:
        return True
    return text.source[:1] in {"[", "{"} and text.tokens == (text.source,)


def _is_date(text: ComparableText) -> bool:
    """Return whether a value is a date that can be read in only one way, or a part of one: a year, and a month."""
    return bool(_DATE.fullmatch("-".join(text.tokens)))


def _is_part(one: ComparableText, other: ComparableText) -> bool:
    """Return whether each token of a text is in another one, or abbreviates a word of it."""
    return all(
        other.tokens.count(token) >= one.tokens.count(token)
        or any(
            token.isalpha() and word.isalpha() and word.startswith(token) and word not in other.exact_tokens
            for word in other.tokens
        )
        for token in one.tokens
    )


def contradict(one: Evidence, other: Evidence) -> bool:
    """Return whether some values of one field contradict each other."""
    return any(is_contradiction(a, b) for some, others in zip(one, other, strict=True) for a in some for b in others)


def split_vectors(vectors: Iterable[Vector]) -> list[list[Vector]]:
    """Return the vectors of one identity in clusters, in which none contradicts another; both sorted.

    A vector that is compatible with two that contradict each other is ambiguous, and a cluster of its own.

    Example:
        >>> old, new, unknown = ((0, 1950, ""),), ((0, 1999, ""),), (MISSING,)
        >>> split_vectors([old, unknown]) == [[unknown, old]], len(split_vectors([old, new, unknown]))
        (True, 3)
    """
    ordered = sorted(set(vectors))
    if all(len({*column} - {MISSING}) < 2 for column in zip(*ordered, strict=True)):  # noqa: PLR2004 -- nothing to compare
        return [ordered]
    if len(ordered) > MOST_VECTORS:
        return [[each] for each in ordered]
    # 1. Which vectors are compatible.
    prepared = [[[] if value == MISSING else [prepare_order(value)] for value in vector] for vector in ordered]
    apart = {(at, to): contradict(prepared[at], prepared[to]) for at, to in combinations(range(len(ordered)), 2)}
    if not any(apart.values()):
        return [ordered]
    near: dict[int, list[int]] = defaultdict(list)
    for (at, to), differ in apart.items():
        if not differ:
            near[at].append(to)
            near[to].append(at)
    # 2. The ambiguous ones stand alone. Among the others, what is compatible with the same is compatible.
    ambiguous = {at for at, others in near.items() if any(apart[pair] for pair in combinations(sorted(others), 2))}
    clusters: dict[int, list[Vector]] = {}
    for at, vector in enumerate(ordered):
        first = at if at in ambiguous else min([at, *(to for to in near[at] if to not in ambiguous)])
        clusters.setdefault(first, []).append(vector)
    return [*clusters.values()]


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
    shared: Key | None = None
    """The key of the identity as such, if others that contradict these records have it, too."""

    @property
    def sorted_text(self) -> str:
        """The identity as one text, the words of each field sorted."""
        return "\n".join([each.sorted_text for each in self.texts.values()])

    @property
    def text(self) -> str:
        """The identity as one text."""
        return "\n".join([each.text for each in self.texts.values()])

    def is_twin_of(self, other: ComparableIdentity) -> bool:
        """Return whether another one has the same identity, and differs in the evidence alone."""
        return self.shared is not None and self.shared == other.shared


class Match(NamedTuple):
    """Similarity of two identities."""

    score: float
    """The similarity, from 0 to 1."""
    why: str
    """The compared fields and their similarity, as a sentence."""
    sure: bool
    """Whether it is a certain match."""


_LEAST_ALIKE = 0.5
"""Similarity of identities below which no evidence makes them one."""
_PRIOR_KINDS = 10
"""Number of equally frequent values that a field is assumed to have before any are counted."""


class Shares:
    """How probable it is that two records agree in a field by chance: the share of records with that value.

    Example:
        >>> from prefect_dispatch.integrators.merge_records.similarity import prepare_value
        >>> left, right, other = ([[prepare_value(year)]] for year in (1950, 1950, 1999))
        >>> round(Shares(["born"], [left, right, other]).share("born", prepare_value(1950)), 3)
        0.091
    """

    def __init__(self, fields: Sequence[str], records: Iterable[Evidence] = ()) -> None:
        """Count the values of fields in records."""
        self._counts: dict[str, Counter[str]] = {field: Counter() for field in fields}
        self._totals: Counter[str] = Counter()
        for record in records:
            for field, values in zip(fields, record, strict=True):
                self._totals[field] += bool(values)
                self._counts[field].update({value.source for value in values})

    def share(self, field: str, value: ComparableText) -> float:
        """Return the share of the records that have a value, without the two that agree in it."""
        others = max(0, self._counts[field][value.source] - 2)
        return (others + 1) / (max(0, self._totals[field] - 2) + _PRIOR_KINDS)


def compare_identities(
    one: ComparableIdentity,
    other: ComparableIdentity,
    matching: Matching,
    words: Container[str] = (),
    shares: Shares | None = None,
) -> Match | None:
    """Return the similarity of two identities; None if it is below the thresholds.

    It is the mean over the identity's fields and over others that contradict each other. The doubt that this leaves is
    multiplied by the share of records that agree in a field by chance, for each other field in which these two agree.

    Args:
        one: An identity.
        other: Another identity.
        matching: The thresholds.
        words: Established words: a difference between two of them is no typo.
        shares: How probable agreements by chance are.
    """
    shares = shares or Shares([*one.evidence])
    # 1. Weigh the other fields; a missing value doesn't count.
    beside: dict[str, float] = {}
    objection, chance, against = "", 1.0, 0.0
    contradictions = 0
    for name, values in one.evidence.items():
        if not values or not other.evidence[name]:
            continue
        beside[name], nearest = _best_similarity(values, other.evidence[name], words)
        if clash := next((pair for pair in product(values, other.evidence[name]) if is_contradiction(*pair)), None):
            contradictions, against = contradictions + 1, against + beside[name]
            objection = objection or f"{name!r} is {clash[0].source!r} or {clash[1].source!r}"
        else:
            chance *= 1 - beside[name] * (1 - max(shares.share(name, value) for value in nearest))
    # 2. Compare the identity's fields, the shortest first; stop when the threshold is out of reach.
    fields = len(one.texts) + contradictions
    allowed = min((1 - matching.propose) / chance * fields - (contradictions - against), _allowed(one, matching))
    is_twin = one.is_twin_of(other)
    scores: dict[str, float] = dict.fromkeys(one.texts, 0.0)
    objections: dict[str, str] = dict.fromkeys(one.texts, "")
    shortfall = 0.0
    for name in sorted(one.texts, key=lambda name: len(one.texts[name].tokens)):
        scores[name], objections[name] = compare_texts(one.texts[name], other.texts[name], words)
        shortfall += 1 - scores[name]
        if shortfall > allowed + _ROUNDING and not is_twin:
            return None
    # 3. Compute the score; an objection lowers it below the threshold of a certain match.
    doubt = 1 - (fsum(scores.values()) + against) / fields
    score = min(round(1 - doubt * chance, 4), LOOSE_EQUALITY_SCORE)
    if is_twin:  # equal identities that are kept apart are always proposed
        score = max(score, matching.propose)
        objection = objection or "others of this identity contradict each other"
    if score < matching.propose:
        return None
    objection = next(filter(None, objections.values()), objection)
    if objection:
        score = min(score, max(matching.propose, round(matching.sure - 0.01, 4)))
    compared = ", ".join(f"{name!r} {value:g}" for name, value in {**scores, **beside}.items())
    why = f"Alike: {compared}{'; but ' if objection else ''}{objection}."
    return Match(score, why, score >= matching.sure and not objection)


def _allowed(one: ComparableIdentity, matching: Matching) -> float:
    """Return by how much at most the similarities of the identity's fields may fall short of 1 in all."""
    least = min(matching.propose, _LEAST_ALIKE) if one.evidence else matching.propose
    return (1 - least) * len(one.texts)


def _best_similarity(
    one: Sequence[ComparableText], other: Sequence[ComparableText], words: Container[str]
) -> tuple[float, tuple[ComparableText, ComparableText]]:
    """Return the similarity of the two most similar values, and these values."""
    theirs = {each.source: each for each in other}
    if equal := next((each for each in one if each.source in theirs), None):
        return 1.0, (equal, equal)
    pairs = [*product(one[:_MOST_VALUES], other[:_MOST_VALUES])]
    scores = [compare_texts(a, b, words).score for a, b in pairs]
    best = max(scores)
    return best, pairs[scores.index(best)]


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
def link_keys(  # noqa: PLR0917 -- each a part of what the result is cached by
    keys: tuple[Key, ...],
    fields: tuple[str, ...],
    compared: tuple[str, ...],
    evidence: tuple[tuple[tuple[Order, ...], ...], ...],
    matching: Matching | None,
    same: Pairs,
    apart: Pairs,
) -> LinkResult:
    """Return which identities are the same, and which may be; cached.

    Args:
        keys: The keys of the distinct identities.
        fields: The fields of the identities, and optionally `{key}`.
        compared: The other compared fields.
        evidence: For each identity, the distinct values of each other compared field, as sort keys.
        matching: Thresholds of the comparison; None: identities are not compared.
        same: Pairs decided to be the same.
        apart: Pairs decided to be different.
    """
    names: list[ComparableIdentity] = []
    for key, values in zip(keys, evidence, strict=True):
        own = key[1][: len(fields)]
        parts = dict(zip(fields, own, strict=True))  # what follows in a key tells equal identities apart
        _, _, item = parts.pop(ITEM_KEY, (1, 0, ""))
        texts = {name: prepare_order(part) for name, part in parts.items()}
        shared = (key[0], own) if len(key[1]) > len(own) and MISSING not in own else None
        found = {name: [*map(prepare_order, each)] for name, each in zip(compared, values, strict=True)}
        names.append(ComparableIdentity(key, item, texts, found, shared))
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
    contradictory = matching.fields if matching and not matching.model else ()
    evidence = {name.key: [name.evidence[field] for field in contradictory] for name in names if contradictory}
    sets = DisjointSets(apart, evidence)
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
    found, blocks = (_learn_links if matching.model else _compare_links)(compared, matching)
    pairs = sorted(found, key=lambda pair: (-pair.score, pair.left, pair.right))
    ambiguous = _find_ambiguous(names, pairs, evidence)
    for pair in pairs:
        is_new = pair.is_sure and sets.head(pair.left) != sets.head(pair.right)
        if (
            is_new
            and ambiguous.isdisjoint((pair.left, pair.right))
            and not sets.is_forbidden(pair.left, pair.right)
            and not sets.is_contradictory(pair.left, pair.right)
        ):
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


def _find_ambiguous(
    names: Sequence[ComparableIdentity], pairs: Iterable[Link], evidence: Mapping[Key, Evidence]
) -> set[Key]:
    """Return the keys that are certain matches of several others, or have their identity, which contradict each other.

    Which of these they belong to is not known.
    """
    if not evidence:
        return set()
    partners: dict[Key, set[Key]] = defaultdict(set)
    twins: dict[Key, list[Key]] = defaultdict(list)
    for name in names:
        if name.shared:
            twins[name.shared].append(name.key)
    for one, other in (pair for each in twins.values() for pair in permutations(each, 2)):
        if not contradict(evidence[one], evidence[other]):
            partners[one].add(other)
    for pair in pairs:
        if pair.is_sure:
            partners[pair.left].add(pair.right)
            partners[pair.right].add(pair.left)
    return {
        key
        for key, others in partners.items()
        if any(contradict(evidence[one], evidence[other]) for one, other in combinations(sorted(others), 2))
    }


def _compare_links(names: Sequence[ComparableIdentity], matching: Matching) -> tuple[list[Link], Blocks]:
    """Return the pairs of similar identities, and the index by which they were found."""
    blocks = Blocks([[*name.texts.values()] for name in names], [name.partition for name in names])
    return [*_iter_matches(names, blocks, matching)], blocks


def _learn_links(names: Sequence[ComparableIdentity], matching: Matching) -> tuple[list[Link], Blocks]:
    """Return the pairs that a model learned from all of them takes for the same, and the index that found them."""
    from prefect_dispatch.integrators.merge_records.learned_matches import learn_matches  # noqa: PLC0415 -- seldom used

    indexes: list[Blocks] = []

    def find_candidates(rows: Sequence[ComparableText]) -> Iterator[tuple[int, list[int]]]:
        indexes.append(Blocks([[row] for row in rows], [name.partition for name in names]))
        return indexes[0].pairs()

    records = [{**{field: [text] for field, text in name.texts.items()}, **name.evidence} for name in names]
    matches = learn_matches(records, find_candidates, matching)
    links: list[Link] = []
    for match in matches:
        left, right = sorted((names[match.left].key, names[match.right].key))
        links.append(Link(left, right, match.probability, match.why, match.is_sure))
    return links, indexes[0]


def _iter_matches(names: Sequence[ComparableIdentity], blocks: Blocks, matching: Matching) -> Iterator[Link]:
    """Yield the identities that share a blocking key and are similar enough; of equal ones, the most similar."""
    # Words used by two identities or more are not typos of one another.
    usage = Counter(
        token for name in names for token in {token for text in name.texts.values() for token in text.tokens}
    )
    words = {token for token, count in usage.items() if count > 1}
    texts = [name.text for name in names]
    ordered = [name.sorted_text for name in names]
    shares = Shares(matching.fields, ([*name.evidence.values()] for name in names))
    least = max(0.0, min(matching.propose, _LEAST_ALIKE if matching.fields else 1) - _SLACK)
    for row, others in blocks.pairs():
        # Prefilter by edit distance, of the words as they stand and sorted.
        near = {*_filter_similar(texts, row, others, least), *_filter_similar(ordered, row, others, least)}
        twins: list[Link] = []
        for other in sorted(near):
            if match := compare_identities(names[other], names[row], matching, words, shares):
                left, right = sorted((names[other].key, names[row].key))
                link = Link(left, right, match.score, match.why, match.sure)
                if names[other].is_twin_of(names[row]):
                    twins.append(link)
                else:
                    yield link
        if twins:  # one pair each is enough to decide on them, one after another
            yield max(twins, key=lambda link: (link.score, link.left, link.right))


def _filter_similar(texts: Sequence[str], at: int, others: Sequence[int], least: float) -> Iterator[int]:
    """Yield those of the other rows whose text is similar enough to be compared word by word."""
    for _, _, index in process.extract(
        texts[at],
        [texts[other] for other in others],
        scorer=Indel.normalized_similarity,
        processor=None,
        score_cutoff=least,
        limit=None,
    ):
        yield others[index]
