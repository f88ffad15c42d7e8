"""Flow that researches topics independently of each other, and synthesizes one finding."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import ConfigDict, Discriminator, Field, GetPydanticSchema, Tag

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.coding.coding_agent import AnyAgent, CodingAgent, adapter_of
from prefect_dispatch.executors.coding.custom import Generic
from prefect_dispatch.executors.llm.messages import Params
from prefect_dispatch.executors.registry import default_executor
from prefect_dispatch.flows.build_modules import Dollars, Seconds, resolve_agent_model
from prefect_dispatch.flows.runtime.flow_loader import make_on_use
from prefect_dispatch.flows.runtime.form import Form
from prefect_dispatch.flows.runtime.form_fields import (
    Budget,
    Concurrency,
    CredentialsField,
    First,
    Forms,
    Line,
    MaxTokens,
    ProfileField,
    Share,
    SharedBudget,
    Texts,
    executor_from_fields,
    limits_from_fields,
    limits_group,
    second_executor,
)
from prefect_dispatch.flows.runtime.form_layout import FormGroup, FormLayout
from prefect_dispatch.flows.runtime.prepared_job import JobSpec
from prefect_dispatch.integrators.synthesize.synthesize import Synthesize
from prefect_dispatch.models.base import Strict, Tabs
from prefect_dispatch.models.brief import Brief, Name, Text
from prefect_dispatch.models.checks import SOURCE_EXAMPLES, SourceKind, Sources
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import OptionalPilot  # noqa: TC001 -- the fields of a form
from prefect_dispatch.processes.state_folder import Variable
from prefect_dispatch.sources.inline import Listed
from prefect_dispatch.sources.pasted import PastedItems
from prefect_dispatch.sources.tabular import Csv, JsonLines, Parquet
from prefect_dispatch.tasks.work_item import Refresh  # noqa: TC001 -- Prefect reads the signature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.llm.llm import LLM
    from prefect_dispatch.flows.runtime.form_flow import form_flow
    from prefect_dispatch.sources import Source
    from prefect_dispatch.workspaces.workspace import Workspace

DISAGREEMENT = "Where the agents disagree"
SECTIONS = ("Finding", DISAGREEMENT)
FINDING = "Make one finding of what was found on all topics, for somebody who has read none of it."
_RULE = (
    f"Under '{DISAGREEMENT}' name each point on which answers contradict each other, with every side and the numbers "
    "of its answers. If none do, say so, and cite the answers that you compared."
)
_ANSWER = {
    "type": "object",
    "properties": {"finding": {"type": "string"}, "sources": {"type": "array", "items": {"type": "string"}}},
    "required": ["finding", "sources"],
    "additionalProperties": False,
}
_LONGEST_KEY = 200


class AgentResearcher(Strict):
    """Coding agent that researches topics: without a repository, with the web where it has tools for it.

    Example:
        >>> AgentResearcher(agent="codex", model="gpt-5").time_limit_s
        1800.0
    """

    model_config = ConfigDict(title="Coding agent")

    kind: Literal["coding"] = "coding"
    """Kind of the executor."""
    agent: AnyAgent = "claude"
    """The agent: a built-in one by its name, or any other one, described by data."""
    model: Line = ""
    """The model that it uses, such as claude-sonnet-4-5. Empty: that under Model."""
    pass_env: tuple[Variable, ...] = ()
    """Variables that it gets as they are set on the worker. Empty: without credentials, that of its provider's key."""
    max_usd: Dollars | None = Field(default=None, title="Most per run in dollars")
    """US dollars that one run may cost, for agents that have such a limit; a budget needs it."""
    time_limit_s: Seconds = Field(default=1800.0, title="Time limit in seconds")
    """Seconds after which it is ended."""
    answers: Line = ""
    """A file with answers to its questions, by `brief/item`. Empty: it may ask no question."""
    params: Params = Field(default={}, json_schema_extra={"default": "{}"})
    """Further options of the agent, under the agent's own names."""


_Researcher = Annotated[
    Annotated[Literal["model", "model with web search"], Tag("model"), Field(title="Model")]
    | Annotated[AgentResearcher, Tag("agent")],
    Discriminator(lambda researcher: "model" if isinstance(researcher, str) else "agent"),
    Tabs(),
]


ResearcherField = Annotated[
    Literal["model", "model with web search"] | AgentResearcher | Mapping[str, Any],
    GetPydanticSchema(lambda _, handler: handler(_Researcher)),
]
"""The model, without or with its provider's web search, or a coding agent."""


Topics = Annotated[Texts, Field(title="List")] | PastedItems
"""Topics one by one, or pasted."""


def _research_topics(  # noqa: PLR0913, PLR0917 -- the fields of a form
    question: Text,
    topics: Topics = (),
    topics_file: Line = "",
    credentials: CredentialsField = None,
    model: Line = "",
    sources: Annotated[int, Field(ge=0, le=20)] = 2,
    source_forms: Forms = ("url", "doi", "isbn", "title"),
    answers: Annotated[int, Field(ge=1, le=20)] = 1,
    models: Texts = (),
    finding: Text = FINDING,
    writer_model: Line = "",
    judge_model: Line = "",
    scope: Line = "One topic.",
    constraints: Texts = (),
    folder: str = ".",
    limit: First | None = None,  # noqa: ARG001 -- the flow reads it
    profile: ProfileField = None,
    concurrency: Concurrency = 8,
    budget_usd: Budget | None = None,
    min_success: Share = 0.0,
    name: Name = "research",
    out: Line = "",  # noqa: ARG001 -- the flow reads it
    refresh: Refresh = False,  # noqa: ARG001, FBT002 -- the flow reads it
    max_tokens: MaxTokens | None = None,
    researcher: ResearcherField = "model",  # calls may pass arguments by position, so new fields come last
    pilot: OptionalPilot = None,
    budget: SharedBudget = "",
) -> JobSpec:
    """Research topics apart from each other, with sources, and make one finding that cites every answer.

    Fill in `question` and `topics`, and `credentials` unless the server of this deployment has a model of its own.
    The finding has a section on where the agents disagree. Only the form of a source is checked; whether it exists and
    supports the statement that cites it is for you to look up.

    Args:
        question: What to find out on each topic; `{topic}` stands for it.
        topics: What is researched, one entry each, or pasted. Or name a file of them below.
        topics_file: In place of the list: a file in the folder, either a text with one on each line, or a CSV, JSON
            Lines or Parquet table with the column `topic`; the question may use its other columns, too.
        credentials: The key of the model's provider. None: it comes from the environment of the worker.
        model: The model to ask, such as openai/gpt-5-mini. Empty: the default of the credentials, or of the worker.
        sources: How many sources each answer must name at least; with fewer it is sent back. 0: none is asked for.
        source_forms: What counts as a source.
        answers: How many answers each topic gets from each model, to see where they disagree.
        models: Several models that are asked apart from each other. Empty: only that under Model.
        finding: What to make of all answers, and for whom.
        writer_model: The model that writes the finding. Empty: that under Model.
        judge_model: A model that compares each statement of the finding with the answers that it cites. Empty: none.
        scope: What each agent is to look at, and what not; `{topic}` may stand here, too.
        constraints: Rules that each answer must keep, one each.
        folder: The folder that relative paths start from, where the flow runs.
        limit: Take only the first so many topics, to try it out. Empty: all of them.
        profile: Saved settings for runs like this; fields that are changed here override them.
        concurrency: How many calls are under way at once.
        budget_usd: What the run may spend in US dollars, the finding included. Empty: no cap.
        min_success: The share of topics that must have an answer, such as 0.9; below it the run fails.
        name: What the report is called: small letters, digits and hyphens. Runs of one name are compared.
        out: A folder or a URL for the report as files. Empty: only Prefect keeps it.
        refresh: Ask again even where an answer is stored: everything, or some topics by name or glob.
        max_tokens: The tokens of the longest answer, the finding included, such as 2000. A budget needs it, as it
            reserves the longest answer before each call. Empty: what the model allows.
        researcher: The model by what it knows, or with its provider's web search, or a coding agent. Where it searches
            the web, each source must be a page that the search returned or the agent opened; a search costs extra.
        pilot: Topics that are answered first, before the rest is paid for. What the whole would cost is shown, and you
            decide.
        budget: The name of a budget that runs share: a block of the type Dispatch Budget. What is left of it in the
            period bounds this run, too. Empty: none.
    """
    _require_unique(models)
    # The parameters are validated by Prefect or by the model of a job file, so they have the types of the validators.
    agent_researcher = researcher if isinstance(researcher, AgentResearcher) else None
    agent: CodingAgent | None = None
    if agent_researcher:
        if models:
            raise JobError("models: a coding agent uses one model; name it in `researcher`, and leave `models` out.")
        agent = create_agent("researcher", agent_researcher, model, str(credentials) if credentials else None)
        own_model = not isinstance(agent.agent, Generic) or agent.agent.names_model
        model = model or (agent.model_id if own_model else "")
    searches = agent.web_search if agent else researcher != "model"
    brief = Brief(
        name=name,
        scope=scope,
        instructions=f"{question}\n\n{_sources_instruction(sources, source_forms)}" if sources else question,
        constraints=tuple(constraints),
        output=_ANSWER if sources else "text",
        checks=(Sources(at_least=sources, forms=tuple(source_forms), from_search=searches),) if sources else (),
        samples=answers,
    )
    briefs = [brief.model_copy(update={"name": f"{name}-by-{at}", "model": who}) for at, who in enumerate(models, 1)]
    executor = executor_from_fields(credentials, model or next(iter(models), ""), profile, max_tokens)
    writer = executor if searches else None  # without a search: the finding rests on the answers
    if agent and not writer_model:
        writer = executor or default_executor()
    integrator = Synthesize(
        instructions=finding,
        constraints=(_RULE,),
        sections=SECTIONS,
        executor=second_executor(executor, writer_model, "writer_model") or writer,
        judge=second_executor(executor, judge_model, "judge_model"),
    )
    limits = limits_from_fields(
        profile, budget, concurrency=concurrency, budget_usd=budget_usd, min_success=min_success, pilot=pilot
    )
    source = _source(topics, topics_file, Path(folder))
    if agent and agent_researcher:
        limits = limits.model_copy(update={"timeout_s": agent_researcher.time_limit_s})
        return JobSpec([brief], source, agent, integrator, limits)
    if searches:
        executor = _with_web_search(executor)
    return JobSpec(briefs or [brief], source, executor, integrator, limits)


LAYOUT = FormLayout(
    labels={
        "question": "Question",
        "topics": "Topics",
        "topics_file": "Topics file",
        "credentials": "LLM credentials",
        "model": "Model",
        "folder": "Folder",
        "name": "Name",
        "researcher": "Researcher",
    },
    groups={
        "limits": limits_group("topics"),
        "report": FormGroup(
            "Report",
            "What the finding is to be, the models that write and judge it, and a folder for files.",
            {
                "finding": "Finding",
                "writer_model": "Writer model",
                "judge_model": "Judge model",
                "out": "Report folder",
            },
        ),
        "advanced": FormGroup(
            "Advanced",
            "Several answers or models for each topic, kinds of sources, more instructions, and stored answers.",
            {
                "answers": "Answers per topic",
                "models": "Models",
                "sources": "Sources per answer",
                "source_forms": "Source forms",
                "scope": "Scope",
                "constraints": "Constraints",
                "profile": "Dispatch profile",
                "refresh": "Ask again",
            },
        ),
    },
    identity=("question", "topics_file"),
)


FORM = Form(_research_topics, LAYOUT)

if TYPE_CHECKING:
    research_topics = form_flow(FORM)
else:
    __getattr__ = make_on_use(FORM)


def create_agent(
    field: str, researcher: AgentResearcher, model: str, credentials: str | None, workspace: Workspace | None = None
) -> CodingAgent:
    """Return the executor for a coding agent that only reads: a repository, or else the web if it has tools for it.

    Args:
        field: The field of the form, for messages.
        researcher: What is set there.
        model: The model of the form, for an agent that names none.
        credentials: The name of a block with the key. None: the agent gets the variable with the key of its provider.
        workspace: The repository. None: it works without one.

    Raises:
        JobError: If no model is named, or one of another provider.
    """
    provider = "" if isinstance(researcher.agent, Generic) else adapter_of(researcher.agent).provider
    if not researcher.model and provider and "/" in model and not model.startswith(f"{provider}/"):
        raise JobError(
            f"{field}: {researcher.agent!r} uses models of {provider}, and `model` is {model!r}; name the agent's "
            f"own model under `model` of the {field}."
        )
    agent = CodingAgent(
        agent=researcher.agent,
        model=researcher.model or model or resolve_agent_model(researcher.agent, credentials),
        workspace=workspace,
        access="read",
        answers=researcher.answers or None,
        credentials=credentials,
        pass_env=researcher.pass_env,
        max_usd=researcher.max_usd,
        params=researcher.params,
    )
    key = [] if credentials or agent.pass_env else [name for name in agent.key_names if name in os.environ][:1]
    searches = workspace is None and agent.adapter.searches_web
    return agent.model_copy(update={"web_search": searches, "pass_env": (*agent.pass_env, *key)})


def _with_web_search(executor: LLM | None) -> LLM:
    """Return an executor whose model searches the web.

    Raises:
        JobError: If no model is named.
    """
    if executor is None:
        raise JobError("researcher: name a model that searches the web under `model`, such as openai/gpt-5-search-api.")
    return executor.model_copy(update={"web_search": True})


def _require_unique(models: Sequence[str]) -> None:
    """Check that no model is named twice.

    Raises:
        JobError: If one is: one answer would count as the answers of two agents.
    """
    if twice := next((name for name in models if models.count(name) > 1), None):
        raise JobError(
            f"models: {twice!r} stands there {models.count(twice)} times, and one answer of it would count as that "
            "many; name it once, and set `answers` for several answers of each model."
        )


def _sources_instruction(sources: int, forms: Sequence[SourceKind]) -> str:
    """Return the part of the instructions about sources."""
    offer = "; or ".join(SOURCE_EXAMPLES[form] for form in forms)
    return (
        f"Write what you found as 'finding', and name under 'sources' at least {sources} different sources that it "
        f"rests on, each as {offer}. Name no source that you do not know to exist."
    )


def _source(topics: Sequence[str] | PastedItems, file: str, folder: Path) -> Source:
    """Return the source of the topics.

    Raises:
        JobError: If there are none, or both a list and a file.
    """
    if bool(topics) == bool(file):
        fix = "give them in one place: in the list, or in the file" if file else "name at least one, or a `topics_file`"
        raise JobError(f"topics: {fix}.")
    if isinstance(topics, PastedItems):
        return Listed(items=tuple(map(_pasted_item, topics.to_items("topics"))))
    if not file:
        return Listed(items=tuple(_item(topic) for topic in topics))
    match Path(file).suffix.lower():
        case ".csv":
            return Csv(csv=file, key="topic")
        case ".jsonl":
            return JsonLines(jsonl=file, key="topic")
        case ".parquet":
            return Parquet(parquet=file, key="topic")
        case _:
            return Listed(items=tuple(_item(line) for line in _lines(folder / file, file)))


def _item(topic: str) -> Item:
    return Item(key=" ".join(topic.split())[:_LONGEST_KEY], value={"topic": topic})


def _pasted_item(item: Item) -> Item:
    """Return a pasted item as a topic: a line, or a row, whose key is the topic unless it has that column.

    Example:
        >>> _pasted_item(Item(key="HTTP", value="HTTP")).value
        {'topic': 'HTTP'}
    """
    if isinstance(item.value, str):
        return _item(item.value)
    return item.model_copy(update={"value": {"topic": item.key, **cast("dict[str, JsonValue]", item.value)}})


def _lines(path: Path, name: str) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise JobError(f"topics_file: {name!r} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise JobError(f"topics_file: {name!r} is not UTF-8 text; save it as such, or as a table.") from None
    if found := [line.strip() for line in lines if line.strip()]:
        return found
    raise JobError(f"topics_file: there is nothing in {name!r}; write one topic on each line.")
