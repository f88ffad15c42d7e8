"""How a field was decided, and who said what of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.values import content
from prefect_dispatch.ledger import FieldRow, Flag, Loser, Ref

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.records.rules import Claim, Rank, Source


class Part(NamedTuple):
    """A record (or whatever else an answer says), as one outcome says it."""

    value: JsonValue
    """The record."""
    source: Ref
    """The outcome."""
    rank: Rank
    """Its place in the order of preference; the last number is the outcome's place in every list."""


class Doubt(NamedTuple):
    """Why somebody should look at a field."""

    kind: str
    """The kind of the flag that it becomes."""
    message: str
    """What is wrong, in a sentence."""


class Decision(NamedTuple):
    """How one field was decided."""

    path: tuple[str, ...]
    """The keys, and the places in lists merged as sets, that lead to it from the record."""
    rule: str
    """The rule's name."""
    winner: JsonValue
    """What stands there."""
    backers: Sequence[Claim]
    """The claims that the winner comes from, in order of preference."""
    losing: Sequence[Claim]
    """The claims that it removed, in order of preference."""
    carriers: Sequence[Claim]
    """The backers without which something of the winner would be missing."""
    doubts: Sequence[Doubt] = ()
    """Why somebody should look at it."""
    of: Source | None = None
    """What `trust` was told to take for a source."""

    def row(self, path: str) -> FieldRow:
        """Return the decision as the report shows it, for a JSON Pointer into the merged value."""
        if not self.losing:  # a row without losers takes half the memory if they aren't set
            return FieldRow(path=path, winner=self.winner, rule=self.rule, sources=sources_of(self.backers))
        removed: dict[str, list[Claim]] = {}
        for claim in self.losing:
            removed.setdefault(claim.text, []).append(claim)
        return FieldRow(
            path=path,
            winner=self.winner,
            losers=tuple(Loser(value=claims[0].value, sources=sources_of(claims)) for claims in removed.values()),
            rule=self.rule,
            sources=sources_of(self.backers),
        )

    def flags(self, path: str) -> list[Flag]:
        """Return the doubts as the report shows them, for a JSON Pointer into the merged value."""
        if not self.doubts:
            return []
        text = self.winner if isinstance(self.winner, str) else content(self.winner)
        sources = sources_of([*self.backers, *self.losing])
        return [
            Flag(path=path, kind=doubt.kind, text=text, message=doubt.message, sources=sources) for doubt in self.doubts
        ]


def sources_of(claims: Sequence[Claim]) -> tuple[Ref, ...]:
    """Return the outcomes of claims, each once, in the order of every list."""
    if len(claims) == 1:
        return (claims[0].source,)
    places = {claim.rank[-1]: claim.source for claim in claims}
    return tuple(places[place] for place in sorted(places))
