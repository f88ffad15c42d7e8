"""What agents are doing, from their logs: recorded ones of the real agents, and whatever else a log may hold."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.executors import live_view
from prefect_dispatch.executors.coding.adapter import MAX_STEP, Tokens
from prefect_dispatch.executors.coding.coding_agent import BUILT_IN_ADAPTERS, adapter_of
from prefect_dispatch.executors.coding.custom import Generic
from prefect_dispatch.executors.live_view import MAX_LINE, LiveView, LogReader
from prefect_dispatch.processes.program_logs import LogDescription, ProgramLog, WorkOwner, collect_logs, new_log
from prefect_dispatch.security.redaction import register_secrets

if TYPE_CHECKING:
    from collections.abc import Generator

RECORDED = Path(__file__).parent / "coding" / "recorded"
FILES = {"claude": "claude.jsonl", "codex": "codex.jsonl", "opencode": "opencode.jsonl", "mini": "mini.txt"}
"""Logs of the real agents, of the versions in `.ci/agents`, for the same work: two lines, a file, a command, an end."""
METADATA = (
    "Model metadata for `gpt-5` not found. Defaulting to fallback metadata; this can degrade performance and cause "
    "issues."
)
SECRET = 'correct"horse"battery'  # noqa: S105 -- nobody's


def reader(path: Path, program: str, model: str = "") -> LogReader:
    """Return a reader of a log."""
    about = LogDescription(program=program, model=model, brief="b", item="i", started=datetime.now(timezone.utc))
    return LogReader(ProgramLog(path, about))


def steps(path: Path, program: str, *lines: object) -> list[str]:
    """Return the steps of a log with some lines; those that are no texts are written as JSON."""
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return [str(step) for step in reader(path, program).new_steps()]


@pytest.mark.parametrize(
    ("program", "model", "expected", "tokens", "cost"),
    [
        pytest.param(
            "claude",
            "",
            ["I write.\nSecond line.", "edit new/b.py", "Now a command.", "$ echo x5z; ls", "Done."],
            330,
            0.00135,
            id="claude",
        ),
        pytest.param(
            "codex",
            "openai/gpt-5",
            [
                METADATA,
                "I write.\nSecond line.",
                "$ /bin/bash -c \"mkdir -p new && printf %s 'B = 1\n' > new/b.py\"",
                "Now a command.",
                "$ /bin/bash -c 'echo x5z; ls'",
                "Done.",
            ],
            330,
            0.000675,
            id="codex",
        ),
        pytest.param(
            "opencode",
            "",
            [
                "I write.\nSecond line.",
                "$ mkdir -p new && printf %s 'B = 1\n' > new/b.py",
                "Now a command.",
                "$ echo x5z; ls",
                "Done.",
            ],
            330,
            0.000135,
            id="opencode",
        ),
        pytest.param(
            "mini",
            "",
            [
                "I write.",
                "Second line.",
                "$ mkdir -p new && printf %s 'B = 1\n' > new/b.py",
                "Now a command.",
                "$ echo x5z; ls",
                "Done.",
                "$ echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT",
            ],
            0,
            None,
            id="mini",
        ),
    ],
)
def test_the_steps_of_a_real_agent(
    program: str, model: str, expected: list[str], tokens: int, cost: float | None
) -> None:
    """What it said, ran and wrote, in order; tokens and cost as it reports them, else by the price table."""
    log = reader(RECORDED / FILES[program], program, model)
    assert [str(step) for step in log.new_steps()] == expected
    activity = log.describe()
    assert activity.tokens == tokens
    assert activity.cost_usd == (cost if cost is None else pytest.approx(cost))
    assert activity.is_estimated is (program == "codex")
    assert activity.step == " ".join(expected[-1].split())


@pytest.mark.parametrize("program", FILES)
def test_a_log_is_read_as_it_grows(program: str, tmp_path: Path) -> None:
    """However it is cut, each step comes once, and what is known in the end is the same."""
    whole = (RECORDED / FILES[program]).read_bytes()
    path = tmp_path / "1.log"
    path.touch()
    log, found = reader(path, program), list[str]()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[: cut + 97])
        found += map(str, log.new_steps())
    other = reader(RECORDED / FILES[program], program)
    assert found == [str(step) for step in other.new_steps()]
    assert log.tokens == other.tokens


def test_tokens_of_a_call_count_once(tmp_path: Path) -> None:
    """Claude Code repeats the usage of a call with each of its blocks; until the end, the calls are added up."""
    usage = {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1}
    path = tmp_path / "1.log"

    def said(call: str) -> str:
        message = {"id": call, "content": [{"type": "text", "text": "x"}], "usage": usage}
        return json.dumps({"type": "assistant", "message": message}) + "\n"

    path.write_text(said("1") + said("1") + said("2"))
    log = reader(path, "claude", "no/model-of-this-name")
    assert len([*log.new_steps()]) == 3
    assert log.tokens == Tokens(prompt=30, completion=2, cached=10)
    assert (log.describe().cost_usd, log.describe().is_estimated) == (None, False)


CLAUDE_BLOCKS = [
    {"type": "thinking", "thinking": "Hm."},
    {"type": "tool_use", "name": "Grep", "input": {"pattern": "x"}},
    {"type": "tool_use", "name": "Edit", "input": {"old_string": "no path"}},
]


def test_other_events_of_claude(tmp_path: Path) -> None:
    """A thought is a message; a tool that neither edits nor runs is named; an error at the end is shown."""
    events = [
        {"type": "assistant", "message": {"id": str(n), "content": [each]}} for n, each in enumerate(CLAUDE_BLOCKS)
    ]
    end = {"type": "result", "is_error": True, "result": "API Error: 500"}
    empty = {"type": "assistant", "message": {"content": [{"type": "text"}]}}
    assert steps(tmp_path / "1.log", "claude", *events, empty, {"type": "user"}, end, "a warning", "") == [
        "Hm.",
        "Grep",
        "Edit",
        "API Error: 500",
        "a warning",
    ]


def test_other_events_of_codex(tmp_path: Path) -> None:
    """Changed files, tools and failures; a command is shown when it begins, anything else when it is done."""
    change = {"type": "file_change", "changes": [{"path": "a.py", "kind": "add"}, {"path": "b.py", "kind": "update"}]}
    assert steps(
        tmp_path / "1.log",
        "codex",
        {"type": "item.started", "item": change},
        {"type": "item.completed", "item": change},
        {"type": "item.completed", "item": {"type": "mcp_tool_call", "server": "s", "tool": "look"}},
        {"type": "item.completed", "item": {"type": "web_search", "query": "a library"}},
        {"type": "item.completed", "item": {"type": "todo_list", "items": []}},
        {"type": "item.completed", "item": {"type": "command_execution", "command": "x"}},
        {"type": "error", "message": "Reconnecting"},
        {"type": "turn.failed", "error": {"message": "It failed."}},
        "a warning",
    ) == [
        "edit a.py, b.py",
        "mcp_tool_call look",
        "web_search a library",
        "Reconnecting",
        "It failed.",
        "a warning",
    ]


def test_other_events_of_opencode(tmp_path: Path) -> None:
    """Edited files, other tools and errors, by their message or their name."""
    assert steps(
        tmp_path / "1.log",
        "opencode",
        {"type": "tool_use", "part": {"tool": "edit", "state": {"input": {"filePath": "a.py"}}}},
        {"type": "tool_use", "part": {"tool": "webfetch", "state": {"input": {"url": "https://example.org"}}}},
        {"type": "step_finish", "part": {"tokens": {"input": 1}, "cost": 0}},
        {"type": "error", "error": {"name": "APIError", "data": {"message": "busy"}}},
        {"type": "error", "error": {"name": "Unknown"}},
        {"type": "other"},
        "a warning",
    ) == ["edit a.py", "webfetch https://example.org", "busy", "Unknown", "a warning"]


def test_the_cost_of_mini(tmp_path: Path) -> None:
    """It prints what all of its calls have cost by then; a very long command is cut."""
    path = tmp_path / "1.log"
    command = "\n".join(map(str, range(200)))
    path.write_text(f"mini-swe-agent (step 2, $0.25):\n\n```\n{command}\n```\nUser:\nnot a step\n")
    log = reader(path, "mini")
    assert [str(step) for step in log.new_steps()] == ["$ " + "\n".join(map(str, range(100)))]
    assert log.describe().cost_usd == 0.25


def test_any_other_program_is_shown_by_its_lines(tmp_path: Path) -> None:
    """A command, or an agent that is described by data, which is named as it likes."""
    assert steps(tmp_path / "1.log", "command", "one", "", "  two\x1b[31m") == ["one", "two [31m"]
    parse = adapter_of(Generic(name="any", argv=("any", "-m", "{model}"))).create_step_parser()
    assert str(parse("Working …")) == "Working …"


def test_what_is_shown_is_bounded_and_harmless(tmp_path: Path) -> None:
    """No control character, no secret that the log has with escapes, and no more than a reader wants."""
    register_secrets([SECRET])
    hostile = f"\x1b]0;title\x07{SECRET}\n\u202eend\r{'x' * 10 * MAX_STEP}"
    event = {"type": "assistant", "message": {"id": "1", "content": [{"type": "text", "text": hostile}]}}
    path = tmp_path / "1.log"
    path.write_text(json.dumps(event) + "\n")
    log = reader(path, "claude")
    (step,) = log.new_steps()
    assert step.text.startswith("]0;title ***\n end\nx")
    assert len(step.text) == MAX_STEP
    line = log.describe().step
    assert line.startswith("]0;title *** end x")
    assert len(line) == MAX_LINE
    assert line.isprintable()


def test_a_line_that_is_too_long_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those after it are read."""
    monkeypatch.setattr(live_view, "MAX_EVENT_BYTES", 50)
    monkeypatch.setattr(live_view, "CHUNK", 20)
    assert steps(tmp_path / "1.log", "command", "first", "x" * 200, "last") == ["first", "last"]


def test_a_line_without_an_end_is_read_at_the_end(tmp_path: Path) -> None:
    """While the program runs, more of it may follow."""
    path = tmp_path / "1.log"
    path.write_text("one\ntw")
    log = reader(path, "command")
    assert [str(step) for step in log.new_steps()] == ["one"]
    path.write_text("one\ntwo")
    assert [str(step) for step in log.new_steps()] == []
    assert [str(step) for step in log.new_steps(is_last=True)] == ["two"]
    assert [*log.new_steps(is_last=True)] == []


def test_a_program_that_is_started_again_is_read_anew(tmp_path: Path) -> None:
    """Its log is shorter than what was read; a log that is removed has no more steps."""
    path = tmp_path / "1.log"
    path.write_text("a long first line\n")
    log = reader(path, "command")
    assert [str(step) for step in log.new_steps()] == ["a long first line"]
    path.write_text("again\n")
    assert [str(step) for step in log.new_steps()] == ["again"]
    path.unlink()
    assert [*log.new_steps()] == []


@given(
    program=st.sampled_from([*BUILT_IN_ADAPTERS, "any"]),
    line=st.text()
    | st.recursive(
        st.none() | st.text() | st.integers() | st.booleans(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "item", "part", "message"]), inner),
        max_leaves=8,
    ).map(json.dumps),
)
def test_whatever_a_log_holds_nothing_is_raised(program: str, line: str) -> None:
    """It is output of a program: hostile data."""
    adapter = BUILT_IN_ADAPTERS.get(program) or adapter_of(Generic(name="any", argv=("any", "-m", "{model}")))
    parse = adapter.create_step_parser()
    for each in ("mini-swe-agent (step 1, $0.01):", line):
        step = parse(each)
        assert step is None or all(part.isprintable() for part in step.text.split("\n"))


@contextmanager
def running(path: Path) -> Generator[None, None, None]:
    """Hold the lock of a log, as the supervisor of its program does."""
    handle = os.open(path, os.O_WRONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def log_of(run: str, item: str, text: str = "") -> Path:
    """Return a new log of a program that works for a run."""
    with collect_logs(WorkOwner("b", item, run)):
        path = new_log("command")
    path.write_text(text)
    return path


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.mark.usefixtures("own")
def test_a_view_shows_the_programs_of_its_run() -> None:
    """Those that run, from their beginning to their end; none of another run, or from before."""
    with running(log_of("1", "old")):
        view = LiveView("1")
        mine, other = log_of("1", "mine", "one\ntwo\n"), log_of("2", "other", "x\n")
        with running(mine), running(other):
            (shown,) = view.look()
            assert (shown.brief, shown.item, shown.program, shown.step) == ("b", "mine", "command", "two")
            assert (shown.log, shown.tokens, shown.cost_usd) == (str(mine), 0, None)
            with mine.open("a") as file:
                file.write("three\n")
            assert [each.step for each in view.look()] == ["three"]
        assert view.look() == ()
        with running(mine):  # what has ended is not looked at any more
            assert view.look() == ()


@pytest.mark.usefixtures("own")
def test_a_program_that_starts_late_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the log and its lock is a moment, in which a view may look, more than once; but not for ever."""
    view = LiveView("1")
    ready, old = log_of("1", "ready", "go\n"), log_of("1", "old")
    assert [view.look() for _ in range(3)] == [()] * 3
    with running(ready):
        assert [each.item for each in view.look()] == ["ready"]
    monkeypatch.setattr(live_view, "START_S", 0.0)
    assert view.look() == ()
    with running(old):
        assert view.look() == ()


@pytest.mark.usefixtures("own")
def test_a_view_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many programs, those are shown that run longest."""
    monkeypatch.setattr(live_view, "MAX_ACTIVITIES", 1)
    view = LiveView("")
    with running(log_of("", "first")), running(log_of("", "second")):
        assert [each.item for each in view.look()] == ["first"]


def test_a_state_folder_that_is_removed(own: Path) -> None:
    """A view finds nothing in it."""
    view = LiveView("1")
    log_of("1", "x")
    shutil.rmtree(own)
    assert view.look() == ()
