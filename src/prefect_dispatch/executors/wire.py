"""OpenAI's chat protocol, spoken to a server of one's own without what litellm does around each call.

That takes several times as long as all the rest of a call, and so bounds how many a second there can be. litellm still
says what goes out (`get_optional_params`) and what came back (`convert_to_model_response_object`); only the sending is
done here. Whatever isn't plain is left to litellm: another provider, parameters of its own, callbacks of the user's.
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

from prefect_dispatch.environment import environment
from prefect_dispatch.executors.exchange import ACCEPTED_CODINGS, MOST_REDIRECTS

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import aiohttp
    from aiohttp import ClientResponse

    from prefect_dispatch.executors.exchange import Exchange

_PROVIDERS = ("openai/", "hosted_vllm/")
_ADDRESSED = frozenset({"model", "messages", "api_base", "api_key", "num_retries", "max_retries"})
_PLAIN = _ADDRESSED | {
    "frequency_penalty",
    "logit_bias",
    "max_completion_tokens",
    "max_tokens",
    "presence_penalty",
    "reasoning_effort",
    "response_format",
    "seed",
    "stop",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
    "user",
}
"""What a request may hold: what litellm hands on or translates, and does nothing else with."""
_ELSEWISE = ("SSL_VERIFY", "SSL_CERTIFICATE", "SSL_SECURITY_LEVEL", "OPENAI_ORG_ID", "OPENAI_ORGANIZATION")
_CALLBACKS = ("callbacks", "success_callback", "failure_callback", "_async_success_callback", "_async_failure_callback")
"""litellm's lists of who wants to be told of calls; it puts its own cache there by itself, be there one or not."""
_KEPT_S = 4.0
"""How long a connection is kept for the next call: less than the five seconds after which uvicorn closes one."""
_CONNECT_S = 60.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def is_plain(litellm: Any, request: Mapping[str, Any]) -> bool:  # noqa: ANN401 -- a module
    """Return whether a request can be sent from here.

    Args:
        litellm: The module.
        request: What `acompletion` takes.
    """
    return (
        str(request["model"]).startswith(_PROVIDERS)
        and bool(request.get("api_base"))
        and request.keys() <= _PLAIN
        and litellm.cache is None
        and not any(each != "cache" for name in _CALLBACKS for each in getattr(litellm, name, None) or ())
        and not _sends_elsewise(environment())
        and bool(_key(litellm, request))
    )


async def asked(litellm: Any, request: Mapping[str, Any], exchange: Exchange) -> Any:  # noqa: ANN401 -- a module, and its ModelResponse
    """Return the response to a request, as litellm would.

    Args:
        litellm: The module.
        request: What `acompletion` takes, and `is_plain`.
        exchange: What bounds the response, and notes what it reports.

    Raises:
        ConnectError: If nobody was there.
        ReadError: If the connection failed later.
        HTTPError: If the server refused.
        RedirectError: If it redirects to another origin.
        ResponseTooLargeError: If the response is too long.
        MalformedResponseError: If it can't be read.
    """
    params = {name: value for name, value in request.items() if name not in _ADDRESSED}
    model, more = _translated(litellm, str(request["model"]), json.dumps(params))
    url = f"{str(request['api_base']).rstrip('/')}/chat/completions"
    body = json.dumps({"messages": request["messages"], "model": model, **more}).encode()
    headers = {
        "Authorization": f"Bearer {_key(litellm, request)}",
        "Content-Type": "application/json",
        "Accept-Encoding": ACCEPTED_CODINGS,
    }
    response, content = await _post(url, body, headers, exchange)
    if response.status != HTTPStatus.OK:
        raise HTTPError(response.status, response.headers, content)
    parsed = exchange.parse(content)
    if not isinstance(parsed, dict):
        raise exchange.malformed("the response is no JSON object")
    said = cast("dict[str, Any]", parsed)
    exchange.note(said)
    convert = litellm.utils.convert_to_model_response_object
    try:
        return convert(response_object=said, model_response_object=litellm.ModelResponse())
    except Exception as error:
        if said.get("error"):  # told in the body of a success: litellm raises it as what it is
            raise
        raise exchange.malformed(f"the response has an unexpected form ({type(error).__name__})") from error


async def _post(url: str, body: bytes, headers: dict[str, str], exchange: Exchange) -> tuple[ClientResponse, bytes]:
    """Send a request, following redirects within its origin; return the response and its body."""
    import aiohttp  # noqa: PLC0415 -- is loaded where it is called

    for _ in range(MOST_REDIRECTS):
        sent = _session().post(url, data=body, headers=headers, proxy=_proxy(url, environment()), allow_redirects=False)
        try:
            async with sent as response:
                if response.status in _REDIRECTS and (location := response.headers.get("Location")):
                    url = exchange.require_allowed_redirect("POST", url, response.status, location)
                    response.close()
                    continue
                coding = response.headers.get("Content-Encoding", "")
                content = await exchange.read(response.content.iter_any(), response.status, coding)
                if not response.content.at_eof():  # the rest of a long error is not waited for
                    response.close()
                return response, content
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise ConnectError(str(error)) from None
        except aiohttp.ClientError as error:
            raise ReadError(str(error) or type(error).__name__) from None
    raise exchange.redirected_too_often(url)


class ConnectError(Exception):
    """Nobody was there to be asked; `failure_of` knows it by this name."""


class ReadError(Exception):
    """The connection failed after that; known in the same way."""


class HTTPError(Exception):
    """A server's refusal, with what `failure_of` looks for."""

    def __init__(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        """Keep what came."""
        text = content.decode("utf-8", "replace")
        self.status_code, self.litellm_response_headers = status, headers
        self.body: dict[str, Any] = {}
        try:
            said: Any = json.loads(text)
        except ValueError:
            said = None
        if isinstance(said, dict):
            error: Any = cast("dict[str, Any]", said).get("error", said)
            self.body = cast("dict[str, Any]", error) if isinstance(error, dict) else {"message": str(error)}
        super().__init__(str(self.body.get("message") or text))


@lru_cache(maxsize=64)
def _translated(litellm: Any, model: str, params: str) -> tuple[str, dict[str, Any]]:  # noqa: ANN401 -- a module
    """Return the model's own name, and parameters as its provider takes them."""
    name, kind, _, _ = litellm.get_llm_provider(model=model)
    out: dict[str, Any] = litellm.get_optional_params(model=name, custom_llm_provider=kind, **json.loads(params))
    extra: dict[str, Any] = out.pop("extra_body", None) or {}
    return name, {key: value for key, value in {**out, **extra}.items() if key not in ("stream", "max_retries")}


def _key(litellm: Any, request: Mapping[str, Any]) -> str | None:  # noqa: ANN401 -- a module
    if given := request.get("api_key"):
        return str(given)
    if str(request["model"]).startswith("hosted_vllm/"):
        return os.environ.get("HOSTED_VLLM_API_KEY") or "none"
    return litellm.api_key or litellm.openai_key or os.environ.get("OPENAI_API_KEY")


@lru_cache(maxsize=2)
def _sends_elsewise(_said: Hashable) -> bool:
    """Return whether the environment, which is the one that is said, has litellm send otherwise."""
    return any(os.environ.get(name) for name in _ELSEWISE)


@lru_cache(maxsize=64)
def _proxy(url: str, _said: Hashable) -> str | None:
    """Return by which proxy an address is reached, as the environment, which is the one that is said, has it.

    aiohttp would look, and for a `.netrc`, before each request.
    """
    parts, proxies = urlsplit(url), getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found or proxy_bypass(parts.hostname or ""):
        return None
    return found if "://" in found else f"http://{found}"


_sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = weakref.WeakKeyDictionary()


def _session() -> aiohttp.ClientSession:
    """Return the connections of the event loop: as many as are called at once, which the limits of a run bound."""
    import aiohttp  # noqa: PLC0415 -- as above

    loop = asyncio.get_running_loop()
    if loop not in _sessions:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_S)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)  # the rest has the call's own limit
        _sessions[loop] = session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        weakref.finalize(loop, session.detach).atexit = False  # its connections went with it
    return _sessions[loop]
