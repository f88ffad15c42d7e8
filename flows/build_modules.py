"""The flow that has coding agents build modules apart from each other, and merges them at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import Field, GetPydanticSchema

from prefect_dispatch.command import Command
from prefect_dispatch.credentials import fresh_credentials
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.coding.agents import Known
from prefect_dispatch.executors.coding.executor import AnyAgent, CodingAgent
from prefect_dispatch.executors.coding.generic import Generic
from prefect_dispatch.executors.params import Params
from prefect_dispatch.flows.carry_out import Parts
from prefect_dispatch.flows.fields import (  # noqa: TC001 -- Prefect reads the signature
    Budget,
    Concurrency,
    CredentialsField,
    Line,
    Share,
    Texts,
)
from prefect_dispatch.flows.form_flow import form_flow
from prefect_dispatch.flows.modules import Module, Modules, Shell, require_apart
from prefect_dispatch.integrators.branches.folding import Rule  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.integrators.merge_branches import MergeBranches
from prefect_dispatch.limits import Limits
from prefect_dispatch.models import Item, Name
from prefect_dispatch.sources import Listed
from prefect_dispatch.tasks.refresh import Refresh  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.workspaces.workspace import Workspace

ABOUT = "A module of the repository in the working directory."
"""What all agents are told of the whole where nobody says anything."""
_SUCH_AS = {"claude": "claude-sonnet-4-5", "codex": "gpt-5-codex"}
AgentField = Annotated[Known | Generic | Mapping[str, Any], GetPydanticSchema(lambda _, make: make(AnyAgent))]
"""A coding agent: one that is known by its name, or any other, described by data."""
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
    setup: Shell = "",
    accept: Shell = "",
    branch: Line = "",
    force: bool = False,  # noqa: FBT001, FBT002 -- the field of a form
    on_conflict: Rule = "priority",
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
    folder: str = ".",  # noqa: ARG001 -- the flow heeds it
    name: Name = "modules",
    out: Line = "",  # noqa: ARG001 -- the flow heeds it
    refresh: Refresh = False,  # noqa: ARG001, FBT002 -- the flow heeds it
) -> Parts:
    """Have coding agents build modules of a repository, each in a checkout of its own, and merge them at the end.

    Fill in `modules` and, unless the worker's environment has the key, `credentials`. No agent sees another's work;
    your checkout, your branches and your index are never touched. What was merged is left as a patch, or published on
    a branch of its own. An answer is stored: run again on the same commit, only what has failed is asked again.

    Args:
        modules: What is built: for each module what it is to do, and the files that are its own.
        repo: A folder in the git repository, from the folder of the job.
        base: The commit to begin from: a branch, a tag, or whatever else git takes for one.
        agent: Who works: an agent that is known by its name, or any other one, described by data.
        credentials: The key of the model's provider. None: it is in a variable that `pass_env` names.
        model: The model that the agent asks, such as claude-sonnet-4-5. Empty: the default of the credentials.
        api_base: The address of a provider or gateway of your own, which each agent is told in its own way; such as
            http://127.0.0.1:8000/v1, for claude without /v1. Empty: the one of the credentials, or the provider's.
        about: What is built of all modules together, and what holds for all of them. Each agent is told.
        setup: A line for /bin/sh that is run first in each checkout, such as one that installs. Empty: none.
        accept: A line for /bin/sh that must pass on what is merged, such as all tests. Empty: none.
        branch: The branch that what was merged is published on; one that is checked out nowhere. Empty: none.
        force: Whether the branch may lose commits that the merge lacks, such as those of an earlier run. Without it, it
            is only moved forward.
        on_conflict: Where changes contradict each other, the first one counts, the later one is left out, the run
            fails, or an agent brings both together.
        check: When `accept` is run on what is merged: after each module, or at the end of all.
        max_usd: What one run of an agent may cost, for agents that can be told. None: it has no limit.
        budget_usd: What all of it may cost; it needs `max_usd`. None: no cap.
        concurrency: How many agents are at work at once.
        time_limit_s: Seconds after which an agent is ended, set-up and acceptance included.
        idle_limit_s: Seconds without any output after which an agent is ended. None: only the time limit ends it.
        max_turns: How often an agent may ask its model in one run, for agents that can be told. None: no limit.
        retries: How often an agent is started anew after an error that may pass, such as a cut connection.
        reasks: How often work that isn't accepted is sent back.
        min_success: The share of modules that must be built, such as 1.0; below it the run fails.
        params: What the agent is told beside that, each in its own words, such as the tools that it may use.
        pass_env: Variables of the worker that agents and commands get to see; those with a key only agents.
        keep: Whether the checkout of an agent that failed stays to be looked at.
        folder: The folder that relative paths are looked up in, where the flow runs.
        name: What the modules are called together in the report: small letters, digits and hyphens.
        out: A folder for the report as files, `merged.patch` and `review.md` among them. Empty: only Prefect keeps it.
        refresh: Build again what is stored: everything, or some modules by name.
    """
    every = cast("tuple[Module, ...]", modules)
    require_apart(every)
    _require_told(cast("Known | Generic", agent), api_base)
    workspace = Workspace(repo=repo or ".", base=base or "HEAD", setup=_line(setup), keep=keep)
    who = cast("Known | Generic", agent)
    key = str(credentials) if credentials else None
    executor = CodingAgent(
        agent=who,
        model=model or _model_of(who, key),
        workspace=workspace,
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
        accept=_line(accept),
        check=check,
        branch=branch,
        force=force,
        pass_env=tuple(each for each in pass_env if each not in executor.key_names),
    )
    limits = Limits(
        concurrency=concurrency,
        timeout_s=time_limit_s,
        retries=retries,
        reasks=reasks,
        budget_usd=budget_usd,
        min_success=min_success,
    )
    items = Listed(items=(Item(key=name, value=about or ABOUT),))
    return Parts([each.brief for each in every], items, executor, integrator, limits)


build_modules = form_flow(_build_modules, "build-modules")


def _line(text: str) -> Command | None:
    return Command(run=text) if text else None


def _require_told(agent: Known | Generic, api_base: str) -> None:
    """Check that an agent can be told the address of its provider.

    Raises:
        JobError: If it is described, and its description has no place for one.
    """
    if api_base and isinstance(agent, Generic) and not agent.names_address:
        raise JobError(
            f"api_base: the agent {agent.name!r} is told no address; write {{api_base}} where it takes one in its argv "
            "or env, or leave api_base out."
        )


def _model_of(agent: Known | Generic, credentials: str | None) -> str:
    """Return the model that an agent asks where the form names none.

    Raises:
        JobError: If nobody names one, and the agent has to be told.
    """
    if credentials and (found := fresh_credentials(credentials).model):
        return found
    if isinstance(agent, Generic):
        if not agent.names_model:
            return agent.name
        raise JobError(f"model: the agent {agent.name!r} is told a model; name one.")
    such_as = _SUCH_AS.get(agent, "anthropic/claude-sonnet-4-5")
    raise JobError(f"model: name the model that {agent} asks, such as {such_as}, or credentials with a default model.")
