"""Executor that calls a Python function, or an agent of another framework, in place of a model.

Everything else (retries, limits, validation, checkpoints) works as it does for a language model.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import inspect
import json
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import anyio
from pydantic import AfterValidator, Field, JsonValue, PlainSerializer, PrivateAttr, StringConstraints, WithJsonSchema
from pydantic_core import to_jsonable_python

from prefect_dispatch.errors import (
    BriefError,
    ExecutorError,
    InvalidOutput,
    JobError,
    RejectedError,
)
from prefect_dispatch.executors.base import BaseExecutor, Reply, require_no_command
from prefect_dispatch.executors.command_checks import file_digests
from prefect_dispatch.executors.llm.messages import PROMPT, build_text
from prefect_dispatch.executors.llm.provider_errors import classify_error, classify_status
from prefect_dispatch.executors.source_identity import source_identity
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.imports import REFERENCE, import_reference, to_reference
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.models.output_schema import read_json, validate_output
from prefect_dispatch.security.redaction import redact, safe_message
from prefect_dispatch.serialization.json_text import digest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from prefect_dispatch.executors.base import Ask
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.output_schema import Output


_Result = tuple[object, BaseException | None]
"""What a call returned, or else the exception that it raised."""
CLEANUP_S = 5.0
"""Seconds that a cancelled coroutine has for its clean-up."""


async def run_in_thread(call: Callable[[], object]) -> object:
    """Run a blocking call in a daemon thread of its own, and return its result.

    If the wait is cancelled, the call goes on, because a thread can't be ended, and its result is dropped. The exit
    of the process doesn't wait for it.

    Raises:
        ExecutorError: If the call raises: that error itself if it is an `ExecutorError`, else one that wraps it.
    """
    done: Future[_Result] = Future()
    done.set_running_or_notify_cancel()  # from here on, a cancelled wait can't cancel it
    context = contextvars.copy_context()

    def work() -> None:
        outcome: _Result
        try:
            outcome = context.run(call), None
        except BaseException as error:  # noqa: BLE001 -- an exit in a function is that item's failure, too
            outcome = None, error
        # Most threads have no event loop; an agent that is called synchronously leaves its own loop behind.
        with suppress(RuntimeError):
            asyncio.get_event_loop().close()
        done.set_result(outcome)

    threading.Thread(target=work, name="prefect-dispatch-python", daemon=True).start()
    return _unwrap(*await asyncio.wrap_future(done))


async def run_in_task(awaitable: Awaitable[object]) -> object:
    """Await an awaitable in a task of its own, and return its result; cancelling the wait cancels it, too.

    Raises:
        ExecutorError: If it raises, or cancels itself, which must not look like a cancellation of the run.
    """

    async def capture() -> _Result:
        try:
            return await awaitable, None
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 -- an exit would end the event loop
            return None, error

    task = asyncio.ensure_future(capture())
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task], timeout=CLEANUP_S)
        raise
    if task.cancelled():
        raise ExecutorError("It cancelled itself.", kind="cancelled")
    return _unwrap(*task.result())


def _unwrap(value: object, error: BaseException | None) -> object:
    """Return a result, or raise its error as an `ExecutorError`."""
    if error is None:
        return value
    if isinstance(error, ExecutorError):
        raise error
    raise ExecutorError(safe_message(error)) from error


ArgumentKind = Literal["ask", "item", "prompt", "value"]
_KIND_BY_NAME: Mapping[str, ArgumentKind] = {"ask": "ask", "item": "item", "prompt": "prompt"}
_KIND_BY_ANNOTATION: Mapping[str, ArgumentKind] = {"Ask": "ask", "Item": "item"}
_ARGUMENT_HINT = "it has to take one thing: 'ask', 'item', 'prompt', or by any other name the item's value"


@dataclass(frozen=True)
class CallableAdapter:
    """Adapter that calls a function or an agent."""

    argument_kind: ArgumentKind
    """The kind of argument that it takes."""
    invoke: Callable[[Any], Awaitable[object]]
    """Calls it with such an argument; raises `ExecutorError`."""

    async def call(self, ask: Ask) -> object:
        """Call it once, with a deep copy of what it takes, so that it can't change the original."""
        if self.argument_kind == "prompt":
            return await self.invoke(build_text(ask))
        given = {"ask": ask, "item": ask.item, "value": ask.item.value}[self.argument_kind]
        return await self.invoke(copy.deepcopy(given))


def create_adapter(thing: object) -> CallableAdapter:
    """Return the adapter that calls a function or an agent.

    Args:
        thing: A function, a coroutine function, an agent of pydantic-ai, a compiled graph of LangGraph, or an
            asynchronous generator of messages such as the Claude Agent SDK's `query`.

    Raises:
        JobError: If it is none of these.

    Example:
        >>> create_adapter(len).argument_kind
        'value'
    """
    agent: Any = None if isinstance(thing, type) else thing
    if inspect.iscoroutinefunction(getattr(agent, "run", None)) and hasattr(agent, "run_sync"):  # pydantic-ai
        return CallableAdapter("prompt", lambda text: _await_agent(agent.run(text), agent))
    if callable(getattr(agent, "ainvoke", None)):  # a graph, or another runnable of LangChain
        if "messages" not in getattr(agent, "channels", ()):  # the channels of a graph's state
            return CallableAdapter("value", lambda value: _await_agent(agent.ainvoke(value), agent))
        return CallableAdapter(
            "prompt",
            lambda text: _await_agent(agent.ainvoke({"messages": [{"role": "user", "content": text}]}), agent),
        )
    if not callable(thing):
        raise JobError(f"must be a function or an agent, not {type(thing).__name__}")
    if inspect.isgeneratorfunction(thing):
        raise JobError("must return its answer, and not yield it")
    argument_kind, keyword = _inspect_parameter(thing)
    return CallableAdapter(argument_kind, partial(_call_function, thing, keyword))


async def _call_function(function: Callable[..., Any], keyword: str | None, argument: object) -> object:
    """Call a function: in a thread, unless it is a coroutine function or an asynchronous generator."""
    call = partial(function, **{keyword: argument}) if keyword else partial(function, argument)
    if inspect.isasyncgenfunction(function):
        return await run_in_task(_last_message(call()))
    if inspect.iscoroutinefunction(function):
        return await run_in_task(call())
    result = await run_in_thread(call)
    return await run_in_task(cast("Awaitable[object]", result)) if inspect.isawaitable(result) else result


def _inspect_parameter(function: Callable[..., Any]) -> tuple[ArgumentKind, str | None]:
    """Return the kind of argument that a function takes, and its keyword if it can't be passed by position.

    Raises:
        JobError: If the function can't be called with exactly one argument.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins have no signature
        return "value", None
    # 1. The parameter to fill: the first positional one, else a keyword-only one with a known name.
    parameters = [*signature.parameters.values()]
    positional = [each for each in parameters if each.kind not in {each.KEYWORD_ONLY, each.VAR_KEYWORD}]
    first = next((each for each in positional or parameters if positional or each.name in _KIND_BY_NAME), None)
    if first is None:
        raise JobError(_ARGUMENT_HINT)
    # 2. A call with this argument alone has to be valid.
    try:
        signature.bind(*[None] if positional else [], **{} if positional else {first.name: None})
    except TypeError:
        raise JobError(_ARGUMENT_HINT) from None
    # 3. Its kind follows from its name, else from its annotation, which may be a class or a text.
    annotated = getattr(first.annotation, "__name__", first.annotation)
    given = _KIND_BY_NAME.get(first.name) or _KIND_BY_ANNOTATION.get(str(annotated).rpartition(".")[2], "value")
    return given, None if positional else first.name


async def _last_message(messages: AsyncIterator[object]) -> object:
    """Return the last message of an asynchronous generator; the Claude Agent SDK's last one is the result."""
    last: object = None
    async for last in messages:  # noqa: B007 -- it is what is wanted
        pass
    return last


async def _await_agent(run: Awaitable[object], agent: object) -> object:
    """Return the result of an agent's run; classify errors of its model's provider as the LLM executor does.

    Raises:
        ExecutorError: If the run fails.
    """
    try:
        return await run_in_task(run)
    except ExecutorError as error:
        cause = error.__cause__
        if isinstance(cause, Exception) and isinstance(getattr(cause, "status_code", None), int):
            raise classify_error(cause, type(agent).__name__) from cause
        raise


UNKNOWN_USAGE = Usage(requests=1, cost_usd=None)
"""Usage of a call that reports none: one request of unknown cost."""
MAX_QUOTED = 1_000
"""Characters of an agent's own error message that an error quotes."""


def to_reply(result: object, name: str, output: Output = "text") -> Reply:
    """Convert the result of a function or an agent to a `Reply`.

    Args:
        result: A `Reply`, the result of a run of pydantic-ai, the final state or message of LangGraph or LangChain,
            the last message of the Claude Agent SDK; or any value: a pydantic model, a dataclass, JSON.
        name: Name of the answering model, where the result has none.
        output: The requested output. For `text` a text is kept as it is, even if it happens to be JSON; for a model
            or a schema it is JSON.

    Raises:
        ExecutorError: If the result reports a failure.
        InvalidOutput: If the result can't be represented as JSON.

    Example:
        >>> to_reply({"words": 3}, "count").value
        {'words': 3}
    """
    if isinstance(result, Reply):
        return result
    from_framework = _from_framework(result, name)
    reply = from_framework or Reply(value=as_json(result), model=name, usage=UNKNOWN_USAGE)
    # A text may be meant as text, or as the JSON that it contains.
    if not isinstance(reply.value, str) or output == "text":
        return reply
    value = _choose_form(reply.value, json.dumps(reply.value), output, first=not from_framework)
    return reply.model_copy(update={"value": value})


def _choose_form(text: str, quoted: str, output: Output, *, first: bool) -> str:
    """Return a text or its JSON string literal, whichever is valid for the requested output.

    Where neither is valid, it is the one that gives the better error message.

    Args:
        text: The text.
        quoted: The same as a JSON string literal.
        output: The requested output.
        first: Whether the literal wins where both are valid.
    """
    for value in (quoted, text) if first else (text, quoted):
        with suppress(Exception):  # a broken validator is reported where answers are validated
            if not validate_output(output, value)[1]:
                return value
    with suppress(ValueError):
        read_json(text)
        return text
    return quoted if first else text


def _from_framework(result: object, name: str) -> Reply | None:
    """Convert the result of a known framework, recognised by its attributes; None if it is of none of them."""
    # By attributes, as none of these libraries has to be installed.
    if _has_attributes(result, "is_error", "num_turns", "total_cost_usd", "session_id"):
        return _from_claude(result, name)
    if _has_attributes(result, "output", "usage", "all_messages"):
        return _from_pydantic_ai(result, name)
    if _has_attributes(result, "content", "usage_metadata"):
        return _from_messages([result], None, name)
    state = cast("dict[str, Any]", result) if isinstance(result, dict) else {}
    messages = state.get("messages")
    if messages and isinstance(messages, list) and _has_attributes(state["messages"][-1], "content", "type"):
        return _from_messages(state["messages"], state.get("structured_response"), name)
    return None


def as_json(value: object) -> JsonValue:
    """Convert a value to JSON.

    Raises:
        InvalidOutput: If it can't be represented as JSON.
    """
    try:
        return cast("JsonValue", to_jsonable_python(value, fallback=_to_plain))
    except (Exception, SystemExit) as error:  # a model's own code may serialise it
        wrong = f"A {type(value).__name__} was returned, which JSON can't hold: {safe_message(error)}"
        raise InvalidOutput(wrong, problems=[wrong]) from error


def _to_plain(value: Any) -> object:  # noqa: ANN401 -- an array or a number of NumPy's, or what JSON has nothing for
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    msg = f"there is no form for {type(value).__name__!r}"
    raise TypeError(msg)


def _has_attributes(value: object, *names: str) -> bool:
    return not isinstance(value, type) and all(hasattr(value, name) for name in names)


def _from_pydantic_ai(result: Any, name: str) -> Reply:  # noqa: ANN401 -- a library's that needn't be there
    usage: Any = result.usage if hasattr(result.usage, "requests") else result.usage()  # a method before version 2
    cost = getattr(usage, "cost", None)
    spent = Usage(
        requests=usage.requests,
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        cost_usd=None if cost is None else float(cost),
    )
    model = getattr(getattr(result, "response", None), "model_name", None)
    return Reply(value=as_json(result.output), model=model or name, usage=spent)


def _from_messages(messages: list[Any], structured: object, name: str) -> Reply:
    """Convert a list of messages: the last one is the answer, the usage is the sum over the model's messages."""
    from_model = [each for each in messages if each.type == "ai"]
    counts: list[Mapping[str, int]] = [each.usage_metadata for each in from_model if each.usage_metadata]
    spent = Usage(
        requests=len(from_model),
        prompt_tokens=sum(each["input_tokens"] for each in counts),
        completion_tokens=sum(each["output_tokens"] for each in counts),
        cost_usd=None,
        unsettled=len(from_model) - len(counts),
    )
    text = messages[-1].text  # a method in older versions of LangChain
    value = (text if isinstance(text, str) else text()) if structured is None else structured
    model = from_model[-1].response_metadata.get("model_name") if from_model else None
    return Reply(value=as_json(value), model=model or name, usage=spent)


def _from_claude(end: Any, name: str) -> Reply:  # noqa: ANN401 -- a library's that needn't be there
    counts: Mapping[str, Any] = end.usage or {}
    spent = Usage(
        requests=1,
        prompt_tokens=sum(
            counts.get(kind) or 0 for kind in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        ),
        completion_tokens=counts.get("output_tokens") or 0,
        cost_usd=end.total_cost_usd,
        unsettled=int(not counts),
    )
    structured = getattr(end, "structured_output", None)
    # 1. A success is a reply.
    if not end.is_error:
        value = end.result if structured is None else structured
        return Reply(value=as_json(value), model=next(iter(getattr(end, "model_usage", None) or ()), name), usage=spent)
    # 2. A failure is an error, classified by the provider's status if there is one.
    status = getattr(end, "api_error_status", None)
    message = redact("; ".join([*(getattr(end, "errors", None) or ()), *filter(None, [end.result])]))[:MAX_QUOTED]
    error: type[ExecutorError] = RejectedError
    kind = end.subtype
    if status is not None:
        error, kind = classify_status(status)
    raise error(f"{name!r} failed: {message or end.subtype}", kind=kind, usage=spent)


def _validate_callable(value: object) -> object:
    if isinstance(value, str) and not REFERENCE.fullmatch(value):
        msg = f"must be a function, an agent, or 'module:name' of one, not {value!r}"
        raise ValueError(msg)
    if not isinstance(value, str):
        try:
            create_adapter(value)
        except JobError as error:
            raise ValueError(str(error)) from None
    return value


_Callable = Annotated[
    Any,
    AfterValidator(_validate_callable),
    PlainSerializer(to_reference, return_type=str),
    WithJsonSchema({"type": "string", "pattern": REFERENCE.pattern}),
]
_Version = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), Field(title="Version")
]


class PythonCallable(BaseExecutor, Strict):
    """Executor that calls a Python function, or an agent of pydantic-ai, LangGraph or the Claude Agent SDK.

    The name of its parameter selects its argument: `ask` (the brief, the item, rejected earlier answers), `item`,
    `prompt` (the prompt that a model would get), or by any other name the item's value. It returns a value, a
    pydantic model, a `Reply`, or the result of an agent's run.

    Example:
        >>> def count(text: str) -> int:
        ...     return len(text.split())
        >>> PythonCallable(count, version="1").name
        'count'
    """

    kind: Literal["python"] = "python"
    """Discriminator of the kinds of executors."""
    function: _Callable
    """A function or an agent; in a job file `module:name` of one in the job's folder."""
    version: _Version | None = None
    """Identifies its behaviour; change it whenever answers change. None: its source does, if that determines them."""

    _home: Path | None = PrivateAttr(default=None)
    _worker: CallableAdapter | None = PrivateAttr(default=None)
    _files: dict[tuple[str, ...], JsonValue] = PrivateAttr(default_factory=dict[tuple[str, ...], JsonValue])

    def __init__(self, function: Any = None, /, **fields: Any) -> None:  # noqa: ANN401 -- validated as any field is
        """Create the executor; the function may be passed by position or by keyword."""
        super().__init__(**({} if function is None else {"function": function}), **fields)

    @property
    def name(self) -> str:
        """Name in reports: that of the function, else of the agent's class."""
        return to_reference(self.function).rpartition(":")[2].rpartition("<locals>.")[2]

    @property
    def ignores_feedback(self) -> bool:
        """Whether it can't receive feedback on a rejected answer, as it sees the item alone."""
        return self.adapter.argument_kind in {"item", "value"}

    @property
    def adapter(self) -> CallableAdapter:
        """The adapter that calls the function or the agent.

        Raises:
            JobError: If the function can't be found.
        """
        return self._worker or self.resolve_paths(Path()).adapter

    @property
    def fingerprint(self) -> str:
        """Digest of everything that can change an answer: the declared version, else the source.

        Raises:
            JobError: If there is no version, and the source doesn't determine the behaviour.
        """
        if self._worker is None:
            return self.resolve_paths(Path()).fingerprint
        try:
            who: JsonValue = (
                [_stable_name(self.function), self.version] if self.version else source_identity(self.function)
            )
        except JobError as error:
            raise JobError(f"executor.function: {error}.") from None
        return digest({"python": 1, "prompt": PROMPT if self._worker.argument_kind == "prompt" else None, "who": who})

    @property
    def has_external_inputs(self) -> bool:
        """True: see `external_inputs`."""
        return True

    def external_inputs(self, brief: Brief, item: Item) -> JsonValue:
        """Return digests of the files that a brief reads, and the item and brief names that the function sees.

        Raises:
            JobError: If a file can't be read.
        """
        if self._home is None:
            return self.resolve_paths(Path()).external_inputs(brief, item)
        if brief.reads not in self._files:  # computed once a run
            self._files[brief.reads] = dict(sorted(file_digests(brief.reads, self._home).items()))
        given = self.adapter.argument_kind
        # A function that gets the whole item or ask can read what a fingerprint otherwise ignores.
        visible: list[JsonValue] = [item.key, item.priority] if given in {"ask", "item"} else []
        if given == "ask":
            visible += [brief.name, brief.priority]
        return {"files": self._files[brief.reads], "seen": visible}

    def resolve_paths(self, folder: Path) -> PythonCallable:
        """Return the executor with its function imported, from code below a folder.

        Raises:
            JobError: If the function can't be found or called, or neither a version nor its source identifies it.
        """
        # 1. Import the function, and create its adapter.
        try:
            found = import_reference(self.function, folder) if isinstance(self.function, str) else self.function
            worker = create_adapter(found)
        except BriefError as error:
            raise JobError(f"executor.function: {error}") from error
        except JobError as error:
            raise JobError(f"executor.function: {to_reference(self.function)!r} {error}.") from None
        resolved = self.model_copy(update={"function": found})
        resolved._home, resolved._worker, resolved._files = folder.resolve(), worker, {}  # noqa: SLF001 -- its own copy
        # 2. Fail now if it has no fingerprint, and not in the middle of a run.
        _ = resolved.fingerprint
        return resolved

    def require_supported(self, briefs: Sequence[Brief]) -> None:
        """Check that the executor can answer some briefs.

        Raises:
            JobError: If a brief uses a feature that it doesn't support.
        """
        require_no_command(briefs, "a Python function")
        for brief in briefs:
            if brief.split:
                raise JobError(f"Brief {brief.name!r}: 'split' is for language models; leave it out.")

    async def answer(self, ask: Ask) -> Reply:
        """Call the function once; cancelling this cancels a coroutine, while a function in a thread goes on.

        Raises:
            ExecutorError: If it fails, or its result can't be stored.
            JobError: If it can't be found.
        """
        return to_reply(await self.adapter.call(ask), self.name, ask.brief.output)


def _stable_name(thing: Any) -> str:  # noqa: ANN401 -- any function or agent
    """Return a reference to a function that doesn't depend on how its script runs: as `__main__`, or as a module."""
    name = to_reference(thing)
    module = name.partition(":")[0]
    if not module.startswith("__"):
        return name
    file = getattr(sys.modules.get(module), "__file__", None) or thing.__code__.co_filename
    return f"{Path(file).stem}:{name.partition(':')[2]}"
