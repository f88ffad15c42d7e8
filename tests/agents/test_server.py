"""Coding agents use jobs as tools: in both protocol eras, in the process, over stdio, and across ends of servers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal

import psutil
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client import ClientExtension
from mcp.client.extension import ClaimContext, ResultClaim
from mcp.client.stdio import stdio_client
from mcp_types import CallToolResult, ElicitResult, Request, Result, TextResourceContents
from pydantic import BaseModel, ConfigDict

from prefect_dispatch.agents.server import TASKS, create_server
from prefect_dispatch.cli import main
from prefect_dispatch.executors.live_view import Activity
from prefect_dispatch.reporting.progress import Progress
from tests.agents.conftest import JOB, ModelServer
from tests.openai_server import Behaviour

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from mcp.client.session import ClientSession

    from prefect_dispatch.agents.job_store import JobStore
    from prefect_dispatch.agents.policy import Policy

Mode = Literal["modern", "legacy", "stdio"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def use(policy: Policy, act: Callable[[Client], Awaitable[Any]], mode: Mode = "modern", **options: Any) -> Any:  # noqa: ANN401 -- of any kind
    """Connect to a new server, act, and end the server."""

    async def connected() -> Any:  # noqa: ANN401 -- of any kind
        if mode == "stdio":
            arguments = ["-m", "prefect_dispatch", "mcp", "--root", policy.root, "--models", ",".join(policy.models)]
            parameters = StdioServerParameters(command=sys.executable, args=arguments, env={**os.environ})
            async with Client(stdio_client(parameters), **options) as client:
                return await act(client)
        if mode == "legacy":
            options["mode"] = "legacy"
        async with Client(create_server(policy), **options) as client:
            return await act(client)

    return asyncio.run(connected())


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 -- of any kind
    """Call a tool that succeeds; return its structured result, which is small."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    content: dict[str, Any] = result.structured_content
    assert len(json.dumps(content)) < 10_000
    return content


async def fail(client: Client, tool: str, **arguments: Any) -> str:  # noqa: ANN401 -- of any kind
    """Call a tool that fails; return its sentence."""
    result: CallToolResult = await client.call_tool(tool, arguments)
    assert result.is_error
    (content,) = result.content
    assert content.type == "text"
    return content.text.removeprefix(f"Error executing tool {tool}: ")


async def read(client: Client, uri: str) -> str:
    """Read a resource; return its text."""
    (content,) = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    return content.text


async def start(client: Client) -> dict[str, Any]:
    """Plan and start the job of the root."""
    while (planned := await call(client, "plan", job_file="job.yaml"))["state"] == "planning":
        pass
    assert planned["state"] == "ready", planned
    return await call(client, "start", fingerprint=planned["fingerprint"])


async def wait(client: Client, job: str, tool: str = "status", **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 -- of any kind
    """Call a tool, and wait until the job has ended."""
    status = await call(client, tool, job=job, **arguments)
    while status["state"] in {"starting", "running"}:
        status = await call(client, "status", job=job, wait_s=50)
    return status


@pytest.mark.parametrize("mode", [pytest.param("modern", marks=pytest.mark.long), "legacy", "stdio"])
def test_a_job_outlives_its_server(policy: Policy, api: Path, model: ModelServer, mode: Mode) -> None:
    """One agent plans and starts a job and ends; another one, with another server, waits for it and reads it."""
    started = use(policy, start, mode)
    assert started["state"] in {"starting", "running"}
    reported: list[float] = []

    async def act(client: Client) -> None:
        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            assert total == 4
            assert message
            reported.append(progress)

        # 1. Wait for the end.
        arguments = {"job": started["job"], "wait_s": 50}
        await client.call_tool("status", arguments, progress_callback=on_progress)
        status = await wait(client, started["job"])
        assert (status["state"], status["message"], status["done"], status["runs"]) == (
            "complete",
            "4 of 4 answered.",
            4,
            1,
        )
        # 2. Read the report, the ledger and the outcomes.
        texts = [await read(client, uri) for uri in status["resources"]]
        assert texts[0].startswith("# Complete")
        rows = [json.loads(text)["rows"] for text in texts[1:]]
        assert [row["disposition"] for row in rows[0]] == ["merged"] * 4
        assert [row["value"] for row in rows[1]] == ["fine"] * 4
        explained = await call(client, "explain", job=started["job"], what="items/0.txt")
        assert "items/0.txt" in explained["explanation"]
        # 3. The same job is not started again, nor is there anything to redrive.
        again = await start(client)
        assert (again["job"], again["state"]) == (started["job"], "complete")
        assert (await call(client, "redrive", job=started["job"]))["runs"] == 1
        listed = await call(client, "list")
        assert [(job["job"], job["state"]) for job in listed["jobs"]] == [(started["job"], "complete")]
        assert listed["max_usd_total"] == 1.0

    use(policy, act, mode)
    assert reported
    assert model.count == 4


def test_the_tools(policy: Policy) -> None:
    """The tools state truthfully what they do, and have schemas; the instructions say in which order they are used."""

    async def act(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == ["plan", "start", "status", "explain", "redrive", "cancel", "list"]
        assert all(tool.output_schema and tool.description for tool in tools.values())
        reads = {name for name, tool in tools.items() if tool.annotations and tool.annotations.read_only_hint}
        assert reads == {"plan", "status", "explain", "list"}
        ends = {name for name, tool in tools.items() if tool.annotations and tool.annotations.destructive_hint}
        assert ends == {"start", "redrive", "cancel"}
        assert list(tools["start"].input_schema["properties"]) == ["fingerprint"]
        assert "plan(job_file)" in (client.instructions or "")

    use(policy, act)


def test_refusals(root: Path, policy: Policy, store: Path) -> None:
    """What is refused is a sentence for the agent: paths, unknown jobs, changed files, arguments out of range."""

    async def act(client: Client) -> None:
        assert await fail(client, "plan") == "Give either job_file or job."
        assert "is not below the root" in await fail(client, "plan", job_file="../job.yaml")
        job = {"briefs": {"name": "a", "instructions": "b"}, "items": ["c"], "executor": {"kind": "shell"}}
        refused = await call(client, "plan", job=job)
        assert (refused["state"], refused["fingerprint"]) == ("refused", "")
        assert refused["refused"][0]["flag"] == "--allow"
        for tool in ("status", "redrive", "cancel", "explain"):
            assert "There is no job '../../etc'" in await fail(client, tool, job="../../etc")
        assert "There is no job" in await fail(client, "start", fingerprint="0" * 64)
        assert "wait_s" in await fail(client, "status", job="0" * 16, wait_s=51)
        planned = await call(client, "plan", job_file="job.yaml")
        assert planned["left_usd"] == 1.0
        name = planned["fingerprint"][:16]
        assert "was not started yet" in await fail(client, "redrive", job=name)
        assert await fail(client, "explain", job=name) == "The job has no report yet."
        for tool, arguments in (("status", {"wait_s": 50}), ("cancel", {})):
            assert (await call(client, tool, job=name, **arguments))["state"] == "planned"
        for uri in ("report.md", "ledger/1", "outcomes/1"):
            with pytest.raises(MCPError, match="There is no job"):
                await client.read_resource(f"dispatch://jobs/{'0' * 16}/{uri}")
        with pytest.raises(MCPError, match="has no report yet"):
            await client.read_resource(f"dispatch://jobs/{name}/report.md")
        for kind in ("ledger", "outcomes"):
            page = await read(client, f"dispatch://jobs/{name}/{kind}/1")
            assert json.loads(page)["rows"] == []
        (root / "items" / "2.txt").write_text("Another text.", encoding="utf-8")
        message = await fail(client, "start", fingerprint=planned["fingerprint"])
        assert "the item 'items/2.txt' changed" in message
        (root / "items" / "2.txt").write_text("Text number 2.", encoding="utf-8")
        assert (await call(client, "status", job=name))["next"] == "plan the job again."

    use(policy, act)


def test_an_unreadable_report(policy: Policy, jobs: JobStore, store: Path) -> None:
    """A report that can't be read is an error in a sentence, and a name that isn't in one is another."""

    async def act(client: Client) -> None:
        planned = await call(client, "plan", job_file="job.yaml")
        job = jobs.find(planned["fingerprint"])
        folder = job.folder / "runs" / "1"
        folder.mkdir(parents=True)
        folder.joinpath("run.json").write_text(
            json.dumps({"number": 1, "started": "now", "budget_usd": 1, "policy": policy.model_dump(mode="json")})
        )
        job.runs[0].record_end("complete", "All.", 0.0)
        job.report.mkdir()
        (job.report / "report.json").write_text("{}", encoding="utf-8")
        assert "can't be read" in await fail(client, "explain", job=job.id)
        report = {"status": "complete", "message": "All."}
        (job.report / "report.json").write_text(json.dumps(report), encoding="utf-8")
        assert "nothing" in await fail(client, "explain", job=job.id, what="nothing")
        (job.report / "report.md").write_text("ä" * 100_000, encoding="utf-8")
        page = await read(client, f"dispatch://jobs/{job.id}/report.md")
        assert page.endswith("\n(… cut)")
        (job.report / "outcomes.jsonl").write_text(f"{json.dumps({'value': 'x' * 20_000})}\n", encoding="utf-8")
        page = await read(client, f"dispatch://jobs/{job.id}/outcomes/1")
        assert len(json.loads(page)["rows"][0]["cut"]) == 9_000

    use(policy, act)


@pytest.mark.parametrize("mode", ["modern", pytest.param("legacy", marks=pytest.mark.long)])
def test_a_person_allows_more(policy: Policy, api: Path, model: ModelServer, mode: Mode) -> None:
    """A form shows what isn't allowed; only an accepted one starts the job, and its redrive needs none."""
    narrow = policy.model_copy(update={"max_items": 3})
    answers = iter(
        [
            ElicitResult(action="decline"),
            ElicitResult(action="cancel"),
            ElicitResult(action="accept", content={"allow": False}),
            ElicitResult(action="accept", content={"allow": True}),
        ]
    )
    shown: list[str] = []

    async def on_form(_: Any, params: Any) -> ElicitResult:  # noqa: ANN401 -- of the library
        shown.append(params.message)
        return next(answers)

    async def without_form(client: Client) -> None:
        planned = await call(client, "plan", job_file="job.yaml")
        assert planned["state"] == "refused"
        assert "Not allowed by the user: items: " in await fail(client, "start", fingerprint=planned["fingerprint"])

    async def with_form(client: Client) -> None:
        planned = await call(client, "plan", job_file="job.yaml")
        for _ in range(3):
            assert "Not allowed by the user" in await fail(client, "start", fingerprint=planned["fingerprint"])
        started = await call(client, "start", fingerprint=planned["fingerprint"])
        assert (await wait(client, started["job"]))["state"] == "complete"
        assert (await wait(client, started["job"], "redrive"))["state"] == "complete"

    use(narrow, without_form, mode)
    assert model.count == 0
    use(narrow, with_form, mode, elicitation_callback=on_form)
    assert len(shown) == 4
    assert "- items: the job has 4 (brief, item) pairs, and 3 are allowed" in shown[0]
    assert model.count == 4


def test_cancel_and_kill(policy: Policy, jobs: JobStore, api: Path, model: ModelServer) -> None:
    """A job is cancelled; killed, it is crashed; each redrive asks only what has no answer, within what is left."""
    hang = threading.Event()

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        if "number 3" in str(request) and not hang.is_set():
            return Behaviour(hang=True)
        return Behaviour()

    model.behave = behave
    file = jobs.root / "job.yaml"
    file.write_text(f"{JOB}limits: {{grace_s: 0, concurrency: 1}}\n", encoding="utf-8")

    async def until_three(client: Client, job: str) -> dict[str, Any]:
        while (status := await call(client, "status", job=job))["done"] < 3:
            assert status["state"] in {"starting", "running"}, status
            await asyncio.sleep(0.2)
        return status

    async def act(client: Client) -> None:
        # 1. Cancel it while one call is in flight.
        started = await start(client)
        job = started["job"]
        running = await until_three(client, job)
        assert (running["state"], running["total"], running["report"]) == ("running", 4, "")
        page = await read(client, f"dispatch://jobs/{job}/ledger/1")
        assert len(json.loads(page)["rows"]) == 3
        assert (await call(client, "cancel", job=job))["state"] in {"running", "cancelled"}
        assert (await wait(client, job))["state"] == "cancelled"
        assert (await call(client, "cancel", job=job))["state"] == "cancelled"
        # 2. Redrive it, and kill its process.
        asked = model.count
        status = await call(client, "redrive", job=job)
        assert status["runs"] == 2
        run = jobs.find(job).runs[1]
        await until_three(client, job)
        while model.count == asked:  # noqa: ASYNC110 -- of another thread
            await asyncio.sleep(0.1)
        for process in psutil.process_iter(["cmdline"]):
            if str(run.folder) in (process.info["cmdline"] or ()):
                os.kill(process.pid, signal.SIGKILL)
        assert (await wait(client, job))["state"] == "crashed"
        assert model.count == asked + 1
        assert 0 < jobs.spent_usd < 0.5  # by the journal: more than was used, and less than the budget
        # 3. The last call is answered now.
        hang.set()
        status = await wait(client, job, "redrive")
        assert (status["state"], status["runs"], status["answered_before"]) == ("complete", 3, 3)
        assert model.count == asked + 2

    use(policy, act)


def test_a_resume_asks_what_has_failed(policy: Policy, jobs: JobStore, api: Path, model: ModelServer) -> None:
    """Of 102 items 2 fail, one of them early in the list: a redrive, by another server, sends 2 requests."""
    for number in range(102):
        (jobs.root / "items" / f"{number}.txt").write_text(f"Text number {number}.", encoding="utf-8")
    (jobs.root / "job.yaml").write_text(f"{JOB}limits: {{retries: 0, reasks: 0}}\n", encoding="utf-8")
    bad = ("number 3.", "number 77.")
    model.behave = lambda request, n: Behaviour(content="" if any(each in str(request) for each in bad) else "fine")

    async def first(client: Client) -> dict[str, Any]:
        return await wait(client, (await start(client))["job"])

    status = use(policy, first)
    assert (status["state"], status["message"].partition(";")[0]) == ("gaps", "100 of 102 answered")
    assert {gap["item"] for gap in status["gaps"]} == {"items/3.txt", "items/77.txt"}
    assert model.count == 102
    model.behave = lambda request, n: Behaviour()
    status = use(policy, lambda client: wait(client, status["job"], "redrive"))
    assert (status["state"], status["answered_before"], status["runs"]) == ("complete", 100, 2)
    assert model.count == 104


def test_a_failure_ends_the_wait(policy: Policy, jobs: JobStore, api: Path, model: ModelServer) -> None:
    """A long poll returns at the first new failure, so that an agent may cancel a job that goes wrong."""
    model.behave = lambda request, n: Behaviour(hang=True) if "number 3" in str(request) else Behaviour(content=None)
    file = jobs.root / "job.yaml"
    file.write_text(f"{JOB}limits: {{grace_s: 0, concurrency: 1, reasks: 0, retries: 0}}\n", encoding="utf-8")

    async def act(client: Client) -> None:
        job = (await start(client))["job"]
        status = await call(client, "status", job=job, wait_s=50)
        assert (status["state"], status["failed"] >= 1) == ("running", True)
        assert status["gaps"][0]["item"] == "items/0.txt"
        await wait(client, job, "cancel")

    use(policy, act)


class TaskResult(Result):
    """What a server answers a call with that has become a task."""

    result_type: Literal["task"] = "task"
    task_id: str
    status: str
    poll_interval_ms: int


class KnowsTasks(ClientExtension):
    """A client that knows tasks: it polls one until it has ended."""

    identifier = TASKS

    def __init__(self) -> None:
        """Start without a task."""
        self.polled: list[dict[str, Any]] = []
        self.cancel_first = False

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """Return what it understands: tasks."""
        return [ResultClaim(result_type="task", model=TaskResult, resolve=self.resolve)]

    async def resolve(self, task: TaskResult, context: ClaimContext) -> CallToolResult:
        """Poll a task until it has ended."""
        assert task.poll_interval_ms == 2000
        if self.cancel_first:
            assert (await request(context.session, "tasks/cancel", task.task_id))["resultType"] == "complete"
        self.polled.append({"status": task.status})
        while self.polled[-1]["status"] == "working":
            await asyncio.sleep(0.3)
            self.polled.append(await request(context.session, "tasks/get", task.task_id))
        last = self.polled[-1]
        return CallToolResult.model_validate(last.get("result") or {"content": [], "isError": True})


class AnyResult(BaseModel):
    """A result as it is on the wire."""

    model_config = ConfigDict(extra="allow")


async def request(session: ClientSession, method: str, task: str) -> dict[str, Any]:
    """Send a request about a task; return its result as it is on the wire."""
    message = Request[dict[str, Any], str](method=method, params={"taskId": task})
    return (await session.send_request(message, AnyResult)).model_dump()


def test_tasks(policy: Policy, api: Path, model: ModelServer) -> None:
    """For a client that knows tasks a job is one: it is answered at once, polled, and has the result of `status`."""
    client_side = KnowsTasks()

    async def act(client: Client) -> None:
        started = await start(client)
        assert started["state"] == "complete"
        states = [each["status"] for each in client_side.polled]
        assert (states[0], states[-1]) == ("working", "completed")
        assert client_side.polled[-1]["taskId"] == started["job"]
        polled = len(states)
        assert (await start(client))["state"] == "complete"  # it has ended: an answer, and no task
        assert len(client_side.polled) == polled
        with pytest.raises(MCPError, match="There is no job"):
            await request(client.session, "tasks/get", "0" * 16)

    use(policy, act, extensions=[client_side])


def test_a_task_is_cancelled(policy: Policy, jobs: JobStore, api: Path, model: ModelServer) -> None:
    """A client that cancels a task cancels the job; a job that is refused is an error of the call, and no task."""
    client_side = KnowsTasks()
    client_side.cancel_first = True
    model.behave = lambda request, n: Behaviour(hang=True)
    (jobs.root / "job.yaml").write_text(f"{JOB}limits: {{grace_s: 0}}\n", encoding="utf-8")

    async def act(client: Client) -> None:
        planned = await call(client, "plan", job_file="job.yaml")
        (jobs.root / "items" / "0.txt").write_text("Another text.", encoding="utf-8")
        assert "changed" in await fail(client, "start", fingerprint=planned["fingerprint"])
        refused = await request(client.session, "tasks/get", planned["fingerprint"][:16])
        assert (refused["status"], "changed" in refused["error"]["message"]) == ("failed", True)
        planned = await call(client, "plan", job_file="job.yaml")
        assert await client.call_tool("start", {"fingerprint": planned["fingerprint"]})
        assert client_side.polled[-1]["status"] == "cancelled"

    use(policy, act, extensions=[client_side])


def test_the_command_line(
    root: Path, policy: Policy, jobs: JobStore, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People see the jobs that agents have started, and cancel them."""
    assert main(["jobs"]) == 0
    assert capsys.readouterr().out == "There are no jobs.\n"
    planned = use(policy, lambda client: call(client, "plan", job_file="job.yaml"))
    job = jobs.find(planned["fingerprint"])
    assert main(["jobs"]) == 0
    assert capsys.readouterr().out == f"{job.id}  planned    0/4  unknown  terms  {root}\n"
    folder = job.folder / "runs" / "1"
    folder.mkdir(parents=True)
    record = {"number": 1, "started": "now", "budget_usd": 1, "policy": policy.model_dump(mode="json")}
    folder.joinpath("run.json").write_text(json.dumps(record), encoding="utf-8")
    run = job.runs[0]
    row = {"brief": "terms", "item": "items/0.txt", "state": "failed", "error": "timeout: late"}
    folder.joinpath("ledger.jsonl").write_text(f"{json.dumps(row)}\n", encoding="utf-8")
    handle = run.lock()
    at_work = Activity(brief="terms", item="items/1.txt", program="claude", seconds=4.0, step="$ ls", log="/1.log")
    run.record_progress(Progress(total=4, in_flight=1, working=(at_work,)))
    assert main(["jobs", job.id[:6], "--cancel"]) == 0
    printed = capsys.readouterr()
    assert "working: terms/items/1.txt: 4 s: $ ls" in printed.out
    assert printed.err.startswith("It is being cancelled")
    assert "no answer for terms/items/0.txt: timeout: late" in printed.out
    assert f"log: {folder / 'log.txt'}" in printed.out
    assert run.is_cancel_requested
    os.close(handle)
    run.record_end("gaps", "3 of 4 answered.", 0.5)
    job.report.mkdir()
    (job.report / "report.json").touch()
    assert main(["jobs", job.id]) == 0
    printed = capsys.readouterr()
    assert "terms: gaps. 3 of 4 answered." in printed.out
    assert "1 run, 0 tokens, cost $0.5000 of $1.0000" in printed.out
    assert f"report: {job.report}/report.html" in printed.out
    assert main(["jobs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "gaps"
    assert main(["jobs", job.id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost_usd"] == 0.5
    assert main(["jobs", "f" * 16]) == 2
    assert "There is no job" in capsys.readouterr().err
