"""A run of a deployment waits for its batch without a worker: a real server, a real process worker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL
from prefect.states import Scheduled

from prefect_dispatch.deployments.specs import deployment
from prefect_dispatch.flows.job_file import Job
from prefect_dispatch.flows.runtime.batch_phase import STATE
from tests.batch_server import batch_server
from tests.openai_server import Behaviour, document, failure

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import State

    from tests.batch_server import BatchServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
POOL = "for-batches"


class Deployed:
    """A run of a deployment, and a worker that takes up what is due, once, and ends."""

    def __init__(self, server: BatchServer, store: Path, folder: Path) -> None:
        """Create the run; nothing works on it yet."""
        self._store, self._folder = store, folder
        executor = {"model": "openai/test", "api_base": server.url, "mode": "batch", "rounds": 2}
        brief = {"name": "words", "instructions": "Say it."}
        job = Job.model_validate({"briefs": [brief], "items": ["good", "bad"], "executor": executor})
        made = deployment(job, folder)
        made.parameters |= {"briefs": [brief], "out": "out"}
        made.work_pool_name = POOL
        with get_client(sync_client=True) as client:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"), overwrite=True)
            self._run: UUID = client.create_flow_run_from_deployment(self._applied(made)).id

    @staticmethod
    def _applied(made: Any) -> UUID:  # noqa: ANN401 -- Prefect's overloads leave types unknown
        name: UUID = made.apply()
        return name

    def worked(self) -> State[Any]:
        """Let a worker take it up; return its state once that worker has nothing more to do."""
        with get_client(sync_client=True) as client:
            if (state := client.read_flow_run(self._run).state) and state.name == STATE:  # it would be due in a minute
                client.set_flow_run_state(self._run, Scheduled(name=STATE), force=True)
            own = {
                "OPENAI_API_KEY": "sk-of-the-user-0123456789",
                "PREFECT_API_URL": str(PREFECT_API_URL.value()),
                "PREFECT_LOCAL_STORAGE_PATH": str(self._store),
                "PYTHONPATH": str(ROOT / "src"),
            }
            worker = ["-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--run-once"]
            subprocess.run(  # noqa: S603 -- this interpreter, a fixed text
                [sys.executable, *worker],
                env={**os.environ, **own},
                cwd=self._folder,
                check=True,
                timeout=120,
                capture_output=True,
            )
            state = client.read_flow_run(self._run).state
        assert state is not None
        return state


def once_bad(request: dict[str, Any], n: int) -> Behaviour:
    """Fail for one document, once."""
    return failure(500) if n == 1 and "bad" in document(request) else Behaviour(content="fine")


def test_the_worker_is_free_while_the_batch_is_under_way(store: Path, tmp_path: Path) -> None:
    """Taken up three times: to submit, to submit what had failed, and to finish; the bill has all of it."""
    with batch_server(once_bad, looks=10**6) as server:
        run = Deployed(server, store, tmp_path)
        state = run.worked()
        assert (state.name, state.is_scheduled(), len(server.batches)) == (STATE, True, 1)
        server.batches[0].looked, server.looks = 5, 5
        state = run.worked()
        assert (state.name, len(server.batches), len(server.batches[1].requests)) == (STATE, 2, 1)
        server.looks = 0
        state = run.worked()
        assert (state.name, len(server.batches), server.live.count) == ("Completed", 2, 0)
    usage = json.loads((tmp_path / "out" / "report.json").read_text())["usage"]
    assert (usage["asked"], usage["requests"]) == (2, 3)


def test_a_worker_that_finds_nothing_of_what_was_stored_submits_nothing(store: Path, tmp_path: Path) -> None:
    """Without a result storage that is shared, each worker would submit the same again: the run fails, and says why."""
    with batch_server(Behaviour(), looks=10**6) as server:
        run = Deployed(server, store, tmp_path)
        assert run.worked().name == STATE
        shutil.rmtree(store)
        state = run.worked()
        assert state.is_failed()
        assert "share no result storage" in str(state.message)
        assert len(server.batches) == 1
