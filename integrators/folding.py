"""Several records of one identity, folded into one, and who said what of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

from prefect_dispatch.integrators.rules import GATHERING, Claim, Rank, Rule, elements
from prefect_dispatch.integrators.values import content, silent
from prefect_dispatch.ledger import FieldRow, Loser, Ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic import JsonValue

Path = tuple[str, ...]


class Part(NamedTuple):
    """A record (or whatever else an answer says), as one outcome says it."""

    value: JsonValue
    """The record."""
    source: Ref
    """The outcome."""
    rank: Rank
    """Its place in the order of preference; the last number is the outcome's place in every list."""


class Decision(NamedTuple):
    """How one field was decided."""

    path: Path
    """The keys that lead to it, from the record."""
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

    def row(self, path: str) -> FieldRow:
        """Return the decision as the report shows it, for a JSON Pointer into the merged value."""
        removed: dict[str, list[Claim]] = {}
        for claim in self.losing:
            removed.setdefault(claim.text, []).append(claim)
        return FieldRow(
            path=path,
            winner=self.winner,
            losers=tuple(Loser(value=claims[0].value, sources=_sources(claims)) for claims in removed.values()),
            rule=self.rule,
            sources=_sources(self.backers),
        )


@dataclass(frozen=True)
class Rulebook:
    """Which rule is for which field."""

    rules: Mapping[Path, Rule]
    """Rules by path."""
    default: Rule
    """For fields without a rule of their own, or of an object that they are in."""
    identity: Sequence[Path]
    """The fields that make records the same; they are decided by `priority` unless a rule says otherwise."""

    def rule(self, path: Path) -> Rule:
        """Return the rule for a field."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.rules:
                return self.rules[path[:length]]
        return Rule() if self.identifies(path) else self.default

    def identifies(self, path: Path) -> bool:
        """Return whether a change of the field could change the identity."""
        return any(path[: len(other)] == other[: len(path)] for other in self.identity)

    def opens(self, path: Path) -> bool:
        """Return whether some rule is for a part of the field."""
        return any(len(other) > len(path) and other[: len(path)] == path for other in self.rules)

    def keeps_type(self, path: Path) -> bool:
        """Return whether the field, with all its parts, is always what some record says."""
        return self.rule(path).picks and all(
            rule.picks for other, rule in self.rules.items() if other[: len(path)] == path
        )


def keep(part: Part) -> Decision:
    """Return the decision to take a part as it is."""
    claims = [_claim(part, part.value, part.value)]
    return Decision((), "kept", part.value, claims, (), claims)


def fold(parts: Sequence[Part], book: Rulebook) -> tuple[JsonValue, list[Decision]]:
    """Return the one record that records of one identity become, and a decision for each of its fields.

    Args:
        parts: The records, all of them objects, in order of preference.
        book: The rules.
    """
    return _fold([(part, cast("dict[str, JsonValue]", part.value)) for part in parts], book, ())


def _fold(
    said: Sequence[tuple[Part, dict[str, JsonValue]]], book: Rulebook, path: Path
) -> tuple[JsonValue, list[Decision]]:
    merged: dict[str, JsonValue] = {}
    decisions: list[Decision] = []
    for name in sorted({name for _, record in said for name in record}):
        here = (*path, name)
        every = [(part, record[name]) for part, record in said if name in record]
        if book.opens(here):
            objects = [(part, value) for part, value in every if isinstance(value, dict) and value]
            if objects and len(objects) == sum(not silent(value) for _, value in every):
                merged[name], inner = _fold(objects, book, here)
                decisions += inner
                continue
        present = [(part, value) for part, value in every if value is not None] or every
        decision = _decide(here, book.rule(here), [_claim(part, value, part.value) for part, value in present])
        merged[name] = decision.winner
        decisions.append(decision)
    return merged, decisions


def _decide(path: Path, rule: Rule, claims: Sequence[Claim]) -> Decision:
    if claims[0].value is None:
        return Decision(path, rule.name, None, claims, (), ())
    winner = rule.decide(claims)
    if rule.name in GATHERING:
        backers = [claim for claim in claims if elements(claim.value)] or claims
        carriers: dict[str, Claim] = {}
        for claim in backers:
            for element in elements(claim.value):
                carriers.setdefault(content(element), claim)
        losing = [claim for claim in claims if not elements(claim.value)] if winner else ()
        return Decision(path, rule.name, winner, backers, losing, [*carriers.values()] or claims[:1])
    text = content(winner)
    backers = [claim for claim in claims if claim.text == text]
    losing = [claim for claim in claims if claim.text != text]
    # A function may compute what nobody said: then it comes from all, and all that they said was replaced.
    return Decision(path, rule.name, winner, backers or claims, losing, backers[:1] or claims)


def _claim(part: Part, value: JsonValue, record: JsonValue) -> Claim:
    return Claim(value, content(value), part.source, record, part.rank)


def _sources(claims: Iterable[Claim]) -> tuple[Ref, ...]:
    places = {claim.rank[-1]: claim.source for claim in claims}
    return tuple(places[place] for place in sorted(places))
