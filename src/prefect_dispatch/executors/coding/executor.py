"""A coding agent as an executor: each ask in a workspace of its own, done only if all speaks for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import Ask, Ceiling, Reply
from prefect_dispatch.executors.coding.access import key_names as names_of_keys
from prefect_dispatch.executors.coding.access import require_access
from prefect_dispatch.executors.coding.agents import Known, adapter_of, found
from prefect_dispatch.executors.coding.answering import carried_out
from prefect_dispatch.executors.coding.generic import Generic
from prefect_dispatch.executors.coding.prompt import PROMPT
from prefect_dispatch.executors.command_fit import require_plain
from prefect_dispatch.executors.keys import Credentials
from prefect_dispatch.executors.params import Params
from prefect_dispatch.executors.provider import provider
from prefect_dispatch.fingerprint import digest
from prefect_dispatch.form import Tabs
from prefect_dispatch.models import Brief, Item, Text
from prefect_dispatch.processes.environment import Variable, require_set
from prefect_dispatch.processes.guard import guard_here
from prefect_dispatch.processes.reaper import reap_now_and_then
from prefect_dispatch.strict import Strict
from prefect_dispatch.workspaces.rooms import finished
from prefect_dispatch.workspaces.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.coding.adapter import Adapter

AnyAgent = Annotated[
    Annotated[Known, Tag("known"), Field(title="Known")] | Annotated[Generic, Tag("described")],
    Discriminator(lambda agent: "known" if isinstance(agent, str) else "described"),
    Tabs(),
]
"""A coding agent: one that is known by its name, or any other, described by data."""
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class CodingAgent(Strict):
    """Has a coding agent work in a repository: each ask in a checkout of its own, its changes being the answer.

    Example:
        >>> CodingAgent(agent="claude", model="claude-sonnet-4-5", pass_env=["ANTHROPIC_API_KEY"], max_usd=2).name
        'claude with anthropic/claude-sonnet-4-5'
    """

    abrupt: ClassVar[bool] = True

    kind: Literal["coding"] = "coding"
    """Tells the executors apart."""
    agent: AnyAgent = "claude"
    """Who works: an agent that is known by its name, or any other one, described by data."""
    model: Text
    """The model that it asks, such as `claude-sonnet-4-5`; for `opencode` and `mini` as `provider/model`."""
    workspace: Workspace = Workspace()
    """The repository, and the commit to begin from."""
    program: Text | None = None
    """The agent's program: a path from the job's folder, or a name to look up in PATH. None: its usual name."""
    api_base: str = Field(default="", title="API base")
    """The address of a provider of one's own. Empty: the agent's own provider."""
    credentials: Credentials | None = None
    """The name of an LLMCredentials block with the key. None: the key is in a variable that `pass_env` names."""
    pass_env: tuple[Variable, ...] = ()
    """Variables that are passed on as they are set here; what is run in a workspace gets those without the key."""
    max_usd: float | None = Field(default=None, gt=0, le=100_000, allow_inf_nan=False, title="Most per run in dollars")
    """US dollars that one run of it may take: it is told, if it can be, and so much is reserved of the budget."""
    max_turns: int | None = Field(default=None, ge=1, le=100_000, title="Most turns")
    """How often it may ask its model in one run; for agents that can be told."""
    idle_s: Annotated[float, Field(title="Idle limit", gt=0, le=86_400)] | None = Field(
        default=900.0, title="Idle limit in seconds"
    )
    """Seconds without any output after which a run is ended. None: only the time limit ends it."""
    params: Params = Field(default={}, json_schema_extra={"default": "{}"})
    """What the agent is told beside the brief, each in its own words: see the page on coding agents."""

    @field_validator("api_base")
    @classmethod
    def _holds_no_secret(cls, api_base: str) -> str:
        if "@" in api_base or "?" in api_base:
            msg = "must be a plain address; keys and passwords live in the environment"
            raise ValueError(msg)
        return api_base.rstrip("/")

    @model_validator(mode="after")
    def _fits(self) -> CodingAgent:
        adapter = self.adapter
        try:
            adapter.own.model_validate(self.params)
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(("params", *map(str, wrong["loc"])))
            msg = f"{place}: for {adapter.name!r}: {wrong['msg'].removeprefix('Value error, ')}"
            raise ValueError(msg) from None
        if self.agent in ("opencode", "mini") and "/" not in self.model:
            msg = f"model: {self.agent} takes a model as provider/model, and not {self.model!r}"
            raise ValueError(msg)
        return self

    @property
    def fingerprint(self) -> str:
        """Everything that can change an answer, the commit apart; no key, no limit and no version of the agent."""
        described = self.agent.model_dump(mode="json") if isinstance(self.agent, Generic) else self.agent
        parts = {"prompt": PROMPT, "agent": described, "model": self.asked, "api_base": self.api_base}
        return digest({**parts, "params": self.params})

    def situation(self, brief: Brief, item: Item) -> JsonValue:  # noqa: ARG002 -- its answer depends on the whole commit
        """Return what it starts from: the commit, and how a workspace is set up.

        Raises:
            JobError: If it isn't placed, and the repository or the commit isn't there.
        """
        placed = _COMMIT.fullmatch(self.workspace.base)
        return (self.workspace if placed else self.workspace.placed(Path())).identity

    @property
    def name(self) -> str:
        """Whose pace its runs share: the agent with its model, and the address where one is set."""
        at = f" at {self.api_base}" if self.api_base else ""
        return f"{self.adapter.name} with {self.asked}{at}"

    def ceiling(self, ask: Ask) -> Ceiling:  # noqa: ARG002 -- of a run only the cost is bounded
        """Return the most that a run can take: nobody knows how many tokens, and US dollars if that is said."""
        return Ceiling(prompt_tokens=0, cost_usd=self.max_usd, instead="set executor.max_usd")

    def placed(self, folder: Path) -> CodingAgent:
        """Return this executor with its program, repository, commit and block found, and its program's version known.

        Raises:
            JobError: If one of them isn't there, or won't do.
        """
        require_set(self.pass_env)
        names, block = self.key_names, self.credentials
        api_base = self.api_base
        if block is not None or not isinstance(self.agent, Generic) or self.agent.key is not None:
            api_base = require_access(self.asked, block, self.pass_env, api_base, names)
        program = found(self.adapter, self.executable, folder)
        workspace = self.workspace.placed(folder)
        return self.model_copy(update={"api_base": api_base.rstrip("/"), "program": program, "workspace": workspace})

    def require_fit(self, briefs: Sequence[Brief]) -> None:
        """Check that it can answer some briefs.

        Raises:
            JobError: If one asks for what it can't do.
        """
        for brief in briefs:
            if brief.command and brief.command.report:
                raise JobError(
                    f"Brief {brief.name!r}: command.report is for a Shell; what must pass after a coding agent is told "
                    "by its exit code alone."
                )
            if brief.command:
                require_plain(brief.name, brief.command)
            if brief.split:
                raise JobError(f"Brief {brief.name!r}: 'split' is for language models; leave it out.")

    async def warm_up(self) -> None:
        """See to it that nothing of a program can be left, clear away what was, and load the table of prices.

        Raises:
            JobError: If the state folder can't be used.
            TerminalError: If the guard doesn't start.
        """
        await finished(_warm_up)

    async def answer(self, ask: Ask) -> Reply:
        """Have it work once, in a fresh workspace; where it worked before, with its changes of then in place.

        Raises:
            ExecutorError: If the work isn't done.
        """
        return await carried_out(self, ask)

    @property
    def adapter(self) -> Adapter:
        """How it is started, and what its output means."""
        return adapter_of(self.agent)

    @property
    def asked(self) -> str:
        """The model, as litellm names it."""
        return self.model if "/" in self.model else "/".join(filter(None, (self.adapter.provider, self.model)))

    @property
    def executable(self) -> str:
        """Its program."""
        usual = self.agent.argv[0] if isinstance(self.agent, Generic) else self.agent
        return self.program or usual

    @property
    def key_names(self) -> tuple[str, ...]:
        """The variables that may hold its provider's key, the likeliest first."""
        own = (self.agent.key,) if isinstance(self.agent, Generic) and self.agent.key else ()
        return (*own, *names_of_keys(self.asked))


def _warm_up() -> None:
    guard_here()
    reap_now_and_then()
    provider()
