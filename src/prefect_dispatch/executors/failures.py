"""What an error of a provider means for the run.

An error's words may quote the item, which is hostile: they decide that the
whole fan-out stops only where they stand at the very beginning.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from prefect_dispatch.errors import ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.models import Usage
from prefect_dispatch.scrub import scrub

if TYPE_CHECKING:
    from collections.abc import Container

LONGEST = 300
"""Characters of a provider's words that are kept."""

_PREFIX = re.compile(r"\A(?:(?:litellm\.)?\w*(?:Error|Exception|Timeout)(?: Error)?(?:: | - ))+")
_MESSAGE = re.compile(r'"message": ?"((?:[^"\\]|\\.)*)"')
"""Where a provider's words stand in its JSON; quotes within them are escaped, so they can't stand in for it."""
_OF_THE_ITEM = ("messages", "input", "contents", "prompt")


class _Fault(NamedTuple):
    name: str
    status: int
    code: str
    words: str


class _Rule(NamedTuple):
    """Fits by name or code, or by status and, where there are any, words."""

    error: type[ExecutorError]
    kind: str
    status: Container[int] = ()
    words: str = ""
    codes: Container[str] = ()
    names: Container[str] = ()
    sent: bool = True

    def fits(self, fault: _Fault) -> bool:
        return (
            fault.name in self.names
            or fault.code in self.codes
            or (fault.status in self.status and bool(re.search(self.words, fault.words, re.IGNORECASE)))
        )


_RULES = (
    _Rule(TerminalError, "params", names={"UnsupportedParamsError"}, sent=False),
    _Rule(TerminalError, "model", {400}, r"\Allm provider not provided", names={"LiteLLMUnknownProvider"}, sent=False),
    _Rule(TerminalError, "credentials", {401, 500}, r"\Amissing [\w ]*(credentials|api key)", sent=False),
    _Rule(TerminalError, "credentials", {401, 403}, codes={"invalid_api_key"}),
    _Rule(TerminalError, "credentials", {400}, r"\Aapi key not valid"),
    _Rule(TerminalError, "quota", {402}, codes={"insufficient_quota"}),
    _Rule(TerminalError, "quota", {400}, r"\Ayour credit balance is too low"),
    _Rule(TerminalError, "model", {404}, codes={"model_not_found"}),
    _Rule(
        TerminalError, "schema", {400}, r"\A.{0,40}(schema conversion failed|failed to .{0,20}grammar|invalid schema)"
    ),
    _Rule(TerminalError, "params", codes={"unsupported_parameter", "unsupported_value", "invalid_json_schema"}),
    _Rule(RejectedError, "context_length", names={"ContextWindowExceededError"}, codes={"context_length_exceeded"}),
    _Rule(RejectedError, "context_length", {400}, r"context.?(length|size|window)"),
    _Rule(RejectedError, "content_policy", names={"ContentPolicyViolationError"}, codes={"content_policy_violation"}),
    _Rule(RejectedError, "content_policy", {400}, r"content.?(policy|filter|management)"),
    _Rule(RejectedError, "too_large", {413}),
    _Rule(TransientError, "rate_limit", {429}),
    _Rule(TransientError, "timeout", {408, 504}, names={"Timeout"}),
    _Rule(TransientError, "overloaded", {503, 529}),
    _Rule(TransientError, "connection", {500}, r"\A(connection error|cannot connect)"),
    _Rule(
        TransientError,
        "malformed",
        {200, 500},
        r"invalid response|choices|\A(unterminated|expecting|unable to get json)",
    ),
    _Rule(TransientError, "conflict", {409, 425}),
    _Rule(RejectedError, "rejected", range(400, 500)),
    _Rule(TransientError, "server", range(200, 600)),
)


def failure_of(error: Exception, model: str) -> ExecutorError:
    """Return an error of litellm's in this package's words.

    Args:
        error: What was raised.
        model: Who was asked.

    Returns:
        The error with its kind and usage; its message is one line and holds no secret.
    """
    if isinstance(error, ImportError):
        return TerminalError(_message(model, error, f"{error}"), kind="package", usage=Usage())
    fault = _fault(error)
    rule = next((rule for rule in _RULES if rule.fits(fault)), _Rule(ExecutorError, "error"))
    said = f"HTTP {fault.status}: {fault.words}" if rule.sent and 400 <= fault.status < 600 else fault.words  # noqa: PLR2004 -- HTTP errors
    return rule.error(_message(model, error, said), kind=rule.kind, usage=Usage(requests=int(rule.sent)))


def _fault(error: Exception) -> _Fault:
    body = getattr(error, "body", None)
    details: dict[str, Any] = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    code = str(details.get("code") or getattr(error, "code", None) or "")
    if details.get("type") == "insufficient_quota":
        code = "insufficient_quota"
    param = details.get("param")
    status = getattr(error, "status_code", None)
    if status == 400 and isinstance(param, str) and not param.startswith(_OF_THE_ITEM) and not code:  # noqa: PLR2004 -- Bad Request
        code = "unsupported_value"
    return _Fault(type(error).__name__, status if isinstance(status, int) else 0, code, _words(error))


def _words(error: Exception) -> str:
    text = _PREFIX.sub("", str(error)).partition("\nTraceback")[0].strip()
    inner = _MESSAGE.search(text) if text.startswith("{") else None
    return " ".join((inner[1] if inner else text).split())


def _message(model: str, error: Exception, said: str) -> str:
    line = scrub(said)
    shown = line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
    return f"{model!r} failed: {shown or type(error).__name__}"
