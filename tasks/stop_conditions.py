"""What stops a fan-out: an error that all work would meet, a spent budget, or the cancellation of the flow run.

A cancellation is looked up by bounded requests to Prefect's API: sent once, with a timeout of half a minute. Prefect's
client tries a request six times over more than a minute, and waits a minute for each answer. That is right for the
state of a run, and wrong for what is only looked up now and then.
"""

from __future__ import annotations

import re
import threading
import time
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun, PrefectException
from prefect.runtime import flow_run

from prefect_dispatch.errors import (
    BudgetError,
    ExecutorError,
    InvalidOutput,
    PatienceError,
    RejectedError,
    TerminalError,
)
from prefect_dispatch.models.outcome import Failure
from prefect_dispatch.prefect_compat import override_settings
from prefect_dispatch.security.redaction import redact, safe_message

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from prefect.client.orchestration import SyncPrefectClient

    from prefect_dispatch.tasks.work_item import WorkItem

_ITEM_KINDS = frozenset(
    {"context_length", "content_policy", "too_large", "refused", "read_only", "needs_context", "blocked"}
)
"""Kinds of a rejection that are caused by one item."""
_WORD = re.compile(r"[A-Za-z0-9_-]+|\d+")
_WORD_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_MIN_ID_LENGTH, _MIN_PART_LENGTH = 16, 4
"""Lengths that distinguish ids from words: no word has so many letters, and compound names have parts that are longer
than so few letters on average.
"""


class Stop(NamedTuple):
    """Why the rest is not asked."""

    kind: Literal["circuit", "budget", "pilot"]
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


TIMEOUT_S = 30.0
"""Seconds that one request may take."""
JOIN_S = 5.0
"""Seconds that a periodic step in progress may take to end."""
UNAVAILABLE = (httpx.HTTPError, PrefectException)
"""Errors of a request that the API did not answer, or refused."""


@contextmanager
def bounded_client() -> Generator[SyncPrefectClient]:
    """Yield a client that sends each request once, and waits half a minute for the answer."""
    with (
        override_settings("client", max_retries=0),
        get_client(httpx_settings={"timeout": TIMEOUT_S}, sync_client=True) as client,
    ):
        yield client


def is_cancelled(run: UUID) -> bool:
    """Return whether a flow run was cancelled; False if the API does not answer."""
    try:
        with bounded_client() as client:
            state = client.read_flow_run(run).state
    except UNAVAILABLE:
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def raise_if_cancelled(run: UUID) -> None:
    """Check that a flow run was not cancelled.

    Raises:
        CancelledRun: If it was.
    """
    if is_cancelled(run):
        raise CancelledRun("The flow run was cancelled.")


@contextmanager
def watch_cancellation(every_s: float) -> Generator[Callable[[], None]]:
    """Look regularly, in a thread, whether the flow run was cancelled: an API that hangs delays nothing else.

    Args:
        every_s: Seconds between two requests.

    Yields:
        A function that raises `CancelledRun` if the run was cancelled, by the last request.
    """
    run, cancelled = UUID(flow_run.get_id()), threading.Event()

    def look() -> None:
        if not cancelled.is_set() and is_cancelled(run):
            cancelled.set()

    def check() -> None:
        if cancelled.is_set():
            raise CancelledRun("The flow run was cancelled.")

    with run_periodically(look, every_s, join_s=0.0):
        yield check


@contextmanager
def run_periodically(step: Callable[[], object], every_s: float, *, join_s: float = JOIN_S) -> Generator[None]:
    """Run a step periodically in a thread while the body runs.

    Args:
        step: The step.
        every_s: Seconds between two steps.
        join_s: Seconds to wait for a step in progress; not for longer, as one that calls the API may hang.
    """
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(every_s):
            step()

    thread = start_thread(tick, "prefect-dispatch-periodic")
    try:
        yield
    finally:
        ended.set()
        thread.join(join_s)


def start_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread that runs a function in a copy of this context, which includes Prefect's settings."""
    run: Callable[..., None] = cast("Any", copy_context().run)
    thread = threading.Thread(target=run, args=(target,), name=name, daemon=True)
    thread.start()
    return thread
