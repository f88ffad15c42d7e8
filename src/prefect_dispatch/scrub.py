"""Keep secrets out of messages, logs, fingerprints and whatever is stored."""

from __future__ import annotations

import os
import re

SECRET_NAME = re.compile(
    r"(?i)(?:^|[_-])(?:api_?key|key|token|secret|pass(?:word|wd|phrase)?|credentials?|auth|authorization|pat)(?:$|[_-])"
)
"""Names of environment variables, parameters and headers whose values are secrets."""

_SHAPES = re.compile(
    r"(?i)\b(?:sk|pk|rk|gsk|xai|hf|ghp|gho|ghs|github_pat|glpat|pnu|pnb|AKIA|AIza)[-_A-Za-z0-9*.]{8,}"
    r"|(?<=bearer )[^\s\"',]+"
    r"|(?<=://)[^\s/@]+(?=@)"
)
"""Texts that look like keys, bearer tokens, or the user and password in an address."""

_SHORTEST = 6
"""Shorter values of variables are words such as `true`; to hide those would garble the message."""


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
    tokens or passwords, and whatever looks like a key.

    Example:
        >>> scrub("Incorrect API key provided: sk-proj-0123456789.")
        'Incorrect API key provided: ***'
        >>> scrub("no route to https://me:pass@example.org/v1")
        'no route to https://***@example.org/v1'
    """
    text = text.encode("utf-8", "replace").decode()  # half a character could be neither stored nor sent
    values = {value for name, value in os.environ.items() if len(value) >= _SHORTEST and SECRET_NAME.search(name)}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return _SHAPES.sub("***", text)
