"""Strict YAML loader: YAML restricted to what JSON can express, for job files, decisions and every other YAML text.

Accepted is data only: no tags of Python, no dates, no number that JSON lacks, each key once. Aliases (`*name`) and
merge keys (`<<`) are resolved into copies, up to a total size, so a few lines can't fill the memory. Each error
message is one sentence with the line and the path in the document.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from contextlib import suppress
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

from prefect_dispatch.security.escaping import escape_unprintable, shorten
from prefect_dispatch.serialization.json_text import MAX_JSON_DEPTH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue
    from yaml.events import NodeEvent

LONGEST_KEY = 1000
"""Characters from which on YAML accepts a text as a key only after an explicit question mark."""
MAX_CHARACTERS = 20_000_000
"""Maximum length of a text in characters; longer texts are rejected before they are parsed."""
MAX_BYTES = 4 * MAX_CHARACTERS
"""Maximum size in bytes of a file with a text of that length."""
MAX_COPIED = 2_000_000
"""Characters that all aliases of a text may expand to in total: enough for anchors in a file that people write."""
MAX_DEPTH = MAX_JSON_DEPTH + 10
"""Maximum nesting of lists and mappings: an answer of the greatest depth, and the keys of a job around it."""
MAX_DIGITS = 4300
"""Maximum characters of a number: Python refuses to convert longer ones."""
MAX_SHOWN = 60
"""Characters of a key or a value that an error message quotes."""
_FAST_LOADER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_TAG = "tag:yaml.org,2002:"
_SCALARS = SafeConstructor()
_CONVERT = {
    "bool": _SCALARS.construct_yaml_bool,
    "int": _SCALARS.construct_yaml_int,
    "float": _SCALARS.construct_yaml_float,
}
_DEFAULT_TAGS: tuple[str | None, ...] = (None, "!")


_Parts = dict[str, "SourcePosition"] | list["SourcePosition"] | None


class YamlError(ValueError):
    """Error in a YAML text; the message has the line, the path and the fix, without a full stop.

    Attributes:
        line: The line, counted from 1; None if the error has no line.
    """

    def __init__(self, problem: str, line: int | None = None, path: str = "") -> None:
        """Build the message."""
        where = f"line {line}: " if line else ""
        super().__init__(f"{where}{path}{': ' if path else ''}{problem}")
        self.line = line


class SourcePosition(NamedTuple):
    """Source position of a value and of the values in it.

    Attributes:
        line: The line, counted from 1; for a value of a mapping the line of its key.
        parts: The positions of the values in it, by key or by index.
    """

    line: int
    parts: _Parts = None

    def find(self, path: Sequence[str | int]) -> SourcePosition:
        """Return the position of the value at a path below this one, or of its nearest ancestor that exists."""
        found = self
        with suppress(LookupError, TypeError):  # TypeError: a value without parts, or a list that is asked for a key
            for part in path:
                found = cast("Any", found.parts)[part]
        return found

    def __str__(self) -> str:
        """Return the position as error messages show it."""
        return f"line {self.line}"


class YamlDocument(NamedTuple):
    """One document of a YAML text.

    Attributes:
        value: The parsed value.
        position: The source position of each part of it.
    """

    value: JsonValue
    position: SourcePosition


def decode(content: bytes) -> str:
    """Decode the content of a YAML file: UTF-8, or UTF-16 with a byte order mark, as YAML allows both.

    Raises:
        YamlError: If it is neither, or too long.

    Example:
        >>> decode("a: 1".encode("utf-16")), decode(b"a: 1")
        ('a: 1', 'a: 1')
    """
    if len(content) > MAX_BYTES:
        raise YamlError(_TOO_LONG)
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


def load_documents(text: str) -> list[JsonValue]:
    r"""Return the values of the documents of a YAML text; a date stays a text, as it is in an answer.

    Raises:
        YamlError: If it is no YAML, or holds what JSON can't express.

    Example:
        >>> load_documents("same: []\n---\nwhen: 2024-05-01")
        [{'same': []}, {'when': '2024-05-01'}]
        >>> load_documents("defaults: &d {retries: 2}\nlimits: {<<: *d, reasks: 1}")
        [{'defaults': {'retries': 2}, 'limits': {'retries': 2, 'reasks': 1}}]
    """
    return [document.value for document in load_with_positions(text)]


def load_with_positions(text: str) -> list[YamlDocument]:
    """Return the documents of a YAML text, with the source position of each value.

    Raises:
        YamlError: If it is no YAML, holds what JSON can't express, or is too large.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(_TOO_LONG)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise YamlError(_LONE_SURROGATE) from None
    # 1. Try libyaml, which is fast; on a syntax error, fall through to the parser with better messages.
    with suppress(yaml.YAMLError):
        return _Reader(_FAST_LOADER(text)).read_all()
    # 2. PyYAML's own parser, whose errors are turned into sentences.
    try:
        return _Reader(yaml.SafeLoader(text)).read_all()
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
    """Return a path in a document as error messages show it.

    Example:
        >>> join_path(["briefs", 0, "output"])
        'briefs[0].output'
    """
    parts = (f"[{part}]" if isinstance(part, int) else f".{_show(part)}" for part in path)
    return "".join(parts).removeprefix(".")


class _Reader:
    """Event-based reader that builds values from the events of a parser.

    Without a tree of nodes, no alias can expand a text by more than `MAX_COPIED` characters.
    """

    def __init__(self, parser: Any) -> None:  # noqa: ANN401 -- either of PyYAML's parsers
        self._parser = parser
        self._anchors: dict[str, tuple[JsonValue, SourcePosition] | None] = {}
        self._path: list[str | int] = []
        self._copied = 0
        self._depth = 0

    def read_all(self) -> list[YamlDocument]:
        """Return all documents."""
        found: list[YamlDocument] = []
        while not isinstance(event := self._parser.get_event(), StreamEndEvent):
            if isinstance(event, DocumentStartEvent):
                self._anchors = {}
                value, place = self._read_value(self._parser.get_event())
                found.append(YamlDocument(value, place._replace(line=_line(event))))
        return found

    def _read_value(self, event: NodeEvent) -> tuple[JsonValue, SourcePosition]:
        """Return the value that begins with an event, and its position."""
        if isinstance(event, AliasEvent):
            return self._resolve_alias(event)
        if event.anchor in self._anchors:
            raise self._error(f"the anchor &{event.anchor} is defined twice; give one of them another name", event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None  # until its value is complete: an alias inside it would be a cycle
        value, parts = self._read_content(event)
        place = SourcePosition(_line(event), parts)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, place
        return value, place

    def _read_content(self, event: NodeEvent) -> tuple[JsonValue, _Parts]:
        if isinstance(event, ScalarEvent):
            return self._read_scalar(event, self._resolve_tag(event)), None
        is_sequence = isinstance(event, SequenceStartEvent)
        tag = cast("SequenceStartEvent | MappingStartEvent", event).tag
        if tag not in (*_DEFAULT_TAGS, f"{_TAG}seq" if is_sequence else f"{_TAG}map"):
            raise self._tag_error(str(tag), event)
        self._depth += 1
        self._check_depth(self._depth, event)
        found = self._read_sequence() if is_sequence else self._read_mapping()
        self._depth -= 1
        return found

    def _read_part(self, key: str | int, event: NodeEvent) -> tuple[JsonValue, SourcePosition]:
        """Return the value of a key or an index, and its position."""
        self._path.append(key)
        found = self._read_value(event)
        self._path.pop()
        return found

    def _read_sequence(self) -> tuple[JsonValue, list[SourcePosition]]:
        values, places = list[Any](), list[SourcePosition]()
        while not isinstance(event := self._parser.get_event(), SequenceEndEvent):
            value, place = self._read_part(len(values), event)
            values.append(value)
            places.append(place)
        return values, places

    def _read_mapping(self) -> tuple[JsonValue, dict[str, SourcePosition]]:
        own, places = dict[str, Any](), dict[str, SourcePosition]()
        merged: list[tuple[dict[str, Any], dict[str, SourcePosition]]] | None = None
        while not isinstance(event := self._parser.get_event(), MappingEndEvent):
            if isinstance(event, ScalarEvent) and self._resolve_tag(event) == f"{_TAG}merge":
                if merged is not None:
                    raise self._error("the key '<<' stands twice; write one with a list: <<: [*one, *other]", event)
                merged = self._read_merge(event)
                continue
            key = self._read_key(event)
            if key in own:
                raise self._error(f"the key {_quote(key)} stands twice; put all of it under one", event)
            own[key], place = self._read_part(key, self._parser.get_event())
            places[key] = place._replace(line=_line(event))
        # Own keys have precedence over merged ones, and an earlier mapping over a later one.
        for values, inside in merged or ():
            own, places = {**values, **own}, {**inside, **places}
        return own, places

    def _read_merge(self, event: NodeEvent) -> list[tuple[dict[str, JsonValue], dict[str, SourcePosition]]]:
        """Return the mappings under a merge key, each with the positions of its values."""
        value, place = self._read_value(self._parser.get_event())
        values, places = (value, place.parts) if isinstance(value, list) else ([value], [place])
        if wrong := [each for each in values if not isinstance(each, dict)]:
            raise self._error(
                f"<< takes a mapping, or a list of mappings, such as *defaults, and not {describe_value(wrong[0])}",
                event,
            )
        pairs: Any = zip(values, cast("list[SourcePosition]", places), strict=True)
        return [(each, at.parts) for each, at in pairs]

    def _read_key(self, event: NodeEvent) -> str:
        if not isinstance(event, (ScalarEvent, AliasEvent)):
            raise self._error(_NO_KEY, event)
        found, _ = self._read_value(event)
        if isinstance(found, str):
            return found
        if isinstance(found, list | dict):
            raise self._error(_NO_KEY, event)
        written = event.value if isinstance(event, ScalarEvent) else str(found)
        raise self._error(
            f"the key {_show(written) or 'before the colon'} is read as {describe_value(found)}, and a key is a text; "
            "put it in quotation marks",
            event,
        )

    def _read_scalar(self, event: ScalarEvent, tag: str) -> JsonValue:
        kind, text = tag.removeprefix(_TAG), event.value
        if kind in ("str", "timestamp", "merge", "value"):
            return self._read_text(event)
        if kind == "null":
            return None
        if kind not in _CONVERT:
            raise self._tag_error(tag, event)
        too_long = (
            f"the number has too many digits ({len(text):,} characters); put it in quotation marks to have a text"
        )
        if kind != "bool" and len(text) > MAX_DIGITS:
            raise self._error(too_long, event)
        try:
            number = _CONVERT[kind](ScalarNode(tag, text))
            str(number)  # the digit limit also applies to writing a number that was given in hexadecimal
        except (ValueError, LookupError):
            no_number = f"{_quote(text)} is no {kind}, as its tag !!{kind} demands; leave the tag out"
            raise self._error(no_number if len(text) <= MAX_SHOWN else too_long, event) from None
        if not math.isfinite(number):
            raise self._error(
                f"{_show(text)} is no number that JSON has; leave the key out, or put the word in quotation marks",
                event,
            )
        return number

    def _read_text(self, event: ScalarEvent) -> str:
        # Escapes such as "\ud83d\ude00" are two halves of one character, as JSON writes it.
        try:
            return event.value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            raise self._error(_LONE_SURROGATE, event) from None

    def _resolve_tag(self, event: ScalarEvent) -> str:
        """Return the tag of a scalar: the explicit one, or the one that its text implies."""
        if event.tag not in _DEFAULT_TAGS:
            return str(event.tag)
        return cast("str", self._parser.resolve(ScalarNode, event.value, event.implicit))

    def _resolve_alias(self, event: AliasEvent) -> tuple[JsonValue, SourcePosition]:
        name = _show(str(event.anchor))
        if event.anchor not in self._anchors:
            raise self._error(
                f"*{name} is an alias, and no anchor &{name} stands before it; put a text that begins with an asterisk "
                "in quotation marks",
                event,
            )
        anchor = self._anchors[event.anchor]
        if anchor is None:
            raise self._error(f"*{name} stands inside of what it stands for; write it out", event)
        value, place = anchor
        return self._copy(value, self._depth, event), place._replace(line=_line(event))

    def _copy(self, value: JsonValue, depth: int, event: AliasEvent) -> JsonValue:
        """Return a deep copy of the value of an alias; all copies together are at most `MAX_COPIED` characters."""
        texts = [value] if isinstance(value, str) else value if isinstance(value, dict) else ()
        self._copied += 1 + sum(map(len, texts))
        if self._copied > MAX_COPIED:
            raise self._error(
                f"with *{_show(str(event.anchor))}, the aliases up to here stand for more than {MAX_COPIED:,} "
                "characters; use fewer of them, or write out what is needed",
                event,
            )
        if not isinstance(value, (list, dict)):
            return value
        self._check_depth(depth + 1, event)
        if isinstance(value, list):
            return [self._copy(part, depth + 1, event) for part in value]
        return {name: self._copy(part, depth + 1, event) for name, part in value.items()}

    def _check_depth(self, depth: int, event: NodeEvent) -> None:
        if depth > MAX_DEPTH:
            raise YamlError(f"it is nested more than {MAX_DEPTH} deep; make it flatter", _line(event))

    def _tag_error(self, tag: str, event: NodeEvent) -> YamlError:
        return self._error(
            f"the tag {_show(tag.replace(_TAG, '!!'))} can't be used here; leave it out, or put a text that begins "
            "with an exclamation mark in quotation marks",
            event,
        )

    def _error(self, problem: str, event: NodeEvent) -> YamlError:
        return YamlError(problem, _line(event), join_path(self._path))


_LONE_SURROGATE = "it holds half of a character (a lone surrogate), which no file can; write the whole character"
_NO_KEY = "a key is a text, and here is a list or a mapping; put a text with brackets or braces in quotation marks"
_TOO_LONG = (
    f"it is longer than {MAX_CHARACTERS:,} characters; keep the items in a file of their own, such as JSON Lines "
    "(items: {jsonl: items.jsonl})"
)


def describe_value(value: object) -> str:
    """Describe a value in the words of YAML, for error messages.

    Example:
        >>> describe_value(None), describe_value([1]), describe_value("MIT"), describe_value(2)
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
    return "a mapping" if isinstance(value, dict) else f"the number {_show(str(value))}"


def _line(event: Any) -> int:  # noqa: ANN401 -- an event or an error of either parser
    return int(event.start_mark.line) + 1


def _quote(text: str) -> str:
    return repr(shorten(text, MAX_SHOWN))


def _show(text: str) -> str:
    return escape_unprintable(shorten(text, MAX_SHOWN))


_OPEN_COLLECTIONS = {"flow sequence": ("list", "]"), "flow mapping": ("mapping", "}")}
_SYNTAX: tuple[tuple[str, str, str], ...] = (
    # Pattern of PyYAML's context, pattern of its problem, our message; {begin} is the line of the context.
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
    """Return a syntax error of PyYAML as a message for the author of the file."""
    problem, context = str(error.problem), str(error.context)
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    begin = error.context_mark.line + 1 if error.context_mark else line
    opened, closing = next((each for name, each in _OPEN_COLLECTIONS.items() if name in context), ("", ""))
    # The last entry of the table matches everything.
    template, match = next(
        (template, match)
        for where, pattern, template in _SYNTAX
        if re.search(where, context) and (match := re.search(pattern, problem))
    )
    text = template.format(
        *(group or "that" for group in match.groups()), begin=begin, opened=opened, closing=closing, problem=problem
    )
    return YamlError(f"not YAML: {escape_unprintable(text)}", line)


def dump_line(value: JsonValue) -> str:
    r"""Return a value as one line of YAML: JSON with unprintable characters escaped.

    Example:
        >>> dump_line([{"name": "MIT"}, {"name": "TIM\u202e", "score": 1e20}])
        '[{"name": "MIT"}, {"name": "TIM\\u202e", "score": 1.0e+20}]'
    """
    if isinstance(value, list):
        return f"[{', '.join(map(dump_line, value))}]"
    if isinstance(value, dict):
        keys = (key if len(key) < LONGEST_KEY else f"? {key} " for key in map(dump_line, value))
        return f"{{{', '.join(f'{key}: {dump_line(part)}' for key, part in zip(keys, value.values(), strict=True))}}}"
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return text if "." in text else text.replace("e", ".0e")  # "1e+20" is a text in YAML
    return escape_unprintable(text)
