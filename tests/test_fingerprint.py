"""The identity of a piece of work."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.errors import BriefError
from prefect_dispatch.executors.base import FORMAT, fingerprint
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.checks import Function, MustMention, Regex
from prefect_dispatch.models.item import Item
from prefect_dispatch.serialization.json_text import MAX_JSON_DEPTH, canonical_json, digest, find_json_problem
from prefect_dispatch.tasks.work_item import build_work
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from pydantic import JsonValue

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
BRIEF = Brief(name="a", instructions="Judge {title}.")
ITEM = Item(key="k", value={"title": "T", "unused": 1})


def _work(**change: Any) -> str:  # noqa: ANN401 -- any of the three
    """The fingerprint of some work, a part of it changed."""
    executor = ScriptedExecutor({}, fingerprint=change.get("executor", "scripted"))
    return fingerprint(change.get("brief", BRIEF), change.get("item", ITEM), executor)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param({}, True, id="nothing"),
        pytest.param({"executor": "other"}, False, id="executor"),
        pytest.param({"item": Item(key="other", value=ITEM.value)}, True, id="key-that-is-not-used"),
        pytest.param({"item": ITEM.model_copy(update={"priority": 3})}, True, id="priority"),
        pytest.param({"item": Item(key="k", value={"unused": 1, "title": "T"})}, True, id="order-of-fields"),
        pytest.param({"item": Item(key="k", value={"title": "T", "unused": 2})}, False, id="a-field-the-agent-sees"),
        pytest.param({"item": Item(key="k", value={"title": "T", "unused": True})}, False, id="true-is-not-1"),
        pytest.param({"brief": BRIEF.model_copy(update={"name": "b"})}, True, id="name"),
        pytest.param({"brief": BRIEF.model_copy(update={"instructions": "Judge T."})}, True, id="what-it-reads-as"),
        pytest.param({"brief": BRIEF.model_copy(update={"instructions": "Judge {{title}}."})}, False, id="text"),
    ],
)
def test_what_counts(change: dict[str, Any], same: bool) -> None:  # noqa: FBT001 -- a column of the table
    """Everything that can change an answer counts, and nothing else."""
    assert (_work(**change) == _work()) is same


def test_a_key_counts_where_it_is_used() -> None:
    """A brief that tells the agent the key makes the key count."""
    brief = Brief(name="a", instructions="Judge {key}.")
    assert _work(brief=brief) != _work(brief=brief, item=Item(key="other", value=ITEM.value))


def test_a_brief_that_does_not_fit_has_no_fingerprint() -> None:
    """A field that the item lacks is the brief's error."""
    with pytest.raises(BriefError, match="title"):
        _work(item=Item(key="k", value="text"))


def test_a_stored_fingerprint_stays_valid() -> None:
    """A change of this digest throws away every stored answer: raise `FORMAT` and say so in the changelog."""
    assert digest({"b": [1, 2.5, None], "a": "é"}) == "84afbf1d4853005f9dd0c81cb1819b53ce86978340764c062160f6e8356665de"


@given(value=JSON)
def test_canonical_json_is_json(value: JsonValue) -> None:
    """The canonical text reads back as the value, is plain ASCII, and has no flaw."""
    assert json.loads(canonical_json(value)) == value
    assert canonical_json(value).isascii()
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)
    assert find_json_problem(value) is None


@given(value=st.dictionaries(st.text(), JSON, max_size=5))
def test_the_order_of_keys_does_not_count(value: dict[str, JsonValue]) -> None:
    """Mappings that differ in order alone are the same."""
    assert digest(dict(reversed(value.items()))) == digest(value)


def _nested(depth: int) -> JsonValue:
    value: JsonValue = 1
    for _ in range(depth):
        value = [value] if depth % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(_nested(MAX_JSON_DEPTH), None, id="deep"),
        pytest.param(_nested(MAX_JSON_DEPTH + 1), "is nested more than 100 deep", id="too-deep"),
        pytest.param(_nested(100_000), "is nested more than 100 deep", id="bottomless"),
        pytest.param([float("-inf")], "holds NaN or an infinity, which JSON has not", id="infinity"),
        pytest.param({"\udc00": 1}, "holds half of a character (a lone surrogate)", id="half-a-character"),
        pytest.param("\U0001f600", None, id="a-whole-one"),
    ],
)
def test_flaws(value: JsonValue, expected: str | None) -> None:
    """What can't be stored as JSON is told apart from what can."""
    assert find_json_problem(value) == expected


def test_canonical_json_has_no_infinity() -> None:
    """No two values that JSON lacks can share a fingerprint."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("inf"))


def of_a_key(value: object, item: Item) -> str | None:
    """A check that sees the item."""
    return None if value else item.key


ALIKE = Brief(
    name="plain", instructions="Judge it as {{title}}.", output={"type": "object"}, checks=(Regex(pattern="a"),)
)
OTHERWISE: tuple[dict[str, Any], ...] = (
    {"scope": "One {title}."},
    {"instructions": "Judge {title}."},
    {"constraints": ("Name {title}.",)},
    {"writes": ("{key}.md",)},
    {"checks": (MustMention(terms=("{title}",)),)},
    {"checks": (Function(function=of_a_key),)},
)
BRIEFS = [ALIKE, *(ALIKE.model_copy(update={"name": f"b-{at}", **said}) for at, said in enumerate(OTHERWISE))]


@pytest.mark.slow
@given(st.lists(JSON, min_size=1, max_size=4))
def test_work_has_the_fingerprints_of_its_pieces(values: list[JsonValue]) -> None:
    """What is the same for every item is looked at once, and what a brief takes of an item for each."""
    items = [Item(key=f"k{at}", value={"title": f"T{at % 2}", "more": value}) for at, value in enumerate(values)]
    executor = ScriptedExecutor({}, fingerprint="scripted")
    work = build_work(BRIEFS, items, executor)
    assert [each.fingerprint for each in work] == [fingerprint(each.brief, each.item, executor) for each in work]
    parts: dict[str, JsonValue] = {
        "brief": ALIKE.identity(items[0]),
        "item": items[0].value,
        "executor": "scripted",
        "format": FORMAT,
    }
    assert digest(parts) in {each.fingerprint for each in work}
