"""A real server on 127.0.0.1 that speaks `/v1/files` and `/v1/batches` beside `/v1/chat/completions`.

    with batch_server(lambda request, n: Behaviour(content="fine"), looks=2) as server:
        LLM(model="openai/test", api_base=server.url, mode="batch")
        ...
    assert len(server.batches) == 1 and server.live.count == 0

- `behave`: what comes of each request, in a batch as live; a status other than 200 is an error in its line.
- `looks`: how often a batch is under way when it is looked at, before it has ended.
- `end`: how batches end: `completed`, `failed` (refused as a whole), `expired` or `cancelled`; or a function of the
  number of the batch.
- `tamper(answers, errors)`: rewrites the lines of both files: lost, doubled, mixed up, broken.
- `create`: what happens when a batch is created: `fine`; `lost` (it is, and the connection ends); `held` (it is, and
  nothing is said until `server.let_go` is set); or a `Behaviour` with a status, and it isn't created.
- `upload`: what happens when a file is handed in: `fine`, or a `Behaviour` with a status.
- `lists`: whether the provider lists its batches.
- `stumbles`: how often a look at a batch gets a 500 first.
- `gone`: batches that it knows nothing of any more.

`server.batches` has every batch that was created, each with its `requests`; `server.live` the other requests.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from tests.openai_server import Behave, Behaviour, OpenAIServer, document, failure, openai_server

Ended = Literal["completed", "failed", "expired", "cancelled"]
Tamper = Callable[[list[str], list[str]], tuple[list[str], list[str]]]


@dataclass
class Submitted:
    """A batch as the server has it."""

    name: str
    requests: list[dict[str, Any]]
    metadata: dict[str, str]
    input_file: str
    created: int
    files: tuple[str | None, str | None] = (None, None)
    looked: int = 0
    status: str = "in_progress"


@dataclass
class BatchServer:
    """What the server has seen; see the module's text."""

    behave: Behave
    looks: int = 0
    end: Ended | Callable[[int], Ended] = "completed"
    tamper: Tamper = lambda answers, errors: (answers, errors)
    create: Literal["fine", "lost", "held"] | Behaviour = "fine"
    upload: Literal["fine"] | Behaviour = "fine"
    lists: bool = True
    page: int = 100
    stumbles: int = 0
    gone: set[str] = field(default_factory=set[str])
    batches: list[Submitted] = field(default_factory=list[Submitted])
    uploads: int = 0
    creations: int = 0
    let_go: threading.Event = field(default_factory=threading.Event)
    _files: dict[str, str] = field(default_factory=dict[str, str])
    _asked: Counter[str] = field(default_factory=Counter[str])

    live: OpenAIServer = field(init=False)

    @property
    def url(self) -> str:
        """Its address."""
        return self.live.url

    def answer(self, request: dict[str, Any]) -> Behaviour:
        """Return what comes of a request, by how often its document was asked in batches and live."""
        self._asked[document(request)] += 1
        return self.behave(request, self._asked[document(request)])

    def routes(self, app: web.Application) -> None:
        """Add what it answers."""
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{name}/content", self._content)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches", self._list)
        app.router.add_get("/v1/batches/{name}", self._look)

    def _store(self, text: str) -> str:
        name = f"file-{len(self._files) + 1}"
        self._files[name] = text
        return name

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file: Any = form["file"]
        self.uploads += 1
        if isinstance(self.upload, Behaviour):
            return _failed(self.upload)
        name = self._store(file.file.read().decode())
        about = {"bytes": len(self._files[name]), "created_at": int(time.time()), "filename": "requests.jsonl"}
        return web.json_response({"id": name, "object": "file", "purpose": "batch", "status": "processed", **about})

    async def _content(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._files:
            return _missing()
        body = self._files[name].encode(errors="surrogateescape")
        return web.Response(body=body, content_type="application/octet-stream")

    async def _create(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.creations += 1
        assert body["endpoint"] == "/v1/chat/completions"
        if isinstance(self.create, Behaviour):
            return _failed(self.create)
        requests = [json.loads(line) for line in self._files[body["input_file_id"]].splitlines()]
        batch = Submitted(
            f"batch_{len(self.batches) + 1}", requests, body["metadata"], body["input_file_id"], int(time.time())
        )
        self.batches.append(batch)
        if self.create == "held":
            while not self.let_go.is_set():  # noqa: ASYNC110 -- set in another thread
                await asyncio.sleep(0.05)
        if self.create == "lost":
            self.create = "fine"
            assert request.transport is not None
            request.transport.close()
        return web.json_response(self._told(batch))

    async def _list(self, request: web.Request) -> web.Response:
        if not self.lists:
            return _missing()
        newest = self.batches[::-1]
        after = request.query.get("after")
        start = next((place + 1 for place, batch in enumerate(newest) if batch.name == after), 0)
        shown = newest[start : start + min(self.page, int(request.query["limit"]))]
        more = start + len(shown) < len(newest)
        return web.json_response({"object": "list", "data": [self._told(each) for each in shown], "has_more": more})

    async def _look(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        batch = next((batch for batch in self.batches if batch.name == name), None)
        if batch is None or name in self.gone:
            return _missing()
        if self.stumbles:
            self.stumbles -= 1
            return _failed(failure(500, "it broke"))
        batch.looked += 1
        if batch.looked > self.looks and batch.status == "in_progress":
            number = self.batches.index(batch) + 1
            batch.status = self.end(number) if callable(self.end) else self.end
            if batch.status != "failed":
                self._work_off(batch)
        return web.json_response(self._told(batch))

    def _work_off(self, batch: Submitted) -> None:
        answers: list[str] = []
        errors: list[str] = []
        for number, request in enumerate(batch.requests):
            good, line = _line(number, request, self.answer(request["body"]))
            (answers if good else errors).append(line)
        answers, errors = self.tamper(answers, errors)
        texts = ["".join(line + "\n" for line in lines) for lines in (answers, errors)]
        one, other = (self._store(text) if text else None for text in texts)
        batch.files = (one, other)

    def _told(self, batch: Submitted) -> dict[str, Any]:
        problems = {"object": "list", "data": [{"code": "x", "message": "line 1 is no request", "line": 1}]}
        done = len(batch.requests) if batch.status != "in_progress" else batch.looked // 2
        return {
            "id": batch.name,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "created_at": batch.created,
            "completed_at": int(time.time()) if batch.status == "completed" else None,
            "input_file_id": batch.input_file,
            "output_file_id": batch.files[0],
            "error_file_id": batch.files[1],
            "metadata": batch.metadata,
            "status": batch.status,
            "errors": problems if batch.status == "failed" else None,
            "request_counts": {"total": len(batch.requests), "completed": done, "failed": 0},
        }


def _line(number: int, request: dict[str, Any], behaviour: Behaviour) -> tuple[bool, str]:
    good = behaviour.status == web.HTTPOk.status_code
    if behaviour.body is not None:
        body = json.loads(behaviour.body)
    else:
        choice = {"index": 0, "message": behaviour.message, "finish_reason": behaviour.finish_reason}
        about = {"id": "c", "object": "chat.completion", "created": 1, "model": request["body"]["model"]}
        body = {**about, "choices": [choice], "usage": behaviour.usage}
    response = {"status_code": behaviour.status, "request_id": f"r{number}", "body": body}
    line = {"id": f"batch_req_{number}", "custom_id": request["custom_id"], "response": response, "error": None}
    return good, json.dumps(line)


def _failed(how: Behaviour) -> web.Response:
    return web.Response(status=how.status, text=how.body, content_type="application/json")


def _missing() -> web.Response:
    return web.json_response({"error": {"message": "No such thing.", "type": "x", "code": None}}, status=404)


@contextmanager
def batch_server(behave: Behave | Behaviour = Behaviour(), **how: Any) -> Generator[BatchServer]:  # noqa: ANN401, B008 -- fields of BatchServer; frozen
    """Run a server for as long as the block lasts."""
    chosen: Behave = (lambda _request, _n: behave) if isinstance(behave, Behaviour) else behave
    server = BatchServer(chosen, **how)
    with openai_server(lambda request, _n: server.answer(request), routes=server.routes) as live:
        server.live = live
        try:
            yield server
        finally:
            server.let_go.set()
