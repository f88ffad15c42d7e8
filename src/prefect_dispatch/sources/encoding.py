"""Detection of the encoding of text files."""

from __future__ import annotations

import codecs
from typing import Annotated

from pydantic import AfterValidator

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def _require_codec(encoding: str) -> str:
    try:
        " ".encode(encoding or "utf-8")
    except (LookupError, ValueError):
        raise ValueError(f"{encoding!r} is not a known encoding of text; write utf-8, cp1252, shift_jis, …") from None
    return encoding


Encoding = Annotated[str, AfterValidator(_require_codec)]
"""The name of a text codec, or an empty text."""


def detect_bom(data: bytes) -> str | None:
    """Return the encoding of a byte order mark, or None.

    Example:
        >>> detect_bom("a".encode("utf-8-sig"))
        'utf-8-sig'
    """
    return next((name for mark, name in _MARKS if data.startswith(mark)), None)


def decode(data: bytes, otherwise: str = "") -> str:
    r"""Decode the content of a text file: by its byte order mark, else as UTF-8, else by `otherwise`, else by a guess.

    Line ends are not converted.

    Args:
        data: The content of the file.
        otherwise: The encoding of a file that isn't UTF-8; empty to guess it.

    Raises:
        ValueError: If it is no text.

    Example:
        >>> decode(b"na\xefve"), decode("ни".encode("utf-16"))
        ('naïve', 'ни')
    """
    encoding = detect_bom(data) or _detect_encoding(data, otherwise)
    try:
        text = data.decode(encoding)
    except UnicodeError:
        raise ValueError(f"it is not {encoding}") from None
    if "\0" in text:
        raise ValueError("it holds NUL bytes")
    return text


def _detect_encoding(data: bytes, otherwise: str) -> str:
    if b"\0" not in data:
        try:
            data.decode()
        except UnicodeDecodeError:
            return otherwise or _guess(data)
        return "utf-8"
    if not otherwise:
        raise ValueError("it holds NUL bytes")
    return otherwise


def _guess(data: bytes) -> str:
    from charset_normalizer import from_bytes  # noqa: PLC0415 -- slow to import, and most files are UTF-8

    matches = from_bytes(data)
    names = [name for match in matches for name in (match.encoding, *match.could_be_from_charset)]
    if not names:
        raise ValueError("it is not text in any known encoding")
    # A short text has many equal guesses in alphabetical order: with the first one, "niño" would become "nińo".
    return "cp1252" if "cp1252" in names else names[0]
