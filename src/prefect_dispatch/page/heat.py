"""The heat map of a test matrix: a letter and a duration for each test in each environment."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from prefect_dispatch.ledger import Ref
from prefect_dispatch.test_run import RED, RUN, Result, label

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.page.texts import Texts
    from prefect_dispatch.report import Report

CELLS = 1_500_000
"""Cells that a page shows, one for each test in each environment; of more tests, those in trouble go before."""
SAID = 5_000
"""Cells of which a page tells why they are no pass."""
MESSAGE, TEXT = 300, 1_000
"""Characters of a message, and of what the runner says at length."""
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

PASSED = ("passed", "flaky")
"""The verdicts of environments that have passed."""

_NO_RESULT = "no result"
_FIRST_WHOLE = 10
"""Milliseconds from which a duration is a whole number."""


@dataclass(slots=True)
class _Case:
    result: Result
    seconds: float
    message: str = ""
    text: str = ""
    tries: int = 1
    failures: list[str] = field(default_factory=list[str])


@dataclass(slots=True, kw_only=True)
class _Named:
    suite: str
    classname: str
    name: str
    same: str
    file: str = ""


@dataclass(slots=True, kw_only=True)
class _Test(_Named):
    results: dict[str, _Case]


@dataclass(slots=True, kw_only=True)
class _Passed(_Named):
    seconds: list[float | None]


@dataclass(slots=True)
class _Value:
    tests: list[_Test]
    passed: list[_Passed]


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


class _Line(NamedTuple):
    """One test, with its cell in each environment."""

    test: _Named
    cells: Sequence[_Case | None]
    """What came of it; None where it is absent."""

    @property
    def trouble(self) -> tuple[int, int]:
        """The place among others: failures first, then what differs, what is flaky, what is absent somewhere."""
        results = [cell.result for cell in self.cells if cell]
        red = sum(result in RED for result in results)
        signs = (red > 0, self.test.same == "differs", "flaky" in results, self.test.same == "absent", True)
        return (signs.index(True), -red)


def heat_map(report: Report, texts: Texts) -> dict[str, Any] | None:
    """Return the heat map of a report; None if its value is no test matrix.

    Args:
        report: The report.
        texts: Shows its texts.

    Returns:
        `environments`: what is known of each, in their order. `tests`: of each its label, its suite, whether it is the
        same, a letter for each environment (one for all, if all are the same), and its milliseconds in each (nothing,
        if they are 0). `of`: how many tests there are. `said`: message, text and tries of a cell, by its places.
    """
    try:
        rows = next(table.rows for table in report.tables if table.name == "environments")
        environments = _ENVIRONMENTS.validate_python(list(rows))
        lines = sorted(_lines(_VALUE.validate_python(report.value), environments), key=lambda line: line.trouble)
    except (StopIteration, ValidationError):
        return None
    shown = lines[: CELLS // max(len(environments), 1)]
    several = len({outcome.brief for outcome in report.outcomes}) > 1
    refs = {str(ref) if several else ref.item: ref for ref in map(Ref.of, report.outcomes)}
    found = [refs.get(each.environment) for each in environments]
    return {
        "environments": [
            asdict(each) | {"ref": [ref.brief, ref.item] if ref else None}
            for each, ref in zip(environments, found, strict=True)
        ],
        "results": {letter: result for result, letter in LETTERS.items()},
        "tests": [_row(line, environments) for line in shown],
        "of": len(lines),
        "said": dict(islice(_said(shown, texts), SAID)),
    }


def _lines(value: _Value, environments: Sequence[_Environment]) -> Iterator[_Line]:
    """Yield the tests."""
    names = [each.environment for each in environments]
    for test in value.tests:
        yield _Line(test, [test.results.get(name) for name in names])
    answered = [each.verdict != _NO_RESULT for each in environments]
    for other in value.passed:
        seconds = iter(other.seconds)
        yield _Line(other, [_passed(next(seconds, None)) if there else None for there in answered])


def _passed(seconds: float | None) -> _Case | None:
    return None if seconds is None else _Case("passed", seconds)


def _row(line: _Line, environments: Sequence[_Environment]) -> list[Any]:
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
    """Return milliseconds with the digits that matter: there are very many of them."""
    taken = seconds * 1000
    return round(taken) if taken >= _FIRST_WHOLE else round(taken, 2)


def _said(lines: Sequence[_Line], texts: Texts) -> Iterator[tuple[str, list[Any]]]:
    """Yield what is told of cells that say more than their letter."""
    for row, line in enumerate(lines):
        for column, cell in enumerate(line.cells):
            if cell and (cell.message or cell.text or cell.tries > 1):
                message = texts.preview(cell.message, MESSAGE)
                several = "".join(f"- {failure}\n" for failure in cell.failures)
                text = texts.preview(f"{several}\n{cell.text}" if several else cell.text, len(several) + TEXT)
                yield f"{row}/{column}", [message, text, cell.tries]
