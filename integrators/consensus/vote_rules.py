"""Vote rules of a consensus: how the answers to one field are combined into one.

Labels are decided by votes (plurality, weighted, or a crowd-kit model), numbers by a robust mean or median, prose by
its medoid, lists element by element. An answer that then violates the schema is replaced by a given one.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from rapidfuzz import fuzz

from prefect_dispatch.integrators.base import unanswered
from prefect_dispatch.integrators.crowdkit_adapter import CrowdEstimates, Vote, dawid_skene, wawa
from prefect_dispatch.integrators.merge_records.field_rules import Claim, FieldDecision, as_elements
from prefect_dispatch.integrators.merge_records.schema_conformance import iter_subschemas, property_schemas
from prefect_dispatch.models.imports import REFERENCE
from prefect_dispatch.models.ledger import LedgerRow, Ref, Violation
from prefect_dispatch.models.output_schema import schema_of, serialize_output, validate_output
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.serialization.json_values import content_text, exact_text, get_at, normalize_identity, value_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.models.output_schema import Output


ELEMENTS = "consensus:elements"
"""Rule of a field row whose list holds the elements that more than half of the agents have in their lists."""

OUTLIER_LIMIT = 3.5
"""Modified z-score above which a number is an outlier, by Iglewicz and Hoaglin.

Source: How to Detect and Handle Outliers, 1993. It is the distance from the median in units of the scaled median
absolute deviation.
"""

_MAD_TO_SIGMA = 1.4826
"""Factor from the median absolute deviation of normally distributed numbers to their standard deviation."""

_SCORE_DECIMALS = 9
"""Decimals to which scores are rounded, so that the order of summation can't break a tie."""


Path = tuple[str, ...]


class Ballot(NamedTuple):
    """One field of the answers to one item, with the claims of the agents."""

    item: str
    """The item's key."""
    path: Path
    """Keys from the answer to the field; empty if the answer is no object."""
    claims: Sequence[Claim]
    """The answers, one claim for each agent, in order of preference."""
    voters: int
    """Number of agents that answered for the item, including those whose answer lacks the field."""


class Verdict(NamedTuple):
    """Result of one ballot."""

    ballot: Ballot
    decision: FieldDecision
    """The winner, with the claims for and against it."""
    tie: tuple[JsonValue, ...] = ()
    """Answers of equal score, the winner first; empty if there was no tie. Preference decided between them."""


def comparison_key(value: JsonValue) -> str:
    """Return the text by which answers are compared: equal regardless of case, width and white space.

    Example:
        >>> comparison_key(" Yes") == comparison_key("yes") != comparison_key("no")
        True
    """
    return content_text(normalize_identity(value))


def _opinion(claim: Claim) -> str:
    return comparison_key(claim.value)


def decide_by_score(
    ballot: Ballot, scores: Mapping[str, float], rule: str, opinion: Callable[[Claim], str] = _opinion
) -> Verdict:
    """Return the verdict for the opinion with the highest score, in its most frequent spelling.

    Args:
        ballot: The ballot; its claims are in order of preference, which decides ties.
        scores: The score of each opinion; a missing one counts as 0.
        rule: The rule's name.
        opinion: Returns the opinion of a claim.
    """
    claims_by_opinion: dict[str, list[Claim]] = defaultdict(list)
    for claim in ballot.claims:
        claims_by_opinion[opinion(claim)].append(claim)
    scores_by_opinion = {each: round(scores.get(each, 0.0), _SCORE_DECIMALS) for each in claims_by_opinion}
    best = max(scores_by_opinion.values())
    winners, *others = [claims for each, claims in claims_by_opinion.items() if scores_by_opinion[each] == best]
    spellings = Counter(claim.text for claim in winners)
    winner = max(winners, key=lambda claim: spellings[claim.text])
    tie = (winner.value, *(claims[0].value for claims in others)) if others else ()
    return _elect(ballot, winner, rule, tie)


def count_votes(ballot: Ballot, weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the sum of votes for each opinion; each agent has one vote, or its brief's weight."""
    votes: dict[str, list[float]] = defaultdict(list)
    for claim in ballot.claims:
        votes[_opinion(claim)].append(1.0 if weights is None else weights.get(claim.source.brief, 1.0))
    return {each: math.fsum(counts) for each, counts in votes.items()}


def decide_by_medoid(ballot: Ballot) -> Verdict:
    """Return the verdict for the text with the highest sum of similarities to all others (rapidfuzz's ratio)."""
    texts = Counter(map(_claim_text, ballot.claims))
    sums = {
        text: math.fsum(times * fuzz.ratio(text, other, processor=None) for other, times in texts.items())
        for text in texts
    }
    return decide_by_score(ballot, sums, "medoid", _claim_text)


def decide_by_statistic(ballot: Ballot, rule: str) -> Verdict:
    """Return the verdict for the mean or median of the numbers, which may be a number that no agent gave.

    Where half or more of the answers are no numbers, the most frequent answer wins instead.

    Args:
        ballot: The ballot.
        rule: Name of the statistic, as in field rows.
    """
    numbers = [claim for claim in ballot.claims if is_number(claim.value)]
    if 2 * len(numbers) <= len(ballot.claims):
        return decide_by_score(ballot, count_votes(ballot), "majority")
    if len({claim.text for claim in numbers}) == 1:
        return _elect(ballot, numbers[0], "majority")
    result = STATISTICS[rule]([claim.value for claim in numbers])  # type: ignore[misc]
    text = content_text(result)
    winner = next((claim.value for claim in numbers if claim.text == text), result)
    losing = [claim for claim in ballot.claims if claim.text != text]
    return Verdict(ballot, FieldDecision(ballot.path, rule, winner, ballot.claims, losing, ballot.claims))


def merge_lists(ballot: Ballot) -> Verdict:
    """Return the verdict on lists: one list held by a majority, else the list of elements held by a majority.

    Claims that share an element with the result are its backers; each of their other elements is a losing claim.
    """
    copies = Counter(claim.text for claim in ballot.claims)
    winner = max(ballot.claims, key=lambda claim: copies[claim.text])
    if 2 * copies[winner.text] > len(ballot.claims):
        return _elect(ballot, winner, "majority")
    majority = majority_elements(ballot.claims)
    majority_texts = {content_text(element) for element in majority}
    backers: list[Claim] = []
    losing: list[Claim] = []
    for claim in ballot.claims:
        own_elements = as_elements(claim.value)
        if not majority or any(content_text(element) in majority_texts for element in own_elements):
            backers.append(claim)
        outvoted = [element for element in own_elements if content_text(element) not in majority_texts]
        losing += [claim._replace(value=element, text=content_text(element)) for element in outvoted]
        if majority and not own_elements:
            losing.append(claim)
    return Verdict(ballot, FieldDecision(ballot.path, ELEMENTS, majority, backers, losing, backers))


def majority_elements(claims: Sequence[Claim]) -> list[JsonValue]:
    """Return the elements that more than half of the lists hold, each in its most frequent spelling, sorted.

    A list counts once for an element that it holds several times.
    """
    holders: dict[str, dict[int, JsonValue]] = defaultdict(dict)
    for claim in claims:
        for element in claim.value if isinstance(claim.value, list) else ():
            holders[comparison_key(element)].setdefault(claim.rank[-1], element)
    majority: list[JsonValue] = []
    for spellings in holders.values():
        if 2 * len(spellings) > len(claims):
            counts = Counter(map(content_text, spellings.values()))
            majority.append(
                min(spellings.values(), key=lambda element: (-counts[content_text(element)], content_text(element)))
            )
    return sorted(majority, key=lambda element: (value_order(element), content_text(element)))


def is_number(value: JsonValue) -> bool:
    """Return whether a value is a number; booleans are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def robust_mean(numbers: Sequence[float]) -> float:
    """Return the mean of the numbers that are no outliers.

    An outlier is further from the median than 3.5 times the scaled median absolute deviation. Where that
    deviation is 0, because more than half of the numbers are equal, the median is returned.

    Example:
        >>> robust_mean([10, 11, 12, 500])
        11
    """
    return _compute_safely(_robust_mean, numbers)


def median(numbers: Sequence[float]) -> float:
    """Return the median; of an even count, the mean of the two numbers in the middle."""
    return _compute_safely(statistics.median, numbers)


def _robust_mean(numbers: Sequence[float]) -> float:
    # 1. Centre and spread by medians, which outliers don't move.
    centre = statistics.median(numbers)
    spread = _MAD_TO_SIGMA * statistics.median(abs(number - centre) for number in numbers)
    if spread == 0:
        return centre
    # 2. The mean of what lies within the limit.
    return statistics.mean(number for number in numbers if abs(number - centre) <= OUTLIER_LIMIT * spread)


def _compute_safely(function: Callable[[Sequence[float]], float], numbers: Sequence[float]) -> float:
    """Return the result of a function of numbers: exact if it is whole or one of the numbers, else to 15 digits.

    For numbers too large to compute with, return the lower median instead.
    """
    try:
        result = function(numbers)
        if not math.isfinite(result):
            return statistics.median_low(numbers)
    except OverflowError:
        return statistics.median_low(numbers)
    if isinstance(result, int) or result in numbers:
        return result
    result = float(f"{result:.15g}")
    whole = all(isinstance(number, int) for number in numbers) and result.is_integer()
    return int(result) if whole else result


STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "consensus:mean": robust_mean,
    "consensus:mean_rounded": lambda numbers: round(robust_mean(numbers)),
    "consensus:median": median,
    "consensus:median_rounded": lambda numbers: round(median(numbers)),
}
"""Functions of the rules that may give a new number, by their names in field rows; the audit recomputes them."""


def _elect(ballot: Ballot, winner: Claim, rule: str, tie: tuple[JsonValue, ...] = ()) -> Verdict:
    """Return the verdict for one of the claims; equal claims back it, all others lose."""
    backers = [claim for claim in ballot.claims if claim.text == winner.text]
    losing = [claim for claim in ballot.claims if claim.text != winner.text]
    return Verdict(ballot, FieldDecision(ballot.path, rule, winner.value, backers, losing, backers[:1]), tie)


def _claim_text(claim: Claim) -> str:
    return claim.value if isinstance(claim.value, str) else claim.text


AnswerKind = Literal["label", "number", "integer", "text", "list"]

LONGEST_LABEL = 80
"""Length in characters above which a text is prose; so is a text with a line break."""


def classify_answers(ballots: Sequence[Ballot], schema_kinds: set[AnswerKind]) -> AnswerKind:
    """Return the kind of a field, from the schemas and, where they are silent, from the answers.

    Args:
        ballots: All ballots on the field.
        schema_kinds: The kinds that the briefs' schemas allow.
    """
    values = [claim.value for ballot in ballots for claim in ballot.claims if claim.value is not None]
    if "label" in schema_kinds or not values:
        return "label"
    if all(map(is_number, values)):
        return "integer" if schema_kinds == {"integer"} else "number"
    if all(isinstance(value, list) for value in values):
        return "list"
    if not all(isinstance(value, str) for value in values):
        return "label"
    # Texts without a schema: long or multi-line ones are prose; short ones are labels if any repeats for an item.
    texts = cast("list[str]", values)
    if any(len(text) > LONGEST_LABEL or "\n" in text for text in texts):
        return "text"
    return "label" if any(map(_has_equal_opinions, ballots)) else "text"


def kinds_of_schemas(briefs: Sequence[Brief], path: Path) -> set[AnswerKind]:
    """Return the kinds that the briefs' schemas allow for a field; empty if they don't restrict it.

    Example:
        >>> from prefect_dispatch.models.brief import Brief
        >>> schema = {"type": "object", "properties": {"free": {"type": "boolean"}, "year": {"type": "integer"}}}
        >>> terms = Brief(name="terms", instructions="Read.", output=schema)
        >>> kinds_of_schemas([terms], ("free",)), kinds_of_schemas([terms], ("year",))
        ({'label'}, {'integer'})
    """
    found: set[AnswerKind] = set()
    for brief in briefs:
        if isinstance(brief.output, str) and REFERENCE.fullmatch(brief.output):
            continue
        root = schema_of(brief.output)
        here = [root] if root else []
        for name in path:
            here = property_schemas(here, name, cast("dict[str, Any]", root))
        for part in iter_subschemas(here, cast("dict[str, Any]", root)) if here else ():
            found |= _kinds_of_schema(part)
    return found


def _kinds_of_schema(schema: dict[str, Any]) -> set[AnswerKind]:
    """Return the kinds that one schema, without its branches, allows."""
    if "enum" in schema or ("const" in schema and schema["const"] is not None):
        return {"label"}
    types: Any = schema.get("type", [])
    type_names = set(cast("list[str]", types if isinstance(types, list) else [types]))
    has_format = "format" in schema or "pattern" in schema
    if "boolean" in type_names or (has_format and (not type_names or "string" in type_names)):
        return {"label"}
    return {kind for kind in ("integer", "number") if kind in type_names}


def _has_equal_opinions(ballot: Ballot) -> bool:
    """Return whether at least two claims of a ballot hold the same opinion."""
    opinions = [comparison_key(claim.value) for claim in ballot.claims if claim.value is not None]
    return len(set(opinions)) < len(opinions)


LabelMethod = Literal["majority", "weighted", "dawid_skene"]
RuleName = Literal["auto", "majority", "weighted", "dawid_skene", "mean", "median", "medoid", "priority"]


@dataclass(frozen=True)
class VoteRules:
    """Configuration of the vote: which rule decides which field."""

    method: LabelMethod
    """Rule for labels."""
    rules: Mapping[Path, RuleName]
    """Rule of a field, or of all fields inside it, by its path."""
    weights: Mapping[str, float]
    """Weight of each brief; empty: weights are learned, by agreement with the majority."""

    def rule(self, path: Path) -> RuleName:
        """Return the rule for a field: its own, or that of the nearest enclosing field."""
        for length in range(len(path), 0, -1):
            if (rule := self.rules.get(path[:length])) is not None:
                return rule
        return "auto"


class FieldResult(NamedTuple):
    """Result of all ballots on one field."""

    path: Path
    """Keys from the answer to the field."""
    kind: AnswerKind
    """Kind of its answers."""
    rule: str
    """Name of the rule that decided it."""
    verdicts: Sequence[Verdict]
    """The verdict on each ballot, one for each item."""
    crowd: CrowdEstimates | None = None
    """Estimates of a crowd-kit model about the agents; None where none was used."""


def decide_ballots(every: Sequence[Ballot], polls: VoteRules, briefs: Sequence[Brief]) -> list[FieldResult]:
    """Decide all ballots and return one result for each field, sorted by path.

    Args:
        every: All ballots of a job, in the order of the items.
        polls: The rules.
        briefs: All briefs; their schemas say which kind of answer a field takes.
    """
    fields: dict[Path, list[Ballot]] = defaultdict(list)
    for ballot in every:
        fields[ballot.path].append(ballot)
    return [_decide_field(path, fields[path], polls, briefs) for path in sorted(fields)]


def _decide_field(path: Path, ballots: Sequence[Ballot], polls: VoteRules, briefs: Sequence[Brief]) -> FieldResult:
    """Return the result of all ballots on one field.

    The ballots are decided together, since a crowd-kit model learns from all items.
    """
    kind = classify_answers(ballots, kinds_of_schemas(briefs, path))
    rule = polls.rule(path)
    if rule == "auto":
        rule = {"label": polls.method, "text": "medoid", "list": "elements"}.get(kind, "mean")
    crowd = None
    verdicts: list[Verdict]
    if rule == "dawid_skene" or (rule == "weighted" and not polls.weights):
        votes = [
            Vote(ballot.item, claim.source.brief, _opinion(claim)) for ballot in ballots for claim in ballot.claims
        ]
        crowd = dawid_skene(votes) if rule == "dawid_skene" else wawa(votes)
        verdicts = [decide_by_score(ballot, crowd.scores[ballot.item], rule) for ballot in ballots]
    else:
        verdicts = [_decide_ballot(ballot, rule, kind, polls.weights) for ballot in ballots]
    return FieldResult(path, kind, rule, verdicts, crowd)


def _decide_ballot(ballot: Ballot, rule: str, kind: AnswerKind, weights: Mapping[str, float]) -> Verdict:
    """Return the verdict on one ballot by a rule that needs no other ballots."""
    if rule in ("mean", "median"):
        return decide_by_statistic(ballot, f"consensus:{rule}" + "_rounded" * (kind == "integer"))
    if rule == "priority":
        return _elect(ballot, ballot.claims[0], rule)
    # A majority of null wins by votes; `decide_by_medoid` and `majority_elements` would treat null as a text or an
    # element.
    silent = sum(claim.value is None for claim in ballot.claims)
    if 2 * silent > len(ballot.claims) or rule in ("majority", "weighted"):
        return decide_by_score(ballot, count_votes(ballot, weights if rule == "weighted" else None), rule)
    return merge_lists(ballot) if rule == "elements" else decide_by_medoid(ballot)


def field_name(path: Path) -> str:
    """Return a field's name in tables: its dotted path, or `answer` for an answer that is no object."""
    return ".".join(path) or "answer"


def group_answers_by_item(ranked: Sequence[Outcome]) -> dict[str, list[Claim]]:
    """Return the answers to each item as claims, in order of preference: priority of brief, of item, then content.

    Args:
        ranked: All outcomes in the order of items and briefs; the result keeps the order of the items.
    """
    found: dict[str, list[Claim]] = {}
    for place, outcome in enumerate(ranked):
        if outcome.status == "succeeded":
            rank = (-outcome.brief_priority, -outcome.item_priority, exact_text(outcome.value), place)
            claim = Claim(outcome.value, content_text(outcome.value), Ref.of(outcome), outcome.value, rank)
            found.setdefault(outcome.item, []).append(claim)
    return {item: sorted(claims, key=lambda claim: claim.rank) for item, claims in found.items()}


def split_into_ballots(item: str, claims: Sequence[Claim]) -> Iterator[Ballot]:
    """Yield the ballots on one item: one for each field of objects, at any depth; one for everything else.

    A majority of null is a vote against the object, which is then not split; a minority of null abstains.
    """
    todo: list[tuple[Path, Sequence[Claim]]] = [((), claims)]
    while todo:
        path, current = todo.pop()
        non_null = [(claim, claim.value) for claim in current if claim.value is not None]
        objects = [(claim, value) for claim, value in non_null if isinstance(value, dict)]
        is_object = any(value for _, value in objects) and len(objects) == len(non_null)
        # Split only where every answer but null is an object, and at least one of them isn't empty.
        if not is_object or 2 * len(non_null) < len(current):
            yield Ballot(item, path, current, len(claims))
            continue
        for name in sorted({name for _, value in objects for name in value}, reverse=True):
            inner = [
                Claim(value[name], content_text(value[name]), claim.source, claim.record, claim.rank)
                for claim, value in objects
                if name in value
            ]
            todo.append(((*path, name), inner))


def assemble_answer(decisions: Iterable[FieldDecision]) -> JsonValue:
    """Return the answer that the decided fields make up.

    Example:
        >>> from prefect_dispatch.integrators.merge_records.field_rules import FieldDecision
        >>> nested = FieldDecision(("a", "b"), "majority", 1, (), (), ())
        >>> assemble_answer([nested, FieldDecision(("c",), "majority", 2, (), (), ())])
        {'a': {'b': 1}, 'c': 2}
    """
    answer: dict[str, JsonValue] = {}
    for decision in decisions:
        if not decision.path:
            return decision.winner
        parent = answer
        for name in decision.path[:-1]:
            parent = cast("dict[str, JsonValue]", parent.setdefault(name, {}))
        parent[decision.path[-1]] = decision.winner
    return answer


def ledger_rows(ranked: Sequence[Outcome], decisions: Iterable[FieldDecision]) -> tuple[LedgerRow, ...]:
    """Return one ledger row for each outcome: `merged`, `overridden` or `duplicate_of`.

    An outcome that carries a winner is merged, even where it is outvoted on another field.

    Args:
        ranked: All outcomes; the last element of a claim's rank is an index into this list.
        decisions: The decisions on all fields of all items.
    """
    carriers: set[int] = set()
    losses: dict[int, list[FieldDecision]] = defaultdict(list)
    backed: dict[int, FieldDecision] = {}
    for decision in decisions:
        carriers |= {claim.rank[-1] for claim in decision.carriers}
        for place in {claim.rank[-1] for claim in decision.losers}:
            losses[place].append(decision)
        for claim in decision.backers:
            backed.setdefault(claim.rank[-1], decision)

    def row(place: int, outcome: Outcome) -> LedgerRow:
        change: dict[str, Any] = {"disposition": "merged", "reason": "" if place in carriers else "says nothing"}
        if place in losses and place not in carriers:
            first, more = losses[place][0], len(losses[place]) - 1
            reason = f"rule {first.rule!r} on {field_name(first.path)!r}" + (f" and {more} more" if more else "")
            change = {"disposition": "overridden", "by": first.carriers[0].source, "reason": reason}
        elif place in backed and place not in carriers:
            by = backed[place].carriers[0].source
            change = {"disposition": "duplicate_of", "by": by, "reason": "the same answer"}
        return unanswered(outcome) or LedgerRow(brief=outcome.brief, item=outcome.item, **change)

    return tuple(row(place, outcome) for place, outcome in enumerate(ranked))


NEAREST = "nearest"
"""Rule of an answer that is taken whole, because the answer assembled field by field violates the schema."""


def enforce_schema(verdicts: Sequence[Verdict], claims: Sequence[Claim], output: Output | None) -> Sequence[Verdict]:
    """Return verdicts whose answer satisfies the schema.

    That is the verdicts themselves or, if their answer violates it, one verdict for the given answer that agrees
    with them on most fields.

    Args:
        verdicts: The verdicts on the fields of one item's answer.
        claims: The answers to the item, in order of preference.
        output: The output that all briefs share, or None.
    """
    if output is None or not _schema_errors(
        output, assemble_answer(v.decision for v in verdicts), [c.value for c in claims]
    ):
        return verdicts

    def nearness(claim: Claim) -> int:
        return sum(
            comparison_key(get_at(claim.value, verdict.decision.path)) == comparison_key(verdict.decision.winner)
            for verdict in verdicts
        )

    whole = Ballot(verdicts[0].ballot.item, (), claims, len(claims))
    return [_elect(whole, max(claims, key=nearness), NEAREST)]


def common_output(briefs: Sequence[Brief]) -> Output | None:
    """Return the output that all briefs share; None if they differ, or if it is text or a model not yet imported."""
    outputs = {serialize_output(brief.output): brief.output for brief in briefs}
    [output, *more] = outputs.values() or [None]
    loaded = output is not None and output != "text" and not (isinstance(output, str) and REFERENCE.fullmatch(output))
    return output if loaded and not more else None


def schema_violations(merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:
    """Yield a violation for each answer of a consensus that doesn't conform to the briefs' output."""
    output = common_output(briefs)
    answers: dict[object, list[JsonValue]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.status == "succeeded":
            answers[outcome.item].append(outcome.value)
    for name in ("answers", "undecided") if output is not None else ():
        for at, entry in enumerate(cast("list[JsonValue]", get_at(merge.value, [name]) or [])):
            value, item = get_at(entry, ["value"]), get_at(entry, ["item"])
            if errors := _schema_errors(cast("Output", output), value, answers[item]):
                yield Violation(law="schema", where=f"/{name}/{at}/value", message=errors[0])


def _schema_errors(output: Output, value: JsonValue, answers: Sequence[JsonValue]) -> list[str]:
    """Return the schema errors of a value; none if it was given as an answer, or if a given answer has errors, too.

    Given answers of a pydantic model were validated on arrival; its validators need not accept their own output again.
    """
    if exact_text(value) in map(exact_text, answers) or any(validate_output(output, each)[1] for each in answers):
        return []
    try:
        return validate_output(output, value)[1]
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- a model may have validators of the user's
        return [safe_message(error)]
