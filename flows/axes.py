"""The cells of a matrix: every value of one axis with every value of the others, less some, and some more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, GetPydanticSchema, StringConstraints

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.item_variables import variable_of
from prefect_dispatch.models import Item
from prefect_dispatch.processes.environment import RESERVED
from prefect_dispatch.scrub import SECRET_NAME, scrub
from prefect_dispatch.strict import SOME, Strict, nearest

MOST = 1_000
"""How many cells a matrix may have."""

_RESERVED = frozenset({"KEY", "VALUE"})
"""Axes whose variables are taken: `ITEM_KEY` and `ITEM_VALUE` are the whole cell."""


def _value(value: object) -> object:
    """Return a value of an axis as text.

    Raises:
        ValueError: If YAML has read it as something else than what was written.
    """
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{value!r} {_misread(value)}")


def _misread(value: object) -> str:
    """Return what is wrong with a value that is neither text nor a whole number."""
    if value is None:
        return "is what YAML reads where nothing is written, or null without quotes; write a value, in quotes"
    if isinstance(value, bool):
        return "may not be what was written, as on, yes and true without quotes are all True; put the value in quotes"
    if isinstance(value, (Mapping, Sequence)):
        return "is no text; write one value after the other, in quotes"
    return "may not be what was written, as 3.10 without quotes is 3.1; put the value in quotes"


AxisName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=60)]
_Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f,]+$")
]
AxisValue = Annotated[_Text, BeforeValidator(_value)]


class Axis(Strict):
    """One thing that differs between the cells of a matrix.

    Example:
        >>> Axis(name="python", values=["3.10", "3.13"]).variable
        'ITEM_PYTHON'
    """

    name: AxisName
    """What it is called: a letter, then letters, digits, `-` and `_`."""
    values: Annotated[tuple[AxisValue, ...], SOME]
    """Its values, as text without commas: versions, names, whatever the commands make of it."""

    @property
    def variable(self) -> str:
        """The variable in which commands find a cell's value."""
        return "ITEM_" + re.sub(r"[^A-Z0-9]", "_", self.name.upper())


def _axes(given: object) -> object:
    if not isinstance(given, Mapping):
        return given
    named = cast("Mapping[str, object]", given)
    return [{"name": name, "values": values if _is_list(values) else [values]} for name, values in named.items()]


def _is_list(values: object) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str)


def _cell(given: object) -> object:
    if not isinstance(given, Mapping):
        return given
    return ",".join(f"{name}={_value(value)}" for name, value in cast("Mapping[str, object]", given).items())


_Setting = Annotated[str, StringConstraints(max_length=10_000, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}=[^\x00]*$")]
_Axes = Annotated[tuple[Axis, ...], BeforeValidator(_axes), SOME]
Axes = Annotated[
    Mapping[str, Sequence[str | int]] | Sequence[Axis | Mapping[str, Any]],
    GetPydanticSchema(lambda _, make: make(_Axes)),
]
"""Axes; a mapping from name to values is taken, too."""
_Cell = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f]+$"),
    BeforeValidator(_cell),
]
Cells = Annotated[Sequence[str | Mapping[str, str | int]], GetPydanticSchema(lambda _, make: make(tuple[_Cell, ...]))]
"""Cells, or parts of them, as `python=3.10,attrs=22.2`; a mapping is taken, too."""


class CellVariables(Strict):
    """Environment variables of some cells.

    Example:
        >>> CellVariables(cells="config=strict", variables=["STRICT=1"]).settings
        {'STRICT': '1'}
    """

    cells: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
    """Which: a part of a cell, as `python=3.10` or `config=*`; `*` means all."""
    variables: Annotated[tuple[_Setting, ...], SOME]
    """What they set, as `NAME=value`."""

    @property
    def settings(self) -> dict[str, str]:
        """The variables by name."""
        return {name: text for name, _, text in (setting.partition("=") for setting in self.variables)}


def _env(given: object) -> object:
    if not isinstance(given, Mapping):
        return given
    return [
        {"cells": part, "variables": [f"{name}={_value(value)}" for name, value in cast("Any", variables).items()]}
        if isinstance(variables, Mapping)
        else {"cells": part, "variables": variables}
        for part, variables in cast("Mapping[str, object]", given).items()
    ]


Env = Annotated[
    Mapping[str, Mapping[str, str | int]] | Sequence[CellVariables | Mapping[str, Any]],
    GetPydanticSchema(lambda _, make: make(Annotated[tuple[CellVariables, ...], BeforeValidator(_env)])),
]
"""Environment variables of some cells; a mapping from cells to variables with their values is taken, too."""


def cells(axes: Sequence[Axis], exclude: Sequence[str], include: Sequence[str]) -> list[Item]:
    """Return the cells of a matrix, each under a key such as `python=3.10,attrs=22.2`.

    Args:
        axes: What differs between them.
        exclude: Parts of cells: a cell that has all that one says is left out; values may be globs.
        include: Whole cells that are added.

    Raises:
        JobError: If axes, or what is left out or added, don't go together, or no cell is left.

    Example:
        >>> axes = [Axis(name="python", values=["3.10", "3.13"]), Axis(name="attrs", values=["22.2"])]
        >>> [cell.key for cell in cells(axes, ["python=3.10"], ["python=3.14,attrs=main"])]
        ['python=3.13,attrs=22.2', 'python=3.14,attrs=main']
    """
    _require_apart(axes)
    names = [axis.name for axis in axes]
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MOST:
        raise JobError(f"axes: they make {count:,} cells, and a matrix has {MOST:,} at most; leave some values out.")
    of = {axis.name: axis.values for axis in axes}
    every = [dict(zip(names, values, strict=True)) for values in product(*(axis.values for axis in axes))]
    for text in exclude:
        part = _read(text, names, "exclude")
        left = [cell for cell in every if not all(_means(value, cell[name], of[name]) for name, value in part.items())]
        if len(left) == len(every):
            raise JobError(f"exclude: {text!r} means no cell that is there; correct it, or leave it out.")
        every = left
    for text in include:
        cell = _read(text, names, "include")
        if missing := [name for name in names if name not in cell]:
            raise JobError(f"include: {text!r} has no {missing[0]!r}; a cell that is added has a value for each axis.")
        cell = {name: cell[name] for name in names}
        if cell in every:
            raise JobError(f"include: {text!r} is a cell already; leave it out.")
        every.append(cell)
    if not every:
        raise JobError("exclude: no cell is left; leave some of it out.")
    return [Item(key=",".join(f"{name}={value}" for name, value in cell.items()), value={**cell}) for cell in every]


def set_variables(cells: Sequence[Item], axes: Sequence[Axis], parts: Sequence[CellVariables]) -> list[Item]:
    """Return cells with the variables that they set, each a field of its own beside the values of the axes.

    Args:
        cells: The cells.
        axes: The axes that they are made of.
        parts: Which cells set what; where several set one variable, the last one counts.

    Raises:
        JobError: If a part means no cell, or a variable can't be set, is an axis' own, or looks like a secret.

    Example:
        >>> axes = [Axis(name="config", values=["plain", "strict"])]
        >>> parts = [CellVariables(cells="config=strict", variables=["STRICT=1"])]
        >>> [cell.value for cell in set_variables(cells(axes, [], []), axes, parts)]
        [{'config': 'plain'}, {'config': 'strict', 'STRICT': '1'}]
    """
    names = [axis.name for axis in axes]
    of = {axis.name: axis.values for axis in axes}
    values: list[dict[str, str]] = [{**cast("dict[str, str]", cell.value)} for cell in cells]
    taken = {axis.variable: f"the axis {axis.name!r}" for axis in axes}
    for part in parts:
        wanted = {} if part.cells == "*" else _read(part.cells, names, "env")
        meant = [value for value in values if all(_means(text, value[name], of[name]) for name, text in wanted.items())]
        if not meant:
            raise JobError(f"env: {part.cells!r} means no environment that is there; correct it, or leave it out.")
        for name, text in part.settings.items():
            _require_settable(name, text, taken)
            for value in meant:
                value[name] = text
    return [cell.model_copy(update={"value": value}) for cell, value in zip(cells, values, strict=True)]


def _require_settable(name: str, text: str, taken: dict[str, str]) -> None:
    """Check that a variable can be set for a cell.

    Raises:
        JobError: If it can't.
    """
    if RESERVED.fullmatch(name) or name in {"PORT", "PORTS"}:
        raise JobError(f"env: {name!r} is set for each environment anyway; call it something else.")
    if SECRET_NAME.search(name) or scrub(text) != text:
        raise JobError(
            f"env: {name!r} looks like a secret, and a job holds none: set it where the run is, and name it under "
            "pass_env."
        )
    own = variable_of(name)
    if taken.setdefault(own, name) != name:
        raise JobError(f"env: {name!r} and {taken[own]} would both be in {own}; call one of them something else.")


def _means(written: str, value: str, values: Sequence[str]) -> bool:
    """Return whether what is left out means a value: itself, if it is one of the axis', or else as a glob."""
    return value == written if written in values else fnmatchcase(value, written)


def _require_apart(axes: Sequence[Axis]) -> None:
    """Check that axes have variables of their own, and each value once.

    Raises:
        JobError: If they haven't.
    """
    taken = {f"ITEM_{name}": "" for name in _RESERVED}
    for axis in axes:
        if axis.variable in taken:
            why = f"is that of {taken[axis.variable]!r}, too" if taken[axis.variable] else "holds the whole cell"
            raise JobError(f"axes: {axis.name!r} would be in {axis.variable}, which {why}; call it something else.")
        taken[axis.variable] = axis.name
        if twice := next((value for value in axis.values if axis.values.count(value) > 1), None):
            raise JobError(f"axes: {axis.name!r} has {twice!r} twice; leave one out.")


def _read(text: str, names: Sequence[str], field: str) -> dict[str, str]:
    """Return what a cell, or a part of one, says.

    Raises:
        JobError: If it isn't written as one, or names an axis that isn't there.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, sign, value = (word.strip() for word in part.partition("="))
        if not sign or not value:
            raise JobError(f"{field}: {text!r} is no cell; write one as 'python=3.10,attrs=22.2'.")
        if name not in names:
            raise JobError(f"{field}: {text!r} has an axis {name!r} that isn't there; {nearest(name, [*names])}")
        if name in found:
            raise JobError(f"{field}: {text!r} has {name!r} twice; leave one out.")
        found[name] = value
    return found
