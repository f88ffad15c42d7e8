"""Merge the records of one identity into one record, with a decision and its sources for each field."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from prefect_dispatch.integrators.merge_records.field_rules import COLLECTING_RULES, Rule
from prefect_dispatch.integrators.merge_records.resolution import (
    Claim,
    FieldDecision,
    FlagReason,
    RecordPart,
    as_elements,
    sources_of,
)
from prefect_dispatch.integrators.merge_records.similarity import normalize_value
from prefect_dispatch.serialization.json_values import Order, content_text, get_at, is_empty_value, value_order

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_records.field_rules import Path, Rulebook
    from prefect_dispatch.models.ledger import Ref


Key = tuple[int, tuple[Order, ...]]
"""Sort key of a group of list elements: whether it has an identity, then the identity (or the element itself)."""
_HAS_IDENTITY, _NO_IDENTITY = 0, 1


def element_key(value: JsonValue, identity: Sequence[Path]) -> tuple[Order, ...] | None:
    """Return the comparison key that list elements of one identity share, or None if an element has no identity.

    Example:
        >>> element_key({"name": "Ada "}, [("name",)]) == element_key({"name": "ada", "born": 1815}, [("name",)])
        True
        >>> element_key("et al.", [("name",)])
    """
    values = [normalize_value(get_at(value, path)) for path in identity]
    if any(is_empty_value(value) or value in ("", []) for value in values):
        return None
    return tuple(map(value_order, values))


class ElementGroup(NamedTuple):
    """List elements that are merged into one."""

    same: bool
    """Whether they share an identity; otherwise they are equal in content."""
    members: list[int]
    """Their indices in the sequence that was grouped."""


def group_elements(values: Sequence[JsonValue], identity: Sequence[Path], *, ordered: bool) -> list[ElementGroup]:
    """Return list elements grouped by identity.

    Args:
        values: The elements, in order of preference.
        identity: Paths of the fields that identify an element; if empty, only equal elements are grouped.
        ordered: Whether groups are sorted by identity, with groups without an identity last; otherwise they
            keep the order of preference.
    """
    groups: dict[Key, list[int]] = {}
    for index, value in enumerate(values):
        key = element_key(value, identity)
        group: Key = (_NO_IDENTITY, (value_order(value),)) if key is None else (_HAS_IDENTITY, key)
        groups.setdefault(group, []).append(index)
    return [ElementGroup(group[0] == _HAS_IDENTITY, groups[group]) for group in (sorted(groups) if ordered else groups)]


def split_scopes(record: JsonValue, book: Rulebook) -> list[tuple[Hashable, JsonValue]]:
    """Return a record split into scopes: the record without its identified list elements, and each of these elements.

    Returns:
        Pairs of scope and value. The record's own scope is `()`; an element's scope lists the paths and identity
        keys that lead to it.
    """
    splitter = _ScopeSplitter(book)
    remainder = splitter.walk(record, (), ())
    return [((), remainder), *splitter.scopes]


class _ScopeSplitter:
    """State of splitting one record.

    A class, not nested functions: their reference cycle would keep all collected elements alive.
    """

    def __init__(self, book: Rulebook) -> None:
        self._book = book
        self.scopes: list[tuple[Hashable, JsonValue]] = []

    def walk(self, value: JsonValue, path: Path, scope: tuple[Hashable, ...]) -> JsonValue:
        """Return a value without its identified list elements, which are moved to scopes of their own."""
        if identity := self._book.element_identity(path):
            return [kept for each in _as_list(value) for kept in self._extract_element(each, identity, path, scope)]
        if isinstance(value, dict):
            return self._walk_fields(value, path, scope)
        return value

    def _walk_fields(
        self, value: dict[str, JsonValue], path: Path, scope: tuple[Hashable, ...]
    ) -> dict[str, JsonValue]:
        kept = {name: self.walk(part, (*path, name), scope) for name, part in value.items()}
        # A list is dropped if all its elements were moved to scopes of their own; a list that was empty from the
        # start stays, because it states that there are no elements.
        return {name: part for name, part in kept.items() if part != [] or value[name] == []}

    def _extract_element(
        self, value: JsonValue, identity: Sequence[Path], path: Path, scope: tuple[Hashable, ...]
    ) -> list[JsonValue]:
        """Return what is left of a list element: nothing if it has an identity and was moved to its own scope."""
        key = element_key(value, identity)
        if key is None:
            return [value]
        inner = (*scope, (path, key))
        self.scopes.append((inner, self._walk_fields(cast("dict[str, JsonValue]", value), path, inner)))
        return []


class RecordLocation(NamedTuple):
    """Location inside a merged record."""

    scope: Hashable
    """The scope, as `split_scopes` names it."""
    is_set: bool
    """Whether it is a list merged as a set, whose elements have scopes of their own."""


def locate(record: JsonValue, tokens: Iterable[str], book: Rulebook) -> RecordLocation:
    """Return the location that a sequence of keys and list indices in a merged record leads to."""
    path: Path = ()
    scope: tuple[Hashable, ...] = ()
    value, in_list = record, False
    for token in tokens:
        in_list = isinstance(value, list)
        if isinstance(value, list):
            value = value[int(token)]
            if (identity := book.element_identity(path)) and (key := element_key(value, identity)):
                scope = (*scope, (path, key))
        else:
            path = (*path, token)
            value = get_at(value, [token])
    return RecordLocation(scope, isinstance(value, list) and not in_list and bool(book.element_identity(path)))


def _as_list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [value]


PartValue = tuple["RecordPart", "dict[str, JsonValue]"]
"""A record part with the object, inside the record, that is being merged."""
_KEEP = Rule(rule="keep_all")


def keep_unmerged(part: RecordPart) -> FieldDecision:
    """Return the decision that keeps a part unchanged, as a record of its own."""
    claims = [_make_claim(part, part.value)]
    return FieldDecision((), "kept", part.value, claims, (), claims)


def merge_parts(
    parts: Sequence[RecordPart], book: Rulebook, choices: Mapping[Path, JsonValue] | None = None
) -> tuple[JsonValue, list[FieldDecision]]:
    """Merge records of one identity into one record.

    Args:
        parts: The records, all of them objects, in order of preference.
        book: The rules.
        choices: Values chosen by a reviewer, by field path; a choice applies only if some record has the value.

    Returns:
        The merged record, and a decision for each of its fields.
    """
    objects = [(part, cast("dict[str, JsonValue]", part.value)) for part in parts]
    return _RecordMerger(book, choices or {}).merge_objects(objects, (), ())


class _RecordMerger:
    """Merger for the records of one identity."""

    def __init__(self, book: Rulebook, choices: Mapping[Path, JsonValue]) -> None:
        self.book = book
        self.choices = choices

    def merge_objects(
        self, objects: Sequence[PartValue], keys: Path, path: Path
    ) -> tuple[JsonValue, list[FieldDecision]]:
        """Return several objects merged into one, with a decision for each field.

        Args:
            objects: The objects, in order of preference.
            keys: Path that selects the rules; it has no list indices.
            path: Location in the merged record.
        """
        merged: dict[str, JsonValue] = {}
        decisions: list[FieldDecision] = []
        if len(objects) == 1:
            [(part, single)] = objects
            for name in sorted(single):
                # Fast path: most records have an identity of their own, and most fields need no decision.
                if not self.choices and self.book.is_plain((*keys, name)):
                    merged[name] = single[name]
                    decisions.append(
                        self._make_single_decision(_make_claim(part, single[name]), (*keys, name), (*path, name))
                    )
                    continue
                merged[name], field_decisions = self._merge_field([(part, single[name])], (*keys, name), (*path, name))
                decisions += field_decisions
            return merged, decisions
        for name in sorted({name for _, record in objects for name in record}):
            values = [(part, record[name]) for part, record in objects if name in record]
            present = [(part, value) for part, value in values if value is not None] or values
            merged[name], field_decisions = self._merge_field(present, (*keys, name), (*path, name))
            decisions += field_decisions
        return merged, decisions

    def _merge_field(
        self, present: Sequence[tuple[RecordPart, JsonValue]], keys: Path, path: Path
    ) -> tuple[JsonValue, list[FieldDecision]]:
        """Return the value of a field, with its decision, or with those on its parts."""
        claims = [_make_claim(part, value) for part, value in present]
        # 1. A single value under a rule that keeps single values as they are needs no decision.
        if len(claims) == 1 and not self.choices and self.book.is_plain(keys):
            return claims[0].value, [self._make_single_decision(claims[0], keys, path)]
        # 2. A reviewer's choice takes precedence if some record has the chosen value.
        doubts: list[FlagReason] = []
        if keys in self.choices and keys == path:
            text = content_text(self.choices[keys])
            if backers := [claim for claim in claims if claim.text == text]:
                losing = [claim for claim in claims if claim.text != text]
                decision = FieldDecision(path, "decided", backers[0].value, backers, losing, backers[:1])
                return decision.winner, [decision]
            doubts = [
                FlagReason("decision", f"The chosen value {_truncate(text)} is in no record; the rule decided instead.")
            ]
        # 3. The rule decides; an unusable choice is flagged on its first decision.
        value, decisions = self._apply_rule(claims, present, keys, path)
        first = decisions[0]
        return value, [first._replace(flag_reasons=[*doubts, *first.flag_reasons]), *decisions[1:]]

    def _make_single_decision(self, claim: Claim, keys: Path, path: Path) -> FieldDecision:
        """Return the decision on a field that only one record has."""
        claims = (claim,)
        return FieldDecision(
            path, self.book.rule_name(keys), claim.value, claims, (), () if claim.value is None else claims
        )

    def _apply_rule(
        self,
        claims: Sequence[Claim],
        present: Sequence[tuple[RecordPart, JsonValue]],
        keys: Path,
        path: Path,
    ) -> tuple[JsonValue, list[FieldDecision]]:
        """Return the value by the field's rule: a list merged as a set, an object merged key by key, or one value."""
        if self.book.element_identity(keys):
            # A list of identified elements is merged as a set, unless every record has an empty list or null.
            if any(as_elements(claim.value) for claim in claims) and claims[0].value is not None:
                return self._merge_set(claims, present, keys, path)
        elif self.book.has_nested_rules(keys):
            # An object with rules for its parts is merged key by key, unless some record has no object there.
            objects = [(part, value) for part, value in present if isinstance(value, dict) and value]
            if objects and len(objects) == sum(not is_empty_value(value) for _, value in present):
                return self.merge_objects(objects, keys, path)
        decision = self._decide(claims, keys, path)
        return decision.winner, [decision]

    def _merge_set(
        self,
        claims: Sequence[Claim],
        present: Sequence[tuple[RecordPart, JsonValue]],
        keys: Path,
        path: Path,
    ) -> tuple[JsonValue, list[FieldDecision]]:
        """Return several lists merged into one: elements of one identity are merged field by field."""
        rule = self.book.rule_for(keys)
        pairs = [(part, element) for part, value in present for element in as_elements(value)]
        groups = group_elements(
            [element for _, element in pairs], self.book.element_identity(keys), ordered=rule.name == "union"
        )
        merged: list[JsonValue] = []
        decisions: list[FieldDecision] = []
        for index, group in enumerate(groups):
            members = [pairs[place] for place in group.members]
            if group.same:
                value, element_decisions = self.merge_objects(
                    cast("list[PartValue]", members), keys, (*path, str(index))
                )
            else:
                backers = [_make_claim(part, element) for part, element in members]
                value, element_decisions = (
                    members[0][1],
                    [FieldDecision((*path, str(index)), rule.name, members[0][1], backers, (), backers[:1])],
                )
            merged.append(value)
            decisions += element_decisions
        # A record with an empty list states that there are no elements; the merged list overrides it.
        if empty := [claim for claim in claims if claim.value == []]:
            filled = [claim for claim in claims if claim.value != []]
            decisions.insert(0, FieldDecision(path, rule.name, [*merged], filled, empty, filled[:1]))
        return merged, decisions

    def _decide(self, claims: Sequence[Claim], keys: Path, path: Path) -> FieldDecision:
        """Return the decision on a field as a whole, by its rule and its conflict policy."""
        rule, policy = self.book.rule_for(keys), self.book.conflict_policy(keys)
        if claims[0].value is None:
            return FieldDecision(path, rule.name, None, claims, (), ())
        differ = any(claim.text != claims[0].text for claim in claims)
        if differ and policy == "keep_all" and not rule.collects_values:
            rule = _KEEP
        if rule.name in COLLECTING_RULES:
            return _decide_by_collecting(path, rule, claims)
        trust = self.book.trust.get(rule.of) if rule.rule == "trust" else None
        winner = trust.decide(claims) if trust else rule.decide(claims)
        text = content_text(winner)
        backers = [claim for claim in claims if claim.text == text]
        losing = [claim for claim in claims if claim.text != text]
        doubts = [FlagReason("conflict", _conflict_message(claims, rule))] if differ and policy == "flag" else ()
        # A function may return a value that no record has: it then derives from all claims, and replaces all of them.
        return FieldDecision(path, rule.name, winner, backers or claims, losing, backers[:1] or claims, doubts, rule.of)


def _decide_by_collecting(path: Path, rule: Rule, claims: Sequence[Claim]) -> FieldDecision:
    """Return the decision of a rule that collects the distinct values of all claims."""
    winner = rule.decide(claims)
    backers = [claim for claim in claims if as_elements(claim.value)] or claims
    carriers: dict[str, Claim] = {}
    for claim in backers:
        for element in as_elements(claim.value):
            carriers.setdefault(content_text(element), claim)
    losing = [claim for claim in claims if not as_elements(claim.value)] if winner else ()
    return FieldDecision(path, rule.name, winner, backers, losing, [*carriers.values()] or claims[:1])


def _conflict_message(claims: Sequence[Claim], rule: Rule) -> str:
    sides: dict[str, list[Claim]] = {}
    for claim in claims:
        sides.setdefault(claim.text, []).append(claim)
    values = [f"{_format_sources(sources_of(side))}: {_truncate(text)}" for text, side in sides.items()]
    return f"Records disagree, and rule {rule.name!r} decided. {'; '.join(values)}."


def _format_sources(sources: Sequence[Ref], most: int = 3) -> str:
    more = f" and {len(sources) - most} more" if len(sources) > most else ""
    return ", ".join(map(str, sources[:most])) + more


def _truncate(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _make_claim(part: RecordPart, value: JsonValue) -> Claim:
    return Claim(value, content_text(value), part.source, part.value, part.rank)
