"""The figures beside a consensus: where agents disagree, how far they agree, and who errs how."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import TYPE_CHECKING

from prefect_dispatch.integrators.gaps import NAMED_GAPS
from prefect_dispatch.integrators.values import pointer
from prefect_dispatch.integrators.votes.agreement import DIGITS, Alpha, krippendorff, likeness
from prefect_dispatch.integrators.votes.ballots import field_name
from prefect_dispatch.integrators.votes.coherence import NEAREST
from prefect_dispatch.integrators.votes.voting import is_number
from prefect_dispatch.ledger import Flag, Ref, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.records.rules import Claim
    from prefect_dispatch.integrators.votes.ballots import Ballot
    from prefect_dispatch.integrators.votes.polling import Poll
    from prefect_dispatch.integrators.votes.voting import Verdict

Row = dict[str, "JsonValue"]

SHOWN = 80
"""Characters of an answer that a table shows; field rows hold the whole."""


def tables_of(polls: Sequence[Poll]) -> tuple[Table, ...]:
    """Return the tables of a consensus, those without rows left out."""
    every = (
        Table(
            name="disagreements",
            title="Where agents disagree",
            rows=tuple(_disagreements(polls)),
            note="The worst first. Agreement is the mean likeness of the answers to the one that stands, 1 if equal: "
            "labels by whether they are the same, numbers by the difference as a share of the greater one, prose by "
            "rapidfuzz's ratio, lists by the elements in common; an answer without the field counts as 0.",
        ),
        Table(
            name="agreement",
            title="How far agents agree",
            rows=tuple(_agreement(polls)),
            note="Krippendorff's alpha is 1 where they agree and 0 where they do so as often as by chance; he has "
            "conclusions drawn from 0.8 on, and tentative ones from 0.667 on.",
        ),
        Table(name="agents", title="Who agrees with the consensus", rows=tuple(_agents(polls)), note=_AGENTS),
        Table(
            name="confusion",
            title="Who says what where something else is right",
            rows=tuple(_confusion(polls)),
            note="As the model of Dawid and Skene estimates it; what is below 0.0001 is left out.",
        ),
    )
    return tuple(table for table in every if table.rows)


_AGENTS = (
    "Agreement is the mean likeness of an agent's answers to those that stand. Skill is how often it is right: by the "
    "model of Dawid and Skene, or, for learned weights, its agreement with the majority, which is its weight. "
    "Several samples of one brief are one agent in truth: what sets them apart here is chance."
)


def flags_of(decided: Mapping[str, Sequence[Verdict]], places: Mapping[str, tuple[str, int]]) -> tuple[Flag, ...]:
    """Return a flag for each field that only preference decided, and for each answer that was taken whole."""
    whole = tuple(
        Flag(
            path=pointer(*places[item], "value"),
            kind="schema",
            text=_shown(verdict.decision.winner),
            message="The fields voted for don't go together by the schema; the nearest answer stands whole.",
            sources=_sources(verdict),
        )
        for item, verdicts in decided.items()
        for verdict in verdicts
        if verdict.decision.rule == NEAREST
    )
    return whole + tuple(
        Flag(
            path=pointer(*places[item], "value", *verdict.decision.path),
            kind="tie",
            text=_shown(verdict.tie[0]),
            message=f"It ties with {', '.join(map(_shown, verdict.tie[1:]))}; priority, then content decided.",
            sources=_sources(verdict),
        )
        for item, verdicts in decided.items()
        for verdict in verdicts
        if verdict.tie
    )


def shortfalls_of(places: Mapping[str, tuple[str, int]], undecided: str, min_votes: int) -> tuple[str, ...]:
    """Return which items have too few answers, as a sentence, if any have."""
    few = [item for item, (name, _) in places.items() if name == undecided]
    if not few:
        return ()
    named = ", ".join(map(repr, few[:NAMED_GAPS])) + (f" and {len(few) - NAMED_GAPS} more" if few[NAMED_GAPS:] else "")
    return (f"Undecided for want of {min_votes} answers: {len(few)} of {len(places)} items with any ({named}).",)


def _disagreements(polls: Sequence[Poll]) -> list[Row]:
    found: list[tuple[tuple[object, ...], Row]] = []
    for each in polls:
        for ballot, verdict in zip(each.ballots, each.verdicts, strict=True):
            agreement = _mean(_likenesses(each, ballot, verdict))
            if agreement == 1:
                continue
            row: Row = {
                "item": ballot.item,
                "field": ballot.field,
                "answer": verdict.decision.winner,
                "agreement": agreement,
                "said": "; ".join(_said(ballot)),
            }
            found.append(((agreement, Ref(brief="", item=ballot.item).order, ballot.path), row))
    return [row for _, row in sorted(found, key=lambda each: each[0])]


def _said(ballot: Ballot) -> Iterator[str]:
    """Yield what is said and by whom, the most frequent first."""
    held: dict[str, list[Claim]] = defaultdict(list)
    for claim in ballot.claims:
        held[claim.text].append(claim)
    for claims in sorted(held.values(), key=lambda claims: -len(claims)):
        yield f"{_shown(claims[0].value)} ({', '.join(sorted(claim.source.brief for claim in claims))})"
    if absent := ballot.voters - len(ballot.claims):
        yield f"nothing ({absent})"


def _agreement(polls: Sequence[Poll]) -> Iterator[Row]:
    for each in polls:
        figures = [_mean(_likenesses(each, *pair)) for pair in zip(each.ballots, each.verdicts, strict=True)]
        measure, alpha = _alpha(each)
        yield {
            "field": field_name(each.path),
            "kind": each.kind,
            "rule": each.rule,
            "items": len(each.ballots),
            "answers": sum(len(ballot.claims) for ballot in each.ballots),
            "unanimous": sum(figure == 1 for figure in figures),
            "agreement": _mean(figures),
            "alpha": "undefined" if alpha.value is None else alpha.value,
            "measured": measure if alpha.value is not None else alpha.why,
        }


def _alpha(each: Poll) -> tuple[str, Alpha]:
    said = [[claim.value for claim in ballot.claims] for ballot in each.ballots]
    if each.kind in ("number", "integer"):
        return "interval distance", krippendorff([[v for v in unit if is_number(v)] for unit in said], "interval")
    if each.kind == "label":
        return "nominal distance", krippendorff(said, "nominal")
    return "", Alpha(None, f"no distance for a {each.kind}")


def _agents(polls: Sequence[Poll]) -> Iterator[Row]:
    for each in polls:
        near: dict[str, list[float]] = defaultdict(list)
        for ballot, verdict in zip(each.ballots, each.verdicts, strict=True):
            for claim, likeness_ in zip(ballot.claims, _likenesses(each, ballot, verdict), strict=False):
                near[claim.source.brief].append(likeness_)
        for agent in sorted(near):
            row: Row = {
                "field": field_name(each.path),
                "agent": agent,
                "answers": len(near[agent]),
                "agreement": _mean(near[agent]),
                "skill": round(each.crowd.skills[agent], DIGITS) if each.crowd else None,
            }
            yield row


def _confusion(polls: Sequence[Poll]) -> Iterator[Row]:
    for each in polls:
        for (agent, right, said), share in sorted(each.crowd.confusion.items() if each.crowd else ()):
            if (rounded := round(share, DIGITS)) > 0:
                yield {
                    "field": field_name(each.path),
                    "agent": agent,
                    "right": json.loads(right),
                    "said": json.loads(said),
                    "probability": rounded,
                }


def _likenesses(each: Poll, ballot: Ballot, verdict: Verdict) -> list[float]:
    """Return how near each answer is to what stands: one figure a claim, then a 0 for each agent without the field."""
    kind = "number" if each.kind == "integer" else each.kind
    near = [likeness(claim.value, verdict.decision.winner, kind) for claim in ballot.claims]
    return near + [0.0] * (ballot.voters - len(ballot.claims))


def _sources(verdict: Verdict) -> tuple[Ref, ...]:
    claims = [*verdict.decision.backers, *verdict.decision.losing]
    return tuple(sorted({claim.source for claim in claims}, key=lambda ref: ref.order))


def _mean(figures: Sequence[float]) -> float:
    return round(math.fsum(figures) / len(figures), DIGITS)


def _shown(value: JsonValue) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
