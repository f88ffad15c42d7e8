"""The rules, on what they decide and how they break ties."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.merge_records.field_rules import Claim, Rule
from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.serialization.json_values import content_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue


NOTHING_TWICE: list[JsonValue] = [[], []]


def claims(*values: JsonValue, dates: Sequence[JsonValue] = ()) -> list[Claim]:
    """Return claims in the given order of preference, each by an outcome of its own."""
    when = [*dates, *[None] * len(values)]
    return [
        Claim(value, content_text(value), Ref(brief="b", item=str(at)), {"meta": {"date": when[at]}}, (0, 0, "", at))
        for at, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("rule", "values", "winner"),
    [
        pytest.param("priority", ["b", "a"], "b", id="priority"),
        pytest.param("majority", ["b", "a", "a"], "a", id="majority"),
        pytest.param("majority", ["b", "a", "a", "b"], "b", id="majority-tie"),
        pytest.param("majority", ["b", 1, 1.0], 1, id="majority-of-numbers"),
        pytest.param("majority", [1, True, True], True, id="majority-true-is-no-number"),
        pytest.param("longest", ["b", "aaa", "ccc"], "aaa", id="longest-tie"),
        pytest.param("longest", ["aaa", [1, 2, 3]], [1, 2, 3], id="longest-of-json"),
        pytest.param("max", [9, 10, 2.5], 10, id="max-by-size"),
        pytest.param("max", [10**400, 1e308], 10**400, id="max-huge"),
        pytest.param("max", ["2024-01-02", "2023-12-31", 7], "2024-01-02", id="max-of-texts"),
        pytest.param("min", [9, 10, 2.5, "a", True], 2.5, id="min-by-size"),
        pytest.param("max", ["9", "10", "-3.5"], "10", id="max-of-texts-of-numbers"),
        pytest.param("min", ["10", 9.5, "9.50", "n/a"], 9.5, id="min-of-numbers-and-their-texts"),
        pytest.param("max", ["0.1", 0.1], "0.1", id="max-a-float-is-what-its-text-says"),
        pytest.param("max", ["1e3", "999", "9" * 31], "9" * 31, id="max-of-other-texts"),
        pytest.param(
            "max",
            ["2024-05-01T01:00:00+02:00", "2024-04-30T23:30:00Z"],
            "2024-04-30T23:30:00Z",
            id="max-of-times-with-offsets",
        ),
        pytest.param("min", ["2024-05-01", "2024"], "2024", id="min-of-a-date-and-a-year"),
        pytest.param("min", ["2024-05-01", "soon"], "2024-05-01", id="min-of-a-date-and-a-text"),
        pytest.param("union", ["b", ["a", "b"], 10, [9]], [9, 10, "a", "b"], id="union"),
        pytest.param("union", NOTHING_TWICE, [], id="union-of-nothing"),
        pytest.param("keep_all", ["b", ["a", "b"], 10, [9]], ["b", "a", 10, 9], id="keep-all"),
        pytest.param("keep_all", [1, 1.0, True, "1"], [1, True, "1"], id="keep-all-distinct"),
    ],
)
def test_rules_decide(rule: str, values: list[JsonValue], winner: JsonValue) -> None:
    """Each rule picks or gathers what it says; of equals the preferred one."""
    decided = Rule(rule=rule).decide(claims(*values))
    assert (decided, type(decided)) == (winner, type(winner))


@pytest.mark.parametrize(
    ("dates", "winner"),
    [
        pytest.param(["2023-01-01", "2024-01-01"], 1, id="dates"),
        pytest.param(["2024-01-01T00:30:00+02:00", "2023-12-31T23:00:00Z"], 1, id="offsets"),
        pytest.param(["2024-01-01T00:30:00", "2024-01-01T01:00:00+01:00"], 0, id="no-offset-is-utc"),
        pytest.param([2023, 2024], 1, id="years"),
        pytest.param([2024, "2023-12-31"], 0, id="a-year-after-a-date"),
        pytest.param(["2024", "1999-05-01"], 0, id="a-year-as-text"),
        pytest.param(["2024-06", "2024-05-31"], 0, id="a-month-after-a-date"),
        pytest.param(["2024-13", "2024-05-31"], 1, id="no-such-month"),
        pytest.param(["soon", "later"], 0, id="texts-in-order"),
        pytest.param(["soon", "1999-01-01"], 1, id="texts-before-dates"),
        pytest.param([None, "soon"], 1, id="without-a-date"),
        pytest.param([True, "soon"], 1, id="true-is-no-date"),
        pytest.param([["2024-01-01"], None], 0, id="not-a-date"),
        pytest.param(["2024-01-01", "2024-01-01"], 0, id="tie"),
        pytest.param([10**400, None], 0, id="no-such-year"),
    ],
)
def test_newest_compares_moments(dates: list[JsonValue], winner: int) -> None:
    """The record with the latest moment decides; what is no moment comes before all that are."""
    assert Rule(rule="newest", by="meta.date").decide(claims(0, 1, dates=dates)) == winner


def test_a_function_decides() -> None:
    """A function of the user's gets the claims and computes what is to stand."""

    def voices(said: Sequence[Claim]) -> JsonValue:
        return len(said)

    assert Rule(rule=voices).decide(claims(1, 2, 4)) == 3


def test_a_function_cannot_change_what_was_said() -> None:
    """A function that alters a claim alters its own copy."""

    def spoil(said: list[Claim]) -> JsonValue:
        value = said[0].value
        assert isinstance(value, list)
        value.clear()
        return value

    given = claims(["a"])
    assert Rule(rule=spoil).decide(given) == []
    assert given[0].value == ["a"]


def test_a_function_must_return_json() -> None:
    """A result that JSON can't hold is refused by name."""

    def shapeless(said: Sequence[Claim]) -> object:
        return {len(said)}

    with pytest.raises(JobError, match=r"returned a set for a field; it must return a JSON value"):
        Rule(rule=shapeless).decide(claims(1))


def test_a_name_must_be_loaded_first() -> None:
    """Nothing is imported by name while merging."""
    with pytest.raises(JobError, match="'os:getcwd' is a name only"):
        Rule(rule="os:getcwd").decide(claims(1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param({"rule": "majorty"}, "not 'majorty'; did you mean 'majority'", id="misspelt"),
        pytest.param({"rule": "newest"}, "needs 'by'", id="newest-without-by"),
        pytest.param({"rule": "max", "by": "date"}, "needs 'by'", id="by-without-newest"),
        pytest.param({"rule": 1}, "not 1", id="number"),
        pytest.param({"rules": "max"}, "unknown key 'rules'; did you mean 'rule'", id="unknown-key"),
    ],
)
def test_unusable_rules_are_refused(data: dict[str, object], message: str) -> None:
    """The message names the value and the way out."""
    with pytest.raises(ValidationError, match=message):
        Rule.model_validate(data)
