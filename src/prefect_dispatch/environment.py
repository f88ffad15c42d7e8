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
    inside: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
    return frozenset(inside.items())
