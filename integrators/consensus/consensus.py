"""The integrator `Consensus`: several answers to the same item are combined into one by votes."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import original_name
from prefect_dispatch.integrators.audit.recompute_votes import recompute_votes
from prefect_dispatch.integrators.base import MAX_LISTED_GAPS, BaseIntegrator, gap_violations, gaps, gaps_as_outcomes
from prefect_dispatch.integrators.consensus.agreement import DIGITS, Alpha, krippendorff, score_similarity
from prefect_dispatch.integrators.consensus.number_rules import GROSS_FACTOR, GROSS_LIMIT, OUTLIER_LIMIT, is_number
from prefect_dispatch.integrators.consensus.vote_rules import (
    LONGEST_LABEL,
    NEAREST,
    LabelMethod,
    RuleName,
    VoteFields,
    VoteRules,
    answers_by_item,
    assemble_answer,
    common_output,
    decide_ballots,
    enforce_schema,
    field_name,
    group_answers_by_item,
    ledger_rows,
    rows_of_voters,
    schema_violations,
    split_into_ballots,
)
from prefect_dispatch.integrators.crowdkit_adapter import ITERATIONS, TOLERANCE, require_crowd_kit
from prefect_dispatch.integrators.merge_records.schema_conformance import require_fields
from prefect_dispatch.models.base import Strict, did_you_mean
from prefect_dispatch.models.ledger import Flag, Merge, Ref, Table
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.security.escaping import join_names, shorten
from prefect_dispatch.serialization.json_values import pointer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue
    from typing_extensions import Self

    from prefect_dispatch.integrators.consensus.vote_rules import FieldResult, Path, Verdict
    from prefect_dispatch.integrators.crowdkit_adapter import CrowdEstimates
    from prefect_dispatch.integrators.merge_records.field_rules import Claim
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.ledger import FieldRow, Violation


# Parts of the rules text in the report.
_WHO = (
    "All answers to an item, one from each brief or sample, vote on one answer, field by field where they are objects."
)

_MAJORITY = "the answer that most give"
_LEARNED = "votes weighted by how often a brief agrees with the majority over all items (Wawa, by crowd-kit)"

_DAWID_SKENE = (
    "the answer that the model of Dawid and Skene (1979, by crowd-kit, at most "
    f"{ITERATIONS} rounds, until a vote gains less than {TOLERANCE:g}) finds most probable, each brief having "
    "its own probability of saying one thing where another is right, estimated over all items"
)

_AUTO = (
    "the answer that most give where voters don't differ from each other by more than chance, and otherwise the most "
    "probable one by the mean of three models of the voters: right with a probability of its own; guessing from a "
    "distribution of its own (MACE, Hovy et al. 2013); with error rates of its own for each right answer (Dawid and "
    "Skene 1979), all by variational Bayes"
)

_SCREENED = (
    f"the mean without gross errors (a single number, or one in ten, more than {GROSS_LIMIT} median absolute "
    f"deviations from the median, of few numbers more, or {GROSS_FACTOR} times the median where most numbers are "
    "equal), rounded where the schema says integer; what it leaves out is flagged"
)
_ROBUST = (
    f"the mean of the numbers within {OUTLIER_LIMIT} scaled median absolute deviations of their median "
    "(Iglewicz and Hoaglin 1993), the median where most numbers are equal, rounded where the schema says integer; "
    "what it leaves out is flagged"
)

_RULES = {
    "auto": _AUTO,
    "majority": _MAJORITY,
    "dawid_skene": _DAWID_SKENE,
    "mean": "the mean of the numbers, rounded where the schema says integer",
    "robust_mean": _ROBUST,
    "median": "the median of the numbers, rounded where the schema says integer",
    "medoid": "the text most like all the others by rapidfuzz's ratio",
    "priority": "the answer of the brief with the highest priority",
}

_KINDS = (
    f"Numbers become {_SCREENED}. Prose (texts over {LONGEST_LABEL} characters or with a line break, or texts of which "
    "none repeats for any item) becomes its medoid, the text most like all the others by rapidfuzz's ratio. Of lists "
    "the one that more than half have stands, else the elements that more than half have in theirs, sorted. Null "
    "stands where more than half say it. A field that some answers lack is decided by those that have it."
)

_SCHEMA = (
    "Where the fields that were voted for don't go together by the briefs' schema, the given answer that has most of "
    "them stands whole, and is flagged."
)

_TIES = (
    "Texts are one answer regardless of case, width and white space, and stand as most write them. Ties go to the "
    "brief of higher priority, then by a hash of the item's key and the voters, and are flagged."
)


class FieldVote(Strict):
    """Rule for one field.

    Example:
        >>> FieldVote(field="year", rule="median").rule
        'median'
    """

    field: Annotated[str, Field(pattern=r"^[^.]+(\.[^.]+)*$")]
    """The field's name, or the dotted path of a field inside an object."""
    rule: RuleName = "auto"
    """`auto` (by what it holds), a `method`, `mean`, `median`, `robust_mean`, `medoid` or `priority`."""


class Weight(Strict):
    """Weight of the answers of one brief."""

    brief: str
    """The brief's name; of one with `samples`, each sample has this weight."""
    weight: Annotated[float, Field(gt=0, le=1_000_000)]
    """Votes that each of its answers is worth."""


def _accept_mapping(first: str, second: str) -> BeforeValidator:
    """Return a validator that also accepts a mapping for a list of objects with two fields.

    Args:
        first: The field that takes the mapping's keys.
        second: The field that takes its values.
    """

    def convert(value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return [{first: key, second: each} for key, each in cast("Mapping[object, object]", value).items()]

    return BeforeValidator(convert)


class Consensus(BaseIntegrator, Strict):
    """Integrator that combines several answers to the same item into one: of several samples, models or briefs.

    **Who votes.** Every brief that has an answer to an item, once. To ask one brief several times, give
    it `samples`; to ask several models, give several briefs a `model` each. Votes that exist already, as rows of a
    table, are items of one brief: `item` and `voter` name the fields that say what is voted on, and by whom.

    **What is voted on.** An answer that is an object is decided field by field, at any depth;
    everything else as a whole. A field that some answers lack is decided by those that have it.

    **How.** Labels (schemas with `enum`, `const`, `boolean`, `format` or `pattern`; short texts of which some
    repeat) by `method`. `auto` takes the majority unless the voters demonstrably differ, and then the most probable
    label by three models of the voters (`voter_models`). Texts
    are one opinion regardless of case, width and white space. Numbers: the mean without
    gross errors, rounded where the schema says integer. Prose (a text over 80 characters or with a line
    break, or texts of which none repeats): the medoid, the one most like the others. Lists: the
    list that more than half have, else the elements that more than half have in theirs. Null is an
    answer: it wins where more than half give it. A rule for a field takes precedence over all that.

    **Schema.** Where the answer that was decided field by field violates the briefs' schema (its fields don't go
    together), the given answer that has most of its fields is taken whole, and is flagged.

    **Ties** are broken by the priority of the brief, then by a hash of the item's key and the voters, independent of
    what the answers say; each is flagged.

    **Value.** `{"answers": [{"item": …, "value": …}], "undecided": […], "gaps": […]}`, each in the order
    of the items' keys; `undecided` holds the items with fewer answers than `min_votes`. The table
    `disagreements` lists the items on which agents disagree, the lowest agreement first. With `item` and `voter`, each
    entry has the list of its `voters`, too.

    **Ledger.** `merged`: an answer that gives the winner of some field (of several, the preferred one), and
    every answer that went into a number or a list; `overridden`: outvoted on some field; else `duplicate_of`.

    Example:
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> outcomes = [
        ...     Outcome(brief=f"terms-{n}", item="a", status="succeeded", value={"free": free, "year": year})
        ...     for n, (free, year) in enumerate([(True, 1987), (True, 1989), (False, 1988)], 1)
        ... ]
        >>> merge = Consensus().merge([], outcomes)
        >>> merge.value["answers"]
        [{'item': 'a', 'value': {'free': True, 'year': 1988}}]
        >>> merge.tables[0].rows[0]["field"], merge.tables[0].rows[0]["agreement"]
        ('free', 0.6667)
    """

    model_config = ConfigDict(title="Consensus")

    kind: Literal["consensus"] = "consensus"
    """Discriminator of the integrators."""
    method: LabelMethod = "auto"
    """Rule for labels: `auto`, `majority`, `weighted`, or `dawid_skene` (error rates of each brief, from all items)."""
    rules: Annotated[tuple[FieldVote, ...], _accept_mapping("field", "rule")] = ()
    """Rules for fields, in place of the rule by their kind. A mapping from field to rule is accepted, too."""
    weights: Annotated[tuple[Weight, ...], _accept_mapping("brief", "weight")] = ()
    """For `weighted`: each brief's weight, 1 if not named. None at all: learned, by agreement with the majority."""
    min_votes: int = Field(default=1, ge=1, le=1000)
    """Answers that an item needs; one with fewer is listed as undecided, and the run completes with gaps."""
    item: str = ""
    """For votes that exist already: the field of an answer that names what is voted on. Empty: the item's key."""
    voter: str = ""
    """For votes that exist already: the field of an answer that names the voter. Empty: the brief's name."""

    entries: ClassVar[str] = "answers"
    """Field of the merged value with the decided answers."""
    open_entries: ClassVar[str] = "undecided"
    """Field of the merged value with the items that have too few answers."""

    @model_validator(mode="after")
    def _check_configuration(self) -> Self:
        for what, names in (("field", [r.field for r in self.rules]), ("brief", [w.brief for w in self.weights])):
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what} {repeated[0]!r} is named twice; keep one")
        if self.weights and "weighted" not in self._used_rules:
            raise ValueError(
                "'weights' count for the rule 'weighted' alone; set method to 'weighted', or leave them out"
            )
        if bool(self.item) != bool(self.voter) or (self.item and self.item == self.voter):
            raise ValueError("'item' and 'voter' name two fields of an answer; give both, or neither")
        return self

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Return the merge: one answer for each item, a row for each field, a ledger row for each outcome."""
        # 1. Split the answers to each item into ballots, one for each field.
        ranked = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
        answers = group_answers_by_item(ranked, self.vote_fields)
        all_ballots = [ballot for item, claims in answers.items() for ballot in split_into_ballots(item, claims)]
        # 2. Decide all ballots on a field together, since learned weights depend on all items.
        polls = decide_ballots(all_ballots, self._vote_rules(briefs), briefs)
        verdicts_by_item: dict[str, list[Verdict]] = {item: [] for item in answers}
        for each in polls:
            for verdict in each.verdicts:
                verdicts_by_item[verdict.ballot.item].append(verdict)
        # 3. Replace answers that violate the schema, and put them into the merged value.
        output = common_output(briefs)
        value: dict[str, list[JsonValue]] = {self.entries: [], self.open_entries: []}
        decided: list[tuple[str, Verdict]] = []  # each verdict with the path of its field
        about: list[FieldRow] = []  # the rows about items and voters that answers name
        for item, claims in answers.items():
            verdicts = enforce_schema(verdicts_by_item[item], claims, output)
            name = self.entries if len(claims) >= self.min_votes else self.open_entries
            at = len(value[name])
            entry: dict[str, JsonValue] = {"item": item, "value": assemble_answer(each.decision for each in verdicts)}
            if self.vote_fields:
                of_item, of_voters = rows_of_voters(pointer(name, at), self.vote_fields, claims)
                entry |= {"item": of_item.winner, "voters": of_voters.winner}
                about += (of_item, of_voters)
            value[name].append(entry)
            decided += [(pointer(name, at, "value", *each.decision.path), each) for each in verdicts]
        undecided = [item for item, claims in answers.items() if len(claims) < self.min_votes]
        return Merge(
            value={**value, "gaps": gaps(ranked)},
            ledger=ledger_rows(ranked, [verdict.decision for _, verdict in decided]),
            fields=(*(verdict.decision.to_row(path) for path, verdict in decided), *about),
            rules=self._describe_rules(),
            flags=(*create_flags(decided), *_flag_missing_extra(polls)),
            tables=create_tables(polls),
            shortfalls=(self._describe_undecided(undecided, len(answers)),) if undecided else (),
        )

    def as_outcomes(self, merge: Merge) -> list[Outcome]:
        """Return the answers of a merged value as outcomes: `min_votes` equal ones for each decided item, else one.

        If answers name the voters, each voter has one.
        """
        value: Any = merge.value
        if self.vote_fields:
            named = [
                {**entry["value"], self.item: entry["item"], self.voter: voter}
                for entry in (*value[self.entries], *value[self.open_entries])
                for voter in entry["voters"]
            ]
            rows = [Outcome(brief="vote", item=str(n), status="succeeded", value=vote) for n, vote in enumerate(named)]
            return [*rows, *gaps_as_outcomes(value)]
        entries = [(entry, vote) for entry in value[self.entries] for vote in range(self.min_votes)]
        entries += [(entry, 0) for entry in value[self.open_entries]]
        votes = [
            Outcome(brief=f"vote-{vote + 1}", item=entry["item"], status="succeeded", value=entry["value"])
            for entry, vote in entries
        ]
        return [*votes, *gaps_as_outcomes(value)]

    def recompute(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Merge | None:  # noqa: ARG002 -- the signature of every integrator
        """Return the merge that the votes result in, counted without the code that merges them.

        The models of voters, and figures of agreement, are computed by the same code.
        """
        ranked = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
        expected = recompute_votes(ranked, briefs, self._vote_rules(briefs), self.vote_fields)
        lists: dict[str, list[JsonValue]] = {self.entries: [], self.open_entries: []}
        rows: list[tuple[str, Verdict]] = []
        about: list[FieldRow] = []
        for item, (claims, verdicts, answer) in expected.items.items():
            name = self.entries if len(claims) >= self.min_votes else self.open_entries
            path = pointer(name, len(lists[name]))
            entry: dict[str, JsonValue] = {"item": item, "value": answer}
            if self.vote_fields:
                of_item, of_voters = rows_of_voters(path, self.vote_fields, claims)
                entry |= {"item": of_item.winner, "voters": of_voters.winner}
                about += (of_item, of_voters)
            lists[name].append(entry)
            rows += [(path + pointer("value", *each.decision.path), each) for each in verdicts]
        open_items = [item for item, each in expected.items.items() if len(each.claims) < self.min_votes]
        return Merge(
            value={**lists, "gaps": gaps(ranked)},
            ledger=expected.ledger,
            fields=(*(verdict.decision.to_row(path) for path, verdict in rows), *about),
            rules=self._describe_rules(),
            flags=(*create_flags(rows), *_flag_missing_extra(expected.results)),
            tables=create_tables(expected.results),
            shortfalls=(self._describe_undecided(open_items, len(expected.items)),) if open_items else (),
        )

    def verify(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:
        """Yield a violation for gaps left out, and for answers that violate the schema."""
        yield from gap_violations(merge, outcomes)
        yield from schema_violations(merge, answers_by_item(outcomes, self.vote_fields), briefs)

    def preflight(self, briefs: Sequence[Brief]) -> None:
        """Check that there are enough briefs, and that all fields and briefs in the configuration exist.

        Raises:
            JobError: If not, or if crowd-kit is needed and not installed.
        """
        if self.vote_fields:
            require_fields(briefs, records="", identity=self.vote_fields, rule_fields=())
        elif len(briefs) < max(2, self.min_votes):
            raise JobError(
                f"A consensus of {max(2, self.min_votes)} answers or more needs as many briefs, and there "
                f"{'is' if len(briefs) == 1 else 'are'} {len(briefs)}: give a brief 'samples', add briefs (with a "
                "'model' each, say), or take the integrator 'collate'. For votes that exist already, as rows of a "
                "table, set 'item' and 'voter'."
            )
        if self.rules:
            require_fields(briefs, records="", identity=(), rule_fields=[rule.field for rule in self.rules])
        if len({brief.output == "text" for brief in briefs}) > 1:
            text = next(brief.name for brief in briefs if brief.output == "text")
            raise JobError(
                f"Brief {text!r} answers with text and others by a schema, so there is nothing to agree on; "
                "give all briefs the same 'output'."
            )
        names = sorted({original_name(brief) for brief in briefs})
        for weight in self.weights:
            if weight.brief not in names and not self.vote_fields:
                raise JobError(
                    f"There is no brief {weight.brief!r} to give a weight; {did_you_mean(weight.brief, names)}"
                )
        if "dawid_skene" in self._used_rules or ("weighted" in self._used_rules and not self.weights):
            require_crowd_kit("A consensus by 'dawid_skene', or by 'weighted' without 'weights',")

    def _describe_rules(self) -> str:
        """Return the rules as one paragraph, for the report."""
        weights = ", ".join(f"{each.brief!r} {each.weight:g}" for each in self.weights)
        phrases = {**_RULES, "weighted": f"votes weighted by brief ({weights}; all others 1)" if weights else _LEARNED}
        parts = [_WHO, f"Labels become {phrases[self.method]}.", _KINDS]
        parts += [f"Field {each.field!r} becomes {phrases[each.rule]}." for each in self.rules if each.rule != "auto"]
        parts += [_SCHEMA, _TIES]
        if self.vote_fields:
            parts.append(f"A vote is on what its field {self.item!r} names, by the voter in {self.voter!r}.")
        if self.min_votes > 1:
            parts.append(f"An item with fewer than {self.min_votes} answers is undecided.")
        return " ".join(parts)

    def _describe_undecided(self, items: Sequence[str], total: int) -> str:
        """Return a sentence on the items with too few answers."""
        names = join_names(map(repr, items), MAX_LISTED_GAPS)
        return f"Undecided for want of {self.min_votes} answers: {len(items)} of {total} items with any ({names})."

    @property
    def vote_fields(self) -> VoteFields | None:
        """The fields of an answer that name item and voter; None if its brief votes on its item."""
        return VoteFields(self.item, self.voter) if self.item else None

    @property
    def _used_rules(self) -> set[str]:
        """All rules that the configuration uses."""
        return {self.method, *(rule.rule for rule in self.rules)}

    def _vote_rules(self, briefs: Sequence[Brief]) -> VoteRules:
        """Return the vote configuration; a brief made of `samples` has its original brief's weight."""
        weights = {weight.brief: weight.weight for weight in self.weights}
        sample_weights = {
            brief.name: weights[original_name(brief)] for brief in briefs if original_name(brief) in weights
        }
        rules: dict[Path, RuleName] = {tuple(rule.field.split(".")): rule.rule for rule in self.rules}
        return VoteRules(self.method, rules, {**weights, **sample_weights})


# Tables and flags.

Row = dict[str, "JsonValue"]

MAX_SHOWN_CHARS = 80
"""Longest answer in a table, in characters; field rows hold the whole answer."""

_AGENTS = (
    "Agreement is the mean likeness of an agent's answers to those that stand. Skill is how often it is right, by the "
    "models of the voters; or, for learned weights, its agreement with the majority, which is its weight. "
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
            figures.append(round(statistics.fmean(scores), DIGITS))
            # Not strict: a figure without a claim is that of an agent without the field.
            for claim, score in zip(verdict.ballot.claims, scores, strict=False):
                similarities[claim.voter].append(score)
            if figures[-1] != 1:
                sort_key = (figures[-1], Ref(brief="", item=verdict.ballot.item).order, each.path)
                disagreements.append((sort_key, _disagreement_row(field, verdict, figures[-1])))
        agreement.append(_agreement_row(field, each, figures))
        agents.extend(
            {
                "field": field,
                "agent": agent,
                "answers": len(scores),
                "agreement": round(statistics.fmean(scores), DIGITS),
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
    answers = [
        f"{_truncate_answer(claims[0].value)} ({', '.join(sorted(claim.voter for claim in claims))})"
        for claims in sorted(claims_by_text.values(), key=lambda claims: -len(claims))
    ]
    if absent := verdict.ballot.voters - len(verdict.ballot.claims):
        answers.append(f"nothing ({absent})")
    return {
        "item": verdict.ballot.item,
        "field": field,
        "answer": verdict.decision.winner,
        "agreement": agreement,
        "said": "; ".join(answers),
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
        "agreement": round(statistics.fmean(figures), DIGITS),
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
    """Return the flags: answers that were taken whole because of the schema, ties, and numbers that were left out.

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
            message = f"It ties with {others}; priority, then a hash of item and voters decided."
        elif verdict.outliers:
            kind = "outlier"
            left_out = join_names(map(_truncate_answer, verdict.outliers), MAX_LISTED_GAPS)
            message = f"{left_out} {'is' if len(verdict.outliers) == 1 else 'are'} far from most numbers, and left out."
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


def _flag_missing_extra(polls: Sequence[FieldResult]) -> Iterator[Flag]:
    """Yield a flag if labels were decided by the majority because crowd-kit isn't installed."""
    if fields := [field_name(each.path) for each in polls if each.is_limited]:
        yield Flag(
            path="/answers",
            kind="method",
            text=join_names(fields, MAX_LISTED_GAPS),
            message="Decided by the majority: to learn how often voters are right, the method 'auto' needs crowd-kit "
            "(pip install 'prefect-dispatch[consensus]').",
        )


def _similarities(kind: str, verdict: Verdict) -> list[float]:
    """Return the similarity of each claim to the winner, then a 0 for each agent whose answer lacks the field."""
    kind = "number" if kind == "integer" else kind
    claims = verdict.ballot.claims
    similarities = [score_similarity(claim.value, verdict.decision.winner, kind) for claim in claims]
    return similarities + [0.0] * (verdict.ballot.voters - len(claims))


def _truncate_answer(value: JsonValue) -> str:
    return shorten(json.dumps(value, ensure_ascii=False), MAX_SHOWN_CHARS)
