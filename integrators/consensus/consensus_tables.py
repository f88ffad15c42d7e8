"""Tables, flags and shortfalls of a consensus: disagreements, agreement (Krippendorff's alpha), errors by agent."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Literal, NamedTuple

from rapidfuzz import fuzz

from prefect_dispatch.integrators.consensus.vote_rules import NEAREST, comparison_key, field_name, is_number
from prefect_dispatch.models.ledger import Flag, Ref, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.consensus.vote_rules import FieldResult, Verdict
    from prefect_dispatch.integrators.crowdkit_adapter import CrowdEstimates
    from prefect_dispatch.integrators.merge_records.resolution import Claim


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
    # 2. Observed disagreement, within items, and expected disagreement, across all of them.
    values = [value for unit in paired for value in unit]
    count = len(values)
    try:
        centre = statistics.fmean(map(_number, values)) if measure == "interval" else None
        within = math.fsum(_sum_distances(unit, centre) / (len(unit) - 1) for unit in paired) / count
        across = _sum_distances(values, centre) / (count * (count - 1))
    except OverflowError:
        across = within = math.inf
    # 3. Alpha is 1 minus their ratio; `+ 0.0` turns -0.0 into 0.0.
    if across == 0:
        return Alpha(None, "all say the same throughout")
    if not math.isfinite(across):
        return Alpha(None, "numbers too large to compute with")
    return Alpha(round(1 - within / across, DIGITS) + 0.0)


def _sum_distances(values: Sequence[JsonValue], centre: float | None) -> float:
    """Return the sum of the distances of all ordered pairs.

    Args:
        values: The answers.
        centre: By which numbers are shifted for precision; None: the distance is whether opinions differ.
    """
    if centre is None:
        return len(values) ** 2 - sum(count**2 for count in Counter(map(comparison_key, values)).values())
    deviations = [_number(value) - centre for value in values]
    mean = statistics.fmean(deviations)
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

_AGENTS = (
    "Agreement is the mean likeness of an agent's answers to those that stand. Skill is how often it is right: by the "
    "model of Dawid and Skene, or, for learned weights, its agreement with the majority, which is its weight. "
    "Several samples of one brief are one agent in truth: what sets them apart here is chance."
)


def create_tables(polls: Sequence[FieldResult]) -> tuple[Table, ...]:
    """Return the tables of a consensus; tables without rows are left out."""
    disagreements: list[tuple[tuple[object, ...], Row]] = []
    agreement: list[Row] = []
    agents: list[Row] = []
    confusion: list[Row] = []
    for each in polls:
        field = field_name(each.path)
        figures: list[float] = []
        similarities: dict[str, list[float]] = defaultdict(list)
        for verdict in each.verdicts:
            scores = _similarities(each.kind, verdict)
            figures.append(_mean(scores))
            # Not strict: a figure without a claim is that of an agent without the field.
            for claim, score in zip(verdict.ballot.claims, scores, strict=False):
                similarities[claim.source.brief].append(score)
            if figures[-1] != 1:
                sort_key = (figures[-1], Ref(brief="", item=verdict.ballot.item).order, each.path)
                disagreements.append((sort_key, _disagreement_row(field, verdict, figures[-1])))
        agreement.append(_agreement_row(field, each, figures))
        agents.extend(
            {
                "field": field,
                "agent": agent,
                "answers": len(scores),
                "agreement": _mean(scores),
                "skill": round(each.crowd.skills[agent], DIGITS) if each.crowd else None,
            }
            for agent, scores in sorted(similarities.items())
        )
        if each.crowd:
            confusion += _confusion_rows(field, each.crowd)
    rows = [row for _, row in sorted(disagreements, key=lambda each: each[0])]
    every = (
        Table(
            name="disagreements",
            title="Where agents disagree",
            rows=tuple(rows),
            note="The worst first. Agreement is the mean likeness of the answers to the one that stands, 1 if equal: "
            "labels by whether they are the same, numbers by the difference as a share of the greater one, prose by "
            "rapidfuzz's ratio, lists by the elements in common; an answer without the field counts as 0.",
        ),
        Table(
            name="agreement",
            title="How far agents agree",
            rows=tuple(agreement),
            note="Krippendorff's alpha is 1 where they agree and 0 where they do so as often as by chance; he has "
            "conclusions drawn from 0.8 on, and tentative ones from 0.667 on.",
        ),
        Table(name="agents", title="Who agrees with the consensus", rows=tuple(agents), note=_AGENTS),
        Table(
            name="confusion",
            title="Who says what where something else is right",
            rows=tuple(confusion),
            note="As the model of Dawid and Skene estimates it; what is below 0.0001 is left out.",
        ),
    )
    return tuple(table for table in every if table.rows)


def _disagreement_row(field: str, verdict: Verdict, agreement: float) -> Row:
    """Return the row of a ballot without full agreement: each given answer and who gave it, the most frequent first."""
    claims_by_text: dict[str, list[Claim]] = defaultdict(list)
    for claim in verdict.ballot.claims:
        claims_by_text[claim.text].append(claim)
    said = [
        f"{_truncate_answer(claims[0].value)} ({', '.join(sorted(claim.source.brief for claim in claims))})"
        for claims in sorted(claims_by_text.values(), key=lambda claims: -len(claims))
    ]
    if absent := verdict.ballot.voters - len(verdict.ballot.claims):
        said.append(f"nothing ({absent})")
    return {
        "item": verdict.ballot.item,
        "field": field,
        "answer": verdict.decision.winner,
        "agreement": agreement,
        "said": "; ".join(said),
    }


def _agreement_row(field: str, each: FieldResult, figures: Sequence[float]) -> Row:
    """Return the row with the agreement on a field."""
    answers = [[claim.value for claim in verdict.ballot.claims] for verdict in each.verdicts]
    measured, alpha = "nominal distance", Alpha(None, f"no distance for a {each.kind}")
    if each.kind in ("number", "integer"):
        measured = "interval distance"
        alpha = krippendorff([[value for value in unit if is_number(value)] for unit in answers], "interval")
    elif each.kind == "label":
        alpha = krippendorff(answers, "nominal")
    return {
        "field": field,
        "kind": each.kind,
        "rule": each.rule,
        "items": len(answers),
        "answers": sum(map(len, answers)),
        "unanimous": sum(figure == 1 for figure in figures),
        "agreement": _mean(figures),
        "alpha": "undefined" if alpha.value is None else alpha.value,
        "measured": alpha.why or measured,
    }


def _confusion_rows(field: str, crowd: CrowdEstimates) -> Iterator[Row]:
    """Yield the estimated confusion matrices of the agents, a row for each probability above 0."""
    for (agent, right, label), share in sorted(crowd.confusion.items()):
        if (probability := round(share, DIGITS)) > 0:
            yield {
                "field": field,
                "agent": agent,
                "right": json.loads(right),
                "said": json.loads(label),
                "probability": probability,
            }


def create_flags(decided: Sequence[tuple[str, Verdict]]) -> tuple[Flag, ...]:
    """Return a flag for each answer that was taken whole because of the schema, then one for each tie.

    Args:
        decided: Each verdict with the path of its field in the merged value.
    """
    flags: list[Flag] = []
    for path, verdict in decided:
        if verdict.decision.rule == NEAREST:
            kind = "schema"
            message = "The fields voted for don't go together by the schema; the nearest answer stands whole."
        elif verdict.tie:
            kind = "tie"
            others = ", ".join(map(_truncate_answer, verdict.tie[1:]))
            message = f"It ties with {others}; priority, then content decided."
        else:
            continue
        sources = {claim.source for claim in (*verdict.decision.backers, *verdict.decision.losers)}
        flags.append(
            Flag(
                path=path,
                kind=kind,
                text=_truncate_answer(verdict.decision.winner),
                message=message,
                sources=tuple(sorted(sources, key=lambda ref: ref.order)),
            )
        )
    return tuple(sorted(flags, key=lambda flag: flag.kind))


def _similarities(kind: str, verdict: Verdict) -> list[float]:
    """Return the similarity of each claim to the winner, then a 0 for each agent whose answer lacks the field."""
    kind = "number" if kind == "integer" else kind
    claims = verdict.ballot.claims
    similarities = [score_similarity(claim.value, verdict.decision.winner, kind) for claim in claims]
    return similarities + [0.0] * (verdict.ballot.voters - len(claims))


def _mean(figures: Sequence[float]) -> float:
    return round(math.fsum(figures) / len(figures), DIGITS)


def _truncate_answer(value: JsonValue) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
