"""One ask of a coding agent, from its start to what it changed: whatever it does, the outcome is the right one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.errors import (
    BusyError,
    ExecutorError,
    InvalidOutput,
    RejectedError,
    TerminalError,
    TransientError,
)
from prefect_dispatch.executors.coding import session, verdict
from prefect_dispatch.executors.coding.adapter import Tokens
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.executors.coding.session import UNCHANGED, estimate_cost
from prefect_dispatch.models.brief import Command
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.workspaces.workspace import Workspace
from tests.executors.coding.fake_agents import (
    BRIEF,
    ITEM,
    KEY,
    FakeAgent,
    asked,
    claude_end,
    claude_start,
    codex_end,
    codex_said,
    failed,
)
from tests.processes.programs import Crowd
from tests.workspaces.inside import leases

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workspaces.repositories import Repository

CHANGES = "echo 'A = 1' > a.py"
REPORTED = Usage(requests=1, prompt_tokens=105, completion_tokens=20, cost_usd=0.25)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own."""
    folder = tmp_path / "state"
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(folder))
    return folder


@pytest.fixture
def claude(programs: Path) -> FakeAgent:
    """A Claude Code that does its work."""
    agent = FakeAgent(programs, "claude")
    agent.does(CHANGES, agent.prints(claude_start(), claude_end()))
    return agent


@pytest.fixture
def executor(claude: FakeAgent, repository: Repository) -> CodingAgent:
    """It as an executor, in the repository."""
    return executor_of(repository)


def executor_of(repository: Repository, **more: Any) -> CodingAgent:  # noqa: ANN401 -- fields
    """Return an executor that is placed."""
    fields = {
        "model": "claude-sonnet-4-5",
        "workspace": Workspace(repo=str(repository.path)),
        "pass_env": ("ANTHROPIC_API_KEY",),
    }
    return CodingAgent.model_validate({**fields, **more}).resolve_paths(repository.path)


def test_work_that_is_done(executor: CodingAgent, claude: FakeAgent, own: Path, repository: Repository) -> None:
    """Its last words, what it changed, who worked, what that cost; nothing is left, and the checkout is as it was."""
    reply = asked(executor)
    assert reply.value == "Done."
    assert reply.change is not None
    assert [(each.path, each.change) for each in reply.change.files] == [("a.py", "modified")]
    assert "+A = 1" in reply.change.patch
    assert reply.model == "anthropic/claude-sonnet-4-5 in claude 2.1.197"
    assert reply.usage == REPORTED
    assert reply.problems == ()
    (call,) = claude.calls
    assert "Set A to 1." in call.stdin
    assert "The letter A." in call.stdin
    assert call.cwd.is_relative_to(own)
    assert leases(own) == []
    assert (repository.path / "a.py").read_text() == "A = 0\n"


REFUSAL = 'ERROR codex_core::tools: error=x: "Rejected(\\\\"`rm -rf x` rejected: not permitted\\\\")"'
"""How Codex's log tells of a command that its own policy refuses; a shell prints it."""


def codex_of(repository: Repository, programs: Path, *said: object, tells: str = REFUSAL) -> CodingAgent:
    """Return an executor whose Codex changes nothing, refuses a command itself, and prints some lines."""
    codex = FakeAgent(programs, "codex")
    codex.does(f"echo '{tells}' >&2", codex.prints(*said))
    return executor_of(repository, agent="codex", model="gpt-5", pass_env=("OPENAI_API_KEY",))


@pytest.mark.slow
def test_what_an_agent_refuses_itself_is_reported(
    repository: Repository, programs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reply, its attempt and the log; where the work isn't done, what is sent back says it, too."""
    note = "The policy of codex refused: 'rm -rf x rejected: not permitted'."
    executor = codex_of(repository, programs, codex_said(), codex_end())
    reply = asked(executor)
    assert reply.notes == (note,)
    assert reply.problems == (UNCHANGED, note)
    assert note in caplog.text
    brief = BRIEF.model_copy(update={"writes": ()})
    answer = asyncio.run(run_attempt(executor, brief, ITEM, limits=Limits()))
    assert [each.notes for each in answer.attempts] == [(note,)]
    with pytest.raises(InvalidOutput) as caught:
        asyncio.run(run_attempt(executor, BRIEF, ITEM, limits=Limits(reasks=1)))
    assert [each.notes for each in caught.value.attempts] == [(note,)]


def test_what_an_agent_refuses_itself_is_told_of_a_failure(repository: Repository, programs: Path) -> None:
    """It may be why the work isn't done."""
    executor = codex_of(repository, programs, {"type": "turn.failed", "error": {"message": "It gave up."}})
    error = failed(executor, RejectedError)
    assert error.kind == "agent_error"
    assert "The policy of codex refused: 'rm -rf x rejected: not permitted'." in str(error)


@pytest.mark.slow
def test_a_sandbox_that_cannot_be_made_stops_the_run(repository: Repository, programs: Path) -> None:
    """No command can be run, for no item."""
    item = {"type": "command_execution", "command": "ls", "aggregated_output": "bwrap: No.\n", "status": "failed"}
    executor = codex_of(repository, programs, {"type": "item.completed", "item": item}, codex_end(), tells="")
    error = failed(executor, TerminalError)
    assert error.kind == "sandbox"
    assert "codex can't make its sandbox on this machine, and ran no command: bwrap: No. Allow" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("says", "error", "kind", "message", "usage"),
    [
        pytest.param(
            claude_end(permission_denials=[{"tool_name": "Bash", "tool_input": {"command": "rm -rf /"}}, "odd"]),
            RejectedError,
            "denied",
            "to do what it may not: 'Bash rm -rf /', 'None'. Allow it in executor.params",
            REPORTED,
            id="denied-and-exits-with-0",
        ),
        pytest.param(
            claude_end(is_error=True, api_error_status=401, result="No entry.", total_cost_usd=0, modelUsage={}),
            TerminalError,
            "credentials",
            "provider answered 401: No entry.; correct the key",
            Usage(requests=1),
            id="401",
        ),
        pytest.param(
            claude_end(is_error=True, api_error_status=404, result="No such model."),
            TerminalError,
            "model",
            "answered 404: No such model.; correct executor.model",
            REPORTED,
            id="404",
        ),
        pytest.param(
            claude_end(is_error=True, api_error_status=429, result="Slow down."),
            BusyError,
            "rate_limit",
            "answered 429: Slow down.",
            REPORTED,
            id="429",
        ),
        pytest.param(
            claude_end(is_error=True, api_error_status=529, result="Overloaded."),
            BusyError,
            "overloaded",
            "answered 529",
            REPORTED,
            id="529",
        ),
        pytest.param(
            claude_end(is_error=True, api_error_status=500, result="It broke."),
            TransientError,
            "server",
            "answered 500: It broke.",
            REPORTED,
            id="500",
        ),
        pytest.param(
            claude_end(is_error=True, api_error_status=400, result="Prompt is too long"),
            RejectedError,
            "context_length",
            "answered 400",
            REPORTED,
            id="too-long",
        ),
        pytest.param(
            claude_end(is_error=True, api_error_status=400, result="That is no request."),
            RejectedError,
            "rejected",
            "answered 400",
            REPORTED,
            id="400",
        ),
        pytest.param(
            claude_end(subtype="error_max_turns", is_error=True, result=None, errors=["Reached 3 turns"]),
            RejectedError,
            "max_turns",
            "came to its limit, and was not done: Reached 3 turns; raise executor.max_turns",
            REPORTED,
            id="max-turns",
        ),
        pytest.param(
            claude_end(subtype="error_max_budget_usd", is_error=True, result=None, errors=["Reached $1"]),
            RejectedError,
            "max_usd",
            "raise executor.max_usd",
            REPORTED,
            id="out-of-budget",
        ),
        pytest.param(
            claude_end(subtype="error_during_execution", is_error=True, result=None, errors=["Interrupted"]),
            TransientError,
            "connection",
            "broke off: Interrupted",
            REPORTED,
            id="interrupted-and-exits-with-0",
        ),
        pytest.param(
            claude_end(subtype="error_of_tomorrow", is_error=True, result=None, errors=["x" * 3000]),
            RejectedError,
            "agent_error",
            "as if all were well, and was not done: xxx",
            REPORTED,
            id="unknown-error",
        ),
    ],
)
def test_work_that_is_not_done(  # noqa: PLR0917 -- columns
    says: object,
    error: type[ExecutorError],
    kind: str,
    message: str,
    usage: Usage,
    executor: CodingAgent,
    claude: FakeAgent,
) -> None:
    """What an agent says counts, whatever its exit code says; what was spent is told all the same."""
    claude.does(CHANGES, claude.prints(claude_start(), says), "exit 0")
    found = failed(executor, error)
    assert found.kind == kind
    assert message in str(found)
    assert found.usage == usage
    assert "Its log: " in str(found)
    assert len(str(found)) < verdict.MAX_QUOTED + verdict.TAIL + 500  # its words, the end of its output, and ours


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "error", "kind", "message"),
    [
        pytest.param(
            "echo no >&2; exit 3",
            RejectedError,
            "exit",
            "code 3: it did not say why. Its output ends with: no",
            id="exit",
        ),
        pytest.param(
            "echo \"unknown option '--x'\" >&2; exit 1",
            TerminalError,
            "agent_version",
            "install one that was",
            id="another-version",
        ),
        pytest.param("kill -9 $$", TransientError, "signal", "was ended by signal 9 before it was done.", id="killed"),
        pytest.param(
            "echo 'Hello!'; printf '\\377\\000\\n{\"type\": []}\\n{'",
            RejectedError,
            "malformed",
            "nothing that it printed says that it is done",
            id="garbage",
        ),
        pytest.param("true", RejectedError, "malformed", "nothing that it printed says that it is done.", id="silent"),
        pytest.param(
            "printf '[%.0s' $(seq 20000); echo", RejectedError, "malformed", "says that it is done", id="deeply-nested"
        ),
    ],
)
def test_an_agent_that_breaks(
    body: str,
    error: type[ExecutorError],
    kind: str,
    message: str,
    executor: CodingAgent,
    claude: FakeAgent,
) -> None:
    """Without its last word nobody knows what it spent, and its work isn't taken."""
    claude.does(CHANGES, body)
    found = failed(executor, error)
    assert found.kind == kind
    assert message in str(found)
    assert found.usage == Usage(requests=1, unsettled=1, cost_usd=None)


def test_a_stream_that_is_cut(executor: CodingAgent, claude: FakeAgent) -> None:
    """An agent that began and came to no end is worth another try."""
    claude.does(claude.prints(claude_start()), "exit 1")
    assert failed(executor, TransientError).kind == "connection"


def test_success_with_a_bad_exit_code(executor: CodingAgent, claude: FakeAgent) -> None:
    """All has to speak for it: an exit code that is none of success does not."""
    claude.does(CHANGES, claude.prints(claude_end()), "exit 7")
    assert failed(executor, RejectedError).kind == "exit"


def test_an_agent_that_falls_silent(repository: Repository, claude: FakeAgent, own: Path) -> None:
    """It is ended with its children, also with those that left its session and don't want to end."""
    crowd = Crowd()
    claude.does(claude.prints(claude_start()), f"setsid {crowd.waits} & {crowd.waits}")
    found = failed(executor_of(repository, idle_s=0.3), TransientError)
    assert found.kind == "idle"
    assert "was silent for longer than executor.idle_s" in str(found)
    assert crowd.alive == []
    assert leases(own) == []


def test_an_agent_that_leaves_children(executor: CodingAgent, claude: FakeAgent) -> None:
    """Work that is done is done; what was left running is not there any more."""
    crowd = Crowd()
    claude.does(CHANGES, f"setsid {crowd.waits} >/dev/null 2>&1 &", claude.prints(claude_end()))
    assert asked(executor).value == "Done."
    assert crowd.alive == []


@pytest.mark.slow
def test_an_agent_that_hangs(executor: CodingAgent, claude: FakeAgent, own: Path) -> None:
    """The time limit ends it, and nothing of it is left, nor of its workspace."""
    crowd = Crowd()
    claude.does(f"while :; do echo .; {crowd.waits.replace('1000', '0.05')}; done")
    with pytest.raises(TransientError, match="No answer within") as caught:
        asyncio.run(run_attempt(executor, BRIEF, ITEM, limits=Limits(timeout_s=0.7, reasks=0)))
    assert caught.value.kind == "timeout"
    assert caught.value.attempts[0].usage.unsettled == 1
    assert crowd.alive == []
    assert leases(own) == []


def test_much_output(executor: CodingAgent, claude: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginning and end are read, however much there is in between."""
    monkeypatch.setattr(session, "KEEP", 20_000)
    filler = claude.prints(*(["x" * 1000] * 300))
    claude.does(CHANGES, claude.prints(claude_start()), filler, filler, claude.prints(claude_end()))
    reply = asked(executor)
    assert (reply.value, reply.model) == ("Done.", "anthropic/claude-sonnet-4-5 in claude 2.1.197")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        pytest.param("echo > b.py", "scope", "'b.py'; it declares 'a.py'", id="another-file"),
        pytest.param("echo > b.py; git add b.py; git commit -qm x", "scope", "'b.py'", id="committed"),
        pytest.param("rm .gitignore; git rm -q --cached .gitignore", "scope", "'.gitignore'", id="deleted"),
        pytest.param(f"echo 'K = \"{KEY}\"' > a.py", "secret", "'a.py' holds what looks like a secret", id="the-key"),
        pytest.param("git init -q sub && echo > sub/x", "scope", "'sub/x'", id="a-repository-inside"),
        pytest.param("rm -rf ../work; ln -s / ../work", "workspace", "can't be collected", id="a-link-in-its-place"),
    ],
)
def test_what_it_may_not_leave(
    body: str, kind: str, message: str, executor: CodingAgent, claude: FakeAgent, repository: Repository
) -> None:
    """A change outside of `writes`, a key in a file: nothing of the work is kept, and it was paid for all the same."""
    claude.does(CHANGES, body, claude.prints(claude_end()))
    found = failed(executor, RejectedError)
    assert found.kind == kind
    assert message in str(found)
    assert KEY not in str(found)
    assert found.usage == REPORTED
    assert repository.git("status", "--porcelain") == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        pytest.param("git commit -qam x; git checkout -q -b mine; git tag v1", id="branches-and-tags"),
        pytest.param("rm -rf .git", id="no-git-any-more"),
        pytest.param(
            "mkdir -p .git/hooks; for h in pre-commit post-checkout reference-transaction post-index-change; do "
            "printf '#!/bin/sh\\ntouch \"$HOME/../../../hooked\"\\n' > .git/hooks/$h; chmod +x .git/hooks/$h; done; "
            "git config core.fsmonitor 'touch \"$HOME/../../../hooked\"'",
            id="hooks",
        ),
        pytest.param("git config core.bare true; git update-index --assume-unchanged a.py", id="settings"),
        pytest.param("echo > x.log", id="what-is-ignored"),
    ],
)
def test_what_it_does_to_its_repository(
    body: str, executor: CodingAgent, claude: FakeAgent, repository: Repository, own: Path
) -> None:
    """Its `.git` has no say in what it changed, no hook of it is run, and nothing of it gets into the user's."""
    refs, config = repository.git("for-each-ref"), (repository.path / ".git" / "config").read_text()
    claude.does(CHANGES, body, claude.prints(claude_end()))
    change = asked(executor).change
    assert change is not None
    assert [each.path for each in change.files] == ["a.py"]
    assert repository.git("for-each-ref") == refs
    assert (repository.path / ".git" / "config").read_text() == config
    assert not (own / "hooked").exists()


def test_work_without_a_change(executor: CodingAgent, claude: FakeAgent) -> None:
    """Where the brief writes something, to leave all as it was is sent back; where it doesn't, that is the work."""
    claude.does(claude.prints(claude_end()))
    assert asked(executor).problems == (UNCHANGED,)
    reply = asked(executor, BRIEF.model_copy(update={"writes": ()}))
    assert (reply.value, reply.problems) == ("Done.", ())
    assert reply.change is not None
    assert reply.change.files == ()


def test_work_without_a_word(executor: CodingAgent, claude: FakeAgent) -> None:
    """What was changed stands for the words; where nothing was, the answer is empty."""
    claude.does(CHANGES, claude.prints(claude_end(result="")))
    assert asked(executor).value == "(The agent said nothing; it changed a.py.)"
    claude.does(claude.prints(claude_end(result="")))
    assert asked(executor).value == ""


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.slow
def test_an_answer_by_a_schema(executor: CodingAgent, claude: FakeAgent) -> None:
    """It is what the agent gave as such; what it couldn't bring into that form is sent back, though it exits with 0."""
    brief = BRIEF.model_copy(update={"output": SCHEMA})
    claude.does(CHANGES, claude.prints(claude_end(structured_output={"n": 1})))
    assert asked(executor, brief).value == {"n": 1}
    end = claude_end(subtype="error_max_structured_output_retries", is_error=True, result=None, errors=["No JSON came"])
    claude.does(CHANGES, claude.prints(end))
    assert asked(executor, brief).value == "No JSON came"
    claude.does(CHANGES, claude.prints(claude_end(result='{"n": "one"}')))
    with pytest.raises(InvalidOutput, match="No valid answer in 2 asks"):
        asyncio.run(run_attempt(executor, brief, ITEM, limits=Limits(reasks=1)))


ACCEPTED = BRIEF.model_copy(update={"command": Command(run="grep -q 'A = 2' a.py || { echo 'A is not 2'; exit 1; }")})


def test_work_that_is_not_accepted_is_sent_back(
    executor: CodingAgent, claude: FakeAgent, own: Path, tmp_path: Path
) -> None:
    """The next ask begins from the change, in a fresh checkout at the same place, and is told what was wrong."""
    claude.does(
        f"cat a.py >> {tmp_path}/found",
        "[ $n = 0 ] && echo 'A = 1' > a.py || echo 'A = 2' > a.py",
        claude.prints(claude_end(result="Done, I hope.")),
    )
    answer = asyncio.run(run_attempt(executor, ACCEPTED, ITEM, limits=Limits(reasks=2)))
    assert answer.change is not None
    assert "+A = 2" in answer.change.patch
    assert "A = 1" not in answer.change.patch
    assert (tmp_path / "found").read_text() == "A = 0\nA = 1\n"
    (attempted,) = answer.attempts
    assert attempted.usage == REPORTED + REPORTED
    first, second = claude.calls
    assert first.cwd == second.cwd
    assert "grep -q 'A = 2'" in first.stdin
    assert "was not accepted" not in first.stdin
    assert "The acceptance command ended with exit code 1, and said at last:\nA is not 2" in second.stdin
    assert "Done, I hope." in second.stdin
    assert leases(own) == []


@pytest.mark.slow
def test_work_that_is_never_accepted(executor: CodingAgent, claude: FakeAgent) -> None:
    """After the re-asks it is a failure that says what the command said."""
    with pytest.raises(InvalidOutput, match="ended with exit code 1, and said at last:\nA is not 2") as caught:
        asyncio.run(run_attempt(executor, ACCEPTED, ITEM, limits=Limits(reasks=1)))
    assert caught.value.attempts[0].usage == REPORTED + REPORTED
    assert len(claude.calls) == 2


def test_what_an_acceptance_command_sees(
    claude: FakeAgent, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The item, what is passed on and its own variables; no key, in no variable and in no file of its HOME."""
    monkeypatch.setenv("BUILD_MODE", "fast")
    executor = executor_of(repository, pass_env=("ANTHROPIC_API_KEY", "BUILD_MODE"))
    seen = tmp_path / "seen"
    command = Command(
        run=f'env > {seen}; cat "$HOME/key" >> {seen}; cat >> {seen}', env={"MORE": "1"}, stdin=True, ok=(0, 1)
    )
    assert asked(executor, BRIEF.model_copy(update={"command": command})).problems == ()
    text = seen.read_text()
    assert {"ITEM_KEY=a", "BUILD_MODE=fast", "MORE=1", "The letter A."} <= {*text.splitlines()}
    assert KEY not in text
    assert "BUILD_MODE" in claude.calls[0].env


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "problem"),
    [
        pytest.param(Command(run="kill -9 $$"), "ended with signal 9, and said at last:\n(nothing)", id="signal"),
        pytest.param(
            Command(run=("sh", "-c", "echo out; echo err >&2; exit 4")),
            "exit code 4, and said at last:\nout\nerr",
            id="both-streams",
        ),
        pytest.param(Command(run=f"echo {KEY}; exit 1"), "said at last:\n***", id="a-secret"),
    ],
)
def test_how_an_acceptance_command_fails(command: Command, problem: str, executor: CodingAgent) -> None:
    """What is sent back says how it ended, and what it said at last, without secrets."""
    (found,) = asked(executor, BRIEF.model_copy(update={"command": command})).problems
    assert problem in found


@pytest.mark.slow
@pytest.mark.parametrize("passes_at", [3, 9])
def test_an_acceptance_command_that_asks_for_another_time(
    passes_at: int, executor: CodingAgent, claude: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone is tried again, some times; the agent's work stands, and is sent back if it never comes to a verdict."""
    monkeypatch.setattr(session, "PAUSES_S", (0.0, 0.0, 0.0))
    tries = tmp_path / "tries"
    run = f"echo >> {tries}; [ $(wc -l < {tries}) -ge {passes_at} ] || {{ echo no room >&2; exit 75; }}"
    reply = asked(executor, BRIEF.model_copy(update={"command": Command(run=run, retry=(75,))}))
    assert len(claude.calls) == 1
    assert len(tries.read_text().splitlines()) == min(passes_at, 4)
    assert reply.usage == REPORTED
    assert [*reply.problems] == (
        [] if passes_at == 3 else ["The acceptance command ended with exit code 75, and said at last:\nno room"]
    )


def test_what_acceptance_leaves_is_no_part_of_the_change(executor: CodingAgent) -> None:
    """What tests write into the workspace was not the agent's work."""
    command = Command(run="echo > b.py; echo 'A = 9' > a.py")
    reply = asked(executor, BRIEF.model_copy(update={"command": command}))
    assert reply.change is not None
    assert "A = 9" not in reply.change.patch
    assert [each.path for each in reply.change.files] == ["a.py"]


def test_a_workspace_that_is_kept(claude: FakeAgent, repository: Repository, own: Path) -> None:
    """Where that is asked for, work that isn't accepted can be looked at, and so can work that failed."""
    kept = {"workspace": Workspace(repo=str(repository.path), keep="failed")}
    executor = executor_of(repository, **kept)
    problems = asked(executor, ACCEPTED).problems
    assert problems[-1].startswith("The workspace was kept: ")
    claude.does(CHANGES, "exit 3")
    assert "The workspace was kept: " in str(failed(executor, RejectedError))
    assert len(leases(own)) == 2


def test_a_set_up_that_fails(claude: FakeAgent, repository: Repository) -> None:
    """The agent isn't started, and nothing is spent."""
    workspace = Workspace(repo=str(repository.path), setup=Command(run="exit 3"))
    found = failed(executor_of(repository, workspace=workspace), RejectedError)
    assert (found.kind, found.usage) == ("setup", Usage())
    assert claude.calls == []


@pytest.mark.slow
def test_an_agent_that_puts_something_else_in_place_of_its_files(
    executor: CodingAgent, claude: FakeAgent, programs: Path, repository: Repository
) -> None:
    """Folders, pipes and links in its HOME are passed over: they are neither read nor waited for."""
    claude.does(CHANGES, 'rm "$HOME/key"; mkdir "$HOME/key"; touch "$HOME/key/x"', claude.prints(claude_end()))
    assert asked(executor).value == "Done."
    codex = FakeAgent(programs, "codex")
    says = codex.prints(codex_said("By its output."), codex_end())
    made = executor_of(repository, agent="codex", model="gpt-5", pass_env=("OPENAI_API_KEY",))
    for body in (
        'mkfifo "$HOME/answer.txt"',
        'ln -s /etc/passwd "$HOME/answer.txt"',
        'mkdir "$HOME/answer.txt"',
        f'truncate -s {session.MAX_FILE_BYTES + 1} "$HOME/answer.txt"',
    ):
        codex.does(CHANGES, body, says)
        assert asked(made).value == "By its output."


def test_a_cost_that_nobody_reported(programs: Path, repository: Repository) -> None:
    """It is estimated by what the agent says of its tokens, cached ones for less; without a price it is unknown."""
    codex = FakeAgent(programs, "codex")
    codex.does(CHANGES, codex.prints(codex_said(), codex_end()))
    known, unknown = (
        asked(executor_of(repository, agent="codex", model=model, pass_env=("OPENAI_API_KEY",))).usage
        for model in ("gpt-5", "gpt-of-tomorrow")
    )
    assert (known.prompt_tokens, known.completion_tokens, known.unsettled) == (100, 20, 0)
    assert known.cost_usd == pytest.approx((60 * 1.25 + 40 * 0.125 + 20 * 10) / 1e6)
    assert known.estimated_usd == known.cost_usd
    assert (unknown.cost_usd, unknown.estimated_usd, unknown.unsettled) == (None, 0.0, 0)
    assert estimate_cost(Tokens(), "gpt-of-tomorrow") == 0.0


def test_a_program_that_is_gone(executor: CodingAgent, claude: FakeAgent) -> None:
    """Removed while the run goes on, it is missed by every item: nothing more is started."""
    claude.path.unlink()
    found = failed(executor, TerminalError)
    assert (found.kind, found.usage) == ("missing_program", Usage())
