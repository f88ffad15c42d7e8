"""The example of an integration suite: each environment has a service, a port and variables of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_dispatch.cli.commands import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "service"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example in a repository of its own; its python3 is the one with pytest."""
    shutil.copytree(EXAMPLE, tmp_path / "examples" / "service", ignore=shutil.ignore_patterns("__pycache__"))
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "One"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)  # noqa: S603, S607 -- git
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return tmp_path / "examples" / "service" / "job.yaml"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("store")
def test_the_run(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the version and the configuration in which a test fails; no service is left."""
    assert main(["run", str(job), "--out", str(tmp_path / "report")]) == 1
    value = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["value"]
    assert [(each["key"], each["verdict"]) for each in value["environments"]] == [
        ("service=1,config=euro", "passed"),
        ("service=1,config=franc", "passed"),
        ("service=2,config=euro", "passed"),
        ("service=2,config=franc", "failed"),
    ]
    assert [test["name"] for test in value["tests"]] == ["test_price[cake-388]"]
    printed = capsys.readouterr()
    told = " ".join(f"{printed.out}{printed.err}".split())
    assert "service=2,config=franc (1 failed: examples.service.test_prices::test_price[cake-388])" in told
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout  # noqa: S607 -- ps
    assert not [line for line in left.splitlines() if "examples/service/prices.py" in line and "/bin/sh" not in line]
