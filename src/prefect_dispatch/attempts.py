"""What an answer took: attempts, what each spent, and what was not valid."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, Field

from prefect_dispatch.strict import Frozen, Numerous

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_TEXT = 2_000
"""Characters of an invalid answer that an attempt keeps."""
LONGEST_PROBLEM = 500
"""Characters of what was wrong with it."""
MOST_PROBLEMS = 20
"""Of these."""
LONGEST_NOTE = 500
"""Characters of what an executor reports of its work."""
MOST_NOTES = 20
"""Of these."""


class Usage(Numerous):
    """What was spent.

    Example:
        >>> (Usage(requests=1, prompt_tokens=10, cost_usd=0.5) + Usage(requests=1, cost_usd=None)).cost_usd is None
        True
    """

    requests: int = Field(default=0, ge=0)
    """Calls sent to the agent or its provider, answered or not."""
    prompt_tokens: int = Field(default=0, ge=0)
    """Tokens sent, as the provider counted them."""
    completion_tokens: int = Field(default=0, ge=0)
    """Tokens received, as the provider counted them."""
    cost_usd: float | None = Field(default=0.0, ge=0, allow_inf_nan=False)
    """US dollars; empty where the price is unknown."""
    estimated_usd: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """The part of them that nobody reported: computed from what a coding agent said of its tokens, and a price."""
    unsettled: int = Field(default=0, ge=0)
    """Calls whose tokens nobody told: sent, and cut off, timed out or lost. They may have cost something."""

    def __add__(self, other: Usage) -> Usage:
        """Return the sum; an unknown price makes the sum unknown."""
        known = self.cost_usd is not None and other.cost_usd is not None
        return _usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            (self.cost_usd or 0) + (other.cost_usd or 0) if known else None,
            self.estimated_usd + other.estimated_usd,
            self.unsettled + other.unsettled,
        )

    @property
    def tokens(self) -> int:
        """Tokens sent and received."""
        return self.prompt_tokens + self.completion_tokens


@lru_cache(maxsize=1 << 12)
def _usage(
    requests: int,
    prompt_tokens: int,
    completion_tokens: int,
    cost_usd: float | None,
    estimated_usd: float,
    unsettled: int,
) -> Usage:
    return Usage(  # frozen, and most calls take what others took: one object will do
        requests=requests,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost_usd=cost_usd,
        estimated_usd=estimated_usd,
        unsettled=unsettled,
    )


class Failure(Frozen):
    """Why an outcome has no value."""

    kind: str
    """The class of failure: `transient`, `timeout`, `invalid_output`, `truncated`, `empty`, `refused`, …"""
    message: str
    """What happened, in a sentence."""


class Rejection(Frozen):
    """An answer that was not valid."""

    text: str
    """The answer as it came, without secrets."""
    problems: tuple[str, ...]
    """What was wrong with it."""

    @property
    def short(self) -> Rejection:
        """The same as an attempt keeps it; what is cut ends in `…`.

        Example:
            >>> len(Rejection(text="word " * 1000, problems=("It is too long.",)).short.text)
            2000
        """
        problems = [_cut(problem, LONGEST_PROBLEM) for problem in self.problems[:MOST_PROBLEMS]]
        return Rejection(text=_cut(self.text, LONGEST_TEXT), problems=tuple(problems))


class Attempt(Numerous):
    """One attempt at one ask: a request and its re-asks."""

    part: str = ""
    """Which part of an item that was too long it was at: `2`, or `2.1` where that was cut again; empty: the whole."""
    model: str = ""
    """The model that was asked last; empty where an earlier version stored it, and where no language model is asked."""
    served_model: str = ""
    """The model that its response named; empty where it named none."""
    usage: Usage = Usage()
    """What this attempt spent."""
    reasks: int = Field(default=0, ge=0)
    """How often an invalid answer was sent back."""
    rejections: tuple[Rejection, ...] = ()
    """Every invalid answer, oldest first: those that were sent back, and the last one where none was valid; cut."""
    waits: int = Field(default=0, ge=0)
    """How often the provider was too busy, and was waited for."""
    escalations: tuple[Failure, ...] = ()
    """Why each model before the last one was given up, in order."""
    started: AwareDatetime | None = None
    """When it started; empty in a batch, and where an earlier version stored it."""
    seconds: float = Field(default=0.0, ge=0)
    """How long it took, waits apart."""
    waited_s: float = Field(default=0.0, ge=0)
    """How long it waited: for a busy provider, for the pace, for room in the budget."""
    notes: tuple[str, ...] = ()
    """What the executor reported of its work, such as commands that a coding agent's own policy refused; cut."""
    error: str | None = None
    """What ended the attempt, unless it succeeded: class of failure and message."""


def answering_models(attempts: Iterable[Attempt]) -> set[tuple[str, str]]:
    """Return which models gave an answer: the one that was asked, and the one that its response named."""
    return {(each.model, each.served_model) for each in attempts if each.model and each.error is None}


def cut_notes(notes: tuple[str, ...]) -> tuple[str, ...]:
    """Return each note once, as an attempt keeps them; what is cut ends in `…`.

    Example:
        >>> cut_notes(("a", "b", "a"))
        ('a', 'b')
    """
    return tuple(_cut(note, LONGEST_NOTE) for note in dict.fromkeys(notes))[:MOST_NOTES]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
