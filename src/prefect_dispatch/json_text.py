"""JSON that somebody else wrote, with a word for what can't be taken of it."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pydantic import JsonValue


_SHOWN = 100
"""Characters of a key that are told."""


class UntakenError(ValueError):
    """It is JSON by its grammar, and yet nothing that can be taken."""


def loads(text: str, *, once: bool = False) -> JsonValue:
    """Return the JSON value of a text.

    Args:
        text: The text.
        once: Whether a key that stands twice in one object is refused. Else the last one counts.

    Raises:
        UntakenError: If it is refused for that, or holds a number that is too long to be read.
        ValueError: If it isn't JSON, or has NaN or infinities by name.

    Example:
        >>> loads('{"n": 1, "n": 2}')
        {'n': 2}
        >>> loads('{"n": 1, "n": 2}', once=True)
        Traceback (most recent call last):
        prefect_dispatch.json_text.UntakenError: the key 'n' stands twice in one object
    """
    try:
        found = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_each_once if once else None)
        return cast("JsonValue", found)
    except (json.JSONDecodeError, UntakenError, _ConstantError):
        raise
    except RecursionError:
        msg = "it is nested too deep"
        raise ValueError(msg) from None
    except ValueError:  # Python reads whole numbers of up to some thousand digits
        msg = "it holds a number of more digits than can be read"
        raise UntakenError(msg) from None


class _ConstantError(ValueError):
    """A number by name."""


def _no_constant(name: str) -> None:
    msg = f"{name} is not JSON"
    raise _ConstantError(msg)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    counts = Counter(name for name, _ in pairs)
    twice = next(name for name, count in counts.items() if count > 1)
    msg = f"the key {twice[:_SHOWN]!r} stands twice in one object"
    raise UntakenError(msg)
