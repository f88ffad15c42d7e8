"""What several agents answered about one item, taken apart into ballots, and put together again."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple, cast

from prefect_dispatch.integrators.gaps import unanswered
from prefect_dispatch.integrators.records.rules import Claim
from prefect_dispatch.integrators.values import content, exact
from prefect_dispatch.ledger import LedgerRow, Ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.records.decision import Decision
    from prefect_dispatch.models import Outcome

Path = tuple[str, ...]


class Ballot(NamedTuple):
    """One question: a field of the answer about one item, and what each agent says."""

    item: str
    """The item's key."""
    path: Path
    """The keys that lead to the field, from the answer; none where the answer is no object."""
    claims: Sequence[Claim]
    """What is said, one claim an agent, in order of preference."""
    voters: int
    """How many agents answered about the item, those without this field among them."""

    @property
    def field(self) -> str:
        """The field's name in tables."""
        return field_name(self.path)


def field_name(path: Path) -> str:
    """Return a field's name in tables: its dotted path, or `answer` for an answer that is no object."""
    return ".".join(path) or "answer"


def answers_by_item(ranked: Sequence[Outcome]) -> dict[str, list[Claim]]:
    """Return the answers to each item as claims, in order of preference.

    Args:
        ranked: All outcomes in the order of every list; the items come in that order, too.
    """
    found: dict[str, list[Claim]] = {}
    for place, outcome in enumerate(ranked):
        if outcome.status == "succeeded":
            rank = (-outcome.brief_priority, -outcome.item_priority, exact(outcome.value), place)
            claim = Claim(outcome.value, content(outcome.value), Ref.of(outcome), outcome.value, rank)
            found.setdefault(outcome.item, []).append(claim)
    return {item: sorted(claims, key=lambda claim: claim.rank) for item, claims in found.items()}


def ballots(item: str, claims: Sequence[Claim]) -> Iterator[Ballot]:
    """Yield the ballots on one item: objects are taken apart field by field, all else is voted on as it is.

    Where more than half say null, that is a vote against the object; otherwise null says nothing beside objects.
    """
    todo: list[tuple[Path, Sequence[Claim]]] = [((), claims)]
    while todo:
        path, here = todo.pop()
        said = [(claim, claim.value) for claim in here if claim.value is not None]
        objects = [(claim, value) for claim, value in said if isinstance(value, dict)]
        apart = any(value for _, value in objects) and len(objects) == len(said)
        if not apart or 2 * len(said) < len(here):
            yield Ballot(item, path, here, len(claims))
            continue
        for name in sorted({name for _, value in objects for name in value}, reverse=True):
            inner = [
                Claim(value[name], content(value[name]), claim.source, claim.record, claim.rank)
                for claim, value in objects
                if name in value
            ]
            todo.append(((*path, name), inner))


def assembled(decisions: Iterable[Decision]) -> JsonValue:
    """Return the answer that decided fields make up.

    Example:
        >>> from prefect_dispatch.integrators.records.decision import Decision
        >>> assembled([Decision(("a", "b"), "majority", 1, (), (), ()), Decision(("c",), "majority", 2, (), (), ())])
        {'a': {'b': 1}, 'c': 2}
    """
    whole: dict[str, JsonValue] = {}
    for decision in decisions:
        if not decision.path:
            return decision.winner
        here = whole
        for name in decision.path[:-1]:
            here = cast("dict[str, JsonValue]", here.setdefault(name, {}))
        here[decision.path[-1]] = decision.winner
    return whole


def ledger_rows(ranked: Sequence[Outcome], decided: Iterable[Sequence[Decision]]) -> tuple[LedgerRow, ...]:
    """Return one row for each outcome: merged, outvoted, or of one opinion with another.

    Args:
        ranked: All outcomes; the places in the claims' ranks are places in this list.
        decided: For each item, the decisions on its fields.
    """
    rows: dict[int, LedgerRow] = {}
    for decisions in decided:
        rows.update(_rows(ranked, decisions))
    return tuple(
        unanswered(outcome)
        or rows.get(place)
        or LedgerRow(brief=outcome.brief, item=outcome.item, disposition="merged", reason="says nothing")
        for place, outcome in enumerate(ranked)
    )


def _rows(ranked: Sequence[Outcome], decisions: Sequence[Decision]) -> Mapping[int, LedgerRow]:
    carries = {claim.rank[-1] for decision in decisions for claim in decision.carriers}
    lost: dict[int, list[Decision]] = defaultdict(list)
    backs: dict[int, Decision] = {}
    for decision in decisions:
        for place in sorted({claim.rank[-1] for claim in decision.losing}):
            lost[place].append(decision)
        for claim in decision.backers:
            backs.setdefault(claim.rank[-1], decision)
    found: dict[int, LedgerRow] = {}
    for place in sorted(carries | lost.keys() | backs.keys()):
        row = LedgerRow(brief=ranked[place].brief, item=ranked[place].item, disposition="merged")
        found[place] = row
        if place in carries:
            continue
        if place in lost:
            first, more = lost[place][0], len(lost[place]) - 1
            reason = f"rule {first.rule!r} on {field_name(first.path)!r}" + (f" and {more} more" if more else "")
            change = {"disposition": "overridden", "by": first.carriers[0].source, "reason": reason}
        else:
            by = backs[place].carriers[0].source
            change = {"disposition": "duplicate_of", "by": by, "reason": "the same answer"}
        found[place] = row.model_copy(update=change)
    return found
