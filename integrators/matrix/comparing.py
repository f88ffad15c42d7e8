"""What came of each test in each environment."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, NamedTuple

from natsort import natsort_keygen
from pydantic import ValidationError

from prefect_dispatch.ledger import Ref
from prefect_dispatch.test_run import RED, RESULTS, RUN, Key, TestCase, TestRun, label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.models import Outcome

Same = Literal["everywhere", "differs", "absent"]
"""Whether a test came to the same everywhere; `absent`: it did wherever it is, and isn't everywhere."""

_natural = natsort_keygen()


class Environment(NamedTuple):
    """Where the tests ran: one (brief, item)."""

    ref: Ref
    """The outcome."""
    name: str
    """The item's key; with several briefs, `brief/item`."""
    required: bool
    """Whether it has to pass."""
    run: TestRun | None
    """What came of its tests; None where there is no answer."""
    error: str
    """Why there is none."""

    @property
    def verdict(self) -> str:
        """What came of it as a whole; without an answer, `no result`."""
        return self.run.verdict if self.run else "no result"

    @property
    def red(self) -> bool:
        """Whether it has not passed: tests failed, none ran, or there is no result."""
        return self.verdict not in ("passed", "flaky")


class Row(NamedTuple):
    """One test in all environments with a result."""

    key: Key
    """What tells it from others."""
    cases: tuple[TestCase | None, ...]
    """What came of it, in the order of the environments; None where it is absent."""

    @property
    def results(self) -> tuple[str, ...]:
        """The result in each environment; `absent` where there is none, but for what is wrong with a run itself."""
        missing = "passed" if self.key[0] == RUN else "absent"
        return tuple(case.result if case else missing for case in self.cases)

    @property
    def same(self) -> Same:
        """Whether it came to the same everywhere."""
        found = set(self.results)
        if len(found - {"absent"}) > 1:
            return "differs"
        return "absent" if "absent" in found else "everywhere"

    @property
    def plain(self) -> bool:
        """Whether it passed wherever it is, and there is no more to say of it."""
        return all(
            case is None or (case.result == "passed" and case.tries == 1 and not case.message and not case.text)
            for case in self.cases
        )

    @property
    def label(self) -> str:
        """The test as people call it."""
        return label(self.key)

    @property
    def trouble(self) -> tuple[int, int, int]:
        """The place among others: failures first, then what differs, is flaky, is absent."""
        worst = max(RESULTS.index(case.result) for case in self.cases if case)
        red = sum(case.result in RED for case in self.cases if case)
        kind = 0 if red else 1 if self.same == "differs" else 2 if worst == RESULTS.index("flaky") else 3
        return (kind if kind < 3 or self.same == "absent" else 4 + self.plain, -worst, -red)  # noqa: PLR2004 -- places


class Matrix(NamedTuple):
    """All environments, and all tests."""

    environments: list[Environment]
    """The environments, in the order of their keys."""
    rows: list[Row]
    """The tests, in the order of their keys, numbers inside by their value."""

    @property
    def answered(self) -> list[Environment]:
        """The environments with a result: those that the cases of a row are of."""
        return [each for each in self.environments if each.run]

    @property
    def ranked(self) -> list[Row]:
        """The tests, those first that need a look."""
        return sorted(self.rows, key=lambda row: row.trouble)


def is_meant(pattern: str, ref: Ref) -> bool:
    """Return whether a pattern means an environment: its item's key, or `brief/item`, as itself or as a glob."""
    return any(pattern == name or fnmatchcase(name, pattern) for name in (ref.item, str(ref)))


def compared(outcomes: Sequence[Outcome], required: Sequence[str]) -> Matrix:
    """Return what came of each test in each environment.

    Args:
        outcomes: The outcomes, in any order.
        required: Patterns of the environments that have to pass.

    Raises:
        ValueError: If an answer is no test run.
    """
    ordered = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
    several = len({outcome.brief for outcome in ordered}) > 1
    environments = [_environment(outcome, required, several=several) for outcome in ordered]
    runs = [each.run for each in environments if each.run]
    cases: dict[Key, list[TestCase | None]] = {}
    for at, run in enumerate(runs):
        for case in run.cases:
            cases.setdefault(case.key, [None] * len(runs))[at] = case
    keys = sorted(cases, key=lambda key: (*map(_natural, key), key))
    return Matrix(environments, [Row(key, tuple(cases[key])) for key in keys])


def _environment(outcome: Outcome, required: Sequence[str], *, several: bool) -> Environment:
    ref, run, error = Ref.of(outcome), None, ""
    if outcome.status != "succeeded":
        error = outcome.failure or outcome.status
    else:
        try:
            run = TestRun.model_validate(outcome.value)
        except ValidationError:
            raise ValueError(f"the answer of {str(ref)!r} is no test run (prefect_dispatch.test_run:TestRun)") from None
    is_required = any(is_meant(pattern, ref) for pattern in required)
    return Environment(ref, str(ref) if several else ref.item, is_required, run, error)
