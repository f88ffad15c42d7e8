"""Tables, flags and shortfalls of a consensus: disagreements, agreement (Krippendorff's alpha), errors by agent."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from rapidfuzz import fuzz

from prefect_dispatch.integrators.base import MAX_LISTED_GAPS
from prefect_dispatch.integrators.consensus.vote_rules import NEAREST, comparison_key, field_name, is_number
from prefect_dispatch.models.ledger import Flag, Ref, Table
from prefect_dispatch.serialization.json_values import pointer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.consensus.vote_rules import Ballot, FieldResult, Verdict
    from prefect_dispatch.integrators.merge_records.field_rules import Claim


DIGITS = 4
"""Decimals of the figures in tables."""


class Alpha(NamedTuple):
    """Krippendorff's alpha, or the reason why it is undefined."""

    value: float | None
    """1: agreement; 0: agreement as often as by chance; below 0: less often. None where it is undefined."""
    why: str = ""
    """Reason why it is undefined."""


def score_similarity(given: JsonValue, answer: JsonValue, kind: str) -> float:
    """Return the similarity of a given answer to the winning one, from 0 to 1 (equal).

    Args:
        given: The answer of an agent.
        answer: The answer that won.
        kind: `label`: equal or not. `number`: 1 minus the difference as a share of the greater number. `text`:
            rapidfuzz's ratio. `list`: the elements in both as a share of those in either (Jaccard index).

    Example:
        >>> score_similarity(8, 10, "number"), score_similarity(["a", "b"], ["b"], "list")
        (0.8, 0.5)
        >>> score_similarity("Yes", "yes", "label")
        1.0
    """
    # Equal scalars are by far the most frequent case, and cheaper to compare than opinions.
    same = type(given) is type(answer) and given == answer and not isinstance(given, (list, dict))
    if same or comparison_key(given) == comparison_key(answer):
        return 1.0
    if kind == "number" and is_number(given) and is_number(answer):
        return _relative_similarity(given, answer)  # type: ignore[arg-type]
    if kind == "text" and isinstance(given, str) and isinstance(answer, str):
        return fuzz.ratio(given, answer) / 100
    if kind == "list" and isinstance(given, list) and isinstance(answer, list):
        one, other = set(map(comparison_key, given)), set(map(comparison_key, answer))
        return len(one & other) / len(one | other)
    return 0.0


def krippendorff(units: Iterable[Sequence[JsonValue]], measure: Literal["nominal", "interval"]) -> Alpha:
    """Return Krippendorff's alpha (Content Analysis, 2004, chapter 11); any agent's answer to any item may be missing.

    Computed from counts (nominal) or squares (interval) rather than from pairs, so that the time is linear
    in the number of votes; crowd-kit's and nltk's implementations are quadratic in the number of distinct values.

    Args:
        units: The answers to each item, in any order.
        measure: The distance of two answers: `nominal`, whether they differ; `interval`, the
            square of the difference.

    Example:
        >>> krippendorff([["a", "a"], ["b", "b"], ["a", "b"]], "nominal").value
        0.4444
        >>> krippendorff([["a", "a"]], "nominal").why
        'all say the same throughout'
    """
    # 1. Only items with at least two answers form pairs.
    paired = [unit for unit in units if len(unit) > 1]
    if not paired:
        return Alpha(None, "no item has two answers")
    count = sum(map(len, paired))
    # 2. Observed disagreement, within items, and expected disagreement, across all of them.
    try:
        distance = (
            _count_differing_pairs if measure == "nominal" else partial(_sum_squared_differences, _centre(paired))
        )
        within = math.fsum(distance(unit) / (len(unit) - 1) for unit in paired) / count
        across = distance([value for unit in paired for value in unit]) / (count * (count - 1))
    except OverflowError:
        across = within = math.inf
    # 3. Alpha is 1 minus their ratio; `+ 0.0` turns -0.0 into 0.0.
    if across == 0:
        return Alpha(None, "all say the same throughout")
    if not math.isfinite(across):
        return Alpha(None, "numbers too large to compute with")
    return Alpha(round(1 - within / across, DIGITS) + 0.0)


def _count_differing_pairs(values: Sequence[JsonValue]) -> float:
    """Return the number of ordered pairs whose opinions differ."""
    return len(values) ** 2 - sum(count**2 for count in Counter(map(comparison_key, values)).values())


def _centre(units: Sequence[Sequence[JsonValue]]) -> float:
    numbers = [_number(value) for unit in units for value in unit]
    return math.fsum(numbers) / len(numbers)


def _sum_squared_differences(centre: float, values: Sequence[JsonValue]) -> float:
    """Return the sum of squared differences of all ordered pairs; values are shifted by a centre for precision."""
    deviations = [_number(value) - centre for value in values]
    mean = math.fsum(deviations) / len(deviations)
    return 2 * len(deviations) * math.fsum((each - mean) ** 2 for each in deviations)


def _number(value: JsonValue) -> float:
    return float(value)  # type: ignore[arg-type]


def _relative_similarity(given: float, answer: float) -> float:
    try:
        return max(0.0, 1 - abs(given - answer) / max(abs(given), abs(answer)))
    except OverflowError:
        return 0.0


Row = dict[str, "JsonValue"]

MAX_SHOWN_CHARS = 80
"""Longest answer in a table, in characters; field rows hold the whole answer."""


def create_tables(polls: Sequence[FieldResult]) -> tuple[Table, ...]:
    """Return the tables of a consensus; tables without rows are left out."""
    every = (
        Table(
            name="disagreements",
            title="Where agents disagree",
            rows=tuple(_disagreement_rows(polls)),
            note="The worst first. Agreement is the mean likeness of the answers to the one that stands, 1 if equal: "
            "labels by whether they are the same, numbers by the difference as a share of the greater one, prose by "
            "rapidfuzz's ratio, lists by the elements in common; an answer without the field counts as 0.",
        ),
        Table(
            name="agreement",
            title="How far agents agree",
            rows=tuple(_agreement_rows(polls)),
            note="Krippendorff's alpha is 1 where they agree and 0 where they do so as often as by chance; he has "
            "conclusions drawn from 0.8 on, and tentative ones from 0.667 on.",
        ),
        Table(name="agents", title="Who agrees with the consensus", rows=tuple(_agent_rows(polls)), note=_AGENTS),
        Table(
            name="confusion",
            title="Who says what where something else is right",
            rows=tuple(_confusion_rows(polls)),
            note="As the model of Dawid and Skene estimates it; what is below 0.0001 is left out.",
        ),
    )
    return tuple(table for table in every if table.rows)


_AGENTS = (
    "Agreement is the mean likeness of an agent's answers to those that stand. Skill is how often it is right: by the "
    "model of Dawid and Skene, or, for learned weights, its agreement with the majority, which is its weight. "
    "Several samples of one brief are one agent in truth: what sets them apart here is chance."
)


def create_flags(decided: Mapping[str, Sequence[Verdict]], places: Mapping[str, tuple[str, int]]) -> tuple[Flag, ...]:
    """Return a flag for each tie, and one for each answer that was taken whole because of the schema."""
    whole = tuple(
        Flag(
            path=pointer(*places[item], "value"),
            kind="schema",
            text=_truncate_answer(verdict.decision.winner),
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
            text=_truncate_answer(verdict.tie[0]),
            message=f"It ties with {', '.join(map(_truncate_answer, verdict.tie[1:]))}; "
            "priority, then content decided.",
            sources=_sources(verdict),
        )
        for item, verdicts in decided.items()
        for verdict in verdicts
        if verdict.tie
    )


def describe_shortfalls(places: Mapping[str, tuple[str, int]], undecided: str, min_votes: int) -> tuple[str, ...]:
    """Return a sentence on the items with too few answers; empty if there are none."""
    items = [item for item, (name, _) in places.items() if name == undecided]
    if not items:
        return ()
    item_names = ", ".join(map(repr, items[:MAX_LISTED_GAPS])) + (
        f" and {len(items) - MAX_LISTED_GAPS} more" if items[MAX_LISTED_GAPS:] else ""
    )
    return (f"Undecided for want of {min_votes} answers: {len(items)} of {len(places)} items with any ({item_names}).",)


def _disagreement_rows(polls: Sequence[FieldResult]) -> list[Row]:
    """Return a row for each ballot without full agreement, the lowest agreement first."""
    found: list[tuple[tuple[object, ...], Row]] = []
    for each in polls:
        for ballot, verdict in zip(each.ballots, each.verdicts, strict=True):
            agreement = _mean(_similarities(each, ballot, verdict))
            if agreement == 1:
                continue
            row: Row = {
                "item": ballot.item,
                "field": ballot.field,
                "answer": verdict.decision.winner,
                "agreement": agreement,
                "said": "; ".join(_describe_answers(ballot)),
            }
            found.append(((agreement, Ref(brief="", item=ballot.item).order, ballot.path), row))
    return [row for _, row in sorted(found, key=lambda each: each[0])]


def _describe_answers(ballot: Ballot) -> Iterator[str]:
    """Yield each given answer with the briefs that gave it, the most frequent first, then the number of absent ones."""
    claims_by_text: dict[str, list[Claim]] = defaultdict(list)
    for claim in ballot.claims:
        claims_by_text[claim.text].append(claim)
    for claims in sorted(claims_by_text.values(), key=lambda claims: -len(claims)):
        yield f"{_truncate_answer(claims[0].value)} ({', '.join(sorted(claim.source.brief for claim in claims))})"
    if absent := ballot.voters - len(ballot.claims):
        yield f"nothing ({absent})"


def _agreement_rows(polls: Sequence[FieldResult]) -> Iterator[Row]:
    """Yield a row with the agreement on each field."""
    for each in polls:
        figures = [_mean(_similarities(each, *pair)) for pair in zip(each.ballots, each.verdicts, strict=True)]
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


def _alpha(each: FieldResult) -> tuple[str, Alpha]:
    """Return the name of the distance for a field's kind, and alpha by it."""
    answers = [[claim.value for claim in ballot.claims] for ballot in each.ballots]
    if each.kind in ("number", "integer"):
        return "interval distance", krippendorff([[v for v in unit if is_number(v)] for unit in answers], "interval")
    if each.kind == "label":
        return "nominal distance", krippendorff(answers, "nominal")
    return "", Alpha(None, f"no distance for a {each.kind}")


def _agent_rows(polls: Sequence[FieldResult]) -> Iterator[Row]:
    """Yield a row for each field and agent: its agreement with the result and its estimated skill."""
    for each in polls:
        similarities: dict[str, list[float]] = defaultdict(list)
        for ballot, verdict in zip(each.ballots, each.verdicts, strict=True):
            # Not strict: a figure without a claim is that of an agent without the field.
            for claim, similarity in zip(ballot.claims, _similarities(each, ballot, verdict), strict=False):
                similarities[claim.source.brief].append(similarity)
        for agent in sorted(similarities):
            row: Row = {
                "field": field_name(each.path),
                "agent": agent,
                "answers": len(similarities[agent]),
                "agreement": _mean(similarities[agent]),
                "skill": round(each.crowd.skills[agent], DIGITS) if each.crowd else None,
            }
            yield row


def _confusion_rows(polls: Sequence[FieldResult]) -> Iterator[Row]:
    """Yield the estimated confusion matrices of the agents, a row for each probability above 0."""
    for each in polls:
        for (agent, right, label), share in sorted(each.crowd.confusion.items() if each.crowd else ()):
            if (probability := round(share, DIGITS)) > 0:
                yield {
                    "field": field_name(each.path),
                    "agent": agent,
                    "right": json.loads(right),
                    "said": json.loads(label),
                    "probability": probability,
                }


def _similarities(each: FieldResult, ballot: Ballot, verdict: Verdict) -> list[float]:
    """Return the similarity of each claim to the winner, then a 0 for each agent whose answer lacks the field."""
    kind = "number" if each.kind == "integer" else each.kind
    similarities = [score_similarity(claim.value, verdict.decision.winner, kind) for claim in ballot.claims]
    return similarities + [0.0] * (ballot.voters - len(ballot.claims))


def _sources(verdict: Verdict) -> tuple[Ref, ...]:
    claims = [*verdict.decision.backers, *verdict.decision.losers]
    return tuple(sorted({claim.source for claim in claims}, key=lambda ref: ref.order))


def _mean(figures: Sequence[float]) -> float:
    return round(math.fsum(figures) / len(figures), DIGITS)


def _truncate_answer(value: JsonValue) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
