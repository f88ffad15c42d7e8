"""A real matrix: the tests of a library as it was released, on two Pythons with two versions of what it depends on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.cli import main

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("store")]

LIBRARY = "packaging-21.0"
PINNED = "packaging==21.0 --hash=sha256:7dc96269f53a4ccec5c0670940a4281106dd0bb343f47b7471f779df49c2fbe7\n"
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


def run(*command: str, folder: Path) -> None:
    """Run a command, which must end well."""
    subprocess.run(command, cwd=folder, check=True, capture_output=True)  # noqa: S603 -- our own


def interpreter(version: str) -> Path:
    """Return a Python of a version, from the path or from pyenv."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [Path(each) for each in [shutil.which(f"python{version}")] if each]
    say = "import sys; print('%d.%d' % sys.version_info[:2])"
    for python in [*found, *sorted(root.glob(f"versions/{version}.*/bin/python{version}"))]:
        said = subprocess.run([python, "-c", say], capture_output=True, text=True, check=False)  # noqa: S603 -- a Python
        if said.stdout.strip() == version:
            return python
    return (pytest.fail if os.environ.get("CI") else pytest.skip)(f"Python {version} is missing")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the library in a repository, both Pythons on the path, and a cache of uv's own."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert uv
    places = [*(str(interpreter(version).parent) for version in PYTHONS), str(Path(uv).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(places))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "pinned.txt").write_text(PINNED, encoding="utf-8")
    fetch = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--require-hashes", "-r", "pinned.txt"]
    run(uv, "tool", "run", "--quiet", "pip", *fetch, folder=tmp_path)
    with tarfile.open(tmp_path / f"{LIBRARY}.tar.gz") as sdist:
        sdist.extractall(tmp_path, filter="data")
    made = tmp_path / LIBRARY
    run("git", "init", "-q", folder=made)
    run("git", "add", "--force", ".", folder=made)
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    run("git", *who, "commit", "-q", "-m", "As released", folder=made)
    passed = sorted(name for name in os.environ if name.startswith("UV_") or name == "SSL_CERT_FILE")
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
