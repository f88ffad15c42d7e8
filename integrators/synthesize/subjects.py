"""Figures of another subject: what a sentence gives one name, its sources give another.

A sentence of a source that gives several figures, such as `Acme grew 5 %, Bosch 7 %`, is split at them. Where each
figure follows its subject, the words before it belong to it; where it precedes it (`5 % at Acme, 7 % at Bosch`), the
words after it do. Any other sentence is left alone, as no rule says which figure belongs to which word.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.synthesize.vocabulary import COPULAS
from prefect_dispatch.integrators.synthesize.word_index import Remark, Statement, make_remark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect_dispatch.integrators.synthesize.word_index import Evidence

PAIR_DISTANCE = 2
"""Largest distance of two content words, in content words, that stand together."""
_MAX_FIGURES = 12
"""Number of figures of a sentence from which on it is a table or a list rather than a sentence."""
_YEAR = re.compile(r"1[5-9]\d\d|20\d\d")
_TIMES = frozenset(
    re.findall(
        r"\w+",
        "january february march april may june july august september october november december "
        "monday tuesday wednesday thursday friday saturday sunday",
    )
)
"""Capitalised words that are no subject."""
_MEASURES = frozenset(
    re.findall(
        r"\w+",
        "percent per cent percentage point points hundred thousand million billion trillion dollars euros pounds",
    )
)
"""Words that belong to a figure."""

_JOINS = frozenset({"and", "but", "while", "whereas", "although", "though"})
"""Words that may join two clauses."""


class Share(NamedTuple):
    """A figure of a sentence with the words that belong to it."""

    at: int
    """Index of the figure."""
    keys: frozenset[str]
    """Stems of its subject: the names, or else the first word with content."""
    stems: frozenset[str]
    """Stems of all words that belong to it."""


def split_by_figures(statement: Statement) -> list[Share]:
    """Return the figures of a sentence with their subjects; empty if no rule says which belongs to which.

    Example:
        >>> [(each.at, sorted(each.keys)) for each in split_by_figures(Statement.parse("Acme grew 5 %, Bosch 7 %."))]
        [(2, ['acm']), (4, ['bosch'])]
    """
    figures = [at for at, word in enumerate(statement.words) if word[0].isdigit() and not _YEAR.fullmatch(word)]
    if not 0 < len(figures) <= _MAX_FIGURES:
        return []
    names = {at for at in statement.capitals if statement.words[at] not in _TIMES and statement.words[at] != "i"}
    content = [
        at
        for at in sorted({*statement.content, *(at for at in names if len(statement.words[at]) == 1)})
        if statement.words[at] not in _MEASURES | _TIMES
    ]
    names = {at for at in names if at in content and at > 0}  # the first word has a capital letter anyway
    first, last = figures[0], figures[-1]
    if len(figures) == 1:
        end = _find_clause_end(statement, first)
        return [_make_share(statement, first, [at for at in content if at < end], names)]
    before = [at for at in content if at < first]
    after = [at for at in content if at > last]
    if before and not (names & set(after) if names else after):
        starts, ends = [-1, *figures[:-1]], figures
    elif after and not (names & set(before) if names else before):
        starts, ends = figures, [*figures[1:], len(statement.words)]
    else:
        return []
    return [
        _make_share(statement, at, [each for each in content if start < each < end], names)
        for at, start, end in zip(figures, starts, ends, strict=True)
    ]


def _find_clause_end(statement: Statement, at: int) -> int:
    """Return the index of the word that joins the next clause to that of a figure; without one, the number of words.

    A clause of its own has a name and a form of `to be` after the joining word. `5 % at Acme and Bosch` has none.
    """
    for start in range(at + 1, len(statement.words)):
        if statement.words[start] in _JOINS:
            verb = next((each for each in range(start + 1, len(statement.words)) if each not in statement.capitals), 0)
            if verb > start + 1 and statement.words[verb] in COPULAS:
                return start
    return len(statement.words)


def _make_share(statement: Statement, at: int, words: list[int], names: set[int]) -> Share:
    """Return a figure with the words that belong to it."""
    keys = [each for each in words if each in names] or words[:1]
    return Share(at, *(frozenset(statement.stems[each] for each in some) for some in (keys, words)))


def check_subjects(claim: Statement, evidence: Evidence) -> Iterator[Remark]:
    """Yield the figures that the sources give another subject, and give another figure for this one.

    Args:
        claim: The sentence.
        evidence: The sources that it rests on.
    """
    shares = split_by_figures(claim)
    for share in shares:
        word = claim.words[share.at]
        owner = ""
        for each, at in evidence.find_numbers(word):
            owner = _find_owner(claim, share, each, at)
            if not owner:
                break
        if owner:
            yield make_remark("subject", claim, share.at, f"{word!r} is the figure of {owner!r} in {{where}}.")
    # Sentences that give one name its figure, and another name another one.
    named = [at for at in claim.content if at in claim.capitals]
    names = {claim.stems[at] for at in named}
    mine = evidence.find_statements(names)
    for at, word in enumerate(claim.words):
        if not word[0].isdigit():
            continue
        holders = [(each, place) for each, place in evidence.find_numbers(word)]
        if not holders or any(names & each.stem_set for each, _ in holders):
            continue
        after = claim.content[bisect_right(claim.content, at) :][:PAIR_DISTANCE]
        following = {claim.stems[each] for each in after if each - at <= PAIR_DISTANCE}
        if any(
            word not in each.words
            and (
                any(_counts(each, place, following) for place in range(len(each.words)))
                or (not following and _says_the_same(claim, each, names, [holder for holder, _ in holders]))
            )
            for each in mine
        ):
            yield make_remark("subject", claim, at, f"{word!r} is the figure of another subject in {{where}}.")


def _find_owner(claim: Statement, share: Share, source: Statement, at: int) -> str:
    """Return the subject to which a sentence of a source gives a figure; empty if it may be that of the claim.

    It is another one if the claim doesn't name it in the clause of the figure, and names that of another figure of the
    sentence there.
    """
    shares = split_by_figures(source)
    owner = next((each for each in shares if each.at == at), None)
    if owner is None or not owner.keys or owner.keys & share.stems:
        return ""
    # Where a claim of several figures names it elsewhere, it has to be the subject of another of them.
    rest = [each for each in split_by_figures(claim) if each.at != share.at]
    if rest and owner.keys & claim.stem_set and not any(owner.keys & each.keys for each in rest):
        return ""
    others = frozenset(key for each in shares if each is not owner for key in each.keys) - owner.stems
    if not others & share.keys:
        return ""
    return " ".join(source.words[each] for each in range(len(source.words)) if source.stems[each] in owner.keys)


def _counts(statement: Statement, place: int, things: set[str]) -> bool:
    """Return whether a word of a statement is a number that stands beside one of some stems, as `5 years`."""
    if not statement.words[place][0].isdigit():
        return False
    return any(statement.stems[at] in things for at in statement.content if abs(at - place) <= PAIR_DISTANCE)


def _says_the_same(claim: Statement, rival: Statement, names: set[str], holders: list[Statement]) -> bool:
    """Return whether two sentences say of two names what the claim says, each with one figure."""
    shared = (claim.stem_set & rival.stem_set & frozenset(claim.content_stems)) - names
    return all(len(split_by_figures(each)) == 1 and bool(shared & each.stem_set) for each in (rival, *holders))
