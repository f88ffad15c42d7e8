"""Modules that are built apart from each other: what each is to be, and the files that are its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any

from pydantic import AfterValidator, GetPydanticSchema, StringConstraints

from prefect_dispatch.command import Command
from prefect_dispatch.errors import BriefError, JobError
from prefect_dispatch.globs import Glob, overlaps
from prefect_dispatch.models import Brief, Name, Text
from prefect_dispatch.strict import SOME, Strict
from prefect_dispatch.template import literal

_SCOPE = (
    "One module of a repository. Other modules of it are written by others at the same time, whom you can't ask, and "
    "whose files you don't see; the files below are yours alone."
)
_INTERFACE = "Others build on this interface at the same time; meet it to the letter:"
_SHOWN = 20
"""How many pairs a message names."""


def _owned(pattern: str) -> str:
    """Return a glob of files that a module may own.

    Raises:
        ValueError: If it leads out of the repository, into git's own folder, or can't be read.
    """
    try:
        glob = Glob.parse(pattern)
    except BriefError as error:
        raise ValueError(str(error)) from None
    if glob.start:
        raise ValueError(f"{pattern!r} leads out of the repository; write it from its top, such as 'src/a.py'")
    if glob.text.split("/")[0].lower() == ".git":
        raise ValueError(f"{pattern!r} is git's own; name files of the repository")
    return pattern


_Glob = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f]+$"),
    AfterValidator(_owned),
]
Shell = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[^\x00]*$")]
"""A line for /bin/sh, or nothing."""


class Module(Strict):
    """One module: what it is to do, and the files that are its own.

    Example:
        >>> Module(name="lexer", goal="Split a text into tokens.", owns=["calc/lexer.py"]).priority
        0
    """

    name: Name
    """What it is called everywhere: small letters, digits and single hyphens."""
    goal: Text
    """What it is to do, as you would tell a colleague who sees only the repository."""
    owns: Annotated[tuple[_Glob, ...], SOME]
    """Globs of the files that its agent may write, from the repository's top; those of no two modules may meet."""
    interface: str = ""
    """What others rely on: names, signatures, formats, errors. Empty: the goal says it."""
    accept: Shell = ""
    """A line for /bin/sh that must pass when its agent has ended; if it fails, that is sent back. Empty: none."""
    priority: int = 0
    """A higher one is merged first, and wins where changes contradict each other."""

    @property
    def brief(self) -> Brief:
        """What its agent is told; braces in it are meant as they stand."""
        return Brief(
            name=self.name,
            scope=_SCOPE,
            instructions=literal(self.goal),
            constraints=(literal(f"{_INTERFACE}\n{self.interface}"),) if self.interface else (),
            writes=tuple(map(literal, self.owns)),
            command=Command(run=self.accept) if self.accept else None,
            priority=self.priority,
        )


_Modules = Annotated[tuple[Module, ...], SOME]
Modules = Annotated[
    Sequence[Module | Mapping[str, Any]],
    GetPydanticSchema(lambda _, make: make(_Modules)),
]
"""Modules, one at least."""


def require_apart(modules: Sequence[Module]) -> None:
    """Check that each module has a name of its own, and that no file can be of two.

    Raises:
        JobError: If not: it names the two, and the globs that meet.
    """
    names = [each.name for each in modules]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise JobError(f"modules: {twice!r} stands there twice; give each a name of its own.")
    met = _met(modules)
    if met:
        more = f"; and {len(met) - _SHOWN} more pairs" if len(met) > _SHOWN else ""
        raise JobError(
            f"modules: {'; '.join(met[:_SHOWN])}{more}. Each file has one owner: narrow the globs, or make one module "
            "of two; what several need is committed beforehand, or is a module of its own."
        )


def _met(modules: Sequence[Module]) -> list[str]:
    """Return each two modules that may own one file, with the first globs by which they do."""
    owners: dict[Glob, list[int]] = defaultdict(list)
    for number, module in enumerate(modules):
        for glob in dict.fromkeys(map(Glob.parse, module.owns)):
            owners[glob].append(number)
    found: dict[tuple[int, int], str] = {}
    for one, other in (*((glob, glob) for glob in owners), *sorted(overlaps([*owners]))):
        on = " and ".join(repr(text) for text in dict.fromkeys((one.text, other.text)))
        for pair in product(owners[one], owners[other]):
            if len({*pair}) > 1:
                found.setdefault((min(pair), max(pair)), on)
    return [
        f"{modules[one].name!r} and {modules[other].name!r} both own {on}" for (one, other), on in sorted(found.items())
    ]
