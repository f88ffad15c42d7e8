"""`fan_out: deployment`, with a worker in a thread: the runs, their documents and their ends are the real ones."""

from __future__ import annotations

import contextvars
import json
import linecache
import os
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
from prefect import flow, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, StateType
from prefect.flow_engine import run_flow
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_LOCAL_STORAGE_PATH,
    temporary_settings,
)
from prefect.states import Cancelled, Completed, Crashed, Pending, Running
from pydantic import BaseModel, TypeAdapter

from prefect_dispatch import LLM, Ask, Brief, Item, Limits, PythonCallable, Reply, dispatch
from prefect_dispatch.cli.commands import main
from prefect_dispatch.errors import DispatchFailed, JobError, TransientError
from prefect_dispatch.flows import remote_targets
from prefect_dispatch.flows.remote_targets import resolve_deployment
from prefect_dispatch.flows.work_shard import work_shard
from prefect_dispatch.models.checks import Function
from prefect_dispatch.reporting.progress import Progress, progress_listener
from prefect_dispatch.tasks.run_brief import Shard, result_store_for_run, shard_task
from prefect_dispatch.tasks.shards import deployment_runner
from prefect_dispatch.tasks.shards.deployment_runner import DeploymentRunner, Target
from prefect_dispatch.tasks.shards.options import ByDeployment, FanOutTo
from prefect_dispatch.tasks.shards.protocol import (
    FOLDER,
    RESULT_SUFFIX,
    ItemResult,
    ShardHeader,
    ShardResult,
    ShardStore,
)
from prefect_dispatch.tasks.work_item import build_work
from tests.openai_server import Behaviour, document, failure, openai_server
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

    from prefect_dispatch import Report
    from tests.openai_server import OpenAIServer

pytestmark = pytest.mark.usefixtures("store")

BRIEF = Brief(name="b", instructions="Shout.")
KEYS = [f"k{at}" for at in range(6)]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at runs often."""
    monkeypatch.setattr(deployment_runner, "POLL_S", 0.1)


def behave(request: dict[str, Any], n: int) -> Behaviour:
    """Say it in capitals; refuse what says so."""
    text = document(request)
    if "refused" in text:
        return failure(400, "no", code="content_policy_violation")
    return Behaviour(content=text.upper())


@pytest.fixture
def model() -> Generator[OpenAIServer]:
    """A model."""
    with openai_server(behave) as server:
        yield server


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key for it."""
    monkeypatch.setenv("OPENAI_API_KEY", "none-needed")


class Worker:
    """Takes the runs of a deployment, one after another, as a worker would; in this process."""

    def __init__(self, name: str, ways: list[Callable[[FlowRun], object]]) -> None:
        """Keep what is to become of the first runs; the others are worked on."""
        self.name = f"work-shard/{name}"
        with get_client(sync_client=True) as client:
            flow = client.create_flow_from_name("work-shard")
            self.id: UUID = client.create_deployment(flow, name)
        self.runs: list[FlowRun] = []
        self._ways = ways
        self._ended = threading.Event()

    def work(self) -> None:
        """Work until the end."""
        while not self._ended.wait(0.1):
            for run in self.due():
                self._take(run)

    def due(self) -> list[FlowRun]:
        """Return the runs that wait for a worker."""
        with get_client(sync_client=True) as client:
            return client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[self.id])),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
                ),
            )

    def _take(self, run: FlowRun) -> None:
        self.runs.append(run)
        if self._ways:
            self._ways.pop(0)(run)
        else:
            run_flow(work_shard, flow_run=run, parameters=run.parameters, return_type="state")

    @contextmanager
    def working(self) -> Generator[Worker]:
        """Work beside the block."""
        thread = threading.Thread(target=contextvars.copy_context().run, args=(self.work,))
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()


def set_state(state: Any) -> Callable[[FlowRun], object]:  # noqa: ANN401 -- a state
    """Return what puts a run into a state and leaves it there."""

    def put(run: FlowRun) -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, state, force=True)

    return put


def delete(run: FlowRun) -> None:
    """Delete a run."""
    with get_client(sync_client=True) as client:
        client.delete_flow_run(run.id)


def ran(
    model: OpenAIServer,
    *ways: Callable[[FlowRun], object],
    items: Sequence[str] = KEYS,
    silent_s: float = 60,
    brief: Brief = BRIEF,
) -> tuple[Report, Worker]:
    """Run a job by a deployment of its own, whose first runs go certain ways."""
    worker = Worker(f"w-{uuid4().hex}", [*ways])
    with worker.working():
        report = dispatch(
            [brief],
            items,
            executor=LLM(model="openai/test", api_base=model.url),
            limits=Limits(shard=3, retry_delay_s=0),
            fan_out=ByDeployment(deployment=worker.name, runs=2).model_copy(update={"silent_s": silent_s}),
        )
    return report, worker


@pytest.mark.slow
@pytest.mark.usefixtures("key")
def test_shards_are_runs_of_a_deployment(model: OpenAIServer, store: Path) -> None:
    """Each knows a key and no more; all that they were told is gone afterwards."""
    report, worker = ran(model, items=[*KEYS, "refused"])
    assert (report.status, len(report.gaps), model.count) == ("gaps", 1, 7)
    assert [list(run.parameters) for run in worker.runs] == [["shard"]] * 3
    assert {run.name for run in worker.runs} == {"3 items, b: k0 to b: k2", "3 items, b: k3 to b: k5", "b: refused"}
    assert not list((store / FOLDER).iterdir())
    again, idle = ran(model, items=[*KEYS, "refused"])
    assert (again.usage.cached, len(idle.runs), model.count) == (6, 1, 8)


@pytest.mark.slow
@pytest.mark.usefixtures("key")
@pytest.mark.parametrize(
    "lost",
    [
        pytest.param(set_state(Crashed(message="Its machine is gone.")), id="crashed"),
        pytest.param(delete, id="deleted"),
        pytest.param(set_state(Running()), id="silent"),
        pytest.param(set_state(Pending()), id="never-begun"),
    ],
)
def test_what_a_run_that_died_did_not_answer_is_asked_again(
    lost: Callable[[FlowRun], object], model: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way it died."""
    monkeypatch.setattr(deployment_runner, "START_S", 1.0)
    report, worker = ran(model, lost, silent_s=1)
    assert (report.status, model.count) == ("complete", 6)
    assert len(worker.runs) > 2


@pytest.mark.slow
@pytest.mark.usefixtures("key")
def test_what_somebody_cancels_is_a_gap(model: OpenAIServer) -> None:
    """One of the runs, in the UI: its items are not asked."""
    report, _ = ran(model, set_state(Cancelled()))
    assert {gap.error.kind for gap in report.gaps} == {"cancelled"}
    assert (len(report.gaps), model.count) == (3, 3)


def spoilt(run: FlowRun) -> None:
    """Work on a shard, spoil what that has written, and only then say that it has ended."""
    work_shard(shard=run.parameters["shard"], return_state=True)
    (PREFECT_LOCAL_STORAGE_PATH.value() / f"{run.parameters['shard']}{RESULT_SUFFIX}").write_text("{")
    set_state(Completed())(run)


def boasts(run: FlowRun) -> None:
    """Say that all is answered, and store nothing."""
    key, places = run.parameters["shard"], ShardStore(result_store_for_run())
    done = tuple(ItemResult(fingerprint=each.fingerprint) for each in places.read_shard(key).work)
    places.write_result(key, ShardResult(done=done))
    set_state(Completed())(run)


@pytest.mark.slow
@pytest.mark.usefixtures("key")
def test_what_is_spoilt_on_its_way_is_found_in_the_store(model: OpenAIServer) -> None:
    """What a run wrote of its shard can't be read: its answers are stored, and nothing is paid for twice."""
    report, _ = ran(model, spoilt)
    assert (report.status, model.count) == ("complete", 6)


@pytest.mark.slow
@pytest.mark.usefixtures("key")
def test_an_answer_that_is_nowhere_is_asked_again_but_not_for_ever(model: OpenAIServer) -> None:
    """A storage that forgets: three times, and then it is a gap."""
    with pytest.raises(DispatchFailed) as failed:
        ran(model, boasts, boasts, boasts, items=KEYS[:1])
    assert ([gap.error.kind for gap in failed.value.report.gaps], model.count) == (["storage"], 0)


@pytest.mark.slow
def test_a_worker_without_the_storage_is_told_of(
    model: OpenAIServer, key: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first run says so; no other is begun, and nobody is asked."""

    def elsewhere(run: FlowRun) -> None:
        with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "another"}):
            run_flow(work_shard, flow_run=run, parameters=run.parameters, return_type="state")

    with pytest.raises(DispatchFailed, match=r"There is no such shard in .*PREFECT_DEFAULT_RESULT_STORAGE_BLOCK"):
        ran(model, elsewhere, elsewhere)
    assert model.count == 0


OWN = """
from pydantic import BaseModel, field_validator


class Shout(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def _loud(cls, text: str) -> str:
        return text.upper()
"""


@pytest.mark.slow
def test_a_worker_with_other_code_is_told_of(model: OpenAIServer, key: None, own_code: Path) -> None:
    """It finds by the fingerprints that it would do other work."""

    def changed(run: FlowRun) -> None:
        (own_code / "own_shout.py").write_text(OWN.replace("upper", "lower"))
        sys.modules.pop("own_shout", None)
        linecache.clearcache()
        run_flow(work_shard, flow_run=run, parameters={**run.parameters, "folder": str(own_code)}, return_type="state")

    brief = BRIEF.model_copy(update={"output": "own_shout:Shout"})
    with pytest.raises(DispatchFailed, match="the worker finds other work than the run that gave it"):
        ran(model, changed, changed, brief=brief)
    assert model.count == 0


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A folder of a job with code of its own."""
    (tmp_path / "own_shout.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("own_shout", None)


@pytest.mark.slow
def test_a_worker_without_the_code_is_told_of(model: OpenAIServer, key: None, own_code: Path, tmp_path: Path) -> None:
    """It says where it has looked."""
    there = tmp_path / "there"
    there.mkdir()

    def without(run: FlowRun) -> None:
        sys.modules.pop("own_shout", None)
        sys.path[:] = [each for each in sys.path if each != str(own_code)]
        run_flow(work_shard, flow_run=run, parameters={**run.parameters, "folder": str(there)}, return_type="state")

    brief = BRIEF.model_copy(update={"output": "own_shout:Shout"})
    with pytest.raises(DispatchFailed, match=r"The worker looks in .*there"):
        ran(model, without, without, brief=brief)


class Mine:
    """An executor of the user's own."""

    fingerprint = "mine"

    async def answer(self, ask: Ask) -> Reply:
        """Answer nothing."""
        return Reply(value="")


def answered(text: str) -> str:
    """Answer as a function that no module of a job has."""
    return text


def _made() -> Callable[[object, object], None]:
    def fine(_value: object, _item: object) -> None:
        """Find nothing wrong."""

    return fine


nameless = _made()
"""A check that can't be found by its name."""


class Local(BaseModel):
    """A model that no module of a job has."""

    text: str


ANY = LLM(model="openai/test", api_base="http://127.0.0.1:1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("brief", "executor", "said"),
    [
        (BRIEF, Mine(), "executor: a Mine can't go to another process by fan_out: .* leave fan_out out"),
        (
            BRIEF,
            PythonCallable(answered, version="1"),
            "executor: PythonCallable.answered. can't go .* by its name",
        ),
        (BRIEF.model_copy(update={"output": Local}), ANY, "Brief 'b' can't go to another process .* JSON Schema"),
        (
            BRIEF.model_copy(update={"checks": (Function(function=answered),)}),
            ANY,
            "Brief 'b' can't go to another process .* 'tests.flows.test_fan_out:answered' is not code of yours",
        ),
        (
            BRIEF.model_copy(update={"checks": (Function(function=nameless),)}),
            ANY,
            "Brief 'b' can't go to another process .* leave fan_out out",
        ),
    ],
)
def test_what_no_job_file_can_say_is_refused(brief: Brief, executor: Any, said: str, own_code: Path) -> None:  # noqa: ANN401 -- any executor
    """Before anything is spent, with the way out."""
    with pytest.raises(JobError, match=said):
        dispatch([brief], ["a"], executor=executor, fan_out=ByDeployment(deployment="nowhere"))


def made(name: str, **more: Any) -> None:  # noqa: ANN401 -- fields of a deployment
    """Make a deployment."""
    with get_client(sync_client=True) as client:
        client.create_deployment(client.create_flow_from_name("work-shard"), name, **more)


def pool(name: str, **more: Any) -> None:  # noqa: ANN401 -- fields of a work pool
    """Make a work pool."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", **more))


def refusal(**said: Any) -> str:  # noqa: ANN401 -- fields of the form
    """Return why a job is refused that goes by some deployment."""
    with pytest.raises(JobError) as refused:
        dispatch([BRIEF], ["a"], executor=ANY, fan_out=ByDeployment.model_validate(said))
    return str(refused.value)


@pytest.mark.slow
def test_where_no_run_could_begin_is_refused() -> None:
    """A deployment that isn't there, or isn't one of shards; a pool that is paused, or has no room."""
    made("gpu-pool")
    assert refusal(deployment="gpu-pol") == (
        "fan_out.deployment: Prefect has no deployment 'work-shard/gpu-pol'; did you mean 'work-shard/gpu-pool'?"
    )
    with get_client(sync_client=True) as client:
        client.create_deployment(client.create_flow_from_name("other"), "x")
    assert "is a deployment of another flow than 'work-shard'" in refusal(deployment="other/x")
    options = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    made("cancels", concurrency_limit=1, concurrency_options=options)
    assert "cancels runs beyond its concurrency limit" in refusal(deployment="cancels")
    pool("paused", is_paused=True)
    made("paused", work_pool_name="paused")
    assert "the work pool 'paused' of 'work-shard/paused' is paused" in refusal(deployment="paused")
    pool("full", concurrency_limit=0)
    made("full", work_pool_name="full")
    assert "its work pool 'full' has a concurrency limit of 0" in refusal(deployment="full")


@pytest.mark.slow
def test_what_a_run_will_wait_for_is_told_by_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No worker, and fewer runs at once than are wanted; nothing is refused."""
    pool("narrow", concurrency_limit=2)
    made("narrow", work_pool_name="narrow")
    job = {"briefs": [{"name": "b", "instructions": "Shout."}], "items": ["a"], "executor": {"model": "openai/test"}}
    (tmp_path / "job.yaml").write_text(json.dumps({**job, "fan_out": {"deployment": "narrow"}}))
    assert main(["plan", str(tmp_path / "job.yaml")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "No worker of the work pool 'narrow' is online; the run waits for one" in said
    assert "At most 2 runs of work-shard/narrow are under way at once, and not 4 (fan_out.runs)." in said
    (tmp_path / "job.yaml").write_text(json.dumps({**job, "fan_out": "deploymnt"}))
    assert main(["plan", str(tmp_path / "job.yaml")]) == 2
    assert "fan_out: there is no 'deploymnt'; did you mean 'deployment'?" in capsys.readouterr().err


@pytest.mark.slow
def test_an_api_that_is_away_is_told_of() -> None:
    """Before anything is spent."""
    work = build_work([BRIEF], [Item(key="a", value="a")], ANY)
    away = temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0})
    with away, pytest.raises(JobError, match="fan_out: Prefect's API can't be reached"):
        resolve_deployment(ByDeployment(), work, ANY, Path.cwd())


class Forbidding(BaseHTTPRequestHandler):
    """An API that refuses us."""

    def do_GET(self) -> None:
        """Refuse."""
        self.send_response(403)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the signature
        """Say nothing."""


@pytest.mark.slow
def test_an_api_that_forbids_is_told_of() -> None:
    """A token that may not read deployments."""
    work = build_work([BRIEF], [Item(key="a", value="a")], ANY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as server:
        threading.Thread(target=server.serve_forever).start()
        there = temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"})
        with (
            there,
            pytest.raises(JobError, match="fan_out: Prefect's API rejects the request for 'work-shard/work-shard'"),
        ):
            resolve_deployment(ByDeployment.model_validate({}), work, ANY, Path.cwd())
        server.shutdown()


def test_a_pool_that_needs_no_worker_is_not_waited_for() -> None:
    """One that pushes runs to a cloud; and `fan_out: deployment` goes to a deployment of its own."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="pushes", type="cloud-run:push"))
    made("work-shard", work_pool_name="pushes")
    work = build_work([BRIEF], [Item(key="a", value="a")], ANY)
    way = resolve_deployment(TypeAdapter[ByDeployment](FanOutTo).validate_python("deployment"), work, ANY, Path.cwd())
    assert way.notes == ()
    assert way.target is not None
    assert way.target.capacity(None) == (4, 4)
    assert resolve_deployment(None, work, ANY, Path.cwd()) == (None, ())


@pytest.mark.slow
def test_a_runner_that_can_not_go_on_takes_nothing_more() -> None:
    """What is submitted after that is refused at once, and whoever waits is told why."""

    @flow
    def asks() -> list[object]:
        runner: Any = DeploymentRunner(Target(uuid4(), "work-shard/gone", "/")).duplicate()
        sent = ShardHeader(name=uuid4().hex, note=uuid4().hex)
        shard = Shard(tuple(build_work([BRIEF], [Item(key="a", value="a")], ANY)), header=sent)
        with runner:
            task = shard_task(Limits())
            parameters = {"shard": shard, "executor": ANY, "limits": Limits()}
            said: list[object] = [runner.submit(task=task, parameters=parameters).result() for _ in range(2)]
            return said

    for ended in asks():
        assert isinstance(ended, ShardResult)
        error = ended.done[0].error
        assert error
        assert "Deployment not found" in error.message


def test_a_shard_that_was_not_begun_is_interrupted(store: Path) -> None:
    """Nothing was written for it, and no run is cancelled."""

    @flow
    def asks() -> Any:  # noqa: ANN401 -- a future
        shard = Shard(tuple(build_work([BRIEF], [Item(key="a", value="a")], ANY)))
        with DeploymentRunner(Target(uuid4(), "work-shard/gone", "/")) as runner:
            parameters = {"shard": shard, "executor": ANY, "limits": Limits()}
            future = runner.submit(task=shard_task(Limits()), parameters=parameters)
        return future.result(raise_on_failure=False).kind

    assert asks() == "interrupted"
    assert not (store / FOLDER).exists()


def test_a_shard_that_waits_for_another_to_start_never_starts_after_an_interruption(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs start one after another; if the run ends meanwhile, no further one is made."""
    monkeypatch.setattr(deployment_runner, "POLL_S", 0.01)
    begun, started = threading.Event(), list[str]()

    class SlowToStart(DeploymentRunner):
        """Starts a run until it is interrupted."""

        def _start_run(self, child: Any) -> None:  # noqa: ANN401 -- a private type
            started.append(child.name)
            begun.set()
            self._stopping.wait()
            raise TransientError("The API has not answered.")

    @flow
    def asks() -> list[Any]:
        with SlowToStart(Target(uuid4(), "work-shard/gone", "/")) as runner:
            futures = [
                runner.submit(
                    task=shard_task(Limits()),
                    parameters={
                        "shard": Shard(tuple(build_work([BRIEF], [Item(key=key, value=key)], ANY))),
                        "executor": ANY,
                        "limits": Limits(),
                    },
                )
                for key in "ab"
            ]
            begun.wait()
            time.sleep(0.3)  # the second one waits for the first by now
        return [future.result(raise_on_failure=False).kind for future in futures]

    assert asks() == ["interrupted", "interrupted"]
    assert len(started) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("key")
def test_what_a_lost_worker_had_taken_is_asked_again(model: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once Prefect's server says that the worker is offline, and long before a start would take too long."""

    def offline(_: str | None) -> frozenset[str]:
        return frozenset({""})

    monkeypatch.setattr(deployment_runner, "offline_workers", offline)
    report, worker = ran(model, set_state(Pending()), silent_s=1)
    assert (report.status, model.count) == ("complete", 6)
    assert len(worker.runs) > 2


def test_what_is_no_key_is_no_shard() -> None:
    """A run that somebody starts by hand says so."""
    state = work_shard(shard="x", return_state=True)
    assert state.is_failed()


@pytest.mark.slow
def test_an_api_that_refuses_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment that is gone in the middle of a run: nobody waits for it."""

    def gone(_: FlowRun) -> None:
        """Never called."""

    worker = Worker(f"w-{uuid4().hex}", [gone])
    by = ByDeployment(deployment=worker.name)
    found = remote_targets._read_deployment  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] -- between the look and the first run

    def last_seen(client: SyncPrefectClient, by: ByDeployment) -> DeploymentResponse:
        seen = found(client, by)
        client.delete_deployment(seen.id)
        return seen

    monkeypatch.setattr(remote_targets, "_read_deployment", last_seen)
    with pytest.raises(DispatchFailed, match="Its runs can't be watched") as failed:
        dispatch([BRIEF], KEYS, executor=ANY, limits=Limits(shard=3), fan_out=by)
    assert {gap.error.kind for gap in failed.value.report.gaps} == {"worker", "circuit"}


@pytest.mark.slow
def test_an_outage_of_the_api_is_waited_for(model: OpenAIServer, key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first looks fail; nothing is given up for that."""
    looks = iter([httpx.ConnectError("refused"), httpx.ReadTimeout("late")])
    look = deployment_runner.read_run

    def away(run: UUID) -> FlowRun | None:
        if error := next(looks, None):
            raise error
        return look(run)

    monkeypatch.setattr(deployment_runner, "read_run", away)
    report, _ = ran(model)
    assert report.status == "complete"
    assert next(looks, None) is None


@pytest.mark.slow
def test_a_check_that_breaks_here_is_told_of(model: OpenAIServer, key: None, own_code: Path) -> None:
    """Where the answer of a run elsewhere is looked at, as anywhere."""
    (own_code / "own_shout.py").write_text(
        "def check(value, item):\n    if __import__('os').environ.get('BROKEN'): raise OSError('here')\n"
    )
    brief = BRIEF.model_copy(update={"checks": (Function(function="own_shout:check"),)})

    def broken_here(run: FlowRun) -> None:
        work_shard(shard=run.parameters["shard"], return_state=True)
        os.environ["BROKEN"] = "1"
        set_state(Completed())(run)

    try:
        with pytest.raises(DispatchFailed, match="OSError: here"):
            ran(model, broken_here, items=KEYS[:1], brief=brief)
    finally:
        os.environ.pop("BROKEN", None)


@pytest.mark.slow
def test_a_run_that_is_interrupted_leaves_no_child(model: OpenAIServer, key: None, store: Path) -> None:
    """Nobody has begun its runs: they are cancelled, and what was written for them is gone."""
    worker = Worker(f"w-{uuid4().hex}", [])

    def stop(progress: Progress) -> None:
        if progress.note:
            wait_until(lambda: len(worker.due()) == 2, "two runs wait")
            raise KeyboardInterrupt

    by = ByDeployment(deployment=worker.name)
    token = progress_listener.set(stop)
    try:
        limits = Limits(shard=3, grace_s=0)
        state = dispatch([BRIEF], KEYS, executor=ANY, limits=limits, fan_out=by, return_state=True)
    finally:
        progress_listener.reset(token)
    assert state.is_cancelled()
    assert worker.due() == []
    assert not list((store / FOLDER).glob("*/*"))
