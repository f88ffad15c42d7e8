"""Decide whether an agent's work is done: only if its exit status and its whole report agree that it is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefect_dispatch.errors import ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.llm.provider_errors import classify_status
from prefect_dispatch.security.escaping import join_names, shorten
from prefect_dispatch.security.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.executors.coding.adapter import AgentReport
    from prefect_dispatch.processes.runner import CompletedProgram

MAX_QUOTED = 1_000
"""Characters of an agent's own error message that an error quotes."""
TAIL = 2_000
"""Bytes of the end of its output that an error quotes."""
_USAGE = re.compile(
    r"unknown option|unexpected argument|unrecognized arguments|no such option|unknown argument", re.IGNORECASE
)
_LONG = re.compile(r"context.?(length|window|size)|too long", re.IGNORECASE)
_ADVICE = {
    "credentials": "; correct the key that it is given.",
    "model": "; correct executor.model or executor.api_base.",
}
_MOST_DENIALS, _QUOTED = 5, 200
"""Most commands that a message names, and most characters of each."""


def find_error(agent: str, ran: CompletedProgram, report: AgentReport) -> ExecutorError | None:
    """Return the error of a run whose work isn't done, or None if it is.

    Args:
        agent: The agent's name.
        ran: The result of its program.
        report: The agent's parsed report.
    """
    error = next(_iter_errors(agent, ran, report), None)
    if error and report.refusals:
        error.args = (f"{error} {describe_refusals(agent, report.refusals)}",)
    return error


def describe_refusals(agent: str, refusals: Sequence[str]) -> str:
    """Return a message on the actions that an agent's own policy refused.

    Example:
        >>> describe_refusals("codex", ["rm -rf x: not permitted"])
        "The policy of codex refused: 'rm -rf x: not permitted'."
    """
    return f"The policy of {agent} refused: {_list_commands(refusals)}."


def _iter_errors(agent: str, ran: CompletedProgram, report: AgentReport) -> Iterator[ExecutorError]:
    """Yield the errors of a run, from the surest cause to the least specific one."""
    stream = ran.stderr if ran.stderr.size else ran.stdout
    end = stream.end_text(TAIL).strip()
    quoted = f" Its output ends with: {end}" if end else ""
    errors = shorten(redact("; ".join(report.errors)), MAX_QUOTED)
    # 1. What ended it, or kept it from working at all.
    if ran.stopped:
        yield TransientError(f"{agent} was silent for longer than executor.idle_s.{quoted}", kind="idle")
    if report.no_sandbox:  # every item would fail
        why = redact(report.no_sandbox)[:_QUOTED].rstrip(".")
        yield TerminalError(
            f"{agent} can't make its sandbox on this machine, and ran no command: {why}. Allow its account to make "
            "user namespaces; or, where the machine itself is the sandbox, let it do without: executor.params: "
            "{sandbox: danger-full-access}.",
            kind="sandbox",
        )
    if report.status is not None and not report.reports_success:
        yield _provider_error(agent, report.status, errors)
    if report.limit:
        way_out = f"raise executor.{report.limit}, or give it a smaller brief"
        yield RejectedError(f"{agent} came to its limit, and was not done: {errors}; {way_out}.", kind=report.limit)
    if ran.exit is None:
        how = f"signal {ran.signal}" if ran.signal else "another process"
        yield TransientError(f"{agent} was ended by {how} before it was done.{quoted}", kind="signal")
    if report.is_transient:
        yield TransientError(f"{agent} broke off: {errors or f'exit code {ran.exit}'}.{quoted}", kind="connection")
    # 2. What its exit code and its report say.
    if ran.exit not in report.valid_exit_codes:
        yield _exit_error(agent, ran, errors, quoted)
    if report.denials:
        yield RejectedError(
            f"{agent} wanted to do what it may not: {_list_commands(report.denials)}. Allow it in executor.params, or "
            "have the brief do without it.",
            kind="denied",
        )
    if report.errors or not report.reports_success:
        why = errors or "nothing that it printed says that it is done"
        kind = "agent_error" if report.errors else "malformed"
        yield RejectedError(f"{agent} ended as if all were well, and was not done: {why}.{quoted}", kind=kind)


def _provider_error(agent: str, status: int, errors: str) -> ExecutorError:
    """Return the error for the final refusal of its provider, classified by its HTTP status."""
    error, kind = classify_status(status)
    # An agent sends nothing but its context, so what is too large for its provider is that.
    if kind == "too_large" or (kind == "rejected" and _LONG.search(errors)):
        kind = "context_length"
    return error(f"{agent}'s provider answered {status}: {errors}{_ADVICE.get(kind, '')}", kind=kind)


def _exit_error(agent: str, ran: CompletedProgram, errors: str, quoted: str) -> ExecutorError:
    message = f"{agent} ended with exit code {ran.exit}: {errors or 'it did not say why'}.{quoted}"
    if not errors and _USAGE.search(ran.stderr.end_text(TAIL)):
        way_out = " This version of it takes other arguments than it was tested with; install one that was."
        return TerminalError(message + way_out, kind="agent_version")
    return RejectedError(message, kind="exit")


def _list_commands(commands: Sequence[str]) -> str:
    """Format commands for a message: redacted, at most `_MOST_DENIALS` of them, long ones cut."""
    return join_names((repr(redact(command)[:_QUOTED]) for command in commands), _MOST_DENIALS)
