"""How far agents agree: likeness, and Krippendorff's alpha against another implementation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prefect_dispatch.integrators.consensus.agreement import krippendorff, score_similarity

if TYPE_CHECKING:
    from pydantic import JsonValue


@pytest.mark.parametrize(
    ("said", "answer", "kind", "expected"),
    [
        pytest.param("Yes", " yes", "label", 1, id="the same label"),
        pytest.param("yes", "no", "label", 0, id="another label"),
        pytest.param(True, 1, "label", 0, id="true is no number"),
        pytest.param(5, 10, "number", 0.5, id="half"),
        pytest.param(-5, 10, "number", 0, id="of another sign"),
        pytest.param(0, 0.0, "number", 1, id="nought"),
        pytest.param("ten", 10, "number", 0, id="no number"),
        pytest.param(10**400, 1.5, "number", 0, id="too large"),
        pytest.param("abcd", "abcx", "text", 0.75, id="texts"),
        pytest.param(None, "abcx", "text", 0, id="no text"),
        pytest.param(["a", "b", "a"], ["B"], "list", 0.5, id="lists"),
        pytest.param("a", ["a"], "list", 0, id="no list"),
    ],
)
def test_likeness(said: JsonValue, answer: JsonValue, kind: str, expected: float) -> None:
    """An answer comes as near to what stands as its kind has it."""
    assert score_similarity(said, answer, kind) == expected


@pytest.mark.parametrize(
    ("units", "measure", "why"),
    [
        pytest.param([], "nominal", "no item has two answers", id="nothing"),
        pytest.param([["a"], ["b"]], "nominal", "no item has two answers", id="one agent"),
        pytest.param([["a", "A "], ["a", "a"]], "nominal", "all say the same throughout", id="no variation"),
        pytest.param([[2, 2.0]], "interval", "all say the same throughout", id="one number"),
        pytest.param([[1e308, -1e308]], "interval", "numbers too large to compute with", id="infinite"),
        pytest.param([[10**400, 1]], "interval", "numbers too large to compute with", id="beyond floats"),
    ],
)
def test_alpha_is_undefined(units: list[list[JsonValue]], measure: Literal["nominal", "interval"], why: str) -> None:
    """Where alpha is a division by nought, it is told as undefined, and why."""
    assert krippendorff(units, measure) == (None, why)


def test_alpha_as_published() -> None:
    """An example of Krippendorff's, of three coders and fifteen units, comes out as he prints it."""
    coders = ["*****34121133*3", "1*213343*******", "**21344*21133*4"]
    said = [coder.replace("*", " ") for coder in coders]
    units: list[list[JsonValue]] = [[int(one) for one in unit if one != " "] for unit in zip(*said, strict=False)]
    nominal, interval = krippendorff(units, "nominal").value, krippendorff(units, "interval").value
    assert nominal == pytest.approx(0.691, abs=0.001)
    assert interval == pytest.approx(0.811, abs=0.001)


@pytest.mark.slow
@given(st.lists(st.lists(st.integers(0, 4), min_size=0, max_size=5), min_size=1, max_size=6), st.booleans())
@settings(deadline=None, max_examples=200)
def test_alpha_as_nltk_has_it(units: list[list[int]], interval: bool) -> None:  # noqa: FBT001 -- drawn
    """The figure is the one of nltk's implementation, which goes through all pairs."""
    assume(len({value for unit in units if len(unit) > 1 for value in unit}) > 1)
    agreement: Any = import_module("nltk.metrics.agreement")
    distance: Any = import_module("nltk.metrics.distance")
    triples = [(coder, item, value) for item, unit in enumerate(units) for coder, value in enumerate(unit)]
    measured = distance.interval_distance if interval else distance.binary_distance
    expected = agreement.AnnotationTask(triples, measured).alpha()
    values: list[list[JsonValue]] = [list(unit) for unit in units]
    assert krippendorff(values, "interval" if interval else "nominal").value == pytest.approx(expected, abs=1e-4)
