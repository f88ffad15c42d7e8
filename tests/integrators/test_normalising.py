"""What is the same without anybody being asked, what is only alike, and what must never be taken for the same."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.integrators.merge_records.linkage import ComparableIdentity, compare_identities
from prefect_dispatch.integrators.merge_records.similarity import (
    ComparableText,
    Matching,
    compare_texts,
    normalize_value,
    prepare_text,
    prepare_value,
)
from prefect_dispatch.serialization.json_values import value_order

if TYPE_CHECKING:
    from pydantic import JsonValue


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("\u201cMIT\u201d", '"mit"', id="quotation-marks"),
        pytest.param("O\u2019Brien", "o'brien", id="apostrophe"),
        pytest.param("MIT\u2013licence", "MIT-licence", id="dash"),
        pytest.param("soft\u00adware\u200b", "software", id="invisible"),
        pytest.param("1\u202f000", "1000", id="no-break-grouping"),
        pytest.param("1'000'000", "1000000", id="apostrophe-grouping"),
        pytest.param("1,000,000", "1000000", id="two-commas"),
        pytest.param("1,000.50", "1000.50", id="comma-and-point"),
        pytest.param("\u22125", "-5", id="minus"),
        pytest.param("1 May 2024", "2024-05-01", id="day-month-year"),
        pytest.param("May 1st, 2024", "2024-05-01", id="month-day-year"),
        pytest.param("1st of MAY 2024", "2024/5/1", id="ordinal"),
        pytest.param("Sept. 3, 2020", "2020-09-03", id="short-month"),
        pytest.param("13/04/2024", "2024-04-13", id="one-reading"),
        pytest.param("05.05.2024", "5/5/2024", id="both-readings-alike"),
        pytest.param("10 km", "10000 m", id="kilometres"),
        pytest.param("10 KM", "10km", id="unit-in-the-wrong-case"),
        pytest.param("1,000,000 mm", "1 kilometre", id="words-for-units"),
        pytest.param("1.5 h", "90 minutes", id="hours"),
        pytest.param("5 mL", "0.005 l", id="either-symbol-of-the-litre"),
        pytest.param("2 KiB", "2048 bytes", id="binary"),
        pytest.param("5 \u00b5m", "5 \u03bcm", id="micro-or-mu"),
        pytest.param("0.1 nm", "0.0000000001 m", id="nothing-is-rounded"),
    ],
)
def test_spellings_that_tell_nothing_apart(one: str, other: str) -> None:
    """Texts that can only mean the same are the same; what stands for them stands for itself."""
    assert normalize_value(one) == normalize_value(other)
    assert normalize_value(normalize_value(one)) == normalize_value(one)


DIFFERENT = [
    pytest.param("C", "C++", id="c-and-c++"),
    pytest.param("C++", "C#", id="c++-and-c#"),
    pytest.param("GPL-2.0", "GPL 20", id="a-point-fewer"),
    pytest.param("GPL 2.0", "GPL 3.0", id="versions"),
    pytest.param("1.10", "1.1", id="trailing-zero"),
    pytest.param("007", "7", id="leading-zero"),
    pytest.param("-5", "5", id="sign"),
    pytest.param("Temperature -5", "Temperature 5", id="sign-inside"),
    pytest.param("10\u00b2", "102", id="power"),
    pytest.param("5\u00bd", "51/2", id="fraction"),
    pytest.param("5 mW", "5 MW", id="milli-and-mega"),
    pytest.param("5 M", "5 m", id="million-and-metre"),
    pytest.param("5S", "5 s", id="siemens-and-second"),
    pytest.param("12 MG", "12 mg", id="megagram-and-milligram"),
    pytest.param("03/04/2024", "2024-04-03", id="two-readings"),
    pytest.param("30 February 2024", "1 March 2024", id="no-such-day"),
    pytest.param("2024-13-01", "2024-01-13", id="no-such-month"),
    pytest.param("Model X1", "Model X2", id="models"),
    pytest.param("Henry IV", "Henry V", id="roman"),
    pytest.param("Vitamin A", "Vitamin B", id="letters"),
    pytest.param("A+", "A-", id="grades"),
    pytest.param("A-", "A", id="grade-and-none"),
    pytest.param(".NET", "NET", id="leading-point"),
    pytest.param("5%", "5", id="percent"),
    pytest.param("$5", "\u20ac5", id="currency"),
    pytest.param("Series 3 Model 2", "Series 2 Model 3", id="numbers-change-places"),
    pytest.param("Hypertension in adults with diabetes", "Hypotension in adults with diabetes", id="hyper-and-hypo"),
    pytest.param("Males in Northern Ireland and Wales", "Females in Northern Ireland and Wales", id="a-prefix"),
    pytest.param("\u5317\u4eac\u5e02\u7b2c\u4e00", "\u5317\u4eac\u5e02\u7b2c\u4e8c", id="chinese-numbers"),
    pytest.param("\u4e0a\u6d77\u5927\u5b66\u9644\u5c5e", "\u6d77\u4e0a\u5927\u5b66\u9644\u5c5e", id="no-alphabet"),
    pytest.param("?!", "...", id="punctuation-alone"),
    pytest.param("Dog bites man", "Man bites dog", id="order-of-words"),
    pytest.param("International Business Machines Corporation", "International Business Machines Corp.", id="short"),
    pytest.param("North Korea", "South Korea", id="another-word"),
    pytest.param("Iran", "Iraq", id="short-words"),
    pytest.param("The report on it", "The report on it is not", id="a-word-more"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_must_not_be_taken_for_the_same(one: str, other: str) -> None:
    """Neither equal without asking, nor free of doubt for whoever compares, however low the threshold."""
    assert normalize_value(one) != normalize_value(other)
    found = compare_identities(name(one), name(other), Matching(sure=0.01, propose=0.01))
    assert found is None or not found.sure


@pytest.mark.parametrize(
    ("one", "other", "score"),
    [
        pytest.param("M\u00fcller", "muller", 0.99, id="accent"),
        pytest.param("\u0141\u00f3d\u017a", "Lodz", 0.99, id="stroke"),
        pytest.param("GPL-2.0", "GPL 2.0", 0.99, id="hyphen"),
        pytest.param("U.S.A.", "USA", 0.99, id="acronym"),
        pytest.param("Smith, John", "John Smith", 0.99, id="surname-first"),
        pytest.param("AT&T", "AT and T", 0.99, id="ampersand"),
        pytest.param("Model X1", "Model X 1", 0.99, id="letter-and-number"),
        pytest.param("1,000", "1000", 0.99, id="one-comma"),
        pytest.param("1 000", "1,000", 0.99, id="spaced"),
        pytest.param("10 km", "10,000 m", 0.99, id="quantity"),
        pytest.param("10 km", "10 000 m", 0.99, id="spaced-quantity"),
        pytest.param("Sold 1,000 on 1 May 2024", "sold 1000 on 2024-05-01", 0.99, id="inside"),
        pytest.param("non-profit body", "nonprofit body", 0.97, id="one-word-or-two"),
        pytest.param("International Business Machines", "Internatonal Business Machines", 0.9663, id="slip"),
        pytest.param(1000, "1,000", 0.99, id="number-and-text"),
    ],
)
def test_what_is_alike_without_doubt(one: JsonValue, other: JsonValue, score: float) -> None:
    """Spellings that hardly ever tell two things apart are alike enough to be sure by default."""
    found = compare_identities(name(one), name(other), Matching())
    assert found is not None
    assert (found.score, found.sure) == (score, True)


def name(value: JsonValue, **evidence: tuple[ComparableText, ...]) -> ComparableIdentity:
    """Return an identity of one field."""
    return ComparableIdentity((0, (value_order(normalize_value(value)),)), "", {"name": prepare_value(value)}, evidence)


def test_a_known_word_is_no_slip() -> None:
    """Words that others use, too, are not taken for slips of each other, as alike as they are."""
    one, other = prepare_text("potassium sodium nitrate"), prepare_text("potassium sodium nitrite")
    assert compare_texts(one, other).objection == ""
    assert compare_texts(one, other, {"nitrate", "nitrite"}).objection == "'nitrate' may not be 'nitrite'"


def test_long_texts_are_compared_as_a_whole() -> None:
    """Texts of more than forty words are alike letter by letter, and never the same for sure."""
    words = " ".join(f"word{letter * 3}" for letter in "abcdefghijklmnopqrstuvwxyz" * 2)
    found = compare_texts(prepare_text(words), prepare_text(words.replace("wordaaa", "wordaab", 1)))
    assert found.score > 0.95
    assert found.objection == "they are too long to be compared word by word"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param(("Leeds",), ("Leeds",), (0.99, True), id="equal"),
        pytest.param(("Leeds",), ("Leeds", "Bath"), (0.94, False), id="one-of-several"),
        pytest.param(("Leeds",), ("Lleeds",), (0.9808, True), id="alike"),
        pytest.param((), ("Bath",), (0.9231, False), id="missing"),
        pytest.param(("Leeds",), ("Bath",), None, id="another"),
    ],
)
def test_other_fields_are_evidence(
    one: tuple[str, ...], other: tuple[str, ...], expected: tuple[float, bool] | None
) -> None:
    """Where they agree there is less doubt; what is missing doesn't count; a contradiction is never sure."""
    matching = Matching(fields=("city",))
    left, right = (
        name(text, city=tuple(map(prepare_value, cities)))
        for text, cities in (("Jonathan Smith", one), ("Jonathon Smith", other))
    )
    found = compare_identities(left, right, matching)
    assert (found and (found.score, found.sure)) == expected


def test_what_is_doubtful_scores_below_what_is_sure() -> None:
    """A pair that is not the same for sure can't have a score that says it is, and says why."""
    names = ("International Business Machines Corporation", "International Business Machines Corp.")
    found = compare_identities(name(names[0]), name(names[1]), Matching())
    assert found is not None
    assert found == (0.94, "Alike: 'name' 0.9795; but 'corporation' may not be 'corp'.", False)


def test_a_series_is_not_proposed() -> None:
    """Texts that differ in a number alone are not worth anybody's time."""
    assert (
        compare_identities(
            name("Annual report of the company for 2001"), name("Annual report of the company for 2002"), Matching()
        )
        is None
    )


def test_what_is_too_long_for_a_name_is_equal_or_nothing() -> None:
    """A text as long as a book takes no time to compare, though half of it is another's."""
    book = "a word " * 200_000
    assert compare_identities(name(book), name(book + "more"), Matching(propose=0.01, sure=0.01)) is None


TEXTS = st.text(
    alphabet=st.sampled_from("abcXYZ éß中9801.,-+/ '()&%MkmgWh\u00b2\u00bd\u202f\u2019"), max_size=20
) | st.text(max_size=20)
QUANTITIES = st.from_regex(r"\d{1,3} ?[mMgGsSlLkKtTWhHzZ]{1,3}", fullmatch=True)


@given(TEXTS | QUANTITIES)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    """What a text is compared as is compared as itself, whatever the text."""
    once = normalize_value(text)
    assert normalize_value(once) == once


@given(TEXTS, TEXTS)
def test_likeness_is_symmetric(one: str, other: str) -> None:
    """Which text comes first makes no difference to the score, nor to whether there is a doubt."""
    a, b = (prepare_text(str(normalize_value(text))) for text in (one, other))
    assert compare_texts(a, b).score == compare_texts(b, a).score
    assert bool(compare_texts(a, b).objection) == bool(compare_texts(b, a).objection)
    assert 0 <= compare_texts(a, b).score <= 1


@given(TEXTS)
def test_case_and_forms_never_matter(text: str) -> None:
    """Upper case and decomposed letters are the same text, but for the case of units."""
    if not any(map(str.isdigit, text)):
        assert (
            normalize_value(text)
            == normalize_value(unicodedata.normalize("NFD", text))
            == normalize_value(text.swapcase().swapcase())
        )
