"""A job is planned and run by processes of their own: what was priced is what runs, within what is allowed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from prefect_dispatch.agents import job_plan
from prefect_dispatch.agents.job_plan import ANSWER, REQUEST, Planned, PlanRequest, PlanResult, find_job_file
from prefect_dispatch.agents.job_store import Run, RunRecord, lock_folder
from prefect_dispatch.agents.policy import Policy
from prefect_dispatch.calls.budget import Budget
from prefect_dispatch.cli import job_process
from prefect_dispatch.errors import JobError
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.reporting.progress import on_budget
from tests.agents.conftest import JOB, MODEL, ModelServer
from tests.openai_server import Behaviour, failure
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.agents.job_store import Job, JobStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def make_plan(folder: Path, policy: Policy, *, file: str = "", document: dict[str, Any] | None = None) -> Planned:
    """Plan a job in this process."""
    folder.mkdir()
    folder.joinpath(REQUEST).write_text(
        PlanRequest(file=file, document=document, policy=policy).model_dump_json(), encoding="utf-8"
    )
    handle = lock_folder(folder)
    assert copy_context().run(job_process.main, ["plan", str(folder), str(handle)]) == 0
    os.close(handle)
    return Planned.model_validate_json(folder.joinpath(ANSWER).read_bytes())


def add_job(jobs: JobStore, policy: Policy, tmp_path: Path) -> Job:
    """Plan the job of the root, and add it."""
    planned = make_plan(tmp_path / "draft", policy, file=str(jobs.root / "job.yaml"))
    assert planned.record
    return jobs.add(planned.record)


def run_job(job: Job, policy: Policy, *, budget_usd: float | None = 0.5) -> Run:
    """Run a job in this process."""
    number = len(job.runs) + 1
    run = Run(job.folder / "runs" / str(number))
    run.folder.mkdir(parents=True)
    handle = run.lock()
    run.write("run.json", RunRecord(number=number, started="now", budget_usd=budget_usd, policy=policy))
    ended: list[int] = []
    copy_context().run(job_process.run, run.folder, ended.append)
    os.close(handle)
    return run


def test_a_plan(root: Path, policy: Policy, tmp_path: Path, store: Path) -> None:
    """A plan prices a job and names its items; its fingerprint covers them, whoever plans it."""
    found = make_plan(tmp_path / "a", policy, file=str(root / "job.yaml"))
    result = found.result
    assert (result.state, result.next) == ("ready", "start(fingerprint)")
    assert (result.name, result.briefs, result.items, result.pairs, result.to_ask) == ("terms", 1, 4, 4, 4)
    assert result.first_items == ("items/0.txt", "items/1.txt", "items/2.txt", "items/3.txt")
    assert result.budget_usd == 1.0
    assert result.cost_usd is not None
    assert make_plan(tmp_path / "b", policy, file=str(root / "job.yaml")).result.fingerprint == result.fingerprint
    (root / "items" / "0.txt").write_text("Another text.", encoding="utf-8")
    assert make_plan(tmp_path / "c", policy, file=str(root / "job.yaml")).result.fingerprint != result.fingerprint


def test_a_plan_prices_the_modes(root: Path, tmp_path: Path, store: Path) -> None:
    """Those that the model has, whatever mode the job names; a model that has one mode has none to compare."""
    text = (root / "job.yaml").read_text("utf-8")
    for model, modes in (("openai/gpt-5-mini", ["live", "flex", "batch"]), ("anthropic/claude-sonnet-4-5", [])):
        document = yaml.safe_load(text)
        document["executor"]["model"] = model
        (root / "job.yaml").write_text(json.dumps(document), encoding="utf-8")
        policy = Policy(root=str(root), models=(model,))
        result = make_plan(tmp_path / model.replace("/", "-"), policy, file=str(root / "job.yaml")).result
        assert [each.mode for each in result.modes] == modes
        costs = {each.mode: each.cost_usd for each in result.modes}
        if costs:
            assert result.cost_usd == costs["live"] == pytest.approx(2 * costs["flex"], abs=1e-5)


def test_a_plan_that_takes_long(
    jobs: JobStore, root: Path, policy: Policy, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that isn't ready in time goes on, and the next call waits for it; a process that died is reported."""
    request = PlanRequest(file=str(root / "job.yaml"), document=None, policy=policy)
    with monkeypatch.context() as patch:
        patch.setattr(job_plan, "PLAN_S", 0.0)
        assert job_plan.plan_job(jobs, request).result.state == "planning"
    (draft,) = jobs.folder.glob("draft-*")
    assert job_plan.plan_job(jobs, request).result.state == "ready"
    assert not draft.exists()
    draft.mkdir()
    (draft / ANSWER).write_text(
        Planned(result=PlanResult(state="unusable", message="Just now."), record=None).model_dump_json(), "utf-8"
    )
    assert job_plan.plan_job(jobs, request).result.message == "Just now."

    taken = [True]

    def be_late(mode: str, folder: Path, handle: int) -> None:
        if taken.pop():
            shutil.rmtree(folder)  # another call takes the answer
            taken.append(False)
            return
        answer = Planned(result=PlanResult(state="unusable", message="Again."), record=None)
        (folder / ANSWER).write_text(answer.model_dump_json(), "utf-8")

    left = jobs.folder / "draft-of-yesterday"
    left.mkdir()
    os.utime(left, (0, 0))
    monkeypatch.setattr(job_plan, "spawn", be_late)
    assert job_plan.plan_job(jobs, request).result.message == "Again."
    assert not left.exists()

    def die(mode: str, folder: Path, handle: int) -> None:
        (folder / "log.txt").write_text("Out of memory.\n", encoding="utf-8")

    monkeypatch.setattr(job_plan, "spawn", die)
    with pytest.raises(JobError, match=r"^The job can't be planned: Out of memory\.$"):
        job_plan.plan_job(jobs, request)


def test_a_plan_of_a_document(policy: Policy, tmp_path: Path, store: Path) -> None:
    """A job may be passed as an object; its paths start at the root, and its `out` is not written to."""
    document = {
        "briefs": {"name": "terms", "instructions": "Say what it says."},
        "items": {"glob": "items/*.txt"},
        "executor": {"model": MODEL, "params": {"max_tokens": 50}},
        "limits": {"budget_usd": 0.25},
        "out": "/etc",
    }
    found = make_plan(tmp_path / "a", policy, document=document)
    assert found.record
    assert (found.record.name, found.record.file, found.record.budget_usd) == ("terms", "", 0.25)
    assert found.result.budget_usd == 0.25
    assert found.result.notes[-1].startswith("`out` is not used")


def test_refused_plans(root: Path, policy: Policy, tmp_path: Path, store: Path) -> None:
    """A job with code is refused without a fingerprint; what a person may allow has one, and says so."""
    found = make_plan(
        tmp_path / "a",
        policy,
        document={"briefs": {"name": "a", "instructions": "b"}, "items": ["c"], "executor": {"kind": "shell"}},
    )
    assert (found.result.state, found.result.fingerprint, found.record) == ("refused", "", None)
    assert found.result.message == "1 part not allowed. Nothing of the job was read or run."
    assert "don't work around it" in found.result.next
    found = make_plan(tmp_path / "b", policy.model_copy(update={"max_items": 3}), file=str(root / "job.yaml"))
    assert found.result.state == "refused"
    assert found.result.fingerprint
    assert [each.flag for each in found.result.refused] == ["--max-items"]
    assert "asks the user to allow these parts" in found.result.next


def test_unusable_plans(root: Path, policy: Policy, tmp_path: Path, store: Path) -> None:
    """A mistake is named with its line, as the command line does; nothing was asked."""
    (root / "job.yaml").write_text(JOB.replace("instructions", "instrctions"), encoding="utf-8")
    result = make_plan(tmp_path / "a", policy, file=str(root / "job.yaml")).result
    assert (result.state, result.next) == ("unusable", "Correct the job, and plan it again.")
    assert "line 2: briefs[0]: unknown key 'instrctions'; did you mean 'instructions'?" in result.message
    (root / "job.yaml").write_text(JOB.replace("gpt-4o-mini", "unlisted"), encoding="utf-8")
    lax = policy.model_copy(update={"models": ("openai/*",)})
    result = make_plan(tmp_path / "b", lax, file=str(root / "job.yaml")).result
    assert "limits.budget_usd can't be held: the price of 'openai/unlisted' is unknown" in result.message


def test_a_result_is_small(root: Path, policy: Policy, tmp_path: Path, store: Path) -> None:
    """However many parts are refused, and however long names are, a plan has less than 10 KB."""
    briefs = [{"name": f"b{n}", "instructions": "x", "output": f"{'m' * 3000}:Name"} for n in range(50)]
    params = {"y" * 900: 1, "max_tokens": 50}
    document = {"briefs": briefs, "items": ["a"], "executor": {"model": "z" * 5000, "params": params}}
    result = make_plan(tmp_path / "a", policy, document=document).result
    assert result.message.startswith("52 parts not allowed.")
    assert len(result.model_dump_json()) < 10_000
    for number in range(12):
        (root / "items" / f"{'n' * 200}{number}.txt").write_text("Text.", encoding="utf-8")
    assert len(make_plan(tmp_path / "b", policy, file=str(root / "job.yaml")).result.model_dump_json()) < 10_000


def test_a_run(jobs: JobStore, policy: Policy, tmp_path: Path, store: Path, model: ModelServer) -> None:
    """A run leaves its progress, ledger, outcomes and report, and states what it spent."""
    job = add_job(jobs, policy, tmp_path)
    run = run_job(job, policy)
    status = job.status()
    assert (status.state, status.message, status.done, status.total) == ("complete", "4 of 4 answered.", 4, 4)
    assert (status.tokens, status.budget_usd, status.cost_usd) == (60, 0.5, 1.8e-05)
    assert [row["state"] for row in run.ledger_rows()] == ["answered"] * 4
    assert {json.loads(line)["value"] for line in run.outcomes_file.read_text("utf-8").splitlines()} == {"fine"}
    assert status.report == str(job.report)
    assert (job.report / "report.md").read_text("utf-8").startswith("# Complete")
    assert jobs.spent_usd == pytest.approx(1.8e-05)
    marks = json.loads((run.folder / "spending.json").read_bytes())["usd"]
    assert 1.8e-05 < marks <= 0.5
    assert model.count == 4


def test_a_redrive(jobs: JobStore, policy: Policy, tmp_path: Path, store: Path, model: ModelServer) -> None:
    """A second run asks only what has no answer, though the job asks everything again."""
    (jobs.root / "job.yaml").write_text(f"{JOB}refresh: true\nlimits: {{reasks: 0, retries: 0}}\n", encoding="utf-8")
    model.behave = lambda request, n: failure(400, "no") if "number 2" in str(request) and n == 1 else Behaviour()
    job = add_job(jobs, policy, tmp_path)
    run_job(job, policy)
    status = job.status()
    assert (status.state, status.failed, [gap.item for gap in status.gaps]) == ("gaps", 1, ["items/2.txt"])
    asked = model.count
    run_job(job, policy)
    status = job.status()
    assert (status.state, status.runs, status.answered_before, model.count) == ("complete", 2, 3, asked + 1)


def test_what_was_priced_is_what_runs(
    jobs: JobStore, policy: Policy, tmp_path: Path, store: Path, model: ModelServer
) -> None:
    """What changed since the plan is named, and nothing is asked."""
    job = add_job(jobs, policy, tmp_path)
    items = jobs.root / "items"
    (items / "0.txt").write_text("Another text.", encoding="utf-8")
    (items / "1.txt").unlink()
    (items / "9.txt").write_text("A new text.", encoding="utf-8")
    run_job(job, policy)
    assert (job.state, job.charge_usd) == ("refused", 0.0)
    assert (
        "the item 'items/0.txt' changed; the item 'items/9.txt' is new; the item 'items/1.txt' is gone. Nothing was "
        "asked" in job.status().message
    )
    for number in range(8):
        (items / f"{number}.txt").write_text("All of them.", encoding="utf-8")
    run_job(job, policy)
    assert "; and 4 more. Nothing was asked" in job.status().message
    (jobs.root / "job.yaml").write_text(JOB.replace("Say", "Tell"), encoding="utf-8")
    run_job(job, policy)
    assert "the job file changed" in job.status().message
    assert model.count == 0


def test_what_code_changed(jobs: JobStore, root: Path, tmp_path: Path, store: Path) -> None:
    """A function that changed since the plan is refused, too; without a budget, its reported cost counts."""
    policy = Policy(root=str(root), allow=("python",))
    (root / "answers_of_a_job.py").write_text("def answer(ask):\n    return 'fine'\n", encoding="utf-8")
    document = {
        "briefs": {"name": "terms", "instructions": "Say what it says."},
        "items": ["a", "b"],
        "executor": {"kind": "python", "function": "answers_of_a_job:answer", "version": "1"},
    }
    planned = make_plan(tmp_path / "a", policy, document=document)
    assert planned.record
    assert (planned.record.is_priced, planned.result.budget_usd) == (False, None)
    assert planned.result.notes[0] == "What the Python function spends isn't bounded by a budget."
    job = jobs.add(planned.record)
    run_job(job, policy, budget_usd=None)
    assert (job.state, job.status().cost_usd) == ("complete", 0.0)
    changed = planned.record.model_copy(update={"fingerprint": "c" * 64})
    other = jobs.add(changed)
    run_job(other, policy, budget_usd=None)
    assert "code, a program or a commit that it uses changed" in other.status().message


def test_files_of_the_integrator(jobs: JobStore, root: Path, policy: Policy, tmp_path: Path, store: Path) -> None:
    """A file that the integrator reads counts as well, though it need not exist."""
    document: dict[str, Any] = {
        "briefs": {"name": "terms", "instructions": "Say it.", "output": {"type": "object", "properties": {"a": {}}}},
        "items": ["a"],
        "executor": {"model": MODEL, "params": {"max_tokens": 50}},
        "integrator": {"kind": "merge_records", "identity": ["a"], "aliases": "same.yaml"},
    }
    planned = make_plan(tmp_path / "a", policy, document=document)
    assert planned.record
    job = jobs.add(planned.record)
    (root / "same.yaml").write_text("same: []\n", encoding="utf-8")
    run_job(job, policy)
    assert "the file 'same.yaml' changed" in job.status().message


def test_a_link_that_leads_elsewhere_by_now(
    jobs: JobStore, policy: Policy, tmp_path: Path, store: Path, model: ModelServer
) -> None:
    """A run is checked again: what was allowed when it was planned may not be when it runs."""
    job = add_job(jobs, policy, tmp_path)
    run_job(job, policy.model_copy(update={"models": ()}))
    assert job.state == "refused"
    assert "executor.model: 'openai/gpt-4o-mini' is not among the models" in job.status().message
    assert model.count == 0


def test_a_cancelled_run(jobs: JobStore, policy: Policy, tmp_path: Path, store: Path, model: ModelServer) -> None:
    """A run that is to be cancelled ends as by Ctrl-C; what was answered is stored."""
    (jobs.root / "job.yaml").write_text(f"{JOB}limits: {{grace_s: 0, concurrency: 1}}\n", encoding="utf-8")
    job = add_job(jobs, policy, tmp_path)
    asked = threading.Event()

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        if "number 3" not in str(request):
            return Behaviour()
        asked.set()
        return Behaviour(hang=True)

    model.behave = behave

    def cancel() -> None:
        asked.wait(60)
        job.runs[0].request_cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    run_job(job, policy)
    thread.join()
    status = job.status()
    assert (status.state, status.message) == ("cancelled", "It was cancelled; what was answered is stored.")
    assert [gap.item for gap in status.gaps] == ["items/3.txt"]
    assert (status.report, status.done - status.failed) == (str(job.report), 3)


def test_a_cancellation_that_is_lost(
    jobs: JobStore, policy: Policy, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python drops an interrupt in a finalizer, as during an import; the run ends as cancelled all the same."""
    job = add_job(jobs, policy, tmp_path)

    def prepare(*_: object) -> int:
        job.runs[0].request_cancel()
        with suppress(KeyboardInterrupt):
            wait_until(lambda: False, "never")
        wait_until(lambda: job.runs[0].end is not None, "the run has ended")
        return 0

    monkeypatch.setattr(job_process, "run_ready", prepare)
    run_job(job, policy)
    assert (job.state, job.status().message) == ("cancelled", "It was cancelled; what was answered is stored.")


def test_a_run_that_breaks(
    jobs: JobStore, policy: Policy, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected error ends a run as failed, with its message; the log has the rest."""
    job = add_job(jobs, policy, tmp_path)

    def explode(*_: object) -> None:
        raise RuntimeError("The disk is gone.")

    monkeypatch.setattr(job_process, "run_ready", explode)
    run_job(job, policy)
    assert (job.state, job.status().message) == ("failed", "It ended by an error: RuntimeError: The disk is gone.")

    def fail(*_: object) -> int:
        return 1

    monkeypatch.setattr(job_process, "run_ready", fail)
    run_job(job, policy)
    assert (job.state, job.status().message) == ("failed", "It failed.")


def test_a_run_that_is_interrupted_or_in_a_batch(
    jobs: JobStore, policy: Policy, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run counts as cancelled; one with batches counts with its whole budget until it has ended."""
    job = add_job(jobs, policy, tmp_path)
    budget = Budget(Limits(budget_usd=0.5))

    def interrupt(*_: object) -> None:
        notify = on_budget.get()
        assert notify
        notify(budget)
        raise KeyboardInterrupt

    monkeypatch.setattr(job_process, "run_ready", interrupt)
    run_job(job, policy)
    assert (job.state, job.charge_usd) == ("cancelled", 0.0)
    batched = JOB.replace("kind: llm,", "kind: llm, mode: batch,")
    (jobs.root / "job.yaml").write_text(batched, encoding="utf-8")
    (tmp_path / "draft").rename(tmp_path / "earlier")
    job = add_job(jobs, policy, tmp_path)
    run = run_job(job, policy)
    (run.folder / "end.json").unlink()
    assert job.charge_usd == 0.5


def test_a_form(jobs: JobStore, policy: Policy, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flows with a form are planned within a budget, too; one whose work costs nothing needs none."""
    monkeypatch.setenv("PREFECT_DISPATCH_MODEL", MODEL)
    document: dict[str, Any] = {
        "flow": "analyze_files",
        "files": "items/*.txt",
        "instructions": "Say it.",
        "max_tokens": 9,
    }
    result = make_plan(tmp_path / "a", policy, document=document).result
    assert (result.state, result.pairs, result.budget_usd) == ("ready", 4, 1.0)
    shell = policy.model_copy(update={"allow": ("shell",)})
    subprocess.run(["git", "init", "-q", str(jobs.root)], check=True)  # noqa: S603, S607 -- a repository
    commit = [
        "git",
        "-C",
        str(jobs.root),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b.c",
        "commit",
        "-q",
        "--allow-empty",
    ]
    subprocess.run([*commit, "-m", "Begin"], check=True)  # noqa: S603 -- the same
    document = {"flow": "test_matrix", "command": "true", "axes": [{"name": "python", "values": ["3.10", "3.13"]}]}
    result = make_plan(tmp_path / "b", shell, document=document).result
    assert (result.state, result.pairs) == ("ready", 2), result


def test_a_job_file_outside(root: Path, tmp_path: Path) -> None:
    """A job file lies below the root, wherever a link or a path says that it is."""
    (tmp_path / "job.yaml").write_text(JOB, encoding="utf-8")
    (root / "link.yaml").symlink_to(tmp_path / "job.yaml")
    assert find_job_file(root, "job.yaml") == root / "job.yaml"
    assert find_job_file(root, str(root / "items" / ".." / "job.yaml")) == root / "job.yaml"
    for name in ("../job.yaml", "link.yaml", str(tmp_path / "job.yaml")):
        with pytest.raises(JobError, match="is not below the root"):
            find_job_file(root, name)
    with pytest.raises(JobError, match="There is no job file 'items'"):
        find_job_file(root, "items")
