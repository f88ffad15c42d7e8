"""Agents of pydantic-ai and LangGraph as executors: the real libraries, with models that are scripts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypedDict, cast

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph  # pyright: ignore[reportMissingTypeStubs]
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RequestUsage

from prefect_dispatch import Ask, Brief, Item, Limits, PythonCallable, Reply, Usage
from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.errors import (
    BusyError,
    ExecutorError,
    InvalidOutput,
    JobError,
    RejectedError,
    TerminalError,
    TransientError,
)

if TYPE_CHECKING:
    from prefect_dispatch.models.outcome import Answer

BRIEF = Brief(
    name="family",
    instructions="Name the family.",
    output={"type": "object", "properties": {"family": {"enum": ["permissive", "copyleft"]}}, "required": ["family"]},
)
ITEM = Item(key="mit", value="Permission is hereby granted, free of charge, to any person.")
FAMILY = {"family": "permissive"}


def answered(agent: object, brief: Brief = BRIEF, item: Item = ITEM) -> Answer:
    """Return an agent's answer, by the way that every ask goes."""
    return asyncio.run(run_attempt(PythonCallable(agent, version="1"), brief, item, limits=Limits(wait_s=0)))


def replied(agent: object, brief: Brief = BRIEF) -> Reply:
    """Return what an agent says once."""
    return asyncio.run(PythonCallable(agent, version="1").answer(Ask(brief=brief, item=ITEM)))


class Family(BaseModel):
    """What an agent of its own form answers."""

    family: str


def text(said: str, **usage: Any) -> ModelResponse:  # noqa: ANN401 -- counts, and a cost
    """Return a model's words."""
    return ModelResponse(parts=[TextPart(said)], usage=RequestUsage(**usage))


def prompts(messages: list[ModelMessage]) -> str:
    """Return all that a model is told."""
    return str(messages)


@pytest.mark.slow
def test_an_agent_of_pydantic_ai_is_told_the_brief_and_what_was_wrong() -> None:
    """An invalid answer goes back to it; its tokens, its requests and its model stand with the answer."""

    def say(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        told = prompts(messages)
        assert "Name the family." in told
        assert "hereby granted" in told
        if "That answer is not valid" not in told:
            return text('{"family": "MIT"}', input_tokens=10, output_tokens=2)
        assert "is not one of" in told
        return text('```json\n{"family": "permissive"}\n```', input_tokens=20, output_tokens=3)

    answer = answered(Agent(FunctionModel(say, model_name="scripted-1")))
    assert (answer.value, answer.model) == (FAMILY, "scripted-1")
    (took,) = answer.attempts
    assert took.reasks == 1
    assert took.usage == Usage(requests=2, prompt_tokens=30, completion_tokens=5, cost_usd=None)


def test_an_agent_with_tools_and_a_form_of_its_own() -> None:
    """What it made counts as the answer, and every request that it took counts as spent."""
    looked: list[str] = []

    def say(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if not looked:
            return ModelResponse(parts=[ToolCallPart("look_up", {"name": "mit"})], usage=RequestUsage(input_tokens=7))
        (form,) = info.output_tools
        cost = Decimal("0.25")
        return ModelResponse(
            parts=[ToolCallPart(form.name, FAMILY)], usage=RequestUsage(input_tokens=5, output_tokens=1, cost=cost)
        )

    agent = Agent(FunctionModel(say), output_type=Family)

    @agent.tool_plain
    def look_up(name: str) -> str:
        looked.append(name)
        return "It is permissive."

    reply = replied(agent)
    assert (reply.value, looked) == (FAMILY, ["mit"])
    assert (reply.usage.requests, reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, 12, 1)
    assert reply.usage.cost_usd == 0.25


def test_a_function_that_runs_an_agent_hands_on_its_result() -> None:
    """Whatever it gives the agent: usage and model are taken all the same."""
    agent = Agent(TestModel(custom_output_text="permissive"))

    async def ask_it(item: Item) -> object:
        return await agent.run(f"Which family is {item.key}?")

    def ask_it_now(item: Item) -> object:
        return agent.run_sync(f"Which family is {item.key}?")

    enum = BRIEF.model_copy(update={"output": '{"enum":["permissive"]}'})
    for function in (ask_it, ask_it_now):
        answer = answered(function, enum)
        assert answer.value == "permissive"
        assert answer.model == "test"
        assert answer.attempts[0].usage.completion_tokens > 0


@dataclass
class Run:
    """The result of a run as version 1 has it, in which the usage is a method."""

    output: object

    def usage(self) -> RequestUsage:
        """Return what it took."""
        return RequestUsage(input_tokens=1, output_tokens=2)

    def all_messages(self) -> list[ModelMessage]:
        """Return what was said."""
        return []


def test_a_run_of_version_1() -> None:
    """Its usage is a method."""

    def runs(prompt: str) -> object:
        return Run(FAMILY)

    reply = replied(runs)
    assert (reply.value, reply.model) == (FAMILY, "runs")
    assert reply.usage == Usage(requests=1, prompt_tokens=1, completion_tokens=2, cost_usd=None)


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (401, "credentials", TerminalError),
        (404, "model", TerminalError),
        (429, "rate_limit", BusyError),
        (500, "server", TransientError),
        (400, "rejected", RejectedError),
    ],
)
def test_what_a_provider_refuses_means_what_it_means_for_a_model(
    status: int, kind: str, error: type[ExecutorError]
) -> None:
    """A wrong key stops the run, a failure of the provider is retried."""

    def say(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        raise ModelHTTPError(status, "scripted-1", {"message": "key sk-proj-0123456789abcdef"})

    with pytest.raises(error, match=r"'Agent' failed: ") as failed:
        replied(Agent(FunctionModel(say)))
    assert (type(failed.value), failed.value.kind) == (error, kind)
    assert "sk-proj" not in str(failed.value)


def test_whatever_else_an_agent_raises_fails_its_item() -> None:
    """By its class and its words."""

    def say(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        raise LookupError("no such licence")

    with pytest.raises(ExecutorError, match=r"^LookupError: no such licence$"):
        answered(Agent(FunctionModel(say)))
    with pytest.raises(InvalidOutput, match="No valid answer in 3 asks"):
        answered(Agent(TestModel(custom_output_text="no idea")))


def test_an_agent_has_no_source() -> None:
    """It needs a version: how it answers depends on its model, its instructions and its tools."""
    with pytest.raises(JobError, match=r"how a Agent answers can't be read off a source: give it a version"):
        _ = PythonCallable(Agent(TestModel())).fingerprint
    executor = PythonCallable(Agent(TestModel()), version="reviewer-1")
    assert (executor.name, executor.ignores_feedback) == ("Agent", False)
    assert executor.fingerprint != PythonCallable(Agent(TestModel()), version="reviewer-2").fingerprint


def talk(*said: AIMessage) -> Any:  # noqa: ANN401 -- a compiled graph has as many parameters as it has states
    """Return a graph whose one node asks a model that says these."""
    model = GenericFakeChatModel(messages=iter(said))

    def chat(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("chat", chat)  # pyright: ignore[reportUnknownMemberType] -- its types are partly unknown
    graph.add_edge(START, "chat")
    graph.add_edge("chat", END)
    return graph.compile()  # pyright: ignore[reportUnknownMemberType]


def counted(said: str, sent: int, got: int) -> AIMessage:
    """Return a message that tells its tokens."""
    return AIMessage(
        said,
        usage_metadata={"input_tokens": sent, "output_tokens": got, "total_tokens": sent + got},
        response_metadata={"model_name": "scripted-2"},
    )


def test_a_graph_of_langgraph_that_talks_in_messages() -> None:
    """It is told the brief; its last message is the answer, and what was wrong goes back to it."""
    answer = answered(talk(counted('{"family": "MIT"}', 9, 2), counted('{"family": "permissive"}', 20, 3)))
    assert (answer.value, answer.model) == (FAMILY, "scripted-2")
    assert answer.attempts[0].usage == Usage(requests=2, prompt_tokens=29, completion_tokens=5, cost_usd=None)


def test_a_graph_that_does_not_tell_its_tokens() -> None:
    """They count as untold."""
    reply = replied(talk(AIMessage('{"family": "permissive"}')))
    assert (reply.value, reply.model) == ('{"family": "permissive"}', "CompiledStateGraph")
    assert reply.usage == Usage(requests=1, cost_usd=None, unsettled=1)


class Weighing(TypedDict):
    """A state of one's own."""

    words: list[str]
    weight: int


def test_a_graph_with_a_state_of_its_own() -> None:
    """The item's value is what it begins with, and what it ends with is the answer."""

    def weigh(state: Weighing) -> dict[str, int]:
        return {"weight": len(state["words"])}

    graph = StateGraph(Weighing)
    graph.add_node("weigh", weigh)  # pyright: ignore[reportUnknownMemberType] -- as above
    graph.add_edge(START, "weigh")
    compiled = cast("Any", graph.compile())  # pyright: ignore[reportUnknownMemberType]
    item = Item(key="a", value={"words": ["a", "b"], "weight": 0})
    brief = Brief(name="weigh", instructions="Weigh.", output={"type": "object"})
    assert answered(compiled, brief, item).value == {"words": ["a", "b"], "weight": 2}
    assert PythonCallable(compiled, version="1").ignores_feedback
    with pytest.raises(ValueError, match="must be a function or an agent, not StateGraph"):
        PythonCallable(graph)


def test_what_a_chain_and_a_prebuilt_agent_return() -> None:
    """A message, or a state with an answer in the form that was asked for."""

    def message(prompt: str) -> object:
        return counted('{"family": "permissive"}', 1, 2)

    def structured(prompt: str) -> object:
        said = [HumanMessage(prompt), counted("It is permissive.", 1, 2)]
        return {"messages": said, "structured_response": Family(family="permissive")}

    def asks_back(prompt: str) -> object:
        return {"messages": [HumanMessage('{"family": "permissive"}')]}

    for function in (message, structured):
        answer = answered(function)
        assert (answer.value, answer.model, answer.attempts[0].usage.tokens) == (FAMILY, "scripted-2", 3)
    assert replied(asks_back).usage == Usage(cost_usd=None)


@dataclass
class Old:
    """A message of before version 1, whose text is a method."""

    content: str
    usage_metadata: dict[str, int] | None = None
    type: str = "human"

    def text(self) -> str:
        """Return it."""
        return self.content


def test_a_message_of_an_older_langchain() -> None:
    """Its text is a method."""

    def message(prompt: str) -> object:
        return Old('{"family": "permissive"}')

    assert answered(message).value == FAMILY
