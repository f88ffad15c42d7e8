"""Integrator `TestMatrix`: which test passes in which environment, and whether all required environments pass."""

from __future__ import annotations

import html
from collections import Counter
from fnmatch import fnmatchcase
from math import fsum
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from natsort import natsort_keygen
from pydantic import ConfigDict, Field, ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.junit import replace_illegal_characters
from prefect_dispatch.integrators.audit.recompute_matrix import format_junit, is_same_junit, recompute_matrix
from prefect_dispatch.integrators.base import BaseIntegrator, gaps, unanswered
from prefect_dispatch.models.base import Strict, did_you_mean
from prefect_dispatch.models.brief import Text
from prefect_dispatch.models.ledger import Document, FieldRow, Flag, LedgerRow, Merge, Ref, Table
from prefect_dispatch.models.test_run import RED, RESULTS, RUN, Key, TestCase, TestRun, label
from prefect_dispatch.security.escaping import count_noun, join_names
from prefect_dispatch.serialization.json_values import pointer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.outcome import Outcome


JsonObject = dict[str, "JsonValue"]
Agreement = Literal["everywhere", "differs", "absent"]
"""Whether a test has the same result everywhere; `absent`: it has wherever it exists, but is absent somewhere."""

_natural_key = natsort_keygen()


class Environment(NamedTuple):
    """Environment of a test run: one (brief, item)."""

    outcome: Outcome
    """The outcome."""
    name: str
    """The item's key; with several briefs, `brief/item`."""
    required: bool
    """Whether it has to pass."""
    run: TestRun | None
    """The test run; None if there is no answer."""

    @property
    def ref(self) -> Ref:
        """The outcome's reference."""
        return Ref.of(self.outcome)

    @property
    def error(self) -> str:
        """The reason why there is no answer; empty if there is one."""
        return "" if self.run else self.outcome.failure or self.outcome.status

    @property
    def verdict(self) -> str:
        """The verdict on the run; `no result` if there is no answer."""
        return self.run.verdict if self.run else "no result"

    @property
    def is_red(self) -> bool:
        """Whether it has not passed: tests failed, none ran, or there is no answer."""
        return self.verdict not in ("passed", "flaky")


class Row(NamedTuple):
    """One test in all environments with a result."""

    key: Key
    """The key that identifies the test."""
    cases: tuple[TestCase | None, ...]
    """The test's cases, in the order of the environments; None where it is absent."""

    @property
    def results(self) -> tuple[str, ...]:
        """The result in each environment; a missing test is `absent`, a missing problem of a run itself `passed`."""
        missing = "passed" if self.key[0] == RUN else "absent"
        return tuple(case.result if case else missing for case in self.cases)

    @property
    def agreement(self) -> Agreement:
        """Whether the result is the same everywhere."""
        results = set(self.results)
        if len(results - {"absent"}) > 1:
            return "differs"
        return "absent" if "absent" in results else "everywhere"

    @property
    def is_uneventful(self) -> bool:
        """Whether the test passed wherever it exists, at the first try and without any output."""
        return all(
            case is None or (case.result == "passed" and case.tries == 1 and not case.message and not case.text)
            for case in self.cases
        )

    @property
    def label(self) -> str:
        """The test's display name."""
        return label(self.key)

    @property
    def severity_key(self) -> tuple[int, int, int]:
        """Sort key by severity: failures first, then results that differ, flaky and absent tests."""
        # The position in RESULTS ranks results of the same kind.
        worst = max(RESULTS.index(case.result) for case in self.cases if case)
        red = sum(case.result in RED for case in self.cases if case)
        kind = 0 if red else 1 if self.agreement == "differs" else 2 if worst == RESULTS.index("flaky") else 3
        return (kind if kind < 3 or self.agreement == "absent" else 4 + self.is_uneventful, -worst, -red)  # noqa: PLR2004 -- ranks


class Matrix(NamedTuple):
    """All environments and all tests."""

    environments: list[Environment]
    """The environments, sorted by key."""
    rows: list[Row]
    """The tests, sorted by key, with numbers inside by their value."""

    @property
    def result_environments(self) -> list[Environment]:
        """The environments with a result, in the order of the cases of a row."""
        return [each for each in self.environments if each.run]

    @property
    def rows_by_severity(self) -> list[Row]:
        """The tests, sorted by severity."""
        return sorted(self.rows, key=lambda row: row.severity_key)


def matches_pattern(pattern: str, ref: Ref) -> bool:
    """Return whether a pattern matches an environment: its item's key or `brief/item`, literally or as a glob."""
    return any(pattern == name or fnmatchcase(name, pattern) for name in (ref.item, str(ref)))


def build_matrix(outcomes: Sequence[Outcome], required: Sequence[str]) -> Matrix:
    """Return the matrix of tests and environments.

    Args:
        outcomes: The outcomes, in any order.
        required: Patterns of the environments that have to pass.

    Raises:
        ValueError: If an answer is no test run.
    """
    many_briefs = len({outcome.brief for outcome in outcomes}) > 1
    environments: list[Environment] = []
    for outcome in sorted(outcomes, key=lambda outcome: Ref.of(outcome).order):
        ref = Ref.of(outcome)
        try:
            run = TestRun.model_validate(outcome.value) if outcome.status == "succeeded" else None
        except ValidationError:
            raise ValueError(f"the answer of {str(ref)!r} is no test run (prefect_dispatch.test_run:TestRun)") from None
        is_required = any(matches_pattern(pattern, ref) for pattern in required)
        environments.append(Environment(outcome, str(ref) if many_briefs else ref.item, is_required, run))
    # A row has one cell per run; a test that a run doesn't have stays None there.
    runs = [each.run for each in environments if each.run]
    cases: dict[Key, list[TestCase | None]] = {}
    for at, run in enumerate(runs):
        for case in run.cases:
            cases.setdefault(case.key, [None] * len(runs))[at] = case
    keys = sorted(cases, key=lambda key: (*map(_natural_key, key), key))
    return Matrix(environments, [Row(key, tuple(cases[key])) for key in keys])


def merged_value(matrix: Matrix) -> tuple[JsonValue, tuple[FieldRow, ...], tuple[Flag, ...]]:
    """Return the merged value, a field row for each part of it, and a flag for each flaky test."""
    refs = tuple(each.ref for each in matrix.result_environments)
    names = [each.name for each in matrix.result_environments]
    environments: list[JsonValue] = []
    tests: list[JsonValue] = []
    passed: list[JsonValue] = []
    fields: list[FieldRow] = []
    flags: list[Flag] = []
    for each in matrix.result_environments:
        environment = _environment_entry(each, each.run or TestRun())
        fields.append(_field_row(("environments", len(environments)), environment, "verdict", (each.ref,)))
        environments.append(environment)
    for row in matrix.rows:
        # Most tests just pass: they have a short entry without a result for each environment.
        if row.is_uneventful:
            seconds: list[JsonValue] = [case.seconds if case else None for case in row.cases]
            passed.append({**_test_fields(row), "same": row.agreement, "result": "passed", "seconds": seconds})
            continue
        path = ("tests", len(tests))
        comparison: JsonObject = {"same": row.agreement, "results": _result_entries(row, names)}
        entry = _test_fields(row) | comparison
        sources = tuple(ref for ref, case in zip(refs, row.cases, strict=True) if case)
        fields.append(_field_row(path, entry, "compare", sources))
        flags += _flaky_flags(row, pointer(*path), matrix)
        tests.append(entry)
    if passed:
        fields.append(_field_row(("passed",), passed, "passed", refs))
    missing = gaps(each.outcome for each in matrix.environments)
    value: JsonValue = {"environments": environments, "tests": tests, "passed": passed, "gaps": missing}
    return value, tuple(fields), tuple(flags)


def ledger_rows(matrix: Matrix) -> Iterator[LedgerRow]:
    """Yield the ledger row of each environment."""
    for each in matrix.environments:
        summary = f"{each.verdict}: {summarize_run(each.run or TestRun())}"
        yield unanswered(each.outcome) or LedgerRow(**each.ref.model_dump(), disposition="merged", reason=summary)


def summarize_run(run: TestRun) -> str:
    """Return a summary of a test run in a few words.

    Example:
        >>> from prefect_dispatch.models.test_run import TestCase, TestRun
        >>> cases = (TestCase(name="a", result="failed"), TestCase(name="b", result="passed"))
        >>> summarize_run(TestRun(exit=1, cases=cases))
        '2 tests, 1 failed'
    """
    tests = sum(case.suite != RUN for case in run.cases)
    other_counts = [
        f"{run.counts[result]} {result}" for result in ("error", "failed", "flaky", "skipped") if run.counts[result]
    ]
    return ", ".join([count_noun(tests, "test"), *other_counts])


def _environment_entry(each: Environment, run: TestRun) -> JsonObject:
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


def _test_fields(row: Row) -> JsonObject:
    suite, classname, name, file = row.key
    return {"suite": suite, "classname": classname, "name": name, **({"file": file} if file else {})}


def _result_entries(row: Row, names: Sequence[str]) -> JsonObject:
    return {name: _case_entry(case) for name, case in zip(names, row.cases, strict=True) if case}


def _case_entry(case: TestCase) -> JsonObject:
    more: JsonObject = {"message": case.message} if case.message else {}
    more |= {"text": case.text} if case.text else {}
    more |= {"failures": list(case.failures)} if case.failures else {}
    more |= {"tries": case.tries} if case.tries > 1 else {}
    return {"result": case.result, "seconds": case.seconds, **more}


def _flaky_flags(row: Row, path: str, matrix: Matrix) -> Iterator[Flag]:
    """Yield a flag for a test that failed and passed in one environment: its result there is random."""
    where = [
        each
        for each, case in zip(matrix.result_environments, row.cases, strict=True)
        if case and case.result == "flaky"
    ]
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


def _field_row(path: tuple[str | int, ...], winner: JsonValue, rule: str, sources: tuple[Ref, ...]) -> FieldRow:
    return FieldRow(path=pointer(*path), winner=winner, rule=f"test_matrix:{rule}", sources=sources)


MAX_TABLE_ROWS = 2_000
"""Above this number of tests, the table leaves out those that passed wherever they exist."""
MAX_SLOWEST_TESTS = 20
"""Maximum number of tests in the table of durations."""
MAX_LISTED_ENVIRONMENTS, MAX_LISTED_TESTS = 5, 3
"""Maximum number of environments in a sentence, and of tests of each."""
MAX_CELL_NAMES = 20
"""Maximum number of environments in a cell of a table."""
NO_RESULT = "no result"
_COLUMNS = ("test", "suite", "same")


def failure_message(matrix: Matrix) -> str:
    """Return a sentence on the required environments that have not passed, with their tests; empty if all passed.

    Args:
        matrix: The matrix.
    """
    required = [each for each in matrix.environments if each.required]
    red = [each for each in required if each.is_red]
    if not red:
        return ""
    listed = "; ".join(f"{each.name} ({_failure_reason(each)})" for each in red[:MAX_LISTED_ENVIRONMENTS])
    more = f"; and {len(red) - MAX_LISTED_ENVIRONMENTS} more" if len(red) > MAX_LISTED_ENVIRONMENTS else ""
    return f"{len(red)} of {len(required)} required environments did not pass: {listed}{more}."


def _failure_reason(each: Environment) -> str:
    """Return why an environment is red: its first failed tests, or why there is no result."""
    if not each.run:
        return each.error
    red_cases = [case for case in each.run.cases if case.result in RED]
    if not red_cases:
        return "every test was skipped" if each.run.cases else "no test ran"
    ordered = sorted(red_cases, key=lambda case: case.suite == RUN)  # tests first
    listed = join_names(
        (case.message.rstrip(".") if case.suite == RUN else label(case.key) for case in ordered), MAX_LISTED_TESTS
    )
    end = each.run.distrust_reason.removeprefix(" ".join(each.run.problems))
    return f"{len(red_cases)} failed: {listed}{'.' if end else ''}{end}"


_TABLES = {
    "test-matrix": (
        "Tests and environments",
        (
            "What failed comes first, then what differs between environments, is flaky or is absent somewhere. "
            "`absent`: the report has no such test; `no result`: the environment has no report at all."
        ),
    ),
    "environments": (
        "Environments",
        "One row for each environment. `error` counts what is wrong with a run itself, too, which `why` names.",
    ),
    "differences": (
        "Tests that differ between environments",
        "In which environments each of them came to what. `not_run`: skipped, or expected to fail.",
    ),
    "slowest": (
        "Slowest tests",
        "By the longest time in one environment, in seconds; the mean is over the environments that ran it.",
    ),
}
"""Title and note of each table, by its name."""
_JUNIT = ("junit.xml", "All environments as one JUnit report")


def _table(name: str, rows: Iterable[dict[str, JsonValue]], hidden: int = 0) -> Table:
    """Return a table of the report.

    Args:
        name: Its name.
        rows: Its rows.
        hidden: The number of tests that it leaves out.
    """
    title, note = _TABLES[name]
    if hidden:
        note += f" {hidden} tests that passed wherever they exist are left out; see `passed` in the value."
    return Table(name=name, title=title, rows=tuple(rows), note=note)


def _tests_table(matrix: Matrix) -> Table:
    ranked = matrix.rows_by_severity
    shown = ranked if len(ranked) <= MAX_TABLE_ROWS else [row for row in ranked if not row.is_uneventful]
    hidden = len(ranked) - len(shown)
    rows = [
        {"test": row.label, "suite": row.key[0], "same": row.agreement, **_result_cells(row, matrix)} for row in shown
    ]
    return _table("test-matrix", rows, hidden)


def _result_cells(row: Row, matrix: Matrix) -> dict[str, JsonValue]:
    """Return the result of a test by environment; an environment named like another column gets a prefix."""
    results = iter(row.results)
    return {
        f"environment {each.name}" if each.name in _COLUMNS else each.name: next(results) if each.run else NO_RESULT
        for each in matrix.environments
    }


def _environments_table(matrix: Matrix) -> Table:
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
                "why": run.distrust_reason if run else each.error,
            }
        )
    return _table("environments", rows)


def _differences_table(matrix: Matrix) -> Table:
    names = [each.name for each in matrix.result_environments]
    rows: list[dict[str, JsonValue]] = []
    for row in matrix.rows_by_severity:
        if row.agreement == "everywhere":
            continue
        groups: dict[str, list[str]] = {}
        for name, result in zip(names, row.results, strict=True):
            groups.setdefault(result, []).append(name)
        by_result = {
            result: join_names(groups.get(result, ()), MAX_CELL_NAMES)
            for result in ("failed", "error", "flaky", "passed", "absent")
        }
        other = join_names(
            (f"{name} ({result})" for result in ("skipped", "xfailed") for name in groups.get(result, ())),
            MAX_CELL_NAMES,
        )
        rows.append({"test": row.label, "suite": row.key[0], "same": row.agreement, **by_result, "not_run": other})
    return _table("differences", rows)


def _slowest_table(matrix: Matrix) -> Table:
    names = [each.name for each in matrix.result_environments]
    timed = [(max(case.seconds for case in row.cases if case), row) for row in matrix.rows if row.key[0] != RUN]
    slow = sorted((pair for pair in timed if pair[0] > 0), key=lambda pair: -pair[0])[:MAX_SLOWEST_TESTS]
    return _table("slowest", [_duration_row(row, names) for _, row in slow])


def _duration_row(row: Row, names: Sequence[str]) -> dict[str, JsonValue]:
    times = [(case.seconds, name) for case, name in zip(row.cases, names, strict=True) if case]
    longest = max(seconds for seconds, _ in times)
    return {
        "test": row.label,
        "suite": row.key[0],
        "seconds": longest,
        "environment": next(name for seconds, name in times if seconds == longest),
        "mean_seconds": round(fsum(seconds for seconds, _ in times) / len(times), 6),
    }


_ELEMENTS = {"failed": "failure", "error": "error", "skipped": "skipped", "xfailed": "skipped", "flaky": "flakyFailure"}
"""XML element of each result; Jenkins and Surefire read `flakyFailure`, other readers ignore it and count a pass."""
_BREAKS = str.maketrans({"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def render_junit(matrix: Matrix) -> str:
    """Return the JUnit file. An environment without a result is a suite with one error that states the reason."""
    cache: dict[tuple[Key, bool], str] = {}  # attributes of a test are the same in every environment
    # The totals of the root element come first, so that all cases are collected before anything is written.
    suites = [(each, _junit_cases(each)) for each in matrix.environments]
    all_cases = [case for _, cases in suites for case in cases]
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f"<testsuites{_count_attributes(all_cases)}>"]
    for each, cases in suites:
        seconds = each.run.seconds if each.run else 0.0
        lines.append(f'  <testsuite name="{_escape_attribute(each.name)}"{_count_attributes(cases, seconds)}>')
        lines += _junit_lines(cases, cache)
        lines.append("  </testsuite>")
    return "\n".join([*lines, "</testsuites>", ""])


def _junit_cases(each: Environment) -> Sequence[TestCase]:
    """Return the test cases of an environment; without any, one error that states the reason."""
    if each.run and each.run.cases:
        return each.run.cases
    message = each.error or "The run has no test."
    return [TestCase(suite=RUN, name="there is a result", result="error", message=message)]


def _junit_lines(cases: Sequence[TestCase], cache: dict[tuple[Key, bool], str]) -> Iterator[str]:
    """Yield the test cases; a suite is part of the class name where class and name alone are ambiguous."""
    names = Counter(case.key[1:] for case in cases)
    for case in cases:
        key = case.key
        cache_key = key, names[key[1:]] > 1
        if cache_key not in cache:
            cache[cache_key] = _format_attributes(_junit_identity(*cache_key))
        start = f'    <testcase{cache[cache_key]} time="{case.seconds:.6f}"'
        if (element := _ELEMENTS.get(case.result)) is None:
            yield f"{start}/>"
            continue
        kind = ' type="pytest.xfail"' if case.result == "xfailed" else ""
        message = f' message="{_escape_attribute(case.message)}"' if case.message else ""
        several = "".join(f"{failure}\n" for failure in case.failures)
        text = html.escape(replace_illegal_characters(f"{several}\n{case.text}" if several else case.text), quote=False)
        yield f"{start}><{element}{kind}{message}>{text}</{element}></testcase>"


def _junit_identity(key: Key, is_twice: bool) -> dict[str, str]:  # noqa: FBT001 -- a part of the cache key
    """Return the attributes that identify a test case in the JUnit file."""
    suite, classname, name, file = key
    if suite and suite != classname and (not classname or is_twice):
        classname = f"{suite} > {classname}" if classname else suite
    return {"classname": classname, "name": name, **({"file": file} if file else {})}


def _count_attributes(cases: Sequence[TestCase], seconds: float = 0.0) -> str:
    """Return the counting attributes of a suite or of the whole file."""
    counts = Counter(case.result for case in cases)
    total = seconds or fsum(case.seconds for case in cases)
    return (
        f' tests="{len(cases)}" failures="{counts["failed"]}" errors="{counts["error"]}" '
        f'skipped="{counts["skipped"] + counts["xfailed"]}" time="{total:.6f}"'
    )


def _format_attributes(values: Mapping[str, str]) -> str:
    return "".join(f' {name}="{_escape_attribute(text)}"' for name, text in values.items())


def _escape_attribute(text: str) -> str:
    return html.escape(replace_illegal_characters(text)).translate(_BREAKS)


TEST_RUN_OUTPUT = "prefect_dispatch.test_run:TestRun"
"""The `output` of a brief whose answers are test runs."""


class TestMatrix(BaseIntegrator, Strict):
    """Compares test runs: every item is an environment, and every answer a `TestRun`.

    An environment is red if a test of it failed, if report and exit code don't agree (see `read_report`), if no
    test ran, or if there is no answer at all. Flaky tests, which passed after they had failed, are reported apart
    from failing ones and make no environment red.

    **Value.** `{"environments": […], "tests": […], "passed": […], "gaps": […]}`. `environments`: verdict, counts,
    seconds and problems of each that has a result. `tests`: each test with any result other than a pass, with its
    `results` by environment, and whether it is the `same`: `everywhere`, it `differs`, or it is `absent` from some.
    `passed`: each test that passed wherever it exists, with its seconds in the order of the environments, null where
    it is absent. `gaps`: environments without a result.

    **Other output.** The document `junit.xml`, with a suite for each environment, errors of the runs themselves
    included; the tables `test-matrix`, `environments`, `differences` and `slowest`.

    Example:
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> from prefect_dispatch.models.test_run import TestCase, TestRun
        >>> def outcome(key, result):
        ...     run = TestRun(exit=int(result == "failed"), cases=[TestCase(name="test_a", result=result)])
        ...     return Outcome(brief="tests", item=key, status="succeeded", value=run.model_dump(mode="json"))
        >>> merge = TestMatrix(required=["3.13"]).merge([], [outcome("3.10", "passed"), outcome("3.13", "failed")])
        >>> merge.failed
        '1 of 1 required environments did not pass: 3.13 (1 failed: test_a).'
    """

    __test__: ClassVar[bool] = False  # pytest must not collect it

    model_config = ConfigDict(title="Test matrix")

    kind: Literal["test_matrix"] = "test_matrix"
    """Discriminates between integrators."""
    required: Literal["all"] | Annotated[tuple[Text, ...], Field(title="By name")] = "all"
    """The environments that have to pass: all, or globs of items' keys (or of `brief/item`)."""
    on_red: Literal["fail", "report"] = "fail"
    """What happens if a required environment does not pass: the run fails, or completes with gaps."""

    def with_items(self, briefs: Sequence[Brief], items: Sequence[Item]) -> TestMatrix:
        """Return this integrator, after a check that all required environments exist.

        Raises:
            JobError: If a pattern matches no environment.
        """
        refs = [Ref(brief=brief.name, item=item.key) for brief in briefs for item in items]
        for pattern in self._patterns:
            if not any(matches_pattern(pattern, ref) for ref in refs):
                hint = did_you_mean(pattern, [item.key for item in items])
                raise JobError(f"required: no environment is called {pattern!r}, or matches it; {hint}")
        return self

    def preflight(self, briefs: Sequence[Brief]) -> None:
        """Check that answers are test runs.

        Raises:
            JobError: If a brief asks for something else.
        """
        for brief in briefs:
            output = brief.output
            if output != TEST_RUN_OUTPUT and not (isinstance(output, type) and issubclass(output, TestRun)):
                raise JobError(
                    f"Brief {brief.name!r} doesn't ask for a test run, which 'test_matrix' compares; give it "
                    f"'output: {TEST_RUN_OUTPUT}'."
                )

    @property
    def _patterns(self) -> tuple[str, ...]:
        return ("*",) if self.required == "all" else self.required

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:  # noqa: ARG002 -- the signature of every integrator
        """Return the result of each test in each environment.

        Raises:
            ValueError: If an answer is no test run.
        """
        matrix = build_matrix(outcomes, self._patterns)
        value, fields, flags = merged_value(matrix)
        red_message = failure_message(matrix)
        return Merge(
            value=value,
            ledger=tuple(ledger_rows(matrix)),
            fields=fields,
            rules=self._rules(),
            flags=flags,
            tables=(
                _tests_table(matrix),
                _environments_table(matrix),
                _differences_table(matrix),
                _slowest_table(matrix),
            ),
            documents=(Document(name=_JUNIT[0], title=_JUNIT[1], text=render_junit(matrix)),),
            failed=red_message if self.on_red == "fail" else "",
            shortfalls=(red_message,) if red_message and self.on_red == "report" else (),
        )

    def recompute(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Merge | None:  # noqa: ARG002 -- the signature of every integrator
        """Return the merge that the test runs result in, without the code that merges them."""
        expected = recompute_matrix(outcomes, self._patterns)
        [text] = [each.text for each in merge.documents if each.name == _JUNIT[0]] or [""]
        if not is_same_junit(text, expected.junit):
            text = format_junit(expected.junit)
        hidden = {"test-matrix": expected.left_out}
        return Merge(
            value=expected.value,
            ledger=expected.ledger,
            fields=expected.fields,
            rules=self._rules(),
            flags=expected.flags,
            tables=tuple(_table(name, expected.tables[name], hidden.get(name, 0)) for name in _TABLES),
            documents=(Document(name=_JUNIT[0], title=_JUNIT[1], text=text),),
            failed=expected.red if self.on_red == "fail" else "",
            shortfalls=(expected.red,) if expected.red and self.on_red == "report" else (),
        )

    def _rules(self) -> str:
        required = (
            "Every environment"
            if self.required == "all"
            else f"Each environment that {', '.join(map(repr, self.required))} means"
        )
        then = "the run fails" if self.on_red == "fail" else "the run completes with gaps"
        return (
            "Tests are the same if suite, class, name and file are. A test that passed after it had failed is flaky, "
            "which makes no environment red. An environment is red if a test failed or could not be run, if its report "
            "and the exit code don't agree, if no test ran, or if it has no result. "
            f"{required} has to pass, else {then}."
        )
