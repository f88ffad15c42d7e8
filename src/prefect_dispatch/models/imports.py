"""The user's own classes, functions and objects: references (`module:name`), signatures and adapters.

A reference is only resolved in code below a folder that the user named (that of a job file, or the working folder), so
that a parameter can't import from installed packages or the standard library.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any, ClassVar

from prefect_dispatch.errors import BriefError
from prefect_dispatch.security.escaping import count_noun, join_names

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class ObjectAdapter:
    """Mixin of adapters: public attributes that the user's object has are taken from there, others from the class."""

    _own_names: ClassVar[frozenset[str]] = frozenset({"of"})
    """The attributes that are always taken from the class."""
    _adapted: Any

    def __init__(self, adapted: object) -> None:
        """Adapt a user's object."""
        self._adapted = adapted

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 -- any attribute
        """Return an attribute of the object if it has it, else of the class."""
        if not name.startswith("_") and name not in self._own_names and self._has(name):
            return getattr(self._adapted, name)
        return super().__getattribute__(name)

    def _has(self, name: str) -> bool:
        """Return whether the object has an attribute; a property is not evaluated, which may be expensive."""
        absent = object()
        return inspect.getattr_static(self._adapted, name, absent) is not absent


def to_reference(thing: Any) -> str:  # noqa: ANN401 -- a function, a class or a name already
    """Return the `module:name` of a function or class; a reference is returned unchanged.

    Example:
        >>> to_reference(len), to_reference("shapes:Licence")
        ('builtins:len', 'shapes:Licence')
    """
    if isinstance(thing, str):
        return thing
    name = getattr(thing, "__qualname__", type(thing).__qualname__)  # a callable object goes by its class
    return f"{thing.__module__}:{name}"


def import_reference(reference: str, root: Path) -> Any:  # noqa: ANN401 -- an object of the user's module
    """Import the object that `module:name` refers to, from code below `root`.

    Args:
        reference: Module and name, such as `shapes:Licence`.
        root: The folder that holds the user's code; it is put on the import path.

    Raises:
        BriefError: If the module isn't below `root`, doesn't have the name, or another module of its name is loaded.
    """
    module_name, _, name = reference.partition(":")
    root = root.resolve()
    added = str(root) not in sys.path
    if added:
        sys.path.insert(0, str(root))
        importlib.invalidate_caches()
    top = module_name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # `__main__`, or a module that was created by hand
        spec = None
    paths: list[str] = []  # the origin of `os` and `builtins` is a word and not a file
    if spec and spec.origin:
        paths = [spec.origin] if spec.has_location else []
    elif spec:
        paths = list(spec.submodule_search_locations or ())
    if not paths or not all(Path(path).resolve().is_relative_to(root) for path in paths):
        if added:  # what lies there must not take the place of what is imported later
            sys.path.remove(str(root))
        if (root / f"{top}.py").is_file() or (root / top / "__init__.py").is_file():
            # Python holds one module of a name in a process: of its own library, or of a job in another folder.
            raise BriefError(
                f"{reference!r} can't be loaded: Python knows another module {top!r} already. Rename the one in"
                f" {root.name!r}/; jobs in several folders can also run in a process each."
            )
        raise BriefError(f"{reference!r} is not code of yours: no module {module_name!r} lies below {root.name!r}/.")
    try:
        module: Any = importlib.import_module(module_name)
        return getattr(module, name)
    except (Exception, SystemExit) as error:  # the user's module runs here, and may call sys.exit()
        raise BriefError(f"{reference!r} can't be loaded: {type(error).__name__}: {error}.") from error


def explain_misfit(function: object, *arguments: str) -> str | None:
    """Return why a function can't be used, in words that follow its name; None if it can.

    Args:
        function: A function, a bound method, or another callable object.
        arguments: Names of the positional arguments that it will be called with, for the message.

    Example:
        >>> explain_misfit(abs, "value", "key")
        'must take 2 arguments: value, key'
        >>> explain_misfit(max, "value", "key")
    """
    if not callable(function):
        return f"must be a function, not {type(function).__name__}"
    deferred = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    if any(is_kind(each) for each in (function, type(function).__call__) for is_kind in deferred):
        return "must return at once: neither be async nor yield"
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return f"must take {count_noun(len(arguments), 'argument')}: {join_names(arguments)}"
    except ValueError:  # some builtins have no signature
        return None
    return None
