"""The example of modules that are built runs without a key, and its calculator calculates."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples.modules.agent import KNOWN
from examples.modules.make_repo import make
from prefect_dispatch.cli.commands import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "modules"


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_calculator_is_built(tmp_path: Path) -> None:
    """Three modules, one of which is sent back once; merged on a branch that passes all tests."""
    for name in ("build_modules.yaml", "agent.py"):
        shutil.copy(EXAMPLE / name, tmp_path)
    repo = tmp_path / "calculator"
    make(repo)
    assert main(["run", str(tmp_path / "build_modules.yaml"), "--out", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert {path for each in report["value"]["files"] for path in [each["path"]]} == {*KNOWN}
    assert (report["value"]["accepted"], report["value"]["gaps"]) == (True, [])
    said = {each["brief"]: each["value"] for each in report["value"]["said"]}
    assert said["parser"] == "calc/parser.py is written, with what binds closer minded."
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--branch", "agents/merged", str(repo), str(clone)], check=True)  # noqa: S603, S607 -- git
    done = subprocess.run(
        [sys.executable, "-c", "from calc import calculate; print(calculate('1 + 2*(3 - 4) / 4'))"],
        cwd=clone,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1/2\n"
