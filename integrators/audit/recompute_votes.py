"""Votes counted once more for the audit: from the answers and the documented rules, without the code that merges.

Shared with the integrator are the parts that say what is compared: who votes on what, which kind of answer a field
takes, when two answers are the same opinion, statistics of numbers, and the models of voters, whose estimates can't be
checked in simpler ways.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from math import fsum
from typing import TYPE_CHECKING, Any, NamedTuple

from rapidfuzz import fuzz

from prefect_dispatch.integrators.base import unanswered
from prefect_dispatch.integrators.consensus.number_rules import ROW_RULES, STATISTICS, find_outliers, is_number
from prefect_dispatch.integrators.consensus.vote_rules import (
    ELEMENTS,
    MODELS,
    NEAREST,
    Ballot,
    FieldResult,
    Verdict,
    classify_answers,
    common_output,
    comparison_key,
    estimate_crowd,
    field_name,
    kinds_of_schemas,
    read_vote,
    schema_errors,
)
from prefect_dispatch.integrators.crowdkit_adapter import has_crowd_kit
from prefect_dispatch.integrators.merge_records.field_rules import Claim, FieldDecision, as_elements
from prefect_dispatch.models.ledger import LedgerRow, Ref, sort_key
from prefect_dispatch.serialization.json_text import digest
from prefect_dispatch.serialization.json_values import content_text, exact_text, get_at, value_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.consensus.vote_rules import AnswerKind, Path, VoteFields, VoteRules
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.outcome import Outcome

_KIND_RULES = {"text": "medoid", "list": "elements", "number": "screened_mean", "integer": "screened_mean"}
_DECIMALS = 9


class DecidedItem(NamedTuple):
    """What must be recorded about one item."""

    claims: Sequence[Claim]
    """The answers to it, in order of preference."""
    verdicts: Sequence[Verdict]
    """What was decided on each field, or on the whole."""
    value: JsonValue
    """The merged answer."""


class ExpectedVotes(NamedTuple):
    """What a merge of votes must have."""

    items: dict[str, DecidedItem]
    """By item, in the order of the keys."""
    results: list[FieldResult]
    """The votes on each field, before answers that violate the schema are replaced."""
    ledger: tuple[LedgerRow, ...]


def recompute_votes(
    outcomes: Sequence[Outcome], briefs: Sequence[Brief], rules: VoteRules, fields: VoteFields | None
) -> ExpectedVotes:
    """Return what the merge of votes must have.

    Args:
        outcomes: All outcomes, sorted by reference.
        briefs: All briefs.
        rules: Which rule decides which field.
        fields: The fields of an answer that name item and voter, if answers have them.
    """
    # 1. The answers to each item, and the votes on each field.
    answers = _list_answers(outcomes, fields)
    by_field: dict[Path, list[Ballot]] = defaultdict(list)
    for item, claims in answers.items():
        for path, votes in _split((), claims):
            by_field[path].append(Ballot(item, path, votes, len(claims)))
    results = [_count(path, by_field[path], rules, briefs) for path in sorted(by_field)]
    decided: dict[str, list[Verdict]] = defaultdict(list)
    for result in results:
        for verdict in result.verdicts:
            decided[verdict.ballot.item].append(verdict)
    # 2. An answer that doesn't satisfy the schema is replaced by the given one that has most of its fields.
    output = common_output(briefs)
    items: dict[str, DecidedItem] = {}
    for item, claims in answers.items():
        verdicts: Sequence[Verdict] = decided[item]
        value = _assemble(verdicts)
        if output is not None and schema_errors(output, value, [claim.value for claim in claims]):
            common = {
                claim.text: sum(
                    comparison_key(get_at(claim.value, each.decision.path)) == comparison_key(each.decision.winner)
                    for each in verdicts
                )
                for claim in claims
            }
            verdicts = [_elect(Ballot(item, (), claims, len(claims)), common, NEAREST, lambda claim: claim.text)]
            value = verdicts[0].decision.winner
        items[item] = DecidedItem(claims, verdicts, value)
    everything = [each.decision for one in items.values() for each in one.verdicts]
    return ExpectedVotes(items, results, tuple(_ledger(outcomes, everything)))


def _list_answers(outcomes: Sequence[Outcome], fields: VoteFields | None) -> dict[str, list[Claim]]:
    """Return the answers to each item as claims, in order of preference; the items in the order of their keys."""
    found: dict[str, list[Claim]] = defaultdict(list)
    for place, outcome in enumerate(outcomes):
        if outcome.status == "succeeded":
            item, voter, value = read_vote(outcome, fields)
            rank = (-outcome.brief_priority, -outcome.item_priority, exact_text(value), place)
            found[item].append(Claim(value, content_text(value), Ref.of(outcome), outcome.value, rank, voter))
    return {
        item: sorted(found[item], key=lambda claim: claim.rank)
        for item in sorted(found, key=lambda item: sort_key("", item))
    }


def _split(path: Path, claims: Sequence[Claim]) -> Iterator[tuple[Path, Sequence[Claim]]]:
    """Yield the votes on each field: where all answers but null, and half of all, are objects, these are split."""
    given = [claim for claim in claims if claim.value is not None]
    objects = [claim.value for claim in given if isinstance(claim.value, dict)]
    if len(objects) < len(given) or not any(objects) or 2 * len(given) < len(claims):
        yield path, claims
        return
    for name in sorted(set[str]().union(*objects)):
        pairs = [(claim, part) for claim, part in zip(given, objects, strict=True) if name in part]
        votes = [claim._replace(value=part[name], text=content_text(part[name])) for claim, part in pairs]
        yield from _split((*path, name), votes)


def _count(path: Path, ballots: Sequence[Ballot], rules: VoteRules, briefs: Sequence[Brief]) -> FieldResult:
    """Return the result of all votes on one field."""
    kind = classify_answers(ballots, kinds_of_schemas(briefs, path))
    rule: str = rules.rule(path)
    if rule == "auto":
        rule = _KIND_RULES.get(kind, rules.method)
    lacks_models = rule == "auto" and not has_crowd_kit()
    learns = rule in ("auto", "dawid_skene") or (rule == "weighted" and not rules.weights)
    crowd = estimate_crowd(rule, ballots) if learns and not lacks_models else None
    if rule == "auto":
        rule = MODELS if crowd else "majority"
    verdicts = [
        _elect(ballot, crowd.scores[ballot.item], rule)
        if crowd
        else _decide(ballot, rule, kind, rules.weights if rule == "weighted" else {})
        for ballot in ballots
    ]
    return FieldResult(path, kind, rule, verdicts, crowd, lacks_models)


def _decide(ballot: Ballot, rule: str, kind: AnswerKind, weights: Mapping[str, float]) -> Verdict:
    """Return the result of one vote."""
    claims = ballot.claims
    counts: dict[str, list[float]] = defaultdict(list)
    for claim in claims:
        counts[comparison_key(claim.value)].append(weights.get(claim.voter, 1.0))
    votes = {opinion: fsum(each) for opinion, each in counts.items()}
    if rule in ROW_RULES:
        return _compute(ballot, ROW_RULES[rule] + ("_rounded" if kind == "integer" else ""), votes)
    if rule == "priority":
        first = [claim.text for claim in claims if claim.rank[:2] == claims[0].rank[:2]]
        return _elect(ballot, Counter(first), "priority", lambda claim: claim.text)
    nulls = [claim for claim in claims if claim.value is None]
    if rule in ("majority", "weighted") or 2 * len(nulls) > len(claims):
        return _elect(ballot, votes, rule)
    if rule == "elements":
        return _decide_lists(ballot)
    texts = Counter(map(_as_prose, claims))
    likeness = {text: fsum(times * fuzz.ratio(text, other) for other, times in texts.items()) for text in texts}
    return _elect(ballot, likeness, "medoid", _as_prose)


def _as_prose(claim: Claim) -> str:
    return claim.value if isinstance(claim.value, str) else claim.text


def _elect(
    ballot: Ballot,
    scores: Mapping[str, float],
    rule: str,
    opinion: Callable[[Claim], str] = lambda claim: comparison_key(claim.value),
) -> Verdict:
    """Return the verdict for the opinion of the highest score, as most spell it.

    Ties go to the higher priority, then by a hash of item and voters.
    """
    claims = ballot.claims
    sides: dict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        sides[opinion(claim)].append(claim)
    rounded = {each: round(scores.get(each, 0.0), _DECIMALS) for each in sides}
    most = max(rounded.values())
    best = [side for each, side in sides.items() if rounded[each] == most]

    def draw(side: Sequence[Claim]) -> tuple[int, int, str]:
        voters: list[list[JsonValue]] = [[*sorted(claim.voter for claim in each)] for each in (claims, side)]
        return (*side[0].rank[:2], digest([ballot.item, *voters]))

    best = sorted(best, key=draw) if len(best) > 1 else best
    spellings = Counter(claim.text for claim in best[0])
    text = spellings.most_common(1)[0][0]
    winner = next(claim for claim in best[0] if claim.text == text)
    tie = (winner.value, *(side[0].value for side in best[1:])) if len(best) > 1 else ()
    return Verdict(ballot, _decision(ballot, rule, winner), tie)


def _decision(ballot: Ballot, rule: str, winner: Claim) -> FieldDecision:
    """Return the decision for one of the claims; those with the same text back it."""
    same = [claim for claim in ballot.claims if claim.text == winner.text]
    others = [claim for claim in ballot.claims if claim.text != winner.text]
    return FieldDecision(ballot.path, rule, winner.value, same, others, same[:1])


def _compute(ballot: Ballot, rule: str, votes: Mapping[str, float]) -> Verdict:
    """Return the verdict for a statistic of the numbers; most answers must be numbers, and not all of them equal."""
    numbers = [claim for claim in ballot.claims if is_number(claim.value)]
    if len(numbers) <= len(ballot.claims) - len(numbers):
        return _elect(ballot, votes, "majority")
    if len({claim.text for claim in numbers}) == 1:
        return Verdict(ballot, _decision(ballot, "majority", numbers[0]))
    values: Any = [claim.value for claim in numbers]
    result = STATISTICS[rule](values)
    text = content_text(result)
    same = [claim.value for claim in numbers if claim.text == text]
    others = [claim for claim in ballot.claims if claim.text != text]
    decision = FieldDecision(ballot.path, rule, same[0] if same else result, ballot.claims, others, ballot.claims)
    return Verdict(ballot, decision, outliers=tuple(find_outliers(rule, values)))


def _decide_lists(ballot: Ballot) -> Verdict:
    """Return the verdict for the list that more than half have, else for the elements that more than half have."""
    claims = ballot.claims
    (text, most), *_ = Counter(claim.text for claim in claims).most_common(1)
    if 2 * most > len(claims):
        return Verdict(ballot, _decision(ballot, "majority", next(claim for claim in claims if claim.text == text)))
    # 1. Each list counts once for an element, in its first spelling there.
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    elements: dict[str, JsonValue] = {}
    for claim in claims:
        own: dict[str, str] = {}
        for element in claim.value if isinstance(claim.value, list) else ():
            own.setdefault(comparison_key(element), content_text(element))
            elements.setdefault(content_text(element), element)
        for opinion, spelling in own.items():
            spellings[opinion][spelling] += 1
    kept = [
        min(each, key=lambda spelling: (-each[spelling], spelling))
        for each in spellings.values()
        if 2 * sum(each.values()) > len(claims)
    ]
    winner = [elements[text] for text in sorted(kept, key=lambda text: (value_order(elements[text]), text))]
    # 2. A list backs what it has in common with the result, and loses each of its other elements.
    texts = {*kept}
    backers = [claim for claim in claims if not kept or texts & {*map(content_text, as_elements(claim.value))}]
    losers: list[Claim] = []
    for claim in claims:
        parts = [(element, content_text(element)) for element in as_elements(claim.value)]
        losers += [claim._replace(value=element, text=text) for element, text in parts if text not in texts]
        losers += [claim] if kept and not parts else []
    return Verdict(ballot, FieldDecision(ballot.path, ELEMENTS, winner, backers, losers, backers))


def _assemble(verdicts: Sequence[Verdict]) -> JsonValue:
    """Return the answer that the decided fields make up."""
    answer: dict[str, Any] = {}
    for verdict in verdicts:
        path = verdict.decision.path
        if not path:
            return verdict.decision.winner
        inner = answer
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = verdict.decision.winner
    return answer


def _ledger(outcomes: Sequence[Outcome], decisions: Sequence[FieldDecision]) -> Iterator[LedgerRow]:
    """Yield the ledger row of each outcome: it gives a winner, or lost a vote, or was the same as another one."""
    needed = {claim.rank[-1] for decision in decisions for claim in decision.carriers}
    lost: dict[int, dict[int, FieldDecision]] = defaultdict(dict)
    same: dict[int, FieldDecision] = {}
    for number, decision in enumerate(decisions):
        for claim in decision.losers:
            lost[claim.rank[-1]][number] = decision
        for claim in decision.backers:
            same.setdefault(claim.rank[-1], decision)
    for place, outcome in enumerate(outcomes):
        names: dict[str, Any] = {"brief": outcome.brief, "item": outcome.item}
        if row := unanswered(outcome):
            yield row
        elif place in needed:
            yield LedgerRow(**names, disposition="merged")
        elif place in lost:
            first, *more = lost[place].values()
            by = first.carriers[0].source
            also = f" and {len(more)} more" if more else ""
            reason = f"rule {first.rule!r} on {field_name(first.path)!r}{also}"
            yield LedgerRow(**names, disposition="overridden", by=by, reason=reason)
        elif place in same:
            by = same[place].carriers[0].source
            yield LedgerRow(**names, disposition="duplicate_of", by=by, reason="the same answer")
        else:
            yield LedgerRow(**names, disposition="merged", reason="says nothing")
