"""What can be told about sources before fields are decided: how often they agree."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prefect_dispatch.integrators.records.folding import fold
from prefect_dispatch.integrators.records.trust import counts_as, learn, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefect_dispatch.integrators.records.decision import Part
    from prefect_dispatch.integrators.records.rulebook import Rulebook
    from prefect_dispatch.integrators.records.rules import Claim, Source
    from prefect_dispatch.ledger import Table
    from prefect_dispatch.models import Outcome


def weighed(
    groups: Iterable[Sequence[Part]], book: Rulebook, outcomes: Sequence[Outcome]
) -> tuple[Rulebook, tuple[Table, ...]]:
    """Return the rules with what the rule `trust` has to know, and that as a table; as they are if none asks for it.

    Args:
        groups: Records of one identity each, in order of preference.
        book: The rules.
        outcomes: All outcomes.
    """
    asked: set[Source | None] = {rule.of for rule in (book.default, *book.rules.values()) if rule.rule == "trust"}
    if not asked:
        return book, ()
    kinds: dict[Source | None, Source] = {of: counts_as(of, outcomes) for of in asked}
    found: list[Source] = sorted(kinds.values())
    fields: dict[Source, list[Sequence[Claim]]] = {kind: [] for kind in found}
    # Which claims compete doesn't depend on who is trusted, so folding without that knowledge finds them.
    for parts in groups:
        for decision in fold(parts, book)[1]:
            claims = [*decision.backers, *decision.losing]
            if decision.rule == "trust" and decision.winner is not None and len(claims) > 1:
                fields[kinds[decision.of]].append(claims)
    known = {kind: learn(claims, outcomes, kind) for kind, claims in fields.items()}
    return replace(book, trust={of: known[kind] for of, kind in kinds.items()}), (table(known.values()),)
