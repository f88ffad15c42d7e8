"""The logs of programs: what they belong to, whether their program runs, and how long they are kept."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.processes import state_folder as module
from prefect_dispatch.processes.program_logs import (
    MAX_NAME,
    ProgramLog,
    WorkOwner,
    collect_logs,
    list_log_files,
    list_logs,
    load_log,
    new_log,
    quote_end,
)
from prefect_dispatch.processes.runner import Program, run
from prefect_dispatch.processes.state_folder import prune_logs
from prefect_dispatch.security.redaction import register_secrets
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "correct-horse-battery"  # noqa: S105 -- nobody's


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own."""
    folder = tmp_path / "state"
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(folder))
    return folder


def loaded(path: Path) -> ProgramLog:
    """Return a log that has a description."""
    log = load_log(path)
    assert log is not None
    return log


def test_the_end_of_one_log_is_quoted() -> None:
    """Of several that a call has made, that of the ended program alone."""
    with collect_logs(WorkOwner()) as logs:
        first, second = new_log("command"), new_log("command")
        second.write_text("at last")
        quote_end(second, 100)
    assert [(each.path, each.end) for each in logs] == [(first, ""), (second, "at last")]


def test_logs_have_names_of_their_own_and_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a week they go, and the oldest go where there are too many; what isn't a log stays."""
    made = [new_log("command") for _ in range(4)]
    assert len(set(made)) == 4
    assert all(log.stem.isdecimal() for log in made)
    for age, log in enumerate(made):
        log.write_text("x" * 100)
        os.utime(log, (time.time() - age, time.time() - age))
    note = made[0].parent / "note.txt"
    note.write_text("mine")
    os.utime(made[3], (0, 0))
    never_started = new_log("command").with_suffix(".json")
    os.utime(never_started, (0, 0))
    prune_logs()
    assert not never_started.exists()
    assert [log.exists() for log in made] == [True, True, True, False]
    assert [log.with_suffix(".json").exists() for log in made] == [True, True, True, False]
    monkeypatch.setattr(module, "MAX_TOTAL_LOG_BYTES", 250)
    prune_logs()
    assert [log.exists() for log in made] == [True, True, False, False]
    dangling = made[0].parent / "1.log"
    dangling.symlink_to("gone")  # as where somebody else removes it meanwhile
    prune_logs()
    assert note.read_text() == "mine"


def test_a_description_names_the_work_and_no_secret() -> None:
    """It has what identifies the work, bounded and redacted, and nothing of the program's arguments or variables."""
    register_secrets([SECRET])
    with collect_logs(WorkOwner("hints", f"{SECRET}\x1b[2J{'k' * 2 * MAX_NAME}", "run-1")):
        path = new_log("claude", model="anthropic/claude-sonnet-4-5")
    path.touch()
    about = loaded(path).about
    assert (about.program, about.model, about.brief, about.run) == (
        "claude",
        "anthropic/claude-sonnet-4-5",
        "hints",
        "run-1",
    )
    assert about.item.startswith("***\x1b[2Jk")
    assert len(about.item) == MAX_NAME
    assert about.ref.startswith("hints/*** [2Jk")
    assert SECRET not in path.with_suffix(".json").read_text()


def test_outside_of_work_a_log_belongs_to_nothing() -> None:
    """As that of a program which other code runs."""
    path = new_log("command")
    path.touch()
    assert (loaded(path).about.ref, loaded(path).about.run) == ("/", "")


def test_a_log_is_listed_with_a_description_alone() -> None:
    """Descriptions that are missing, damaged, of another version or links are none; the others are listed by age."""
    made = [new_log("command") for _ in range(5)]
    for log in made:
        log.touch()
    made[1].with_suffix(".json").unlink()
    made[2].with_suffix(".json").write_text('{"program": "x", "other": 1}')
    made[3].with_suffix(".json").unlink()
    made[3].with_suffix(".json").symlink_to(made[0].with_suffix(".json"))
    assert [log.path for log in list_logs()] == [made[0], made[4]]


def test_logs_since_a_time() -> None:
    """A view of a run looks at no older ones, of the same day or of others."""
    old, since = new_log("command"), time.time_ns()
    new = new_log("command")
    for log in (old, new):
        log.touch()
    yesterday = old.parent.with_name("20200101") / old.name
    yesterday.parent.mkdir()
    yesterday.touch()
    assert list_log_files(since) == [new]
    assert list_log_files() == [yesterday, old, new]


def test_a_log_that_cannot_be_described_is_made_all_the_same() -> None:
    """A full disk keeps no program from running; a name that is no text anywhere is described as far as it is."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        path = new_log("command")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    path.touch()
    assert load_log(path) is None
    with collect_logs(WorkOwner("b", "\ud800")):
        path = new_log("command")
    path.touch()
    assert loaded(path).about.item == "?"


def test_a_program_runs_as_long_as_its_log_is_locked(tmp_path: Path) -> None:
    """While it runs, and not before or after; a log that was removed is nobody's."""
    go, path = tmp_path / "go", new_log("command")
    code = f"import os, time\nprint('begun', flush=True)\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
    program = Program(argv=(sys.executable, "-c", code), env={}, cwd=tmp_path)
    log = loaded(path)
    assert not log.is_running

    async def watch() -> None:
        task = asyncio.create_task(run(program, log=path))
        await asyncio.to_thread(wait_until, lambda: path.exists() and "begun" in path.read_text(), "it has begun")
        assert log.is_running
        go.touch()
        assert (await task).exit == 0

    asyncio.run(watch())
    assert not log.is_running
    path.unlink()
    assert not log.is_running
