"""A test suite in many environments, each in a checkout of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from prefect.exceptions import ParameterTypeError

from prefect_dispatch import Limits, Report, TestMatrix
from prefect_dispatch import test_matrix as run_matrix  # pytest would take it for a test by its own name
from prefect_dispatch.cli.commands import UNUSABLE, main
from prefect_dispatch.errors import DispatchFailed, JobError
from prefect_dispatch.flows.runtime.form_layout import with_form_messages
from prefect_dispatch.flows.test_matrix import Axis, build_cells
from prefect_dispatch.models.test_run import TestRun

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ORDER = [
    "command", "axes", "repo", "base", "setup", "folder", "name", "environments", "limits", "results", "advanced",
]  # fmt: skip
AXES = {"python": ["3.9", "3.10"], "attrs": ["22", "23"]}


def given(**more: object) -> Any:  # noqa: ANN401 -- the parts of a job
    """Return what a form with two fields, and some more, is put together to."""
    valid = run_matrix.validate_parameters({"command": "pytest", "axes": AXES, **more})
    return with_form_messages(lambda: run_matrix.form.build(**valid))


def test_the_form_has_few_fields_and_groups_in_order() -> None:
    """Two fields are enough; each says what it is for."""
    form = run_matrix.parameters.model_dump()
    fields = sorted(form["properties"].items(), key=lambda field: field[1]["position"])
    assert [name for name, _ in fields] == ORDER
    assert all(field["description"] for _, field in fields)
    assert form["required"] == ["command", "axes"]


def test_values_in_groups_are_those_by_themselves() -> None:
    """A value in both ways is refused; `report` is the list of files that it has always been."""
    flat = {"env": {"*": {"MODE": "a"}}, "retries": 3, "report": ["r.xml"], "service": "serve", "ports": 1}
    nested = {
        "environments": {"env": {"*": {"MODE": "a"}}},
        "limits": {"retries": 3},
        "results": {"report": ["r.xml"]},
        "advanced": {"service": "serve", "ports": 1},
    }
    assert run_matrix.form.layout.nest(flat, {}) == nested
    assert given(**nested) == given(**flat)
    with pytest.raises(JobError, match="report: it is given both in the group `results` and by itself"):
        given(**nested, report=["other.xml"])
    assert run_matrix.form.layout.label("env") == "Environments > Variables"


def test_what_a_form_becomes() -> None:
    """Each environment is an item with its values as fields, and a checkout of its own; all have to pass."""
    parts = given(retry=[7], time_limit_s=60, keep="failed", base="main", pass_env=["UV_CACHE_DIR"], concurrency=2)
    assert [(item.key, item.value) for item in parts.items.items] == [
        ("python=3.9,attrs=22", {"python": "3.9", "attrs": "22"}),
        ("python=3.9,attrs=23", {"python": "3.9", "attrs": "23"}),
        ("python=3.10,attrs=22", {"python": "3.10", "attrs": "22"}),
        ("python=3.10,attrs=23", {"python": "3.10", "attrs": "23"}),
    ]
    [brief] = parts.briefs
    assert (brief.output, brief.command.run, brief.command.report) == (TestRun, "pytest", ("junit.xml",))
    assert brief.command.retry == (7,)
    assert (parts.executor.workspace.base, parts.executor.workspace.keep) == ("main", "failed")
    assert parts.executor.pass_env == ("UV_CACHE_DIR",)
    assert parts.integrator == TestMatrix()
    assert parts.limits == Limits(concurrency=2, timeout_s=60, retry_timeouts=False)
    assert given(required=["python=3.9*"], on_red="report").integrator == TestMatrix(
        required=("python=3.9*",), on_red="report"
    )


def test_a_set_up_is_no_part_of_the_command() -> None:
    """Both are arguments of one fixed line: no quote in one ends the other. Its failure means: try again."""
    command = given(setup="make 'it", retry=[75, 7]).briefs[0].command
    assert command.run[-2:] == ("make 'it", "pytest")
    assert command.retry == (75, 7)
    assert given(setup="x").briefs[0].command.retry == (75,)


def test_a_hang_is_tried_again_only_where_retries_are_given() -> None:
    """Without a number, what fails in passing is tried twice more, and a run that is out of time is not."""
    assert given().limits.retries == Limits().retries
    assert not given().limits.retry_timeouts
    limits = given(retries=1).limits
    assert (limits.retries, limits.retry_timeouts) == (1, True)


def test_variables_of_some_environments() -> None:
    """They are fields of the environments that a part means, the last part counts, and the key stays what it was."""
    env = {"*": {"MODE": "plain"}, "python=3.1*": {"MODE": "new", "LEVEL": 2}, "python=3.9,attrs=23": {"EXTRA": "a b"}}
    parts = given(env=env)
    assert [(item.key, {**item.value}) for item in parts.items.items][1:3] == [
        ("python=3.9,attrs=23", {"python": "3.9", "attrs": "23", "MODE": "plain", "EXTRA": "a b"}),
        ("python=3.10,attrs=22", {"python": "3.10", "attrs": "22", "MODE": "new", "LEVEL": "2"}),
    ]
    as_list = given(env=[{"cells": "python=3.10", "variables": ["MODE=a=b"]}])
    assert as_list.items.items[2].value["MODE"] == "a=b"
    script = parts.briefs[0].command.run[2]
    assert 'export EXTRA="${ITEM_EXTRA:-}"' in script
    assert "a b" not in script


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"env": {"python=4": {"A": "1"}}}, "env: 'python=4' means no environment that is there"),
        ({"env": {"pyton=3.9": {"A": "1"}}}, "env: 'pyton=3.9' has an axis 'pyton' that isn't there; did you mean"),
        ({"env": {"*": {"HOME": "1"}}}, "env: 'HOME' is set for each environment anyway"),
        ({"env": {"*": {"PORT": "1"}}}, "env: 'PORT' is set for each environment anyway"),
        ({"env": {"*": {"API_TOKEN": "1"}}}, "env: 'API_TOKEN' looks like a secret"),
        ({"env": {"*": {"attrs": "1"}}}, "env: 'attrs' and the axis 'attrs' would both be in ITEM_ATTRS"),
        ({"env": {"*": {"a": "1", "A": "2"}}}, "env: 'A' and a would both be in ITEM_A"),
        ({"ready": "true"}, "ready: there is no service to wait for"),
    ],
)
def test_variables_and_services_that_can_not_be(fields: dict[str, Any], told: str) -> None:
    """What can't be set, or means nothing, is refused with the way out."""
    with pytest.raises(JobError, match=re.escape(told)):
        given(**fields)


@pytest.mark.parametrize("env", [{"*": {"A": True}}, {"*": {"A": 1.5}}, {"*": {"a b": "1"}}, {"*": {}}, {"*": "A"}])
def test_variables_that_are_none(env: object) -> None:
    """A value that YAML misread, a name that is none, and no variable at all are refused."""
    with pytest.raises(ParameterTypeError, match="env"):
        given(env=env)


def run_lines(folder: Path, env: dict[str, str], **lines: str) -> tuple[int, str]:
    """Run what a form becomes, and return its exit code and what it printed."""
    argv = given(**lines).briefs[0].command.argv
    done = subprocess.run(  # noqa: S603 -- lines of ours
        argv, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_service_is_ready_before_the_command_runs(tmp_path: Path) -> None:
    """The command waits for it, what it prints is in the log; one that ends before it is ready means: try again."""
    service = "echo I serve; sleep 0.3; touch up; sleep 2"
    found = run_lines(tmp_path, {}, command="ls up", setup="echo set up", service=service, ready="test -f up")
    assert found == (0, "set up\nup\nI serve\n")
    found = run_lines(tmp_path, {}, command="echo done", service="echo no port >&2; exit 3", ready="false")
    assert found == (75, "no port\nThe service ended with exit code 3 before it was ready.\n")
    assert run_lines(tmp_path, {}, command="echo done", service="sleep 1")[0] == 0


def keys(exclude: Sequence[str] = (), include: Sequence[str] = (), **axes: Sequence[str]) -> list[str]:
    """Return the keys of the cells of some axes."""
    made = [Axis(name=name.replace("__", "-"), values=tuple(values)) for name, values in axes.items()]
    return [cell.key for cell in build_cells(made, exclude, include)]


def test_cells() -> None:
    """What is left out is said by a part of a cell, a glob too; what is added has all its values."""
    two = {"python": ["3.9", "3.10", "3.13"], "os": ["linux"]}
    assert keys(["python=3.1?"], **two) == ["python=3.9,os=linux"]
    assert keys(["python=3.13,os=linux"], ["os=mac, python=3.13"], **two)[-1] == "python=3.13,os=mac"
    assert keys(django=["django>=4", "django==5.0"]) == ["django=django>=4", "django=django==5.0"]
    assert keys(["x=a[b]"], x=["a[b]", "ab"]) == ["x=ab"]  # an extra of a package is no glob
    assert keys(["django=django==5*"], django=["django>=4", "django==5.0"]) == ["django=django>=4"]


@pytest.mark.parametrize(
    ("exclude", "include", "axes", "told"),
    [
        pytest.param(["a=3"], [], {"a": "12"}, "exclude: 'a=3' means no cell that is there", id="nothing-excluded"),
        pytest.param(["a"], [], {"a": "12"}, r"exclude: 'a' is no cell; write one as 'python=3.10", id="no-cell"),
        pytest.param(["a="], [], {"a": "12"}, "exclude: 'a=' is no cell", id="no-value"),
        pytest.param(["aa=1"], [], {"a": "12"}, "exclude: 'aa=1' has an axis 'aa' that isn't there; did", id="axis"),
        pytest.param(["a=1,a=2"], [], {"a": "12"}, "exclude: 'a=1,a=2' has 'a' twice", id="axis-twice"),
        pytest.param(["a=?"], [], {"a": "12"}, "exclude: no cell is left", id="none-left"),
        pytest.param([], ["a=3"], {"a": "12", "b": "1"}, "include: 'a=3' has no 'b'", id="part-included"),
        pytest.param([], ["a=1"], {"a": "12"}, "include: 'a=1' is a cell already", id="included-twice"),
        pytest.param([], [], {"a": "11"}, "axes: 'a' has '1' twice", id="value-twice"),
        pytest.param([], [], {"key": "1"}, "axes: 'key' would be in ITEM_KEY, which holds the whole cell", id="key"),
        pytest.param([], [], {"a__b": "1", "a_b": "1"}, "axes: 'a_b' would be in ITEM_A_B, .*'a-b'", id="variable"),
        pytest.param(
            [], [], {"a": [*map(str, range(40))], "b": [*map(str, range(40))]}, "they make 1,600 cells", id="many"
        ),
    ],
)  # fmt: skip
def test_axes_that_are_no_matrix(
    exclude: list[str], include: list[str], axes: dict[str, Sequence[str]], told: str
) -> None:
    """What doesn't go together is refused, by field, value and way out."""
    with pytest.raises(JobError, match=told):
        keys(exclude, include, **axes)


@pytest.mark.parametrize("value", [3.1, True, None, ["a"], "3.9,3.10", "", "a\nb"])
def test_values_that_are_none(value: object) -> None:
    """YAML reads 3.10 as 3.1, and `on` as true: such a value is refused, not guessed. A comma is between axes."""
    with pytest.raises(ParameterTypeError, match="axes"):
        given(axes={"python": [value]})


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ("{python: [3.10]}", "axes.python[0]: 3.1 may not be what was written, as 3.10 without quotes is 3.1; put the"),
        ("{a: ['1'], b: ['2', on]}", "axes.b[1]: True may not be what was written, as on, yes and true without quotes"),
        ("{a: [null]}", "axes.a[0]: null is what YAML reads where nothing is written, or null without quotes; write a"),
        ("{a: }", "axes.a: null is what YAML reads"),
        ("{a: [[x]]}", "axes.a[0]: ['x'] is no text; write one value after the other"),
        ("{python: []}", "axes.python: should have at least 1 item, and has none (it is [])."),
        ("{}", "axes: should have at least 1 item, and has none (it is {})."),
    ],
)
def test_axes_of_a_job_file(axes: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What YAML makes of a version is told, and nothing else with it."""
    job = tmp_path / "job.yaml"
    job.write_text(f"flow: test_matrix\ncommand: pytest\naxes: {axes}\n", encoding="utf-8")
    assert main(["plan", str(job)]) == UNUSABLE
    said = capsys.readouterr().err
    assert told in said
    assert said.count("axes") == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"report": []}, "report: there is none; name at least one file"),
        ({"report": ["../junit.xml"]}, "'../junit.xml' leads out of where the command runs"),
        ({"report": ["/out/junit.xml"]}, "'/out/junit.xml' leads out of where the command runs"),
    ],
)
def test_reports_that_can_not_be(fields: dict[str, Any], told: str) -> None:
    """A report has a place, and it is inside; a set-up of blanks is none."""
    with pytest.raises(JobError, match=told):
        given(**fields)
    assert given(setup=" ").briefs[0].command.run == "pytest"


def test_axes_as_lists() -> None:
    """A form has a list of axes; a job file may have one value for a list, and whole numbers."""
    as_list = given(axes=[{"name": "node", "values": ["18", "20"]}], exclude=[{"node": 18}])
    assert [item.key for item in as_list.items.items] == ["node=20"]
    as_text = given(axes={"node": [18, 20]}, exclude=["node=20"])
    assert [item.key for item in as_text.items.items] == ["node=18"]
    assert [item.key for item in given(axes={"node": 18, "os": "linux"}).items.items] == ["node=18,os=linux"]


SUITE = """
import os, sys
bad = os.environ["ITEM_MODE"] == "bad" and os.environ["ITEM_SIDE"] == "left"
case = "<failure message='left is bad'/>" if bad else ""
with open(os.environ["REPORT_DIR"] + "/junit.xml", "w") as file:
    file.write(f"<testsuite name='s'><testcase name='one'/><testcase name='two'>{case}</testcase></testsuite>")
open("made", "w").close()
sys.exit(bad)
"""


def git(repo: Path, *args: str) -> str:
    """Run git, as somebody."""
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *who, *args], cwd=repo, check=True, capture_output=True, text=True).stdout  # noqa: S603, S607 -- git


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with a test suite."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "suite.py").write_text(SUITE, encoding="utf-8")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "One")
    return folder


def test_a_folder_without_a_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without git there is no base to test: refused with the way out, in the words of the form."""
    job = tmp_path / "job.yaml"
    job.write_text("flow: test_matrix\ncommand: pytest\naxes: {python: ['3.10']}\n", encoding="utf-8")
    assert main(["plan", str(job)]) == UNUSABLE
    told = capsys.readouterr().err
    assert "repo: " in told
    assert "workspace.repo" not in told
    assert "make it one: git init" in told


def test_a_model_is_not_asked(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody is asked, so that no model can be named."""
    (repo / "job.yaml").write_text("flow: test_matrix\ncommand: x\naxes: {a: b}\n", encoding="utf-8")
    assert main(["plan", str(repo / "job.yaml"), "--model", "openai/x"]) == UNUSABLE
    assert "--model: 'openai/x' would not be asked, as test_matrix asks no model" in capsys.readouterr().err


def run(repo: Path, **more: Any) -> Report:  # noqa: ANN401 -- fields of the form
    """Run the suite in four environments; return the report, whether or not the run failed."""
    fields: dict[str, Any] = {"axes": {"mode": ["good", "bad"], "side": ["left", "right"]}, "folder": str(repo)}
    matrix: Any = run_matrix
    try:
        report: Report = matrix("python3 suite.py", **{**fields, "out": "out", "time_limit_s": 60.0, **more})
    except DispatchFailed as failed:
        return failed.report
    return report


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_matrix(repo: Path) -> None:
    """The report names the broken cell and test; run again nothing is run, refreshed one cell is."""
    before = git(repo, "status", "--porcelain"), git(repo, "for-each-ref"), git(repo, "worktree", "list")
    first = run(repo)
    assert (first.status, first.usage.asked) == ("failed", 4)
    assert first.message.startswith(
        "1 of 4 required environments did not pass: mode=bad,side=left (1 failed: two). (4 of 4 answered"
    )
    out = repo / "out"
    assert {"junit.xml", "test-matrix.csv", "environments.csv", "report.html"} <= {path.name for path in out.iterdir()}
    value = json.loads((out / "report.json").read_text(encoding="utf-8"))["value"]
    assert [test["name"] for test in value["tests"]] == ["two"]
    assert value["tests"][0]["results"]["mode=bad,side=left"]["message"] == "left is bad"
    again = run(repo, required=["mode=good*"], refresh=["mode=bad,side=left"])
    assert (again.status, again.usage.asked, again.usage.cached) == ("complete", 1, 3)
    assert run(repo, on_red="report").status == "gaps"
    (repo / "suite.py").write_text(SUITE.replace('== "left"', '== "up"'), encoding="utf-8")
    git(repo, "commit", "-q", "-a", "-m", "Two")
    fixed = run(repo)
    assert (fixed.status, fixed.usage.asked) == ("complete", 4)
    subprocess.run(["rm", "-r", str(out)], check=True)  # noqa: S603, S607 -- our own folder
    assert (git(repo, "status", "--porcelain"), git(repo, "worktree", "list")[-7:]) == (before[0], before[2][-7:])


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_environments_that_come_to_no_result(repo: Path) -> None:
    """A set-up that fails and a time limit leave an environment without a result: red, tried again next time."""
    setup = 'if [ "$ITEM_SIDE" = left ]; then echo no such package >&2; exit 3; fi'
    command = 'if [ "$ITEM_MODE" = bad ]; then sleep 60; fi; python3 suite.py'
    fields: dict[str, Any] = {"axes": {"mode": ["good", "bad"], "side": ["left", "right"]}, "folder": str(repo)}
    with pytest.raises(DispatchFailed) as failed:
        run_matrix(command, setup=setup, time_limit_s=3.0, required=["mode=good,side=*"], **fields)
    report = failed.value.report
    assert {gap.item: gap.error.kind for gap in report.gaps} == {
        "mode=bad,side=left": "retry",
        "mode=bad,side=right": "timeout",
        "mode=good,side=left": "retry",
    }
    assert "no such package The set-up failed with exit code 3." in " ".join(report.message.split())
    [row] = [
        row for table in report.tables if table.name == "test-matrix" for row in table.rows if row["test"] == "one"
    ]
    assert [row[key] for key in row if "=" in key] == ["no result", "no result", "no result", "passed"]
    assert report.documents[0].text.count("there is a result") == 3
