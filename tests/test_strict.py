"""The base of every model."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field, ValidationError, create_model

from prefect_dispatch.models.base import NON_EMPTY, Strict, did_you_mean
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Outcome


class Point(Strict):
    """A model to test with."""

    x: int = 0
    """Across."""
    y: int = 0
    """Up."""


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        pytest.param("instrctions", "unknown key 'instrctions'; did you mean 'instructions'?", id="a-slip"),
        pytest.param("Scope", "did you mean 'scope'?", id="other-case"),
        pytest.param("zzzz", "known are 'name', 'scope', 'instructions'", id="nothing-near"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, hint: str) -> None:
    """A key that isn't known is an error that says which one was meant."""
    with pytest.raises(ValidationError) as wrong:
        Brief.model_validate({"name": "a", "instructions": "Work.", key: "x"})
    assert hint in str(wrong.value)


def test_a_model_without_fields_knows_no_key() -> None:
    """The hint holds where there is nothing to choose from."""
    assert did_you_mean("x", []) == "known are ."


def test_a_schema_has_the_docstrings_of_fields() -> None:
    """Also those of inherited fields; not of a class without source, nor where a field has none."""

    class Cube(Point):
        """A model in a function."""

        y: int = 1
        z: int = 0
        """Out."""

    properties = Cube.model_json_schema()["properties"]
    assert {name: each.get("description") for name, each in properties.items()} == {
        "x": "Across.",
        "y": None,
        "z": "Out.",
    }
    made = create_model("Made", __base__=Strict, __module__="nowhere", x=(int, 0))
    assert "description" not in made.model_json_schema()["properties"]["x"]


def test_models_are_frozen() -> None:
    """No field can be set after the fact, so equal models stay equal and can be keys."""
    point = Point(x=1)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(point, "x", 2)  # noqa: B010 -- type checkers refuse the plain way, too
    assert hash(point) == hash(Point(x=1))


def test_what_is_no_mapping_is_left_to_the_fields() -> None:
    """A model passes through; anything else is an ordinary error."""
    assert Point.model_validate(Point(x=1)) == Point(x=1)
    with pytest.raises(ValidationError, match="valid dictionary"):
        Point.model_validate([1])


class Some(Strict):
    """A model that has at least one number."""

    numbers: Annotated[tuple[int, ...], NON_EMPTY]
    """What it has."""


def test_a_wrong_one_of_several_is_not_called_too_few() -> None:
    """Only what is wrong is told; that there has to be one is told where there is none, and in the schema."""
    with pytest.raises(ValidationError) as wrong:
        Some.model_validate({"numbers": ["x"]})
    assert [error["loc"] for error in wrong.value.errors()] == [("numbers", 0)]
    with pytest.raises(ValidationError, match="should have at least 1 item, and has none"):
        Some(numbers=())
    assert Some.model_json_schema()["properties"]["numbers"]["minItems"] == 1


def test_a_field_goes_by_its_alias() -> None:
    """A key that is another name of a field is known."""

    class Named(Strict):
        at: int = Field(alias="where")

    assert Named.model_validate({"where": 1}).at == 1
    with pytest.raises(ValidationError, match="unknown key 'wher'; did you mean 'where'"):
        Named.model_validate({"wher": 1})


def test_each_field_is_described_in_the_schema() -> None:
    """The docstring under a field is its text in the form."""
    described = Limits.model_json_schema()["properties"]
    assert all(field["description"] for field in described.values())
    assert Point.model_json_schema()["properties"]["y"]["description"] == "Up."


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        pytest.param(float("nan"), "holds NaN or an infinity", id="nan"),
        pytest.param({"a": [float("inf")]}, "holds NaN or an infinity", id="infinity"),
        pytest.param(["\ud83d"], "holds half of a character", id="half-a-character"),
    ],
)
def test_an_item_that_cannot_be_kept(value: object, problem: str) -> None:
    """An item's value is one that JSON has, or an error before the run."""
    with pytest.raises(ValidationError, match=problem):
        Item.model_validate({"key": "a", "value": value})


def test_what_was_given_is_kept_once_for_all() -> None:
    """A copy with more says so of itself alone."""
    one, other = (Outcome(brief="b", item=key, status="skipped") for key in "ab")
    assert one.model_fields_set is other.model_fields_set
    changed = one.model_copy(update={"value": 1})
    assert changed.model_fields_set == {"brief", "item", "status", "value"}
    assert other.model_fields_set == {"brief", "item", "status"}
    again = Outcome(brief="b", item="a", status="skipped", value=1)
    assert again == changed
    assert again.model_fields_set is changed.model_fields_set
