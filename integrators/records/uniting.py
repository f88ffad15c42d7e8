"""Groups of records become entries of the merged value, one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.records.dispositions import dispositions
from prefect_dispatch.integrators.records.folding import fold, keep
from prefect_dispatch.integrators.records.identities import has_identity
from prefect_dispatch.integrators.values import pointer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.records.decision import Decision
    from prefect_dispatch.integrators.records.gathering import Gathered, Group
    from prefect_dispatch.integrators.records.rulebook import Path, Rulebook
    from prefect_dispatch.integrators.values import Key
    from prefect_dispatch.ledger import FieldRow, Flag, LedgerRow
    from prefect_dispatch.models import Outcome


class United(NamedTuple):
    """The entries of a merged value, and how they came about."""

    entries: list[JsonValue]
    """The entries, in order of their identities."""
    ledger: tuple[LedgerRow, ...]
    """Where each outcome ended."""
    fields: tuple[FieldRow, ...]
    """How each field was decided."""
    flags: tuple[Flag, ...]
    """What somebody should look at."""
    met: set[tuple[Key, Path]]
    """The records and fields for which a value that somebody chose was looked for."""


def unite(
    outcomes: Sequence[Outcome],
    gathered: Gathered,
    groups: Sequence[Group],
    book: Rulebook,
    chosen: Mapping[Key, Mapping[Path, JsonValue]],
    *,
    at: str,
) -> United:
    """Return what groups of records become.

    Args:
        outcomes: All outcomes, in the order of every list.
        gathered: What the groups were made of.
        groups: The groups.
        book: The rules.
        chosen: Values that somebody chose, by record and field.
        at: Where, in the merged value, the entries stand.
    """
    entries: list[JsonValue] = []
    fields: list[FieldRow] = []
    flags: list[Flag] = []
    met: set[tuple[Key, Path]] = set()

    def folded(group: Group) -> tuple[JsonValue, list[Decision]]:
        if has_identity(group.key):
            return fold(group.parts, book, chosen.get(group.key))
        return group.parts[0].value, [keep(group.parts[0])]

    def place(group: Group) -> Key:
        # A record that was linked goes by the identity that it ends with, any other by the one that it has.
        return gathered.own(folded(group)[0]) if group.key in gathered.linked.heads else group.key

    def decided() -> Iterator[list[Decision]]:
        # Rows are made entry by entry: a hundred thousand entries' decisions at once would be the most of the memory.
        for group in sorted(groups, key=place):
            entry, decisions = folded(group)
            head = pointer(at, len(entries))
            entries.append(entry)
            for decision in decisions:
                path = head + pointer(*decision.path)
                fields.append(decision.row(path))
                flags.extend(decision.flags(path))
            for field in chosen.get(group.key, ()):
                if any(decision.path[: len(field)] == field for decision in decisions):
                    met.add((group.key, field))
            yield decisions

    ledger = dispositions(outcomes, decided())
    return United(entries, ledger, tuple(fields), tuple(flags), met)
