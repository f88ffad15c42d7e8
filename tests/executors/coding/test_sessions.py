"""A re-ask continues the session of the agent: what it sends, what it counts, and when it begins a new one."""

from __future__ import annotations

import asyncio
import json
import shlex
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.errors import TransientError
from prefect_dispatch.executors.base import Ask
from prefect_dispatch.executors.coding.adapter import AgentReport, Tokens
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.executors.coding.session import Conversation
from prefect_dispatch.models.brief import Brief, Command
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Answer, Rejection
from prefect_dispatch.workspaces.workspace import Workspace
from tests.executors.coding.agent_server import Request, Turn
from tests.executors.coding.fake_agents import BRIEF, ITEM, FakeAgent, claude_end, codex_end, codex_said
from tests.executors.coding.real_agents import real_agent
from tests.workspaces.inside import leases

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workspaces.repositories import Repository

COUNT = Brief(
    name="count",
    instructions="How many letters are there?",
    output={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
)
SESSION = "01a235f7-4f9f-7d73-a3e7-36c6de21ce6a"
WRONG, RIGHT = json.dumps({"n": "one"}), json.dumps({"n": 1})


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own."""
    folder = tmp_path / "state"
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(folder))
    return folder


def create(repository: Repository, agent: str = "codex", **more: Any) -> CodingAgent:  # noqa: ANN401 -- fields
    """Return an executor with its paths resolved."""
    keys = ["ANTHROPIC_API_KEY" if agent == "claude" else "OPENAI_API_KEY"]
    fields = {"agent": agent, "model": "openai/m" if agent == "opencode" else "m", "pass_env": keys}
    workspace = Workspace(repo=str(repository.path))
    return CodingAgent.model_validate({**fields, "workspace": workspace, **more}).resolve_paths(repository.path)


def attempt(executor: CodingAgent, brief: Brief = COUNT) -> Answer:
    """Return the answer of one attempt."""
    return asyncio.run(run_attempt(executor, brief, ITEM, limits=Limits(retries=0)))


def events(agent: str, text: str, read: int, written: int) -> list[object]:
    """Return what an agent prints of a run in its session."""
    if agent == "codex":
        usage = {"input_tokens": read, "cached_input_tokens": 0, "output_tokens": written}
        return [{"type": "thread.started", "thread_id": SESSION}, codex_said(text), codex_end(usage=usage)]
    if agent == "claude":
        usage = {"inputTokens": read, "outputTokens": written}
        return [claude_end(result=text, session_id=SESSION, modelUsage={"m": usage}, total_cost_usd=read / 1000)]
    step = {"reason": "stop", "cost": 0.1, "tokens": {"input": read, "output": written}}
    return [
        {"type": "text", "sessionID": SESSION, "part": {"text": text}},
        {"type": "step_finish", "sessionID": SESSION, "part": step},
    ]


RESUMED = {"claude": f"--resume {SESSION}", "codex": f"resume {SESSION} -", "opencode": f"--session {SESSION}"}


@pytest.mark.parametrize("agent", list(RESUMED))
@pytest.mark.parametrize("in_repository", [True, False])
@pytest.mark.slow
def test_a_reask_continues_the_session(
    agent: str,
    in_repository: bool,  # noqa: FBT001 -- a case
    repository: Repository,
    programs: Path,
    own: Path,
) -> None:
    """In the same place and HOME, with the problems alone; what codex reports of the whole session counts once."""
    fake = FakeAgent(programs, agent)
    # codex reports 100 and 10 tokens, then 250 and 15 of the whole session; the others 150 and 5 of the second run.
    later = (250, 15) if agent == "codex" else (150, 5)
    first, second = (
        fake.prints(*events(agent, text, *tokens)) for text, tokens in ((WRONG, (100, 10)), (RIGHT, later))
    )
    fake.does(f'if [ $n = 0 ]; then echo kept > "$HOME/session"; {first}; else cat "$HOME/session" >&2 && {second}; fi')
    answer = attempt(create(repository, agent, **({} if in_repository else {"workspace": None})))
    assert answer.value == {"n": 1}
    one, two = fake.calls
    assert RESUMED[agent] not in " ".join(one.argv)
    assert RESUMED[agent] in " ".join(two.argv)
    assert (one.cwd, one.env["HOME"]) == (two.cwd, two.env["HOME"])
    assert "How many letters" in one.stdin
    assert "How many letters" not in two.stdin
    assert "was not accepted" in two.stdin
    assert "n: " in two.stdin
    usage = answer.attempts[0].usage
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens, usage.unsettled) == (2, 250, 15, 0)
    assert leases(own) == []


def test_a_reask_begins_from_the_change(repository: Repository, programs: Path) -> None:
    """The checkout is a new one with the change that was handed over; without what the command wrote."""
    fake = FakeAgent(programs, "codex")
    done = fake.prints(*events("codex", "Done.", 1, 1))
    fake.does(
        f"if [ $n = 0 ]; then echo 'A = 1' > a.py; else test ! -e made || exit 3; echo 'A = 2' > a.py; fi; {done}"
    )
    brief = BRIEF.model_copy(update={"command": Command(run="touch made; grep -q 2 a.py")})
    answer = attempt(create(repository), brief)
    assert answer.change is not None
    assert [each.path for each in answer.change.files] == ["a.py"]
    assert "Your changes are in the working directory" in fake.calls[1].stdin


@pytest.mark.parametrize("agent", ["claude", "codex"])
def test_a_session_that_is_gone_is_begun_again(agent: str, repository: Repository, programs: Path) -> None:
    """With the whole prompt; the answer says so, and the run that sent nothing counts nothing."""
    fake = FakeAgent(programs, agent)
    wrong, right = (fake.prints(*events(agent, text, 100, 10)) for text in (WRONG, RIGHT))
    gone = {
        "claude": fake.prints(
            claude_end(
                subtype="error_during_execution",
                is_error=True,
                errors=[f"No conversation found with session ID: {SESSION}"],
                session_id="another",
                modelUsage={},
                total_cost_usd=0,
            )
        ),
        "codex": f"echo no rollout found for thread id {shlex.quote(SESSION)} >&2",
    }[agent]
    fake.does(f"case $n in 0) {wrong};; 1) {gone}; exit 1;; *) {right};; esac")
    answer = attempt(create(repository, agent))
    assert (answer.value, len(fake.calls)) == ({"n": 1}, 3)
    assert RESUMED[agent] not in " ".join(fake.calls[2].argv)
    assert "How many letters" in fake.calls[2].stdin
    [attempted] = answer.attempts
    assert attempted.notes == (f"The session of {agent} could not be continued; it began a new one.",)
    assert (attempted.usage.requests, attempted.usage.prompt_tokens, attempted.usage.unsettled) == (2, 200, 0)


def test_a_session_that_breaks_off_is_no_lost_one(repository: Repository, programs: Path) -> None:
    """Its provider may be in trouble: the attempt fails as it does without a session, and its cost is unknown."""
    fake = FakeAgent(programs, "codex")
    broken = [{"type": "thread.started", "thread_id": SESSION}, {"type": "error", "message": "stream disconnected"}]
    wrong, breaks = fake.prints(*events("codex", WRONG, 100, 10)), fake.prints(*broken)
    fake.does(f"if [ $n = 0 ]; then {wrong}; else {breaks}; exit 1; fi")
    with pytest.raises(TransientError) as caught:
        attempt(create(repository))
    assert len(fake.calls) == 2
    [attempted] = caught.value.attempts
    assert (attempted.usage.prompt_tokens, attempted.usage.unsettled) == (100, 1)


def test_a_session_is_continued_for_its_own_item_alone(repository: Repository, programs: Path) -> None:
    """Neither a first ask, nor another item, nor another brief continues it; nor does a checkout that is kept."""
    fake = FakeAgent(programs, "codex")
    fake.does(fake.prints(*events("codex", RIGHT, 1, 1)))
    executor, rejections = create(repository), (Rejection(text=WRONG, problems=("It is wrong.",)),)

    async def ask_several(executor: CodingAgent) -> None:
        async with executor.conversation():
            await executor.answer(Ask(brief=COUNT, item=ITEM))
            await executor.answer(Ask(brief=COUNT, item=Item(key="b", value="The letter B."), rejections=rejections))
            await executor.answer(Ask(brief=COUNT, item=ITEM, rejections=rejections))
            await executor.answer(Ask(brief=COUNT, item=ITEM))

    asyncio.run(ask_several(executor))
    assert not any("resume" in call.argv for call in fake.calls)
    kept = create(repository, workspace={"repo": str(repository.path), "keep": "failed"})
    wrong, right = (fake.prints(*events("codex", text, 1, 1)) for text in (WRONG, RIGHT))
    before = len(fake.calls)
    fake.does(f"if [ $n = {before} ]; then {wrong}; else {right}; fi")
    attempt(kept)
    one, two = fake.calls[before:]
    assert one.cwd != two.cwd
    assert "resume" not in two.argv


def test_tokens_of_a_session_count_once() -> None:
    """Whatever is reported of a session, the runs add up to it; a run of unknown tokens is in the next report."""
    conversation, ask = Conversation(ExitStack()), Ask(brief=COUNT, item=ITEM)

    def record(tokens: Tokens | None, *, resumed: bool = True) -> Tokens | None:
        report = AgentReport(tokens=tokens, session=SESSION)
        return conversation.record(ask, report, resumed=resumed, reports_session_total=True).tokens

    assert record(Tokens(10, 2, 1), resumed=False) == Tokens(10, 2, 1)
    assert record(None) is None
    assert record(Tokens(25, 5, 4)) == Tokens(15, 3, 3)
    assert record(Tokens(20, 5, 4)) == Tokens(0, 0, 0)
    assert record(Tokens(7, 1, 0), resumed=False) == Tokens(7, 1, 0)


FILES = 6
"""How many files the agent reads before it answers."""


def listing(request: Request) -> Turn:
    """Read each file in turn, answer with a text at first, and with a list when that is sent back."""
    said = json.dumps(request.messages)
    tokens = (len(json.dumps(request.body)) // 4, 20)
    seen = sum(f"END OF {n}" in said for n in range(FILES))
    if seen < FILES:
        return Turn(run=(f"cat part{seen}.txt",), tokens=tokens)
    return Turn(text="[1]" if "not accepted" in said else '["one"]', tokens=tokens)


@pytest.mark.agents
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["claude", "codex", "opencode"])
def test_real_agents_continue_their_sessions(name: str, repository: Repository) -> None:
    """A re-ask takes one request in place of seven; the tokens that are counted are those that the server counted."""
    for n in range(FILES):
        repository.put(f"part{n}.txt", f"{'word ' * 1600}END OF {n}\n")
    repository.commit("Parts")
    params = {"allowed_tools": ["Bash(cat *)"]} if name == "claude" else None
    brief = COUNT.model_copy(update={"output": {"type": "array", "items": {"type": "integer"}}})
    counted: dict[str, tuple[int, int]] = {}
    for keep in ("never", "failed"):
        workspace = {"repo": str(repository.path), "keep": keep}
        more = {"workspace": workspace, **({"params": params} if params else {})}
        with real_agent(name, repository, listing, **more) as (executor, server):
            answer = attempt(executor, brief)
            sent = sum(len(json.dumps(each.body)) // 4 for each in server.requests)
        assert answer.value == [1]
        assert answer.attempts[0].reasks == 1
        assert answer.attempts[0].usage.prompt_tokens == sent
        counted[keep] = (len(server.requests), sent)
    print(name, counted)  # noqa: T201 -- the figures of docs/agent-results.md
    assert counted["never"][0] == FILES + 2
    assert counted["failed"][0] == 2 * (FILES + 1)
    assert counted["never"][1] < counted["failed"][1]
