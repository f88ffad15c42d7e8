"""Does an item fit into what a model takes in at once, and if not, into how many parts would it?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prefect_dispatch.bounds import name_of
from prefect_dispatch.errors import RejectedError
from prefect_dispatch.executors.base import Bounded, Countable, Tiered
from prefect_dispatch.models import Usage

if TYPE_CHECKING:
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models import Brief, Item

FILLED = 0.9
"""How much of the room a part is to take: parts are even by characters, and not quite by tokens."""


def require_room(executor: Executor, brief: Brief, item: Item) -> None:
    """Check that prompt and answer fit, where the brief says what becomes of an item that is too long.

    Where nobody can tell, the provider will.

    Raises:
        RejectedError: If they don't; nothing is sent for it.
    """
    if brief.split and (excess := _excess(executor, brief, item)):
        raise RejectedError(
            f"Prompt and answer take about {excess[0]} tokens, and {name_of(executor)} takes in {excess[1]}, so it was "
            "not sent.",
            kind="context_length",
            usage=Usage(),
        )


def is_too_long(executor: Executor, brief: Brief, item: Item) -> bool:
    """Return whether it is plain beforehand that an item won't fit, whichever of an executor's models is asked."""
    tiers = executor.tiers if isinstance(executor, Tiered) else (executor,)
    return all(_excess(tier, brief, item) for tier in tiers)


def parts_needed(executor: Executor, brief: Brief, item: Item) -> int:
    """Return in how many parts an item that was refused is likely to fit: two, where nobody can tell."""
    whole, blank = (_taken(executor, brief, each) for each in (item, blanked(brief, item)))
    if whole is None or blank is None:
        return 2
    room = blank[1] - blank[0]
    return max(2, math.ceil((whole[0] - blank[0]) / (FILLED * room))) if room > 0 else 2


def blanked(brief: Brief, item: Item) -> Item:
    """Return an item without the text that may be cut."""
    return brief.split.part(item, "") if brief.split else item


def _excess(executor: Executor, brief: Brief, item: Item) -> tuple[int, int] | None:
    """Return how many tokens an ask takes and how many there is room for, or None if it fits or nobody can tell."""
    taken = _taken(executor, brief, item)
    return taken if taken and taken[0] > taken[1] else None


def _taken(executor: Executor, brief: Brief, item: Item) -> tuple[int, int] | None:
    """Return how many tokens an ask takes, its answer included, and how many there is room for, where that is known."""
    if not isinstance(executor, Countable) or not isinstance(executor, Bounded):
        return None
    if (room := executor.context_tokens()) is None:
        return None
    return executor.count_tokens(brief, item) + executor.expected_completion_tokens(brief), room
