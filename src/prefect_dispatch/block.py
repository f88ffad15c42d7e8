"""A time in which a provider takes no more, and the one call that tries whether it does again."""

from __future__ import annotations

import random
from dataclasses import dataclass

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
"""Pauses before a try, where the provider names none: each twice as long as the one before."""
BELIEVED = 10
"""So many tries one after another may fail before pauses that the provider names are made longer, too."""
ROUNDED_S = 1.0
"""Providers round what they say up to whole seconds: so much of it may be more than was needed."""


@dataclass(eq=False)
class Turn:
    """One call's place in the line, and then its time under way."""

    tokens: int
    """The most that it can take."""
    patience_s: float
    """How long it may wait for a provider that takes no more."""
    arrived: float
    blocked_before_s: float
    epoch: int = 0
    started: float = 0.0
    blocked_s: float = 0.0
    """How long it has waited for a provider that took no more."""


@dataclass
class Block:
    """From a refusal to the next call that passes.

    Attributes:
        kind: What the provider said, as the `kind` of an error.
        teaches: Whether it tells of a rate.
        since: When it began.
        until: When the next call may try.
        surely: Up to when the provider certainly took no more.
        tries: How many tries failed.
        trying: The call that tries now.
        verdict_s: How long the verdict on a try is waited for.
    """

    kind: str
    teaches: bool
    since: float
    until: float
    surely: float
    tries: int = 0
    trying: Turn | None = None
    verdict_s: float = 0.0
    told: bool = False
    """Whether the provider said how long it takes no more, in whole seconds at least."""

    @property
    def misled(self) -> bool:
        """Whether the provider refused a try after as long as it had said."""
        return self.told and self.tries > 0

    @property
    def is_short(self) -> bool:
        """Whether the first try passed, and the provider asked for no long wait."""
        return not self.tries and self.until - self.since <= FIRST_PAUSE_S + ROUNDED_S

    def refused(self, turn: Turn, now: float, told_s: float) -> None:
        """Take in one more refusal: of the first call, of a try, or of a call that was under way."""
        if turn is self.trying:
            self.trying = None
            self.tries += 1
            self.until = now + max(told_s, pause_s(self.tries // BELIEVED if told_s else self.tries))
        else:
            self.until = max(self.until, now + told_s)
        self.told |= told_s >= ROUNDED_S
        self.surely = max(self.surely, turn.started, now + told_s - ROUNDED_S)
        self.verdict_s = max(self.verdict_s, 2 * (now - turn.started))  # refusals come fast: no news is good news


def pause_s(tries: int) -> float:
    """Return the pause after so many failed tries, each time a little different."""
    return min(FIRST_PAUSE_S * 2.0**tries, LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)  # noqa: S311 -- no secret
