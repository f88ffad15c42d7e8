"""A job is what its files say: any process finds its state, its spending and its run, and none can start it twice."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.agents.job_store import (
    JobRecord,
    JobStore,
    Run,
    RunRecord,
    all_stores,
    is_nested,
    job_environment,
    read_page,
)
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.live_view import Activity
from prefect_dispatch.models.outcome import Failure, Outcome, Usage
from prefect_dispatch.processes.state_folder import lease
from prefect_dispatch.reporting.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.agents.job_store import Job
    from prefect_dispatch.agents.policy import Policy

FINGERPRINT = "0123456789abcdef" * 4


def add_job(jobs: JobStore, fingerprint: str = FINGERPRINT, *, budget_usd: float | None = None) -> Job:
    """Add a job that can't be run, as its document is no job."""
    record = JobRecord(
        fingerprint=fingerprint,
        name="terms",
        file="",
        folder=str(jobs.root),
        document={"nothing": 1},
        contents={"the job": ""},
        pairs=2,
        budget_usd=budget_usd,
    )
    return jobs.add(record)


def add_run(job: Job, policy: Policy, *, budget_usd: float | None = 0.5) -> Run:
    """Add a run whose process died."""
    number = len(job.runs) + 1
    run = Run(job.folder / "runs" / str(number))
    run.folder.mkdir(parents=True)
    run.write("run.json", RunRecord(number=number, started="now", budget_usd=budget_usd, policy=policy))
    return run


def test_the_states_of_a_job(jobs: JobStore, policy: Policy) -> None:
    """The state follows from the files and from whether the process of the last run lives."""
    job = add_job(jobs)
    assert (job.state, job.status().next) == ("planned", "start(fingerprint)")
    assert job.status().message == "It is planned, and not started."
    run = add_run(job, policy)
    (run.folder / "log.txt").write_text("It broke.\n", encoding="utf-8")
    assert job.state == "crashed"
    assert job.status().message.endswith("The end of its log: It broke.")
    handle = run.lock()
    assert job.status().state == "starting"
    assert job.status().message.startswith("It is checked, and Prefect starts")
    run.record_progress(Progress(total=2, done=1, asked=1, in_flight=1, usage=Usage(cost_usd=0.25), seconds_left=3))
    status = job.status()
    assert (status.state, status.done, status.in_flight, status.cost_usd) == ("running", 1, 1, 0.25)
    assert status.message == "1 of 2 done; 1 in flight, 0 tokens, cost $0.2500, about 3 s left."
    run.record_progress(Progress(total=2, done=2))
    assert job.status().message == "Every item has an outcome; they are merged and audited."
    run.request_cancel()
    assert job.status().message == "It is being cancelled."
    os.close(handle)
    assert (job.state, job.status().message) == ("cancelled", "It was cancelled; what was answered is stored.")
    run.record_end("gaps", "1 of 2 answered.", 0.3)
    run.record_end("failed", "The first end counts.", 0.9)
    status = job.status()
    assert (status.state, status.message, status.cost_usd) == ("gaps", "1 of 2 answered.", 0.3)
    assert status.report == ""  # its folder holds none
    assert status.resources == (f"dispatch://jobs/{job.id}/ledger/1", f"dispatch://jobs/{job.id}/outcomes/1")


def test_what_agents_do(jobs: JobStore, policy: Policy) -> None:
    """A status shows as many as a client needs, while the run lives and no longer."""
    job = add_job(jobs)
    run = add_run(job, policy)
    working = [
        Activity(brief="b", item=str(n), program="claude", seconds=1.0, step="$ pytest", log=f"/{n}.log")
        for n in range(12)
    ]
    handle = run.lock()
    run.record_progress(Progress(total=12, in_flight=12, working=tuple(working)))
    assert job.status().working == tuple(working[:10])
    os.close(handle)
    assert job.status().working == ()


def test_gaps_and_ledger(jobs: JobStore, policy: Policy) -> None:
    """The ledger can be read while a job runs; a status names the first gaps, without control characters or secrets."""
    run = add_run(add_job(jobs), policy)
    error = Failure(
        kind="rejected", message="\x1b[31mno\x1b[0m sk-proj-abcdefghijklmnopqrstuvwxyz0123456789 " + "x" * 900
    )
    run.record_outcomes([Outcome(brief="terms", item="a", status="succeeded", value="fine", origin="asked")])
    run.record_outcomes([Outcome(brief="terms", item=f"b{n}", status="failed", error=error) for n in range(12)])
    assert [row["state"] for row in run.ledger_rows()] == ["answered", *["failed"] * 12]
    gaps = jobs.jobs[0].status().gaps
    assert (len(gaps), gaps[0].item) == (10, "b0")
    assert "sk-proj" not in gaps[0].error
    assert "\x1b" not in gaps[0].error
    assert len(jobs.jobs[0].status().model_dump_json()) < 10_000


def test_lines_that_are_being_written(tmp_path: Path) -> None:
    """A line without its end isn't read, and a page says whether there are more."""
    file = tmp_path / "rows.jsonl"
    assert read_page(file, 1, 2) == ([], False)
    file.write_text('1\n2\n3\n{"half', encoding="utf-8")
    assert read_page(file, 1, 2) == ([1, 2], True)
    assert read_page(file, 2, 2) == ([3], False)


def test_what_runs_count_with(jobs: JobStore, policy: Policy) -> None:
    """A run counts with its budget while it lives, with its cost afterwards, and with its last mark if it died."""
    run = add_run(add_job(jobs), policy)
    assert jobs.spent_usd == 0.0  # it died before anything was sent
    asyncio.run(run.record_spending({"usd": 125_000_000}))
    assert jobs.spent_usd == 0.125
    handle = run.lock()
    assert jobs.spent_usd == 0.5
    os.close(handle)
    run.record_end("complete", "All.", 0.01)
    unknown = add_run(add_job(jobs, "f" * 64), policy, budget_usd=0.25)
    unknown.record_end("failed", "It failed.", None)
    assert jobs.spent_usd == 0.26
    assert jobs.find("f" * 16).status().cost_usd == 0.0


@pytest.mark.slow
def test_a_job_is_started_once(jobs: JobStore, policy: Policy) -> None:
    """A second start is the same run; what is refused may be started again, and each run has what is left."""
    job = add_job(jobs, budget_usd=0.75)
    run = jobs.start(job, policy)
    assert jobs.start(job, policy).folder == run.folder
    assert run.record.budget_usd == 0.75
    assert job.state == "starting"
    deadline = time.monotonic() + 60
    while job.state == "starting" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert job.status().state == "refused"
    assert "unknown key 'nothing'" in job.status().message
    again = jobs.start(job, policy)
    assert again.record.number == 2
    assert jobs.start(job, policy, again=True).record.number == 2  # it goes on
    while job.state == "starting" and time.monotonic() < deadline:
        time.sleep(0.1)
    again.folder.joinpath("end.json").unlink()
    again.record_end("complete", "All.", 0.5)
    assert jobs.start(job, policy, again=True).record.number == 2  # nothing is left to ask
    unpriced = jobs.add(job.record.model_copy(update={"fingerprint": "e" * 64, "is_priced": False}))
    assert jobs.start(unpriced, policy).record.budget_usd is None


def test_a_spent_budget(jobs: JobStore, policy: Policy) -> None:
    """Nothing is started once a job, or all jobs of the root, have spent what they may; the option is named."""
    job = add_job(jobs)
    add_run(job, policy).record_end("gaps", "Some.", 0.6)
    add_run(job, policy).record_end("gaps", "Some.", 0.5)
    wider = policy.model_copy(update={"max_usd_total": 5.0})
    with pytest.raises(JobError, match=r"The 1 USD that this job may spend are spent .* raise --max-usd where"):
        jobs.start(job, wider, again=True)
    other = add_job(jobs, "f" * 64)
    with pytest.raises(JobError, match=r"The 1 USD that all jobs under this root may spend .* raise --max-usd-total"):
        jobs.start(other, policy)


def test_jobs_are_found(jobs: JobStore, root: Path, tmp_path: Path) -> None:
    """A job is found by its id or fingerprint, from any process; nothing else is, least of all a path."""
    job = add_job(jobs)
    assert JobStore(root).find(job.id).record == jobs.find(FINGERPRINT).record
    for name in ("../root", "0" * 16, "", "0123"):
        with pytest.raises(JobError, match="There is no job"):
            jobs.find(name)
    with pytest.raises(JobError, match="that of another plan"):
        jobs.find(FINGERPRINT[:20] + "0" * 44)
    (tmp_path / "other").mkdir()
    JobStore(tmp_path / "other")
    broken = jobs.folder.parent / "broken"
    broken.mkdir()
    (broken / "root.json").write_text("{}", encoding="utf-8")
    assert {store.root.name for store in all_stores()} == {"root", "other"}
    (job.folder / "plan.json").write_text("{", encoding="utf-8")
    with pytest.raises(JobError, match=r"plan\.json' of a job can't be read: ValidationError"):
        jobs.find(job.id)


def test_what_a_job_inherits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job gets no variable of the agent that has started it."""
    for name in ("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_PROJECT_DIR", "MCP_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    found = job_environment()
    assert found["OPENAI_API_KEY"] == "key"
    assert not [name for name in found if name.startswith(("CLAUDE", "MCP_"))]


def test_who_works_for_a_job(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process knows by its variable, its home or its folder that it works for a job already."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(root))
    assert not is_nested()
    with lease() as mine:
        home = mine.path / "home"
        home.mkdir()
        with monkeypatch.context() as patch:
            patch.setenv("HOME", str(home))
            assert is_nested()
        with monkeypatch.context() as patch:
            patch.chdir(home)
            assert is_nested()
        with monkeypatch.context() as patch:
            patch.setenv("PREFECT_DISPATCH_LEASE", mine.id)
            assert is_nested()


def test_a_store_says_which_root_it_is_for(jobs: JobStore, root: Path) -> None:
    """People find the root of a folder of jobs; only its user can look into it."""
    assert json.loads((jobs.folder / "root.json").read_bytes()) == {"root": str(root)}
    assert jobs.folder.stat().st_mode & 0o077 == 0
