"""When a fan-out stops before its end: what everybody would meet, and what nobody can pay for."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_dispatch.errors import (
    BudgetError,
    ExecutorError,
    InvalidOutput,
    PatienceError,
    RejectedError,
    TerminalError,
)
from prefect_dispatch.models import Failure
from prefect_dispatch.scrub import scrub, told

if TYPE_CHECKING:
    from prefect_dispatch.tasks.work import Work

_OF_THE_ITEM = frozenset({"context_length", "content_policy", "too_large", "refused"})
"""Kinds of a refusal that say something about one item."""
_WORD = re.compile(r"[A-Za-z0-9_-]+|\d+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_LONG, _SHORT = 16, 4
"""No word has so many letters, and words that are written as one, as in a name, have more than so few on average."""


class Stop(NamedTuple):
    """Why the rest is not asked."""

    kind: Literal["circuit", "budget"]
    why: str


class Circuit:
    """Opens where further items would only fail as those before did.

    Calls that wait for a busy provider run out of patience together: all that do so within one `wait_s` count as one.

    Args:
        most: How many may fail one after another in the same way.
        wait_s: Seconds that one call waits for a busy provider.
    """

    def __init__(self, most: int, wait_s: float = 0.0) -> None:
        """Start closed."""
        self._most, self._wait_s = most, wait_s
        self._last: tuple[str, str] | None = None
        self._times = 0
        self._impatient_at = float("-inf")

    def passed(self) -> None:
        """An item was answered."""
        self._last = None

    def failed(self, work: Work, error: BaseException) -> Stop | None:
        """An item failed: return why to stop, if that is one too many."""
        failure = failure_of(error)
        if isinstance(error, BudgetError):
            return Stop("budget", failure.message)
        if isinstance(error, TerminalError):
            return Stop("circuit", f"{work.ref} met an error that every item would meet: {failure.message}")
        if isinstance(error, InvalidOutput) or (isinstance(error, RejectedError) and error.kind in _OF_THE_ITEM):
            return None
        if isinstance(error, PatienceError):
            now = time.monotonic()
            if now - self._impatient_at < self._wait_s:
                return None
            self._impatient_at = now
        alike = failure.kind, _evened(failure.message)
        self._times = self._times + 1 if alike == self._last else 1
        self._last = alike
        if self._times < self._most:
            return None
        return Stop("circuit", f"{self._times} in a row met the same error (limits.circuit): {failure.message}")


def failure_of(error: BaseException) -> Failure:
    """Return why a task run has no answer; the message is free of secrets."""
    if isinstance(error, ExecutorError):
        return Failure(kind=error.kind, message=scrub(str(error).removesuffix(error.trace)))
    return Failure(kind="crashed", message=told(error))


def _evened(message: str) -> str:
    """Return a message without what only one request has: numbers, times, ids, and paths that hold such."""
    return _WORD.sub(lambda word: "0" if _is_id(word[0]) else word[0], message)


def _is_id(word: str) -> bool:
    if any(map(str.isdigit, word)):
        return True
    parts = _PART.findall(word)
    return len(word) >= _LONG and (len(max(parts, key=len, default="")) >= _LONG or len(parts) * _SHORT > len(word))
