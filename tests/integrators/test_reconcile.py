"""One outcome for each piece of work, or no merge."""

from __future__ import annotations

import pytest

from prefect_dispatch.errors import CoverageError
from prefect_dispatch.integrators.run_merge import reconcile
from prefect_dispatch.models.ledger import Ref
from tests.integrators.said import miss, say

WORK = [Ref(brief="terms", item=item) for item in ("a2", "a10")]


def test_one_outcome_each_is_fine_in_any_order() -> None:
    """Failed outcomes count as well as answers."""
    reconcile(WORK, [miss("a10"), say("a2", 1)])


def test_what_does_not_match_is_named() -> None:
    """Missing, repeated and unknown outcomes are told apart."""
    with pytest.raises(CoverageError) as caught:
        reconcile([*WORK, Ref(brief="facts", item="a2")], [say("a2", 1), say("a2", 2), say("z", 1), say("y", 1)])
    assert [*map(str, caught.value.missing)] == ["facts/a2", "terms/a10"]
    assert [*map(str, caught.value.repeated)] == ["terms/a2"]
    assert [*map(str, caught.value.unknown)] == ["terms/y", "terms/z"]
