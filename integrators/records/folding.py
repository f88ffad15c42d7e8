"""Several records of one identity, folded into one, and who said what of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from prefect_dispatch.integrators.records.decision import Decision, Doubt, Part, sources_of
from prefect_dispatch.integrators.records.picking import elements
from prefect_dispatch.integrators.records.rules import GATHERING, Claim, Rule
from prefect_dispatch.integrators.records.sets import grouped
from prefect_dispatch.integrators.values import content, silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.records.rulebook import Path, Rulebook
    from prefect_dispatch.ledger import Ref

Said = tuple["Part", "dict[str, JsonValue]"]
_KEEP = Rule(rule="keep_all")


def keep(part: Part) -> Decision:
    """Return the decision to take a part as it is."""
    claims = [_claim(part, part.value)]
    return Decision((), "kept", part.value, claims, (), claims)


def fold(
    parts: Sequence[Part], book: Rulebook, chosen: Mapping[Path, JsonValue] | None = None
) -> tuple[JsonValue, list[Decision]]:
    """Return the one record that records of one identity become, and a decision for each of its fields.

    Args:
        parts: The records, all of them objects, in order of preference.
        book: The rules.
        chosen: Values that somebody chose for fields of this record; one counts where some record says it.
    """
    said = [(part, cast("dict[str, JsonValue]", part.value)) for part in parts]
    return _Fold(book, chosen or {}).record(said, (), ())


class _Fold:
    """Records of one identity on their way to being one."""

    def __init__(self, book: Rulebook, chosen: Mapping[Path, JsonValue]) -> None:
        self.book = book
        self.chosen = chosen

    def record(self, said: Sequence[Said], keys: Path, path: Path) -> tuple[JsonValue, list[Decision]]:
        """Return one object for several; keys lead to their rules, the path to where it stands."""
        merged: dict[str, JsonValue] = {}
        decisions: list[Decision] = []
        if len(said) == 1:
            [(part, alone)] = said
            for name in sorted(alone):
                if not self.chosen and self.book.plain((*keys, name)):  # as most are where most records are alone
                    merged[name] = alone[name]
                    decisions.append(self._plain(_claim(part, alone[name]), (*keys, name), (*path, name)))
                    continue
                merged[name], made = self._field([(part, alone[name])], (*keys, name), (*path, name))
                decisions += made
            return merged, decisions
        for name in sorted({name for _, record in said for name in record}):
            every = [(part, record[name]) for part, record in said if name in record]
            present = [(part, value) for part, value in every if value is not None] or every
            merged[name], made = self._field(present, (*keys, name), (*path, name))
            decisions += made
        return merged, decisions

    def _field(
        self, present: Sequence[tuple[Part, JsonValue]], keys: Path, path: Path
    ) -> tuple[JsonValue, list[Decision]]:
        claims = [_claim(part, value) for part, value in present]
        if len(claims) == 1 and not self.chosen and self.book.plain(keys):
            return claims[0].value, [self._plain(claims[0], keys, path)]
        doubts: list[Doubt] = []
        if keys in self.chosen and keys == path:
            text = content(self.chosen[keys])
            if backers := [claim for claim in claims if claim.text == text]:
                losing = [claim for claim in claims if claim.text != text]
                made = Decision(path, "decided", backers[0].value, backers, losing, backers[:1])
                return made.winner, [made]
            doubts = [Doubt("decision", f"Somebody chose {_short(text)}, which no record says; so the rule decided.")]
        value, decisions = self._ruled(claims, present, keys, path)
        first = decisions[0]
        return value, [first._replace(doubts=[*doubts, *first.doubts]), *decisions[1:]]

    def _plain(self, claim: Claim, keys: Path, path: Path) -> Decision:
        """Return the decision on what one record alone says."""
        claims = (claim,)
        return Decision(path, self.book.name(keys), claim.value, claims, (), () if claim.value is None else claims)

    def _ruled(
        self,
        claims: Sequence[Claim],
        present: Sequence[tuple[Part, JsonValue]],
        keys: Path,
        path: Path,
    ) -> tuple[JsonValue, list[Decision]]:
        if self.book.elements(keys):
            if any(elements(claim.value) for claim in claims) and claims[0].value is not None:
                return self._set(claims, present, keys, path)
        elif self.book.opens(keys):
            objects = [(part, value) for part, value in present if isinstance(value, dict) and value]
            if objects and len(objects) == sum(not silent(value) for _, value in present):
                return self.record(objects, keys, path)
        decision = self._decide(claims, keys, path)
        return decision.winner, [decision]

    def _set(
        self,
        claims: Sequence[Claim],
        present: Sequence[tuple[Part, JsonValue]],
        keys: Path,
        path: Path,
    ) -> tuple[JsonValue, list[Decision]]:
        """Return one list for several: elements of one identity become one, field by field."""
        rule = self.book.rule(keys)
        every = [(part, element) for part, value in present for element in elements(value)]
        groups = grouped([element for _, element in every], self.book.elements(keys), ordered=rule.name == "union")
        merged: list[JsonValue] = []
        decisions: list[Decision] = []
        for at, group in enumerate(groups):
            members = [every[place] for place in group.members]
            if group.same:
                value, made = self.record(cast("list[Said]", members), keys, (*path, str(at)))
            else:
                backers = [_claim(part, element) for part, element in members]
                value, made = (
                    members[0][1],
                    [Decision((*path, str(at)), rule.name, members[0][1], backers, (), backers[:1])],
                )
            merged.append(value)
            decisions += made
        if none := [claim for claim in claims if claim.value == []]:
            some = [claim for claim in claims if claim.value != []]
            decisions.insert(0, Decision(path, rule.name, [*merged], some, none, some[:1]))
        return merged, decisions

    def _decide(self, claims: Sequence[Claim], keys: Path, path: Path) -> Decision:
        rule, policy = self.book.rule(keys), self.book.policy(keys)
        if claims[0].value is None:
            return Decision(path, rule.name, None, claims, (), ())
        differ = any(claim.text != claims[0].text for claim in claims)
        if differ and policy == "keep_all" and not rule.gathers:
            rule = _KEEP
        if rule.name in GATHERING:
            return _gather(path, rule, claims)
        known = self.book.trust.get(rule.of) if rule.rule == "trust" else None
        winner = known.decide(claims) if known else rule.decide(claims)
        text = content(winner)
        backers = [claim for claim in claims if claim.text == text]
        losing = [claim for claim in claims if claim.text != text]
        doubts = [Doubt("conflict", _conflict(claims, rule))] if differ and policy == "flag" else ()
        # A function may compute what nobody said: then it comes from all, and all that they said was replaced.
        return Decision(path, rule.name, winner, backers or claims, losing, backers[:1] or claims, doubts, rule.of)


def _gather(path: Path, rule: Rule, claims: Sequence[Claim]) -> Decision:
    winner = rule.decide(claims)
    backers = [claim for claim in claims if elements(claim.value)] or claims
    carriers: dict[str, Claim] = {}
    for claim in backers:
        for element in elements(claim.value):
            carriers.setdefault(content(element), claim)
    losing = [claim for claim in claims if not elements(claim.value)] if winner else ()
    return Decision(path, rule.name, winner, backers, losing, [*carriers.values()] or claims[:1])


def _conflict(claims: Sequence[Claim], rule: Rule) -> str:
    sides: dict[str, list[Claim]] = {}
    for claim in claims:
        sides.setdefault(claim.text, []).append(claim)
    said = [f"{_named(sources_of(side))}: {_short(text)}" for text, side in sides.items()]
    return f"Records disagree, and rule {rule.name!r} decided. {'; '.join(said)}."


def _named(sources: Sequence[Ref], most: int = 3) -> str:
    more = f" and {len(sources) - most} more" if len(sources) > most else ""
    return ", ".join(map(str, sources[:most])) + more


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _claim(part: Part, value: JsonValue) -> Claim:
    return Claim(value, content(value), part.source, part.value, part.rank)
