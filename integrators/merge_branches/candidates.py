"""Choice between candidates: several accepted answers to one brief for one item, of which one is merged.

The samples of a brief are its candidates. One that fails its acceptance command has no answer, so that acceptance
decides first. Of the others, a metric or a judge decides, and of those that are equal the first by number counts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prefect_dispatch.executors.base import original_name
from prefect_dispatch.integrators.base import Question
from prefect_dispatch.integrators.merge_branches.apply import PATCH_NAME, RepositoryBase, merged_patch
from prefect_dispatch.integrators.merge_branches.queries import MAX_KEY_CHARS
from prefect_dispatch.integrators.tournament.matches import Contest, Match, Variant, play_matches
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item, unescape_template
from prefect_dispatch.models.ledger import Document, LedgerRow, Ref, Table
from prefect_dispatch.models.test_run import TestRun
from prefect_dispatch.security.escaping import shorten, strip_control_chars
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.serialization.json_text import digest
from prefect_dispatch.workspaces.patches import create_commit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.merge_branches.publish_branch import CommitMessages
    from prefect_dispatch.models.brief import Command
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.workspaces.git import Git

CANDIDATES = "candidates"
"""Name of the table of candidates."""
METRIC = "metric"
"""Name of the brief that runs the metric."""
Direction = Literal["max", "min"]
"""Whether more or less is better."""
MAX_JUDGED_CHARS = 100_000
"""Most characters of a patch that a judge is shown."""
_MAX_NOTE_CHARS = 300
"""Most characters of what is reported about a score."""


class Score(NamedTuple):
    """Score of a candidate."""

    value: float | None
    """The score, more is better or less, as the metric says; None if there is none."""
    note: str
    """The score in words, or why there is none."""


Scorer = Callable[["Sequence[Group]"], Mapping[Ref, Score]]
"""Function that returns the scores of the candidates to choose from, for all groups."""


class Group(NamedTuple):
    """Candidates for one item: the samples of a brief."""

    brief: Brief
    """The brief of the first candidate."""
    candidates: tuple[Outcome, ...]
    """The outcomes of all, sorted by number."""

    @property
    def name(self) -> str:
        """The name of the brief and the key of the item."""
        return f"{original_name(self.brief)}/{self.candidates[0].item}"

    @property
    def eligible(self) -> list[Outcome]:
        """The candidates to choose from: those with an answer; without a change only if none has one."""
        answered = [each for each in self.candidates if each.status == "succeeded"]
        return [each for each in answered if each.change and each.change.files] or answered

    @property
    def distinct(self) -> list[Outcome]:
        """The first of each of the different changes to choose from."""
        return [*{_tree_of(each): each for each in reversed(self.eligible)}.values()][::-1]


class Choice(NamedTuple):
    """The candidate that is merged, of a group with any answer."""

    group: Group
    """The candidates."""
    winner: Outcome
    """The candidate that is merged."""
    scores: Mapping[Ref, Score]
    """The scores of those that were compared; empty if there was nothing to compare."""
    rule: str
    """What decided, for the ledger."""

    @property
    def rows(self) -> Iterator[LedgerRow]:
        """The ledger rows of the candidates with an answer that aren't merged."""
        by = Ref.of(self.winner)
        for each in self.group.candidates:
            ref = Ref.of(each)
            if each.status == "succeeded" and ref != by:
                is_equal = _tree_of(each) == _tree_of(self.winner)
                yield LedgerRow(
                    **ref.model_dump(),
                    disposition="duplicate_of" if is_equal else "overridden",
                    by=by,
                    reason="the same change" if is_equal else self._explain_loser(each),
                )

    @property
    def reason(self) -> str:
        """Why the winner counts."""
        others = [each for each in self.group.candidates if each is not self.winner]
        listed = ", ".join(f"{Ref.of(each)}: {self._describe(each)}" for each in others)
        return f"{self.rule}: {self._describe(self.winner)}; of {len(others) + 1} candidates ({listed})"

    def _explain_loser(self, outcome: Outcome) -> str:
        winner = f"{Ref.of(self.winner)}: {self._describe(self.winner)}"
        return f"{self.rule}: {self._describe(outcome)}; it lost against {winner}"

    def _describe(self, outcome: Outcome) -> str:
        """Return what is known about a candidate, in words."""
        if outcome.status != "succeeded":
            return f"{outcome.status}{f' ({outcome.error.kind})' if outcome.error else ''}"
        if score := self.scores.get(Ref.of(outcome)):
            return score.note
        return "accepted" if outcome.change and outcome.change.files else "changed nothing"


@dataclass(frozen=True)
class Selection:
    """Outcomes of a job, with one candidate chosen of each group."""

    kept: tuple[Outcome, ...]
    """The outcomes that are merged: without the other candidates of a group that has an answer."""
    choices: tuple[Choice, ...]
    """The choices, by group."""

    @property
    def reasons(self) -> dict[Ref, str]:
        """Why each winner counts."""
        return {Ref.of(each.winner): each.reason for each in self.choices}

    @property
    def rows(self) -> dict[Ref, LedgerRow]:
        """The ledger rows of the candidates with an answer that aren't merged."""
        return {Ref.of(row): row for each in self.choices for row in each.rows}

    @property
    def shortfalls(self) -> Iterator[str]:
        """A sentence for each choice that should have been decided by scores, and had none."""
        for each in self.choices:
            if each.scores and all(score.value is None for score in each.scores.values()):
                yield f"No candidate of {each.group.name} has a score, so the first one counts: {each.reason}."


def alternatives_of(briefs: Iterable[Brief]) -> dict[str, str]:
    """Return the names of the briefs that are candidates, each with the name of the brief that they are samples of."""
    return {brief.name: original_name(brief) for brief in briefs if brief.sample}


def select_candidates(
    briefs: Sequence[Brief], outcomes: Sequence[Outcome], score: Scorer | None, rule: str, direction: Direction
) -> Selection:
    """Choose one of the candidates of each group.

    Args:
        briefs: The briefs of the job.
        outcomes: The outcomes.
        score: Scores candidates. None: the first one with an answer counts.
        rule: What decides, for the ledger.
        direction: Whether a higher or a lower score is better.
    """
    # 1. Only where different changes are left is there something to decide.
    groups = [each for each in group_candidates(briefs, outcomes) if each.eligible]
    contested = [each for each in groups if len(each.distinct) > 1]
    scores: Mapping[Ref, Score] = score(contested) if score and contested else {}
    # 2. The best score counts; of equal ones, and without any, the first by number.
    sign = -1 if direction == "max" else 1
    choices: list[Choice] = []
    for group in groups:
        found = {Ref.of(each): scores[Ref.of(each)] for each in group.eligible if Ref.of(each) in scores}
        values = [
            (value, at) for at, each in enumerate(group.eligible) if (value := _value_of(found, each)) is not None
        ]
        best = min(values, key=lambda pair: (sign * pair[0], pair[1]))[1] if values else 0
        is_only = len([each for each in group.candidates if each.status == "succeeded"]) == 1
        why = "the only accepted candidate" if is_only else rule if found else "the first accepted candidate"
        choices.append(Choice(group, group.eligible[best], found, why))
    # 3. The others are left out of the merge, those without an answer, too.
    left_out = {Ref.of(each) for choice in choices for each in choice.group.candidates if each is not choice.winner}
    return Selection(tuple(each for each in outcomes if Ref.of(each) not in left_out), tuple(choices))


def group_candidates(briefs: Sequence[Brief], outcomes: Iterable[Outcome]) -> list[Group]:
    """Return the candidates of each brief and item, sorted."""
    by_name = {brief.name: brief for brief in briefs if brief.sample}
    found: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in sorted(outcomes, key=lambda each: Ref.of(each).order):
        if brief := by_name.get(outcome.brief):
            found[original_name(brief), outcome.item].append(outcome)
    return [Group(by_name[candidates[0].brief], tuple(candidates)) for candidates in found.values()]


def _value_of(scores: Mapping[Ref, Score], outcome: Outcome) -> float | None:
    score = scores.get(Ref.of(outcome))
    return score.value if score else None


def _tree_of(outcome: Outcome) -> str:
    return outcome.change.tree if outcome.change else ""


@dataclass(frozen=True)
class MetricScorer:
    """Scorer that runs a command on each candidate, one after another, so that no measurement disturbs another."""

    git: Git
    """The repository."""
    metric: Command
    """The command: its last line is the number; with a report, the number is that of the tests that passed."""
    at: Callable[[str], Executor]
    """Returns the executor in a workspace that starts from a commit."""
    ask: Asker
    """Runs the command."""

    def __call__(self, groups: Sequence[Group]) -> dict[Ref, Score]:
        """Return the scores."""
        return {
            Ref.of(each): self._measure(each, same)
            for group in groups
            for same in group.distinct
            for each in group.eligible
            if _tree_of(each) == _tree_of(same)
        }

    def _measure(self, outcome: Outcome, same: Outcome) -> Score:
        """Return the score of a candidate: the one of the first candidate with the same change."""
        change = same.change
        if change is None:
            return Score(None, "it has no change of a repository")
        create_commit(self.git, change, "A candidate")
        # The commit depends on base and tree alone, so that a stored result is found whichever candidate has them.
        commit = RepositoryBase.of(self.git, change.base).commit(change.tree, (change.base,), "A candidate")
        [measured] = self.ask([metric_query(self.metric, Ref.of(outcome), change.tree)], self.at(commit))
        return parse_score(measured, has_report=bool(self.metric.report))


def metric_query(metric: Command, ref: Ref | str, tree: str) -> Question:
    """Return the query that runs the metric on a candidate."""
    brief = Brief(
        name=METRIC,
        scope="A repository with the change of one candidate.",
        instructions="Run the metric on the candidate.",
        command=metric,
        output=TestRun if metric.report else "text",
    )
    return Question(brief=brief, item=Item(key=str(ref)[:MAX_KEY_CHARS], value={"tree": tree}))


def parse_score(outcome: Outcome, *, has_report: bool) -> Score:
    """Return the score that a run of the metric gives.

    Args:
        outcome: The outcome of the run.
        has_report: Whether it is the report of tests.
    """
    if outcome.status != "succeeded":
        error = outcome.error
        return Score(None, _one_line(f"no score ({error.kind}: {error.message})" if error else "no score"))
    if has_report:
        tests = TestRun.model_validate(outcome.value)
        if tests.problems:
            return Score(None, _one_line(f"no score ({tests.distrust_reason})"))
        passed = tests.counts["passed"]
        return Score(float(passed), f"{passed} of {len(tests.cases)} tests passed")
    line = (str(outcome.value).strip().splitlines() or [""])[-1].strip()
    try:
        number = float(line)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        return Score(None, _one_line(f"no score (its last line is no number: {shorten(line, 80)!r})"))
    return Score(number, f"{number:.12g}")


def _one_line(text: str) -> str:
    return shorten(redact(" ".join(strip_control_chars(text).split())), _MAX_NOTE_CHARS)


@dataclass(frozen=True)
class JudgeScorer:
    """Scorer that has a judge compare the candidates in pairs, each in both orders, as a tournament does."""

    criterion: str
    """What makes one better than another."""
    judge: Executor | None
    """The executor that judges."""
    ask: Asker
    """Runs the queries."""
    matches: list[tuple[Contest, Match]]
    """Receives the matches."""

    def __call__(self, groups: Sequence[Group]) -> dict[Ref, Score]:
        """Return the scores: the share of the matches that a candidate won, a tie being half a win."""
        contests = {group.name: _contest_of(group) for group in groups}
        goals: dict[str, JsonValue] = {
            group.name: {"goal": unescape_template(group.brief.instructions)} for group in groups
        }
        played = play_matches([*contests.values()], self.criterion, self.ask, judge=self.judge, inputs=goals)
        self.matches.extend((contests[match.contest], match) for match in played)
        return {
            ref: _score_of(variant.key, [match for match in played if match.contest == contest.name])
            for contest in contests.values()
            for variant in contest.variants
            for ref in variant.refs
        }


def _contest_of(group: Group) -> Contest:
    """Return the contest of a group: what candidates changed, and what agents said of that; equal changes are one."""
    variants: list[Variant] = []
    for outcome in group.distinct:
        tree = _tree_of(outcome)
        patch = outcome.change.bytes.decode("utf-8", "replace") if outcome.change else ""
        content: dict[str, JsonValue] = {
            "patch": shorten(redact(patch), MAX_JUDGED_CHARS),
            "said": outcome.value,
        }
        refs = tuple(Ref.of(each) for each in group.eligible if _tree_of(each) == tree)
        variants.append(Variant(f"v-{digest([group.name, tree])[:12]}", content, refs))
    return Contest(group.name, tuple(sorted(variants, key=lambda variant: variant.key)))


def _score_of(key: str, matches: Sequence[Match]) -> Score:
    own = [match for match in matches if match.is_complete and key in match.pair]
    if not own:
        failed = next((match.in_order.reason for match in matches if key in match.pair), "")
        return Score(None, _one_line(f"no score (no match was judged: {failed})"))
    points = sum(1.0 if match.winner == key else 0.5 if match.winner is None else 0.0 for match in own)
    return Score(points / len(own), f"{points:g} of {len(own)} matches won")


def candidates_table(git: Git, selection: Selection, describe: CommitMessages) -> tuple[Table, tuple[Document, ...]]:
    """Return the table of candidates, and a patch for each that isn't merged.

    Args:
        git: The repository; each candidate is written to it as a commit, which no branch references.
        selection: The choices.
        describe: Writes the messages of commits.
    """
    rows: list[dict[str, JsonValue]] = []
    patches: list[Document] = []
    for choice in selection.choices:
        for each in choice.group.candidates:
            score = choice.scores.get(Ref.of(each))
            commit = patch = ""
            if (change := each.change) and change.files and each.status == "succeeded":
                create_commit(git, change, "A candidate")
                repo = RepositoryBase.of(git, change.base)
                commit = repo.commit(change.tree, (change.base,), describe.message(Ref.of(each)))
                if each is not choice.winner:
                    patch = f"candidate-{len(patches) + 1}.patch"
                    document = merged_patch(repo, change.tree)
                    title = f"What {Ref.of(each)} changed, which is not merged"
                    patches.append(document.model_copy(update={"name": patch, "title": title}))
            end = "chosen" if each is choice.winner else "not chosen" if each.status == "succeeded" else each.status
            rows.append(
                {
                    "module": choice.group.name,
                    "candidate": str(Ref.of(each)),
                    "end": end,
                    "score": score.value if score else None,
                    "why": choice.reason if each is choice.winner else _why(choice, each),
                    "model": each.model,
                    "commit": commit,
                    "patch": PATCH_NAME if each is choice.winner else patch,
                }
            )
    return Table(name=CANDIDATES, title="Candidates", rows=tuple(rows), note=_NOTE), tuple(patches)


def _why(choice: Choice, outcome: Outcome) -> str:
    """Return why a candidate isn't merged: the reason in the ledger, or its error."""
    row = next((row for row in choice.rows if Ref.of(row) == Ref.of(outcome)), None)
    if row:
        return row.reason
    return _one_line(f"{outcome.error.kind}: {outcome.error.message}") if outcome.error else outcome.status


_NOTE = (
    "The candidates of each brief and item. One that failed its acceptance command has no answer; of the others, the "
    "best score is merged, and of equal ones the first. `commit` has the change in the repository's object store, "
    "where no branch references it (`git show`); `patch` is a file beside the report."
)


@dataclass(frozen=True)
class ReplayedQueries:
    """Asker that answers queries from recorded outcomes, and sends nothing."""

    recorded: Sequence[Outcome]
    """The outcomes."""

    @property
    def executor(self) -> Any:  # noqa: ANN401 -- nothing is asked
        """No executor."""
        return None

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:  # noqa: ARG002 -- the signature of every asker
        """Return the recorded outcomes of queries.

        Raises:
            LookupError: If there is none for one of them.
        """
        by_name = {(each.brief, each.item): each for each in self.recorded}
        return [by_name[each.brief.name, each.item.key] for each in questions]
