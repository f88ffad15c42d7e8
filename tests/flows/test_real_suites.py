"""Verdicts of a test matrix beside pytest's own: for the tests of libraries as they were released, test by test."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from prefect_dispatch.cli.commands import main
from tests.flows.released import fetch_sdist, prepare_environment, read_own_verdicts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("store")]

PYTHONS = ("3.10", "3.13")


class Suite(NamedTuple):
    """The tests of a library."""

    pinned: str
    """The sdist."""
    folder: str
    """What it calls its folder."""
    needs: str
    """What its tests need besides pytest."""
    tests: str
    """What pytest is called with."""
    different: dict[str, tuple[str, str]]
    """Tests that pytest's own JUnit report calls skipped, as a subtest was, and that passed: its verdict and ours."""


SUITES = {
    "python-slugify": Suite(
        "python-slugify==9.2.0 --hash=sha256:cee32948083476013804de1667724fb1362dacb71e47b1d5d92adf8db6ee3298",
        "python_slugify-9.2.0",
        "text-unidecode",
        "tests",
        {
            "tests.test_release.ReleaseRegressionTests::test_ascii_input_skips_backend_import": ("passed", "skipped"),
        },
    ),
}
"""Suites that use subtests, which pytest counts and writes no case for."""

JOB = """
flow: test_matrix
repo: {suite.folder}
axes:
  python: ["3.10", "3.13"]
setup: |
  uv venv --quiet --python "$ITEM_PYTHON" .venv
  uv pip install --quiet --python .venv pytest==9.0.2 pytest-reportlog==1.0.0 {suite.needs}
command: |
  export PYTHONPATH=.:src
  exec .venv/bin/python -m pytest -q {suite.tests} --report-log="$OWN_LOGS/$ITEM_PYTHON.jsonl" \\
      --junitxml="$REPORT_DIR/junit.xml"
concurrency: 2
pass_env: {passed}
on_red: report
out: report
"""


def verdicts(value: Mapping[str, Any], environment: str, at: int) -> Iterator[tuple[str, str]]:
    """Yield the verdict of each test in an environment, as report.json tells it."""
    for test in value["tests"]:
        if environment in test["results"] and test["suite"] == "pytest":
            yield f"{test['classname']}::{test['name']}", test["results"][environment]["result"]
    for test in value["passed"]:
        if test["seconds"][at] is not None:
            yield f"{test['classname']}::{test['name']}", "passed"


@pytest.mark.parametrize("name", SUITES)
def test_verdicts_are_those_of_pytest(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In each environment every test has the verdict that pytest gave it, subtests or not, and a green suite passes."""
    suite = SUITES[name]
    monkeypatch.setenv("OWN_LOGS", str(tmp_path))
    passed = [*prepare_environment(tmp_path, monkeypatch, PYTHONS), "OWN_LOGS"]
    fetch_sdist(tmp_path, suite.pinned, suite.folder)
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(suite=suite, passed=json.dumps(passed)), encoding="utf-8")
    code = main(["run", str(job)])
    value = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["value"]
    assert len(value["environments"]) == len(PYTHONS), capsys.readouterr().err
    green = True
    for at, environment in enumerate(value["environments"]):
        python = environment["key"].partition("=")[2]
        own, ours = read_own_verdicts(tmp_path / f"{python}.jsonl"), dict(verdicts(value, environment["key"], at))
        different = {test: (own.get(test), ours.get(test)) for test in own.keys() | ours.keys()}
        assert {test: pair for test, pair in different.items() if pair[0] != pair[1]} == suite.different
        counts, told = Counter(own.values()), environment["verdict"]
        assert told == ("failed" if counts["failed"] + counts["error"] else "passed")
        green &= told == "passed"
        with capsys.disabled():
            print(  # noqa: T201 -- the figures that this test is for
                f"\n{name}, Python {python}: {dict(counts)}, {environment['subtests']} subtests, {told}"
            )
    assert code == (0 if green else 3)
