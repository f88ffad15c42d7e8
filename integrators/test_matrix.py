"""Test runs in several environments: which test passes where, and whether all that have to pass do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.matrix.comparing import compared, is_meant
from prefect_dispatch.integrators.matrix.junit_file import junit_file
from prefect_dispatch.integrators.matrix.matrix_tables import broken, tables
from prefect_dispatch.integrators.matrix.matrix_value import ledger_of, value_of
from prefect_dispatch.ledger import Document, Merge, Ref
from prefect_dispatch.models import Text
from prefect_dispatch.strict import Strict, nearest
from prefect_dispatch.test_run import TestRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.models import Brief, Item, Outcome

REFERENCE = "prefect_dispatch.test_run:TestRun"
"""The output of a brief whose answers are test runs."""


class TestMatrix(Strict):
    """Compares test runs: every item is an environment, and every answer a `TestRun`.

    An environment is red if a test of it failed, if report and exit code don't agree (see `read_report`), if no
    test ran, or if there is no answer at all. Flaky tests, which passed after they had failed, are told from
    failing ones and make no environment red.

    **Value.** `{"environments": […], "tests": […], "passed": […], "gaps": […]}`. `environments`: verdict, counts,
    seconds and problems of each that has a result. `tests`: each test that came to something else than a pass
    somewhere, with its `results` by environment, and whether it is the `same`: `everywhere`, it `differs`, or it is
    `absent` from some. `passed`: each test that passed wherever it is, with its seconds in the order of the
    environments, null where it is absent.
    `gaps`: environments without a result.

    **Beside it.** The document `junit.xml`, with a suite for each environment, errors of the runs themselves
    included; the tables `test-matrix`, `environments`, `differences` and `slowest`.

    Example:
        >>> from prefect_dispatch.models import Outcome
        >>> from prefect_dispatch.test_run import TestCase, TestRun
        >>> def said(key, result):
        ...     run = TestRun(exit=int(result == "failed"), cases=[TestCase(name="test_a", result=result)])
        ...     return Outcome(brief="tests", item=key, status="succeeded", value=run.model_dump(mode="json"))
        >>> merge = TestMatrix(required=["3.13"]).merge([], [said("3.10", "passed"), said("3.13", "failed")])
        >>> merge.failed
        '1 of 1 required environments did not pass: 3.13 (1 failed: test_a).'
    """

    __test__: ClassVar[bool] = False  # not one of pytest's own

    model_config = ConfigDict(title="Test matrix")

    kind: Literal["test_matrix"] = "test_matrix"
    """Tells the integrators apart."""
    required: Literal["all"] | Annotated[tuple[Text, ...], Field(title="By name")] = "all"
    """The environments that have to pass: all, or globs of items' keys (or of `brief/item`)."""
    on_red: Literal["fail", "report"] = "fail"
    """What a required environment that does not pass makes of the run: it fails, or completes with gaps."""

    def seeing(self, briefs: Sequence[Brief], items: Sequence[Item]) -> TestMatrix:
        """Return this integrator, after a look at whether all that is required is there.

        Raises:
            JobError: If a pattern means no environment.
        """
        refs = [Ref(brief=brief.name, item=item.key) for brief in briefs for item in items]
        for pattern in self._patterns:
            if not any(is_meant(pattern, ref) for ref in refs):
                hint = nearest(pattern, [item.key for item in items])
                raise JobError(f"required: no environment is called {pattern!r}, or matches it; {hint}")
        return self

    def preflight(self, briefs: Sequence[Brief]) -> None:
        """Check that answers are test runs.

        Raises:
            JobError: If a brief asks for something else.
        """
        for brief in briefs:
            output = brief.output
            if output != REFERENCE and not (isinstance(output, type) and issubclass(output, TestRun)):
                raise JobError(
                    f"Brief {brief.name!r} asks for no test run, which 'test_matrix' compares; give it "
                    f"'output: {REFERENCE}'."
                )

    @property
    def _patterns(self) -> tuple[str, ...]:
        return ("*",) if self.required == "all" else self.required

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:  # noqa: ARG002 -- the signature of every integrator
        """Return what came of each test in each environment.

        Raises:
            ValueError: If an answer is no test run.
        """
        matrix = compared(outcomes, self._patterns)
        value, fields, flags = value_of(matrix, outcomes)
        wrong = broken(matrix)
        return Merge(
            value=value,
            ledger=ledger_of(matrix, outcomes),
            fields=fields,
            rules=self._rules(),
            flags=flags,
            tables=tables(matrix),
            documents=(
                Document(name="junit.xml", title="All environments as one JUnit report", text=junit_file(matrix)),
            ),
            failed=wrong if self.on_red == "fail" else "",
            shortfalls=(wrong,) if wrong and self.on_red == "report" else (),
        )

    def recomputed(self, merge: Merge, outcomes: Sequence[Outcome]) -> Merge:  # noqa: ARG002 -- the outcomes are all the evidence there is
        """Return the merge that follows from the outcomes: whatever else stands in one was tampered with."""
        return self.merge([], outcomes)

    def _rules(self) -> str:
        which = (
            "Every environment"
            if self.required == "all"
            else f"Each environment that {', '.join(map(repr, self.required))} means"
        )
        then = "the run fails" if self.on_red == "fail" else "the run completes with gaps"
        return (
            "Tests are the same if suite, class, name and file are. A test that passed after it had failed is flaky, "
            "which makes no environment red. An environment is red if a test failed or could not be run, if its report "
            "and the exit code don't agree, if no test ran, or if it has no result. "
            f"{which} has to pass, else {then}."
        )
