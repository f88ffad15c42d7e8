"""Spans and metrics of calls, where OpenTelemetry is configured: by its own SDK, with exporters into memory."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from opentelemetry import metrics as metrics_api
from opentelemetry import trace as trace_api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from prefect.settings import PREFECT_API_URL

from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.calls.call_trace import CallTrace, describe_server, identify_model
from prefect_dispatch.errors import ExecutorError
from prefect_dispatch.executors.base import Ask, Reply
from prefect_dispatch.executors.llm import telemetry as names
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.flows.dispatch import dispatch
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.testing import ScriptedExecutor
from tests.openai_server import HANG, Behaviour, failure, openai_server
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span
    from opentelemetry.trace import SpanContext

    from prefect_dispatch.models.outcome import Answer

BRIEF = Brief(name="label", instructions="Label it.")
ITEM = Item(key="letter-1", value="Dear Ms Example, the password is sk-test-0123456789.")
LIMITS = Limits(retries=0, reasks=1, timeout_s=30)
GOOD = Behaviour(content="a complaint", prompt_tokens=40, completion_tokens=7, cached_tokens=30)


METERS = "opentelemetry.metrics._internal._METER_PROVIDER"
"""Where the API keeps the provider of meters; it lets one be set only once in a process."""
CONVENTIONS = "opentelemetry.semconv"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.delenv(names.CAPTURE, raising=False)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The exporter of a provider of tracers that is set as long as the test runs."""
    exporter = InMemorySpanExporter()
    set_tracing(monkeypatch, SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> InMemoryMetricReader:
    """The reader of a provider of meters that is set as long as the test runs."""
    reader = InMemoryMetricReader()
    monkeypatch.setattr(METERS, MeterProvider([reader], shutdown_on_exit=False))
    return reader


def set_tracing(monkeypatch: pytest.MonkeyPatch, *processors: SpanProcessor, **options: Any) -> None:  # noqa: ANN401 -- the SDK's
    """Set a provider of tracers as long as the test runs; the API lets one be set only once in a process."""
    provider = TracerProvider(shutdown_on_exit=False, **options)
    for each in processors:
        provider.add_span_processor(each)
    monkeypatch.setattr(trace_api, "_TRACER_PROVIDER", provider)


def ask(llm: LLM, brief: Brief = BRIEF, limits: Limits = LIMITS) -> Answer:
    """Return the answer of one attempt."""
    return asyncio.run(run_attempt(llm, brief, ITEM, limits=limits))


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Return the attributes of a span."""
    return dict(span.attributes or {})


def histograms(reader: InMemoryMetricReader) -> dict[str, list[HistogramDataPoint]]:
    """Return the points of each histogram, by its name."""
    data = reader.get_metrics_data()
    found = (
        [each for one in data.resource_metrics for scope in one.scope_metrics for each in scope.metrics] if data else []
    )
    return {each.name: cast("list[HistogramDataPoint]", list(each.data.data_points)) for each in found}


def test_a_call_is_a_client_span_without_texts(spans: InMemorySpanExporter, meters: InMemoryMetricReader) -> None:
    """All that the conventions and we have names for, and nothing of the item or the answer."""
    with openai_server(GOOD) as server:
        llm = LLM(
            model="openai/gpt-5-mini",
            api_base=server.url,
            params={"seed": 7, "user": "me"},
            usd_per_million=(100, 1000),
        )
        assert ask(llm).value == "a complaint"
    [span] = spans.get_finished_spans()
    port = int(server.url.rpartition(":")[2].partition("/")[0])
    shared = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
        "server.address": "127.0.0.1",
        "server.port": port,
        "gen_ai.response.model": "gpt-5-mini",
    }
    assert (span.name, span.kind, span.status.status_code) == ("chat gpt-5-mini", SpanKind.CLIENT, StatusCode.UNSET)
    assert attributes(span) == {
        **shared,
        "gen_ai.request.seed": 7,
        "gen_ai.output.type": "text",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 30,
        "prefect_dispatch.brief": "label",
        "prefect_dispatch.step": "ask",
        "prefect_dispatch.tier": "live",
        "prefect_dispatch.cost_usd": pytest.approx(0.011),
    }
    points = histograms(meters)
    assert points.keys() == {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"}
    [duration] = points["gen_ai.client.operation.duration"]
    assert (duration.attributes, duration.count) == (shared, 1)
    assert duration.explicit_bounds == pytest.approx(
        [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
    )
    tokens = points["gen_ai.client.token.usage"]
    assert [(dict(each.attributes or {}), each.sum) for each in tokens] == [
        ({**shared, "gen_ai.token.type": "input"}, 40),
        ({**shared, "gen_ai.token.type": "output"}, 7),
    ]
    assert list(tokens[0].explicit_bounds) == [
        *(1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864),
    ]


@pytest.mark.parametrize("switch", ["", "false", "NO_CONTENT", "EVENT_ONLY", "yes"])
def test_texts_are_not_captured_unless_that_is_switched_on(
    switch: str, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other values of the variable are no."""
    monkeypatch.setenv(names.CAPTURE, switch)
    with openai_server(GOOD) as server:
        ask(LLM(model="openai/gpt-5-mini", api_base=server.url))
    [span] = spans.get_finished_spans()
    assert not [text for text in ("Example", "complaint", "letter-1", "Label") if text in span.to_json()]


@pytest.mark.parametrize("switch", ["true", "True", "SPAN_ONLY", "span_and_event"])
def test_captured_texts_have_no_secrets(
    switch: str, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent and what came, in the form of the conventions; how an answer ended is part of it."""
    monkeypatch.setenv(names.CAPTURE, switch)
    cut = Behaviour(content="sk-test-0123456789 is a säcret", finish_reason="length")
    with openai_server(cut) as server, suppress(ExecutorError):
        ask(LLM(model="openai/gpt-5-mini", api_base=server.url), limits=Limits(reasks=0))
    [span] = spans.get_finished_spans()
    system, user = json.loads(attributes(span)["gen_ai.input.messages"])
    assert (system["role"], user["role"]) == ("system", "user")
    assert "Label it." in system["parts"][0]["content"]
    assert "Dear Ms Example, the password is ***." in user["parts"][0]["content"]
    assert json.loads(attributes(span)["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "*** is a säcret"}],
            "finish_reason": "length",
        }
    ]


@pytest.mark.parametrize(
    ("behaviour", "timeout_s", "error"),
    [(failure(401, "Dear Ms Example"), 30, "credentials"), (HANG, 0.5, "timeout"), (failure(500), 30, "server")],
)
def test_a_failure_has_its_class_and_no_message(
    behaviour: Behaviour,
    timeout_s: float,
    error: str,
    spans: InMemorySpanExporter,
    meters: InMemoryMetricReader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A message may quote the item; without an answer there are no tokens, and what was sent may be captured."""
    monkeypatch.setenv(names.CAPTURE, "true")
    with openai_server(behaviour) as server, pytest.raises(ExecutorError) as raised:
        ask(LLM(model="openai/gpt-5-mini", api_base=server.url), limits=Limits(retries=0, timeout_s=timeout_s))
    [span] = spans.get_finished_spans()
    found = attributes(span)
    assert found["error.type"] == raised.value.kind == error
    assert (span.status.status_code, span.status.description, span.events) == (StatusCode.ERROR, None, ())
    assert "gen_ai.input.messages" in found
    assert not {"gen_ai.usage.input_tokens", "gen_ai.output.messages"} & found.keys()
    assert found.get("prefect_dispatch.cost_usd") == (None if error == "timeout" else 0)
    points = histograms(meters)
    assert [dict(each.attributes or {})["error.type"] for each in points.pop("gen_ai.client.operation.duration")] == [
        error
    ]
    assert points == {}


def test_tokens_that_a_cache_took_in_are_counted(spans: InMemorySpanExporter) -> None:
    """Some providers bill them apart; a price that nobody knows is left out."""
    with CallTrace(LLM(model="anthropic/claude-sonnet-4-5"), Ask(brief=BRIEF, item=ITEM)) as trace:
        usage = Usage(requests=1, prompt_tokens=9, cache_write_tokens=5, cost_usd=None)
        trace.reply = Reply(value="fine", tier="priority", usage=usage)
    [span] = spans.get_finished_spans()
    found = attributes(span)
    assert found["gen_ai.usage.cache_creation.input_tokens"] == 5
    assert found["prefect_dispatch.tier"] == "priority"
    assert not {"prefect_dispatch.cost_usd", "gen_ai.response.model", "server.address"} & found.keys()


def test_a_cancelled_call_has_ended(spans: InMemorySpanExporter) -> None:
    """Its span is exported, and the next one is not its child."""

    async def cancel_one() -> None:
        with openai_server(lambda _request, n: HANG if n == 1 else GOOD) as server:
            llm = LLM(model="openai/gpt-5-mini", api_base=server.url)
            call = asyncio.create_task(run_attempt(llm, BRIEF, ITEM, limits=LIMITS))
            await asyncio.to_thread(wait_until, lambda: server.count == 1, "the call is sent")
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
            await run_attempt(llm, BRIEF, ITEM, limits=LIMITS)

    asyncio.run(cancel_one())
    cancelled, answered = spans.get_finished_spans()
    assert attributes(cancelled)["error.type"] == "CancelledError"
    assert "prefect_dispatch.cost_usd" not in attributes(cancelled)
    assert "error.type" not in attributes(answered)
    assert answered.parent is None


def test_each_call_of_an_attempt_is_a_span(spans: InMemorySpanExporter) -> None:
    """With the reason why it was sent; a form that is requested is named."""
    form = Brief(name="label", instructions="Label it.", output={"type": "object", "required": ["label"]})

    def behave(request: dict[str, Any], _n: int) -> Behaviour:
        return Behaviour(content='{"label": "x"}' if request["model"] == "second" else "no JSON")

    with openai_server(behave) as server:
        llm = LLM(model="openai/first", fallbacks=("openai/second",), api_base=server.url, structured_output="prompt")
        ask(llm, form)
    found = [attributes(each) for each in spans.get_finished_spans()]
    assert [(each["gen_ai.request.model"], each["prefect_dispatch.step"]) for each in found] == [
        ("first", "ask"),
        ("first", "re-ask"),
        ("second", "fallback"),
    ]
    assert {each["gen_ai.output.type"] for each in found} == {"json"}


@pytest.mark.parametrize("idle_s", [None, 20])
def test_the_address_is_that_of_the_request(
    idle_s: float | None, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no address is stated, in calls that litellm sends, too."""
    with openai_server(GOOD) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        ask(LLM(model="gpt-4o-mini", idle_s=idle_s))
    [span] = spans.get_finished_spans()
    found = attributes(span)
    assert (found["server.address"], found["gen_ai.provider.name"]) == ("127.0.0.1", "openai")
    assert found["gen_ai.request.model"] == "gpt-4o-mini"


def test_a_call_that_could_not_be_sent_has_no_address(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it has no key."""
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ExecutorError):
        ask(LLM(model="openai/gpt-5-mini"))
    [span] = spans.get_finished_spans()
    assert attributes(span)["error.type"] == "credentials"
    assert "server.address" not in attributes(span)


class Broken(SpanProcessor, SpanExporter):
    """A processor that fails in one of its methods, or an exporter that does."""

    def __init__(self, method: str) -> None:
        """Keep the method that fails."""
        self.method = method
        self.failed = 0

    def fail(self, method: str) -> None:
        """Fail in that method."""
        if method == self.method:
            self.failed += 1
            raise RuntimeError("the tracer failed")

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Fail at the start of a span."""
        self.fail("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        """Fail at its end."""
        self.fail("on_end")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Fail where spans are sent."""
        self.fail("export")
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Do nothing."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Do nothing."""
        return True


@pytest.mark.parametrize("method", ["on_start", "on_end", "export"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_tracer_that_fails_changes_no_call(
    method: str, meters: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is the same, and the metrics are recorded."""
    broken = Broken(method)
    set_tracing(monkeypatch, SimpleSpanProcessor(broken) if method == "export" else broken)
    with openai_server(GOOD) as server:
        assert ask(LLM(model="openai/gpt-5-mini", api_base=server.url)).value == "a complaint"
    assert broken.failed == 1
    assert len(histograms(meters)["gen_ai.client.operation.duration"]) == 1
    assert not trace_api.get_current_span().is_recording()


class BrokenTracers(trace_api.TracerProvider):
    """A provider of a program's own that fails."""

    def get_tracer(self, *args: object, **named: object) -> trace_api.Tracer:
        """Fail."""
        raise RuntimeError("no tracer")


class BrokenMeters(metrics_api.MeterProvider):
    """The same for meters."""

    def get_meter(self, *args: object, **named: object) -> metrics_api.Meter:
        """Fail."""
        raise RuntimeError("no meter")


def test_a_meter_that_fails_changes_no_call(spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a span, and if no tracer can be had either, nothing."""
    monkeypatch.setattr(METERS, BrokenMeters())
    with openai_server(GOOD) as server:
        llm = LLM(model="openai/gpt-5-mini", api_base=server.url)
        assert ask(llm).value == "a complaint"
        assert len(spans.get_finished_spans()) == 1
        monkeypatch.setattr(trace_api, "_TRACER_PROVIDER", BrokenTracers())
        assert ask(llm).value == "a complaint"


def test_a_span_that_is_not_sampled_has_metrics(meters: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics count all calls."""
    exporter = InMemorySpanExporter()
    set_tracing(monkeypatch, SimpleSpanProcessor(exporter), sampler=ALWAYS_OFF)
    with openai_server(GOOD) as server:
        ask(LLM(model="openai/gpt-5-mini", api_base=server.url))
    assert exporter.get_finished_spans() == ()
    assert len(histograms(meters)["gen_ai.client.operation.duration"]) == 1


def test_metrics_need_no_tracer(meters: InMemoryMetricReader) -> None:
    """Each is configured apart."""
    with openai_server(GOOD) as server:
        ask(LLM(model="openai/gpt-5-mini", api_base=server.url))
    assert len(histograms(meters)["gen_ai.client.operation.duration"]) == 1


def test_other_executors_are_not_reported(spans: InMemorySpanExporter) -> None:
    """A call of them need not be one of a model."""
    asyncio.run(run_attempt(ScriptedExecutor({"letter-1": "yes"}), BRIEF, ITEM, limits=LIMITS))
    assert spans.get_finished_spans() == ()


def test_without_the_api_nothing_is_reported(
    spans: InMemorySpanExporter, meters: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing has imported it, nothing can be configured."""
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    monkeypatch.delitem(sys.modules, "opentelemetry.metrics")
    with CallTrace(LLM(model="openai/gpt-5-mini"), Ask(brief=BRIEF, item=ITEM)):
        pass
    assert spans.get_finished_spans() == ()
    assert histograms(meters) == {}


def test_a_run_without_a_configuration_imports_no_telemetry() -> None:
    """Not even the metrics of the API, which Prefect doesn't import; of the SDK nothing."""
    program = (
        "import sys, prefect.task_engine\n"
        "from prefect_dispatch import Brief, LLM\n"
        "from prefect_dispatch.calls.call_trace import CallTrace\n"
        "from prefect_dispatch.executors.base import Ask\n"
        "from prefect_dispatch.models.item import Item\n"
        "ask = Ask(brief=Brief(name='a', instructions='Do it.'), item=Item(key='a', value='b'))\n"
        "with CallTrace(LLM(model='openai/gpt-5-mini'), ask):\n"
        "    pass\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.metrics'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603 -- our own program
    assert done.stdout.strip() == "[]"


def test_the_names_are_those_of_the_conventions() -> None:
    """As the installed package has them; another one that renames or drops one of ours fails here."""
    attributes: Any = import_module(f"{CONVENTIONS}._incubating.attributes.gen_ai_attributes")
    stable = (f"{CONVENTIONS}.attributes.error_attributes", f"{CONVENTIONS}.attributes.server_attributes")
    modules = map(import_module, (attributes.__name__, f"{CONVENTIONS}._incubating.metrics.gen_ai_metrics", *stable))
    known = {value for module in modules for name, value in vars(module).items() if name.isupper()}
    constants = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    ours = {each for each in constants if each.startswith(("gen_ai.", "error.", "server."))}
    assert len(ours) == 18
    assert ours | set(names.REQUEST_PARAMS.values()) <= known
    assert attributes.GenAiOperationNameValues.CHAT.value == names.CHAT
    providers = {each.value for each in attributes.GenAiProviderNameValues}
    assert set(names.PROVIDERS.values()) <= providers


@pytest.mark.parametrize(
    ("model", "provider", "name"),
    [
        ("openai/gpt-5-mini", "openai", "gpt-5-mini"),
        ("gpt-4o", "openai", "gpt-4o"),
        ("azure/mine", "azure.ai.openai", "mine"),
        ("gemini/gemini-2.5-flash", "gcp.gemini", "gemini-2.5-flash"),
        ("together_ai/meta-llama/Llama-3", "together_ai", "meta-llama/Llama-3"),
        ("local/smollm2", "llama.cpp", "smollm2"),
        ("local//home/me/models/own.gguf", "llama.cpp", "own.gguf"),
    ],
)
def test_a_model_has_a_provider_and_a_name(model: str, provider: str, name: str) -> None:
    """The provider by the conventions, else by litellm; of a file only its name."""
    assert identify_model(model) == (provider, name)


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("https://me:secret@api.example.org/v1?key=1", {"server.address": "api.example.org", "server.port": 443}),
        ("http://127.0.0.1:8080/v1", {"server.address": "127.0.0.1", "server.port": 8080}),
        ("ws://example.org", {"server.address": "example.org"}),
    ],
)
def test_an_address_has_no_secret(url: str, server: dict[str, object]) -> None:
    """Only its host and port."""
    assert describe_server(url) == server


def ids(span: ReadableSpan) -> SpanContext:
    """Return the ids of a span."""
    found: SpanContext | None = span.context
    assert found
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(("items", "task"), [(3, "run-brief"), (205, "run-shard")])
def test_spans_stand_under_those_of_prefect(items: int, task: str, spans: InMemorySpanExporter) -> None:
    """Each call under its task run, each task run under the flow run, all in one trace."""
    with openai_server(GOOD) as server:
        llm = LLM(model="openai/gpt-5-mini", api_base=server.url)
        report = dispatch([BRIEF], [f"letter {number}" for number in range(items)], executor=llm, limits=LIMITS)
    assert report.status == "complete"
    wait_until(lambda: any(each.parent is None for each in spans.get_finished_spans()), "the run ends")
    by_id = {ids(each).span_id: each for each in spans.get_finished_spans()}
    calls = [each for each in by_id.values() if each.name == "chat gpt-5-mini"]
    assert len(calls) == items
    for call in calls:
        assert call.parent
        above = by_id[call.parent.span_id]
        assert attributes(above)["prefect.run.type"] == "task"
        assert ("items" in above.name) is (task == "run-shard")
        assert above.parent
        assert attributes(by_id[above.parent.span_id])["prefect.run.type"] == "flow"
    assert len({ids(each).trace_id for each in by_id.values()}) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_the_extra_is_all_that_a_run_needs(tmp_path: Path) -> None:
    """Started by OpenTelemetry's own command, a run of the command line has exported everything when it ends."""
    commands = Path(sys.executable).parent
    variables = {
        "OPENAI_API_KEY": "sk-test-0123456789",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_METRIC_EXPORT_INTERVAL": "600000",  # in milliseconds: once, at the end
        "OTEL_METRICS_EXPORTER": "console",
        "OTEL_TRACES_EXPORTER": "console",
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_HOME": str(tmp_path / "home"),
    }
    with openai_server(GOOD) as server:
        job = {
            "flow": "dispatch",
            "briefs": [{"name": "label", "instructions": "Label it."}],
            "items": ["letter one", "letter two"],
            "executor": {"kind": "llm", "model": "openai/gpt-5-mini", "api_base": server.url},
        }
        (tmp_path / "job.yaml").write_text(json.dumps(job))
        done = subprocess.run(  # noqa: S603 -- our own program
            [commands / "opentelemetry-instrument", commands / "prefect-dispatch", "run", "job.yaml"],
            cwd=tmp_path,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.count('"name": "chat gpt-5-mini"') == 2
    assert done.stdout.count('"name": "gen_ai.client.token.usage"') == 1
