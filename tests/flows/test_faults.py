"""The whole way over a real wire, to a server that misbehaves: nothing is lost, and the bill agrees."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from prefect_dispatch import LLM, Brief, Limits, dispatch
from prefect_dispatch.errors import DispatchFailed
from tests.openai_server import HANG, HTML_ERROR, MALFORMED, Behaviour, failure, openai_server, share

if TYPE_CHECKING:
    from prefect_dispatch import Report

pytestmark = pytest.mark.usefixtures("store", "key")

SIZES = Brief(
    name="sizes",
    scope="One word.",
    instructions="Say how long it is.",
    output={
        "type": "object",
        "properties": {"size": {"type": "integer"}},
        "required": ["size"],
        "additionalProperties": False,
    },
)
GOOD = Behaviour(content='{"size": 3}')


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """A key in the environment, as users have it."""
    made_up = "sk-of-the-user-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", made_up)
    return made_up


def misbehave(request: dict[str, Any], n: int) -> Behaviour:
    """Fail in a way that depends on the document: some recover when asked again, some never do."""
    chance = share(request)
    faults: list[tuple[float, Behaviour, int]] = [  # up to this share, this fault, so many times
        (0.15, Behaviour(content='{"size": '), 1),
        (0.30, Behaviour(content="I'd say three."), 2),
        (0.40, Behaviour(content='{"size": "three"}'), 1),
        (0.45, Behaviour(content='{"size": "three"}'), 1000),
        (0.50, Behaviour(content=""), 1),
        (0.53, Behaviour(content=""), 1000),
        (0.60, failure(500), 2),
        (0.63, failure(500), 1000),
        (0.66, HTML_ERROR, 1),
        (0.69, MALFORMED, 1),
        (0.71, HANG, 1000),
        (0.73, Behaviour(content='{"size', finish_reason="length"), 1),
        (0.75, Behaviour(content=None, refusal="I won't."), 1000),
        (0.77, failure(400, "maximum context length exceeded", code="context_length_exceeded"), 1000),
    ]
    for up_to, fault, times in faults:
        if chance < up_to:
            return fault if n <= times else GOOD
    return GOOD


@pytest.mark.slow
def test_two_hundred_items_at_a_server_that_misbehaves() -> None:
    """Each item has one ledger row and its right end, and the report's bill is the server's own."""
    items = [f"word-{n}" for n in range(200)]
    limits = Limits(concurrency=24, retries=2, retry_delay_s=0.01, reasks=2, timeout_s=5)
    with openai_server(misbehave) as server:
        report = dispatch([SIZES], items, executor=LLM(model="openai/test", api_base=server.url), limits=limits)
        first = server.count
        assert (report.usage.requests, report.usage.prompt_tokens, report.usage.completion_tokens) == (
            server.usage.requests,
            server.usage.prompt_tokens,
            server.usage.completion_tokens,
        )
        assert sorted((row.brief, row.item) for row in report.ledger) == sorted(("sizes", item) for item in items)
        assert report.usage.asked == 200
        assert {gap.error.kind for gap in report.gaps} == {
            "invalid_output",
            "empty",
            "server",
            "timeout",
            "refused",
            "context_length",
        }
        merged: Any = report.value
        assert len(merged["answers"]) + len(report.gaps) == 200
        assert len(merged["gaps"]) == len(report.gaps)
        assert server.peak <= 24

        again = dispatch([SIZES], items, executor=LLM(model="openai/test", api_base=server.url), limits=limits)
        assert again.usage.cached == 200 - len(report.gaps)
        assert again.usage.requests == server.count - first
        assert again.usage.asked == len(report.gaps)


def run(url: str, items: list[str], brief: Brief = SIZES, **limits: int) -> Report:
    """Run over some items."""
    chosen = Limits(retry_delay_s=0.01, timeout_s=20, **cast("dict[str, Any]", limits))
    return dispatch([brief], items, executor=LLM(model="openai/test", api_base=url), limits=chosen)


@pytest.mark.slow
def test_the_same_run_twice_pays_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Again: no request. One document changed: one. A word of the brief: all. Another key or concurrency: none."""
    with openai_server(GOOD) as server:
        run(server.url, ["a", "b", "c"])
        assert server.count == 3
        again = run(server.url, ["a", "b", "c"])
        assert server.count == 3
        assert (again.plan["to_ask"], again.plan["prompt_tokens"], again.plan["cost_usd"]) == (0, 0, 0.0)
        run(server.url, ["a", "b", "changed"])
        assert server.count == 4
        monkeypatch.setenv("OPENAI_API_KEY", "sk-another-key-9876543210")
        run(server.url, ["a", "b", "c"], concurrency=1)
        assert server.count == 4
        run(server.url, ["a", "b", "c"], SIZES.model_copy(update={"instructions": "Say how long it is, exactly."}))
        assert server.count == 7


@pytest.mark.slow
def test_a_wrong_key_costs_no_more_than_what_was_under_way(key: str) -> None:
    """401 for everything: the fan-out stops, the rest is skipped, the key is nowhere in the report."""
    with openai_server(failure(401, f"Incorrect API key provided: {key}")) as server:
        with pytest.raises(DispatchFailed, match="Stopped") as caught:
            run(server.url, [f"w{n}" for n in range(100)], concurrency=4)
        report = caught.value.report
    assert server.count <= 8
    assert report.usage.requests == server.count
    assert len(report.ledger) == 100
    assert key not in report.model_dump_json() + str(caught.value) + json.dumps(
        [outcome.model_dump(mode="json") for outcome in report.outcomes]
    )


def test_a_server_that_is_not_there_is_a_transient_error() -> None:
    """Nothing listens: retried, then failed, with a reason a person can act on."""
    with openai_server(GOOD) as server:
        url = server.url
    with pytest.raises(DispatchFailed, match="0 of 1 answered") as caught:
        run(url, ["a"], retries=1)
    assert caught.value.report.gaps[0].error.kind == "connection"
    assert len(caught.value.report.outcomes[0].attempts) == 2
