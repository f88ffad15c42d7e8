"""Data of the heat map of a test matrix: a letter and a duration for each test in each environment."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.models.test_run import RED, RUN, Result, label

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.models.report import Report
    from prefect_dispatch.reporting.html.texts import TextPreviews

CELLS = 1_500_000
"""Most cells of a page, one for each test in each environment; failing and differing tests come first."""
SAID = 5_000
"""Most cells with details on why they aren't a pass."""
MAX_MESSAGE, MAX_TEXT = 300, 1_000
"""Most characters of a message, and of the details of the test runner."""
LETTERS = {
    "passed": "P",
    "xfailed": "X",
    "skipped": "S",
    "flaky": "K",
    "failed": "F",
    "error": "E",
    "absent": "-",
    "no result": "?",
}
"""The letter of each result."""

PASSED_VERDICTS = ("passed", "flaky")
"""The verdicts of environments that count as passed."""

_NO_RESULT = "no result"
_ROUNDED_FROM_MS = 10
"""Milliseconds from which a duration is rounded to an integer."""


@dataclass(slots=True)
class _Case:
    result: Result
    seconds: float
    message: str = ""
    text: str = ""
    tries: int = 1
    failures: list[str] = field(default_factory=list[str])


@dataclass(slots=True, kw_only=True)
class _TestName:
    suite: str
    classname: str
    name: str
    same: str
    file: str = ""


@dataclass(slots=True, kw_only=True)
class _Test(_TestName):
    results: dict[str, _Case]


@dataclass(slots=True, kw_only=True)
class _PassedTest(_TestName):
    seconds: list[float | None]


@dataclass(slots=True)
class _Value:
    tests: list[_Test]
    passed: list[_PassedTest]


@dataclass(slots=True)
class _Environment:
    environment: str
    verdict: str
    required: str
    tests: int | None
    seconds: float | None
    why: str


_VALUE = TypeAdapter(_Value)
_ENVIRONMENTS = TypeAdapter(list[_Environment])


class _TestLine(NamedTuple):
    """One test, with its cell in each environment."""

    test: _TestName
    cells: Sequence[_Case | None]
    """Its result in each environment; None where it is absent."""

    @property
    def severity(self) -> tuple[int, int]:
        """Sort key: failing tests (most failures first), then differing, flaky and partly absent ones."""
        results = [cell.result for cell in self.cells if cell]
        red = sum(result in RED for result in results)
        signs = (red > 0, self.test.same == "differs", "flaky" in results, self.test.same == "absent", True)
        return (signs.index(True), -red)


def build_heat_map(report: Report, texts: TextPreviews) -> dict[str, Any] | None:
    """Return the data of a report's heat map; None if its value is no test matrix.

    Args:
        report: The report.
        texts: Truncates and redacts texts.

    Returns:
        `environments`: the data of each environment, in their order. `tests`: for each test its label, its suite,
        whether its results are the same, a letter for each environment (a single one if all are equal), and its
        milliseconds in each (empty if all are 0). `of`: the number of all tests. `said`: message, text and tries of
        a cell, by `row/column`.
    """
    try:
        rows = next(table.rows for table in report.tables if table.name == "environments")
        environments = _ENVIRONMENTS.validate_python(list(rows))
        lines = sorted(_test_lines(_VALUE.validate_python(report.value), environments), key=lambda line: line.severity)
    except (StopIteration, ValidationError):
        return None
    shown = lines[: CELLS // max(len(environments), 1)]
    several = len({outcome.brief for outcome in report.outcomes}) > 1
    refs = {str(ref) if several else ref.item: ref for ref in map(Ref.of, report.outcomes)}
    refs_of_environments = [refs.get(each.environment) for each in environments]
    return {
        "environments": [
            asdict(each) | {"ref": [ref.brief, ref.item] if ref else None}
            for each, ref in zip(environments, refs_of_environments, strict=True)
        ],
        "results": {letter: result for result, letter in LETTERS.items()},
        "tests": [_test_data(line, environments) for line in shown],
        "of": len(lines),
        "said": dict(islice(_cell_details(shown, texts), SAID)),
    }


def _test_lines(value: _Value, environments: Sequence[_Environment]) -> Iterator[_TestLine]:
    """Yield a line for each test of a merged value."""
    names = [each.environment for each in environments]
    for test in value.tests:
        yield _TestLine(test, [test.results.get(name) for name in names])
    # Tests that passed everywhere are stored compactly: their seconds, in the order of environments with results.
    has_results = [each.verdict != _NO_RESULT for each in environments]
    for other in value.passed:
        seconds = iter(other.seconds)
        yield _TestLine(
            other, [_passed_case(next(seconds, None)) if has_result else None for has_result in has_results]
        )


def _passed_case(seconds: float | None) -> _Case | None:
    return None if seconds is None else _Case("passed", seconds)


def _test_data(line: _TestLine, environments: Sequence[_Environment]) -> list[Any]:
    """Return the data of a test: label, suite, whether its results are the same, letters, and milliseconds."""
    absent = "passed" if line.test.suite == RUN else "absent"
    letters = "".join(
        LETTERS[cell.result if cell else _NO_RESULT if each.verdict == _NO_RESULT else absent]
        for cell, each in zip(line.cells, environments, strict=True)
    )
    times = [_milliseconds(cell.seconds) if cell else None for cell in line.cells]
    test = line.test
    key = (test.suite, test.classname, test.name, test.file)
    return [
        label(key),
        test.suite,
        test.same,
        letters[:1] if len(set(letters)) == 1 else letters,
        times if any(times) else [],
    ]


def _milliseconds(seconds: float) -> float:
    """Return milliseconds, rounded to keep the page small."""
    milliseconds = seconds * 1000
    return round(milliseconds) if milliseconds >= _ROUNDED_FROM_MS else round(milliseconds, 2)


def _cell_details(lines: Sequence[_TestLine], texts: TextPreviews) -> Iterator[tuple[str, list[Any]]]:
    """Yield the details of the cells that have any: `row/column`, and message, text and tries."""
    for row, line in enumerate(lines):
        for column, cell in enumerate(line.cells):
            if cell and (cell.message or cell.text or cell.tries > 1):
                message = texts.preview(cell.message, MAX_MESSAGE)
                several = "".join(f"- {failure}\n" for failure in cell.failures)
                text = texts.preview(f"{several}\n{cell.text}" if several else cell.text, len(several) + MAX_TEXT)
                yield f"{row}/{column}", [message, text, cell.tries]
