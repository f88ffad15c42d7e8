"""Reports of test matrices of any size, made without a run."""

from __future__ import annotations

from typing import Any

from prefect_dispatch.integrators.matrix_integrator import TestMatrix
from prefect_dispatch.models.ledger import Gap
from prefect_dispatch.models.outcome import Failure, Outcome
from prefect_dispatch.models.report import Report
from prefect_dispatch.models.test_run import RED, TestCase, TestRun
from tests.reports import START

ABSENT = 9
"""Every so many environments the last tests are absent."""


def matrix(environments: int, tests: int, *, text: str = "") -> Report:
    """Return the report of a matrix with every kind of result in it.

    Args:
        environments: How many; the last one has no result.
        tests: How many.
        text: What each name and each message says besides.
    """
    outcomes = [_outcome(at, tests, text) for at in range(environments - 1)]
    error = Failure(kind="timeout", message=f"No end after 60 s.{text}")
    lost = Outcome(brief="tests", item=_name(environments - 1) + text, status="failed", error=error)
    outcomes.append(lost)
    made = TestMatrix(required=("python=3.9*",), on_red="fail").merge([], outcomes)
    return Report(
        status="failed",
        message=made.failed,
        value=made.value,
        ledger=made.ledger,
        fields=made.fields,
        gaps=(Gap(brief="tests", item=lost.item, status="failed", error=error),),
        rules=made.rules,
        flags=made.flags,
        tables=made.tables,
        documents=made.documents,
        run={"started": START.isoformat(), "seconds": 61.0, "integrator": {"kind": "test_matrix"}, "limits": {}},
        outcomes=tuple(outcomes),
    )


def _name(at: int) -> str:
    return f"python=3.{9 + at % 5},attrs={22 + at // 5}"


def _outcome(at: int, tests: int, text: str) -> Outcome:
    there = tests - 2 if at % ABSENT == 1 and tests > 2 else tests
    cases = tuple(_case(at, test, text) for test in range(there))
    red = any(case.result in RED for case in cases)
    run = TestRun(exit=int(red), seconds=12.5, cases=cases, reports=("junit.xml",))
    value = run.model_dump(mode="json")
    return Outcome(brief="tests", item=_name(at) + text, status="succeeded", value=value, origin="asked")


def _case(at: int, test: int, text: str) -> TestCase:
    seconds = (test % 97) ** 2 / 1000
    fields: Any = {
        "suite": "pytest",
        "classname": f"tests.test_{test // 40}",
        "name": f"test_{test}[a-{test % 3}]{text}",
    }
    if test % 50 == 3 and at % 5 == 1:
        said = f"assert {at} == 0"
        return TestCase(**fields, result="failed", seconds=seconds, message=f"{said}{text}", text=f"E   {said}\n{text}")
    if test % 50 == 7 and at % 5 == 4:
        return TestCase(**fields, result="error", seconds=seconds, message="fixture 'db' not found")
    if test % 50 == 11 and at % 3 == 0:
        return TestCase(**fields, result="flaky", seconds=seconds, tries=2, message="timed out once")
    if test % 50 == 13:
        return TestCase(**fields, result="skipped", message="no network")
    if test % 50 == 17 and at % 2:
        return TestCase(**fields, result="xfailed", message="known")
    return TestCase(**fields, result="passed", seconds=seconds)
