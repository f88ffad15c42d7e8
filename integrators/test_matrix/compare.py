"""Comparison of test runs: the result of each test in each environment."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, NamedTuple

from natsort import natsort_keygen
from pydantic import ValidationError

from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.models.test_run import RED, RESULTS, RUN, Key, TestCase, TestRun, label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.models.outcome import Outcome

Agreement = Literal["everywhere", "differs", "absent"]
"""Whether a test has the same result everywhere; `absent`: it has wherever it exists, but is absent somewhere."""

_natural_key = natsort_keygen()


class Environment(NamedTuple):
    """Environment of a test run: one (brief, item)."""

    ref: Ref
    """The outcome."""
    name: str
    """The item's key; with several briefs, `brief/item`."""
    required: bool
    """Whether it has to pass."""
    run: TestRun | None
    """The test run; None if there is no answer."""
    error: str
    """The reason why there is no answer."""

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
    ordered = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
    many_briefs = len({outcome.brief for outcome in ordered}) > 1
    environments = [_create_environment(outcome, required, many_briefs=many_briefs) for outcome in ordered]
    # A row has one cell per run; a test that a run doesn't have stays None there.
    runs = [each.run for each in environments if each.run]
    cases: dict[Key, list[TestCase | None]] = {}
    for at, run in enumerate(runs):
        for case in run.cases:
            cases.setdefault(case.key, [None] * len(runs))[at] = case
    keys = sorted(cases, key=lambda key: (*map(_natural_key, key), key))
    return Matrix(environments, [Row(key, tuple(cases[key])) for key in keys])


def _create_environment(outcome: Outcome, required: Sequence[str], *, many_briefs: bool) -> Environment:
    ref, run, error = Ref.of(outcome), None, ""
    if outcome.status != "succeeded":
        error = outcome.failure or outcome.status
    else:
        try:
            run = TestRun.model_validate(outcome.value)
        except ValidationError:
            raise ValueError(f"the answer of {str(ref)!r} is no test run (prefect_dispatch.test_run:TestRun)") from None
    is_required = any(matches_pattern(pattern, ref) for pattern in required)
    return Environment(ref, str(ref) if many_briefs else ref.item, is_required, run, error)
