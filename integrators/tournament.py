"""Variants that were kept apart until now are compared: by a judge, by a function, or by what visitors did."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    StringConstraints,
    WithJsonSchema,
    field_serializer,
    model_validator,
)

from prefect_dispatch.checks import FunctionReference
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import Countable
from prefect_dispatch.executors.kinds import AnyExecutor
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.integrators.base import Asks, Question
from prefect_dispatch.integrators.contests import measures
from prefect_dispatch.integrators.contests.contest_rules import judged_rules, metric_rules, results_rules
from prefect_dispatch.integrators.contests.contests import contests
from prefect_dispatch.integrators.contests.judged import judged
from prefect_dispatch.integrators.contests.matches import judging, recorded
from prefect_dispatch.integrators.contests.ranking import require_library
from prefect_dispatch.integrators.contests.rounds import pairs, played
from prefect_dispatch.integrators.contests.standings import merged
from prefect_dispatch.integrators.tournament_equals import with_equals
from prefect_dispatch.models import Item
from prefect_dispatch.references import REFERENCE, refer
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.contests.matches import Match
    from prefect_dispatch.ledger import Merge
    from prefect_dispatch.models import Brief, Outcome

Metric = Annotated[
    FunctionReference,
    WithJsonSchema({"title": "Function", "type": "string", "pattern": REFERENCE.pattern}),  # a tab wants a title
]

WAYS = ("criterion", "metric", "results")
COLUMNS = ("results_key", "results_trials", "results_conversions")


class Tournament(Strict):
    """Ranks variants: by a judge who compares pairs, by a function, or by the results of an experiment.

    **Who competes.** Several briefs are rivals on each item: every item is a contest of its own. With
    a single brief, its items are the rivals, in one contest. Equal answers compete as one.

    **Judge** (`criterion`). Each pair is judged twice, in both orders, so that a judge who favours a
    place decides nothing: a variant wins a match if it is preferred in one order, and in the other
    too, or neither is. Anything else is a tie, half a win for each. Bradley and Terry's model makes
    strengths of the matches (see `ranking`). A match that isn't judged in both orders doesn't count.

    **Function** (`metric`). Takes a variant's value and its item's key; returns a number. More is better.
    Equal answers to several items are measured for each, and rank apart where the numbers differ.

    **Experiment** (`results`). A table with a row for each variant under the key that the table
    `ab-test` of an earlier run gave it: how many were shown it, and how many of them converted.

    **Value.** `{"ranking": […], "unranked": […], "gaps": […]}`: contests in the order of the items, the
    best first; `rank`, `score` (the chance to win against a variant of average strength; what the
    function returned; the rate of conversion), its interval from `low` to `high`, and counts.

    Example:
        >>> from prefect_dispatch.models import Outcome
        >>> said = [
        ...     Outcome(brief=name, item="mug", status="succeeded", value=text)
        ...     for name, text in (("bold", "Wake up!"), ("calm", "Morning, slowly."))
        ... ]
        >>> merge = Tournament(metric=lambda text, key: -len(text)).merge_asking([], said, ask=None)
        >>> [(row["rank"], row["brief"], row["score"]) for row in merge.value["ranking"]]
        [(1, 'bold', -8.0), (2, 'calm', -16.0)]
    """

    model_config = ConfigDict(title="Tournament")

    kind: Literal["tournament"] = "tournament"
    """Tells the integrators apart."""
    criterion: Annotated[str, StringConstraints(strip_whitespace=True)] = ""
    """What makes one variant better than another, for a judge who compares them in pairs."""
    judge: AnyExecutor | None = None
    """Who judges. None: the job's executor."""
    matches: Annotated[int, Field(title="Number", ge=1)] | None = Field(default=None, title="Most matches")
    """How many pairs of a contest are judged at most. None: all of up to 25 variants, then 12 for each variant."""
    metric: Metric | None = None
    """Instead of a judge: `module:name` of a function of a variant and its item's key that returns a number."""
    results: str = ""
    """Instead of a judge: a CSV, JSON Lines or Parquet file with the results of an experiment."""
    results_key: str = Field(default="key", min_length=1)
    """The column of the results with the key of a variant, as the table `ab-test` has it."""
    results_trials: str = Field(default="trials", min_length=1)
    """The column with how many were shown the variant."""
    results_conversions: str = Field(default="conversions", min_length=1)
    """The column with how many of them did what was hoped for."""

    _rivals: int = PrivateAttr(default=0)
    _inputs: dict[str, JsonValue] = PrivateAttr(default_factory=dict)
    _found: dict[str, measures.Conversions] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [name for name in WAYS if getattr(self, name)]
        if len(ways) != 1:
            has = " and ".join(map(repr, ways)) + " are given" if ways else "nothing says what makes a variant better"
            raise ValueError(f"{has}; give one of 'criterion' (for a judge), 'metric' (a function), 'results' (a file)")
        if ways != ["criterion"] and (self.judge is not None or self.matches is not None):
            name = "matches" if self.judge is None else "judge"
            raise ValueError(f"{name!r} is for a judge, but {ways[0]!r} ranks without one; remove one of them")
        # A form fills in every default, which says nothing.
        named = [name for name in COLUMNS if self._column(name) != type(self).model_fields[name].default]
        if named and not self.results:
            raise ValueError(f"{named[0]!r} is for 'results', but {ways[0]!r} ranks without them; remove one of them")
        for one, other in combinations(COLUMNS, 2):
            if self._column(one) == self._column(other):
                raise ValueError(f"{one!r} and {other!r} are both {self._column(one)!r}; name a column for each")
        return self

    def _column(self, name: str) -> str:
        return str(getattr(self, name))

    @field_serializer("judge")
    def _named(self, judge: object) -> JsonValue:
        described: dict[str, JsonValue] = judge.model_dump(mode="json") if isinstance(judge, BaseModel) else {}
        return described or (type(judge).__name__ if judge is not None else None)

    @property
    def references(self) -> tuple[str, ...]:
        """The `module:name` that stands for a function of the user's and isn't loaded yet, if there is one."""
        return (self.metric,) if isinstance(self.metric, str) else ()

    def resolved(self, load: Callable[[str], Any]) -> Tournament:
        """Return this integrator with the metric's `module:name` replaced by what `load` returns for it.

        Raises:
            JobError: If that is no function, or can't be called with a value and a key.
        """
        if not self.references:
            return self
        found = load(self.references[0])
        measures.require_metric(found, self.references[0])
        return self.model_copy(update={"metric": found})

    def placed(self, folder: Path) -> Tournament:
        """Return this integrator with the results read, and a local judge looked up, from a folder.

        Raises:
            JobError: If the results can't be read, or hold counts that can't be.
        """
        judge = self.judge.placed(folder) if isinstance(self.judge, LLM) else self.judge
        copy = self.model_copy(update={"judge": judge})
        if self.results:
            copy._found = measures.read_results(self.results, folder, *map(self._column, COLUMNS))  # noqa: SLF001 -- of its own copy
        return copy

    def seeing(self, briefs: Sequence[Brief], items: Sequence[Item]) -> Tournament:
        """Return this integrator with the items, which the judge gets to see where briefs are rivals.

        Raises:
            JobError: If there are fewer than two variants, or too few matches to compare all of them.
        """
        rivals = len(briefs) if len(briefs) > 1 else len(items)
        if rivals < 2:  # noqa: PLR2004 -- it takes two
            raise JobError("One brief and one item make one variant; a tournament needs several of either.")
        if self.matches is not None and self.matches < rivals - 1:
            raise JobError(
                f"'matches' is {self.matches}, which can't connect {rivals} variants; it takes {rivals - 1} at least."
            )
        copy = self.model_copy()
        inputs = {item.key: item.value for item in items} if len(briefs) > 1 else {}
        copy._rivals, copy._inputs = rivals, inputs  # noqa: SLF001 -- of its own copy
        return copy

    def asks(self, work: int) -> list[Asks]:
        """Return the most questions that a judge is put: in each contest, two on each pair."""
        if not self.criterion:
            return []
        times = 2 * pairs(self._rivals or work, self.matches)
        contests: list[dict[str, JsonValue]] = [{"context": value} for value in self._inputs.values()] or [{}]
        brief = judging(self.criterion)
        return [
            Asks(Question(brief=brief, item=Item(key=f"contest-{at}", value=value)), 2, times, self.judge)
            for at, value in enumerate(contests, 1)
        ]

    def preflight(self, briefs: Sequence[Brief]) -> None:  # noqa: ARG002 -- the signature of every check
        """Check that the libraries are there, and that it isn't plain beforehand that judge or metric won't do.

        Raises:
            JobError: If they aren't, or it is.
        """
        if not self.metric:
            require_library()
        else:
            measures.require_metric(self.metric, refer(self.metric))
        if isinstance(self.judge, Countable):
            self.judge.require_known()

    def merge_asking(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker) -> Merge:  # noqa: ARG002 -- the signature of every asking integrator
        """Return the ranking; nobody is asked unless there is a criterion.

        Raises:
            DispatchError: If there were matches, and none could be judged.
        """
        if not self.criterion:
            return self._measured(outcomes)
        matches = played(
            contests(outcomes), self.criterion, ask, judge=self.judge, most=self.matches, inputs=self._inputs
        )
        return self._judged(outcomes, matches)

    def recomputed(self, merge: Merge, outcomes: Sequence[Outcome]) -> Merge:
        """Return the merge that follows from the outcomes, and from the matches that a merge has as evidence.

        Raises:
            LookupError, ValueError: If that evidence isn't there, or isn't of these outcomes.
        """
        return self._judged(outcomes, recorded(merge)) if self.criterion else self._measured(outcomes)

    def _judged(self, outcomes: Sequence[Outcome], matches: Sequence[Match]) -> Merge:
        rivals, rules = contests(outcomes), judged_rules(self.criterion, self.matches, self.judge)
        return with_equals(judged(outcomes, rivals, matches, rules), rivals)

    def _measured(self, outcomes: Sequence[Outcome]) -> Merge:
        rivals = contests(outcomes)
        if self.metric:
            merge = merged(outcomes, [measures.measured(contest, self.metric) for contest in rivals], "metric")
            return with_equals(merge.model_copy(update={"rules": metric_rules(refer(self.metric))}), rivals)
        found = self._found if self._found is not None else self.placed(Path())._found or {}  # noqa: SLF001 -- its own copy
        merge = merged(outcomes, [measures.converted(contest, found) for contest in rivals], "results")
        strange = measures.strangers(rivals, found)
        more = [f"The results have rows for no variant here: {', '.join(strange)}."] if strange else []
        rules = results_rules(Path(self.results).name, *map(self._column, COLUMNS))
        return with_equals(merge.model_copy(update={"rules": rules, "shortfalls": (*merge.shortfalls, *more)}), rivals)
