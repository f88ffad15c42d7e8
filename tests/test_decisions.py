"""What people decided: put together, and what of it can't be followed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.decisions import Choice, Decisions

if TYPE_CHECKING:
    from prefect_dispatch.models.decisions import Identity

MIT: Identity = {"name": "MIT"}
EXPAT: Identity = {"name": "Expat"}
ZLIB: Identity = {"name": "zlib"}

BY_NAME = MergeRecords(identity=("name",)).canonical_identity
BY_ITEM = MergeRecords(identity=("{key}",)).canonical_identity


def test_the_later_decision_counts() -> None:
    """On one pair, whichever way round, and on one field, the later word stands in for the earlier."""
    early = Decisions(same=((MIT, EXPAT), (MIT, ZLIB)), fields=(Choice(record=MIT, field="year", value=1987),))
    late = Decisions(different=((EXPAT, MIT),), fields=(Choice(record=MIT, field="year", value=1988),))
    both = early.combine(late)
    assert both == Decisions(same=((MIT, ZLIB),), different=((EXPAT, MIT),), fields=late.fields)
    assert both.combine(late) == both
    assert both.combine(Decisions(same=((MIT, EXPAT),))).different == ()


def test_decisions_have_one_order() -> None:
    """They are the same, in whatever order they were taken."""
    one, other = Decisions(same=((MIT, EXPAT),)), Decisions(same=((MIT, ZLIB),))
    assert one.combine(other) == other.combine(one) == Decisions().combine(one, other)


def test_a_later_decision_on_another_spelling_counts() -> None:
    """Spelt as the merge takes for the same, it is the same pair and the same field; an item's key is what it is."""
    early = Decisions(same=((MIT, EXPAT),), fields=(Choice(record=MIT, field="year", value=1987),))
    other: Identity = {"name": " mit"}
    late = Decisions(different=(({"name": "EXPAT"}, other),), fields=(Choice(record=other, field="year", value=1988),))
    assert early.combine(late, normalize=BY_NAME) == late
    keys = [Decisions(fields=(Choice(record={"key": key}, field="year", value=1),)) for key in ("a", "A")]
    assert len(keys[0].combine(keys[1], normalize=BY_ITEM).fields) == 2
    # What is no identity of the merge is only equal to itself.
    unknown = [Decisions(same=(({"nmae": name}, MIT),)) for name in "ab"]
    assert len(unknown[0].combine(unknown[1], normalize=BY_NAME).same) == 2


@pytest.mark.parametrize(
    ("decisions", "told"),
    [
        pytest.param(
            Decisions(same=((MIT, EXPAT),), different=(({"name": "EXPAT"}, {"name": "mit"}),)),
            ['{"name":"EXPAT"} and {"name":"mit"} are under \'same\' and under \'different\'; keep one of the two'],
            id="both",
        ),
        pytest.param(
            Decisions(different=((MIT, {"name": "mit "}),)),
            [
                (
                    '{"name":"MIT"} and {"name":"mit "} are under \'different\', but are spellings of one identity; '
                    "drop that line, or add a field to the identity that distinguishes them"
                )
            ],
            id="one-identity",
        ),
        pytest.param(
            Decisions(
                fields=(
                    Choice(record=MIT, field="year", value="1" * 200),
                    Choice(record={"name": "mit"}, field="year", value=True),
                )
            ),
            [f'two values are chosen for \'year\' of {{"name":"mit"}}, "{"1" * 98}… and true; keep one'],
            id="two-values",
        ),
        pytest.param(
            Decisions(
                same=((MIT, EXPAT), (EXPAT, MIT), (MIT, {"name": "mit"})),
                different=((MIT, ZLIB),),
                fields=(Choice(record=MIT, field="a", value=1), Choice(record={"name": "mit"}, field="a", value=1)),
            ),
            [],
            id="only-said-twice",
        ),
    ],
)
def test_what_cannot_be_followed_is_told_with_the_way_out(decisions: Decisions, told: list[str]) -> None:
    """Decisions of one time that contradict each other, as the merge sees identities."""
    assert list(decisions.contradictions(BY_NAME)) == told


def test_a_value_is_one_that_json_has() -> None:
    """What no answer can say can't be chosen."""
    with pytest.raises(ValidationError, match="NaN"):
        Choice(record=MIT, field="a", value=float("nan"))
