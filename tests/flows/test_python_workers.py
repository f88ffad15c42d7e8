"""Functions and agents of the user's as the executor of a job, from the command line and in a flow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from prefect import flow
from prefect.logging import get_run_logger
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from prefect_dispatch import Brief, Limits, PythonCallable, dispatch, run_brief
from prefect_dispatch.cli.commands import main
from prefect_dispatch.errors import DispatchFailed, TerminalError, TransientError
from prefect_dispatch.models.item import Item

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("store")
WORDS = Brief(name="words", instructions="Count the words.", output={"type": "integer"})
JOB = """
briefs: [{name: words, instructions: Count the words., output: {type: integer}}]
items: [{key: a, value: one}, {key: b, value: two words}, {key: c, value: boom}]
executor: {kind: python, function: "counting:count"}
"""
COUNTING = """
def count(text):
    if text == "boom":
        raise ValueError("sk-proj-0123456789abcdef is no word")
    with open("calls", "a") as calls:
        calls.write(text + "\\n")
    return len(text.split())
"""


@pytest.mark.slow
def test_a_job_file_names_a_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its answers are stored until its source changes; what it raises is a gap, without keys."""
    monkeypatch.chdir(tmp_path)
    job, code, calls = tmp_path / "job.yaml", tmp_path / "counting.py", tmp_path / "calls"
    job.write_text(JOB)
    code.write_text(COUNTING)
    assert main(["run", str(job), "--out", "report"]) == 3
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {row["sources"][0]["item"]: row["winner"] for row in report["fields"]} == {"a": 1, "b": 2}
    (gap,) = report["gaps"]
    assert (gap["item"], gap["error"]["message"]) == ("c", "ValueError: *** is no word")
    assert main(["run", str(job)]) == 3
    assert sorted(calls.read_text().splitlines()) == ["one", "two words"]
    capsys.readouterr()
    for name, told in (("counting:tally", "can't be loaded"), ("os:getcwd", "is not code of yours")):
        assert main(["run", str(job), "--set", f"executor.function={name}"]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.slow
def test_an_agent_in_a_flow_and_in_a_task() -> None:
    """Prefect takes the agent as it is, whatever it is made of."""
    executor = PythonCallable(Agent(TestModel(custom_output_text="3")), version="1")
    report = dispatch([WORDS], ["a b c"], executor=executor)
    assert [row.winner for row in report.fields] == [3]
    assert report.usage.requests == 1

    @flow
    def counting() -> object:
        return run_brief(WORDS, Item(key="a", value="x y z"), executor).value

    assert counting() == 3


@pytest.mark.slow
def test_a_function_logs_where_its_task_run_does(caplog: pytest.LogCaptureFixture) -> None:
    """It runs in the context of its task run."""

    def counts(text: str) -> int:
        get_run_logger().warning("counting %s", text)
        return 1

    dispatch([WORDS], ["a word"], executor=PythonCallable(counts, version="1"))
    (record,) = [record for record in caplog.records if "counting a word" in record.getMessage()]
    assert record.name == "prefect.task_runs"


@pytest.mark.slow
def test_what_is_transient_is_retried_and_what_is_terminal_ends_the_run() -> None:
    """As a model's errors are."""
    calls: list[str] = []

    def second_time(text: str) -> int:
        calls.append(text)
        if len(calls) == 1:
            raise TransientError("Later.")
        return 1

    def never(text: str) -> int:
        calls.append(text)
        raise TerminalError("The key is wrong.", kind="credentials")

    quick = Limits(retries=1, concurrency=1)
    report = dispatch([WORDS], ["a"], executor=PythonCallable(second_time, version="1"), limits=quick)
    assert (report.status, len(calls)) == ("complete", 2)
    calls.clear()
    with pytest.raises(DispatchFailed):
        dispatch([WORDS], ["a", "b", "c"], executor=PythonCallable(never, version="1"), limits=quick)
    assert len(calls) == 1
