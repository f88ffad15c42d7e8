"""What of a job a user has not allowed is refused before it is read, imported or run, and named with the option."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.agents.consent import INTEGRATOR_FILES, SAFE_PARAMS, find_refusals, refuse_size
from prefect_dispatch.agents.policy import Policy
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.executors.coding.container import Container
from prefect_dispatch.executors.coding.custom import Generic
from prefect_dispatch.executors.llm.cascade import Cascade, Learn
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.python_callable import PythonCallable
from prefect_dispatch.executors.shell import Shell
from prefect_dispatch.flows.job_file import Job, read_job
from prefect_dispatch.flows.runtime.job_document import FLOWS
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.consensus.consensus import Consensus
from prefect_dispatch.integrators.matrix_integrator import TestMatrix
from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.integrators.synthesize.synthesize import Synthesize
from prefect_dispatch.integrators.tournament.tournament import Tournament
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.limits import Limits, Pilot
from prefect_dispatch.sources import Csv, Glob, JsonLines, Listed, Parquet, Sql
from prefect_dispatch.workspaces.workspace import Workspace
from tests.agents.conftest import MODEL

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

BRIEF: dict[str, Any] = {"name": "terms", "instructions": "Say what it says."}
LLM_JOB: dict[str, Any] = {"kind": "llm", "model": MODEL, "params": {"max_tokens": 50}}
AGENT: dict[str, Any] = {"kind": "coding", "agent": "claude", "model": "claude-sonnet-4-5"}


def refusals(root: Path, policy: Policy, **changes: Any) -> dict[str, str]:  # noqa: ANN401 -- parts of a job
    """Return the refused parts of a job, each with the option that would allow it."""
    job = {"briefs": BRIEF, "items": ["a"], "executor": LLM_JOB, **changes}
    file = root / "this.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    return {each.part: f"{each.flag} {each.wanted}".strip() for each in find_refusals(read_job(file), root, policy)}


def test_a_job_within_the_policy(root: Path, policy: Policy) -> None:
    """A job that asks an allowed model about files below the root is not refused."""
    items = {"glob": "items/*.txt"}
    assert refusals(root, policy, items=items, limits={"budget_usd": 0.5, "concurrency": 4}) == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"executor": {"kind": "shell"}}, {"executor.kind": "--allow shell"}),
        (
            {"briefs": {**BRIEF, "command": {"run": "true"}}, "executor": {"kind": "shell"}},
            {"executor.kind": "--allow shell", "briefs[0].command": "--allow shell"},
        ),
        (
            {"executor": {"kind": "shell", "operation": "mine"}},
            {"executor.kind": "--allow shell", "executor.operation": ""},
        ),
        ({"executor": {"kind": "python", "function": "mine:answer"}}, {"executor.function": "--allow python"}),
        (
            {"executor": AGENT},
            {
                "executor.kind": "--allow coding",
                "executor.model": "--models claude-sonnet-4-5",
            },
        ),
        ({"executor": {**LLM_JOB, "model": "openai/gpt-4o"}}, {"executor.model": "--models openai/gpt-4o"}),
        ({"executor": {**LLM_JOB, "model": "x" * 101}}, {"executor.model": ""}),
        ({"executor": {**LLM_JOB, "fallbacks": ["openai/o3"]}}, {"executor.fallbacks": "--models openai/o3"}),
        ({"briefs": {**BRIEF, "model": "openai/o3"}}, {"briefs[0].model": "--models openai/o3"}),
        ({"executor": {**LLM_JOB, "api_base": "http://evil.example/v1"}}, {"executor.api_base": ""}),
        ({"executor": {**LLM_JOB, "credentials": "mine"}}, {"executor.credentials": ""}),
        ({"executor": {**LLM_JOB, "usd_per_million": [0, 0]}}, {"executor.usd_per_million": ""}),
        ({"executor": {**LLM_JOB, "params": {"proxy": "x"}}}, {"executor.params.proxy": ""}),
        (
            {"executor": {**LLM_JOB, "cascade": {"cheap": "openai/o3", "api_base": "http://evil.example/v1"}}},
            {"executor.cascade.cheap": "--models openai/o3", "executor.cascade.api_base": ""},
        ),
        (
            {
                "executor": {
                    **LLM_JOB,
                    "cascade": {
                        "cheap": "openai/o3",
                        "credentials": "mine",
                        "usd_per_million": [0, 0],
                        "params": {"proxy": "x"},
                    },
                }
            },
            {
                "executor.cascade.cheap": "--models openai/o3",
                "executor.cascade.credentials": "",
                "executor.cascade.usd_per_million": "",
                "executor.cascade.params.proxy": "",
            },
        ),
        ({"executor": {**LLM_JOB, "params": {"api base\n": 1}}}, {"executor.params.api?base?": ""}),
        ({"briefs": {**BRIEF, "output": "mine:Answer"}}, {"briefs[0].output": "--allow python"}),
        (
            {"briefs": {**BRIEF, "checks": [{"kind": "function", "function": "mine:check"}]}},
            {"briefs[0].checks[0].function": "--allow python"},
        ),
        (
            {
                "briefs": {
                    **BRIEF,
                    "split": {"join": {"kind": "merge_records", "identity": ["a"], "aliases": "/x.yaml"}},
                }
            },
            {"briefs[0].split.join.aliases": "--root (a folder above)"},
        ),
        ({"briefs": {**BRIEF, "split": {"join": {"kind": "nothing"}}}}, {"briefs[0].split.join": ""}),
        (
            {"integrator": {"kind": "synthesize", "instructions": "Sum up.", "judge": {"model": "openai/o3"}}},
            {"integrator.judge.model": "--models openai/o3"},
        ),
        (
            {"integrator": {"kind": "tournament", "metric": "mine:measure"}},
            {"integrator.metric": "--allow python"},
        ),
        (
            {"integrator": {"kind": "tournament", "results": "../results.csv"}},
            {"integrator.results": "--root (a folder above)"},
        ),
        ({"items": {"glob": "*", "root": ".."}}, {"items.root": "--root (a folder above)"}),
        ({"items": {"glob": "*", "root": "/etc"}}, {"items.root": "--root (a folder above)"}),
        ({"items": {"glob": "s3://bucket/*.txt"}}, {"items.root": ""}),
        ({"items": {"jsonl": "../rows.jsonl"}}, {"items.jsonl": "--root (a folder above)"}),
        ({"items": {"csv": "~/rows.csv"}}, {"items.csv": "--root (a folder above)"}),
        ({"items": {"parquet": "s3://bucket/rows.parquet"}}, {"items.parquet": ""}),
        ({"items": {"sql": "SELECT 1 AS a", "connection": "mine", "key": "a"}}, {"items": ""}),
        ({"limits": {"concurrency": 50}}, {"limits.concurrency": "--max-concurrency 50"}),
        ({"limits": {"budget_usd": 5}}, {"limits.budget_usd": "--max-usd 5"}),
        ({"review": True}, {"review": ""}),
        ({"task_runner": {"kind": "threads"}}, {"task_runner": ""}),
        ({"fan_out": {"deployment": "a/b"}}, {"fan_out": ""}),
    ],
)
def test_what_is_refused(root: Path, policy: Policy, changes: dict[str, Any], expected: dict[str, str]) -> None:
    """Each part that is not allowed is named, with the option that would allow it, or none."""
    assert refusals(root, policy, **changes) == expected


def test_what_options_allow(root: Path) -> None:
    """What the user has allowed is not refused; what an option can't allow still is."""
    policy = Policy(root=str(root), models=("claude-*", MODEL), allow=("coding",))
    subprocess.run(["git", "init", "-q", str(root)], check=True)  # noqa: S603, S607 -- a repository
    assert refusals(root, policy, executor={**AGENT, "pass_env": ["ANTHROPIC_API_KEY"]}) == {}
    more = {
        "program": "./mine",
        "params": {"allowed_tools": ["Bash"]},
        "api_base": "http://evil.example",
        "credentials": "mine",
        "pass_env": ["ANTHROPIC_API_KEY", "SECRET"],
        "answers": "../answers.yaml",
    }
    assert refusals(root, policy, executor={**AGENT, "answers": "a.yaml", "pass_env": ["ANTHROPIC_API_KEY"]}) == {}
    assert refusals(root, policy, executor={**AGENT, **more}) == {
        "executor.answers": "--root (a folder above)",
        "executor.program": "--allow shell",
        "executor.params": "--allow shell",
        "executor.api_base": "",
        "executor.credentials": "",
        "executor.pass_env": "--allow shell",
    }
    described = {"name": "mine", "argv": ["./mine", "{prompt}"]}
    assert refusals(root, policy, executor={**AGENT, "agent": described}) == {"executor.agent.argv": "--allow shell"}
    merging = {
        "kind": "merge_branches",
        "accept": {"run": "make"},
        "force": True,
        "branch": "b",
        "pass_env": ["SECRET"],
    }
    assert refusals(root, policy, executor=AGENT, integrator=merging) == {
        "integrator.accept": "--allow shell",
        "integrator.force": "",
        "integrator.pass_env": "--allow shell",
    }
    assert refusals(root, policy, executor=AGENT, integrator={"kind": "merge_branches", "branch": "b"}) == {}


def test_code_that_is_allowed(root: Path) -> None:
    """With `--allow python` a function may answer, but no model beside it, as no budget holds for both."""
    policy = Policy(root=str(root), models=(MODEL,), allow=("python",))
    function = {"kind": "python", "function": "mine:answer"}
    assert refusals(root, policy, executor=function) == {}
    asking = {"kind": "synthesize", "instructions": "Sum up.", "executor": LLM_JOB}
    assert refusals(root, policy, executor=function, integrator=asking) == {"executor": ""}


def test_pushing_is_not_for_agents(root: Path, tmp_path: Path) -> None:
    """A merge that is pushed uses the user's credentials, so no option allows it."""
    policy = Policy(root=str(root), models=("claude-*",), allow=("coding",))
    workspace = {"repo": str(tmp_path)}
    pushed = {"kind": "merge_branches", "workspace": workspace, "branch": "agents/merged", "publish": {"push": True}}
    assert refusals(root, policy, integrator=pushed)["integrator.publish"] == ""


def test_links_lead_nowhere_else(root: Path, policy: Policy, tmp_path: Path) -> None:
    """A path counts by where its links lead, in each source."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    (root / "link").symlink_to(secret)
    (root / "rows.jsonl").symlink_to(secret / "rows.jsonl")
    (root / "tables").mkdir()
    (root / "tables" / "a.parquet").symlink_to(secret / "rows.jsonl")
    (root / "own").mkdir()
    (root / "own" / "a.parquet").touch()
    assert refusals(root, policy, items={"parquet": "own"}) == {}
    outside = "--root (a folder above)"
    assert refusals(root, policy, items={"glob": "*", "root": "link"}) == {"items.root": outside}
    assert refusals(root, policy, items={"jsonl": "rows.jsonl"}) == {"items.jsonl": outside}
    assert refusals(root, policy, items={"parquet": "tables"}) == {"items.parquet": outside}


def test_another_repository(root: Path, tmp_path: Path) -> None:
    """A file `.git` that names a repository elsewhere doesn't make that one the job's."""
    policy = Policy(root=str(root), models=("claude-*",), allow=("coding",))
    for folder in (tmp_path / "private", root / "own"):
        subprocess.run(["git", "init", "-q", str(folder)], check=True)  # noqa: S603, S607 -- a repository
    (root / "evil").mkdir()
    (root / "evil" / ".git").write_text(f"gitdir: {tmp_path / 'private' / '.git'}\n", encoding="utf-8")
    assert refusals(root, policy, executor={**AGENT, "workspace": {"repo": "own"}}) == {}
    for repo in ("evil", str(tmp_path / "private")):
        assert refusals(root, policy, executor={**AGENT, "workspace": {"repo": repo}}) == {
            "executor.workspace.repo": "--root (a folder above)"
        }


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({"flow": "analyze_files", "files": "*.txt", "instructions": "Say it."}, {}),
        (
            {
                "flow": "analyze_files",
                "files": "*.txt",
                "instructions": "Say it.",
                "credentials": "mine",
                "profile": "p",
            },
            {"credentials": "", "profile": ""},
        ),
        (
            {"flow": "analyze_files", "files": "*.txt", "instructions": "Say it.", "folder": ".."},
            {"folder": "--root (a folder above)"},
        ),
        (
            {"flow": "research_topics", "question": "What of {topic}?", "topics_file": "/etc/passwd"},
            {"topics_file": "--root (a folder above)"},
        ),
        (
            {"flow": "content_variants", "product": "A kettle.", "instructions": "Write.", "variants": "VARIANTS"},
            {},
        ),
    ],
)
def test_forms(
    root: Path, policy: Policy, job: dict[str, Any], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flows with a form are checked by their parts, too, and nothing is read while they are built."""
    monkeypatch.setenv("PREFECT_DISPATCH_MODEL", MODEL)
    if "variants" in job:
        job = {**job, "variants": [{"name": "a", "angle": "Warm."}, {"name": "b", "angle": "Cool."}]}
    file = root / "form.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    found = find_refusals(read_job(file), root, policy)
    assert {each.part: f"{each.flag} {each.wanted}".strip() for each in found} == expected


def test_the_size_of_a_job(policy: Policy) -> None:
    """Too many pairs are refused, with the number that would have to be allowed."""
    assert refuse_size(200, policy) == []
    (refusal,) = refuse_size(201, policy)
    assert (refusal.flag, refusal.wanted, refusal.can_ask) == ("--max-items", 201, True)
    assert policy.refuses(refusal)
    assert not policy.widen((refusal,)).refuses(refusal)
    assert str(refusal).endswith("200 are allowed (allowed by --max-items 201).")


def test_what_a_person_may_allow(root: Path, policy: Policy) -> None:
    """A form may allow a model, items and concurrency for one job, and neither code nor money."""
    job = {"executor": {**LLM_JOB, "model": "openai/gpt-4o[1]"}, "limits": {"concurrency": 9, "budget_usd": 3}}
    file = root / "this.json"
    file.write_text(json.dumps({"briefs": BRIEF, "items": ["a"], **job}), encoding="utf-8")
    found = find_refusals(read_job(file), root, policy)
    assert [each.part for each in found if each.can_ask] == ["executor.model", "limits.concurrency"]
    wider = policy.widen(tuple(each for each in found if each.can_ask))
    assert [each.part for each in found if wider.refuses(each)] == ["limits.budget_usd"]
    assert not wider.allows_model("openai/gpt-4o1")
    assert (
        str(found[2]) == "limits.budget_usd: 3 USD are more than the 1 that a job may spend (allowed by --max-usd 3)."
    )


DECIDED: dict[type[BaseModel], str] = {
    Job: "flow name briefs items executor integrator limits review fan_out task_runner out limit refresh",
    LLM: "kind model api_base credentials params fallbacks usd_per_million idle_s structured_output accept_models "
    "strict_model web_search mode rounds cascade",
    Cascade: "cheap samples compare confidence min_confidence learn api_base credentials params usd_per_million rule",
    Learn: "items target confidence",
    Shell: "kind cwd pass_env idle_s operation workspace",
    PythonCallable: "kind function version",
    CodingAgent: "kind agent model workspace access container answers web_search program api_base credentials pass_env "
    "max_usd max_turns idle_s params",
    Container: "image network memory_gb cpus",
    Generic: "name argv stdin env key done text usage",
    Workspace: "repo base setup keep ports",
    Brief: "name scope instructions constraints output checks priority reads writes resources samples model needs "
    "command split sample part start",
    Limits: "concurrency shard retries retry_delay_s reasks timeout_s retry_timeouts wait_s requests_per_minute "
    "tokens_per_minute pace_limit budget budget_usd budget_tokens budget_requests circuit grace_s min_success review_s "
    "on_dependence pilot",
    Pilot: "items gate max_usd min_success max_reask_rate",
    Glob: "glob root encoding max_bytes",
    JsonLines: "key priority jsonl",
    Csv: "key priority csv delimiter encoding",
    Parquet: "key priority parquet",
    Sql: "key priority sql connection params",
    Listed: "items",
    Collate: "kind expected expected_key",
    Consensus: "kind method rules weights min_votes item voter",
    MergeBranches: (
        "kind workspace on_conflict accept check branch force publish agent metric direction criterion judge pass_env"
    ),
    MergeRecords: "kind identity records rules default conflicts match aliases",
    Synthesize: "kind instructions constraints output sections executor judge reasks context_tokens",
    TestMatrix: "kind required on_red",
    Tournament: "kind criterion judge matches metric results results_key results_trials results_conversions",
}
"""The fields of each model of a job that consent was decided for."""


@pytest.mark.parametrize("model", DECIDED)
def test_every_field_is_decided_on(model: type[BaseModel]) -> None:
    """A new field of a job's models is decided on here: an agent may set it, or `consent` refuses it."""
    assert set(model.model_fields) == {*DECIDED[model].split()}


def test_every_field_of_a_form_is_decided_on() -> None:
    """A new field of a form that names a file, code or a block is checked where its job is built, or before."""
    read_while_built = {"folder", "topics_file", "credentials", "profile"}
    parts_of_the_job = {
        "decisions",
        "metric",
        "results",
        "repo",
        "agent",
        "answers",
        "out",
        "files",
        "api_base",
        "setup",
        "accept",
    }
    named = {field for flow in FLOWS.values() for field in flow.split()}
    assert read_while_built | parts_of_the_job < named
    assert {*INTEGRATOR_FILES} == {"aliases", "results", "expected"}
    assert not SAFE_PARAMS & {"service_tier", "n"}  # they cost more than a budget reserves
    assert not SAFE_PARAMS & {"api_base", "base_url", "api_key", "extra_headers", "headers", "extra_body", "model"}
