"""Functions and methods of the user's: whether they can be called as they will be, told before anything is spent."""

from __future__ import annotations

import inspect


def misfit(function: object, *arguments: str) -> str | None:
    """Return why a function won't do, in words that follow its name; None if it will.

    Args:
        function: A function, a bound method, or an object that can be called.
        arguments: What it will be given, one after another, by the names that a reader knows them by.

    Example:
        >>> misfit(abs, "value", "key")
        'must take 2 arguments: value, key'
        >>> misfit(max, "value", "key")
    """
    if not callable(function):
        return f"must be a function, not {type(function).__name__}"
    if any(map(_defers, (function, type(function).__call__))):
        return "must return at once: neither be async nor yield"
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        many = f"{len(arguments)} argument{'s' * (len(arguments) != 1)}"
        return f"must take {many}: {', '.join(arguments)}"
    except ValueError:  # some builtins don't tell
        return None
    return None


def _defers(function: object) -> bool:
    """Return whether a call of it returns something else than its result."""
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    return any(is_kind(function) for is_kind in kinds)
