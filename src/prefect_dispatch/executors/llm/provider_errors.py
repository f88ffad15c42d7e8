"""Classification of providers' errors: what an error means for the run.

The message of an error may quote the item, which may be hostile: so words that stop the whole fan-out are only matched
at the very beginning of a message.
"""

from __future__ import annotations

import re
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import isfinite
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, cast

from prefect_dispatch.errors import BusyError, ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.security.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])", re.ASCII)


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which a provider accepts calls again, or None if no header says so.

    Args:
        headers: The response's headers, with names in lower case or in a case-insensitive mapping.

    Example:
        >>> parse_retry_after({"retry-after": "1.5"}), parse_retry_after({"retry-after-ms": "250"})
        (1.5, 0.25)
        >>> parse_retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"})
        30.0
        >>> parse_retry_after({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m6s"})
        66.0
    """
    retry_after, date = headers.get("retry-after", ""), headers.get("date", "")
    for text, unit in ((headers.get("retry-after-ms", ""), 0.001), (retry_after, 1.0)):
        with suppress(ValueError):
            if isfinite(wait := float(text) * unit):
                return max(wait, 0.0)
    if (then := _timestamp(retry_after)) is not None:
        now = _timestamp(date)  # by the provider's own clock if its response has a date: ours may be wrong
        return max(then - (time() if now is None else now), 0.0)
    # The seconds until all used-up quotas are reset, by the headers of OpenAI and compatible providers.
    resets = [
        headers.get(f"x-ratelimit-reset-{what}", "")
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}") == "0"
    ]
    waits = [
        sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(reset))
        for reset in filter(_DURATION.fullmatch, resets)
    ]
    return max(waits, default=None)


def _timestamp(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


LONGEST = 300
"""Characters of a provider's message that are kept."""

_PREFIX = re.compile(r"\A(?:(?:litellm\.)?\w*(?:Error|Exception|Timeout)(?: Error)?(?:: | - ))+")

_MESSAGE = re.compile(r'"message": ?"((?:[^"\\]|\\.)*)"')
"""A provider's message in its JSON; quotes in the message are escaped, so its text can't end the match."""

_CONTENT_PARAMS = ("messages", "input", "contents", "prompt")

_SPECIFIC_TYPES = frozenset({"insufficient_quota", "overloaded_error", "rate_limit_error"})
"""Types in a provider's JSON that are more specific than its code."""

_TIMEOUT_STATUSES = frozenset({408, 504})

_UNREACHED = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "RedirectError", "TooManyRedirects"})
"""Names of errors after which the provider can't have processed the call, as it was not reached."""


class _Fault(NamedTuple):
    """The parts of an error that classify it."""

    names: frozenset[str]
    status: int
    code: str
    words: str
    headers: Mapping[str, str] | None

    @property
    def has_provider_status(self) -> bool:
        """Whether its status is from the provider: litellm sets 500 where there is none."""
        return 400 <= self.status < 600 and (self.headers is not None or self.status != 500)  # noqa: PLR2004 -- HTTP

    @property
    def may_be_processed(self) -> bool:
        """Whether the provider may have processed the call: it was sent, and the provider didn't refuse it."""
        if self.names & _UNREACHED:
            return False
        refused = self.headers is not None and not self.is_page
        return self.status in _TIMEOUT_STATUSES or not (refused or 400 <= self.status < 500)  # noqa: PLR2004 -- HTTP

    @property
    def is_page(self) -> bool:
        """Whether the response is an HTML page, which proxies send; openai 3 omits its text from the error."""
        kind = next((value for name, value in (self.headers or {}).items() if name.lower() == "content-type"), "")
        return self.words.startswith("<") or kind.startswith("text/html")


class _Rule(NamedTuple):
    """A rule of the classification: matches by name, by code, or by status and, if there are any, words."""

    error: type[ExecutorError]
    kind: str
    status: Container[int] = ()
    words: str = ""
    codes: Container[str] = ()
    names: frozenset[str] | set[str] = frozenset()
    sent: bool = True

    def matches(self, fault: _Fault) -> bool:
        return (
            not fault.names.isdisjoint(self.names)
            or fault.code in self.codes
            or (fault.status in self.status and bool(re.search(self.words, fault.words, re.IGNORECASE)))
        )


# The first rule that matches decides: specific ones stand before those for whole ranges of statuses.
_RULES = (
    _Rule(TerminalError, "redirect", names={"RedirectError", "TooManyRedirects"}),
    _Rule(RejectedError, "response_too_large", names={"ResponseTooLargeError"}),
    _Rule(TransientError, "malformed", names={"MalformedResponseError"}),
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
    _Rule(BusyError, "capacity", codes={"resource_unavailable"}),  # of OpenAI's flex tier; nothing is charged
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
        names={"JSONDecodeError", "UnicodeDecodeError", "RecursionError"},
    ),
    _Rule(TransientError, "conflict", {409, 425}),
    _Rule(RejectedError, "rejected", range(400, 500)),
    _Rule(TransientError, "server", range(200, 600)),
)


def classify_error(error: Exception, model: str) -> ExecutorError:
    """Classify an error of litellm's or of our HTTP client.

    Args:
        error: The exception that was raised.
        model: The model that was asked.

    Returns:
        The error with its kind and usage; its message is one line without secrets.
    """
    if isinstance(error, ImportError):
        return TerminalError(_format_message(model, error, f"{error}"), kind="package", usage=Usage())
    fault = _parse_fault(error)
    rule = _find_rule(fault)
    message = _format_message(
        model, error, f"HTTP {fault.status}: {fault.words}" if rule.sent and fault.has_provider_status else fault.words
    )
    usage = Usage(requests=int(rule.sent), unsettled=int(rule.sent and fault.may_be_processed))
    if rule.error is BusyError:
        return BusyError(message, kind=rule.kind, usage=usage, retry_after_s=parse_retry_after(fault.headers or {}))
    return rule.error(message, kind=rule.kind, usage=usage)


def classify_status(status: int) -> tuple[type[ExecutorError], str]:
    """Return the error class and its kind for the HTTP status of a provider, if nothing else is known of its response.

    Example:
        >>> classify_status(429)
        (<class 'prefect_dispatch.errors.BusyError'>, 'rate_limit')
    """
    rule = _find_rule(_Fault(frozenset(), status, "", "", None))
    return rule.error, rule.kind


def _find_rule(fault: _Fault) -> _Rule:
    return next((rule for rule in _RULES if rule.matches(fault)), _Rule(ExecutorError, "error"))


def is_read_timeout(error: BaseException) -> bool:
    """Return whether an error was caused by a read time-out."""
    return any(type(each).__name__ == "ReadTimeout" for each in _chain(error))


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _parse_fault(error: Exception) -> _Fault:
    """Extract the parts of an error, and of its causes, that classify it."""
    chain = tuple(_chain(error))
    headers = next(filter(None, map(_headers, chain)), None)
    bodies: list[Any] = [getattr(each, "body", None) for each in chain]
    objects = [body for body in bodies if _is_object(body)]
    details = objects[0] if objects else {}
    code, param = details.get("type"), details.get("param")
    if code not in _SPECIFIC_TYPES:
        code = str(details.get("code") or getattr(error, "code", None) or "")
    statuses = [status for each in chain if isinstance(status := getattr(each, "status_code", None), int)]
    status = next(iter(statuses), 0)
    # 1. litellm sets 500 for a status that it has no class for, and takes 413 for a rate limit: use the original one.
    if status == HTTPStatus.INTERNAL_SERVER_ERROR or 413 in statuses:  # noqa: PLR2004 -- its name differs by version
        status = statuses[-1]
    # 2. An error in the body of a response with status 200 has its status as the code.
    if headers is None and re.fullmatch(r"[45]\d\d", code):
        status = int(code)
    # 3. A refused parameter of the call, and not of the item, fails for every item.
    if status == HTTPStatus.BAD_REQUEST and not code and isinstance(param, str):
        code = "" if param.startswith(_CONTENT_PARAMS) else "unsupported_value"
    return _Fault(frozenset(type(each).__name__ for each in chain), status, code, _message_text(error), headers)


def _headers(error: BaseException) -> Mapping[str, str] | None:
    """Return the headers of a provider's response; the responses in litellm's own errors are made up."""
    if type(error).__name__ == "HTTPStatusError":
        return cast("Mapping[str, str]", cast("Any", error).response.headers)
    return cast("Mapping[str, str] | None", getattr(error, "litellm_response_headers", None))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _message_text(error: Exception) -> str:
    """Return the provider's message on one line, without litellm's prefixes and tracebacks."""
    text = _PREFIX.sub("", str(getattr(error, "original_exception", None) or error)).partition("\nTraceback")[0].strip()
    inner = _MESSAGE.search(text) if text.startswith(("{", "b'{")) else None
    return " ".join((inner[1] if inner else text).split())


def _format_message(model: str, error: Exception, text: str) -> str:
    line = redact(text)
    shown = line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
    return f"{model!r} failed: {shown or type(error).__name__}"
