"""How many items a task run takes: enough that its cost is shared among many, few enough that all have work."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_dispatch.limits import Limits

SINGLE = 200
"""Asks up to which each has a task run of its own, for all to see."""
LEAST = 100
"""Items of a shard at least: fewer would share a task run's cost among too few."""
MOST_RUNS = 400
"""Task runs that a fan-out makes at most."""
ROUNDS = 10
"""Items that each place of another process has at least in a shard: while the last ones of it come, places are idle."""
_RATES = ("requests_per_minute", "tokens_per_minute")


def shard_size(asks: int, limits: Limits) -> int:
    """Return how many items a task run takes in this process.

    Args:
        asks: How many are to be asked.
        limits: What was said of it.

    Example:
        >>> from prefect_dispatch.limits import Limits
        >>> [shard_size(asks, Limits()) for asks in (20, 200, 1000, 100_000)]
        [1, 1, 100, 250]
        >>> shard_size(20, Limits(shard=5))
        5
    """
    if limits.shard is not None:
        return limits.shard
    return 1 if asks <= SINGLE else max(LEAST, -(-asks // MOST_RUNS))


def size_elsewhere(asks: int, limits: Limits, at_once: int) -> int:
    """Return how many items a task run takes in another process, where one costs some 100 ms.

    Args:
        asks: How many are to be asked.
        limits: What was said of it, and how many places one process has.
        at_once: How many task runs are under way at once.

    Example:
        >>> from prefect_dispatch.limits import Limits
        >>> [size_elsewhere(asks, Limits(concurrency=100), 2) for asks in (20, 2000, 1_000_000)]
        [10, 1000, 2500]
    """
    if limits.shard is not None:
        return limits.shard
    wanted = max(LEAST, ROUNDS * limits.concurrency, -(-asks // MOST_RUNS))
    return max(1, min(wanted, -(-asks // at_once)))


def most_processes(limits: Limits) -> int:
    """Return among how many processes places and rates can be divided, so that each has some.

    Example:
        >>> from prefect_dispatch.limits import Limits
        >>> most_processes(Limits(concurrency=8)), most_processes(Limits(concurrency=8, requests_per_minute=2))
        (8, 2)
    """
    rates: list[int | None] = [getattr(limits, name) for name in _RATES]
    return min(each for each in (limits.concurrency, *rates) if each is not None)


def divided(limits: Limits, processes: int) -> Limits:
    """Return what one of so many processes may take of places and rates.

    Example:
        >>> from prefect_dispatch.limits import Limits
        >>> one = divided(Limits(concurrency=9, requests_per_minute=60), 2)
        >>> one.concurrency, one.requests_per_minute, one.tokens_per_minute
        (4, 30, None)
    """
    most = {name: getattr(limits, name) for name in ("concurrency", *_RATES)}
    return limits.model_copy(update={name: each // processes for name, each in most.items() if each is not None})
