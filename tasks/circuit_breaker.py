"""Circuit breaker of a fan-out: stops it at errors that all work would meet, and when the budget is spent."""

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
from prefect_dispatch.models.outcome import Failure
from prefect_dispatch.security.redaction import redact, safe_message

if TYPE_CHECKING:
    from prefect_dispatch.tasks.work_item import WorkItem

_ITEM_KINDS = frozenset({"context_length", "content_policy", "too_large", "refused"})
"""Kinds of a rejection that are caused by one item."""
_WORD = re.compile(r"[A-Za-z0-9_-]+|\d+")
_WORD_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_MIN_ID_LENGTH, _MIN_PART_LENGTH = 16, 4
"""Lengths that distinguish ids from words: no word has so many letters, and compound names have parts that are longer
than so few letters on average.
"""


class Stop(NamedTuple):
    """Why the rest is not asked."""

    kind: Literal["circuit", "budget"]
    reason: str


class CircuitBreaker:
    """Circuit breaker that opens after consecutive equal failures.

    Calls that wait for a busy provider time out together: all that do so within one `wait_s` count as one.

    Args:
        most: Number of consecutive failures with the same error that opens it.
        wait_s: Seconds that one call waits for a busy provider.
    """

    def __init__(self, most: int, wait_s: float = 0.0) -> None:
        """Start closed."""
        self._max_failures, self._wait_s = most, wait_s
        self._last_signature: tuple[str, str] | None = None
        self._failures = 0
        self._timed_out_at = float("-inf")

    def record_success(self) -> None:
        """Record a success: failures are counted from the start again."""
        self._last_signature = None

    def record_failure(self, work: WorkItem, error: BaseException) -> Stop | None:
        """Record a failure; return why to stop, if that is one too many."""
        # 1. Errors that stop at once.
        failure = failure_of(error)
        if isinstance(error, BudgetError):
            return Stop("budget", failure.message)
        if isinstance(error, TerminalError):
            return Stop("circuit", f"{work.ref} met an error that every item would meet: {failure.message}")
        # 2. Errors of one item, which say nothing about the next one.
        if isinstance(error, InvalidOutput) or (isinstance(error, RejectedError) and error.kind in _ITEM_KINDS):
            return None
        # 3. Time-outs of concurrent calls count once.
        if isinstance(error, PatienceError):
            now = time.monotonic()
            if now - self._timed_out_at < self._wait_s:
                return None
            self._timed_out_at = now
        # 4. Count equal failures in a row.
        signature = failure.kind, _normalize_message(failure.message)
        self._failures = self._failures + 1 if signature == self._last_signature else 1
        self._last_signature = signature
        if self._failures < self._max_failures:
            return None
        return Stop("circuit", f"{self._failures} in a row met the same error (limits.circuit): {failure.message}")


def failure_of(error: BaseException) -> Failure:
    """Return the failure that an error means for a report; the message holds no secrets."""
    if isinstance(error, ExecutorError):
        return Failure(kind=error.kind, message=redact(str(error).removesuffix(error.trace)))
    return Failure(kind="crashed", message=safe_message(error))


def _normalize_message(message: str) -> str:
    """Return a message without what differs between requests: numbers, times, ids, and paths that contain them."""
    return _WORD.sub(lambda word: "0" if _is_id(word[0]) else word[0], message)


def _is_id(word: str) -> bool:
    if any(map(str.isdigit, word)):
        return True
    # Split camel case: "ConnectionResetError" is a word, "xKqTzWbRmNpLvCdF" is an id.
    parts = _WORD_PART.findall(word)
    return len(word) >= _MIN_ID_LENGTH and (
        len(max(parts, key=len, default="")) >= _MIN_ID_LENGTH or len(parts) * _MIN_PART_LENGTH > len(word)
    )
