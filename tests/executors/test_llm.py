"""Asking models through real HTTP, and what their errors mean."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from prefect_dispatch.asking import attempt
from prefect_dispatch.errors import ExecutorError, JobError, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.base import Ask, Executor, Reply
from prefect_dispatch.executors.failures import failure_of
from prefect_dispatch.executors.kinds import default_executor
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.executors.provider import reply_of
from prefect_dispatch.models import Brief, Item, Limits, Usage
from tests.openai_server import CUT, HANG, HTML_ERROR, MALFORMED, Behaviour, failure, openai_server

KEY = "sk-test-0123456789"
BRIEF = Brief(name="sum", instructions="Sum it up.")
RECORD = Brief(name="rec", instructions="Give it.", output={"type": "object", "required": ["a"]})
ITEM = Item(key="a", value="One document.")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(executor: LLM, brief: Brief = BRIEF) -> Reply:
    """Ask once."""
    return asyncio.run(executor.answer(Ask(brief=brief, item=ITEM)))


def test_it_is_an_executor() -> None:
    """The protocol holds without a call."""
    assert isinstance(LLM(model="openai/x"), Executor)


def test_importing_it_does_not_import_litellm() -> None:
    """The import takes milliseconds; litellm's takes seconds and waits for the first call."""
    code = "import sys, prefect_dispatch.executors.llm; sys.exit('litellm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)  # noqa: S603 -- this interpreter, a fixed text


def test_a_good_answer_costs_what_the_table_says() -> None:
    """Text, usage and price of a known model; the key goes out and comes nowhere else."""
    with openai_server(Behaviour(content="short")) as server:
        reply = ask(LLM(model="openai/gpt-4o", api_base=server.url, params={"temperature": 0, "seed": 7}))
    assert reply.value == "short"
    assert reply.finish == "complete"
    assert reply.model == "openai/gpt-4o"
    assert reply.usage.model_copy(update={"cost_usd": None}) == server.usage.model_copy(update={"cost_usd": None})
    assert reply.usage.cost_usd == pytest.approx(10 * 2.5e-6 + 5 * 1e-5)
    [request] = server.requests
    assert (request.body["temperature"], request.body["seed"]) == (0, 7)
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in reply.model_dump_json()


def test_unknown_prices_stay_unknown_unless_they_are_given() -> None:
    """A model that isn't in the table has no price; a given one is used."""
    with openai_server() as server:
        unknown = LLM(model="openai/mine", api_base=server.url)
        given = LLM(model="openai/mine", api_base=server.url, usd_per_million=(1, 2))
        assert ask(unknown).usage.cost_usd is None
        assert ask(given).usage.cost_usd == pytest.approx(20e-6)
    assert unknown.price() is None
    assert given.price() == pytest.approx((1e-6, 2e-6))
    assert LLM(model="local/smollm2").price() == (0, 0)
    assert LLM(model="openai/gpt-4o-mini", fallbacks=("openai/gpt-4o",)).price() == pytest.approx((2.5e-6, 1e-5))


@pytest.mark.parametrize(
    ("behaviour", "value", "finish"),
    [
        pytest.param(Behaviour(content=None), "", "complete", id="no-content"),
        pytest.param(Behaviour(content="cut", finish_reason="length"), "cut", "truncated", id="length"),
        pytest.param(Behaviour(content="", finish_reason="content_filter"), "", "refused", id="filter"),
        pytest.param(Behaviour(content="\ud800!"), "?!", "complete", id="half-a-character"),
        pytest.param(Behaviour(content=None, refusal="No."), "No.", "refused", id="refusal"),
        pytest.param(
            Behaviour(body='{"id":"1","object":"chat.completion","created":0,"model":"m","choices":[]}'),
            "",
            "complete",
            id="no-choice",
        ),
    ],
)
def test_how_an_answer_ended(behaviour: Behaviour, value: str, finish: str) -> None:
    """Truncated, refused and empty answers are told apart."""
    with openai_server(behaviour) as server:
        reply = ask(LLM(model="openai/x", api_base=server.url))
    assert (reply.value, reply.finish) == (value, finish)


@pytest.mark.parametrize(
    ("behaviour", "error", "kind"),
    [
        pytest.param(failure(429, retry_after=1), TransientError, "rate_limit", id="429"),
        pytest.param(failure(500), TransientError, "server", id="500"),
        pytest.param(HTML_ERROR, TransientError, "server", id="html-502"),
        pytest.param(failure(503), TransientError, "overloaded", id="503"),
        pytest.param(failure(529), TransientError, "overloaded", id="529"),
        pytest.param(failure(408), TransientError, "timeout", id="408"),
        pytest.param(failure(409), TransientError, "conflict", id="409"),
        pytest.param(CUT, TransientError, "connection", id="cut"),
        pytest.param(MALFORMED, TransientError, "malformed", id="malformed"),
        pytest.param(Behaviour(body="<html>", content_type="text/html"), TransientError, "malformed", id="html-200"),
        pytest.param(Behaviour(body='{"id":"1"}'), TransientError, "malformed", id="choices-missing"),
        pytest.param(failure(400, code="context_length_exceeded"), RejectedError, "context_length", id="too-long"),
        pytest.param(failure(400, code="content_policy_violation"), RejectedError, "content_policy", id="policy"),
        pytest.param(failure(400, "what?"), RejectedError, "rejected", id="400"),
        pytest.param(failure(413), RejectedError, "too_large", id="413"),
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
def test_one_request_and_what_its_failure_means(behaviour: Behaviour, error: type[ExecutorError], kind: str) -> None:
    """Nothing is retried behind our back; the message is one short line without the key."""
    with openai_server(behaviour) as server, pytest.raises(error) as caught:
        ask(LLM(model="openai/x", api_base=server.url))
    assert server.count == 1
    assert (type(caught.value), caught.value.kind) == (error, kind)
    assert caught.value.usage == Usage(requests=1)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


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


def test_a_refused_connection_is_transient() -> None:
    """Nobody listens: worth a retry."""
    with openai_server() as server:
        pass
    with pytest.raises(TransientError) as caught:
        ask(LLM(model="openai/x", api_base=server.url))
    assert caught.value.kind == "connection"


def test_a_providers_json_is_read_for_its_message() -> None:
    """The provider's own sentence is kept, whatever stands around it."""
    raised = RuntimeError('litellm.BadRequestError: XException - {\n "error": {"message": "Say \'a\'.", "x": 1}}')
    assert str(failure_of(raised, "m")) == "'m' failed: Say 'a'."


@pytest.mark.parametrize(
    ("raised", "error", "kind"),
    [
        pytest.param(ImportError("install boto3"), TerminalError, "package", id="package"),
        pytest.param(RuntimeError(), ExecutorError, "error", id="anything"),
    ],
)
def test_errors_that_are_not_the_providers(raised: Exception, error: type[ExecutorError], kind: str) -> None:
    """A missing package stops the run; what nobody foresaw fails the item."""
    found = failure_of(raised, "m")
    assert (type(found), found.kind) == (error, kind)


def test_hanging_up_ends_the_request() -> None:
    """A time-out closes the connection."""
    with openai_server(HANG) as server, pytest.raises(TransientError) as caught:
        asyncio.run(
            attempt(LLM(model="openai/x", api_base=server.url), BRIEF, ITEM, limits=Limits(reasks=0, timeout_s=0.3))
        )
    assert caught.value.kind == "timeout"
    assert server.hung_up == server.count


def test_the_fallback_answers_and_both_are_counted() -> None:
    """The reply says who answered, and its usage is that of all calls."""

    def behave(request: dict[str, Any], _n: int) -> Behaviour:
        return failure(500) if request["model"] == "gpt-4o" else Behaviour(content="second")

    with openai_server(behave) as server:
        reply = ask(LLM(model="openai/gpt-4o", fallbacks=("openai/gpt-4o-mini",), api_base=server.url))
    assert (reply.value, reply.model) == ("second", "openai/gpt-4o-mini")
    assert reply.usage.requests == server.count == 2


@pytest.mark.parametrize(
    ("first", "second", "error"),
    [
        pytest.param(401, 500, TransientError, id="a-retry-may-help"),
        pytest.param(400, 401, RejectedError, id="other-items-may-pass"),
        pytest.param(401, 404, TerminalError, id="no-hope"),
    ],
)
def test_when_all_fail_the_most_hopeful_failure_counts(first: int, second: int, error: type[ExecutorError]) -> None:
    """The run stops only if every model would fail for every item."""
    with openai_server(lambda request, _: failure(first if request["model"] == "x" else second)) as server:
        executor = LLM(model="openai/x", fallbacks=("openai/y",), api_base=server.url)
        with pytest.raises(error) as caught:
            ask(executor)
    assert type(caught.value) is error
    assert caught.value.usage == Usage(requests=2)


@pytest.mark.parametrize(
    ("model", "enforced"),
    [pytest.param("openai/gpt-4o", True, id="by-the-provider"), pytest.param("openai/mine", False, id="by-the-prompt")],
)
def test_where_the_schema_goes(model: str, enforced: bool) -> None:  # noqa: FBT001 -- a table's column
    """A model that takes schemas gets it as such, any other in the prompt."""
    with openai_server(Behaviour(content='{"a": 1}')) as server:
        ask(LLM(model=model, api_base=server.url), RECORD)
    [request] = server.requests
    assert ("response_format" in request.body) == enforced
    assert ("JSON Schema" in request.body["messages"][0]["content"]) != enforced


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"params": {"api_key": KEY}}, "keys live in the environment", id="key"),
        pytest.param({"params": {"extra_body": [{"client_secret": "x"}]}}, "keys live in the environment", id="nested"),
        pytest.param({"params": {"stream": True}}, "'stream' can't be set here", id="reserved"),
        pytest.param({"params": "{"}, "params", id="not-json"),
        pytest.param({"api_base": "http://me:pw@host/v1"}, "live in the environment", id="address"),
        pytest.param({"temperatur": 1}, "unknown key", id="unknown"),
    ],
)
def test_what_an_executor_must_not_hold(fields: dict[str, Any], said: str) -> None:
    """Secrets and what would undo promises are refused by name."""
    with pytest.raises(ValidationError, match=said):
        LLM.model_validate({"model": "openai/x", **fields})


def test_params_may_be_a_text() -> None:
    """A form's text and an object are the same, and JSON holds the text."""
    written = LLM.model_validate({"model": "openai/x", "params": '{"stop": ["."]}'})
    assert written == LLM(model="openai/x", params={"stop": ["."]})
    assert LLM.model_validate_json(written.model_dump_json()) == written


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param({"model": "openai/y"}, False, id="model"),
        pytest.param({"api_base": "http://127.0.0.1/v1"}, False, id="api_base"),
        pytest.param({"params": {"seed": 1}}, False, id="params"),
        pytest.param({"fallbacks": ("openai/y",)}, False, id="fallbacks"),
        pytest.param({"usd_per_million": (1, 2)}, True, id="usd_per_million"),
        pytest.param({"kind": "llm"}, True, id="kind"),
    ],
)
def test_what_counts_for_the_fingerprint(change: dict[str, Any], same: bool) -> None:  # noqa: FBT001 -- a table's column
    """Whatever changes answers changes the fingerprint, and nothing else does."""
    one, other = LLM(model="openai/x"), LLM.model_validate({"model": "openai/x", **change})
    assert (one.fingerprint == other.fingerprint) == same


def test_every_field_is_in_the_table_above() -> None:
    """A new field must be put into the fingerprint, or be named as one that doesn't count."""
    assert set(LLM.model_fields) == {"kind", "model", "api_base", "params", "fallbacks", "usd_per_million"}


def test_what_a_plan_asks_for() -> None:
    """Tokens grow with the item, and the cap on answers is heeded."""
    executor = LLM(model="openai/x", params={"max_tokens": 20})
    longer = Item(key="b", value="One document. " * 100)
    assert 20 < executor.count_tokens(BRIEF, ITEM) + 200 < executor.count_tokens(BRIEF, longer)
    assert executor.expected_completion_tokens(BRIEF) == 20
    assert LLM(model="openai/x").expected_completion_tokens(BRIEF) == 500


def test_a_response_without_anything_is_an_empty_answer() -> None:
    """Missing usage counts as none."""
    hollow: Any = type("Hollow", (), {"choices": []})
    assert reply_of(hollow, "m", (1, 1)) == Reply(value="", model="m", usage=Usage(requests=1))


def test_the_settings_name_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """PREFECT_DISPATCH_MODEL is asked where a job names no executor."""
    monkeypatch.setenv("PREFECT_DISPATCH_MODEL", "openai/gpt-5-mini")
    assert default_executor() == LLM(model="openai/gpt-5-mini")


def test_without_settings_the_local_model_or_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing set: the local model where it is installed, else a sentence that says what to set."""
    monkeypatch.delenv("PREFECT_DISPATCH_MODEL", raising=False)
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(JobError, match="PREFECT_DISPATCH_MODEL"):
        default_executor()


@pytest.mark.parametrize(
    ("models", "room"),
    [
        pytest.param(["openai/gpt-4o"], 128_000, id="listed"),
        pytest.param(["openai/gpt-4o", "local/smollm2"], 8192, id="the-smallest-of-the-fallbacks"),
        pytest.param(["openai/gpt-4o", "openai/nobody-knows"], None, id="unknown"),
        pytest.param(["openai/tts-1"], None, id="not-in-the-table-of-texts"),
    ],
)
def test_the_room_of_a_model(models: list[str], room: int | None) -> None:
    """Prompt and answer have to fit into each of the models; where one is unknown, nothing is known."""
    assert LLM(model=models[0], fallbacks=tuple(models[1:])).context_tokens() == room
