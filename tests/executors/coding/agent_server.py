r"""A real server on 127.0.0.1 that speaks as much of three providers' APIs as real coding agents need.

Anthropic's Messages, OpenAI's Responses and OpenAI's Chat, as server-sent events or whole. It keeps no state: a
script is a function of a request that returns the next `Turn`, and a request holds the conversation so far.

    def script(request: Request) -> Turn:
        return Turn(write={"a.py": "A = 1\n"}) if request.turn == 0 else Turn(text="Done.")

    with agent_server(script) as server:
        ...  # a command line with server.url as its provider's address
    assert server.requests[0].api == "messages"

- `Turn`: a text, files to write or commands to run (by whatever tool the agent offers for it), or a failure.
- `Request`: `.api`, `.body`, `.headers`, `.prompt` (what the user said), `.turn` (how often the model answered
  before), `.tools` (what the agent offers).
"""

from __future__ import annotations

import asyncio
import json
import shlex
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from aiohttp import web

Api = Literal["messages", "responses", "chat"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the model says next; with neither files nor commands nor a call it is the last turn."""

    text: str = ""
    """The assistant's text."""
    write: Mapping[str, str] = field(default_factory=dict[str, str])
    """Files to write, by their path: by the tool for files where there is one, else by a command."""
    run: tuple[str, ...] = ()
    """Shell commands to run, one tool call each."""
    call: tuple[str, Mapping[str, Any]] | None = None
    """A call of a tool by its name, as it is."""
    blocks: tuple[Mapping[str, Any], ...] = ()
    """Content blocks of Anthropic's API, or output items of OpenAI's Responses, as they are, before the text."""
    status: int = 200
    """The HTTP status; beside 200 the turn is an error."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """More headers of the response."""
    body: str | None = None
    """Replaces the body."""
    hang: bool = False
    """Never answer."""
    cut: bool = False
    """End the connection in the middle of the answer."""
    delay_s: float = 0.0
    """Seconds before the answer."""
    tokens: tuple[int, int] = (100, 10)
    """Tokens that the server claims to have read and written."""


@dataclass(frozen=True)
class Request:
    """One request, as a script reads it."""

    api: Api
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far."""
        said = self.body.get("messages", self.body.get("input", ()))
        return [each for each in said if isinstance(each, dict)]

    @property
    def prompt(self) -> str:
        """Everything that came from the user."""
        return "\n".join(_text(each.get("content")) for each in self.messages if each.get("role") == "user")

    @property
    def turn(self) -> int:
        """How often the model has answered by now."""
        kinds = {"function_call", "custom_tool_call"} if self.api == "responses" else {None}
        answers = [
            each for each in self.messages if each.get("role") == "assistant" or each.get("type") in kinds - {None}
        ]
        return len(answers)

    @property
    def tools(self) -> dict[str, dict[str, Any]]:
        """What the agent offers, by name."""
        offered = [each.get("function") or each for each in self.body.get("tools", ())]
        return {each["name"]: each for each in offered if "name" in each}


Script = Callable[[Request], Turn]


class AgentServer:
    """What the server has seen."""

    def __init__(self, script: Script) -> None:
        """Start with nothing seen."""
        self.url = ""
        self.under_way = 0
        self._script = script
        self._lock = threading.Lock()
        self._requests: list[Request] = []

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request that asked for an answer, in order of arrival."""
        with self._lock:
            return tuple(self._requests)

    async def handle(self, http: web.Request) -> web.StreamResponse:
        """Answer one request."""
        ends: dict[str, Api] = {"/messages": "messages", "/responses": "responses", "/chat/completions": "chat"}
        api: Api | None = next((ends[end] for end in ends if http.path.endswith(end)), None)
        if api is None or http.method != "POST":
            return web.json_response({"object": "list", "data": [], "models": []})
        request = Request(api, await http.json(), {name.lower(): text for name, text in http.headers.items()})
        with self._lock:
            self._requests.append(request)
        turn = self._script(request)
        self.under_way += 1
        try:
            if turn.hang:
                await asyncio.Event().wait()
            await asyncio.sleep(turn.delay_s)
            return await _answer(http, request, turn)
        finally:
            self.under_way -= 1


async def _answer(http: web.Request, request: Request, turn: Turn) -> web.StreamResponse:
    if turn.status != web.HTTPOk.status_code or turn.body is not None:
        body = turn.body if turn.body is not None else json.dumps(_error(request.api, turn))
        return web.Response(
            body=body.encode(), status=turn.status, headers=turn.headers, content_type="application/json"
        )
    calls = list(_calls(request, turn))
    parts = list({"messages": _messages, "responses": _responses, "chat": _chat}[request.api](request, turn, calls))
    if not request.body.get("stream"):
        return web.Response(body=parts[-1].encode(), content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(http)
    events = parts[:-1]
    for event in events[: len(events) // 2] if turn.cut else events:
        await response.write(event.encode())
    if turn.cut and http.transport is not None:
        http.transport.close()
    return response


def _error(api: Api, turn: Turn) -> dict[str, Any]:
    kind = {401: "authentication_error", 429: "rate_limit_error", 529: "overloaded_error"}.get(turn.status, "api_error")
    detail = {"type": kind, "message": turn.text or "it failed", "code": None, "param": None}
    return {"type": "error", "error": detail} if api == "messages" else {"error": detail}


def _calls(request: Request, turn: Turn) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tool calls of a turn, in the words of the agent that asks."""
    for path, text in turn.write.items():
        if "Write" in request.tools:
            yield "Write", {"file_path": path, "content": text}
        else:
            folder = shlex.quote(path.rpartition("/")[0] or ".")
            yield _command(request, f"mkdir -p {folder} && printf %s {shlex.quote(text)} > {shlex.quote(path)}")
    for command in turn.run:
        yield _command(request, command)
    if turn.call:
        yield turn.call[0], dict(turn.call[1])


_COMMANDS = {"Bash": "command", "bash": "command", "exec_command": "cmd", "shell_command": "command"}
"""Tools that run a command, and the argument that holds it."""


def _command(request: Request, command: str) -> tuple[str, dict[str, Any]]:
    name = next((each for each in _COMMANDS if each in request.tools), None)
    assert name, f"no tool for commands among {sorted(request.tools)}"
    tool = request.tools[name]
    takes: dict[str, Any] = (tool.get("parameters") or tool["input_schema"])["properties"]
    more = {"description": "a step"} if "description" in takes else {}
    return name, {_COMMANDS[name]: command, **more}


def _messages(request: Request, turn: Turn, calls: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    read, written = turn.tokens
    usage = {
        "input_tokens": read,
        "output_tokens": written,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }
    blocks: list[dict[str, Any]] = [*map(dict[str, Any], turn.blocks)]
    blocks += [{"type": "text", "text": turn.text}] if turn.text else []
    blocks += [
        {"type": "tool_use", "id": f"toolu_{request.turn}_{n}", "name": name, "input": given}
        for n, (name, given) in enumerate(calls)
    ]
    head = {"id": f"msg_{request.turn}", "type": "message", "role": "assistant", "model": request.body.get("model")}
    stop = "tool_use" if calls else "end_turn"

    def event(kind: str, **more: object) -> str:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n"

    begun: dict[str, Any] = {
        **head,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage, "output_tokens": 1},
    }
    yield event("message_start", message=begun)
    for n, block in enumerate(blocks):
        if block["type"] == "text":
            yield event("content_block_start", index=n, content_block={"type": "text", "text": ""})
            yield event("content_block_delta", index=n, delta={"type": "text_delta", "text": block["text"]})
        elif "input" not in block:
            yield event("content_block_start", index=n, content_block=block)
        else:
            yield event("content_block_start", index=n, content_block={**block, "input": {}})
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            yield event("content_block_delta", index=n, delta=delta)
        yield event("content_block_stop", index=n)
    yield event("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage={"output_tokens": written})
    yield event("message_stop")
    yield json.dumps({**head, "content": blocks, "stop_reason": stop, "stop_sequence": None, "usage": usage})


def _responses(request: Request, turn: Turn, calls: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    read, written = turn.tokens
    at = f"{request.turn}_{len(request.messages)}"
    items: list[dict[str, Any]] = [
        {"type": "function_call", "id": f"fc_{at}_{n}", "call_id": f"call_{at}_{n}", "name": name}
        | {"arguments": json.dumps(given), "status": "completed"}
        for n, (name, given) in enumerate(calls)
    ]
    if turn.text:
        said: dict[str, Any] = {"type": "output_text", "text": turn.text, "annotations": []}
        message: dict[str, Any] = {
            "type": "message",
            "id": f"msg_{at}",
            "role": "assistant",
            "status": "completed",
            "content": [said],
        }
        items.insert(0, message)
    items[:0] = map(dict[str, Any], turn.blocks)
    usage = {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }
    head = {"id": f"resp_{at}", "object": "response", "created_at": 0, "model": request.body.get("model")}

    def event(kind: str, **more: object) -> str:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n"

    yield event("response.created", response={**head, "status": "in_progress", "output": []})
    for n, item in enumerate(items):
        if item["type"] == "message":
            place = {"item_id": item["id"], "output_index": n, "content_index": 0}
            nothing: dict[str, Any] = {"type": "output_text", "text": "", "annotations": []}
            yield event("response.output_item.added", output_index=n, item={**item, "content": []})
            yield event("response.content_part.added", **place, part=nothing)
            yield event("response.output_text.delta", **place, delta=turn.text)
            yield event("response.output_text.done", **place, text=turn.text)
        else:
            yield event("response.output_item.added", output_index=n, item=item)
        yield event("response.output_item.done", output_index=n, item=item)
    whole = {**head, "status": "completed", "output": items, "usage": usage}
    yield event("response.completed", response=whole)
    yield json.dumps(whole)


def _chat(request: Request, turn: Turn, calls: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    read, written = turn.tokens
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    asked = [
        {
            "id": f"call_{request.turn}_{n}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(given)},
        }
        for n, (name, given) in enumerate(calls)
    ]
    finish = "tool_calls" if asked else "stop"
    head = {"id": f"chatcmpl-{request.turn}", "created": 0, "model": request.body.get("model")}

    def event(choices: list[dict[str, Any]], **more: object) -> str:
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

    yield event([{"index": 0, "delta": {"role": "assistant", "content": turn.text}, "finish_reason": None}])
    if asked:
        deltas = [{"index": n, **call} for n, call in enumerate(asked)]
        yield event([{"index": 0, "delta": {"tool_calls": deltas}, "finish_reason": None}])
    yield event([{"index": 0, "delta": {}, "finish_reason": finish}])
    yield event([], usage=usage)
    yield "data: [DONE]\n\n"
    message = {"role": "assistant", "content": turn.text, **({"tool_calls": asked} if asked else {})}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    yield json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage})


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = cast("list[dict[str, Any]]", content) if isinstance(content, list) else []
    return "\n".join(str(part.get("text", "")) for part in parts if "text" in part)


@contextmanager
def agent_server(script: Script) -> Generator[AgentServer]:
    """Run a server for as long as the block lasts."""
    server = AgentServer(script)
    started, loop = threading.Event(), asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", server.handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await ended.wait()
        await runner.cleanup()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            started.set()
            loop.close()

    thread = threading.Thread(target=run, name="agent-server", daemon=True)
    thread.start()
    started.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
