"""The records of all answers, gathered by identity."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.integrators.records.decision import Part
from prefect_dispatch.integrators.records.identities import KEY_FIELD, has_identity, no_identity
from prefect_dispatch.integrators.records.linkage import Linked, link, remembered
from prefect_dispatch.integrators.records.matching import Name, shape_of
from prefect_dispatch.integrators.values import exact, get, silent
from prefect_dispatch.ledger import Proposal, Ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from pydantic import JsonValue

    from prefect_dispatch.decisions import Choice, Decisions, Identity
    from prefect_dispatch.integrators.records.identities import Identities, Piece
    from prefect_dispatch.integrators.records.likeness import Shape
    from prefect_dispatch.integrators.records.linkage import Link, Pairs
    from prefect_dispatch.integrators.records.matching import Matching
    from prefect_dispatch.integrators.records.rulebook import Path
    from prefect_dispatch.integrators.values import Key
    from prefect_dispatch.models import Outcome

_AHEAD = 1 << 62
_Placed = tuple[int, "Outcome", "Piece"]


class Group(NamedTuple):
    """The parts that one entry of the merged value is made of."""

    key: Key
    """What they share, or the first of what they share."""
    parts: list[Part]
    """In order of preference."""


class Gathered:
    """The records of all answers.

    Attributes:
        identities: What of an answer is a record, and which one.
        unknown: Identities that somebody decided on, and that no record has.
        linked: Which identities are the same.
    """

    def __init__(
        self,
        outcomes: Sequence[Outcome],
        identities: Identities,
        matching: Matching | None = None,
        decisions: Decisions | None = None,
    ) -> None:
        """Gather the records of outcomes, which are in the order of every list."""
        self.identities = identities
        self._pieces: dict[Key, list[_Placed]] = defaultdict(list)
        self._by_outcome = {(outcome.brief, outcome.item): identities.pieces(outcome) for outcome in outcomes}
        for place, outcome in enumerate(outcomes):
            for piece in self._by_outcome[outcome.brief, outcome.item]:
                self._pieces[piece.key].append((place, outcome, piece))
        self.unknown: list[Identity] = []
        same = self._decided(decisions.same if decisions else ())
        apart = self._decided(decisions.different if decisions else ())
        self._choices = decisions.fields if decisions else ()
        self._known([each.record for each in self._choices])
        self.linked = self._linked(matching, same, apart) if matching or same else Linked({})

    def groups(self) -> list[Group]:
        """Return the parts of one record together, and each part without an identity alone; in order of identity."""
        together: dict[Key, list[_Placed]] = defaultdict(list)
        groups: list[Group] = []
        for key, pieces in self._pieces.items():
            if has_identity(key):
                together[self.linked.head(key)] += pieces
            else:
                groups += [Group(key, parts) for placed in pieces for parts in [_parts(*placed, text=True)]]
        for key, pieces in together.items():
            parts = [part for placed in pieces for part in _parts(*placed, text=len(pieces) > 1)]
            groups.append(Group(key, sorted(parts, key=lambda part: part.rank)))
        return sorted(groups, key=lambda group: (group.key, group.parts[0].rank[2:]))

    def parts(self, outcome: Outcome) -> list[tuple[Key, JsonValue]]:
        """Return what an answer says, and to which entry each part of it belongs."""
        return [
            (self.linked.head(piece.key), value)
            for piece in self._by_outcome[outcome.brief, outcome.item]
            for value in ([piece.value] if piece.lead is None else [piece.lead, piece.value])
        ]

    def pieces(self, outcome: Outcome) -> list[tuple[Key, Piece]]:
        """Return the records of an answer, and to which entry each belongs."""
        return [(self.linked.head(piece.key), piece) for piece in self._by_outcome[outcome.brief, outcome.item]]

    def scope(self, entry: JsonValue, *, alone: bool) -> Key:
        """Return to which parts of answers an entry of a merged value belongs."""
        return no_identity(entry) if alone else self.linked.head(self.identities.key(entry))

    def own(self, record: JsonValue) -> Key:
        """Return the identity that a record has."""
        return self.identities.key(record)

    def chosen(self) -> dict[Key, dict[Path, JsonValue]]:
        """Return the values that somebody chose, by record and field.

        None for a field of an identity that is taken from one record as a whole.
        """
        found: dict[Key, dict[Path, JsonValue]] = defaultdict(dict)
        for key, path, choice in self._placed():
            if not self.identities.fixes(path):
                found[key][path] = choice.value
        return found

    def unfollowed(self, met: AbstractSet[tuple[Key, Path]]) -> list[Choice]:
        """Return what was chosen for records that are there, but not for a field that is decided by itself.

        Args:
            met: Records and fields for which a value that was chosen was looked for.
        """
        return [choice for key, path, choice in self._placed() if (key, path) not in met]

    def _placed(self) -> Iterator[tuple[Key, Path, Choice]]:
        for choice in self._choices:
            if (key := self.identities.named(choice.record)) in self._pieces:
                yield self.linked.head(key), tuple(choice.field.split(".")), choice

    def spelling(self, key: Key) -> Identity:
        """Return an identity as it is spelt, the same whatever the order of the records."""
        first, *more = [self.identities.spelt(piece) for _, _, piece in self._pieces[key]]
        return min((first, *more), key=exact) if more else first

    def sources(self, key: Key) -> tuple[Ref, ...]:
        """Return the outcomes that name an identity."""
        places = {place: Ref.of(outcome) for place, outcome, _ in self._pieces[key]}
        return tuple(places[place] for place in sorted(places))

    def proposals(self) -> tuple[Proposal, ...]:
        """Return the pairs that somebody should decide on, the most alike first."""
        return tuple(self._proposal(each) for each in self.linked.proposals)

    def _proposal(self, pair: Link) -> Proposal:
        return Proposal(
            left=self.spelling(pair.left),
            right=self.spelling(pair.right),
            score=pair.score,
            why=pair.why,
            left_sources=self.sources(pair.left),
            right_sources=self.sources(pair.right),
        )

    def _decided(self, pairs: Sequence[tuple[Identity, Identity]]) -> Pairs:
        """Return the pairs that are about records which are there, and keep which are not."""
        found: set[tuple[Key, Key]] = set()
        for pair in pairs:
            left, right = map(self.identities.named, pair)
            if self._known(pair) and left and right and left != right:
                found.add((min(left, right), max(left, right)))
        return tuple(sorted(found))

    def _known(self, names: Iterable[Identity]) -> bool:
        """Return whether there are records of all these identities, and keep those of which there is none."""
        missing = [name for name in names if self.identities.named(name) not in self._pieces]
        self.unknown += [name for name in missing if name not in self.unknown]
        return not missing

    def _linked(self, matching: Matching | None, same: Pairs, apart: Pairs) -> Linked:
        """Return which identities are the same; what they look like is found out only if nobody asked before."""
        keys = sorted(key for key in self._pieces if has_identity(key))
        fields = matching.fields if matching else ()
        evidence = [self._evidence(key, fields) for key in keys] if fields else []
        sources = [[[shape.source for shape in each[field]] for field in fields] for each in evidence]
        options = matching.model_dump(mode="json") if matching else None
        asked: list[Any] = [self.identities.fields, options, same, apart, keys, sources]
        return remembered(
            asked,
            lambda: link(
                [self._name(key, evidence[at] if evidence else {}) for at, key in enumerate(keys)],
                matching,
                same,
                apart,
            ),
        )

    def _evidence(self, key: Key, fields: Sequence[str]) -> dict[str, tuple[Shape, ...]]:
        """Return the distinct values of other fields that the records of an identity have."""
        found: dict[str, dict[str, Shape]] = {field: {} for field in fields}
        for _, _, piece in self._pieces[key]:
            for field, shapes in found.items():
                if not silent(said := get(piece.value, field.split("."))):
                    shape = shape_of(said)
                    shapes[shape.source] = shape
        return {field: tuple(shapes[source] for source in sorted(shapes)) for field, shapes in found.items()}

    def _name(self, key: Key, evidence: Mapping[str, tuple[Shape, ...]]) -> Name:
        identity = dict(self.spelling(key))
        within = str(identity.pop(KEY_FIELD)) if self.identities.by_item else ""
        return Name(key, within, {name: shape_of(value) for name, value in identity.items()}, evidence)


def _parts(place: int, outcome: Outcome, piece: Piece, *, text: bool) -> list[Part]:
    """Return a piece as parts of a record; what leads it comes ahead of whatever all the pieces say.

    The text of what it says breaks ties: where there is nobody to tie with, it need not be made.
    """
    source, first = Ref.of(outcome), (-outcome.item_priority, exact(piece.value) if text else "", place)
    part = Part(piece.value, source, (-outcome.brief_priority, *first))
    lead = Part(piece.lead, source, (-outcome.brief_priority - _AHEAD, *first))
    return [part] if piece.lead is None else [lead, part]
