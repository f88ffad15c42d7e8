"""The garbage collector during a run, and after it."""

from __future__ import annotations

import gc

import pytest

from prefect_dispatch.flows.run_job import freeze_heap


def test_a_run_leaves_existing_objects_out_of_collections_and_restores_the_collector() -> None:
    """The thresholds and the frozen objects are as before, also after an error."""
    before, during = gc.get_threshold(), list[object]()

    @freeze_heap()
    def fail() -> None:
        during.extend([gc.get_freeze_count() > 0, gc.get_threshold()[0]])
        raise ValueError("of the run")

    with pytest.raises(ValueError, match="of the run"):
        fail()
    assert during == [True, 10_000]
    assert gc.get_threshold() == before
    assert not gc.get_freeze_count()


def test_a_collector_that_is_switched_off_stays_switched_off() -> None:
    """A first threshold of 0 means that nothing is collected."""
    before = gc.get_threshold()
    gc.set_threshold(0)
    try:
        with freeze_heap():
            assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*before)


def test_objects_that_the_process_has_frozen_stay_frozen() -> None:
    """Whoever manages the collector is left alone; so is the run around a subflow."""
    gc.freeze()
    try:
        before = gc.get_threshold()
        with freeze_heap():
            assert gc.get_threshold() == before
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
