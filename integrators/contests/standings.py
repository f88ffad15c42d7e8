"""From ranked variants to a merge: the value, where each outcome ended, and tables to take along."""

from __future__ import annotations

from collections import defaultdict
from math import fsum
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.integrators.contests.ranking import SURE
from prefect_dispatch.integrators.gaps import gaps, unanswered
from prefect_dispatch.integrators.values import pointer
from prefect_dispatch.ledger import FieldRow, Flag, LedgerRow, Merge, Ref, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.contests.contests import Contest, Variant
    from prefect_dispatch.models import Outcome

Figures = dict[str, "JsonValue"]
"""What is said of a variant beside its value: `rank` and `score`, and what they rest on."""

_NAMED = 5


class Scored(NamedTuple):
    """How a contest ended."""

    contest: Contest
    """The contest."""
    ranked: list[tuple[Variant, Figures]]
    """Variants with their figures, `rank` and `score` among them, best first."""
    unranked: list[tuple[Variant, str]]
    """Variants that can't be ranked, and why."""


def merged(outcomes: Sequence[Outcome], scored: Sequence[Scored], by: str) -> Merge:
    """Return the merge of ranked variants; rules, and tables of evidence, are left to the caller.

    Args:
        outcomes: All outcomes.
        scored: How the contests ended.
        by: What ranked them, for the field rows.
    """
    unranked = [(variant, reason) for each in scored for variant, reason in each.unranked]
    listed: dict[str, list[tuple[Variant, Figures]]] = {
        "ranking": [pair for each in scored for pair in each.ranked],
        "unranked": [(variant, {"reason": reason}) for variant, reason in unranked],
    }
    value: dict[str, JsonValue] = {}
    fields: list[FieldRow] = []
    for name, entries in listed.items():
        value[name] = [{**each.refs[0].model_dump(), "value": each.value, **figures} for each, figures in entries]
        for at, (variant, figures) in enumerate(entries):
            fields.append(_row((name, at, "value"), variant.value, "kept", variant))
            fields += [_row((name, at, column), cell, f"tournament:{by}", variant) for column, cell in figures.items()]
    return Merge(
        value={**value, "gaps": gaps(outcomes)},
        ledger=_ledger(outcomes, scored),
        fields=tuple(fields),
        flags=tuple(_doubts(scored)),
        tables=(_export(scored), *_briefs(outcomes, scored)),
        shortfalls=tuple(f"{variant.name} is not ranked: {reason}." for variant, reason in unranked),
    )


def _row(path: tuple[str | int, ...], winner: JsonValue, rule: str, variant: Variant) -> FieldRow:
    return FieldRow(path=pointer(*path), winner=winner, rule=rule, sources=variant.refs)


def _ledger(outcomes: Iterable[Outcome], scored: Iterable[Scored]) -> tuple[LedgerRow, ...]:
    rows: dict[Ref, LedgerRow] = {}
    for each in scored:
        ends = [
            *((variant, f"rank {figures['rank']} of {len(each.ranked)}") for variant, figures in each.ranked),
            *((variant, f"not ranked: {reason}") for variant, reason in each.unranked),
        ]
        for variant, reason in ends:
            first, *equal = variant.refs
            rows[first] = LedgerRow(**first.model_dump(), disposition="merged", reason=reason)
            for ref in equal:
                rows[ref] = LedgerRow(
                    **ref.model_dump(), disposition="duplicate_of", by=first, reason="equal variant, ranked once"
                )
    ordered = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
    return tuple(unanswered(outcome) or rows[Ref.of(outcome)] for outcome in ordered)


def _doubts(scored: Iterable[Scored]) -> Iterator[Flag]:
    """Yield a flag for each first rank that may be chance."""
    at = 0
    for each in scored:
        close = [v for v, figures in each.ranked if _is_close(figures.get("p_vs_best"))]
        if close:
            names = ", ".join(variant.name for variant in close[:_NAMED])
            more = f" and {len(close) - _NAMED} more" if len(close) > _NAMED else ""
            yield Flag(
                path=pointer("ranking", at, "rank"),
                kind="rank",
                text=str(each.ranked[0][1]["rank"]),
                message=f"{each.ranked[0][0].name} is first, but at {SURE:.0%} it can't be told apart from "
                f"{names}{more}.",
                sources=tuple(ref for variant in (each.ranked[0][0], *close) for ref in variant.refs),
            )
        at += len(each.ranked)


def _is_close(p_value: JsonValue) -> bool:
    return isinstance(p_value, (int, float)) and p_value >= 1 - SURE


def _export(scored: Iterable[Scored]) -> Table:
    rows: list[dict[str, JsonValue]] = []
    for each in scored:
        nothing: Figures = {"rank": None, "score": None}
        every: dict[str, tuple[Variant, Figures]] = {}
        for variant, figures in [*each.ranked, *((variant, nothing) for variant, _ in each.unranked)]:
            every.setdefault(variant.key, (variant, figures))  # equal ones are shown as one, by their best rank
        for (variant, figures), weight in zip(every.values(), _weights(len(every)), strict=True):
            text = variant.value if isinstance(variant.value, str) else canonical(variant.value)
            rows.append(
                {
                    "experiment": each.contest.name,
                    "key": variant.key,
                    "name": variant.name,
                    "payload": text,
                    "weight_percent": weight,
                    "rank": figures["rank"],
                    "score": figures["score"],
                }
            )
    return Table(
        name="ab-test",
        title="For an A/B tool",
        rows=tuple(rows),
        note="`key`, `name` and `payload` are what PostHog, GrowthBook, Amplitude and the like call a variant's key, "
        "name and payload (or value); `weight_percent` is an equal split that sums to 100 in each experiment "
        "(GrowthBook: divide by 100; Optimizely: times 100). The key is made of the content, so the results of "
        "the experiment can be ranked under it.",
    )


def _weights(count: int) -> list[float]:
    """Return equal shares in percent, with two decimals; what doesn't divide goes to the first."""
    share, rest = divmod(10_000, max(count, 1))
    return [(share + (at < rest)) / 100 for at in range(count)]


def _briefs(outcomes: Iterable[Outcome], scored: Sequence[Scored]) -> Iterator[Table]:
    """Yield how each brief did over several items, where several briefs were rivals on them."""
    names = sorted({outcome.brief for outcome in outcomes})
    if len(names) < 2 or len(scored) < 2:  # noqa: PLR2004 -- one brief, or one item, is in the ranking itself
        return
    ranks: dict[str, list[int]] = defaultdict(list)
    for each in scored:
        for variant, figures in each.ranked:
            for brief in {ref.brief for ref in variant.refs}:
                ranks[brief].append(int(str(figures["rank"])))
    yield Table(
        name="briefs",
        title="Briefs over all items",
        rows=tuple(
            {
                "brief": name,
                "ranked": len(ranks[name]),
                "first": ranks[name].count(1),
                "mean_rank": round(fsum(ranks[name]) / len(ranks[name]), 2) if ranks[name] else None,
            }
            for name in names
        ),
        note="On how many items each brief was ranked, on how many it came first (or shared the first rank), and its "
        "mean rank there. Ranks of items with fewer variants count alike.",
    )
