"""An agent that writes into the user's own checkout: its work doesn't count, and what can't be traced to it is told."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.errors import RejectedError
from prefect_dispatch.executors.coding.adapter import AgentOutput
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.executors.coding.session import OutsideWriteDetector
from prefect_dispatch.models.brief import Command
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.workspaces.workspace import Workspace
from tests.executors.coding.fake_agents import BRIEF, ITEM, FakeAgent, asked, claude_end, claude_start, failed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workspaces.repositories import Repository

WORKS = "echo 'A = 1' > a.py"


@pytest.fixture
def claude(programs: Path) -> FakeAgent:
    """A Claude Code that does its work."""
    return FakeAgent(programs, "claude")


def executor_of(repository: Repository) -> CodingAgent:
    """Return an executor that is placed."""
    return CodingAgent(
        model="claude-sonnet-4-5",
        workspace=Workspace(repo=str(repository.path)),
        pass_env=("ANTHROPIC_API_KEY",),
    ).resolve_paths(repository.path)


def doing(claude: FakeAgent, repository: Repository, script: str, said: str = "") -> CodingAgent:
    """Return an executor whose agent does its work, and a script, in which `$CHECKOUT` is the user's own checkout."""
    words = f"CHECKOUT={shlex.quote(str(repository.path))}"
    claude.does(words, WORKS, script, claude.prints(claude_start(), said, claude_end()))
    return executor_of(repository)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "why"),
    [
        pytest.param("echo 'A = 2' > $CHECKOUT/a.py", "The brief has it write 'a.py'", id="its-own-file"),
        pytest.param(
            "mkdir docs $CHECKOUT/docs; echo new > docs/b.md; cp docs/b.md $CHECKOUT/docs",
            "The content of 'docs/b.md' is what it left in its workspace",
            id="its-own-content",
        ),
        pytest.param("echo x > $CHECKOUT/notes.txt; echo $CHECKOUT >&2", "Its output names that folder", id="named"),
        pytest.param("git -C $CHECKOUT tag v1; echo $CHECKOUT >&2", "Its output names that folder", id="a-tag"),
    ],
)
def test_what_is_traced_to_the_agent(script: str, why: str, claude: FakeAgent, repository: Repository) -> None:
    """Its work fails, whatever it left in its workspace, and the message names what changed, where, and why."""
    error = failed(doing(claude, repository, script), RejectedError)
    assert error.kind == "outside"
    assert f"While it worked, the checkout '{repository.path}' changed: " in str(error)
    assert why in str(error)
    assert "Its log: " in str(error)
    assert error.usage is not None
    assert error.usage.cost_usd == 0.25


def test_what_the_acceptance_command_does_counts(claude: FakeAgent, repository: Repository) -> None:
    """It runs what the agent wrote."""
    brief = BRIEF.model_copy(update={"command": Command(run=f"echo 'A = 2' > {repository.path}/a.py")})
    error = failed(doing(claude, repository, ""), RejectedError, brief)
    assert error.kind == "outside"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "what"),
    [
        pytest.param("echo x > $CHECKOUT/notes.txt", "'notes.txt'", id="a-file"),
        pytest.param("git -C $CHECKOUT tag v1", "'refs/tags/v1'", id="a-tag"),
        pytest.param("git -C $CHECKOUT checkout -q a.py", "'a.py'", id="put-back"),
    ],
)
def test_what_anybody_may_have_done_is_told(
    script: str, what: str, claude: FakeAgent, repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    """The user may work in the checkout meanwhile: the work counts, and the attempt, and the log, say what was seen."""
    repository.put("a.py", "A = 3\n")
    brief = BRIEF if what != "'a.py'" else BRIEF.model_copy(update={"writes": ("*.txt",)})
    if what == "'a.py'":
        script += "; git checkout -q a.py; echo x > new.txt"
    answer = asyncio.run(run_attempt(doing(claude, repository, script), brief, ITEM, limits=Limits(retries=0)))
    (note,) = answer.attempts[0].notes
    assert (
        note == f"While it worked, the checkout '{repository.path}' changed: {what}; nothing traces that to the agent."
    )
    assert note in caplog.text
    assert answer.change is not None


def test_a_checkout_that_stays_as_it_is(claude: FakeAgent, repository: Repository) -> None:
    """Nothing is told, whatever is not committed there, and though the agent's output names it."""
    repository.put("dirty.txt", "dirty\n")
    reply = asked(doing(claude, repository, "cat $CHECKOUT/dirty.txt", str(repository.path)))
    assert reply.notes == ()


def watch_of(repository: Repository, program: str = "") -> OutsideWriteDetector:
    """Return a watch of the checkout whose workspace is nowhere."""
    return OutsideWriteDetector(repository.path, repository.path.parent / "nowhere", BRIEF.writes, program)


def test_folders_that_only_begin_alike_are_not_named(repository: Repository) -> None:
    """Neither a folder beside the checkout is meant, nor the agent's own program, which may lie in it."""
    program = str(repository.path / "agent.sh")
    watch = watch_of(repository, program)
    repository.put("notes.txt", "x\n")
    beside = AgentOutput(f"{repository.path}-state/leases {program}: line 3", f"{repository.path}2")
    assert "nothing traces" in watch.require_inside(beside)
    with pytest.raises(RejectedError, match="Its output names"):
        watch.require_inside(AgentOutput("", f"cd {repository.path}/src"))


def test_links_and_large_files_are_not_compared(repository: Repository) -> None:
    """What stands there may be anything."""
    work = repository.path.parent / "work"
    work.mkdir()
    watch = OutsideWriteDetector(repository.path, work, (), "")
    repository.link("link.txt", "a.py")
    repository.put("empty.txt", "")
    (repository.path / "only-there.txt").write_text("x")
    for name in ("link.txt", "empty.txt"):
        (work / name).touch()
    assert "nothing traces" in watch.require_inside(AgentOutput(""))


def test_a_repository_that_cannot_be_read(repository: Repository, tmp_path: Path) -> None:
    """From the beginning, it isn't watched; where it becomes so meanwhile, that is told."""
    assert OutsideWriteDetector(tmp_path, tmp_path, (), "").require_inside(AgentOutput("")) == ""
    watch = watch_of(repository)
    shutil.rmtree(repository.path / ".git")
    assert "became unreadable" in watch.require_inside(AgentOutput(""))
