"""What is open while a JUnit XML file is read: suites, which count, and cases."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefect_dispatch.test_run import RED, RESULTS, Result

if TYPE_CHECKING:
    from collections.abc import Mapping

SAID: Mapping[str, Result] = {
    "failure": "failed",
    "error": "error",
    "skipped": "skipped",
    "flakyfailure": "flaky",
    "flakyerror": "flaky",
    "rerunfailure": "failed",
    "rerunerror": "failed",
}
"""What an element inside a case says of it. Maven's Surefire writes the last four, one for each earlier try."""
_STATUS: Mapping[str, Result] = {
    "failed": "failed",
    "failure": "failed",
    "fail": "failed",
    "error": "error",
    "errored": "error",
    "broken": "error",
}
"""What the attribute `status` or `result` says of a case that has no element for it."""


MOST_FAILURES = 100
"""How many failures of one test are kept, each with its message."""
_SUMMARY = re.compile(r"contains \d+ failed subtests?")
"""What pytest 9 writes after the failures of subtests as one more failure: that of the test around them."""


class Suite:
    """A suite that is open, and what it has held so far."""

    def __init__(self, attributes: Mapping[str, str], *, root: bool) -> None:
        """Open it, or the root element, which holds suites and is none."""
        self.name = attributes.get("name", "")
        self.root = root
        self._attributes = attributes
        self._tests = 0
        self._suites = 0

    def take(self) -> None:
        """Count a case in it, or in a suite in it."""
        self._tests += 1

    def take_suite(self) -> None:
        """Count a suite in it: node:test counts it as a test."""
        self._suites += not self.root

    @property
    def subtests(self) -> int:
        """How many tests it counts beyond its cases: pytest counts each subtest, and writes no case for it."""
        return 0 if self.root or self._suites else max(0, self._declared() - self._tests)

    @property
    def has_hidden_tries(self) -> bool:
        """Whether a passed case may be an earlier try that failed.

        pytest-rerunfailures writes a case for each try and leaves all but the last one out of the count, which then
        is no longer the number of the cases. Subtests raise the count, so that it may be larger as well.
        """
        is_counted = "tests" in self._attributes and "hostname" in self._attributes
        return is_counted and not self._suites and self._declared() not in (0, self._tests)

    def _declared(self) -> int:
        """Return how many tests its attribute counts, 0 if that is no number."""
        count = self._attributes.get("tests", "").strip()
        return int(count) if count.isascii() and count.isdigit() and len(count) < 10 else 0  # noqa: PLR2004 -- digits


class Case:
    """A case that is open, and what its elements have said so far."""

    def __init__(self, attributes: Mapping[str, str]) -> None:
        """Open it."""
        self.attributes = attributes
        self.tries = 1
        self._worst: tuple[Result, str, str] | None = None
        self._failed = 0
        self._failures: list[tuple[str, str]] = []
        self._is_todo = False

    def take(self, name: str, attributes: Mapping[str, str], text: str) -> None:
        """Take in what an element says of it: of several the worst counts, and each failure is kept."""
        kind = attributes.get("type", "")
        result = "xfailed" if kind == "pytest.xfail" and name == "skipped" else SAID[name]
        self._is_todo |= kind == "todo" and name == "skipped"
        is_try = name.startswith(("flaky", "rerun"))
        self.tries += is_try
        message = attributes.get("message", "") or text.strip().partition("\n")[0] or kind
        if self._worst is None or RESULTS.index(result) > RESULTS.index(self._worst[0]):
            self._worst = (result, message, text)
        if result in RED and not is_try and not (self._failures and _SUMMARY.fullmatch(message)):
            self._failed += 1
            if self._failed <= MOST_FAILURES:
                self._failures.append((message, text))

    @property
    def result(self) -> Result:
        """What came of it."""
        if self._worst is None:
            said = self.attributes.get("status", self.attributes.get("result", ""))
            return _STATUS.get(said.lower(), "passed")
        worst = self._worst[0]
        return "xfailed" if self._is_todo and worst in RED else worst  # node:test: what is still to do may fail

    @property
    def message(self) -> str:
        """Why it didn't pass; of several failures the first of the worst, and how many more there are."""
        _, message, _ = self._worst or ("", "", "")
        return f"{message} (and {self._failed - 1} more)" if self._failed > 1 else message

    @property
    def failures(self) -> list[str]:
        """The message of each failure where there are several: pytest writes one for each subtest that failed."""
        if self._failed <= 1:
            return []
        more = [f"… and {self._failed - MOST_FAILURES} more"] if self._failed > MOST_FAILURES else []
        return [*(message for message, _ in self._failures), *more]

    @property
    def text(self) -> str:
        """What the worst element says at length, or all failures do where there are several."""
        if self._failed > 1:
            return "\n\n".join(text.strip() for _, text in self._failures if text.strip())
        return self._worst[2] if self._worst else ""
