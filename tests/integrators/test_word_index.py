"""The index of the sources' words finds what a comparison with every sentence finds."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.integrators.synthesize.answer_index import number_answers
from prefect_dispatch.integrators.synthesize.word_index import Evidence, Statement, WordIndex
from tests.integrators.said import say

WORDS = ("client", "paid", "invoice", "Bosch", "spare", "parts", "not", "the", "never", "5", "17", "granted", "appeal")
SENTENCES = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=7).map(" ".join), min_size=1, max_size=8)


def index(sentences: list[str]) -> WordIndex:
    """Return the index of a source of some sentences."""
    return WordIndex(map(Statement.parse, sentences), "\n".join(sentences))


@given(st.lists(SENTENCES, min_size=1, max_size=4), SENTENCES.map(" ".join), st.integers(1, 4))
def test_the_nearest_sentences_are_those_of_a_full_comparison(sources: list[list[str]], text: str, most: int) -> None:
    """Leaving out frequent words changes no result: the best sentences have the same scores, and ties their order."""
    claim = Statement.parse(text)
    found = Evidence([index(each) for each in sources]).find_nearest(claim, most)
    statements = [Statement.parse(sentence) for each in sources for sentence in each]
    stems = frozenset(claim.content_stems)
    frequency = Counter(stem for each in statements for stem in stems & each.stem_set)

    def score(statement: Statement) -> float:
        return round(math.fsum((1 + frequency[stem]) ** -0.5 for stem in stems & statement.stem_set), 9)

    expected = sorted((each for each in statements if score(each)), key=lambda each: -score(each))[:most]
    assert [score(each) for each in found] == [score(each) for each in expected]


@given(SENTENCES, st.sampled_from(WORDS), st.sampled_from(WORDS))
def test_look_ups_are_those_of_all_sentences(sentences: list[str], one: str, other: str) -> None:
    """What the index says of words, negations and numbers is what the sentences say."""
    source = index(sentences)
    statements = [Statement.parse(each) for each in sentences]
    first, second = (Statement.parse(each).stems[0] for each in (one, other))
    evidence = Evidence([source])
    assert evidence.has_stem(first) == any(first in each.stem_set for each in statements)
    assert evidence.is_negated(first) == any(first in each.negated_stems for each in statements)
    assert evidence.is_affirmed(first) == any(first in each.stem_set - each.negated_stems for each in statements)
    assert [each.words[at] for each, at in evidence.find_numbers("5")] == ["5"] * " ".join(sentences).split().count("5")
    if one not in ("the", "5", "17") and other not in ("the", "5", "17"):
        assert evidence.stand_together(first, second, 2) == any(each.has_pair(first, second, 2) for each in statements)


@pytest.mark.parametrize(
    ("word", "has"),
    [
        ("cybersecurity", True),  # `cyber security`
        ("securitycyber", False),
        ("operate", True),  # of `cooperate`
        ("partner", True),  # of `partnership`
        ("owner", False),
        ("ship", False),
        ("payments", True),
        ("ban", True),
    ],
)
def test_a_word_is_found_in_its_other_forms(word: str, has: bool) -> None:  # noqa: FBT001 -- a table
    """Written in two, as a part of another one, by its stem, or as a word that means the same."""
    evidence = Evidence([index(["They cooperate in cyber security.", "The partnership forbids payment."])])
    assert evidence.has_word(word, Statement.parse(word).stems[0]) == has


@given(st.text("ab .…", max_size=30), st.text("ab .…", max_size=12))
def test_a_quotation_is_found_where_a_plain_search_finds_it(text: str, quotation: str) -> None:
    """Texts without the words inside a quotation are left out, which changes no result."""
    [source] = number_answers([say("item", text)])
    parts = [" ".join(part.split()).strip(" .") for part in re.split(r"…|\.\.\.", quotation)]
    rest = [" ".join(text.split()), "terms/item"]
    for part in filter(None, parts):
        rest = [each[each.find(part) + len(part) :] for each in rest if part in each]
    assert source.has_quotation(quotation) == (any(map(bool, parts)) and bool(rest))
