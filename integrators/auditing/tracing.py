"""Both directions of the audit: all that was said is in the merge, and all that is in it was said.

What is said is compared by content together with the name of its field (the last key on the
way there). An integrator may rename fields: where an outcome, or the merge, has no field of a
name, the content alone counts. Null, `{}` and `[]` need not be kept. A `Keyed` integrator is
held to more: each part of an answer, and all that it says, must stand in the entry of the merged
value that it belongs to.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple, cast

from prefect_dispatch.integrators.auditing.pools import Pool, has, leaves
from prefect_dispatch.integrators.auditing.scoping import Places
from prefect_dispatch.integrators.gaps import gaps
from prefect_dispatch.integrators.records.rules import GATHERING
from prefect_dispatch.integrators.values import Node, content, find, is_leaf, pointer
from prefect_dispatch.ledger import Violation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.auditing.scoping import Scope
    from prefect_dispatch.ledger import FieldRow, LedgerRow, Merge, Ref
    from prefect_dispatch.models import Outcome

Name = tuple[str, str]
"""Brief and item of an outcome."""


class _Row(NamedTuple):
    """A field row whose path leads somewhere."""

    row: FieldRow
    name: str | None
    scope: Scope
    by_element: bool
    """Whether its elements have rows of their own."""


class Trace:
    """What outcomes say, what a merge holds, and where the two differ."""

    def __init__(self, merge: Merge, outcomes: Sequence[Outcome], integrator: object = None) -> None:
        """Index what the outcomes say."""
        self._merge = merge
        self._outcomes = {(o.brief, o.item): o for o in outcomes}
        self._places = Places(integrator, outcomes)
        self._parts: dict[tuple[Name, Scope], list[JsonValue]] = defaultdict(list)
        self._said: dict[tuple[Name, Scope], Pool] = defaultdict(Pool)
        for name, outcome in self._outcomes.items():
            for said in self._places.said(outcome) if outcome.status == "succeeded" else ():
                self._parts[name, said.scope].append(said.own)
                self._said[name, said.scope].take(said.whole)
        self._rows: list[_Row] = []

    def violations(self) -> Iterator[Violation]:
        """Yield what is in the merge and was not said, then what was said and is not in the merge."""
        yield from self._precision()
        yield from self._recall()

    def _precision(self) -> Iterator[Violation]:
        paths: set[str] = set()
        for row in self._merge.fields:
            if row.path in paths:
                yield _imprecise(row.path, "two field rows are about it.")
            paths.add(row.path)
            try:
                value, name = find(self._merge.value, row.path)
            except LookupError:
                yield _imprecise(row.path, "a field row is about it, but nothing stands there.")
                continue
            if value is not row.winner and content(value) != content(row.winner):
                yield _imprecise(row.path, f"{_short(value)} stands there, not the winner {_short(row.winner)}.")
            scope, is_set = self._places.place(self._merge.value, row.path)
            traced = _Row(row, name, scope, is_set and row.rule in GATHERING and bool(row.winner))
            self._rows.append(traced)
            yield from self._unsaid(traced)
        told = gaps(self._outcomes.values())
        by_element = {traced.row.path for traced in self._rows if traced.by_element}
        rows = {row.path: row for row in self._merge.fields if row.path not in by_element}
        yield from _uncovered(self._merge, rows, told)

    def _unsaid(self, traced: _Row) -> Iterator[Violation]:
        """Yield what a row claims of its sources that they don't say."""
        row = traced.row
        for sources in (row.sources, *(loser.sources for loser in row.losers)):
            if not sources:
                yield _imprecise(row.path, "a value there has no source.")
            for source in sources:
                if (
                    outcome := self._outcomes.get((source.brief, source.item))
                ) is None or outcome.status != "succeeded":
                    yield _imprecise(row.path, f"its source {str(source)!r} has no answer.")
        if row.rule in GATHERING and isinstance(row.winner, list) and row.winner:
            yield from self._ungathered(traced, row.winner) if not traced.by_element else ()
        elif ":" not in row.rule:  # a function of the user's may compute what nobody said
            yield from self._unsaid_by(traced, row.winner, row.sources)
        for loser in row.losers:
            yield from self._unsaid_by(traced, loser.value, loser.sources)

    def _unsaid_by(self, traced: _Row, value: JsonValue, sources: Iterable[Ref]) -> Iterator[Violation]:
        for source in sources:
            said = self._said.get(((source.brief, source.item), traced.scope))
            if said is None or not self._is_said(said, traced.name, value):
                yield _imprecise(traced.row.path, f"its source {str(source)!r} doesn't say {_short(value)}.")

    def _is_said(self, said: Pool, name: str | None, value: JsonValue) -> bool:
        text = content(value)
        if text in said.texts(name) or text in said.whole:
            return True
        # Anybody's integrator may put an object together from what one outcome says in several.
        together = not self._places.keyed and isinstance(value, dict) and value
        return isinstance(together, dict) and all(self._is_said(said, key, part) for key, part in together.items())

    def _ungathered(self, traced: _Row, winner: list[JsonValue]) -> Iterator[Violation]:
        left = {content(element): element for element in winner}
        wanted = frozenset(left)
        for source in traced.row.sources:
            said = self._said.get(((source.brief, source.item), traced.scope))
            texts = said.texts(traced.name) & wanted if said else set[str]()
            if not texts:
                yield _imprecise(traced.row.path, f"its source {str(source)!r} says nothing of what stands there.")
            for text in texts:
                left.pop(text, None)
        for element in left.values():
            yield _imprecise(traced.row.path, f"none of its sources says {_short(element)}.")

    def _recall(self) -> Iterator[Violation]:
        rows = {(row.brief, row.item): row for row in self._merge.ledger}
        accounted = self._accounted()
        named = {
            ((source.brief, source.item), traced.scope)
            for traced in (self._rows if self._places.keyed else ())  # nobody else is held to it
            for sources in (traced.row.sources, *(loser.sources for loser in traced.row.losers))
            for source in sources
        }
        for where, parts in self._parts.items():
            record = (where[0], (where[1][0], ()))  # a row about the record may be about the element, too
            pools = [pool for place in dict.fromkeys((where, record)) for pool in accounted.get(place, [])]
            lost = [
                leaf
                for leaf in leaves(parts)
                if not has(pools, leaf.name, leaf.text) and (leaf.value != [] or self._places.keyed)
            ]
            if twin := self._twin(rows.get(where[0]), where[1]):
                lost = [leaf for leaf in lost if not has([twin], leaf.name, leaf.text)]
            if not lost and self._places.keyed and where == record and where not in named:
                lost = [Node(None, content(part), part) for part in parts]
            if lost:
                field = "" if lost[0].name is None else f" in {lost[0].name!r}"
                more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
                yield Violation(
                    law="recall",
                    where="/".join(where[0]),
                    message=f"it says {_cut(lost[0].text)}{field}{more}, which neither stands in the merged value "
                    "nor among what a rule removed.",
                )

    def _twin(self, row: LedgerRow | None, scope: Scope) -> Pool | None:
        """Return what is said by the outcome that an outcome is a duplicate of."""
        if row is None or row.by is None or row.disposition != "duplicate_of":
            return None
        return self._said.get(((row.by.brief, row.by.item), scope))

    def _accounted(self) -> Mapping[tuple[Name, Scope], list[Pool]]:
        """Return, for each outcome and scope, what the field rows say that it says."""
        own: dict[tuple[Name, Scope], Pool] = defaultdict(Pool)
        pools: dict[tuple[Name, Scope], list[Pool]] = defaultdict(list)
        for row, name, scope, by_element in self._rows:
            if row.rule in GATHERING and not by_element:  # many sources of many values: one pool for all of them
                shared = Pool([row.winner], name)
                for source in row.sources:
                    pools[(source.brief, source.item), scope].append(shared)
            for value, sources in (
                *(() if row.rule in GATHERING else ((row.winner, row.sources),)),
                *((loser.value, loser.sources) for loser in row.losers),
            ):
                found = leaves([value], name)
                for source in sources:
                    own[(source.brief, source.item), scope].add(found)
        for where, pool in own.items():
            pools[where].append(pool)
        return pools


def _uncovered(merge: Merge, rows: Mapping[str, FieldRow], told: list[JsonValue]) -> Iterator[Violation]:
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
            yield _imprecise(path, f"{_short(value)} stands there without a field row.")
        elif isinstance(value, list):
            todo += [(f"{path}/{at}", part) for at, part in enumerate(value)]
        else:
            entry = cast("dict[str, JsonValue]", value)
            # Beside an answer, the names of the outcome, or of the item, that it comes from need no row of their own.
            named = [key for key in ("brief", "item") if key in entry]
            cited = any(all(entry[key] == getattr(ref, key) for key in named) for ref in answered.get(path, ()))
            todo += [(path + pointer(key), entry[key]) for key in entry if not (cited and key in named)]


def _imprecise(path: str, message: str) -> Violation:
    return Violation(law="precision", where=path, message=message)


def _short(value: JsonValue) -> str:
    return _cut(content(value))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"  # noqa: PLR2004 -- what fits a line
