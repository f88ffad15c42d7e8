"""The paragraph of rules: nothing that is configured stays untold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import pytest

from prefect_dispatch.integrators.merge_records.field_rules import Conflicts, FieldRule, RuleName, Source
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.integrators.merge_records.similarity import Matching
from prefect_dispatch.models.decisions import Choice, Decisions
from tests.integrators.said import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_records.field_rules import Claim

SAID = [
    say("a", {"name": "n", "version": 1, "when": "2024-01-01", "x": [{"id": 1}], "y": 1}),
    say("b", {"name": "n", "version": 1, "when": "2024-01-02", "x": [{"id": 2}], "y": 2}, brief="facts"),
]
PLAIN: dict[str, Any] = {"identity": ["name"]}


def own(claims: Sequence[Claim]) -> JsonValue:
    """A function of the user's."""
    return claims[0].value


def told(**options: object) -> str:
    """Return the paragraph."""
    return MergeRecords.model_validate({**PLAIN, **options}).merge([], SAID).rules


OPTIONS: dict[str, Sequence[dict[str, object]]] = {
    "identity": [{"identity": ["version"]}, {"identity": ["name", "version"]}, {"identity": ["{key}"]}],
    "records": [{"records": "found"}, {"records": "found.here"}],
    "rules": [{"rules": {"y": "max"}}, {"rules": {"x": "max"}}, {"rules": {"x": "max", "y": "max"}}],
    "default": [{"default": "max"}, {"default": {"rule": "newest", "by": "when"}}],
    "conflicts": [{"conflicts": policy} for policy in get_args(Conflicts) if policy != "resolve"],
    "match": [
        {"match": each} for each in ({}, {"sure": 0.99}, {"propose": 0.7}, {"fields": ["y"]}, {"model": "learned"})
    ],
    "aliases": [{"aliases": "aliases.yaml"}, {"aliases": "other.yaml"}],
}
BY_ID = {"rule": "union", "identity": ["id"]}
RULES: dict[str, Sequence[object]] = {
    "rule": [*(name for name in get_args(RuleName) if name != "newest"), own],
    "by": [{"rule": "newest", "by": "when"}, {"rule": "newest", "by": "y"}],
    "of": [{"rule": "trust", "of": of} for of in get_args(Source)],
    "identity": [BY_ID, {**BY_ID, "identity": ["id", "at"]}, {**BY_ID, "rule": "keep_all"}],
    "conflicts": [{"rule": "max", "conflicts": policy} for policy in get_args(Conflicts)],
}


def test_every_option_is_tried() -> None:
    """A new option has to be told, too."""
    assert OPTIONS.keys() == MergeRecords.model_fields.keys() - {"kind"}
    assert RULES.keys() == FieldRule.model_fields.keys() - {"field"}
    assert set(Matching.model_fields) == {name for each in OPTIONS["match"] for name in _keys(each["match"])}


def _keys(value: object) -> list[str]:
    return [*value] if isinstance(value, dict) else []


def test_every_option_is_told() -> None:
    """No two configurations of a field, and no two of the whole, read the same."""
    whole = [told(), *(told(**each) for tried in OPTIONS.values() for each in tried)]
    fields = [told(), *(told(rules={"x": rule}) for tried in RULES.values() for rule in tried)]
    assert len({*whole}) == len(whole)
    # The rule alone is tried by its name, and once more as one that takes an option.
    assert len({*fields}) == len(fields)


def test_decisions_are_told() -> None:
    """How many values were chosen is said, be it one or several."""
    fields = [Choice(record={"name": "n"}, field=name, value=1) for name in ("y", "x")]
    merger = MergeRecords.model_validate(PLAIN)
    one, two = (
        merger.with_decisions(Decisions(fields=tuple(fields[:count]))).merge([], SAID).rules for count in (1, 2)
    )
    assert "1 value was chosen by somebody" in one
    assert "2 values were chosen by somebody" in two


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param({}, "each field becomes what the preferred record says", id="default"),
        pytest.param({"rules": {"y": "max"}}, "'y' becomes the largest value; every other field becomes", id="rule"),
        pytest.param({"rules": {"x": own}}, f"'{__name__}:own' may compute what no record says", id="function"),
        pytest.param({"rules": {"y.a": "min"}}, "An object is merged key by key", id="parts"),
        pytest.param({"default": "trust"}, "A source is a brief: there are 2.", id="trust"),
        pytest.param({"default": "trust"}, "All sources weigh the same", id="trust-of-two"),
        pytest.param({"default": {"rule": "trust", "of": "item"}}, "A source is an item: there are 2.", id="items"),
    ],
)
def test_it_reads_as_sentences(options: dict[str, object], sentence: str) -> None:
    """What a reviewer reads is one paragraph of plain sentences."""
    words = told(**options)
    assert sentence in words
    assert "\n" not in words
    assert words.endswith(".")
