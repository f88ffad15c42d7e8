"""A tournament as part of a run: paid for once, honest about what it lacks, refused before anything is spent."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from prefect_dispatch import Brief, Item, Limits, Tournament, dispatch, plan
from prefect_dispatch.cli.commands import main
from prefect_dispatch.errors import DispatchFailed, JobError, RejectedError
from prefect_dispatch.executors.llm.local_model import has_smollm2
from prefect_dispatch.flows.job_file import load_job
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch import Ask, Report

QUICK = Limits(retry_delay_s=0, retries=0, reasks=0, timeout_s=20)
LONGER = Tournament(criterion="The longer one is better.")
MUG = Item(key="mug", value={"colour": "blue"})
JOB = Path(__file__).parents[2] / "examples" / "taglines" / "job.yaml"


def briefs(*names: str) -> list[Brief]:
    """Return briefs that ask for their own name, as a script answers them."""
    return [Brief(name=name, instructions=f"Write like {name}.") for name in names]


def answer(ask: Ask) -> JsonValue:
    """Write the brief's own name, or judge by length."""
    if ask.brief.name != "judge":
        return ask.brief.name
    shown = cast("dict[str, str]", ask.item.value)
    first, second = len(shown["first"]), len(shown["second"])
    return {"reason": "It is longer.", "winner": "first" if first > second else "second" if second > first else "tie"}


def ranks(report: Report) -> list[tuple[str, int]]:
    """Return the briefs and their ranks, best first."""
    value: Any = report.value
    return [(row["brief"], row["rank"]) for row in value["ranking"]]


def names(asks: Sequence[Ask]) -> list[str]:
    """Return the briefs that were asked."""
    return sorted(ask.brief.name for ask in asks)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_matches_are_paid_for_once() -> None:
    """Run again, nobody is asked; with one more variant, it is written and judged against the others, no more."""
    for wanted, asked in (
        (("a", "bb", "ccc"), [*["a", "bb", "ccc"], *["judge"] * 6]),
        (("a", "bb", "ccc"), []),
        (("a", "bb", "ccc", "dddd"), ["dddd", *["judge"] * 6]),
    ):
        scripted = ScriptedExecutor(answer)
        report = dispatch(briefs(*wanted), [MUG], executor=scripted, integrator=LONGER, limits=QUICK)
        assert names(scripted.asks) == asked
        assert report.status == "complete"
        assert ranks(report) == [(name, at) for at, name in enumerate(reversed(wanted), 1)]
        assert report.integration.asked == asked.count("judge")
        shown = [cast("dict[str, Any]", ask.item.value) for ask in scripted.asks if ask.brief.name == "judge"]
        assert all(value["context"] == {"colour": "blue"} for value in shown)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_judge_of_its_own_judges_and_some_matches_fail() -> None:
    """What can't be judged leaves the run with gaps, and a rerun asks for that alone."""
    writer = ScriptedExecutor(answer)

    def picky(ask: Ask) -> JsonValue:
        if cast("dict[str, str]", ask.item.value)["first"] == "ccc":
            raise RejectedError("Not this one.", kind="refused")
        return answer(ask)

    judge = ScriptedExecutor(picky, fingerprint="judge")
    tournament = Tournament(criterion="The longer one is better.", judge=judge)
    report = dispatch(briefs("a", "bb", "ccc"), [MUG], executor=writer, integrator=tournament, limits=QUICK)
    assert (names(writer.asks), judge.calls) == (["a", "bb", "ccc"], 6)
    assert (report.status, ranks(report)) == ("gaps", [("bb", 1), ("a", 2)])
    assert report.shortfalls[0] == "2 of 3 matches could not be judged in both orders (refused: Not this one.)."
    assert cast("dict[str, Any]", report.run["integrator"])["judge"] == "ScriptedExecutor"
    mended = ScriptedExecutor(answer, fingerprint="judge")
    tournament = Tournament(criterion="The longer one is better.", judge=mended)
    report = dispatch(briefs("a", "bb", "ccc"), [MUG], executor=writer, integrator=tournament, limits=QUICK)
    assert (mended.calls, report.status, ranks(report)[0]) == (2, "complete", ("ccc", 1))


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_nothing_judged_fails_the_run() -> None:
    """Without one match there is no result, and the run says so."""

    def mute(ask: Ask) -> JsonValue:
        if ask.brief.name == "judge":
            raise RejectedError("Not today.", kind="refused")
        return answer(ask)

    with pytest.raises(DispatchFailed, match="None of 3 matches could be judged; the first one: refused: Not today"):
        dispatch(briefs("a", "bb", "ccc"), [MUG], executor=ScriptedExecutor(mute), integrator=LONGER, limits=QUICK)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_from_variants_to_an_experiment_and_back(tmp_path: Path) -> None:
    """What a run exports for an A/B tool is the key under which the next one ranks the tool's results."""
    scripted, wanted = ScriptedExecutor(answer), briefs("a", "bb", "ccc")
    report = dispatch(wanted, [MUG], executor=scripted, integrator=LONGER, limits=QUICK, out=str(tmp_path / "out"))
    [exported] = (tmp_path / "out").rglob("*ab-test*.csv")
    with exported.open(encoding="utf-8", newline="") as file:
        keys = {row["payload"]: row["key"] for row in csv.DictReader(file)}
    clicks = {"a": 90, "bb": 50, "ccc": 20}
    lines = ["key,trials,conversions", *(f"{keys[name]},1000,{count}" for name, count in clicks.items())]
    (tmp_path / "clicks.csv").write_text("\n".join(lines), encoding="utf-8")
    report = dispatch(
        wanted,
        [MUG],
        executor=scripted,
        integrator=Tournament(results="clicks.csv"),
        limits=QUICK,
        folder=str(tmp_path),
    )
    assert (report.status, ranks(report)) == ("complete", [("a", 1), ("bb", 2), ("ccc", 3)])
    assert scripted.calls == 9
    assert str(tmp_path) not in report.rules


@pytest.mark.parametrize(
    ("tournament", "problem"),
    [
        pytest.param(Tournament(results="none.csv"), r"none\.csv", id="no-results"),
        pytest.param(Tournament(metric="no_such_module:score"), "no_such_module", id="no-metric"),
        pytest.param(LONGER, "One brief and one item make one variant", id="one-variant"),
    ],
)
def test_a_wrong_job_is_refused_before_anything_is_spent(tournament: Tournament, problem: str, tmp_path: Path) -> None:
    """What the integrator needs and hasn't is told when the job is planned."""
    scripted = ScriptedExecutor(answer)
    with pytest.raises(JobError, match=problem):
        plan(briefs("a"), [MUG], scripted, integrator=tournament, folder=tmp_path)
    assert scripted.calls == 0


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_example_ranks_its_taglines() -> None:
    """The example's job, with a script in place of the model: four variants, six matches, one ranking."""
    job = load_job(JOB)
    scripted = ScriptedExecutor(answer)
    report = dispatch(job.briefs, job.items, executor=scripted, integrator=job.integrator, limits=job.limits)
    assert report.status == "complete"
    assert ranks(report) == [("question", 1), ("promise", 2), ("picture", 2), ("plain", 4)]
    assert report.integration.asked == 12
    assert {table.name for table in report.tables} == {"ab-test", "matches", "judging", "cycles"}
    by_results = load_job(JOB, ["integrator={kind: tournament, results: clicks.csv}"]).integrator
    assert by_results == Tournament(results="clicks.csv")


@pytest.mark.model
@pytest.mark.long
@pytest.mark.skipif(not has_smollm2(), reason="needs prefect-dispatch[local]")
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("store")
def test_the_example_runs_with_a_real_model(tmp_path: Path) -> None:
    """A real small model writes and judges; whatever it thinks, each variant is ranked or told."""
    assert main(["run", str(JOB), "--out", str(tmp_path)]) in {0, 3}
    assert list(tmp_path.rglob("*matches*.csv"))
