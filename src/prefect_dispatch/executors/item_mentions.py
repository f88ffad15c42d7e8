"""Does a command speak of its item so that it gets to see it? Found out before anything is run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.item_variables import KEY, VALUE, plain_fields, require_variables, variable_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefect_dispatch.command import Command
    from prefect_dispatch.models import Brief, Item

SHOWN = 12
"""Variables that a message names."""

_TEMPLATE = re.compile(
    r"\{\{-?\s*(?P<outer>[A-Za-z_]\w*)[^{}]*\}\}|(?<![$\w{])\{(?P<inner>[A-Za-z_]\w*)(?:\.[\w.]+)?\}"
)
"""`{{ name }}` and `{name}`, but not a shell's `${name}`."""
_EXPANDED = re.compile(r"\$(?:(ITEM_[A-Z0-9_]+)|\{(ITEM_[A-Z0-9_]+)\})")
"""A shell's `$ITEM_X` and `${ITEM_X}`; where there is a default, such as in `${ITEM_X:-}`, it may be missing."""
_SET = r"\b(?:{0}=|for\s+{0}\b|read\s[^;&|\n]*\b{0}\b)"


def require_seen(briefs: Sequence[Brief], items: Sequence[Item]) -> None:
    """Check that commands speak of what they get to see, and hold no place for an item's text.

    Args:
        briefs: The briefs.
        items: All items.

    Raises:
        JobError: If one does, or a variable would be two things; the message says what to write.

    Example:
        >>> from prefect_dispatch import Brief, Command, Item
        >>> count = Brief(name="count", instructions="Count.", command=Command(run="wc -w {{ item }}"))
        >>> require_seen([count], [Item(key="a", value="a.txt")])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        prefect_dispatch.errors.JobError: Brief 'count': command.run: '{{ item }}' would stay as it stands, ...
    """
    told = [(brief.name, brief.command) for brief in briefs if brief.command]
    if not told or not items:
        return
    if not all(command.stdin for _, command in told):
        require_variables(items)
    fields = {field for item in items for field in plain_fields(item)}
    for brief, command in told:
        _check(brief, command, fields)


def _check(brief: str, command: Command, fields: Iterable[str]) -> None:
    text = command.run if isinstance(command.run, str) else "\n".join(command.run)
    by_field = {field: variable_of(field) for field in fields}
    names = {"item": VALUE, "value": VALUE, "key": KEY, **by_field}
    for found in _TEMPLATE.finditer(text):
        if (name := found["outer"] or found["inner"]) in names:
            write = f'write "${names[name]}" for it'
            read = "read it from standard input" if command.stdin else f"{write}, or set stdin: true and read it there"
            raise JobError(
                f"Brief {brief!r}: command.run: {found[0]!r} would stay as it stands, as an item never becomes a part "
                f"of a command: {write if name == 'key' else read}."
            )
    offered = [KEY] if command.stdin else [KEY, VALUE, *sorted(set(by_field.values()))]
    for found in _EXPANDED.finditer(text):
        name = found[1] or found[2]
        if name not in offered and name not in command.env and not re.search(_SET.format(name), text):
            read = "; with stdin: true its value is on standard input only" if command.stdin else ""
            more = ", …" if len(offered) > SHOWN else ""
            raise JobError(
                f"Brief {brief!r}: command.run: ${name} is never set: an item gives {', '.join(offered[:SHOWN])}{more}"
                f"{read}. Where it may be missing, write ${{{name}:-}}."
            )
