"""States of an item in a run, and the state that may follow each: from the plan to the ledger."""

from __future__ import annotations

from enum import Enum


class ItemState(str, Enum):
    """State of one item for one brief.

    The states of an outcome are `ANSWERED`, `CACHED`, `SHARED`, `FAILED` and `SKIPPED`; a merge gives each outcome one
    of the dispositions `MERGED`, `DUPLICATE_OF`, `OVERRIDDEN`, `FAILED` and `SKIPPED`. The states before an outcome
    are of the run alone: a run that is interrupted in one of them starts again from the store and its checkpoints.

    Example:
        >>> sorted(state.value for state in ItemState.CACHED.next_states)
        ['duplicate_of', 'merged', 'overridden']
    """

    PLANNED = "planned"
    """Prepared: it has a fingerprint, and nothing was sent for it."""
    QUEUED = "queued"
    """Waits for a free place of the fan-out; has no task run."""
    WAITING = "waiting"
    """Has a task run, and waits: for the budget, a slot, the rate limit, a busy provider or the delay of a retry."""
    IN_FLIGHT = "in_flight"
    """A request was sent, alone or in a provider's batch, and its response has not come; a checkpoint notes it."""
    INVALID = "invalid"
    """The reply did not pass validation; it is sent back while the brief has re-asks, and models to ask, left."""
    SPLIT = "split"
    """It is too long for the model: its parts are asked, each as an item of its own, and their answers joined."""
    ANSWERED = "answered"
    """A valid answer was received in this run, and stored."""
    CACHED = "cached"
    """A valid answer was found in the store."""
    SHARED = "shared"
    """Its work is equal to that of another item, whose answer it has."""
    FAILED = "failed"
    """It was asked, and has no valid answer after all its retries."""
    SKIPPED = "skipped"
    """Nothing was sent for it: the budget was spent, the circuit was open, or what it needs has no answer."""
    MERGED = "merged"
    """Its answer is in the merged value."""
    DUPLICATE_OF = "duplicate_of"
    """Its answer says the same as that of another item, which is in the merged value."""
    OVERRIDDEN = "overridden"
    """Its answer lost a conflict against that of another item."""

    @property
    def next_states(self) -> frozenset[ItemState]:
        """The states that may follow; empty for a final state."""
        return _NEXT[self]


_STATES_OF_ANSWER = frozenset({ItemState.MERGED, ItemState.DUPLICATE_OF, ItemState.OVERRIDDEN})
_NEXT: dict[ItemState, frozenset[ItemState]] = {
    **dict.fromkeys(ItemState, frozenset[ItemState]()),
    ItemState.PLANNED: frozenset({ItemState.CACHED, ItemState.QUEUED, ItemState.SKIPPED}),
    # Equal work is queued once; its other items share the answer. A provider's batch needs no task run.
    ItemState.QUEUED: frozenset(
        {
            ItemState.WAITING,
            ItemState.IN_FLIGHT,
            ItemState.SPLIT,
            ItemState.SHARED,
            ItemState.FAILED,
            ItemState.SKIPPED,
        }
    ),
    # What a lost worker or a batch leaves without an answer is queued again.
    ItemState.WAITING: frozenset({ItemState.IN_FLIGHT, ItemState.QUEUED, ItemState.FAILED, ItemState.SKIPPED}),
    ItemState.IN_FLIGHT: frozenset(
        {
            ItemState.ANSWERED,
            ItemState.INVALID,
            ItemState.WAITING,
            ItemState.QUEUED,
            ItemState.SPLIT,
            ItemState.FAILED,
        }
    ),
    ItemState.INVALID: frozenset({ItemState.WAITING, ItemState.QUEUED, ItemState.FAILED}),
    ItemState.SPLIT: frozenset({ItemState.ANSWERED, ItemState.CACHED, ItemState.FAILED, ItemState.SKIPPED}),
    **dict.fromkeys((ItemState.ANSWERED, ItemState.CACHED, ItemState.SHARED), _STATES_OF_ANSWER),
}
