"""`init` writes a job to begin with, `open` shows a report, and completions can be generated."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.cli.commands import COMPLETE, UNUSABLE, main
from prefect_dispatch.cli.init import TEMPLATES
from prefect_dispatch.cli.parser import FLOW_NAMES
from prefect_dispatch.flows.runtime.job_document import FLOWS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder is the current one."""
    monkeypatch.chdir(tmp_path)


def test_each_flow_has_a_template() -> None:
    """The names in the help are those of job files."""
    assert list(FLOW_NAMES) == list(TEMPLATES) == list(FLOWS)


@pytest.mark.timeout(300)  # litellm is imported for the first one
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("flow", FLOW_NAMES)
def test_a_template_can_be_planned(flow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it was written, over its three items; each key in it is explained."""
    assert main(["init", flow]) == COMPLETE
    assert capsys.readouterr().out.endswith(f"Next: prefect-dispatch plan {flow}/job.yaml\n")
    assert main(["plan", f"{flow}/job.yaml"]) == COMPLETE
    planned = capsys.readouterr().out
    count = 5 if flow == "test_matrix" else 3
    assert f"Fan out: {count} asks" in planned
    text = (tmp_path / flow / "job.yaml").read_text()
    assert text.startswith(f"# {TEMPLATES[flow][0]}\n")
    assert text.count(" # ") >= 5


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of the same name, or a folder that would become a repository, is refused before anything is written."""
    assert main(["init", "dispatch", "here"]) == COMPLETE
    (tmp_path / "here" / "job.yaml").write_text("mine")
    assert main(["init", "dispatch", "here"]) == UNUSABLE
    assert "'here/job.yaml' exists already, and nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "here" / "job.yaml").read_text() == "mine"
    (tmp_path / "there" / "project").mkdir(parents=True)
    assert main(["init", "test_matrix", "there"]) == UNUSABLE
    assert [each.name for each in (tmp_path / "there").iterdir()] == ["project"]
    assert main(["init", "dispatch", "here/job.yaml/below"]) == UNUSABLE
    assert "can't be written to: Not a directory" in capsys.readouterr().err


def test_a_template_without_git_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the flow needs a repository."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["init", "build_modules"]) == UNUSABLE
    assert "build_modules needs git, which is not on the PATH" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_agent_of_a_template_passes_its_tests(tmp_path: Path) -> None:
    """The stand-in writes what the goal of a module names."""
    assert main(["init", "build_modules"]) == COMPLETE
    project = tmp_path / "build_modules" / "project"
    goal = "Write greetings/bye.py with a function bye(name) that returns it.\nNot a function hello(name).\n"
    subprocess.run([tmp_path / "build_modules" / "agent.sh"], cwd=project, input=goal.encode(), check=True)  # noqa: S603 -- ours
    python = shutil.which("python3") or ""
    subprocess.run([python, "-m", "unittest", "tests.test_bye"], cwd=project, check=True)  # noqa: S603 -- ours


@pytest.mark.parametrize("report", ["out", "out/report.html", "out/report.json"])
def test_a_page_is_opened(
    report: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the folder, the page or the report beside it; the path is printed in any case."""
    opened = tmp_path / "opened"
    (tmp_path / "browser").write_text(f'#!/bin/sh\nprintf %s "$1" > "{opened}"\n')
    (tmp_path / "browser").chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{tmp_path}/browser %s")
    monkeypatch.setattr("webbrowser._tryorder", None)  # it reads BROWSER once
    (tmp_path / "out").mkdir()
    for name in ("report.html", "report.json"):
        (tmp_path / "out" / name).write_text("")
    assert main(["open", report]) == COMPLETE
    page = tmp_path / "out" / "report.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert opened.read_text() == page.as_uri()


def test_a_page_without_a_browser(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its path is printed, for another machine, say."""
    monkeypatch.setenv("BROWSER", f"{tmp_path}/none %s")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr("webbrowser._tryorder", None)
    (tmp_path / "report.html").write_text("")
    assert main(["open", "."]) == COMPLETE
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'report.html'}\n"
    assert "no browser was found" in said.err


@pytest.mark.parametrize("report", [".", "nope", "nope/report.json"])
def test_a_report_without_a_page_is_refused(report: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With what writes one."""
    assert main(["open", report]) == UNUSABLE
    assert "There is no report.html in '" in capsys.readouterr().err
