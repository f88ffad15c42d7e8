"""Reports of test runners: what five of them write, and what an attacker, a crash or a full disk leaves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch.executors import junit
from prefect_dispatch.executors.junit import read_report
from prefect_dispatch.models.test_run import RUN, TestCase, TestRun

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLES = Path(__file__).parent / "junit"
RED = ("pytest.xml", "node.xml", "jest.xml", "surefire-Flat.xml", "go.xml")
"""Samples with failures: what the real runners wrote, but for the last two, typed by what they are documented to."""
EVERY_BYTE = (
    "surefire-Flat.xml",
    "surefire-Other.xml",
    *(pytest.param(name, marks=pytest.mark.long) for name in RED if name != "surefire-Flat.xml"),
)
GREEN = b'<testsuites><testsuite name="s" tests="2"><testcase name="a"/><testcase name="b"/></testsuite></testsuites>'


def sample(name: str) -> bytes:
    """Return a report."""
    return (SAMPLES / name).read_bytes()


def suite(*cases: str, said: str = "") -> bytes:
    """Return a report of one suite."""
    return f'<testsuite name="s" {said}>{"".join(cases)}</testsuite>'.encode()


def results(run: TestRun) -> dict[str, str]:
    """Return what came of each test, by name; what is wrong with the run under its own."""
    return {case.name: case.result for case in run.cases}


PYTEST = {
    "test_bad": "failed",
    "test_both": "error",  # it failed, and its clean-up did
    "test_flaky": "flaky",
    "test_hard": "failed",  # its tries before the last look as if they had passed
    "test_m": "passed",
    "test_ok": "passed",
    "test_p[<>&\"']": "passed",
    "test_p[\\x01]": "passed",
    "test_p[\\xfc/\\\\::[]]": "passed",
    "test_p[]": "passed",
    "test_p[a b]": "passed",
    f"test_p[{'a' * 30}]": "passed",
    "test_setup": "error",
    "test_skip": "skipped",
    "test_teardown": "error",
    "test_xfail": "xfailed",
    "test_xpass": "passed",
    "test_xpass_strict": "failed",
}
NODE = {
    "skipped": "skipped",
    "todo": "xfailed",
    "top bad": "failed",
    "top ok": "passed",
    "in ok": "passed",
    "deep bad": "failed",
    "deep ok": "passed",
    "sub": "failed",
}
JEST = {
    "b.test.js": "error",  # it could not be loaded
    "e fine": "passed",
    " bad <&>": "failed",
    " expected": "passed",
    " flaky": "passed",  # jest-junit doesn't say
    " ok": "passed",
    " skipped": "skipped",
    " todo": "passed",
    "d same": "failed",  # two tests of one name, of which one failed
}
SUREFIRE = {
    "boom": "error",
    "flaky": "flaky",
    "later": "skipped",
    "ok": "passed",
    "sum{int, int}[1]": "failed",
}
GO = {
    "TestOne": "passed",
    "TestOne/with_a_case#01": "passed",
    "TestSkip": "skipped",
    "TestTwo": "failed",
    "TestCart": "passed",
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("pytest.xml", PYTEST), ("node.xml", NODE), ("jest.xml", JEST), ("surefire-Flat.xml", SUREFIRE), ("go.xml", GO)],
)
def test_what_runners_write(name: str, expected: dict[str, str]) -> None:
    """Each test of a real report is there, with what came of it, and the run has failed."""
    run = read_report({name: sample(name)}, 1)
    assert (results(run), run.verdict, run.problems) == (expected, "failed", ())


def test_where_a_test_is() -> None:
    """Suites around suites, and the class, are what a test goes by; what is directly under the root has no suite."""
    keys = {case.key for case in read_report({"r": sample("node.xml")}, 1).cases}
    assert {("", "test", "top bad", ""), ("outer > inner", "test", "deep bad", "")} <= keys


def test_several_files_are_one_run() -> None:
    """Surefire writes a file for each class."""
    files = {name: sample(name) for name in ("surefire-Flat.xml", "surefire-Other.xml")}
    run = read_report(files, 1)
    assert run.reports == ("surefire-Flat.xml", "surefire-Other.xml")
    assert [(case.suite, case.result) for case in run.cases if case.name == "ok"] == [
        ("shop.FlatTest", "passed"),
        ("shop.OtherTest", "passed"),
    ]
    assert run.counts == {"passed": 2, "xfailed": 0, "skipped": 1, "flaky": 1, "failed": 1, "error": 1}


def test_what_a_failure_says() -> None:
    """Message, text, tries and time of a test are kept; control characters are replaced."""
    by_name = {case.name: case for case in read_report({"r": sample("surefire-Flat.xml")}, 1).cases}
    broken = by_name["sum{int, int}[1]"]
    assert (broken.message, broken.tries, broken.seconds) == ("expected: <1> but was: <2>", 2, 1234.5)
    assert broken.text.endswith("at shop.FlatTest.sum(FlatTest.java:12)")
    assert by_name["flaky"].tries == 3
    bad = next(case for case in read_report({"r": sample("node.xml")}, 1).cases if case.name == "top bad")
    assert bad.message == "esc \N{REPLACEMENT CHARACTER}[31m red \N{REPLACEMENT CHARACTER} <&>1 !== 2"


@pytest.mark.parametrize(
    ("files", "code", "said"),
    [
        pytest.param({}, 0, "There is no report.", id="no-report"),
        pytest.param({}, 1, "There is no report.", id="no-report-and-red"),
        pytest.param({"r": b""}, 0, "r can't be read: no element found: line 1, column 0.", id="empty"),
        pytest.param({"r": b" \n"}, 0, "r can't be read: no element found: line 2, column 0.", id="blank"),
        pytest.param({"r": b"<html/>"}, 0, "r can't be read: its root is <html>, not <testsuites>.", id="wrong-root"),
        pytest.param({"r": b"<testcase name='a'/>"}, 0, "its root is <testcase>", id="bare-case"),
        pytest.param({"r": b"<testsuites/>"}, 0, "The report has no test.", id="no-test"),
        pytest.param({"r": b"PK\x03\x04\xff\xfe\x00"}, 0, "r can't be read: not well-formed", id="binary"),
        pytest.param({"r": b"\xff\xfe<"}, 0, "r can't be read", id="half-of-utf-16"),
        pytest.param({"r": GREEN[:-3]}, 0, "r can't be read: unclosed token: line 1, column 94.", id="cut"),
        pytest.param({"r": GREEN + b"<x/>"}, 0, "r can't be read: junk after document element", id="two-roots"),
        pytest.param({"r": GREEN}, 1, "The exit code is 1, but no test failed.", id="red-exit"),
        pytest.param({"r": GREEN}, None, "The run was ended, and has no exit code.", id="signal"),
        pytest.param(
            {"r": suite("<testcase><failure/></testcase>")}, 0, "exit code is 0, but 1 test failed.", id="green-exit"
        ),
        pytest.param({"a": b"", "b": b"", "c": GREEN}, 0, "line 1, column 0 (and 1 more).", id="two"),
        pytest.param({"\udcff.xml": b""}, 0, "\\udcff.xml can't be read", id="name-that-is-no-text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_an_error(files: dict[str, bytes], code: int | None, said: str) -> None:
    """Whatever is wrong with report or exit code makes the run red, and is told."""
    run = read_report(files, code)
    assert run.verdict == "failed"
    assert any(said in problem for problem in run.problems), run.problems
    assert TestRun.model_validate_json(run.model_dump_json()) == run


@pytest.mark.parametrize("tests", ["5", "1", "many", "-1", "", "9999999999"])
def test_counts_decide_nothing(tests: str) -> None:
    """What a suite counts in its attributes is no verdict: runners count subtests, tries and suites in their ways."""
    said = f'tests="{tests}" failures="3" errors="x"'
    run = read_report({"r": suite('<testcase name="a"/>', '<testcase name="b"/>', said=said)}, 0)
    assert (run.verdict, run.problems, run.subtests) == ("passed", (), 3 if tests == "5" else 0)
    nested = b'<testsuites tests="9"><testsuite tests="9"><testsuite><testcase/></testsuite></testsuite></testsuites>'
    assert read_report({"r": nested}, 0).subtests == 0


def test_a_run_that_was_stopped() -> None:
    """A run that a limit stopped is red, however green its report is, and that is all that is wrong."""
    run = read_report({"r": GREEN}, 0, stopped="after 600 s, its time limit")
    assert (run.verdict, run.problems) == ("failed", ("The run was stopped after 600 s, its time limit.",))
    assert read_report({"r": GREEN}, None, stopped="after 5 s").problems == ("The run was stopped after 5 s.",)


@pytest.mark.parametrize("code", [0, 5])
def test_exit_codes_that_mean_success(code: int) -> None:
    """What a command's `ok` lists agrees with a green report."""
    assert read_report({"r": GREEN}, code, ok=(0, 5)).verdict == "passed"


BOMB = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<testsuite><testcase name="&b;"/></testsuite>"""
XXE = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>
<testsuite><testcase name="a"><failure>&f;</failure></testcase></testsuite>"""
OUTSIDE = b'<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><testsuite><testcase name="a"/></testsuite>'


@pytest.mark.parametrize("data", [BOMB, XXE, OUTSIDE], ids=["bomb", "xxe", "outside"])
def test_attacks_by_document_types(data: bytes) -> None:
    """Nothing is expanded, read or fetched: a document type is refused as such."""
    run = read_report({"r": data}, 1)
    assert "r can't be read: it has a document type, which no report needs; it may be an attack." in run.problems


def test_a_bottomless_report() -> None:
    """Elements inside each other without end are refused, not followed."""
    run = read_report({"r": b"<testsuite>" * 200_000}, 0)
    assert run.problems == ("r can't be read: it is nested more than 100 deep.", "The report has no test.")


def test_a_report_that_is_too_large() -> None:
    """What is larger than a report can be is not read; so the run is red."""
    run = read_report({"r": bytes(junit.MOST_BYTES + 1)}, 0)
    assert run.problems == (f"The report is larger than {junit.MOST_BYTES} bytes.",)


def test_a_report_with_too_many_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report with more cases than a report can have is not read to its end; so the run is red."""
    monkeypatch.setattr(junit, "MOST_CASES", 5)
    run = read_report({"r": b"<testsuite>" + b"<testcase/>" * 6}, 0)
    assert run.problems == ("r can't be read: it has more than 5 cases.",)


def test_a_report_with_too_many_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements that say nothing take memory, too, and are not read without end."""
    monkeypatch.setattr(junit, "MOST_ELEMENTS", 5)
    run = read_report({"r": b"<testsuite><testcase/>" + b"<x/>" * 4}, 0)
    assert (run.problems, len(run.cases)) == (("r can't be read: it has more than 5 elements.",), 2)


def test_tests_that_only_differ_in_case() -> None:
    """Capitals count, and so does whatever else a runner makes of parameters: no two tests become one."""
    names = ["test_a[X]", "test_a[x]", "test_a[\u00e9]", "test_a[e\u0301]", "test_a[/]", "test_a[]", "test_a[ ]"]
    cases = "".join(f"<testcase classname='c' name='{name}'/>" for name in names)
    run = read_report({"r": f"<testsuite name='s'>{cases}</testsuite>".encode()}, 0)
    assert sorted(case.name for case in run.cases) == sorted(names)
    assert {case.tries for case in run.cases} == {1}


def test_long_texts() -> None:
    """Long names stay apart, of long texts start and end are kept, and all texts together have their bound."""
    name, text = "n" * 5_000, "x" * 1_200_000
    case = f'<testcase name="{name}1"><failure>first\n{text}</failure></testcase>'
    run = read_report({"r": suite(case, f'<testcase name="{name}2"/>', case.replace("1", "3", 1))}, 1)
    assert len({case.name for case in run.cases}) == 3
    assert max(len(case.name) for case in run.cases) < 700
    broken = next(case for case in run.cases if case.text)
    assert broken.message == "first"
    assert (broken.text[:6], broken.text[-1], len(broken.text) < 4_100) == ("first\n", "x", True)
    many = suite(*(f'<testcase name="{at}"><failure>{"y" * 4_000}</failure></testcase>' for at in range(400)))
    kept = read_report({"r": many}, 1).cases
    assert sum(len(case.text) for case in kept) <= junit.TEXTS
    assert all(case.result == "failed" and case.message for case in kept)


ENCODED = '<?xml version="1.0" encoding="{}"?><testsuite><testcase name="日本é"/></testsuite>'


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-8", "日本é"),
        ("UTF-8", "日本é"),
        ("utf-8-sig", "日本é"),
        ("utf-16", "日本é"),
        ("utf-32", "日本é"),
        ("shift_jis", "日本?"),
        ("gb18030", "日本é"),
        ("iso-8859-1", "??é"),
        ("windows-1252", "??é"),
    ],
)
def test_encodings(encoding: str, name: str) -> None:
    """A report may be in any character set, marked or declared."""
    data = ENCODED.format(encoding).encode(encoding, "replace")
    assert results(read_report({"r": data}, 0)) == {name: "passed"}


@pytest.mark.parametrize("encoding", ["klingon", "rot13", "zlib", "punycode", "unicode_escape", "utf-7"])
def test_unknown_encodings(encoding: str) -> None:
    """What is no character set is not tried."""
    run = read_report({"r": ENCODED.format(encoding).encode("ascii", "replace")}, 0)
    assert f"r can't be read: its encoding {encoding!r} is not known." in run.problems


def test_a_declaration_that_is_wrong() -> None:
    """A report that says UTF-16 and isn't is read as what it is; bytes that are no text are replaced."""
    data = ENCODED.format("utf-16").encode()
    assert results(read_report({"r": data}, 0)) == {"日本é": "passed"}
    assert results(read_report({"r": suite('<testcase name="a"/>').replace(b"a", b"\xe9\x01&#x1b;")}, 0))


@pytest.mark.parametrize("time", ["NaN", "inf", "-1", "soon", "", "1e999"])
def test_times_that_are_none(time: str) -> None:
    """A time that is no duration counts nothing, and decides nothing."""
    run = read_report({"r": suite(f'<testcase name="a" time="{time}"/>')}, 0)
    assert (run.cases[0].seconds, run.verdict) == (0.0, "passed")


@pytest.mark.parametrize(
    ("case", "result"),
    [
        ("<testcase><failure/><skipped/></testcase>", "failed"),
        ("<testcase><skipped/><error/></testcase>", "error"),
        ("<testcase><x><failure/></x></testcase>", "failed"),
        ("<testcase><rerunFailure/></testcase>", "failed"),
        ("<testcase><rerunError/><flakyFailure/></testcase>", "failed"),
        ("<testcase><failure><skipped/></failure></testcase>", "failed"),
        ("<testcase><failure type='pytest.xfail'/></testcase>", "failed"),
        ("<testcase><failure type='todo'/></testcase>", "failed"),
        ("<testcase status='fail'/>", "failed"),
        ("<testcase result='Broken'/>", "error"),
        ("<testcase status='run' result='completed'/>", "passed"),
        ("<testcase xmlns='urn:x'><failure/></testcase>", "failed"),
        ("<TestCase><FAILURE/></TestCase>", "failed"),
        ("<failure message='set-up'/>", "failed"),
        ("<testsuite><error/></testsuite>", "error"),
        ("<testcase><system-out>&lt;failure/&gt;</system-out></testcase>", "passed"),
        ("<testcase><system-out><failure/></system-out></testcase>", "failed"),
        ("<testcase><testcase><failure/></testcase></testcase>", "failed"),
    ],
)
def test_the_worst_counts(case: str, result: str) -> None:
    """Of all that is said of a test, wherever it stands, the worst counts."""
    run = read_report({"r": suite(case)}, 1)
    assert result in {each.result for each in run.cases if each.suite != RUN}


def tries(*said: str, counted: int | None = None) -> bytes:
    """Return a report in which one test has several cases."""
    cases = (f'<testcase name="a" time="1">{each}</testcase>' for each in said)
    return suite(*cases, said=f'hostname="h" tests="{counted or len(said)}"')


@pytest.mark.parametrize(
    ("said", "code", "counted", "result"),
    [
        pytest.param(("<failure/>", ""), 0, None, "flaky", id="passed-at-last"),
        pytest.param(("<failure/>", ""), 1, None, "failed", id="the-exit-code-denies-it"),
        pytest.param(("", "<failure/>"), 0, None, "failed", id="failed-at-last"),
        pytest.param(("", "", "<failure/>"), 1, 1, "failed", id="pytest-rerunfailures-hard"),
        pytest.param(("", "", ""), 0, 1, "flaky", id="pytest-rerunfailures-flaky"),
        pytest.param(("", "", ""), 0, 3, "passed", id="three-of-a-name"),
        pytest.param(("", "", ""), 0, 8, "flaky", id="pytest-rerunfailures-and-subtests"),
        pytest.param(("<skipped/>", ""), 0, None, "skipped", id="skipped-once"),
    ],
)
def test_several_cases_of_a_test(said: Sequence[str], code: int, counted: int | None, result: str) -> None:
    """A retry that passed is told from a test that failed, by the evidence; never does any pass win."""
    run = read_report({"r": tries(*said, counted=counted)}, code)
    case = next(case for case in run.cases if case.name == "a")
    assert (case.result, case.tries, case.seconds) == (result, len(said), float(len(said)))


def test_cases_in_different_files() -> None:
    """Files have no order, so no try in another file makes up for a failure."""
    files = {"1": suite('<testcase name="a"><failure/></testcase>'), "2": suite('<testcase name="a"/>')}
    assert results(read_report(files, 0))["a"] == "failed"


def test_names_without_the_folder() -> None:
    """The folder in which a room happens to be is in no name, so that tests are compared across rooms."""
    case = '<testcase name="/r/1/c.js" file="/r/1/c.js"><skipped>/r/1/c.js:1: why</skipped></testcase>'
    (found,) = read_report({"r": suite(case)}, 0, root="/r/1").cases
    assert (found.name, found.file, found.message) == ("c.js", "c.js", "c.js:1: why")


def test_a_suite_that_calls_itself_the_run() -> None:
    """No report can pose as what is found wrong with the run itself."""
    run = read_report({"r": f'<testsuite name="{RUN}"><testcase name="a"/></testsuite>'.encode()}, 0)
    assert (run.cases[0].suite, run.problems) == (f"report: {RUN}", ())


def test_verdicts() -> None:
    """A run is as bad as its worst test; one that ran nothing has not passed."""
    assert read_report({"r": suite("<testcase><skipped/></testcase>")}, 0).verdict == "skipped"
    assert read_report({"r": suite('<testcase name="a"><skipped/></testcase>', "<testcase/>")}, 0).verdict == "passed"
    assert read_report({"r": suite("<testcase><flakyError/></testcase>")}, 0).verdict == "flaky"


def test_what_is_stored_is_small() -> None:
    """What says nothing is left out; a run reads back as it was."""
    run = TestRun(exit=0, cases=(TestCase(suite="s", name="a", result="passed"),))
    assert run.model_dump(mode="json") == {"exit": 0, "cases": [{"suite": "s", "name": "a", "result": "passed"}]}
    assert TestRun.model_validate(run.model_dump(mode="json")) == run


@given(st.sampled_from(RED), st.data())
@settings(deadline=None)
def test_a_damaged_report_is_never_green(name: str, data: st.DataObject) -> None:
    """Whatever bytes of a report are lost or bent, a run that failed is not green; one that is cut never is."""
    report = sample(name).rstrip()
    at = data.draw(st.integers(0, len(report) - 1))
    bent = report[:at] + data.draw(st.binary(max_size=4)) + report[at + data.draw(st.integers(0, 4)) :]
    assert read_report({name: bent}, 1).verdict == "failed"
    assert read_report({name: bent}, None).verdict == "failed"
    assert read_report({name: report[:at]}, 0).verdict == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_BYTE)
def test_a_report_cut_at_every_byte(name: str) -> None:
    """However little is missing at its end, a report that is cut is never green, whatever the exit code."""
    report = sample(name).rstrip()
    for at in range(len(report)):
        for code in (0, 1):
            assert read_report({name: report[:at]}, code).verdict == "failed", at


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_BYTE)
def test_a_report_bent_at_every_byte(name: str) -> None:
    """Whichever byte of it is another one, a run with a red exit code is red."""
    report = sample(name)
    for at in range(len(report)):
        bent = report[:at] + bytes([report[at] ^ 1]) + report[at + 1 :]
        assert read_report({name: bent}, 1).verdict == "failed", at


SOURCE = """
import pytest
def test_good(): pass
def test_bad(): assert not "\\x1b[31m"
@pytest.mark.xfail
def test_expected(): assert 0
"""


@pytest.mark.slow
def test_pytest_itself(tmp_path: Path) -> None:
    """What the installed pytest writes is read, and agrees with its exit code; a run without tests is red."""
    (tmp_path / "test_a.py").write_text(SOURCE)
    args = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", "."]
    done = subprocess.run([*args, "--junitxml=r.xml"], cwd=tmp_path, capture_output=True, check=False)  # noqa: S603 -- our own program
    run = read_report({"r.xml": (tmp_path / "r.xml").read_bytes()}, done.returncode)
    assert results(run) == {"test_good": "passed", "test_bad": "failed", "test_expected": "xfailed"}
    none = subprocess.run([*args, "--junitxml=n.xml", "-k", "none"], cwd=tmp_path, capture_output=True, check=False)  # noqa: S603 -- our own program
    run = read_report({"n.xml": (tmp_path / "n.xml").read_bytes()}, none.returncode)
    assert run.problems == ("The exit code is 5, but no test failed.", "The report has no test.")


SCRIPT = """
const {test} = require('node:test');
test('good', () => {});
test('parent', async (t) => { await t.test('child', () => {}); throw new Error('its own'); });
"""


@pytest.mark.slow
def test_node_itself(tmp_path: Path) -> None:
    """node:test hides that a test with tests inside failed by itself; its exit code doesn't, so the run is red."""
    node = shutil.which("node")
    assert node, "Node.js is needed: node:test writes the reports that are hardest to read."
    (tmp_path / "a.test.js").write_text(SCRIPT)
    args = [node, "--test", "--test-reporter=junit", "a.test.js"]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, check=False)  # noqa: S603 -- our own script
    run = read_report({"r.xml": done.stdout}, done.returncode, root=str(tmp_path))
    assert {"good": "passed", "child": "passed"}.items() <= results(run).items()
    assert run.problems == ("The exit code is 1, but no test failed.",)
