"""Items: the inputs of a job, and placeholders for their fields in the texts of a brief.

`{field}` and `{field.sub}` stand for values of the item; `{key}` for its key; `{{field}}` is the text `{field}`. A
placeholder is a plain look-up in the item's JSON: nothing is called, no attribute is read, and the value of a field is
inserted unchanged and never read as a template again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import StringConstraints

from prefect_dispatch.errors import BriefError
from prefect_dispatch.models.base import CompactFrozen, StorableJson, Strict
from prefect_dispatch.serialization.json_text import canonical_json

if TYPE_CHECKING:
    from pydantic import JsonValue


class Item(Strict, CompactFrozen):
    """One input.

    Example:
        >>> Item(key="mit.txt", value="Permission is hereby granted …").key
        'mit.txt'
    """

    key: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """Its name in reports, messages and files; unique within a job."""
    value: StorableJson
    """The input of the agent: text, or any JSON value."""
    priority: int = 0
    """A higher one wins a conflict between briefs of equal priority."""


_NAME = r"[A-Za-z_][\w-]*(?:\.[\w-]+)*"
_BRACES = re.compile(rf"\{{({_NAME})\}}")
_PLACEHOLDER = re.compile(rf"\{{\{{(?P<literal>{_NAME})\}}\}}|\{{(?P<name>{_NAME})\}}")


def placeholders(text: str) -> list[str]:
    """Return the names of the placeholders in a text, in order, with repetitions.

    Example:
        >>> placeholders("Compare {title} with {meta.year}; answer {{title}} or {'a': 1}.")
        ['title', 'meta.year']
    """
    return [match["name"] for match in _PLACEHOLDER.finditer(text) if match["name"]]


def escape_template(text: str) -> str:
    """Escape a text, so that `render` returns the original: it has no placeholders then.

    Example:
        >>> escape_template("Answer {name} or {'a': 1}.")
        "Answer {{name}} or {'a': 1}."
    """
    return _BRACES.sub(r"{{\1}}", text)


def unescape_template(text: str) -> str:
    """Return a template for people to read: escaped braces become single ones, and placeholders stay.

    Example:
        >>> unescape_template("Spell {key} in {{name}}.")
        'Spell {key} in {name}.'
    """
    return _PLACEHOLDER.sub(lambda found: "{" + (found["literal"] or found["name"]) + "}", text)


def render(text: str, item: Item, quote: Callable[[str], str] = str) -> str:
    """Return a text with its placeholders replaced by the item's values.

    Args:
        text: The template.
        item: The item.
        quote: Escapes a value for the language of the text, such as `glob.escape`.

    Raises:
        BriefError: If the item has no such field.

    Example:
        >>> from prefect_dispatch import Item
        >>> render("What does {name} do in {{name}}?", Item(key="a", value={"name": "{key}"}))
        'What does {key} do in {name}?'
    """

    def replacement(match: re.Match[str]) -> str:
        return "{" + match["literal"] + "}" if match["literal"] else quote(_format_value(look_up(item, match["name"])))

    return _PLACEHOLDER.sub(replacement, text)


def look_up(item: Item, path: str) -> JsonValue:
    """Return the value of a dotted field of an item.

    Raises:
        BriefError: If the item has no such field.
    """
    value: JsonValue = item.value
    if path == "key" and not (isinstance(value, Mapping) and "key" in value):
        return item.key
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            offers = sorted(item.value) if isinstance(item.value, Mapping) else []
            raise BriefError(
                f"Placeholder {{{path}}} has no value in item {item.key!r}; the item offers "
                f"{', '.join(map(repr, ['key', *offers]))}. Write {{{{{path}}}}} if braces are meant."
            )
    return value


def _format_value(value: JsonValue) -> str:
    return value if isinstance(value, str) else canonical_json(value)
