"""What a text says is looked up in what its sentence cites: a change is seen, and what is right isn't doubted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.integrators.synthesize.answer_index import number_answers
from prefect_dispatch.integrators.synthesize.findings import check_prose
from tests.integrators.said import say

if TYPE_CHECKING:
    from collections.abc import Sequence

SAID = [
    say("a", "**Keep** it for 5 years. See note [7]. List<int> is (not) used."),
    say("b", 'He said 12 days, and "never again".'),
    say("c", "Nothing in 2024-01."),
]

RIGHT = {
    "abbreviations": "By Dr. Smith, e.g. in the U.S. law, it is 5 years [1].",
    "a-numbered-heading": "# 3. Terms\n\nIt is 5 years [1].",
    "a-deep-heading": "## 2.1 Scope\n\nIt is 5 years [1].",
    "a-heading-with-a-number": "## After 5 years\n\nIt is over [1].",
    "a-heading-that-counts": "## 3 answers\n\nIt is over [1].",
    "an-underlined-heading": "Terms\n=====\n\nIt is 5 years [1].",
    "a-bold-heading": "**Terms**\n\nIt is 5 years [1].",
    "what-leads-in": "The terms are:\n- 5 years [1]\n- 12 days [2]",
    "list-markers": "1. It is 5 years [1].\n2. It is 12 days [2].\n10) None [3].",
    "markers-in-markers": "- (1) It is 5 years [1].\n- ② It is 12 days [2].",
    "the-head-of-a-table": "| Item | Term |\n|---|:-:|\n| See it. Yes | 5 years [1] |",
    "an-enumeration": "Fourth, it is 5 years [1].",
    "a-month": "It was January 2024 [3].",
    "over-lines": "It says “Keep it\nfor 5 years” [1].",
    "an-indented-line": "- It says “Keep it\n  for 5 years” [1].",
    "left-out": "It says “Keep it (...) years” [1].",
    "other-marks": "It says ‹Keep it for 5 years› and 「for 5 years」 [1].",  # noqa: RUF001 -- marks
    "marks-inside": "It says “and ‘never again’” and „12 days“ [2].",  # noqa: RUF001 -- marks
    "brackets-inside": "It says “See note [7]” [1].",
    "html": "It says “List&lt;int> is” [1].",
    "a-block": "It says so [1]:\n\n> Keep it\n> for **5** years.",
    "a-block-with-citations": "> Keep it for 5 years. [1]\n>\n> — of 12 days [2]",
    "a-block-of-two": "> Keep it for 5 years. [1]\n> He said 12 days [2].",
    "a-quotation-at-the-end": 'It is fine [1]. He said "never again." [2] None [3].',
    "inches": 'It is 5 years [1]. It is 5" [1]. It is 5" again [1].',
}
WRONG = {
    "a-heading": ("## After 6 years\n\nIt is 5 years [1].", ["6"]),
    "a-heading-with-another-citation": ("## After 5 years [2]\n\nIt is 5 years [1].", ["5"]),
    "what-leads-in": ("Two terms for 9 years:\n- 5 years [1]\n- 12 days [2]", ["9"]),
    "bold-sentences": ("**It is fine.**\n\nIt is 5 years [1].", ["**It is fine.**"]),
    "over-lines": ("It says “Keep it\nfor 6 years” [1].", ["“Keep it\nfor 6 years”"]),
    "over-paragraphs": ("It says “Keep it\n\nfor 6 years” [1].", ["It says “Keep it", "6"]),
    "guillemets": ("It says «Keep it for 6 years» [1].", ["«Keep it for 6 years»"]),
    "guillemets-inwards": ("It says »Keep it for 6 years« [1].", ["»Keep it for 6 years«"]),
    "corners": ("It says 「Keep it for 6 years」『so』 [1].", ["「Keep it for 6 years」"]),
    "what-somebody-says": ("It says 『so』 [1].", ["『so』"]),
    "brackets-inside": ("It says “See note [2]” [1].", ["“See note [2]”"]),
    "brackets-inside-alone": ('He said "see [2]".', ['He said "see [2]".', '"see [2]"']),
    "a-block": ("It says so [1]:\n\n> Keep it\n> for 6 years.", ["> Keep it\n> for 6 years."]),
    "a-block-of-another": ("> Keep it for 5 years. [2]", ["> Keep it for 5 years. [2]"]),
    "a-block-of-nobody": ("> Keep it:", ["> Keep it:", "> Keep it:"]),
    "who-said-it": ("> Keep it for 5 years.\n> — Ann, 1999 [1]", ["1999"]),
}


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_what_is_right_is_not_doubted(text: str) -> None:
    """Marks, headings and other forms of the same words are no false alarms."""
    assert [text[each.start : each.end] for each in check_prose(text, number_answers(SAID))] == []


@pytest.mark.parametrize(("text", "doubtful"), WRONG.values(), ids=WRONG)
def test_what_is_changed_is_doubted(text: str, doubtful: Sequence[str]) -> None:
    """Wherever it stands, and whatever marks it."""
    assert [text[each.start : each.end] for each in check_prose(text, number_answers(SAID))] == doubtful


@pytest.mark.parametrize(
    ("sentence", "holds"),
    [
        ("Keep it for 5 years.", True),
        ("keep it for 5 years", False),
        ("Keep it for 5 years. See note [7].", True),
        ("Keep it", False),
        ("years", False),
        ("", False),
        (".", False),
    ],
)
def test_a_sentence_is_a_whole_one(sentence: str, holds: bool) -> None:  # noqa: FBT001 -- a table
    """A fragment of an answer decides nothing."""
    assert number_answers(SAID)[0].has_whole_sentence(sentence) == holds


@pytest.mark.parametrize(
    ("sentence", "holds"),
    [
        ('"years": 5', True),
        ('{"note": ["No. Nothing."], "years": 5}', True),
        ("No.", True),
        ("Nothing.", True),
        ("Noth", False),
        ("5", False),
        ("years", False),
    ],
)
def test_an_entry_of_a_value_is_a_whole_one(sentence: str, holds: bool) -> None:  # noqa: FBT001 -- a table
    """Of what is no text, an entry decides, or a sentence in it."""
    [source] = number_answers([say("a", {"years": 5, "note": ["No. Nothing."]})])
    assert source.has_whole_sentence(sentence) == holds
