"""What a secret looks like where no variable holds it: keys, headers, tokens, cookies, passwords.

A name alone hides nothing: "the key is wrong" and "token limit 4096" stay as they are.
A value is hidden where its name and its looks both say that it is a secret.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_V = r"""[^\s"'\\,;&<>(){}\[\]|]"""
"""A character of a value."""
_QUOTE = r"""\\{0,4}["']"""
_IS = rf"""(?:{_QUOTE})?\s{{0,4}}(?:=>|[:=]|%3[ad]|(?<=["'])\s?,)\s{{0,4}}(?:b?{_QUOTE})?"""
"""What stands between a name and its value, in headers, JSON, Python, URLs and shells."""
_NO_WORD = rf"(?!(?-i:[A-Za-z]?[a-z]{{0,15}})[.!?:]?(?!{_V}))"
"""Not `required`, `None` or `unknown.`; words have no capitals inside."""
_NO_CODE = (
    rf"(?!\$|[A-Za-z_.]+[\[(]|[A-Za-z_]+(?:\.[A-Za-z_]+)+(?!{_V}))"
    rf"""(?:(?<=["'])|(?!(?-i:[a-z]+(?:_[a-z]+)+)(?!{_V})))"""
)
"""Not `settings.api_key`, `get_key()`, `$KEY`, or `api_key=api_key`."""
_LITERAL = rf"{_NO_WORD}{_NO_CODE}{_V}{{6,}}"
_T = r"[A-Za-z0-9._~+/=-]"
"""A character of a token."""
_RANDOM = rf"(?={_T}{{0,40}}\d)(?={_T}{{0,40}}[A-Za-z])"
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
"""What providers begin their keys with."""
_KEY_BODY = r"(?:(?:(?!-----)[\s\S]){0,20000}-----END [A-Z ]{0,30}PRIVATE KEY-----|(?:\s|\\+[nr]|[A-Za-z0-9+/=]{16,})*)"
"""The rest of a private key, which may be cut off."""


class Shape(NamedTuple):
    """One shape of a secret."""

    hints: tuple[str, ...]
    """One of these is in every text that holds it, in small letters: looking for them is quick."""
    pattern: re.Pattern[str]
    """Its first group is kept."""


def _after(name: str, secret: str, *hints: str) -> Shape:
    return Shape(hints, re.compile(f"({name}){secret}", re.IGNORECASE))


def _alone(secret: str, *hints: str) -> Shape:
    return Shape(hints, re.compile(f"(){secret}"))


SHAPES = (
    _alone(rf"-----BEGIN [A-Z ]{{0,30}}PRIVATE KEY-----{_KEY_BODY}", "-----begin"),
    _alone(
        rf"\b{_PREFIXES}[-_A-Za-z0-9*.]{{8,}}",
        *("sk-", "pk-", "rk-", "live_", "test_", "gsk_", "xai-", "hf_", "gh", "glpat-", "pnu_", "pnb_", "akia", "asia"),
        *("aiza", "xox", "npm_", "pypi-", "nvapi-", "r8_", "ya29."),
    ),
    _alone(r"\beyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)*", "eyj"),  # a JSON web token
    _alone(r"(?<=://)[^\s/@]+(?=@)", "://"),  # the user and password in an address
    _after(
        rf"authorization{_IS}(?:{_SCHEMES}(?:\s+|%20|\+))",
        rf"(?:{_PARAMETERS}|{_NO_WORD}{_V}+|(?<=bearer\s){_V}+)",
        "authorization",
    ),
    _after(rf"authorization{_IS}", rf"(?!{_SCHEMES}\b){_LITERAL}", "authorization"),
    _after(r"\bbearer\s+", rf"(?:{_RANDOM}{_T}{{8,}}|{_T}{{24,}})", "bearer"),
    _after(rf"cookie{_IS}", r"""[\w.-]+=[^\s;"',\\]+(?:;\s*[\w.-]+(?:=[^\s;"',\\]*)?)*""", "cookie"),
    _after(rf"{_STRONG}{_IS}", _LITERAL, "key", "token", "pass", "secret"),
    _after(
        rf"(?<![A-Za-z])(?:token|auth|credentials?|pwd|sig|signature){_IS}",
        rf"{_RANDOM}{_T}{{16,}}",
        *("token", "auth", "cred", "pwd", "sig"),
    ),
    _after(
        r"[?&](?:key|token|auth|sig|signature|password|pwd|secret|x-(?:amz|goog)-[\w-]{1,20})=",
        rf"""{_NO_WORD}[^&\s"'#<>\\]{{6,}}""",
        "?",
        "&",
    ),
)
