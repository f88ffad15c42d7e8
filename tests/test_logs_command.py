"""The command `logs`: what programs are doing, and their logs as steps."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.cli import logs
from prefect_dispatch.cli.commands import COMPLETE, INTERRUPTED, UNUSABLE, main
from prefect_dispatch.processes.program_logs import WorkOwner, collect_logs, new_log
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator

RECORDED = Path(__file__).parent / "executors" / "coding" / "recorded" / "claude.jsonl"
SHOWN = "I write.\nSecond line.\nedit new/b.py\nNow a command.\n$ echo x5z; ls\nDone.\n"
RUN, OTHER = "0190aaaa-0000-7000-8000-000000000000", "0190bbbb-0000-7000-8000-000000000000"


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state folder of this test's own."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "state"))


@pytest.fixture
def running() -> Generator[ExitStack, None, None]:
    """The locks of programs that run until the end of the test."""
    with ExitStack() as stack:
        yield stack


def log_of(item: str, text: str = "", *, run: str = RUN, brief: str = "hints", lock: ExitStack | None = None) -> Path:
    """Return a new log of `claude`, whose program runs if there is a place for its lock."""
    with collect_logs(WorkOwner(brief, item, run)):
        path = new_log("claude")
    path.write_text(text or RECORDED.read_text())
    if lock:
        handle = os.open(path, os.O_WRONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        lock.callback(os.close, handle)
    return path


def test_without_logs(capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to list, and nothing to read."""
    assert main(["logs"]) == COMPLETE
    assert capsys.readouterr().out == "No program has worked for a run on this machine within the last week.\n"
    assert main(["logs", "-f"]) == UNUSABLE
    assert "There are no logs: no program" in capsys.readouterr().err
    assert main(["logs", "0190"]) == UNUSABLE
    assert "No program has a log for '0190'; there are no logs." in capsys.readouterr().err


def test_programs_are_listed(
    running: ExitStack, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that run with what they do, then the latest of those that have ended."""
    monkeypatch.setattr(logs, "MAX_ENDED", 1)
    log_of("lexer", lock=running)
    log_of("old")
    log_of("parser\x1b[2J", run="")
    assert main(["logs"]) == COMPLETE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("running  0190aaaa  claude  hints/lexer: ")
    assert lines[0].endswith("330 tokens, cost $0.0014: Done.")
    assert lines[1].startswith("ended    -         claude  hints/parser [2J, started 20")
    assert lines[2:] == ["and 1 older ones"]
    assert main(["logs", OTHER[:4]]) == COMPLETE
    assert "hints/lexer" in capsys.readouterr().out


def test_the_log_of_an_item(running: ExitStack, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """By a run's id, a brief or the job file; that of the program which runs, else the latest."""
    (tmp_path / "job.yaml").write_text(
        "briefs: [{name: hints, instructions: Do it.}]\nitems: [{key: lexer, value: x}]\nexecutor: {model: openai/x}\n"
    )
    first = log_of("lexer", lock=running)
    log_of("lexer", "later\n")
    log_of("lexer", "elsewhere\n", run=OTHER, brief="other")
    for names in (["0190a", "lexer"], ["hints", "hints/lexer"], [str(tmp_path / "job.yaml"), "lexer"]):
        assert main(["logs", *names]) == COMPLETE
        assert capsys.readouterr().out == f"hints/lexer, claude, log: {first}\n{SHOWN}"
    assert main(["logs", RUN, "lexer"]) == COMPLETE
    running.close()
    capsys.readouterr()
    assert main(["logs", "0190a", "lexer"]) == COMPLETE
    assert capsys.readouterr().out.endswith(".log\nlater\n")
    assert main(["logs", "other", "-f"]) == COMPLETE
    assert capsys.readouterr().out.endswith(".log\nelsewhere\n")


def test_an_item_that_has_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, with what exists."""
    log_of("lexer")
    log_of("parser", brief="other", run="")
    assert main(["logs", "0190", "lexr"]) == UNUSABLE
    assert capsys.readouterr().err == (
        "prefect-dispatch: No program has a log for 'lexr'; there are logs of hints/lexer.\n"
    )
    assert main(["logs", "77"]) == UNUSABLE
    assert "for '77'; there are logs of - (other), 0190aaaa (hints)." in capsys.readouterr().err
    for words in (["logs", " "], ["logs", "x", ""]):
        with pytest.raises(SystemExit):
            main(words)


def test_a_log_is_followed_until_its_program_ends(
    running: ExitStack, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written meanwhile is printed, the end without a line break, too."""
    path = log_of("lexer", lock=running)
    waits: list[float] = []

    def go_on(seconds: float) -> None:
        waits.append(seconds)
        with path.open("a") as file:
            file.write("more\n" if len(waits) == 1 else "the end")
        if len(waits) == 2:
            running.close()

    monkeypatch.setattr(time, "sleep", go_on)
    assert main(["logs", "hints", "lexer", "-f"]) == COMPLETE
    assert capsys.readouterr().out == f"hints/lexer, claude, log: {path}\n{SHOWN}more\nthe end\n"
    assert waits == [logs.POLL_S] * 2


def test_ctrl_c_ends_it(running: ExitStack, tmp_path: Path) -> None:
    """With the exit status of an interrupted command, and without a word about answers."""
    log_of("lexer", lock=running)
    out = tmp_path / "out"
    with out.open("w") as file:
        command = [sys.executable, "-m", "prefect_dispatch", "logs", "hints", "lexer", "-f"]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True)  # noqa: S603 -- ours
    try:
        wait_until(lambda: "Done." in out.read_text(), "the log is printed")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == ""
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED
    assert out.read_text().endswith(SHOWN)


def test_a_log_that_is_removed_meanwhile(running: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It has ended, as far as a reader can see."""
    log_of("lexer", json.dumps({"type": "user"}) + "\n", lock=running)

    def remove(_seconds: float) -> None:
        shutil.rmtree(tmp_path / "state")

    monkeypatch.setattr(time, "sleep", remove)
    assert main(["logs", "hints", "lexer", "-f"]) == COMPLETE


def test_an_interruption_while_nothing_is_written(running: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the command, with the status of an interruption."""

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    log_of("lexer", lock=running)
    monkeypatch.setattr(time, "sleep", interrupt)
    assert main(["logs", "hints", "lexer", "-f"]) == INTERRUPTED
