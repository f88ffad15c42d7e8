"""Fields of an item inside the text of a brief.

`{field}` and `{field.sub}` stand for values of the item; `{key}` for its
key; `{{field}}` is the text `{field}`. A placeholder is a plain look-up in
the item's JSON: nothing is called, no attribute is read, and what a field
holds is put in as it is, never read as a template again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from prefect_dispatch.errors import BriefError
from prefect_dispatch.fingerprint import canonical

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch.models import Item

_NAME = r"[A-Za-z_][\w-]*(?:\.[\w-]+)*"
_BRACES = re.compile(rf"\{{({_NAME})\}}")
_PLACEHOLDER = re.compile(rf"\{{\{{(?P<literal>{_NAME})\}}\}}|\{{(?P<name>{_NAME})\}}")


def placeholders(text: str) -> list[str]:
    """Return the fields that a text uses, in order, repeats included.

    Example:
        >>> placeholders("Compare {title} with {meta.year}; answer {{title}} or {'a': 1}.")
        ['title', 'meta.year']
    """
    return [match["name"] for match in _PLACEHOLDER.finditer(text) if match["name"]]


def literal(text: str) -> str:
    """Return a text that `render` gives back as it stands: what looks like a field in it is none.

    Example:
        >>> literal("Answer {name} or {'a': 1}.")
        "Answer {{name}} or {'a': 1}."
    """
    return _BRACES.sub(r"{{\1}}", text)


def unescape_template(text: str) -> str:
    """Return a text as people read it: braces that stand for themselves are single, and fields keep their names.

    Example:
        >>> unescape_template("Spell {key} in {{name}}.")
        'Spell {key} in {name}.'
    """
    return _PLACEHOLDER.sub(lambda found: "{" + (found["literal"] or found["name"]) + "}", text)


def render(text: str, item: Item, quote: Callable[[str], str] = str) -> str:
    """Return a text with the item's fields in place.

    Args:
        text: What may hold placeholders.
        item: Where their values come from.
        quote: Makes a value stand for itself in the text's own language, such as `glob.escape`.

    Raises:
        BriefError: If the item has no such field.

    Example:
        >>> from prefect_dispatch import Item
        >>> render("What does {name} do in {{name}}?", Item(key="a", value={"name": "{key}"}))
        'What does {key} do in {name}?'
    """

    def replacement(match: re.Match[str]) -> str:
        return "{" + match["literal"] + "}" if match["literal"] else quote(_shown(lookup(item, match["name"])))

    return _PLACEHOLDER.sub(replacement, text)


def lookup(item: Item, path: str) -> JsonValue:
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


def _shown(value: JsonValue) -> str:
    return value if isinstance(value, str) else canonical(value)
