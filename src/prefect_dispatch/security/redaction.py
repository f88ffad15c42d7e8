"""Redaction of secrets in messages, logs, fingerprints and stored values, and of an item's text in messages.

A secret is the value of an environment variable whose name says so, a registered text (a key from a block), a text of
the shape of a key or token, or a match of a pattern of the user's (`PREFECT_DISPATCH_REDACT`).
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import traceback
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, quote_plus, unquote

import regex

from prefect_dispatch.errors import TerminalError
from prefect_dispatch.security.escaping import replace_nul
from prefect_dispatch.settings import environment_snapshot, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

    from pydantic import JsonValue

    from prefect_dispatch.errors import ExecutorError
    from prefect_dispatch.models.item import Item


_VALUE_CHARACTER = r"""[^\s"'\\,;&<>(){}\[\]|]"""
"""A character of a value."""
_QUOTE = r"""\\{0,4}["']"""


_IS = rf"""(?:{_QUOTE})?\s{{0,4}}(?:=>|[:=]|%3[ad]|(?<=["'])\s?,)\s{{0,4}}(?:b?{_QUOTE})?"""
"""The separator between a name and its value, in headers, JSON, Python, URLs and shells."""
_NO_WORD = rf"(?!(?-i:[A-Za-z]?[a-z]{{0,15}})[.!?:]?(?!{_VALUE_CHARACTER}))"
"""Not `required`, `None` or `unknown.`; words have no capitals inside."""
_NO_CODE = (
    rf"(?!\$|[A-Za-z_.]+[\[(]|[A-Za-z_]+(?:\.[A-Za-z_]+)+(?!{_VALUE_CHARACTER}))"
    rf"""(?:(?<=["'])|(?!(?-i:[a-z]+(?:_[a-z]+)+)(?!{_VALUE_CHARACTER})))"""
)
"""Not `settings.api_key`, `get_key()`, `$KEY`, or `api_key=api_key`."""
_LITERAL = rf"{_NO_WORD}{_NO_CODE}{_VALUE_CHARACTER}{{6,}}"


_KEY_CHARACTER = r"[A-Za-z0-9._~+/=-]"
"""A character of a token."""
_RANDOM = rf"(?={_KEY_CHARACTER}{{0,40}}\d)(?={_KEY_CHARACTER}{{0,40}}[A-Za-z])"
"""Looks ahead: letters and digits both."""
_SCHEMES = r"(?:basic|bearer|digest|negotiate|ntlm|token|api-?key|key|oauth|hoba|sharedkey|aws4-hmac-sha256)"


_PARAMETERS = rf"""(?:[\w-]+=(?:{_QUOTE}[^"']*{_QUOTE}|[^\s,"'\\]+)(?:,\s*)?)+"""


_STRONG = (
    r"(?:api[-_ ]?key|(?:access|auth|refresh|session|security|bearer|id|csrf)[-_]?token|private[-_]?key"
    r"|(?:access|account|subscription|secret|encryption|signing|shared)[-_]?(?:access[-_]?)?key"
    r"|password|passwd|passphrase|secret)"
)


_PREFIXES = (
    r"(?:(?:sk|pk|rk)-(?=[-_A-Za-z0-9.]{0,60}[0-9A-Z*])|(?:sk|pk|rk)_(?:live|test)_|gsk_|xai-|hf_|gh[pousr]_"
    r"|github_pat_|glpat-|pn[ub]_|AKIA|ASIA|AIza|xox[abeoprs]-|npm_|pypi-|nvapi-|r8_|ya29\.)"
)
"""Prefixes of the keys of known providers."""
_KEY_BODY = r"(?:(?:(?!-----)[\s\S]){0,20000}-----END [A-Z ]{0,30}PRIVATE KEY-----|(?:\s|\\+[nr]|[A-Za-z0-9+/=]{16,})*)"
"""The rest of a private key, which may be truncated."""


class SecretShape(NamedTuple):
    """Shape of a secret: a pattern with cheap hints."""

    hints: tuple[str, ...]
    """Every text with the secret contains one of these in lower case, so that most texts skip the pattern."""
    pattern: re.Pattern[str]
    """The pattern; its first group is kept."""


def _named_shape(name: str, secret: str, *hints: str) -> SecretShape:
    return SecretShape(hints, re.compile(f"({name}){secret}", re.IGNORECASE))


def _bare_shape(secret: str, *hints: str) -> SecretShape:
    return SecretShape(hints, re.compile(f"(){secret}"))


SHAPES = (
    _bare_shape(rf"-----BEGIN [A-Z ]{{0,30}}PRIVATE KEY-----{_KEY_BODY}", "-----begin"),
    _bare_shape(
        rf"\b{_PREFIXES}[-_A-Za-z0-9*.]{{8,}}",
        *("sk-", "pk-", "rk-", "live_", "test_", "gsk_", "xai-", "hf_", "glpat-", "pnu_", "pnb_", "akia", "asia"),
        *(
            "ghp_",
            "gho_",
            "ghu_",
            "ghs_",
            "ghr_",
            "github_pat_",
            "aiza",
            "xox",
            "npm_",
            "pypi-",
            "nvapi-",
            "r8_",
            "ya29.",
        ),
    ),
    _bare_shape(r"\beyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)*", "eyj"),  # a JSON web token
    _bare_shape(r"(?<=://)[^\s/@]+(?=@)", "://"),  # the user and password in an address
    _named_shape(
        rf"authorization{_IS}(?:{_SCHEMES}(?:\s+|%20|\+))",
        rf"(?:{_PARAMETERS}|{_NO_WORD}{_VALUE_CHARACTER}+|(?<=bearer\s){_VALUE_CHARACTER}+)",
        "authorization",
    ),
    _named_shape(rf"authorization{_IS}", rf"(?!{_SCHEMES}\b){_LITERAL}", "authorization"),
    _named_shape(r"\bbearer\s+", rf"(?:{_RANDOM}{_KEY_CHARACTER}{{8,}}|{_KEY_CHARACTER}{{24,}})", "bearer"),
    _named_shape(rf"cookie{_IS}", r"""[\w.-]+=[^\s;"',\\]+(?:;\s*[\w.-]+(?:=[^\s;"',\\]*)?)*""", "cookie"),
    _named_shape(rf"{_STRONG}{_IS}", _LITERAL, "key", "token", "pass", "secret"),
    _named_shape(
        rf"(?<![A-Za-z])(?:token|auth|credentials?|pwd|sig|signature){_IS}",
        rf"{_RANDOM}{_KEY_CHARACTER}{{16,}}",
        *("token", "auth", "cred", "pwd", "sig"),
    ),
    _named_shape(
        r"[?&](?:key|token|auth|sig|signature|password|pwd|secret|x-(?:amz|goog)-[\w-]{1,20})=",
        rf"""{_NO_WORD}[^&\s"'#<>\\]{{6,}}""",
        *("key=", "token=", "auth=", "sig=", "signature=", "password=", "pwd=", "secret=", "x-amz-", "x-goog-"),
    ),
)


SECRET_NAME = re.compile(
    r"(?i)(?:^|[_-])(?:api_?key|key|token|secret|pass(?:word|wd|phrase)?|credentials?|auth|authorization|pat)(?:$|[_-])"
)
"""Names whose values are secrets and left out of fingerprints. Changing this pattern changes fingerprints."""
_SECRET = re.compile(
    r"(?:^|_)(?:api_?key|key|token|secret|pass(?:word|wd|phrase|code)?|credentials?|creds?|auth|authorization|pat|jwt|pwd)"
    r"(?:_|$)"
    # The same in names that are written as one word: PGPASSWORD, GITHUBTOKEN, CLIENTSECRET, SECRETKEY, MYSQLPASS.
    r"|pass(?:word|wd|phrase|code)s?(?:_|$)|token(?:_|$)|secrets?(?:_|$)"
    r"|(?:api|access|account|admin|app|auth|client|db|deploy|encryption|hmac|jwt|master|private|secret|service|shared"
    r"|sign(?:ing)?|ssh|storage|subscription)_?keys?(?:_|$)"
    r"|(?:admin|db|ftp|imap|ldap|mail|mongo|mysql|pg|postgres|redis|root|smtp|sql|ssh|user)(?:pass|pwd)(?:_|$)"
    # The address of a webhook is a credential: it is all that a caller needs.
    r"|webhook(?:s|_?(?:url|uri|address|endpoint)s?)?$",
    re.IGNORECASE,
)


_LOCATION = re.compile(
    r"(?:dir|directory|path|sock|file|filename|folder|home|limit|budget|count|size|length|ttl)$", re.IGNORECASE
)
"""Endings of names whose value is not a secret, but says where one is stored or how long it may be."""
_FOLDERS = frozenset({"PWD", "OLDPWD", "INIT_PWD"})
"""Variables with a folder, whose names look like those of passwords."""
_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://(?P<user>[^/?#@:]*)(?::(?P<password>[^/?#]*))?@(?P<place>[^/?#]*)")
"""An address with a user, and perhaps a password, such as that of a database."""
_CONNECTION = re.compile(r"(?:^|_)dsn$|conn(?:ection)?_?(?:str(?:ing)?|uri)$|database_ur[il]$", re.IGNORECASE)
"""Names of variables with a connection string."""
_PART = re.compile(
    r"(?:^|[\s;])(?:password|pwd|accountkey|sharedaccesskey)\s*=\s*(?:'(?P<quoted>[^']*)'|(?P<bare>[^;\s']+))",
    re.IGNORECASE,
)
"""A password in a connection string."""
MARK = "***"
"""Replacement of a secret."""
_SHORTEST = 6
"""Minimum length of a secret value: shorter ones are words such as `true`, and redacting them would garble messages."""
_SHORTEST_PART = 8
"""Minimum length of a part of a value, or of its base64 form: shorter ones are too common."""
_DEEPEST = 100
"""Maximum nesting: deeper values are never stored."""
_PASSES = 20
"""Maximum passes over a text, as a replacement may expose another match."""
_SECONDS = 1.0
"""Time limit in seconds for one pattern on one text."""
_ALL_HINTS = {hint for shape in SHAPES for hint in shape.hints}
_HINTS = tuple(hint for hint in sorted(_ALL_HINTS) if not any(other in hint for other in _ALL_HINTS - {hint}))
"""The hints of all shapes, without those that contain another one: a text with none of these has no secret's shape."""


_hidden: frozenset[str] = frozenset()
"""Registered secrets, which do not come from the environment."""


def register_secrets(secrets: Iterable[str]) -> None:
    """Register secrets, such as keys loaded from a block, for redaction in this process until it ends."""
    global _hidden  # noqa: PLW0603 -- replaced as a whole, as other threads read it concurrently
    _hidden = _hidden | {secret for secret in secrets if len(secret) >= _SHORTEST}


def is_secret_name(name: str) -> bool:
    """Return whether a name of an environment variable, a parameter or a header stands for a secret.

    Example:
        >>> [name for name in ("PGPASSWORD", "SLACK_WEBHOOK_URL", "MAX_TOKENS", "KEYBOARD") if is_secret_name(name)]
        ['PGPASSWORD', 'SLACK_WEBHOOK_URL']
    """
    even = name.replace("-", "_").strip("_")
    if even.upper() in _FOLDERS or _LOCATION.search(even):
        return False
    return bool(_SECRET.search(even))


def secrets_in(variables: Mapping[str, str]) -> Iterator[str]:
    """Yield the secrets in environment variables: values of variables with secret names, and passwords in addresses.

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
    """Yield the passwords within a value.

    A password that equals the user's or the host's name is left out, as redacting it would garble every text.
    """
    is_connection = bool(_CONNECTION.search(name.replace("-", "_")))
    if found := _ADDRESS.match(value):
        user, password, place = found["user"], found["password"], found["place"]
        if password and password not in {user, place.partition(":")[0]}:
            yield from {password, unquote(password)}
        elif is_connection and user and password is None:  # the key in the address of a service such as Sentry
            yield user
    if is_connection:
        for part in _PART.finditer(value):
            yield part["quoted"] or part["bare"] or ""


def secret_detector() -> Callable[[str], bool]:
    """Return a function that detects secrets in texts, with the secrets of the current environment (see `redact`).

    Raises:
        JobError: If a pattern of the user's can't be used.
    """
    replace = _current_replacer().replace

    def has_secret(text: str) -> bool:
        try:
            return replace(text) != text
        except TimeoutError:  # unknown, so assume the worst
            return True

    return has_secret


def safe_message(error: BaseException) -> str:
    """Return the class and the redacted message of any error, even of one whose `__str__` raises."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 -- the error's own code may fail
        message = "(its message can't be read)"
    return redact(f"{type(error).__name__}: {message}")


def redact(text: str) -> str:
    """Redact a text: replace secrets, and lone surrogates.

    Replaced are the values of environment variables whose names mark them as keys, tokens or passwords, registered
    secrets, texts of the shape of a key, and matches of the patterns in `PREFECT_DISPATCH_REDACT`.

    Raises:
        JobError: If one of those patterns can't be used.

    Example:
        >>> redact("Incorrect API key provided: sk-proj-0123456789.")
        'Incorrect API key provided: ***'
        >>> redact("no route to https://me:pass@example.org/v1")
        'no route to https://***@example.org/v1'
    """
    return redactor()(text)


def redactor() -> Callable[[str], str]:
    """Return `redact` as a function for many texts, with the secrets of the current environment.

    Raises:
        JobError: If one of the user's patterns can't be used.
    """
    replace = _current_replacer().replace

    def clean(text: str) -> str:
        try:
            return replace(text.encode("utf-8", "replace").decode())  # a lone surrogate can't be stored or sent
        except TimeoutError:
            return "(withheld: a pattern of PREFECT_DISPATCH_REDACT took too long on it)"

    return clean


def redact_json(value: JsonValue) -> JsonValue:
    """Redact a JSON value: its texts, keys and numbers.

    Raises:
        TerminalError: If a pattern takes too long: a value that can't be searched can't be stored.
        JobError: If a pattern can't be used.

    Example:
        >>> redact_json({"api_key": "correct-horse", "n": [1, "key: sk-proj-0123456789"]})
        {'api_key': '***', 'n': [1, 'key: ***']}
    """
    replacer = _current_replacer()
    # Fast path: all texts are searched at once for what any secret has.
    if not replacer.may_replace("\n".join(_iter_texts(value))):
        return value
    try:
        return _redact_part(value, replacer.replace, 0)
    except TimeoutError:
        raise TerminalError(
            "A pattern of PREFECT_DISPATCH_REDACT took too long on an answer, which therefore could not be kept; "
            "make it simpler.",
            kind="redaction",
        ) from None


def _iter_texts(value: JsonValue) -> Iterator[str]:
    """Yield the texts in a value; each text that `_redact_part` searches is one of them, or a part of one."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            for key, inside in part.items():
                if isinstance(inside, str):
                    yield f'{key}="{inside}"'
                else:
                    yield key
                    pending.append(inside)
        elif isinstance(part, list):
            pending += part
        elif isinstance(part, str):
            yield part
        elif part is not None and not isinstance(part, bool):
            yield str(part)


def _redact_part(value: JsonValue, replace: Callable[[str], str], depth: int) -> JsonValue:
    if isinstance(value, str):
        return replace(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value if replace(str(value)) == str(value) else MARK
    if depth < _DEEPEST and isinstance(value, list):
        return [_redact_part(each, replace, depth + 1) for each in value]
    if depth < _DEEPEST and isinstance(value, dict):
        clean: dict[str, JsonValue] = {}
        for key, part in value.items():
            # A value may be a secret only together with its key, as in `password="…"`.
            is_secret = isinstance(part, str) and replace(f'{key}="{part}"') == f'{replace(key)}="{MARK}"'
            clean[_unused_key(replace(key), clean)] = MARK if is_secret else _redact_part(part, replace, depth + 1)
        return clean
    return value


def _unused_key(key: str, taken: dict[str, JsonValue]) -> str:
    """Return an unused key: two keys that redact to the same text stay two."""
    number, free = 1, key
    while free in taken:
        number += 1
        free = f"{key} ({number})"
    return free


class _Replacer(NamedTuple):
    """Functions that replace secrets."""

    replace: Callable[[str], str]
    """Replaces the secrets in a text, or raises `TimeoutError`."""
    may_replace: Callable[[str], bool]
    """Returns whether there may be a secret in a text, quickly; if not, there is none in any part of the text."""


def _current_replacer() -> _Replacer:
    """Return the functions that replace the secrets of the current environment."""
    return _build_replacer(_secrets(environment_snapshot()), _hidden, settings().redact)


def _has_hint(lower: str) -> bool:
    """Return whether a text in lower case may contain the shape of a secret."""
    for hint in _HINTS:  # noqa: SIM110 -- a generator would take half as long again, and this runs for each text
        if hint in lower:
            return True
    return False


@lru_cache(maxsize=2)
def _secrets(_environment: Hashable) -> frozenset[str]:
    """Return the secrets in the environment; the argument is the cache key."""
    return frozenset(secrets_in(os.environ))


@lru_cache(maxsize=4)
def _build_replacer(secrets: frozenset[str], hidden: frozenset[str], own_patterns: tuple[str, ...]) -> _Replacer:
    """Return functions that replace known secrets, texts of the shape of a secret, and matches of patterns.

    Args:
        secrets: The secrets in the environment.
        hidden: The registered secrets.
        own_patterns: The patterns of the user's.
    """
    # Longest first, so that no secret is left in part because another one is contained in it.
    values = sorted(
        {form for secret in secrets | hidden for form in _encoded_forms(secret)}, key=lambda form: (-len(form), form)
    )
    # Skip text that is already redacted, unless a match begins before it.
    patterns = [regex.compile(rf"(?:\*\*\*)(*SKIP)(*FAIL)|(?:{pattern})") for pattern in own_patterns]

    def replace_once(text: str) -> str:
        # 1. Known values.
        for value in values:
            text = text.replace(value, MARK)
        # 2. Shapes of secrets, if one of their hints is in the text.
        lower = text.lower()
        for hints, shape in SHAPES if _has_hint(lower) else ():
            if any(hint in lower for hint in hints):
                text = shape.sub(rf"\1{MARK}", text)
        # 3. The user's patterns.
        for pattern in patterns:
            text = pattern.sub(lambda match: MARK if match[0] else "", text, timeout=_SECONDS)
        return text

    def replace(text: str) -> str:
        # Repeat until nothing changes: a replacement may expose another match.
        for _ in range(_PASSES):
            before, text = text, replace_once(text)
            if text == before:
                return text
        raise TimeoutError

    def may_replace(text: str) -> bool:
        return bool(patterns) or any(value in text for value in values) or _has_hint(text.lower())

    return _Replacer(replace, may_replace)


def _encoded_forms(secret: str) -> set[str]:
    """Return the forms in which a secret may appear in a text: literally, escaped, on one line, or encoded."""
    raw = secret.encode("utf-8", "surrogateescape")
    whole = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], " ".join(secret.split())}
    whole |= {quote(raw, safe=""), quote(raw), quote_plus(raw)}
    parts = {line.strip() for line in secret.splitlines()}
    # Base64 of a text that contains the secret at any of the three alignments: keep the characters that depend on the
    # secret alone.
    for shift, start in enumerate((0, 2, 3)):
        fixed = slice(start, (shift + len(raw)) * 8 // 6)
        padded = bytes(shift) + raw
        parts |= {base64.b64encode(padded).decode()[fixed], base64.urlsafe_b64encode(padded).decode()[fixed]}
    return {form for form in whole if len(form) >= _SHORTEST} | {form for form in parts if len(form) >= _SHORTEST_PART}


_log = logging.getLogger("prefect_dispatch")

WITHHELD = "[…]"
RUN = 24
"""Minimum length of a run of characters that counts as a quotation of an item."""
WHOLE = 8
"""Minimum length of a text of the item that is redacted where it occurs as a whole, as a separate word."""
LONGEST = 4_000
"""Maximum characters of a message about an item."""
_SPACE_OR_ESCAPE = (
    r"""(?P<blank>(?:\s|\\+[nrtfv])+)|\\+(?:u(?P<u>[0-9a-fA-F]{4})|x(?P<x>[0-9a-fA-F]{2})|(?P<self>["'/]))?"""
)
_NOT_PLAIN = re.compile(_SPACE_OR_ESCAPE)
_UNIT = re.compile(rf"{_SPACE_OR_ESCAPE}|(?P<plain>.)")


def redact_item_text(error: ExecutorError, item: Item) -> ExecutorError:
    """Redact the message of an error so that it quotes nothing of an item; the full text is logged at debug level."""
    log_error(error)
    error.args = (replace_nul(redact_quotes(redact(str(error)), item.value)),)
    return error


def log_error(error: BaseException) -> None:
    """Log an error at debug level with its traceback and causes; secrets are redacted."""
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("%s", redact("".join(traceback.format_exception(error))))


def redact_quotes(message: str, value: JsonValue) -> str:
    """Redact the quotations of an item's value in a message, and truncate it to `LONGEST` characters.

    Messages of providers, validators and the user's code quote their input, and messages end up in logs, states and
    artifacts. A quotation is a run of `RUN` characters that occurs in a text of the item, or a whole short text of the
    item. Both sides are compared with white space and escapes normalized, as a message may hold a `repr` or JSON.

    Example:
        >>> text = "Permission is hereby granted, free of charge, to any person."
        >>> redact_quotes(f"{text[:45]!r} is not of type 'object'", {"text": text})
        "'[…]' is not of type 'object'"
    """
    if len(message) > LONGEST:
        message = message[:LONGEST] + "…"
    # 1. Split the message into units, each of which is one character when it is normalized.
    units = list(_UNIT.finditer(message))
    normal = "".join(map(_normalize_match, units))
    # 2. Mark the units that are quotations.
    quoted = bytearray(len(units))
    for start, end in _iter_quotes(normal, {_normalize(text) for text in _texts(value)}):
        quoted[start:end] = b"\1" * (end - start)
    # 3. Replace each run of marked units.
    runs = groupby(zip(units, quoted, strict=True), key=itemgetter(1))
    return "".join(WITHHELD if is_quoted else "".join(unit[0] for unit, _ in run) for is_quoted, run in runs)


def _texts(value: JsonValue) -> Iterator[str]:
    """Yield every text in a value that is long enough to be quoted; keys are names, not texts."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            if len(part) >= WHOLE:
                yield part
        elif isinstance(part, (dict, list)):
            pending += part.values() if isinstance(part, dict) else part


def _iter_quotes(message: str, texts: set[str]) -> Iterator[tuple[int, int]]:
    """Yield the spans of the message that are runs of `RUN` characters of a text, or a whole shorter text as a word."""
    starts = range(len(message) - RUN + 1)
    runs = {message[start : start + RUN] for start in starts}
    found: set[str] = set()
    for text in texts:
        if len(text) >= RUN:
            found |= runs.intersection(text[at : at + RUN] for at in range(len(text) - RUN + 1))
        elif len(text) >= WHOLE and text in message:
            for match in re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", message):
                yield match.span()
    yield from ((start, start + RUN) for start in starts if message[start : start + RUN] in found)


def _normalize(text: str) -> str:
    return _NOT_PLAIN.sub(_normalize_match, text).strip() if "\\" in text else " ".join(text.split())


def _normalize_match(match: re.Match[str]) -> str:
    """Return the character that a run of white space, an escape or any other character is normalized to."""
    if match["blank"]:
        return " "
    if code := match["u"] or match["x"]:
        return chr(int(code, 16))
    return match["self"] or match[0][-1]
