"""Keep secrets out of messages, logs, fingerprints and whatever is stored."""

from __future__ import annotations

import base64
import json
import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus, unquote

import regex

from prefect_dispatch.environment import environment
from prefect_dispatch.errors import TerminalError
from prefect_dispatch.settings import settings
from prefect_dispatch.shapes import SHAPES

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

    from pydantic import JsonValue

SECRET_NAME = re.compile(
    r"(?i)(?:^|[_-])(?:api_?key|key|token|secret|pass(?:word|wd|phrase)?|credentials?|auth|authorization|pat)(?:$|[_-])"
)
"""Names whose values don't count in a fingerprint, as they are secrets. It stays as it is, or fingerprints change."""
_SECRET = re.compile(
    r"(?:^|_)(?:api_?key|key|token|secret|pass(?:word|wd|phrase|code)?|credentials?|creds?|auth|authorization|pat|jwt|pwd)"
    r"(?:_|$)"
    # The same in names that are written as one word: PGPASSWORD, GITHUBTOKEN, CLIENTSECRET, SECRETKEY, MYSQLPASS.
    r"|pass(?:word|wd|phrase|code)s?(?:_|$)|token(?:_|$)|secrets?(?:_|$)"
    r"|(?:api|access|account|admin|app|auth|client|db|deploy|encryption|hmac|jwt|master|private|secret|service|shared"
    r"|sign(?:ing)?|ssh|storage|subscription)_?keys?(?:_|$)"
    r"|(?:admin|db|ftp|imap|ldap|mail|mongo|mysql|pg|postgres|redis|root|smtp|sql|ssh|user)(?:pass|pwd)(?:_|$)"
    # The address of a webhook is all that its caller needs.
    r"|webhook(?:s|_?(?:url|uri|address|endpoint)s?)?$",
    re.IGNORECASE,
)
_LOCATION = re.compile(
    r"(?:dir|directory|path|sock|file|filename|folder|home|limit|budget|count|size|length|ttl)$", re.IGNORECASE
)
"""What a name ends in whose value says where a secret is, or how long it may be, and is none."""
_FOLDERS = frozenset({"PWD", "OLDPWD", "INIT_PWD"})
"""Names of folders that look like those of passwords."""
_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://(?P<user>[^/?#@:]*)(?::(?P<password>[^/?#]*))?@(?P<place>[^/?#]*)")
"""An address with a user, and perhaps a password, such as that of a database."""
_CONNECTION = re.compile(r"(?:^|_)dsn$|conn(?:ection)?_?(?:str(?:ing)?|uri)$|database_ur[il]$", re.IGNORECASE)
"""Names of variables that hold how to connect to something."""
_PART = re.compile(
    r"(?:^|[\s;])(?:password|pwd|accountkey|sharedaccesskey)\s*=\s*(?:'(?P<quoted>[^']*)'|(?P<bare>[^;\s']+))",
    re.IGNORECASE,
)
"""A password among the parts of a connection."""
MARK = "***"
"""What stands in place of a secret."""

_SHORTEST = 6
"""Shorter values of variables are words such as `true`; to hide those would garble the message."""
_SHORTEST_PART = 8
"""Shorter parts of a value, or of its base64 form, are too common."""
_DEEPEST = 100
"""What is nested deeper is never kept."""
_PASSES = 20
"""How often a text is gone over, as what is hidden may uncover more."""
_SECONDS = 1.0
"""How long one pattern may search one text."""
_SHORT = 2000
"""Characters of a text that is looked through once for all hints: of a longer one, once for each takes less."""
_HINT = re.compile("|".join(re.escape(hint) for shape in SHAPES for hint in shape.hints))


_hidden: frozenset[str] = frozenset()
"""Secrets that came from elsewhere than the environment."""


def hide(secrets: Iterable[str]) -> None:
    """Hide some texts from now on, and for as long as the process lives: keys that were loaded from a block."""
    global _hidden  # noqa: PLW0603 -- replaced whole, as other threads read it meanwhile
    _hidden = _hidden | {secret for secret in secrets if len(secret) >= _SHORTEST}


def is_secret_name(name: str) -> bool:
    """Return whether the value of an environment variable, a parameter or a header is a secret, by its name.

    Example:
        >>> [name for name in ("PGPASSWORD", "SLACK_WEBHOOK_URL", "MAX_TOKENS", "KEYBOARD") if is_secret_name(name)]
        ['PGPASSWORD', 'SLACK_WEBHOOK_URL']
    """
    even = name.replace("-", "_").strip("_")
    if even.upper() in _FOLDERS or _LOCATION.search(even):
        return False
    return bool(_SECRET.search(even))


def secrets_in(variables: Mapping[str, str]) -> Iterator[str]:
    """Yield the secrets in environment variables: whole values by their names, and passwords in addresses.

    Args:
        variables: Names and values.

    Example:
        >>> sorted(secrets_in({"DATABASE_URL": "postgresql://app:hunter22-x@db/app", "HOME": "/root"}))
        ['hunter22-x']
    """
    for name, value in variables.items():
        if len(value) < _SHORTEST:
            continue
        if is_secret_name(name):
            yield value
        for part in _secret_parts(name, value):
            if len(part) >= _SHORTEST:
                yield part


def _secret_parts(name: str, value: str) -> Iterator[str]:
    """Yield the passwords within a value; one that is the user's or the host's name would garble every text."""
    is_connection = bool(_CONNECTION.search(name.replace("-", "_")))
    if found := _ADDRESS.match(value):
        user, password, place = found["user"], found["password"], found["place"]
        if password and password not in {user, place.partition(":")[0]}:
            yield from {password, unquote(password)}
        elif is_connection and user and password is None:  # the key in the address of a service, such as Sentry's
            yield user
    if is_connection:
        for part in _PART.finditer(value):
            yield part["quoted"] or part["bare"] or ""


def teller() -> Callable[[str], bool]:
    """Return what tells of many texts whether they hold a secret, by what the environment says now (see `scrub`).

    Raises:
        JobError: If a pattern of the user's can't be used.
    """
    hide = _hider()

    def tells(text: str) -> bool:
        try:
            return hide(text) != text
        except TimeoutError:  # nobody knows
            return True

    return tells


def told(error: BaseException) -> str:
    """Return the class and the message of somebody's error, without secrets, whatever its message does."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 -- an error's own code may fail, too
        message = "(its message can't be read)"
    return scrub(f"{type(error).__name__}: {message}")


def scrub(text: str) -> str:
    """Return a text without secrets, and without half characters.

    Hidden are the values of environment variables whose names say that they are keys,
    tokens or passwords, whatever looks like a key, and what the patterns in
    `PREFECT_DISPATCH_REDACT` match.

    Raises:
        JobError: If one of those patterns can't be used.

    Example:
        >>> scrub("Incorrect API key provided: sk-proj-0123456789.")
        'Incorrect API key provided: ***'
        >>> scrub("no route to https://me:pass@example.org/v1")
        'no route to https://***@example.org/v1'
    """
    return scrubber()(text)


def scrubber() -> Callable[[str], str]:
    """Return what `scrub` does by what the environment says now, for many texts.

    Raises:
        JobError: If one of the user's patterns can't be used.
    """
    hide = _hider()

    def clean(text: str) -> str:
        try:
            return hide(text.encode("utf-8", "replace").decode())  # half a character could be neither stored nor sent
        except TimeoutError:
            return "(withheld: a pattern of PREFECT_DISPATCH_REDACT took too long on it)"

    return clean


def scrubbed(value: JsonValue) -> JsonValue:
    """Return a JSON value without secrets, in its texts, its keys and its numbers.

    Raises:
        TerminalError: If a pattern takes too long: what can't be searched can't be kept.
        JobError: If a pattern can't be used.

    Example:
        >>> scrubbed({"api_key": "correct-horse", "n": [1, "key: sk-proj-0123456789"]})
        {'api_key': '***', 'n': [1, 'key: ***']}
    """
    try:
        return _clean(value, _hider(), 0)
    except TimeoutError:
        raise TerminalError(
            "A pattern of PREFECT_DISPATCH_REDACT took too long on an answer, which therefore could not be kept; "
            "make it simpler.",
            kind="redaction",
        ) from None


def _clean(value: JsonValue, hide: Callable[[str], str], depth: int) -> JsonValue:
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value if hide(str(value)) == str(value) else MARK
    if depth < _DEEPEST and isinstance(value, list):
        return [_clean(each, hide, depth + 1) for each in value]
    if depth < _DEEPEST and isinstance(value, dict):
        clean: dict[str, JsonValue] = {}
        for key, part in value.items():
            named = isinstance(part, str) and hide(f'{key}="{part}"') == f'{hide(key)}="{MARK}"'
            clean[_free(hide(key), clean)] = MARK if named else _clean(part, hide, depth + 1)
        return clean
    return value


def _free(key: str, taken: dict[str, JsonValue]) -> str:
    """Return a key that isn't taken: two that are hidden are still two."""
    number, free = 1, key
    while free in taken:
        number += 1
        free = f"{key} ({number})"
    return free


def _hider() -> Callable[[str], str]:
    """Return what hides secrets by what the environment says now, or raises `TimeoutError`."""
    return _made(_secrets(environment()), _hidden, settings().redact)


@lru_cache(maxsize=2)
def _secrets(_said: Hashable) -> frozenset[str]:
    """Return the secrets in the environment, which is the one that is said."""
    return frozenset(secrets_in(os.environ))


@lru_cache(maxsize=4)
def _made(secrets: frozenset[str], hidden: frozenset[str], redact: tuple[str, ...]) -> Callable[[str], str]:
    """Return what hides some values, whatever looks like a secret, and what some patterns match."""
    values = sorted(
        {form for secret in secrets | hidden for form in _forms(secret)}, key=lambda form: (-len(form), form)
    )
    # What is hidden already is passed over, unless a match begins before it.
    patterns = [regex.compile(rf"(?:\*\*\*)(*SKIP)(*FAIL)|(?:{pattern})") for pattern in redact]

    def once(text: str) -> str:
        for value in values:
            text = text.replace(value, MARK)
        small = text.lower()
        hinted = len(text) > _SHORT or _HINT.search(small)
        for hints, shape in SHAPES if hinted else ():
            if any(hint in small for hint in hints):
                text = shape.sub(rf"\1{MARK}", text)
        for pattern in patterns:
            text = pattern.sub(lambda match: MARK if match[0] else "", text, timeout=_SECONDS)
        return text

    def hide(text: str) -> str:
        for _ in range(_PASSES):
            before, text = text, once(text)
            if text == before:
                return text
        raise TimeoutError

    return hide


def _forms(secret: str) -> set[str]:
    """Return how a secret may stand in a text: as it is, escaped, on one line, or encoded."""
    raw = secret.encode("utf-8", "surrogateescape")
    whole = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], " ".join(secret.split())}
    whole |= {quote(raw, safe=""), quote(raw), quote_plus(raw)}
    parts = {line.strip() for line in secret.splitlines()}
    for shift, start in enumerate((0, 2, 3)):  # base64 of a text in which it stands somewhere
        sure = slice(start, (shift + len(raw)) * 8 // 6)
        padded = bytes(shift) + raw
        parts |= {base64.b64encode(padded).decode()[sure], base64.urlsafe_b64encode(padded).decode()[sure]}
    return {form for form in whole if len(form) >= _SHORTEST} | {form for form in parts if len(form) >= _SHORTEST_PART}
