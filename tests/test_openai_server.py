"""The fault server does what its text promises."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.models.outcome import Usage
from tests.openai_server import (
    CUT,
    DRIP,
    HANG,
    HTML,
    HTML_ERROR,
    LONG,
    MALFORMED,
    RESET,
    SHORT,
    STALL,
    Behaviour,
    RateLimiter,
    failure,
    openai_server,
    revoked,
    share,
)

ANSWERED = 200


def _request(text: str) -> dict[str, Any]:
    return {"model": "test", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": text}]}


async def _post(url: str, *texts: str, timeout_s: float = 5, more: dict[str, Any] | None = None) -> list[Any]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(timeout_s)) as session:

        async def one(text: str) -> tuple[int, str]:
            async with session.post(f"{url}/chat/completions", json=_request(text) | (more or {})) as response:
                return response.status, await response.text()

        return await asyncio.gather(*(one(text) for text in texts), return_exceptions=True)


@pytest.mark.slow
def test_same_documents_fail_whatever_the_order() -> None:
    """Behaviour by document and by how often it was asked doesn't depend on the order of arrival."""
    texts = [f"document {i}" for i in range(200)]

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        return failure(500) if n == 1 and share(request) < 0.2 else Behaviour(content=request["messages"][1]["content"])

    def failed(order: list[str]) -> set[str]:
        with openai_server(behave) as server:
            first = asyncio.run(_post(server.url, *order, timeout_s=60))
            again = asyncio.run(_post(server.url, *order, timeout_s=60))
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
        pytest.param(HTML, 200, "<html>", id="html-200"),
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


@pytest.mark.parametrize(
    "behaviour",
    [pytest.param(each, id=name) for name, each in (("cut", CUT), ("reset", RESET), ("long", LONG))],
)
def test_broken_connections(behaviour: Behaviour) -> None:
    """A body that breaks off is an error to the client, and no tokens were reported."""
    with openai_server(behaviour) as server:
        [error] = asyncio.run(_post(server.url, "a"))
    assert isinstance(error, aiohttp.ClientError)
    assert server.usage == Usage(requests=1)
    assert server.hung_up == 0


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", [pytest.param(STALL, id="stall"), pytest.param(HANG, id="hang")])
def test_silence(behaviour: Behaviour) -> None:
    """A server that says nothing more is left by the client, and notices."""
    with openai_server(behaviour) as server:
        [error] = asyncio.run(_post(server.url, "a", timeout_s=0.3))
    assert isinstance(error, (TimeoutError, asyncio.TimeoutError))
    assert server.usage == Usage(requests=1)
    assert server.hung_up == 1


def test_a_length_that_is_too_short() -> None:
    """The client gets half of the body as if it were all, or takes offence at what follows."""
    with openai_server(SHORT) as server:
        [answer] = asyncio.run(_post(server.url, "a"))
    if not isinstance(answer, aiohttp.ClientError):  # it depends on how the bytes arrive
        with pytest.raises(json.JSONDecodeError):
            json.loads(answer[1])
    assert server.usage == Usage(requests=1)


def test_a_slow_body_arrives_whole() -> None:
    """Little by little, and nothing is lost."""
    with openai_server(DRIP) as server:
        [(status, body)] = asyncio.run(_post(server.url, "a"))
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (ANSWERED, "fine")
    assert server.usage == Usage(requests=1, prompt_tokens=10, completion_tokens=5)


def _events(body: str) -> list[Any]:
    return [json.loads(line.removeprefix("data: ")) for line in body.split("\n\n")[:-2]]


@pytest.mark.parametrize("asked", [pytest.param(True, id="with-usage"), pytest.param(False, id="without")])
def test_a_stream(asked: bool) -> None:  # noqa: FBT001 -- a table's column
    """A request that says so gets events: the text in pieces, how it ended, and the usage if it asked for it."""
    more = {"stream": True, **({"stream_options": {"include_usage": True}} if asked else {})}
    with openai_server(Behaviour(content="one two\n three", finish_reason="length")) as server:
        [(_, body)] = asyncio.run(_post(server.url, "a", more=more))
    assert body.endswith("data: [DONE]\n\n")
    choices = [choice for event in _events(body) for choice in event["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "one two\n three"
    assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["length"]
    assert [event["usage"]["total_tokens"] for event in _events(body) if "usage" in event] == [15] * asked


def test_what_needs_not_be_told() -> None:
    """Neither tokens nor how it ended."""
    untold = Behaviour(finish_reason=None, tells_tokens=False)
    more = {"stream": True, "stream_options": {"include_usage": True}}
    with openai_server(untold) as server:
        [(_, plain)] = asyncio.run(_post(server.url, "a"))
        [(_, stream)] = asyncio.run(_post(server.url, "a", more=more))
    assert "usage" not in plain + stream
    assert "stop" not in plain + stream
    assert server.usage == Usage(requests=2)


@pytest.mark.parametrize("wait", [pytest.param(2, id="seconds"), pytest.param(1.5, id="fraction"), "a date"])
def test_a_refusal_says_when(wait: float | str) -> None:
    """Retry-After goes out as it was given."""
    assert failure(429, retry_after=wait).headers == {"Retry-After": str(wait)}
    assert failure(429, headers={"retry-after-ms": "250"}).headers == {"retry-after-ms": "250"}


def test_a_key_that_is_revoked() -> None:
    """The first calls are answered, whatever they ask; from then on none is."""
    with openai_server(revoked(2)) as server:
        statuses = [status for text in "abca" for status, _ in asyncio.run(_post(server.url, text))]
    assert statuses == [ANSWERED, ANSWERED, 401, 401]


@given(limit=st.integers(1, 5), gaps=st.lists(st.floats(0, 2), max_size=40))
def test_no_window_holds_more_than_the_limit(limit: int, gaps: list[float]) -> None:
    """Wherever a window of a second is laid; whoever comes when told is let in; all calls are counted."""
    now = 0.0
    limiter, accepted = RateLimiter(limit, clock=lambda: now), list[float]()
    for gap in gaps:
        now += gap
        answer = limiter({}, 1)
        if answer.status == ANSWERED:
            accepted.append(now)
        else:
            now += float(answer.headers["Retry-After"]) + 0.001
            accepted.append(now)
            assert limiter({}, 1).status == ANSWERED
    assert all(sum(start <= at < start + 0.999 for at in accepted) <= limit for start in accepted)
    assert limiter.accepted.total() == len(accepted) == len(gaps)


def test_a_limiter_needs_not_say_when() -> None:
    """A 429 without a hint, counted by the second."""
    limiter = RateLimiter(1, says_when=False, clock=lambda: 0.0)
    with openai_server(limiter) as server:
        answers = asyncio.run(_post(server.url, "a", "b", "c"))
    assert sorted(status for status, _ in answers) == [ANSWERED, 429, 429]
    assert limiter({}, 1).headers == {}
    assert (limiter.accepted, limiter.refused) == ({0: 1}, {0: 3})
