"""Reads what a test runner left: its JUnit XML files and its exit code, which have to agree."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.junit_events import Found, cut_middle, read_file
from prefect_dispatch.junit_open import MOST_FAILURES
from prefect_dispatch.test_run import RED, RESULTS, RUN, Key, TestCase, TestRun

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

MOST_BYTES = 128 * 2**20
"""How large all report files together may be."""
_BY_SIGNAL = 128
TEXTS = 2**20
"""How many characters of texts a run keeps, and how many of further failures; after that, its tests have their first
messages alone."""


class _Wrong(NamedTuple):
    """Something that is wrong with a run."""

    check: str
    """What should be, as the name of a test."""
    message: str
    """What is."""


def read_report(
    files: Mapping[str, bytes],
    exit_code: int | None,
    *,
    ok: Collection[int] = (0,),
    stopped: str = "",
    seconds: float = 0.0,
    root: str = "",
) -> TestRun:
    """Return what a test runner's report and exit code say; what is wrong with them is an error of the run.

    It is an error if there is no report, or one that can't be read or is cut short; if there isn't one test; if the
    exit code says that all is well and a test failed, or the other way round; and if the run was stopped. What a suite
    counts in its attributes decides nothing: runners count subtests, tries and suites in different ways. Several files
    are one run. A test with several cases in a file was run several times: the last one counts, and if a try before
    failed, it is flaky; but it failed if one try did and the exit code isn't one of `ok`, or if its cases stand in
    different files.

    Args:
        files: The report files, each under its path.
        exit_code: The exit code. None: it was ended by a signal, or never started.
        ok: The exit codes that say that all is well.
        stopped: Why the run was stopped, as the end of a sentence: `after 600 s`. Empty: it ended by itself.
        seconds: How long the run took, in seconds.
        root: The folder that the tests ran in. Names are kept without it, so that they are the same in every folder.

    Example:
        >>> xml = b'<testsuite name="s" tests="1"><testcase classname="a" name="b"/></testsuite>'
        >>> read_report({"junit.xml": xml}, 0).verdict
        'passed'
        >>> read_report({"junit.xml": xml}, 1).problems
        ('The exit code is 1, but no test failed.',)
    """
    is_ok = exit_code in ok and not stopped
    found: dict[str, Found] = {}
    wrong: list[_Wrong] = []
    if sum(map(len, files.values())) > MOST_BYTES:
        wrong.append(_Wrong("the report can be read", f"The report is larger than {MOST_BYTES} bytes."))
    else:
        found = {_legible(path): read_file(files[path], root) for path in sorted(files)}
    cases = _each_once(found, is_ok=is_ok)
    wrong += _wrong(found, cases, exit_code, stopped, is_ok=is_ok, is_there=bool(files))
    for each in wrong:
        case = TestCase(suite=RUN, name=each.check, result="error", message=each.message)
        cases[case.key] = case
    return TestRun(
        exit=exit_code,
        seconds=round(max(seconds, 0.0), 3),
        reports=tuple(found),
        cases=tuple(_shortened([cases[key] for key in sorted(cases)])),
        subtests=sum(each.subtests for each in found.values()),
    )


def _wrong(
    found: Mapping[str, Found],
    cases: Mapping[Key, TestCase],
    exit_code: int | None,
    stopped: str,
    *,
    is_ok: bool,
    is_there: bool,
) -> Iterator[_Wrong]:
    """Yield what is wrong, each kind once."""
    if stopped:
        yield _Wrong("the run ends by itself", f"The run was stopped {stopped}.")
    elif exit_code is None:
        yield _Wrong("the run ends by itself", "The run was ended, and has no exit code.")
    if not is_there:
        yield _Wrong("there is a report", "There is no report.")
    if bad := [(path, each.unreadable) for path, each in found.items() if each.unreadable]:
        yield _Wrong("the report can be read", _listed("{} can't be read: {}", bad))
    if found and not cases:
        yield _Wrong("there are tests", "The report has no test.")
    red = sum(case.result in RED for case in cases.values())
    if is_ok and red:
        said = f"The exit code is {exit_code}, but {red} {'test' if red == 1 else 'tests'} failed."
        yield _Wrong("exit code and report agree", said)
    elif exit_code is not None and not stopped and not is_ok and not red:
        yield _Wrong("exit code and report agree", f"The exit code is {_named_code(exit_code)}, but no test failed.")


def _named_code(code: int) -> str:
    """Return an exit code, with the signal that it tells of: a shell adds 128 to the number of one.

    Example:
        >>> _named_code(139), _named_code(1)
        ('139 (SIGSEGV)', '1')
    """
    try:
        return f"{code} ({signal.Signals(code - _BY_SIGNAL).name})"
    except ValueError:
        return str(code)


def _listed(form: str, bad: Sequence[tuple[str, str]]) -> str:
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return f"{form.format(*bad[0])}{more}."


def _legible(path: str) -> str:
    """Return a path as text; one that is no UTF-8 has half characters in it."""
    return path.encode(errors="backslashreplace").decode()


def _each_once(found: Mapping[str, Found], *, is_ok: bool) -> dict[Key, TestCase]:
    """Return what came of each test, of several cases of a key taken together."""
    every: dict[Key, TestCase] = {}
    for each in found.values():
        own: dict[Key, list[TestCase]] = {}
        for case in each.cases:
            own.setdefault(case.key, []).append(case)
        for key, tries in own.items():
            case = tries[0] if len(tries) == 1 else _tried(tries, is_ok=is_ok, hiding=key[0] in each.hiding)
            every[key] = _worst([every[key], case]) if key in every else case
    return every


def _tried(tries: Sequence[TestCase], *, is_ok: bool, hiding: bool) -> TestCase:
    """Return what came of a test that has several cases in one file."""
    worst, last = _worst(tries), tries[-1]
    if last.result not in RED and worst.result in RED and is_ok:
        return worst.model_copy(update={"result": "flaky"})
    if worst.result == "passed" and hiding:
        # pytest-rerunfailures leaves no word of why a try failed, but the suite doesn't count it.
        said = f"It passed at try {len(tries)}; the report doesn't say why the others failed."
        return worst.model_copy(update={"result": "flaky", "message": said})
    return worst


def _worst(cases: Sequence[TestCase]) -> TestCase:
    """Return the worst of several cases of a test, with what all of them took, and what all say that failed.

    A test that fails, and then its teardown, has two cases in pytest's report.
    """
    worst = max(cases, key=lambda case: RESULTS.index(case.result))
    update: dict[str, object] = {
        "seconds": round(sum(case.seconds for case in cases), 6),
        "tries": sum(case.tries for case in cases),
    }
    red = [case for case in cases if case.result in RED]
    if len(red) > 1:
        update["failures"] = tuple(line for case in red for line in case.failures or (case.message,))[:MOST_FAILURES]
        update["text"] = cut_middle("\n\n".join(case.text for case in red if case.text))
    return worst.model_copy(update=update)


def _shortened(cases: Sequence[TestCase]) -> Iterator[TestCase]:
    """Yield cases with their texts, and with the messages of several failures, for as long as there is room."""
    texts = messages = TEXTS
    for case in cases:
        texts -= len(case.text)
        messages -= sum(map(len, case.failures))
        left_out: dict[str, object] = {"text": ""} if texts < 0 and case.text else {}
        left_out |= {"failures": ()} if messages < 0 and case.failures else {}
        yield case.model_copy(update=left_out) if left_out else case
