"""One run of a test suite, as data: its tests and their results.

The JSON Schema of `TestRun`, descriptions included, is part of fingerprints: a docstring of a field that is changed
here runs every stored test again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_serializer

from prefect_dispatch.models.base import Strict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SerializerFunctionWrapHandler

Result = Literal["passed", "xfailed", "skipped", "flaky", "failed", "error"]
"""Result of a test, from good to bad.

`xfailed`: it failed as it was expected to. `flaky`: it passed after it had failed. `error`: it could not be run.
"""

Verdict = Literal["passed", "flaky", "skipped", "failed"]
"""Verdict on a run. `skipped`: no test was run. `failed`: a test failed, or the run can't be trusted."""

RESULTS: tuple[Result, ...] = ("passed", "xfailed", "skipped", "flaky", "failed", "error")
"""All results, the worst last."""

RED: frozenset[str] = frozenset({"failed", "error"})
"""The results that fail a run."""

QUOTED = 600
"""Characters of the end of a command's output that a message quotes."""

RUN = "the run itself"
"""Name of the suite for cases that belong to no test suite: errors of the run itself, or of its report."""

Key = tuple[str, str, str, str]
"""Identity of a test: suite, class, name and file."""


def label(key: Key) -> str:
    """Return the name of a test for messages.

    Example:
        >>> label(("pytest", "tests.test_a", "test_one", "")), label(("jest", "adds", "adds", "sum.js"))
        ('tests.test_a::test_one', 'adds (sum.js)')
    """
    suite, classname, name, file = key
    inside = f"{classname}::{name}" if classname not in ("", name) else name
    inside = f"{RUN}: {name}" if suite == RUN else inside
    return f"{inside} ({file})" if file else inside


class _WithoutDefaults(Strict):
    """A model that is serialized without fields that have their default or are empty: a run has very many of them."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {name: value for name, value in data.items() if value not in (fields[name].default, [])}


class TestCase(_WithoutDefaults):
    """What came of one test.

    Example:
        >>> TestCase(suite="pytest", classname="tests.test_a", name="test_one", result="passed").key
        ('pytest', 'tests.test_a', 'test_one', '')
    """

    __test__: ClassVar[bool] = False  # not one of pytest's own

    suite: str = ""
    """The suite that it stands in, those around it first: `outer > inner`."""
    classname: str = ""
    """What the runner calls its class, module or package."""
    name: str
    """Its name, parameters included."""
    file: str = ""
    """The file that it is in, where the report says so."""
    result: Result
    """What came of it."""
    seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """How long it took, all tries together."""
    tries: int = Field(default=1, ge=1)
    """How often the report tells of it: once for each try."""
    message: str = ""
    """Why it didn't pass, in a line."""
    text: str = ""
    """What the runner says of that at length; of a long one start and end."""
    failures: tuple[str, ...] = ()
    """The message of each failure, in a line, where the report has several of it: one for each subtest that failed."""

    @property
    def key(self) -> Key:
        """Its identity among the tests of the run; the same in every environment."""
        return (self.suite, self.classname, self.name, self.file)


class TestRun(_WithoutDefaults):
    """One run of a test suite: what a command with a JUnit report answers.

    Where report and exit code don't agree, or the report isn't there, `cases` has an error in the suite
    `the run itself` that says so; so a run is never better than its cases.

    Example:
        >>> run = TestRun(exit=1, cases=(TestCase(name="a", result="passed"), TestCase(name="b", result="failed")))
        >>> run.verdict, run.counts["failed"]
        ('failed', 1)
        >>> TestRun(exit=0).verdict
        'failed'
    """

    __test__: ClassVar[bool] = False  # not one of pytest's own
    code_version: ClassVar[str] = "d1babfb03195a51255492e51ae449b32b33d6e516de5e6d8d7c87c460b109d1b"
    """Part of the fingerprint of a test run; change it when stored results are no longer valid."""

    exit: int | None = None
    """The command's exit code; empty if it was ended."""
    seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """How long the command took; 0 where nobody measured it."""
    reports: tuple[str, ...] = ()
    """The report files that were read."""
    cases: tuple[TestCase, ...] = ()
    """The tests, each key once, in the order of their keys."""
    log: str = ""
    """The file with all that it printed, where the run has failed; it is kept for a week where the command ran."""
    subtests: int = Field(default=0, ge=0)
    """How many tests the report counts beyond its cases: pytest counts subtests, and writes no case for one."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of tests per result, for all results."""
        counts = Counter[str](case.result for case in self.cases)
        return {result: counts[result] for result in RESULTS}

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the run can't be trusted, a sentence each."""
        return tuple(case.message for case in self.cases if case.suite == RUN)

    @property
    def output(self) -> str:
        """The end of the command's output, if the run can't be trusted; else empty."""
        return next((case.text for case in self.cases if case.suite == RUN and case.text), "")

    @property
    def distrust_reason(self) -> str:
        """Why the run can't be trusted, with the end of the command's output and the path of its log; else empty."""
        if not self.problems:
            return ""
        end = " ".join(self.output.split())
        printed = f"It printed at last: {end if len(end) <= QUOTED else f'…{end[-QUOTED:]}'}" if end else ""
        return " ".join(filter(None, (*self.problems, printed, f"(all of it: {self.log})" if self.log else "")))

    @property
    def verdict(self) -> Verdict:
        """The verdict on the whole run; without any test it has failed."""
        results = {case.result for case in self.cases}
        if results & RED or not results:
            return "failed"
        if "flaky" in results:
            return "flaky"
        return "skipped" if results == {"skipped"} else "passed"
