"""Is the work done? Only if all speaks for it: how the program ended, and every word of what it said."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefect_dispatch.errors import BusyError, ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.scrub import scrub

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_dispatch.executors.coding.adapter import Said
    from prefect_dispatch.models import Usage
    from prefect_dispatch.processes.program import Ran

LONGEST = 1_000
"""Characters that are told of what an agent says went wrong."""
TAIL = 2_000
"""Bytes that are told of the end of what it printed."""
_USAGE = re.compile(
    r"unknown option|unexpected argument|unrecognized arguments|no such option|unknown argument", re.IGNORECASE
)
_LONG = re.compile(r"context.?(length|window|size)|too long", re.IGNORECASE)
_SERVER = 500
_KEY = "; mend the key that it is given."
_STATUS: Mapping[int, tuple[str, type[ExecutorError], str]] = {
    401: ("credentials", TerminalError, _KEY),
    402: ("quota", TerminalError, ""),
    403: ("credentials", TerminalError, _KEY),
    404: ("model", TerminalError, "; mend executor.model or executor.api_base."),
    408: ("timeout", TransientError, ""),
    409: ("conflict", TransientError, ""),
    413: ("context_length", RejectedError, ""),
    425: ("conflict", TransientError, ""),
    429: ("rate_limit", BusyError, ""),
    503: ("overloaded", BusyError, ""),
    529: ("overloaded", BusyError, ""),
}
"""What a provider's refusal means; see `failures` for why."""
_MOST_DENIALS, _QUOTED = 5, 200
"""How many commands a message names, and how many characters of each."""


def failure(agent: str, ran: Ran, said: Said, usage: Usage) -> ExecutorError | None:
    """Return why the work isn't done, or None if everything says that it is.

    Args:
        agent: Who worked.
        ran: How its program ended.
        said: What it said.
        usage: What was spent.
    """
    told = scrub("; ".join(said.errors))
    told = told if len(told) <= LONGEST else f"{told[:LONGEST]}…"
    error = (
        _stopped(agent, ran)
        or _without_sandbox(agent, said)
        or _refused(agent, said, told)
        or _limited(agent, said, told)
        or _ended(agent, ran, said, told)
        or _denied(agent, said)
        or _unfinished(agent, ran, said, told)
    )
    if error:
        error.usage = usage
        if said.refusals:
            error.args = (f"{error} {describe_refusals(agent, said.refusals)}",)
    return error


def describe_refusals(agent: str, refusals: Sequence[str]) -> str:
    """Return the sentence that names what an agent's own policy refused.

    Example:
        >>> describe_refusals("codex", ["rm -rf x: not permitted"])
        "The policy of codex refused: 'rm -rf x: not permitted'."
    """
    return f"The policy of {agent} refused: {_list_commands(refusals)}."


def _stopped(agent: str, ran: Ran) -> ExecutorError | None:
    if ran.stopped:
        return TransientError(f"{agent} was silent for longer than executor.idle_s.{_tail(ran)}", kind="idle")
    return None


def _without_sandbox(agent: str, said: Said) -> ExecutorError | None:
    """Return that no command could be run as there is no sandbox: it would be the same for every item."""
    if not said.no_sandbox:
        return None
    why = scrub(said.no_sandbox)[:_QUOTED].rstrip(".")
    return TerminalError(
        f"{agent} can't make its sandbox on this machine, and ran no command: {why}. Allow its account to make user "
        "namespaces; or, where the machine itself is the sandbox, let it do without: executor.params: "
        "{sandbox: danger-full-access}.",
        kind="sandbox",
    )


def _refused(agent: str, said: Said, told: str) -> ExecutorError | None:
    """Return what it means that its provider refused it at last."""
    if (status := said.status) is None or said.done:
        return None
    kind, error, way_out = _STATUS.get(status) or (
        ("server", TransientError, "") if status >= _SERVER else ("rejected", RejectedError, "")
    )
    if kind == "rejected" and _LONG.search(told):
        kind = "context_length"
    return error(f"{agent}'s provider answered {status}: {told}{way_out}", kind=kind)


def _limited(agent: str, said: Said, told: str) -> ExecutorError | None:
    if said.limit:
        way_out = f"raise executor.{said.limit}, or give it a smaller brief"
        return RejectedError(f"{agent} came to its limit, and was not done: {told}; {way_out}.", kind=said.limit)
    return None


def _ended(agent: str, ran: Ran, said: Said, told: str) -> ExecutorError | None:
    """Return what it means that its program didn't end well."""
    if ran.exit is None:
        how = f"signal {ran.signal}" if ran.signal else "somebody else"
        return TransientError(f"{agent} was ended by {how} before it was done.{_tail(ran)}", kind="signal")
    if said.may_pass:
        return TransientError(f"{agent} broke off: {told or f'exit code {ran.exit}'}.{_tail(ran)}", kind="connection")
    if ran.exit in said.exits:
        return None
    message = f"{agent} ended with exit code {ran.exit}: {told or 'it did not say why'}.{_tail(ran)}"
    if not said.errors and _USAGE.search(ran.stderr.last(TAIL)):
        way_out = " This version of it takes other arguments than it was tested with; install one that was."
        return TerminalError(message + way_out, kind="agent_version")
    return RejectedError(message, kind="exit")


def _denied(agent: str, said: Said) -> ExecutorError | None:
    if not said.denials:
        return None
    return RejectedError(
        f"{agent} wanted to do what it may not: {_list_commands(said.denials)}. Allow it in executor.params, or tell "
        "the brief to do without.",
        kind="denied",
    )


def _list_commands(commands: Sequence[str]) -> str:
    """Return some commands as a message names them: not too many, none too long."""
    more = len(commands) - _MOST_DENIALS
    shown = ", ".join(repr(scrub(command)[:_QUOTED]) for command in commands[:_MOST_DENIALS])
    return f"{shown}{f' and {more} more' if more > 0 else ''}"


def _unfinished(agent: str, ran: Ran, said: Said, told: str) -> ExecutorError | None:
    if said.errors or not said.done:
        why = told or "nothing that it printed says that it is done"
        kind = "agent_error" if said.errors else "malformed"
        return RejectedError(f"{agent} ended as if all were well, and was not done: {why}.{_tail(ran)}", kind=kind)
    return None


def _tail(ran: Ran) -> str:
    """Return how its output ended, what it complained of above all."""
    stream = ran.stderr if ran.stderr.size else ran.stdout
    return f" Its output ends with: {end}" if (end := stream.last(TAIL).strip()) else ""
