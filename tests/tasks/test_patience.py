"""How often a call about a batch is tried, and how long is waited in between."""

from __future__ import annotations

from contextlib import suppress

import pytest

from prefect_dispatch import Limits
from prefect_dispatch.errors import BusyError, TransientError
from prefect_dispatch.tasks.provider_batches import RetryBudget


def pauses(limits: Limits, *errors: TransientError, submitted: bool = False) -> list[tuple[float, str]]:
    """Return the waits that errors lead to, up to the one that ends it."""
    patience = RetryBudget(limits, submitted=submitted, least_s=1, most_s=5)
    found: list[tuple[float, str]] = []
    with suppress(TransientError):
        found.extend(patience.next_delay(error) for error in errors)
    return found


BUSY, BROKEN = BusyError("429"), TransientError("500")


@pytest.mark.parametrize(
    ("limits", "errors", "submitted", "waits"),
    [
        pytest.param({"retries": 2, "retry_delay_s": 3}, [BROKEN] * 9, False, [3, 6], id="retries"),
        pytest.param({"retries": 20, "retry_delay_s": 3600}, [BROKEN] * 9, False, [3600] * 9, id="not-for-days"),
        pytest.param({"retries": 0}, [BROKEN], False, [], id="no-retry"),
        pytest.param({"retries": 0, "wait_s": 6}, [BUSY] * 3, False, [1, 2, 4], id="waits"),
        pytest.param({"retries": 0, "wait_s": 3.5}, [BUSY] * 3, False, [1, 2], id="as-long-as-there-is-patience"),
        pytest.param({"retries": 0}, [BusyError("429", retry_after_s=7)], False, [7], id="as-the-provider-says"),
        pytest.param({"wait_s": 5}, [BusyError("429", retry_after_s=1e20)] * 3, False, [1, 2, 4], id="absurd"),
        pytest.param({"wait_s": 5}, [BUSY, BusyError("429", retry_after_s=5)], False, [1], id="longer-than-is-left"),
        pytest.param({"retries": 1, "retry_delay_s": 3}, [BUSY, BROKEN, BUSY, BROKEN], False, [1, 3, 2], id="mixed"),
        pytest.param({"retries": 0}, [BROKEN, BUSY, BROKEN], True, [1, 2, 4], id="submitted"),
        pytest.param({"wait_s": 600_000}, [BUSY] * 5000, False, [1, 2, 4, *[5] * 4997], id="for-days"),
    ],
)
def test_what_is_waited(
    limits: dict[str, float],
    errors: list[TransientError],
    submitted: bool,  # noqa: FBT001 -- a case
    waits: list[float],
) -> None:
    """Retries draw on `retries`, waits on `wait_s`; a batch that is under way is waited for, whatever is wrong."""
    found = pauses(Limits.model_validate(limits), *errors, submitted=submitted)
    assert [pause_s for pause_s, _ in found] == waits


def test_which_limit_it_draws_on_is_told() -> None:
    """In the words of a log line."""
    assert pauses(Limits(retries=3), BROKEN)[0][1] == "retry 1 of 3, limits.retries"
    assert pauses(Limits(wait_s=90), BUSY)[0][1] == "90 s are left of limits.wait_s"
