"""Items: the inputs of a job."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from prefect_dispatch.models.base import CompactFrozen, StorableJson, Strict


class Item(Strict, CompactFrozen):
    """One input.

    Example:
        >>> Item(key="mit.txt", value="Permission is hereby granted …").key
        'mit.txt'
    """

    key: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """Its name in reports, messages and files; unique within a job."""
    value: StorableJson
    """The input of the agent: text, or any JSON value."""
    priority: int = 0
    """A higher one wins a conflict between briefs of equal priority."""
