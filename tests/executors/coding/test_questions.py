"""Agents that ask instead of guessing: each question is a gap of its own, and an answer asks its item alone again."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import Collate, dispatch
from prefect_dispatch.cli.console import summary
from prefect_dispatch.errors import JobError, RejectedError
from prefect_dispatch.executors.base import fingerprint
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.executors.coding.questions import TO_ANSWER, find_question, list_questions, load_answers
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.outcome import Failure, Outcome, Usage
from prefect_dispatch.serialization.strict_yaml import load_documents
from prefect_dispatch.workspaces.workspace import Workspace
from tests.executors.coding.fake_agents import ITEM, FakeAgent, asked, claude_end, failed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workspaces.repositories import Repository

PORT = Brief(
    name="port",
    instructions="Port the module.",
    writes=("a.py",),
    output={"type": "object", "properties": {"done": {"type": "boolean"}}, "required": ["done"]},
)
QUESTION = {"status": "needs_context", "question": "Which version\nis the oldest?"}
BLOCKED = {"status": "blocked", "question": "May the schema change?"}
DONE = {"done": True}


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own."""
    folder = tmp_path / "state"
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(folder))
    return folder


def create(repository: Repository, **more: Any) -> CodingAgent:  # noqa: ANN401 -- fields
    """Return an executor that may ask, with its paths resolved."""
    fields: dict[str, Any] = {"model": "m", "answers": {}, "pass_env": ["ANTHROPIC_API_KEY"], **more}
    workspace = Workspace(repo=str(repository.path))
    return CodingAgent.model_validate({"workspace": workspace, **fields}).resolve_paths(repository.path)


@pytest.mark.parametrize("in_repository", [True, False])
def test_a_question_is_a_failure_of_its_own_kind(
    in_repository: bool,  # noqa: FBT001 -- a case
    repository: Repository,
    programs: Path,
) -> None:
    """Its text is the message, what was spent counts, and nothing of the work is kept."""
    fake = FakeAgent(programs, "claude")
    fake.does("echo 1 > a.py", fake.prints(claude_end(result=f"```json\n{json.dumps(QUESTION)}\n```")))
    executor = create(repository, **({} if in_repository else {"workspace": None}))
    error = failed(executor, RejectedError, PORT.model_copy(update={"writes": ()}))
    assert str(error).startswith("The agent asks: Which version is the oldest?")
    assert (error.kind, error.usage and error.usage.cost_usd) == ("needs_context", 0.25)
    [call] = fake.calls
    assert '{"status": STATUS, "question": TEXT}' in call.stdin
    assert "can answer questions: decide yourself" not in call.stdin
    assert "--json-schema" not in call.argv
    assert '"required":["done"]' in call.stdin


def test_without_a_place_for_answers_it_must_decide(repository: Repository, programs: Path) -> None:
    """The prompt is the one of before, and such an object is an answer like any other."""
    fake = FakeAgent(programs, "claude")
    fake.does("echo 1 > a.py", fake.prints(claude_end(structured_output=BLOCKED)))
    silent = create(repository, answers=None)
    assert asked(silent, PORT).value == BLOCKED
    [call] = fake.calls
    assert "do only what the brief asks. Nobody can answer questions: decide yourself, and say" in call.stdin
    assert "# Questions" not in call.stdin
    assert "--json-schema" in call.argv
    assert silent.fingerprint != create(repository).fingerprint


@pytest.mark.parametrize(
    "value",
    [
        "What now?",
        "[1]",
        {"status": "blocked"},
        {"status": "done", "question": "?"},
        {"status": "blocked", "question": " "},
        {"status": "blocked", "question": 1},
        {"status": ["blocked"], "question": "?"},
        {**BLOCKED, "more": 1},
    ],
)
def test_anything_else_is_an_answer(value: Any) -> None:  # noqa: ANN401 -- any JSON value
    """Only the exact object is a question."""
    assert find_question(value, Usage()) is None


def test_an_answer_belongs_to_the_work_that_it_is_about(repository: Repository, programs: Path) -> None:
    """It is part of the prompt and of the fingerprint of its item alone; an empty one sends nothing."""
    fake = FakeAgent(programs, "claude")
    fake.does("echo 1 > a.py", fake.prints(claude_end(result=json.dumps(DONE))))
    open_, answered, empty = (
        create(repository, answers=each) for each in ({}, {"port/a": " 3.10 \n"}, {"port/a": " "})
    )
    other = Item(key="b", value=1)
    names = [fingerprint(PORT, ITEM, each) for each in (open_, answered, empty)]
    assert (names[0] != names[1], names[0] == names[2]) == (True, True)
    assert fingerprint(PORT, other, open_) == fingerprint(PORT, other, answered)
    assert asked(answered, PORT).value == json.dumps(DONE)
    assert "# Answer to a question" in fake.calls[0].stdin
    assert "3.10" in fake.calls[0].stdin
    error = failed(empty, RejectedError, PORT)
    assert (error.kind, error.usage, len(fake.calls)) == ("needs_context", Usage(), 1)
    assert "There is no answer yet" in str(error)


def test_the_file_of_answers(tmp_path: Path, repository: Repository, programs: Path) -> None:
    """It need not exist; what can't be used is refused, and so is an answer for a brief that isn't there."""
    FakeAgent(programs, "claude")
    file = repository.path / "answers.yaml"
    assert create(repository, answers="answers.yaml").answers == {}
    file.write_text("port/a: '3.10'\n---\nport/b: yes, it may\n---\n")
    executor = create(repository, answers="answers.yaml")
    assert executor.answers == {"port/a": "3.10", "port/b": "yes, it may"}
    unresolved = CodingAgent(model="m", answers=str(file), workspace=None)
    assert unresolved.external_inputs(PORT, ITEM) == {"answer": "3.10"}
    executor.require_supported([PORT])
    with pytest.raises(JobError, match=r"executor\.answers: 'port/a': there is no brief 'port'; did you mean 'part'"):
        executor.require_supported([PORT.model_copy(update={"name": "part"})])
    for text, why in (
        ("port/a: 3.10", "the answer to 'port/a' is no text; put it in quotes"),
        ("- a", "is no mapping of 'brief/item' to answers"),
        ("a: [", "can't be used: line 1"),
    ):
        file.write_text(text)
        with pytest.raises(JobError, match=why):
            load_answers(file)
    with pytest.raises(JobError, match="can't be read: Is a directory"):
        load_answers(tmp_path)


def test_the_questions_of_a_run_are_one_document() -> None:
    """Its lines are a file of answers in which nothing is answered; no text of an agent is more than a comment."""
    text = 'The agent asks: Which one?\nport/a: "mine"\n```'
    outcomes = [
        Outcome(brief="port", item=key, status="failed", error=Failure(kind=kind, message=text))
        for key, kind in (('a "b"', "blocked"), ("c", "needs_context"), ("d", "timeout"))
    ]
    [document] = list_questions(outcomes)
    lines = document.text.split("yaml\n")[1].split("\n````")[0]
    assert load_documents(lines) == [{'port/a "b"': "", "port/c": ""}]
    assert "# Which one?" in lines
    assert list_questions(outcomes[2:]) == ()


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_only_what_is_answered_is_asked_again(repository: Repository, programs: Path, tmp_path: Path) -> None:
    """Questions are gaps that the report lists together; an answered item is asked once more, and then never again."""
    fake = FakeAgent(programs, "claude")
    asks, blocked, done = (fake.prints(claude_end(result=json.dumps(each))) for each in (QUESTION, BLOCKED, DONE))
    prompt = shlex.quote(str(programs / "claude-calls"))
    fake.does(
        f"if grep -q 'Answer to a question' {prompt}/$n/stdin; then {done};",
        f"elif grep -q first {prompt}/$n/stdin; then {asks};",
        f"elif grep -q second {prompt}/$n/stdin; then {blocked}; else {done}; fi",
    )
    answers = tmp_path / "answers.yaml"

    def run() -> Any:  # noqa: ANN401 -- a report
        executor = CodingAgent(
            model="m",
            answers=str(answers),
            pass_env=("ANTHROPIC_API_KEY",),
            workspace=Workspace(repo=str(repository.path)),
            access="read",
        )
        items = [{"key": each, "value": f"the {each} module"} for each in ("first", "second", "third")]
        return dispatch(PORT.model_copy(update={"writes": ()}), items, executor=executor, integrator=Collate())

    report = run()
    assert (report.status, len(fake.calls)) == ("gaps", 3)
    assert {(gap.item, gap.error.kind) for gap in report.gaps} == {("first", "needs_context"), ("second", "blocked")}
    [document] = report.documents
    assert document.name == TO_ANSWER
    assert "Agents ask: write answers into the file of executor.answers" in summary(report, None)
    answers.write_text("port/first: '3.10'\nport/second: ''\n")
    for calls in (4, 4):
        report = run()
        assert len(fake.calls) == calls
        assert [(gap.item, gap.error.kind) for gap in report.gaps] == [("second", "needs_context")]
    assert "3.10" in fake.calls[3].stdin
    assert "the first module" in fake.calls[3].stdin
