"""What an error of a provider means for the run.

An error's words may quote the item, which is hostile: they decide that the
whole fan-out stops only where they stand at the very beginning.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from prefect_dispatch.errors import BusyError, ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.waits import retry_after_s
from prefect_dispatch.models import Usage
from prefect_dispatch.scrub import scrub

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

LONGEST = 300
"""Characters of a provider's words that are kept."""

_PREFIX = re.compile(r"\A(?:(?:litellm\.)?\w*(?:Error|Exception|Timeout)(?: Error)?(?:: | - ))+")
_MESSAGE = re.compile(r'"message": ?"((?:[^"\\]|\\.)*)"')
"""Where a provider's words stand in its JSON; quotes within them are escaped, so they can't stand in for it."""
_OF_THE_ITEM = ("messages", "input", "contents", "prompt")


_TYPES = frozenset({"insufficient_quota", "overloaded_error", "rate_limit_error"})
"""Types in a provider's JSON that say more than its code."""
_TOO_LATE = frozenset({408, 504})
_UNREACHED = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout"})
"""Nobody was there to be asked."""


class _Fault(NamedTuple):
    names: frozenset[str]
    status: int
    code: str
    words: str
    headers: Mapping[str, str] | None

    @property
    def told(self) -> bool:
        """Whether its status is a provider's: litellm says 500 where it has none."""
        return 400 <= self.status < 600 and (self.headers is not None or self.status != 500)  # noqa: PLR2004 -- HTTP

    @property
    def lost(self) -> bool:
        """Whether the call may have been worked on: it was sent, and no provider's own refusal came back."""
        if self.names & _UNREACHED:
            return False
        refused = self.headers is not None and not self.is_page
        return self.status in _TOO_LATE or not (refused or 400 <= self.status < 500)  # noqa: PLR2004 -- HTTP

    @property
    def is_page(self) -> bool:
        """Whether the response is a page, which a proxy sends; openai 3 leaves its text out of the error."""
        kind = next((value for name, value in (self.headers or {}).items() if name.lower() == "content-type"), "")
        return self.words.startswith("<") or kind.startswith("text/html")


class _Rule(NamedTuple):
    """Fits by name or code, or by status and, where there are any, words."""

    error: type[ExecutorError]
    kind: str
    status: Container[int] = ()
    words: str = ""
    codes: Container[str] = ()
    names: frozenset[str] | set[str] = frozenset()
    sent: bool = True

    def fits(self, fault: _Fault) -> bool:
        return (
            not fault.names.isdisjoint(self.names)
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
    _Rule(BusyError, "rate_limit", {429}, codes={"rate_limit_error", "rate_limit_exceeded"}),
    _Rule(TransientError, "timeout", {408, 504}, names={"Timeout", "ReadTimeout", "ConnectTimeout"}),
    _Rule(BusyError, "overloaded", {503, 529}, codes={"overloaded_error"}),
    _Rule(
        TransientError,
        "connection",
        {500},
        r"\A(connection error|cannot connect|stream ended before)",
        names={"ConnectError", "ReadError", "WriteError", "RemoteProtocolError"},
    ),
    _Rule(
        TransientError,
        "malformed",
        {200, 500},
        r"invalid response|choices|\A(unterminated|expecting|unable to get json)",
        names={"JSONDecodeError"},
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
    message = _message(model, error, f"HTTP {fault.status}: {fault.words}" if rule.sent and fault.told else fault.words)
    usage = Usage(requests=int(rule.sent), unsettled=int(rule.sent and fault.lost))
    if rule.error is BusyError:
        return BusyError(message, kind=rule.kind, usage=usage, retry_after_s=retry_after_s(fault.headers or {}))
    return rule.error(message, kind=rule.kind, usage=usage)


def timed_out(error: BaseException) -> bool:
    """Return whether it came to this because nothing came for too long."""
    return any(type(each).__name__ == "ReadTimeout" for each in _chain(error))


def _fault(error: Exception) -> _Fault:
    chain = tuple(_chain(error))
    details = _details(chain)
    headers = next(filter(None, map(_headers, chain)), None)
    code = _code(error, details)
    statuses = [status for each in chain if isinstance(status := getattr(each, "status_code", None), int)]
    status = next(iter(statuses), 0)
    if status == 500 or 413 in statuses:  # noqa: PLR2004 -- what litellm has no class for, or takes for a rate limit
        status = statuses[-1]
    if headers is None and re.fullmatch(r"[45]\d\d", code):  # told in the body of a response that began as a success
        status = int(code)
    if status == 400 and not code and _is_of_the_call(details.get("param")):  # noqa: PLR2004 -- Bad Request
        code = "unsupported_value"
    return _Fault(frozenset(type(each).__name__ for each in chain), status, code, _words(error), headers)


def _headers(error: BaseException) -> Mapping[str, str] | None:
    """Return a response's headers; litellm's own errors hold made-up responses too."""
    if type(error).__name__ == "HTTPStatusError":
        return cast("Mapping[str, str]", cast("Any", error).response.headers)
    return cast("Mapping[str, str] | None", getattr(error, "litellm_response_headers", None))


def _details(chain: Iterable[BaseException]) -> dict[str, Any]:
    """Return the provider's own account, if one of the errors holds it."""
    for error in chain:
        if isinstance(body := getattr(error, "body", None), dict):
            return cast("dict[str, Any]", body)
    return {}


def _code(error: Exception, details: Mapping[str, Any]) -> str:
    kind = details.get("type")
    return kind if kind in _TYPES else str(details.get("code") or getattr(error, "code", None) or "")


def _is_of_the_call(param: object) -> bool:
    return isinstance(param, str) and not param.startswith(_OF_THE_ITEM)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _words(error: Exception) -> str:
    text = _PREFIX.sub("", str(getattr(error, "original_exception", None) or error)).partition("\nTraceback")[0].strip()
    inner = _MESSAGE.search(text) if text.startswith(("{", "b'{")) else None
    return " ".join((inner[1] if inner else text).split())


def _message(model: str, error: Exception, said: str) -> str:
    line = scrub(said)
    shown = line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
    return f"{model!r} failed: {shown or type(error).__name__}"
