"""The merged value of test runs: environments, tests, and where each of them stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.integrators.gaps import gaps, unanswered
from prefect_dispatch.integrators.values import pointer
from prefect_dispatch.ledger import FieldRow, Flag, LedgerRow
from prefect_dispatch.test_run import RED, RUN, TestRun

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.matrix.comparing import Environment, Matrix, Row
    from prefect_dispatch.ledger import Ref
    from prefect_dispatch.models import Outcome
    from prefect_dispatch.test_run import TestCase

Entry = dict[str, "JsonValue"]


def value_of(matrix: Matrix, outcomes: Sequence[Outcome]) -> tuple[JsonValue, tuple[FieldRow, ...], tuple[Flag, ...]]:
    """Return the merged value, a field row for each part of it, and a flag for each flaky test."""
    refs = tuple(each.ref for each in matrix.answered)
    names = [each.name for each in matrix.answered]
    environments: list[JsonValue] = []
    tests: list[JsonValue] = []
    passed: list[JsonValue] = []
    fields: list[FieldRow] = []
    flags: list[Flag] = []
    for each in matrix.answered:
        told = _environment(each, each.run or TestRun())
        fields.append(_row(("environments", len(environments)), told, "verdict", (each.ref,)))
        environments.append(told)
    for row in matrix.rows:
        if row.plain:
            seconds: list[JsonValue] = [case.seconds if case else None for case in row.cases]
            passed.append({**_named(row), "same": row.same, "result": "passed", "seconds": seconds})
            continue
        path = ("tests", len(tests))
        more: Entry = {"same": row.same, "results": _results(row, names)}
        entry = _named(row) | more
        said = tuple(ref for ref, case in zip(refs, row.cases, strict=True) if case)
        fields.append(_row(path, entry, "compare", said))
        flags += _flaky(row, pointer(*path), matrix)
        tests.append(entry)
    if passed:
        fields.append(_row(("passed",), passed, "passed", refs))
    value: JsonValue = {"environments": environments, "tests": tests, "passed": passed, "gaps": gaps(outcomes)}
    return value, tuple(fields), tuple(flags)


def ledger_of(matrix: Matrix, outcomes: Sequence[Outcome]) -> tuple[LedgerRow, ...]:
    """Return where each environment ended."""
    ends = {each.ref: f"{each.verdict}: {said(each.run)}" for each in matrix.environments if each.run}
    return tuple(
        unanswered(outcome) or LedgerRow(**each.ref.model_dump(), disposition="merged", reason=ends[each.ref])
        for outcome, each in zip(_ordered(outcomes, matrix), matrix.environments, strict=True)
    )


def said(run: TestRun) -> str:
    """Return what came of a run in a few words.

    Example:
        >>> from prefect_dispatch.test_run import TestCase, TestRun
        >>> said(TestRun(exit=1, cases=(TestCase(name="a", result="failed"), TestCase(name="b", result="passed"))))
        '2 tests, 1 failed'
    """
    tests = sum(case.suite != RUN for case in run.cases)
    bad = [f"{run.counts[result]} {result}" for result in ("error", "failed", "flaky", "skipped") if run.counts[result]]
    return ", ".join([f"{tests} {'test' if tests == 1 else 'tests'}", *bad])


def _ordered(outcomes: Sequence[Outcome], matrix: Matrix) -> Iterator[Outcome]:
    known = {(outcome.brief, outcome.item): outcome for outcome in outcomes}
    return (known[each.ref.brief, each.ref.item] for each in matrix.environments)


def _environment(each: Environment, run: TestRun) -> Entry:
    return {
        "key": each.name,
        "verdict": each.verdict,
        "required": each.required,
        "tests": sum(case.suite != RUN for case in run.cases),
        "subtests": run.subtests,
        "counts": dict(run.counts),
        "exit": run.exit,
        "seconds": run.seconds,
        "reports": list(run.reports),
        "problems": list(run.problems),
        **({"output": run.output} if run.output else {}),
        **({"log": run.log} if run.log else {}),
    }


def _named(row: Row) -> Entry:
    suite, classname, name, file = row.key
    return {"suite": suite, "classname": classname, "name": name, **({"file": file} if file else {})}


def _results(row: Row, names: Sequence[str]) -> Entry:
    return {name: _case(case) for name, case in zip(names, row.cases, strict=True) if case}


def _case(case: TestCase) -> Entry:
    more: Entry = {"message": case.message} if case.message else {}
    more |= {"text": case.text} if case.text else {}
    more |= {"failures": list(case.failures)} if case.failures else {}
    more |= {"tries": case.tries} if case.tries > 1 else {}
    return {"result": case.result, "seconds": case.seconds, **more}


def _flaky(row: Row, path: str, matrix: Matrix) -> Iterator[Flag]:
    """Yield a flag for a test that passed and failed in one environment: its result there is chance."""
    where = [each for each, case in zip(matrix.answered, row.cases, strict=True) if case and case.result == "flaky"]
    if where:
        elsewhere = " It fails in others." if RED & set(row.results) else ""
        names = ", ".join(each.name for each in where)
        yield Flag(
            path=path,
            kind="flaky",
            text=row.label,
            message=f"It failed and then passed in {names}: a run says little of it.{elsewhere}",
            sources=tuple(each.ref for each in where),
        )


def _row(path: tuple[str | int, ...], winner: JsonValue, rule: str, sources: tuple[Ref, ...]) -> FieldRow:
    return FieldRow(path=pointer(*path), winner=winner, rule=f"test_matrix:{rule}", sources=sources)
