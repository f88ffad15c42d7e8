"""Several candidates for one module, of which one is merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import Brief, Item, Limits, MergeBranches, dispatch
from prefect_dispatch.errors import DispatchFailed, JobError
from prefect_dispatch.executors.base import expand_briefs
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.flows.prepare import plan
from prefect_dispatch.integrators.audit.laws import audit
from prefect_dispatch.integrators.merge_branches.candidates import parse_score
from prefect_dispatch.models.outcome import Failure, Outcome
from prefect_dispatch.models.test_run import RUN, TestCase, TestRun
from tests.flows.builders import Site, module
from tests.integrators.repos import Nobody, change_of, done, files_at, merging

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch import Report
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Question

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("store")]
# Each run of the agent counts up a file outside of its checkout, so that candidates differ.
COUNTING = r"""
import pathlib, sys
sys.stdin.read()
log = pathlib.Path(sys.argv[1])
number = len(log.read_text().split()) + 1 if log.exists() else 1
with log.open("a") as file:
    file.write(f"{number}\n")
fate = sys.argv[2].split(",")[number - 1]
if fate == "fail":
    sys.exit(3)
pathlib.Path("a.txt").write_text(fate + "\n")
print("It is done.")
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A repository."""
    return Site(tmp_path)


def job(site: Site, fates: str, **integrator: Any) -> dict[str, Any]:  # noqa: ANN401 -- fields of the integrator
    """Return a job with three candidates, made one after another, that write some contents."""
    import sys  # noqa: PLC0415 -- only here

    (site.folder / "count.py").write_text(COUNTING, encoding="utf-8")
    agent = {"name": "counting", "argv": [sys.executable, str(site.folder / "count.py"), str(site.folder / "n"), fates]}
    workspace = {"repo": str(site.git.repo)}
    return {
        "briefs": [Brief(name="a", instructions="Write a number.", writes=("a.txt",), samples=3)],
        "items": [Item(key="one", value=1)],
        "executor": CodingAgent.model_validate({"agent": agent, "model": "literal", "workspace": workspace}),
        "integrator": MergeBranches.model_validate({"workspace": workspace, "branch": "agents/merged", **integrator}),
        "limits": Limits(concurrency=1, timeout_s=60.0, retries=0, reasks=0),
    }


def run(parts: dict[str, Any]) -> Report:
    """Run a job; return its report, whether or not it failed."""
    flow: Any = dispatch
    try:
        report: Report = flow(**parts)
    except DispatchFailed as failed:
        return failed.report
    return report


def ends(report: Report) -> dict[str, tuple[str, str | None]]:
    """Return where each candidate ended, and by which one."""
    return {row.brief: (row.disposition, row.by.brief if row.by else None) for row in report.ledger}


@pytest.mark.slow
@pytest.mark.parametrize(("direction", "best"), [("max", 2), ("min", 3)])
def test_the_best_number_counts(site: Site, direction: str, best: int) -> None:
    """The losers are overridden with their scores and patches; run again, nothing is asked."""
    parts = job(site, "5,9,2", metric={"run": "echo measured; cat a.txt"}, direction=direction)
    assert plan(**parts).to_ask == 3
    report = run(parts)
    assert report.status == "complete", report.message
    found = ends(report)
    assert found.pop(f"a-{best}") == ("merged", None)
    assert {*found.values()} == {("overridden", f"a-{best}")}
    number = {2: "9", 3: "2"}[best]
    assert files_at(site.git, "agents/merged")["a.txt"].decode().strip() == number
    reasons = {row.brief: row.reason for row in report.ledger}
    assert reasons["a-1"] == f"metric ({direction}): 5; it lost against a-{best}/one: {number}"
    assert reasons[f"a-{best}"].startswith(f"metric ({direction}): {number}; of 3 candidates (a-1/one: 5, ")
    patches = {each.name: each.text for each in report.documents if each.name.startswith("candidate-")}
    assert "+5" in patches["candidate-1.patch"]
    [table] = [each for each in report.tables if each.name == "candidates"]
    commits = [str(row["commit"]) for row in table.rows]
    assert [site.git.output("show", f"{commit}:a.txt") for commit in commits] == ["5", "9", "2"]
    assert plan(**parts).to_ask == 0
    again = run(parts)
    assert (again.usage.asked, again.value) == (0, report.value)


@pytest.mark.slow
def test_acceptance_decides_first(site: Site) -> None:
    """A candidate that failed is listed, and the module is built by another; without any, the run fails."""
    report = run(job(site, "fail,7,7"))
    assert report.status == "complete", report.message
    assert ends(report) == {"a-1": ("failed", None), "a-2": ("merged", None), "a-3": ("duplicate_of", "a-2")}


@pytest.mark.slow
def test_all_candidates_fail(site: Site) -> None:
    """The run has failed, with the reason of each."""
    report = run(job(site, "fail,fail,fail"))
    assert report.status == "failed"
    assert [gap.brief for gap in report.gaps] == ["a-1", "a-2", "a-3"]


@pytest.mark.slow
def test_a_metric_without_a_number(site: Site) -> None:
    """It chooses nothing: the first candidate counts, and the report says so."""
    report = run(job(site, "5,9,2", metric={"run": "echo none"}))
    assert (report.status, ends(report)["a-1"]) == ("gaps", ("merged", None))
    assert report.shortfalls[0].startswith("No candidate of a/one has a score, so the first one counts: ")


@pytest.mark.slow
def test_candidates_of_a_module(site: Site) -> None:
    """Their number is a key of the module; what needs it starts from the one that counts."""
    top = module("top", "MUST core.txt", "WRITE top.txt t", needs=["core"])
    report = site.build([module("core", candidates=2), top], branch="agents/merged")
    assert report.status == "complete", report.message
    assert ends(report)["core-2"] == ("duplicate_of", "core-1")
    assert len(site.asked) == 3


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"metric": {"run": "x"}, "criterion": "y"}, "'metric' and 'criterion' both choose"),
        ({"metric": {"run": "x", "stdin": True}}, "metric: it measures a checkout"),
        ({"direction": "min"}, "'direction' is for a 'metric'"),
        ({"criterion": "y"}, "'criterion' is for a judge"),
        ({"judge": {"kind": "llm", "model": "openai/x"}}, "'judge' is for a 'criterion'"),
    ],
)
def test_rules_that_say_nothing(fields: dict[str, Any], told: str) -> None:
    """They are refused, with the key and the way out."""
    with pytest.raises(ValueError, match=told):
        MergeBranches.model_validate(fields)


@pytest.mark.parametrize(
    ("key", "rules"),
    [
        ("metric", {"metric": {"run": "cat a.txt"}}),
        ("criterion", {"criterion": "The shorter one.", "judge": {"kind": "llm", "model": "openai/test"}}),
    ],
)
def test_candidates_that_others_need_are_chosen_without_a_comparison(
    site: Site, key: str, rules: dict[str, Any]
) -> None:
    """What needs them starts before the last of them is there, so the job is refused with the way out."""
    parts = job(site, "1,2,3", **rules)
    (first,) = parts["briefs"]
    parts["briefs"] = [first, Brief(name="b", instructions="Go on.", writes=("b.txt",), needs=("a",))]
    told = rf"^integrator\.{key}: .* what needs 'a', which has candidates, starts before that: leave '{key}' out"
    with pytest.raises(JobError, match=told):
        plan(**parts)


def test_a_metric_without_candidates(site: Site) -> None:
    """There is nothing to choose from."""
    parts = job(site, "1", metric={"run": "cat a.txt"})
    parts["briefs"] = [Brief(name="a", instructions="x", writes=("a.txt",))]
    with pytest.raises(JobError, match=r"^integrator\.metric chooses between candidates, and there are none"):
        plan(**parts)


class Longest(Nobody):
    """Judges that the longer patch is better, and records its answers."""

    def __init__(self) -> None:
        """Start without answers."""
        self.given: list[Outcome] = []

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:
        """Compare the two patches of each question."""
        answers: list[Outcome] = []
        for question in questions:
            value: Any = question.item.value
            assert value["context"] == {"goal": "Write it."}
            one, two = (len(value[name]["patch"]) for name in ("first", "second"))
            verdict: JsonValue = {"winner": "first" if one > two else "second", "reason": "It is longer."}
            name = question.brief.name
            answers.append(Outcome(brief=name, item=question.item.key, status="succeeded", value=verdict))
        self.given += answers
        return answers


def test_a_judge_chooses(site: Site) -> None:
    """The candidate that wins most of its matches counts, in any order of the outcomes; the audit confirms it."""
    briefs = expand_briefs([Brief(name="a", instructions="Write it.", samples=3)])
    texts = {"a-1": "xx", "a-2": "xxxx", "a-3": "x"}
    outcomes = [done(name, change_of(site.git, site.base, {"a.txt": text})) for name, text in texts.items()]
    judge: Any = {"kind": "llm", "model": "openai/x"}
    integrator = merging(site.git, criterion="The longer one.", judge=judge)
    asker = Longest()
    merge = integrator.merge_asking(briefs, outcomes, asker)
    reasons = {row.brief: (row.disposition, row.reason) for row in merge.ledger}
    assert reasons["a-1"] == (
        "overridden",
        "judge: 1 of 2 matches won; it lost against a-2/repo: 2 of 2 matches won",
    )
    assert reasons["a-2"][0] == "merged"
    assert integrator.merge_asking(briefs, outcomes[::-1], Longest()) == merge
    audited = merge.model_copy(update={"asked": tuple(asker.given)})
    assert audit(audited, outcomes, briefs, integrator) == ()


class Silent(Nobody):
    """Judges nothing: each of its answers is a failure."""

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:
        """Fail to compare anything."""
        error = Failure(kind="refused", message="no comment")
        return [Outcome(brief=q.brief.name, item=q.item.key, status="failed", error=error) for q in questions]


def test_a_judge_that_says_nothing(site: Site) -> None:
    """The first candidate counts, and the reason is told."""
    briefs = expand_briefs([Brief(name="a", instructions="Write it.", samples=2)])
    outcomes = [done(f"a-{at}", change_of(site.git, site.base, {"a.txt": "x" * at})) for at in (1, 2)]
    judge: Any = {"kind": "llm", "model": "openai/x"}
    merge = merging(site.git, criterion="The longer one.", judge=judge).merge_asking(briefs, outcomes, Silent())
    assert {row.brief: row.disposition for row in merge.ledger} == {"a-1": "merged", "a-2": "overridden"}
    assert "no match was judged" in " ".join(merge.shortfalls)


def test_the_plan_counts_what_a_judge_compares(site: Site) -> None:
    """Each pair of three candidates in both orders, at most."""
    judge = {"kind": "llm", "model": "openai/gpt-5-mini"}
    found = plan(**job(site, "5,9,2", criterion="The longer one.", judge=judge))
    assert "6" in found.integrator


CASES = TestCase(name="one", result="passed"), TestCase(name="two", result="failed")


@pytest.mark.parametrize(
    ("end", "number", "told"),
    [
        (TestRun(exit=1, cases=CASES), 1.0, "1 of 2 tests passed"),
        (TestRun(exit=1, cases=(TestCase(suite=RUN, name="run", result="error", message="x"),)), None, "no score ("),
        (Failure(kind="timeout", message="too slow"), None, "no score (timeout: too slow)"),
    ],
)
def test_a_score_by_a_report_of_tests(end: TestRun | Failure, number: float | None, told: str) -> None:
    """The number of tests that passed; none where the report can't be trusted, or the run failed."""
    outcome = (
        Outcome(brief="metric", item="a", status="failed", error=end)
        if isinstance(end, Failure)
        else Outcome(brief="metric", item="a", status="succeeded", value=end.model_dump(mode="json"))
    )
    score = parse_score(outcome, has_report=True)
    assert (score.value, score.note.startswith(told)) == (number, True)


def test_one_candidate_alone_is_not_needed() -> None:
    """Which of them counts is decided in the run."""
    briefs = [
        Brief(name="a", instructions="Write it.", samples=2),
        Brief(name="b", instructions="Go on.", needs=("a-1",)),
    ]
    with pytest.raises(JobError, match="'b' needs 'a-1', one candidate of 'a', and which of them counts"):
        expand_briefs(briefs)
