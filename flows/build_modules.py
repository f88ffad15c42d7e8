"""Flow that lets coding agents build modules in separate checkouts, and merges them at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field, GetPydanticSchema, StringConstraints

from prefect_dispatch.errors import BriefError, JobError
from prefect_dispatch.executors.block_references import load_credentials
from prefect_dispatch.executors.coding.coding_agent import AgentName, AnyAgent, CodingAgent
from prefect_dispatch.executors.coding.custom import Generic
from prefect_dispatch.executors.llm.messages import Params
from prefect_dispatch.flows.runtime.flow_loader import make_on_use
from prefect_dispatch.flows.runtime.form import Form
from prefect_dispatch.flows.runtime.form_fields import (
    Budget,
    Concurrency,
    CredentialsField,
    Line,
    Share,
    Texts,
    require_distinct,
)
from prefect_dispatch.flows.runtime.form_layout import FormGroup, FormLayout
from prefect_dispatch.flows.runtime.prepared_job import JobSpec
from prefect_dispatch.integrators.merge_branches.apply import ConflictRule  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches
from prefect_dispatch.integrators.merge_branches.pull_request import Publish
from prefect_dispatch.models.base import NON_EMPTY, Strict
from prefect_dispatch.models.brief import Brief, Command, Name, Text, find_needed
from prefect_dispatch.models.globs import Glob, find_overlaps
from prefect_dispatch.models.item import Item, escape_template
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.sources.inline import Listed
from prefect_dispatch.tasks.work_item import Refresh  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.workspaces.workspace import Workspace

if TYPE_CHECKING:
    from prefect_dispatch.flows.runtime.form_flow import form_flow

_SCOPE = (
    "One module of a repository. Other modules of it are written by others at the same time, whom you can't ask, and "
    "whose files you don't see; the files below are yours alone."
)


_BUILT_ON = "Finished already, and in the working directory, are the modules {}: build on them."


_INTERFACE = "Others build on this interface at the same time; meet it to the letter:"


_MAX_PAIRS = 20
"""Maximum number of pairs that an error message names."""


def _validate_owned_glob(pattern: str) -> str:
    """Validate a glob of files that a module owns, and return it.

    Raises:
        ValueError: If it leads out of the repository, into git's own folder, or can't be parsed.
    """
    try:
        glob = Glob.parse(pattern)
    except BriefError as error:
        raise ValueError(str(error)) from None
    if glob.start:
        raise ValueError(f"{pattern!r} leads out of the repository; write it from its top, such as 'src/a.py'")
    if glob.text.split("/")[0].lower() == ".git":
        raise ValueError(f"{pattern!r} is git's own; name files of the repository")
    return pattern


_Glob = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f]+$"),
    AfterValidator(_validate_owned_glob),
]


ShellLine = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[^\x00]*$")]
"""A line for /bin/sh, or nothing."""


class Module(Strict):
    """Module to build: its goal, and the files that it owns.

    Example:
        >>> Module(name="lexer", goal="Split a text into tokens.", owns=["calc/lexer.py"]).priority
        0
    """

    name: Name
    """The name: small letters, digits and single hyphens."""
    goal: Text
    """What it is to do, as you would explain it to a colleague who sees only the repository."""
    owns: Annotated[tuple[_Glob, ...], NON_EMPTY]
    """Globs of the files that its agent may write, from the repository's top. Those of two modules may meet only if one
    needs the other, or with `overlap: merge`."""
    interface: str = ""
    """What others rely on: names, signatures, formats, errors. Empty: the goal says it."""
    accept: ShellLine = ""
    """A line for /bin/sh that must pass when its agent has ended; if it fails, that is sent back. Empty: none."""
    needs: tuple[Name, ...] = ()
    """Modules that must be finished first: its agent starts from their changes. Empty: from the commit of the job."""
    candidates: int = Field(default=1, ge=1, le=100)
    """How many agents build it independently, each in its own checkout; one that is accepted is merged."""
    priority: int = 0
    """A higher one is merged first, and wins where changes contradict each other."""

    @property
    def brief(self) -> Brief:
        """The brief for its agent; braces in the texts are literal."""
        interface = (escape_template(f"{_INTERFACE}\n{self.interface}"),) if self.interface else ()
        return Brief(
            name=self.name,
            scope=_SCOPE,
            instructions=escape_template(self.goal),
            constraints=(*interface, *([_BUILT_ON.format(", ".join(self.needs))] if self.needs else [])),
            needs=self.needs,
            samples=self.candidates,
            writes=tuple(map(escape_template, self.owns)),
            command=Command(run=self.accept) if self.accept else None,
            priority=self.priority,
        )


_Modules = Annotated[tuple[Module, ...], NON_EMPTY]


Modules = Annotated[
    Sequence[Module | Mapping[str, Any]],
    GetPydanticSchema(lambda _, make: make(_Modules)),
]
"""One or more modules."""


def require_disjoint(modules: Sequence[Module], overlap: Overlap = "refuse") -> None:
    """Check that the modules have distinct names, that their needs have an order, and who owns the files.

    Args:
        modules: The modules.
        overlap: Whether a file that two of them may own, and neither of which needs the other, is refused.

    Raises:
        JobError: If not; the message names the two, and the overlapping globs.
    """
    require_distinct("modules", [each.name for each in modules])
    needed = find_needed({each.name: each.needs for each in modules})
    pairs = _find_overlaps(modules, needed) if overlap == "refuse" else []
    if pairs:
        more = f"; and {len(pairs) - _MAX_PAIRS} more pairs" if len(pairs) > _MAX_PAIRS else ""
        listed = "; ".join(pairs[:_MAX_PAIRS])
        raise JobError(
            f"modules: {listed}{more}. Each file has one owner: narrow the globs, make one module of two, have one "
            "need the other ('needs'), or have the changes merged (overlap: merge); what several need is committed "
            "beforehand."
        )


def _find_overlaps(modules: Sequence[Module], needed: Mapping[str, frozenset[str]]) -> list[str]:
    """Return a sentence for each pair of modules that may own the same file, with the first overlapping globs.

    Args:
        modules: The modules.
        needed: All modules that each module needs; a pair with an order is left out.
    """
    # 1. The modules of each distinct glob.
    owners: dict[Glob, list[int]] = defaultdict(list)
    for number, module in enumerate(modules):
        for glob in dict.fromkeys(map(Glob.parse, module.owns)):
            owners[glob].append(number)
    # 2. Pairs of modules with an equal glob or with overlapping globs; of several globs the first counts.
    found: dict[tuple[int, int], str] = {}
    for one, other in (*((glob, glob) for glob in owners), *sorted(find_overlaps([*owners]))):
        on = " and ".join(repr(text) for text in dict.fromkeys((one.text, other.text)))
        for pair in product(owners[one], owners[other]):
            names = [modules[at].name for at in pair]
            if len({*pair}) > 1 and names[0] not in needed[names[1]] and names[1] not in needed[names[0]]:
                found.setdefault((min(pair), max(pair)), on)
    return [
        f"{modules[one].name!r} and {modules[other].name!r} both own {on}" for (one, other), on in sorted(found.items())
    ]


Overlap = Literal["refuse", "merge"]


ABOUT = "A module of the repository in the working directory."
"""The default description of the whole, which is part of every prompt."""
_EXAMPLE_MODELS = {"claude": "claude-sonnet-4-5", "codex": "gpt-5-codex"}


AgentField = Annotated[AgentName | Generic | Mapping[str, Any], GetPydanticSchema(lambda _, make: make(AnyAgent))]
"""A coding agent: a built-in one by its name, or any other one, described by data."""
PublishField = Annotated[Publish | Mapping[str, Any] | None, GetPydanticSchema(lambda _, make: make(Publish | None))]
"""What becomes of the branch outside of the repository."""
ParamsField = Annotated[Mapping[str, Any] | str, GetPydanticSchema(lambda _, make: make(Params))]
"""A JSON object, or its text, which is what a form can edit."""
Dollars = Annotated[float, Field(title="US dollars", gt=0, le=100_000, allow_inf_nan=False)]


Times = Annotated[int, Field(ge=0, le=10)]


Turns = Annotated[int, Field(title="Turns", ge=1, le=100_000)]


Seconds = Annotated[float, Field(title="Seconds", gt=0, le=86_400)]


def _build_modules(  # noqa: PLR0913, PLR0917 -- the fields of a form
    modules: Modules,
    repo: Line = ".",
    base: Line = "HEAD",
    agent: AgentField = "claude",
    credentials: CredentialsField = None,
    model: Line = "",
    api_base: Line = "",
    about: Line = "",
    setup: ShellLine = "",
    accept: ShellLine = "",
    branch: Line = "",
    force: bool = False,  # noqa: FBT001, FBT002 -- the field of a form
    publish: PublishField = None,
    on_conflict: ConflictRule = "priority",
    overlap: Overlap = "refuse",
    check: Literal["each", "end"] = "end",
    max_usd: Dollars | None = None,
    budget_usd: Budget | None = None,
    concurrency: Concurrency = 4,
    time_limit_s: Seconds = 1800.0,
    idle_limit_s: Seconds | None = 900.0,
    max_turns: Turns | None = None,
    retries: Times = 2,
    reasks: Times = 2,
    min_success: Share = 0.0,
    params: ParamsField = "{}",
    pass_env: Texts = (),
    keep: Literal["never", "failed"] = "never",
    folder: str = ".",  # noqa: ARG001 -- the flow reads it
    name: Name = "modules",
    out: Line = "",  # noqa: ARG001 -- the flow reads it
    refresh: Refresh = False,  # noqa: ARG001, FBT002 -- the flow reads it
    answers: Line = "",
) -> JobSpec:
    """Have coding agents build modules of a repository, each in a checkout of its own, and merge them at the end.

    Fill in `modules` and, unless the worker's environment has the key, `credentials`. No agent sees another's work;
    your checkout, your branches and your index are never touched. What was merged is left as a patch, or published on
    a branch of its own. An answer is stored: run again on the same commit, only what has failed is asked again.

    Args:
        modules: What is built: for each module what it is to do, and the files that are its own.
        repo: A folder in the git repository, from the folder of the job.
        base: The commit to begin from: a branch, a tag, or any other name of a commit that git knows.
        agent: The coding agent: a built-in one by its name, or any other one, described by data.
        credentials: The key of the model's provider. None: it is in a variable that `pass_env` names.
        model: The model that the agent asks, such as claude-sonnet-4-5. Empty: the default of the credentials.
        api_base: The address of a provider or gateway of your own, which each agent gets in its own way; such as
            http://127.0.0.1:8000/v1, for claude without /v1. Empty: the one of the credentials, or the provider's.
        about: What is built of all modules together, and what holds for all of them. Each agent sees it.
        setup: A line for /bin/sh that is run first in each checkout, such as one that installs. Empty: none.
        accept: A line for /bin/sh that must pass on what is merged, such as all tests. Empty: none.
        branch: The branch that what was merged is published on; one that is checked out nowhere. Empty: none.
        force: Whether the branch may lose commits that the merge lacks, such as those of an earlier run. Without it, it
            is only moved forward.
        publish: Whether the branch is pushed to a remote, and has a pull request there. None: it stays here.
        on_conflict: Where changes contradict each other, the first one counts, the later one is left out, the run
            fails, or an agent brings both together.
        overlap: Where the files of two modules meet, and neither needs the other: the job is refused, or both agents
            write them in their checkouts, and the changes are merged.
        check: When `accept` is run on what is merged: after each module, or at the end of all.
        max_usd: What one run of an agent may cost, for agents that have such an option. None: it has no limit.
        budget_usd: What all of it may cost; it needs `max_usd`. None: no cap.
        concurrency: How many agents run at once.
        time_limit_s: Seconds after which an agent is ended, set-up and acceptance included.
        idle_limit_s: Seconds without any output after which an agent is ended. None: only the time limit ends it.
        max_turns: How often an agent may ask its model in one run, for agents that have such an option. None: no limit.
        retries: How often an agent is started again after an error that may pass, such as a cut connection.
        reasks: How often work that isn't accepted is sent back.
        min_success: The share of modules that must be built, such as 1.0; below it the run fails.
        params: Further options of the agent, under the agent's own names, such as the tools that it may use.
        pass_env: Variables of the worker that agents and commands get to see; those with a key only agents.
        keep: Whether the checkout of an agent that failed stays to be looked at.
        folder: The folder that relative paths are looked up in, where the flow runs.
        name: What the modules are called together in the report: small letters, digits and hyphens.
        out: A folder or a URL for the report as files, `merged.patch` and `review.md` among them. Empty: only Prefect
            keeps it.
        refresh: Build again what is stored: everything, or some modules by name.
        answers: A file with answers to questions of the agents, by `module/name`. Empty: they may ask no question.
    """
    # The parameters are validated by Prefect or by the model of a job file, so they have the types of the validators.
    every = cast("tuple[Module, ...]", modules)
    coding_agent = cast("AgentName | Generic", agent)
    require_disjoint(every, overlap)
    if api_base and isinstance(coding_agent, Generic) and not coding_agent.names_address:
        raise JobError(
            f"api_base: the agent {coding_agent.name!r} takes no address; write {{api_base}} where it takes one in its "
            "argv or env, or leave `api_base` out."
        )
    workspace = Workspace(repo=repo or ".", base=base or "HEAD", setup=_to_command(setup), keep=keep)
    key = str(credentials) if credentials else None
    executor = CodingAgent(
        agent=coding_agent,
        model=model or resolve_agent_model(coding_agent, key),
        workspace=workspace,
        answers=answers or None,
        credentials=key,
        api_base=api_base,
        pass_env=tuple(pass_env),
        max_usd=max_usd,
        max_turns=max_turns,
        idle_s=idle_limit_s,
        params=cast("Any", params),
    )
    integrator = MergeBranches(
        workspace=workspace,
        on_conflict=on_conflict,
        accept=_to_command(accept),
        check=check,
        branch=branch,
        force=force,
        publish=cast("Publish | None", publish),
        pass_env=tuple(each for each in pass_env if each not in executor.key_names),
    )
    limits = Limits(
        concurrency=concurrency,
        timeout_s=time_limit_s,
        retries=retries,
        reasks=reasks,
        budget_usd=budget_usd,
        min_success=min_success,
        on_dependence=overlap,
    )
    items = Listed(items=(Item(key=name, value=about or ABOUT),))
    return JobSpec([each.brief for each in every], items, executor, integrator, limits)


LAYOUT = FormLayout(
    labels={
        "modules": "Modules",
        "repo": "Repository",
        "agent": "Coding agent",
        "credentials": "LLM credentials",
        "model": "Model",
        "about": "About all modules",
        "folder": "Folder",
        "name": "Name",
    },
    groups={
        "merging": FormGroup(
            "Merging",
            "What counts where changes contradict each other, and a command that must pass on what is merged.",
            {
                "on_conflict": "Conflicts",
                "accept": "Acceptance command",
                "check": "When to accept",
                "overlap": "Files of several modules",
            },
        ),
        "limits": FormGroup(
            "Limits",
            "Budgets, time limits, and how often an agent is started or asked again.",
            {
                "budget_usd": "Budget in US dollars",
                "max_usd": "US dollars per agent run",
                "concurrency": "Concurrency",
                "time_limit_s": "Time limit in seconds",
                "idle_limit_s": "Seconds without output",
                "max_turns": "Turns of an agent",
                "retries": "Retries",
                "reasks": "Re-asks",
                "min_success": "Share that must succeed",
            },
        ),
        "results": FormGroup(
            "Results",
            "A branch for what was merged, and a folder for files.",
            {"branch": "Branch", "force": "Replace the branch", "publish": "Publish", "out": "Report folder"},
        ),
        "advanced": FormGroup(
            "Advanced",
            "The commit to begin from, the checkout and the options of an agent, and stored answers.",
            {
                "base": "Commit",
                "setup": "Setup command",
                "api_base": "Address",
                "params": "Agent options",
                "pass_env": "Variables to pass on",
                "keep": "Keep checkouts",
                "answers": "Answers file",
                "refresh": "Build again",
            },
        ),
    },
)


FORM = Form(_build_modules, LAYOUT)

if TYPE_CHECKING:
    build_modules = form_flow(FORM)
else:
    __getattr__ = make_on_use(FORM)


def _to_command(text: str) -> Command | None:
    return Command(run=text) if text else None


def resolve_agent_model(agent: AgentName | Generic, credentials: str | None) -> str:
    """Return the model of an agent if the form names none.

    Raises:
        JobError: If neither the credentials nor the agent determine a model.
    """
    if credentials and (found := load_credentials(credentials).model):
        return found
    if isinstance(agent, Generic):
        if not agent.names_model:
            return agent.name
        raise JobError(f"model: the agent {agent.name!r} needs a model; name one.")
    such_as = _EXAMPLE_MODELS.get(agent, "anthropic/claude-sonnet-4-5")
    raise JobError(f"model: name the model that {agent} asks, such as {such_as}, or credentials with a default model.")
