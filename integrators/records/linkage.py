"""Which identities stand for the same: by their likeness, and by what people decided.

Everything here is a function of the distinct identities alone, not of who named them or when: they are
taken in one order, pairs in order of their score, then of their identities. A pair that somebody
decided on is as it was decided; what must not be one never becomes one by way of a third.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import Indel

from prefect_dispatch.fingerprint import digest
from prefect_dispatch.integrators.records.blocking import Blocks
from prefect_dispatch.integrators.records.matching import Matching, match
from prefect_dispatch.integrators.records.unions import Unions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.records.matching import Name
    from prefect_dispatch.integrators.values import Key

_SLACK = 0.07
"""By how much texts may be less alike letter by letter than they are word by word."""
_KEPT = 4
"""How many results are kept: an audit compares the same identities again, and comparing them takes the longest."""

Pairs = tuple[tuple["Key", "Key"], ...]


class Link(NamedTuple):
    """Two identities that are taken for the same, or may be."""

    left: Key
    """The one that comes first."""
    right: Key
    """The other."""
    score: float
    """How alike they are."""
    why: str
    """What was compared, or who says so."""
    decided: bool = False
    """Whether somebody decided it."""


class Linked(NamedTuple):
    """What came of comparing identities."""

    heads: Mapping[Key, Key]
    """For each identity that is the same as others, the first of them; those that stand alone are left out."""
    links: tuple[Link, ...] = ()
    """What links them: for n identities that are the same, n - 1 links."""
    proposals: tuple[Link, ...] = ()
    """Pairs that may be the same; of two sets of identities, the most alike."""
    broken: Pairs = ()
    """Pairs decided to be the same that other decisions keep apart."""
    compared: int = 0
    """How many pairs were compared."""
    passed_over: int = 0
    """How often a pair that shares something was not compared for it."""

    def head(self, key: Key) -> Key:
        """Return the identity that stands for all that are the same."""
        return self.heads.get(key, key)


_memory: OrderedDict[str, Linked] = OrderedDict()


def remembered(asked: JsonValue, find: Callable[[], Linked]) -> Linked:
    """Return what was found for the same question before, or what is found now.

    Args:
        asked: Everything that the answer depends on.
        find: Finds the answer.
    """
    name = digest(asked)
    if name not in _memory:
        _memory[name] = find()
        while len(_memory) > _KEPT:
            _memory.popitem(last=False)
    return _memory[name]


def link(names: Sequence[Name], matching: Matching | None, same: Pairs = (), apart: Pairs = ()) -> Linked:
    """Return which identities are the same, and which may be.

    Args:
        names: The distinct identities, in any order.
        matching: How they are compared. None: they aren't.
        same: Pairs that are the same, whatever their likeness.
        apart: Pairs that are not.
    """
    names = sorted(names, key=lambda name: (name.within, name.text, name.key))
    sets = Unions(apart)
    links: list[Link] = []
    broken: list[tuple[Key, Key]] = []
    for left, right in sorted(same):
        if sets.forbidden(left, right):
            broken.append((left, right))
        elif sets.head(left) != sets.head(right):
            sets.join(left, right)
            links.append(Link(left, right, 1.0, "Decided to be the same.", decided=True))
    found = _compared(names, matching) if matching else _Found()
    found.pairs.sort(key=lambda pair: (-pair[0].score, pair[0].left, pair[0].right))
    for each, sure in found.pairs:
        if sure and sets.head(each.left) != sets.head(each.right) and not sets.forbidden(each.left, each.right):
            sets.join(each.left, each.right)
            links.append(each)
    proposals: dict[frozenset[Key], Link] = {}
    for each, _ in found.pairs:
        ends = frozenset((sets.head(each.left), sets.head(each.right)))
        if len(ends) > 1 and not sets.forbidden(each.left, each.right):
            proposals.setdefault(ends, each)
    proposed = tuple(proposals.values())
    return Linked(sets.heads(), tuple(links), proposed, tuple(broken), found.compared, found.passed_over)


@dataclass
class _Found:
    """What comparing found."""

    pairs: list[tuple[Link, bool]] = field(default_factory=list[tuple[Link, bool]])
    """Pairs that are alike enough, and whether they are the same for sure."""
    compared: int = 0
    passed_over: int = 0


def _compared(names: Sequence[Name], matching: Matching) -> _Found:
    used = Counter(token for name in names for token in _tokens(name))
    words = {token for token, count in used.items() if count > 1}
    texts = [name.text for name in names]
    ordered = [name.ordered for name in names]
    blocks = Blocks([[*name.shapes.values()] for name in names], [name.within for name in names])
    found = _Found()
    for at, others in blocks.pairs():
        found.compared += len(others)
        near = {*_near(texts, at, others, matching), *_near(ordered, at, others, matching)} if others else ()
        for other in sorted(near):
            if alike := match(names[other], names[at], matching, words):
                left, right = sorted((names[other].key, names[at].key))
                found.pairs.append((Link(left, right, alike.score, alike.why), alike.sure))
    found.passed_over = blocks.passed_over
    return found


def _near(texts: Sequence[str], at: int, others: Sequence[int], matching: Matching) -> Iterator[int]:
    """Yield those of others whose text is so alike that a closer look may be worth its while."""
    for _, _, index in process.extract(
        texts[at],
        itemgetter(*others)(texts) if len(others) > 1 else [texts[others[0]]],
        scorer=Indel.normalized_similarity,
        processor=None,
        score_cutoff=max(0.0, matching.propose - _SLACK),
        limit=None,
    ):
        yield others[index]


def _tokens(name: Name) -> set[str]:
    return {token for each in name.shapes.values() for token in each.tokens}
