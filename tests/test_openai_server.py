"""The fault server does what its text promises."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from prefect_dispatch.models import Usage
from tests.openai_server import CUT, HANG, HTML_ERROR, MALFORMED, Behaviour, failure, openai_server, share

ANSWERED = 200


def _request(text: str) -> dict[str, Any]:
    return {"model": "test", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": text}]}


async def _post(url: str, *texts: str, timeout_s: float = 5) -> list[Any]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(timeout_s)) as session:

        async def one(text: str) -> tuple[int, str]:
            async with session.post(f"{url}/chat/completions", json=_request(text)) as response:
                return response.status, await response.text()

        return await asyncio.gather(*(one(text) for text in texts), return_exceptions=True)


def test_same_documents_fail_whatever_the_order() -> None:
    """Behaviour by document and by how often it was asked doesn't depend on the order of arrival."""
    texts = [f"document {i}" for i in range(200)]

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        return failure(500) if n == 1 and share(request) < 0.2 else Behaviour(content=request["messages"][1]["content"])

    def failed(order: list[str]) -> set[str]:
        with openai_server(behave) as server:
            first = asyncio.run(_post(server.url, *order))
            again = asyncio.run(_post(server.url, *order))
        assert [status for status, _ in again] == [ANSWERED] * len(order)
        answered = sum(status == ANSWERED for status, _ in first + again)
        assert server.count == 2 * len(order)
        assert server.usage == Usage(requests=server.count, prompt_tokens=10 * answered, completion_tokens=5 * answered)
        return {text for text, (status, _) in zip(order, first, strict=True) if status != ANSWERED}

    assert 20 < len(failed(texts)) < 60
    assert failed(texts) == failed(texts[::-1])


@pytest.mark.parametrize(
    ("behaviour", "status", "part"),
    [
        pytest.param(failure(429, "slow down", retry_after=1), 429, "slow down", id="rate-limit"),
        pytest.param(HTML_ERROR, 502, "<html>", id="html"),
        pytest.param(MALFORMED, 200, "mess", id="malformed"),
        pytest.param(Behaviour(finish_reason="length"), 200, "length", id="length"),
    ],
)
def test_faults(behaviour: Behaviour, status: int, part: str) -> None:
    """A fault reaches the client as it was told."""
    with openai_server(behaviour) as server:
        [(found, body)] = asyncio.run(_post(server.url, "a"))
    assert found == status
    assert part in body


@pytest.mark.parametrize("behaviour", [pytest.param(CUT, id="cut"), pytest.param(HANG, id="hang")])
def test_broken_connections(behaviour: Behaviour) -> None:
    """A cut body and a silent server are errors to the client, and no tokens were reported."""
    with openai_server(behaviour) as server:
        [error] = asyncio.run(_post(server.url, "a", timeout_s=0.3))
    assert isinstance(error, (aiohttp.ClientPayloadError, TimeoutError, asyncio.TimeoutError))
    assert server.usage == Usage(requests=1)
    assert server.hung_up == int(behaviour.hang)
