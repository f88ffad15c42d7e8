"""The laws on processes, Dask and Ray, by the real ones: the same report, nothing lost, nothing spent twice."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from importlib import import_module
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName, LogFilter, LogFilterFlowRunId
from prefect.exceptions import CancelledRun
from prefect.states import Cancelling

from prefect_dispatch import Brief, Item, Limits, Report, dispatch
from prefect_dispatch.errors import DispatchFailed
from tests.flows.noting import Noting, asked
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = [pytest.mark.usefixtures("store"), pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
BRIEF = Brief(name="b", instructions="Shout.")
KEYS = [f"k{at:02}" for at in range(12)]
LIMITS = Limits(concurrency=4, shard=3, retry_delay_s=0.01)


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Generator[None, None, None]:
    """Workers import the tests' executor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture(scope="module")
def dask(_importable: None) -> Generator[dict[str, Any], None, None]:
    """A Dask cluster of two workers."""
    distributed: Any = import_module("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster:
        yield {"kind": "dask", "address": cluster.scheduler_address}


@pytest.fixture(scope="module")
def ray(_importable: None) -> Generator[dict[str, Any], None, None]:
    """A Ray cluster of two processors, which every run of this process uses."""
    cluster: Any = import_module("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster.init(num_cpus=2, include_dashboard=False, namespace="prefect")
    yield {"kind": "ray"}
    cluster.shutdown()


@pytest.fixture
def where(request: pytest.FixtureRequest) -> Any:  # noqa: ANN401 -- a job's task runner
    """A job's task runner, by its kind."""
    kind = request.param
    return {"kind": "processes", "workers": 2} if kind == "processes" else request.getfixturevalue(kind)


_RAY, _PROCESSES = (pytest.param(kind, marks=pytest.mark.long) for kind in ("ray", "processes"))
on_each = pytest.mark.parametrize("where", ["processes", "dask", "ray"], indirect=True)
everywhere = pytest.mark.parametrize("where", [_PROCESSES, "dask", _RAY], indirect=True)
on_clusters = pytest.mark.parametrize("where", ["dask", _RAY], indirect=True)


def ran(where: Any, who: Noting, items: list[Item] | None = None, **more: Any) -> Report:  # noqa: ANN401 -- the job's
    """Return the report of a run there."""
    limits = LIMITS.model_copy(update=more.pop("limits", {}))
    given: Any = items or [Item(key=key, value=key) for key in KEYS]
    run = cast("Any", dispatch)
    return cast("Report", run([BRIEF], given, executor=who, limits=limits, task_runner=where, **more))


def comparable(report: Report) -> dict[str, Any]:
    """Return what of a report depends on neither the store nor the clock."""
    return report.model_dump(mode="json", include={"status", "value", "ledger", "fields", "gaps", "violations"})


@on_each
def test_the_report_is_the_same(where: Any, tmp_path: Path) -> None:  # noqa: ANN401 -- a job's
    """Shuffled, in shards of other sizes, some refused: what is answered there is used here, and reads the same."""
    items = [Item(key=key, value=f"{key} refused" if key in {"k03", "k07"} else key) for key in KEYS]
    who = Noting(str(tmp_path), uuid4().hex)
    there = ran(where, who, random.Random(1).sample(items, len(items)))
    assert Counter(key for key, _ in asked(tmp_path)) == dict.fromkeys(KEYS, 1)
    assert os.getpid() not in {process for _, process in asked(tmp_path)}
    assert there.usage.requests == 12
    here = ran(None, who, items, limits={"shard": None})
    assert len(asked(tmp_path)) == 14  # failures are not stored
    assert here.usage.cached == 10
    assert comparable(here) == comparable(there)
    again = ran(where, who, items, limits={"shard": 5}, refresh=True)
    assert len(asked(tmp_path)) == 26
    assert comparable(again) == comparable(there)


@on_clusters
def test_a_budget_is_one(where: Any, tmp_path: Path) -> None:  # noqa: ANN401 -- a job's
    """Over all processes it is spent to the last call, and a rerun goes on there."""
    who = Noting(str(tmp_path), uuid4().hex)
    first = ran(where, who, limits={"budget_requests": 7})
    assert len(asked(tmp_path)) == first.usage.requests == 7
    assert Counter(each.status for each in first.outcomes) == {"succeeded": 7, "skipped": 5}
    assert {gap.error.kind for gap in first.gaps} == {"budget"}
    second = ran(where, who, limits={"budget_requests": 7})
    assert (second.status, second.usage.requests, second.usage.cached) == ("complete", 5, 7)


@on_clusters
def test_what_all_would_meet_stops_all(where: Any, tmp_path: Path) -> None:  # noqa: ANN401 -- a job's
    """An expired key is met by few, and nobody after them is asked."""
    items = [Item(key=f"i{at:03}", value="slow expired" if at == 0 else f"slow {at}") for at in range(60)]
    with pytest.raises(DispatchFailed, match="the key expired") as caught:
        ran(where, Noting(str(tmp_path), uuid4().hex), items, limits={"shard": 15})
    assert len(asked(tmp_path)) < 30
    assert len(caught.value.report.outcomes) == 60
    assert {each.status for each in caught.value.report.outcomes} >= {"failed", "skipped"}


@everywhere
def test_a_worker_that_is_killed_loses_nothing(where: Any, tmp_path: Path) -> None:  # noqa: ANN401 -- a job's
    """Its shard is asked again, but for what it had stored; at most the calls under way are paid twice."""
    items = [Item(key=key, value=f"{key} wait" if key == "k02" else f"{key} slow") for key in KEYS]

    def kill() -> None:
        wait_until(lambda: "k02" in dict(asked(tmp_path)), "the one that waits is asked")
        wait_until(lambda: len(asked(tmp_path)) >= 6, "others are asked, too")
        os.kill(dict(asked(tmp_path))["k02"], signal.SIGKILL)
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    report = ran(where, Noting(str(tmp_path), uuid4().hex), items)
    killer.join()
    assert (report.status, len(report.outcomes)) == ("complete", 12)
    tries = Counter(key for key, _ in asked(tmp_path))
    assert tries.keys() == set(KEYS)
    assert tries["k02"] == 2
    assert max(tries.values()) == 2
    assert sum(tries.values()) <= 12 + 4
    assert report.usage.requests + report.usage.cached >= sum(tries.values())
    assert report.usage.unsettled >= 1


@on_clusters
def test_a_run_that_is_cancelled_ends_there_too(where: Any, tmp_path: Path, store: Path) -> None:  # noqa: ANN401 -- a job's
    """Cancelled in the UI: within seconds nobody is asked any more, and what came is stored."""
    items = [Item(key=key, value=f"{key} wait" if key > "k05" else key) for key in KEYS]
    name = uuid4().hex

    def cancel() -> None:
        wait_until(lambda: len(asked(tmp_path)) >= 8, "the first that wait are asked")
        with get_client(sync_client=True) as client:
            [run] = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
            client.set_flow_run_state(run.id, Cancelling(), force=True)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    who = Noting(str(tmp_path), uuid4().hex)
    named = cast("Any", dispatch.with_options(flow_run_name=name))
    limits = LIMITS.model_copy(update={"grace_s": 5.0, "shard": 2})
    with pytest.raises(CancelledRun):
        named([BRIEF], items, executor=who, limits=limits, task_runner=where)
    canceller.join()
    assert [each.name for each in store.glob("*") if "wanted" in each.name or "begun" in each.name] == []
    (tmp_path / "go").touch()
    before = [key for key, _ in asked(tmp_path)]
    answered = {key for key in before if key <= "k05"}  # all of them, unless the other worker was slow to begin
    assert answered
    report = ran(where, who, items)
    assert report.status == "complete"
    assert not answered & {key for key, _ in asked(tmp_path)[len(before) :]}


@on_clusters
def test_no_secret_is_logged(where: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: ANN401 -- a job's
    """An executor whose repr shows its key: neither the cluster's logs nor Prefect's do, where items fail, too."""
    items = [Item(key=key, value=f"{key} refused") for key in KEYS[:3]]
    secret = f"sk-{uuid4().hex}"
    with pytest.raises(DispatchFailed) as caught:
        ran(where, Noting(str(tmp_path), uuid4().hex, secret), items)
    run: Any = caught.value.report.run["flow_run"]
    said = capfd.readouterr()
    logs = [
        each.read_text(errors="replace")
        for each in Path(gettempdir(), "ray").rglob("*.*")
        if each.suffix in {".log", ".out", ".err"}
    ]
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(UUID(run["id"]))
        logged = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[UUID(run["id"])])))
        shown = found.model_dump_json() + " ".join(each.message for each in logged)
    assert not [text for text in (said.out, said.err, shown, *logs) if secret in text]
    assert "the item" not in shown
