"""Vote rules of a consensus: how the answers to one field are combined into one.

Labels are decided by votes (majority, weighted, or a model of the voters), numbers by a mean or median, prose by its
medoid, lists element by element. An answer that then violates the schema is replaced by a given one.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from rapidfuzz import fuzz

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.base import unanswered
from prefect_dispatch.integrators.consensus.number_rules import ROW_RULES, STATISTICS, find_outliers, is_number
from prefect_dispatch.integrators.consensus.voter_models import estimate_truth
from prefect_dispatch.integrators.crowdkit_adapter import CrowdEstimates, Vote, dawid_skene, has_crowd_kit, wawa
from prefect_dispatch.integrators.merge_records.field_rules import Claim, FieldDecision, as_elements
from prefect_dispatch.integrators.merge_records.schema_conformance import iter_subschemas, property_schemas
from prefect_dispatch.models.imports import REFERENCE
from prefect_dispatch.models.ledger import FieldRow, LedgerRow, Ref, Violation, sort_key
from prefect_dispatch.models.output_schema import schema_of, serialize_output, validate_output
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.serialization.json_text import digest
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
    """Answers of equal score, the winner first; empty if there was no tie."""
    outliers: tuple[JsonValue, ...] = ()
    """Numbers that were left out of a mean."""


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
        ballot: The ballot.
        scores: The score of each opinion; a missing one counts as 0.
        rule: The rule's name.
        opinion: Returns the opinion of a claim.
    """
    claims_by_opinion: dict[str, list[Claim]] = defaultdict(list)
    for claim in ballot.claims:
        claims_by_opinion[opinion(claim)].append(claim)
    scores_by_opinion = {each: round(scores.get(each, 0.0), _SCORE_DECIMALS) for each in claims_by_opinion}
    best = max(scores_by_opinion.values())
    tied = [claims for each, claims in claims_by_opinion.items() if scores_by_opinion[each] == best]
    winners, *others = sort_tied(ballot, tied)
    spellings = Counter(claim.text for claim in winners)
    winner = max(winners, key=lambda claim: spellings[claim.text])
    tie = (winner.value, *(claims[0].value for claims in others)) if others else ()
    return _elect(ballot, winner, rule, tie)


def sort_tied(ballot: Ballot, groups: Sequence[Sequence[Claim]]) -> list[Sequence[Claim]]:
    """Return groups of claims between which there is a tie, the winning one first.

    The highest priority in a group decides, then a hash of the item, all voters, and the voters in the group. What the
    voters say has no influence: by the spelling of labels, one label would win all ties.

    Args:
        ballot: The ballot.
        groups: The claims for each of the tied answers, in order of preference.
    """
    if len(groups) == 1:
        return [*groups]

    def list_voters(claims: Sequence[Claim]) -> list[JsonValue]:
        return [*sorted(claim.voter for claim in claims)]

    def key(group: Sequence[Claim]) -> tuple[int, int, str]:
        first, second, *_ = group[0].rank
        return first, second, digest([ballot.item, list_voters(ballot.claims), list_voters(group)])

    return sorted(groups, key=key)


def count_votes(ballot: Ballot, weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the sum of votes for each opinion; each agent has one vote, or its brief's weight."""
    votes: dict[str, list[float]] = defaultdict(list)
    for claim in ballot.claims:
        votes[_opinion(claim)].append(1.0 if weights is None else weights.get(claim.voter, 1.0))
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
    values = cast("list[float]", [claim.value for claim in numbers])
    result = STATISTICS[rule](values)
    text = content_text(result)
    winner = next((claim.value for claim in numbers if claim.text == text), result)
    losing = [claim for claim in ballot.claims if claim.text != text]
    decision = FieldDecision(ballot.path, rule, winner, ballot.claims, losing, ballot.claims)
    return Verdict(ballot, decision, outliers=tuple(find_outliers(rule, values)))


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


def _elect(ballot: Ballot, winner: Claim, rule: str, tie: tuple[JsonValue, ...] = ()) -> Verdict:
    """Return the verdict for one of the claims; equal claims back it, all others lose."""
    backers = [claim for claim in ballot.claims if claim.text == winner.text]
    losing = [claim for claim in ballot.claims if claim.text != winner.text]
    return Verdict(ballot, FieldDecision(ballot.path, rule, winner.value, backers, losing, backers[:1]), tie)


def _elect_preferred(ballot: Ballot) -> Verdict:
    """Return the verdict for the answer of the highest priority; several such answers tie."""
    preferred = [claim for claim in ballot.claims if claim.rank[:2] == ballot.claims[0].rank[:2]]
    return decide_by_score(ballot, Counter(claim.text for claim in preferred), "priority", lambda c: c.text)


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


LabelMethod = Literal["auto", "majority", "weighted", "dawid_skene"]
RuleName = Literal["auto", "majority", "weighted", "dawid_skene", "mean", "median", "robust_mean", "medoid", "priority"]

MODELS = "models"
"""Rule of a field that the method `auto` decided by its models of the voters."""


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
    """Estimates of models of the agents; None where none was used."""
    is_limited: bool = False
    """Whether the majority decided for want of the extra `consensus`."""


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
    rule: str = polls.rule(path)
    if rule == "auto":
        rule = {"label": polls.method, "text": "medoid", "list": "elements"}.get(kind, "screened_mean")
    is_limited = rule == "auto" and not has_crowd_kit()
    crowd = None
    if not is_limited and (rule in ("auto", "dawid_skene") or (rule == "weighted" and not polls.weights)):
        crowd = estimate_crowd(rule, ballots)
    if rule == "auto":
        rule = MODELS if crowd else "majority"
    if crowd:
        verdicts = [decide_by_score(ballot, crowd.scores[ballot.item], rule) for ballot in ballots]
    else:
        verdicts = [_decide_ballot(ballot, rule, kind, polls.weights) for ballot in ballots]
    return FieldResult(path, kind, rule, verdicts, crowd, is_limited)


def estimate_crowd(rule: str, ballots: Sequence[Ballot]) -> CrowdEstimates | None:
    """Return what a rule learns about the voters from all votes on a field; None if the majority should decide."""
    votes = [Vote(ballot.item, claim.voter, _opinion(claim)) for ballot in ballots for claim in ballot.claims]
    return {"auto": estimate_truth, "dawid_skene": dawid_skene, "weighted": wawa}[rule](votes)


def _decide_ballot(ballot: Ballot, rule: str, kind: AnswerKind, weights: Mapping[str, float]) -> Verdict:
    """Return the verdict on one ballot by a rule that needs no other ballots."""
    if rule in ROW_RULES:
        return decide_by_statistic(ballot, ROW_RULES[rule] + "_rounded" * (kind == "integer"))
    if rule == "priority":
        return _elect_preferred(ballot)
    # A majority of null wins by votes; `decide_by_medoid` and `majority_elements` would treat null as a text or an
    # element.
    silent = sum(claim.value is None for claim in ballot.claims)
    if 2 * silent > len(ballot.claims) or rule in ("majority", "weighted"):
        return decide_by_score(ballot, count_votes(ballot, weights if rule == "weighted" else None), rule)
    return merge_lists(ballot) if rule == "elements" else decide_by_medoid(ballot)


def field_name(path: Path) -> str:
    """Return a field's name in tables: its dotted path, or `answer` for an answer that is no object."""
    return ".".join(path) or "answer"


class VoteFields(NamedTuple):
    """Fields of an answer that make it a vote, where answers are votes that exist already."""

    item: str
    """The field that names what is voted on."""
    voter: str
    """The field that names the voter."""


class SingleVote(NamedTuple):
    """The answer of one voter to one item."""

    item: str
    voter: str
    value: JsonValue


def read_vote(outcome: Outcome, fields: VoteFields | None) -> SingleVote:
    """Return an outcome as a vote: of its brief on its item, or as the fields of its answer say.

    Raises:
        JobError: If the answer lacks one of the fields, or has neither text nor a whole number there.

    Example:
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> row = {"question": "q1", "worker": "w1", "answer": "yes"}
        >>> outcome = Outcome(brief="labels", item="1", status="succeeded", value=row)
        >>> read_vote(outcome, VoteFields("question", "worker"))
        SingleVote(item='q1', voter='w1', value={'answer': 'yes'})
    """
    if fields is None:
        return SingleVote(outcome.item, outcome.brief, outcome.value)
    answer = outcome.value if isinstance(outcome.value, dict) else {}
    names = [_read_name(answer.get(name)) for name in fields]
    if "" in names:
        missing = fields[names.index("")]
        raise JobError(
            f"The answer of {Ref.of(outcome)} has neither text nor a whole number in its field {missing!r}, so it is "
            "no vote."
        )
    item, voter = names
    return SingleVote(item, voter, {name: value for name, value in answer.items() if name not in fields})


def _read_name(value: JsonValue) -> str:
    """Return the name of an item or voter: a text, or a whole number in digits; empty if it is something else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def group_answers_by_item(ranked: Sequence[Outcome], fields: VoteFields | None = None) -> dict[str, list[Claim]]:
    """Return the answers to each item as claims, in order of preference: priority of brief, of item, then content.

    Args:
        ranked: All outcomes in the order of items and briefs.
        fields: The fields of an answer that name item and voter, if it has them.

    Returns:
        The claims, by item; the items are in the order of their keys.

    Raises:
        JobError: If an answer is no vote, a voter has two answers to an item, or an item is named by a number and by a
            text.
    """
    found: dict[str, dict[str, Claim]] = defaultdict(dict)
    for place, outcome in enumerate(ranked):
        if outcome.status == "succeeded":
            item, voter, value = read_vote(outcome, fields)
            if voter in found[item]:
                both = f"{found[item][voter].source} and {Ref.of(outcome)}"
                raise JobError(f"{voter!r} votes twice on {item!r}, in {both}; a voter has one vote on each item.")
            rank = (-outcome.brief_priority, -outcome.item_priority, exact_text(value), place)
            found[item][voter] = Claim(value, content_text(value), Ref.of(outcome), outcome.value, rank, voter)
    if fields:
        _require_one_type(found, fields)
    return {
        item: sorted(found[item].values(), key=lambda claim: claim.rank)
        for item in sorted(found, key=lambda item: sort_key("", item))
    }


def _require_one_type(found: Mapping[str, Mapping[str, Claim]], fields: VoteFields) -> None:
    """Check that no item is named by a number in some answers and by a text in others: the merged value has one name.

    Raises:
        JobError: If one is.
    """
    for item, claims in found.items():
        if len({type(get_at(claim.record, [fields.item])) for claim in claims.values()}) > 1:
            raise JobError(
                f"In field {fields.item!r}, some answers have the number {item} and others the text {item!r}; "
                "give all of them one type."
            )


def rows_of_voters(path: str, fields: VoteFields, claims: Sequence[Claim]) -> tuple[FieldRow, FieldRow]:
    """Return the field rows of an entry's item and voters, named as in the answers, where answers name both.

    Args:
        path: JSON Pointer to the entry.
        fields: The fields of an answer that name item and voter.
        claims: The answers to the item.
    """
    sources = tuple(sorted((claim.source for claim in claims), key=lambda ref: ref.order))
    by_name = sorted(claims, key=lambda claim: sort_key("", claim.voter))
    voters: list[JsonValue] = [get_at(claim.record, [fields.voter]) for claim in by_name]
    return (
        FieldRow(path=f"{path}/item", winner=get_at(claims[0].record, [fields.item]), rule="majority", sources=sources),
        FieldRow(path=f"{path}/voters", winner=voters, rule="union", sources=sources),
    )


def answers_by_item(outcomes: Sequence[Outcome], fields: VoteFields | None) -> dict[str, dict[Ref, JsonValue]]:
    """Return the answer of each outcome that has one, by item and outcome, for the audit."""
    found: dict[str, dict[Ref, JsonValue]] = defaultdict(dict)
    for outcome in outcomes:
        if outcome.status == "succeeded":
            vote = read_vote(outcome, fields)
            found[vote.item][Ref.of(outcome)] = vote.value
    return found


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
                claim._replace(value=value[name], text=content_text(value[name]))
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
    if output is None or not schema_errors(
        output, assemble_answer(v.decision for v in verdicts), [c.value for c in claims]
    ):
        return verdicts

    def nearness(claim: Claim) -> int:
        return sum(
            comparison_key(get_at(claim.value, verdict.decision.path)) == comparison_key(verdict.decision.winner)
            for verdict in verdicts
        )

    whole = Ballot(verdicts[0].ballot.item, (), claims, len(claims))
    return [decide_by_score(whole, {claim.text: nearness(claim) for claim in claims}, NEAREST, lambda c: c.text)]


def common_output(briefs: Sequence[Brief]) -> Output | None:
    """Return the output that all briefs share; None if they differ, or if it is text or a model not yet imported."""
    outputs = {serialize_output(brief.output): brief.output for brief in briefs}
    [output, *more] = outputs.values() or [None]
    loaded = output is not None and output != "text" and not (isinstance(output, str) and REFERENCE.fullmatch(output))
    return output if loaded and not more else None


def schema_violations(
    merge: Merge, answers: Mapping[str, Mapping[Ref, JsonValue]], briefs: Sequence[Brief]
) -> Iterator[Violation]:
    """Yield a violation for each answer of a consensus that doesn't conform to the briefs' output.

    Args:
        merge: The merge.
        answers: The answers to each item.
        briefs: The briefs.
    """
    output = common_output(briefs)
    for name in ("answers", "undecided") if output is not None else ():
        for at, entry in enumerate(cast("list[JsonValue]", get_at(merge.value, [name]) or [])):
            value, given = get_at(entry, ["value"]), answers.get(str(get_at(entry, ["item"])), {})
            if errors := schema_errors(cast("Output", output), value, [*given.values()]):
                yield Violation(law="schema", where=f"/{name}/{at}/value", message=errors[0])


def schema_errors(output: Output, value: JsonValue, answers: Sequence[JsonValue]) -> list[str]:
    """Return the schema errors of a value; none if it was given as an answer, or if a given answer has errors, too.

    Given answers of a pydantic model were validated on arrival; its validators need not accept their own output again.
    """
    if exact_text(value) in map(exact_text, answers) or any(validate_output(output, each)[1] for each in answers):
        return []
    try:
        return validate_output(output, value)[1]
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- a model may have validators of the user's
        return [safe_message(error)]
