"""Integrator `MergeBranches`: merges the changes that agents made to one repository independently."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BaseModel, JsonValue, StringConstraints, field_serializer, model_validator

from prefect_dispatch.errors import DispatchError, JobError
from prefect_dispatch.executors.base import BaseExecutor
from prefect_dispatch.executors.registry import AnyExecutor
from prefect_dispatch.executors.shell import Shell
from prefect_dispatch.integrators.base import BaseIntegrator, Delivery, QueryEstimate, Question
from prefect_dispatch.integrators.merge_branches.apply import (
    PATCH_NAME,
    AppliedChange,
    ConflictRule,
    RepositoryBase,
    apply_change,
    common_base,
    initial_state,
    merge_needed,
    merged_patch,
    order_changes,
    overlaps_table,
)
from prefect_dispatch.integrators.merge_branches.candidates import (
    Direction,
    JudgeScorer,
    MetricScorer,
    ReplayedQueries,
    Selection,
    alternatives_of,
    candidates_table,
    metric_query,
    select_candidates,
)
from prefect_dispatch.integrators.merge_branches.publish_branch import (
    CommitMessages,
    manual_steps,
    move_branch,
    require_branch,
    write_history,
)
from prefect_dispatch.integrators.merge_branches.pull_request import Publish, publish_branch, require_publishing
from prefect_dispatch.integrators.merge_branches.queries import (
    BASE_LABEL,
    AcceptanceRunner,
    AcceptanceTest,
    ConflictAgent,
    RecordedAcceptance,
    Verdict,
    acceptance_query,
    check_at_end,
    check_each_change,
    edits_files,
    executor_at_commit,
    require_base,
)
from prefect_dispatch.integrators.merge_branches.result import (
    ACCEPTANCE,
    CONFLICTS,
    REVIEW,
    MergeResult,
    acceptance_table,
    branches_table,
    conflict_rows,
    conflicts_table,
    failure_message,
    field_rows,
    file_entry,
    flags,
    ledger_rows,
    merged_value,
    review_document,
    shortfalls,
)
from prefect_dispatch.integrators.merge_branches.syntax import describe_syntax_merge
from prefect_dispatch.integrators.merge_branches.three_way import Entry, display_path, list_differences
from prefect_dispatch.integrators.tournament.matches import count_pairs, judge_brief, match_row, matches_table
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.brief import Command
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.ledger import Merge, Ref, Violation
from prefect_dispatch.workspaces.git import Git
from prefect_dispatch.workspaces.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Self

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.merge_branches.apply import Branch, MergeState, Needs, Resolution, Resolver
    from prefect_dispatch.integrators.merge_branches.candidates import Scorer
    from prefect_dispatch.integrators.merge_branches.three_way import MergedTree
    from prefect_dispatch.integrators.tournament.matches import Contest, Match
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.ledger import Document, Table
    from prefect_dispatch.models.outcome import Outcome


_ORDER = (
    "Changes of one base are merged one after another: by the priority of their briefs, then of their items, then in "
    "the order of every list. Of equal changes the first one counts. Files are compared path by path, and line by line "
    "where both sides changed one; a renamed file counts as one deleted and one added."
)
_CONFLICTS = {
    "priority": "Where changes contradict each other, the one that comes first counts: of a file with lines for each "
    "group of lines by itself, of any other for the whole file.",
    "skip": "A change that contradicts an earlier one is left out whole.",
    "fail": "A change that contradicts an earlier one is left out whole, and the run fails.",
    "agent": "Where changes contradict each other on lines, an agent brings them together; it may touch only the files "
    "concerned, and must leave no marker. If it can't, the later change is left out whole. Of any other file the one "
    "counts that comes first.",
}
_CHECKS = {
    "each": "The acceptance command is run on the base, and after each change: one after which what passed fails is "
    "left out.",
    "end": "The acceptance command is run on what is merged. If it fails, and passes on the base, the first change "
    "after which it fails is looked for by halves and left out, and so on; if it fails on the base, too, none is left "
    "out.",
}


def refused_outcomes(merge: Merge) -> list[Ref]:
    """Return the outcomes that are left out because the acceptance command fails with them, by the merge's evidence."""
    red = {str(row.get("after")) for row in _table_rows(merge, ACCEPTANCE) if row.get("said") == "red"}
    excluded = [Ref.of(row) for row in merge.ledger if row.disposition == "overridden" and row.by is None]
    return [ref for ref in excluded if str(ref) in red]


def _tree_id(git: Git, commit: str) -> str:
    """Return the id of a commit's tree, or nothing if there is no such commit."""
    code, output = git.run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{tree}}")
    return "" if code else output.decode().strip()


def _table_rows(merge: Merge, name: str) -> list[dict[str, Any]]:
    return [row for table in merge.tables if table.name == name for row in table.rows]


def _imprecision(where: str, message: str) -> Violation:
    return Violation(law="precision", where=where, message=message)


def _needs_of(briefs: Sequence[Brief]) -> dict[str, tuple[str, ...]]:
    """Return the briefs that each brief needs; empty if none needs any."""
    needs = {brief.name: brief.needs for brief in briefs}
    return needs if any(needs.values()) else {}


BranchName = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)]


class MergeBranches(BaseIntegrator, Strict):
    """Merges the changes that agents made to one repository independently, and tests the result.

    Changes are merged onto the commit that all of them are based on, one after another: by the priority of their
    briefs, then of their items, then sorted by brief and item. Nothing is checked out: checkout, branch and index of
    the user's repository stay as they are, byte for byte.

    **Conflicts** (`on_conflict`). `priority`: the change that comes first counts, in a file with lines for each group
    of lines separately. `skip`: a change that conflicts with an earlier one is left out. `fail`: as `skip`, and the run
    fails. `agent`: a coding agent combines both. A renamed file counts as one deleted and one added.

    **Acceptance** (`accept`). Changes that merge without a conflict may still break the whole. The command is run on
    the merge, and a change that breaks it is left out if the base passes (`check`).

    **Candidates.** The samples of a brief are candidates: one of them is merged, and the others are `overridden`. One
    that fails its acceptance command has no answer. Of the others the best counts, by a command that prints a number
    (`metric`) or by a judge (`criterion`); of equal ones, and without either, the first by number.

    **Value.** `{"base": …, "commit": …, "tree": …, "accepted": …, "files": […], "said": […], "gaps": […]}`: `files` are
    those that differ from the base, with the changes that they come from; `said` has each agent's answer.
    `merge_changes.patch` is the whole merge, and `review.md` shows a reviewer which change touched what, which changes
    overlap or conflict, and what was left out.

    Example:
        >>> MergeBranches(accept={"run": "pytest -q"}, branch="agents/merge_changes").on_conflict
        'priority'
    """

    kind: Literal["merge_branches"] = "merge_branches"
    """Discriminates between integrators."""
    workspace: Workspace | None = None
    """The repository, and the set-up of the acceptance command's workspace; the base is the one of the changes.
    None: the executor's workspace."""
    on_conflict: ConflictRule = "priority"
    """The rule where changes conflict."""
    accept: Command | None = None
    """A command that must pass on the merge."""
    check: Literal["each", "end"] = "end"
    """When the command is run: after each change, or at the end, with a binary search for the change that breaks it."""
    branch: BranchName = ""
    """The branch that the merge is published on. Empty: none; the merge is in `merge_changes.patch`."""
    force: bool = False
    """Whether the branch may be moved to a merge that lacks commits of it, such as those of an earlier run."""
    publish: Publish | None = None
    """What becomes of the branch outside of the repository: a push, and a pull request. None: nothing leaves it."""
    agent: AnyExecutor | None = None
    """The agent that combines conflicting changes. None: the job's executor."""
    metric: Command | None = None
    """A command that measures each candidate of a brief with `samples`, in a checkout of its own: its last line is a
    number; with a `report`, the number is that of the tests that pass."""
    direction: Direction = "max"
    """Whether the candidate with the highest number of the metric counts, or the one with the lowest."""
    criterion: Annotated[str, StringConstraints(strip_whitespace=True)] = ""
    """Instead of a metric: what makes one candidate better than another, for a judge that compares them in pairs."""
    judge: AnyExecutor | None = None
    """The executor that judges by the criterion."""
    pass_env: tuple[str, ...] = ()
    """Names of environment variables that are passed to the acceptance command."""

    @model_validator(mode="after")
    def _validate_combination(self) -> Self:
        if self.agent is not None and self.on_conflict != "agent":
            raise ValueError(f"'agent' is for on_conflict 'agent', and it is {self.on_conflict!r}; remove one of them")
        if self.force and not self.branch:
            raise ValueError("'force' is for a branch that is published on; name one under 'branch', or leave it out")
        if self.publish and self.publish.push and not self.branch:
            raise ValueError("'publish' is for a branch that is pushed; name one under 'branch', or leave it out")
        if self.accept and (self.accept.report or self.accept.stdin):
            key = "report" if self.accept.report else "stdin"
            raise ValueError(f"accept: it passes or fails by its exit code, and reads no item; leave out {key!r}")
        return self

    @model_validator(mode="after")
    def _validate_choice(self) -> Self:
        if self.metric and self.criterion:
            raise ValueError("'metric' and 'criterion' both choose between candidates; remove one of them")
        if self.metric and self.metric.stdin:
            raise ValueError("metric: it measures a checkout, and reads no item; leave out 'stdin'")
        if self.direction != "max" and not self.metric:
            raise ValueError("'direction' is for a 'metric'; name a command that prints a number, or leave it out")
        if self.criterion and self.judge is None:
            raise ValueError(
                "'criterion' is for a judge; name its executor under 'judge', such as {kind: llm, model: …}"
            )
        if self.judge is not None and not self.criterion:
            raise ValueError("'judge' is for a 'criterion': say what makes one candidate better, or leave it out")
        return self

    @field_serializer("agent", "judge", when_used="json")
    def _serialize_executor(self, executor: object) -> object:
        serializable = executor is None or isinstance(executor, BaseModel)
        return executor if serializable else type(executor).__name__

    def with_executor(self, executor: Executor, folder: Path) -> MergeBranches:
        """Return this integrator with the executor's workspace, unless it has its own.

        Raises:
            JobError: If its own repository lacks the commit that the executor's changes are based on, or the executor
                changes nothing.
        """
        if getattr(executor, "access", "") == "read":
            raise JobError(
                "integrator: it merges changes of files, and executor.access is 'read', so there are none; use another "
                "integrator, such as collate."
            )
        executor_workspace = getattr(executor, "workspace", None)
        if not isinstance(executor_workspace, Workspace):
            return self
        if self.workspace is None:
            return self.model_copy(update={"workspace": executor_workspace})
        require_base(Path(folder, self.workspace.repo), executor_workspace)
        return self

    def resolve_paths(self, folder: Path) -> MergeBranches:
        """Return this integrator with its repository found, relative paths starting from a folder.

        Raises:
            JobError: If there is no repository, the branch can't be published to, or the agent can't be used.
        """
        try:
            workspace = self._effective_workspace.resolve(folder)
        except JobError as error:  # name the integrator: the executor has a workspace, too
            raise JobError(f"integrator.{error}") from None
        if self.branch:
            require_branch(Git(Path(workspace.repo)), self.branch)
        if self.publish and self.publish.push:
            require_publishing(Path(workspace.repo), self.publish)
        agent, judge = (
            BaseExecutor.of(each).resolve_paths(folder) if each else None for each in (self.agent, self.judge)
        )
        return self.model_copy(update={"workspace": workspace, "agent": agent, "judge": judge})

    def alternatives(self, briefs: Sequence[Brief]) -> dict[str, str]:
        """Return the briefs that are candidates, each with the name of the brief that they are samples of."""
        return alternatives_of(briefs)

    def preflight(self, briefs: Sequence[Brief]) -> None:
        """Check that commands can be run, and that the agent edits files, as far as that can be known before a run.

        Raises:
            JobError: If not, or if there is a rule for candidates, and no brief has any.
        """
        chooser = "metric" if self.metric else "criterion" if self.criterion else ""
        if chooser and not self.alternatives(briefs):
            raise JobError(
                f"integrator.{chooser} chooses between candidates, and there are none: give a brief 'samples' (of a "
                f"module: 'candidates'), or leave {chooser!r} out."
            )
        if self.metric:
            self._acceptance_executor(self._effective_workspace.base).require_supported(
                [metric_query(self.metric, BASE_LABEL, "").brief]
            )
        if self.judge is not None:
            BaseExecutor.of(self.judge).require_supported([judge_brief(self.criterion)])
        if self.accept:
            self._acceptance_executor(self._effective_workspace.base).require_supported(
                [acceptance_query(self.accept, BASE_LABEL, "").brief]
            )
        if self.agent is not None and not edits_files(self.agent):
            raise JobError(
                f"integrator.agent: {type(self.agent).__name__} doesn't edit files as instructed; name a coding "
                "agent, or leave it out where the job's executor is one."
            )

    def estimate_queries(self, work: int, briefs: Sequence[Brief]) -> list[QueryEstimate]:
        """Return the queries: of the acceptance command at least as many as sure, to choose candidates at most."""
        alternatives = self.alternatives(briefs)
        groups = Counter(alternatives.values())
        items = work // max(1, len(briefs))
        shell = self._acceptance_executor(self._effective_workspace.base)
        queries: list[QueryEstimate] = []
        if self.metric:
            times = items * sum(groups.values())
            queries.append(QueryEstimate(metric_query(self.metric, BASE_LABEL, ""), 0, times, shell))
        if self.criterion:
            times = items * sum(2 * count_pairs(size, None) for size in groups.values())
            query = Question(brief=judge_brief(self.criterion), item=Item(key="candidates", value={}))
            queries.append(QueryEstimate(query, 2, times, self.judge))
        if self.accept:
            merged = work - items * (sum(groups.values()) - len(groups))
            times = merged + 1 if self.check == "each" else 1
            queries.append(QueryEstimate(acceptance_query(self.accept, BASE_LABEL, ""), 0, times, shell))
        return queries

    def merge_asking(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker) -> Merge:
        """Return the merge; queries are sent only for an acceptance command, or for conflicts that an agent resolves.

        Raises:
            DispatchError: If the outcomes have no change, or changes of different bases.
        """
        selection, matches = self._select(briefs, outcomes, ask)
        repo = RepositoryBase.of(self._git, common_base(selection.kept, _needs_of(briefs)))
        agent = self.agent or ask.executor
        agent_at = partial(executor_at_commit, agent, repo.git.repo) if edits_files(agent) else None
        acceptance = AcceptanceRunner(repo, self.accept, self._acceptance_executor, ask)
        resolve = ConflictAgent(repo, briefs, agent_at, ask)
        merge = self._merge_changes(repo, briefs, outcomes, selection, acceptance, resolve)
        return merge.model_copy(update={"tables": (*merge.tables, *matches)})

    def _select(
        self, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker | None
    ) -> tuple[Selection, tuple[Table, ...]]:
        """Choose one candidate of each group; return the choices, and the table of a judge's matches, if any.

        Args:
            briefs: The briefs of the job.
            outcomes: The outcomes.
            ask: Runs the metric, and the queries of the judge.
        """
        played: list[tuple[Contest, Match]] = []
        score: Scorer | None = None
        if ask and self.metric:
            score = MetricScorer(self._git, self.metric, self._acceptance_executor, ask)
        elif ask and self.criterion:
            score = JudgeScorer(self.criterion, self.judge, ask, played)
        rule = f"metric ({self.direction})" if self.metric else "judge"
        selection = select_candidates(briefs, outcomes, score, rule, self.direction)
        rows = [match_row(contest, match) for contest, match in played]
        return selection, (matches_table(rows),) if rows else ()

    def _merge_changes(
        self,
        repo: RepositoryBase,
        briefs: Sequence[Brief],
        outcomes: Sequence[Outcome],
        selection: Selection,
        acceptance: AcceptanceTest,
        resolve: Resolver,
    ) -> Merge:
        """Return the merge.

        Args:
            repo: The repository and the base.
            briefs: The briefs of the job.
            outcomes: The outcomes.
            selection: The candidates that are merged, of those with alternatives.
            acceptance: Says whether the acceptance command passes.
            resolve: Resolves conflicts by an agent.
        """
        ordered = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
        # 1. Order the changes, apply them one by one with acceptance runs, and write the commits to publish.
        changes = order_changes(repo.git, selection.kept, _needs_of(briefs))
        apply_one = partial(apply_change, repo, rule=self.on_conflict, resolve=resolve)
        apply_all = check_each_change if self.check == "each" else check_at_end
        steps = apply_all(repo, changes.branches, apply_one, acceptance)
        describe = CommitMessages(ordered, briefs)
        history = write_history(repo, changes.branches, steps, describe)
        result = MergeResult(repo, ordered, changes, steps, [*acceptance.verdicts.values()], history, selection)
        # 2. Report the result.
        value, overlaps = merged_value(result), overlaps_table(repo, changes.branches)
        tables = (branches_table(result), overlaps, conflicts_table(result), acceptance_table(result))
        candidates, patches = candidates_table(repo.git, selection, describe)
        chosen = self._describe_choice() if selection.choices else ""
        check = _CHECKS[self.check] if self.accept else ""
        rules = " ".join(filter(None, (_ORDER, chosen, describe_syntax_merge(), _CONFLICTS[self.on_conflict], check)))
        return Merge(
            value=value,
            ledger=tuple(ledger_rows(result)),
            fields=tuple(field_rows(result, value)),
            rules=rules,
            flags=tuple(flags(result, overlaps)),
            tables=(*tables, *([candidates] if selection.choices else [])),
            documents=(merged_patch(repo, result.final_state.tree), review_document(result, tables, rules), *patches),
            failed=failure_message(result),
            shortfalls=tuple(shortfalls(result)),
        )

    def _describe_choice(self) -> str:
        """Return the rule by which candidates are chosen, in words."""
        if self.metric:
            how = (
                "the one with the most tests that pass counts"
                if self.metric.report
                else f"the one with the {'highest' if self.direction == 'max' else 'lowest'} metric counts"
            )
        elif self.criterion:
            how = (
                f"a judge compared them in pairs, each in both orders, by {self.criterion!r}, and the one that won the "
                "largest share of its matches counts, a tie being half a win"
            )
        else:
            how = "the first by number counts"
        equal = "" if how.startswith("the first") else "; of equal ones the first by number counts"
        return f"Of the candidates of one brief that were accepted, {how}{equal}."

    def merge_start(
        self,
        outcomes: Sequence[Outcome],
        needs: Needs,
        *,
        briefs: Sequence[Brief] = (),
    ) -> str:
        """Merge the changes that some work starts from, and return the commit, which no branch references.

        Args:
            outcomes: The outcomes that the work needs, each with those that it needs itself.
            needs: For each brief the names of those that it needs.
            briefs: The briefs of the job; of candidates among them, the first one with an answer is merged.

        Raises:
            DispatchError: If they contradict each other, and `on_conflict` isn't `priority`.
        """
        selection, _ = self._select(briefs, outcomes, None)
        commit, conflicts = merge_needed(self._git, selection.kept, needs)
        if conflicts and self.on_conflict != "priority":
            places = ", ".join(sorted({repr(display_path(each.conflict.path)) for each in conflicts}))
            raise DispatchError(
                f"what it needs contradicts itself on {places}, and on_conflict is {self.on_conflict!r}: have one of "
                "these need the other, or set on_conflict to 'priority'."
            )
        return commit

    def recompute(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Merge | None:
        """Return the merge that the changes result in, with the acceptance command's results as the merge has them.

        None where it can't be: an agent resolved conflicts, or the briefs, which commit messages quote, are unknown.
        """
        describe = CommitMessages(outcomes, briefs)
        needs = _needs_of(briefs)
        selection, matches = self._select(briefs, outcomes, ReplayedQueries(merge.asked))
        repo = RepositoryBase.of(self._git, common_base(selection.kept, needs))
        branches = order_changes(repo.git, selection.kept, needs).branches
        if self.on_conflict == "agent" or not all(describe.has_goal(each.ref) for each in branches):
            return None
        recorded = RecordedAcceptance(
            {
                row["tree"]: Verdict(row["after"], row["tree"], row["said"], row["told"])
                for row in _table_rows(merge, ACCEPTANCE)
            },
            is_run=self.accept is not None,
        )
        again = self._merge_changes(
            repo, briefs, outcomes, selection, recorded, lambda _state, _branch, _tree: "no agent is asked"
        )
        return again.model_copy(update={"tables": (*again.tables, *matches)})

    def verify(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:
        """Yield where a merge differs from the one that the changes in its ledger result in."""
        value = cast("dict[str, Any]", merge.value)
        needs = _needs_of(briefs)
        selection, _ = self._select(briefs, outcomes, ReplayedQueries(merge.asked))
        base = common_base(selection.kept, needs)
        repo, changes = RepositoryBase.of(self._git, base), order_changes(self._git, selection.kept, needs)
        merged = {Ref.of(row) for row in merge.ledger if row.disposition == "merged"}
        branches = [each for each in changes.branches if each.ref in merged]
        # 1. Repeat the merge of these changes, with an agent's answers as the table of conflicts has them.
        names = {str(each.ref) for each in branches}
        conflicts = [row for row in _table_rows(merge, CONFLICTS) if row["change"] in names]
        answers = {(row["change"], row["path"]): row["result"] for row in conflicts}

        def resolve(_: MergeState, branch: Branch, tree: MergedTree) -> Resolution:
            texts = {each.path: answers.get((str(branch.ref), each.path)) for each in tree.conflicts if each.marked}
            return {path: Entry(*text.split(" ")) if text else None for path, text in texts.items()}

        present = frozenset(Ref.of(row) for row in merge.ledger if row.disposition == "duplicate_of")
        state, steps = initial_state(repo)._replace(present=present), list[AppliedChange]()
        rule: ConflictRule = "agent" if self.on_conflict == "agent" else "priority"
        for branch in branches:
            steps.append(apply_change(repo, state, branch, rule, resolve))
            state = steps[-1].state
        # 2. Rebuild the commits, and compare commit, tree, conflicts, patch and files with those that the merge claims.
        describe = CommitMessages(outcomes, briefs)
        commit, claimed_commit = write_history(repo, branches, steps, describe).commit, str(value.get("commit"))
        # Commits of earlier versions have no goals in their messages; without the briefs, messages can't be rebuilt.
        is_rebuilt = all(describe.has_goal(each.ref) for each in branches)
        if claimed_commit == state.commit or (not is_rebuilt and _tree_id(repo.git, claimed_commit) == state.tree):
            commit = claimed_commit
        for name, expected in (("base", base), ("commit", commit), ("tree", state.tree)):
            if value.get(name) != expected:
                yield _imprecision(f"/{name}", f"the changes that the ledger lists as merged result in {expected}.")
        if conflicts != [*conflict_rows(repo.git, steps)]:
            yield _imprecision("/", f"its table {CONFLICTS!r} isn't what these changes contradict each other on.")
        if [each.text for each in merge.documents if each.name == PATCH_NAME] != [merged_patch(repo, state.tree).text]:
            yield _imprecision("/", f"its document {PATCH_NAME!r} isn't what was merged.")
        differences = list_differences(repo.git, base, state.tree).items()
        actual = {tuple(map(str, file_entry(path, each.after).values())) for path, each in differences}
        claimed = {(str(each["path"]), str(each["mode"]), str(each["blob"])) for each in value["files"]}
        for path in sorted({path for path, *_ in actual ^ claimed}):
            yield _imprecision("/files", f"{path!r} isn't what was merged.")

    def excluded_outcomes(self, merge: Merge) -> list[Ref]:
        """Return the outcomes that are left out because the acceptance command fails with them."""
        return refused_outcomes(merge)

    def side_effects(self, outcome: Outcome) -> JsonValue:
        """Return the files that an outcome changed, as entries of the merged value."""
        change = outcome.change
        if change is None:
            return None
        changes = list_differences(self._git, change.base, change.tree)
        sources: list[JsonValue] = [str(Ref.of(outcome))]
        return [{**file_entry(path, each.after), "by": sources} for path, each in changes.items()]

    def deliver(self, value: JsonValue, folder: Path) -> Delivery:  # noqa: ARG002 -- the repository was found before the run
        """Publish the merge on the branch, if one is configured and the acceptance command passes."""
        if not isinstance(value, dict) or value["commit"] == value["base"]:
            return Delivery()
        commit = str(value["commit"])
        if not self.branch:
            return Delivery(done=f"What was merged is in {PATCH_NAME}: {manual_steps(commit)}")
        if self.accept and value["accepted"] is not True:
            why = f"as what is merged isn't accepted; see {PATCH_NAME}"
            return Delivery(shortfall=f"The branch {self.branch!r} is not moved, {why}.")
        return move_branch(self._git, self.branch, commit, force=self.force)

    def publish_merge(self, value: JsonValue, documents: Sequence[Document]) -> Delivery:
        """Push the branch, and open or update its pull request, once the branch has been moved to the merge.

        Args:
            value: The merged value.
            documents: The documents of the merge; the review document is the text of the pull request.
        """
        if self.publish is None or not isinstance(value, dict) or value["commit"] == value["base"]:
            return Delivery()
        merged = cast("dict[str, Any]", value)
        refs = {str(ref) for file in merged["files"] for ref in file["by"]}
        review = next((each.text for each in documents if each.name == REVIEW), "")
        title = f"Merge {', '.join(sorted(ref.partition('/')[0] for ref in refs))}"
        return publish_branch(
            self._git.repo, self.publish, self.branch, str(merged["commit"]), force=self.force, review=(title, review)
        )

    @property
    def _effective_workspace(self) -> Workspace:
        return self.workspace or Workspace()

    @property
    def _git(self) -> Git:
        return Git(Path(self._effective_workspace.repo))

    def _acceptance_executor(self, commit: str) -> Shell:
        workspace = self._effective_workspace.model_copy(update={"base": commit})
        return Shell(workspace=workspace, pass_env=self.pass_env).resolve_paths(Path(workspace.repo))
