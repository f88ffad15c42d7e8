"""Which part of an answer belongs to which part of a merged value: entry by entry, element by element."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

from prefect_dispatch.integrators.base import Telling
from prefect_dispatch.integrators.records.sets import locate, split
from prefect_dispatch.integrators.values import find, pointer
from prefect_dispatch.ledger import Ref

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.records.rulebook import Rulebook
    from prefect_dispatch.models import Outcome

Scope = tuple["Hashable", "Hashable"]
"""An entry of the merged value, and what in it: itself (`()`), or an element of a list merged as a set."""
WHOLE: Scope = (None, ())
"""The one scope of an integrator that says nothing about what belongs together."""


class Scopes(Protocol):
    """Tells which parts of answers belong to which entry of a merged value."""

    def parts(self, outcome: Outcome) -> Sequence[tuple[Hashable, JsonValue]]:
        """Return what an answer says, part by part, each with its scope: equal for parts that belong together."""
        ...

    def scope(self, entry: JsonValue, *, alone: bool) -> Hashable:
        """Return the scope of an entry; `alone` if it stands there as it is, being the same as no other."""
        ...


@runtime_checkable
class Keyed(Protocol):
    """An integrator whose merged value has a list of entries, each made of parts of answers that belong together."""

    entries: ClassVar[str]
    """The field of the merged value that holds the list."""

    @property
    def book(self) -> Rulebook:
        """Which lists inside an entry are merged as sets."""
        ...

    def scopes(self, outcomes: Sequence[Outcome]) -> Scopes:
        """Return what belongs together, found out anew from the outcomes."""
        ...


class Said(NamedTuple):
    """What an answer says in one scope."""

    scope: Scope
    own: JsonValue
    """What is to be found again there."""
    whole: JsonValue
    """The same, with what has scopes of its own."""


class Places:
    """What belongs together, as an integrator has it; of any other all belongs to all."""

    def __init__(self, integrator: object, outcomes: Sequence[Outcome]) -> None:
        """Find it out from the outcomes, in whatever order they are."""
        self._keyed = integrator if isinstance(integrator, Keyed) else None
        self._telling = integrator if isinstance(integrator, Telling) else None
        self._scopes = self._keyed.scopes(sorted(outcomes, key=lambda o: Ref.of(o).order)) if self._keyed else None
        self._book = self._keyed.book if self._keyed else None
        self._sets = self._book is not None and any(rule.identity for rule in self._book.rules.values())
        self._start = pointer(self._keyed.entries) + "/" if self._keyed else ""
        self._numbers: dict[Hashable, int] = {}  # scopes are looked up millions of times, and long keys take long
        self._entries: dict[tuple[str, bool], Hashable] = {}

    @property
    def keyed(self) -> bool:
        """Whether the integrator says what belongs together."""
        return self._keyed is not None

    def said(self, outcome: Outcome) -> Iterator[Said]:
        """Yield what an answer says, scope by scope."""
        if self._scopes is None or self._book is None:
            more = self._telling.tells(outcome) if self._telling else None
            yield Said(WHOLE, outcome.value, [outcome.value, more] if self._telling else outcome.value)
            return
        for scope, part in self._scopes.parts(outcome):
            (_, own), *elements = split(part, self._book) if self._sets else [((), part)]
            number = self._number(scope)
            yield Said((number, ()), own, part)
            yield from (Said((number, inner), element, element) for inner, element in elements)

    def place(self, value: JsonValue, path: str) -> tuple[Scope, bool]:
        """Return the scope of what stands at a JSON Pointer into a merged value, and whether it is merged as a set."""
        if self._book is None or self._scopes is None or not path.startswith(self._start):
            return WHOLE, False
        index, *tokens = path.removeprefix(self._start).split("/")
        whole = not tokens
        if (index, whole) not in self._entries:
            entry = find(value, self._start + index)[0]
            self._entries[index, whole] = self._number(self._scopes.scope(entry, alone=whole))
        inner, is_set = (
            locate(find(value, self._start + index)[0], map(_unescaped, tokens), self._book)
            if self._sets
            else ((), False)
        )
        return (self._entries[index, whole], inner), is_set

    def _number(self, scope: Hashable) -> int:
        return self._numbers.setdefault(scope, len(self._numbers))


def _unescaped(token: str) -> str:
    return token.replace("~1", "/").replace("~0", "~")
