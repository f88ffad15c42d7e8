"""Merge the records of one identity into one record, with a decision and its sources for each field."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from prefect_dispatch.integrators.crowdkit_adapter import Vote, require_crowd_kit, wawa
from prefect_dispatch.integrators.merge_records.field_rules import (
    COLLECTING_RULES,
    DEFAULT_WEIGHT,
    Claim,
    FieldDecision,
    FlagReason,
    RecordPart,
    Rule,
    Trust,
    as_elements,
    sources_of,
)
from prefect_dispatch.integrators.merge_records.identities import comparison_key
from prefect_dispatch.integrators.merge_records.similarity import normalize_value
from prefect_dispatch.models.ledger import Ref, Table
from prefect_dispatch.security.escaping import join_names, shorten
from prefect_dispatch.serialization.json_values import content_text, get_at, is_empty_value, value_order

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_records.field_rules import Path, Rulebook, Source
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.serialization.json_values import Order


def element_key(value: JsonValue, identity: Sequence[Path]) -> tuple[Order, ...] | None:
    """Return the comparison key that list elements of one identity share, or None if an element has no identity.

    Example:
        >>> element_key({"name": "Ada "}, [("name",)]) == element_key({"name": "ada", "born": 1815}, [("name",)])
        True
        >>> element_key("et al.", [("name",)])
    """
    return comparison_key([normalize_value(get_at(value, path)) for path in identity])


Scopes = list[tuple["Hashable", "JsonValue"]]
"""Pairs of scope and value."""


def split_scopes(record: JsonValue, book: Rulebook) -> Scopes:
    """Return a record split into scopes: the record without its identified list elements, and each of these elements.

    The record's own scope is `()`; an element's scope lists the paths and identity keys that lead to it.
    """
    elements: Scopes = []
    remainder = _move_elements(record, (), (), book, elements)
    return [((), remainder), *elements]


def _move_elements(
    value: JsonValue, path: Path, scope: tuple[Hashable, ...], book: Rulebook, elements: Scopes
) -> JsonValue:
    """Return a value without its identified list elements, which are added to `elements` with scopes of their own."""
    identity = book.element_identity(path)
    if not identity:
        return _move_elements_of_fields(value, path, scope, book, elements)
    kept: list[JsonValue] = []
    for element in as_elements(value):
        if (key := element_key(element, identity)) is None:
            kept.append(element)
        else:
            inner = (*scope, (path, key))
            elements.append((inner, _move_elements_of_fields(element, path, inner, book, elements)))
    return kept


def _move_elements_of_fields(
    value: JsonValue, path: Path, scope: tuple[Hashable, ...], book: Rulebook, elements: Scopes
) -> JsonValue:
    if not isinstance(value, dict):
        return value
    kept = {name: _move_elements(part, (*path, name), scope, book, elements) for name, part in value.items()}
    # A list is dropped if all its elements were moved to scopes of their own; a list that was empty from the
    # start stays, because it states that there are no elements.
    return {name: part for name, part in kept.items() if part != [] or value[name] == []}


def locate(record: JsonValue, tokens: Iterable[str], book: Rulebook) -> tuple[Hashable, bool]:
    """Return where a sequence of keys and list indices in a merged record leads to.

    Returns:
        The scope, as `split_scopes` names it, and whether it is a list merged as a set, whose elements have scopes of
        their own.
    """
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
    return scope, isinstance(value, list) and not in_list and bool(book.element_identity(path))


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
        for name in sorted({name for _, record in objects for name in record}):
            values = [(part, record[name]) for part, record in objects if name in record]
            rule_path, location = (*keys, name), (*path, name)
            # Fast path: most fields are in one record only, and need no decision.
            if len(values) == 1 and not self.choices and self.book.settings(rule_path).is_plain:
                merged[name] = values[0][1]
                claims = [_make_claim(*values[0])]
                rule = self.book.settings(rule_path).name
                decisions.append(
                    FieldDecision(location, rule, merged[name], claims, (), () if merged[name] is None else claims)
                )
                continue
            present = [(part, value) for part, value in values if value is not None] or values
            merged[name], field_decisions = self._merge_field(present, rule_path, location)
            decisions += field_decisions
        return merged, decisions

    def _merge_field(
        self, present: Sequence[tuple[RecordPart, JsonValue]], keys: Path, path: Path
    ) -> tuple[JsonValue, list[FieldDecision]]:
        """Return the value of a field, with its decision, or with those on its parts."""
        claims = [_make_claim(part, value) for part, value in present]
        # 1. A reviewer's choice takes precedence if some record has the chosen value.
        doubts: list[FlagReason] = []
        if keys in self.choices and keys == path:
            text = content_text(self.choices[keys])
            if backers := [claim for claim in claims if claim.text == text]:
                losing = [claim for claim in claims if claim.text != text]
                decision = FieldDecision(path, "decided", backers[0].value, backers, losing, backers[:1])
                return decision.winner, [decision]
            doubts = [
                FlagReason(
                    "decision",
                    f"The chosen value {shorten(text, _MAX_VALUE)} is in no record; the rule decided instead.",
                )
            ]
        # 2. The rule decides; an unusable choice is flagged on its first decision.
        value, decisions = self._apply_rule(claims, present, keys, path)
        first = decisions[0]
        return value, [first._replace(flag_reasons=[*doubts, *first.flag_reasons]), *decisions[1:]]

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
        # 1. Group the elements by identity; those without one, by content.
        rule, identity = self.book.settings(keys).rule, self.book.element_identity(keys)
        groups: dict[tuple[bool, tuple[Order, ...]], list[tuple[RecordPart, JsonValue]]] = {}
        for part, value in present:
            for element in as_elements(value):
                key = element_key(element, identity)
                group = (key is None, key or (value_order(element),))
                groups.setdefault(group, []).append((part, element))
        # 2. Merge each group; under `union` sorted by identity, with groups without one last.
        merged: list[JsonValue] = []
        decisions: list[FieldDecision] = []
        for index, group in enumerate(sorted(groups) if rule.name == "union" else groups):
            members, location = groups[group], (*path, str(index))
            without_identity, _ = group
            if without_identity:
                backers = [_make_claim(part, element) for part, element in members]
                merged.append(backers[0].value)
                decisions.append(FieldDecision(location, rule.name, backers[0].value, backers, (), backers[:1]))
            else:
                element, element_decisions = self.merge_objects(cast("list[PartValue]", members), keys, location)
                merged.append(element)
                decisions += element_decisions
        # 3. A record with an empty list states that there are no elements; the merged list overrides it.
        if empty := [claim for claim in claims if claim.value == []]:
            filled = [claim for claim in claims if claim.value != []]
            decisions.insert(0, FieldDecision(path, rule.name, [*merged], filled, empty, filled[:1]))
        return merged, decisions

    def _decide(self, claims: Sequence[Claim], keys: Path, path: Path) -> FieldDecision:
        """Return the decision on a field as a whole, by its rule and its conflict policy."""
        rule, _, policy, _ = self.book.settings(keys)
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


_MAX_SOURCES, _MAX_VALUE = 3, 60
"""Most sources of a value that a message names, and most characters of the value."""


def _conflict_message(claims: Sequence[Claim], rule: Rule) -> str:
    sides: dict[str, list[Claim]] = {}
    for claim in claims:
        sides.setdefault(claim.text, []).append(claim)
    values = [
        f"{join_names(sources_of(side), _MAX_SOURCES)}: {shorten(text, _MAX_VALUE)}" for text, side in sides.items()
    ]
    return f"Records disagree, and rule {rule.name!r} decided. {'; '.join(values)}."


def _make_claim(part: RecordPart, value: JsonValue) -> Claim:
    return Claim(value, content_text(value), part.source, part.value, part.rank)


def select_informative_votes(votes: Iterable[Vote]) -> list[Vote]:
    """Return the informative votes: those on items with several sources and a unique most frequent opinion.

    Each vote is returned once, and the votes are sorted.

    Example:
        >>> select_informative_votes([Vote("alone", "a", "x"), Vote("tie", "a", "x"), Vote("tie", "b", "y")])
        []
    """
    backing: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for vote in votes:
        backing[vote.item][vote.opinion].add(vote.agent)
    informative: list[Vote] = []
    for item in sorted(backing):
        counts = sorted((len(agents) for agents in backing[item].values()), reverse=True)
        sources = set[str]().union(*backing[item].values())
        if len(sources) > 1 and counts[0] > max(counts[1:], default=0):
            informative += [Vote(item, agent, opinion) for opinion, agents in backing[item].items() for agent in agents]
    return sorted(informative)


def estimate_weights(votes: Iterable[Vote]) -> dict[str, float]:
    """Return how often each source agrees with most of the other sources, from 0 to 1.

    Args:
        votes: The opinions (`opinion`) of sources (`agent`) on fields (`item`), in any order.

    Returns:
        The sources' weights, by name; sources without an informative vote are left out.

    Raises:
        JobError: If crowd-kit is not installed.

    Example:
        >>> says = {"a": "xxy", "b": "xxx", "c": "xyx"}
        >>> votes = [Vote(str(at), source, values[at]) for source, values in says.items() for at in range(3)]
        >>> estimate_weights(votes)
        {'a': 0.666667, 'b': 1.0, 'c': 0.666667}
    """
    informative = select_informative_votes(votes)
    if not informative:
        return {}
    require_crowd_kit("The rule 'trust'")
    # Replace each opinion by its index among the opinions on its field: texts may be long, and only opinions on one
    # field are compared.
    numbers: dict[str, dict[str, int]] = defaultdict(dict)
    for vote in informative:
        numbers[vote.item].setdefault(vote.opinion, len(numbers[vote.item]))
    numbered = [vote._replace(opinion=str(numbers[vote.item][vote.opinion])) for vote in informative]
    skills = wawa(numbered).skills
    return {source: round(skills[source], 6) for source in sorted(skills)}


def estimate_trust(fields: Iterable[Sequence[Claim]], outcomes: Iterable[Outcome], of: Source) -> Trust:
    """Estimate the reliability of the sources of some claims.

    Args:
        fields: For each field, the claims to its value.
        outcomes: All outcomes.
        of: What counts as one source.
    """
    names = {Ref.of(o): str(getattr(o, of)) for o in outcomes if o.status == "succeeded"}
    votes = [Vote(str(at), names[claim.source], claim.text) for at, claims in enumerate(fields) for claim in claims]
    return Trust(of, names, estimate_weights(votes), Counter(vote.agent for vote in select_informative_votes(votes)))


def add_source_trust(
    groups: Iterable[Sequence[RecordPart]], book: Rulebook, outcomes: Sequence[Outcome]
) -> tuple[Rulebook, tuple[Table, ...]]:
    """Estimate how reliable the sources are, if any rule is `trust`.

    Args:
        groups: The records of one identity each, in order of preference.
        book: The rules.
        outcomes: All outcomes.

    Returns:
        The rules with the estimates, and a table of them; the rules unchanged and no table if no rule is `trust`.
    """
    # With one brief for many files, the sources that differ are the files; with several briefs, they are the briefs.
    default: Source = "item" if len({outcome.brief for outcome in outcomes}) == 1 else "brief"
    rules = [rule for rule in (book.default, *book.rules.values()) if rule.rule == "trust"]
    if not rules:
        return book, ()
    kinds: dict[Source | None, Source] = {rule.of: rule.of or default for rule in rules}
    fields: dict[Source, list[Sequence[Claim]]] = {kind: [] for kind in sorted(kinds.values())}
    # Which claims compete doesn't depend on the weights, so merging without them finds the claims to learn from.
    for parts in groups:
        for decision in merge_parts(parts, book)[1]:
            claims = [*decision.backers, *decision.losers]
            if decision.rule == "trust" and decision.winner is not None and len(claims) > 1:
                fields[kinds[decision.source_kind]].append(claims)
    trusts = {kind: estimate_trust(claims, outcomes, kind) for kind, claims in fields.items()}
    return replace(book, trust={of: trusts[kind] for of, kind in kinds.items()}), (
        trust_table(_trust_rows(trusts.values())),
    )


def _trust_rows(trusts: Iterable[Trust]) -> list[dict[str, JsonValue]]:
    """Return the sources and their weights, the greatest weight first."""
    rows: list[dict[str, JsonValue]] = []
    for trust in trusts:
        weights = {name: trust.weights.get(name, DEFAULT_WEIGHT) for name in trust.names.values()}
        for name in sorted(weights, key=lambda name: (-weights[name], name)):
            claims = trust.claims.get(name, 0)
            rows.append(
                {
                    "of": trust.source_kind,
                    "source": name,
                    "weight": weights[name],
                    "claims": claims,
                    "agreements": round(weights[name] * claims),
                }
            )
    return rows


def trust_table(rows: Iterable[dict[str, JsonValue]]) -> Table:
    """Return the sources and their weights as a table of the report."""
    return Table(
        name="trust",
        title="How far each source is trusted",
        rows=tuple(rows),
        note=(
            "The weight is the share of a source's claims that most sources agree with. Claims counted are those to "
            "fields decided by `trust` on which two sources or more say something and one value has more of them "
            f"than any other; a source without any has the weight {DEFAULT_WEIGHT}."
        ),
    )
