"""Calls of hosted providers that are sent without litellm: its own request with other texts, and its own conversion.

litellm takes several milliseconds of processor time around each call; these calls take a tenth of that. For each model,
parameters and shape of the chat, litellm is made to build one request, for a chat of placeholders; a hook captures it
before it is sent (see `capture_requests`). Later requests are that one with other texts in place of the placeholders:
litellm's own address, headers and body, for any provider's protocol. Responses are converted by litellm's
transformation class of the provider, and errors by its own mapping.

A call is left to litellm if anything isn't as expected: a provider that is not listed here, parameters or settings that
make litellm do more than send a request, a credential that may expire, an address of another protocol, a body in which
the placeholders aren't found, a class that doesn't convert a sample response.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import weakref
from copy import deepcopy
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import httpx

from prefect_dispatch.executors.llm.direct_calls import SUPPORTED_ARGUMENTS, TARGET_KEYS, has_default_settings, post
from prefect_dispatch.executors.llm.http_exchange import (
    ACCEPTED_CODINGS,
    Exchange,
    HTTPError,
    MalformedResponseError,
    RequestCaptured,
    capture_requests,
)
from prefect_dispatch.executors.llm.messages import message_text
from prefect_dispatch.settings import environment_snapshot

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from ssl import SSLContext

_log = logging.getLogger("prefect_dispatch")

_CHAT = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "-"}, "finish_reason": "stop"}]}
_OPENAI = ("/chat/completions", {**_CHAT, "created": 1, "model": "-", "id": "-", "service_tier": "default"})
PROTOCOLS: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(("azure", "deepseek", "fireworks_ai", "groq", "mistral", "openai", "openrouter"), _OPENAI),
    **dict.fromkeys(("together_ai", "xai"), _OPENAI),
    "anthropic": (
        "/v1/messages",
        {"type": "message", "content": [{"type": "text", "text": "-"}], "model": "-", "stop_reason": "end_turn"}
        | {"usage": {"input_tokens": 1, "output_tokens": 1}},
    ),
    "cohere_chat": (
        "/v2/chat",
        {"message": {"role": "assistant", "content": [{"type": "text", "text": "-"}]}, "finish_reason": "COMPLETE"}
        | {"usage": {"tokens": {"input_tokens": 1, "output_tokens": 1}}},
    ),
    "gemini": (
        ":generateContent",
        {"candidates": [{"content": {"parts": [{"text": "-"}], "role": "model"}, "finishReason": "STOP"}]}
        | {"usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}},
    ),
}
"""Providers that are called without litellm: the end of the address, and a sample response, of their protocol."""

_BY_CLIENT = frozenset({"azure", "openai"})
"""Providers that litellm calls by OpenAI's client, and whose responses it converts without a class."""

_SUPPORTED = SUPPORTED_ARGUMENTS | {"extra_body", "thinking", "top_k", "verbosity"}
"""Arguments of `acompletion` with which litellm builds a request, and does nothing else."""

_OWN_HEADERS = frozenset({"accept-encoding", "connection", "content-length", "host"})
"""Headers that the HTTP client sets for each request."""

_CREDENTIAL_HEADERS = ("authorization", "api-key", "x-api-key", "x-goog-api-key")

MAX_ROUTES = 256
"""Upper bound of the cached routes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Route:
    """How calls of one model, with the same parameters and shape of the chat, are sent and converted.

    Attributes:
        url: The address.
        headers: The headers, with the credential.
        parts: The parts of the body around the texts.
        order: The index of the message whose text follows each part but the last.
        provider: litellm's name of the provider.
        model: The model's name without its provider.
        params: The parameters as litellm translates them.
        json_mode: Whether litellm requests JSON by a tool, whose arguments are the content.
        config: litellm's transformation class of the provider; None where litellm uses OpenAI's client.
        key: Its key in the cache.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    parts: tuple[bytes, ...]
    order: tuple[int, ...]
    provider: str
    model: str
    params: Mapping[str, Any]
    json_mode: bool
    config: Any
    key: Hashable = field(repr=False)

    def build_body(self, chat: Sequence[Mapping[str, Any]]) -> bytes:
        """Return the body of a request with the texts of a chat."""
        texts = [_escape(message_text(message)) for message in chat]
        filled = (each for part, at in zip(self.parts, self.order, strict=False) for each in (part, texts[at]))
        return b"".join((*filled, self.parts[-1]))


_routes: dict[Hashable, Route | None] = {}
"""Cache of the routes; None where calls are left to litellm."""

_locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()


async def find_route(litellm: Any, request: Mapping[str, Any]) -> Route | None:  # noqa: ANN401 -- a module
    """Return the route of a call; None if the call is to be left to litellm.

    Args:
        litellm: The module.
        request: The arguments of `acompletion`.
    """
    if not (request.keys() <= _SUPPORTED and has_default_settings(litellm)):
        return None
    # litellm drops or replaces blank texts, so that the body of such a chat has another shape.
    if any(not text or text.isspace() for text in map(message_text, request["messages"])):
        return None
    roles = tuple((message["role"], isinstance(message["content"], str)) for message in request["messages"])
    arguments = {name: value for name, value in request.items() if name != "messages"}
    key = json.dumps(arguments, sort_keys=True), roles, environment_snapshot()
    if key in _routes:
        return _routes[key]
    async with _locks.setdefault(
        asyncio.get_running_loop(), asyncio.Lock()
    ):  # the first call of many at once learns it
        if key not in _routes:
            if len(_routes) >= MAX_ROUTES:
                _routes.clear()
            _routes[key] = await _learn_route(litellm, request, key)
        return _routes[key]


async def ask_provider(litellm: Any, route: Route, request: Mapping[str, Any], exchange: Exchange) -> Any:  # noqa: ANN401 -- a module, and its ModelResponse
    """Send a request to its provider, and return the response as litellm would.

    Args:
        litellm: The module.
        route: The route of the call.
        request: The arguments of `acompletion`.
        exchange: Bounds the response, and records the served model.

    Raises:
        Exception: As `post_chat_completion` does; an error response raises litellm's error for it.
    """
    # 1. Send it.
    chat: list[dict[str, Any]] = request["messages"]
    response, content = await post(route.url, route.build_body(chat), route.headers, exchange, tls_settings(route.url))
    if response.status >= HTTPStatus.MULTIPLE_CHOICES:
        raise _map_response(litellm, route, response.status, response.headers, content)
    # 2. Convert the response.
    data = exchange.parse(content)
    if route.config is None and not isinstance(data, dict):
        raise exchange.fail(MalformedResponseError("the response is no JSON object"))
    if exchange.inspect_parsed(data):
        content = json.dumps(data).encode()
    try:
        return _convert(litellm, route, cast("dict[str, Any]", data), content, chat)
    except Exception as error:  # noqa: BLE001 -- a class may raise anything for a response
        # The class of another version of litellm may need more than it is given here.
        if isinstance(error, (AttributeError, TypeError)):
            _routes[route.key] = None
            _log.info("%s: litellm's conversion %s; further calls are left to it.", route.model, _describe(error))
        raise _map_error(litellm, route, error) from None


async def _learn_route(litellm: Any, request: Mapping[str, Any], key: Hashable) -> Route | None:  # noqa: ANN401 -- a module
    """Return the route of calls like one; None, with the reason in the log, if they are left to litellm."""
    try:
        route, reason = await _build_route(litellm, request, key)
    except Exception as error:  # noqa: BLE001 -- litellm's internals may raise anything, and its own call is the way out
        route, reason = None, _describe(error)
    if route is None:
        _log.debug("%s: calls are left to litellm: %s.", request["model"], reason)
    return route


async def _build_route(
    litellm: Any,  # noqa: ANN401 -- a module
    request: Mapping[str, Any],
    key: Hashable,
) -> tuple[Route | None, str]:
    """Return the route of calls like one, or None and the reason why there is none."""
    # 1. Find the provider.
    model, provider, _, _ = litellm.get_llm_provider(model=request["model"], api_base=request.get("api_base"))
    if provider not in PROTOCOLS:
        return None, f"provider {provider!r} isn't called directly"
    # 2. Have litellm build a request.
    chat = [_with_text(message, _placeholder(at)) for at, message in enumerate(request["messages"])]
    sent = await _capture(litellm, {**request, "messages": chat})
    ending, sample = PROTOCOLS[provider]
    if sent.method != "POST" or not sent.url.path.endswith(ending):
        return None, f"the request goes to {sent.url.path}"
    headers = {name: value for name, value in sent.headers.items() if name not in _OWN_HEADERS}
    if not _has_lasting_credential(litellm, headers, request):
        return None, "its credential may expire"
    if not (split := _split(sent.content, len(chat))):
        return None, "the texts of the chat can't be found in its request"
    # 3. Find the class that converts its responses, and try it.
    params = {name: value for name, value in request.items() if name not in TARGET_KEYS}
    translated = litellm.get_optional_params(model=model, custom_llm_provider=provider, messages=chat, **params)
    json_mode = bool(translated.pop("json_mode", False))
    find = litellm.utils.ProviderConfigManager.get_provider_chat_config
    config = None if provider in _BY_CLIENT else find(model=model, provider=litellm.LlmProviders(provider))
    route = Route(
        url=str(sent.url),
        headers={**headers, "accept-encoding": ACCEPTED_CODINGS},
        parts=split[0],
        order=split[1],
        provider=provider,
        model=model,
        params=translated,
        json_mode=json_mode,
        config=config,
        key=key,
    )
    response = _convert(litellm, route, deepcopy(sample), json.dumps(sample).encode(), chat)
    if response.choices[0].message.content != "-" or response.choices[0].finish_reason != "stop":
        return None, "a sample response is converted in another way"
    return route, ""


async def _capture(litellm: Any, request: dict[str, Any]) -> httpx.Request:  # noqa: ANN401 -- a module
    """Return the request that litellm would send.

    Raises:
        LookupError: If litellm has sent one that wasn't captured.
    """
    with capture_requests():
        try:
            await litellm.acompletion(**request)
        except RequestCaptured as captured:
            return captured.request
    raise LookupError("its request wasn't captured")


def _has_lasting_credential(litellm: Any, headers: Mapping[str, str], request: Mapping[str, Any]) -> bool:  # noqa: ANN401 -- a module
    """Return whether the credential of a request is a key that was given, and not a token that litellm got for it."""
    keys = {request.get("api_key"), *os.environ.values(), *map(str.strip, os.environ.values())}
    names = cast("dict[str, Any]", vars(litellm))
    keys |= {value for name, value in names.items() if name.endswith("key") and isinstance(value, str)}
    found = [headers[name].removeprefix("Bearer ") for name in _CREDENTIAL_HEADERS if name in headers]
    return bool(found) and all(each in keys for each in found)


def _with_text(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return a message with another text, marked for the provider's cache where the message is."""
    content = message["content"]
    return {**message, "content": text if isinstance(content, str) else [{**content[0], "text": text}]}


def _placeholder(at: int) -> str:
    """Return a text for a message, with characters that are escaped in JSON, or removed where a text is stripped."""
    return f' text "{at:04}"\\ of a chät \n'


def _split(body: bytes, count: int) -> tuple[tuple[bytes, ...], tuple[int, ...]] | None:
    """Return the parts of a body around the placeholders, and their order; None if one isn't there exactly once."""
    found: list[tuple[int, int, int]] = []
    for at in range(count):
        forms = {json.dumps(_placeholder(at), ensure_ascii=is_ascii)[1:-1].encode() for is_ascii in (True, False)}
        places = [(body.find(form), len(form)) for form in forms if form in body]
        if len(places) != 1 or body.count(body[places[0][0] : sum(places[0])]) != 1:
            return None
        found.append((*places[0], at))
    found.sort()
    parts: list[bytes] = []
    start = 0
    for place, length, _ in found:
        parts.append(body[start:place])
        start = place + length
    return (*parts, body[start:]), tuple(at for _, _, at in found)


def _escape(text: str) -> bytes:
    """Return a text as it stands between the quotes of a JSON string."""
    try:
        return json.dumps(text, ensure_ascii=False)[1:-1].encode()
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(text)[1:-1].encode()


def _convert(litellm: Any, route: Route, data: dict[str, Any], content: bytes, chat: Sequence[Any]) -> Any:  # noqa: ANN401 -- a module, and its ModelResponse
    """Return a response as litellm's, from its JSON."""
    response = litellm.ModelResponse()
    response._hidden_params["custom_llm_provider"] = route.provider  # noqa: SLF001 -- determines the price, as in litellm
    if route.config is None:
        return litellm.utils.convert_to_model_response_object(
            response_object=data,
            model_response_object=response,
            convert_tool_call_to_json_mode=route.json_mode,
        )
    params = deepcopy(dict(route.params))  # the classes change it
    return route.config.transform_response(
        model=route.model,
        raw_response=httpx.Response(HTTPStatus.OK, headers={"content-type": "application/json"}, content=content),
        model_response=response,
        logging_obj=_Log(params),
        request_data={},
        messages=list(chat),
        optional_params=params,
        litellm_params={},
        encoding=None,
        api_key=None,
        json_mode=route.json_mode,
    )


class _Log(SimpleNamespace):
    """What the transformation classes need of litellm's logging object, which records nothing here."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        """Start empty."""
        super().__init__(model_call_details={}, optional_params=params, litellm_params={}, stream=False)

    def pre_call(self, *_args: object, **_more: object) -> None:
        """Ignore a request."""

    def post_call(self, *_args: object, **_more: object) -> None:
        """Ignore a response."""


def _map_response(
    litellm: Any,  # noqa: ANN401 -- a module
    route: Route,
    status: int,
    headers: Mapping[str, str],
    content: bytes,
) -> Exception:
    """Return the error for an error response."""
    text = content.decode("utf-8", "replace")
    if route.config is None:
        return HTTPError(status, headers, text)
    raised = route.config.get_error_class(
        error_message=text, status_code=status, headers=httpx.Headers(list(headers.items()))
    )
    raised.__cause__ = HTTPError(status, headers, "")  # litellm maps some statuses to others
    return _map_error(litellm, route, raised)


def _map_error(litellm: Any, route: Route, error: Exception) -> Exception:  # noqa: ANN401 -- a module
    """Return the error that litellm raises for one of a provider."""
    try:
        litellm.exception_type(model=route.model, original_exception=error, custom_llm_provider=route.provider)
    except Exception as mapped:  # noqa: BLE001 -- that is how it returns it
        if mapped is not error:
            mapped.__cause__ = error  # which has the provider's own status
        return mapped
    return error


def tls_settings(url: str) -> SSLContext | bool:
    """Return litellm's settings of TLS, which are certifi's authorities unless the environment has others."""
    if not url.startswith("https:"):
        return True
    settings = import_module("litellm.llms.custom_httpx.http_handler").get_ssl_configuration()
    return cast("SSLContext | bool", settings)


def _describe(error: Exception) -> str:
    return f"failed ({type(error).__name__})"
