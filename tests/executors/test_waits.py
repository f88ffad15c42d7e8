"""When a provider wants to be asked again."""

from __future__ import annotations

from email.utils import formatdate
from time import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.executors.llm.provider_errors import parse_retry_after

NOON = "Sat, 01 Jan 2000 12:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param({"retry-after": "0"}, 0.0, id="zero"),
        pytest.param({"retry-after": " 20 "}, 20.0, id="seconds"),
        pytest.param({"retry-after": "-3"}, 0.0, id="negative"),
        pytest.param({"retry-after": "1.5"}, 1.5, id="fraction"),
        pytest.param({"retry-after": "1", "retry-after-ms": "250"}, 0.25, id="the-finer-one"),
        pytest.param({"retry-after": "1", "retry-after-ms": "soon"}, 1.0, id="the-readable-one"),
        pytest.param({"retry-after": "nan"}, None, id="nan"),
        pytest.param({"retry-after": "inf"}, None, id="infinite"),
        pytest.param({"retry-after": "soon"}, None, id="words"),
        pytest.param({"retry-after": "Sat, 01 Jan 2000 12:00:30 GMT", "date": NOON}, 30.0, id="date"),
        pytest.param({"retry-after": "Sat, 01 Jan 2000 11:00:00 GMT", "date": NOON}, 0.0, id="past"),
        pytest.param({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20ms"}, 0.02, id="reset"),
        pytest.param(
            {"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "6m"}, None, id="not-used-up"
        ),
        pytest.param({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "later"}, None, id="odd-reset"),
        pytest.param(
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1h2m3.5s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "1s",
            },
            3723.5,
            id="the-later-reset",
        ),
    ],
)
def test_what_the_headers_say(headers: dict[str, str], wait: float | None) -> None:
    """Seconds, fractions, milliseconds, dates and resets; what can't be read is nothing."""
    assert parse_retry_after(headers) == (wait if wait is None else pytest.approx(wait))


def test_a_date_without_the_providers_clock() -> None:
    """It is read against ours."""
    wait = parse_retry_after({"retry-after": formatdate(time() + 3600, usegmt=True)})
    assert wait is not None
    assert 3000 < wait <= 3601


@given(st.text(), st.text(), st.text())
def test_any_text_is_nothing_or_a_wait(after: str, date: str, reset: str) -> None:
    """Headers may hold anything."""
    headers = {
        "retry-after": after,
        "date": date,
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": reset,
    }
    wait = parse_retry_after(headers)
    assert wait is None or 0 <= wait < float("inf")
