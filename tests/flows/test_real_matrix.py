"""A real matrix: the tests of a library as it was released, on two Pythons with two versions of what it depends on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.cli.commands import main
from tests.flows.released import fetch_sdist, prepare_environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("store")]

LIBRARY = "packaging-21.0"
PINNED = "packaging==21.0 --hash=sha256:7dc96269f53a4ccec5c0670940a4281106dd0bb343f47b7471f779df49c2fbe7"
PYTHONS = ("3.10", "3.13")
JOB = """
flow: test_matrix
repo: packaging-21.0
axes:
  python: ["3.10", "3.13"]
  pyparsing: ["2.4.7", "3.0.9"]
setup: |
  uv venv --quiet --python "$ITEM_PYTHON" .venv
  uv pip install --quiet --python .venv pytest==8.4.2 pretend==1.0.9 "pyparsing==$ITEM_PYPARSING"
command: |
  export PYTHONPATH=.
  exec .venv/bin/python -m pytest -q tests/test_requirements.py tests/test_markers.py --junitxml="$REPORT_DIR/junit.xml"
required: ["python=3.10,*"]
concurrency: 2
out: report
"""
CLASS = "tests.test_requirements.TestRequirements"
BREAKS = "test_parseexception_error_msg"
"""pyparsing 3 words an error otherwise."""
DIFFERS = "test_invalid_file_urls"
"""Python 3.13 takes a URL that this release's test wants refused."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the library in a repository, both Pythons on the path, and a cache of uv's own."""
    passed = prepare_environment(tmp_path, monkeypatch, PYTHONS)
    fetch_sdist(tmp_path, PINNED, LIBRARY)
    (tmp_path / "job.yaml").write_text(f"{JOB}pass_env: {json.dumps(passed)}\n", encoding="utf-8")
    return tmp_path


def red(tests: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return in which environments each test failed."""
    found = {
        test["name"]: [name for name, case in test["results"].items() if case["result"] == "failed"] for test in tests
    }
    return {name: where for name, where in found.items() if where}


def test_the_broken_cell_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report says which version of the dependency breaks which test, and which one the Python breaks instead."""
    assert main(["run", str(folder / "job.yaml")]) == 1
    told = capsys.readouterr()
    said = f"1 of 2 required environments did not pass: python=3.10,pyparsing=3.0.9 (1 failed: {CLASS}::{BREAKS})"
    assert said in f"{told.out}{told.err}".replace("\n", " ")
    report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    assert red(report["value"]["tests"]) == {
        BREAKS: ["python=3.10,pyparsing=3.0.9", "python=3.13,pyparsing=3.0.9"],
        DIFFERS: ["python=3.13,pyparsing=2.4.7", "python=3.13,pyparsing=3.0.9"],
    }
    assert [each["verdict"] for each in report["value"]["environments"]] == ["passed", "failed", "failed", "failed"]
    assert len(report["value"]["passed"]) > 1_000
    merged = (folder / "report" / "junit.xml").read_text(encoding="utf-8")
    assert merged.count("<failure") == 4
    assert main(["run", str(folder / "job.yaml"), "--set", "on_red=report"]) == 3
    report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    assert (report["usage"]["asked"], report["usage"]["cached"]) == (0, 4)
