"""Secrets and items' words are looked for wherever a run leaves anything."""

from __future__ import annotations

import base64
import json
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
    TaskRunFilter,
    TaskRunFilterId,
)
from prefect.logging.handlers import APILogHandler

from prefect_dispatch import LLM, Ask, Brief, Collate, Limits, Merge, Reply, dispatch, run_brief
from prefect_dispatch.errors import JobError, RejectedError, SourceError, TransientError
from prefect_dispatch.models.checks import Function
from prefect_dispatch.models.item import Item
from prefect_dispatch.tasks import provider_batches
from prefect_dispatch.testing import ScriptedExecutor
from tests.batch_server import batch_server
from tests.openai_server import Behaviour, document, failure, openai_server
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefect.client.schemas import State
    from pydantic import JsonValue

    from prefect_dispatch import Executor, Outcome

CANARY = "canary-0f9e8d7c6b"
PATTERN, MATCHED = "ACME-[0-9]+", "ACME-4711"
BOTH = f"{CANARY} and {MATCHED}"
SECRETS = (CANARY, MATCHED, base64.b64encode(CANARY.encode()).decode(), "canary%2D0f9e")
WORDS = "The tenant shall vacate the premises by the last day of the month following notice."
PARTS = [WORDS[at : at + 24] for at in range(len(WORDS) - 23)]
LIMITS = Limits(retries=1, retry_delay_s=0, reasks=1, timeout_s=30, concurrency=2)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
DONE_S = 30
PARAMETERS = {"parameters"}
"""What a job says is kept with the flow run as it stands: it could not be run again otherwise."""


@pytest.fixture(autouse=True)
def folder(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for items and reports; a secret in the environment, and a pattern that matches another."""
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("PREFECT_DISPATCH_REDACT", PATTERN)
    (tmp_path / "items").mkdir()
    return tmp_path


def run(
    folder: Path,
    names: Sequence[str],
    brief: Brief,
    executor: Executor,
    caplog: pytest.LogCaptureFixture,
    **more: Any,  # noqa: ANN401 -- parameters of the flow
) -> tuple[str, str]:
    """Run a job over items in files; return what it told (logs, states, names), and all that it left anywhere."""
    for name in names:
        (folder / "items" / name).write_text(f"{name}: {WORDS} {BOTH}")
    with caplog.at_level(logging.INFO):
        state: State[Any] = dispatch(
            [brief],
            {"glob": "items/*"},
            executor=executor,
            limits=LIMITS,
            folder=str(folder),
            out="out",
            return_state=True,
            **more,
        )
    told, artifacts = prefects(state)
    told += caplog.text + "".join(map(repr, caplog.records))
    kept = [path for where in ("store", "out") for path in (folder / where).rglob("*") if path.is_file()]
    return told, told + artifacts + "".join(f"{path.name}: {path.read_text()}\n" for path in kept)


def prefects(state: State[Any]) -> tuple[str, str]:
    """Return all that Prefect has of a flow run: itself, its task runs, their states and logs; and its artifacts."""
    APILogHandler().flush()
    run_id = state.state_details.flow_run_id
    assert run_id is not None
    only = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        last = time.monotonic() + DONE_S
        while True:  # the server hears of task runs by events
            tasks = client.read_task_runs(flow_run_filter=only)
            if all(each.state and each.state.is_final() for each in tasks) or time.monotonic() > last:
                break
            time.sleep(0.2)
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])))
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
        found = [
            client.read_flow_run(run_id),
            *client.read_flow_run_states(run_id),
            *tasks,
            *(each for task in tasks for each in client.read_task_run_states(task.id)),
            *logs,
        ]
    assert logs
    shown = "".join(f"{each.key}: {each.description} {each.data}\n" for each in artifacts)
    return "".join(each.model_dump_json(exclude=PARAMETERS) for each in found), shown


def leaked(text: str, parts: Sequence[str]) -> list[str]:
    """Return what is in a text that shouldn't be, with what stands around it."""
    places = [(part, text.find(part)) for part in parts]
    return [text[max(0, at - 200) : at + len(part) + 50] for part, at in places if at >= 0]


def fussy(value: JsonValue, item: Item) -> str | None:
    """Quote everything, as a check of a user's own may."""
    return f"{item.value!r} {BOTH}" if value == {"n": 13} else None


@pytest.mark.slow
def test_an_executor_of_ones_own_leaks_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What it echoes in answers, keys, numbers, models, errors, causes and refusals; what checks and schemas quote."""

    def script(ask: Ask) -> Reply | JsonValue:
        match ask.item.key.partition("/")[2]:
            case "cause":
                said = f"{ask.item.value} {BOTH}"
                raise TransientError(f"HTTP 500: {said!r}") from KeyError(said)
            case "crash":
                raise ValueError(f"can't read {ask.item.value} {BOTH}")
            case "rejected":
                raise RejectedError(f"content of {str(ask.item.value)[:60]!r}", kind="content_policy")
            case "refused":
                return Reply(value=f"I won't say {ask.item.value} {BOTH}", finish="refused")
            case "wrong":
                return {"n": f"{ask.item.value} {BOTH}"}
            case "fussy":
                return {"n": 13}
            case "mended" if not ask.rejections:
                return f"not JSON {BOTH}"
            case _:
                return Reply(value={"n": 1, BOTH: [BOTH, f"x-api-key: {CANARY}"]}, model=f"m {BOTH}")

    executor = ScriptedExecutor(script)
    brief = Brief(name="say", instructions="Say it.", output=SCHEMA, checks=(Function(function=fussy),))
    names = ["cause", "crash", "rejected", "refused", "wrong", "fussy", "mended", "plain"]
    told, left = run(folder, names, brief, executor, caplog)
    assert leaked(left, SECRETS) == []
    assert leaked(told, PARTS) == []
    assert "can't read […]" in told  # or nothing was looked at
    assert all(f"{name}: " in left for name in ("say-report", "say-outcomes", "say-progress", "outcomes.jsonl"))
    assert "*** and ***" in left
    sent_back = [rejection for ask in executor.asks for rejection in ask.rejections]
    assert "not JSON *** and ***" in {each.text for each in sent_back}
    assert leaked("".join(each.model_dump_json() for each in sent_back), SECRETS) == []
    assert any(WORDS in problem for each in sent_back for problem in each.problems)  # the model may be told


@pytest.mark.slow
def test_a_provider_leaks_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a real server echoes of its request, in bodies and headers, good or bad."""

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        said = document(request)
        echo = {"X-Echo": f"Bearer {CANARY}", "Set-Cookie": f"key={CANARY}"}
        if "bad:" in said:
            return failure(400, f"{said} Authorization: Bearer {CANARY} {MATCHED}", headers=echo)
        if "busy:" in said and n == 1:
            return failure(429, f"slow down {BOTH}", retry_after=0, headers=echo)
        if "torn:" in said:
            return Behaviour(body=f"<html>{said} {BOTH}</html>", content_type="text/html", headers=echo)
        escaped = "".join(f"\\u{ord(character):04x}" for character in CANARY)
        return Behaviour(content=f'{{"n": 1, "a": "{escaped}", "b": "{BOTH}"}}', headers=echo)

    with openai_server(behave) as server:
        model = LLM(model="openai/test", api_base=server.url, params={"extra_body": {"user": MATCHED}})
        brief = Brief(name="say", instructions="Say it.", output=SCHEMA)
        told, left = run(folder, ["bad", "busy", "torn", "good"], brief, model, caplog)
        assert f"Bearer {CANARY}" in {each.headers["authorization"] for each in server.requests}
    assert leaked(left, SECRETS) == []
    assert leaked(told, PARTS) == []
    assert "slow down" not in told
    assert '"a":"***","b":"*** and ***"' in left


def broken(value: JsonValue, item: Item) -> str | None:
    """Break over everything."""
    raise ValueError(f"{item.value} {BOTH}")


def echo(request: dict[str, Any], n: int) -> Behaviour:
    """Answer as the item says, and echo it."""
    said = document(request)
    if "bad:" in said:
        return failure(400, f"{said} Authorization: Bearer {CANARY} {MATCHED}")
    if "refused:" in said:
        return Behaviour(content=None, refusal=f"{said} {BOTH}")
    if "wrong:" in said:
        return Behaviour(content=json.dumps({"n": f"{said} {BOTH}"}))
    return Behaviour(content=json.dumps({"n": 13 if "fussy:" in said else 1, "b": BOTH}))


@pytest.mark.slow
def test_a_batch_leaks_nothing(folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its lines say: errors, refusals, invalid answers, and good ones; in the accounts of attempts, too."""
    monkeypatch.setattr(provider_batches, "LEAST_S", 0.02)
    with batch_server(echo) as server:
        model = LLM(model="openai/test", api_base=server.url, mode="batch")
        brief = Brief(name="say", instructions="Say it.", output=SCHEMA, checks=(Function(function=fussy),))
        told, left = run(folder, ["bad", "refused", "wrong", "fussy", "good"], brief, model, caplog)
        assert server.batches
    assert leaked(left, SECRETS) == []
    assert leaked(told, PARTS) == []
    outcomes = [json.loads(line) for line in (folder / "out" / "outcomes.jsonl").read_text().splitlines()]
    errors = [attempt["error"] or "" for outcome in outcomes for attempt in outcome["attempts"]]
    assert leaked("".join(errors), PARTS) == []
    assert sum("[…]" in error for error in errors) >= 4


@pytest.mark.slow
def test_a_batch_whose_check_breaks_leaks_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the run, by the same quiet words."""
    monkeypatch.setattr(provider_batches, "LEAST_S", 0.02)
    with batch_server(echo) as server:
        model = LLM(model="openai/test", api_base=server.url, mode="batch")
        brief = Brief(name="say", instructions="Say it.", output=SCHEMA, checks=(Function(function=broken),))
        told, left = run(folder, ["good"], brief, model, caplog)
    assert leaked(left, SECRETS) == []
    assert leaked(told, PARTS) == []
    assert "The check 'function' raised ValueError: […]" in told


class Breaking(Collate):
    """An integrator that quotes all it has when it breaks."""

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Break."""
        raise ValueError(f"{BOTH} {outcomes}")


def test_an_integrator_that_breaks_leaks_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither by its message nor by its traceback; the run fails, and says so in the same quiet words."""
    executor = ScriptedExecutor(lambda ask: f"It says: {ask.item.value}")
    told, left = run(folder, ["a"], Brief(name="say", instructions="Say it."), executor, caplog, integrator=Breaking())
    assert leaked(left, SECRETS) == []
    assert leaked(told, PARTS) == []
    assert "raised ValueError: *** and *** [Outcome(brief=" in told


@pytest.mark.parametrize("key", [f"{MATCHED}.txt", f"a {CANARY}"])
def test_a_key_that_holds_a_secret_is_refused(key: str, caplog: pytest.LogCaptureFixture) -> None:
    """By its place, as keys stand in every list; nobody is asked."""
    executor = ScriptedExecutor({})
    items = [Item(key="a", value=1), Item(key=key, value=2)]
    with pytest.raises(
        SourceError, match=r"^The key of item number 2 of .* holds a secret, or what a pattern"
    ) as raised:
        dispatch([Brief(name="say", instructions="Say it.")], items, executor=executor)
    assert leaked(caplog.text + str(raised.value), SECRETS) == []
    assert not executor.calls


@pytest.mark.slow
def test_a_task_of_its_own_is_named_without_secrets() -> None:
    """Where nobody has looked at the keys before."""
    brief, executor = Brief(name="say", instructions="Say it."), ScriptedExecutor(lambda ask: "yes")

    @flow
    def alone() -> State[Any]:
        return run_brief(brief, Item(key=f"a {MATCHED}", value=1), executor, return_state=True)

    state = alone()
    assert state.is_completed()
    assert state.state_details.task_run_id is not None
    only = TaskRunFilter(id=TaskRunFilterId(any_=[state.state_details.task_run_id]))
    with get_client(sync_client=True) as client:
        wait_until(lambda: bool(client.read_task_runs(task_run_filter=only)), "the server records the task run")
        assert client.read_task_run(state.state_details.task_run_id).name == "say: a ***"


def test_patterns_that_cant_be_used_are_told_before_anything_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a flow and by a task alike."""
    monkeypatch.setenv("PREFECT_DISPATCH_REDACT", "(")
    executor = ScriptedExecutor({"a": "yes"})
    brief = Brief(name="say", instructions="Say it.")
    with pytest.raises(JobError, match="PREFECT_DISPATCH_REDACT: the pattern"):
        dispatch([brief], ["a"], executor=executor)
    with pytest.raises(JobError, match="PREFECT_DISPATCH_REDACT: the pattern"):
        run_brief.fn(brief, Item(key="a", value=1), executor)
    assert not executor.calls
