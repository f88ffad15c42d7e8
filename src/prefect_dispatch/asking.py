"""One attempt: ask, wait for the busy, validate, check, send back what is invalid, and ask somebody else at last."""

from __future__ import annotations

import asyncio
import time
from asyncio import CancelledError
from contextlib import nullcontext
from datetime import datetime, timezone
from sys import intern
from typing import TYPE_CHECKING

from prefect_dispatch.attempts import cut_notes
from prefect_dispatch.clock import Clock
from prefect_dispatch.draft import NoDraft
from prefect_dispatch.errors import (
    BudgetError,
    BusyError,
    ExecutorError,
    FormRefusedError,
    InvalidOutput,
    RejectedError,
    TerminalError,
    TransientError,
)
from prefect_dispatch.examining import BrokenCheckError, examine, invalid, text_of
from prefect_dispatch.executors.base import Ask, Ceiling, Deaf, Metered, Reply, Tiered
from prefect_dispatch.gate import Gate
from prefect_dispatch.models import Answer, Attempt, Brief, Failure, Item, Rejection, Usage
from prefect_dispatch.processes.logs import begun
from prefect_dispatch.room import require_room
from prefect_dispatch.scrub import told
from prefect_dispatch.withhold import hushed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from pydantic import JsonValue

    from prefect_dispatch.change import Change
    from prefect_dispatch.draft import Draft
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.gate import Call
    from prefect_dispatch.limits import Limits
    from prefect_dispatch.processes.logs import Begun

_NOTHING = Ceiling(prompt_tokens=0, completion_tokens=0, cost_usd=0.0)
MOST_OVERTAKEN = 5
"""How often a call may be refused as too many while others pass: then it isn't the provider that is busy."""


async def attempt(
    executor: Executor,
    brief: Brief,
    item: Item,
    *,
    limits: Limits,
    gate: Gate | None = None,
    draft: Draft | None = None,
    turn: AbstractAsyncContextManager[object] | None = None,
) -> Answer:
    """Return a valid answer, from one attempt.

    Whoever is too busy is waited for, and an invalid answer is sent back. Where that doesn't help,
    or a call fails, the executor's next tier is asked, if it has one.

    Args:
        executor: Who is asked.
        brief: What is asked.
        item: What it is asked about.
        limits: Re-asks, the time limit, and how long a busy provider is waited for.
        gate: What every call of the run has to pass: its budget and its pace.
        draft: Where replies are kept.
        turn: What is entered for each call, and for nothing else that has to be done; waiting there takes no time.

    Returns:
        The answer; its one attempt holds the usage of all calls.

    Raises:
        ExecutorError: If there is no valid answer: the failure that leaves most hope; its attempt holds what was spent.
    """
    draft = draft or NoDraft()
    asking = _Attempt(brief, item, limits, gate or Gate(limits), draft, turn or nullcontext())
    try:
        value, reply = await asking.answered(executor)
    except ExecutorError as error:
        await draft.end(settled=not isinstance(error, BrokenCheckError))
        error.attempts = (asking.account(f"{error.kind}: {error}"),)
        raise error from None  # its cause quotes, too
    heard = reply.value if isinstance(brief.output, type) else None
    who = intern(reply.model)  # most answers of a run have the same
    return Answer(
        value=value,
        said=heard,
        change=reply.change,
        model=who,
        served_model=intern(reply.served_model),
        attempts=(asking.account(),),
    )


class _Attempt:
    """One attempt under way: what it spent, how long it waited, whom it gave up."""

    def __init__(
        self,
        brief: Brief,
        item: Item,
        limits: Limits,
        gate: Gate,
        draft: Draft,
        turn: AbstractAsyncContextManager[object],
    ) -> None:
        self._brief, self._item, self._said = brief, item, brief.rendered(item)
        self._limits, self._gate, self._draft, self._turn = limits, gate, draft, turn
        self._start = time.monotonic()
        self._started: datetime | None = None
        self._usage = Usage()
        self._model = self._served_model = ""
        self._reasks = self._waits = 0
        self._waited_s = 0.0
        self._patience_s = limits.wait_s
        # It may take its time, or end the process; without any, an answer is stored as soon as its draft would be.
        self._runs_code = bool(brief.checks) or isinstance(brief.output, type)
        self._given_up: list[Failure] = []
        self._invalid: list[Rejection] = []
        self._notes: list[str] = []

    def account(self, error: str | None = None) -> Attempt:
        """Return what the attempt took."""
        return Attempt(
            model=self._model,
            served_model=self._served_model,
            usage=self._usage,
            reasks=self._reasks,
            rejections=tuple(self._invalid),
            waits=self._waits,
            escalations=tuple(self._given_up),
            started=self._started or datetime.now(timezone.utc),
            seconds=round(time.monotonic() - self._start - self._waited_s, 3),
            waited_s=round(self._waited_s, 3),
            notes=cut_notes(tuple(self._notes)),
            error=error,
        )

    async def answered(self, executor: Executor) -> tuple[JsonValue, Reply]:
        """Return the first valid answer of the executor and its fallbacks."""
        self._usage = _lost(executor, Ask(brief=self._said, item=self._item), self._draft.lost)
        tiers = executor.tiers if isinstance(executor, Tiered) else (executor,)
        failures: list[ExecutorError] = []
        for place, tier in enumerate(tiers):
            try:
                return await self._valid(place, tier)
            except ExecutorError as error:  # noqa: PERF203 -- a call takes far longer
                hushed(error, self._item)
                if isinstance(error, (BudgetError, BrokenCheckError)):  # nobody else would do better
                    raise
                failures.append(error)
                if place + 1 < len(tiers):
                    self._given_up.append(Failure(kind=error.kind, message=str(error)))
        raise min(failures, key=_hopelessness)

    async def _valid(self, place: int, tier: Executor) -> tuple[JsonValue, Reply]:
        """Return a tier's first valid answer, invalid ones being sent back."""
        kept = iter(self._draft.heard(place))
        rejections: list[Rejection] = []
        change: Change | None = None
        clock = Clock(self._limits.timeout_s)
        while True:
            ask = Ask(brief=self._said, item=self._item, rejections=tuple(rejections), change=change)
            heard = next(kept, None)
            reply = heard or await self._passed(place, tier, ask, clock)
            self._usage += reply.usage
            self._model, self._served_model = intern(reply.model), intern(reply.served_model)
            self._notes += reply.notes
            if not heard:
                await self._draft.hear(place, reply, at_once=self._runs_code)
            value, wrong = examine(self._brief, self._item, reply)
            if not wrong:
                return value, reply
            await self._draft.keep()
            rejection = Rejection(text=text_of(reply.value), problems=tuple(wrong))
            self._invalid.append(rejection.short)
            if len(rejections) >= (0 if isinstance(tier, Deaf) and tier.deaf else self._limits.reasks):
                raise invalid(wrong, asked=len(rejections) + 1)
            self._reasks += 1
            rejections.append(rejection)
            change = reply.change

    async def _passed(self, place: int, tier: Executor, ask: Ask, clock: Clock) -> Reply:
        """Return the reply to a call, however often it has to wait."""
        if self._brief.split:  # to count tokens takes a while
            await asyncio.to_thread(require_room, tier, self._brief, self._item)
        overtaken = 0
        while True:
            passed = self._gate.passed(tier)
            call = self._gate.call(tier, ask, wait_s=max(0.0, self._patience_s))
            try:
                reply = await self._sent(call, tier, ask, clock)
            except ExecutorError as error:
                self._usage += error.usage or Usage()
                if call.sent:
                    await self._draft.hear(place, None)
                if isinstance(error, FormRefusedError):  # at most once for each way that there is
                    continue
                if not isinstance(error, BusyError):
                    raise
                overtaken += self._gate.passed(tier) > passed
                if overtaken > MOST_OVERTAKEN:
                    raise
                self._waits += 1
            else:
                return reply
            finally:
                self._waited_s += call.waited_s
                self._patience_s -= call.blocked_s

    async def _sent(self, call: Call, tier: Executor, ask: Ask, clock: Clock) -> Reply:
        queued = time.monotonic()
        async with self._turn:
            self._start += time.monotonic() - queued
            self._started = self._started or datetime.now(timezone.utc)
            async with call:
                await self._draft.send()
                with begun() as logs:
                    try:
                        with clock.running():
                            reply = await _reply(tier, ask)
                    except TimeoutError:
                        raise self._late(clock, logs, _lost(tier, ask)) from None
                call.usage = reply.usage
                return reply

    def _late(self, clock: Clock, logs: Sequence[Begun], usage: Usage) -> ExecutorError:
        """Return the error of a call that is out of time, with what a command printed at last."""
        end = next((log.end for log in reversed(logs) if log.end), "")
        message = f"{clock.said} It printed at last: {end}" if end else clock.said
        kind = TransientError if self._limits.retry_timeouts else RejectedError
        late = kind(message, kind="timeout", usage=usage)
        return late.traced(f"(all of it: {', '.join(str(log.path) for log in logs)})") if logs else late


async def _reply(executor: Executor, ask: Ask) -> Reply:
    try:
        reply = await executor.answer(ask)
    except ExecutorError as error:
        error.usage = error.usage or Usage(requests=1, unsettled=int(not isinstance(error, BusyError)))
        raise
    except (CancelledError, GeneratorExit):
        raise
    except BaseException as error:  # an executor may be anybody's code; its failure, an exit included, is this item's
        raise ExecutorError(told(error), usage=_lost(executor, ask)) from error
    if not isinstance(reply, Reply):  # pyright: ignore[reportUnnecessaryIsInstance] -- an executor may be untyped
        raise TerminalError(f"The executor returned a {type(reply).__name__} instead of a Reply.")
    return reply


def _lost(executor: Executor, ask: Ask, calls: int = 1) -> Usage:
    """Return what calls took that were sent and never answered: nobody knows, unless they can't take anything."""
    free = calls and isinstance(executor, Metered) and executor.ceiling(ask) == _NOTHING
    return Usage(requests=calls, unsettled=0 if free else calls)


def _hopelessness(error: ExecutorError) -> int:
    """Rank by what may still come of it: a retry, other items, none."""
    order = (TransientError, InvalidOutput, RejectedError, TerminalError)
    return next((rank for rank, kind in enumerate(order) if isinstance(error, kind)), 1)
