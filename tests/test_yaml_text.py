"""YAML that holds JSON: what is written is read back, and what JSON can't say is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch.yaml_text import documents, in_line

if TYPE_CHECKING:
    from pydantic import JsonValue

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(values)
@settings(max_examples=50)
def test_a_line_says_what_the_value_says(value: object) -> None:
    """Read back it is the same, type for type, and no character of it is hidden."""
    line = in_line(cast("JsonValue", value))  # which hypothesis has no type for
    assert line.isprintable()
    assert repr(documents(line)) == repr([value])


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"k" * 2000: 1, "l": {"m" * 2000: []}}, id="long-keys"),
        pytest.param("\u202e\u061c\U000e0001\x85\ufffe", id="hidden"),
        pytest.param(["1:30", "2024-05-01", "yes", "~", "1e20", "<<", "="], id="what-yaml-takes-for-else"),
    ],
)
def test_hard_cases_are_read_back(value: JsonValue) -> None:
    """What YAML has rules of its own for."""
    line = in_line(value)
    assert line.isprintable()
    assert documents(f"---\n{line}\n---\n{line}") == [value, value]


def test_what_looks_like_more_than_json_is_a_text() -> None:
    """A date is what an answer would say; a merge key is a key."""
    assert documents("a: 2024-05-01\n<<: {b: 1}\nc: =") == [{"a": "2024-05-01", "<<": {"b": 1}, "c": "="}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a: 1\nb: {c: 1, c: 2}", "line 2: the key 'c' stands twice", id="twice"),
        pytest.param("a:\n  1: 2", "line 2: the key 1 is no text", id="number-as-key"),
        pytest.param("? [a]\n: 1", "is no text", id="list-as-key"),
        pytest.param("\n- -.inf", "line 2: -.inf is no number", id="infinity"),
        pytest.param("1.0e+999", "is no number", id="too-large"),
        pytest.param("0x" + "f" * 5000, "line 1: the number has too many digits", id="digits"),
        pytest.param("!!binary aGk=", "could not determine a constructor", id="binary"),
        pytest.param("!!python/object:os.system x", "could not determine a constructor", id="object"),
        pytest.param("&a [*a]", r"line 1: \*a stands for something else; write that out", id="ring"),
        pytest.param("a: &a [1]\nb: *a", r"line 2: \*a stands for something else; write that out", id="alias"),
        pytest.param('"\\ud800"', "half of a character", id="half-a-character"),
        pytest.param("[" * 150 + "]" * 150, "nested more than 100 deep", id="deep"),
        pytest.param("[" * 20_000, "nested too deep", id="bottomless"),
        pytest.param("a\x00b", "not YAML|special characters", id="nul"),
    ],
)
def test_what_is_no_json_is_refused(text: str, message: str) -> None:
    """In a sentence, with the line where there is one."""
    with pytest.raises(ValueError, match=message):
        documents(text)
