"""One ask of a coding agent: a fresh workspace, its work, what it changed, and whether that is accepted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.errors import ExecutorError, RejectedError
from prefect_dispatch.executors.base import Ask, Reply
from prefect_dispatch.executors.coding.access import access
from prefect_dispatch.executors.coding.adapter import Told
from prefect_dispatch.executors.coding.outside import OutsideWatch
from prefect_dispatch.executors.coding.prompt import prompt
from prefect_dispatch.executors.coding.running import accepted, work
from prefect_dispatch.executors.coding.spending import usage_of
from prefect_dispatch.executors.coding.verdict import describe_refusals, failure
from prefect_dispatch.executors.keys import of_block
from prefect_dispatch.models import Usage
from prefect_dispatch.outputs import schema_of
from prefect_dispatch.processes.logs import new_log
from prefect_dispatch.workspaces.rooms import finished, opened

if TYPE_CHECKING:
    from prefect_dispatch.change import Change
    from prefect_dispatch.executors.coding.adapter import Printed, Said
    from prefect_dispatch.executors.coding.executor import CodingAgent
    from prefect_dispatch.workspaces.rooms import Room

_log = logging.getLogger("prefect_dispatch")

UNCHANGED = "Nothing was changed in the repository, and the brief says that something is to be written."
"""What is wrong with work that left everything as it was."""


async def carried_out(agent: CodingAgent, ask: Ask) -> Reply:
    """Have an agent work once; where it worked before, its changes of then are in place.

    Args:
        agent: The executor, placed.
        ask: The brief, the item, and what was sent back.

    Raises:
        ExecutorError: If the work isn't done; it says what was spent all the same.
    """
    spent = Usage()
    try:
        allowed = await access(agent.credentials, agent.pass_env, agent.key_names)
        async with opened(agent.workspace, pass_env=allowed.passed) as room:
            if ask.change:
                await room.apply(ask.change)
            work = await _worked(agent, room, ask, allowed.key)
            said, spent, notes = work.said, work.usage, list(work.notes)
            change = await room.change(ask.brief.writes)
            problems = await _problems(room, ask, change)
            if ask.brief.command:  # it has run what the agent wrote
                notes += filter(None, [await finished(work.watch.require_inside, work.printed)])
    except ExecutorError as error:
        error.usage = error.usage if error.usage and error.usage.requests else spent
        raise of_block(error, agent.credentials) from None
    value = said.text if said.structured is None else said.structured
    if value == "" and ask.brief.output == "text":
        value = _without_words(change)
    who = " ".join(filter(None, (agent.asked, "in", agent.adapter.name, said.agent_version)))
    if problems and said.refusals:
        problems = (*problems, describe_refusals(agent.adapter.name, said.refusals))
    for note in notes:
        _log.warning("%s", note)
    return Reply(value=value, model=who, change=change, problems=problems, notes=tuple(notes), usage=spent)


class _Work(NamedTuple):
    """What an agent did, as far as it is known without a look at its files."""

    said: Said
    usage: Usage
    printed: Printed
    watch: OutsideWatch
    notes: tuple[str, ...]


async def _worked(agent: CodingAgent, room: Room, ask: Ask, key: str) -> _Work:
    adapter, log, home = agent.adapter, new_log(), Path(room.env["HOME"])
    repo, writes = Path(agent.workspace.repo), ask.brief.writes
    watch = await finished(OutsideWatch, repo, room.path, writes, agent.executable)
    told = Told(
        program=agent.executable,
        model=agent.model,
        prompt=prompt(ask),
        schema=schema_of(ask.brief.output),
        home=home,
        workspace=room.path,
        answer=home / "answer.txt",
        params=adapter.own.model_validate(agent.params),
        api_base=agent.api_base,
        key=key,
        max_usd=agent.max_usd,
        max_turns=agent.max_turns,
    )
    ran, printed = await work(adapter, adapter.launch(told), room, agent.idle_s, log)
    said = adapter.parse(printed)
    usage = usage_of(said, agent.asked)
    try:
        seen = await finished(watch.require_inside, printed)
    except RejectedError as outside:
        outside.usage = usage
        raise outside.traced(f"Its log: {log}") from None
    if error := failure(adapter.name, ran, said, usage):
        raise error.traced(f"Its log: {log}")
    refused = describe_refusals(adapter.name, said.refusals) if said.refusals else ""
    return _Work(said, usage, printed, watch, tuple(filter(None, (refused, seen))))


async def _problems(room: Room, ask: Ask, change: Change) -> tuple[str, ...]:
    """Return what is wrong with work that is done."""
    brief = ask.brief
    found = [UNCHANGED] if brief.writes and not change.files else []
    if brief.command and (wrong := await accepted(brief.command, ask.item, room)):
        found.append(wrong)
    return (*found, kept) if found and (kept := room.failed()) else tuple(found)


def _without_words(change: Change) -> str:
    """Return what stands for the answer of an agent that did its work without a word."""
    files = ", ".join(each.path for each in change.files)
    return f"(The agent said nothing; it changed {files}.)" if files else ""
