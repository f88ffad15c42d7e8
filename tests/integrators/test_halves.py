"""Merged in two halves and then together, or with everything said twice: the same as at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.serialization.json_values import content_text, exact_text
from tests.integrators.said import entries
from tests.integrators.strategies import RECORDS, VALUES, outcomes

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome

SURE = settings(deadline=None, max_examples=50)
ASSOCIATIVE = st.sampled_from(["max", "min", "union"])
"""Rules that look at the values of a field alone, and not at who said them, how often, or in which record."""


@st.composite
def associative(draw: st.DrawFn) -> MergeRecords:
    """Return integrators whose every field, the identity's too, has an associative rule."""
    identity = draw(st.sampled_from(["name", "version"]))
    rules = {identity: "max", **draw(st.dictionaries(st.sampled_from(["tags", "note", "date"]), ASSOCIATIVE))}
    return MergeRecords.model_validate({"identity": [identity], "rules": rules, "default": draw(ASSOCIATIVE)})


def restated(half: str, integrator: Collate | MergeRecords, said: list[Outcome]) -> list[Outcome]:
    """Return what one half of the outcomes was merged into, as answers under a name of its own."""
    merge = integrator.merge([], said)
    again = integrator.as_outcomes(merge)
    assert again is not None
    own = {Ref.of(outcome) for outcome in said}
    return [
        outcome if Ref.of(outcome) in own else outcome.model_copy(update={"item": f"{half} {outcome.item}"})
        for outcome in again
    ]


def halves(integrator: Collate | MergeRecords, said: list[Outcome], cut: int) -> Merge:
    """Return the merge of the merges of two halves."""
    one, two = said[:cut], said[cut:]
    return integrator.merge([], restated("one", integrator, one) + restated("two", integrator, two))


@given(outcomes(VALUES), st.integers(0, 8), st.randoms(use_true_random=False))
@SURE
def test_collated_in_halves(said: list[Outcome], cut: int, random: Any) -> None:  # noqa: ANN401 -- hypothesis' own type
    """Side by side is side by side: value and ledger are the same, byte for byte."""
    mixed = random.sample(said, len(said))
    whole, parts = Collate().merge([], said), halves(Collate(), mixed, cut)
    assert exact_text(parts.value) == exact_text(whole.value)
    assert parts.ledger == whole.ledger


@given(associative(), outcomes(st.lists(RECORDS, max_size=3)), st.integers(0, 8), st.randoms(use_true_random=False))
@SURE
@pytest.mark.slow
def test_records_merged_in_halves(integrator: MergeRecords, said: list[Outcome], cut: int, random: Any) -> None:  # noqa: ANN401 -- hypothesis' own type
    """By rules that look at values alone, it doesn't matter what was merged first; `1` and `1.0` are one value."""
    mixed = random.sample(said, len(said))
    whole, parts = integrator.merge([], said), halves(integrator, mixed, cut)
    assert content_text(parts.value) == content_text(whole.value)
    missing = [row for row in whole.ledger if row.disposition in ("failed", "skipped")]
    assert [row for row in parts.ledger if row.disposition in ("failed", "skipped")] == missing


def named(merge: Merge) -> list[JsonValue]:
    """Return the merged records that have an identity: what has none is kept as often as it is said."""
    return [record for record in entries(merge) if isinstance(record, dict) and record.get("name") not in (None, "")]


@pytest.mark.slow
@given(
    st.sampled_from(["priority", "majority", "longest", "max", "min", "union", "keep_all"]),
    outcomes(st.lists(RECORDS, max_size=3)),
)
@SURE
def test_everything_said_twice(rule: str, said: list[Outcome]) -> None:
    """Whoever repeats what all others said changes no record, and has a row for each repetition."""
    integrator = MergeRecords.model_validate({"identity": ["name"], "default": rule})
    echo = [outcome.model_copy(update={"item": f"{outcome.item} again"}) for outcome in said]
    once, twice = integrator.merge([], said), integrator.merge([], said + echo)
    assert list(map(exact_text, named(twice))) == list(map(exact_text, named(once)))
    assert len(twice.ledger) == 2 * len(said)
