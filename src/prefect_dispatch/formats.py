"""Formats of texts that a JSON Schema names and answers are held to: those that can be told for sure.

Others, such as `uri` or `date-time`, stay what JSON Schema takes them for: a remark.
"""

from __future__ import annotations

from typing import Any, cast

from jsonschema import FormatChecker

PARTIAL_DATE = "partial-date"
"""A date of the calendar of which day, or month and day, may be left out; no format of JSON Schema's own."""

_SENT = r"^[0-9]{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?)?$"
"""What a provider is told in its place: none knows it, and some refuse what they don't know."""
_SAID = {
    "date": "no date of the calendar; write it like 2026-11-25",
    "email": "no e-mail address; write it like name@example.org",
    "ipv4": "no IPv4 address; write it like 192.0.2.1",
    "ipv6": "no IPv6 address; write it like 2001:db8::1",
    "uuid": "no UUID; write it like 123e4567-e89b-42d3-a456-426614174000",
    PARTIAL_DATE: "no date of the calendar; write it like 2026-11-25, or 2026-11 or 2026 where no more is said",
}
_CHECKER = FormatChecker([name for name in _SAID if name != PARTIAL_DATE])
_SHOWN = 60
"""Characters of a text that a message repeats."""


def misformed(text: str, form: str) -> str | None:
    """Return what is wrong with a text that is to have some format, or None; also where nobody can tell.

    Example:
        >>> misformed("2026-11-31", "date")
        "'2026-11-31' is no date of the calendar; write it like 2026-11-25"
        >>> misformed("2026-11", "partial-date"), misformed("anything", "uri")
        (None, None)
    """
    if form not in _SAID or _conforms(text, form):
        return None
    return f"{text[:_SHOWN]!r} is {_SAID[form]}"


def _conforms(text: str, form: str) -> bool:
    if form == PARTIAL_DATE:
        return any(_CHECKER.conforms(text + rest, "date") for rest in ("", "-01", "-01-01"))
    return _CHECKER.conforms(text, form)


def sendable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema as a provider may get it: our own format becomes a pattern, all else is as it was.

    Example:
        >>> sendable({"type": "string", "format": "date"})
        {'type': 'string', 'format': 'date'}
        >>> sendable({"type": "string", "format": "partial-date"})["pattern"][:9]
        '^[0-9]{4}'
    """
    return cast("dict[str, Any]", _sendable(schema))


def _sendable(part: Any) -> Any:  # noqa: ANN401 -- JSON
    if isinstance(part, list):
        parts: list[Any] = part  # pyright: ignore[reportUnknownVariableType] -- JSON
        return [_sendable(each) for each in parts]
    if not isinstance(part, dict):
        return part
    node = {name: _sendable(value) for name, value in cast("dict[str, Any]", part).items()}
    if node.get("format") != PARTIAL_DATE or "type" not in node:
        return node
    del node["format"]
    return {"pattern": _SENT, **node}
