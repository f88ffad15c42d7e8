"""Sources as an agent gives them, checked for form: an address, a DOI, an ISBN, a title with a year.

Nothing is fetched: a well-formed source may still not exist, or not say what is said of it.
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

SourceKind = Literal["url", "doi", "isbn", "title"]
"""The forms of a source."""
EXAMPLES: dict[SourceKind, str] = {
    "url": "an address such as https://www.rfc-editor.org/rfc/rfc9110",
    "doi": "a DOI such as 10.1038/171737a0",
    "isbn": "an ISBN such as 978-0-13-468599-1",
    "title": "a title with its year, such as Molecular Structure of Nucleic Acids (1953)",
}
"""What each of them looks like, in words for a model."""

_DOI = re.compile(r"10\.\d{4,9}(?:\.\d+)*/[^\s/][^\s]*")
_DOI_PREFIX = re.compile(r"(?i)\A(?:https?://(?:dx\.)?doi\.org/|doi:\s*)")
_HOST = re.compile(
    r"(?i)(?:[a-z0-9\u00a1-\uffff](?:[a-z0-9\u00a1-\uffff-]*[a-z0-9\u00a1-\uffff])?\.)+[a-z\u00a1-\uffff][a-z0-9\u00a1-\uffff-]+"
)
_PLACEHOLDER = re.compile(r"(?i)(?:^|\.)(?:example\.(?:com|org|net|edu)|(?:test|invalid|localhost|example))$")
_ISBN_PREFIX = re.compile(r"(?i)\AISBN(?:-1[03])?:?\s*")
_YEAR = re.compile(r"(?<!\d)(?:1[0-9]|20)\d{2}(?!\d)")
_WORD = re.compile(r"[^\W\d_]{2,}")


def kind_of(reference: str) -> SourceKind | None:
    """Return the form that a source has; None if it has none of them.

    Example:
        >>> [kind_of(text) for text in ("https://doi.org/10.1038/171737a0", "ISBN 0-306-40615-2", "see above")]
        ['doi', 'isbn', None]
    """
    text = reference.strip()
    if _DOI.fullmatch(_DOI_PREFIX.sub("", text)):
        return "doi"
    if "://" in text:
        return "url" if _is_address(text) else None
    if _is_isbn(_ISBN_PREFIX.sub("", text)):
        return "isbn"
    return "title" if _YEAR.search(text) and _WORD.search(text) else None


def same(reference: str) -> str:
    """Return what two ways to write one source have in common.

    Example:
        >>> same("doi:10.1038/171737A0") == same("https://doi.org/10.1038/171737a0")
        True
    """
    text = reference.strip()
    match kind_of(text):
        case "doi":
            return "doi:" + _DOI_PREFIX.sub("", text).casefold()
        case "isbn":
            digits = _digits(_ISBN_PREFIX.sub("", text))
            return "isbn:" + (digits[3:-1] if len(digits) == 13 and digits.startswith("978") else digits[:-1])  # noqa: PLR2004 -- the longer form
        case "url":
            parts = urlsplit(text)
            return f"url:{parts.netloc.casefold().removeprefix('www.')}{parts.path.rstrip('/')}?{parts.query}"
        case _:
            return " ".join(re.findall(r"\w+", text.casefold()))


def _is_address(text: str) -> bool:
    if any(character.isspace() for character in text):
        return False
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(_HOST.fullmatch(host)) and not _PLACEHOLDER.search(host)


def _digits(text: str) -> str:
    return re.sub(r"[\s-]", "", text).upper()


def _is_isbn(text: str) -> bool:
    digits = _digits(text)
    if re.fullmatch(r"97[89]\d{10}", digits):
        return sum(int(digit) * (3 if at % 2 else 1) for at, digit in enumerate(digits)) % 10 == 0
    if re.fullmatch(r"\d{9}[\dX]", digits):
        return sum((10 if digit == "X" else int(digit)) * (10 - at) for at, digit in enumerate(digits)) % 11 == 0
    return False
