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
    """Answers from a script and remembers what it was asked.

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
        """Keep the script.

        Args:
            script: What is answered.
            fingerprint: Stands for what would change answers. All that keep the default are one executor: in one
                store, what one of them was asked, another isn't asked again.
        """
        self._script = script
        self._lock = Lock()
        self.fingerprint = fingerprint
        self.asks: list[Ask] = []

    @property
    def calls(self) -> int:
        """How often it was asked, re-asks and retries included."""
        return len(self.asks)

    async def answer(self, ask: Ask) -> Reply:
        """Answer as the script says."""
        with self._lock:
            self.asks.append(ask)
        said = self._script(ask) if callable(self._script) else self._script[ask.item.key]
        if isinstance(said, Awaitable):
            said = await said
        return said if isinstance(said, Reply) else Reply(value=said, model="scripted")
