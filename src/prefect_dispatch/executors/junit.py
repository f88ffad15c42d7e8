"""Parser for the report of a test runner: JUnit XML files and an exit code, which have to agree."""

from __future__ import annotations

import codecs
import math
import re
import signal
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, XMLParser

from prefect_dispatch.models.test_run import RED, RESULTS, RUN, Key, Result, TestCase, TestRun

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence


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


class Suite:
    """An open `<testsuite>` element, with the counts of what was parsed in it so far."""

    def __init__(self, attributes: Mapping[str, str], *, root: bool) -> None:
        """Open a suite.

        Args:
            attributes: The attributes of its element.
            root: Whether it is the root element `<testsuites>`, which only contains suites.
        """
        self.name = attributes.get("name", "")
        self.root = root
        self._attributes = attributes
        self._tests = 0
        self._suites = 0

    def count_case(self) -> None:
        """Count a case of this suite or of a nested one."""
        self._tests += 1

    def count_suite(self) -> None:
        """Count a nested suite: node:test counts it as a test."""
        self._suites += not self.root

    @property
    def subtests(self) -> int:
        """Number of declared tests without a case: pytest counts each subtest, and writes no case for it."""
        return 0 if self.root or self._suites else max(0, self._declared_tests() - self._tests)

    @property
    def has_hidden_tries(self) -> bool:
        """Whether a passed case may be an earlier try that failed.

        pytest-rerunfailures writes a case for each try and leaves all but the last one out of the count, which then
        is no longer the number of the cases. Subtests raise the count, so that it may be larger as well.
        """
        is_counted = "tests" in self._attributes and "hostname" in self._attributes
        return is_counted and not self._suites and self._declared_tests() not in (0, self._tests)

    def _declared_tests(self) -> int:
        """Return the number in its attribute `tests`, or 0 if that is no number."""
        count = self._attributes.get("tests", "").strip()
        return int(count) if count.isascii() and count.isdigit() and len(count) < 10 else 0  # noqa: PLR2004 -- digits


class Case:
    """An open `<testcase>` element, with the results of its child elements so far."""

    def __init__(self, attributes: Mapping[str, str]) -> None:
        """Open a case without results.

        Args:
            attributes: The attributes of its element.
        """
        self.attributes = attributes
        self.tries = 1
        self._worst: tuple[Result, str, str] | None = None
        self._failed = 0
        self._failures: list[tuple[str, str]] = []
        self._is_todo = False

    def add_result(self, name: str, attributes: Mapping[str, str], text: str) -> None:
        """Add the result of a child element: the worst one of several counts, and each failure is kept.

        Args:
            name: The element's name, in lower case.
            attributes: The element's attributes.
            text: The element's text.
        """
        kind = attributes.get("type", "")
        result = "xfailed" if kind == "pytest.xfail" and name == "skipped" else RESULT_BY_ELEMENT[name]
        self._is_todo |= kind == "todo" and name == "skipped"
        is_try = name.startswith(("flaky", "rerun"))
        self.tries += is_try
        message = attributes.get("message", "") or text.strip().partition("\n")[0] or kind
        # `RESULTS` is ordered from best to worst.
        if self._worst is None or RESULTS.index(result) > RESULTS.index(self._worst[0]):
            self._worst = (result, message, text)
        if result in RED and not is_try and not (self._failures and _SUMMARY.fullmatch(message)):
            self._failed += 1
            if self._failed <= MOST_FAILURES:
                self._failures.append((message, text))

    @property
    def result(self) -> Result:
        """The result of the case."""
        if self._worst is None:
            status = self.attributes.get("status", self.attributes.get("result", ""))
            return _STATUS.get(status.lower(), "passed")
        worst = self._worst[0]
        return "xfailed" if self._is_todo and worst in RED else worst  # node:test: a test marked as todo may fail

    @property
    def message(self) -> str:
        """Why it didn't pass: the first of its worst failures, and how many more there are."""
        _, message, _ = self._worst or ("", "", "")
        return f"{message} (and {self._failed - 1} more)" if self._failed > 1 else message

    @property
    def failures(self) -> list[str]:
        """Messages of all failures if there are several: pytest writes one for each failed subtest."""
        if self._failed <= 1:
            return []
        more = [f"… and {self._failed - MOST_FAILURES} more"] if self._failed > MOST_FAILURES else []
        return [*(message for message, _ in self._failures), *more]

    @property
    def text(self) -> str:
        """Text of the worst element, or of all failures if there are several."""
        if self._failed > 1:
            return "\n\n".join(text.strip() for _, text in self._failures if text.strip())
        return self._worst[2] if self._worst else ""


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
    # 1. A byte order mark decides.
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "")
    # 2. Else the XML declaration does.
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
    # 3. Else it is UTF-8, the default of XML.
    return data.decode(encoding or "utf-8", "replace")


def replace_illegal(text: str) -> str:
    r"""Replace characters that XML forbids, literal or as character references; some runners write them.

    Example:
        >>> replace_illegal("\x1b[31mred &#27; &#9;")
        '�[31mred � &#9;'
    """
    return _REFERENCE.sub(_replace_reference, replace_illegal_characters(text))


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
NAME, MESSAGE, HEAD, TAIL = 600, 500, 1_500, 2_500
"""Characters that are kept of a name, of a message, and of the start and the end of a text."""
_MAX_TEXT = 1_000_000
"""Characters of one text that are parsed."""
_SUITES = ("testsuites", "testsuite")


class ParsedReport(NamedTuple):
    """Parsed content of one report file."""

    cases: list[TestCase]
    """The cases in file order; a key may occur more than once."""
    unreadable: str
    """Why the file couldn't be parsed to its end; empty if it could."""
    subtests: int
    """Number of declared tests without a case."""
    hidden_try_suites: frozenset[str]
    """Suites in which a passed case may be an earlier try that failed."""


class _UnreadableError(ValueError):
    """The file is not a JUnit report."""


class _Reader:
    """Target of an XML parser that collects the test cases.

    Args:
        root: The folder that the tests ran in, which is removed from names and texts; empty keeps them.
    """

    def __init__(self, root: str) -> None:
        self.cases: list[TestCase] = []
        self.hidden_try_suites: set[str] = set()
        self.subtests = 0
        self._prefixes = (f"{root}/", f"{root}\\") if root else ()
        self._open: list[str] = []
        self._suites: list[Suite] = []
        self._cases: list[Case] = []
        # The depth and the attributes of the result element whose text is being collected.
        self._result: tuple[int, Mapping[str, str]] | None = None
        self._text: list[str] = []
        self._size = 0

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        name = tag.rpartition("}")[2].lower()
        if not self._open and name not in _SUITES:
            raise _UnreadableError(f"its root is <{name[:40]}>, not <testsuites>")
        self._open.append(name)
        if len(self._open) > DEPTH:
            raise _UnreadableError(f"it is nested more than {DEPTH} deep")
        if name in _SUITES:
            for outer in self._suites:
                outer.count_suite()
            self._suites.append(Suite(attributes, root=name == "testsuites"))
        elif name == "testcase":
            self._cases.append(Case(attributes))
        elif name in RESULT_BY_ELEMENT and self._result is None:
            self._result = (len(self._open), attributes)
            self._text, self._size = [], 0

    def data(self, text: str) -> None:
        if self._result and self._size < _MAX_TEXT:
            self._text.append(text)
            self._size += len(text)

    def end(self, _tag: str) -> None:
        name = self._open.pop()
        # 1. The result element whose text is being collected; elements inside of it are part of its text.
        if self._result and self._result[0] == len(self._open) + 1:
            self._add_result(name, self._result[1])
            self._result = None
        # 2. A case: all its results are known.
        elif name == "testcase":
            self._close_case(self._cases.pop())
        # 3. A suite: all its cases are counted.
        elif name in _SUITES:
            suite = self._suites.pop()
            self.subtests += suite.subtests
            if suite.has_hidden_tries:
                self.hidden_try_suites.add(self._suite_path([*self._suites, suite]))

    def close(self) -> None:
        """Do nothing: the end tags of the elements have added all results."""

    def _add_result(self, name: str, attributes: Mapping[str, str]) -> None:
        """Add a result element to the enclosing case; outside of any, it becomes a case for the suite."""
        case = self._cases[-1] if self._cases else Case({"name": "(the suite)"})
        case.add_result(name, attributes, "".join(self._text))
        if not self._cases:
            self._close_case(case)

    def _close_case(self, case: Case) -> None:
        if len(self.cases) >= MOST_CASES:
            raise _UnreadableError(f"it has more than {MOST_CASES} cases")
        attributes, place, result = case.attributes, self._suite_path(self._suites), case.result
        for suite in self._suites:
            suite.count_case()
        self.cases.append(
            TestCase(
                suite=f"report: {place}" if place == RUN else place,
                classname=self._stable_name(attributes.get("classname", "")),
                name=self._stable_name(attributes.get("name", "")) or "(no name)",
                file=self._stable_name(attributes.get("file", "")),
                result=result,
                seconds=_seconds(attributes.get("time", "")),
                tries=case.tries,
                message=self._one_line(case.message),
                failures=tuple(map(self._one_line, case.failures)),
                text=cut_middle(self._without_root(case.text).strip()),
            )
        )

    def _suite_path(self, suites: Sequence[Suite]) -> str:
        return self._stable_name(" > ".join(suite.name for suite in suites if suite.name and not suite.root))

    def _one_line(self, message: str) -> str:
        return _truncate(" ".join(self._without_root(message).split()))

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


def read_file(data: bytes, root: str = "") -> ParsedReport:
    """Parse a JUnit XML file; invalid content is reported in the result, and never raises.

    Args:
        data: The bytes of the file.
        root: The folder that the tests ran in, which is removed from names.
    """
    try:
        text = decode_xml(data)
    except ValueError as error:
        return ParsedReport([], str(error), 0, frozenset())
    reader, unreadable = _parse(text, root)
    # Some runners write characters that XML forbids: parse again without them.
    if unreadable and (repaired := replace_illegal(text)) != text:
        del text  # it may be large
        reader, unreadable = _parse(repaired, root)
    return ParsedReport(reader.cases, unreadable, reader.subtests, frozenset(reader.hidden_try_suites))


def _parse(text: str, root: str) -> tuple[_Reader, str]:
    """Return a reader with the cases of an XML text, and why it couldn't be parsed to its end, or an empty text."""
    reader = _Reader(root)
    parser = XMLParser(target=reader, forbid_dtd=True)
    try:
        parser.feed(text)
        parser.close()
    except (_UnreadableError, ParseError) as error:
        return reader, str(error)
    except DefusedXmlException:
        return reader, "it has a document type, which no report needs; it may be an attack"
    return reader, ""


def _seconds(text: str) -> float:
    """Parse a duration in seconds; an invalid one is 0, as no result depends on it."""
    try:
        seconds = float(text.replace(",", ""))
    except ValueError:
        return 0.0
    return round(seconds, 6) if math.isfinite(seconds) and seconds > 0 else 0.0


def _truncate(text: str) -> str:
    return text if len(text) <= MESSAGE else text[: MESSAGE - 1] + "…"


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


class _FailedCheck(NamedTuple):
    """A failed check of a whole run."""

    check: str
    """The expectation, as the name of a test."""
    message: str
    """The observation."""


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
    # 1. Parse all files.
    found: dict[str, ParsedReport] = {}
    wrong: list[_FailedCheck] = []
    if sum(map(len, files.values())) > MOST_BYTES:
        wrong.append(_FailedCheck("the report can be read", f"The report is larger than {MOST_BYTES} bytes."))
    else:
        found = {_printable_path(path): read_file(files[path], root) for path in sorted(files)}
    # 2. Merge the cases of one test.
    cases = _merge_cases(found, is_ok=is_ok)
    # 3. Add a case for each failed check of the run.
    wrong += _failed_checks(found, cases, exit_code, stopped, is_ok=is_ok, is_there=bool(files))
    for each in wrong:
        case = TestCase(suite=RUN, name=each.check, result="error", message=each.message)
        cases[case.key] = case
    return TestRun(
        exit=exit_code,
        seconds=round(max(seconds, 0.0), 3),
        reports=tuple(found),
        cases=tuple(_limit_texts([cases[key] for key in sorted(cases)])),
        subtests=sum(each.subtests for each in found.values()),
    )


def _failed_checks(
    found: Mapping[str, ParsedReport],
    cases: Mapping[Key, TestCase],
    exit_code: int | None,
    stopped: str,
    *,
    is_ok: bool,
    is_there: bool,
) -> Iterator[_FailedCheck]:
    """Yield the failed checks of a run, each kind once."""
    if stopped:
        yield _FailedCheck("the run ends by itself", f"The run was stopped {stopped}.")
    elif exit_code is None:
        yield _FailedCheck("the run ends by itself", "The run was ended, and has no exit code.")
    if not is_there:
        yield _FailedCheck("there is a report", "There is no report.")
    if bad := [(path, each.unreadable) for path, each in found.items() if each.unreadable]:
        yield _FailedCheck("the report can be read", _summarize("{} can't be read: {}", bad))
    if found and not cases:
        yield _FailedCheck("there are tests", "The report has no test.")
    red = sum(case.result in RED for case in cases.values())
    if is_ok and red:
        message = f"The exit code is {exit_code}, but {red} {'test' if red == 1 else 'tests'} failed."
        yield _FailedCheck("exit code and report agree", message)
    elif exit_code is not None and not stopped and not is_ok and not red:
        yield _FailedCheck(
            "exit code and report agree", f"The exit code is {_describe_exit_code(exit_code)}, but no test failed."
        )


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


def _summarize(form: str, bad: Sequence[tuple[str, str]]) -> str:
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return f"{form.format(*bad[0])}{more}."


def _printable_path(path: str) -> str:
    """Return a path as printable text; bytes that are no UTF-8 are surrogates in it, which are escaped."""
    return path.encode(errors="backslashreplace").decode()


def _merge_cases(found: Mapping[str, ParsedReport], *, is_ok: bool) -> dict[Key, TestCase]:
    """Return one case per test, by its key; several cases of a test are merged."""
    every: dict[Key, TestCase] = {}
    for each in found.values():
        own: dict[Key, list[TestCase]] = {}
        for case in each.cases:
            own.setdefault(case.key, []).append(case)
        for key, tries in own.items():
            case = (
                tries[0]
                if len(tries) == 1
                else _merge_tries(tries, is_ok=is_ok, hiding=key[0] in each.hidden_try_suites)
            )
            every[key] = _worst_case([every[key], case]) if key in every else case
    return every


def _merge_tries(tries: Sequence[TestCase], *, is_ok: bool, hiding: bool) -> TestCase:
    """Merge the cases of a test that has several in one file: it was tried again, or is flaky."""
    worst, last = _worst_case(tries), tries[-1]
    # The last try passed, and so did the run: the test is flaky.
    if last.result not in RED and worst.result in RED and is_ok:
        return worst.model_copy(update={"result": "flaky"})
    if worst.result == "passed" and hiding:
        # pytest-rerunfailures reports a failed try as passed, but leaves it out of the suite's count.
        message = f"It passed at try {len(tries)}; the report doesn't say why the others failed."
        return worst.model_copy(update={"result": "flaky", "message": message})
    return worst


def _worst_case(cases: Sequence[TestCase]) -> TestCase:
    """Return the worst case of a test, with the durations, tries and failures of all its cases.

    A test that fails in its call and again in its teardown has two cases in pytest's report.
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


def _limit_texts(cases: Sequence[TestCase]) -> Iterator[TestCase]:
    """Yield the cases, without texts and without messages of further failures once `TEXTS` characters are used up."""
    texts = messages = TEXTS
    for case in cases:
        texts -= len(case.text)
        messages -= sum(map(len, case.failures))
        left_out: dict[str, object] = {"text": ""} if texts < 0 and case.text else {}
        left_out |= {"failures": ()} if messages < 0 and case.failures else {}
        yield case.model_copy(update=left_out) if left_out else case
