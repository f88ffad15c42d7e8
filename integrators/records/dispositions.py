"""Where each outcome ended in merged records: one ledger row each."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_dispatch.integrators.gaps import unanswered
from prefect_dispatch.ledger import LedgerRow, Ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefect_dispatch.integrators.records.decision import Decision
    from prefect_dispatch.models import Outcome


class _Verdict(NamedTuple):
    """Where the part that an outcome has in one merged record ended."""

    disposition: Literal["merged", "duplicate_of", "overridden"]
    by: Ref | None = None
    reason: str = ""


_MERGED = _Verdict("merged")
_KEPT = _Verdict("merged", None, "kept as it is, for it has no identity")


def dispositions(outcomes: Sequence[Outcome], records: Iterable[Sequence[Decision]]) -> tuple[LedgerRow, ...]:
    """Return one row for each outcome.

    Args:
        outcomes: All outcomes; the places in the decisions' ranks are places in this list.
        records: For each merged record the decisions on its fields.
    """
    verdicts: dict[int, list[_Verdict]] = defaultdict(list)
    for decisions in records:
        for place, verdict in _verdicts(decisions).items():
            verdicts[place].append(verdict)
    return tuple(unanswered(outcome) or _row(outcome, verdicts[place]) for place, outcome in enumerate(outcomes))


def _verdicts(decisions: Sequence[Decision]) -> dict[int, _Verdict]:
    """Return, for one merged record, the verdict on each outcome that has a part in it, by place."""
    carrying = {claim.rank[-1] for decision in decisions for claim in decision.carriers}
    if len(carrying) == 1 and all(len(each.backers) == 1 and not each.losing for each in decisions):
        [place] = carrying  # one outcome has it alone: whoever else had a part in it would say its identity, too
        return {place: _KEPT if decisions[0].rule == "kept" else _MERGED}
    lost: dict[int, list[Decision]] = defaultdict(list)
    agreed: dict[int, Counter[Ref]] = defaultdict(Counter)
    for decision in decisions:
        for claim in decision.losing:
            lost[claim.rank[-1]].append(decision)
        for claim in decision.backers:
            agreed[claim.rank[-1]].update(carrier.source for carrier in decision.carriers[:1])
    verdicts: dict[int, _Verdict] = {}
    for place in sorted(carrying | agreed.keys() | lost.keys()):
        if place in carrying:
            verdicts[place] = _KEPT if decisions[0].rule == "kept" else _MERGED
        elif place in lost:
            first, more = lost[place][0], len({decision.path for decision in lost[place]}) - 1
            field = ".".join(first.path)
            reason = f"rule {first.rule!r} on field {field!r}" + (f" and {more} more" if more else "")
            verdicts[place] = _Verdict("overridden", first.carriers[0].source, reason)
        else:
            [(by, _)] = agreed[place].most_common(1)
            verdicts[place] = _Verdict("duplicate_of", by, "equal record")
    return verdicts


def _row(outcome: Outcome, verdicts: Sequence[_Verdict]) -> LedgerRow:
    if not verdicts:
        return LedgerRow(brief=outcome.brief, item=outcome.item, disposition="merged", reason="no records")
    if verdicts == [_MERGED]:  # as most are
        return LedgerRow(brief=outcome.brief, item=outcome.item, disposition="merged", reason="1 record merged")
    order = ("merged", "duplicate_of", "overridden")
    best = min(verdicts, key=lambda verdict: order.index(verdict.disposition))
    reason = best.reason if len(verdicts) == 1 and best.reason else _counted(verdicts)
    if best.by is None:  # as with the fields' rows, memory
        return LedgerRow(brief=outcome.brief, item=outcome.item, disposition=best.disposition, reason=reason)
    return LedgerRow(brief=outcome.brief, item=outcome.item, disposition=best.disposition, by=best.by, reason=reason)


def _counted(verdicts: Sequence[_Verdict]) -> str:
    merged = sum(verdict.disposition == "merged" and not verdict.reason for verdict in verdicts)
    kept = sum(verdict == _KEPT for verdict in verdicts)
    parts = [f"{merged} record{'s' * (merged != 1)} merged"] if merged else []
    parts += [f"{kept} kept without identity"] if kept else []
    for disposition, word in (("duplicate_of", "duplicate of"), ("overridden", "overridden by")):
        by = [str(verdict.by) for verdict in verdicts if verdict.disposition == disposition]
        others = " and others" if len(set(by)) > 1 else ""
        parts += [f"{len(by)} {word} {by[0]}{others}"] if by else []
    return ", ".join(parts)
