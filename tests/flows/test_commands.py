"""Commands in a run: a job that runs one for each item, what it leaves, and what it doesn't do twice."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect.exceptions import CancelledRun

from prefect_dispatch import Brief, Command, Limits, Shell, dispatch
from prefect_dispatch.cli.commands import main
from prefect_dispatch.errors import DispatchFailed, JobError
from prefect_dispatch.executors.block_references import shell_operation
from prefect_dispatch.processes.state_folder import state_folder
from prefect_dispatch.testing import ScriptedExecutor
from tests.processes.programs import Crowd

if TYPE_CHECKING:
    from prefect_dispatch import Report

pytestmark = pytest.mark.usefixtures("store")

QUICK = Limits(retries=1, retry_delay_s=0, timeout_s=30)
JOB = """
briefs:
  - name: words
    instructions: Count the words of a text.
    output: {{type: object, properties: {{words: {{type: integer}}}}, required: [words]}}
    command:
      run: {run}
items: {{glob: "texts/*.txt"}}
executor: {{kind: shell}}
limits: {{retries: 0}}
"""
COUNT = """'echo "$ITEM_KEY" >> ran; printf "{\\"words\\": %d}" $(wc -w < "$ITEM_KEY")'"""


def brief(run: str = "true", **more: Any) -> Brief:  # noqa: ANN401 -- fields of the command
    """Return a brief with a command."""
    return Brief(name="do", instructions="Do.", command=Command(run=run, **more))


def report_of(*given: Any, **more: Any) -> Report:  # noqa: ANN401 -- the parameters of `dispatch`
    """Run a job; return its report, whether or not the run failed."""
    try:
        report: Report = dispatch(*given, **{"limits": QUICK, **more})
    except DispatchFailed as failed:
        return failed.report
    return report


def values(report: Report) -> dict[str, Any]:
    """Return each item's answer."""
    return {outcome.item: outcome.value for outcome in report.outcomes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job's folder."""
    (tmp_path / "job" / "texts").mkdir(parents=True)
    for name, text in (("a", "one two"), ("b", "three"), ("c", "")):
        (tmp_path / "job" / "texts" / f"{name}.txt").write_text(text)
    return tmp_path / "job"


@pytest.mark.slow
def test_a_job_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Planned, nothing is run; run, each item once; run again, nothing; a changed file, or command, is run again."""
    job, out = folder / "job.yaml", folder / "out"
    job.write_text(JOB.format(run=COUNT))

    def run(*more: str) -> list[str]:
        assert main(["run", str(job), "--out", str(out), *more]) == 0, capsys.readouterr().err
        ran = folder / "ran"
        names = sorted(ran.read_text().split()) if ran.exists() else []
        ran.unlink(missing_ok=True)
        return names

    assert main(["plan", str(job)]) == 0
    assert not (folder / "ran").exists()
    assert re.search(r"^to ask +3", capsys.readouterr().out, re.MULTILINE)
    assert run() == ["texts/a.txt", "texts/b.txt", "texts/c.txt"]
    value = json.loads((out / "report.json").read_text())["value"]
    assert {each["item"]: each["value"] for each in value["answers"]} == {
        "texts/a.txt": {"words": 2},
        "texts/b.txt": {"words": 1},
        "texts/c.txt": {"words": 0},
    }
    assert run() == []
    (folder / "texts" / "b.txt").write_text("three four five")
    assert run() == ["texts/b.txt"]
    assert run("--refresh", "texts/c.txt") == ["texts/c.txt"]
    assert run("--set", "executor.pass_env=[PATH]") == ["texts/a.txt", "texts/b.txt", "texts/c.txt"]
    job.write_text(JOB.format(run=COUNT.replace("printf", ": ; printf")))
    assert run() == ["texts/a.txt", "texts/b.txt", "texts/c.txt"]


@pytest.mark.parametrize(
    ("run", "options", "told"),
    [
        ("wc -w {{ item }}", (), 'write "$ITEM_VALUE" for it, or set stdin: true'),
        ("wc -w $ITEM_NAME", (), "$ITEM_NAME is never set"),
        ("[no-such-program-4711]", (), "the program 'no-such-program-4711' isn't here"),
        (
            "'true'",
            ("--model", "openai/x"),
            "--model: 'openai/x' would not be asked, as this job's executor is a shell",
        ),
        ("'true'", ("--set", "executor.cwd=../.."), "leads out of the job's folder"),
        ("'true'", ("--set", "executor.workdir=x"), "unknown key 'workdir'"),
        (
            "'true'",
            ("--set", "executor.kind=llm", "--set", "executor.model=openai/x"),
            "LLM runs none: set the executor's",
        ),
        ("'true'", ("--set", "executor.operation=not-there"), "not-there"),
        ("'true'", ("--set", "executor.pass_env=[NOT_SET_4711]"), "'NOT_SET_4711' is not set here"),
        ("'true'", ("--set", "briefs.0.command.env={API_KEY: x}"), "'API_KEY' looks like a secret"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_job_that_cannot_be_run_runs_nothing(
    run: str, options: tuple[str, ...], told: str, command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and a sentence that names what to change."""
    shown = f"'{run}'" if run[0] not in "'[" else run
    (folder / "job.yaml").write_text(JOB.format(run=shown))
    assert main([command, str(folder / "job.yaml"), *options]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in folder.iterdir()) == ["job.yaml", "texts"]


def test_a_command_needs_who_runs_it() -> None:
    """An agent that would pass over it is told so."""
    with pytest.raises(JobError, match="ScriptedExecutor runs none: set the executor's kind to 'shell' or 'coding'"):
        dispatch([brief()], ["a"], executor=ScriptedExecutor({"a": "x"}))


@pytest.mark.slow
def test_each_end_is_an_outcome(folder: Path) -> None:
    """Some succeed, some fail, one is tried again: the rest goes on, and each is told."""
    run = (
        'case "$ITEM_VALUE" in\n'
        "  retry) if [ -e once ]; then echo at last; else touch once; exit 75; fi;;\n"
        "  busy) exit 75;;\n"
        '  bad) echo "it is bad" >&2; exit 1;;\n'
        "  slow) echo at it; sleep 1000;;\n"
        '  *) echo "$ITEM_VALUE";;\n'
        "esac"
    )
    items = ["fine", "retry", "busy", "bad", "slow", {"key": "zero", "value": "x\0y"}]
    limits = QUICK.model_copy(update={"timeout_s": 1.0})
    report = report_of([brief(run, retry=[75])], items, executor=Shell(), limits=limits, folder=str(folder))
    assert report.status == "gaps"
    assert {item: said for item, said in values(report).items() if said} == {"fine": "fine", "retry": "at last"}
    told = {gap.item: gap.error for gap in report.gaps}
    assert {item: error.kind for item, error in told.items()} == {
        "busy": "retry",
        "bad": "exit",
        "slow": "timeout",
        "zero": "nul",
    }
    assert told["bad"].message == "The command failed (exit code 1): it is bad"
    tries = {outcome.item: len(outcome.attempts) for outcome in report.outcomes}
    assert tries == {"fine": 1, "retry": 2, "busy": 2, "bad": 1, "slow": 2, "zero": 1}
    assert told["slow"].message == "No answer within 1 s. It printed at last: at it"
    last = next(outcome for outcome in report.outcomes if outcome.item == "slow").attempts[-1]
    found = re.fullmatch(r"timeout: No answer within 1 s\..* \(all of it: (.*\.log)\)", last.error or "")
    assert found is not None
    assert "at it" in Path(found[1]).read_text(encoding="utf-8")
    assert (report.usage.unsettled, report.usage.cost_usd) == (0, 0.0)


@pytest.mark.slow
def test_an_answer_that_is_none_is_not_sent_back(folder: Path) -> None:
    """A command reads nothing of what was wrong: it is run once, and its item is a gap."""
    what = Brief(
        name="do",
        instructions="Do.",
        output={"type": "object", "required": ["n"]},
        command=Command(
            run='echo x >> "ran-$ITEM_VALUE"; if [ "$ITEM_VALUE" = b ]; then echo "{}"; else echo no JSON; fi'
        ),
    )
    report = report_of([what], ["a", "b"], executor=Shell(), folder=str(folder))
    assert report.status == "failed"
    assert [(folder / f"ran-{name}").read_text() for name in "ab"] == ["x\n", "x\n"]
    told = [gap.error.message for gap in report.gaps]
    assert "The answer is not JSON" in told[0]
    assert "'n' is a required property" in told[1]


@pytest.mark.slow
def test_what_is_read_counts(folder: Path) -> None:
    """A file that the brief reads has changed: its commands run again, and only then."""
    what = Brief(
        name="do",
        instructions="Do.",
        reads=("rules/{key}.txt",),
        command=Command(run='echo "$ITEM_KEY" >> ran; cat "rules/$ITEM_KEY.txt"'),
    )
    (folder / "rules").mkdir()
    for name in ("a", "b"):
        (folder / "rules" / f"{name}.txt").write_text("first")
    items = [{"key": name, "value": name} for name in ("a", "b")]

    def run() -> str:
        report_of([what], items, executor=Shell(), folder=str(folder))
        return "".join(sorted((folder / "ran").read_text().split()))

    assert (run(), run()) == ("ab", "ab")
    (folder / "rules" / "b.txt").write_text("second")
    assert run() == "abb"


@pytest.mark.slow
def test_a_saved_operation(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The commands of a ShellOperation block are run by our runner: up to the first that fails, with its variables."""
    operation: Any = shell_operation()
    (folder / "sub").mkdir()
    operation(
        commands=["pwd", 'echo "$ITEM_KEY $GREETING $SOME_TOKEN"', 'test "$ITEM_VALUE" = good', "echo done"],
        env={"GREETING": "hello", "SOME_TOKEN": "correct-horse-battery"},
        working_dir=folder / "sub",
    ).save("nightly", overwrite=True)
    what = Brief(name="do", instructions="Do.")
    report = report_of([what], ["good", "bad"], executor=Shell(operation="nightly"), folder=str(folder))
    assert values(report)["good"] == f"{folder / 'sub'}\ngood hello ***\ndone"
    assert [(gap.item, gap.error.kind) for gap in report.gaps] == [("bad", "exit")]
    again = report_of([what], ["good"], executor=Shell(operation="nightly"), folder=str(folder))
    assert (again.usage.asked, again.usage.cached) == (0, 1)
    operation(commands=["echo other"], env={"SOME_TOKEN": "another-secret-word"}).save("nightly", overwrite=True)
    changed = report_of([what], ["good"], executor=Shell(operation="nightly"), folder=str(folder))
    assert values(changed) == {"good": "other"}
    picked: Any = operation.load("nightly")
    assert Shell(operation=picked) == Shell(operation="nightly")
    assert "horse" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_an_operation_that_cannot_be_used(folder: Path) -> None:
    """Refused in a sentence: with a command beside it, with a shell of another kind, in a workspace of its own."""
    operation: Any = shell_operation()
    operation(commands=["dir"], shell="powershell").save("of-another-kind", overwrite=True)  # noqa: S604 -- its field
    operation(commands=["ls"], working_dir=folder).save("at-home", overwrite=True)
    what = Brief(name="do", instructions="Do.")
    cases: tuple[tuple[list[Brief], dict[str, Any], str], ...] = (
        ([brief()], {"operation": "at-home"}, "leave the command out, or executor.operation"),
        ([what], {"operation": "of-another-kind"}, "wants the shell 'powershell'; these can be used: bash, dash"),
        ([what], {"operation": "at-home", "workspace": {}}, "names a working directory, and a workspace is one"),
        ([what], {"operation": "never-saved"}, "never-saved"),
    )
    for briefs, shell, told in cases:
        with pytest.raises(JobError, match=re.escape(told)):
            dispatch(briefs, ["a"], executor=Shell.model_validate(shell), folder=str(folder))


def test_nothing_leaks(folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:  # noqa: ANN401 -- caplog's type
    """A key that a command gets to see, and prints wherever it can, is in nothing that the run leaves."""
    canary = "canary-0f9e8d7c6b"
    monkeypatch.setenv("SOME_API_KEY", canary)
    run = 'env; env >&2; echo "{\\"key\\": \\"$SOME_API_KEY\\"}"; test "$ITEM_VALUE" = good'
    shell = Shell(pass_env=("SOME_API_KEY",))
    report = report_of([brief(run)], ["good", "bad"], executor=shell, folder=str(folder), out="out")
    assert "SOME_API_KEY=***" in values(report)["good"]
    left = [caplog.text, report.model_dump_json()]
    for place in (folder, store, state_folder()):
        left += [path.read_text(errors="replace") for path in place.rglob("*") if path.is_file()]
    assert len(left) > 8
    assert not [text for text in left if canary in text]


@pytest.mark.slow
def test_ctrl_c_ends_every_command_at_once(folder: Path) -> None:
    """Half done they are of no use: none is waited for, and what was done before is kept."""
    crowd = Crowd()
    run = f'case "$ITEM_VALUE" in quick*) echo done;; *) {crowd.waits};; esac'
    items = ["quick-1", "quick-2", "slow-1", "slow-2", "slow-3"]
    limits = QUICK.model_copy(update={"concurrency": 3, "grace_s": 1000})

    def press() -> None:
        crowd.require(6)  # a shell each, and what it runs
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(CancelledRun, match=r"Cancelled: 2 of 5 answered\."):
        dispatch([brief(run)], items, executor=Shell(), limits=limits, folder=str(folder))
    thread.join()
    crowd.require_gone()
    again = report_of([brief(run)], items[:2], executor=Shell(), folder=str(folder))
    assert again.usage.cached == 2
