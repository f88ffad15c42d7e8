"""What makes a tagline better, as a function."""

from __future__ import annotations


def brief(text: str, key: str) -> float:  # noqa: ARG001 -- a metric gets both
    """Return a number that is higher for fewer words."""
    return -len(text.split())
