"""Identity of a Python function by its source: what decides whether a stored answer of it may be used again."""

from __future__ import annotations

import enum
import logging
import re
import site
import sys
import sysconfig
import types
from datetime import date, time, timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast

from prefect_dispatch.errors import BriefError, JobError
from prefect_dispatch.models.checks import source_digest
from prefect_dispatch.security.redaction import SECRET_NAME, redact
from prefect_dispatch.serialization.json_text import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import JsonValue


VERSION_ADVICE = "give it a version, such as '1', and another one whenever its answers would be others"
"""Advice for code whose behaviour its source doesn't determine."""


_CODE_TYPES = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
_REPR_TYPES = (bool, int, float, complex, bytes, range, type(None), type(...), Decimal, date, time, timedelta, PurePath)
"""Types of constants that are fully described by their `repr`."""


def source_identity(function: object) -> JsonValue:
    """Return the identity of a function: equal identities mean equal behaviour.

    Args:
        function: A function with a `def`.

    Returns:
        A list of its parts by name: a digest of each source, and each constant; no secrets.

    Raises:
        JobError: If its source doesn't determine its behaviour: it is no plain function, or uses objects with state.

    Example:
        >>> len(source_identity(source_identity)) > 1
        True
    """
    if not isinstance(function, types.FunctionType) or function.__name__ == "<lambda>":
        what = "a lambda" if isinstance(function, types.FunctionType) else f"a {type(function).__name__}"
        raise JobError(
            f"how {what} answers can't be read off a source: {VERSION_ADVICE}; or take a function with a def"
        )
    collector = _SourceCollector()
    collector.add_source(function, function.__qualname__)
    return [[name.rpartition(":")[2], what] for name, what in collector.parts.items()]


class _SourceCollector:
    """Collector of the parts of a function's identity.

    Attributes:
        parts: The digest of each source, and the value of each constant, by module and name.
    """

    def __init__(self) -> None:
        self.parts: dict[str, JsonValue] = {}

    def add_source(self, thing: Any, name: str) -> None:  # noqa: ANN401 -- a function, a class or a module
        """Add the source of a function, class or module, and everything that it uses.

        Raises:
            JobError: If a source can't be read, or doesn't determine the behaviour.
        """
        # 1. Its source; added before what it uses, so that recursion ends.
        where = thing.__name__ if isinstance(thing, types.ModuleType) else f"{thing.__module__}:{thing.__qualname__}"
        if where in self.parts:
            return
        try:
            self.parts[where] = source_digest(thing)
        except BriefError:
            raise JobError(f"the source of {name!r} can't be read: put it into a file, or {VERSION_ADVICE}") from None
        # 2. The values that its functions use: closures (rejected), defaults, and globals.
        members = vars(thing).values() if isinstance(thing, type) else (thing,)
        for function in (each for each in members if isinstance(each, types.FunctionType)):
            if any(not isinstance(cell.cell_contents, type) for cell in function.__closure__ or ()):
                raise JobError(
                    f"{name!r} holds values of the function that made it, which its source doesn't show: "
                    f"{VERSION_ADVICE}"
                )
            defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
            for number, value in enumerate(defaults, 1):
                self._add_value(value, f"{function.__qualname__}, default {number}", function.__module__)
            names = function.__globals__.keys() - {"__name__", "__file__"}  # these depend on how a script is run
            for used in sorted({*_iter_names(function.__code__)} & names):
                self._add_value(function.__globals__[used], used, function.__module__)

    def _add_value(self, value: object, name: str, module: str) -> None:
        """Add the value of a global or a default, unless its name marks a secret."""
        if not SECRET_NAME.search(name):
            self.parts[f"{module} uses:{name}"] = self._describe_value(value, name)

    def _describe_value(self, value: Any, name: str) -> JsonValue:  # noqa: ANN401 -- any value of a module
        """Return a constant as JSON, different for different values; the user's own code is added by its source.

        Raises:
            JobError: If the value is neither.
        """
        kind = cast("type[object]", type(value))
        # 1. Code: the user's own is added by its source, a library's counts by its name.
        if isinstance(value, _CODE_TYPES):
            if _is_own(value):
                self.add_source(value, name)
            return f"code {value.__name__}"
        # 2. Containers, without secrets; sets have no order, so they are sorted.
        if kind in {dict, types.MappingProxyType}:
            public = ((key, each) for key, each in value.items() if not SECRET_NAME.search(str(key)))
            return [
                "dict",
                *([self._describe_value(key, name), self._describe_value(each, name)] for key, each in public),
            ]
        if kind in {list, tuple, set, frozenset}:
            elements = [self._describe_value(each, name) for each in value]
            return [kind.__name__, *(sorted(elements, key=canonical_json) if kind in {set, frozenset} else elements)]
        # 3. Constants.
        if kind is str or isinstance(value, (enum.Enum, *_REPR_TYPES)):
            return redact(f"{kind.__name__} {value!r}")
        if isinstance(value, re.Pattern):
            return f"pattern {cast('re.Pattern[str]', value).pattern!r} {value.flags}"
        if isinstance(value, (logging.Logger, logging.LoggerAdapter)):
            return "log"  # a logger can't change an answer
        raise JobError(f"it uses {name!r}, a {kind.__name__}, whose behaviour no source determines: {VERSION_ADVICE}")


def _iter_names(code: types.CodeType) -> Iterator[str]:
    """Yield the names that code looks up, nested functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _iter_names(constant)


@lru_cache(maxsize=1)
def _library_folders() -> tuple[Path, ...]:
    """Return the folders of the standard library and of installed packages."""
    paths = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple({Path(path).resolve() for path in (*paths, *site.getsitepackages())})


def _is_own(thing: Any) -> bool:  # noqa: ANN401 -- a function, a class or a module
    """Return whether code belongs to the user, and not to a library."""
    module: str = thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__ or "builtins"
    if module.partition(".")[0] in {"prefect_dispatch", *sys.stdlib_module_names, *sys.builtin_module_names}:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if isinstance(thing, types.FunctionType):
        file = thing.__code__.co_filename
    return file is None or not any(Path(file).resolve().is_relative_to(folder) for folder in _library_folders())
