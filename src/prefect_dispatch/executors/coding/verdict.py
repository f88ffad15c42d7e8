"""Decide whether an agent's work is done: only if its exit status and its whole report agree that it is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefect_dispatch.errors import BusyError, ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.security.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_dispatch.executors.coding.adapter import AgentReport
    from prefect_dispatch.models.outcome import Usage
    from prefect_dispatch.processes.runner import CompletedProgram

MAX_QUOTED = 1_000
"""Characters of an agent's own error message that an error quotes."""
TAIL = 2_000
"""Bytes of the end of its output that an error quotes."""
_USAGE = re.compile(
    r"unknown option|unexpected argument|unrecognized arguments|no such option|unknown argument", re.IGNORECASE
)
_LONG = re.compile(r"context.?(length|window|size)|too long", re.IGNORECASE)
_SERVER = 500
_KEY = "; correct the key that it is given."
_STATUS: Mapping[int, tuple[str, type[ExecutorError], str]] = {
    401: ("credentials", TerminalError, _KEY),
    402: ("quota", TerminalError, ""),
    403: ("credentials", TerminalError, _KEY),
    404: ("model", TerminalError, "; correct executor.model or executor.api_base."),
    408: ("timeout", TransientError, ""),
    409: ("conflict", TransientError, ""),
    413: ("context_length", RejectedError, ""),
    425: ("conflict", TransientError, ""),
    429: ("rate_limit", BusyError, ""),
    503: ("overloaded", BusyError, ""),
    529: ("overloaded", BusyError, ""),
}
"""Kind, error class and advice by the HTTP status of a provider; see `llm.provider_errors` for the reasons."""
_MOST_DENIALS, _QUOTED = 5, 200
"""Most commands that a message names, and most characters of each."""


def find_error(agent: str, ran: CompletedProgram, report: AgentReport, usage: Usage) -> ExecutorError | None:
    """Return the error of a run whose work isn't done, or None if it is.

    Args:
        agent: The agent's name.
        ran: The result of its program.
        report: The agent's parsed report.
        usage: The usage of the run, which the error carries.
    """
    # The checks go from the surest cause to the least specific one; the first that applies wins.
    errors = redact("; ".join(report.errors))
    errors = errors if len(errors) <= MAX_QUOTED else f"{errors[:MAX_QUOTED]}…"
    error = (
        _idle_error(agent, ran)
        or _sandbox_error(agent, report)
        or _provider_error(agent, report, errors)
        or _limit_error(agent, report, errors)
        or _exit_error(agent, ran, report, errors)
        or _denial_error(agent, report)
        or _unfinished_error(agent, ran, report, errors)
    )
    if error:
        error.usage = usage
        if report.refusals:
            error.args = (f"{error} {describe_refusals(agent, report.refusals)}",)
    return error


def describe_refusals(agent: str, refusals: Sequence[str]) -> str:
    """Return a message on the actions that an agent's own policy refused.

    Example:
        >>> describe_refusals("codex", ["rm -rf x: not permitted"])
        "The policy of codex refused: 'rm -rf x: not permitted'."
    """
    return f"The policy of {agent} refused: {_list_commands(refusals)}."


def _idle_error(agent: str, ran: CompletedProgram) -> ExecutorError | None:
    if ran.stopped:
        return TransientError(f"{agent} was silent for longer than executor.idle_s.{_quote_end(ran)}", kind="idle")
    return None


def _sandbox_error(agent: str, report: AgentReport) -> ExecutorError | None:
    """Return a terminal error if no command could run without a sandbox: every item would fail."""
    if not report.no_sandbox:
        return None
    why = redact(report.no_sandbox)[:_QUOTED].rstrip(".")
    return TerminalError(
        f"{agent} can't make its sandbox on this machine, and ran no command: {why}. Allow its account to make user "
        "namespaces; or, where the machine itself is the sandbox, let it do without: executor.params: "
        "{sandbox: danger-full-access}.",
        kind="sandbox",
    )


def _provider_error(agent: str, report: AgentReport, errors: str) -> ExecutorError | None:
    """Return the error for the final refusal of its provider, classified by its HTTP status."""
    if (status := report.status) is None or report.reports_success:
        return None
    kind, error, way_out = _STATUS.get(status) or (
        ("server", TransientError, "") if status >= _SERVER else ("rejected", RejectedError, "")
    )
    if kind == "rejected" and _LONG.search(errors):
        kind = "context_length"
    return error(f"{agent}'s provider answered {status}: {errors}{way_out}", kind=kind)


def _limit_error(agent: str, report: AgentReport, errors: str) -> ExecutorError | None:
    if report.limit:
        way_out = f"raise executor.{report.limit}, or give it a smaller brief"
        return RejectedError(f"{agent} came to its limit, and was not done: {errors}; {way_out}.", kind=report.limit)
    return None


def _exit_error(agent: str, ran: CompletedProgram, report: AgentReport, errors: str) -> ExecutorError | None:
    """Return the error for a program that was ended by a signal, broke off, or has an unexpected exit code."""
    if ran.exit is None:
        how = f"signal {ran.signal}" if ran.signal else "another process"
        return TransientError(f"{agent} was ended by {how} before it was done.{_quote_end(ran)}", kind="signal")
    if report.is_transient:
        return TransientError(
            f"{agent} broke off: {errors or f'exit code {ran.exit}'}.{_quote_end(ran)}", kind="connection"
        )
    if ran.exit in report.valid_exit_codes:
        return None
    message = f"{agent} ended with exit code {ran.exit}: {errors or 'it did not say why'}.{_quote_end(ran)}"
    if not report.errors and _USAGE.search(ran.stderr.end_text(TAIL)):
        way_out = " This version of it takes other arguments than it was tested with; install one that was."
        return TerminalError(message + way_out, kind="agent_version")
    return RejectedError(message, kind="exit")


def _denial_error(agent: str, report: AgentReport) -> ExecutorError | None:
    if not report.denials:
        return None
    return RejectedError(
        f"{agent} wanted to do what it may not: {_list_commands(report.denials)}. Allow it in executor.params, or "
        "have the brief do without it.",
        kind="denied",
    )


def _list_commands(commands: Sequence[str]) -> str:
    """Format commands for a message: redacted, at most `_MOST_DENIALS` of them, long ones cut."""
    more = len(commands) - _MOST_DENIALS
    shown = ", ".join(repr(redact(command)[:_QUOTED]) for command in commands[:_MOST_DENIALS])
    return f"{shown}{f' and {more} more' if more > 0 else ''}"


def _unfinished_error(agent: str, ran: CompletedProgram, report: AgentReport, errors: str) -> ExecutorError | None:
    if report.errors or not report.reports_success:
        why = errors or "nothing that it printed says that it is done"
        kind = "agent_error" if report.errors else "malformed"
        return RejectedError(f"{agent} ended as if all were well, and was not done: {why}.{_quote_end(ran)}", kind=kind)
    return None


def _quote_end(ran: CompletedProgram) -> str:
    """Return the end of its output as part of a message: of standard error, else of standard output."""
    stream = ran.stderr if ran.stderr.size else ran.stdout
    return f" Its output ends with: {end}" if (end := stream.end_text(TAIL).strip()) else ""
