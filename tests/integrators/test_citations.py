"""Citations, and the sentences that they belong to."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch.integrators.synthesize.answer_index import Prose

if TYPE_CHECKING:
    from collections.abc import Sequence

PIECES = st.sampled_from(
    ["[1]", "[2, 3]", "[1-3]", "[9]", "[2024]", "[unverified]", "e.g. ", "No. ", ". ", "\n\n", "- ", "# ", "1. "]
) | st.sampled_from('[]()! \naB7“”"\\^。…\x00²')
TEXTS = st.lists(PIECES, max_size=30).map("".join)


CITATIONS: dict[str, tuple[str, list[int], list[str]]] = {
    "one": ("a [3]", [3], []),
    "side-by-side": ("a [3][4]", [3, 4], []),
    "a-list": ("a [3, 4; 5]", [3, 4, 5], []),
    "ranges": ("a [3-5] [ 7 – 8 ]", [3, 4, 5, 7, 8], []),  # noqa: RUF001 -- a dash
    "without-a-space": ("a[3]", [3], []),
    "doubled": ("a [[3]]", [3], []),
    "partly-unknown": ("a [10, 11]", [10], ["11"]),
    "nought": ("a [0]", [], ["0"]),
    "a-range-too-far": ("a [9-999999999]", [9, 10], ["9-999999999"]),
    "a-range-backwards": ("a [5-3]", [], ["5-3"]),
    "a-link": ("a [3](http://x)", [], []),
    "escaped": ("a \\[3]", [], []),
    "a-footnote": ("a [^3]", [], []),
    "a-year": ("in [2024]", [], []),
    "no-year": ("in [999]", [], ["999"]),
    "other-brackets": ("a [x] [3 4] [3.5] []", [], []),
    "a-superscript": ("a [³]", [], []),
    "unclosed": ("a [3", [], []),
    "in-a-quotation": ("“see [3]” [4]", [4], []),
    "in-a-quotation-over-lines": ('"see\n[3]" [4]', [4], []),
    "in-a-block": ("> see [3] there\n> and [5] here [4].", [4], []),
    "below-a-block": ("> see [3] there\n> — Ann [4]", [4], []),
    "after-inches": ('a 5" pipe [3] and a 6" one', [3], []),
}


@pytest.mark.parametrize(("text", "known", "unknown"), CITATIONS.values(), ids=CITATIONS)
def test_what_is_a_citation(text: str, known: Sequence[int], unknown: Sequence[str]) -> None:
    """Of ten answers, those are cited that stand alone in square brackets, and what isn't there is told."""
    found = Prose(text, 10).citations
    assert sorted({number for each in found for number in each.numbers}) == list(known)
    assert [name for each in found for name in each.unknown] == unknown


SENTENCES: dict[str, tuple[str, list[tuple[str, list[int]]]]] = {
    "german-date": (
        "Am 1. Mai 2024 endet er [1]. Danach [2].",
        [("Am 1. Mai 2024 endet er [1].", [1]), ("Danach [2].", [2])],
    ),
    "german-ordinals": (
        "Im 3. Quartal stieg er [1]. Die 2. Klasse [2].",
        [("Im 3. Quartal stieg er [1].", [1]), ("Die 2. Klasse [2].", [2])],
    ),
    "german-abbreviations": ("Der e. V. gab z. B. 5 Mio. Euro [1].", [("Der e. V. gab z. B. 5 Mio. Euro [1].", [1])]),
    "english-month": ("It costs 5. April is next [1].", [("It costs 5.", []), ("April is next [1].", [1])]),
    "before-the-stop": ("One [1]. Two [2].", [("One [1].", [1]), ("Two [2].", [2])]),
    "after-the-stop": ("One. [1] Two. [2]", [("One. [1]", [1]), ("Two. [2]", [2])]),
    "right-after-the-stop": ("One.[1][2] Two.", [("One.[1][2]", [1, 2]), ("Two.", [])]),
    "opens-the-next": ("One [1]. [2] says two.", [("One [1].", [1]), ("[2] says two.", [2])]),
    "opens-the-next-in-small": ("One. [2] says two.", [("One.", []), ("[2] says two.", [2])]),
    "small-letters": ("one [1]. zlib two [2].", [("one [1].", [1]), ("zlib two [2].", [2])]),
    "lists": ("- one [1]\n* two [2]\n3. three", [("one [1]", [1]), ("two [2]", [2]), ("three", [])]),
    "a-heading": ("# Head\ntext [1]", [("# Head", []), ("text [1]", [1])]),
    "a-broken-line": ("a line that\ngoes on [1]", [("a line that\ngoes on [1]", [1])]),
    "lines-with-citations": ("one [1]\ntwo [2]", [("one [1]", [1]), ("two [2]", [2])]),
    "short-words": ("See e.g. [1] and Nr. 5, cf. [2].", [("See e.g. [1] and Nr. 5, cf. [2].", [1, 2])]),
    "a-number-word": ("It is no. 5 [1].", [("It is no. 5 [1].", [1])]),
    "no-number-word": ("It is no. Yes [1].", [("It is no.", []), ("Yes [1].", [1])]),
    "chinese": ("在这里[1]。还有[2]。", [("在这里[1]。", [1]), ("还有[2]。", [2])]),
    "titles": (
        "Dr. Smith of the U.S. says it [1]. J. Doe, too.",
        [
            ("Dr. Smith of the U.S. says it [1].", [1]),
            ("J. Doe, too.", []),
        ],
    ),
    "the-end-of-a-name": (
        "MIT et al. say so. Acme Inc. agrees [1]. So does Foo Inc. Others don't.",
        [
            ("MIT et al. say so.", []),
            ("Acme Inc. agrees [1].", [1]),
            ("So does Foo Inc.", []),
            ("Others don't.", []),
        ],
    ),
    "an-abbreviated-month": ("On Jan. 5 it was [1].", [("On Jan. 5 it was [1].", [1])]),
    "markers": ("1. (2) one [1]\n- ① two [2]\n2.1. three", [("one [1]", [1]), ("two [2]", [2]), ("2.1. three", [])]),
    "a-numbered-heading": ("## 2. Head\ntext [1]", [("## 2. Head", []), ("text [1]", [1])]),
    "a-table": (
        "| See it. Yes | 5 [1] |\n| Or. No | 6 [2] |",
        [
            ("| See it. Yes | 5 [1] |", [1]),
            ("| Or. No | 6 [2] |", [2]),
        ],
    ),
    "a-quotation-in-a-table": ("| So “One. Two.” is. | 5 [1] |", [("| So “One. Two.” is. | 5 [1] |", [1])]),
    "a-quotation": (
        "“One. Two.” it says [1]. It says “One.” [2] Three.",
        [
            ("“One. Two.” it says [1].", [1]),
            ("It says “One.” [2]", [2]),
            ("Three.", []),
        ],
    ),
    "a-block": (
        "It says [1]:\n\n> One. Two.\n> Three.\n\nFour.",
        [
            ("It says [1]:", [1]),
            ("> One. Two.\n> Three.", [1]),
            ("Four.", []),
        ],
    ),
    "a-block-with-citations": ("So [1].\n> One. [2]", [("So [1].", [1]), ("> One. [2]", [2])]),
    "a-block-alone": ("> One.", [("> One.", [])]),
    "a-point-inside": ("Version 2.0 is out [1].", [("Version 2.0 is out [1].", [1])]),
    "nothing": ("", []),
    "white-space": (" \n ", []),
}


@pytest.mark.parametrize(("text", "expected"), SENTENCES.values(), ids=SENTENCES)
def test_which_sentence_a_citation_belongs_to(text: str, expected: Sequence[tuple[str, list[int]]]) -> None:
    """A citation may stand before the full stop or after it, or open the next sentence."""
    assert [(text[each.start : each.end], list(each.cited)) for each in Prose(text, 3).sentences] == expected


@pytest.mark.slow
@given(TEXTS, st.integers(0, 5))
@settings(deadline=None, max_examples=300)
def test_sentences_keep_every_citation(text: str, total: int) -> None:
    """Sentences come in order, don't overlap, and hold between them every citation of the text."""
    prose = Prose(text, total)
    found = prose.sentences
    assert all(one.end <= other.start for one, other in pairwise(found))
    assert all(each.start < each.end for each in found)
    inside = {number for each in found for number in each.cited}
    assert inside == {number for each in prose.citations for number in each.numbers}
    assert not any(each.start < bracket.start < each.end < bracket.end for each in found for bracket in prose.citations)


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [
        "[1",
        "[1,",
        "[1-",
        ".",
        "\n",
        "[1] ",
        "a. ",
        "aa.[1] ",
        " ",
        "a\n",
        '"a. ',
        "[ ",
        "1. ",
        "。",
        "- ",
        "e.g. ",
        "\n> [1]",
        "\n| ",
        "U.S.",
        "«",
    ],
)
@pytest.mark.timeout(30)
def test_a_long_text_takes_no_long_time(piece: str) -> None:
    """Whatever is repeated thirty thousand times: it takes time in proportion, so the limit of this test holds."""
    text = piece * 30_000
    found = Prose(text, 1).sentences
    assert "".join(text[each.start : each.end] for each in found).count("[1]") == text.count("[1]")
