"""Executors for tests of briefs, integrators and flows, without an agent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from threading import Lock
from typing import TYPE_CHECKING

from prefect_dispatch.executors.base import Ask, Reply

if TYPE_CHECKING:
    from pydantic import JsonValue

Script = Callable[[Ask], "Reply | JsonValue | Awaitable[Reply | JsonValue]"]


class ScriptedExecutor:
    """Executor that answers from a script and records its asks.

    A script is a mapping from item keys to answers, or a function of the ask that
    returns an answer, a `Reply`, or an awaitable of either, or raises.

    Attributes:
        asks: Every ask so far, in order of arrival.

    Example:
        >>> scripted = ScriptedExecutor({"a": "yes", "b": "no"})
        >>> scripted.calls
        0
    """

    def __init__(self, script: Mapping[str, JsonValue] | Script, *, fingerprint: str = "scripted") -> None:
        """Store the script.

        Args:
            script: The answers, or a function that returns them.
            fingerprint: Identifies everything that would change answers. All executors with the default share their
                stored answers: in one store, an ask that one of them has answered is not repeated by another.
        """
        self._script = script
        self._lock = Lock()
        self.fingerprint = fingerprint
        self.asks: list[Ask] = []

    @property
    def calls(self) -> int:
        """Number of asks, re-asks and retries included."""
        return len(self.asks)

    async def answer(self, ask: Ask) -> Reply:
        """Answer an ask from the script."""
        with self._lock:
            self.asks.append(ask)
        answer = self._script(ask) if callable(self._script) else self._script[ask.item.key]
        if isinstance(answer, Awaitable):
            answer = await answer
        return answer if isinstance(answer, Reply) else Reply(value=answer, model="scripted")
