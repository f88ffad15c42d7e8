"""Calls that are sent without litellm: OpenAI's chat protocol to servers with their own address.

litellm's overhead around each call takes several times as long as the rest of it. For these calls it only translates
the request (`get_optional_params`) and the response (`convert_to_model_response_object`). Calls of hosted providers are
in `hosted_providers`. Others are left to litellm: those with parameters of its own, and where callbacks are set.
"""

from __future__ import annotations

import asyncio
import json
import os
import weakref
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from prefect_dispatch.executors.llm.http_exchange import (
    ACCEPTED_CODINGS,
    MOST_REDIRECTS,
    REDIRECTS,
    ConnectError,
    Exchange,
    HTTPError,
    MalformedResponseError,
    ReadError,
    RedirectError,
    origin_of,
)
from prefect_dispatch.settings import environment_snapshot

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from ssl import SSLContext

    import aiohttp
    from aiohttp import ClientResponse


_PROVIDERS = ("openai/", "hosted_vllm/")
TARGET_KEYS = frozenset({"model", "messages", "api_base", "api_key", "num_retries", "max_retries"})
"""Arguments of `acompletion` that are no parameters of the model."""

SUPPORTED_ARGUMENTS = TARGET_KEYS | {
    "frequency_penalty",
    "logit_bias",
    "max_completion_tokens",
    "max_tokens",
    "presence_penalty",
    "reasoning_effort",
    "response_format",
    "seed",
    "service_tier",
    "stop",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
    "user",
}
"""Arguments that a call may have to be sent here: litellm only passes them on or translates them."""

_TRANSPORT_VARIABLES = ("SSL_VERIFY", "SSL_CERTIFICATE", "SSL_SECURITY_LEVEL", "SSL_ECDH_CURVE")
"""Variables of the environment that change how litellm sends requests."""

_ORGANIZATION_VARIABLES = ("OPENAI_ORG_ID", "OPENAI_ORGANIZATION")
"""Variables of the environment from which litellm takes headers of requests to OpenAI."""

_CALLBACKS = (
    *("callbacks", "input_callback", "service_callback", "success_callback", "failure_callback"),
    *("_async_success_callback", "_async_failure_callback"),
)
"""litellm's lists of callbacks; it always adds its own cache to them, even if none is set."""

_SETTINGS = frozenset(
    {"aclient_session", "cache", "client_session", "disable_aiohttp_trust_env", "enable_json_schema_validation"}
    | {"force_ipv4", "max_budget", "model_alias_map", "modify_params", "network_mock"}
    | {"post_call_rules", "pre_call_rules", "ssl_certificate", "ssl_ecdh_curve", "ssl_security_level"}
)
"""Settings of litellm's, unset by default, with which it does more around a call, or sends it in another way."""

_KEEP_ALIVE_S = 4.0
"""Seconds for which an idle connection is reused: less than the five seconds after which uvicorn closes one."""

_CONNECT_S = 60.0


def supports_direct_http(litellm: Any, request: Mapping[str, Any]) -> bool:  # noqa: ANN401 -- a module
    """Return whether a request can be sent without litellm.

    Args:
        litellm: The module.
        request: The arguments of `acompletion`.
    """
    return (
        str(request["model"]).startswith(_PROVIDERS)
        and bool(request.get("api_base"))
        and request.keys() <= SUPPORTED_ARGUMENTS
        and has_default_settings(litellm)
        and not _is_set(_ORGANIZATION_VARIABLES, environment_snapshot())
        and bool(_key(litellm, request))
    )


def has_default_settings(litellm: Any) -> bool:  # noqa: ANN401 -- a module
    """Return whether a call by litellm would only send a request: no cache, no callbacks, no transport of the user's.

    Args:
        litellm: The module.
    """
    return (
        not any(getattr(litellm, name, None) for name in _SETTINGS)
        and litellm.ssl_verify is True
        and not any(each != "cache" for name in _CALLBACKS for each in getattr(litellm, name, None) or ())
        and not _is_set(_TRANSPORT_VARIABLES, environment_snapshot())
    )


@lru_cache(maxsize=4)
def _is_set(variables: Sequence[str], _environment: Hashable) -> bool:
    """Return whether one of some variables is set; the snapshot of the environment is part of the cache key."""
    return any(map(os.environ.get, variables))


async def post_chat_completion(litellm: Any, request: Mapping[str, Any], exchange: Exchange) -> Any:  # noqa: ANN401 -- a module, and its ModelResponse
    """Send a request to its server, and return the response as litellm would.

    Args:
        litellm: The module.
        request: The arguments of `acompletion`, for which `supports_direct_http` holds.
        exchange: Bounds the response, and records the served model.

    Raises:
        ConnectError: If there is no connection to the server.
        ReadError: If the connection failed later.
        HTTPError: If the server responds with an error.
        RedirectError: If it redirects to another origin.
        ResponseTooLargeError: If the response is too long.
        MalformedResponseError: If it can't be read.
    """
    # 1. Translate the request.
    url = f"{str(request['api_base']).rstrip('/')}/chat/completions"
    body = json.dumps(translate_request(litellm, request)).encode()
    headers = {
        "Authorization": f"Bearer {_key(litellm, request)}",
        "Content-Type": "application/json",
        "Accept-Encoding": ACCEPTED_CODINGS,
    }
    # 2. Send it.
    response, content = await post(url, body, headers, exchange)
    if response.status != HTTPStatus.OK:
        raise HTTPError(response.status, response.headers, content.decode("utf-8", "replace"))
    # 3. Convert the response.
    parsed = exchange.parse(content)
    if not isinstance(parsed, dict):
        raise exchange.fail(MalformedResponseError("the response is no JSON object"))
    data = cast("dict[str, Any]", parsed)
    exchange.inspect_parsed(data)
    try:
        return convert_response(litellm, data)
    except Exception as error:
        if data.get("error"):  # an error in a response with status 200, for which litellm has raised the right class
            raise
        why = f"the response has an unexpected form ({type(error).__name__})"
        raise exchange.fail(MalformedResponseError(why)) from error


def translate_request(litellm: Any, request: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401 -- a module
    """Return the body of a request of OpenAI's chat protocol, from the arguments of `acompletion`."""
    params = {name: value for name, value in request.items() if name not in TARGET_KEYS}
    model, more = _translate_params(litellm, str(request["model"]), json.dumps(params))
    return {"messages": request["messages"], "model": model, **more}


def convert_response(litellm: Any, body: dict[str, Any]) -> Any:  # noqa: ANN401 -- a module, and its ModelResponse
    """Return a response of OpenAI's chat protocol as a response of litellm."""
    convert = litellm.utils.convert_to_model_response_object
    return convert(response_object=body, model_response_object=litellm.ModelResponse())


async def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    exchange: Exchange,
    tls: SSLContext | bool = True,  # noqa: FBT001, FBT002 -- aiohttp's own argument
) -> tuple[ClientResponse, bytes]:
    """Send a request, following redirects within its origin; return the response and its body.

    Args:
        url: The address.
        body: The body.
        headers: The headers.
        exchange: Bounds the response.
        tls: The settings of TLS; the system's by default.

    Raises:
        ConnectError: If there is no connection to the server.
        ReadError: If the connection failed later.
        RedirectError: If it redirects to another origin.
        ResponseTooLargeError: If the response is too long.
    """
    import aiohttp  # noqa: PLC0415 -- slow to import, and only needed here

    for _ in range(MOST_REDIRECTS):
        sent = _session().post(
            url, data=body, headers=headers, proxy=_proxy(url, environment_snapshot()), ssl=tls, allow_redirects=False
        )
        try:
            async with sent as response:
                if response.status in REDIRECTS and (location := response.headers.get("Location")):
                    url = exchange.require_allowed_redirect("POST", url, response.status, location)
                    response.close()
                    continue
                coding = response.headers.get("Content-Encoding", "")
                content = await exchange.read_all(response.content.iter_any(), response.status, coding)
                if not response.content.at_eof():  # the rest of a long error is not waited for
                    response.close()
                return response, content
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise ConnectError(str(error)) from None
        except aiohttp.ClientError as error:
            raise ReadError(str(error) or type(error).__name__) from None
    raise RedirectError(f"the server at {origin_of(url)} redirects again and again")


@lru_cache(maxsize=64)
def _translate_params(litellm: Any, model: str, params: str) -> tuple[str, dict[str, Any]]:  # noqa: ANN401 -- a module
    """Return the model's name without its provider, and the parameters translated for the provider."""
    name, kind, _, _ = litellm.get_llm_provider(model=model)
    out: dict[str, Any] = litellm.get_optional_params(model=name, custom_llm_provider=kind, **json.loads(params))
    extra: dict[str, Any] = out.pop("extra_body", None) or {}
    return name, {key: value for key, value in {**out, **extra}.items() if key not in ("stream", "max_retries")}


def _key(litellm: Any, request: Mapping[str, Any]) -> str | None:  # noqa: ANN401 -- a module
    """Return the key of a request, from where litellm would take it; None if there is none."""
    if given := request.get("api_key"):
        return str(given)
    if str(request["model"]).startswith("hosted_vllm/"):
        return os.environ.get("HOSTED_VLLM_API_KEY") or "none"
    return litellm.api_key or litellm.openai_key or os.environ.get("OPENAI_API_KEY")


@lru_cache(maxsize=64)
def _proxy(url: str, _environment: Hashable) -> str | None:
    """Return the proxy for an address, by the variables of the environment.

    aiohttp would read them, and search for a `.netrc`, before each request.

    Args:
        url: The address.
        _environment: The environment, as the key of the cache.
    """
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


_sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = weakref.WeakKeyDictionary()


def _session() -> aiohttp.ClientSession:
    """Return the session of the event loop; its connections have no limit, as a run limits its concurrent calls."""
    import aiohttp  # noqa: PLC0415 -- as above

    loop = asyncio.get_running_loop()
    if loop not in _sessions:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)  # the call has a time limit of its own
        _sessions[loop] = session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        weakref.finalize(loop, session.detach).atexit = False  # the loop's connections are gone with it
    return _sessions[loop]
