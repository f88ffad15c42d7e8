"""What was in memory before a run is left out of the collections of garbage meanwhile."""

from __future__ import annotations

import gc
import weakref

import pytest

from prefect_dispatch.flows.runtime.garbage_collection import YOUNG, frozen_gc


class Ring:
    """Garbage that only a collection finds."""

    def __init__(self) -> None:
        """Refer to itself."""
        self.me = self


@pytest.mark.slow
def test_what_comes_meanwhile_is_collected_and_all_of_it_afterwards() -> None:
    """Runs may lie within each other, and side by side."""
    before = Ring()
    old = weakref.ref(before)
    del before
    with frozen_gc():
        assert gc.get_freeze_count()
        with frozen_gc():
            new = weakref.ref(Ring())
            gc.collect()
            assert new() is None
        assert gc.get_freeze_count()
    assert not gc.get_freeze_count()
    gc.collect()
    assert old() is None


def test_what_somebody_else_has_frozen_stays_so() -> None:
    """It is theirs to say."""
    gc.freeze()
    try:
        with pytest.raises(ValueError, match="broken"), frozen_gc():
            raise ValueError("broken")
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(("set_to", "meanwhile"), [(700, YOUNG), (2 * YOUNG, 2 * YOUNG), (0, 0)])
def test_garbage_is_looked_for_less_often_meanwhile(set_to: int, meanwhile: int) -> None:
    """Whoever has it looked for even less often, or never, is left alone; afterwards it is as before."""
    before = gc.get_threshold()
    gc.set_threshold(set_to, *before[1:])
    try:
        with frozen_gc(), frozen_gc():
            assert gc.get_threshold() == (meanwhile, *before[1:])
        assert gc.get_threshold() == (set_to, *before[1:])
    finally:
        gc.set_threshold(*before)
