"""Checks of a brief: conditions that an answer must satisfy beyond its schema.

A failed check is reported to the agent in a re-ask, as a schema error is.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import regex
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
    model_serializer,
)

from prefect_dispatch.errors import BriefError
from prefect_dispatch.models.base import NON_EMPTY, Strict, Tabs
from prefect_dispatch.models.imports import REFERENCE, to_reference
from prefect_dispatch.models.item import render
from prefect_dispatch.models.output_schema import SEARCH_SECONDS
from prefect_dispatch.security.escaping import count_noun
from prefect_dispatch.serialization.json_text import canonical_json
from prefect_dispatch.serialization.json_values import get_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.outcome import Citation


SourceKind = Literal["url", "doi", "isbn", "title"]
"""The forms of a source."""

SOURCE_EXAMPLES: dict[SourceKind, str] = {
    "url": "an address such as https://www.rfc-editor.org/rfc/rfc9110",
    "doi": "a DOI such as 10.1038/171737a0",
    "isbn": "an ISBN such as 978-0-13-468599-1",
    "title": "a title with its year, such as Molecular Structure of Nucleic Acids (1953)",
}
"""An example of each form, in words for a model."""

_DOI = re.compile(r"10\.\d{4,9}(?:\.\d+)*/[^\s/][^\s]*")
_DOI_PREFIX = re.compile(r"(?i)\A(?:https?://(?:dx\.)?doi\.org/|doi:\s*)")

_HOST = re.compile(
    r"(?i)(?:[a-z0-9\u00a1-\uffff](?:[a-z0-9\u00a1-\uffff-]*[a-z0-9\u00a1-\uffff])?\.)+[a-z\u00a1-\uffff][a-z0-9\u00a1-\uffff-]+"
)

_PLACEHOLDER = re.compile(r"(?i)(?:^|\.)(?:example\.(?:com|org|net|edu)|(?:test|invalid|localhost|example))$")
_ISBN_PREFIX = re.compile(r"(?i)\AISBN(?:-1[03])?:?\s*")
_YEAR = re.compile(r"(?<!\d)(?:1[0-9]|20)\d{2}(?!\d)")
_TRACKING = re.compile(r"(?<=[?&])utm_[a-z]+=[^&#]*&?")
_MAX_OFFERED = 10
"""Pages of a web search that a problem lists."""
_WORD = re.compile(r"[^\W\d_]{2,}")


def source_kind(reference: str) -> SourceKind | None:
    """Return the form of a source; None if it has none of them.

    Example:
        >>> [source_kind(text) for text in ("https://doi.org/10.1038/171737a0", "ISBN 0-306-40615-2", "see above")]
        ['doi', 'isbn', None]
    """
    text = reference.strip()
    if _DOI.fullmatch(_DOI_PREFIX.sub("", text)):
        return "doi"
    if "://" in text:
        return "url" if is_address(text) else None
    if _is_isbn(_ISBN_PREFIX.sub("", text)):
        return "isbn"
    return "title" if _YEAR.search(text) and _WORD.search(text) else None


def normalize_source(reference: str) -> str:
    """Return the normalized form of a source: equal for all notations of one source.

    Example:
        >>> normalize_source("doi:10.1038/171737A0") == normalize_source("https://doi.org/10.1038/171737a0")
        True
    """
    text = reference.strip()
    match source_kind(text):
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


def is_address(text: str) -> bool:
    """Return whether a text is an address of a public page: http or https, a full host name, no placeholder."""
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


def _require_function(value: object) -> object:
    if inspect.iscoroutinefunction(value):
        raise ValueError(f"must not be async: {value.__name__!r}")
    if callable(value) or (isinstance(value, str) and REFERENCE.fullmatch(value)):
        return value
    raise ValueError(f"must be a function or 'module:name', not {value!r}")


FunctionReference = Annotated[
    Any,
    BeforeValidator(_require_function),
    PlainSerializer(to_reference, return_type=str),
    WithJsonSchema({"type": "string", "pattern": REFERENCE.pattern}),
]
"""A function, or the `module:name` of one in the user's own code; in JSON it is the name."""


class _FieldCheck(Strict):
    field: str = ""
    """Dotted path of the field that is checked; empty for the whole answer."""

    def text(self, value: JsonValue) -> str | None:
        """Return the checked part of an answer as text, or None if the answer has no such field."""
        part = value
        for name in filter(None, self.field.split(".")):
            if not isinstance(part, Mapping) or name not in part:
                return None
            part = part[name]
        return part if isinstance(part, str) else canonical_json(part)

    @property
    def where(self) -> str:
        """The checked part, in words."""
        return f"field {self.field!r}" if self.field else "the answer"


class Regex(_FieldCheck):
    """The text must contain a match of a regular expression."""

    kind: Literal["regex"] = "regex"
    """Kind of the check."""
    pattern: str
    """The regular expression; it may match anywhere, so anchor it where that matters."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    def problem(self, value: JsonValue, item: Item) -> str | None:  # noqa: ARG002 -- one signature for all checks
        """Return what is wrong with an answer, or None."""
        text = self.text(value)
        if text is None:
            return f"{self.where} is missing."
        try:
            found = regex.search(self.pattern, text, timeout=SEARCH_SECONDS)
        except TimeoutError:
            return f"{self.where} could not be searched for {self.pattern!r} within {SEARCH_SECONDS:g} s."
        return None if found else f"{self.where} must match the pattern {self.pattern!r}."


class MaxWords(_FieldCheck):
    """The text must not exceed a number of words."""

    kind: Literal["max_words"] = "max_words"
    """Kind of the check."""
    words: int = Field(ge=1)
    """The most words, separated by white space."""

    def problem(self, value: JsonValue, item: Item) -> str | None:  # noqa: ARG002 -- one signature for all checks
        """Return what is wrong with an answer, or None."""
        count = len((self.text(value) or "").split())
        return f"{self.where} has {count} words; the most is {self.words}." if count > self.words else None


class MustMention(_FieldCheck):
    """The text must mention certain terms, in any case."""

    kind: Literal["must_mention"] = "must_mention"
    """Kind of the check."""
    terms: Annotated[tuple[str, ...], NON_EMPTY]
    """The terms; each may use fields of the item, such as `{title}`."""

    def problem(self, value: JsonValue, item: Item) -> str | None:
        """Return what is wrong with an answer, or None."""
        text = (self.text(value) or "").casefold()
        missing = [term for term in (render(term, item) for term in self.terms) if term.casefold() not in text]
        return f"{self.where} must mention {', '.join(map(repr, missing))}." if missing else None


class Sources(Strict):
    """The answer must name sources, each well-formed and no two the same; `from_search` checks that they exist."""

    model_config = ConfigDict(title="Sources")

    kind: Literal["sources"] = "sources"
    """Kind of the check."""
    field: str = "sources"
    """Dotted path of the list of sources, texts each."""
    at_least: int = Field(default=1, ge=0, le=100)
    """The least number of sources."""
    forms: Annotated[tuple[SourceKind, ...], NON_EMPTY] = ("url", "doi", "isbn", "title")
    """The forms that count: an address, a DOI, an ISBN with a correct check digit, a title with a year."""
    from_search: bool = False
    """Whether each must be a page that the model's own web search returned; then existence is checked, too."""

    def problem(self, value: JsonValue, item: Item) -> str | None:  # noqa: ARG002 -- one signature for all checks
        """Return what is wrong with an answer, or None."""
        found = get_at(value, filter(None, self.field.split(".")))
        sources = found if isinstance(found, list) else []
        right = [text for text in sources if isinstance(text, str) and source_kind(text) in self.forms]
        wrong = [text for text in sources if text not in right]
        offer = "; or ".join(SOURCE_EXAMPLES[form] for form in self.forms)
        hint = f"give each as {offer}."
        if wrong:
            return f"field {self.field!r} has {str(wrong[0])[:200]!r}, which is no source of a known form; {hint}"
        if (count := len({normalize_source(text) for text in right})) < max(self.at_least, len(right)):
            too_few = f"names {count_noun(count, 'different source')}; at least {self.at_least} are asked for"
            repeated = f"names {len(right)} sources, of which only {count} are different"
            return f"field {self.field!r} {too_few if count < self.at_least else repeated}; {hint}"
        return None

    def citation_problem(self, value: JsonValue, citations: Sequence[Citation]) -> str | None:
        """Return what is wrong with the sources of an answer, compared with the pages that a web search returned."""
        if not self.from_search:
            return None
        if not citations:
            return f"no web search returned a page, so nothing supports field {self.field!r}; search the web."
        known = {normalize_source(_without_tracking(each.url)) for each in citations}
        known |= {normalize_source(each.title) for each in citations if each.title}
        found = get_at(value, filter(None, self.field.split(".")))
        for text in found if isinstance(found, list) else []:
            if normalize_source(_without_tracking(str(text))) not in known:
                pages = "; ".join(each.url for each in citations[:_MAX_OFFERED])
                return f"field {self.field!r} has {str(text)[:200]!r}, which your web search did not return: {pages}"
        return None

    @model_serializer(mode="wrap")
    def _omit_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `from_search` where it isn't set: the check is part of fingerprints, which it must not change."""
        fields: dict[str, Any] = handler(self)
        return fields if self.from_search else {name: each for name, each in fields.items() if name != "from_search"}


def _without_tracking(address: str) -> str:
    """Return an address without the parameters that providers and newsletters append, such as `utm_source=openai`."""
    return _TRACKING.sub("", address.strip()).rstrip("?&")


class Function(Strict):
    """A function of the user's own must find no problem."""

    kind: Literal["function"] = "function"
    """Kind of the check."""
    function: FunctionReference
    """Takes the answer's value and the item; returns what is wrong, or None."""

    def problem(self, value: JsonValue, item: Item) -> str | None:
        """Return what is wrong with an answer, or None."""
        found = self.function(copy.deepcopy(value), item)  # so that the function can't change the answer
        return str(found) if found else None


Check = Annotated[Annotated[Regex | MaxWords | MustMention | Sources | Function, Field(discriminator="kind")], Tabs()]
"""Any check, by its `kind`."""


def source_digest(thing: Any) -> str:  # noqa: ANN401 -- a function or a class
    """Return the SHA-256 of the source of a user's function or class, so that its changes are noticed.

    A model of this package states its `code_version` instead: an edit of its wording must not invalidate stored
    answers.

    Raises:
        BriefError: If the source can't be read (a function typed into a console, say).
    """
    is_ours = str(getattr(thing, "__module__", "")).startswith("prefect_dispatch.")
    if is_ours and (version := getattr(thing, "code_version", None)):
        return str(version)
    try:
        # Since Python 3.13 `python -c` gives its program as the source of any code that was compiled without a file.
        source = "" if inspect.getsourcefile(thing) == "<string>" else inspect.getsource(thing)
    except (OSError, TypeError):
        source = ""
    if not source:
        raise BriefError(
            f"The source of {to_reference(thing)!r} can't be read, so a change of it could not be noticed; put it "
            "into a file."
        )
    return hashlib.sha256(source.encode()).hexdigest()
