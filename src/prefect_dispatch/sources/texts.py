"""The encoding of text files that others wrote."""

from __future__ import annotations

import codecs
from typing import Annotated

from pydantic import AfterValidator

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def _known(encoding: str) -> str:
    try:
        " ".encode(encoding or "utf-8")
    except (LookupError, ValueError):
        raise ValueError(f"{encoding!r} is not a known encoding of text; write utf-8, cp1252, shift_jis, …") from None
    return encoding


Encoding = Annotated[str, AfterValidator(_known)]
"""The name of a codec between bytes and text, or an empty text."""


def marked(data: bytes) -> str | None:
    """Return the encoding that a byte order mark tells.

    Example:
        >>> marked("a".encode("utf-8-sig"))
        'utf-8-sig'
    """
    return next((name for mark, name in _MARKS if data.startswith(mark)), None)


def decode(data: bytes, otherwise: str = "") -> str:
    r"""Return the text of a file: by its byte order mark, else UTF-8, else as told, else as guessed.

    Line ends stay as they are.

    Args:
        data: What is in the file.
        otherwise: The encoding of what isn't UTF-8; empty to have it guessed.

    Raises:
        ValueError: If it is no text.

    Example:
        >>> decode(b"na\xefve"), decode("ни".encode("utf-16"))
        ('naïve', 'ни')
    """
    encoding = marked(data) or _unmarked(data, otherwise)
    try:
        text = data.decode(encoding)
    except UnicodeError:
        raise ValueError(f"it is not {encoding}") from None
    if "\0" in text:
        raise ValueError("it holds NUL bytes")
    return text


def _unmarked(data: bytes, otherwise: str) -> str:
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
    from charset_normalizer import from_bytes  # noqa: PLC0415 -- most files are UTF-8, and this one is slow to import

    found = from_bytes(data)
    names = [name for match in found for name in (match.encoding, *match.could_be_from_charset)]
    if not names:
        raise ValueError("it is not text in any known encoding")
    # Short texts leave many equal guesses, of which the first is by the alphabet: "niño" would become "nińo".
    return "cp1252" if "cp1252" in names else names[0]
