"""Numbers, dates and names with digits, read by their value, and looked up in what is cited."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch.integrators.synthesize.answer_index import number_answers
from prefect_dispatch.integrators.synthesize.figures import extract_figures
from prefect_dispatch.integrators.synthesize.findings import check_prose
from tests.integrators.said import say

if TYPE_CHECKING:
    from pydantic import JsonValue


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,000", "1000"),
        ("1,234,567.5", "1234567.5"),
        ("1.000.000", "1000000"),
        ("1.000.000,5", "1000000.5"),
        ("1.234,5", "1234.5"),
        ("1 000 000", "1000000"),
        ("1\u202f000", "1000"),
        ("1'000", "1000"),
        ("1.000", "1"),
        ("12,5", "12.5"),
        ("0012", "12"),
        ("-5", "-5"),
        ("−5", "-5"),  # noqa: RUF001 -- a minus
        ("(-5)", "-5"),
        ("-0", "0"),
        ("12kg", "12"),
        ("12-month", "12"),
        ("3rd", "3"),
        ("1990s", "1990"),
        ("5k", "5000"),
        ("5M", "5000000"),
        ("1.2 million", "1200000"),
        ("two million", "2000000"),
        ("3 bn", "3000000000"),
        ("two hundred", "200"),
        ("Twelve", "12"),
        ("seventeen", "17"),
        ("ninety", "90"),
        ("forty-two", "42"),
        ("two-clause", "2"),
        ("twenty-odd", "20"),
        ("zero", "0"),
        ("٣", "3"),
        ("a hundred", "100"),
        ("two hundred and five", "205"),
        ("a hundred and five thousand", "105000"),
        ("nine thousand and ninety-nine", "9099"),
        ("three thousand million", "3000000000"),
        ("a dozen", "12"),
        ("two dozen", "24"),
        ("2 dozen", "24"),
        ("3 hundred thousand", "300000"),
        ("5\nmillion", "5000000"),
        ("**5** million", "5000000"),
        ("5&nbsp;million", "5000000"),
        ("5 Millionen", "5000000"),
        ("5 Mio.", "5000000"),
        ("5 millones", "5000000"),
        ("5 millions", "5000000"),
        ("5 milhões", "5000000"),
        ("5 млн", "5000000"),
        ("500万", "5000000"),
        ("5億", "500000000"),
        ("1,5 Mrd.", "1500000000"),
        ("50 lakh", "5000000"),
        ("2 crore", "20000000"),
        (f"{'9' * 40} million", f"{'9' * 40}000000"),
        ("minus five", "-5"),
        ("minus 5", "-5"),
        ("negative\n5", "-5"),
        ("-5 million", "-5000000"),
        ("sixth", "6"),
        ("twenty-first", "21"),
        ("fortieth", "40"),
        ("6.02e23", "6.02e23"),
        ("-1.5E-7", "-1.5e-7"),
        ("3 ‰", "0.3"),
        ("5 b", "5"),
        ("$5 b", "5000000000"),
    ],
)
def test_numbers_are_read_by_their_value(text: str, value: str) -> None:
    """One number each, whatever its form."""
    [found] = extract_figures(f"{text} x")
    assert (found.kind, found.value) == ("number", Decimal(value))


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("one of them", []),
        ("BSD-3-Clause", ["name"]),
        ("v1.2", ["name"]),
        ("1.2.3", ["name"]),
        ("9" * 61, ["name"]),
        ("2-3", ["number", "number"]),
        ("10:30", ["number", "number"]),
        ("2024-01-31", ["date"]),
        ("2024-01-31T10:00:00Z", ["date", "number"]),
        ("2024-13-31", ["number", "number", "number"]),
        ("31.12.2024", ["date"]),
        ("may 5", ["number"]),
        ("May 5", ["date"]),
        ("Sept. 2024", ["date"]),
        ("3rd of March 2024", ["date"]),
        ("word", []),
        ("a second, the third party, first, half", []),
        ("one hundred and two hundred", ["number", "number"]),
        ("twenty and five", ["number", "number"]),
        ("twelfth seven", ["number", "number"]),
        ("dozen seven", ["number", "number"]),
        ("sixteen " * 20, ["number"] * 20),
        ("hundred thousand " * 20, ["number"] * 3),
        ("hundreds, dozens, tenfold, twice", []),
        ("Fourth, it is so. Fifth, it isn't", []),
        ("in the fourth, then", ["number"]),
        ("10 minus 5", ["number", "number"]),
        ("2024-01", ["date"]),
        ("2024-13", ["number", "number"]),
        ("01/2024", ["date"]),
        ("5. Mai 2024", ["date"]),
        ("in March", ["date"]),
        ("March on. May it be. Mayor", []),
        ("January", ["date"]),
        ("2024-01-31T10:30:00+02:00", ["date", "number", "number", "number"]),
        ("2024-13-31T10:00", ["name"]),
        ("Henry XIV ate ½ of ⑥", []),
        ("the third quarter, the third party", ["number"]),
    ],
)
def test_what_is_a_figure(text: str, kinds: list[str]) -> None:
    """Names with digits are no numbers, and dates are not three of them."""
    assert [found.kind for found in extract_figures(text) if found.sure] == kinds


UNREAD = ["10²", "half a million", "half a dozen", "two and a half million"]


@pytest.mark.parametrize("text", UNREAD)
def test_numerals_that_are_not_read_are_compared_letter_by_letter(text: str) -> None:
    """A numeral of another system passes where the answer has it as it stands, and is never passed unread."""
    assert check_prose(f"It is {text} [1].", number_answers([say("item", f"so: {text.upper()}")])) == []
    for other in ("0.5", "1.5", "6", "14", "100", 500000, 2500000, "none"):
        found = check_prose(f"It is {text} [1].", number_answers([say("item", other)]))
        assert "number" in {each.kind for each in found}


SAME: list[tuple[JsonValue, str]] = [
    (1000, "1,000"),
    ("1,000", "1000"),
    ("1 000", "1000"),
    (1000, "one thousand"),
    ("12 %", "12 percent"),
    (0.12, "12 %"),
    ("12 %", "0.12"),
    ("12 per cent", "12"),
    ({"share": 12}, "12 %"),
    ({"5": "years"}, "5"),
    ([[-3]], "-3"),
    (1e-07, "1e-07"),
    ("three", "3"),
    (3, "three"),
    ("one year", "1 year"),
    ("5 years", "5-year"),
    ("1.2 million", "1,200,000"),
    ("2024-01-31", "31 January 2024"),
    ("31/01/2024", "January 31, 2024"),
    ("Jan 31 2024", "31.1.2024"),
    ("2024-01-31", "January 2024"),
    ("2024-01-31", "31 January"),
    ("2024-01-31", "2024"),
    ("5/6/2024", "2024-06-05"),
    ("5/6/2024", "2024-05-06"),
    ("GPL-2.0-only", "GPL-2.0"),
    ("see BSD-3-Clause", "bsd-3-clause"),
    ("version v1.2.", "v1.2"),
    (10**400, str(10**400)),
    (10**400, f"the number {10**400}"),
    ("5 Millionen", "5 million"),
    ("sixth", "6th"),
    ("third", "3rd"),
    ("two", "2nd"),
    ("one", "1"),
    ("January 2024", "2024-01"),
    ("2024-01", "January 2024"),
    ("2024-03-05", "in March"),
    ("2010-12", "12"),
    ("2024-01-31T10:30:00Z", "10:30"),
    ("31 January 2024, 10:30", "2024-01-31T10:30:00Z"),
    (6.02e23, "6.02e23"),
    (100, "a hundred"),
    ("100 to 200", "one hundred and two hundred"),
    ("May 2024", "May"),
    ("see [7]", "7"),
    (1234567, "1.23 million"),
    ("1,234,567", "about 1,200,000"),
    (11.8, "12"),
    (104, "more than 100"),
    (96, "almost 100"),
    ("17 August, and 2022", "August 2022"),
    ("in the fourth quarter", "Q4"),
    ("Q4", "the fourth quarter"),
    ("4Q 2024", "Q4"),
    ("the pandemic", "COVID-19"),
    ("Ann, Bob", "three"),
    ("1.234,5", "1,234.5"),
]
OTHER: list[tuple[JsonValue, str]] = [
    ("5 Millionen", "5 Milliarden"),
    ("5 millions", "5 milliards"),
    ("500万", "500億"),
    ("5 lakh", "5 crore"),
    ("5 million", "5\nbillion"),
    ("two dozen", "three dozen"),
    ("half a million", "a million"),
    ("five", "minus five"),
    ("minus five", "five"),
    ("sixth", "seventh"),
    ("10²", "10³"),
    ("in March", "April"),
    ("2024-03-05", "in May"),
    ("2024-01", "February 2024"),
    ("2024-01-31T10:30:00Z", "11:30"),
    (6.02e23, "6.02e22"),
    (10**400, str(10**400 + 1)),
    (1000, "1.000"),
    (1000, "1,001"),
    (5, "-5"),
    (-5, "5"),
    (12, "13 %"),
    ("12 %", "1200 %"),
    ("12 %", "120 %"),
    ("12 %", "0.012"),
    ("1.2 million", "1.2 billion"),
    ("5 years", "50 years"),
    ("5 years", "six years"),
    ("2024-01-31", "30 January 2024"),
    ("2024-01-31", "31"),
    ("January 2024", "31 January 2024"),
    ("2024", "2024-01-31"),
    ("2024-01-31", "2025"),
    ("GPL-2.0", "GPL-2"),
    ("GPL-2", "GPL-2.0"),
    ("v1.2", "v1.2.3"),
    ("BSD-3-Clause", "BSD-2-Clause"),
    ("BSD-3-Clause", "3 clauses"),
    ("2 clauses", "BSD-2-Clause"),
    (True, "1"),
    (None, "0"),
    ("", "7"),
    (1234567, "1.3 million"),
    (1234567, "1.25 million"),
    (7, "about 6"),
    (5.4, "5"),
    (160, "more than 100"),
    (60, "almost 100"),
    (96, "more than 100"),
    (0, "about 10"),
    (5, "about 0"),
    ("17 August", "August 2022"),
    ("in the third quarter", "Q4"),
    ("Q3", "the fourth quarter"),
    ("the flu", "COVID-19"),
    ("two names", "three names"),
]


@pytest.mark.parametrize(("value", "text"), SAME)
def test_what_stands_there(value: JsonValue, text: str) -> None:
    """A figure in another form is still the one that the answer has."""
    assert check_prose(f"It is {text} [1].", number_answers([say("item", value)])) == []


@pytest.mark.parametrize(("value", "text"), OTHER)
def test_what_does_not_stand_there(value: JsonValue, text: str) -> None:
    """A figure that was changed is found where it stands, however slight the change."""
    text = f"It is {text} [1]."
    [found] = check_prose(text, number_answers([say("item", value)]))
    assert found.kind in ("number", "date", "identifier")
    assert text[found.start : found.end] in text
    assert found.consulted == (1,)


STRANGE = [
    "s\u0131x",
    "s\u0130x",
    "\u017fix",
    "m\u0131llion",
    "thou\u017fand",
    "K",
    "½",
    "Ↄ",
    "Ⅵ",
    "⒍",
    "⓪",
    "¹",
    "²",
    "٣",
    "5",
    "e5",
    "1e999",
    ",",
    ".",
    "-",
    "T",
    ":",
    "\u0307",
    "\u0000",
    "XIV",
    "Mär",
    "may",
]


@given(st.lists(st.sampled_from(STRANGE) | st.text(max_size=3), max_size=12), st.sampled_from(["", " "]))
@settings(deadline=None, max_examples=400)
def test_any_text_can_be_read(pieces: list[str], between: str) -> None:
    """Whatever characters there are, figures stand in the text, and a text is evidence for each of its own."""
    text = between.join(pieces)
    found = list(extract_figures(text))
    assert all(0 <= each.start < each.end <= len(text) for each in found)
    [source] = number_answers([say("item", text)])
    assert [each for each in found if not source.has_figure(each)] == []


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6), st.sampled_from(["{}", "{:,}", "{} days", "{:,} %"]))
@settings(deadline=None)
def test_a_changed_number_is_never_missed(said: int, told: int, form: str) -> None:
    """Whatever number an answer has: the same one passes, in any form, and no other one does."""
    sources = number_answers([say("item", {"days": said})])
    # Twelve per cent may be 0.12, which no whole number is but for none at all.
    doubts = check_prose(f"It takes {form.format(told)} [1].", sources)
    assert bool(doubts) == (said != told and not (form.endswith("%") and told == said * 100))


@pytest.mark.parametrize(
    ("text", "doubtful"),
    [
        pytest.param("Both of the 2 agree [1][2].", [], id="a-count"),
        pytest.param("All 3 agree [1-3].", [], id="a-count-of-a-range"),
        pytest.param("Three agree [1, 2, 3].", [], id="a-count-in-words"),
        pytest.param("3 agree [1][2].", ["3"], id="a-wrong-count"),
        pytest.param("2 of 3 agree [1][2].", ["3"], id="of-how-many"),
        pytest.param("1 says so [1].", ["1"], id="a-count-of-one"),
        pytest.param("2 % agree [1][2].", ["2 %"], id="per-cent-is-no-count"),
        pytest.param("2.0 agree [1][2].", ["2.0"], id="a-fraction-is-no-count"),
        pytest.param("2 thousand agree [1][2].", ["2 thousand"], id="thousands-are-no-count"),
        pytest.param("2kg weigh both [1][2].", ["2kg"], id="a-quantity-is-no-count"),
    ],
)
def test_a_count_is_the_number_of_citations(text: str, doubtful: list[str]) -> None:
    """Counting what is cited is not inventing; any other number that stands nowhere is."""
    sources = number_answers([say(key, "yes") for key in "abc"])
    assert [text[found.start : found.end] for found in check_prose(text, sources)] == doubtful


@pytest.mark.slow
@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "piece",
    [
        "1,",
        "1",
        "a-",
        "1 000",
        "Jan ",
        "1-",
        "two-",
        "1.1",
        "January 1 ",
        "1 ",
        "5 of May ",
        "1'",
        "12 %",
        "a1.",
        '"',
        "“",
        "million ",
        "and a half ",
        "1 million ",
        "½",
        "IX ",
        "minus ",
        "> a [1]\n",
        "\n|-|\n",
        "- ",
        "a:\n",
        "U.S.",
        "2024-01T",
    ],
)
def test_a_long_text_takes_no_long_time(piece: str) -> None:
    """Whatever is repeated fifteen thousand times: it takes time in proportion, so the limit of this test holds."""
    text = piece * 15_000
    found = check_prose(text, number_answers([say("item", text)]))
    assert [each.kind for each in found if each.kind == "citation"] == []
