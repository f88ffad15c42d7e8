"""YAML that holds JSON and nothing else: read strictly, written so that no character of it hides."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, cast

import yaml

from prefect_dispatch.fingerprint import flaw

if TYPE_CHECKING:
    from pydantic import JsonValue

LONGEST_KEY = 1000
"""Characters after which YAML takes a text for a key only if a question mark says so."""


def documents(text: str) -> list[JsonValue]:
    r"""Return the documents of a YAML text; what looks like a date is a text, as it is in an answer.

    Raises:
        ValueError: If it is no YAML, or says what JSON can't; the message says what and in which line.

    Example:
        >>> documents("same: []\n---\nwhen: 2024-05-01")
        [{'same': []}, {'when': '2024-05-01'}]
    """
    try:
        found: list[JsonValue] = list(yaml.load_all(text, _Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{getattr(error, 'problem', None) or 'not YAML'}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if wrong := next(filter(None, map(flaw, found)), None):
        raise ValueError(f"it {wrong}")
    return found


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


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, further reduced to what JSON can say."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next part; not one that stands elsewhere: a few lines of those say more than fits in memory."""
        if self.check_event(yaml.AliasEvent):
            event = cast("Any", self).peek_event()
            raise _refusal(f"*{event.anchor} stands for something else; write that out", event)
        return super().compose_node(parent, index)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = cast("Any", loader).construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise _refusal(f"the key {key!r} is no text; put it in quotation marks", key_node)
        if key in made:
            raise _refusal(f"the key {key!r} stands twice; put all of it under one", key_node)
        made[key] = cast("Any", loader).construct_object(value_node, deep=True)
    return made


def _number(loader: _Loader, node: yaml.ScalarNode) -> float:
    try:
        number: float = (loader.construct_yaml_int if node.tag.endswith(":int") else loader.construct_yaml_float)(node)
        str(number)
    except ValueError:
        raise _refusal("the number has too many digits", node) from None
    if not math.isfinite(number):
        raise _refusal(f"{node.value} is no number that JSON has", node)
    return number


def _refusal(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":merge", ":value"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.endswith((":null", ":bool", ":str", ":seq"))
}
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)
