"""A coding agent as an executor: what a job may say of it, what is found out beforehand, and its identity."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr, ValidationError

from prefect_dispatch.calls.budget import require_enforceable_limits
from prefect_dispatch.errors import JobError, RejectedError, TerminalError
from prefect_dispatch.executors.base import Executor, fingerprint
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.executors.llm.credentials_block import LLMCredentials
from prefect_dispatch.models.brief import Command
from prefect_dispatch.models.limits import Limits
from tests.executors.coding.fake_agents import (
    BRIEF,
    ITEM,
    KEY,
    VERSIONS,
    FakeAgent,
    asked,
    claude_end,
    codex_end,
    failed,
)

if TYPE_CHECKING:
    from tests.workspaces.repositories import Repository

HAD = {"agent": "claude", "model": "claude-sonnet-4-5", "pass_env": ["ANTHROPIC_API_KEY"]}
DESCRIBED = {"name": "mine", "argv": ["mine", "{model}"], "key": "MINE_KEY"}


def made(**more: Any) -> CodingAgent:  # noqa: ANN401 -- fields
    """Return an executor."""
    return CodingAgent.model_validate({**HAD, **more})


def in_repository(repository: Repository, **more: Any) -> CodingAgent:  # noqa: ANN401 -- fields
    """Return one that works in a repository."""
    return made(workspace={"repo": str(repository.path)}, **more)


def test_what_it_is() -> None:
    """It keeps the Protocols by which a run knows that it has to be looked up, warmed up, metered and ended at once."""
    executor = made()
    assert isinstance(executor, Executor)
    assert executor.cancel_immediately
    assert CodingAgent.model_validate(executor.model_dump(mode="json")) == executor


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"agent": "gemini"}, "'claude', 'codex', 'opencode' or 'mini'"),
        ({"agent": {"name": "mine", "argv": []}}, "agent.described.argv"),
        ({"agent": {**DESCRIBED, "argv": ["a\0b"]}}, "String should match pattern"),
        ({"agent": {**DESCRIBED, "argv": ["mine", "--key=sk-proj-0123456789"]}}, "'--key=***' looks like a secret"),
        ({"agent": {**DESCRIBED, "env": {"MY_TOKEN": "x"}}}, "'MY_TOKEN' looks like a secret; name the variable"),
        ({"agent": {**DESCRIBED, "env": {"PREFECT_DISPATCH_LEASE": "x"}}}, "is set separately for each run"),
        ({"agent": {**DESCRIBED, "text": "answer"}}, "agent.described.text"),
        ({"agent": {**DESCRIBED, "done": {"exit": []}}}, "agent.described.done.exit"),
        ({"agent": "mini"}, "mini takes a model as provider/model, and not 'claude-sonnet-4-5'"),
        ({"agent": "opencode"}, "opencode takes a model as provider/model"),
        (
            {"params": {"allowed_tool": ["Bash"]}},
            "params: for 'claude': unknown key 'allowed_tool'; did you mean 'allowed_tools'",
        ),
        ({"params": {"effort": "most"}}, "params.effort: "),
        ({"agent": DESCRIBED, "params": {"x": 1}}, "params: for 'mine': unknown key 'x'; known are ."),
        ({"agent": "codex", "params": {"config": {"mcp_servers.x.command": "sh"}}}, "can't be set here"),
        ({"agent": "codex", "params": {"config": {"sandbox_mode": "x"}}}, "'sandbox_mode' can't be set here"),
        ({"agent": "codex", "params": {"config": {"model_providers.x.name": "A"}}}, "can't be set here"),
        ({"agent": "codex", "params": {"config": {"a b": 1}}}, "'a b' is no dotted key"),
        ({"api_base": "http://me:pass@x"}, "must be a plain address"),
        ({"api_base": "http://x?key=1"}, "must be a plain address"),
        ({"max_usd": 0}, "max_usd"),
        ({"idle_s": 0}, "idle_s"),
        ({"credentials": "sk-proj-0123456789"}, "looks like a key itself"),
        ({"pass_env": ["A=B"]}, "pass_env"),
    ],
)
def test_what_is_no_coding_agent(fields: dict[str, object], message: str) -> None:
    """It is refused, with the place and the way out."""
    with pytest.raises(ValidationError) as caught:
        made(**fields)
    assert message in str(caught.value)


COUNTS = [
    ("kind", "coding", False),
    ("agent", "codex", True),
    ("model", "claude-opus-4-1", True),
    ("workspace", {"repo": "elsewhere"}, False),  # the commit does, by the situation
    ("access", "read", True),  # `write`, as before, adds nothing
    ("container", {"image": "agents:1"}, True),  # its image does
    ("answers", {"a/b": "c"}, True),  # that it may ask; what the answer is, counts for its item
    ("web_search", True, True),  # false, as before, adds nothing
    ("program", "/opt/claude", False),
    ("api_base", "http://127.0.0.1:1", True),
    ("credentials", "mine", False),  # a key; the address that comes with it does
    ("pass_env", ["OTHER_KEY", "ANTHROPIC_API_KEY"], False),
    ("max_usd", 1, False),
    ("max_turns", 5, False),
    ("idle_s", 5, False),
    ("params", {"effort": "low"}, True),
]


@pytest.mark.parametrize(("field", "value", "counts"), COUNTS)
def test_what_of_it_counts(field: str, value: object, counts: bool) -> None:  # noqa: FBT001 -- a column
    """A field is part of its fingerprint, or is known to change no answer: the key and the version aren't."""
    assert (made().fingerprint != made(**{field: value}).fingerprint) is counts
    assert [row[0] for row in COUNTS] == list(CodingAgent.model_fields)


def test_the_description_of_an_agent_counts() -> None:
    """Other arguments are another agent."""
    one, other = (made(agent={**DESCRIBED, "argv": ["mine", *more]}) for more in ((), ("-x",)))
    assert one.fingerprint != other.fingerprint


def test_the_commit_counts(repository: Repository, programs: Path) -> None:
    """Work depends on the commit it begins from and on the set-up; where the repository is doesn't matter."""
    FakeAgent(programs, "claude")

    def identity(**more: object) -> str:
        workspace = {"repo": str(repository.path), **more}
        return fingerprint(BRIEF, ITEM, made(workspace=workspace).resolve_paths(Path("/")))

    before = identity()
    assert identity(base=repository.head, keep="failed") == before
    assert fingerprint(BRIEF, ITEM, in_repository(repository)) == before
    assert identity(setup={"run": "true"}) != before
    repository.commit("Go on")
    assert identity() != before
    assert identity(base="HEAD~1") == before


def test_whose_pace_it_shares() -> None:
    """An agent with a model at an address."""
    assert made().name == "claude with anthropic/claude-sonnet-4-5"
    assert made(agent="mini", model="openai/x", api_base="http://x/").name == "mini with openai/x at http://x"
    assert made(agent=DESCRIBED, model="m").name == "mine with m"


def test_what_bounds_a_run_of_it() -> None:
    """A budget in dollars needs `max_usd`; tokens can't be bounded; the message says what to set."""
    require_enforceable_limits(Limits(budget_usd=5), made(max_usd=1), [BRIEF])
    require_enforceable_limits(Limits(budget_requests=5), made(), [BRIEF])
    with pytest.raises(JobError, match=r"limits.budget_usd can't be held: nothing bounds .*; set executor.max_usd, or"):
        require_enforceable_limits(Limits(budget_usd=5), made(), [BRIEF])
    for key in ("budget_tokens", "tokens_per_minute"):
        with pytest.raises(JobError, match=f"limits.{key} can't be held: .* how many tokens a run takes; set"):
            require_enforceable_limits(Limits.model_validate({key: 5}), made(max_usd=1), [BRIEF])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command": Command(run="pytest", report=("*.xml",))}, "command.report is for a Shell"),
        ({"split": {"by": "lines"}}, "'split' is for language models"),
        ({"command": Command(run="true", env={"ITEM_KEY": "x"})}, "command.env: 'ITEM_KEY' is set for each item"),
        ({"command": Command(run="true", env={"MY_KEY": "x"})}, "command.env: 'MY_KEY' looks like a secret"),
    ],
)
def test_a_brief_that_it_can_t_answer(change: dict[str, object], message: str) -> None:
    """It is named, before anything is spent."""
    with pytest.raises(JobError, match=f"Brief 'a': {message}"):
        made().require_supported([BRIEF, type(BRIEF).model_validate({**BRIEF.model_dump(), **change})])
    made().require_supported([BRIEF, BRIEF.model_copy(update={"command": Command(run="true", env={"A": "1"})})])


@pytest.mark.parametrize("name", sorted(VERSIONS))
def test_a_program_that_is_found(name: str, programs: Path, repository: Repository) -> None:
    """It is looked up in PATH, by its name or by the one that the job gives, or where the job says."""
    FakeAgent(programs, name)
    here = {"agent": name, "model": "openai/gpt-5", "pass_env": ["OPENAI_API_KEY"]}
    placed = in_repository(repository, **here).resolve_paths(repository.path)
    assert placed.executable == str(programs / name)
    (programs / "other").symlink_to(programs / name)
    assert in_repository(repository, **here, program="other").resolve_paths(repository.path).program == str(
        programs / "other"
    )
    assert in_repository(repository, **here, program=f"./{name}").resolve_paths(programs).program == str(
        programs / name
    )


@pytest.mark.parametrize(
    ("version", "message"),
    [
        pytest.param("2.1.5 (Claude Code)", "claude 2.1.5 is older than what is understood; install", id="old"),
        pytest.param("1.999.999", "older than what is understood", id="older"),
        pytest.param("Hello!", "'claude' doesn't print its version; install a version from 2.1.197 to", id="none"),
    ],
)
def test_a_version_that_won_t_do(version: str, message: str, programs: Path, repository: Repository) -> None:
    """It is told with the way out, before anything is spent."""
    FakeAgent(programs, "claude", version=version)
    with pytest.raises(JobError, match="npm install") as caught:
        in_repository(repository).resolve_paths(repository.path)
    assert message in str(caught.value)


def test_a_version_that_is_newer(programs: Path, repository: Repository, caplog: pytest.LogCaptureFixture) -> None:
    """It is used, and the log says that nobody has tried it."""
    FakeAgent(programs, "claude", version="2.10.0")
    with caplog.at_level(logging.WARNING):
        in_repository(repository).resolve_paths(repository.path)
    assert "claude 2.10.0 is newer than what was tested" in caplog.text


def test_a_program_that_was_replaced(programs: Path, repository: Repository) -> None:
    """Its version is asked for again."""
    FakeAgent(programs, "claude")
    in_repository(repository).resolve_paths(repository.path)
    (programs / "claude").write_text("#!/bin/sh\necho 1.0.0\n")
    with pytest.raises(JobError, match=r"claude 1.0.0 is older"):
        in_repository(repository).resolve_paths(repository.path)


def test_a_program_that_isn_t_there(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how to get it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for program in (None, "./nothing"):
        with pytest.raises(JobError, match="isn't installed here or can't be run: npm install -g @anthropic-ai"):
            in_repository(repository, program=program).resolve_paths(repository.path)


def test_a_program_that_doesn_t_run(programs: Path, repository: Repository) -> None:
    """The message says why."""
    (programs / "claude").write_bytes(b"\x7fELF no program")
    (programs / "claude").chmod(0o755)
    with pytest.raises(JobError, match=r"doesn't print its version \(Exec format error\); reinstall it"):
        in_repository(repository).resolve_paths(repository.path)


def test_a_program_that_hangs(programs: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """It isn't waited for without end."""
    monkeypatch.setattr("prefect_dispatch.executors.coding.agent_program._SECONDS", 0.1)
    (programs / "claude").write_text("#!/bin/sh\nexec sleep 1000\n")
    (programs / "claude").chmod(0o755)
    with pytest.raises(JobError, match=r"it didn't answer within 0.1 s"):
        in_repository(repository).resolve_paths(repository.path)


def test_a_described_program_tells_no_version(programs: Path, repository: Repository) -> None:
    """Nobody asks it: it might take that for work."""
    FakeAgent(programs, "mine")
    placed = in_repository(repository, agent={**DESCRIBED, "key": "OPENAI_API_KEY"}, pass_env=["OPENAI_API_KEY"])
    assert placed.resolve_paths(repository.path).program == str(programs / "mine")


def test_an_agent_without_a_key(programs: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is told beforehand; one that says nothing of a key needs none, nor does a server of one's own."""
    FakeAgent(programs, "claude")
    FakeAgent(programs, "mine")
    with pytest.raises(JobError, match=r"no key for 'anthropic/claude-sonnet-4-5': .* \(ANTHROPIC_API_KEY, say\)"):
        in_repository(repository, pass_env=[]).resolve_paths(repository.path)
    with pytest.raises(JobError, match=r"\(MINE_KEY, say\)"):
        in_repository(repository, agent=DESCRIBED, pass_env=[]).resolve_paths(repository.path)
    in_repository(repository, pass_env=[], api_base="http://127.0.0.1:1").resolve_paths(repository.path)
    in_repository(repository, agent={**DESCRIBED, "key": None}, pass_env=[]).resolve_paths(repository.path)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(JobError, match="variable 'ANTHROPIC_API_KEY' is not set here"):
        in_repository(repository).resolve_paths(repository.path)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_key_in_a_block(programs: Path, repository: Repository) -> None:
    """The agent gets it and its address, nothing else sees it, and a new one under the old name asks nothing again."""
    claude = FakeAgent(programs, "claude")
    keys = ["a-key-of-our-own-1", "a-key-of-our-own-2"]
    prints: set[str] = set()
    for key in keys:
        LLMCredentials(api_key=SecretStr(key), api_base="http://127.0.0.1:1/", model="anthropic/x").save(
            "coding", overwrite=True
        )
        executor = in_repository(repository, credentials="coding", pass_env=[]).resolve_paths(repository.path)
        prints.add(executor.fingerprint)
        claude.does("echo 1 > a.py", f'cp "$HOME/key" "{programs}/seen"', claude.prints(claude_end()))
        assert asked(executor).value == "Done."
        assert (programs / "seen").read_text() == key
        assert claude.calls[-1].env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:1"
        assert key not in str(claude.calls[-1])
        assert key not in repr(executor)
    assert len(prints) == 1
    claude.does(claude.prints(claude_end(is_error=True, api_error_status=401, result=f"Bad key {keys[1]}")))
    executor = in_repository(repository, credentials="coding", pass_env=[]).resolve_paths(repository.path)
    found = failed(executor, TerminalError)
    assert "The key is that of the LLMCredentials block 'coding': change it there" in str(found)
    assert keys[1] not in str(found)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_block_that_won_t_do(programs: Path, repository: Repository) -> None:
    """Without a key, of another provider, or not there: it is told before anything is spent; or later, if it went."""
    FakeAgent(programs, "claude")
    LLMCredentials(model="openai/gpt-5", api_key=SecretStr(KEY)).save("of-another", overwrite=True)
    LLMCredentials(model="anthropic/x").save("without-a-key", overwrite=True)
    for block, message in (
        ("of-another", "is for models of 'openai'"),
        ("without-a-key", "has no key, and an agent needs one"),
        ("nowhere", "has no LLMCredentials block 'nowhere'"),
    ):
        with pytest.raises(JobError, match=message):
            in_repository(repository, credentials=block).resolve_paths(repository.path)
    placed = in_repository(repository).resolve_paths(repository.path)
    found = failed(placed.model_copy(update={"credentials": "gone"}), TerminalError)
    assert (found.kind, found.usage and found.usage.requests) == ("credentials", 0)


@pytest.mark.parametrize("name", ["claude", "codex"])
def test_the_key_is_nowhere(
    name: str, programs: Path, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that prints its key wherever it can: in no log, no reply and no error is any of it."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "state"))
    agent = FakeAgent(programs, name)
    key = {"claude": "ANTHROPIC_API_KEY", "codex": "OPENAI_API_KEY"}[name]
    end = claude_end(result=f"It is {KEY}.") if name == "claude" else codex_end()
    agent.does(f"echo {KEY}; echo {KEY} >&2; echo {KEY} > $HOME/answer.txt; echo 1 > a.py", agent.prints(end))
    executor = in_repository(repository, agent=name, model="gpt-5", pass_env=[key]).resolve_paths(repository.path)
    (repository.path / "key.txt").write_text(KEY)
    command = Command(run=f"cat {repository.path}/key.txt; exit 1")
    reply = asked(executor, BRIEF.model_copy(update={"command": command}))
    assert "***" in str(reply.value)
    assert KEY not in reply.model_dump_json()
    agent.does(f"echo {KEY} >&2; exit 3")
    assert KEY not in repr(failed(executor, RejectedError))
    logs = [*(tmp_path / "state" / "logs").rglob("*.log")]
    assert len(logs) == 3
    assert all(KEY not in log.read_text() for log in logs)
    assert KEY not in agent.calls[0].stdin
    assert key not in {line.partition("=")[0] for line in agent.calls[0].env}


def test_warming_up(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs that died have left is cleared away before the first ask."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "state"))
    asyncio.run(in_repository(repository).warm_up())
    assert (tmp_path / "state").is_dir()
