"""First calls of briefs: one goes ahead, so that the others find the brief in the provider's cache of prompts.

A provider caches the beginning of a prompt once it has read it. Of a hundred calls that begin together, each would pay
for the whole brief; so the first one is sent alone, and the others follow when it has its answer, or after a bounded
delay.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefect_dispatch.executors.base import BaseExecutor

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models.brief import Brief


MAX_DELAY_S = 20.0
"""Seconds that a call waits for the first one of its brief, at most."""


def prefix_key(brief: Brief) -> Hashable:
    """Return what tells the prompts of one brief from those of another; copies of a brief have the same."""
    return brief.name, brief.part, brief.model, brief.scope, brief.instructions, brief.constraints


@dataclass(eq=False)
class PromptPrefix:
    """The beginning that all prompts of a brief to one executor have in common.

    Attributes:
        tokens: Its length, as far as its provider caches it; 0: there is nothing to wait for.
        is_shared: Whether other calls have it, too.
        is_cached: Whether a call has been answered, so that the provider has it.
    """

    tokens: int = 0
    is_shared: bool = True
    is_cached: bool = False
    _is_led: bool = False
    _waiting: list[asyncio.Future[None]] = field(default_factory=list["asyncio.Future[None]"])

    async def enter(self, max_delay_s: float = MAX_DELAY_S) -> bool:
        """Wait for the first call if it is in flight; return whether this call is the first.

        Args:
            max_delay_s: Seconds to wait at most.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + max_delay_s
        while self._is_led and not self.is_cached and loop.time() < until:
            waiting: asyncio.Future[None] = loop.create_future()
            self._waiting.append(waiting)
            await asyncio.wait([waiting], timeout=until - loop.time())
        is_first = not (self._is_led or self.is_cached)
        self._is_led |= is_first
        return is_first

    def leave(self, *, is_answered: bool) -> None:
        """Let the others follow, as the first call has ended; if it has no answer, the next one goes ahead.

        Args:
            is_answered: Whether it has an answer.
        """
        self.is_cached |= is_answered
        self._is_led = False
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.set_result(None)


class PromptPrefixes:
    """The common beginnings of the prompts of a run, by brief and executor."""

    def __init__(self) -> None:
        """Start with none."""
        self._prefixes: dict[Hashable, PromptPrefix] = {}
        self._counting = asyncio.Lock()
        self._asks: Mapping[str, int] | None = None

    def expect(self, asks: Mapping[str, int]) -> None:
        """Set how many calls each brief will have, by its name; without that, several are assumed."""
        self._asks = asks

    async def find(self, executor: Executor, name: str, brief: Brief) -> PromptPrefix | None:
        """Return the common beginning of the prompts of a brief; None if its provider caches none.

        Args:
            executor: The executor.
            name: Its name.
            brief: The brief, as it is for all items.
        """
        key = name, prefix_key(brief)
        if (prefix := self._prefixes.get(key)) is None:
            async with self._counting:  # the first of many calls at once counts
                prefix = self._prefixes.get(key) or await self._create(BaseExecutor.of(executor), brief)
                self._prefixes[key] = prefix
        return prefix if prefix.tokens and prefix.is_shared else None

    async def _create(self, executor: BaseExecutor, brief: Brief) -> PromptPrefix:
        """Return a prefix with its tokens, which are counted in a thread if the executor can count them."""
        counts = type(executor).prefix_tokens is not BaseExecutor.prefix_tokens
        tokens = await asyncio.to_thread(executor.prefix_tokens, brief) if counts else 0
        return PromptPrefix(tokens, self._asks is None or self._asks.get(brief.name, 0) > 1)
