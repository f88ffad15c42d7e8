"""What a function or an agent of the user's is, how it is asked, and whether it can be told what was wrong."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from prefect_dispatch.errors import ExecutorError, JobError
from prefect_dispatch.executors.failures import failure_of
from prefect_dispatch.executors.prompt import fenced, messages
from prefect_dispatch.executors.worker_run import in_task, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from prefect_dispatch.executors.base import Ask

Given = Literal["ask", "item", "prompt", "value"]
_GIVEN: Mapping[str, Given] = {"ask": "ask", "item": "item", "prompt": "prompt"}
_ANNOTATED: Mapping[str, Given] = {"Ask": "ask", "Item": "item"}
_TAKES = "it has to take one thing: 'ask', 'item', 'prompt', or by any other name the item's value"


class Worker(Protocol):
    """Whoever answers."""

    @property
    def given(self) -> Given:
        """What it gets to see."""
        ...

    async def said(self, ask: Ask) -> object:
        """Return what it returns.

        Raises:
            ExecutorError: If it fails.
        """
        ...


def worker_of(thing: object) -> Worker:
    """Return whoever answers.

    Args:
        thing: A function, a coroutine function, an agent of pydantic-ai, a graph of LangGraph that is compiled, or
            what yields messages as the Claude Agent SDK does.

    Raises:
        JobError: If it is none of them.

    Example:
        >>> worker_of(len).given
        'value'
    """
    if _is_agent(thing):
        return _Agent(thing)
    if not isinstance(thing, type) and callable(getattr(thing, "ainvoke", None)):
        talks = "messages" in getattr(thing, "channels", ())  # of its state
        return _Graph(thing, "prompt" if talks else "value")
    if not callable(thing):
        raise JobError(f"must be a function or an agent, not {type(thing).__name__}")
    if inspect.isgeneratorfunction(thing):
        raise JobError("must return its answer, and not yield it")
    return _Function(thing, *_parameter(thing))


def prompt(ask: Ask) -> str:
    """Return all that an agent is told, in one text: brief, item, and what was sent back.

    Example:
        >>> from prefect_dispatch import Ask, Brief, Item
        >>> "Add up." in prompt(Ask(brief=Brief(name="sum", instructions="Add up."), item=Item(key="a", value=[1, 2])))
        True
    """
    chat = messages(ask, schema_in_prompt=True)
    return "\n\n".join(
        f"Your answer was:\n{fenced(each['content'])}" if each["role"] == "assistant" else each["content"]
        for each in chat
    )


def _shown(ask: Ask, given: Given) -> object:
    """Return what somebody gets to see, as a copy: what it does to it changes nothing else."""
    if given == "prompt":
        return prompt(ask)
    return copy.deepcopy({"ask": ask, "item": ask.item, "value": ask.item.value}[given])


@dataclass(frozen=True)
class _Function:
    """A function of whatever kind."""

    function: Callable[..., Any]
    given: Given
    keyword: str | None

    async def said(self, ask: Ask) -> object:
        """Call it: in a thread, unless it is made for an event loop."""
        shown = _shown(ask, self.given)
        call = partial(self.function, **{self.keyword: shown}) if self.keyword else partial(self.function, shown)
        if inspect.isasyncgenfunction(self.function):
            return await in_task(_last(call()))
        if inspect.iscoroutinefunction(self.function):
            return await in_task(call())
        result = await in_thread(call)
        return await in_task(cast("Awaitable[object]", result)) if inspect.isawaitable(result) else result


@dataclass(frozen=True)
class _Agent:
    """An agent as pydantic-ai has them."""

    agent: Any
    given: Given = "prompt"

    async def said(self, ask: Ask) -> object:
        """Run it once, from the beginning."""
        return await _of_a_provider(self.agent.run(prompt(ask)), self.agent)


@dataclass(frozen=True)
class _Graph:
    """A graph as LangGraph compiles them, or anything else that LangChain can invoke."""

    graph: Any
    given: Given

    async def said(self, ask: Ask) -> object:
        """Run it once, from the beginning."""
        shown = _shown(ask, self.given)
        state = {"messages": [{"role": "user", "content": shown}]} if self.given == "prompt" else shown
        return await _of_a_provider(self.graph.ainvoke(state), self.graph)


def _is_agent(thing: object) -> bool:
    runs = inspect.iscoroutinefunction(getattr(thing, "run", None)) and callable(getattr(thing, "run_sync", None))
    return runs and not isinstance(thing, type)


def _parameter(function: Callable[..., Any]) -> tuple[Given, str | None]:
    """Return what a function is to be given, and by which name if not by its place.

    Raises:
        JobError: If it doesn't take one thing.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins don't tell
        return "value", None
    parameters = [*signature.parameters.values()]
    placed = [each for each in parameters if each.kind not in {each.KEYWORD_ONLY, each.VAR_KEYWORD}]
    first = next((each for each in placed or parameters if placed or each.name in _GIVEN), None)
    if first is None:
        raise JobError(_TAKES)
    try:
        signature.bind(*[None] if placed else [], **{} if placed else {first.name: None})
    except TypeError:
        raise JobError(_TAKES) from None
    annotated = getattr(first.annotation, "__name__", first.annotation)
    given = _GIVEN.get(first.name) or _ANNOTATED.get(str(annotated).rpartition(".")[2], "value")
    return given, None if placed else first.name


async def _last(messages: AsyncIterator[object]) -> object:
    """Return the last thing that is yielded: where the Claude Agent SDK runs, that is the result."""
    last: object = None
    async for last in messages:  # noqa: B007 -- it is what is wanted
        pass
    return last


async def _of_a_provider(run: Awaitable[object], agent: object) -> object:
    """Return the result of an agent's run; what its model's provider refuses means what it means for a model.

    Raises:
        ExecutorError: If it fails.
    """
    try:
        return await in_task(run)
    except ExecutorError as error:
        cause = error.__cause__
        if isinstance(cause, Exception) and isinstance(getattr(cause, "status_code", None), int):
            raise failure_of(cause, type(agent).__name__) from cause
        raise
