"""What the rows of a merge claim: that something stands somewhere in the merged value, and that outcomes say so."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple, cast

from prefect_dispatch.integrators.auditing.pools import Pool, leaves
from prefect_dispatch.integrators.records.rules import GATHERING
from prefect_dispatch.integrators.values import content, is_leaf, pointer
from prefect_dispatch.ledger import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.auditing.scoping import Scope
    from prefect_dispatch.integrators.values import Node
    from prefect_dispatch.ledger import FieldRow, Merge, Ref


class Gathered:
    """A list of which each source says some.

    Attributes:
        left: What none of them has been found to say yet, by its content.
        wanted: The content of all of it.
    """

    __slots__ = ("left", "wanted")

    def __init__(self, elements: list[JsonValue]) -> None:
        """Start with nothing found."""
        self.left = {content(element): element for element in elements}
        self.wanted = frozenset(self.left)


class Claim(NamedTuple):
    """A value in a field row, the winner or a loser, and what each of its sources has to say of it."""

    row: FieldRow
    name: str | None
    """The name of the field."""
    scope: Scope
    value: JsonValue
    says: bool
    """Whether each source says all of it."""
    gathered: Gathered | None = None
    """Where each says some of it."""
    pool: Pool | None = None
    """What it accounts for, of all of its sources."""
    leaves: list[Node] | None = None
    """What it accounts for, of each of them; None: found out when it is needed, as there is but one."""

    @property
    def own(self) -> list[Node]:
        """What it accounts for, of each of its sources."""
        return leaves([self.value], self.name) if self.leaves is None else self.leaves


def claims_of(row: FieldRow, name: str | None, scope: Scope, *, is_set: bool) -> Iterator[tuple[Claim, Sequence[Ref]]]:
    """Yield what a row claims, each with its sources.

    Args:
        row: The row.
        name: The name of its field.
        scope: Where that belongs.
        is_set: Whether the field is merged as a set, so that its elements are in scopes of their own.
    """
    gathering, winner = row.rule in GATHERING, row.winner
    if by_element(row, is_set=is_set):
        yield Claim(row, name, scope, winner, says=not isinstance(winner, list) and _said(row), leaves=[]), row.sources
    elif gathering:
        some = Gathered(winner) if isinstance(winner, list) and winner else None
        pool = Pool([winner], name)  # many sources of many values: one pool for all of them
        yield Claim(row, name, scope, winner, not some and _said(row), some, pool, []), row.sources
    else:
        yield Claim(row, name, scope, winner, _said(row), leaves=_shared(winner, name, row.sources)), row.sources
    for loser in row.losers:
        shared = _shared(loser.value, name, loser.sources)
        yield Claim(row, name, scope, loser.value, says=True, leaves=shared), loser.sources


def by_element(row: FieldRow, *, is_set: bool) -> bool:
    """Return whether the elements of a row's winner have rows of their own."""
    return is_set and row.rule in GATHERING and bool(row.winner)


def uncovered(merge: Merge, rows: Mapping[str, FieldRow], told: list[JsonValue]) -> Iterator[Violation]:
    """Yield the leaves of the merged value that no field row covers.

    A field that is an empty list needs none, nor do gaps that are told as they are.
    """
    if merge.value in (None, [], {}):
        return
    answered: dict[str, list[Ref]] = defaultdict(list)
    for path, row in rows.items():
        start, around, _ = (path + "/").partition("/value/")
        answered[start if around else ""] += row.sources
    todo: list[tuple[str, JsonValue]] = [("", merge.value)]
    while todo:
        path, value = todo.pop()
        if path in rows or (path == "/gaps" and value == told) or (path.count("/") == 1 and value == []):
            continue
        if is_leaf(value):
            yield imprecise(path, f"{short(value)} stands there without a field row.")
        elif isinstance(value, list):
            todo.extend((path + pointer(at), part) for at, part in enumerate(value))
        else:
            entry = cast("dict[str, JsonValue]", value)
            # Beside an answer, the names of the outcome, or of the item, that it comes from need no row of their own.
            named = {key: entry[key] for key in ("brief", "item") if key in entry}
            cited = any(all(named[key] == getattr(ref, key) for key in named) for ref in answered.get(path, ()))
            names = [name for name in entry if not (cited and name in named)]
            todo.extend((path + pointer(name), entry[name]) for name in names)


def imprecise(path: str, message: str) -> Violation:
    """Return what is wrong with what stands at a path."""
    return Violation(law="precision", where=path, message=message)


def short(value: JsonValue) -> str:
    """Return a value as a message shows it."""
    return cut(content(value))


def cut(text: str) -> str:
    """Return as much of a text as fits a line."""
    return text if len(text) <= 80 else text[:79] + "…"  # noqa: PLR2004 -- what fits a line


def _said(row: FieldRow) -> bool:
    """Return whether a winner is something that was said: a function of the user's may compute what nobody said."""
    return ":" not in row.rule


def _shared(value: JsonValue, name: str | None, sources: Sequence[Ref]) -> list[Node] | None:
    return leaves([value], name) if len(sources) > 1 else None
