"""One attempt: call the executor, wait while it is busy, validate the reply, re-ask, and fall back to another model."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from asyncio import CancelledError
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from sys import intern
from typing import TYPE_CHECKING

from prefect_dispatch.calls.budget import executor_name
from prefect_dispatch.calls.call_gate import CallGate
from prefect_dispatch.calls.cheap_answers import ask_cheap_model, without_valid_answer
from prefect_dispatch.errors import (
    BrokenCheckError,
    BudgetError,
    BusyError,
    ExecutorError,
    FormRefusedError,
    InvalidOutput,
    RejectedError,
    TerminalError,
    TransientError,
)
from prefect_dispatch.executors.base import Ask, BaseExecutor, CostBound, Reply, redact_value
from prefect_dispatch.executors.llm.cascade import cascade_of
from prefect_dispatch.models.cascade_decision import CascadeDecision
from prefect_dispatch.models.checks import Sources
from prefect_dispatch.models.outcome import (
    LIVE,
    Answer,
    Attempt,
    CascadeAttempt,
    Failure,
    ItemizedAttempt,
    Rejection,
    Usage,
    UsageShare,
    truncate_notes,
)
from prefect_dispatch.models.output_schema import validate_output
from prefect_dispatch.processes.program_logs import WorkOwner, collect_logs
from prefect_dispatch.security.redaction import redact, redact_item_text, safe_message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from contextlib import AbstractAsyncContextManager

    from pydantic import JsonValue

    from prefect_dispatch.calls.call_gate import GatedCall
    from prefect_dispatch.calls.prompt_prefixes import PromptPrefix
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.executors.llm.cascade import Cascade
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.checks import Check
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.limits import Limits
    from prefect_dispatch.models.outcome import Change, Citation, Step
    from prefect_dispatch.processes.program_logs import NewLog


if sys.version_info >= (3, 11):
    from asyncio import timeout as _timeout  # half the time of anyio's
else:  # pragma: no cover -- Python 3.10
    from contextlib import asynccontextmanager

    import anyio

    @asynccontextmanager
    async def _timeout(delay_s: float) -> AsyncGenerator[None, None]:
        with anyio.fail_after(delay_s):
            yield


EMPTY = "The answer was empty."
TRUNCATED = "The answer was cut off at the length limit; give a shorter one."
"""Problems that a re-ask sends back for an answer without content, and for one that the provider cut off."""


def validate_reply(brief: Brief, item: Item, reply: Reply) -> tuple[JsonValue, list[str]]:
    """Validate a reply; return its value as it would be stored, and its problems.

    Raises:
        RejectedError: If the agent declined.
        TerminalError: If a check or a validator of the user's own raises.
    """
    if reply.finish == "refused":
        text = feedback_text(reply.value).strip()
        without = "without a text, as where its provider's content filter stops it."
        raise RejectedError(f"The agent declined{f': {text[:200]!r}.' if text else f' {without}'}", kind="refused")
    if reply.finish == "truncated":
        return reply.value, [TRUNCATED]
    value, problems = _validate_value(brief, item, reply.value, reply.citations)
    return value, list(map(redact, [*problems, *reply.problems]))


def _validate_value(
    brief: Brief, item: Item, raw: JsonValue, citations: Sequence[Citation]
) -> tuple[JsonValue, list[str]]:
    """Return the validated value of an answer, and its problems: those of its form, else those that checks find."""
    if (raw is None and brief.output == "text") or (isinstance(raw, str) and not raw.strip()):
        return raw, [EMPTY]
    try:
        value, problems = validate_output(brief.output, raw)
    except (Exception, SystemExit) as error:  # a validator may be the user's; a broken one is broken for every item
        raise BrokenCheckError(f"The output's validation raised {safe_message(error)}") from error
    return value, problems or [
        problem for check in brief.checks if (problem := _run_check(check, value, item, citations))
    ]


def revalidate_stored(brief: Brief, item: Item, answer: Answer) -> tuple[JsonValue, list[str]]:
    """Validate a stored answer against the brief of today; return its value and its problems.

    A check or a pydantic model may call code that no fingerprint covers, and a store may be damaged: so a stored
    answer is validated like a new one.

    Raises:
        TerminalError: If a check of the user's own raises.
    """
    try:
        raw = redact_value(answer.value if answer.said is None else answer.said)
        return _validate_value(brief, item, raw, answer.citations)
    except ExecutorError as error:
        raise redact_item_text(error, item) from None


def invalid_output_error(problems: list[str], asked: int) -> InvalidOutput:
    """Return the error for an agent that gave no valid answer.

    Args:
        problems: The problems of its last answer.
        asked: How often it was asked.
    """
    kind = {TRUNCATED: "truncated", EMPTY: "empty"}.get(problems[0])
    shown = " ".join(problems[:5])
    return InvalidOutput(f"No valid answer in {asked} asks. {shown}", problems=problems, kind=kind)


def feedback_text(value: JsonValue) -> str:
    """Return an answer as text for a re-ask, without secrets."""
    text = value if isinstance(value, str) else json.dumps(value)
    return redact(text)


def _run_check(check: Check, value: JsonValue, item: Item, citations: Sequence[Citation]) -> str | None:
    try:
        problem = check.problem(value, item)
        return problem or (check.citation_problem(value, citations) if isinstance(check, Sources) else None)
    except BaseException as error:  # a check may be the user's function; a broken one is broken for every item
        raise BrokenCheckError(f"The check {check.kind!r} raised {safe_message(error)}") from error


CONTEXT_FILL = 0.9
"""Share of the context that a part is planned to fill: parts are equal in characters, and only roughly in tokens."""


def require_context_fits(executor: Executor, brief: Brief, item: Item) -> None:
    """Check that prompt and answer fit into the context, if the brief has a rule to split items that are too long.

    Where the executor has no token count or no context size, the call is sent, and the provider decides.

    Raises:
        RejectedError: If they don't fit; nothing was sent.
    """
    if brief.split and (excess := _context_excess(executor, brief, item)):
        raise RejectedError(
            f"Prompt and answer take about {excess[0]} tokens, and {executor_name(executor)} takes in {excess[1]}, "
            "so it was not sent.",
            kind="context_length",
            usage=Usage(),
        )


def is_too_long(executor: Executor, brief: Brief, item: Item) -> bool:
    """Return whether an item is known not to fit into the context of any of an executor's models."""
    return all(_context_excess(tier, brief, item) for tier in BaseExecutor.of(executor).fallback_chain)


def estimate_parts(executor: Executor, brief: Brief, item: Item) -> int:
    """Return the estimated number of parts in which a refused item fits: two where nothing is known of the context."""
    without_text = brief.split.part(item, "") if brief.split else item
    whole, blank = (_context_usage(executor, brief, each) for each in (item, without_text))
    if whole is None or blank is None:
        return 2
    available = blank[1] - blank[0]
    return max(2, math.ceil((whole[0] - blank[0]) / (CONTEXT_FILL * available))) if available > 0 else 2


def _context_excess(executor: Executor, brief: Brief, item: Item) -> tuple[int, int] | None:
    """Return the tokens of an ask and of the context, or None if it fits or either is unknown."""
    taken = _context_usage(executor, brief, item)
    return taken if taken and taken[0] > taken[1] else None


def _context_usage(executor: Executor, brief: Brief, item: Item) -> tuple[int, int] | None:
    """Return the tokens of an ask, its answer included, and those of the context; None where either is unknown."""
    base = BaseExecutor.of(executor)
    if (context := base.context_tokens()) is None:
        return None
    prompt, completion = base.count_tokens(brief, item), base.expected_completion_tokens(brief)
    return None if prompt is None or completion is None else (prompt + completion, context)


class Checkpoint:
    """Checkpoint of one piece of work: stores every reply as soon as it is received, until there is an answer.

    This one stores nothing.
    """

    @property
    def unanswered_calls(self) -> int:
        """Number of calls that were sent by runs that died before the response; their cost is unknown."""
        return 0

    def recovered_replies(self, tier: int) -> Sequence[Reply]:  # noqa: ARG002 -- the signature of others
        """Return the replies of an executor that a run stored before it died without an answer.

        Args:
            tier: Position of the executor in the fallback chain, from 0.
        """
        return ()

    async def mark_sent(self) -> None:
        """Record that a call is sent now."""

    async def record_reply(self, tier: int, reply: Reply | None, *, at_once: bool = True) -> None:
        """Record the result of a call.

        Args:
            tier: Position of the executor in the fallback chain, from 0.
            reply: The reply; None if the call brought none.
            at_once: Whether it is stored now, or with the next write.
        """

    async def flush(self) -> None:
        """Store recorded replies that aren't stored yet."""

    async def discard(self, *, settled: bool) -> None:
        """Discard the checkpoint of a failed attempt, whose usage is reported.

        Args:
            settled: Whether the replies are discarded, too; if not, they are kept without their usage.
        """


_NO_USAGE = Usage()
_FREE = CostBound(prompt_tokens=0, completion_tokens=0, cost_usd=0.0)

MAX_OVERTAKEN = 5
"""How often a call may be refused as too many while other calls pass: beyond that, not the provider is the cause."""


async def run_attempt(
    executor: Executor,
    brief: Brief,
    item: Item,
    *,
    limits: Limits,
    gate: CallGate | None = None,
    checkpoint: Checkpoint | None = None,
    slot: AbstractAsyncContextManager[object] | None = None,
) -> Answer:
    """Run one attempt, and return a valid answer.

    A busy provider is waited for, and an invalid answer is sent back in a re-ask. Where that doesn't help, or a call
    fails, the next executor of the fallback chain is asked, if there is one.

    Args:
        executor: The executor, with its fallbacks.
        brief: The brief.
        item: The item.
        limits: Re-asks, the time limit, and how long a busy provider is waited for.
        gate: The gate of the run, with its budget and rate limiters; a new one by default.
        checkpoint: The checkpoint in which replies are stored; nothing is stored by default.
        slot: Context manager that is entered for each call and for nothing else, such as a concurrency slot; the wait
            for it doesn't count as time of the attempt.

    Returns:
        The answer; its one attempt holds the usage of all calls.

    Raises:
        ExecutorError: If there is no valid answer: the least severe failure of the fallback chain; its attempt holds
            the usage.
    """
    checkpoint = checkpoint or Checkpoint()
    current = _Attempt(brief, item, limits, gate or CallGate(limits), checkpoint, slot or nullcontext())
    try:
        value, reply = await current.run(executor)
    except ExecutorError as error:
        await checkpoint.discard(settled=not isinstance(error, BrokenCheckError))
        error.attempts = (current.to_record(f"{error.kind}: {error}"),)
        raise error from None  # its cause may quote the item, too
    return Answer(
        value=value,
        said=reply.value if isinstance(brief.output, type) else None,
        change=reply.change,
        model=intern(reply.model),  # most answers of a run have the same
        served_model=intern(reply.served_model),
        attempts=(current.to_record(),),
        citations=reply.citations,
    )


@dataclass
class _Attempt:
    """An attempt in progress: counts its usage, its waits, its re-asks and the models that it gave up."""

    brief: Brief
    item: Item
    limits: Limits
    gate: CallGate
    checkpoint: Checkpoint
    slot: AbstractAsyncContextManager[object]
    start: float = field(default_factory=time.monotonic)
    """When its first call got its slot, moved by the waits for the slots of further calls."""
    ended: float | None = None
    """When its last call ended, and its slot was free for another attempt."""
    started: datetime | None = None
    """Time at which the first call had its slot."""
    usage: Usage = field(default_factory=Usage)
    """The usage of all calls so far."""
    shares: dict[tuple[str, str, Step], Usage] = field(default_factory=dict[tuple[str, str, "Step"], Usage])
    """The same by model, price tier and reason."""
    model: str = ""
    """The model of the last reply, as the executor names it."""
    served_model: str = ""
    """The same, as the provider names it."""
    reasks: int = 0
    waits: int = 0
    """How often a busy provider was waited for."""
    waited_s: float = 0.0
    """Seconds that its calls waited, which don't count as time of the attempt."""
    blocked_s: float = 0.0
    """Those of them in a cooldown of the provider."""
    given_up: list[Failure] = field(default_factory=list[Failure])
    """The failure of each executor of the fallback chain that was followed by another one."""
    invalid: list[Rejection] = field(default_factory=list[Rejection])
    """The answers that were not valid, by any executor."""
    notes: list[str] = field(default_factory=list[str])
    left_s: float = 0.0
    """Seconds that an executor has left for its calls; the waits between them don't count."""
    decision: CascadeDecision | None = None
    """Which model of a cascade answered, and why; None without a cascade."""
    cheap: tuple[int, ...] = ()
    """The positions of the samples of a cascade's cheap model."""

    def __post_init__(self) -> None:
        """Fill in the brief."""
        self.filled_brief = self.brief.fill_placeholders(self.item)

    def to_record(self, error: str | None = None) -> Attempt:
        """Return the record of the attempt, with the error that ended it if it failed."""
        shares = tuple(
            UsageShare(model=key[0], tier=key[1], step=key[2], usage=each) for key, each in self.shares.items()
        )
        record = Attempt(
            model=self.model,
            served_model=self.served_model,
            usage=self.usage,
            reasks=self.reasks,
            rejections=tuple(self.invalid),
            waits=self.waits,
            escalations=tuple(self.given_up),
            started=self.started or datetime.now(timezone.utc),
            seconds=round(max(0.0, (self.ended or time.monotonic()) - self.start - self.waited_s), 3),
            waited_s=round(self.waited_s, 3),
            notes=truncate_notes(tuple(self.notes)),
            error=error,
        )
        if self.decision:
            return CascadeAttempt(**dict(record), cascade=self.decision, shares=shares)
        is_uniform = self.shares.keys() <= {(self.model, LIVE, "ask")}
        return record if is_uniform else ItemizedAttempt(**dict(record), shares=shares)

    def charge(
        self, usage: Usage, executor: Executor, step: Step, model: str | None = None, price_tier: str = ""
    ) -> None:
        """Add the usage of calls.

        Args:
            usage: The usage.
            executor: The executor that was called.
            step: Why it was called.
            model: The model of its reply. None: there was no reply.
            price_tier: The price tier of its reply; empty: that of the executor.
        """
        self.usage += usage
        if usage != _NO_USAGE:
            base = BaseExecutor.of(executor)
            key = (base.model_name if model is None else model, price_tier or base.price_tier, step)
            self.shares[key] = self.shares.get(key, _NO_USAGE) + usage

    def step(self, position: int, *, is_reask: bool) -> Step:
        """Return why an executor of the fallback chain is called.

        Args:
            position: Its position; for the second sample of a cascade's cheap model, one behind the last.
            is_reask: Whether an invalid answer is sent back.
        """
        if is_reask:
            return "re-ask"
        if position in self.cheap:
            return "cascade"
        return "fallback" if position > bool(self.cheap) else "ask"

    def ask(self, rejections: Sequence[Rejection] = (), change: Change | None = None) -> Ask:
        """Return the ask for an executor.

        Args:
            rejections: Its answers that were sent back.
            change: The change of a repository that was sent back last.
        """
        return Ask(brief=self.filled_brief, item=self.item, rejections=tuple(rejections), change=change)

    async def run(self, executor: Executor) -> tuple[JsonValue, Reply]:
        """Return the first valid answer of the executor and its fallbacks, with its reply."""
        base = BaseExecutor.of(executor)
        tiers = base.fallback_chain
        cascade = cascade_of(executor)
        self.cheap = (0, len(tiers)) if cascade else ()
        unanswered = _usage_of_unanswered_calls(executor, self.ask(), self.checkpoint.unanswered_calls)
        self.charge(unanswered, executor, self.step(0, is_reask=False))
        if cascade and (answer := await self._run_cascade(cascade, tiers)):
            return answer
        return await self._run_chain(tiers, first=1 if cascade else 0)

    async def _run_cascade(self, cascade: Cascade, tiers: Sequence[Executor]) -> tuple[JsonValue, Reply] | None:
        """Ask the cheap model of a cascade; return its answer if it counts, or the compared one of the strong model.

        None: the rest of the fallback chain is to be asked.
        """
        rule = cascade.current_rule
        if rule.accept == "none" and not rule.is_measuring:
            self.decision = CascadeDecision(is_cheap=False, why="no_rule", reason=str(rule))
            return None
        # 1. No sample is paid for where the strong model could not be paid afterwards.
        if not self.checkpoint.recovered_replies(0):
            self.gate.require_budget([*[tiers[0]] * cascade.samples, tiers[1]], self.ask())
        # 2. Ask the cheap model; the replies to its second sample are stored behind those of all others.
        before, self.usage = self.usage, Usage()
        answer: tuple[JsonValue, Reply] | None = None
        try:
            async with BaseExecutor.of(tiers[0]).conversation():
                decision, answer = await ask_cheap_model(
                    cascade, rule, lambda sample: self._first_valid_answer(sample and len(tiers), tiers[0])
                )
        except ExecutorError as error:
            redact_item_text(error, self.item)
            if isinstance(error, (BudgetError, BrokenCheckError)):  # the strong model would fail with it
                raise
            self.given_up.append(Failure(kind=error.kind, message=str(error)))
            decision = without_valid_answer(rule, error)
        finally:
            cheap_usd, self.usage = self.usage.cost_usd, before + self.usage
        self.decision = decision.model_copy(update={"cheap_usd": cheap_usd})
        if decision.is_cheap or not rule.is_measuring:
            return answer if decision.is_cheap else None
        # 3. While the rule is learned, compare with the strong model's answer.
        given_up = len(self.given_up)
        strong = await self._run_chain(tiers, first=1)
        if len(self.given_up) == given_up:  # no fallback has answered in its place
            matches = answer is not None and cascade.difference(answer[0], strong[0]) is None
            self.decision = self.decision.model_copy(update={"matches": matches})
        return strong

    async def _run_chain(self, tiers: Sequence[Executor], first: int) -> tuple[JsonValue, Reply]:
        """Return the first valid answer of a fallback chain, with its reply.

        Args:
            tiers: The chain.
            first: The position of the first executor that is asked.
        """
        failures: list[ExecutorError] = []
        for position, tier in enumerate(tiers[first:], first):
            try:
                async with BaseExecutor.of(tier).conversation():
                    return await self._first_valid_answer(position, tier)
            except ExecutorError as error:  # noqa: PERF203 -- a call takes far longer
                redact_item_text(error, self.item)
                if isinstance(error, (BudgetError, BrokenCheckError)):  # every fallback would fail with it
                    raise
                failures.append(error)
                if position + 1 < len(tiers):
                    self.given_up.append(Failure(kind=error.kind, message=str(error)))
        raise min(failures, key=_error_severity)

    async def _first_valid_answer(self, position: int, tier: Executor) -> tuple[JsonValue, Reply]:
        """Return the first valid answer of one executor, with its reply; re-ask while answers are invalid."""
        recovered = iter(self.checkpoint.recovered_replies(position))
        # The user's own code may be slow, or end the process, so a reply is stored before it runs. Without any, the
        # answer is stored as soon as a checkpoint would be.
        runs_code = bool(self.brief.checks) or isinstance(self.brief.output, type)
        rejections: list[Rejection] = []
        change: Change | None = None
        self.left_s = self.limits.timeout_s
        while True:
            # 1. Take the reply from the checkpoint of a run that died, or call the executor.
            stored = next(recovered, None)
            reply = stored or await self._call_with_backoff(position, tier, self.ask(rejections, change))
            self.model, self.served_model = intern(reply.model), intern(reply.served_model)
            self.charge(reply.usage, tier, self.step(position, is_reask=bool(rejections)), self.model, reply.tier)
            self.notes += reply.notes
            if not stored:
                await self.checkpoint.record_reply(position, reply, at_once=runs_code)
            # 2. Validate it.
            value, problems = validate_reply(self.brief, self.item, reply)
            if not problems:
                return value, reply
            # 3. Send it back with its problems, if re-asks are left.
            await self.checkpoint.flush()
            rejection = Rejection(text=feedback_text(reply.value), problems=tuple(problems))
            self.invalid.append(rejection.truncated)
            if len(rejections) >= (0 if BaseExecutor.of(tier).ignores_feedback else self.limits.reasks):
                raise invalid_output_error(problems, asked=len(rejections) + 1)
            self.reasks += 1
            rejections.append(rejection)
            change = reply.change

    async def _call_with_backoff(self, position: int, tier: Executor, ask: Ask) -> Reply:
        """Return the reply to a call, which is sent again while the provider is busy."""
        if self.brief.split:  # counting tokens is slow
            await asyncio.to_thread(require_context_fits, tier, self.brief, self.item)
        prefix = await self.gate.prefixes.find(tier, executor_name(tier), self.brief)
        if prefix:
            ask = ask.model_copy(update={"is_prefix_shared": True})
        overtaken = 0
        while True:
            taken_before = self.gate.processed_calls(tier)
            call = self.gate.call(tier, ask, wait_s=max(0.0, self.limits.wait_s - self.blocked_s))
            try:
                if prefix and not prefix.is_cached:
                    return await self._send_in_order(prefix, call, tier, ask)
                return await self._send(call, tier, ask)
            except ExecutorError as error:
                self.charge(error.usage or _NO_USAGE, tier, self.step(position, is_reask=bool(ask.rejections)))
                if call.sent:
                    await self.checkpoint.record_reply(position, None)
                if isinstance(error, FormRefusedError):  # at most once for each method of structured output
                    continue
                if not isinstance(error, BusyError):
                    raise
                # That a tier without capacity takes other calls says nothing against this one.
                overtaken += error.kind != "capacity" and self.gate.processed_calls(tier) > taken_before
                if overtaken > MAX_OVERTAKEN:
                    raise
                self.waits += 1
            finally:
                self.waited_s += call.waited_s
                self.blocked_s += call.blocked_s

    async def _send_in_order(self, prefix: PromptPrefix, call: GatedCall, tier: Executor, ask: Ask) -> Reply:
        """Send a call after the first one of its brief has its answer, or as that one; return its reply."""
        # It waits without a slot, so that calls of other briefs pass.
        if not await prefix.enter():
            return await self._send(call, tier, ask)
        is_answered = False
        try:
            reply = await self._send(call, tier, ask)
            is_answered = True
            return reply
        finally:
            prefix.leave(is_answered=is_answered)

    async def _send(self, call: GatedCall, tier: Executor, ask: Ask) -> Reply:
        """Send a call when it has a slot, budget and its turn; return its reply."""
        queued = time.monotonic()
        async with self.slot:
            if self.started is None:
                self.start, self.started = time.monotonic(), datetime.now(timezone.utc)
            else:
                self.start += time.monotonic() - queued
            try:
                return await self._send_with_slot(call, tier, ask)
            finally:
                self.ended = time.monotonic()

    async def _send_with_slot(self, call: GatedCall, tier: Executor, ask: Ask) -> Reply:
        """Send a call that has a slot when it has budget and its turn; return its reply."""
        async with call:
            await self.checkpoint.mark_sent()
            sent = time.monotonic()
            with collect_logs(WorkOwner(self.brief.name, self.item.key, self.gate.run)) as logs:
                try:
                    async with _timeout(self.left_s):  # shared by all calls of an executor
                        reply = await _invoke_executor(tier, ask)
                except TimeoutError:
                    raise self._timeout_error(logs, _usage_of_unanswered_calls(tier, ask)) from None
                finally:
                    self.left_s = max(0.0, self.left_s - (time.monotonic() - sent))
            call.usage = reply.usage
            return reply

    def _timeout_error(self, logs: Sequence[NewLog], usage: Usage) -> ExecutorError:
        """Return the error of a call that timed out, with the end of what a command printed."""
        message = f"No answer within {self.limits.timeout_s:g} s."
        if end := next((log.end for log in reversed(logs) if log.end), ""):
            message += f" It printed at last: {end}"
        kind = TransientError if self.limits.retry_timeouts else RejectedError
        error = kind(message, kind="timeout", usage=usage)
        return error.add_trace(f"(all of it: {', '.join(str(log.path) for log in logs)})") if logs else error


async def _invoke_executor(executor: Executor, ask: Ask) -> Reply:
    """Call an executor once, and turn everything that it raises into an `ExecutorError` with its usage."""
    try:
        reply = await executor.answer(ask)
    except ExecutorError as error:
        error.usage = error.usage or Usage(requests=1, unsettled=int(not isinstance(error, BusyError)))
        raise
    except (CancelledError, GeneratorExit):
        raise
    except BaseException as error:  # an executor may be the user's code; its failure, even an exit, is this item's
        raise ExecutorError(safe_message(error), usage=_usage_of_unanswered_calls(executor, ask)) from error
    if not isinstance(reply, Reply):  # pyright: ignore[reportUnnecessaryIsInstance] -- an executor may be untyped
        raise TerminalError(f"The executor returned a {type(reply).__name__} instead of a Reply.")
    return reply


def _usage_of_unanswered_calls(executor: Executor, ask: Ask, calls: int = 1) -> Usage:
    """Return the usage of calls that were sent and never answered: unsettled, unless the executor's calls are free."""
    free = calls and BaseExecutor.of(executor).cost_bound(ask) == _FREE
    return Usage(requests=calls, unsettled=0 if free else calls)


def _error_severity(error: ExecutorError) -> int:
    """Return the rank of an error by its severity: a retry may help, other items may pass, nothing will."""
    order = (TransientError, InvalidOutput, RejectedError, TerminalError)
    return next((rank for rank, kind in enumerate(order) if isinstance(error, kind)), 1)
