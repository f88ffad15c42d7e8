"""The text of an XML file, whatever it is encoded in, and what XML allows of a text."""

from __future__ import annotations

import codecs
import re

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as that of UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_DECLARED = re.compile(rb"""\A\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
_CHARACTER_SETS = re.compile(
    r"utf-(8|16|32)(-\w+)?|ascii|iso8859-\d+|cp\d+|gb\w+|big5\w*|shift_jis\w*|euc_\w+|koi8-\w|mac-\w+"
)
"""Codecs that are character sets; Python knows others, which decode something else, or take very long."""
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_REFERENCE = re.compile(r"&#(?:x([0-9a-fA-F]{1,8})|([0-9]{1,8}));")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def decoded(data: bytes) -> str:
    """Return the text of an XML file; bytes that are none in its encoding become replacement characters.

    Raises:
        ValueError: If it names an encoding that is no character set known here.

    Example:
        >>> decoded('<?xml version="1.0" encoding="latin-1"?><a>é</a>'.encode("latin-1"))[-8:]
        '<a>é</a>'
    """
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "")
    if not encoding and (found := _DECLARED.match(data)):
        named = found[1].decode("ascii")
        try:
            encoding = codecs.lookup(named).name
        except LookupError:
            encoding = ""
        if not _CHARACTER_SETS.fullmatch(encoding):
            raise ValueError(f"its encoding {named!r} is not known")
        if encoding.startswith(("utf-16", "utf-32")):  # the declaration could be read, so it is wrong
            encoding = "utf-8"
    return data.decode(encoding or "utf-8", "replace")


def legal(text: str) -> str:
    r"""Return a text with what XML does not allow, as itself or as a reference, replaced; some runners write it.

    Example:
        >>> legal("\x1b[31mred &#27; &#9;")
        '�[31mred � &#9;'
    """
    return _REFERENCE.sub(_referred, legal_characters(text))


def legal_characters(text: str) -> str:
    """Return a text with the characters replaced that XML does not allow, however they are written."""
    return _ILLEGAL.sub(_REPLACEMENT, text)


def _referred(found: re.Match[str]) -> str:
    code = int(found[1], 16) if found[1] else int(found[2])
    return found[0] if code <= 0x10FFFF and not _ILLEGAL.match(chr(code)) else _REPLACEMENT  # noqa: PLR2004 -- the last one
