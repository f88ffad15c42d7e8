"""Checks of a brief: what an answer must satisfy beyond its schema.

A failed check is told to the agent in a re-ask, as a schema error is.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import regex
from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, PlainSerializer, WithJsonSchema, field_validator

from prefect_dispatch.cited_forms import EXAMPLES, SourceKind, kind_of, same
from prefect_dispatch.errors import BriefError
from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.form import Tabs
from prefect_dispatch.outputs import SEARCH_SECONDS
from prefect_dispatch.references import REFERENCE, refer
from prefect_dispatch.strict import SOME, Strict
from prefect_dispatch.template import render

if TYPE_CHECKING:
    from prefect_dispatch.models import Item

CheckFunction = Callable[[Any, Any], "str | None"]


def _function(value: object) -> object:
    if inspect.iscoroutinefunction(value):
        raise ValueError(f"must not be async: {value.__name__!r}")
    if callable(value) or (isinstance(value, str) and REFERENCE.fullmatch(value)):
        return value
    msg = f"must be a function or 'module:name', not {value!r}"
    raise ValueError(msg)


FunctionReference = Annotated[
    Any,
    BeforeValidator(_function),
    PlainSerializer(refer, return_type=str),
    WithJsonSchema({"type": "string", "pattern": REFERENCE.pattern}),
]
"""A function, or `module:name` of one in the user's own code; JSON holds the name."""


class _FieldCheck(Strict):
    field: str = ""
    """Dotted path of the field that is checked; empty for the whole answer."""

    def text(self, value: JsonValue) -> str | None:
        """Return what is checked, as text, or None where the answer has no such field."""
        part = value
        for name in filter(None, self.field.split(".")):
            if not isinstance(part, Mapping) or name not in part:
                return None
            part = part[name]
        return part if isinstance(part, str) else canonical(part)

    @property
    def where(self) -> str:
        """Return the words that name what is checked."""
        return f"field {self.field!r}" if self.field else "the answer"


class Regex(_FieldCheck):
    """The text must hold a match of a regular expression."""

    kind: Literal["regex"] = "regex"
    """Tells the checks apart."""
    pattern: str
    """The regular expression; it may match anywhere, so anchor it where that matters."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern)
        except regex.error as error:
            msg = f"not a regular expression: {error}"
            raise ValueError(msg) from None
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
    """The text must not have more than so many words."""

    kind: Literal["max_words"] = "max_words"
    """Tells the checks apart."""
    words: int = Field(ge=1)
    """The most words, counted between white space."""

    def problem(self, value: JsonValue, item: Item) -> str | None:  # noqa: ARG002 -- one signature for all checks
        """Return what is wrong with an answer, or None."""
        count = len((self.text(value) or "").split())
        return f"{self.where} has {count} words; the most is {self.words}." if count > self.words else None


class MustMention(_FieldCheck):
    """The text must name certain terms, in whatever case."""

    kind: Literal["must_mention"] = "must_mention"
    """Tells the checks apart."""
    terms: Annotated[tuple[str, ...], SOME]
    """The terms; each may use fields of the item, such as `{title}`."""

    def problem(self, value: JsonValue, item: Item) -> str | None:
        """Return what is wrong with an answer, or None."""
        text = (self.text(value) or "").casefold()
        missing = [term for term in (render(term, item) for term in self.terms) if term.casefold() not in text]
        return f"{self.where} must mention {', '.join(map(repr, missing))}." if missing else None


class Sources(Strict):
    """The answer must name sources, each well-formed and no two the same; nobody looks whether they exist."""

    model_config = ConfigDict(title="Sources")

    kind: Literal["sources"] = "sources"
    """Tells the checks apart."""
    field: str = "sources"
    """Dotted path of the list of sources, texts each."""
    at_least: int = Field(default=1, ge=0, le=100)
    """How many there must be."""
    forms: Annotated[tuple[SourceKind, ...], SOME] = ("url", "doi", "isbn", "title")
    """The forms that count: an address, a DOI, an ISBN with a right check digit, a title with a year."""

    def problem(self, value: JsonValue, item: Item) -> str | None:  # noqa: ARG002 -- one signature for all checks
        """Return what is wrong with an answer, or None."""
        found = value
        for name in filter(None, self.field.split(".")):
            found = found.get(name) if isinstance(found, Mapping) else None
        sources = found if isinstance(found, list) else []
        right = [text for text in sources if isinstance(text, str) and kind_of(text) in self.forms]
        wrong = [text for text in sources if text not in right]
        offer = "; or ".join(EXAMPLES[form] for form in self.forms)
        told = f"give each as {offer}."
        if wrong:
            return f"field {self.field!r} has {str(wrong[0])[:200]!r}, which is no source of a known form; {told}"
        if (count := len({same(text) for text in right})) < max(self.at_least, len(right)):
            much = f"names {count} different source{'s' * (count != 1)}; at least {self.at_least} are asked for"
            twice = f"names {len(right)} sources, of which only {count} are different"
            return f"field {self.field!r} {much if count < self.at_least else twice}; {told}"
        return None


class Function(Strict):
    """A function of the user's own must find nothing wrong."""

    kind: Literal["function"] = "function"
    """Tells the checks apart."""
    function: FunctionReference
    """Takes the answer's value and the item; returns what is wrong, or None."""

    def problem(self, value: JsonValue, item: Item) -> str | None:
        """Return what is wrong with an answer, or None."""
        found = self.function(copy.deepcopy(value), item)  # what it does to the answer is not what the agent said
        return str(found) if found else None


Check = Annotated[Annotated[Regex | MaxWords | MustMention | Sources | Function, Field(discriminator="kind")], Tabs()]
"""Any check; `kind` tells which."""


def source_digest(thing: Any) -> str:  # noqa: ANN401 -- a function or a class
    """Return a digest of the source of a user's function or class, so that a change of it counts.

    Raises:
        BriefError: If the source can't be read (a function typed into a console, say).
    """
    try:
        # Since Python 3.13 `python -c` shows its program as the source of whatever was compiled without a file.
        source = "" if inspect.getsourcefile(thing) == "<string>" else inspect.getsource(thing)
    except (OSError, TypeError):
        source = ""
    if not source:
        raise BriefError(
            f"The source of {refer(thing)!r} can't be read, so a change of it could not be noticed; put it into a file."
        )
    return hashlib.sha256(source.encode()).hexdigest()
