"""Test runs that crash, abort or hang: the end of their output and the path of their log are told."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from prefect_dispatch import Brief, Command, Item, Limits, Shell
from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.errors import ExecutorError, RejectedError, TransientError
from prefect_dispatch.integrators.matrix_integrator import TestMatrix
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.models.test_run import TestRun
from prefect_dispatch.tasks.stop_conditions import failure_of

pytestmark = pytest.mark.slow

ITEM = Item(key="a", value={"python": "3.10"})


def answered(run: str | tuple[str, ...], folder: Path, **limits: float) -> TestRun:
    """Return the test run that a command answers, asked as a run asks it."""
    brief = Brief(name="tests", instructions="Run.", output=TestRun, command=Command(run=run, report=("*.xml",)))
    shell = Shell().resolve_paths(folder)
    given = Limits.model_validate({"retries": 0, "timeout_s": 60, "retry_timeouts": False, **limits})
    asyncio.run(shell.warm_up())
    answer = asyncio.run(run_attempt(shell, brief, ITEM, limits=given))
    return TestRun.model_validate(answer.value)


def outcome_of(error: ExecutorError) -> Outcome:
    """Return the outcome of an item that failed."""
    return Outcome(brief="tests", item="a", status="failed", error=failure_of(error), attempts=error.attempts)


def python(code: str) -> tuple[str, ...]:
    """Return a command that runs some Python, which prints where it is."""
    return (sys.executable, "-X", "faulthandler", "-c", f"print('test_one ...', flush=True)\n{code}")


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
    ],
)
def test_a_crashed_interpreter(code: str, name: str, tmp_path: Path) -> None:
    """The signal, the end of the output and the log are in the outcome, and in the message and table of a matrix."""
    with pytest.raises(RejectedError, match=f"was ended by {name}") as caught:
        answered(python(code), tmp_path)
    outcome = outcome_of(caught.value)
    assert outcome.error
    assert "Fatal Python error" in outcome.failure or "most recent call first" in outcome.failure
    log = Path(outcome.failure.rpartition("(all of it: ")[2].rstrip(")"))
    assert "test_one ..." in log.read_text(encoding="utf-8")
    assert str(log) not in outcome.error.message  # which can be compared between runs
    merge = TestMatrix().merge([], [outcome])
    assert str(log) in merge.failed
    [table] = [table for table in merge.tables if table.name == "environments"]
    assert str(log) in str(table.rows[0]["why"])


def test_a_shell_that_tells_of_a_crash(tmp_path: Path) -> None:
    """A shell's exit code names the signal; without a report the run is red, and says what was printed at last."""
    run = answered("echo test_one ...; sh -c 'echo falling >&2; kill -SEGV $$'; exit $?", tmp_path)
    assert run.problems == ("The exit code is 139 (SIGSEGV), but no test failed.", "There is no report.")
    assert run.output.splitlines()[:2] == ["test_one ...", "falling"]
    assert run.distrust_reason.startswith(
        "The exit code is 139 (SIGSEGV), but no test failed. There is no report. It printed"
    )
    assert run.distrust_reason.endswith(f"(all of it: {run.log})")
    assert "falling" in Path(run.log).read_text(encoding="utf-8")
    outcome = Outcome(brief="tests", item="a", status="succeeded", value=run.model_dump(mode="json"))
    merge = TestMatrix().merge([], [outcome])
    assert "falling" in merge.failed
    assert run.log in merge.failed


def test_an_abort_without_a_report(tmp_path: Path) -> None:
    """A process that leaves without a word of pytest's has no report, whatever its exit code."""
    for code in (0, 3):
        run = answered(python(f"import os; os._exit({code})"), tmp_path)
        assert run.verdict == "failed"
        assert "There is no report." in run.problems
        assert run.output == "test_one ..."


def test_a_red_run_that_can_be_trusted(tmp_path: Path) -> None:
    """Its log is named, and its report says the rest; of a green run neither is kept."""
    red = '<testsuite><testcase name="a"><failure/></testcase></testsuite>'
    run = answered(f"echo '{red}' > \"$REPORT_DIR/r.xml\"; exit 1", tmp_path)
    assert (run.output, run.distrust_reason, Path(run.log).exists()) == ("", "", True)
    green = '<testsuite><testcase name="a"/></testsuite>'
    assert answered(f"echo '{green}' > \"$REPORT_DIR/r.xml\"", tmp_path).log == ""


def test_a_hang(tmp_path: Path) -> None:
    """What is out of time says what it printed at last, and is tried again only where the limits say so."""
    command = "echo test_one ...; echo waiting >&2; sleep 60"
    with pytest.raises(RejectedError, match=r"No answer within 2 s\. It printed at last: test_one") as caught:
        answered(command, tmp_path, timeout_s=2)
    assert caught.value.kind == "timeout"
    failure = outcome_of(caught.value).failure
    assert "waiting" in failure
    assert Path(failure.rpartition("(all of it: ")[2].rstrip(")")).exists()
    with pytest.raises(TransientError, match="waiting"):
        answered(command, tmp_path, timeout_s=2, retry_timeouts=True)
    with pytest.raises(RejectedError, match=r"No answer within 2 s\. \(all of it: "):
        answered("sleep 60", tmp_path, timeout_s=2)


def test_the_end_of_a_large_output_without_lines(tmp_path: Path) -> None:
    """Fifty megabytes without a line break: their end is in the message, and the log has its bound."""
    code = "import sys; w = sys.stdout.write\nfor _ in range(50): w('x' * 1_000_000)\nw(' the very end'); sys.exit(3)"
    brief = Brief(name="tests", instructions="Run.", command=Command(run=(sys.executable, "-c", code)))
    shell = Shell().resolve_paths(tmp_path)
    asyncio.run(shell.warm_up())
    with pytest.raises(RejectedError, match=r"failed \(exit code 3\): …x+ the very end \(all of it: ") as caught:
        asyncio.run(run_attempt(shell, brief, ITEM, limits=Limits(retries=0, timeout_s=300)))
    log = Path(str(caught.value).rpartition("(all of it: ")[2].rstrip(")"))
    assert log.stat().st_size < 21_000_000
    assert log.read_text(encoding="utf-8").rstrip().endswith(" the very end")
