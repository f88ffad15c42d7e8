"""The example of a test matrix finds the mistake that only shows in some time zones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_dispatch.cli.commands import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "matrix"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example in a repository of its own; its python3 is the one with pytest."""
    shutil.copytree(EXAMPLE, tmp_path / "examples" / "matrix", ignore=shutil.ignore_patterns("__pycache__"))
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "One"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)  # noqa: S603, S607 -- git
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return tmp_path / "examples" / "matrix" / "job.yaml"


def test_the_plan(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plan says how many environments there are, runs nothing, and asks no model."""
    assert main(["plan", str(job)]) == 0
    told = capsys.readouterr()
    assert "6 items" in told.out
    assert told.err == ""


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_run(job: Path, tmp_path: Path) -> None:
    """West of Greenwich the morning fails, east of it the evening; in UTC all pass, whatever the mode."""
    assert main(["run", str(job), "--out", str(tmp_path / "report")]) == 1
    value = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["value"]
    red = {
        test["name"]: [name for name, case in test["results"].items() if case["result"] == "failed"]
        for test in value["tests"]
    }
    assert red == {
        "test_day[-11]": ["zone=EST5,utf8=0", "zone=EST5,utf8=1"],
        "test_day[11]": ["zone=IST-5:30,utf8=0", "zone=IST-5:30,utf8=1"],
    }
    assert [test["name"] for test in value["passed"]] == ["test_day[0]", "test_hour"]
