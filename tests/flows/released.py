"""Libraries as they were released: an sdist in a repository, Pythons to test it with, and pytest's own verdicts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def run(*command: str, folder: Path) -> None:
    """Run a command, which must end well."""
    subprocess.run(command, cwd=folder, check=True, capture_output=True)  # noqa: S603 -- our own


def find_interpreter(version: str) -> Path:
    """Return a Python of a version, from the path or from pyenv."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [Path(each) for each in [shutil.which(f"python{version}")] if each]
    say = "import sys; print('%d.%d' % sys.version_info[:2])"
    for python in [*found, *sorted(root.glob(f"versions/{version}.*/bin/python{version}"))]:
        said = subprocess.run([python, "-c", say], capture_output=True, text=True, check=False)  # noqa: S603 -- a Python
        if said.stdout.strip() == version:
            return python
    return (pytest.fail if os.environ.get("CI") else pytest.skip)(f"Python {version} is missing")


def prepare_environment(folder: Path, monkeypatch: pytest.MonkeyPatch, pythons: tuple[str, ...]) -> list[str]:
    """Put Pythons and uv on the path, with a cache of uv's own; return the variables to pass on."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert uv
    places = [*(str(find_interpreter(version).parent) for version in pythons), str(Path(uv).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(places))
    monkeypatch.setenv("UV_CACHE_DIR", str(folder / "cache"))
    return sorted(name for name in os.environ if name.startswith("UV_") or name == "SSL_CERT_FILE")


def fetch_sdist(folder: Path, pinned: str, unpacked: str) -> Path:
    """Return a repository that holds an sdist from PyPI as its one commit.

    Args:
        folder: Where it is made.
        pinned: The requirement, with its version and digest.
        unpacked: What the sdist calls its folder.
    """
    (folder / "pinned.txt").write_text(f"{pinned}\n", encoding="utf-8")
    fetch = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--require-hashes", "-r", "pinned.txt"]
    run("uv", "tool", "run", "--quiet", "pip", *fetch, folder=folder)
    with tarfile.open(folder / f"{unpacked}.tar.gz") as sdist:
        sdist.extractall(folder, filter="data")
    made = folder / unpacked
    run("git", "init", "-q", folder=made)
    run("git", "add", "--force", ".", folder=made)
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    run("git", *who, "commit", "-q", "-m", "As released", folder=made)
    return made


def read_own_verdicts(log: Path) -> dict[str, str]:
    """Return pytest's own verdict of each test, from the reports that it handed to its plugins.

    A test whose setup or teardown failed is an error; one that failed, or one of whose subtests did, has failed.
    """
    reports: dict[str, list[dict[str, Any]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        report = json.loads(line)
        if report["$report_type"].lower() in {"testreport", "subtestreport"}:
            reports.setdefault(report["nodeid"], []).append(report)
    return {case_of(nodeid): verdict_of(found) for nodeid, found in reports.items()}


def case_of(nodeid: str) -> str:
    """Return what a test is called in a JUnit report."""
    path, bracket, parameters = nodeid.partition("[")
    file, *names = path.split("::")
    called = ".".join([re.sub(r"\.py$", "", file.replace("/", ".")), *names[:-1]])
    text = f"{called}::{names[-1]}{bracket}{parameters}"
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: f"#x{ord(found[0]):02X}", text)


def verdict_of(reports: Sequence[Mapping[str, Any]]) -> str:
    """Return the verdict of a test."""
    own = [report for report in reports if report["$report_type"] == "TestReport"]
    if any(report["outcome"] == "failed" and report["when"] != "call" for report in own):
        return "error"
    if any(report["outcome"] == "failed" for report in reports):
        return "failed"
    skipped = [report for report in own if report["outcome"] == "skipped"]
    return ("xfailed" if "wasxfail" in skipped[0] else "skipped") if skipped else "passed"
