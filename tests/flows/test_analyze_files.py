"""The same of many files, from a form that an analyst fills in."""

from __future__ import annotations

import json
import re
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, cast

import pytest
from prefect import flow
from prefect.exceptions import ParameterTypeError
from pydantic import BaseModel

from prefect_dispatch import LLM, CodingAgent, DispatchProfile, Limits, LLMCredentials, Report, analyze_files
from prefect_dispatch.blocks import block_reference
from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.analyze_files import AGENT_SCOPE, DECISIONS, PASTED_AGENT_SCOPE
from prefect_dispatch.flows.runtime.form_fields import AnswerField, schema_of_fields
from prefect_dispatch.flows.runtime.form_flow import REFUSAL
from prefect_dispatch.flows.runtime.form_layout import with_form_messages
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.output_schema import validate_output
from prefect_dispatch.sources.files import Glob
from tests.openai_server import Behaviour, OpenAIServer, document, openai_server

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from pydantic import JsonValue

KEY = "sk-of-the-analyst-0815"
ORDER = [
    "files", "instructions", "credentials", "model", "fields", "several", "folder", "name",
    "merging", "limits", "report", "advanced",
]  # fmt: skip


def behave(request: dict[str, Any], n: int) -> Behaviour:
    """Answer with the name and the year that stand in the document."""
    name, year = re.findall(r"(\w+) of (\d{4})", document(request))[0]
    return Behaviour(content=json.dumps({"name": name, "year": int(year)}))


@pytest.fixture(scope="module")
def model() -> Generator[OpenAIServer]:
    """The model that is asked."""
    with openai_server(behave) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files, two of them about one thing."""
    for name, text in {"a": "MIT of 1987.", "b": "MIT of 1988.", "c": "ISC of 1990."}.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def given(**more: object) -> Any:  # noqa: ANN401 -- the parts of a job
    """Return what a form with two fields, and some more, is put together to."""
    valid = analyze_files.validate_parameters({"files": "*.txt", "instructions": "Note it.", **more})
    return with_form_messages(lambda: analyze_files.form.build(**valid))


def test_the_form_has_few_fields_and_groups_in_order() -> None:
    """What an analyst needs comes first, each field says what it is for, and choices are choices."""
    form = analyze_files.parameters.model_dump()
    fields = sorted(form["properties"].items(), key=lambda field: field[1]["position"])
    assert [name for name, _ in fields] == ORDER
    assert all(field["description"] for _, field in fields)
    assert form["required"] == ["files", "instructions"]
    shapes = dict(fields)
    assert shapes["credentials"]["block_type_slug"] == "llm-credentials"
    definitions = form["definitions"]
    assert [name for name, each in definitions.items() if "json-string" in repr(each)] == ["AgentReader"]
    assert "json-string" not in repr(shapes)
    merging, limits, advanced = (form["definitions"][name]["properties"] for name in ("Merging", "Limits", "Advanced"))
    assert merging["merge"]["enum"] == ["side by side", "merge records"]
    assert advanced["profile"]["block_type_slug"] == "dispatch-profile"
    assert (limits["concurrency"]["minimum"], limits["min_success"]["maximum"]) == (1, 1)
    assert limits["budget_usd"] | {"description": ""} == {
        "title": "Budget in US dollars", "type": "number", "exclusiveMinimum": 0, "position": 1, "description": "",
    }  # fmt: skip


def test_what_a_form_becomes() -> None:
    """Two fields are enough; each other one says what it changes."""
    plain = given()
    assert plain.items == Glob(glob="*.txt")
    assert isinstance(plain.integrator, Collate)
    assert (plain.briefs[0].output, plain.briefs[0].name, plain.executor) == ("text", "analysis", None)
    assert plain.limits == Limits()
    rich = given(
        files=["*.txt", "*.md"],
        fields=["name", {"name": "people", "kind": "list of texts"}],
        several=True,
        merge="merge records",
        identity=["name"],
        rules={"people": "union"},
        match=True,
        review=True,
        model="openai/test",
        concurrency=2,
    )
    assert rich.items == Glob(glob=("*.txt", "*.md"))
    assert isinstance(rich.integrator, MergeRecords)
    assert (rich.integrator.aliases, rich.integrator.records, bool(rich.integrator.match)) == (
        DECISIONS,
        "records",
        True,
    )
    assert (rich.review, rich.executor.model, rich.limits.concurrency) == (True, "openai/test", 2)
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}}
    assert json.loads(given(output=schema).briefs[0].output) == schema

    class Own(BaseModel):
        year: int

    assert given(output=Own).briefs[0].output is Own


def test_a_group_of_the_form_means_the_same_as_its_fields() -> None:
    """A form submits each field of an open group; schedules, job files and calls give them by themselves, too."""
    flat = {"merge": "merge records", "identity": ["name"], "limit": 2, "budget_usd": 1.5, "max_tokens": 300}
    grouped = {
        "merging": {"merge": "merge records", "identity": ["name"], "rules": [], "match": False},
        "limits": {"limit": 2, "budget_usd": 1.5, "max_tokens": 300, "concurrency": 8},
        "advanced": None,
    }
    rest = {"fields": ["name"], "model": "openai/test"}
    assert given(**rest, **flat) == given(**rest, **grouped)
    assert given(**rest, **grouped).executor.params == {"max_tokens": 300}
    assert given(limits={"concurrency": 8}, concurrency=3).limits.concurrency == 3
    with pytest.raises(JobError, match="concurrency: it is given both in the group `limits` and by itself"):
        given(limits={"concurrency": 4}, concurrency=3)


def test_the_length_of_an_answer_replaces_that_of_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the only limit of the length then; without a model it is for the worker's default one."""
    monkeypatch.setenv("PREFECT_DISPATCH_MODEL", "openai/of-the-worker")
    assert given(max_tokens=9).executor == LLM(model="openai/of-the-worker", params={"max_tokens": 9})


def test_items_can_be_pasted() -> None:
    """In place of files; the model is told that it sees an item."""
    pasted = given(files={"pasted": "MIT of 1987\nISC of 1990"})
    assert [item.key for item in pasted.items.items] == ["MIT of 1987", "ISC of 1990"]
    assert pasted.briefs[0].scope == "One item."
    assert given(files={"pasted": "MIT"}, scope="A licence.").briefs[0].scope == "A licence."
    with pytest.raises(JobError, match="files: pasted items, lines 1 and 3: 'MIT' stands there twice"):
        given(files={"pasted": "MIT\n\nMIT"})


def test_unnamed_analyses_are_told_apart() -> None:
    """By their question and their files; a name that was given stays as it is."""
    first, same, other = given(), given(concurrency=2), given(instructions="Say when.")
    assert first.name is not None
    assert first.name.startswith("note-it-")
    assert first.name == same.name
    assert len({first.name, other.name, given(files="*.md").name}) == 3
    assert given(name="mine").name == "mine"
    assert other.briefs[0].name == "analysis"


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        pytest.param({"concurrency": 0}, "concurrency: Input should be greater than or equal to 1.", id="bound"),
        pytest.param(
            {"fields": [{"name": "a", "kind": "number", "choices": ["1"]}], "model": 3},
            "(1 more problem.)",
            id="two",
        ),
        pytest.param({"instrctions": "x"}, "there is no such field; did you mean 'instructions'?", id="unknown"),
        pytest.param({"credentials": {"$ref": "0" * 8}}, "credentials: the block, or that of the profile", id="gone"),
        pytest.param({"credentials": LLMCredentials()}, "credentials: this LLMCredentials isn't saved", id="unsaved"),
    ],
)
def test_a_run_of_a_deployment_ends_with_the_words_of_its_form(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any], told: str
) -> None:
    """Prefect validates before the run begins, and would log a traceback; the run itself refuses instead."""
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "00000000-0000-0000-0000-000000000000")
    valid = copy_context().run(_refused, {"files": "*", "instructions": "x", **parameters})
    assert told in valid


@pytest.mark.usefixtures("store")
def test_what_was_refused_before_a_run_is_its_end() -> None:
    """The words that were kept when Prefect validated the parameters are the error of the run, and of no other one."""

    def run() -> None:
        REFUSAL.set("files: name some.")
        with pytest.raises(JobError, match=r"files: name some\."):
            analyze_files("*", "Read it.")
        assert not REFUSAL.get()

    copy_context().run(run)


def _refused(parameters: dict[str, Any]) -> str:
    assert analyze_files.validate_parameters(parameters) == {}
    return REFUSAL.get()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        pytest.param({"merge": "merge records"}, "merge: texts can't be merged", id="texts-as-records"),
        pytest.param({"merge": "merge records", "fields": ["a"]}, "identity: name the field", id="no-identity"),
        pytest.param({"identity": ["a"]}, "identity: it is for records that are merged", id="identity-for-nothing"),
        pytest.param({"review": True}, "review: it is for records", id="review-of-nothing"),
        pytest.param({"conflicts": "flag"}, "conflicts: it is for records", id="conflicts-of-nothing"),
        pytest.param({"fields": ["a"], "output": "{}"}, "output: .* by `fields` or by `output`", id="two-forms"),
        pytest.param({"several": True}, "several: several records need `fields`", id="several-of-nothing"),
        pytest.param({"fields": ["a", "a"]}, "fields: 'a' stands there twice", id="a-field-twice"),
        pytest.param({"files": "../x"}, "files: '../x' must stay below .* another folder as `folder`", id="elsewhere"),
        pytest.param(
            {"merge": "merge records", "fields": ["a"], "identity": ["a"], "rules": {"a": "union"}},
            "'a' belongs to the identity",
            id="a-rule-that-does-not-fit",
        ),
    ],
)
def test_what_does_not_go_together_is_told(more: dict[str, Any], told: str) -> None:
    """The message begins with the field of the form, and says the way out."""
    with pytest.raises(JobError, match=told):
        given(**more)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        pytest.param({"fields": [{"name": "a b"}]}, "fields", id="a-name-with-a-blank"),
        pytest.param({"fields": [{"name": "a", "kind": "number", "choices": ["1"]}]}, "are for texts", id="nr"),
        pytest.param({"fields": [{"name": "a", "choices": ["x", "y", "x"]}]}, "'a' has 'x' twice", id="twice"),
        pytest.param({"fields": [{"name": "a", "choices": list[str]()}]}, "'a' is empty.*leave it out", id="no-choice"),
        pytest.param({"output": '{"type": "objekt"}'}, "output.*not a valid JSON Schema", id="schema"),
        pytest.param({"credentials": "My Key"}, "credentials.*is not the name of a block", id="credentials"),
        pytest.param({"instructions": " "}, "instructions", id="nothing-to-do"),
        pytest.param({"concurrency": 0}, "concurrency", id="nothing-at-once"),
    ],
)
def test_a_wrong_value_names_its_field(more: dict[str, Any], told: str) -> None:
    """Whatever a form can check by itself is told before the run begins."""
    with pytest.raises(ParameterTypeError, match=told):
        given(**more)


@pytest.mark.parametrize(
    ("field", "right", "wrong"),
    [
        pytest.param("a", "x", 3, id="text"),
        pytest.param({"name": "a", "kind": "whole number"}, None, 1.5, id="whole"),
        pytest.param({"name": "a", "kind": "number", "required": True}, 1.5, None, id="required"),
        pytest.param({"name": "a", "kind": "yes or no"}, True, "yes", id="yes-or-no"),
        pytest.param({"name": "a", "kind": "date", "about": "When."}, "2024-02-01", "yesterday", id="date"),
        pytest.param({"name": "a", "choices": ["x", "y"]}, None, "z", id="choices"),
        pytest.param({"name": "a", "kind": "list of texts", "choices": ["x"]}, ["x"], ["z"], id="list"),
    ],
)
def test_a_field_takes_what_it_says(field: object, right: JsonValue, wrong: JsonValue) -> None:
    """Each kind of field becomes a schema that takes the one and refuses the other."""
    made = AnswerField.model_validate(field)
    assert AnswerField.model_validate(made.model_dump()) == made
    schema = schema_of_fields([made])
    assert validate_output(schema, {"a": right})[1] == []
    assert validate_output(schema, {"a": wrong})[1] != []


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        pytest.param("2024-02-29", True, id="leap-day"),
        pytest.param("2000-02-29", True, id="leap-day-of-a-century"),
        pytest.param("1900-02-29", False, id="no-leap-day-of-a-century"),
        pytest.param("2023-02-29", False, id="no-leap-day"),
        pytest.param("2024-02-30", False, id="february"),
        pytest.param("2030-04-31", False, id="april"),
        pytest.param("2030-12-31", True, id="december"),
        pytest.param("2030-10", True, id="month"),
        pytest.param("2030-00", False, id="no-month"),
        pytest.param("1987", True, id="year"),
        pytest.param("0000", False, id="no-year"),
        pytest.param("2030-99-99", False, id="nines"),
        pytest.param("\u0662\u0660\u0663\u0660", False, id="other-digits"),
        pytest.param("30-01-02", False, id="two-digits"),
        pytest.param("2030-01-02T00:00", False, id="time"),
    ],
)
def test_a_date_is_one_of_the_calendar(text: str, is_one: bool) -> None:  # noqa: FBT001 -- a table
    """Else the answer is sent back; a month or a year do where no more is said."""
    schema = schema_of_fields([AnswerField(name="a", kind="date")])
    assert "as YYYY-MM or YYYY where no more is said" in schema["properties"]["a"]["description"]
    told = (
        f"$.a: {text!r} is no date of the calendar; write it like 2026-11-25, or 2026-11 or 2026 where no more is said"
    )
    assert validate_output(schema, {"a": text})[1] == ([] if is_one else [told])


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_an_analysis_from_files_to_records(model: OpenAIServer, folder: Path) -> None:
    """Called inside another flow it asks each file, merges by the rules, and a second run asks nobody."""
    block = LLMCredentials.model_validate({"api_key": KEY, "api_base": model.url, "model": "openai/test"})
    block.save("of-the-analyst", overwrite=True)
    DispatchProfile(credentials=block, limits=Limits(concurrency=3, retries=0)).save("careful", overwrite=True)

    @flow
    def pipeline(**more: Any) -> Report:  # noqa: ANN401 -- parameters of the form
        asked: Report = cast("Any", analyze_files)(
            "*.txt",
            "Note name and year.",
            fields=["name", AnswerField(name="year", kind="whole number")],
            merge="merge records",
            identity=["name"],
            rules={"year": "max"},
            folder=str(folder),
            **more,
        )
        return asked

    report = pipeline(credentials=block, out="report")
    assert report.status == "complete"
    assert report.value == {"records": [{"name": "ISC", "year": 1990}, {"name": "MIT", "year": 1988}], "gaps": []}
    assert (folder / "report" / "report.md").exists()
    assert model.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    picked = {
        "credentials": block_reference("credentials", "of-the-analyst"),
        "profile": block_reference("profile", "careful"),
    }
    valid = analyze_files.validate_parameters({"files": "*.txt", "instructions": "x", **picked})
    assert (valid["credentials"], valid["profile"]) == ("of-the-analyst", "careful")
    again = pipeline(profile="careful", concurrency=5)
    assert (again.usage.cached, model.count) == (3, 3)
    limits: Any = again.run["limits"]
    assert (limits["concurrency"], limits["retries"]) == (5, 0)
    assert KEY not in again.model_dump_json()


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_run_that_cannot_be_is_told_first(model: OpenAIServer, folder: Path) -> None:
    """No such block, no model, no file, an unsaved key: a sentence, and nobody was asked."""
    LLMCredentials.model_validate({"api_base": model.url}).save("without-a-model", overwrite=True)
    asked, wrong = model.count, cast("Any", analyze_files)
    for more, told in (
        ({"credentials": "nobody"}, "credentials: this Prefect server has no LLMCredentials block 'nobody'"),
        ({"credentials": "without-a-model"}, "model: the credentials 'without-a-model' have no default model"),
        ({"credentials": LLMCredentials()}, "credentials: this LLMCredentials isn't saved"),
        ({"files": "*.pdf", "model": "openai/test"}, "There are no items: the glob '\\*.pdf'"),
        ({"min_success": 0.5, "model": "openai/test", "instructions": "See {x}."}, "{x} has no value"),
    ):
        with pytest.raises(JobError, match=told):
            wrong(**{"files": "*.txt", "instructions": "Note it.", "folder": str(folder), **more})
    assert model.count == asked


def test_options_keep_the_form() -> None:
    """A flow with another name, say, is still put together in the same way."""
    other = analyze_files.with_options(name="mine")
    assert (other.name, other.form) == ("mine", analyze_files.form)
    assert other.validate_parameters({"files": "x", "instructions": "y", "credentials": ""})["credentials"] is None


def test_a_coding_agent_as_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the repository around each file, or for pasted questions, and changes nothing."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test-0123456789")
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    own = {"kind": "coding", "agent": "claude", "model": "m", "repo": "code", "base": "main", "time_limit_s": 60}

    def given(files: object, **more: object) -> Any:  # noqa: ANN401 -- the parts of a job
        valid = analyze_files.validate_parameters({"files": files, "instructions": "Audit {key}.", **more})
        return with_form_messages(lambda: analyze_files.form.build(**valid))

    parts = given("src/*.py", reader={**own, "max_usd": 1, "answers": "a.yaml"}, fields=["finding"], budget_usd=5)
    agent = parts.executor
    assert isinstance(agent, CodingAgent)
    assert (agent.access, agent.web_search, agent.pass_env, agent.max_usd) == ("read", False, ("ANTHROPIC_API_KEY",), 1)
    assert agent.workspace is not None
    assert agent.answers == "a.yaml"
    assert (agent.workspace.repo, agent.workspace.base, parts.limits.timeout_s) == ("code", "main", 60)
    assert (parts.briefs[0].scope, parts.limits.budget_usd) == (AGENT_SCOPE, 5)
    pasted = given({"pasted": "Who opens files?"}, reader=own)
    assert pasted.briefs[0].scope == PASTED_AGENT_SCOPE
    assert given("*.py", reader=own, scope="Mine.").briefs[0].scope == "Mine."
    with pytest.raises(JobError, match="max_tokens: it is for a model"):
        given("*.py", reader=own, max_tokens=100)
    with pytest.raises(JobError, match=r"reader: .claude. uses models of anthropic"):
        given("*.py", reader={**own, "model": ""}, model="openai/gpt-5")
