"""How long a provider asks to be left alone, by the headers of its refusal."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from math import isfinite
from time import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])", re.ASCII)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return after how many seconds a provider wants to be asked again, or None if it doesn't say.

    Args:
        headers: The response's, names in lower case or in a mapping that doesn't care.

    Example:
        >>> retry_after_s({"retry-after": "1.5"}), retry_after_s({"retry-after-ms": "250"})
        (1.5, 0.25)
        >>> retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"})
        30.0
        >>> retry_after_s({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m6s"})
        66.0
    """
    said = headers.get("retry-after", "")
    told = (
        _number(headers.get("retry-after-ms", ""), 0.001),
        _number(said),
        _until(said, headers.get("date", "")),
        _reset(headers),
    )
    return next((wait for wait in told if wait is not None), None)


def _number(text: str, unit: float = 1.0) -> float | None:
    try:
        wait = float(text) * unit
    except ValueError:
        return None
    return max(wait, 0.0) if isfinite(wait) else None


def _until(date: str, today: str) -> float | None:
    """Read a date against the provider's own clock, where it shows it: ours may be wrong."""
    then, now = _seconds(date), _seconds(today)
    return None if then is None else max(then - (time() if now is None else now), 0.0)


def _seconds(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _reset(headers: Mapping[str, str]) -> float | None:
    """Return when the last of what is used up is there again, as OpenAI and those who follow it word it."""
    waits = [
        sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(reset))
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}") == "0"
        and _DURATION.fullmatch(reset := headers.get(f"x-ratelimit-reset-{what}", ""))
    ]
    return max(waits, default=None)
