"""Recall and precision of a merge: every part of an answer is in the merged value, and the other way round.

Each field row of a merge claims that a value is at a path of the merged value, and that its sources, which are
outcomes, have that value in their answers. `Trace` checks every claim against the answers (precision), and every
answer against the claims about it (recall).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, cast, runtime_checkable

from prefect_dispatch.integrators.base import BaseIntegrator, gaps
from prefect_dispatch.integrators.merge_records.field_rules import COLLECTING_RULES
from prefect_dispatch.integrators.merge_records.fold import locate, split_scopes
from prefect_dispatch.models.ledger import Ref, Violation
from prefect_dispatch.serialization.json_values import (
    Node,
    content_text,
    is_empty_value,
    is_leaf,
    list_nodes,
    pointer,
    resolve_pointer,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_records.field_rules import Rulebook
    from prefect_dispatch.models.ledger import FieldRow, Merge
    from prefect_dispatch.models.outcome import Outcome


class ValueIndex:
    """Index of values and all their parts: canonical texts, by the name of the field that holds them.

    Attributes:
        by_field: The texts of all parts, by the name of their field (None for a part in no field).
        whole_texts: The texts of the values themselves, without their parts.
    """

    __slots__ = ("_all", "by_field", "whole_texts")  # an audit holds two for each outcome

    def __init__(self, values: Iterable[JsonValue] = (), name: str | None = None) -> None:
        """Index values of a field, with all their parts."""
        self.by_field: dict[str | None, set[str]] = defaultdict(set)
        self._all: set[str] | None = None
        self.whole_texts: set[str] = set()
        for value in values:
            self.add_value(value, name)

    def add_value(self, value: JsonValue, name: str | None = None) -> None:
        """Add a value of a field, with all its parts."""
        parts = list_nodes(value, name)
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
            first, *more = self.by_field.values() or (set[str](),)
            self._all = first.union(*more) if more else first
        return self._all

    def texts_of_field(self, name: str | None) -> set[str]:
        """Return the texts in fields of a name, or of all fields if there is none of that name."""
        return self.by_field[name] if name is not None and name in self.by_field else self.all_texts


def contains_text(value_indexes: Sequence[ValueIndex], name: str | None, text: str) -> bool:
    """Return whether a text is in a field of a name, or, if no index has such a field, in any field."""
    fields = [index.by_field[name] for index in value_indexes if name is not None and name in index.by_field]
    return any(text in texts for texts in fields or [index.all_texts for index in value_indexes])


def collect_leaves(values: Iterable[JsonValue], name: str | None = None) -> list[Node]:
    """Return the leaves of values, without null and `{}`, which carry no content."""
    return [
        node
        for value in values
        for node in list_nodes(value, name)
        if is_leaf(node.value) and not is_empty_value(node.value)
    ]


class PartialList:
    """A merged list of which each source has some of the elements.

    Attributes:
        unmatched: The elements that have not been found in a source yet, by their canonical texts.
        texts: The canonical texts of all elements.
    """

    __slots__ = ("texts", "unmatched")

    def __init__(self, elements: list[JsonValue]) -> None:
        """Start with all elements unmatched."""
        self.unmatched = {content_text(element): element for element in elements}
        self.texts = frozenset(self.unmatched)


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
    partial_list: PartialList | None = None
    """The elements of the value, if each source must have only some of them."""
    shared_index: ValueIndex | None = None
    """What the claim accounts for in the answers of its sources, if that is shared by all of them."""
    leaves: list[Node] | None = None
    """What the claim accounts for in each answer. None: the leaves of `value`, computed on use (one source only)."""

    @property
    def accounted_leaves(self) -> list[Node]:
        """The leaves that the claim accounts for in the answer of each source."""
        return collect_leaves([self.value], self.name) if self.leaves is None else self.leaves


def iter_claims(
    row: FieldRow, name: str | None, scope: Scope, *, is_set: bool
) -> Iterator[tuple[Claim, Sequence[Ref]]]:
    """Yield the claims of a field row, one for the winner and one for each loser, with the sources of each.

    Args:
        row: The row.
        name: The name of its field.
        scope: The scope of its path.
        is_set: Whether the field is merged as a set, so that its elements have scopes of their own.
    """
    gathering, winner = row.rule in COLLECTING_RULES, row.winner
    if has_element_rows(row, is_set=is_set):
        # The rows of the elements account for them; this row accounts for nothing.
        yield (
            Claim(
                row,
                name,
                scope,
                winner,
                requires_whole=not isinstance(winner, list) and _winner_is_stated(row),
                leaves=[],
            ),
            row.sources,
        )
    elif gathering:
        some = PartialList(winner) if isinstance(winner, list) and winner else None
        index = ValueIndex([winner], name)  # many sources of many values: one index for all of them
        yield Claim(row, name, scope, winner, not some and _winner_is_stated(row), some, index, []), row.sources
    else:
        yield (
            Claim(row, name, scope, winner, _winner_is_stated(row), leaves=_shared_leaves(winner, name, row.sources)),
            row.sources,
        )
    for loser in row.losers:
        shared = _shared_leaves(loser.value, name, loser.sources)
        yield Claim(row, name, scope, loser.value, requires_whole=True, leaves=shared), loser.sources


def has_element_rows(row: FieldRow, *, is_set: bool) -> bool:
    """Return whether the elements of a row's winner have field rows of their own."""
    return is_set and row.rule in COLLECTING_RULES and bool(row.winner)


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


def precision_violation(path: str, message: str) -> Violation:
    """Return a violation of precision at a path of the merged value."""
    return Violation(law="precision", where=path, message=message)


def short_text(value: JsonValue) -> str:
    """Return a value as text for a message, truncated to 80 characters."""
    return truncate(content_text(value))


def truncate(text: str) -> str:
    """Return a text, truncated to 80 characters."""
    return text if len(text) <= 80 else text[:79] + "…"  # noqa: PLR2004 -- what fits a line


def _winner_is_stated(row: FieldRow) -> bool:
    """Return whether a row's winner must be in an answer: a user's function (`module:name`) may compute any value."""
    return ":" not in row.rule


def _shared_leaves(value: JsonValue, name: str | None, sources: Sequence[Ref]) -> list[Node] | None:
    """Return the leaves of a value with several sources, so that they are computed once; None for a single source."""
    return collect_leaves([value], name) if len(sources) > 1 else None


Scope = tuple["Hashable", "Hashable"]
"""An entry of the merged value, and its part: the entry itself (`()`), or an element of a list merged as a set."""

WHOLE_SCOPE: Scope = (None, ())
"""The only scope of an integrator that doesn't match parts of answers with entries."""


class Scopes(Protocol):
    """Mapping of parts of answers to entries of a merged value: parts of one entry have equal scopes."""

    def parts(self, outcome: Outcome) -> Sequence[tuple[Hashable, JsonValue]]:
        """Return the parts of an answer, each with its scope."""
        ...

    def scope(self, entry: JsonValue, *, alone: bool) -> Hashable:
        """Return the scope of an entry.

        Args:
            entry: An entry of the merged value.
            alone: Whether the entry is a single part as it was answered, merged with no other.
        """
        ...


@runtime_checkable
class KeyedIntegrator(Protocol):
    """Integrator whose merged value has a list of entries, each merged from matching parts of answers."""

    entries: ClassVar[str]
    """The field of the merged value that holds the list."""

    @property
    def book(self) -> Rulebook:
        """The rules of the fields of an entry; they define which lists are merged as sets."""
        ...

    def scopes(self, outcomes: Sequence[Outcome]) -> Scopes:
        """Return the scopes of parts and entries, computed from the outcomes alone (not from a merge)."""
        ...


class ScopedPart(NamedTuple):
    """The part of an answer that is in one scope."""

    scope: Scope
    own: JsonValue
    """What must be accounted for in this scope: the part, without the elements that have scopes of their own."""
    whole: JsonValue
    """The part with those elements."""


class ScopeResolver:
    """Resolves the scopes of parts of answers and of paths in the merged value.

    For an integrator that isn't `KeyedIntegrator`, everything is in the scope `WHOLE_SCOPE`.
    """

    def __init__(self, integrator: object, outcomes: Sequence[Outcome]) -> None:
        """Compute the scopes from outcomes, which may be in any order."""
        self._keyed_integrator = integrator if isinstance(integrator, KeyedIntegrator) else None
        self._base = BaseIntegrator.of(integrator)
        self._scopes = (
            self._keyed_integrator.scopes(sorted(outcomes, key=lambda o: Ref.of(o).order))
            if self._keyed_integrator
            else None
        )
        self._book = self._keyed_integrator.book if self._keyed_integrator else None
        self._has_sets = self._book is not None and any(rule.identity for rule in self._book.rules.values())
        self._entries_prefix = pointer(self._keyed_integrator.entries) + "/" if self._keyed_integrator else ""
        # Scopes are looked up millions of times, and hashing long keys is slow: each gets a number.
        self._numbers: dict[Hashable, int] = {}
        self._entries: dict[tuple[str, bool], Hashable] = {}

    @property
    def has_scopes(self) -> bool:
        """Whether the integrator matches parts of answers with entries."""
        return self._keyed_integrator is not None

    def iter_parts(self, outcome: Outcome) -> Iterator[ScopedPart]:
        """Yield the parts of an answer, scope by scope."""
        if self._scopes is None or self._book is None:
            # What an outcome contains beside its value may be in the merged value, but needn't be.
            extra = self._base.side_effects(outcome)
            yield ScopedPart(WHOLE_SCOPE, outcome.value, outcome.value if extra is None else [outcome.value, extra])
            return
        for scope, part in self._scopes.parts(outcome):
            (_, own), *elements = split_scopes(part, self._book) if self._has_sets else [((), part)]
            number = self._scope_number(scope)
            yield ScopedPart((number, ()), own, part)
            yield from (ScopedPart((number, inner), element, element) for inner, element in elements)

    def resolve_scope(self, value: JsonValue, path: str) -> tuple[Scope, bool]:
        """Return the scope of a JSON Pointer into a merged value, and whether what is there is merged as a set."""
        if self._book is None or self._scopes is None or not path.startswith(self._entries_prefix):
            return WHOLE_SCOPE, False
        index, *tokens = path.removeprefix(self._entries_prefix).split("/")
        whole = not tokens
        if (index, whole) not in self._entries:
            entry = resolve_pointer(value, self._entries_prefix + index)[0]
            self._entries[index, whole] = self._scope_number(self._scopes.scope(entry, alone=whole))
        inner, is_set = (
            locate(resolve_pointer(value, self._entries_prefix + index)[0], map(_unescape_token, tokens), self._book)
            if self._has_sets
            else ((), False)
        )
        return (self._entries[index, whole], inner), is_set

    def _scope_number(self, scope: Hashable) -> int:
        return self._numbers.setdefault(scope, len(self._numbers))


def _unescape_token(token: str) -> str:
    return token.replace("~1", "/").replace("~0", "~")


OutcomeKey = tuple[str, str]
"""Brief and item of an outcome."""


class Trace:
    """Compares the answers of outcomes with the field rows and the value of a merge, for recall and precision.

    Outcomes are checked one by one: an index of all answers would take more memory than the run itself.
    """

    def __init__(self, merge: Merge, outcomes: Sequence[Outcome], integrator: object = None) -> None:
        """Prepare the comparison.

        Args:
            merge: The merge.
            outcomes: All outcomes that it was made of.
            integrator: The integrator; one that is `KeyedIntegrator` says which parts of answers belong to which entry.
        """
        self._merge = merge
        self._outcomes = {(o.brief, o.item): o for o in outcomes}
        self._scope_resolver = ScopeResolver(integrator, outcomes)
        self._original_keys = {
            (row.brief, row.item): (row.by.brief, row.by.item)
            for row in merge.ledger
            if row.by and row.disposition == "duplicate_of"
        }
        self._original_indexes: dict[OutcomeKey, Mapping[Scope, ValueIndex]] = {}

    def violations(self) -> Iterator[Violation]:
        """Yield the violations of precision (in the merge, in no answer) and recall (in an answer, not in it)."""
        # 1. Check the field rows by themselves, and group their claims by source.
        claims: dict[OutcomeKey, list[Claim]] = {name: [] for name in self._outcomes}
        lists: list[Claim] = []
        yield from self._group_claims(claims, lists)
        # 2. Compare each outcome with the claims about it, which are dropped then to bound memory.
        for name in [*claims]:
            yield from self._check_outcome(name, claims.pop(name))
        # 3. The elements of merged lists that no source has.
        for claim in lists:
            for element in claim.partial_list.unmatched.values() if claim.partial_list else ():
                yield precision_violation(claim.row.path, f"none of its sources says {short_text(element)}.")

    def _group_claims(self, claims: dict[OutcomeKey, list[Claim]], lists: list[Claim]) -> Iterator[Violation]:
        """Group the claims of the field rows by source, and yield the violations of the rows by themselves.

        Args:
            claims: Receives the claims, by the outcome that is their source.
            lists: Receives the claims about lists of which each source has some elements.
        """
        paths, split_by_element = set[str](), set[str]()
        for row in self._merge.fields:
            if row.path in paths:
                yield precision_violation(row.path, "two field rows are about it.")
            paths.add(row.path)
            try:
                value, name = resolve_pointer(self._merge.value, row.path)
            except LookupError:
                yield precision_violation(row.path, "a field row is about it, but the merged value has nothing there.")
                continue
            if value is not row.winner and content_text(value) != content_text(row.winner):
                yield precision_violation(
                    row.path, f"it is {short_text(value)}, not the winner {short_text(row.winner)}."
                )
            scope, is_set = self._scope_resolver.resolve_scope(self._merge.value, row.path)
            if has_element_rows(row, is_set=is_set):
                split_by_element.add(row.path)
            for claim, sources in iter_claims(row, name, scope, is_set=is_set):
                if claim.partial_list:
                    lists.append(claim)
                if not sources:
                    yield precision_violation(row.path, "a value there has no source.")
                for source in sources:
                    claims.setdefault((source.brief, source.item), []).append(claim)
        rows = {row.path: row for row in self._merge.fields if row.path not in split_by_element}
        yield from uncovered_violations(self._merge, rows, gaps(self._outcomes.values()))

    def _check_outcome(self, name: OutcomeKey, claims: Sequence[Claim]) -> Iterator[Violation]:
        """Yield the claims about an outcome that its answer doesn't support, and the parts that no claim accounts for.

        Args:
            name: Brief and item of the outcome.
            claims: All claims that name it as a source.
        """
        parts, answer_indexes = self._index_answer(name)
        own: dict[Scope, ValueIndex] = defaultdict(ValueIndex)
        indexes: dict[Scope, list[ValueIndex]] = defaultdict(list)
        for claim in claims:
            if self._succeeded_outcome(name) is None:
                yield precision_violation(claim.row.path, f"its source {'/'.join(name)!r} has no answer.")
            yield from self._check_claim(claim, answer_indexes.get(claim.scope), name)
            if claim.shared_index:
                indexes[claim.scope].append(claim.shared_index)
            own[claim.scope].add_nodes(claim.accounted_leaves)
        for scope, index in own.items():
            indexes[scope].append(index)
        yield from self._recall_violations(name, parts, indexes)

    def _index_answer(self, name: OutcomeKey) -> tuple[Mapping[Scope, list[JsonValue]], Mapping[Scope, ValueIndex]]:
        """Return the parts of an outcome's answer in each scope, and an index of all of each; both empty if it failed.

        The parts are what claims must account for; the index also has the elements with scopes of their own.
        """
        parts: dict[Scope, list[JsonValue]] = defaultdict(list)
        indexes: dict[Scope, ValueIndex] = defaultdict(ValueIndex)
        outcome = self._succeeded_outcome(name)
        for part in self._scope_resolver.iter_parts(outcome) if outcome else ():
            parts[part.scope].append(part.own)
            indexes[part.scope].add_value(part.whole)
        return parts, indexes

    def _succeeded_outcome(self, name: OutcomeKey) -> Outcome | None:
        """Return the outcome of a brief and an item, or None if there is none or it has no answer."""
        outcome = self._outcomes.get(name)
        return outcome if outcome and outcome.status == "succeeded" else None

    def _check_claim(self, claim: Claim, answer: ValueIndex | None, name: OutcomeKey) -> Iterator[Violation]:
        """Yield a violation if the answer of a source doesn't support a claim; match the elements of merged lists."""
        if claim.partial_list:
            texts = answer.texts_of_field(claim.name) & claim.partial_list.texts if answer else set[str]()
            if not texts:
                yield precision_violation(claim.row.path, f"its source {'/'.join(name)!r} says none of its elements.")
            for text in texts:
                claim.partial_list.unmatched.pop(text, None)
        elif claim.requires_whole and (answer is None or not self._contains_value(answer, claim.name, claim.value)):
            yield precision_violation(
                claim.row.path, f"its source {'/'.join(name)!r} doesn't say {short_text(claim.value)}."
            )

    def _contains_value(self, answer: ValueIndex, name: str | None, value: JsonValue) -> bool:
        """Return whether an answer has a value in a field of a name, or as a whole."""
        text = content_text(value)
        if text in answer.texts_of_field(name) or text in answer.whole_texts:
            return True
        # An integrator of the user's may build an object from several parts of one answer.
        built = not self._scope_resolver.has_scopes and isinstance(value, dict) and value
        return isinstance(built, dict) and all(self._contains_value(answer, key, part) for key, part in built.items())

    def _recall_violations(
        self, name: OutcomeKey, parts: Mapping[Scope, list[JsonValue]], accounted: Mapping[Scope, list[ValueIndex]]
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
            indexes = [index for place in dict.fromkeys((scope, record)) for index in accounted.get(place, [])]
            lost = [
                leaf
                for leaf in collect_leaves(own)
                if not contains_text(indexes, leaf.name, leaf.text)
                and (leaf.value != [] or self._scope_resolver.has_scopes)
            ]
            # 2. What a duplicate has in common with its original is accounted for there.
            if lost and (original := self._original_index(name, scope)):
                lost = [leaf for leaf in lost if not contains_text([original], leaf.name, leaf.text)]
            # 3. A record without leaves needs an entry as well.
            if not lost and self._scope_resolver.has_scopes and scope == record and scope not in accounted:
                lost = [Node(None, content_text(part), part) for part in own]
            if lost:
                field = "" if lost[0].name is None else f" in {lost[0].name!r}"
                more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
                yield Violation(
                    law="recall",
                    where="/".join(name),
                    message=f"it says {truncate(lost[0].text)}{field}{more}, which is neither in the merged value "
                    "nor among what a rule removed.",
                )

    def _original_index(self, name: OutcomeKey, scope: Scope) -> ValueIndex | None:
        """Return the index of a scope of the answer that an outcome is a duplicate of; None if there is none."""
        original = self._original_keys.get(name)
        if original is None:
            return None
        if original not in self._original_indexes:
            self._original_indexes[original] = self._index_answer(original)[1]
        return self._original_indexes[original].get(scope)
