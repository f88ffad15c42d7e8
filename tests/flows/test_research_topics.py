"""Topics researched apart from each other, with sources, and one finding."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import LLM, LLMCredentials, Report, Synthesize, research_topics
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.flows.research_topics import DISAGREEMENT
from prefect_dispatch.flows.runtime.form_layout import with_form_messages
from prefect_dispatch.integrators.audit.published_report import audit_report
from prefect_dispatch.sources.tabular import Csv, JsonLines, Parquet
from tests.openai_server import Behaviour, OpenAIServer, openai_server

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

ORDER = [
    "question", "topics", "topics_file", "credentials", "model", "folder", "name", "researcher",
    "limits", "report", "advanced",
]  # fmt: skip
GOOD = ["https://www.rfc-editor.org/rfc/rfc9110", "10.1038/171737a0"]
TEXT = "# Finding\n\nBoth are old [1][2].\n\n## Where the agents disagree\n\nOn the year: [1] says so, [2] does not."


def behave(request: dict[str, Any], n: int) -> Behaviour:
    """Name one source too few at first, and write the section on disagreement only when reminded of it."""
    said = json.dumps(request["messages"])
    if "under its heading as it stands here" in said:
        return Behaviour(content=TEXT if "There is no section" in said else TEXT.partition("\n\n## ")[0])
    sources = GOOD if "at least 2 are asked for" in said else [GOOD[0], GOOD[0] + "/"]
    return Behaviour(content=json.dumps({"finding": "It is old.", "sources": sources}))


@pytest.fixture(scope="module")
def model() -> Generator[OpenAIServer]:
    """The model that is asked."""
    with openai_server(behave) as server:
        yield server


def given(**more: object) -> Any:  # noqa: ANN401 -- the parts of a job
    """Return what a form is put together to."""
    valid = research_topics.validate_parameters({"question": "How old is {topic}?", **more})
    return with_form_messages(lambda: research_topics.form.build(**valid))


def test_the_form_has_few_fields_and_groups_in_order() -> None:
    """What an analyst needs comes first; only the question can't be left out, as topics may come from a file."""
    form = research_topics.parameters.model_dump()
    fields = sorted(form["properties"].items(), key=lambda field: field[1]["position"])
    assert [name for name, _ in fields] == ORDER
    assert all(field["description"] for _, field in fields)
    assert form["required"] == ["question"]
    assert form["definitions"]["Advanced"]["properties"]["source_forms"]["items"]["enum"] == [
        "url",
        "doi",
        "isbn",
        "title",
    ]


def test_topics_can_be_pasted() -> None:
    """One on each line, or as a table; a column other than `topic` is for the question."""
    lines = given(topics={"pasted": "HTTP\nDNA"})
    assert [item.value for item in lines.items.items] == [{"topic": "HTTP"}, {"topic": "DNA"}]
    table = given(topics={"pasted": "name\tsince\nHTTP\t1991", "layout": "table"})
    assert [item.value for item in table.items.items] == [{"topic": "HTTP", "name": "HTTP", "since": "1991"}]


def test_what_a_form_becomes(tmp_path: Path) -> None:
    """One brief for all topics, or one for each model; the integrator writes the two sections."""
    parts = given(topics=["HTTP", "DNA"], answers=2, judge_model="openai/judge", model="openai/test")
    assert [item.key for item in parts.items.items] == ["HTTP", "DNA"]
    assert (parts.briefs[0].samples, parts.briefs[0].checks[0].at_least) == (2, 2)
    assert isinstance(parts.integrator, Synthesize)
    assert parts.integrator.sections == ("Finding", DISAGREEMENT)
    assert (parts.integrator.judge, parts.integrator.executor) == (LLM(model="openai/judge"), None)
    several = given(topics=["HTTP"], models=["openai/a", "openai/b"], sources=0, judge_model="x/y")
    assert [(brief.name, brief.model) for brief in several.briefs] == [
        ("research-by-1", "openai/a"),
        ("research-by-2", "openai/b"),
    ]
    assert (several.briefs[0].output, several.briefs[0].checks) == ("text", ())
    assert given(topics=["a"], judge_model="x/y").integrator.judge.model == "x/y"
    for name, kind in (("t.csv", Csv), ("t.jsonl", JsonLines), ("t.parquet", Parquet)):
        assert isinstance(given(topics_file=name).items, kind)
    (tmp_path / "t.txt").write_text("HTTP\n\n DNA \n", encoding="utf-8")
    assert [item.key for item in given(topics_file="t.txt", folder=str(tmp_path)).items.items] == ["HTTP", "DNA"]


def test_topics_that_cannot_be_are_told(tmp_path: Path) -> None:
    """None, two places, no such file, an empty one, one that is no text: named by the field, with the way out."""
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"\xe4\n")
    for more, told in (
        ({}, "topics: name at least one, or a `topics_file`"),
        ({"topics": ["a"], "topics_file": "b"}, "topics: give them in one place"),
        ({"topics_file": "none.txt"}, "topics_file: 'none.txt' can't be read: No such file"),
        ({"topics_file": "empty.txt"}, "topics_file: there is nothing in 'empty.txt'"),
        ({"topics_file": "latin.txt"}, "topics_file: 'latin.txt' is not UTF-8 text"),
    ):
        with pytest.raises(JobError, match=told):
            given(folder=str(tmp_path), **more)


def test_a_model_is_no_second_agent() -> None:
    """Named twice, its one answer would count twice; several answers of one model have a field of their own."""
    with pytest.raises(JobError, match=r"models: 'openai/a' stands there 2 times, .* set `answers` for several"):
        given(topics=["a"], models=["openai/a", "openai/b", "openai/a"])


@pytest.mark.usefixtures("store")
def test_sources_are_asked_for_and_the_finding_says_where_agents_disagree(model: OpenAIServer) -> None:
    """An answer with too few sources is sent back, and so is a finding without its section."""
    report: Report = research_topics(
        "How old is {topic}?", ["HTTP", "DNA"], model="openai/test", credentials=_saved(model), concurrency=1
    )
    assert report.status == "complete"
    assert report.usage.reasks == 2
    text = str(report.value)
    assert f"## {DISAGREEMENT}\n\nOn the year" in text
    assert "## Sources" in text
    asked = [json.dumps(request.body) for request in model.requests]
    assert any("How old is HTTP?" in each for each in asked)
    assert any("which is no source" in each or "at least 2 are asked for" in each for each in asked)
    assert any("There is no section '## Where the agents disagree'" in each for each in asked)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_finding_without_its_section_is_not_complete(model: OpenAIServer) -> None:
    """A writer that never writes it leaves a gap that the report names."""

    def stubborn(request: dict[str, Any], n: int) -> Behaviour:
        said = json.dumps(request["messages"])
        if "under its heading as it stands here" in said:
            return Behaviour(content="All is old [1].")
        return Behaviour(content="Old.")

    with openai_server(stubborn) as server:
        report: Report = research_topics(
            "How old?", ["HTTP"], sources=0, model="openai/test", credentials=_saved(server)
        )
    assert report.status == "gaps"
    assert report.shortfalls[:2] == tuple(
        f"The text has no section {name!r}, though it was sent back for it." for name in ("Finding", DISAGREEMENT)
    )


def test_a_researcher_that_searches_needs_a_model() -> None:
    """The topics are researched with the search, the finding is written without; without a model it is refused."""
    parts = given(topics=["a"], model="openai/gpt-4o-search-preview", researcher="model with web search")
    assert parts.executor.web_search
    assert not parts.integrator.executor.web_search
    assert parts.briefs[0].checks[0].from_search
    with pytest.raises(JobError, match="researcher: name a model that searches the web"):
        given(topics=["a"], researcher="model with web search")


def test_a_coding_agent_as_researcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """It works without a repository and with the web; a model writes the finding, by default that of the agent."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test-0123456789")
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    own = {"kind": "coding", "agent": "claude", "model": "claude-sonnet-4-5", "max_usd": 1, "time_limit_s": 60}
    parts = given(topics=["a"], researcher=own, budget_usd=5)
    agent = parts.executor
    assert isinstance(agent, CodingAgent)
    assert (agent.workspace, agent.web_search, agent.max_usd, agent.pass_env) == (None, True, 1, ("ANTHROPIC_API_KEY",))
    assert parts.integrator.executor == LLM(model="anthropic/claude-sonnet-4-5")
    assert (parts.limits.timeout_s, parts.limits.budget_usd) == (60, 5)
    assert parts.briefs[0].checks[0].from_search
    other = given(topics=["a"], researcher={**own, "model": ""}, model="claude-x", writer_model="openai/w")
    assert (other.executor.model, other.integrator.executor.model) == ("claude-x", "openai/w")
    mini = given(topics=["a"], researcher={"agent": "mini", "model": "openai/gpt-5", "pass_env": ["MY_KEY"]})
    assert (mini.executor.web_search, mini.executor.pass_env) == (False, ("MY_KEY",))
    assert not mini.briefs[0].checks[0].from_search
    monkeypatch.setenv("PREFECT_DISPATCH_MODEL", "openai/default")
    described = given(topics=["a"], researcher={"agent": {"name": "mine", "argv": ["./mine"]}})
    assert (described.executor.model, described.integrator.executor.model) == ("mine", "openai/default")


@pytest.mark.parametrize(
    ("researcher", "more", "message"),
    [
        ({"agent": "claude"}, {}, "model: name the model that claude asks"),
        ({"agent": "claude"}, {"model": "openai/gpt-5"}, "'claude' uses models of anthropic, and `model` is"),
        ({"agent": "claude", "model": "a"}, {"models": ["x/y"]}, "models: a coding agent uses one model"),
    ],
)
def test_a_coding_agent_that_cannot_be_is_refused(
    researcher: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    """Without a model, with one of another provider, or with several."""
    with pytest.raises(JobError, match=message):
        given(topics=["a"], researcher=researcher, **more)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("models", [["openai/gpt-3.5-turbo"], ["openai/gpt-4o-search-preview", "openai/gpt-3.5-turbo"]])
def test_a_model_without_a_search_is_refused_before_a_call(models: list[str], model: OpenAIServer) -> None:
    """Among several models, too; the message names the model and what to do."""
    before = len(model.requests)
    with pytest.raises(JobError, match=r"'openai/gpt-3\.5-turbo' isn't known to search the web: name one that does"):
        research_topics(
            "How old is {topic}?",
            ["HTTP"],
            models=models,
            credentials=_saved(model),
            researcher="model with web search",
        )
    assert len(model.requests) == before


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_sources_are_pages_that_the_search_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that the search did not return is sent back; the pages are in the outcomes, the report and its table."""
    page = "https://www.rfc-editor.org/rfc/rfc9110"
    cited = {"type": "url_citation", "url_citation": {"url": f"{page}?utm_source=openai", "title": "HTTP Semantics"}}

    def search(request: dict[str, Any], n: int) -> Behaviour:
        said = json.dumps(request["messages"])
        if "under its heading as it stands here" in said:
            assert "web_search_options" not in request
            return Behaviour(content=TEXT)
        assert request["web_search_options"] == {}
        sources = [page] if "your web search did not return" in said else ["https://www.rfc-editor.org/rfc/rfc1"]
        return Behaviour(content=json.dumps({"finding": "It is old.", "sources": sources}), annotations=[cited])

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    with openai_server(search) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        report, again = (
            research_topics(
                "How old is {topic}?",
                ["HTTP"],
                sources=1,
                model="openai/gpt-4o-search-preview",
                researcher="model with web search",
                budget_usd=5,
                out=str(tmp_path),
            )
            for _ in range(2)
        )
    assert (report.status, report.usage.reasks) == ("complete", 1)
    assert [each.url for each in report.outcomes[0].citations] == [f"{page}?utm_source=openai"]
    assert (report.usage.cost_usd or 0) > 0.05
    assert (again.usage.asked, again.outcomes[0].citations) == (0, report.outcomes[0].citations)
    [table] = [each for each in report.tables if each.name == "web-sources"]
    assert (table.rows[0]["item"], table.rows[0]["title"]) == ("HTTP", "HTTP Semantics")
    assert "Pages that web searches returned" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert audit_report(tmp_path).violations == ()


def _saved(server: OpenAIServer) -> str:
    block = LLMCredentials.model_validate({"api_key": "sk-none-needed", "api_base": server.url})
    block.save("of-research", overwrite=True)
    return "of-research"
