"""Recall and precision of a merge: every part of an answer is in the merged value, and the other way round.

Each field row of a merge claims that a value is at a path of the merged value, and that its sources, which are
outcomes, have that value in their answers. `Trace` checks every claim against the answers (precision), and every
answer against the claims about it (recall).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple, cast

from prefect_dispatch.integrators.base import BaseIntegrator, gaps
from prefect_dispatch.integrators.merge_records.field_rules import COLLECTING_RULES
from prefect_dispatch.integrators.merge_records.fold import locate, split_scopes
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.ledger import Ref, Violation
from prefect_dispatch.security.escaping import shorten
from prefect_dispatch.serialization.json_values import (
    Node,
    content_text,
    is_empty_value,
    is_identical,
    is_leaf,
    list_nodes,
    pointer,
    resolve_pointer,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.ledger import FieldRow, Merge
    from prefect_dispatch.models.outcome import Outcome

Scope = tuple["Hashable", "Hashable"]
"""An entry of the merged value, and its part: the entry itself (`()`), or an element of a list merged as a set."""
_MAX_SHOWN = 80
"""Most characters of a value that a violation quotes."""
WHOLE_SCOPE: Scope = (None, ())
"""The only scope of an integrator that doesn't match parts of answers with entries."""
OutcomeKey = tuple[str, str]
"""Brief and item of an outcome."""


class ValueIndex:
    """Index of values and their parts: canonical texts, by the name of the field that holds them.

    Attributes:
        by_field: The texts of all parts, by the name of their field (None for a part in no field).
        whole_texts: The texts of the values themselves, without their parts.
    """

    __slots__ = ("_all", "by_field", "whole_texts")  # an audit holds two for each outcome

    def __init__(self) -> None:
        """Start without values."""
        self.by_field: dict[str | None, set[str]] = defaultdict(set)
        self.whole_texts: set[str] = set()
        self._all: set[str] | None = None

    def add_value(self, parts: Sequence[Node]) -> None:
        """Add a value that is in no field, with all its parts, the value itself last."""
        self.add_nodes(parts)
        self.whole_texts.add(parts[-1].text)

    def add_nodes(self, parts: Iterable[Node]) -> None:
        """Add parts of values."""
        for node in parts:
            self.by_field[node.name].add(node.text)
        self._all = None

    @property
    def all_texts(self) -> set[str]:
        """The texts of all fields; computed on first use, as most look-ups are by the name of a field."""
        if self._all is None:
            self._all = set[str]().union(*self.by_field.values())
        return self._all

    def texts_of_field(self, name: str | None) -> set[str]:
        """Return the texts in fields of a name, or of all fields if there is none of that name."""
        return self.by_field[name] if name is not None and name in self.by_field else self.all_texts


def contains_text(value_indexes: Sequence[ValueIndex], name: str | None, text: str) -> bool:
    """Return whether a text is in a field of a name, or, if no index has such a field, in any field."""
    named = [index for index in value_indexes if name is not None and name in index.by_field]
    return any(text in index.texts_of_field(name) for index in named or value_indexes)


def collect_leaves(value: JsonValue, name: str | None = None) -> list[Node]:
    """Return the leaves of a value, without null and `{}`, which carry no content."""
    return select_leaves(list_nodes(value, name))


def select_leaves(nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes that are leaves, without those that have no information."""
    return [node for node in nodes if is_leaf(node.value) and not is_empty_value(node.value)]


class Claim(NamedTuple):
    """A value of a field row, the winner or a loser, and what each of its sources must have in its answer."""

    row: FieldRow
    name: str | None
    """The name of the field."""
    scope: Scope
    """The part of the answers that it is about."""
    value: JsonValue
    """The winner, or the value of a loser."""
    requires_whole: bool
    """Whether each source must have the whole value in its answer."""
    accounts: bool = True
    """Whether it accounts for the leaves of the value in the answer of each source."""
    elements: dict[str, JsonValue] | None = None
    """The elements of the value by their canonical texts, if each source must have, and accounts for, only some."""


def iter_claims(
    row: FieldRow, name: str | None, scope: Scope, *, has_element_rows: bool
) -> Iterator[tuple[Claim, Sequence[Ref]]]:
    """Yield the claims of a field row, one for the winner and one for each loser, with the sources of each.

    Args:
        row: The row.
        name: The name of its field.
        scope: The scope of its path.
        has_element_rows: Whether the elements of the winner have field rows of their own, which account for them.
    """
    winner = row.winner
    is_stated = ":" not in row.rule  # a user's function (`module:name`) may compute any value
    if has_element_rows:
        whole = is_stated and not isinstance(winner, list)
        yield Claim(row, name, scope, winner, whole, accounts=False), row.sources
    elif row.rule in COLLECTING_RULES and isinstance(winner, list) and winner:
        elements = {content_text(element): element for element in winner}
        yield Claim(row, name, scope, winner, requires_whole=False, elements=elements), row.sources
    else:
        yield Claim(row, name, scope, winner, is_stated), row.sources
    for loser in row.losers:
        yield Claim(row, name, scope, loser.value, requires_whole=True), loser.sources


def uncovered_violations(
    merge: Merge, rows: Mapping[str, FieldRow], expected_gaps: list[JsonValue]
) -> Iterator[Violation]:
    """Yield a violation for each leaf of the merged value that no field row covers.

    A field of the value that is an empty list needs no row, nor does `gaps` if it is correct.

    Args:
        merge: The merge.
        rows: The field rows that cover what is at their paths, by path.
        expected_gaps: What the value's field `gaps` should be.
    """
    if merge.value in (None, [], {}):
        return
    # 1. The sources of each entry, by the path of the entry: that of its rows up to `/value/`.
    sources: dict[str, list[Ref]] = defaultdict(list)
    for path, row in rows.items():
        start, around, _ = (path + "/").partition("/value/")
        sources[start if around else ""] += row.sources
    # 2. Walk the value from its root; stop where a row covers all that is below.
    todo: list[tuple[str, JsonValue]] = [("", merge.value)]
    while todo:
        path, value = todo.pop()
        if path in rows or (path == "/gaps" and value == expected_gaps) or (path.count("/") == 1 and value == []):
            continue
        if is_leaf(value):
            yield precision_violation(path, f"{short_text(value)} has no field row.")
        elif isinstance(value, list):
            todo.extend((path + pointer(at), part) for at, part in enumerate(value))
        else:
            entry = cast("dict[str, JsonValue]", value)
            # Beside an answer, the fields `brief` and `item` that name one of its sources need no row of their own.
            origin = {key: entry[key] for key in ("brief", "item") if key in entry}
            cited = any(all(origin[key] == getattr(ref, key) for key in origin) for ref in sources.get(path, ()))
            names = [name for name in entry if not (cited and name in origin)]
            todo.extend((path + pointer(name), entry[name]) for name in names)


def split_pointer(path: str) -> list[str]:
    """Return the keys and indices of a JSON Pointer."""
    return [token.replace("~1", "/").replace("~0", "~") for token in path.split("/")[1:]]


def precision_violation(path: str, message: str) -> Violation:
    """Return a violation of precision at a path of the merged value."""
    return Violation(law="precision", where=path, message=message)


def short_text(value: JsonValue) -> str:
    """Return a value as text for a message, truncated to `_MAX_SHOWN` characters."""
    return shorten(content_text(value), _MAX_SHOWN)


class ScopedPart(NamedTuple):
    """The part of an answer that is in one scope."""

    scope: Scope
    own: JsonValue
    """What must be accounted for in this scope: the part, without the elements that have scopes of their own."""
    whole: JsonValue
    """The part with those elements."""


class RecordScopes:
    """Scopes of the parts of answers and of the paths in the merged value of `MergeRecords`."""

    def __init__(self, integrator: MergeRecords, outcomes: Sequence[Outcome], value: JsonValue) -> None:
        """Compute the scopes from the outcomes, in any order, and not from the merged value."""
        self._index = integrator.scopes(sorted(outcomes, key=lambda o: Ref.of(o).order))
        self._book = integrator.book
        self._has_sets = any(rule.identity for rule in integrator.rules)
        self._prefix = pointer(integrator.entries) + "/"
        self._value = value
        # Scopes are looked up millions of times, and hashing long keys is slow: each gets a number.
        self._numbers: dict[Hashable, int] = {}
        self._entries: dict[tuple[str, bool], int] = {}

    def iter_parts(self, outcome: Outcome) -> Iterator[ScopedPart]:
        """Yield the parts of an answer, scope by scope."""
        for key, part in self._index.parts(outcome):
            (_, own), *elements = split_scopes(part, self._book) if self._has_sets else [((), part)]
            number = self._number(key)
            yield ScopedPart((number, ()), own, part)
            yield from (ScopedPart((number, inner), element, element) for inner, element in elements)

    def resolve(self, path: str) -> tuple[Scope, bool]:
        """Return the scope of a JSON Pointer into the merged value, and whether what is there is merged as a set."""
        if not path.startswith(self._prefix):
            return WHOLE_SCOPE, False
        index, *tokens = path.removeprefix(self._prefix).split("/")
        entry, _ = resolve_pointer(self._value, self._prefix + index)
        alone = not tokens
        if (index, alone) not in self._entries:
            self._entries[index, alone] = self._number(self._index.scope(entry, int(index), alone=alone))
        if not self._has_sets:
            return (self._entries[index, alone], ()), False
        inner, is_set = locate(entry, split_pointer(path.removeprefix(self._prefix + index)), self._book)
        return (self._entries[index, alone], inner), is_set

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


class Trace:
    """Compares the answers of outcomes with the field rows and the value of a merge, for recall and precision.

    Outcomes are checked one by one: an index of all answers would take more memory than the run itself.
    """

    def __init__(self, merge: Merge, outcomes: Sequence[Outcome], integrator: object = None) -> None:
        """Prepare the comparison.

        Args:
            merge: The merge.
            outcomes: All outcomes that it was made of.
            integrator: The integrator; `MergeRecords` says which parts of answers belong to which entry.
        """
        self._merge = merge
        self._outcomes = outcomes
        self._answers = {(o.brief, o.item): o for o in outcomes if o.status == "succeeded"}
        self._base = BaseIntegrator.of(integrator)
        self._scopes = RecordScopes(integrator, outcomes, merge.value) if isinstance(integrator, MergeRecords) else None
        self._original_keys = {
            (row.brief, row.item): (row.by.brief, row.by.item)
            for row in merge.ledger
            if row.by and row.disposition == "duplicate_of"
        }
        self._unsaid: dict[str, dict[str, JsonValue]] = {}  # the elements that no source has, by the path of their list
        self._original_indexes: dict[OutcomeKey, Mapping[Scope, ValueIndex]] = {}

    def violations(self) -> Iterator[Violation]:
        """Yield the violations of precision (in the merge, in no answer) and recall (in an answer, not in it)."""
        # 1. Check the field rows by themselves, and group their claims by source.
        claims: dict[OutcomeKey, list[Claim]] = {name: [] for name in self._answers}
        yield from self._group_claims(claims)
        # 2. Compare each outcome with the claims about it, which are dropped then to bound memory.
        for name in [*claims]:
            yield from self._check_outcome(name, claims.pop(name))
        # 3. The elements of merged lists that no source has.
        for path, elements in self._unsaid.items():
            for element in elements.values():
                yield precision_violation(path, f"none of its sources says {short_text(element)}.")

    def _group_claims(self, claims: dict[OutcomeKey, list[Claim]]) -> Iterator[Violation]:
        """Group the claims of the field rows by source, and yield the violations of the rows by themselves.

        Args:
            claims: Receives the claims, by the outcome that is their source.
        """
        paths: set[str] = set()
        rows: dict[str, FieldRow] = {}
        for row in self._merge.fields:
            if row.path in paths:
                yield precision_violation(row.path, "two field rows are about it.")
            paths.add(row.path)
            rows[row.path] = row
            try:
                value, name = resolve_pointer(self._merge.value, row.path)
            except LookupError:
                yield precision_violation(row.path, "a field row is about it, but the merged value has nothing there.")
                continue
            if not is_identical(value, row.winner) and content_text(value) != content_text(row.winner):
                yield precision_violation(
                    row.path, f"it is {short_text(value)}, not the winner {short_text(row.winner)}."
                )
            scope, is_set = self._scopes.resolve(row.path) if self._scopes else (WHOLE_SCOPE, False)
            has_element_rows = is_set and row.rule in COLLECTING_RULES and bool(row.winner)
            if has_element_rows:
                del rows[row.path]
            for claim, sources in iter_claims(row, name, scope, has_element_rows=has_element_rows):
                if claim.elements:
                    self._unsaid[row.path] = dict(claim.elements)
                if not sources:
                    yield precision_violation(row.path, "a value there has no source.")
                for source in sources:
                    claims.setdefault((source.brief, source.item), []).append(claim)
        yield from uncovered_violations(self._merge, rows, gaps(self._outcomes))

    def _check_outcome(self, name: OutcomeKey, claims: Sequence[Claim]) -> Iterator[Violation]:
        """Yield the claims about an outcome that its answer doesn't support, and the parts that no claim accounts for.

        Args:
            name: Brief and item of the outcome.
            claims: All claims that name it as a source.
        """
        if self._is_taken_whole(name, claims):
            return
        parts, answer = self._index_answer(name)
        accounted: dict[Scope, ValueIndex] = defaultdict(ValueIndex)
        for claim in claims:
            if name not in self._answers:
                yield precision_violation(claim.row.path, f"its source {'/'.join(name)!r} has no answer.")
            yield from self._check_claim(claim, answer.get(claim.scope), accounted[claim.scope], name)
        yield from self._recall_violations(name, parts, accounted)

    def _is_taken_whole(self, name: OutcomeKey, claims: Sequence[Claim]) -> bool:
        """Return whether the only claim about an outcome is its whole answer: there is nothing more to compare then.

        The answer supports such a claim, and the claim accounts for each of the answer's leaves.
        """
        if self._scopes or len(claims) != 1 or name not in self._answers:
            return False
        claim = claims[0]
        return claim.accounts and not claim.elements and is_identical(claim.value, self._answers[name].value)

    def _index_answer(self, name: OutcomeKey) -> tuple[Mapping[Scope, list[list[Node]]], Mapping[Scope, ValueIndex]]:
        """Return the parts of an outcome's answer in each scope, and an index of all of each; both empty if it failed.

        The parts are what claims must account for, each with its own parts; the index also has the elements with
        scopes of their own.
        """
        parts: dict[Scope, list[list[Node]]] = defaultdict(list)
        indexes: dict[Scope, ValueIndex] = defaultdict(ValueIndex)
        for part in self._iter_parts(self._answers[name]) if name in self._answers else ():
            nodes = list_nodes(part.own)
            parts[part.scope].append(nodes)
            indexes[part.scope].add_value(nodes if part.whole is part.own else list_nodes(part.whole))
        return parts, indexes

    def _iter_parts(self, outcome: Outcome) -> Iterable[ScopedPart]:
        """Return the parts of an answer with their scopes: without `MergeRecords`, the answer in a single scope."""
        if self._scopes:
            return self._scopes.iter_parts(outcome)
        # What an outcome contains beside its value may be in the merged value, but needn't be.
        extra = self._base.side_effects(outcome)
        whole = outcome.value if extra is None else [outcome.value, extra]
        return [ScopedPart(WHOLE_SCOPE, outcome.value, whole)]

    def _check_claim(
        self, claim: Claim, answer: ValueIndex | None, accounted: ValueIndex, name: OutcomeKey
    ) -> Iterator[Violation]:
        """Yield a violation if the answer of a source doesn't support a claim.

        Args:
            claim: The claim.
            answer: The part of the answer that it is about.
            accounted: Receives the leaves that the claim accounts for.
            name: Brief and item of the source.
        """
        if claim.elements:
            texts = answer.texts_of_field(claim.name) & claim.elements.keys() if answer else set[str]()
            if not texts:
                yield precision_violation(claim.row.path, f"its source {'/'.join(name)!r} says none of its elements.")
            for text in texts:
                self._unsaid[claim.row.path].pop(text, None)
                accounted.add_nodes(collect_leaves(claim.elements[text], claim.name))
            return
        if claim.requires_whole and (answer is None or not self._contains_value(answer, claim.name, claim.value)):
            yield precision_violation(
                claim.row.path, f"its source {'/'.join(name)!r} doesn't say {short_text(claim.value)}."
            )
        if claim.accounts:
            accounted.add_nodes(collect_leaves(claim.value, claim.name))

    def _contains_value(self, answer: ValueIndex, name: str | None, value: JsonValue) -> bool:
        """Return whether an answer has a value in a field of a name, or as a whole."""
        text = content_text(value)
        if text in answer.texts_of_field(name) or text in answer.whole_texts:
            return True
        # An integrator of the user's may build an object from several parts of one answer.
        if self._scopes or not isinstance(value, dict) or not value:
            return False
        return all(self._contains_value(answer, key, part) for key, part in value.items())

    def _recall_violations(
        self, name: OutcomeKey, parts: Mapping[Scope, list[list[Node]]], accounted: Mapping[Scope, ValueIndex]
    ) -> Iterator[Violation]:
        """Yield a violation for each scope with parts that no claim accounts for.

        Args:
            name: Brief and item of the outcome.
            parts: The parts of its answer, by scope.
            accounted: What claims account for, by scope.
        """
        for scope, own in parts.items():
            # 1. The leaves that no claim accounts for. A row of the whole record may account for its elements, too.
            record = (scope[0], ())
            indexes = [accounted[place] for place in (scope, record) if place in accounted]
            lost = [
                leaf
                for nodes in own
                for leaf in select_leaves(nodes)
                if not contains_text(indexes, leaf.name, leaf.text) and (leaf.value != [] or self._scopes)
            ]
            # 2. What a duplicate has in common with its original is accounted for there.
            if lost and name in self._original_keys:
                original = self._index_original(self._original_keys[name]).get(scope, ValueIndex())
                lost = [leaf for leaf in lost if leaf.text not in original.texts_of_field(leaf.name)]
            # 3. A record without leaves needs an entry as well.
            if not lost and self._scopes and scope == record and scope not in accounted:
                lost = [nodes[-1] for nodes in own]
            if lost:
                field = "" if lost[0].name is None else f" in {lost[0].name!r}"
                more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
                yield Violation(
                    law="recall",
                    where="/".join(name),
                    message=f"it says {shorten(lost[0].text, _MAX_SHOWN)}{field}{more}, which is neither in the merged "
                    "value nor among what a rule removed.",
                )

    def _index_original(self, name: OutcomeKey) -> Mapping[Scope, ValueIndex]:
        """Return the index of an answer that others are duplicates of, by scope; cached."""
        if name not in self._original_indexes:
            self._original_indexes[name] = self._index_answer(name)[1]
        return self._original_indexes[name]
