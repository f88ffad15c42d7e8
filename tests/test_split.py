"""How a text is cut: nothing lost, nothing cut that the rule keeps whole, and as even as can be."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_dispatch.models.brief import By, Split
from prefect_dispatch.models.item import Item

RULES = [
    *(Split(by=by) for by in ("pages", "paragraphs", "lines", "sentences", "words")),
    Split(separator="--"),
    Split(separator="a.+"),
]
rules = st.sampled_from(RULES)
texts = st.text(st.sampled_from("ab. !?。\n\f-+\t”"), max_size=60) | st.text(max_size=60)


@given(rules, texts, st.integers(1, 9))
def test_nothing_is_lost(rule: Split, text: str, most: int) -> None:
    """The parts, one after another, are the text; there are no more than asked for, and none is empty or blank."""
    parts = rule.split_text(text, most)
    assert "".join(parts) == text
    assert len(parts) <= most
    assert all(parts)
    assert not any(part.isspace() for part in parts) or len(parts) == 1


@given(rules, texts, st.integers(2, 9))
def test_what_the_rule_keeps_whole_is_never_cut(rule: Split, text: str, most: int) -> None:
    """Every cut is where the rule has one."""
    assert _ends(rule.split_text(text, most)) <= set(rule.cut_positions(text))


@given(st.text(st.sampled_from("ab \n"), max_size=40), st.integers(2, 9))
def test_no_word_is_cut(text: str, most: int) -> None:
    """By words, a word stays in one part; so it does by all that is longer."""
    for by in ("words", "lines", "paragraphs"):
        assert [word for part in Split(by=by).split_text(text, most) for word in part.split()] == text.split()


@given(rules, st.text(st.sampled_from("ab. \n\f-"), max_size=14), st.integers(2, 4))
def test_no_other_cut_has_a_shorter_longest_part(rule: Split, text: str, most: int) -> None:
    """So no part is longer than need be, unless it is a single unit."""
    ends = rule.cut_positions(text)[:-1]
    others = [
        max(end - start for start, end in pairwise((0, *chosen, len(text))))
        for count in range(most)
        for chosen in combinations(ends, count)
    ]
    assert max(map(len, rule.split_text(text, most)), default=0) == min(others)


@pytest.mark.parametrize(
    ("by", "text", "units"),
    [
        ("pages", "one\fa\n\nb\ftwo", ["one\f", "a\n\nb\f", "two"]),
        ("paragraphs", "one\nmore\n \t\n\n two\r\n\r\nthree", ["one\nmore\n \t\n\n ", "two\r\n\r\n", "three"]),
        ("lines", "\n\none\n\ntwo\r\nthree", ["\n\none\n\n", "two\r\n", "three"]),
        ("sentences", 'Is it 3.5? "Yes." No\n\nmore. ', ["Is it 3.5? ", '"Yes." ', "No\n\n", "more. "]),
        ("sentences", "是。「不是。」是", ["是。", "「不是。」", "是"]),
        ("words", " a  well-known\tword", [" a  ", "well-known\t", "word"]),
    ],
)
def test_what_is_kept_whole(by: By, text: str, units: list[str]) -> None:
    """Each name means what one expects; blanks stay with what is before them."""
    assert [text[start:end] for start, end in pairwise((0, *Split(by=by).cut_positions(text)))] == units


def test_a_separator_is_a_text_and_no_pattern() -> None:
    """It stays at the end of what it ends."""
    assert Split(separator=".*").split_text("a.*b.c.*", 9) == ["a.*", "b.c.*"]


@pytest.mark.parametrize(
    ("value", "field", "text"),
    [
        ("a", "", "a"),
        ("a", "text", "a"),
        ({"text": "a"}, "text", "a"),
        ({"text": "a"}, "", None),
        ({"text": 3}, "text", None),
        ({}, "text", None),
        (["a"], "text", None),
    ],
)
def test_the_text_of_an_item(value: object, field: str, text: str | None) -> None:
    """The item itself, or a field of it."""
    item = Item.model_validate({"key": "k", "value": value})
    rule = Split(field=field)
    assert rule.text(item) == text
    if text is not None:
        assert rule.text(rule.part(item, "b")) == "b"
        assert rule.part(item, text) == item


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"by": "lines", "separator": "--"}, "'by' and 'separator' both say where to cut; keep one"),
        ({"by": "line"}, "Input should be 'pages', 'paragraphs', 'lines', 'sentences' or 'words'"),
        ({"separator": ""}, "at least 1 character"),
        ({"seperator": "--"}, "unknown key 'seperator'; did you mean 'separator'?"),
    ],
)
def test_a_wrong_rule_is_refused(rule: dict[str, str], why: str) -> None:
    """With the way out."""
    with pytest.raises(ValidationError, match=why.replace("?", r"\?")):
        Split.model_validate(rule)


def _ends(parts: list[str]) -> set[int]:
    """Return where parts end."""
    return {sum(map(len, parts[: place + 1])) for place in range(len(parts))}
