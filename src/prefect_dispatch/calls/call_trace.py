"""OpenTelemetry span and metrics of one call of a language model.

The program that runs us configures OpenTelemetry, or doesn't: here nothing is configured, and its SDK never imported.
Telemetry only reports: whatever it raises is dropped, and never changes the call.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prefect_dispatch.errors import ExecutorError
from prefect_dispatch.executors.llm import telemetry as names
from prefect_dispatch.executors.llm.litellm_adapter import load_litellm
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.llm.messages import is_local, message_text
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.security.redaction import redact

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.metrics import Histogram, MeterProvider
    from opentelemetry.trace import Span, Tracer, TracerProvider
    from opentelemetry.util.types import AttributeValue
    from typing_extensions import Self

    from prefect_dispatch.executors.base import Ask, Executor, Reply

_log = logging.getLogger("prefect_dispatch")

SCOPE = "prefect_dispatch"
"""Name of the instrumentation scope of our spans and metrics."""

_API_MODULES = ("opentelemetry.trace", "opentelemetry.metrics")
"""Modules of the API; their own providers record nothing."""


class CallTrace:
    """Reports one call of a language model as a client span and in metrics, where OpenTelemetry is configured.

    The span is a child of the current one, that of Prefect's task run, and the current one during the call. The calls
    of other executors are not reported.

    Args:
        executor: The executor that is called.
        ask: The call.

    Attributes:
        reply: The reply, to be set before the end; None if there is none.
    """

    __slots__ = ("_ask", "_executor", "_reported", "reply")

    def __init__(self, executor: Executor, ask: Ask) -> None:
        """Report nothing yet."""
        self._executor, self._ask = executor, ask
        self._reported: _ReportedCall | None = None
        self.reply: Reply | None = None

    def __enter__(self) -> Self:
        """Start the span."""
        if isinstance(self._executor, LLM):
            tracer = histograms = None
            with _SHIELD:
                tracer = _find_tracer()
            with _SHIELD:
                histograms = _find_histograms()
            if tracer or histograms:
                with _SHIELD:
                    self._reported = _ReportedCall(self._executor, self._ask, tracer, histograms)
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End the span, and record the metrics."""
        if self._reported:
            self._reported.end(self.reply, error)


class _Shield:
    """Drops any exception."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        """Drop an exception: a tracer may be the user's, and the message may quote an answer."""
        if error:
            _log.debug("Telemetry of a call failed: %s", type(error).__name__)
        return isinstance(error, Exception)


_SHIELD = _Shield()


class _ReportedCall:
    """A call that is reported, in progress."""

    def __init__(
        self, executor: LLM, ask: Ask, tracer: Tracer | None, histograms: tuple[Histogram, Histogram] | None
    ) -> None:
        """Start the span, and make it the current one."""
        self._executor, self._histograms = executor, histograms
        provider, model = identify_model(executor.model)
        self._shared: dict[str, AttributeValue] = {
            names.OPERATION: names.CHAT,
            names.PROVIDER: provider,
            names.REQUEST_MODEL: model,
            **(describe_server(executor.api_base) if executor.api_base else {}),
        }
        """Attributes of the span and of each metric."""
        self._current: tuple[Span, Token[Context]] | None = None
        if tracer:
            with _SHIELD:
                self._start_span(tracer, ask, f"{names.CHAT} {model}")
        self._notes = names.CallNotes()
        self._token = names.current_notes.set(self._notes)
        self._start = time.perf_counter()

    def _start_span(self, tracer: Tracer, ask: Ask, name: str) -> None:
        from opentelemetry import context, trace  # noqa: PLC0415 -- imported already, as there is a tracer

        params = {
            attribute: value
            for param, attribute in names.REQUEST_PARAMS.items()
            if isinstance(value := self._executor.params.get(param), (int, float))
        }
        own: dict[str, AttributeValue] = {
            names.OUTPUT_TYPE: "text" if ask.brief.output == "text" else "json",
            names.BRIEF: ask.brief.name,
            names.STEP: ask.step,
        }
        span = tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes={**self._shared, **params, **own})
        self._current = span, context.attach(trace.set_span_in_context(span))

    def end(self, reply: Reply | None, error: BaseException | None) -> None:
        """End the span, and record the metrics.

        Args:
            reply: The reply; None if there is none.
            error: The error that ended the call; None if it has a reply.
        """
        duration_s = time.perf_counter() - self._start
        names.current_notes.reset(self._token)
        usage = (reply.usage if reply else getattr(error, "usage", None)) or Usage(unsettled=1)
        with _SHIELD:
            if self._notes.url:
                self._shared |= describe_server(self._notes.url)
            if reply and reply.served_model:
                self._shared[names.RESPONSE_MODEL] = reply.served_model
        if self._current:
            with _SHIELD:
                self._end_span(*self._current, reply, error, usage)
        if self._histograms:
            with _SHIELD:
                self._record(*self._histograms, duration_s, error, usage)

    def _end_span(
        self, span: Span, before: Token[Context], reply: Reply | None, error: BaseException | None, usage: Usage
    ) -> None:
        from opentelemetry import context, trace  # noqa: PLC0415 -- as above

        try:
            if not span.is_recording():
                return
            span.set_attributes({**self._shared, names.TIER: (reply and reply.tier) or self._executor.price_tier})
            if usage.tokens:
                span.set_attribute(names.INPUT_TOKENS, usage.prompt_tokens)
                span.set_attribute(names.OUTPUT_TOKENS, usage.completion_tokens)
            if usage.cached_tokens:
                span.set_attribute(names.CACHE_READ_TOKENS, usage.cached_tokens)
            if usage.cache_write_tokens:
                span.set_attribute(names.CACHE_WRITE_TOKENS, usage.cache_write_tokens)
            if usage.cost_usd is not None and not usage.unsettled:
                span.set_attribute(names.COST_USD, usage.cost_usd)
            if error:  # no message: it may quote the item
                span.set_attribute(names.ERROR_TYPE, _error_type(error))
                span.set_status(trace.Status(trace.StatusCode.ERROR))
            if reply:
                span.set_attribute(names.FINISH_REASONS, (names.FINISHES[reply.finish],))
            if names.captures_messages():
                span.set_attributes(_message_attributes(self._notes, reply))
        finally:
            context.detach(before)
            span.end()

    def _record(
        self, durations: Histogram, tokens: Histogram, duration_s: float, error: BaseException | None, usage: Usage
    ) -> None:
        failure = {names.ERROR_TYPE: _error_type(error)} if error else {}
        durations.record(duration_s, {**self._shared, **failure})
        if usage.tokens:
            tokens.record(usage.prompt_tokens, {**self._shared, names.TOKEN_TYPE: names.INPUT})
            tokens.record(usage.completion_tokens, {**self._shared, names.TOKEN_TYPE: names.OUTPUT})


def _find_tracer() -> Tracer | None:
    """Return our tracer; None if no provider of tracers is set."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry.trace import get_tracer_provider  # noqa: PLC0415 -- imported already, mostly by Prefect

    provider = get_tracer_provider()
    return None if type(provider).__module__.startswith(_API_MODULES) else _tracer_of(provider)


@lru_cache(maxsize=2)
def _tracer_of(provider: TracerProvider) -> Tracer:
    return provider.get_tracer(SCOPE)


def _find_histograms() -> tuple[Histogram, Histogram] | None:
    """Return the histograms of durations and of tokens; None if no provider of meters is set."""
    if "opentelemetry.metrics" not in sys.modules:
        return None
    from opentelemetry.metrics import get_meter_provider  # noqa: PLC0415 -- imported already, by the SDK

    provider = get_meter_provider()
    return None if type(provider).__module__.startswith(_API_MODULES) else _histograms_of(provider)


@lru_cache(maxsize=2)
def _histograms_of(provider: MeterProvider) -> tuple[Histogram, Histogram]:
    meter = provider.get_meter(SCOPE)
    durations = meter.create_histogram(
        names.DURATION,
        unit="s",
        description="GenAI operation duration.",
        explicit_bucket_boundaries_advisory=names.DURATION_BUCKETS_S,
    )
    tokens = meter.create_histogram(
        names.TOKEN_USAGE,
        unit="{token}",
        description="Number of input and output tokens used.",
        explicit_bucket_boundaries_advisory=names.TOKEN_BUCKETS,
    )
    return durations, tokens


@lru_cache(maxsize=256)
def identify_model(model: str) -> tuple[str, str]:
    """Return the provider of a model by the conventions, and the model's name without it."""
    if is_local(model):
        return names.LOCAL_PROVIDER, PurePath(model).name
    provider, slash, name = model.partition("/")
    if not slash:
        provider, name = str(load_litellm().get_llm_provider(model=model)[1]), model
    return names.PROVIDERS.get(provider, provider), name


def describe_server(url: str) -> dict[str, AttributeValue]:
    """Return the attributes of the server at an address."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme.lower())
    return {names.SERVER_ADDRESS: parts.hostname or "", **({names.SERVER_PORT: port} if port else {})}


def _error_type(error: BaseException) -> str:
    """Return the class of an error."""
    return error.kind if isinstance(error, ExecutorError) else type(error).__name__


def _message_attributes(notes: names.CallNotes, reply: Reply | None) -> dict[str, AttributeValue]:
    """Return the messages of a call as attributes, without secrets."""
    sent = [{"role": each["role"], "parts": [_text_part(message_text(each))]} for each in notes.messages]
    attributes: dict[str, AttributeValue] = {names.INPUT_MESSAGES: json.dumps(sent, ensure_ascii=False)}
    if reply:
        finish, text = names.FINISHES[reply.finish], str(reply.value)  # a model's reply is a text
        received = [{"role": "assistant", "parts": [_text_part(text)], "finish_reason": finish}]
        attributes[names.OUTPUT_MESSAGES] = json.dumps(received, ensure_ascii=False)
    return attributes


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "content": redact(text)}
