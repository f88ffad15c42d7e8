"""What pytest itself writes, subtests and all: each test has the verdict that pytest gave it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.executors.junit import read_report
from tests.flows.released import read_own_verdicts

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.models.test_run import TestCase, TestRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PLUGIN = """
import json
def pytest_report_to_serializable(config, report): pass
def pytest_runtest_logreport(report):
    more = {"wasxfail": report.wasxfail} if hasattr(report, "wasxfail") else {}
    line = {"nodeid": report.nodeid, "when": report.when, "outcome": report.outcome, **more}
    line["$report_type"] = type(report).__name__
    with open("own.jsonl", "a") as file: file.write(json.dumps(line) + "\\n")
"""
SUITE = """
import unittest
import pytest

def test_passes(): pass
def test_fails(): assert 1 == 2, "plain"
@pytest.mark.skip(reason="no")
def test_skips(): pass
@pytest.mark.xfail(reason="known")
def test_expected(): assert 0
@pytest.mark.xfail
def test_unexpected(): pass
@pytest.mark.xfail(strict=True)
def test_strict(): pass
@pytest.fixture
def broken(): raise RuntimeError("setup")
def test_setup(broken): pass
@pytest.fixture
def breaking():
    yield
    raise RuntimeError("teardown")
def test_teardown(breaking): pass
def test_both(breaking): assert 0, "its own"

def test_sub_passes(subtests):
    for at in range(50):
        with subtests.test("part", at=at): pass
def test_sub_fails(subtests):
    for at in range(5):
        with subtests.test("part", at=at): assert at < 2, f"number {at}"
def test_sub_and_own(subtests):
    with subtests.test("part"): assert 0, "of the part"
    assert 0, "of its own"
def test_sub_skips(subtests):
    with subtests.test("part"): pytest.skip("not here")
def test_sub_teardown(subtests, breaking):
    with subtests.test("part"): assert 0, "of the part"
@pytest.mark.parametrize("number", range(3))
def test_sub_of_parameters(subtests, number):
    with subtests.test("part"): assert number != 1
def test_many(subtests):
    for at in range(130):
        with subtests.test("part", at=at): assert 0, f"number {at}"

class TestUnits(unittest.TestCase):
    def test_passes(self):
        for at in range(3):
            with self.subTest(at=at): pass
    def test_fails(self):
        for at in range(3):
            with self.subTest(at=at): self.assertEqual(at, 9)
"""
SKIPPED_PART = "test_kinds::test_sub_skips"
"""It passes, and pytest's report says that it was skipped: a subtest was, and nothing tells the two apart."""


def run_pytest(folder: Path, *more: str) -> tuple[TestRun, dict[str, str]]:
    """Return what our reader, and what pytest itself, says of the suite."""
    (folder / "test_kinds.py").write_text(SUITE, encoding="utf-8")
    (folder / "conftest.py").write_text(PLUGIN, encoding="utf-8")
    base = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", ".", "--junitxml=r.xml"]
    args = [sys.executable, "-m", "pytest", *base, *more]
    done = subprocess.run(args, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 -- our own suite
    assert (folder / "r.xml").exists(), done.stdout + done.stderr
    run = read_report({"r.xml": (folder / "r.xml").read_bytes()}, done.returncode, root=str(folder))
    return run, read_own_verdicts(folder / "own.jsonl")


@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="xunit2"),
        pytest.param(("-o", "junit_family=xunit1"), id="xunit1"),
        pytest.param(("-o", "junit_family=legacy", "--tb=line"), id="legacy"),
        pytest.param(("-n", "2"), id="xdist"),
    ],
)
def test_every_kind_of_outcome(tmp_path: Path, more: tuple[str, ...]) -> None:
    """Each test has pytest's own verdict, however the report is written, and nothing is wrong with the run."""
    run, own = run_pytest(tmp_path, *more)
    assert own.pop(SKIPPED_PART) == "passed"
    ours = {f"{case.classname}::{case.name}": case.result for case in run.cases}
    assert ours.pop(SKIPPED_PART) == "skipped"
    assert ours == own
    assert (run.problems, run.verdict) == ((), "failed")
    assert run.subtests > 0


def test_every_failing_subtest_has_its_message(tmp_path: Path) -> None:
    """All messages of a test are kept, up to a hundred, in order; a failure and its teardown's are two."""
    run, _ = run_pytest(tmp_path)
    cases: dict[str, TestCase] = {case.name: case for case in run.cases if case.classname == "test_kinds"}
    failing = cases["test_sub_fails"]
    assert failing.message == "AssertionError: number 2 assert 2 < 2 (and 2 more)"
    assert failing.failures == tuple(f"AssertionError: number {at} assert {at} < 2" for at in (2, 3, 4))
    assert all(f"number {at}" in failing.text for at in (2, 3, 4))
    assert cases["test_sub_and_own"].failures == (
        "AssertionError: of the part assert 0",
        "AssertionError: of its own assert 0",
    )
    assert cases["test_both"].failures == (
        "AssertionError: its own assert 0",
        'failed on teardown with "RuntimeError: teardown"',
    )
    many = cases["test_many"]
    assert len(many.failures) == 101
    assert many.failures[-1] == "… and 30 more"
    assert many.message.endswith("(and 129 more)")
    assert (cases["test_fails"].failures, cases["test_sub_passes"].result) == ((), "passed")
    [units] = [case for case in run.cases if case.classname == "test_kinds.TestUnits" and case.name == "test_fails"]
    assert len(units.failures) == 3


def test_a_green_suite_with_subtests_passes(tmp_path: Path) -> None:
    """Pytest counts more tests than it writes cases for; that is no failure."""
    run, own = run_pytest(tmp_path, "-k", "passes")
    assert (run.verdict, run.problems, run.exit) == ("passed", (), 0)
    assert set(own.values()) == {"passed"}
    assert run.subtests == 53
