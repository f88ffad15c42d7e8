"""What a function of the user's does, read off its source: so that a change of it makes another executor of it.

Its own lines aren't all: it calls helpers, and it uses constants, a prompt say. Those of the user's own code are
followed; a library counts by nothing but the names in that code. What no source tells, such as a client or a cache,
is refused. No module goes by its name: that of a script is another one wherever it is run.
"""

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

from prefect_dispatch.checks import source_digest
from prefect_dispatch.errors import BriefError, JobError
from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.scrub import SECRET_NAME, scrub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import JsonValue

VERSION = "give it a version, such as '1', and another one whenever its answers would be others"
"""The way out."""
_CODE = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
_AS_SHOWN = (bool, int, float, complex, bytes, range, type(None), type(...), Decimal, date, time, timedelta, PurePath)
"""Kinds of constants that their `repr` tells all of."""


def source_identity(function: object) -> JsonValue:
    """Return what tells a function from any other that may answer otherwise.

    Args:
        function: What answers.

    Returns:
        A list of what it consists of: a digest of each source, and each constant; no secret.

    Raises:
        JobError: If that can't be told: it is no plain function, or uses what has a state.

    Example:
        >>> len(source_identity(source_identity)) > 1
        True
    """
    if not isinstance(function, types.FunctionType) or function.__name__ == "<lambda>":
        what = "a lambda" if isinstance(function, types.FunctionType) else f"a {type(function).__name__}"
        raise JobError(f"how {what} answers can't be read off a source: {VERSION}; or take a function with a def")
    sight = _Sight()
    sight.read(function, function.__qualname__)
    return [[name.rpartition(":")[2], what] for name, what in sight.found.items()]


class _Sight:
    """What has been seen so far."""

    def __init__(self) -> None:
        self.found: dict[str, JsonValue] = {}

    def read(self, thing: Any, name: str) -> None:  # noqa: ANN401 -- a function, a class or a module
        """Add the source of some code, and what it uses."""
        where = thing.__name__ if isinstance(thing, types.ModuleType) else f"{thing.__module__}:{thing.__qualname__}"
        if where in self.found:
            return
        try:
            self.found[where] = source_digest(thing)
        except BriefError:
            raise JobError(f"the source of {name!r} can't be read: put it into a file, or {VERSION}") from None
        for function in _functions(thing):
            if any(not isinstance(cell.cell_contents, type) for cell in function.__closure__ or ()):
                raise JobError(f"{name!r} holds values of the function that made it, which no source tells: {VERSION}")
            given = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
            for number, value in enumerate(given, 1):
                self._use(value, f"{function.__qualname__}, default {number}", function.__module__)
            known = function.__globals__.keys() - {"__name__", "__file__"}  # others wherever a script is run
            for used in sorted({*_names(function.__code__)} & known):
                self._use(function.__globals__[used], used, function.__module__)

    def _use(self, value: object, name: str, module: str) -> None:
        """Add what a global or a default is."""
        if not SECRET_NAME.search(name):
            self.found[f"{module} uses:{name}"] = self._told(value, name)

    def _told(self, value: Any, name: str) -> JsonValue:  # noqa: ANN401 -- whatever a module holds
        """Return a constant as JSON, one that differs being another; code that is the user's is read.

        Raises:
            JobError: If it is neither.
        """
        kind = cast("type[object]", type(value))
        if isinstance(value, _CODE):
            if _is_own(value):
                self.read(value, name)
            return f"code {value.__name__}"
        if kind in {dict, types.MappingProxyType}:
            known = ((key, each) for key, each in value.items() if not SECRET_NAME.search(str(key)))
            return ["dict", *([self._told(key, name), self._told(each, name)] for key, each in known)]
        if kind in {list, tuple, set, frozenset}:
            inside = [self._told(each, name) for each in value]
            return [kind.__name__, *(sorted(inside, key=canonical) if kind in {set, frozenset} else inside)]
        if kind is str or isinstance(value, (enum.Enum, *_AS_SHOWN)):
            return scrub(f"{kind.__name__} {value!r}")
        if isinstance(value, re.Pattern):
            return f"pattern {cast('re.Pattern[str]', value).pattern!r} {value.flags}"
        if isinstance(value, (logging.Logger, logging.LoggerAdapter)):
            return "log"  # no part of any answer
        raise JobError(f"it uses {name!r}, a {kind.__name__}, of which no source tells how it behaves: {VERSION}")


def _functions(thing: object) -> Iterator[types.FunctionType]:
    """Yield a function, or those of a class; what a module holds, its source says."""
    if isinstance(thing, types.FunctionType):
        yield thing
    elif isinstance(thing, type):
        yield from (each for each in vars(thing).values() if isinstance(each, types.FunctionType))


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names that code looks up, and those that the functions in it do."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


@lru_cache(maxsize=1)
def _libraries() -> tuple[Path, ...]:
    paths = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple({Path(path).resolve() for path in (*paths, *site.getsitepackages())})


def _is_own(thing: Any) -> bool:  # noqa: ANN401 -- a function, a class or a module
    """Return whether code is the user's, and no library's."""
    module: str = thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__ or "builtins"
    if module.partition(".")[0] in {"prefect_dispatch", *sys.stdlib_module_names, *sys.builtin_module_names}:
        return False
    file = thing.__code__.co_filename if isinstance(thing, types.FunctionType) else _file_of(module)
    return file is None or not any(Path(file).resolve().is_relative_to(folder) for folder in _libraries())


def _file_of(module: str) -> str | None:
    return getattr(sys.modules.get(module), "__file__", None)
