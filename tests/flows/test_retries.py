"""Flow retries of Prefect's: a failed attempt is followed by another one, and the caller meets the last."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.exceptions import ParameterTypeError
from prefect.flow_engine import run_flow
from prefect.logging.loggers import flow_run_logger
from prefect.states import AwaitingRetry, Cancelling

from prefect_dispatch import Brief, DispatchFailed, Limits, LLMCredentials, analyze_files, dispatch
from prefect_dispatch.errors import BriefError, JobError, RejectedError
from prefect_dispatch.testing import ScriptedExecutor
from tests.openai_server import Behaviour, failure, openai_server

if TYPE_CHECKING:
    from pathlib import Path

    from prefect.client.schemas.objects import FlowRun, State
    from pydantic import JsonValue

    from prefect_dispatch import Ask, Report

pytestmark = pytest.mark.usefixtures("store")

NAMES = Brief(name="names", instructions="Name it.")
ONCE = Limits(retry_delay_s=0, retries=0, reasks=0, timeout_s=20, circuit=100)
WRONG = NAMES.model_copy(update={"instructions": "Read {nothing}."})


def fails(times: int, *, item: str = "bad", fingerprint: str = "scripted") -> ScriptedExecutor:
    """Return an executor that refuses one item so many times."""
    refused: list[str] = []

    def answer(ask: Ask) -> JsonValue:
        if ask.item.key == item and len(refused) < times:
            refused.append(item)
            raise RejectedError(f"Refused {len(refused)}.")
        return str(ask.item.value).upper()

    return ScriptedExecutor(answer, fingerprint=fingerprint)


def asked(executor: ScriptedExecutor) -> list[str]:
    """Return the items that were asked, in order."""
    return [ask.item.key for ask in executor.asks]


def run_of(report: Report) -> FlowRun:
    """Return the flow run of a report, as the server has it."""
    told: Any = report.run["flow_run"]
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(told["id"]))


def states_of(run: FlowRun) -> list[str]:
    """Return the names of all states that a run had, after the first; Prefect may call a second `Running` so, too."""
    with get_client(sync_client=True) as client:
        found = client.read_flow_run_states(run.id)
    names = [str(state.name) for state in sorted(found, key=lambda state: str(state.timestamp))]
    return ["Running" if name == "Retrying" else name for name in names[1:]]


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages of the records that have one."""
    return [each.getMessage() for each in caplog.records if each.name == "prefect.flow_runs" and each.exc_info]


NEEDS_ALL = ONCE.model_copy(update={"min_success": 1.0})


def test_a_failed_attempt_is_followed_by_another(caplog: pytest.LogCaptureFixture) -> None:
    """What was answered isn't asked again, what failed is; the caller gets the report of the attempt that passed."""
    executor = fails(1)
    report = dispatch.with_options(retries=2)([NAMES], ["a", "bad"], executor=executor, limits=NEEDS_ALL)
    assert (report.status, report.message) == ("complete", "2 of 2 answered.")
    assert sorted(asked(executor)) == ["a", "bad", "bad"]
    run = run_of(report)
    assert states_of(run) == ["Running", "AwaitingRetry", "Running", "Completed"]
    assert (run.state_name, run.run_count) == ("Completed", 2)
    assert tracebacks(caplog) == []


def test_the_last_failure_reaches_the_caller() -> None:
    """After the last attempt: `DispatchFailed` with its report, and the run's state has its message."""
    executor = fails(100)
    with pytest.raises(DispatchFailed, match="1 of 2 answered") as caught:
        dispatch.with_options(retries=2)([NAMES], ["a", "bad"], executor=executor, limits=NEEDS_ALL)
    assert asked(executor).count("bad") == 3
    assert asked(executor).count("a") == 1
    assert caught.value.report.gaps[0].error.message == "Refused 3."
    run = run_of(caught.value.report)
    assert states_of(run) == ["Running", *["AwaitingRetry", "Running"] * 2, "Failed"]
    assert run.state is not None
    assert run.state.message == str(caught.value)


@pytest.mark.slow
def test_without_retries_a_failure_is_final() -> None:
    """A flow as it comes has no retries: one attempt, and the same error."""
    executor = fails(100)
    with pytest.raises(DispatchFailed) as caught:
        dispatch([NAMES], ["a", "bad"], executor=executor, limits=NEEDS_ALL)
    assert states_of(run_of(caught.value.report)) == ["Running", "Failed"]


@pytest.mark.slow
def test_the_state_is_that_of_the_last_attempt() -> None:
    """`return_state=True` gives the state, and its result is the report, or raises."""
    again: Any = dispatch.with_options(retries=1)
    passed: State[Report] = again([NAMES], ["bad"], executor=fails(1), limits=NEEDS_ALL, return_state=True)
    assert passed.is_completed()
    assert cast("Report", cast("Any", passed).result()).status == "complete"
    executor = fails(9, fingerprint="another")
    failed: State[Report] = again([NAMES], ["bad"], executor=executor, limits=NEEDS_ALL, return_state=True)
    assert failed.is_failed()
    with pytest.raises(DispatchFailed) as caught:
        cast("Any", failed).result()
    assert caught.value.report.message == failed.message


@pytest.mark.slow
def test_a_subflow_is_retried() -> None:
    """Inside a flow the attempts are the subflow's; the flow around it runs once, and meets the last failure."""
    executor, began = fails(100), list[int]()

    @flow
    def pipeline() -> str:
        began.append(1)
        with pytest.raises(DispatchFailed) as caught:
            dispatch.with_options(retries=1)([NAMES], ["a", "bad"], executor=executor, limits=NEEDS_ALL)
        assert run_of(caught.value.report).run_count == 2
        return dispatch.with_options(retries=9)([NAMES], ["bad"], executor=fails(1), limits=NEEDS_ALL).status

    assert (pipeline(), began, asked(executor).count("bad")) == ("complete", [1], 2)


@pytest.mark.slow
def test_the_traceback_of_a_callers_flow_stays(caplog: pytest.LogCaptureFixture) -> None:
    """Only the log of the run itself is kept short: where the caller's flow fails with it, its log says where."""

    @flow(name="around")
    def pipeline() -> None:
        dispatch([NAMES], ["bad"], executor=fails(9), limits=NEEDS_ALL)

    with pytest.raises(DispatchFailed):
        pipeline()
    (message,) = tracebacks(caplog)
    assert message.startswith("Encountered exception during execution: DispatchFailed(")


@pytest.mark.slow
def test_a_flow_with_a_form_is_retried(tmp_path: Path) -> None:
    """`with_options` and its retries work for these flows, too."""
    (tmp_path / "a.txt").write_text("a")

    def behave(_: dict[str, Any], n: int) -> Behaviour:
        return failure(400, "not now") if n == 1 else Behaviour(content="said")

    with openai_server(behave) as server:
        block = LLMCredentials.model_validate({"api_key": "sk-none-needed", "api_base": server.url})
        block.save("of-a-retry", overwrite=True)
        again: Any = analyze_files.with_options(retries=1)
        assert type(again) is type(analyze_files)
        report: Report = again(
            files="*.txt", instructions="Say it.", folder=str(tmp_path), model="openai/test", credentials=block
        )
        assert (report.message, server.count) == ("1 of 1 answered.", 2)
    assert run_of(report).run_count == 2


def test_a_refused_job_is_not_retried(caplog: pytest.LogCaptureFixture) -> None:
    """No further attempt could pass: `Failed` at once, the message as the state's, no traceback, the same error."""
    again: Any = dispatch.with_options(retries=2)
    executor = fails(0)
    state: State[Report] = again([WRONG], ["a"], executor=executor, return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith("Brief 'names': Placeholder {nothing} has no value in item 'a'")
    with pytest.raises(BriefError, match=r"Placeholder \{nothing\} has no value"):
        again([WRONG], ["a"], executor=executor)
    assert executor.calls == 0
    assert tracebacks(caplog) == []
    assert "will attempt to run again" not in caplog.text
    assert state.state_details.flow_run_id is not None
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    assert (states_of(run), run.run_count, run.empirical_policy.retries) == (["Running", "Failed"], 1, 0)


@pytest.mark.slow
def test_prefects_default_is_for_every_flow_but_that_of_shards() -> None:
    """The run that waits for a shard asks again itself what failed there."""
    code = (
        "from prefect_dispatch import analyze_files, dispatch\n"
        "from prefect_dispatch.flows.work_shard import work_shard\n"
        "print(dispatch.retries, analyze_files.retries, work_shard.retries)"
    )
    environment = {**os.environ, "PREFECT_FLOWS_DEFAULT_RETRIES": "2"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)  # noqa: S603 -- ours
    assert ran.stdout.splitlines()[-1] == "2 2 0"


def test_wrong_parameters_are_not_retried() -> None:
    """Prefect itself refuses them before the run begins."""
    with pytest.raises(ParameterTypeError):
        dispatch.with_options(retries=2)([NAMES], 7, executor=fails(0))


@pytest.mark.slow
def test_an_error_outside_of_the_job_is_retried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A disk that can't be written to, once: the second attempt writes the files, and its report is returned."""
    blocked = tmp_path / "report.json" / "in-the-way"
    blocked.mkdir(parents=True)

    def clear(*_: object) -> None:
        if caplog.text.count("report.json"):
            blocked.rmdir()
            blocked.parent.rmdir()

    again = dispatch.with_options(retries=1, on_running=[clear])
    report = again([NAMES], ["a"], executor=fails(0), limits=ONCE, out=str(tmp_path))
    assert (tmp_path / "report.json").is_file()
    assert (report.usage.cached, run_of(report).run_count) == (1, 2)
    assert len(tracebacks(caplog)) == 1  # this error is not ours


@pytest.mark.slow
def test_an_attempt_that_is_repeated_is_no_run_to_compare_with() -> None:
    """What changed is told against the last run, not against an earlier attempt of the same one."""
    dispatch([NAMES], ["a"], executor=fails(0), limits=ONCE)
    report = dispatch.with_options(retries=1)([NAMES], ["a", "bad"], executor=fails(1), limits=NEEDS_ALL)
    assert [ref.item for ref in report.changes.new] == ["bad"]
    assert not report.changes.closed


@pytest.mark.slow
def test_a_refreshed_answer_is_not_asked_again() -> None:
    """`refresh` asks everything once in a run, however many attempts it takes."""
    dispatch([NAMES], ["a", "bad"], executor=fails(0), limits=ONCE)
    executor = fails(1)
    report = dispatch.with_options(retries=1)([NAMES], ["a", "bad"], executor=executor, limits=NEEDS_ALL, refresh=True)
    assert report.status == "complete"
    assert sorted(asked(executor)) == ["a", "bad", "bad"]


@pytest.mark.slow
def test_a_budget_holds_over_all_attempts() -> None:
    """What earlier attempts have spent counts: the third call is not sent."""
    executor = fails(100)
    limits = NEEDS_ALL.model_copy(update={"budget_requests": 2})
    with pytest.raises(DispatchFailed, match="budget") as caught:
        dispatch.with_options(retries=3)([NAMES], ["bad"], executor=executor, limits=limits)
    assert executor.calls == 2
    assert run_of(caught.value.report).run_count == 4


@pytest.mark.slow
def test_a_time_limit_counts_for_each_attempt() -> None:
    """An attempt that takes too long is ended and followed by another, which asks what has no answer."""
    hangs: list[str] = []

    async def answer(ask: Ask) -> JsonValue:
        if ask.item.key == "slow" and not hangs:
            hangs.append("once")
            await asyncio.sleep(600)
        return "said"

    executor = ScriptedExecutor(answer)
    limits = ONCE.model_copy(update={"timeout_s": 900, "grace_s": 0})
    again = dispatch.with_options(retries=1, timeout_seconds=15)
    report = again([NAMES], ["a", "slow"], executor=executor, limits=limits)
    assert report.status == "complete"
    assert sorted(asked(executor)) == ["a", "slow", "slow"]
    assert states_of(run_of(report)) == ["Running", "AwaitingRetry", "Running", "Completed"]


class _Deployed:
    """A run as a worker begins it: created by the server, run in Prefect's engine."""

    def __init__(self, again: Any, parameters: dict[str, Any]) -> None:  # noqa: ANN401 -- a flow of any kind
        self.flow, self.parameters = again, parameters
        with get_client(sync_client=True) as client:
            self.run = client.create_flow_run(again, parameters={})

    def __call__(self) -> object:
        """Run it; return what it raises, or its result."""
        log: Any = flow_run_logger(flow_run=self.run, flow=self.flow)
        try:
            with get_client(sync_client=True) as client:
                run = client.read_flow_run(self.run.id)
            return run_flow(self.flow, flow_run=run, parameters=self.parameters, error_logger=log)
        except (DispatchFailed, JobError) as error:
            return error
        finally:
            with get_client(sync_client=True) as client:
                self.run = client.read_flow_run(self.run.id)


def _job(executor: ScriptedExecutor, *, brief: Brief = NAMES) -> dict[str, Any]:
    given: dict[str, Any] = {"briefs": [brief], "items": ["a", "bad"], "executor": executor, "limits": NEEDS_ALL}
    return given


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "brief", "state", "message", "count"),
    [
        pytest.param(1, NAMES, "Completed", "2 of 2 answered.", 2, id="passes-in-the-end"),
        pytest.param(9, NAMES, "Failed", "Failed: 1 of 2 answered", 2, id="fails"),
        pytest.param(0, WRONG, "Failed", "Brief 'names': Placeholder", 1, id="is-refused"),
    ],
)
def test_a_deployed_run_ends_with_its_message(
    times: int, brief: Brief, state: str, message: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its state is that of the last attempt, with the message alone; the log has no traceback of any."""
    deployed = _Deployed(dispatch.with_options(retries=1), _job(fails(times), brief=brief))
    deployed()
    run = deployed.run
    assert run.state is not None
    assert (run.state.name, run.run_count) == (state, count)
    assert str(run.state.message).startswith(message)
    assert tracebacks(caplog) == []


@pytest.mark.slow
def test_a_failed_run_is_retried_by_hand() -> None:
    """After `prefect flow-run retry` the same run goes on: what is stored isn't asked again, what failed is."""
    executor = fails(1)
    deployed = _Deployed(dispatch, _job(executor))
    assert isinstance(deployed(), DispatchFailed)
    assert deployed.run.state_name == "Failed"
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(deployed.run.id, AwaitingRetry(), force=True)
    report: Any = deployed()
    assert report.data is not None if hasattr(report, "data") else report.status == "complete"
    assert deployed.run.state_name == "Completed"
    assert sorted(asked(executor)) == ["a", "bad", "bad"]


@pytest.mark.slow
def test_a_cancelled_run_is_not_retried() -> None:
    """Whoever cancels a run wants no further attempt."""

    async def answer(ask: Ask) -> JsonValue:
        with get_client(sync_client=True) as client:
            (run,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=["to-cancel"])))
            client.set_flow_run_state(run.id, Cancelling(), force=True)
        await asyncio.sleep(600)
        return "never"

    again: Any = dispatch.with_options(retries=2, flow_run_name="to-cancel")
    limits = ONCE.model_copy(update={"timeout_s": 900, "grace_s": 0})
    executor = ScriptedExecutor(answer)
    state: State[Any] = again([NAMES], ["a"], executor=executor, limits=limits, return_state=True)
    assert (state.name, executor.calls) == ("Cancelled", 1)
