"""The tests of days.py, as `job.yaml` runs them in each time zone."""

from __future__ import annotations

import pytest

from examples.matrix.days import day_of, hour_of

NOON = 1_772_452_800.0
"""2026-03-02, 12:00 in UTC."""
HOUR = 3_600


@pytest.mark.parametrize("hours", [-11, 0, 11])
def test_day(hours: int) -> None:
    """The day in UTC is the same from one midnight to the next."""
    assert day_of(NOON + hours * HOUR) == "2026-03-02"


def test_hour() -> None:
    """The hour in UTC is what it is, wherever one asks."""
    assert hour_of(NOON + 5 * HOUR) == hour_of(NOON) + 5
