"""What goes wrong on the wire, asked through real HTTP, and what it means for the run."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from prefect_dispatch.errors import BusyError, ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.base import Ask, Reply
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.llm.provider_errors import classify_error
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
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
)

KEY = "sk-test-0123456789"
ASK = Ask(brief=Brief(name="sum", instructions="Sum it up."), item=Item(key="a", value="One document."))


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(executor: LLM) -> Reply:
    """Ask once."""
    return asyncio.run(executor.answer(ASK))


def failed(behaviour: Behaviour, **fields: Any) -> ExecutorError:  # noqa: ANN401 -- an executor's fields
    """Return what one request ends in; its message is one short line without the key."""
    with openai_server(behaviour) as server, pytest.raises(ExecutorError) as caught:
        ask(LLM.model_validate({"model": "openai/x", "api_base": server.url, **fields}))
    assert server.count == 1  # nothing is retried behind our back
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return caught.value


refusals = pytest.mark.parametrize(
    ("behaviour", "error", "kind"),
    [
        pytest.param(failure(429, retry_after=1), BusyError, "rate_limit", id="429"),
        pytest.param(failure(500), TransientError, "server", id="500"),
        pytest.param(failure(503), BusyError, "overloaded", id="503"),
        pytest.param(failure(529), BusyError, "overloaded", id="529"),
        pytest.param(failure(409), TransientError, "conflict", id="409"),
        pytest.param(failure(400, code="context_length_exceeded"), RejectedError, "context_length", id="too-long"),
        pytest.param(failure(400, code="content_policy_violation"), RejectedError, "content_policy", id="policy"),
        pytest.param(failure(400, "what?"), RejectedError, "rejected", id="400"),
        pytest.param(failure(413), RejectedError, "too_large", id="413"),
        pytest.param(failure(413, "Request too large"), RejectedError, "too_large", id="413-in-words-of-a-429"),
        pytest.param(failure(422), RejectedError, "rejected", id="422"),
        pytest.param(failure(401, f"bad key {KEY}"), TerminalError, "credentials", id="401"),
        pytest.param(failure(403), TerminalError, "credentials", id="403"),
        pytest.param(failure(402), TerminalError, "quota", id="402"),
        pytest.param(failure(404, code="model_not_found"), TerminalError, "model", id="404"),
        pytest.param(failure(429, code="insufficient_quota"), TerminalError, "quota", id="quota"),
        pytest.param(failure(400, code="unsupported_parameter"), TerminalError, "params", id="params"),
        pytest.param(
            Behaviour(status=400, body='{"error":{"message":"bad","type":"invalid_request_error","param":"top_p"}}'),
            TerminalError,
            "params",
            id="param-of-the-call",
        ),
        pytest.param(
            failure(
                400, "your item says: unsupported_parameter, missing credentials, credit balance is too low" + "x" * 400
            ),
            RejectedError,
            "rejected",
            id="an-item-that-talks-of-errors",
        ),
    ],
)


@refusals
@pytest.mark.parametrize("fields", [pytest.param({}, id="whole"), pytest.param({"idle_s": 5}, id="streamed")])
def test_what_a_refusal_means(
    behaviour: Behaviour, error: type[ExecutorError], kind: str, fields: dict[str, Any]
) -> None:
    """Whoever was refused in so many words has nothing to pay."""
    found = failed(behaviour, **fields)
    assert (type(found), found.kind) == (error, kind)
    assert found.usage == Usage(requests=1)


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        pytest.param(CUT, "connection", id="cut"),
        pytest.param(RESET, "connection", id="reset"),
        pytest.param(LONG, "connection", id="length-too-long"),
        pytest.param(MALFORMED, "malformed", id="malformed"),
        pytest.param(HTML, "malformed", id="html-200"),
        pytest.param(Behaviour(body='{"id":"1"}'), "malformed", id="choices-missing"),
        pytest.param(Behaviour(body=""), "malformed", id="nothing"),
        pytest.param(HTML_ERROR, "server", id="html-502"),
        pytest.param(failure(408), "timeout", id="408"),
        pytest.param(failure(504), "timeout", id="504"),
        pytest.param(Behaviour(ending="cut", drip_s=0.02), "connection", id="cut-while-it-drips"),
    ],
)
def test_what_is_lost_on_the_way(behaviour: Behaviour, kind: str) -> None:
    """A call that nobody answered may have cost something."""
    found = failed(behaviour)
    assert (type(found), found.kind) == (TransientError, kind)
    assert found.usage == Usage(requests=1, unsettled=1)


def test_a_length_that_is_too_short() -> None:
    """Half of a body, or bytes that belong to nothing: it depends on how they arrive."""
    found = failed(SHORT)
    assert type(found) is TransientError
    assert found.kind in {"malformed", "connection"}
    assert found.usage == Usage(requests=1, unsettled=1)


def test_a_slow_answer_is_an_answer() -> None:
    """A body that drips is waited for."""
    with openai_server(DRIP) as server:
        assert ask(LLM(model="openai/x", api_base=server.url)).value == "fine"


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", [pytest.param(HANG, id="hang"), pytest.param(STALL, id="stall")])
def test_whoever_hangs_up_is_heard(behaviour: Behaviour) -> None:
    """Cancelling the call closes the connection, in the middle of a body too."""

    async def give_up(executor: LLM) -> None:
        await asyncio.wait_for(executor.answer(ASK), 0.3)

    with openai_server(behaviour) as server, pytest.raises((TimeoutError, asyncio.TimeoutError)):
        asyncio.run(give_up(LLM(model="openai/x", api_base=server.url)))
    assert server.hung_up == server.count == 1


@pytest.mark.parametrize(
    ("behaviour", "wait"),
    [
        pytest.param(failure(429, retry_after=2), 2.0, id="seconds"),
        pytest.param(failure(429, retry_after=0.25), 0.25, id="fraction"),
        pytest.param(failure(503, headers={"retry-after-ms": "250"}), 0.25, id="ms"),
        pytest.param(failure(529, retry_after="Fri, 31 Dec 1999 23:59:59 GMT"), 0.0, id="date-that-is-past"),
        pytest.param(
            failure(429, headers={"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2s"}),
            62.0,
            id="reset",
        ),
        pytest.param(failure(429), None, id="untold"),
    ],
)
def test_when_to_come_again(behaviour: Behaviour, wait: float | None) -> None:
    """What the provider says about it reaches whoever waits."""
    found = failed(behaviour)
    assert isinstance(found, BusyError)
    assert found.retry_after_s == wait


@pytest.mark.slow
@pytest.mark.parametrize("model", ["anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-pro", "hosted_vllm/x"])
@pytest.mark.parametrize("fields", [pytest.param({}, id="whole"), pytest.param({"idle_s": 5}, id="streamed")])
@pytest.mark.parametrize(("status", "kind"), [(429, "rate_limit"), (503, "overloaded"), (529, "overloaded")])
def test_every_provider_may_be_busy(
    model: str, fields: dict[str, Any], status: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has an error of its own in litellm, which loses the status or the wait of some."""
    for provider in ("ANTHROPIC", "GEMINI", "HOSTED_VLLM"):
        monkeypatch.setenv(f"{provider}_API_KEY", KEY)
    found = failed(failure(status, "come again", retry_after=3), model=model, **fields)
    assert isinstance(found, BusyError)
    assert (found.kind, found.retry_after_s) == (kind, 3)
    assert str(found) == f"{model!r} failed: HTTP {status}: come again"
    assert found.usage == Usage(requests=1)


def test_a_limiter_and_a_revoked_key() -> None:
    """The limiter's refusals come as busy with a wait, and it counts them; a key taken back stops everything."""

    async def in_turn(executor: LLM, calls: int) -> list[str]:
        return [await _ended(executor) for _ in range(calls)]

    limiter = RateLimiter(2, window_s=60)
    with openai_server(limiter) as server:
        assert asyncio.run(in_turn(LLM(model="openai/x", api_base=server.url), 4)) == ["fine"] * 2 + ["rate_limit"] * 2
    assert (limiter.accepted.total(), limiter.refused.total()) == (2, 2)
    with openai_server(revoked(1)) as server:
        assert asyncio.run(in_turn(LLM(model="openai/x", api_base=server.url), 2)) == ["fine", "credentials"]


async def _ended(executor: LLM) -> str:
    try:
        return str((await executor.answer(ASK)).value)
    except ExecutorError as error:
        return error.kind


@pytest.mark.parametrize(
    ("code", "error", "kind"),
    [
        pytest.param(429, BusyError, "rate_limit", id="429"),
        pytest.param(401, TerminalError, "credentials", id="401"),
        pytest.param(502, TransientError, "server", id="502"),
    ],
)
def test_an_error_that_began_as_a_success(code: int, error: type[ExecutorError], kind: str) -> None:
    """Routers answer 200, and then tell the error in the body."""
    found = failed(Behaviour(body=json.dumps({"error": {"message": "no", "code": code}})))
    assert (type(found), found.kind) == (error, kind)


@pytest.mark.parametrize(
    ("executor", "kind"),
    [
        pytest.param(LLM(model="nobody/x"), "model", id="provider"),
        pytest.param(LLM(model="openai/x"), "credentials", id="no-key"),
        pytest.param(LLM(model="anthropic/claude-sonnet-4-5", params={"logit_bias": {}}), "params", id="param"),
    ],
)
def test_what_is_wrong_before_anything_is_sent(executor: LLM, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that can't be made counts no request."""
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(TerminalError) as caught:
        ask(executor)
    assert caught.value.kind == kind
    assert caught.value.usage == Usage()
    assert ("set OPENAI_API_KEY in the environment of the run" in str(caught.value)) is (kind == "credentials")


def test_a_refused_connection_is_transient() -> None:
    """Nobody listens: worth a retry, and nothing was lost."""
    with openai_server() as server:
        pass
    with pytest.raises(TransientError) as caught:
        ask(LLM(model="openai/x", api_base=server.url))
    assert caught.value.kind == "connection"
    assert caught.value.usage == Usage(requests=1)


def test_a_providers_json_is_read_for_its_message() -> None:
    """The provider's own sentence is kept, whatever stands around it."""
    raised = RuntimeError('litellm.BadRequestError: XException - {\n "error": {"message": "Say \'a\'.", "x": 1}}')
    assert str(classify_error(raised, "m")) == "'m' failed: Say 'a'."


@pytest.mark.parametrize(
    ("raised", "error", "kind"),
    [
        pytest.param(ImportError("install boto3"), TerminalError, "package", id="package"),
        pytest.param(RuntimeError(), ExecutorError, "error", id="anything"),
    ],
)
def test_errors_that_are_not_the_providers(raised: Exception, error: type[ExecutorError], kind: str) -> None:
    """A missing package stops the run; what nobody foresaw fails the item."""
    found = classify_error(raised, "m")
    assert (type(found), found.kind) == (error, kind)
