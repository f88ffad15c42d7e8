"""The comparison of test runs, computed once more for the audit: from the runs alone, without the code that merges.

The JUnit report is built as a tree of elements and compared by its canonical form.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from fnmatch import fnmatchcase
from math import fsum
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree as ET

from natsort import natsort_keygen

from prefect_dispatch.executors.junit import replace_illegal_characters
from prefect_dispatch.integrators.base import gaps, unanswered
from prefect_dispatch.models.ledger import FieldRow, Flag, LedgerRow, Ref
from prefect_dispatch.models.test_run import RED, RESULTS, RUN, TestCase, TestRun, label
from prefect_dispatch.security.escaping import join_names
from prefect_dispatch.serialization.json_values import pointer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.models.test_run import Key

Cells = dict[str, "JsonValue"]
_natural = natsort_keygen()
_LISTED_ENVIRONMENTS, _LISTED_TESTS, _LISTED_NAMES, _SLOWEST, _TABLE_ROWS = 5, 3, 20, 20, 2_000
_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
_TAGS = {"failed": "failure", "error": "error", "skipped": "skipped", "xfailed": "skipped", "flaky": "flakyFailure"}
_COLUMNS = ("test", "suite", "same")


class TestedItem(NamedTuple):
    """One environment."""

    outcome: Outcome
    name: str
    is_required: bool
    run: TestRun | None
    """None if there is no answer."""

    @property
    def why(self) -> str:
        """Why there is no answer."""
        return "" if self.run else self.outcome.failure or self.outcome.status

    @property
    def verdict(self) -> str:
        """The verdict on its run."""
        return self.run.verdict if self.run else "no result"

    @property
    def tests(self) -> int:
        """The number of its tests."""
        return sum(case.suite != RUN for case in self.run.cases) if self.run else 0


class ComparedTest(NamedTuple):
    """One test in all environments with a result."""

    key: Key
    cases: list[TestCase | None]

    @property
    def results(self) -> list[str]:
        """Its result in each environment."""
        missing = "passed" if self.key[0] == RUN else "absent"
        return [case.result if case else missing for case in self.cases]

    @property
    def same(self) -> str:
        """Whether the result is the same in all environments."""
        found = set(self.results)
        return "differs" if len(found - {"absent"}) > 1 else "absent" if "absent" in found else "everywhere"

    @property
    def is_quiet(self) -> bool:
        """Whether it passed at once, without a word, wherever it exists."""
        loud = (case for case in self.cases if case and (case.message or case.text or case.tries > 1))
        return {case.result for case in self.cases if case} == {"passed"} and not any(loud)

    @property
    def severity(self) -> tuple[int, int, int]:
        """Sort key: red, different, flaky, absent, other and quiet tests; within these the worst result first."""
        given = [case.result for case in self.cases if case]
        worst = max(map(RESULTS.index, given))
        red = sum(result in RED for result in given)
        order = (red > 0, self.same == "differs", RESULTS[worst] == "flaky", self.same == "absent", not self.is_quiet)
        return (order.index(True) if any(order) else len(order), -worst, -red)


class ExpectedMatrix(NamedTuple):
    """What a merge of test runs must have."""

    value: JsonValue
    fields: tuple[FieldRow, ...]
    flags: tuple[Flag, ...]
    ledger: tuple[LedgerRow, ...]
    tables: dict[str, list[Cells]]
    """The rows of each table, by its name."""
    left_out: int
    """Number of quiet tests that the table of tests leaves out."""
    red: str
    """Sentence on required environments that did not pass; empty if all did."""
    junit: ET.Element
    """The JUnit report."""


def recompute_matrix(outcomes: Sequence[Outcome], required: Sequence[str]) -> ExpectedMatrix:
    """Return what the merge of test runs must have.

    Args:
        outcomes: The outcomes, in any order.
        required: Patterns of the environments that have to pass.
    """
    # 1. The environments in order, and each test with its case in each environment that has a result.
    items = [*_list_items(outcomes, required)]
    ran = [(item, item.run) for item in items if item.run]
    by_key: dict[Key, list[TestCase | None]] = defaultdict(lambda: [None] * len(ran))
    for at, (_, run) in enumerate(ran):
        for case in run.cases:
            by_key[case.key][at] = case
    tests = [ComparedTest(key, by_key[key]) for key in sorted(by_key, key=lambda key: (*map(_natural, key), key))]
    refs = tuple(Ref.of(item.outcome) for item, _ in ran)
    names = [item.name for item, _ in ran]
    # 2. The value, with a field row for each of its parts.
    fields = [
        FieldRow(path=f"/environments/{at}", winner=_environment(item, run), rule="test_matrix:verdict", sources=(ref,))
        for at, ((item, run), ref) in enumerate(zip(ran, refs, strict=True))
    ]
    flags: list[Flag] = []
    quiet: list[JsonValue] = []
    loud: list[JsonValue] = []
    for test in tests:
        suite, classname, name, file = test.key
        entry: Cells = {"suite": suite, "classname": classname, "name": name, **({"file": file} if file else {})}
        if test.is_quiet:
            seconds: list[JsonValue] = [case.seconds if case else None for case in test.cases]
            quiet.append({**entry, "same": test.same, "result": "passed", "seconds": seconds})
            continue
        results: Cells = {name: _case(case) for name, case in zip(names, test.cases, strict=True) if case}
        path = pointer("tests", len(loud))
        loud.append({**entry, "same": test.same, "results": results})
        sources = tuple(ref for ref, case in zip(refs, test.cases, strict=True) if case)
        fields.append(FieldRow(path=path, winner=loud[-1], rule="test_matrix:compare", sources=sources))
        flags += _flaky(test, path, names, refs)
    if quiet:
        fields.append(FieldRow(path="/passed", winner=[*quiet], rule="test_matrix:passed", sources=refs))
    environments: list[JsonValue] = [_environment(item, run) for item, run in ran]
    value: JsonValue = {"environments": environments, "tests": loud, "passed": quiet, "gaps": gaps(outcomes)}
    # 3. What is derived from it.
    ranked = sorted(tests, key=lambda test: test.severity)
    shown = ranked if len(ranked) <= _TABLE_ROWS else [test for test in ranked if not test.is_quiet]
    tables: dict[str, list[Cells]] = {
        "test-matrix": [_matrix_row(test, items) for test in shown],
        "environments": [_environment_row(item) for item in items],
        "differences": [_difference_row(test, names) for test in ranked if test.same != "everywhere"],
        "slowest": [*_slowest(tests, names)],
    }
    return ExpectedMatrix(
        value,
        tuple(fields),
        tuple(flags),
        tuple(unanswered(item.outcome) or _ledger_row(item) for item in items),
        tables,
        len(ranked) - len(shown),
        _describe_red(items),
        _junit(items),
    )


def _list_items(outcomes: Sequence[Outcome], required: Sequence[str]) -> Iterator[TestedItem]:
    several = len({outcome.brief for outcome in outcomes}) > 1
    for outcome in sorted(outcomes, key=lambda outcome: Ref.of(outcome).order):
        both = f"{outcome.brief}/{outcome.item}"
        needed = any(name == each or fnmatchcase(name, each) for each in required for name in (outcome.item, both))
        run = TestRun.model_validate(outcome.value) if outcome.status == "succeeded" else None
        yield TestedItem(outcome, both if several else outcome.item, needed, run)


def _environment(item: TestedItem, run: TestRun) -> Cells:
    entry: Cells = {
        "key": item.name,
        "verdict": item.verdict,
        "required": item.is_required,
        "tests": item.tests,
        "subtests": run.subtests,
        "counts": {result: sum(case.result == result for case in run.cases) for result in RESULTS},
        "exit": run.exit,
        "seconds": run.seconds,
        "reports": list(run.reports),
        "problems": [case.message for case in run.cases if case.suite == RUN],
    }
    return entry | {name: text for name, text in (("output", run.output), ("log", run.log)) if text}


def _case(case: TestCase) -> Cells:
    more: Cells = {"message": case.message, "text": case.text, "failures": list(case.failures)}
    tries: Cells = {"tries": case.tries} if case.tries > 1 else {}
    return {
        "result": case.result,
        "seconds": case.seconds,
        **{name: each for name, each in more.items() if each},
        **tries,
    }


def _flaky(test: ComparedTest, path: str, names: Sequence[str], refs: Sequence[Ref]) -> Iterator[Flag]:
    places = [at for at, case in enumerate(test.cases) if case and case.result == "flaky"]
    if places:
        where = ", ".join(names[at] for at in places)
        more = " It fails in others." if not RED.isdisjoint(test.results) else ""
        message = f"It failed and then passed in {where}: a run says little of it.{more}"
        sources = tuple(refs[at] for at in places)
        yield Flag(path=path, kind="flaky", text=label(test.key), message=message, sources=sources)


def _ledger_row(item: TestedItem) -> LedgerRow:
    cases = item.run.cases if item.run else ()
    counts = [(sum(case.result == name for case in cases), name) for name in ("error", "failed", "flaky", "skipped")]
    words = [f"{item.tests} test{'' if item.tests == 1 else 's'}", *(f"{n} {name}" for n, name in counts if n)]
    return LedgerRow(
        brief=item.outcome.brief,
        item=item.outcome.item,
        disposition="merged",
        reason=f"{item.verdict}: {', '.join(words)}",
    )


def _matrix_row(test: ComparedTest, items: Sequence[TestedItem]) -> Cells:
    row: Cells = {"test": label(test.key), "suite": test.key[0], "same": test.same}
    results = iter(test.results)
    for item in items:
        column = f"environment {item.name}" if item.name in _COLUMNS else item.name
        row[column] = next(results) if item.run else "no result"
    return row


def _environment_row(item: TestedItem) -> Cells:
    run = item.run
    return {
        "environment": item.name,
        "verdict": item.verdict,
        "required": "yes" if item.is_required else "no",
        "tests": item.tests if run else None,
        "subtests": run.subtests if run else None,
        **{name: sum(case.result == name for case in run.cases) if run else None for name in RESULTS},
        "seconds": run.seconds if run else None,
        "seconds_in_tests": round(fsum(case.seconds for case in run.cases), 3) if run else None,
        "exit": run.exit if run else None,
        "why": run.distrust_reason if run else item.why,
    }


def _difference_row(test: ComparedTest, names: Sequence[str]) -> Cells:
    pairs = [*zip(names, test.results, strict=True)]
    row: Cells = {"test": label(test.key), "suite": test.key[0], "same": test.same}
    for result in ("failed", "error", "flaky", "passed", "absent"):
        row[result] = join_names([name for name, found in pairs if found == result], _LISTED_NAMES)
    not_run = [f"{name} ({result})" for result in ("skipped", "xfailed") for name, found in pairs if found == result]
    return {**row, "not_run": join_names(not_run, _LISTED_NAMES)}


def _slowest(tests: Sequence[ComparedTest], names: Sequence[str]) -> Iterator[Cells]:
    timed = [
        (test, [(case.seconds, name) for case, name in zip(test.cases, names, strict=True) if case])
        for test in tests
        if test.key[0] != RUN
    ]
    timed.sort(key=lambda pair: -max(seconds for seconds, _ in pair[1]))
    for test, times in timed[:_SLOWEST]:
        longest = max(seconds for seconds, _ in times)
        if longest > 0:
            yield {
                "test": label(test.key),
                "suite": test.key[0],
                "seconds": longest,
                "environment": [name for seconds, name in times if seconds == longest][0],  # noqa: RUF015 -- short lists
                "mean_seconds": round(fsum(seconds for seconds, _ in times) / len(times), 6),
            }


def _describe_red(items: Sequence[TestedItem]) -> str:
    required = [item for item in items if item.is_required]
    red = [item for item in required if item.verdict not in ("passed", "flaky")]
    more = f"; and {len(red) - _LISTED_ENVIRONMENTS} more" if len(red) > _LISTED_ENVIRONMENTS else ""
    listed = "; ".join(f"{item.name} ({_why_red(item)})" for item in red[:_LISTED_ENVIRONMENTS])
    return f"{len(red)} of {len(required)} required environments did not pass: {listed}{more}." if red else ""


def _why_red(item: TestedItem) -> str:
    if not item.run:
        return item.why
    red = [case for case in item.run.cases if case.result in RED]
    if not red:
        return "every test was skipped" if item.run.cases else "no test ran"
    named = [label(case.key) for case in red if case.suite != RUN]
    named += [case.message.rstrip(".") for case in red if case.suite == RUN]
    end = item.run.distrust_reason.removeprefix(" ".join(item.run.problems))
    return f"{len(red)} failed: {join_names(named, _LISTED_TESTS)}{'.' if end else ''}{end}"


def _junit(items: Sequence[TestedItem]) -> ET.Element:
    """Return the JUnit report as a tree, with the white space of the document."""
    suites = [
        (item, item.run.cases)
        if item.run and item.run.cases
        else (
            item,
            (
                TestCase(
                    suite=RUN, name="there is a result", result="error", message=item.why or "The run has no test."
                ),
            ),
        )
        for item in items
    ]
    root = ET.Element("testsuites", _counts([case for _, cases in suites for case in cases]))
    root.text = "\n  " if suites else "\n"
    for at, (item, cases) in enumerate(suites):
        seconds = item.run.seconds if item.run else 0.0
        suite = ET.SubElement(root, "testsuite", {"name": _clean(item.name), **_counts(cases, seconds)})
        suite.text, suite.tail = "\n    ", "\n" if at == len(suites) - 1 else "\n  "
        times = Counter(case.key[1:] for case in cases)
        for case in cases:
            _add_case(suite, case, is_ambiguous=times[case.key[1:]] > 1)
        suite[-1].tail = "\n  "
    return root


def _add_case(suite: ET.Element, case: TestCase, *, is_ambiguous: bool) -> None:
    """Add a test case; a suite is a part of the class name where class, name and file don't say which test it is."""
    classname = case.classname
    if case.suite not in ("", classname) and (not classname or is_ambiguous):
        classname = f"{case.suite} > {classname}" if classname else case.suite
    names = {"classname": classname, "name": case.name, **({"file": case.file} if case.file else {})}
    attributes = {name: _clean(text) for name, text in names.items()}
    element = ET.SubElement(suite, "testcase", {**attributes, "time": f"{case.seconds:.6f}"})
    element.tail = "\n    "
    if case.result == "passed":
        return
    detail = ET.SubElement(element, _TAGS[case.result])
    if case.result == "xfailed":
        detail.set("type", "pytest.xfail")
    if case.message:
        detail.set("message", _clean(case.message))
    lines = [f"{failure}\n" for failure in case.failures]
    detail.text = _clean("".join([*lines, "\n", case.text] if lines else [case.text]))


def _counts(cases: Sequence[TestCase], seconds: float = 0.0) -> dict[str, str]:
    results = [case.result for case in cases]
    return {
        "tests": str(len(results)),
        "failures": str(results.count("failed")),
        "errors": str(results.count("error")),
        "skipped": str(results.count("skipped") + results.count("xfailed")),
        "time": f"{seconds or fsum(case.seconds for case in cases):.6f}",
    }


def _clean(text: str) -> str:
    return replace_illegal_characters(text)


def format_junit(report: ET.Element) -> str:
    """Return a JUnit report as a document."""
    return _DECLARATION + ET.tostring(report, encoding="unicode")


def is_same_junit(text: str, expected: ET.Element) -> bool:
    """Return whether a document is a JUnit report with exactly this content, comments and white space included."""
    if not text.startswith(_DECLARATION) or "<!DOCTYPE" in text:
        return False
    try:
        given = ET.canonicalize(text, with_comments=True)
    except ET.ParseError:
        return False
    return str(given) == ET.canonicalize(format_junit(expected), with_comments=True)
