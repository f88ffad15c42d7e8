"""Several answers to the same item become one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.variety import origin
from prefect_dispatch.integrators.auditing.forms import untold
from prefect_dispatch.integrators.auditing.recount import recount
from prefect_dispatch.integrators.crowd import require_crowd_kit
from prefect_dispatch.integrators.gaps import gaps, restated_gaps
from prefect_dispatch.integrators.promises import require_fields
from prefect_dispatch.integrators.values import pointer
from prefect_dispatch.integrators.votes.ballots import answers_by_item, assembled, ballots, ledger_rows
from prefect_dispatch.integrators.votes.coherence import coherent, common_output, misfits
from prefect_dispatch.integrators.votes.consensus_tables import flags_of, shortfalls_of, tables_of
from prefect_dispatch.integrators.votes.consensus_words import rules_of
from prefect_dispatch.integrators.votes.polling import Counting, Polls, RuleName, poll
from prefect_dispatch.ledger import Merge, Ref
from prefect_dispatch.models import Outcome
from prefect_dispatch.strict import Strict, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue
    from typing_extensions import Self

    from prefect_dispatch.integrators.votes.ballots import Path
    from prefect_dispatch.integrators.votes.voting import Verdict
    from prefect_dispatch.ledger import Violation
    from prefect_dispatch.models import Brief


class FieldVote(Strict):
    """How one field is decided.

    Example:
        >>> FieldVote(field="year", rule="median").rule
        'median'
    """

    field: Annotated[str, Field(pattern=r"^[^.]+(\.[^.]+)*$")]
    """The field's name, or the dotted path of a field inside an object."""
    rule: RuleName = "auto"
    """`auto` (by what it holds), `majority`, `weighted`, `dawid_skene`, `mean`, `median`, `medoid` or `priority`."""


class Weight(Strict):
    """How much the answers of one brief count."""

    brief: str
    """The brief's name; of one with `samples`, each sample has this weight."""
    weight: Annotated[float, Field(gt=0, le=1_000_000)]
    """Votes that each of its answers is worth."""


def _listed(first: str, second: str) -> BeforeValidator:
    """Return what takes a mapping for a list of objects with two fields."""

    def listed(value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return [{first: key, second: each} for key, each in cast("Mapping[object, object]", value).items()]

    return BeforeValidator(listed)


class Consensus(Strict):
    """Makes one answer out of several to the same item: of several samples, models or briefs.

    **Who votes.** Every brief that has an answer to an item, once. To ask one brief several times, give
    it `samples`; to ask several models, give several briefs a `model` each.

    **What is voted on.** An answer that is an object is decided field by field, objects inside it
    too; everything else as it is. A field that some answers lack is decided by those that have it.

    **How.** Labels (schemas with `enum`, `const`, `boolean`, `format` or `pattern`; short texts of which some
    repeat) by `method`: the majority; weighted votes; or Dawid and Skene's model of who errs how. Texts
    are one opinion regardless of case, width and white space. Numbers: the mean without
    outliers, rounded where the schema says integer. Prose (a text over 80 characters or with a line
    break, or texts of which none repeats): the medoid, the one most like the others. Lists: the
    list that more than half have, else the elements that more than half have in theirs. Null is an
    answer: it stands where more than half say it. A rule for a field goes before all that.

    **Schema.** Where the answer that was voted on field by field isn't what the briefs ask for (its fields
    don't go together), the given answer that has most of its fields stands whole, and is flagged.

    **Ties** are broken by the priority of the brief, then by content; each is flagged.

    **Value.** `{"answers": [{"item": …, "value": …}], "undecided": […], "gaps": […]}`, each in the order
    of the items' keys; under `undecided` stand the items with fewer answers than `min_votes`. The table
    `disagreements` has the items on which agents disagree, the worst first.

    **Ledger.** `merged`: the preferred one of those who say what stands in some field, and all
    whose numbers or lists made it up; `overridden`: outvoted somewhere; else `duplicate_of`.

    Example:
        >>> from prefect_dispatch.models import Outcome
        >>> said = [
        ...     Outcome(brief=f"terms-{n}", item="a", status="succeeded", value={"free": free, "year": year})
        ...     for n, (free, year) in enumerate([(True, 1987), (True, 1989), (False, 1988)], 1)
        ... ]
        >>> merge = Consensus().merge([], said)
        >>> merge.value["answers"]
        [{'item': 'a', 'value': {'free': True, 'year': 1988}}]
        >>> merge.tables[0].rows[0]["field"], merge.tables[0].rows[0]["agreement"]
        ('free', 0.6667)
    """

    model_config = ConfigDict(title="Consensus")

    kind: Literal["consensus"] = "consensus"
    """Tells the integrators apart."""
    method: Counting = "majority"
    """How labels are decided: `majority`, `weighted`, or `dawid_skene` (who errs how, learned from all items)."""
    rules: Annotated[tuple[FieldVote, ...], _listed("field", "rule")] = ()
    """How fields are decided where not by what they hold. A mapping from field to rule is taken, too."""
    weights: Annotated[tuple[Weight, ...], _listed("brief", "weight")] = ()
    """For `weighted`: each brief's weight, 1 if not named. None at all: learned, by agreement with the majority."""
    min_votes: int = Field(default=1, ge=1, le=1000)
    """Answers that an item needs; one with fewer is listed as undecided, and the run completes with gaps."""

    entries: ClassVar[str] = "answers"
    """Where, in the merged value, the answers stand."""
    open_entries: ClassVar[str] = "undecided"
    """Where, in the merged value, the items with too few answers stand."""

    @model_validator(mode="after")
    def _make_sense(self) -> Self:
        for what, names in (("field", [r.field for r in self.rules]), ("brief", [w.brief for w in self.weights])):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what} {twice[0]!r} is named twice; keep one")
        if self.weights and "weighted" not in self._named:
            raise ValueError(
                "'weights' count for the rule 'weighted' alone; set method to 'weighted', or leave them out"
            )
        return self

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Return one answer for each item, with a row for each field and each outcome."""
        ranked = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
        answers = answers_by_item(ranked)
        every = [ballot for item, claims in answers.items() for ballot in ballots(item, claims)]
        polls = poll(every, self._polls(briefs), briefs)
        decided: dict[str, list[Verdict]] = {item: [] for item in answers}
        for each in polls:
            for ballot, verdict in zip(each.ballots, each.verdicts, strict=True):
                decided[ballot.item].append(verdict)
        output = common_output(briefs)
        whole = {item: coherent(verdicts, answers[item], output) for item, verdicts in decided.items()}
        places = _places(self, answers)
        value: dict[str, JsonValue] = {self.entries: [], self.open_entries: []}
        for item, verdicts in whole.items():
            entry: JsonValue = {"item": item, "value": assembled(verdict.decision for verdict in verdicts)}
            cast("list[JsonValue]", value[places[item][0]]).append(entry)
        return Merge(
            value={**value, "gaps": gaps(ranked)},
            ledger=ledger_rows(ranked, ([verdict.decision for verdict in each] for each in whole.values())),
            fields=tuple(
                verdict.decision.row(pointer(*places[item], "value", *verdict.decision.path))
                for item, verdicts in whole.items()
                for verdict in verdicts
            ),
            rules=rules_of(
                self.method,
                {rule.field: rule.rule for rule in self.rules},
                {weight.brief: weight.weight for weight in self.weights},
                min_votes=self.min_votes,
            ),
            flags=flags_of(whole, places),
            tables=tables_of(polls),
            shortfalls=shortfalls_of(places, self.open_entries, self.min_votes),
        )

    def restated(self, merge: Merge) -> list[Outcome]:
        """Return the answers of a merged value as outcomes, each as often as a decided one must have been given."""
        value: Any = merge.value
        said = [(entry, vote) for entry in value[self.entries] for vote in range(self.min_votes)]
        said += [(entry, 0) for entry in value[self.open_entries]]
        votes = [
            Outcome(brief=f"vote-{vote + 1}", item=entry["item"], status="succeeded", value=entry["value"])
            for entry, vote in said
        ]
        return [*votes, *restated_gaps(value)]

    def broken(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:
        """Yield where the votes, counted anew, give something else, or what no brief asks for; and gaps not told."""
        yield from untold(merge, outcomes)
        yield from recount(merge, outcomes, decided=self.entries, undecided=self.open_entries, min_votes=self.min_votes)
        yield from misfits(merge, outcomes, briefs)

    def preflight(self, briefs: Sequence[Brief]) -> None:
        """Check that the briefs can vote, and that every field and brief named is known to them.

        Raises:
            JobError: If not, or if crowd-kit is needed and isn't installed.
        """
        if len(briefs) < max(2, self.min_votes):
            raise JobError(
                f"A consensus of {max(2, self.min_votes)} answers or more needs as many briefs, and there "
                f"{'is' if len(briefs) == 1 else 'are'} {len(briefs)}: give a brief 'samples', add briefs (with a "
                "'model' each, say), or take the integrator 'collate'."
            )
        if self.rules:
            require_fields(briefs, records="", identity=(), named=[rule.field for rule in self.rules])
        if len({brief.output == "text" for brief in briefs}) > 1:
            text = next(brief.name for brief in briefs if brief.output == "text")
            raise JobError(
                f"Brief {text!r} answers with text and others by a schema, so there is nothing to agree on; "
                "give all briefs the same 'output'."
            )
        names = sorted({origin(brief) for brief in briefs})
        for weight in self.weights:
            if weight.brief not in names:
                raise JobError(f"There is no brief {weight.brief!r} to give a weight; {nearest(weight.brief, names)}")
        if "dawid_skene" in self._named or ("weighted" in self._named and not self.weights):
            require_crowd_kit("A consensus by 'dawid_skene', or by 'weighted' without 'weights',")

    @property
    def _named(self) -> set[str]:
        return {self.method, *(rule.rule for rule in self.rules)}

    def _polls(self, briefs: Sequence[Brief]) -> Polls:
        weights = {weight.brief: weight.weight for weight in self.weights}
        named = {brief.name: weights[origin(brief)] for brief in briefs if origin(brief) in weights}
        rules: dict[Path, RuleName] = {tuple(rule.field.split(".")): rule.rule for rule in self.rules}
        return Polls(self.method, rules, {**weights, **named})


def _places(integrator: Consensus, answers: Mapping[str, Sequence[object]]) -> dict[str, tuple[str, int]]:
    """Return where each item's answer stands in the merged value: the list, and the place in it."""
    found: dict[str, tuple[str, int]] = {}
    counts = {integrator.entries: 0, integrator.open_entries: 0}
    for item, claims in answers.items():
        name = integrator.entries if len(claims) >= integrator.min_votes else integrator.open_entries
        found[item] = (name, counts[name])
        counts[name] += 1
    return found
