"""A coding agent that only reads a repository: its answer is what it says, and a changed file is a named failure."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import Collate, MergeBranches, dispatch
from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.errors import JobError, RejectedError
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.models.brief import Brief, Command
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.workspaces.workspace import Workspace
from tests.executors.coding.fake_agents import ITEM, FakeAgent, asked, claude_end, codex_end, codex_said, failed
from tests.workspaces.inside import leases

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workspaces.repositories import Repository

AUDIT = Brief(
    name="audit",
    instructions="Which globals does the module have?",
    output={"type": "object", "properties": {"names": {"type": "array", "items": {"type": "string"}}}},
)
FOUND = {"names": ["A"]}
OPTIONS = {"claude": ["--tools Read,Glob,Grep"], "codex": ["-s read-only"], "opencode": []}


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own."""
    folder = tmp_path / "state"
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(folder))
    return folder


def create(repository: Repository, agent: str = "claude", **more: Any) -> CodingAgent:  # noqa: ANN401 -- fields
    """Return an executor that only reads, with its paths resolved."""
    fields = {"agent": agent, "model": "openai/m" if agent == "opencode" else "m", "access": "read", **more}
    workspace = Workspace(repo=str(repository.path), setup=Command(run="echo built > built.txt"))
    keys = ["ANTHROPIC_API_KEY" if agent == "claude" else "OPENAI_API_KEY"]
    made = CodingAgent.model_validate({"workspace": workspace, "pass_env": keys, **fields})
    return made.resolve_paths(repository.path)


@pytest.mark.parametrize("agent", list(OPTIONS))
def test_it_reads_the_checkout_and_answers_in_json(
    agent: str, repository: Repository, programs: Path, own: Path
) -> None:
    """It has tools to read alone, sees the files of the commit, and what the set-up wrote is no change of its own."""
    said = json.dumps(FOUND)
    events: dict[str, list[object]] = {
        "claude": [claude_end(result="x", structured_output=FOUND)],
        "codex": [codex_said(said), codex_end()],
        "opencode": [
            {"type": "text", "part": {"text": said}},
            {"type": "step_finish", "part": {"reason": "stop", "cost": 0.1, "tokens": {"input": 1, "output": 1}}},
        ],
    }
    fake = FakeAgent(programs, agent)
    fake.does("grep -q 'A = 0' a.py && test -e built.txt || exit 3", fake.prints(*events[agent]))
    reply = asked(create(repository, agent), AUDIT)
    assert (reply.value if agent == "claude" else json.loads(str(reply.value)), reply.change) == (FOUND, None)
    [call] = fake.calls
    assert "You may only read: a change of any file fails the whole work." in call.stdin
    assert "Leave your changes" not in call.stdin
    for option in OPTIONS[agent]:
        assert option in " ".join(call.argv)
    assert leases(own) == []


@pytest.mark.parametrize(
    ("does", "named"),
    [
        ("echo 'A = 1' > a.py", "'a.py'"),
        ("rm a.py; touch notes.md", "'a.py', 'notes.md'"),
        ("echo other > built.txt", "'built.txt'"),
        ("git commit -q --allow-empty -m x; echo 1 > b; git add b; git commit -qm y", "'b'"),
    ],
)
def test_a_changed_file_is_a_named_failure(does: str, named: str, repository: Repository, programs: Path) -> None:
    """Whether it was committed or not, and though the answer is right; the cost is reported all the same."""
    fake = FakeAgent(programs, "claude")
    fake.does(does, fake.prints(claude_end(structured_output=FOUND)))
    error = failed(create(repository), RejectedError, AUDIT)
    assert (error.kind, error.usage and error.usage.cost_usd) == ("read_only", 0.25)
    assert f"It may only read, and changed {named}; nothing of its work is used" in str(error)


def test_an_invalid_answer_is_sent_back(repository: Repository, programs: Path) -> None:
    """The second prompt quotes the problem, and mentions no changes of before."""
    fake = FakeAgent(programs, "claude")
    good, bad = (fake.prints(claude_end(structured_output=each)) for each in (FOUND, {"names": "A"}))
    fake.does(f"if [ $n = 0 ]; then {bad}; else {good}; fi")
    answer = asyncio.run(run_attempt(create(repository), AUDIT, ITEM, limits=Limits()))
    assert (answer.value, answer.attempts[0].reasks) == (FOUND, 1)
    assert "the answer was not accepted" in fake.calls[1].stdin
    assert "Your changes of then" not in fake.calls[1].stdin


def test_what_changes_files_is_refused(repository: Repository, programs: Path) -> None:
    """Before anything is spent: files to write, an acceptance command, and an integrator that merges changes."""
    FakeAgent(programs, "claude")
    executor = create(repository)
    for more, field in (({"writes": ("a.py",)}, "writes"), ({"command": Command(run="true")}, "command")):
        with pytest.raises(
            JobError, match=rf"'{field}' is for work that changes files, and executor\.access is 'read'"
        ):
            executor.require_supported([AUDIT.model_copy(update=more)])
    with pytest.raises(JobError, match=r"it merges changes of files, and executor\.access is 'read'"):
        MergeBranches().with_executor(executor, repository.path)
    resolver = MergeBranches(on_conflict="agent", agent=executor, workspace=executor.workspace)
    with pytest.raises(JobError, match="doesn't edit files"):
        resolver.preflight([])


def test_what_may_be_changed_is_part_of_the_identity(repository: Repository, programs: Path) -> None:
    """An answer of an agent that may write is none of one that may not; without a repository there is no difference."""
    FakeAgent(programs, "claude")
    assert create(repository).fingerprint != create(repository, access="write").fingerprint
    alone = CodingAgent(model="m", workspace=None)
    assert alone.fingerprint == alone.model_copy(update={"access": "read"}).fingerprint


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_review_of_several_modules(repository: Repository, programs: Path) -> None:
    """One item each: the answers are listed, and the one that changed a file is a gap with its reason."""
    fake = FakeAgent(programs, "claude")
    spoils = f"if grep -q 'module b' {programs}/claude-calls/$n/stdin; then echo 1 > a.py; fi"
    fake.does(spoils, fake.prints(claude_end(structured_output=FOUND)))
    report = dispatch(AUDIT, ["module a", "module b"], executor=create(repository), integrator=Collate())
    assert (report.status, len(report.gaps)) == ("gaps", 1)
    [bad] = [each for each in report.outcomes if each.error]
    assert (bad.item, bad.error and bad.error.kind) == ("module b", "read_only")
