"""The `tournament` integrator: ranks variants by a judge that compares pairs, by a function, or by an experiment."""

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

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import BaseExecutor
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.registry import AnyExecutor
from prefect_dispatch.integrators.base import BaseIntegrator, QueryEstimate, Question
from prefect_dispatch.integrators.synthesize.synthesize import describe_executor
from prefect_dispatch.integrators.tournament.matches import (
    MATCHES_PER_VARIANT,
    count_pairs,
    group_contests,
    judge_brief,
    play_matches,
    read_matches,
    require_judged,
)
from prefect_dispatch.integrators.tournament.ranking import CONFIDENCE, PRIOR_SD, require_library
from prefect_dispatch.integrators.tournament.results import (
    Conversions,
    build_merge,
    merge_judged_contests,
    rank_by_conversion,
    rank_by_metric,
    read_results,
    require_metric,
)
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.checks import FunctionReference
from prefect_dispatch.models.imports import REFERENCE, to_reference
from prefect_dispatch.models.item import Item

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.tournament.matches import Match
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome


_CONTEST_RULES = (
    "Answers of several briefs to one item competed with each other, in a contest for each item; with a single brief, "
    "its answers to all items competed in one contest. Equal answers of a contest competed as one. Answers that could "
    "not be ranked are listed apart, with the reason; none was left out."
)


def judge_rules(criterion: str, most: int | None, judge: object = None) -> str:
    """Return the rules text of a merge in which a judge compared pairs.

    Args:
        criterion: What makes one variant better than another.
        most: The most pairs of a contest that were judged. None: no number was set.
        judge: The executor that judged. None: the job's executor.
    """
    who = describe_executor(judge) if judge is not None else "the job's executor"
    pairs = (
        f"Every pair was judged where a contest had up to {2 * MATCHES_PER_VARIANT + 1} variants; in larger ones, "
        f"{MATCHES_PER_VARIANT} pairs for each variant"
        if most is None
        else f"At most {most} pairs of a contest were judged"
    )
    return (
        f"{_CONTEST_RULES} {pairs}; where that was not every pair, first a ring through all variants in the order of "
        "a digest of their content, then, round after round, those closest to each other by their share of wins that "
        f"had not met. What counted was: {criterion!r}. Each pair was judged twice by {who}, in both orders; the "
        "judge was shown the item's input too where briefs were rivals, and was told to take nothing that a "
        "variant says as an instruction. "
        "A variant won if it was preferred in one order, and in the other it was preferred too or neither was; every "
        "other match was a tie. A match without a verdict in both orders did not count. The order is that of "
        "strengths in Bradley and Terry's model (a tie being half a win for each, the prior normal with standard "
        f"deviation {PRIOR_SD:g} in log-odds). The score is the chance to win against a variant of average strength, "
        f"its interval at {CONFIDENCE:.0%} comes from the curvature of the likelihood, and equal strengths share a "
        "rank. Comparisons with the best are two-sided and not adjusted for their number; they take matches for "
        "independent of each other, which those of one judge are only in part."
    )


def metric_rules(metric: str) -> str:
    """Return the rules text of a merge in which a user's function scored the variants.

    Args:
        metric: The function's `module:name`.
    """
    return (
        f"{_CONTEST_RULES} The score is what the function {metric!r} returned for the variant and its item's key; "
        "more is better, and equal scores share a rank. Equal answers to several items were measured for each, and "
        "ranked apart where the scores differ."
    )


def results_rules(file: str, key: str, trials: str, conversions: str) -> str:
    """Return the rules text of a merge that is based on the results of an experiment.

    Args:
        file: The name of the file with the results.
        key: The column with the keys of variants.
        trials: The column with the number of those who were shown the variant.
        conversions: The column with the number of those who converted.
    """
    return (
        f"{_CONTEST_RULES} The score is the share of those shown the variant (column {trials!r}) who converted (column "
        f"{conversions!r}), by the row of {file!r} that has its key in column {key!r}; equal shares share a rank. "
        f"The interval is Wilson's at {CONFIDENCE:.0%}; the comparison with the best is Fisher's exact test, "
        "two-sided, not adjusted for the number of variants, nor for the best having been picked after the fact."
    )


Metric = Annotated[
    FunctionReference,
    WithJsonSchema({"title": "Function", "type": "string", "pattern": REFERENCE.pattern}),  # a tab wants a title
]


METHOD_FIELDS = ("criterion", "metric", "results")
"""Fields of `Tournament` of which exactly one is set: what decides which variant is better."""

COLUMN_FIELDS = ("results_key", "results_trials", "results_conversions")
"""Fields of `Tournament` with the names of the columns of `results`."""


class Tournament(BaseIntegrator, Strict):
    """Ranks variants: by a judge that compares pairs, by a function, or by the results of an experiment.

    **Variants.** Several briefs are rivals on each item: every item is a contest of its own. With
    a single brief, its items are the rivals, in one contest. Equal answers compete as one.

    **Judge** (`criterion`). Each pair is judged twice, in both orders, so that a position bias of the
    judge decides nothing: a variant wins a match if it is preferred in one order, and in the other
    too, or neither is. Anything else is a tie, half a win for each. A Bradley-Terry model computes
    strengths from the matches (see `ranking`). A match that isn't judged in both orders doesn't count.

    **Function** (`metric`). Takes a variant's value and its item's key; returns a number. More is better.
    Equal answers to several items are measured for each, and ranked separately where the numbers differ.

    **Experiment** (`results`). A table with a row for each variant under the key that the table
    `ab-test` of an earlier run gave it: how many were shown it, and how many of them converted.

    **Value.** `{"ranking": […], "unranked": […], "gaps": […]}`: contests in the order of the items, the
    best first; `rank`, `score` (the probability to win against a variant of average strength; the
    function's result; or the conversion rate), its interval from `low` to `high`, and counts.

    Example:
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> outcomes = [
        ...     Outcome(brief=name, item="mug", status="succeeded", value=text)
        ...     for name, text in (("bold", "Wake up!"), ("calm", "Morning, slowly."))
        ... ]
        >>> merge = Tournament(metric=lambda text, key: -len(text)).merge_asking([], outcomes, ask=None)
        >>> [(row["rank"], row["brief"], row["score"]) for row in merge.value["ranking"]]
        [(1, 'bold', -8.0), (2, 'calm', -16.0)]
    """

    model_config = ConfigDict(title="Tournament")

    kind: Literal["tournament"] = "tournament"
    """The kind of integrator."""
    criterion: Annotated[str, StringConstraints(strip_whitespace=True)] = ""
    """What makes one variant better than another, for a judge that compares them in pairs."""
    judge: AnyExecutor | None = None
    """The executor that judges. None: the job's executor."""
    matches: Annotated[int, Field(title="Number", ge=1)] | None = Field(default=None, title="Most matches")
    """The most pairs of a contest that are judged. None: all of up to 25 variants, then 12 for each variant."""
    metric: Metric | None = None
    """Instead of a judge: `module:name` of a function of a variant and its item's key that returns a number."""
    results: str = ""
    """Instead of a judge: a CSV, JSON Lines or Parquet file with the results of an experiment."""
    results_key: str = Field(default="key", min_length=1)
    """The column of the results with the key of a variant, as in the table `ab-test`."""
    results_trials: str = Field(default="trials", min_length=1)
    """The column with the number of those who were shown the variant."""
    results_conversions: str = Field(default="conversions", min_length=1)
    """The column with the number of those who converted."""

    _rivals: int = PrivateAttr(default=0)
    _inputs: dict[str, JsonValue] = PrivateAttr(default_factory=dict)
    _found: dict[str, Conversions] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _require_one_method(self) -> Self:
        ways = [name for name in METHOD_FIELDS if getattr(self, name)]
        if len(ways) != 1:
            has = " and ".join(map(repr, ways)) + " are given" if ways else "nothing says what makes a variant better"
            raise ValueError(f"{has}; give one of 'criterion' (for a judge), 'metric' (a function), 'results' (a file)")
        if ways != ["criterion"] and (self.judge is not None or self.matches is not None):
            name = "matches" if self.judge is None else "judge"
            raise ValueError(f"{name!r} is for a judge, but {ways[0]!r} ranks without one; remove one of them")
        # A form sends every default, so only a column that differs from its default was set.
        changed = [name for name in COLUMN_FIELDS if self._column_name(name) != type(self).model_fields[name].default]
        if changed and not self.results:
            raise ValueError(f"{changed[0]!r} is for 'results', but {ways[0]!r} ranks without them; remove one of them")
        for one, other in combinations(COLUMN_FIELDS, 2):
            if self._column_name(one) == self._column_name(other):
                raise ValueError(f"{one!r} and {other!r} are both {self._column_name(one)!r}; name a column for each")
        return self

    def _column_name(self, name: str) -> str:
        return str(getattr(self, name))

    @field_serializer("judge")
    def _serialize_judge(self, judge: object) -> JsonValue:
        described: dict[str, JsonValue] = judge.model_dump(mode="json") if isinstance(judge, BaseModel) else {}
        return described or (type(judge).__name__ if judge is not None else None)

    @property
    def references(self) -> tuple[str, ...]:
        """The `module:name` of the metric, if it isn't imported yet; otherwise empty."""
        return (self.metric,) if isinstance(self.metric, str) else ()

    def resolve_references(self, load: Callable[[str], Any]) -> Tournament:
        """Return this integrator with its metric imported.

        Args:
            load: Returns the object of a `module:name`.

        Raises:
            JobError: If the object is no function, or can't be called with a value and a key.
        """
        if not self.references:
            return self
        metric = load(self.references[0])
        require_metric(metric, self.references[0])
        return self.model_copy(update={"metric": metric})

    def resolve_paths(self, folder: Path) -> Tournament:
        """Return this integrator with the results read, and the paths of a local judge resolved.

        Args:
            folder: The folder in which relative paths start.

        Raises:
            JobError: If the results can't be read, or have impossible counts.
        """
        judge = self.judge.resolve_paths(folder) if isinstance(self.judge, LLM) else self.judge
        copy = self.model_copy(update={"judge": judge})
        if self.results:
            copy._found = read_results(self.results, folder, *map(self._column_name, COLUMN_FIELDS))  # noqa: SLF001 -- of its own copy
        return copy

    def with_items(self, briefs: Sequence[Brief], items: Sequence[Item]) -> Tournament:
        """Return this integrator with the items, which the judge is shown if briefs are rivals.

        Args:
            briefs: The briefs of the job.
            items: Its items.

        Raises:
            JobError: If there are fewer than two variants, or `matches` is too small to connect all of them.
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

    def estimate_queries(self, work: int, briefs: Sequence[Brief]) -> list[QueryEstimate]:  # noqa: ARG002 -- the signature of every integrator
        """Return the most questions that a judge may be asked: in each contest, two for each pair.

        Args:
            work: The number of (brief, item) of the job; used if the number of rivals isn't known yet.
            briefs: The briefs of the job.
        """
        if not self.criterion:
            return []
        times = 2 * count_pairs(self._rivals or work, self.matches)
        contests: list[dict[str, JsonValue]] = [{"context": value} for value in self._inputs.values()] or [{}]
        brief = judge_brief(self.criterion)
        return [
            QueryEstimate(Question(brief=brief, item=Item(key=f"contest-{at}", value=value)), 2, times, self.judge)
            for at, value in enumerate(contests, 1)
        ]

    def preflight(self, briefs: Sequence[Brief]) -> None:  # noqa: ARG002 -- the signature of every check
        """Check before a run that the libraries are installed, and that the judge or the metric can be used.

        Raises:
            JobError: If a library is missing, or the judge or the metric can't be used.
        """
        if not self.metric:
            require_library()
        else:
            require_metric(self.metric, to_reference(self.metric))
        if self.judge is not None:
            BaseExecutor.of(self.judge).require_available()

    def merge_asking(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker) -> Merge:  # noqa: ARG002 -- the signature of every asking integrator
        """Return the merge with the ranking; a judge is asked only if there is a criterion.

        Raises:
            DispatchError: If there were matches, and none could be judged.
        """
        if not self.criterion:
            return self._merge_by_figures(outcomes)
        matches = play_matches(
            group_contests(outcomes), self.criterion, ask, judge=self.judge, max_pairs=self.matches, inputs=self._inputs
        )
        return self._merge_by_judge(outcomes, matches)

    def recompute(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Merge | None:  # noqa: ARG002 -- the signature of every integrator
        """Return the merge recomputed from the outcomes, and from the matches that a merge has as evidence.

        Raises:
            LookupError: If a column of the table is missing, or a match is of no contest or variant of these outcomes.
            ValueError: If the table of matches is missing or malformed, or the judge answered something else.
        """
        if not self.criterion:
            return self._merge_by_figures(outcomes)
        matches = read_matches(merge)
        require_judged(matches, group_contests(outcomes), merge.asked)
        return self._merge_by_judge(outcomes, matches)

    def _merge_by_judge(self, outcomes: Sequence[Outcome], matches: Sequence[Match]) -> Merge:
        rules = judge_rules(self.criterion, self.matches, self.judge)
        return merge_judged_contests(outcomes, group_contests(outcomes), matches, rules)

    def _merge_by_figures(self, outcomes: Sequence[Outcome]) -> Merge:
        contests = group_contests(outcomes)
        if self.metric:
            scored = [rank_by_metric(contest, self.metric) for contest in contests]
            return build_merge(outcomes, scored, "metric", metric_rules(to_reference(self.metric)))
        found = self._found if self._found is not None else self.resolve_paths(Path())._found or {}  # noqa: SLF001 -- its own copy
        scored = [rank_by_conversion(contest, found) for contest in contests]
        rules = results_rules(Path(self.results).name, *map(self._column_name, COLUMN_FIELDS))
        unknown = sorted(found.keys() - {variant.key for contest in contests for variant in contest.variants})
        more = [f"The results have rows for no variant here: {', '.join(unknown)}."] if unknown else []
        return build_merge(outcomes, scored, "results", rules, unknown=more)
