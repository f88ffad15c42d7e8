"""The cases of one JUnit XML file, as they come: hostile data, of which no tree is built."""

from __future__ import annotations

import math
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, XMLParser

from prefect_dispatch.junit_open import SAID, Case, Suite
from prefect_dispatch.junit_text import decoded, legal
from prefect_dispatch.test_run import RUN, TestCase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEPTH = 100
"""How deep elements may stand inside each other; no runner comes near it."""
MOST_CASES = 200_000
"""How many cases a file may have."""
NAME, MESSAGE, HEAD, TAIL = 600, 500, 1_500, 2_500
"""How many characters are kept of a name, of a message, and of the start and the end of a text."""
_COLLECTED = 1_000_000
"""How many characters of one text are looked at."""
_SUITES = ("testsuites", "testsuite")


class Found(NamedTuple):
    """What one file holds."""

    cases: list[TestCase]
    """Its cases, in their order; a key may come more than once."""
    unreadable: str
    """Why it can't be read, or not to its end; empty if it can."""
    subtests: int
    """How many tests it counts beyond its cases."""
    hiding: frozenset[str]
    """Suites in which a passed case may be an earlier try that failed."""


class _UnreadableError(ValueError):
    """The file is no report."""


class _Reader:
    """Takes a parser's events, and keeps the cases."""

    def __init__(self, root: str) -> None:
        self.cases: list[TestCase] = []
        self.hiding: set[str] = set()
        self.subtests = 0
        self._prefixes = (f"{root}/", f"{root}\\") if root else ()
        self._open: list[str] = []
        self._suites: list[Suite] = []
        self._cases: list[Case] = []
        self._said: tuple[int, Mapping[str, str]] | None = None
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
            for around in self._suites:
                around.take_suite()
            self._suites.append(Suite(attributes, root=name == "testsuites"))
        elif name == "testcase":
            self._cases.append(Case(attributes))
        elif name in SAID and self._said is None:
            self._said = (len(self._open), attributes)
            self._text, self._size = [], 0

    def data(self, text: str) -> None:
        if self._said and self._size < _COLLECTED:
            self._text.append(text)
            self._size += len(text)

    def end(self, _tag: str) -> None:
        name = self._open.pop()
        if self._said and self._said[0] == len(self._open) + 1:
            self._tell(name, self._said[1])
            self._said = None
        elif name == "testcase":
            self._close(self._cases.pop())
        elif name in _SUITES:
            suite = self._suites.pop()
            self.subtests += suite.subtests
            if suite.has_hidden_tries:
                self.hiding.add(self._place([*self._suites, suite]))

    def close(self) -> None:
        """End; all that counts is told by the elements."""

    def _tell(self, name: str, attributes: Mapping[str, str]) -> None:
        """Take in what an element says of the case, or of the suite, that it stands in."""
        case = self._cases[-1] if self._cases else Case({"name": "(the suite)"})
        case.take(name, attributes, "".join(self._text))
        if not self._cases:
            self._close(case)

    def _close(self, case: Case) -> None:
        if len(self.cases) >= MOST_CASES:
            raise _UnreadableError(f"it has more than {MOST_CASES} cases")
        said, place, result = case.attributes, self._place(self._suites), case.result
        for suite in self._suites:
            suite.take()
        self.cases.append(
            TestCase(
                suite=f"report: {place}" if place == RUN else place,
                classname=self._named(said.get("classname", "")),
                name=self._named(said.get("name", "")) or "(no name)",
                file=self._named(said.get("file", "")),
                result=result,
                seconds=_seconds(said.get("time", "")),
                tries=case.tries,
                message=self._line(case.message),
                failures=tuple(map(self._line, case.failures)),
                text=cut_middle(self._moved(case.text).strip()),
            )
        )

    def _place(self, suites: Sequence[Suite]) -> str:
        return self._named(" > ".join(suite.name for suite in suites if suite.name and not suite.root))

    def _line(self, message: str) -> str:
        return _cut(" ".join(self._moved(message).split()))

    def _named(self, name: str) -> str:
        """Return a name as it is the same wherever the tests ran, and not too long."""
        name = self._moved(name)
        if len(name) <= NAME:
            return name
        return f"{name[:NAME]}… ({sha256(name.encode()).hexdigest()[:12]})"

    def _moved(self, text: str) -> str:
        """Return a text without the folder that the tests ran in."""
        for prefix in self._prefixes:
            text = text.replace(prefix, "")
        return text


def read_file(data: bytes, root: str = "") -> Found:
    """Return what a JUnit XML file holds; never raises for what is in it.

    Args:
        data: The file.
        root: The folder that the tests ran in, which is left out of names.
    """
    try:
        text = decoded(data)
    except ValueError as error:
        return Found([], str(error), 0, frozenset())
    reader, unreadable = _parsed(text, root)
    if unreadable and (repaired := legal(text)) != text:
        del text  # it may be large
        reader, unreadable = _parsed(repaired, root)
    return Found(reader.cases, unreadable, reader.subtests, frozenset(reader.hiding))


def _parsed(text: str, root: str) -> tuple[_Reader, str]:
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
    """Return a duration; what is none is 0, as it decides nothing."""
    try:
        seconds = float(text.replace(",", ""))
    except ValueError:
        return 0.0
    return round(seconds, 6) if math.isfinite(seconds) and seconds > 0 else 0.0


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE else text[: MESSAGE - 1] + "…"


def cut_middle(text: str) -> str:
    """Return a text without its middle, if it is long."""
    if len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]}\n… {len(text) - HEAD - TAIL} characters left out …\n{text[-TAIL:]}"
