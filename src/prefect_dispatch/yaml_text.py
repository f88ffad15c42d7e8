"""YAML that holds JSON and nothing else: the one loader of job files, decisions and every other YAML text.

What is read is data: no tags of Python, no dates, no number that JSON lacks, each key once. Aliases (`*name`) and
merge keys (`<<`) are resolved into copies, up to a total size, so a few lines can't fill the memory. Each problem is a
sentence with its line and its path in the document.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import yaml
from yaml.constructor import SafeConstructor
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from yaml.nodes import ScalarNode

from prefect_dispatch.fingerprint import DEEPEST
from prefect_dispatch.inert import legible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue
    from yaml.events import NodeEvent

LONGEST_KEY = 1000
"""Characters after which YAML takes a text for a key only if a question mark says so."""
MAX_CHARACTERS = 20_000_000
"""Length of a text; longer ones are refused before they are parsed."""
MAX_BYTES = 4 * MAX_CHARACTERS
"""Length of a file with so long a text, at most."""
MAX_COPIED = 2_000_000
"""Characters that all aliases of a text may stand for together: enough for anchors in a file that people write."""
MAX_DEPTH = DEEPEST + 10
"""How deep lists and mappings may be nested: an answer of the greatest depth, and the keys of a job around it."""
MAX_DIGITS = 4300
"""Characters of a number; Python refuses to convert some more."""
MAX_SHOWN = 60
"""Characters of a key or a value that a message quotes."""

_PARSERS: tuple[Any, ...] = (*([yaml.CSafeLoader] if yaml.__with_libyaml__ else []), yaml.SafeLoader)
"""Parsers in the order in which they are tried: libyaml is fast, and PyYAML's own knows more about a syntax error."""
_TAG = "tag:yaml.org,2002:"
_SCALARS = SafeConstructor()
_CONVERT = {
    "bool": _SCALARS.construct_yaml_bool,
    "int": _SCALARS.construct_yaml_int,
    "float": _SCALARS.construct_yaml_float,
}
_DEFAULT_TAGS: tuple[str | None, ...] = (None, "!")


class YamlError(ValueError):
    """A YAML text can't be used; the message has the line, the path and the way out, without a full stop.

    Attributes:
        line: The line, counted from 1; None where no line is to blame.
    """

    def __init__(self, problem: str, line: int | None = None, path: str = "") -> None:
        """Build the message."""
        where = f"line {line}: " if line else ""
        super().__init__(f"{where}{path}{': ' if path else ''}{problem}")
        self.line = line


class Place(NamedTuple):
    """Where a value stands in a text.

    Attributes:
        line: The line, counted from 1; that of its key where it has one.
        parts: The places of the values in it, by key or by number.
    """

    line: int
    parts: dict[str, Place] | list[Place] | None = None

    def find(self, path: Sequence[str | int]) -> Place:
        """Return the place of a value below this one; where there is none of that path, of what is nearest above it."""
        found = self
        with suppress(LookupError, TypeError):  # TypeError: a value without parts, or a list that is asked for a key
            for part in path:
                found = cast("Any", found.parts)[part]
        return found

    def __str__(self) -> str:
        """Return what a message calls it."""
        return f"line {self.line}"


@dataclass(frozen=True)
class Document:
    """One document of a YAML text.

    Attributes:
        value: What it says.
        place: Where each part of it stands.
    """

    value: JsonValue
    place: Place


def decode(content: bytes) -> str:
    """Return the text of a file: UTF-8, or UTF-16 with a byte order mark, as YAML allows both.

    Raises:
        YamlError: If it is neither, or too long.

    Example:
        >>> decode("a: 1".encode("utf-16")), decode(b"a: 1")
        ('a: 1', 'a: 1')
    """
    if len(content) > MAX_BYTES:
        raise _too_long()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        if wide:
            raise YamlError(
                "it begins with the byte order mark of UTF-16, but is not UTF-16 text; save it as UTF-8"
            ) from None
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlError(
            f"it is not UTF-8 text: the byte 0x{content[error.start]:02x} can't stand there; save it as UTF-8", line
        ) from None


def documents(text: str) -> list[JsonValue]:
    r"""Return the values of the documents of a YAML text; what looks like a date is a text, as it is in an answer.

    Raises:
        YamlError: If it is no YAML, or says what JSON can't.

    Example:
        >>> documents("same: []\n---\nwhen: 2024-05-01")
        [{'same': []}, {'when': '2024-05-01'}]
        >>> documents("defaults: &d {retries: 2}\nlimits: {<<: *d, reasks: 1}")
        [{'defaults': {'retries': 2}, 'limits': {'retries': 2, 'reasks': 1}}]
    """
    return [document.value for document in read_documents(text)]


def read_documents(text: str) -> list[Document]:
    """Return the documents of a YAML text, with the place of each value.

    Raises:
        YamlError: If it is no YAML, says what JSON can't, or is too large.
    """
    if len(text) > MAX_CHARACTERS:
        raise _too_long()
    if not _is_whole(text):
        raise YamlError(_HALF)
    for parser in _PARSERS[:-1]:
        with suppress(yaml.YAMLError):
            return _Reader(parser(text)).read_all()
    try:
        return _Reader(_PARSERS[-1](text)).read_all()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(
            f"the character U+{int(error.character):04X} can't stand in YAML; this is no text file, or the "
            "character has to be written as an escape in double quotation marks",
            line,
        ) from None
    except yaml.MarkedYAMLError as error:
        raise _explain_syntax(error) from None


def join_path(path: Sequence[str | int]) -> str:
    """Return a path in a document as a message shows it.

    Example:
        >>> join_path(["briefs", 0, "output"])
        'briefs[0].output'
    """
    parts = (f"[{part}]" if isinstance(part, int) else f".{legible(_cut(part))}" for part in path)
    return "".join(parts).removeprefix(".")


class _Anchor(NamedTuple):
    """What an alias stands for."""

    value: JsonValue
    place: Place
    size: int
    height: int


class _Reader:
    """Builds values from the events of a parser.

    No tree of nodes is built, so no alias can make one that is larger than the text by more than `MAX_COPIED`.
    """

    def __init__(self, parser: Any) -> None:  # noqa: ANN401 -- either of PyYAML's parsers
        self._parser = parser
        self._anchors: dict[str, _Anchor | None] = {}
        self._path: list[str | int] = []
        self._size = 0  # characters of what was read so far, copies included
        self._copied = 0
        self._depth = 0
        self._deepest = 0

    def read_all(self) -> list[Document]:
        """Return all documents."""
        found: list[Document] = []
        while not isinstance(event := self._parser.get_event(), StreamEndEvent):
            if isinstance(event, DocumentStartEvent):
                self._anchors = {}
                begin = _line(event)
                value, place = self._value(self._parser.get_event())
                # Until here, what aliases stand for is shared, so that a text is refused before anything is copied.
                found.append(Document(_copy(value) if self._copied else value, place._replace(line=begin)))
        return found

    def _value(self, event: NodeEvent) -> tuple[JsonValue, Place]:
        """Return the value that begins with an event, and its place."""
        if isinstance(event, AliasEvent):
            return self._resolve(event)
        if (name := event.anchor) is not None:
            if name in self._anchors:
                raise self._error(f"the anchor &{name} is defined twice; give one of them another name", event)
            self._anchors[name] = None  # until its value is complete: an alias inside it would be a circle
        size, deepest = self._size, self._deepest
        self._deepest = self._depth
        value, parts = self._content(event)
        place = Place(_line(event), parts)
        if name is not None:
            self._anchors[name] = _Anchor(value, place, self._size - size, self._deepest - self._depth)
        self._deepest = max(deepest, self._deepest)
        return value, place

    def _content(self, event: NodeEvent) -> tuple[JsonValue, dict[str, Place] | list[Place] | None]:
        self._size += 1
        if isinstance(event, ScalarEvent):
            self._size += len(event.value)
            return self._scalar(event, self._tag(event)), None
        tag = cast("SequenceStartEvent | MappingStartEvent", event).tag
        wanted = "seq" if isinstance(event, SequenceStartEvent) else "map"
        if tag not in (*_DEFAULT_TAGS, _TAG + wanted):
            raise self._tag_error(str(tag), event)
        self._descend(1, event)
        self._depth += 1
        read = self._sequence if isinstance(event, SequenceStartEvent) else self._mapping
        found = read()
        self._depth -= 1
        return found

    def _sequence(self) -> tuple[JsonValue, list[Place]]:
        values, places = list[Any](), list[Place]()
        while not isinstance(event := self._parser.get_event(), SequenceEndEvent):
            self._path.append(len(values))
            value, place = self._value(event)
            self._path.pop()
            values.append(value)
            places.append(place)
        return values, places

    def _mapping(self) -> tuple[JsonValue, dict[str, Place]]:
        own, places = dict[str, Any](), dict[str, Place]()
        merged: tuple[dict[str, Any], dict[str, Place]] | None = None
        while not isinstance(event := self._parser.get_event(), MappingEndEvent):
            if isinstance(event, ScalarEvent) and self._tag(event) == f"{_TAG}merge":
                if merged is not None:
                    raise self._error("the key '<<' stands twice; write one with a list: <<: [*one, *other]", event)
                merged = self._merge(event)
                continue
            key = self._key(event)
            if key in own:
                raise self._error(f"the key {_quote(key)} stands twice; put all of it under one", event)
            self._path.append(key)
            own[key], place = self._value(self._parser.get_event())
            self._path.pop()
            places[key] = place._replace(line=_line(event))
        if merged is not None:
            return {**merged[0], **own}, {**merged[1], **places}
        return own, places

    def _merge(self, event: NodeEvent) -> tuple[dict[str, Any], dict[str, Place]]:
        """Return what stands under a merge key, of several mappings the earlier first."""
        value, place = self._value(self._parser.get_event())
        several = isinstance(value, list)
        values: list[Any] = value if isinstance(value, list) else [value]
        places = cast("list[Place]", place.parts) if several else [place]
        found, where = dict[str, Any](), dict[str, Place]()
        for each, its in zip(values, places, strict=True):
            if not isinstance(each, dict):
                raise self._error(
                    f"<< takes a mapping, or a list of mappings, such as *defaults, and not {describe(each)}", event
                )
            inside = cast("dict[str, Any]", each)
            found = {**inside, **found}
            where = {**cast("dict[str, Place]", its.parts), **where}
        return found, where

    def _key(self, event: NodeEvent) -> str:
        found, _ = self._value(event)
        if isinstance(found, str):
            return found
        if isinstance(found, list | dict):
            raise self._error(
                "a key is a text, and here is a list or a mapping; put a text with brackets or braces in quotation "
                "marks",
                event,
            )
        written = event.value if isinstance(event, ScalarEvent) else str(found)
        raise self._error(
            f"the key {legible(_cut(written)) or 'before the colon'} is read as {describe(found)}, and a key is a "
            "text; put it in quotation marks",
            event,
        )

    def _scalar(self, event: ScalarEvent, tag: str) -> JsonValue:
        kind, text = tag.removeprefix(_TAG), event.value
        if kind in ("str", "timestamp", "merge", "value"):
            return self._text(event)
        if kind == "null":
            return None
        if kind not in ("bool", "int", "float"):
            raise self._tag_error(tag, event)
        too_long = (
            f"the number has too many digits ({len(text):,} characters); put it in quotation marks to have a text"
        )
        if kind != "bool" and len(text) > MAX_DIGITS:
            raise self._error(too_long, event)
        try:
            number = _CONVERT[kind](ScalarNode(tag, text))
            str(number)  # Python writes only so many digits of a hexadecimal number, too
        except (ValueError, LookupError):
            no_number = f"{_quote(text)} is no {kind}, as its tag !!{kind} demands; leave the tag out"
            raise self._error(no_number if len(text) <= MAX_SHOWN else too_long, event) from None
        if not math.isfinite(number):
            raise self._error(
                f"{_cut(text)} is no number that JSON has; leave the key out, or put the word in quotation marks", event
            )
        return number

    def _text(self, event: ScalarEvent) -> str:
        text = event.value
        if _is_whole(text):
            return text
        # Escapes such as "\ud83d\ude00" are two halves of one character, as JSON writes it.
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if "\ufffd" in joined and "\ufffd" not in text:
            raise self._error(_HALF, event)
        return joined

    def _tag(self, event: ScalarEvent) -> str:
        """Return the tag of a scalar: the one that it has, or the one that its text implies."""
        if event.tag not in _DEFAULT_TAGS:
            return str(event.tag)
        return cast("str", self._parser.resolve(ScalarNode, event.value, event.implicit))

    def _resolve(self, event: AliasEvent) -> tuple[JsonValue, Place]:
        name = legible(_cut(str(event.anchor)))
        if name not in self._anchors:
            raise self._error(
                f"*{name} is an alias, and no anchor &{name} stands before it; put a text that begins with an asterisk "
                "in quotation marks",
                event,
            )
        anchor = self._anchors[name]
        if anchor is None:
            raise self._error(f"*{name} stands inside of what it stands for; write it out", event)
        self._copied += anchor.size
        if self._copied > MAX_COPIED:
            raise self._error(
                f"with *{name}, the aliases up to here stand for more than {MAX_COPIED:,} characters; "
                "use fewer of them, or write out what is needed",
                event,
            )
        self._size += anchor.size
        self._descend(anchor.height, event)
        return anchor.value, anchor.place._replace(line=_line(event))

    def _descend(self, levels: int, event: NodeEvent) -> None:
        self._deepest = max(self._deepest, self._depth + levels)
        if self._deepest > MAX_DEPTH:
            raise YamlError(f"it is nested more than {MAX_DEPTH} deep; make it flatter", _line(event))

    def _tag_error(self, tag: str, event: NodeEvent) -> YamlError:
        name = legible(_cut(tag.replace(_TAG, "!!")))
        return self._error(
            f"the tag {name} can't be used here; leave it out, or put a text that begins with an exclamation mark in "
            "quotation marks",
            event,
        )

    def _error(self, problem: str, event: NodeEvent) -> YamlError:
        return YamlError(problem, _line(event), join_path(self._path))


_HALF = "it holds half of a character (a lone surrogate), which no file can; write the whole character"


def _too_long() -> YamlError:
    return YamlError(
        f"it is longer than {MAX_CHARACTERS:,} characters; keep the items in a file of their own, such as JSON Lines "
        "(items: {jsonl: items.jsonl})"
    )


def describe(value: object) -> str:
    """Return what a value is, in the words of YAML.

    Example:
        >>> describe(None), describe([1]), describe("MIT"), describe(2)
        ('nothing (null)', 'a list', "the text 'MIT'", 'the number 2')
    """
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"{str(value).lower()} (yes or no)"
    if isinstance(value, str):
        return f"the text {_quote(value)}"
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, dict) else f"the number {_cut(str(value))}"


def _copy(value: JsonValue) -> JsonValue:
    """Return a copy, in which nothing is shared that can be changed."""
    if isinstance(value, dict):
        return {name: _copy(part) for name, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value


def _is_whole(text: str) -> bool:
    """Return whether a text holds whole characters only."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _line(event: Any) -> int:  # noqa: ANN401 -- an event or an error of either parser
    return int(event.start_mark.line) + 1


def _quote(text: str) -> str:
    return repr(_cut(text))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


_OPENED = {"flow sequence": ("list", "]"), "flow mapping": ("mapping", "}")}
_SYNTAX: tuple[tuple[str, str, str], ...] = (
    # A pattern of PyYAML's context, one of its problem, and what is said; {begin} is the line of the context.
    ("", r"found character '\\t' that", "a tab stands where YAML wants spaces; indent with spaces"),
    ("", r"found character '(.)' that", "no text can begin with {0}; put it in quotation marks"),
    (
        "quoted scalar",
        "unexpected end of stream|unexpected document separator",
        "the quotation mark in line {begin} is never closed; close it",
    ),
    (
        "double-quoted",
        r"unknown escape character '(.+)'|expected escape sequence",
        "after a backslash in double quotation marks comes no {0}; double the backslash, or use single quotation marks",
    ),
    (
        "",
        "mapping values are not allowed",
        (
            "a colon with a space behind it can't stand here; put a text that holds one in quotation marks, and begin "
            "each key in the column of the others"
        ),
    ),
    (
        "scanning an? (alias|anchor)",
        "expected alphabetic",
        "a text that begins with * or & has to stand in quotation marks",
    ),
    ("simple key", "could not find expected ':'", "a key without a colon stands in line {begin}; write 'key: value'"),
    (
        "flow (sequence|mapping)",
        "expected ',' or",
        "the {opened} that begins in line {begin} is not closed here; a comma or {closing} is missing",
    ),
    (
        "flow (node|mapping|sequence)",
        "but found '<stream end>'",
        "the text ends within a list or a mapping; close it with ] or }}",
    ),
    (
        "block (mapping|collection)",
        "but found '<scalar>'",
        (
            "a text goes on behind its closing quotation mark; put all of it in quotation marks, and write a single "
            "one within single ones twice"
        ),
    ),
    (
        "block (mapping|collection|sequence)",
        "expected <block end>",
        (
            "this line fits neither the indentation nor the kind of what begins in line {begin}; begin each key, or "
            "each dash, in the same column"
        ),
    ),
    ("", "", "{problem}"),
)


def _explain_syntax(error: yaml.MarkedYAMLError) -> YamlError:
    """Return a syntax error of PyYAML in words for people who write a file."""
    problem, context = str(error.problem), str(error.context)
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    begin = error.context_mark.line + 1 if error.context_mark else line
    opened, closing = next((each for name, each in _OPENED.items() if name in context), ("", ""))
    said = next(
        (words, found)
        for where, pattern, words in _SYNTAX
        if re.search(where, context) and (found := re.search(pattern, problem))
    )
    words, found = said
    text = words.format(
        *(group or "that" for group in found.groups()), begin=begin, opened=opened, closing=closing, problem=problem
    )
    return YamlError(f"not YAML: {legible(text)}", line)


def in_line(value: JsonValue) -> str:
    r"""Return a value as one line of YAML: JSON, with every character that can't be seen as an escape.

    Example:
        >>> in_line([{"name": "MIT"}, {"name": "TIM\u202e", "score": 1e20}])
        '[{"name": "MIT"}, {"name": "TIM\\u202e", "score": 1.0e+20}]'
    """
    if isinstance(value, list):
        return f"[{', '.join(map(in_line, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(in_line(key))}: {in_line(part)}' for key, part in value.items())}}}"
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return text if "." in text else text.replace("e", ".0e")  # "1e+20" is a text in YAML
    return "".join(character if character.isprintable() else _escaped(ord(character)) for character in text)


def _key(text: str) -> str:
    return text if len(text) < LONGEST_KEY else f"? {text} "


def _escaped(point: int) -> str:
    return f"\\u{point:04x}" if point < 1 << 16 else f"\\U{point:08x}"
