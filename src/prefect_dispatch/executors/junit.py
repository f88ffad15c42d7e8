"""Parser for the report of a test runner: JUnit XML files and an exit code, which have to agree."""

from __future__ import annotations

import codecs
import math
import re
import signal
from dataclasses import dataclass
from hashlib import sha256
from io import StringIO
from typing import TYPE_CHECKING, NamedTuple

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, iterparse

from prefect_dispatch.models.test_run import RED, RESULTS, RUN, Key, Result, TestCase, TestRun
from prefect_dispatch.security.escaping import count_noun, shorten

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from xml.etree.ElementTree import Element


RESULT_BY_ELEMENT: Mapping[str, Result] = {
    "failure": "failed",
    "error": "error",
    "skipped": "skipped",
    "flakyfailure": "flaky",
    "flakyerror": "flaky",
    "rerunfailure": "failed",
    "rerunerror": "failed",
}
"""Result of a case by its child element. Maven's Surefire writes the last four, one for each earlier try."""
_STATUS: Mapping[str, Result] = {
    "failed": "failed",
    "failure": "failed",
    "fail": "failed",
    "error": "error",
    "errored": "error",
    "broken": "error",
}
"""Result of a case without such an element, by its attribute `status` or `result`."""
MOST_FAILURES = 100
"""Most failures of one test that are kept, each with its message."""
_SUMMARY = re.compile(r"contains \d+ failed subtests?")
"""Message of the additional failure that pytest 9 writes for a test whose subtests failed."""
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # first, as it begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_DECLARED = re.compile(rb"""\A\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
_CHARACTER_SETS = re.compile(
    r"utf-(8|16|32)(-\w+)?|ascii|iso8859-\d+|cp\d+|gb\w+|big5\w*|shift_jis\w*|euc_\w+|koi8-\w|mac-\w+"
)
"""Codecs that are character sets. Python has others, which decode something else or take very long."""
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_REFERENCE = re.compile(r"&#(?:x([0-9a-fA-F]{1,8})|([0-9]{1,8}));")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def decode_xml(data: bytes) -> str:
    """Decode an XML file; invalid bytes become replacement characters.

    Raises:
        ValueError: If it declares an encoding that is no known character set.

    Example:
        >>> decode_xml('<?xml version="1.0" encoding="latin-1"?><a>é</a>'.encode("latin-1"))[-8:]
        '<a>é</a>'
    """
    # A byte order mark decides, else the XML declaration; else it is UTF-8, the default of XML.
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "")
    if not encoding and (found := _DECLARED.match(data)):
        declared = found[1].decode("ascii")
        try:
            encoding = codecs.lookup(declared).name
        except LookupError:
            encoding = ""
        if not _CHARACTER_SETS.fullmatch(encoding):
            raise ValueError(f"its encoding {declared!r} is not known")
        if encoding.startswith(("utf-16", "utf-32")):  # the declaration was readable as ASCII, so it is wrong
            encoding = "utf-8"
    return data.decode(encoding or "utf-8", "replace")


def replace_illegal_characters(text: str) -> str:
    """Replace literal characters that XML forbids."""
    return _ILLEGAL.sub(_REPLACEMENT, text)


def _replace_reference(found: re.Match[str]) -> str:
    """Return a character reference unchanged if XML allows its character, else a replacement character."""
    code = int(found[1], 16) if found[1] else int(found[2])
    return found[0] if code <= 0x10FFFF and not _ILLEGAL.match(chr(code)) else _REPLACEMENT  # noqa: PLR2004 -- the last one


DEPTH = 100
"""Deepest allowed nesting of elements; no runner comes near it."""
MOST_CASES = 200_000
"""Most cases in one file."""
MOST_ELEMENTS = 10 * MOST_CASES
"""Most elements in one file, as each of them takes memory."""
NAME, MESSAGE, HEAD, TAIL = 600, 500, 1_500, 2_500
"""Characters that are kept of a name, of a message, and of the start and the end of a text."""
_MAX_TEXT = 1_000_000
"""Characters of one text that are parsed."""
_SUITES = ("testsuites", "testsuite")


class _UnreadableError(ValueError):
    """The file is not a JUnit report."""


class _Finding(NamedTuple):
    """Content of a result element: what it says of its case."""

    result: Result
    message: str
    text: str
    is_try: bool = False
    """Whether it is an earlier try of the case."""
    is_todo: bool = False
    """Whether it marks the case as one that may fail, as node:test does."""


@dataclass
class _Suite:
    """An open `<testsuite>` or `<testsuites>` element, with the counts of what was parsed in it so far."""

    name: str
    is_root: bool
    """Whether it is `<testsuites>`, which only contains suites."""
    is_hosted: bool
    """Whether it names its host, as pytest does."""
    declared: int
    """The number in its attribute `tests`, or 0 if that is no number."""
    cases: int = 0
    suites: int = 0


class _Reader:
    """Reader that collects the test cases of an XML text.

    Attributes:
        cases: The cases in file order; a key may occur more than once.
        unreadable: Why the text couldn't be parsed to its end; empty if it could.
        subtests: Number of declared tests without a case: pytest counts each subtest, and writes no case for it.
        hidden_try_suites: Suites in which a passed case may be an earlier try that failed: pytest-rerunfailures writes
            a case for each try and leaves all but the last one out of the count. Subtests raise the count.
    """

    def __init__(self, root: str) -> None:
        """Start without a case.

        Args:
            root: The folder that the tests ran in, which is removed from names and texts; empty keeps them.
        """
        self.cases: list[TestCase] = []
        self.unreadable = ""
        self.subtests = 0
        self.hidden_try_suites: set[str] = set()
        self._prefixes = (f"{root}/", f"{root}\\") if root else ()
        self._open: list[str] = []
        self._suites: list[_Suite] = []
        self._findings: list[list[_Finding]] = []  # of each open case
        self._elements = 0

    def read_xml(self, text: str) -> None:
        """Read an XML text; invalid content is reported in `unreadable`, and never raises."""
        try:
            for event, element in iterparse(StringIO(text), ("start", "end"), forbid_dtd=True):
                name = element.tag.rpartition("}")[2].lower()
                if event == "start":
                    self._start(name, element)
                else:
                    self._end(name, element)
        except (_UnreadableError, ParseError) as error:
            self.unreadable = str(error)
        except DefusedXmlException:
            self.unreadable = "it has a document type, which no report needs; it may be an attack"

    def _start(self, name: str, element: Element) -> None:
        if not self._open and name not in _SUITES:
            raise _UnreadableError(f"its root is <{name[:40]}>, not <testsuites>")
        self._open.append(name)
        self._elements += 1
        if len(self._open) > DEPTH:
            raise _UnreadableError(f"it is nested more than {DEPTH} deep")
        if self._elements > MOST_ELEMENTS:
            raise _UnreadableError(f"it has more than {MOST_ELEMENTS} elements")
        if name in _SUITES:
            for outer in self._suites:
                outer.suites += 1
            count = element.get("tests", "").strip()
            declared = int(count) if count.isascii() and count.isdigit() and len(count) < 10 else 0  # noqa: PLR2004 -- digits
            is_root, is_hosted = name == "testsuites", "hostname" in element.attrib
            self._suites.append(_Suite(element.get("name", ""), is_root, is_hosted, declared))
        elif name == "testcase":
            self._findings.append([])

    def _end(self, name: str, element: Element) -> None:
        self._open.pop()
        if any(outer in RESULT_BY_ELEMENT for outer in self._open):
            return  # a part of the text of a result
        if name in RESULT_BY_ELEMENT:
            if self._findings:
                self._findings[-1].append(_read_finding(name, element))
            else:  # outside of any case it becomes a case for the suite
                self._add_case({"name": "(the suite)"}, [_read_finding(name, element)])
        elif name == "testcase":
            self._add_case(element.attrib, self._findings.pop())
        elif name in _SUITES:
            suite = self._suites.pop()
            if suite.declared and not suite.is_root and not suite.suites:  # node:test counts nested suites as tests
                self.subtests += max(0, suite.declared - suite.cases)
                if suite.is_hosted and suite.declared != suite.cases:
                    self.hidden_try_suites.add(self._suite_path([*self._suites, suite]))
        element.clear()

    def _add_case(self, attributes: Mapping[str, str], findings: Sequence[_Finding]) -> None:
        if len(self.cases) >= MOST_CASES:
            raise _UnreadableError(f"it has more than {MOST_CASES} cases")
        for suite in self._suites:
            suite.cases += 1
        # 1. The first of the worst findings counts; without any, an attribute may say that the case failed.
        status = attributes.get("status", attributes.get("result", ""))
        stated = _Finding(_STATUS.get(status.lower(), "passed"), "", "")
        worst = max(findings, key=lambda each: RESULTS.index(each.result), default=stated)
        is_expected = worst.result in RED and any(each.is_todo for each in findings)
        # 2. Of several failures each is kept: pytest writes one for each failed subtest, and one that sums them up.
        failures = [each for each in findings if each.result in RED and not each.is_try]
        failures = failures[:1] + [each for each in failures[1:] if not _SUMMARY.fullmatch(each.message)]
        message, text, messages = worst.message, worst.text, list[str]()
        if (several := len(failures)) > 1:
            message = f"{message} (and {several - 1} more)"
            text = "\n\n".join(each.text.strip() for each in failures[:MOST_FAILURES] if each.text.strip())
            messages = [each.message for each in failures[:MOST_FAILURES]]
            messages += [f"… and {several - MOST_FAILURES} more"] if several > MOST_FAILURES else []
        place = self._suite_path(self._suites)
        self.cases.append(
            TestCase(
                suite=f"report: {place}" if place == RUN else place,
                classname=self._stable_name(attributes.get("classname", "")),
                name=self._stable_name(attributes.get("name", "")) or "(no name)",
                file=self._stable_name(attributes.get("file", "")),
                result="xfailed" if is_expected else worst.result,
                seconds=_parse_seconds(attributes.get("time", "")),
                tries=1 + sum(each.is_try for each in findings),
                message=self._one_line(message),
                failures=tuple(map(self._one_line, messages)),
                text=cut_middle(self._without_root(text).strip()),
            )
        )

    def _suite_path(self, suites: Sequence[_Suite]) -> str:
        return self._stable_name(" > ".join(suite.name for suite in suites if suite.name and not suite.is_root))

    def _one_line(self, message: str) -> str:
        line = " ".join(self._without_root(message).split())
        return shorten(line, MESSAGE)

    def _stable_name(self, name: str) -> str:
        """Return a name that doesn't depend on the folder of the tests; a long one is cut, and gets a digest."""
        name = self._without_root(name)
        if len(name) <= NAME:
            return name
        return f"{name[:NAME]}… ({sha256(name.encode()).hexdigest()[:12]})"

    def _without_root(self, text: str) -> str:
        """Remove the folder that the tests ran in from a text."""
        for prefix in self._prefixes:
            text = text.replace(prefix, "")
        return text


def _read_finding(name: str, element: Element) -> _Finding:
    """Return the content of a result element; elements inside of it are part of its text.

    Args:
        name: The element's name, in lower case.
        element: The element.
    """
    kind, text = element.get("type", ""), "".join(element.itertext())[:_MAX_TEXT]
    is_skipped = name == "skipped"
    return _Finding(
        result="xfailed" if is_skipped and kind == "pytest.xfail" else RESULT_BY_ELEMENT[name],
        message=element.get("message") or text.strip().partition("\n")[0] or kind,
        text=text,
        is_try=name.startswith(("flaky", "rerun")),
        is_todo=is_skipped and kind == "todo",
    )


def _read_file(data: bytes, root: str) -> _Reader:
    """Return what a JUnit XML file has, if need be without the characters that some runners write and XML forbids."""
    reader = _Reader(root)
    try:
        text = decode_xml(data)
    except ValueError as error:
        reader.unreadable = str(error)
        return reader
    reader.read_xml(text)
    if reader.unreadable and (repaired := _REFERENCE.sub(_replace_reference, replace_illegal_characters(text))) != text:
        del text  # it may be large
        reader = _Reader(root)
        reader.read_xml(repaired)
    return reader


def _parse_seconds(text: str) -> float:
    """Parse a duration in seconds; an invalid one is 0, as no result depends on it."""
    try:
        seconds = float(text.replace(",", ""))
    except ValueError:
        return 0.0
    return round(seconds, 6) if math.isfinite(seconds) and seconds > 0 else 0.0


def cut_middle(text: str) -> str:
    """Shorten a long text by its middle."""
    if len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]}\n… {len(text) - HEAD - TAIL} characters left out …\n{text[-TAIL:]}"


MOST_BYTES = 128 * 2**20
"""Most bytes of all report files together."""
_BY_SIGNAL = 128
TEXTS = 2**20
"""Characters of texts that a run keeps, and of messages of further failures; the tests after that have their first
message only."""


def read_report(
    files: Mapping[str, bytes],
    exit_code: int | None,
    *,
    ok: Collection[int] = (0,),
    stopped: str = "",
    seconds: float = 0.0,
    root: str = "",
) -> TestRun:
    """Parse the report files of one test run, and check them against its exit code.

    Inconsistencies become cases of the suite of the run itself, with the result `error`: no report, an unreadable or
    truncated one, no test, an exit code of success although a test failed (or the other way round), a stopped run.
    The counts in a suite's attributes decide nothing: runners count subtests, tries and suites in different ways.
    Several files are one run. A test with several cases in a file was run several times: the last one counts, and if
    an earlier try failed, it is flaky; but it failed if one try did and the exit code isn't one of `ok`, or if its
    cases are in different files.

    Args:
        files: The report files by their paths.
        exit_code: The exit code. None: a signal ended it, or it never started.
        ok: The exit codes that mean success.
        stopped: Why the run was stopped, as the end of a sentence: `after 600 s`. Empty: it ended by itself.
        seconds: Duration of the run in seconds.
        root: The folder that the tests ran in; it is removed from names, so that they are the same in every folder.

    Example:
        >>> xml = b'<testsuite name="s" tests="1"><testcase classname="a" name="b"/></testsuite>'
        >>> read_report({"junit.xml": xml}, 0).verdict
        'passed'
        >>> read_report({"junit.xml": xml}, 1).problems
        ('The exit code is 1, but no test failed.',)
    """
    is_ok = exit_code in ok and not stopped
    # 1. Parse all files, and merge the cases of one test.
    cases, unreadable, reports, subtests = dict[Key, TestCase](), list[str](), list[str](), 0
    if sum(map(len, files.values())) > MOST_BYTES:
        unreadable.append(f"The report is larger than {MOST_BYTES} bytes")
    else:
        for path in sorted(files):
            # Bytes of a name that are no UTF-8 are surrogates in it, which are escaped.
            reports.append(path.encode(errors="backslashreplace").decode())
            found = _read_file(files[path], root)
            if found.unreadable:
                unreadable.append(f"{reports[-1]} can't be read: {found.unreadable}")
            subtests += found.subtests
            for key, case in _merge_tries(found, is_ok=is_ok).items():
                cases[key] = _worst_case([cases[key], case]) if key in cases else case
    # 2. Add a case for each problem of the run itself.
    red = sum(case.result in RED for case in cases.values())
    problems = dict(_code_problems(exit_code, stopped, red, is_ok=is_ok))
    if not files:
        problems["there is a report"] = "There is no report."
    if unreadable:
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        problems["the report can be read"] = f"{unreadable[0]}{more}."
    if reports and not cases:
        problems["there are tests"] = "The report has no test."
    for name, message in problems.items():
        case = TestCase(suite=RUN, name=name, result="error", message=message)
        cases[case.key] = case
    return TestRun(
        exit=exit_code,
        seconds=round(max(seconds, 0.0), 3),
        reports=tuple(reports),
        cases=tuple(_limit_texts([cases[key] for key in sorted(cases)])),
        subtests=subtests,
    )


def _code_problems(exit_code: int | None, stopped: str, red: int, *, is_ok: bool) -> Iterator[tuple[str, str]]:
    """Yield what the exit code says against the run, as the name of a check and a sentence."""
    if stopped:
        yield "the run ends by itself", f"The run was stopped {stopped}."
    elif exit_code is None:
        yield "the run ends by itself", "The run was ended, and has no exit code."
    elif not is_ok and not red:
        code = _describe_exit_code(exit_code)
        yield "exit code and report agree", f"The exit code is {code}, but no test failed."
    elif is_ok and red:
        yield "exit code and report agree", f"The exit code is {exit_code}, but {count_noun(red, 'test')} failed."


def _describe_exit_code(code: int) -> str:
    """Return an exit code as text, with the name of its signal if it has one: a shell exits with 128 plus its number.

    Example:
        >>> _describe_exit_code(139), _describe_exit_code(1)
        ('139 (SIGSEGV)', '1')
    """
    try:
        return f"{code} ({signal.Signals(code - _BY_SIGNAL).name})"
    except ValueError:
        return str(code)


def _merge_tries(found: _Reader, *, is_ok: bool) -> dict[Key, TestCase]:
    """Return one case for each test of a file; a test with several cases was tried again, or is flaky."""
    tries: dict[Key, list[TestCase]] = {}
    for case in found.cases:
        tries.setdefault(case.key, []).append(case)
    cases: dict[Key, TestCase] = {}
    for key, each in tries.items():
        cases[key] = worst = _worst_case(each)
        if len(each) > 1 and is_ok and worst.result in RED and each[-1].result not in RED:
            # The last try passed, and so did the run.
            cases[key] = worst.model_copy(update={"result": "flaky"})
        elif len(each) > 1 and worst.result == "passed" and key[0] in found.hidden_try_suites:
            # pytest-rerunfailures reports a failed try as passed, but leaves it out of the suite's count.
            message = f"It passed at try {len(each)}; the report doesn't say why the others failed."
            cases[key] = worst.model_copy(update={"result": "flaky", "message": message})
    return cases


def _worst_case(cases: Sequence[TestCase]) -> TestCase:
    """Return the worst case of a test, with the durations, tries and failures of all its cases.

    A test that fails in its call and again in its teardown has two cases in pytest's report.
    """
    if len(cases) == 1:
        return cases[0]
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


def _limit_texts(cases: Sequence[TestCase]) -> Iterator[TestCase]:
    """Yield the cases, without texts and without messages of further failures once `TEXTS` characters are used up."""
    texts = messages = TEXTS
    for case in cases:
        texts -= len(case.text)
        messages -= sum(map(len, case.failures))
        left_out: dict[str, object] = {"text": ""} if texts < 0 and case.text else {}
        left_out |= {"failures": ()} if messages < 0 and case.failures else {}
        yield case.model_copy(update=left_out) if left_out else case
