"""The merged JUnit XML file: one suite for each environment, for whatever a CI shows tests with."""

from __future__ import annotations

import html
from collections import Counter
from math import fsum
from typing import TYPE_CHECKING

from prefect_dispatch.junit_text import legal_characters
from prefect_dispatch.test_run import RUN, Key, TestCase

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prefect_dispatch.integrators.matrix.comparing import Environment, Matrix

_ELEMENTS = {"failed": "failure", "error": "error", "skipped": "skipped", "xfailed": "skipped", "flaky": "flakyFailure"}
"""The element that tells a result; Jenkins and Surefire know the last one, and others take the test for passed."""
_BREAKS = str.maketrans({"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def junit_file(matrix: Matrix) -> str:
    """Return the file. An environment without a result is a suite with one error that says why."""
    known: dict[tuple[Key, bool], str] = {}  # a test is called the same in every environment
    suites = [(each, _cases(each)) for each in matrix.environments]
    every = [case for _, cases in suites for case in cases]
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f"<testsuites{_counted(every)}>"]
    for each, cases in suites:
        seconds = each.run.seconds if each.run else 0.0
        lines.append(f'  <testsuite name="{_attribute(each.name)}"{_counted(cases, seconds)}>')
        lines += _lines(cases, known)
        lines.append("  </testsuite>")
    return "\n".join([*lines, "</testsuites>", ""])


def _cases(each: Environment) -> Sequence[TestCase]:
    if each.run and each.run.cases:
        return each.run.cases
    message = each.error or "The run has no test."
    return [TestCase(suite=RUN, name="there is a result", result="error", message=message)]


def _lines(cases: Sequence[TestCase], known: dict[tuple[Key, bool], str]) -> Iterator[str]:
    """Yield the cases; suites inside are in the class where it doesn't tell tests apart by itself."""
    names = Counter(case.key[1:] for case in cases)
    for case in cases:
        key = case.key
        called = key, names[key[1:]] > 1
        if called not in known:
            known[called] = _attributes(_place(*called))
        start = f'    <testcase{known[called]} time="{case.seconds:.6f}"'
        if (element := _ELEMENTS.get(case.result)) is None:
            yield f"{start}/>"
            continue
        kind = ' type="pytest.xfail"' if case.result == "xfailed" else ""
        message = f' message="{_attribute(case.message)}"' if case.message else ""
        several = "".join(f"{failure}\n" for failure in case.failures)
        text = html.escape(legal_characters(f"{several}\n{case.text}" if several else case.text), quote=False)
        yield f"{start}><{element}{kind}{message}>{text}</{element}></testcase>"


def _place(key: Key, is_twice: bool) -> dict[str, str]:  # noqa: FBT001 -- a part of what it is known by
    suite, classname, name, file = key
    if suite and suite != classname and (not classname or is_twice):
        classname = f"{suite} > {classname}" if classname else suite
    return {"classname": classname, "name": name, **({"file": file} if file else {})}


def _counted(cases: Sequence[TestCase], seconds: float = 0.0) -> str:
    found = Counter(case.result for case in cases)
    total = seconds or fsum(case.seconds for case in cases)
    return (
        f' tests="{len(cases)}" failures="{found["failed"]}" errors="{found["error"]}" '
        f'skipped="{found["skipped"] + found["xfailed"]}" time="{total:.6f}"'
    )


def _attributes(said: Mapping[str, str]) -> str:
    return "".join(f' {name}="{_attribute(text)}"' for name, text in said.items())


def _attribute(text: str) -> str:
    return html.escape(legal_characters(text)).translate(_BREAKS)
