"""Whether the environment of this process has changed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping


def environment() -> Hashable:
    """Return what is equal for as long as the environment is: by it, what was read there can be kept.

    `os.environ` decodes every name and value each time that it is walked through, which took most of what an item
    costs here; what it holds inside is compared instead.

    Example:
        >>> before = environment()
        >>> before == environment()
        True
        >>> os.environ["EXAMPLE"] = "another"
        >>> before == environment()
        False
    """
    global _last  # noqa: PLW0603 -- replaced whole, as other threads read it meanwhile
    inside: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
    known, said = _last
    if known != inside:  # to compare takes a quarter of what it takes to make a set of it
        known = dict(inside)
        said = frozenset(known.items())
        _last = known, said
    return said


_last: tuple[dict[Any, Any], Hashable] = {}, frozenset[Any]()
"""What the environment held when it was last looked at, and what was returned for it."""
