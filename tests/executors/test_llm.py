"""Asking models through real HTTP, and what their errors mean."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.errors import ExecutorError, JobError, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.base import Ask, Executor, Reply
from prefect_dispatch.executors.llm.litellm_adapter import MAX_UNLISTED, parse_response
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.registry import default_executor
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Rejection, Usage
from tests.openai_server import HANG, Behaviour, failure, openai_server

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
    """The protocols hold without a call."""
    executor = LLM(model="openai/x")
    assert isinstance(executor, Executor)
    assert executor.fallback_chain == (executor,)


def test_importing_it_does_not_import_litellm() -> None:
    """The import takes milliseconds; litellm's takes seconds and waits for the first call."""
    code = "import sys, prefect_dispatch.executors.llm.llm; sys.exit('litellm' in sys.modules)"
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


def test_hanging_up_ends_the_request() -> None:
    """A time-out closes the connection."""
    with openai_server(HANG) as server, pytest.raises(TransientError) as caught:
        asyncio.run(
            run_attempt(LLM(model="openai/x", api_base=server.url), BRIEF, ITEM, limits=Limits(reasks=0, timeout_s=0.3))
        )
    assert caught.value.kind == "timeout"
    assert server.hung_up == server.count


def test_the_fallback_answers_and_both_are_counted() -> None:
    """The answer says who gave it, and its usage is that of all calls."""

    def behave(request: dict[str, Any], _n: int) -> Behaviour:
        return failure(500) if request["model"] == "gpt-4o" else Behaviour(content="second")

    with openai_server(behave) as server:
        executor = LLM(model="openai/gpt-4o", fallbacks=("openai/gpt-4o-mini",), api_base=server.url)
        answer = asyncio.run(run_attempt(executor, BRIEF, ITEM, limits=Limits()))
    assert (answer.value, answer.model) == ("second", "openai/gpt-4o-mini")
    [done] = answer.attempts
    assert done.usage.requests == server.count == 2
    assert [given_up.kind for given_up in done.escalations] == ["server"]


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
            asyncio.run(run_attempt(executor, BRIEF, ITEM, limits=Limits()))
    assert type(caught.value) is error
    assert caught.value.attempts[0].usage == Usage(requests=2)


def test_alone_it_asks_its_own_model() -> None:
    """The fallbacks are tiers of their own."""
    with openai_server(failure(500)) as server, pytest.raises(TransientError):
        ask(LLM(model="openai/x", fallbacks=("openai/y",), api_base=server.url))
    assert [request.body["model"] for request in server.requests] == ["x"]


def test_what_a_fallback_takes_along() -> None:
    """Parameters, prices and limits; the address goes to models of the same provider alone."""
    fields: dict[str, Any] = {"params": {"seed": 1}, "usd_per_million": (1, 2), "idle_s": 9}
    executor = LLM(
        model="openai/a", api_base="http://x/v1", fallbacks=("openai/b", "mistral/c", "local/d.gguf"), **fields
    )
    assert executor.fallback_chain == (
        LLM(model="openai/a", api_base="http://x/v1", **fields),
        LLM(model="openai/b", api_base="http://x/v1", **fields),
        LLM(model="mistral/c", **fields),
        LLM(model="local/d.gguf", **fields),
    )
    assert [tier.fallback_chain for tier in executor.fallback_chain] == [(tier,) for tier in executor.fallback_chain]
    assert [tier.name for tier in executor.fallback_chain] == [
        "openai/a at http://x/v1",
        "openai/b at http://x/v1",
        "mistral/c",
        "local/d.gguf",
    ]


@pytest.mark.parametrize(
    ("model", "enforced"),
    [
        pytest.param("openai/gpt-4o", True, id="by-the-provider"),
        pytest.param("openai/gpt-3.5-turbo", False, id="by-the-prompt"),
    ],
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
        pytest.param({"params": {"extra_body": {"n": 2}}}, "'n' can't be set here", id="reserved-in-the-body"),
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
        pytest.param({"credentials": "my-openai"}, True, id="credentials"),
        pytest.param({"usd_per_million": (1, 2)}, True, id="usd_per_million"),
        pytest.param({"idle_s": 5}, True, id="idle_s"),
        pytest.param({"mode": "batch"}, True, id="mode"),
        pytest.param({"rounds": 2}, True, id="rounds"),
        pytest.param({"web_search": True}, False, id="web_search"),
        pytest.param({"cascade": {"cheap": "openai/y"}}, False, id="cascade"),
        pytest.param({"kind": "llm"}, True, id="kind"),
    ],
)
def test_what_counts_for_the_fingerprint(change: dict[str, Any], same: bool) -> None:  # noqa: FBT001 -- a table's column
    """Whatever changes answers changes the fingerprint, and nothing else does."""
    one, other = LLM(model="openai/x"), LLM.model_validate({"model": "openai/x", **change})
    assert (one.fingerprint == other.fingerprint) == same


def test_an_executor_is_an_object_of_keys() -> None:
    """A name alone is refused: it is the model's, and says so nowhere."""
    with pytest.raises(ValidationError, match="valid dictionary"):
        LLM.model_validate("openai/x")


def test_every_field_is_in_the_table_above() -> None:
    """A new field must be put into the fingerprint, or be named as one that doesn't count."""
    assert set(LLM.model_fields) == {"kind", "model", "api_base", "params", "fallbacks", "usd_per_million"} | {
        "credentials",
        "idle_s",
        "structured_output",
        "accept_models",
        "strict_model",
        "mode",
        "rounds",
        "web_search",
        "cascade",
    }


def test_answers_of_earlier_releases_are_found() -> None:
    """The fingerprint is what it has been: answers are stored under it."""
    executor = LLM(model="openai/x", api_base="http://x/v1", params={"seed": 1}, fallbacks=("openai/y",))
    assert executor.fingerprint == "318212562e6d74287e8f5931919599e547e4fd94f1ab0b084b3f9bbe28e90bc8"


def test_what_a_plan_asks_for() -> None:
    """Tokens grow with the item, and the cap on answers is heeded."""
    executor = LLM(model="openai/x", params={"max_tokens": 20})
    longer = Item(key="b", value="One document. " * 100)
    assert 20 < executor.count_tokens(BRIEF, ITEM) + 200 < executor.count_tokens(BRIEF, longer)
    assert executor.expected_completion_tokens(BRIEF) == 20
    assert LLM(model="openai/x").expected_completion_tokens(BRIEF) == 500


SHORT = Ask(brief=BRIEF, item=ITEM)


def _long(text: str, times: int) -> Ask:
    return Ask(brief=BRIEF, item=Item(key="b", value=text * times))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "longest"),
    [
        pytest.param({"model": "openai/gpt-4o"}, 16384, id="listed"),
        pytest.param({"model": "openai/gpt-4o", "params": {"max_tokens": 50}}, 50, id="max_tokens"),
        pytest.param({"model": "openai/mine", "params": {"max_completion_tokens": 60}}, 60, id="max_completion_tokens"),
        pytest.param(
            {"model": "openai/mine", "params": {"max_tokens": 5, "max_completion_tokens": 6}}, 6, id="the-larger-one"
        ),
        pytest.param({"model": "openai/gpt-4o", "params": {"max_tokens": None}}, 16384, id="no-cap"),
        pytest.param({"model": "openai/mine"}, None, id="nobody-knows"),
        pytest.param({"model": "local/smollm2"}, 512, id="local"),
        pytest.param({"model": "local/smollm2", "params": {"max_tokens": -1}}, 8192, id="local-without-a-cap"),
    ],
)
def test_the_longest_answer(fields: dict[str, Any], longest: int | None) -> None:
    """By the cap in the parameters, else by the table."""
    assert LLM(**fields).cost_bound(SHORT).completion_tokens == longest


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        pytest.param({"model": "openai/gpt-4o", "params": {"max_tokens": 10}}, (2.5e-6, 1e-5, 10), id="listed"),
        pytest.param({"model": "openai/gpt-4o"}, (2.5e-6, 1e-5, 16384), id="listed-answer"),
        pytest.param({"model": "openai/mine", "usd_per_million": (1, 2)}, None, id="unbounded"),
        pytest.param({"model": "openai/mine", "usd_per_million": (1, 0)}, (1e-6, 0, 0), id="answers-are-free"),
        pytest.param(
            {"model": "openai/mine", "usd_per_million": (1, 2), "params": {"max_tokens": 9}},
            (1e-6, 2e-6, 9),
            id="given",
        ),
        pytest.param({"model": "openai/mine", "params": {"max_tokens": 10}}, None, id="no-price"),
        pytest.param({"model": "local/smollm2"}, (0, 0, 512), id="local"),
        pytest.param({"model": "dashscope/qwen-turbo", "params": {"max_tokens": 10}}, (5e-8, 5e-7, 10), id="reasoning"),
    ],
)
def test_what_a_call_costs_at_most(fields: dict[str, Any], cost: tuple[float, float, int] | None) -> None:
    """The prompt as counted and the longest answer, at the dearest price; nothing is promised where one is unknown."""
    ceiling = LLM(**fields).cost_bound(SHORT)
    assert ceiling.cost_usd == (cost and pytest.approx(ceiling.prompt_tokens * cost[0] + cost[1] * cost[2]))


def test_long_prompts_may_cost_more_per_token() -> None:
    """Where a model's price depends on the length of the prompt, the dearer one counts."""
    executor = LLM(model="gemini/gemini-2.5-pro", params={"max_tokens": 1})
    short, long = executor.cost_bound(SHORT), executor.cost_bound(_long("word ", 200_000))
    assert short.cost_usd == pytest.approx(short.prompt_tokens * 1.25e-6 + 1e-5)
    assert long.cost_usd == pytest.approx(long.prompt_tokens * 2.5e-6 + 1.5e-5)


@pytest.mark.parametrize(
    "text", ["A sentence in English. ", "Straßenverkehrsämter ", "漢字かな", "🙂", "a1B2$", "\n\t{}"]
)
def test_more_tokens_than_the_plan_says_and_fewer_than_bytes(text: str) -> None:
    """The ceiling leaves room for other tokenizers; for a very long prompt it counts bytes."""
    executor = LLM(model="openai/x")
    for times in (1, 100, 10_000):
        asked = _long(text, times)
        counted, most = executor.count_tokens(BRIEF, asked.item), executor.cost_bound(asked).prompt_tokens
        assert counted < most
        assert most <= max(1.25 * counted + 21, len(text.encode()) * times + 2000)
    huge = _long(text, 1 + (1 << 20) // len(text.encode()))
    assert executor.cost_bound(huge).prompt_tokens > 1 << 20


def test_re_asks_are_counted() -> None:
    """What was sent back is sent again."""
    executor = LLM(model="openai/x")
    again = SHORT.model_copy(update={"rejections": (Rejection(text="word " * 100, problems=("Too long.",)),)})
    assert executor.cost_bound(again).prompt_tokens > executor.cost_bound(SHORT).prompt_tokens + 100


@pytest.mark.parametrize("model", ["openai/gpt-4o", "openai/mine"])
def test_a_schema_counts_wherever_it_goes(model: str) -> None:
    """Providers count it as prompt, in the messages or beside them."""
    executor = LLM(model=model)
    plain = executor.cost_bound(SHORT).prompt_tokens
    assert executor.cost_bound(Ask(brief=RECORD, item=ITEM)).prompt_tokens > plain


def test_a_response_without_anything_is_an_empty_answer() -> None:
    """What it spent is unknown."""
    hollow: Any = type("Hollow", (), {"choices": []})
    assert parse_response(hollow, "m", (1, 1)) == Reply(value="", model="m", usage=Usage(requests=1, unsettled=1))


def test_a_server_whose_model_has_another_name_each_time() -> None:
    """What such names cost is looked up, and stays unknown; no more of them are remembered than a few."""
    said: Any = {"choices": [], "usage": SimpleNamespace(prompt_tokens=10, completion_tokens=5)}
    for n in range(MAX_UNLISTED + 2):
        response: Any = SimpleNamespace(**said, model=f"tomorrow-{n}")
        assert parse_response(response, "openai/mine", None).usage.cost_usd is None


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        pytest.param({"model": "openai/gpt-4o"}, 0.0, id="listed"),
        pytest.param({"model": "openai/mine", "usd_per_million": (1, 2)}, 0.0, id="given"),
        pytest.param({"model": "openai/mine"}, None, id="unknown"),
    ],
)
def test_tokens_that_nobody_told(fields: dict[str, Any], cost: float | None) -> None:
    """The call is unsettled; that it was for nothing is said of no model without a price."""
    with openai_server(Behaviour(tells_tokens=False)) as server:
        reply = ask(LLM(api_base=server.url, **fields))
    assert reply.usage == Usage(requests=1, unsettled=1, cost_usd=cost)


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
