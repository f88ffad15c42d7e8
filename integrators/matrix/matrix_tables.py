"""The tables of a test matrix, and what it is failed for."""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING

from prefect_dispatch.ledger import Table
from prefect_dispatch.test_run import RED, RUN, label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.matrix.comparing import Environment, Matrix, Row

MOST_ROWS = 2_000
"""With more tests than this, the table leaves out those that passed wherever they are."""
SLOWEST = 20
"""How many tests the table of durations has."""
NAMED, CELLS = 5, 3
"""How many environments a sentence names, and how many tests of each."""
LISTED = 20
"""How many environments a cell of a table names."""
NO_RESULT = "no result"

_TAKEN = ("test", "suite", "same")


def tables(matrix: Matrix) -> tuple[Table, ...]:
    """Return the tables of a matrix."""
    return (_tests(matrix), _environments(matrix), _differences(matrix), _slowest(matrix))


def broken(matrix: Matrix) -> str:
    """Return which required environments have not passed, and for which tests, in a sentence; empty if none.

    Args:
        matrix: The matrix.
    """
    required = [each for each in matrix.environments if each.required]
    red = [each for each in required if each.red]
    if not red:
        return ""
    named = "; ".join(f"{each.name} ({_why(each)})" for each in red[:NAMED])
    more = f"; and {len(red) - NAMED} more" if len(red) > NAMED else ""
    return f"{len(red)} of {len(required)} required environments did not pass: {named}{more}."


def _why(each: Environment) -> str:
    if not each.run:
        return each.error
    bad = [case for case in each.run.cases if case.result in RED]
    if not bad:
        return "every test was skipped" if each.run.cases else "no test ran"
    ordered = sorted(bad, key=lambda case: case.suite == RUN)  # tests first
    named = ", ".join(case.message.rstrip(".") if case.suite == RUN else label(case.key) for case in ordered[:CELLS])
    more = f" and {len(bad) - CELLS} more" if len(bad) > CELLS else ""
    end = each.run.distrust.removeprefix(" ".join(each.run.problems))
    return f"{len(bad)} failed: {named}{more}{'.' if end else ''}{end}"


def _tests(matrix: Matrix) -> Table:
    ranked = matrix.ranked
    shown = ranked if len(ranked) <= MOST_ROWS else [row for row in ranked if not row.plain]
    hidden = len(ranked) - len(shown)
    left_out = (
        f" {hidden} tests that passed wherever they exist are left out; see `passed` in the value." if hidden else ""
    )
    return Table(
        name="test-matrix",
        title="Tests and environments",
        rows=tuple({"test": row.label, "suite": row.key[0], "same": row.same, **_cells(row, matrix)} for row in shown),
        note="What failed comes first, then what differs between environments, is flaky or is absent somewhere. "
        "`absent`: the report has no such test; `no result`: the environment has no report at all." + left_out,
    )


def _cells(row: Row, matrix: Matrix) -> dict[str, JsonValue]:
    results = iter(row.results)
    return {
        f"environment {each.name}" if each.name in _TAKEN else each.name: next(results) if each.run else NO_RESULT
        for each in matrix.environments
    }


def _environments(matrix: Matrix) -> Table:
    rows: list[dict[str, JsonValue]] = []
    for each in matrix.environments:
        run = each.run
        counts: dict[str, JsonValue] = (
            dict(run.counts) if run else dict.fromkeys(("passed", "xfailed", "skipped", "flaky", "failed", "error"))
        )
        rows.append(
            {
                "environment": each.name,
                "verdict": each.verdict,
                "required": "yes" if each.required else "no",
                "tests": sum(case.suite != RUN for case in run.cases) if run else None,
                "subtests": run.subtests if run else None,
                **counts,
                "seconds": run.seconds if run else None,
                "seconds_in_tests": round(fsum(case.seconds for case in run.cases), 3) if run else None,
                "exit": run.exit if run else None,
                "why": run.distrust if run else each.error,
            }
        )
    return Table(
        name="environments",
        title="Environments",
        rows=tuple(rows),
        note="One row for each environment. `error` counts what is wrong with a run itself, too, which `why` tells.",
    )


def _differences(matrix: Matrix) -> Table:
    names = [each.name for each in matrix.answered]
    rows: list[dict[str, JsonValue]] = []
    for row in matrix.ranked:
        if row.same == "everywhere":
            continue
        groups: dict[str, list[str]] = {}
        for name, result in zip(names, row.results, strict=True):
            groups.setdefault(result, []).append(name)
        told = {result: _listed(groups.get(result, ())) for result in ("failed", "error", "flaky", "passed", "absent")}
        other = _listed([f"{name} ({result})" for result in ("skipped", "xfailed") for name in groups.get(result, ())])
        rows.append({"test": row.label, "suite": row.key[0], "same": row.same, **told, "not_run": other})
    return Table(
        name="differences",
        title="Tests that differ between environments",
        rows=tuple(rows),
        note="In which environments each of them came to what. `not_run`: skipped, or expected to fail.",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _slowest(matrix: Matrix) -> Table:
    names = [each.name for each in matrix.answered]
    timed = [(max(case.seconds for case in row.cases if case), row) for row in matrix.rows if row.key[0] != RUN]
    slow = sorted((pair for pair in timed if pair[0] > 0), key=lambda pair: -pair[0])[:SLOWEST]
    return Table(
        name="slowest",
        title="Slowest tests",
        rows=tuple(_duration(row, names) for _, row in slow),
        note="By the longest time in one environment, in seconds; the mean is over the environments that ran it.",
    )


def _duration(row: Row, names: Sequence[str]) -> dict[str, JsonValue]:
    times = [(case.seconds, name) for case, name in zip(row.cases, names, strict=True) if case]
    longest = max(seconds for seconds, _ in times)
    return {
        "test": row.label,
        "suite": row.key[0],
        "seconds": longest,
        "environment": next(name for seconds, name in times if seconds == longest),
        "mean_seconds": round(fsum(seconds for seconds, _ in times) / len(times), 6),
    }
