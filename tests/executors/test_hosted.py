"""Hosted providers are asked without litellm's wrapper: the same request goes out, and the response means the same."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch.errors import BusyError, ExecutorError, RejectedError, TerminalError
from prefect_dispatch.executors.base import Ask, Reply
from prefect_dispatch.executors.llm import hosted_providers
from prefect_dispatch.executors.llm.hosted_providers import find_route
from prefect_dispatch.executors.llm.litellm_adapter import load_litellm
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.outcome import Rejection
from tests.openai_server import openai_server

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

BRIEF = Brief(name="sum", instructions="Sum it up.", constraints=("Be short.",))
RECORD = Brief(
    name="rec",
    instructions="Give it.",
    output={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
)
ITEM = Item(key="a", value='One document, déjà vu: "a\\b"\n\U0001f600')
BY_LITELLM = ("SSL_VERIFY", "true")
"""A variable with which litellm sends in another way, so that it is asked, and which changes nothing here."""

MODELS = {
    "openai": "openai/gpt-4o-mini",
    "azure": "azure/gpt-4o",
    "groq": "groq/llama-3.3-70b-versatile",
    "mistral": "mistral/mistral-large-latest",
    "deepseek": "deepseek/deepseek-chat",
    "openrouter": "openrouter/openai/gpt-4o",
    "together": "together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "xai": "xai/grok-4",
    "fireworks": "fireworks_ai/accounts/fireworks/models/llama-v3p1-8b-instruct",
    "anthropic": "anthropic/claude-sonnet-4-5",
    "gemini": "gemini/gemini-2.5-pro",
    "cohere": "cohere/command-a-03-2025",
}
every_provider = pytest.mark.parametrize("name", list(MODELS))
KEYS = ("OPENAI", "AZURE", "GROQ", "MISTRAL", "DEEPSEEK", "OPENROUTER", "TOGETHERAI", "TOGETHER_AI", "XAI")
MORE_KEYS = ("FIREWORKS", "FIREWORKS_AI", "ANTHROPIC", "GEMINI", "COHERE")


class Response(NamedTuple):
    """A provider's response."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = {}


class Request(NamedTuple):
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: Any


class Provider:
    """A server that answers every request with one response.

    Attributes:
        url: Its address.
        response: The response.
        requests: The requests so far.
    """

    def __init__(self) -> None:
        """Start with nothing asked."""
        self.url = ""
        self.response = Response({})
        self.requests: list[Request] = []

    def add_route(self, app: web.Application) -> None:
        """Add the paths of a server that are answered."""
        app.router.add_route("*", "/hosted/{path:.*}", self.handle)

    async def handle(self, request: web.Request) -> web.Response:
        """Answer a request."""
        skipped = {"connection", "content-length"}
        headers = {name.lower(): value for name, value in request.headers.items() if name.lower() not in skipped}
        self.requests.append(Request(request.path_qs, headers, await request.json()))
        body, status, more = self.response
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(body=content, status=status, headers={"Content-Type": "application/json", **more})

    def executor(self, name: str, **fields: Any) -> LLM:  # noqa: ANN401 -- the executor's
        """Return an executor that asks this server; OpenAI's address is in the environment, as in `_environment`."""
        whole = {"cohere": f"{self.url}/v2/chat"}  # litellm takes Cohere's address as it is
        more = {} if name == "openai" else {"api_base": whole.get(name, self.url)}
        return LLM(model=MODELS[name], **more, **fields)


@pytest.fixture(name="provider")
def _provider(monkeypatch: pytest.MonkeyPatch) -> Generator[Provider]:
    provider = Provider()

    for name in (*KEYS, *MORE_KEYS):
        monkeypatch.setenv(f"{name}_API_KEY", "sk-test-0123456789")
    monkeypatch.setenv("AZURE_API_VERSION", "2024-10-21")
    with openai_server(routes=provider.add_route) as server:
        provider.url = server.url.replace("/v1", "/hosted")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
        yield provider


def ask(executor: LLM, brief: Brief = BRIEF, rejections: tuple[Rejection, ...] = ()) -> Reply:
    """Ask once."""
    return asyncio.run(executor.answer(Ask(brief=brief, item=ITEM, rejections=rejections)))


def outcome(executor: LLM, brief: Brief = BRIEF) -> tuple[Any, ...]:
    """Return the parts of a reply, or of an error, that must be the same."""
    try:
        reply = ask(executor, brief)
    except ExecutorError as error:
        return type(error), error.kind, getattr(error, "retry_after_s", None), error.usage
    return reply.value, reply.finish, reply.model, reply.served_model, reply.usage


def require_equal(provider: Provider, name: str, response: Response, brief: Brief = BRIEF) -> tuple[Any, ...]:
    """Ask with and without litellm's wrapper, compare requests and outcomes, and return the outcome."""
    provider.response = response
    provider.requests.clear()
    # A tool isn't requested of Cohere, nor a schema: litellm refuses both for it.
    method = "json_schema" if brief is RECORD and name != "cohere" else "auto"
    executor = provider.executor(name, structured_output=method)
    here = outcome(executor, brief)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*BY_LITELLM)
        assert here == outcome(executor, brief)
    ours, theirs = provider.requests
    # The hooks ask for the same codings in litellm's own requests.
    assert ours == theirs
    return here


def arguments(executor: LLM, **more: Any) -> dict[str, Any]:  # noqa: ANN401 -- of `acompletion`
    """Return the arguments of a call."""
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Sum it up."}]
    target = {"model": executor.model, "api_base": executor.api_base, "messages": chat}
    return {**target, "num_retries": 0, "max_retries": 0, **more}


def is_direct(executor: LLM, **more: Any) -> bool:  # noqa: ANN401 -- as above
    """Return whether calls of an executor are sent without litellm's wrapper."""
    return asyncio.run(find_route(load_litellm(), arguments(executor, **more))) is not None


def chat(message: Mapping[str, Any] | None = None, finish: str | None = "stop", **more: Any) -> Response:  # noqa: ANN401 -- JSON
    """Return a response of OpenAI's protocol, as recorded."""
    details = {"cached_tokens": 8, "audio_tokens": 0}
    answer = {"reasoning_tokens": 3, "audio_tokens": 0, "accepted_prediction_tokens": 0}
    usage = {"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27}
    usage_details = {"prompt_tokens_details": details, "completion_tokens_details": answer}
    fields: dict[str, Any] = {
        "role": "assistant",
        "content": '{"a": 1}',
        "refusal": None,
        "annotations": [],
        **(message or {}),
    }
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1750000000,
        "model": "gpt-4o-mini-2024-07-18",
        "system_fingerprint": "fp_1",
        "service_tier": "default",
        "choices": [{"index": 0, "logprobs": None, "finish_reason": finish, "message": fields}],
        "usage": {**usage, **usage_details},
        **more,
    }
    return Response({key: value for key, value in body.items() if value is not None})


def claude(content: list[dict[str, Any]] | None = None, stop: str = "end_turn", **more: Any) -> Response:  # noqa: ANN401 -- JSON
    """Return a response of Anthropic's protocol, as recorded."""
    cached = {"cache_creation_input_tokens": 5, "cache_read_input_tokens": 11, "service_tier": "standard"}
    text = [{"type": "text", "text": '{"a": 1}'}]
    return Response(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-sonnet-4-5-20250929",
            "content": text if content is None else content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": 20, "output_tokens": 7, **cached},
            **more,
        }
    )


def gemini(parts: list[dict[str, Any]] | None = None, finish: str = "STOP", **more: Any) -> Response:  # noqa: ANN401 -- JSON
    """Return a response of Gemini's protocol, as recorded."""
    content = {"parts": [{"text": '{"a": 1}'}] if parts is None else parts, "role": "model"}
    counts = {"promptTokenCount": 20, "candidatesTokenCount": 7, "totalTokenCount": 37, "thoughtsTokenCount": 10}
    cached = {"cachedContentTokenCount": 8, "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 8}]}
    return Response(
        {
            "candidates": [{"content": content, "finishReason": finish, "index": 0, "avgLogprobs": -0.1}],
            "usageMetadata": {**counts, **cached},
            "modelVersion": "gemini-2.5-pro",
            "responseId": "r1",
            **more,
        }
    )


def cohere(content: list[dict[str, Any]] | None = None, finish: str = "COMPLETE", **message: Any) -> Response:  # noqa: ANN401 -- JSON
    """Return a response of Cohere's protocol, as recorded."""
    text = [{"type": "text", "text": '{"a": 1}'}]
    units = {
        "billed_units": {"input_tokens": 20, "output_tokens": 7},
        "tokens": {"input_tokens": 25, "output_tokens": 7},
    }
    said = {"role": "assistant", "content": text if content is None else content, **message}
    return Response({"id": "c1", "finish_reason": finish, "message": said, "usage": units})


def plain(name: str) -> Response:
    """Return a good response of a provider."""
    return {"anthropic": claude, "gemini": gemini, "cohere": cohere}.get(name, chat)()


def tool(name: str) -> dict[str, Any]:
    """Return a message that calls a tool."""
    function = {"name": name, "arguments": '{"a": 1}'}
    return {"content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]}


CHATS = (
    *(chat(), chat({"content": None}), chat({"content": None, "refusal": "I won't."}), chat(finish="length")),
    *(chat({"content": ""}, finish="content_filter"), chat(finish="eos"), chat({"reasoning_content": "Well."})),
    *(chat({"reasoning": "Well."}), chat({"content": "<think>Well.</think>Fine."}), chat(usage=None)),
    *(chat(tool("answer"), finish="tool_calls"), chat(tool("json_tool_call"), finish="tool_calls")),
    *(chat(usage={"prompt_tokens": -3, "completion_tokens": 2}), chat(choices=[]), chat(error={"message": "no"})),
    chat(usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "cost": 0.0123}, provider="OpenAI"),
    *(Response({}), Response(b'{"choices": [{"mess'), Response({"error": {"message": "busy", "code": 503}})),
)
CLAUDES = (
    *(claude(), claude([]), claude([], "refusal"), claude(stop="max_tokens"), claude(stop="pause_turn")),
    claude([{"type": "thinking", "thinking": "hm", "signature": "abc"}, {"type": "text", "text": "fine"}]),
    claude([{"type": "tool_use", "id": "t1", "name": "json_tool_call", "input": {"a": 1}}], "tool_use"),
    claude([{"type": "tool_use", "id": "t1", "name": "answer", "input": {"a": 1}}], "tool_use"),
    claude([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
    *(Response({}), Response([]), Response(b'{"content": ['), claude(usage=None)),
    Response({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
)
GEMINIS = (
    *(gemini(), gemini(finish="MAX_TOKENS"), gemini(finish="RECITATION"), gemini(finish="SAFETY"), gemini([])),
    gemini([{"text": "hm", "thought": True}, {"text": "fine", "thoughtSignature": "QUJD"}]),
    gemini([{"functionCall": {"name": "answer", "args": {"a": 1}}}]),
    gemini(candidates=[], promptFeedback={"blockReason": "PROHIBITED_CONTENT"}),
    *(gemini(usageMetadata=None), Response({}), Response([]), Response(b'{"candidates": [')),
    Response({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}),
)
COHERES = (
    *(cohere(), cohere(finish="MAX_TOKENS"), cohere(finish="STOP_SEQUENCE"), cohere(finish="ERROR")),
    cohere([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "fine"}]),
    cohere([], "TOOL_CALL", tool_calls=tool("answer")["tool_calls"], tool_plan="I will"),
    *(Response({}), Response([]), Response(b'{"message": ')),
)
RESPONSES = {"anthropic": CLAUDES, "gemini": GEMINIS, "cohere": COHERES}


@every_provider
@pytest.mark.parametrize("brief", [BRIEF, RECORD], ids=["text", "schema"])
def test_request_and_reply_are_litellms(provider: Provider, name: str, brief: Brief) -> None:
    """The same path, headers and body reach the provider, and the same reply comes back, cost included."""
    value, finish, model, served, usage = require_equal(provider, name, plain(name), brief)
    assert (value, finish, model) == ('{"a": 1}', "complete", MODELS[name])
    assert served == plain(name).body.get("model", plain(name).body.get("modelVersion", ""))
    assert usage.requests == 1
    assert usage.prompt_tokens
    assert is_direct(provider.executor(name))


@pytest.mark.parametrize("name", ["openai", "mistral", "anthropic", "gemini", "cohere"])
def test_chat_with_rejected_answers_is_litellms(provider: Provider, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A re-ask has more messages; texts with spaces at their ends arrive as litellm sends them."""
    rejections = tuple(Rejection(text=text, problems=("No number.",)) for text in (' "x" \n', "wörd", ""))
    provider.response = plain(name)
    executor = provider.executor(name, params={"temperature": 0.5, "max_tokens": 50})
    here = ask(executor, rejections=rejections)
    monkeypatch.setenv(*BY_LITELLM)
    assert here == ask(executor, rejections=rejections)
    ours, theirs = provider.requests
    assert ours == theirs


@pytest.mark.slow
@every_provider
def test_responses_mean_the_same(provider: Provider, name: str) -> None:
    """Thoughts, tools, refusals, ends of all kinds, implausible usage, malformed bodies."""
    for brief in (BRIEF, RECORD) if name in {"openai", "groq", "anthropic", "gemini"} else (BRIEF,):
        for response in RESPONSES.get(name, CHATS):
            if not (name == "azure" and response.body == {}):
                require_equal(provider, name, response, brief)


texts = st.sampled_from(["", " ", "fine", '{"a": 1}', "<think>hm</think>x", "déjà\u2028vu", "line\nline", "\U0001f600"])
counts = st.integers(0, 5_000_000)


@st.composite
def chats(draw: st.DrawFn) -> Response:
    """Draw a response of OpenAI's protocol."""
    sent, got, cached, thought = (draw(counts) for _ in range(4))
    reasoning = draw(st.none() | texts)
    return chat(
        {"content": draw(st.none() | texts), **({} if reasoning is None else {"reasoning_content": reasoning})},
        draw(st.sampled_from(["stop", "length", "content_filter", "tool_calls", "eos", "unknown"])),
        usage={
            "prompt_tokens": sent + cached,
            "completion_tokens": got + thought,
            "total_tokens": sent + cached + got + thought,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": thought},
        },
    )


@st.composite
def claudes(draw: st.DrawFn) -> Response:
    """Draw a response of Anthropic's protocol."""
    stops = ["end_turn", "max_tokens", "stop_sequence", "refusal", "tool_use", "pause_turn"]
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens")
    return claude(
        [{"type": "text", "text": text} for text in draw(st.lists(texts, max_size=3))],
        draw(st.sampled_from(stops)),
        usage={name: draw(counts) for name in names},
    )


@st.composite
def geminis(draw: st.DrawFn) -> Response:
    """Draw a response of Gemini's protocol."""
    finishes = ["STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "OTHER", "LANGUAGE", "PROHIBITED_CONTENT"]
    names = ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
    usage = {name: draw(counts) for name in names}
    return gemini(
        [{"text": text, "thought": draw(st.booleans())} for text in draw(st.lists(texts, max_size=3))],
        draw(st.sampled_from(finishes)),
        usageMetadata={**usage, "totalTokenCount": sum(usage.values())},
    )


@st.composite
def coheres(draw: st.DrawFn) -> Response:
    """Draw a response of Cohere's protocol."""
    finishes = ["COMPLETE", "MAX_TOKENS", "STOP_SEQUENCE", "ERROR", "TIMEOUT"]
    parts = [{"type": "text", "text": text} for text in draw(st.lists(texts, max_size=3))]
    return cohere(parts, draw(st.sampled_from(finishes)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "responses"),
    [
        *((name, chats()) for name in ("openai", "azure", "groq", "openrouter")),
        *(("anthropic", claudes()), ("gemini", geminis()), ("cohere", coheres())),
    ],
    ids=["openai", "azure", "groq", "openrouter", "anthropic", "gemini", "cohere"],
)
def test_any_response_means_the_same(provider: Provider, name: str, responses: st.SearchStrategy[Response]) -> None:
    """Content, finish, usage, cost and served model of responses that hypothesis chooses."""

    @settings(max_examples=20, database=None)
    @given(response=responses)
    def check(response: Response) -> None:
        require_equal(provider, name, response)

    check()


def oa(message: str, status: int = 400, wait: str = "", **more: object) -> Response:
    """Return an error response of OpenAI's protocol."""
    fields = {"message": message, "type": None, "param": None, "code": None, **more}
    return Response({"error": fields}, status, {"retry-after": wait} if wait else {})


def an(kind: str, message: str, status: int = 400, wait: str = "") -> Response:
    """Return an error response of Anthropic's protocol."""
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return Response(body, status, {"retry-after": wait} if wait else {})


def ge(kind: str, message: str, status: int = 400) -> Response:
    """Return an error response of Gemini's protocol."""
    return Response({"error": {"code": status, "message": message, "status": kind}}, status)


def co(message: str, status: int = 400, wait: str = "") -> Response:
    """Return an error response of Cohere's protocol."""
    return Response({"message": message}, status, {"retry-after": wait} if wait else {})


PAGE = Response(b"<html><h1>502 Bad Gateway</h1></html>", 502, {"Content-Type": "text/html"})
OPENAI_ERRORS = (
    oa("Incorrect API key provided", 401, code="invalid_api_key"),
    oa("Rate limit reached", 429, "3", code="rate_limit_exceeded"),
    oa("You exceeded your current quota", 429, type="insufficient_quota", code="insufficient_quota"),
    oa("This model's maximum context length is 128000 tokens.", code="context_length_exceeded", param="messages"),
    oa("Unsupported parameter: 'temperature'", code="unsupported_parameter", param="temperature"),
    oa("Invalid schema for response_format 'answer'", param="response_format"),
    oa("The prompt triggered Azure OpenAI's content management policy.", code="content_filter", param="prompt"),
    oa("The model `x` does not exist", 404, code="model_not_found"),
    oa("The server had an error", 500),
    oa("overloaded", 503, "2"),
    *(oa("too large", 413), oa("conflict", 409), oa("Insufficient Balance", 402), oa("no", 403)),
    *(PAGE, Response(b"slow", 504), Response({"error": "words"}, 400), Response([], 400), Response(b"", 529)),
)
ERRORS = {
    "anthropic": (
        *(an("authentication_error", "invalid x-api-key", 401), an("not_found_error", "model: x", 404)),
        *(an("rate_limit_error", "exceeds your rate limit", 429, "7"), an("overloaded_error", "Overloaded", 529)),
        an("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
        an("invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
        an("invalid_request_error", "Output blocked by content filtering policy"),
        *(
            an("request_too_large", "too large", 413),
            an("api_error", "Internal", 500),
            an("timeout_error", "late", 504),
        ),
        *(PAGE, Response(b"nope", 400), an("api_error", "unavailable", 503, "1")),
    ),
    "gemini": (
        ge("INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."),
        ge("INVALID_ARGUMENT", "The input token count (12) exceeds the maximum number of tokens allowed (10)."),
        *(ge("NOT_FOUND", "models/x is not found", 404), ge("PERMISSION_DENIED", "leaked", 403)),
        *(ge("RESOURCE_EXHAUSTED", "You exceeded your current quota", 429), ge("INTERNAL", "An error", 500)),
        *(ge("UNAVAILABLE", "The model is overloaded.", 503), ge("DEADLINE_EXCEEDED", "late", 504), PAGE),
        *(Response(b"nope", 400), Response([], 400)),
    ),
    "cohere": (
        *(co("invalid api token", 401), co("You are using a Trial key", 429, "2"), co("blocked", 498)),
        co("too many tokens: total number of tokens in the prompt cannot exceed 128000"),
        *(co("invalid request"), co("model 'x' not found", 404), co("internal server error", 500), co("no", 503)),
        *(co("unprocessable", 422), co("pay", 402), Response(b"", 504)),
    ),
}


@pytest.mark.slow
@every_provider
def test_errors_mean_the_same(provider: Provider, name: str) -> None:
    """The same class, kind, wait and account of what was spent, whoever sends."""
    for response in ERRORS.get(name, OPENAI_ERRORS):
        require_equal(provider, name, response)


@pytest.mark.parametrize(
    ("name", "response", "error", "kind"),
    [
        ("groq", oa("Rate limit reached", 429, "3"), BusyError, "rate_limit"),
        ("openai", oa("No key", 401, code="invalid_api_key"), TerminalError, "credentials"),
        ("anthropic", ERRORS["anthropic"][3], BusyError, "overloaded"),
        ("anthropic", ERRORS["anthropic"][4], RejectedError, "context_length"),
        ("gemini", ERRORS["gemini"][0], TerminalError, "credentials"),
        ("gemini", ERRORS["gemini"][1], RejectedError, "context_length"),
        ("cohere", ERRORS["cohere"][3], RejectedError, "context_length"),
    ],
)
def test_errors_are_litellms(
    provider: Provider, name: str, response: Response, error: type[ExecutorError], kind: str
) -> None:
    """Errors of each protocol have the class that the run's reaction depends on."""
    assert require_equal(provider, name, response)[:2] == (error, kind)


def equal_text(_at: int) -> str:
    """Return the same placeholder for every message."""
    return "text"


def test_calls_are_left_to_litellm(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other providers and protocols, parameters and settings that make litellm do more, credentials that expire."""
    litellm = load_litellm()
    executor = provider.executor("anthropic")
    assert is_direct(executor)
    assert not is_direct(executor, web_search_options={})
    assert not is_direct(executor, messages=[{"role": "user", "content": " "}])
    assert not is_direct(executor, tool_choice={"no": "choice"}, tools="no tools")
    assert not is_direct(LLM(model="openai/gpt-5-pro"))
    assert not is_direct(LLM(model="perplexity/sonar", api_base=provider.url), api_key="x")
    assert not is_direct(LLM(model="nobody/model"))
    with monkeypatch.context() as patch:
        patch.setattr(litellm, "success_callback", ["langfuse"])
        assert not is_direct(executor)
    with monkeypatch.context() as patch:
        patch.setattr(litellm, "ssl_verify", False)
        assert not is_direct(executor)
    # Azure's tokens of Entra expire.
    with monkeypatch.context() as patch:
        patch.delenv("AZURE_API_KEY")
        assert not is_direct(provider.executor("azure"), api_key=None)
    # Whatever litellm makes of another version: a class that converts in another way, a text that can't be found.
    with monkeypatch.context() as patch:
        patch.setitem(hosted_providers.PROTOCOLS, "anthropic", ("/v1/messages", {"content": []}))
        assert not is_direct(executor, temperature=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(hosted_providers, "_placeholder", equal_text)
        assert not is_direct(executor, temperature=0.2)
    with monkeypatch.context() as patch:
        sample = {**claude().body, "content": [{"type": "text", "text": "another"}]}
        patch.setitem(hosted_providers.PROTOCOLS, "anthropic", ("/v1/messages", sample))
        assert not is_direct(executor, temperature=0.3)
    with monkeypatch.context() as patch:
        patch.setitem(hosted_providers.PROTOCOLS, "anthropic", ("/v2/messages", claude().body))
        assert not is_direct(executor, temperature=0.5)
    assert not provider.requests


def test_what_is_left_to_litellm_is_answered(provider: Provider) -> None:
    """A chat with a blank text is answered all the same."""
    provider.response = claude()
    assert ask(provider.executor("anthropic"), rejections=(Rejection(text=" ", problems=("No.",)),)).value == '{"a": 1}'


def test_key_is_part_of_a_route(provider: Provider) -> None:
    """Each key is sent for its own calls alone, and none once it is another."""
    route = asyncio.run(find_route(load_litellm(), arguments(provider.executor("anthropic"), api_key="first")))
    other = asyncio.run(find_route(load_litellm(), arguments(provider.executor("anthropic"), api_key="second")))
    assert route
    assert other
    assert (route.headers["x-api-key"], other.headers["x-api-key"]) == ("first", "second")


def test_a_route_is_learned_once(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many calls at once have litellm build one request, and routes that are many are forgotten."""
    litellm = load_litellm()
    built: list[str] = []
    build: Any = litellm.acompletion

    async def count(**request: Any) -> Any:  # noqa: ANN401 -- litellm's
        built.append(request["model"])
        return await build(**request)

    async def ask_all() -> list[Reply]:
        return await asyncio.gather(*(executor.answer(Ask(brief=BRIEF, item=ITEM)) for _ in range(30)))

    monkeypatch.setattr(litellm, "acompletion", count)
    monkeypatch.setattr(hosted_providers, "MAX_ROUTES", 1)
    provider.response, executor = claude(), provider.executor("anthropic", params={"temperature": 0.7})
    assert {str(reply.value) for reply in asyncio.run(ask_all())} == {'{"a": 1}'}
    assert (len(built), len(provider.requests)) == (1, 30)
    # There is only one place, so that another route takes it.
    assert is_direct(provider.executor("groq"))
    assert asyncio.run(executor.answer(Ask(brief=BRIEF, item=ITEM))).value == '{"a": 1}'
    assert len(built) == 3


def test_conversion_that_breaks_leaves_the_model_to_litellm(provider: Provider) -> None:
    """Another version's class may need what isn't given here: only one call is lost."""
    executor = provider.executor("anthropic", params={"temperature": 0.9})
    here = require_equal(provider, "anthropic", claude(content=[{"type": "text"}]))
    assert here[0] in {ExecutorError, RejectedError} or here[1] in {"server", "malformed", "error"}
    provider.response = claude()
    assert ask(executor).value == '{"a": 1}'


def test_request_that_is_not_captured_is_noticed(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of litellm that sends in another way is left alone."""
    litellm = load_litellm()

    async def answer(**_request: Any) -> str:  # noqa: ANN401 -- litellm's
        return "answered"

    monkeypatch.setattr(litellm, "acompletion", answer)
    assert not is_direct(provider.executor("xai"), temperature=0.4)


@every_provider
def test_a_response_that_is_no_object_is_an_error(provider: Provider, name: str) -> None:
    """Whichever class would convert it."""
    provider.response = plain(name)
    executor = provider.executor(name)
    ask(executor)
    provider.response = Response([1])
    with pytest.raises(ExecutorError):
        ask(executor)


def test_half_a_character_is_sent_escaped(provider: Provider) -> None:
    """A lone surrogate can't be encoded."""
    provider.response = chat()
    executor = provider.executor("openai")
    ask(executor)
    ask(executor, rejections=(Rejection(text="half \ud83d of it", problems=("It is cut.",)),))
    assert "half \ud83d of it" in json.dumps(provider.requests[-1].body, ensure_ascii=False)


def test_the_authorities_are_litellms() -> None:
    """Of providers with a certificate."""
    assert hosted_providers.tls_settings("http://127.0.0.1") is True
    assert hosted_providers.tls_settings("https://api.example") not in (None, False)


@pytest.mark.slow
def test_no_other_address_is_asked() -> None:
    """The first call of a process opens connections to the provider alone, and looks up no name."""
    script = (
        "import asyncio, sys\n"
        "asked = []\n"
        "events = 'socket.connect', 'socket.getaddrinfo'\n"
        "sys.addaudithook(lambda event, args: event in events and asked.append(args))\n"
        "from prefect_dispatch import LLM, Ask, Brief, Item\n"
        "ask = Ask(brief=Brief(name='b', instructions='x'), item=Item(key='a', value='a'))\n"
        "executor = LLM(model='anthropic/claude-sonnet-4-5', api_base=sys.argv[1])\n"
        "print(asyncio.run(executor.answer(ask)).value)\n"
        "print({str(args[-1][0] if isinstance(args[-1], tuple) else args[0]) for args in asked})\n"
    )
    provider = Provider()
    provider.response = claude()
    with openai_server(routes=provider.add_route) as server:
        command = [sys.executable, "-c", script, server.url.replace("/v1", "/hosted")]
        environment = {"ANTHROPIC_API_KEY": "sk-test-0123456789", "PATH": ""}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)  # noqa: S603 -- this interpreter, a fixed text
    assert done.stdout.splitlines() == ['{"a": 1}', "{'127.0.0.1'}"]
