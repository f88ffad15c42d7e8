"""Test runs of several environments: compared test by test, never green by mistake, and not to be tampered with."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml, Skipped
from pydantic import TypeAdapter

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.junit import read_report
from prefect_dispatch.integrators import matrix_integrator
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.matrix_integrator import TestMatrix
from prefect_dispatch.integrators.registry import AnyIntegrator
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.ledger import Merge
from prefect_dispatch.models.test_run import RED, RESULTS, RUN, TestCase, TestRun
from prefect_dispatch.serialization.json_values import deep_copy, iter_parts
from tests.integrators.said import miss, say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_dispatch.models.outcome import Outcome


def ran(item: str, brief: str = "tests", /, **results: str) -> Outcome:
    """Return a run, of tests with their results."""
    cases = [
        TestCase.model_validate(
            {"suite": "s", "classname": "c", "name": name, "result": result}
            | ({} if result == "passed" else {"message": f"{name} {result}", "text": "At length."})
        )
        for name, result in sorted(results.items())
    ]
    run = TestRun(exit=int(bool(RED & set(results.values()))), seconds=1.0, cases=tuple(cases), reports=("r.xml",))
    return say(item, run.model_dump(mode="json"), brief=brief)


def merged(outcomes: Sequence[Outcome], **fields: Any) -> Merge:  # noqa: ANN401 -- fields of the integrator
    """Return a merge that the audit has nothing to say against."""
    matrix = TestMatrix.model_validate(fields)
    merge = matrix.merge([], outcomes)
    assert audit(merge, outcomes, [], matrix) == ()
    return merge


def value(merge: Merge) -> dict[str, Any]:
    """Return the value."""
    return cast("dict[str, Any]", merge.value)


def table(merge: Merge, name: str) -> list[dict[str, Any]]:
    """Return the rows of a table."""
    return [*next(each.rows for each in merge.tables if each.name == name)]


MIXED = [
    ran("python=3.10", good="passed", old="passed", shaky="passed", slow="passed", off="skipped"),
    ran("python=3.9", good="passed", old="failed", shaky="flaky", slow="passed", off="skipped"),
    ran("python=3.13", good="passed", old="error", shaky="passed", off="skipped", known="xfailed"),
]


def test_each_test_in_each_environment() -> None:
    """A test is the same everywhere, differs, or is absent somewhere; what passed wherever it is is apart."""
    found = value(merged(MIXED))
    assert [each["key"] for each in found["environments"]] == ["python=3.9", "python=3.10", "python=3.13"]
    assert [each["verdict"] for each in found["environments"]] == ["failed", "passed", "failed"]
    assert {each["name"]: each["same"] for each in found["tests"]} == {
        "known": "absent",
        "off": "everywhere",
        "old": "differs",
        "shaky": "differs",
    }
    assert found["tests"][2]["results"] == {
        "python=3.9": {"result": "failed", "seconds": 0.0, "message": "old failed", "text": "At length."},
        "python=3.10": {"result": "passed", "seconds": 0.0},
        "python=3.13": {"result": "error", "seconds": 0.0, "message": "old error", "text": "At length."},
    }
    named = {"suite": "s", "classname": "c", "result": "passed"}
    assert found["passed"] == [
        {**named, "name": "good", "same": "everywhere", "seconds": [0.0, 0.0, 0.0]},
        {**named, "name": "slow", "same": "absent", "seconds": [0.0, 0.0, None]},
    ]
    assert found["gaps"] == []


def test_the_tables() -> None:
    """What failed comes first, then what differs, then what is absent; all tests are there."""
    merge = merged(MIXED)
    rows = table(merge, "test-matrix")
    assert [row["test"] for row in rows] == ["c::old", "c::shaky", "c::known", "c::slow", "c::off", "c::good"]
    assert rows[0] == {
        "test": "c::old",
        "suite": "s",
        "same": "differs",
        "python=3.9": "failed",
        "python=3.10": "passed",
        "python=3.13": "error",
    }
    assert rows[3]["python=3.13"] == "absent"
    assert [(row["test"], row["failed"], row["absent"]) for row in table(merge, "differences")] == [
        ("c::old", "python=3.9", ""),
        ("c::shaky", "", ""),
        ("c::known", "", "python=3.9, python=3.10"),
        ("c::slow", "", "python=3.13"),
    ]
    row = table(merge, "environments")[0]
    assert (row["environment"], row["verdict"]) == ("python=3.9", "failed")
    assert (row["tests"], row["failed"], row["flaky"]) == (5, 1, 1)


def test_a_run_whose_required_environments_fail() -> None:
    """The message names the broken environments and tests; by policy the run fails, or has gaps, or neither."""
    said = "2 of 3 required environments did not pass: python=3.9 (1 failed: c::old); python=3.13 (1 failed: c::old)."
    merge = merged(MIXED)
    assert (merge.failed, merge.shortfalls) == (said, ())
    merge = merged(MIXED, on_red="report")
    assert (merge.failed, merge.shortfalls) == ("", (said,))
    merge = merged(MIXED, required=["python=3.10"])
    assert (merge.failed, merge.shortfalls) == ("", ())
    assert [row["required"] for row in table(merge, "environments")] == ["no", "yes", "no"]
    assert merged(MIXED, required=["tests/*.13"]).failed.startswith(
        "1 of 1 required environments did not pass: python=3.13"
    )
    assert merged(MIXED, required=[]).failed == ""


def test_flaky_tests_make_nothing_red() -> None:
    """A test that passed after it had failed is flagged; the environment passes as flaky."""
    merge = merged([ran("a", x="flaky"), ran("b", x="failed"), ran("c", x="passed", y="flaky")], required=["a", "c"])
    assert (merge.failed, [row["verdict"] for row in table(merge, "environments")]) == (
        "",
        ["flaky", "failed", "flaky"],
    )
    assert [(flag.path, flag.text, flag.message) for flag in merge.flags] == [
        ("/tests/0", "c::x", "It failed and then passed in a: a run says little of it. It fails in others."),
        ("/tests/1", "c::y", "It failed and then passed in c: a run says little of it."),
    ]


def test_environments_without_a_result_are_red() -> None:
    """What failed or was skipped is red in tables, in the file for CI and in the verdict, and a gap of the value."""
    merge = merged([ran("a", x="passed"), miss("b", brief="tests"), miss("c", "skipped", brief="tests")])
    assert merge.failed == (
        "2 of 3 required environments did not pass: b (timeout: No answer.); c (timeout: No answer.)."
    )
    assert [each["item"] for each in value(merge)["gaps"]] == ["b", "c"]
    assert table(merge, "test-matrix") == [
        {"test": "c::x", "suite": "s", "same": "everywhere", "a": "passed", "b": "no result", "c": "no result"}
    ]
    assert [(row["verdict"], row["tests"], row["why"]) for row in table(merge, "environments")] == [
        ("passed", 1, ""),
        ("no result", None, "timeout: No answer."),
        ("no result", None, "timeout: No answer."),
    ]
    assert [row.disposition for row in merge.ledger] == ["merged", "failed", "skipped"]
    again = read_report({"junit.xml": document(merge)}, 1)
    assert [(case.suite, case.classname, case.result) for case in again.cases if case.name == "there is a result"] == [
        ("b", RUN, "error"),
        ("c", RUN, "error"),
    ]


def parsed(merge: Merge) -> Any:  # noqa: ANN401 -- junitparser says little of its types
    """Return the merged report as junitparser reads it."""
    reader: Any = JUnitXml
    return reader.fromfile(io.BytesIO(document(merge)))


def document(merge: Merge) -> bytes:
    """Return the merged report."""
    [found] = [each for each in merge.documents if each.name == "junit.xml"]
    return found.text.encode()


def test_an_environment_in_which_nothing_ran() -> None:
    """All tests skipped is not passed; a report without a test even less."""
    nothing = say("b", read_report({}, 0).model_dump(mode="json"), brief="tests")
    empty = say("c", {}, brief="tests")
    merge = merged([ran("a", x="skipped"), nothing, empty])
    assert merge.failed == (
        "3 of 3 required environments did not pass: a (every test was skipped); b (1 failed: There is no report); "
        "c (no test ran)."
    )


def test_what_is_wrong_with_a_run_is_wrong_only_there() -> None:
    """An error of a run itself differs from the runs in which all was well, and is absent nowhere."""
    green = TestRun(exit=1, cases=(TestCase(name="x", result="passed"),))
    cut = read_report({"r": b'<testsuite><testcase name="x"/>'}, 0)
    merge = merged([say("a", cut.model_dump(mode="json")), say("b", green.model_dump(mode="json"))])
    [row] = [each for each in value(merge)["tests"] if each["suite"] == RUN]
    assert (row["name"], row["same"], [*row["results"]]) == ("the report can be read", "differs", ["a"])
    assert table(merge, "test-matrix")[0]["test"] == "the run itself: the report can be read"
    assert table(merge, "test-matrix")[0]["b"] == "passed"


def test_several_briefs() -> None:
    """With several briefs an environment is named by both."""
    merge = merged([ran("a", "unit", x="passed"), ran("a", "end-to-end", x="failed")], required=["unit/*"])
    assert [each["key"] for each in value(merge)["environments"]] == ["end-to-end/a", "unit/a"]
    assert merge.failed == ""


def test_environments_named_like_a_column() -> None:
    """No environment hides a column of the table."""
    [row] = table(merged([ran("same", x="passed"), ran("test", x="failed")]), "test-matrix")
    assert row == {
        "test": "c::x",
        "suite": "s",
        "same": "differs",
        "environment same": "passed",
        "environment test": "failed",
    }


def timed(item: str, **seconds: float) -> Outcome:
    """Return a run of tests that took so long."""
    cases = tuple(TestCase(name=name, result="passed", seconds=took) for name, took in sorted(seconds.items()))
    return say(item, TestRun(exit=0, cases=cases).model_dump(mode="json"))


def test_durations() -> None:
    """The slowest tests, by their longest time, with where that was and the mean; what took no time is left out."""
    merge = merged([timed("a", x=1.0, y=0.5, z=0.0), timed("b", x=2.0, y=0.25)])
    assert table(merge, "slowest") == [
        {"test": "x", "suite": "", "seconds": 2.0, "environment": "b", "mean_seconds": 1.5},
        {"test": "y", "suite": "", "seconds": 0.5, "environment": "a", "mean_seconds": 0.375},
    ]
    assert value(merge)["passed"][0]["seconds"] == [1.0, 2.0]


def test_many_tests_that_pass_everywhere() -> None:
    """Of very many tests, the table leaves out those that passed wherever they are, and says so; the value has all."""
    names = {f"t{at}": "passed" for at in range(matrix_integrator.MAX_TABLE_ROWS)}
    merge = merged([ran("a", bad="failed", **names)], required=[])
    assert [row["test"] for row in table(merge, "test-matrix")] == ["c::bad"]
    assert "2000 tests that passed wherever they exist are left out" in merge.tables[0].note
    assert len(value(merge)["passed"]) == 2000


def test_many_environments_in_a_cell() -> None:
    """A cell of a table names the first environments, and counts the others."""
    merge = merged(
        [ran(f"e{at}", x="failed" if at else "passed") for at in range(matrix_integrator.MAX_CELL_NAMES + 3)]
    )
    [row] = table(merge, "differences")
    assert row["passed"] == "e0"
    assert row["failed"].startswith("e1, e2, ")
    assert row["failed"].endswith("e20 and 2 more")


def test_long_messages_are_cut() -> None:
    """A sentence names some environments and some tests of each, and counts the rest."""
    red = [ran(f"e{at}", **{f"t{name}": "failed" for name in range(5)}) for at in range(7)]
    assert merged(red).failed.endswith("e4 (5 failed: c::t0, c::t1, c::t2 and 2 more); and 2 more.")


def test_a_job_that_asks_for_something_else() -> None:
    """A brief without test runs, or a required environment that isn't there, is refused before anything is spent."""
    text = Brief(name="a", instructions="Test.")
    with pytest.raises(JobError, match=r"give it 'output: prefect_dispatch\.test_run:TestRun'"):
        TestMatrix().preflight([text])
    brief = text.model_copy(update={"output": TestRun})
    TestMatrix().preflight([brief, Brief(name="b", instructions="x", output="prefect_dispatch.test_run:TestRun")])
    items = [Item(key="python=3.10", value={}), Item(key="python=3.13", value={})]
    assert TestMatrix(required=("python=3.1*", "a/python=3.10")).with_items([brief], items)
    with pytest.raises(JobError, match=r"no environment is called 'python=3.11', .*did you mean 'python=3.1\d'\?"):
        TestMatrix(required=("python=3.11",)).with_items([brief], items)


def test_an_answer_that_is_no_run() -> None:
    """An executor that answers with something else is told so, by the outcome's name."""
    with pytest.raises(ValueError, match="the answer of 'tests/a' is no test run"):
        TestMatrix().merge([], [say("a", {"verdict": "passed"}, brief="tests")])


def test_as_a_parameter() -> None:
    """A job file names it by its kind."""
    adapter: TypeAdapter[object] = TypeAdapter(AnyIntegrator)
    assert adapter.validate_python({"kind": "test_matrix", "required": ["a*"]}) == TestMatrix(required=("a*",))


HOSTILE = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["]]>", "&#27;", "\x00\x1b", "<x/>", "\n\t"]
)
KEYS = st.fixed_dictionaries(
    {
        "name": HOSTILE,
        "suite": st.sampled_from(["", "s", "outer > s"]),
        "classname": st.sampled_from(["", "c"]) | HOSTILE,
        "file": st.sampled_from(["", "f.py"]),
    }
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[TestCase, ...]:
    """Return some tests, each key once."""
    found: dict[object, TestCase] = {}
    for key in draw(st.lists(KEYS, max_size=5)):
        result = draw(st.sampled_from(RESULTS))
        more = {"message": draw(HOSTILE), "text": draw(HOSTILE), "tries": draw(st.integers(1, 3))}
        case = TestCase.model_validate({**key, "result": result, "seconds": draw(st.sampled_from([0, 0.5])), **more})
        found[case.key] = case
    return tuple(found.values())


@st.composite
def outcomes(draw: st.DrawFn) -> list[Outcome]:
    """Return runs in up to four environments, some without a result."""
    found: list[Outcome] = []
    for item in draw(st.lists(st.sampled_from(["a", "b", "py=3.9", "py=3.10"]), min_size=1, max_size=4, unique=True)):
        run = TestRun(exit=draw(st.sampled_from([None, 0, 1])), cases=draw(cases()))
        found.append(miss(item) if draw(st.integers(0, 4)) == 0 else say(item, run.model_dump(mode="json")))
    assume(any(each.status == "succeeded" for each in found))
    return found


@given(outcomes(), st.randoms())
@settings(deadline=None)
def test_the_laws(said: list[Outcome], random: Any) -> None:  # noqa: ANN401 -- hypothesis' own
    """Whatever runs say, the merge passes its audit, and is the same in any order of the outcomes, and twice."""
    merge = merged(said)
    turned = said.copy()
    random.shuffle(turned)
    assert TestMatrix().merge([], turned) == merge == TestMatrix().merge([], said)
    assert Merge.model_validate_json(merge.model_dump_json()) == merge


@pytest.mark.slow
@given(outcomes())
@settings(deadline=None)
def test_red_stays_red(said: list[Outcome]) -> None:
    """A run is never green while an environment has a failure, an error, nothing that ran, or no result."""
    merge = merged(said)
    runs = [TestRun.model_validate(each.value) if each.status == "succeeded" else TestRun() for each in said]
    assert bool(merge.failed) == any(run.verdict in ("failed", "skipped") for run in runs)
    file = parsed(merge)
    assert (file.failures + file.errors > 0) == any(run.verdict == "failed" for run in runs)


@pytest.mark.slow
@given(outcomes())
@settings(deadline=None)
def test_the_file_for_a_ci(said: list[Outcome]) -> None:
    """The merged report is valid, has a suite for each environment, and says of each what its run says."""
    merge = merged(said)
    suites = [*parsed(merge)]
    ranked = {row["environment"]: row for row in table(merge, "environments")}
    assert [suite.name for suite in suites] == [*ranked]
    by_item: Mapping[str, Outcome] = {each.item: each for each in said}
    for suite in suites:
        run = TestRun.model_validate(by_item[str(suite.name)].value or {})
        told = [type(case.result[0]).__name__ if case.result else "" for case in suite]
        assert suite.tests == max(len(run.cases), 1)
        assert told.count(Failure.__name__) == suite.failures == run.counts["failed"]
        assert told.count(Error.__name__) == suite.errors == run.counts["error"] + (not run.cases)
        assert told.count(Skipped.__name__) == suite.skipped == run.counts["skipped"] + run.counts["xfailed"]


@pytest.mark.slow
@given(outcomes())
@settings(deadline=None)
def test_the_file_read_back(said: list[Outcome]) -> None:
    """Read by our own reader, the merged report has as many tests with each result, and nothing wrong with it."""
    merge = merged(said)
    runs = [TestRun.model_validate(each.value) for each in said if each.status == "succeeded"]
    clean = [run for run in runs if len({(c.classname, c.name, c.file) for c in run.cases}) == len(run.cases)]
    assume(len(clean) == len(runs))
    again = read_report({"junit.xml": document(merge)}, int(bool(merge.failed)))
    assert not [problem for problem in again.problems if "no test failed" not in problem]
    assert len(again.cases) - len(again.problems) <= sum(max(len(run.cases), 1) for run in runs) + len(said) - len(runs)


def test_two_tests_of_one_class_and_name() -> None:
    """Tests that only their suites tell apart stay apart in the merged report."""
    twins = tuple(TestCase(suite=suite, classname="c", name="x", result="passed") for suite in ("one", "two"))
    merge = merged([say("a", TestRun(exit=0, cases=twins).model_dump(mode="json"))])
    again = read_report({"junit.xml": document(merge)}, 0)
    assert [case.classname for case in again.cases] == ["one > c", "two > c"]


@pytest.mark.slow
@given(outcomes(), st.data())
@settings(deadline=None)
def test_no_tampering_with_the_value_passes(said: list[Outcome], data: st.DataObject) -> None:
    """Whatever part of the merged value is another one, or gone, the audit finds it."""
    merge = merged(said)
    path, _ = data.draw(st.sampled_from([each for each in iter_parts(merge.value) if each[0]]))
    bent = merge.model_copy(update={"value": altered(merge.value, path.split("/")[1:], data.draw(st.booleans()))})
    assume(bent.value != merge.value)
    assert audit(bent, said, [], TestMatrix())


def altered(part: Any, way: list[str], drop: bool) -> Any:  # noqa: ANN401, FBT001 -- JSON
    """Return a value in which something else, or nothing, stands at a path."""
    head, *rest = way
    whole: Any = deep_copy(part)
    key: Any = int(head) if isinstance(part, list) else head.replace("~1", "/").replace("~0", "~")
    if rest:
        whole[key] = altered(whole[key], rest, drop)
    elif drop:
        del whole[key]
    else:
        whole[key] = "passed" if whole[key] != "passed" else "failed"
    return whole


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"failed": ""}, id="failed"),
        pytest.param({"fields": ()}, id="fields"),
        pytest.param({"flags": ()}, id="flags"),
        pytest.param({"tables": ()}, id="tables"),
        pytest.param({"documents": ()}, id="documents"),
        pytest.param({"rules": "None."}, id="rules"),
        pytest.param({"ledger": ()}, id="ledger"),
        pytest.param({"value": None}, id="value"),
    ],
)
def test_no_tampering_with_the_rest_passes(change: dict[str, Any]) -> None:
    """Nor does it pass where anything beside the value is another one."""
    merge = merged(MIXED)
    assert audit(merge.model_copy(update=change), MIXED, [], TestMatrix())
