"""What is open while a JUnit XML file is read: suites, which count, and cases."""

from __future__ import annotations

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


class Suite:
    """A suite that is open, and what it has held so far."""

    def __init__(self, attributes: Mapping[str, str], *, root: bool) -> None:
        """Open it, or the root element, which holds suites and is none."""
        self.name = attributes.get("name", "")
        self.root = root
        self._said = attributes
        self._tests = 0
        self._suites = 0
        self._red = 0

    def take(self, result: Result) -> None:
        """Count a case in it, or in a suite in it."""
        self._tests += 1
        self._red += result in RED

    def take_suite(self) -> None:
        """Count a suite in it: node:test counts it as a test."""
        self._suites += not self.root

    @property
    def miscounted(self) -> str:
        """Why it can't be whole: it counts more than it holds; empty if it doesn't."""
        named = repr(self.name[:80]) if self.name else "the report"
        tests, failures, errors = map(self._declared, ("tests", "failures", "errors"))
        if tests is None or failures is None or errors is None:
            return f"{named} counts its tests with something that is no number"
        if tests > self._tests + self._suites:
            return f"{named} counts {_counted(tests, 'test')}, and holds {self._tests + self._suites}"
        if failures + errors > self._red:  # some runners take one for the other
            said = " and ".join(_counted(n, what) for n, what in ((failures, "failure"), (errors, "error")) if n)
            return f"{named} counts {said}, and holds {self._red}"
        return ""

    @property
    def hides(self) -> bool:
        """Whether it holds more tests than it counts, as pytest-rerunfailures leaves it: each try is a case."""
        counted = self._declared("tests") if "tests" in self._said and "hostname" in self._said else None
        return counted is not None and not self._suites and counted < self._tests

    def _declared(self, name: str) -> int | None:
        """Return what an attribute counts, 0 where it isn't there, or None if it is no number."""
        said = self._said.get(name, "").strip() or "0"
        return int(said) if said.isascii() and said.isdigit() and len(said) < 10 else None  # noqa: PLR2004 -- digits


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


class Case:
    """A case that is open, and what its elements have said so far."""

    def __init__(self, attributes: Mapping[str, str]) -> None:
        """Open it."""
        self.attributes = attributes
        self.tries = 1
        self.message = ""
        self.text = ""
        self._results: list[Result] = []
        self._is_todo = False

    def take(self, name: str, attributes: Mapping[str, str], text: str) -> None:
        """Take in what an element says of it; the worst is what its message tells."""
        kind = attributes.get("type", "")
        result = "xfailed" if kind == "pytest.xfail" and name == "skipped" else SAID[name]
        self._is_todo |= kind == "todo" and name == "skipped"
        self.tries += name.startswith(("flaky", "rerun"))
        if not self._results or RESULTS.index(result) > max(map(RESULTS.index, self._results)):
            self.message = attributes.get("message", "") or text.strip().partition("\n")[0] or kind
            self.text = text
        self._results.append(result)

    @property
    def result(self) -> Result:
        """What came of it."""
        if not self._results:
            said = self.attributes.get("status", self.attributes.get("result", ""))
            return _STATUS.get(said.lower(), "passed")
        worst = max(self._results, key=RESULTS.index)
        return "xfailed" if self._is_todo and worst in RED else worst  # node:test: what is still to do may fail
