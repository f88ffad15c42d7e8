"""Comparison of a statement's wording with its sources, by rules and without a model.

Words are compared by their stems. A statement is reported for

- a name that stands in no source (`name`);
- a negation of a word that no source negates (`negation`), and the lack of one that every source has;
- a word whose opposite stands in the nearest sentences of the sources, where the word itself stands in none, and a
  word such as `always` that no source has (`direction`);
- a figure of another subject (`subject`);
- little in common with its sources (`support`).

The rules are for English. In a text of another language nothing is reported. What passes them is not proven: two words
may mean the same, and a sentence of the same words may mean something else.

The thresholds were chosen on one half of public data and measured on the other (`benchmarks/texts.py`).
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING

from prefect_dispatch.integrators.synthesize.figures import extract_figures
from prefect_dispatch.integrators.synthesize.subjects import PAIR_DISTANCE, check_roles, check_subjects
from prefect_dispatch.integrators.synthesize.units import find_currency, read_units
from prefect_dispatch.integrators.synthesize.vocabulary import (
    ABSENCE_STEMS,
    CERTAINTY_WORDS,
    COPULAS,
    LEAD_IN_STEMS,
    LINKING_VERBS,
    META_STEMS,
    MOVES,
    NEGATIVE_PREFIXES,
    OPPOSITES_BY_STEM,
    PLAIN_NEGATIONS,
    stem_word,
)
from prefect_dispatch.integrators.synthesize.word_index import Remark, Statement, WordIndex, is_negation, make_remark
from prefect_dispatch.security.escaping import join_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect_dispatch.integrators.synthesize.word_index import Evidence

MISSING_SHARE = 0.7
"""Share of a statement's content words that no source has from which on it has little in common with them."""
MIN_WORDS = 5
"""Number of content words from which on that share counts; a shorter statement needs one word that a source has."""
MISSING_RUN = 4
"""Number of content words in a row that no source has, from which on they are a detail that no source gives."""
MIN_PAIRS = 6
"""Number of pairs of neighbouring content words of which at least one has to stand together in a source."""
NEAREST = 3
"""Number of the most similar sentences of the sources that a statement is compared with for opposites."""
NEGATION_OVERLAP = 0.5
"""Share of a statement's content words in a negated sentence from which on the statement is about the same."""
_WAYS = frozenset({"up", "down"})
"""Directions that are parts of other verbs, too."""
_TITLES = frozenset({"dr", "mr", "mrs", "ms", "prof"})
_MAX_NAME = 10
"""Number of words from which on further ones belong to no name."""
_MIN_POSITIVE = 4
"""Least length of a word that a negative prefix turns into its opposite."""

_DIGITS = re.compile(r"[-./]?\d")
_BEFORE_START = re.compile(r"(?:\A|[.:!?…|>\"“”„«»;\x00])[\s*_#'‘(\[-]*\Z")  # noqa: RUF001 -- quotation marks
"""Pattern of what precedes a word that is capitalised as the first of a sentence, a cell or a quotation."""


def check_wording(text: str, evidence: Evidence, *, is_heading: bool = False) -> Iterator[Remark]:
    """Yield what the wording of a statement has that its sources don't.

    Args:
        text: One sentence, without its citations.
        evidence: The sources that it rests on; at least one.
        is_heading: Whether it is a heading or a lead-in, which rests on no source in particular.

    Example:
        >>> from prefect_dispatch.integrators.synthesize.word_index import Evidence
        >>> source = WordIndex([Statement.parse("The client paid its invoice.")], "The client paid its invoice.")
        >>> [remark.kind for remark in check_wording("The client did not pay its invoice.", Evidence([source]))]
        ['negation']
        >>> [remark.kind for remark in check_wording("The client is paid by Bosch.", Evidence([source]))]
        ['name']
    """
    claim = Statement.parse(text)
    yield from _check_names(text, claim, evidence, is_heading=is_heading)
    if is_heading:
        yield from _check_heading(claim, evidence)
    else:
        yield from _check_negations(claim, evidence)
        yield from _check_lost_negations(claim, evidence)
        yield from _check_opposites(claim, evidence)
        yield from check_subjects(claim, evidence)
        yield from check_roles(claim, evidence)
        yield from _check_support(text, claim, evidence)


def _check_heading(claim: Statement, evidence: Evidence) -> Iterator[Remark]:
    """Yield what a heading or a lead-in states that no source does; most of them state nothing."""
    nearest = evidence.find_nearest(claim, 1)
    stems = frozenset(claim.content_stems)
    if len(stems) > 1 and nearest and len(stems & nearest[0].stem_set) >= NEGATION_OVERLAP * len(stems):
        yield from _check_negations(claim, evidence)
        yield from _check_lost_negations(claim, evidence)
        yield from _check_opposites(claim, evidence)
    # `The client is bankrupt:` has a predicate of its own, and `three points are relevant:` speaks of what follows.
    last = claim.content[-1] if claim.content else 0
    if (
        claim.words[last - 1] in LINKING_VERBS
        and claim.stems[last] not in LEAD_IN_STEMS | META_STEMS
        and not evidence.has_word(claim.words[last], claim.stems[last])
    ):
        yield make_remark("support", claim, last, f"{claim.words[last]!r} doesn't stand in {{where}}.")


def _check_names(text: str, claim: Statement, evidence: Evidence, *, is_heading: bool) -> Iterator[Remark]:
    """Yield the capitalised words that no source has; a single one at the start of a sentence may be any word."""
    tokens = [text[first:last] for first, last in claim.spans]
    capitalised = [token[0].isupper() for token in tokens]
    if is_heading and sum(capitalised[at] for at in claim.content) > len(claim.content) / 2:  # in title case
        capitalised = [each and token[1:] != token[1:].lower() for each, token in zip(capitalised, tokens, strict=True)]
    content = set(claim.content)
    figures = _list_words_of_figures(text, claim)
    runs = _list_runs([at for at in claim.content if capitalised[at]])
    for at in claim.content:
        start, end = claim.spans[at]
        # A month, a unit and a name with digits, such as `COVID-19`, are compared as figures.
        if not capitalised[at] or at in figures or _DIGITS.match(text, end):
            continue
        has_next = at + 1 in content and capitalised[at + 1] and text[end : claim.spans[at + 1][0]] == " "
        # A title is no end of a sentence: `Dr. Miller`.
        is_titled = bool(at) and claim.words[at - 1] in _TITLES
        # From the end of the word before: between two words there are no letters, and so few characters.
        is_first = not is_titled and bool(_BEFORE_START.search(text[claim.spans[at - 1][1] - 1 if at else 0 : start]))
        if len(tokens[at]) < 2:  # noqa: PLR2004 -- an initial
            continue
        is_missing = not evidence.has_name(tokens[at], [tokens[each] for each in runs[at]])
        if is_first and not has_next and tokens[at][1:] == tokens[at][1:].lower():
            # It may be any word; it is a name if it is nearly one of the source.
            is_missing = is_missing and not evidence.has_stem(claim.stems[at]) and evidence.has_similar_name(tokens[at])
        if is_missing:
            yield Remark("name", start, end, f"The name {tokens[at]!r} doesn't stand in {{where}}.")


def _list_runs(indices: list[int]) -> dict[int, range]:
    """Return for each index the neighbouring indices that it stands among, at most so many as a name has words."""
    runs: dict[int, range] = {}
    for at in indices:
        first = runs[at - 1].start if at - 1 in runs else at
        runs |= dict.fromkeys(range(max(first, at - _MAX_NAME), at + 1), range(max(first, at - _MAX_NAME), at + 1))
    return runs


def _list_words_of_figures(text: str, claim: Statement) -> set[int]:
    """Return the indices of the words of numbers with their scales, units and currencies, and of dates."""
    starts = [start for start, _ in claim.spans]
    words: set[int] = set()
    for each in extract_figures(text):
        if each.kind != "name" and each.sure:
            unit_end = read_units(text, each.start, each.number_end)[1] if each.number_end else 0
            first = bisect_left(starts, find_currency(text, each.start))
            words.update(range(first, bisect_left(starts, max(each.end, unit_end))))
    return words


def _check_negations(claim: Statement, evidence: Evidence) -> Iterator[Remark]:
    """Yield the negations of words that the sources have, and never negate."""
    for at, word in enumerate(claim.words):
        after = bisect_right(claim.content, at)
        if not is_negation(word) or after == len(claim.content):
            continue
        following = claim.content[after]
        stem = claim.stems[following]
        if all(stem in source.stems for source in evidence.sources):
            if not evidence.is_negated(stem):
                message = f"{word!r} negates {claim.words[following]!r}, which isn't negated in {{where}}."
                yield make_remark("negation", claim, at, message)
        # One of several sources may be silent on what the sentence says that it doesn't have.
        elif len(evidence.sources) == 1 and (word in PLAIN_NEGATIONS or word.endswith("n't")):
            nearest = evidence.find_nearest(claim, 2)
            if nearest and not any(each.has_negation for each in nearest) and not claim.stem_set & ABSENCE_STEMS:
                yield make_remark("negation", claim, at, f"The negation {word!r} doesn't stand in {{where}}.")


def _check_lost_negations(claim: Statement, evidence: Evidence) -> Iterator[Remark]:
    """Yield the words that the most similar sentence negates, no sentence affirms, and the statement affirms."""
    nearest = evidence.find_nearest(claim, 1)
    stems = frozenset(claim.content_stems)
    if claim.has_negation or not nearest or len(stems & nearest[0].stem_set) < NEGATION_OVERLAP * len(stems):
        return
    # `It is unsafe` says the same as `it is not safe`.
    if any(
        OPPOSITES_BY_STEM.get(stem) or stem.startswith(NEGATIVE_PREFIXES)
        for stem in stems
        if not evidence.has_stem(stem)
    ):
        return
    negated = nearest[0].negated_stems
    for at in claim.content:
        if claim.stems[at] in negated and not evidence.is_affirmed(claim.stems[at]):
            message = f"{claim.words[at]!r} isn't negated here, as it is in {{where}}."
            yield make_remark("negation", claim, at, message)


def _check_opposites(claim: Statement, evidence: Evidence) -> Iterator[Remark]:
    """Yield the words whose opposite stands in the nearest sentences, and words that make a statement stronger."""
    near = frozenset(stem for each in evidence.find_nearest(claim, NEAREST) for stem in each.stems)
    for at, (word, stem) in enumerate(zip(claim.words, claim.stems, strict=True)):
        if evidence.has_stem(stem) or (word in _WAYS and (not at or claim.words[at - 1] not in MOVES)):
            continue
        if word in CERTAINTY_WORDS:
            yield make_remark("direction", claim, at, f"{word!r} says more than what stands in {{where}}.")
        is_reversed = any(
            opposite & near
            and not any(map(evidence.has_stem, same))
            and not (opposite & claim.stem_set or any(map(evidence.is_negated, opposite)))
            for same, opposite in OPPOSITES_BY_STEM.get(stem, ())
        )
        positives = {stem_word(word.removeprefix(each)) for each in NEGATIVE_PREFIXES if word.startswith(each)}
        has_positive = any(
            len(each) >= _MIN_POSITIVE and evidence.has_stem(each) and not evidence.is_negated(each)
            for each in positives
        )
        has_prefix = has_positive and at in claim.content and not claim.has_negation
        if stem not in claim.negated_stems and (is_reversed or has_prefix):
            yield make_remark("direction", claim, at, f"{word!r} is the opposite of what stands in {{where}}.")


def _check_support(text: str, claim: Statement, evidence: Evidence) -> Iterator[Remark]:
    """Yield a statement that has little in common with its sources."""
    figures = _list_words_of_figures(text, claim)
    judged = [at for at in claim.content if claim.stems[at] not in META_STEMS and at not in figures]
    found = [
        evidence.has_word(claim.words[at], claim.stems[at]) or _is_negated_otherwise(claim.words[at], evidence)
        for at in judged
    ]
    numbers = {word for word in claim.words if word[0].isdigit()}
    if not judged:
        return
    missing = [claim.words[at] for at, each in zip(judged, found, strict=True) if not each]
    run = longest = 0
    for each in found:
        run = 0 if each else run + 1
        longest = max(longest, run)
    pairs = [(claim.stems[one], claim.stems[other]) for one, other in pairwise(judged)]
    apart = len(pairs) >= MIN_PAIRS and not any(
        evidence.stand_together(one, other, PAIR_DISTANCE) for one, other in pairs
    )
    start, end = claim.spans[0][0], len(text.rstrip("\x00 \n"))
    # A short sentence needs no more than its predicate to be about something else: `The client is bankrupt.`
    if len(judged) < MIN_WORDS:
        last = judged[-1]
        is_predicate = len(judged) < MIN_WORDS - 1 and claim.words[last - 1] in COPULAS and not found[-1]
        has_figure = any(map(evidence.has_stem, numbers))
        strange = is_predicate or not (any(found) or has_figure)
    else:
        strange = len(missing) >= MISSING_SHARE * len(judged)
    if strange:
        words = f"{join_names(map(repr, missing[:MISSING_RUN]))} {'is' if len(missing) == 1 else 'are'}"
        yield Remark("support", start, end, f"Too few of its words stand in {{where}}; {words} missing.")
    elif longest >= MISSING_RUN:
        yield Remark("support", start, end, f"{longest} words in a row don't stand in {{where}}.")
    elif apart:
        yield Remark("support", start, end, "No two of its words stand together in {where}.")


def _is_negated_otherwise(word: str, evidence: Evidence) -> bool:
    """Return whether a word with a negative prefix says what a source negates: `unsafe` for `not safe`."""
    positives = (word.removeprefix(each) for each in NEGATIVE_PREFIXES if word.startswith(each))
    return any(evidence.is_negated(stem_word(each)) for each in positives if len(each) >= _MIN_POSITIVE)


def counts_otherwise(word: str, following: Statement, source: WordIndex) -> bool:
    """Return whether a source has another number of the things that a number word counts.

    Args:
        word: The number word, such as `two`.
        following: What follows it.
        source: The source.
    """
    content = set(following.content)
    counted = {following.stems[at] for at in range(PAIR_DISTANCE) if content.issuperset(range(at + 1))}
    return source.counts_otherwise(counted, word, PAIR_DISTANCE)
