"""Briefs, items, answers, outcomes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError, field_validator

from prefect_dispatch.errors import BriefError
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.checks import Function, MaxWords
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Attempt, Outcome, Usage

ITEM = Item(key="[id].ts", value={"title": "T", "port": 80})


class Plain(BaseModel):
    """An output to test with."""

    n: int


class Checked(Plain):
    """The same with a rule of its own."""

    @field_validator("n")
    @classmethod
    def _is_positive(cls, n: int) -> int:
        return abs(n)


def fine(value: Any, item: Item) -> None:  # noqa: ANN401 -- any JSON
    """A check that finds nothing."""


def test_a_brief_as_it_reads() -> None:
    """Fields stand in all its texts; in globs they stand for themselves."""
    brief = Brief(
        name="a",
        scope="{title}",
        instructions="{key} in {{key}}",
        constraints=("On {port}.",),
        reads=("src/*/{key}",),
        writes=("{key}", "*"),
        resources=("port-{port}",),
    )
    said = brief.fill_placeholders(ITEM)
    assert (said.scope, said.instructions, said.constraints) == ("T", "[id].ts in {key}", ("On 80.",))
    assert (said.reads, said.writes, said.resources) == (("src/*/[[]id].ts",), ("[[]id].ts", "*"), ("port-80",))


@pytest.mark.parametrize("field", ["scope", "instructions", "constraints", "reads", "writes", "resources"])
def test_a_field_that_the_item_has_not(field: str) -> None:
    """A placeholder without a value is the brief's error, wherever it stands."""
    given = {"name": "a", "instructions": "Work.", field: "{x}" if field in {"scope", "instructions"} else ["{x}"]}
    with pytest.raises(BriefError, match=r"Placeholder \{x\}"):
        Brief.model_validate(given).fill_placeholders(ITEM)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"name": "Terms"}, "should match pattern", id="capitals"),
        pytest.param({"name": "a--b"}, "should match pattern", id="two-hyphens"),
        pytest.param({"name": "a\n"}, "should match pattern", id="a-line-end"),
        pytest.param({"name": "a" * 61}, "at most 60", id="too-long"),
        pytest.param({"instructions": " \n"}, "at least 1 character", id="no-instructions"),
        pytest.param({"constraints": [""]}, "at least 1 character", id="an-empty-constraint"),
        pytest.param({"output": "txt"}, "must be 'text'", id="output"),
    ],
)
def test_unusable_briefs(given: dict[str, Any], message: str) -> None:
    """A brief that says nothing, or has no proper name, is refused as a whole."""
    with pytest.raises(ValidationError, match=message):
        Brief.model_validate({"name": "a", "instructions": "Work.", **given})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param({"output": Plain}, {"output": Plain.model_json_schema()}, True, id="a-model-is-its-schema"),
        pytest.param({"output": Plain}, {"output": Checked}, False, id="validators-count"),
        pytest.param({"checks": [MaxWords(words=1)]}, {"checks": [MaxWords(words=2)]}, False, id="checks-count"),
        pytest.param({"checks": [Function(function=fine)]}, {}, False, id="functions-count"),
        pytest.param({"instructions": "T"}, {"instructions": " {title} "}, True, id="as-it-reads"),
        pytest.param({"priority": 3, "name": "b"}, {}, True, id="names-and-priorities-do-not"),
    ],
)
def test_identity(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:  # noqa: FBT001 -- a column
    """What can change an answer is part of a brief's identity."""
    first, second = (Brief.model_validate({"name": "a", "instructions": "Work.", **given}) for given in (one, other))
    assert (first.identity(ITEM) == second.identity(ITEM)) is same


def test_references() -> None:
    """A brief names the code that must still be loaded, and only that."""
    loaded = Brief(name="a", instructions="Work.", output=Plain, checks=(Function(function=fine), MaxWords(words=1)))
    assert loaded.references == ()
    named = Brief(name="a", instructions="Work.", output="m:A", checks=(Function(function="m:b"), MaxWords(words=1)))
    assert named.references == ("m:A", "m:b")
    assert Brief(name="a", instructions="Work.").references == ()


def test_a_brief_survives_its_json() -> None:
    """What a deployment holds is what was put in; a model becomes its schema."""
    brief = Brief(name="a", instructions="Work.", output=Plain, checks=(MaxWords(words=1),), writes=("out",))
    back = Brief.model_validate_json(brief.model_dump_json())
    assert back.identity(ITEM) == brief.identity(ITEM)
    assert Brief.model_validate_json(back.model_dump_json()) == back


USAGES = st.builds(
    Usage,
    requests=st.integers(0, 9),
    prompt_tokens=st.integers(0, 9),
    completion_tokens=st.integers(0, 9),
    cost_usd=st.none() | st.integers(0, 9).map(float),
)


@given(one=USAGES, two=USAGES, three=USAGES)
def test_usage_adds_up(one: Usage, two: Usage, three: Usage) -> None:
    """Usage can be summed in any order; an unknown price stays unknown."""
    assert one + two == two + one
    assert (one + two) + three == one + (two + three)
    assert one + Usage() == one
    assert (one + two).tokens == one.tokens + two.tokens


@pytest.mark.parametrize(("origin", "requests"), [("asked", 3), ("stored", 0), ("shared", 0), (None, 0)], ids=str)
def test_only_what_was_asked_was_spent(origin: Any, requests: int) -> None:  # noqa: ANN401 -- one of the literals
    """Attempts of another run, or of an equal item, cost this one nothing."""
    attempts = (Attempt(usage=Usage(requests=1)), Attempt(usage=Usage(requests=2)))
    found = Outcome(brief="a", item="b", status="succeeded", attempts=attempts, origin=origin)
    assert found.usage.requests == requests


@pytest.mark.parametrize(
    "given",
    [{"concurrency": 0}, {"retries": -1}, {"timeout_s": 0}, {"min_success": 1.1}, {"on_dependence": "ignore"}],
    ids=str,
)
def test_limits_have_limits(given: dict[str, Any]) -> None:
    """A limit outside its bounds is an error, not a surprise."""
    with pytest.raises(ValidationError):
        Limits.model_validate(given)


@pytest.mark.parametrize(
    ("given", "way_out"),
    [
        pytest.param({"budget_requests": True}, "must be a number; true and false are none", id="true"),
        pytest.param({"min_success": False}, "must be a number; true and false are none", id="false"),
        pytest.param({"budget_usd": "2,50"}, "must be a number; write 2.50", id="a-comma"),
        pytest.param({"budget_usd": "5 USD"}, "must be a number; write its digits, without a unit", id="a-unit"),
    ],
)
def test_what_is_no_number_is_refused_with_the_way_out(given: dict[str, Any], way_out: str) -> None:
    """As YAML reads it."""
    with pytest.raises(ValidationError, match=way_out):
        Limits.model_validate(given)


def test_a_number_that_yaml_takes_for_a_text_is_one() -> None:
    """YAML reads 1e6 as a text; everybody else reads a million."""
    given = {"budget_tokens": "1e6", "budget_usd": "1e6", "budget_requests": "12345678901234567", "pace_limit": "12"}
    found = Limits.model_validate(given)
    assert (found.budget_tokens, found.budget_usd) == (1_000_000, 1e6)
    assert (found.budget_requests, found.pace_limit) == (12345678901234567, "12")


def test_a_deep_copy_is_compact_too() -> None:
    """It shares its set of field names, as every instance does."""
    usage = Usage(requests=1)
    copy = usage.model_copy(deep=True, update={"prompt_tokens": 2})
    assert (copy.requests, copy.prompt_tokens) == (1, 2)
    assert copy.model_fields_set is Usage(requests=3, prompt_tokens=4).model_fields_set
