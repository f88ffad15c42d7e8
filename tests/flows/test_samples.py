"""One brief asked several times, and several models, through the flow: who is asked, what is paid, what is agreed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import LLM, Brief, Consensus, Item, Limits, PythonCallable, dispatch, plan
from prefect_dispatch.errors import JobError
from prefect_dispatch.testing import ScriptedExecutor
from tests.openai_server import Behaviour, openai_server

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch import Ask, Report

pytestmark = pytest.mark.usefixtures("store")

LABEL: dict[str, Any] = {
    "name": "label",
    "instructions": "Label it.",
    "output": {"type": "object", "properties": {"free": {"type": "boolean"}}, "required": ["free"]},
}
QUICK = Limits(retry_delay_s=0, retries=0, reasks=0, timeout_s=20)


def judge(ask: Ask) -> JsonValue:
    """Answer that it is free, but for the second sample, and the third of item `b`, which fails."""
    if ask.item.key == "b" and ask.brief.sample == 3:
        raise ValueError
    return {"free": ask.brief.sample != 2}


def ask_often(samples: int, scripted: ScriptedExecutor, **options: Any) -> Report:  # noqa: ANN401 -- options of many types
    """Return the report on two items, each asked about several times."""
    return dispatch(
        [Brief(**LABEL, samples=samples)],
        [Item(key="a", value="x"), Item(key="b", value="y")],
        executor=scripted,
        integrator=Consensus(**options),
        limits=QUICK,
    )


@pytest.mark.slow
def test_samples_are_asked_once_each_and_agreed_on() -> None:
    """Three samples of two items are six asks; five take only what is new; a sample that fails is a gap."""
    scripted = ScriptedExecutor(judge)
    report = ask_often(3, scripted)
    assert scripted.calls == 6
    assert report.status == "gaps"
    value: Any = report.value
    assert value["answers"] == [{"item": "a", "value": {"free": True}}, {"item": "b", "value": {"free": True}}]
    assert [flag.path for flag in report.flags] == ["/answers/1/value/free"]  # one against one
    assert [(gap["brief"], gap["item"]) for gap in value["gaps"]] == [("label-3", "b")]
    assert [table.name for table in report.tables] == ["disagreements", "agreement", "agents"]
    assert [row["item"] for row in report.tables[0].rows] == ["b", "a"]
    more = ask_often(5, scripted, min_votes=5)
    assert scripted.calls == 6 + 4 + 1  # and the one that failed once more
    assert more.usage.cached == 5
    value = more.value
    assert ([entry["item"] for entry in value["answers"]], [entry["item"] for entry in value["undecided"]]) == (
        ["a"],
        ["b"],
    )
    assert "Undecided for want of 5 answers: 1 of 2 items with any ('b')." in more.message


@pytest.mark.slow
def test_a_brief_without_samples_shares_its_answer_with_the_first() -> None:
    """What was asked once counts as the first of several samples."""
    scripted = ScriptedExecutor(judge)
    dispatch([Brief(**LABEL)], ["x"], executor=scripted, limits=QUICK)
    dispatch([Brief(**LABEL, samples=3)], ["x"], executor=scripted, integrator=Consensus(), limits=QUICK)
    assert scripted.calls == 3


def test_several_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each brief is answered by its own model, at its own price, and only once however the job names it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    names = ["gpt-4o", "gpt-4o-mini", "mine"]
    briefs = [
        Brief.model_validate({**LABEL, "name": name.rpartition("-")[2], "model": f"openai/{name}"}) for name in names
    ]
    with openai_server(Behaviour(content='{"free": true}')) as server:
        llm = LLM(model="openai/gpt-4o", api_base=server.url, usd_per_million=(1, 1))
        foreseen = plan(briefs, ["x"], llm, integrator=Consensus())
        priced = plan(briefs[:2], ["x"], llm, integrator=Consensus())
        report = dispatch(briefs, ["x"], executor=llm, integrator=Consensus(), limits=QUICK)
        again = dispatch([Brief(**LABEL)], ["x"], executor=llm, limits=QUICK)
    assert sorted(request.body["model"] for request in server.requests) == sorted(names)
    assert {outcome.model for outcome in report.outcomes} == {f"openai/{name}" for name in names}
    value: Any = report.value
    assert value["answers"][0]["value"] == {"free": True}
    assert again.usage.cached == 1
    assert foreseen.cost_usd is None
    assert priced.cost_usd is not None


@pytest.mark.parametrize(
    ("brief", "executor", "message"),
    [
        ({"samples": 3}, LLM(model="openai/x", params={"temperature": 0}), "at temperature 0 a model says the same"),
        ({"model": "openai/x"}, ScriptedExecutor({}), "which only a language model's executor can ask"),
        ({"samples": 3, "writes": ["out.txt"]}, ScriptedExecutor({}), "both write 'out.txt'"),
        ({}, ScriptedExecutor({}), "give a brief 'samples'"),
    ],
)
def test_refused_beforehand(brief: dict[str, Any], executor: Any, message: str) -> None:  # noqa: ANN401 -- any executor
    """What would be paid for in vain is refused by the plan, in a sentence."""
    with pytest.raises(JobError, match=message):
        plan([Brief.model_validate({**LABEL, **brief})], ["x"], executor, integrator=Consensus())


def keep(row: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Answer a row with itself."""
    return row


def keep_numbers(row: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Answer a row with itself, its digits as numbers."""
    return {name: int(part) if isinstance(part, str) and part.isdigit() else part for name, part in row.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "people"), [("string", ["ann", "bob", "eve"]), ("integer", ["1", "2", "10"])], ids=["names", "numbers"]
)
def test_labels_that_exist_are_merged_by_a_job(kind: str, people: list[str], tmp_path: Path) -> None:
    """A table of question, worker and answer, in which not all answer everything, becomes one answer each, audited."""
    ann, bob, eve = people
    questions = ["q1", "q2", "q3"] if kind == "string" else ["7", "8", "9"]
    votes = [(0, ann, "yes"), (0, bob, "yes"), (0, eve, "no"), (1, eve, "no"), (2, bob, "yes")]
    rows = [f"{questions[question]},{worker},{answer}" for question, worker, answer in votes]
    (tmp_path / "labels.csv").write_text("\n".join(["question,worker,answer", *rows]))
    fields = {"question": {"type": kind}, "worker": {"type": kind}, "answer": {"type": "string"}}
    output = {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}
    report = dispatch(
        [Brief.model_validate({"name": "labels", "instructions": "A label.", "output": output})],
        {"csv": str(tmp_path / "labels.csv")},
        executor=PythonCallable(keep if kind == "string" else keep_numbers, version="1"),
        integrator=Consensus(item="question", voter="worker"),
        limits=QUICK,
    )
    assert (report.status, len(report.ledger)) == ("complete", 5)
    value: Any = report.value
    as_answered: Any = str if kind == "string" else int
    assert [(entry["item"], entry["value"]["answer"], entry["voters"]) for entry in value["answers"]] == [
        (as_answered(questions[0]), "yes", [*map(as_answered, people)]),
        (as_answered(questions[1]), "no", [as_answered(eve)]),
        (as_answered(questions[2]), "yes", [as_answered(bob)]),
    ]
