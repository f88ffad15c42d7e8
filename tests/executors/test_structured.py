"""Servers that take the form of an answer in one way or another: it is found out once, and remembered."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.calls.call_gate import CallGate
from prefect_dispatch.errors import ExecutorError, FormRefusedError, RejectedError
from prefect_dispatch.executors.llm import messages
from prefect_dispatch.executors.llm.batch_api import BatchAPI
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.llm.local_model import has_smollm2
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import Limits
from tests.openai_server import Behaviour, failure, openai_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_dispatch.models.outcome import Answer

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
RECORD = Brief(name="rec", instructions="Give it.", output=SCHEMA)
LIST = Brief(name="list", instructions="List them.", output={"type": "array", "items": {"type": "integer"}})
ITEM = Item(key="a", value="One document.")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports are used again: what one server takes says nothing of the next."""
    messages.known_methods.clear()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")


def form(request: dict[str, Any]) -> str:
    """Return how a request asks for the form."""
    if request.get("tools"):
        return "tools"
    return str(request.get("response_format", {}).get("type", "prompt"))


def taking(*forms: str, refusal: Callable[[str], Behaviour] | None = None, content: str = '{"a": 1}') -> Any:  # noqa: ANN401 -- a behave
    """Return a server that takes some ways and refuses the rest, as vLLM and llama.cpp word it."""

    def refused(used: str) -> Behaviour:
        if used == "tools":
            return failure(500, "tools param requires --jinja flag")
        return failure(400, f"'response_format.type' must be one of {list(forms)}, not '{used}'")

    def behave(request: dict[str, Any], _n: int) -> Behaviour:
        used = form(request)
        if used not in forms:
            return (refusal or refused)(used)
        if used != "tools":
            return Behaviour(content=content)
        call = {"id": "1", "type": "function", "function": {"name": "answer", "arguments": content}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return Behaviour(
            body=json.dumps(
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "m",
                    "choices": [choice],
                    "usage": usage,
                }
            )
        )

    return behave


def ask(executor: LLM, brief: Brief = RECORD, gate: CallGate | None = None) -> Answer:
    """Ask as a run does."""
    limits = Limits(reasks=0)
    return asyncio.run(run_attempt(executor, brief, ITEM, limits=limits, gate=gate or CallGate(limits)))


@pytest.mark.parametrize(
    ("takes", "tried"),
    [
        (["json_schema", "json_object", "tools"], ["json_schema"]),
        (["json_object"], ["json_schema", "json_object"]),
        (["tools"], ["json_schema", "json_object", "tools"]),
        ([], ["json_schema", "json_object", "tools", "prompt"]),
    ],
    ids=["json_schema", "json_object", "tools", "none"],
)
@pytest.mark.parametrize("by", ["address", "variable"])
def test_auto_finds_the_strongest_way_that_a_server_takes(
    takes: list[str], tried: list[str], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: the next call begins with it. However the server is reached; each refused call is counted."""
    with openai_server(taking(*takes, "prompt")) as server:
        if by == "variable":
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        executor = LLM(model="openai/my-model", api_base=server.url if by == "address" else None)
        first, second = ask(executor), ask(executor)
    assert (first.value, second.value) == ({"a": 1}, {"a": 1})
    assert [form(request.body) for request in server.requests] == [*tried, tried[-1]]
    assert (first.attempts[0].usage.requests, second.attempts[0].usage.requests) == (len(tried), 1)
    assert (first.attempts[0].usage.unsettled, first.attempts[0].reasks) == (0, 0)
    shown = "JSON Schema" in server.requests[-1].body["messages"][0]["content"]
    assert shown is (tried[-1] != "tools")


@pytest.mark.parametrize("idle_s", [None, 5])
@pytest.mark.parametrize("method", ["json_schema", "json_object", "tools", "prompt"])
def test_a_stated_way_is_kept_to(method: Any, idle_s: float | None) -> None:  # noqa: ANN401 -- a literal
    """For known models, too; what is refused fails."""
    with openai_server(Behaviour(content='{"a": 1}')) as server:
        ask(LLM(model="openai/gpt-4o-mini", api_base=server.url, structured_output=method, idle_s=idle_s))
    assert [form(request.body) for request in server.requests] == [method]
    with openai_server(taking()) as server, pytest.raises(ExecutorError):
        ask(LLM(model="openai/mine", api_base=server.url, structured_output=method))
    assert server.count == 1


def test_what_litellm_knows_gets_what_it_got() -> None:
    """A model that takes schemas gets one and no prompt with it; one that doesn't gets the prompt."""
    with openai_server(Behaviour(content='{"a": 1}')) as server:
        ask(LLM(model="openai/gpt-4o-mini", api_base=server.url))
        ask(LLM(model="openai/gpt-3.5-turbo", api_base=server.url))
    known, old = (request.body for request in server.requests)
    assert (form(known), "JSON Schema" in known["messages"][0]["content"]) == ("json_schema", False)
    assert (form(old), "JSON Schema" in old["messages"][0]["content"]) == ("prompt", True)


@pytest.mark.parametrize("method", ["auto", "json_object", "tools"])
def test_what_is_no_object_is_never_asked_for_as_one(method: Any) -> None:  # noqa: ANN401 -- a literal
    """A list can't be a tool's arguments, nor what `json_object` demands."""
    with openai_server(taking("prompt", content="[1]")) as server:
        assert ask(LLM(model="openai/mine", api_base=server.url, structured_output=method), LIST).value == [1]
    assert form(server.requests[-1].body) == "prompt"


def test_a_tool_that_nobody_offered_is_no_answer() -> None:
    """Only the arguments of ours are read."""
    call = {"id": "1", "type": "function", "function": {"name": "other", "arguments": '{"a": 1}'}}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None, "tool_calls": [call]},
        "finish_reason": "stop",
    }
    body = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
    with openai_server(Behaviour(body=body)) as server, pytest.raises(ExecutorError) as caught:
        ask(LLM(model="openai/mine", api_base=server.url, structured_output="tools"))
    assert caught.value.kind == "empty"


def test_text_is_asked_for_as_ever() -> None:
    """Without a schema there is no form."""
    with openai_server() as server:
        for method in ("auto", "tools"):
            executor = LLM.model_validate({"model": "openai/mine", "api_base": server.url, "structured_output": method})
            ask(executor, Brief(name="b", instructions="Say it."))
    assert {form(request.body) for request in server.requests} == {"prompt"}


def test_another_reason_is_no_refusal() -> None:
    """A server that is broken, or refuses the item, changes nothing; nor do words that are quoted from the item."""
    with openai_server(failure(400, "the prompt is too long for this server")) as server:
        with pytest.raises(RejectedError):
            ask(LLM(model="openai/mine", api_base=server.url))
        assert server.count == 1
    with openai_server(failure(400, "bad words in 'response_format tools'")) as server:
        executor = LLM(model="openai/mine", api_base=server.url)
        for calls in (4, 8):
            with pytest.raises(RejectedError):
                ask(executor)
            assert server.count == calls


def test_each_try_passes_the_gate() -> None:
    """So a cap of requests holds."""
    limits = Limits(budget_requests=2)
    with openai_server(taking("prompt")) as server, pytest.raises(ExecutorError) as caught:
        ask(LLM(model="openai/mine", api_base=server.url), gate=CallGate(limits))
    assert caught.value.kind == "budget"
    assert server.count == 2


def test_of_few_models_is_anything_remembered() -> None:
    """What is found out of very many is forgotten."""
    error = RejectedError("no response_format here")
    for number in range(messages.MAX_REMEMBERED + 2):
        with pytest.raises(FormRefusedError):
            LLM(model=f"openai/m{number}", api_base="http://x").raise_if_form_refused(
                error, "json_schema", {"type": "object"}
            )
    assert len(messages.known_methods) == 2


def test_a_late_refusal_of_a_stronger_way_changes_nothing() -> None:
    """Calls that were under way together are refused one after another."""
    error = RejectedError("no response_format here")
    for used in ("json_schema", "json_object", "json_schema"):
        with pytest.raises(FormRefusedError):
            LLM(model="openai/m", api_base="http://x").raise_if_form_refused(error, used, {"type": "object"})
    assert LLM(model="openai/m", api_base="http://x").output_method(None, SCHEMA) == "tools"


def test_a_batch_tries_nothing() -> None:
    """A refusal would fail all of it: an unknown model gets the words alone, a known one the schema."""
    os.environ["OPENAI_API_KEY"] = "sk-test-0123456789"
    for model, method, expected in (
        ("openai/mine", "auto", "prompt"),
        ("openai/mine", "json_schema", "json_schema"),
        ("openai/gpt-4o-mini", "auto", "json_schema"),
    ):
        executor = LLM.model_validate({"model": model, "structured_output": method, "mode": "batch"})
        line = json.loads(BatchAPI(executor).request_line("n", _ask()))
        assert form(line["body"]) == expected


def _ask() -> Any:  # noqa: ANN401 -- an Ask
    from prefect_dispatch.executors.base import Ask  # noqa: PLC0415 -- used once

    return Ask(brief=RECORD, item=ITEM)


@pytest.mark.slow
@pytest.mark.skipif(not has_smollm2(), reason="needs prefect-dispatch[local]")
@pytest.mark.parametrize(
    ("method", "output"),
    [pytest.param("auto", SCHEMA, id="auto"), pytest.param("json_object", {"type": "object"}, id="json_object")],
)
def test_the_model_of_this_machine_keeps_to_the_schema(method: Any, output: dict[str, Any]) -> None:  # noqa: ANN401 -- a literal
    """llama.cpp holds it to a grammar: of the schema, or of any object; so small a model needs that."""
    brief = Brief(name="n", instructions='Answer {"a": 1}, exactly so.', output=output)
    executor = LLM(model="local/smollm2", structured_output=method, params={"max_tokens": 60})
    answer = asyncio.run(run_attempt(executor, brief, ITEM, limits=Limits(timeout_s=600, reasks=5)))
    assert isinstance(answer.value, dict)
