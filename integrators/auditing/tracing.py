"""Both directions of the audit: all that was said is in the merge, and all that is in it was said.

What is said is compared by content together with the name of its field (the last key on the
way there). An integrator may rename fields: where an outcome, or the merge, has no field of a
name, the content alone counts. Null, `{}` and `[]` need not be kept. A `Keyed` integrator is
held to more: each part of an answer, and all that it says, must stand in the entry of the merged
value that it belongs to.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from prefect_dispatch.integrators.auditing.claims import by_element, claims_of, cut, imprecise, short, uncovered
from prefect_dispatch.integrators.auditing.pools import Pool, has, leaves
from prefect_dispatch.integrators.auditing.scoping import Places
from prefect_dispatch.integrators.gaps import gaps
from prefect_dispatch.integrators.values import Node, content, find
from prefect_dispatch.ledger import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.auditing.claims import Claim
    from prefect_dispatch.integrators.auditing.scoping import Scope
    from prefect_dispatch.ledger import Merge
    from prefect_dispatch.models import Outcome

Name = tuple[str, str]
"""Brief and item of an outcome."""


class Trace:
    """What outcomes say, what a merge holds, and where the two differ.

    One outcome is looked into after another: what all of them say, indexed, takes more room than a whole run.
    """

    def __init__(self, merge: Merge, outcomes: Sequence[Outcome], integrator: object = None) -> None:
        """Keep what is compared."""
        self._merge = merge
        self._outcomes = {(o.brief, o.item): o for o in outcomes}
        self._places = Places(integrator, outcomes)
        self._twins = {
            (row.brief, row.item): (row.by.brief, row.by.item)
            for row in merge.ledger
            if row.by and row.disposition == "duplicate_of"
        }
        self._originals: dict[Name, Mapping[Scope, Pool]] = {}

    def violations(self) -> Iterator[Violation]:
        """Yield what is in the merge and was not said, and what was said and is not in the merge."""
        claims: dict[Name, list[Claim]] = {name: [] for name in self._outcomes}
        lists: list[Claim] = []
        yield from self._located(claims, lists)
        for name in [*claims]:
            yield from self._looked_into(name, claims.pop(name))
        for claim in lists:
            for element in claim.gathered.left.values() if claim.gathered else ():
                yield imprecise(claim.row.path, f"none of its sources says {short(element)}.")

    def _located(self, claims: dict[Name, list[Claim]], lists: list[Claim]) -> Iterator[Violation]:
        """Sort what the field rows claim by whom they name for it; yield what is wrong with the rows by themselves."""
        paths, apart = set[str](), set[str]()
        for row in self._merge.fields:
            if row.path in paths:
                yield imprecise(row.path, "two field rows are about it.")
            paths.add(row.path)
            try:
                value, name = find(self._merge.value, row.path)
            except LookupError:
                yield imprecise(row.path, "a field row is about it, but nothing stands there.")
                continue
            if value is not row.winner and content(value) != content(row.winner):
                yield imprecise(row.path, f"{short(value)} stands there, not the winner {short(row.winner)}.")
            scope, is_set = self._places.place(self._merge.value, row.path)
            if by_element(row, is_set=is_set):
                apart.add(row.path)
            for claim, sources in claims_of(row, name, scope, is_set=is_set):
                if claim.gathered:
                    lists.append(claim)
                if not sources:
                    yield imprecise(row.path, "a value there has no source.")
                for source in sources:
                    claims.setdefault((source.brief, source.item), []).append(claim)
        rows = {row.path: row for row in self._merge.fields if row.path not in apart}
        yield from uncovered(self._merge, rows, gaps(self._outcomes.values()))

    def _looked_into(self, name: Name, claims: Sequence[Claim]) -> Iterator[Violation]:
        """Yield what an outcome is claimed to say and doesn't, and what it says and no row accounts for."""
        parts, said = self._said(name)
        own: dict[Scope, Pool] = defaultdict(Pool)
        pools: dict[Scope, list[Pool]] = defaultdict(list)
        for claim in claims:
            if self._answered(name) is None:
                yield imprecise(claim.row.path, f"its source {'/'.join(name)!r} has no answer.")
            yield from self._unsaid(claim, said.get(claim.scope), name)
            if claim.pool:
                pools[claim.scope].append(claim.pool)
            own[claim.scope].add(claim.own)
        for scope, pool in own.items():
            pools[scope].append(pool)
        yield from self._lost(name, parts, pools)

    def _said(self, name: Name) -> tuple[Mapping[Scope, list[JsonValue]], Mapping[Scope, Pool]]:
        """Return what an outcome says in each scope: what is to be found again, and all of it; nothing if it failed."""
        parts: dict[Scope, list[JsonValue]] = defaultdict(list)
        pools: dict[Scope, Pool] = defaultdict(Pool)
        outcome = self._answered(name)
        for said in self._places.said(outcome) if outcome else ():
            parts[said.scope].append(said.own)
            pools[said.scope].take(said.whole)
        return parts, pools

    def _answered(self, name: Name) -> Outcome | None:
        outcome = self._outcomes.get(name)
        return outcome if outcome and outcome.status == "succeeded" else None

    def _unsaid(self, claim: Claim, said: Pool | None, name: Name) -> Iterator[Violation]:
        if claim.gathered:
            texts = said.texts(claim.name) & claim.gathered.wanted if said else set[str]()
            if not texts:
                yield imprecise(claim.row.path, f"its source {'/'.join(name)!r} says nothing of what stands there.")
            for text in texts:
                claim.gathered.left.pop(text, None)
        elif claim.says and (said is None or not self._is_said(said, claim.name, claim.value)):
            yield imprecise(claim.row.path, f"its source {'/'.join(name)!r} doesn't say {short(claim.value)}.")

    def _is_said(self, said: Pool, name: str | None, value: JsonValue) -> bool:
        text = content(value)
        if text in said.texts(name) or text in said.whole:
            return True
        # Anybody's integrator may put an object together from what one outcome says in several.
        together = not self._places.keyed and isinstance(value, dict) and value
        return isinstance(together, dict) and all(self._is_said(said, key, part) for key, part in together.items())

    def _lost(
        self, name: Name, parts: Mapping[Scope, list[JsonValue]], accounted: Mapping[Scope, list[Pool]]
    ) -> Iterator[Violation]:
        """Yield what an outcome says, scope by scope, that no row accounts for, nor what it is a duplicate of."""
        for scope, own in parts.items():
            record = (scope[0], ())  # a row about the record may be about the element, too
            pools = [pool for place in dict.fromkeys((scope, record)) for pool in accounted.get(place, [])]
            lost = [
                leaf
                for leaf in leaves(own)
                if not has(pools, leaf.name, leaf.text) and (leaf.value != [] or self._places.keyed)
            ]
            if lost and (twin := self._twin(name, scope)):
                lost = [leaf for leaf in lost if not has([twin], leaf.name, leaf.text)]
            if not lost and self._places.keyed and scope == record and scope not in accounted:
                lost = [Node(None, content(part), part) for part in own]
            if lost:
                field = "" if lost[0].name is None else f" in {lost[0].name!r}"
                more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
                yield Violation(
                    law="recall",
                    where="/".join(name),
                    message=f"it says {cut(lost[0].text)}{field}{more}, which neither stands in the merged value "
                    "nor among what a rule removed.",
                )

    def _twin(self, name: Name, scope: Scope) -> Pool | None:
        """Return what is said by the outcome that an outcome is a duplicate of."""
        original = self._twins.get(name)
        if original is None:
            return None
        if original not in self._originals:
            self._originals[original] = self._said(original)[1]
        return self._originals[original].get(scope)
