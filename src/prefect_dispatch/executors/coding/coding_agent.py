"""Executor that runs a coding agent in a repository, each ask in a workspace of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from contextlib import ExitStack, asynccontextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from prefect_dispatch.errors import ExecutorError, JobError, TerminalError, first_problem
from prefect_dispatch.executors.base import Ask, BaseExecutor, CostBound, Reply
from prefect_dispatch.executors.block_references import (
    Credentials,
    credentials,
    load_credentials,
    name_block_in_failure,
    require_matching_provider,
)
from prefect_dispatch.executors.coding.adapter import AgentOutput, LaunchRequest
from prefect_dispatch.executors.coding.agent_program import find_program, find_program_in_image
from prefect_dispatch.executors.coding.claude import Claude
from prefect_dispatch.executors.coding.codex import Codex, CodexParams
from prefect_dispatch.executors.coding.container import (
    Container,
    ContainerRunner,
    find_address,
    remove_left_containers,
)
from prefect_dispatch.executors.coding.custom import Generic, GenericAdapter
from prefect_dispatch.executors.coding.open_source_agents import Mini, OpenCode, key_variable
from prefect_dispatch.executors.coding.prompt import PROMPT, build_prompt, build_resumed_prompt
from prefect_dispatch.executors.coding.questions import find_question, load_answers, open_question_error
from prefect_dispatch.executors.coding.session import (
    KEEP,
    Conversation,
    OutsideWriteDetector,
    find_problems,
    read_files,
    remove_files,
    require_unchanged,
    usage_of,
    write_files,
)
from prefect_dispatch.executors.coding.verdict import describe_refusals, find_error
from prefect_dispatch.executors.command_checks import require_valid_env
from prefect_dispatch.executors.llm.litellm_adapter import create_citations, load_litellm
from prefect_dispatch.executors.llm.messages import Params
from prefect_dispatch.models.base import Strict, Tabs, did_you_mean
from prefect_dispatch.models.brief import Brief, Text
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.models.output_schema import schema_of
from prefect_dispatch.processes.process_tree import get_watchdog
from prefect_dispatch.processes.program_logs import new_log
from prefect_dispatch.processes.runner import Program, run_here
from prefect_dispatch.processes.state_folder import (
    Variable,
    build_environment,
    private_folder,
    reap_periodically,
    remove_tree,
    require_passable,
)
from prefect_dispatch.security.redaction import register_secrets
from prefect_dispatch.serialization.json_text import digest
from prefect_dispatch.workspaces.workspace import Workspace, open_workspace, to_thread_shielded

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Ask
    from prefect_dispatch.executors.coding.adapter import Adapter, AgentReport
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.processes.runner import CompletedProgram, ProgramRunner
    from prefect_dispatch.processes.state_folder import Lease
    from prefect_dispatch.workspaces.workspace import OpenWorkspace


AgentName = Literal["claude", "codex", "opencode", "mini"]
BUILT_IN_ADAPTERS: Mapping[str, Adapter] = {each.name: each for each in (Claude(), Codex(), OpenCode(), Mini())}
"""Registry of the built-in adapters, by the names that jobs use."""
_MORE_KEYS = {"openai": ("CODEX_API_KEY",), "anthropic": ("ANTHROPIC_AUTH_TOKEN",), "gemini": ("GOOGLE_API_KEY",)}
"""Further variables that may hold the key of a provider."""
_log = logging.getLogger("prefect_dispatch")


def adapter_of(agent: str | Generic) -> Adapter:
    """Return the adapter for an agent: a built-in one by its name, or one for a description."""
    return GenericAdapter(agent) if isinstance(agent, Generic) else BUILT_IN_ADAPTERS[agent]


AnyAgent = Annotated[
    Annotated[AgentName, Tag("known"), Field(title="Known")] | Annotated[Generic, Tag("described")],
    Discriminator(lambda agent: "known" if isinstance(agent, str) else "described"),
    Tabs(),
]
"""A coding agent: a built-in one by its name, or any other one by a description."""
_NO_SANDBOX = "danger-full-access"
"""Setting of Codex without which it makes a sandbox of its own."""
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class CodingAgent(BaseExecutor, Strict):
    """Executor that runs a coding agent: each ask in an isolated checkout, whose change it returns, or without one.

    Example:
        >>> CodingAgent(agent="claude", model="claude-sonnet-4-5", pass_env=["ANTHROPIC_API_KEY"], max_usd=2).name
        'claude with anthropic/claude-sonnet-4-5'
    """

    cancel_immediately: ClassVar[bool] = True
    runs_programs: ClassVar[bool] = True

    kind: Literal["coding"] = "coding"
    """Discriminator of the kinds of executors."""
    agent: AnyAgent = "claude"
    """The agent: a built-in one by its name, or any other one, described by data."""
    model: Text
    """The model that it uses, such as `claude-sonnet-4-5`; for `opencode` and `mini` as `provider/model`."""
    workspace: Workspace | None = Workspace()
    """The repository, and the commit to begin from. None: an empty folder, for work that needs no repository."""
    access: Literal["write", "read"] = "write"
    """What it may do in its checkout. `read`: its answer is what it says, and a changed file fails the work."""
    container: Container | None = None
    """The container that it and all commands in its checkout run in. None: they run with this account."""
    answers: Annotated[Text, Field(title="File")] | Annotated[dict[str, str], Field(title="Answers")] | None = None
    """A file with answers to its questions, by `brief/item`, or these themselves. None: it may ask no question."""
    web_search: bool = Field(default=False, title="Web search")
    """Whether it may search the web and read pages; for `claude`, `codex` and `opencode`."""
    program: Text | None = None
    """The agent's program: a path from the job's folder, or a name to look up in PATH; with a container, a program of
    its image. None: its usual name."""
    api_base: str = Field(default="", title="API base")
    """The address of a provider of one's own. Empty: the agent's own provider."""
    credentials: Credentials | None = None
    """The name of an LLMCredentials block with the key. None: the key is in a variable that `pass_env` names."""
    pass_env: tuple[Variable, ...] = ()
    """Variables that are passed on as they are set here; commands run in a workspace get all but the key's."""
    max_usd: float | None = Field(default=None, gt=0, le=100_000, allow_inf_nan=False, title="Most per run in dollars")
    """US dollars that one run may cost: passed to an agent that has such a limit, and reserved of the budget."""
    max_turns: int | None = Field(default=None, ge=1, le=100_000, title="Most turns")
    """How often it may call its model in one run; for agents that have such a limit."""
    idle_s: Annotated[float, Field(title="Idle limit", gt=0, le=86_400)] | None = Field(
        default=900.0, title="Idle limit in seconds"
    )
    """Seconds without any output after which a run is ended. None: only the time limit ends it."""
    params: Params = Field(default={}, json_schema_extra={"default": "{}"})
    """Further settings of the agent; each agent has its own: see the page on coding agents."""

    @field_validator("api_base")
    @classmethod
    def _holds_no_secret(cls, api_base: str) -> str:
        if "@" in api_base or "?" in api_base:
            raise ValueError("must be a plain address; keys and passwords live in the environment")
        return api_base.rstrip("/")

    @model_validator(mode="after")
    def _validate_params(self) -> CodingAgent:
        adapter = self.adapter
        try:
            adapter.params_model.model_validate(self.params)
        except ValidationError as error:
            field, message = first_problem(error)
            place = f"params.{field}" if field else "params"
            raise ValueError(f"{place}: for {adapter.name!r}: {message}") from None
        if self.web_search and not adapter.searches_web:
            raise ValueError(
                f"web_search: {adapter.name!r} has no such option; leave it out, and allow the web in the agent's own "
                "settings"
            )
        if self.container and self.web_search:
            raise ValueError("web_search: a container can't reach the web; leave web_search or container out")
        if (
            self.container
            and isinstance(adapter, Codex)
            and CodexParams.model_validate(self.params).sandbox != _NO_SANDBOX
        ):
            raise ValueError(
                f"params: in a container Codex can't make a sandbox of its own; have the container be it: "
                f"{{sandbox: {_NO_SANDBOX}}}"
            )
        if self.agent in ("opencode", "mini") and "/" not in self.model:
            raise ValueError(f"model: {self.agent} takes a model as provider/model, and not {self.model!r}")
        return self

    @property
    def fingerprint(self) -> str:
        """Digest of everything that can change an answer but the commit; no key, limit or version of the agent."""
        agent = self.agent.model_dump(mode="json") if isinstance(self.agent, Generic) else self.agent
        parts = {"prompt": PROMPT, "agent": agent, "model": self.model_id, "api_base": self.api_base}
        more = {
            **({"web_search": True} if self.web_search else {}),
            **({"questions": True} if self.answers is not None else {}),
        }
        access = {"access": "read"} if self.only_reads_repository else {}
        image = {"image": self.container.image} if self.container else {}
        return digest({**parts, "params": self.params, **more, **access, **image})

    @property
    def has_external_inputs(self) -> bool:
        """True: see `external_inputs`."""
        return True

    def external_inputs(self, brief: Brief, item: Item) -> JsonValue:
        """Return the identity of the workspace, and the answer to an earlier question; None without either.

        The identity of a workspace is its commit and its set-up. An answer of a person changes the fingerprint of its
        own item alone.

        Work with `needs` starts from the brief's own commit.

        Raises:
            JobError: If the workspace isn't resolved, and the repository or the commit doesn't exist.
        """
        identity: dict[str, JsonValue] = {}
        if self.workspace is not None:
            is_resolved = _COMMIT.fullmatch(self.workspace.base)
            resolved = self.workspace if is_resolved else self.workspace.resolve(Path())
            identity = resolved.start_at(brief.start).identity
        answer = self.answer_to(brief, item)
        return {**identity, **({"answer": answer} if answer else {})} or None

    @property
    def name(self) -> str:
        """Key of the rate limiter that its runs share: the agent with its model, and the address if one is set."""
        at = f" at {self.api_base}" if self.api_base else ""
        return f"{self.adapter.name} with {self.model_id}{at}"

    def cost_bound(self, ask: Ask) -> CostBound:  # noqa: ARG002 -- of a run only the cost is bounded
        """Return the cost bound of a run: `max_usd`; its tokens have no bound."""
        return CostBound(prompt_tokens=0, cost_usd=self.max_usd, instead="set executor.max_usd")

    def resolve_paths(self, folder: Path) -> CodingAgent:
        """Return the executor with its program, repository, commit, answers and credentials resolved and validated.

        Args:
            folder: The job's folder, which relative paths count from.

        Raises:
            JobError: If one of them doesn't exist, or can't be used.
        """
        require_passable(self.pass_env)
        api_base = self._require_access()
        if self.container:
            if self.container.network == "providers":
                find_address(self.model_id, api_base)
            program = find_program_in_image(self.adapter, self.executable, self.container)
        else:
            program = find_program(self.adapter, self.executable, folder)
        workspace = self.workspace and self.workspace.resolve(folder)
        answers = load_answers(folder / self.answers) if isinstance(self.answers, str) else self.answers
        resolved = {"api_base": api_base.rstrip("/"), "program": program, "workspace": workspace, "answers": answers}
        return self.model_copy(update=resolved)

    def require_supported(self, briefs: Sequence[Brief]) -> None:
        """Check that the executor can answer some briefs.

        Raises:
            JobError: If a brief uses a feature that it doesn't support.
        """
        self._require_known_briefs([brief.name for brief in briefs])
        for brief in briefs:
            if brief.command and brief.command.report:
                raise JobError(
                    f"Brief {brief.name!r}: command.report is for a Shell; the acceptance command of a coding agent "
                    "passes or fails by its exit code alone."
                )
            if brief.command:
                require_valid_env(brief.name, brief.command)
            if brief.split:
                raise JobError(f"Brief {brief.name!r}: 'split' is for language models; leave it out.")
            field = "writes" if brief.writes else "command" if brief.command else ""
            if field and self.workspace is None:
                raise JobError(
                    f"Brief {brief.name!r}: {field!r} needs a repository, and executor.workspace is null: name one "
                    f"there, or leave {field!r} out."
                )
            if field and self.access == "read":
                raise JobError(
                    f"Brief {brief.name!r}: {field!r} is for work that changes files, and executor.access is 'read': "
                    f"leave one of them out."
                )

    async def warm_up(self) -> None:
        """Start the watchdog process, clean up after runs that died, and load litellm with its price table.

        Raises:
            JobError: If the state folder can't be used.
            TerminalError: If the watchdog doesn't start.
        """
        await to_thread_shielded(_warm_up, self.container)

    async def answer(self, ask: Ask) -> Reply:
        """Run the agent once in a new checkout, with the change of a rejected earlier answer applied.

        In a conversation, a re-ask continues the agent's session where it can; else it begins a new one.

        Raises:
            ExecutorError: If the work isn't done.
        """
        if self.answer_to(ask.brief, ask.item) == "":  # its question waits: nothing is spent
            raise open_question_error()
        conversation = _CONVERSATION.get()
        if conversation is None:
            async with self.conversation():
                return await self.answer(ask)
        run_ask = run_session if self.workspace else run_session_without_repository
        return await run_ask(self, ask, conversation)

    @asynccontextmanager
    async def conversation(self) -> AsyncGenerator[None, None]:
        """Return the context of all calls for one item: its folder, with the agent's session, is removed at the end."""
        conversation = Conversation(ExitStack())
        token = _CONVERSATION.set(conversation)
        try:
            yield
        finally:
            _CONVERSATION.reset(token)
            await to_thread_shielded(conversation.stack.close)

    @property
    def adapter(self) -> Adapter:
        """The adapter that starts the agent and parses its output."""
        return adapter_of(self.agent)

    @property
    def model_id(self) -> str:
        """The model, as litellm names it."""
        return self.model if "/" in self.model else "/".join(filter(None, (self.adapter.provider, self.model)))

    @property
    def only_reads_repository(self) -> bool:
        """Whether it works in a checkout in which it may change nothing."""
        return self.workspace is not None and self.access == "read"

    @property
    def executable(self) -> str:
        """The program to run, as a name or a path."""
        usual = self.agent.argv[0] if isinstance(self.agent, Generic) else self.agent
        return self.program or usual

    @property
    def key_names(self) -> tuple[str, ...]:
        """The environment variables that may hold its provider's key, in order of preference."""
        own = (self.agent.key,) if isinstance(self.agent, Generic) and self.agent.key else ()
        return (*own, key_variable(self.model_id), *_MORE_KEYS.get(self.model_id.partition("/")[0], ()))

    @property
    def passed_variables(self) -> tuple[str, ...]:
        """The variables that all programs get which run in its folder: those of `pass_env` without its key."""
        return tuple(name for name in self.pass_env if name not in self.key_names)

    def answer_to(self, brief: Brief, item: Item) -> str | None:
        """Return a person's answer to a question about an item; empty if there is none yet, None without an entry."""
        answers = load_answers(Path(self.answers)) if isinstance(self.answers, str) else self.answers or {}
        answer = answers.get(f"{brief.name}/{item.key}")
        return answer if answer is None else answer.strip()

    def _require_known_briefs(self, names: list[str]) -> None:
        """Check that answers are for briefs of the job.

        Raises:
            JobError: If one isn't; the message names the nearest brief.
        """
        for ref in self.answers if isinstance(self.answers, dict) else ():
            if (name := ref.partition("/")[0]) not in names:
                raise JobError(f"executor.answers: {ref!r}: there is no brief {name!r}; {did_you_mean(name, names)}")

    def _require_access(self) -> str:
        """Check that there is a key for the model's provider; return the provider's address.

        Raises:
            JobError: If the block doesn't exist, has no key or is for another provider, or if there is no key at all.
        """
        block = self.credentials
        if block is not None:
            found = load_credentials(block, "executor.credentials")
            require_matching_provider(found.model, self.model_id, block)
            if not found.arguments.get("api_key"):
                raise JobError(f"executor.credentials: the block {block!r} has no key, and an agent needs one; add it.")
            return self.api_base or found.api_base
        needs_key = not isinstance(self.agent, Generic) or self.agent.key is not None
        if needs_key and not self.pass_env and not self.api_base:
            raise JobError(
                f"executor: the agent has no key for {self.model_id!r}: name the variable that holds it under "
                f"'pass_env' ({self.key_names[0]}, say), or an LLMCredentials block under 'credentials'."
            )
        return self.api_base


def _warm_up(container: Container | None) -> None:
    get_watchdog()
    reap_periodically()
    if container:
        remove_left_containers()
    load_litellm()


_CONVERSATION: ContextVar[Conversation | None] = ContextVar("conversation", default=None)
"""The conversation that the current task's calls belong to; a task calls one executor for one item at a time."""


async def run_session(agent: CodingAgent, ask: Ask, conversation: Conversation) -> Reply:
    """Run one session of an agent, and return its answer with its change.

    Args:
        agent: The executor, with resolved paths.
        ask: The brief, the item, and the rejected earlier answers with the change of the last one.
        conversation: The conversation that the ask belongs to.

    Raises:
        ExecutorError: If the work isn't done; it carries the usage all the same.
    """
    spent, adapter, brief = Usage(), agent.adapter, ask.brief
    try:
        # 1. Open a workspace; if the agent has worked on this before, with its earlier changes applied.
        key = await resolve_key(agent)
        source = (agent.workspace or Workspace()).start_at(brief.start)
        mine = None
        if source.keep == "never":  # a folder that is kept must not be used again: each ask has its own
            about = {"repo": source.repo, "base": source.base}
            mine = await to_thread_shielded(conversation.open_lease, about)
        create_runner = partial(_create_runner, agent)
        async with open_workspace(
            source, pass_env=agent.passed_variables, mine=mine, create_runner=create_runner
        ) as workspace:
            if ask.change:
                await workspace.apply(ask.change)
            # 2. Run the agent.
            repo, log = Path(source.repo), new_log(adapter.name, model=agent.model_id)
            detector = await to_thread_shielded(
                OutsideWriteDetector, repo, workspace.path, brief.writes, agent.executable
            )
            ran, output, report, lost = await _run_agent(
                agent,
                workspace.path,
                workspace.env,
                ask,
                key=key,
                log=log,
                conversation=conversation,
                runner=_for_agent(agent, workspace.runner),
            )
            spent = usage_of(report, agent.model_id)
            # 3. Check where it wrote, and that its work is done.
            try:
                notes = [lost, await to_thread_shielded(detector.require_inside, output)]
                if failure := find_error(adapter.name, ran, report) or _find_question(agent, report, spent):
                    raise failure
            except ExecutorError as error:
                raise error.add_trace(f"Its log: {log}") from None
            # 4. Capture its change, and check it with the acceptance command; one that only reads leaves no change.
            if agent.access == "read":
                await require_unchanged(workspace)
            change = None if agent.access == "read" else await workspace.capture_change(brief.writes)
            problems = await find_problems(workspace, ask, change) if change else []
            if brief.command:  # which has run code that the agent wrote
                notes.append(await to_thread_shielded(detector.require_inside, output))
    except ExecutorError as error:
        raise _complete_error(agent, error, spent) from None
    # 5. Build the reply.
    value = report.text if report.structured is None else report.structured
    if value == "" and brief.output == "text" and change and change.files:
        value = f"(The agent said nothing; it changed {', '.join(each.path for each in change.files)}.)"
    if report.refusals:
        refused = describe_refusals(adapter.name, report.refusals)
        notes.insert(0, refused)
        problems += [refused] if problems else []
    reply = _build_reply(agent, report, spent, value, notes)
    return reply.model_copy(update={"change": change, "problems": tuple(problems)})


async def run_session_without_repository(agent: CodingAgent, ask: Ask, conversation: Conversation) -> Reply:
    """Run one session of an agent in an empty folder, and return its answer; files that it writes are removed.

    Args:
        agent: The executor, with resolved paths.
        ask: The brief, the item, and the rejected earlier answers.
        conversation: The conversation that the ask belongs to.

    Raises:
        ExecutorError: If the work isn't done; it carries the usage all the same.
    """
    spent, adapter = Usage(), agent.adapter
    try:
        key = await resolve_key(agent)
        mine, folder, env = await to_thread_shielded(_open_folder, conversation, agent)
        log = new_log(adapter.name, model=agent.model_id)
        runner = _for_agent(agent, ContainerRunner(agent.container, mine, folder) if agent.container else run_here)
        ran, _, report, lost = await _run_agent(
            agent, folder, env, ask, key=key, log=log, conversation=conversation, runner=runner
        )
        spent = usage_of(report, agent.model_id)
        if failure := find_error(adapter.name, ran, report) or _find_question(agent, report, spent):
            raise failure.add_trace(f"Its log: {log}")
    except JobError as error:  # what existed when the job was prepared is gone
        raise TerminalError(str(error), kind="workspace", usage=Usage()) from None
    except ExecutorError as error:
        raise _complete_error(agent, error, spent) from None
    value = report.text if report.structured is None else report.structured
    notes = [describe_refusals(adapter.name, report.refusals) if report.refusals else "", lost]
    return _build_reply(agent, report, spent, value, notes)


def _create_runner(agent: CodingAgent, workspace: OpenWorkspace) -> ProgramRunner:
    """Return the function that runs programs in a workspace: in containers, if the job has them."""
    return ContainerRunner.of_workspace(agent.container, workspace) if agent.container else run_here


def _for_agent(agent: CodingAgent, runner: ProgramRunner) -> ProgramRunner:
    """Return the function that runs the agent itself, which alone may reach its provider."""
    if not isinstance(runner, ContainerRunner):
        return runner
    reaches = runner.container.network == "providers"
    address = find_address(agent.model_id, agent.api_base) if reaches else None
    return runner.for_agent(address, is_read_only=agent.only_reads_repository)


def _open_folder(conversation: Conversation, agent: CodingAgent) -> tuple[Lease, Path, dict[str, str]]:
    """Return an empty folder with its lease, and the environment of programs in it; the conversation removes it."""
    mine = conversation.open_lease({"agent": agent.adapter.name})
    remove_tree(mine.path / "work")
    return mine, private_folder(mine.path / "work"), build_environment(mine, pass_env=agent.passed_variables)


def _complete_error(agent: CodingAgent, error: ExecutorError, spent: Usage) -> ExecutorError:
    """Return the error of a session with its usage, and with the name of the agent's credentials."""
    error.usage = error.usage if error.usage and error.usage.requests else spent
    return name_block_in_failure(error, agent.credentials)


def _find_question(agent: CodingAgent, report: AgentReport, spent: Usage) -> ExecutorError | None:
    """Return the failure for an agent that ended with a question, if it may."""
    if agent.answers is None:
        return None
    return find_question(report.text if report.structured is None else report.structured, spent)


def _build_reply(
    agent: CodingAgent, report: AgentReport, spent: Usage, value: JsonValue, notes: Sequence[str]
) -> Reply:
    """Return the reply of a session, and log its notes."""
    noted = tuple(filter(None, notes))
    for note in noted:
        _log.warning("%s", note)
    who = " ".join(filter(None, (agent.model_id, "in", agent.adapter.name, report.agent_version)))
    pages = create_citations(report.pages) if agent.web_search else ()
    return Reply(value=value, model=who, notes=noted, citations=pages, usage=spent)


async def _run_agent(
    agent: CodingAgent,
    folder: Path,
    env: Mapping[str, str],
    ask: Ask,
    *,
    key: str,
    log: Path,
    conversation: Conversation,
    runner: ProgramRunner,
) -> tuple[CompletedProgram, AgentOutput, AgentReport, str]:
    """Run an agent: continue its session where there is one, or begin one.

    Returns:
        The result of its program, its output, its report with the tokens of this run, and a note if its session was
        lost.

    Raises:
        ExecutorError: If it can't be started.
    """
    adapter = agent.adapter
    resume = conversation.session_for(ask)
    ran, output = await _run_program(agent, folder, env, ask, key=key, log=log, resume=resume, runner=runner)
    report, lost = adapter.parse(output), ""
    # A session that is gone is refused before the provider is asked, so that run has cost nothing.
    if resume and not report.session and not any(report.tokens or ()) and ran.exit and not ran.stopped:
        lost, resume = f"The session of {adapter.name} could not be continued; it began a new one.", ""
        ran, output = await _run_program(agent, folder, env, ask, key=key, log=log, resume=resume, runner=runner)
        report = adapter.parse(output)
    report = conversation.record(ask, report, resumed=bool(resume), reports_session_total=adapter.reports_session_total)
    return ran, output, report, lost


async def _run_program(
    agent: CodingAgent,
    folder: Path,
    env: Mapping[str, str],
    ask: Ask,
    *,
    key: str,
    log: Path,
    resume: str,
    runner: ProgramRunner,
) -> tuple[CompletedProgram, AgentOutput]:
    """Run an agent's program in a folder; return its result, and its output with the files that it wrote.

    Raises:
        ExecutorError: If it can't be started.
    """
    adapter, home = agent.adapter, Path(env["HOME"])
    in_repository = agent.workspace is not None
    read_only = agent.only_reads_repository
    prompt = (
        build_resumed_prompt(ask, writes=in_repository and not read_only)
        if resume
        else build_prompt(
            ask,
            in_repository=in_repository,
            web_search=agent.web_search,
            read_only=read_only,
            may_ask=agent.answers is not None,
            answer=agent.answer_to(ask.brief, ask.item) or "",
        )
    )
    launch = adapter.launch(
        LaunchRequest(
            program=agent.executable,
            model=agent.model,
            prompt=prompt,
            # A question satisfies no schema of an answer, so only the prompt states it then.
            schema=schema_of(ask.brief.output) if agent.answers is None else None,
            home=home,
            workspace=folder,
            params=adapter.params_model.model_validate(agent.params),
            api_base=agent.api_base,
            key=key,
            max_usd=agent.max_usd,
            max_turns=agent.max_turns,
            web_search=agent.web_search,
            read_only=not in_repository or read_only,
            resume=resume,
        )
    )
    await to_thread_shielded(write_files, launch, home)
    program = Program(
        argv=launch.argv,
        env={**env, **launch.env},
        cwd=launch.cwd,
        stdin=launch.stdin.encode("utf-8", "replace"),
        idle_s=agent.idle_s,
        keep=KEEP,
    )
    try:
        ran = await runner(program, log)
    finally:  # later commands in the workspace must not find a key
        await to_thread_shielded(remove_files, launch, home)
    files = await to_thread_shielded(read_files, home, adapter.output_files)
    return ran, AgentOutput(ran.stdout.text, ran.stderr.text, files, ran.exit)


async def resolve_key(agent: CodingAgent) -> str:
    """Return the key of an agent for its provider; it is redacted in all texts from here on.

    Returns:
        The key; empty if there is none, or if the agent finds one itself.

    Raises:
        TerminalError: If the credentials block no longer exists.
    """
    # The first variable that is passed on and set.
    values = (os.environ.get(name) for name in agent.key_names if name in agent.pass_env)
    key = next(filter(None, values), "")
    if agent.credentials is not None:
        try:
            key = str((await asyncio.to_thread(credentials, agent.credentials)).arguments.get("api_key", ""))
        except JobError as error:
            raise TerminalError(str(error), kind="credentials", usage=Usage()) from None
    register_secrets([key])
    return key
