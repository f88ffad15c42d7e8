"""How far a run is, told to whoever listens in this process."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from prefect_dispatch.models import Outcome, Usage
from prefect_dispatch.strict import Frozen


class Progress(Frozen):
    """How far a run is."""

    total: int
    """How many (brief, item) there are."""
    done: int = 0
    """How many have an outcome."""
    cached: int = 0
    """How many of them came from the store."""
    failed: int = 0
    """How many of them failed."""
    skipped: int = 0
    """How many of them were not asked."""
    asked: int = 0
    """How many of them were put to an agent."""
    in_flight: int = 0
    """How many task runs are under way."""
    usage: Usage = Usage()
    """What was spent so far."""
    seconds_left: float | None = None
    """Seconds until all have an outcome, at the speed so far; empty until something can be said."""

    def plus(self, *outcomes: Outcome) -> Progress:
        """Return the progress after some more outcomes."""
        return self.model_copy(
            update={
                "done": self.done + len(outcomes),
                "cached": self.cached + sum(outcome.origin == "stored" for outcome in outcomes),
                "failed": self.failed + sum(outcome.status == "failed" for outcome in outcomes),
                "skipped": self.skipped + sum(outcome.status == "skipped" for outcome in outcomes),
                "asked": self.asked + sum(outcome.origin == "asked" for outcome in outcomes),
                "usage": sum((outcome.usage for outcome in outcomes if outcome.spent), self.usage),
            }
        )

    def __str__(self) -> str:
        """Return what is known beyond the count, in words.

        Example:
            >>> print(Progress(total=40, done=12, cached=2, asked=10, in_flight=8, seconds_left=95))
            2 from the store, 8 in flight, 0 tokens, cost $0.0000, about 1 min 35 s left
        """
        counts = {"from the store": self.cached, "failed": self.failed, "skipped": self.skipped}
        parts = [f"{count} {name}" for name, count in {**counts, "in flight": self.in_flight}.items() if count]
        parts += [f"{self.usage.tokens} tokens", f"cost {dollars(self.usage.cost_usd)}"]
        if self.done < self.total and self.seconds_left is not None:
            parts.append(f"about {lasting(self.seconds_left)} left")
        return ", ".join(parts)


def seconds_left(progress: Progress, asks: int, seconds: float) -> float | None:
    """Return how many seconds a fan-out still takes, at the speed so far.

    Args:
        progress: How far it is.
        asks: How many are put to an agent in all.
        seconds: How long it has been asking.

    Returns:
        None until as many were answered as are under way: before that, the first wave tells nothing.
    """
    if not progress.asked or progress.asked < progress.in_flight:
        return None
    return seconds * max(asks - progress.asked, progress.in_flight) / progress.asked


def dollars(cost: float | None) -> str:
    """Return an amount in US dollars, as it is shown."""
    return "unknown" if cost is None else f"${cost:.4f}"


def lasting(seconds: float) -> str:
    """Return a length of time, as it is shown.

    Example:
        >>> lasting(4.2), lasting(95), lasting(2 * 3600 + 170)
        ('4 s', '1 min 35 s', '2 h 3 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:  # noqa: PLR2004 -- minutes of an hour
        return f"{minutes} min {rest} s"
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))


Listener = Callable[[Progress], None]

listener: ContextVar[Listener | None] = ContextVar("prefect-dispatch-progress", default=None)
"""Set it before a flow is called, and it is told whenever outcomes come; what is stored comes at once."""
