"""Fingerprints: cache keys that identify answering one brief for one item with one executor.

A fingerprint covers everything that can change an answer and nothing that cannot: the brief with the item's fields
filled in, the item's value, the executor's own fingerprint, and the files or the commit that it starts from. Names,
priorities, limits, keys of items and credentials are no part of it, so equal work is recognised across jobs, runs and
machines.
"""

from __future__ import annotations

import enum
import hashlib
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
from prefect_dispatch.executors.base import BaseExecutor
from prefect_dispatch.models.checks import source_digest
from prefect_dispatch.security.redaction import SECRET_NAME, redact
from prefect_dispatch.serialization.json_text import canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item


def executor_for(brief: Brief, executor: Executor) -> Executor:
    """Return the executor for a brief: the given one, with the brief's own model if it names one.

    Raises:
        BriefError: If the brief names a model, and the executor is no language model.
    """
    if not brief.model:
        return executor
    chosen = BaseExecutor.of(executor).with_model(brief.model)
    if chosen is None:
        raise BriefError(
            f"Brief {brief.name!r} names a model ({brief.model!r}), which only a language model's executor can ask; "
            f"this is a {type(executor).__name__}."
        )
    return chosen


def expand_samples(brief: Brief) -> tuple[Brief, ...]:
    """Expand a brief into one brief per sample, each with a name and a number of its own.

    Raises:
        JobError: If the names would be too long.

    Example:
        >>> from prefect_dispatch.models.brief import Brief
        >>> [each.name for each in expand_samples(Brief(name="label", instructions="Label it.", samples=3))]
        ['label-1', 'label-2', 'label-3']
    """
    if brief.samples == 1 or brief.sample:
        return (brief,)
    if len(f"{brief.name}-{brief.samples}") > LONGEST_NAME:
        raise JobError(
            f"Brief {brief.name!r} has no room for the numbers of its samples; "
            f"give it a name of {LONGEST_NAME - 1 - len(str(brief.samples))} characters at most."
        )
    return tuple(
        brief.model_copy(update={"name": f"{brief.name}-{number}", "sample": number})
        for number in range(1, brief.samples + 1)
    )


LONGEST_NAME = 60


"""Most characters of a brief's name."""


def original_name(brief: Brief) -> str:
    """Return the name of the original brief of a sample, or the own name of any other brief."""
    return brief.name.removesuffix(f"-{brief.sample}") if brief.sample else brief.name


def require_variety(briefs: Sequence[Brief], executor: Executor) -> None:
    """Check that the executor of a brief with several samples is not deterministic.

    Raises:
        JobError: If it is: each sample would cost, and all would be the same answer.
        BriefError: If a brief names a model, and the executor is no language model.
    """
    for brief in briefs:
        brief_executor = BaseExecutor.of(executor_for(brief, executor))
        if brief.samples > 1 and brief_executor.is_deterministic:
            raise JobError(
                f"Brief {original_name(brief)!r} asks for {brief.samples} samples of one answer: at temperature 0 a "
                "model says the same each time. Set the executor's params.temperature (to 0.7, say), or samples to 1."
            )


FORMAT = 1


"""Version of the fingerprint; increase it when stored answers of older versions must not be reused."""


def fingerprint(brief: Brief, item: Item, executor: Executor) -> str:
    """Return the fingerprint of answering `brief` for `item` with `executor`.

    Args:
        brief: The brief; placeholders of item fields count by their values.
        item: The item; its key counts only where the brief uses it.
        executor: The executor that would answer, with the brief's own model if that names one.

    Returns:
        64 hexadecimal characters.

    Raises:
        BriefError: If the brief uses a field that the item has not, or names a model that can't be asked.
    """
    return fingerprinter(brief, executor)(item)


def fingerprinter(brief: Brief, executor: Executor, *, alike: bool = False) -> Callable[[Item], str]:
    """Return a function that computes the fingerprints of many items for one brief.

    Args:
        brief: The brief.
        executor: The executor that would answer.
        alike: Whether the brief is the same for every item, so that it is serialized only once.

    Raises:
        BriefError: If the brief names a model that can't be asked.
    """
    brief_executor = BaseExecutor.of(executor_for(brief, executor))
    brief_json = executor_json = ""

    def of(item: Item) -> str:
        nonlocal brief_json, executor_json
        executor_json = executor_json or canonical_json(brief_executor.fingerprint)
        if not (alike and brief_json):
            brief_json = canonical_json(brief.identity(item))
        # Canonical JSON of an object, composed of the canonical JSON of its parts, which are serialized once.
        text = (
            f'{{"brief":{brief_json},"executor":{executor_json},"format":{FORMAT},"item":{canonical_json(item.value)}'
        )
        if brief_executor.has_external_inputs:
            inputs = brief_executor.external_inputs(brief.fill_placeholders(item), item)
            text += f',"situation":{canonical_json(inputs)}'
        return hashlib.sha256(f"{text}}}".encode()).hexdigest()

    return of


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
        for function in _functions(thing):
            if any(not isinstance(cell.cell_contents, type) for cell in function.__closure__ or ()):
                raise JobError(
                    f"{name!r} holds values of the function that made it, which its source doesn't show: "
                    f"{VERSION_ADVICE}"
                )
            defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
            for number, value in enumerate(defaults, 1):
                self._add_value(value, f"{function.__qualname__}, default {number}", function.__module__)
            names = function.__globals__.keys() - {"__name__", "__file__"}  # these depend on how a script is run
            for used in sorted({*_names(function.__code__)} & names):
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


def _functions(thing: object) -> Iterator[types.FunctionType]:
    """Yield a function itself, or the functions of a class; none of a module, whose source covers them."""
    if isinstance(thing, types.FunctionType):
        yield thing
    elif isinstance(thing, type):
        yield from (each for each in vars(thing).values() if isinstance(each, types.FunctionType))


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names that code looks up, nested functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


@lru_cache(maxsize=1)
def _libraries() -> tuple[Path, ...]:
    paths = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple({Path(path).resolve() for path in (*paths, *site.getsitepackages())})


def _is_own(thing: Any) -> bool:  # noqa: ANN401 -- a function, a class or a module
    """Return whether code belongs to the user, and not to a library."""
    module: str = thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__ or "builtins"
    if module.partition(".")[0] in {"prefect_dispatch", *sys.stdlib_module_names, *sys.builtin_module_names}:
        return False
    file = thing.__code__.co_filename if isinstance(thing, types.FunctionType) else _file_of(module)
    return file is None or not any(Path(file).resolve().is_relative_to(folder) for folder in _libraries())


def _file_of(module: str) -> str | None:
    return getattr(sys.modules.get(module), "__file__", None)
