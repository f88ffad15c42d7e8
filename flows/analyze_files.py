"""Flow that analyses many files in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import ConfigDict, Discriminator, Field, GetPydanticSchema, Tag

from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.research_topics import AgentResearcher, create_agent
from prefect_dispatch.flows.runtime.flow_loader import make_on_use
from prefect_dispatch.flows.runtime.form import Form
from prefect_dispatch.flows.runtime.form_fields import (
    RECORDS_FIELD,
    Budget,
    Concurrency,
    CredentialsField,
    Fields,
    Files,
    First,
    Line,
    MaxTokens,
    OutputField,
    Paths,
    ProfileField,
    RulesField,
    Share,
    SharedBudget,
    Texts,
    executor_from_fields,
    limits_from_fields,
    limits_group,
    schema_of_fields,
    with_cheap_model,
)
from prefect_dispatch.flows.runtime.form_layout import FormGroup, FormLayout
from prefect_dispatch.flows.runtime.prepared_job import JobSpec
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.merge_records.field_rules import Conflicts  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.integrators.merge_records.similarity import Matching
from prefect_dispatch.models.base import Tabs
from prefect_dispatch.models.brief import Brief, Name, Text
from prefect_dispatch.models.limits import OptionalPilot  # noqa: TC001 -- the fields of a form
from prefect_dispatch.sources.files import Glob
from prefect_dispatch.sources.inline import Listed
from prefect_dispatch.sources.pasted import PastedItems
from prefect_dispatch.tasks.work_item import Refresh  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.workspaces.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.flows.runtime.form_fields import AnswerField
    from prefect_dispatch.flows.runtime.form_flow import form_flow
    from prefect_dispatch.models.output_schema import Output
    from prefect_dispatch.sources import Source

SCOPE = "The text of one file."
AGENT_SCOPE = (
    "The file {key}, whose text is the item, and whatever of the repository in the working directory bears on it."
)
PASTED_AGENT_SCOPE = "One item, to be judged by the repository in the working directory."
DECISIONS = "decisions.yaml"
"""The default decisions file of a review."""


class AgentReader(AgentResearcher):
    """Coding agent that reads a repository to answer: a checkout for each file, in which it may change nothing.

    Example:
        >>> AgentReader(agent="codex", model="gpt-5-codex").repo
        '.'
    """

    model_config = ConfigDict(title="Coding agent")

    repo: Line = "."
    """A folder in the git repository that it reads, from the folder of the job."""
    base: Line = "HEAD"
    """The commit that it reads: a branch, a tag, or any other name of a commit that git knows."""


_Reader = Annotated[
    Annotated[Literal["model"], Tag("model"), Field(title="Model")] | Annotated[AgentReader, Tag("agent")],
    Discriminator(lambda reader: "model" if isinstance(reader, str) else "agent"),
    Tabs(),
]
ReaderField = Annotated[
    Literal["model"] | AgentReader | Mapping[str, Any], GetPydanticSchema(lambda _, handler: handler(_Reader))
]
"""The model, which sees the item alone, or a coding agent, which reads the repository, too."""


def _analyze_files(  # noqa: PLR0913, PLR0917 -- the fields of a form
    files: Files,
    instructions: Text,
    credentials: CredentialsField = None,
    model: Line = "",
    fields: Fields = (),
    several: bool = False,  # noqa: FBT001, FBT002 -- a box in a form
    output: OutputField = "text",
    merge: Literal["side by side", "merge records"] = "side by side",
    identity: Paths = (),
    rules: RulesField = (),
    conflicts: Conflicts = "resolve",
    match: bool = False,  # noqa: FBT001, FBT002 -- a box in a form
    scope: Line = SCOPE,
    constraints: Texts = (),
    folder: str = ".",  # noqa: ARG001 -- the flow reads it
    limit: First | None = None,  # noqa: ARG001 -- the flow reads it
    profile: ProfileField = None,
    concurrency: Concurrency = 8,
    budget_usd: Budget | None = None,
    min_success: Share = 0.0,
    name: Name = "analysis",
    out: Line = "",  # noqa: ARG001 -- the flow reads it
    review: bool = False,  # noqa: FBT001, FBT002 -- a box in a form
    decisions: Line = "",
    refresh: Refresh = False,  # noqa: ARG001, FBT002 -- the flow reads it
    max_tokens: MaxTokens | None = None,
    pilot: OptionalPilot = None,
    reader: ReaderField = "model",
    cheap_model: Line = "",
    budget: SharedBudget = "",  # last, as calls may pass arguments by position
) -> JobSpec:
    """Ask the same of each of many files, put the answers together, and account for every file.

    Fill in `files`, `instructions` and, unless the server of this deployment has a model of its own, `credentials`.
    Nothing is asked twice: another run asks only what is new, has changed or has failed.

    Args:
        files: A glob below the folder, such as `contracts/*.txt` or `**/*.md`; or several; or items that are pasted
            here.
        instructions: What to do with each file, as you would explain it to a colleague who sees only that file.
        credentials: The key of the model's provider. None: it comes from the environment of the worker.
        model: The model to ask, such as openai/gpt-5-mini. Empty: the default of the credentials, or of the worker.
        fields: What to note of each file, such as its title and year. None: the answer is a text.
        several: A file may hold several such records, such as the people that a contract names.
        output: For those who know JSON Schema: the form of an answer, in place of fields.
        merge: Put the answers side by side, or make one record of those that are about the same.
        identity: To merge records: the fields that identify a record, such as a name.
        rules: To merge records: how a field is decided on which they differ; by default the first file's counts.
        conflicts: To merge records: where they differ, the rule decides, or it decides and is flagged, or all is kept.
        match: To merge records: also those whose identity is only spelt differently.
        scope: What the model sees and is to judge by, and what it is not.
        constraints: Rules that each answer must keep, one each.
        folder: The folder that the files, and relative paths below, start from, where the flow runs.
        limit: Take only the first so many files, to try it out. Empty: all of them.
        profile: Saved settings for runs like this; fields that are changed here override them.
        concurrency: How many files are asked about at once.
        budget_usd: What the run may spend in US dollars. Empty: no cap.
        min_success: The share of files that must have an answer, such as 0.9; below it the run fails.
        name: What the report is called: small letters, digits and hyphens. Runs of one name are compared; runs with the
            name 'analysis' only if files and instructions are the same.
        out: A folder, or a URL such as s3://bucket/report, for the report as files, and a CSV for each table; or a file
            in it for the merged rows as well, such as report/answers.xlsx (or .csv, .parquet). Empty: only Prefect
            keeps it.
        review: Wait before publishing, and let people decide on doubtful records in Prefect's UI.
        decisions: The file with what people decided about records. Empty: `decisions.yaml` with a review, else none.
        refresh: Ask again even where an answer is stored: everything, or some files by name or glob.
        max_tokens: The tokens of the longest answer, such as 1000. A budget needs it, as it reserves the longest answer
            before each call. Empty: what the model allows.
        pilot: Files that are answered first, before the rest is paid for. What the whole would cost is shown, and you
            decide.
        reader: The model, which sees one file alone; or a coding agent, which reads the repository around it as well,
            for reviews, audits and questions, and fails if it changes a file.
        cheap_model: A cheaper model, such as openai/gpt-5-nano, that is asked twice first; the model above is asked
            where its two answers differ. It needs `fields`. Empty: none.
        budget: The name of a budget that runs share: a block of the type Dispatch Budget. What is left of it in the
            period bounds this run, too. Empty: none.
    """
    form = _output_form(cast("Any", fields), cast("Any", output), several=several)
    merge_fields = {"identity": identity, "rules": rules, "conflicts": conflicts != "resolve", "match": match}
    merge_fields |= {"review": review, "decisions": decisions}
    integrator: Collate | MergeRecords = Collate()
    if merge == "merge records":
        _require_records(form, identity)
        integrator = MergeRecords(
            identity=tuple(identity),
            records=RECORDS_FIELD if several else "",
            rules=cast("Any", rules),
            conflicts=conflicts,
            match=Matching() if match else None,
            aliases=decisions or (DECISIONS if review else None),
        )
    elif field := next((name for name, value in merge_fields.items() if value), None):
        raise JobError(f"{field}: it is for records that are merged; set `merge` to 'merge records', or leave it out.")
    if isinstance(files, PastedItems):
        source: Source = Listed(items=files.to_items("files"))
        default_scope = "One item." if reader == "model" else PASTED_AGENT_SCOPE
    else:
        source = Glob(glob=files if isinstance(files, str) else tuple(files))
        default_scope = SCOPE if reader == "model" else AGENT_SCOPE
    scope = default_scope if scope == SCOPE else scope
    brief = Brief(name=name, scope=scope, instructions=instructions, constraints=tuple(constraints), output=form)
    limits = limits_from_fields(
        profile, budget, concurrency=concurrency, budget_usd=budget_usd, min_success=min_success, pilot=pilot
    )
    if isinstance(reader, AgentReader):
        if cheap_model:
            raise JobError("cheap_model: it is asked before a model, not before a coding agent; leave one of them out.")
        if max_tokens is not None:
            raise JobError("max_tokens: it is for a model; what a coding agent may cost is `max_usd` of the reader.")
        workspace = Workspace(repo=reader.repo or ".", base=reader.base or "HEAD")
        agent = create_agent("reader", reader, model, str(credentials) if credentials else None, workspace)
        limits = limits.model_copy(update={"timeout_s": reader.time_limit_s})
        return JobSpec([brief], source, agent, integrator, limits, review)
    executor = with_cheap_model(executor_from_fields(credentials, model, profile, max_tokens), cheap_model, form)
    return JobSpec([brief], source, executor, integrator, limits, review)


LAYOUT = FormLayout(
    labels={
        "files": "Files",
        "instructions": "Instructions",
        "credentials": "LLM credentials",
        "model": "Model",
        "fields": "Fields",
        "several": "Several records per file",
        "folder": "Folder",
        "name": "Name",
    },
    groups={
        "merging": FormGroup(
            "Merging",
            "One record of those that are about the same, in place of the answers side by side.",
            {
                "merge": "Merge",
                "identity": "Identity",
                "rules": "Rules",
                "conflicts": "Conflicts",
                "match": "Match spellings",
            },
        ),
        "limits": limits_group("files"),
        "report": FormGroup(
            "Report",
            "Files of the report, and a review by people before it is published.",
            {"out": "Report folder", "review": "Review", "decisions": "Decisions file"},
        ),
        "advanced": FormGroup(
            "Advanced",
            "A cheap model first, a coding agent as reader, more instructions, a saved profile, and stored answers.",
            {
                "cheap_model": "Cheap model first",
                "reader": "Reader",
                "scope": "Scope",
                "constraints": "Constraints",
                "profile": "Dispatch profile",
                "refresh": "Ask again",
            },
        ),
    },
    hidden=("output",),  # a JSON Schema, for job files and Python
    identity=("instructions", "files"),
)


FORM = Form(_analyze_files, LAYOUT)

if TYPE_CHECKING:
    analyze_files = form_flow(FORM)
else:
    __getattr__ = make_on_use(FORM)


def _output_form(fields: Sequence[AnswerField], output: Output, *, several: bool) -> Output:
    if fields and output != "text":
        raise JobError("output: the form of an answer is given by `fields` or by `output`; leave one of them out.")
    if several and not fields:
        raise JobError("several: several records need `fields` that each of them has.")
    return schema_of_fields(fields, several=several) if fields else output


def _require_records(form: Output, identity: Sequence[str]) -> None:
    if form == "text":
        raise JobError("merge: texts can't be merged as records; say under `fields` what to note of each file.")
    if not identity:
        raise JobError(
            "identity: name the field (or fields) that two records of the same thing share, such as 'name'; "
            "'{key}' is the file."
        )
