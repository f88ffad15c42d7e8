"""Acceptance tests of a merge: after each change, or at the end.

At the end, a failing command leads to a binary search for the change that breaks the merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_dispatch.integrators.base import Question
from prefect_dispatch.integrators.merge_branches.apply import AppliedChange, initial_state
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.security.escaping import strip_control_chars

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.merge_branches.apply import Branch, ChangeApplier, MergeState, RepositoryBase
    from prefect_dispatch.models.brief import Command
    from prefect_dispatch.models.outcome import Outcome

ACCEPTANCE = "acceptance"
"""Name of the brief that runs the acceptance command."""
BASE_LABEL = "the base"
_MAX_KEY_CHARS = 1024
_MAX_DETAILS_CHARS = 2_000
"""Maximum length of the kept end of a command's output, in characters."""


class Verdict(NamedTuple):
    """Result of the acceptance command on the merge of some changes."""

    after: str
    """The last of these changes, or `the base`."""
    tree: str
    """The id of the tested tree."""
    status: Literal["green", "red", "unknown"]
    """`green`: the command passed. `red`: it failed. `unknown`: it could not be run."""
    details: str
    """The end of its output, or why it could not be run."""


def acceptance_query(command: Command, after: str, tree: str) -> Question:
    """Return the query that runs the acceptance command on a tree."""
    brief = Brief(
        name=ACCEPTANCE,
        scope="A repository in which several changes are merged.",
        instructions="Run the acceptance command on what is merged so far.",
        command=command,
    )
    return Question(brief=brief, item=Item(key=after[:_MAX_KEY_CHARS], value={"tree": tree}))


class AcceptanceRunner:
    """Runs the acceptance command, once for each tree.

    Attributes:
        verdicts: The results, in the order of the runs.
    """

    def __init__(
        self, repo: RepositoryBase, command: Command | None, at: Callable[[str], Executor], ask: Asker
    ) -> None:
        """Store the command and how to run it.

        Args:
            repo: The repository and the base.
            command: The command; None: nothing is run, and every result is unknown.
            at: Returns the executor in a workspace that starts from a commit.
            ask: Runs the query.
        """
        self._repo, self._command, self._at, self._ask = repo, command, at, ask
        self._verdicts: dict[str, Verdict] = {}

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The results, in the order of the runs."""
        return tuple(self._verdicts.values())

    def verdict_for(self, state: MergeState) -> Verdict | None:
        """Return the result of the command on a state of the merge; None if there is no command."""
        if self._command is None:
            return None
        if state.tree not in self._verdicts:
            after = str(state.branches[-1].ref) if state.branches else BASE_LABEL
            # The commit depends on the tree alone, so that a stored result is found however the tree was merged.
            commit = self._repo.commit(state.tree, (self._repo.base,), "Merged so far")
            query = acceptance_query(self._command, after, state.tree)
            [outcome] = self._ask([query], self._at(commit if state.branches else self._repo.base))
            self._verdicts[state.tree] = _parse_verdict(after, state.tree, outcome)
        return self._verdicts[state.tree]


def check_each_change(
    repo: RepositoryBase, branches: Sequence[Branch], apply_one: ChangeApplier, acceptance: AcceptanceRunner
) -> list[AppliedChange]:
    """Return the results of applying changes, with a run of the command after each.

    A change after which the command fails is left out, if the command passed before it.

    Args:
        repo: The repository and the base.
        branches: The changes, in merge order.
        apply_one: Applies a change.
        acceptance: Runs the command.
    """
    state, steps = initial_state(repo), list[AppliedChange]()
    passes = _has_status(acceptance.verdict_for(state), "green")
    for branch in branches:
        step = apply_one(state, branch)
        verdict = acceptance.verdict_for(step.state) if step.status == "merged" else None
        # Only a change from passing to failing leaves one out; after `unknown`, the last definite result still counts.
        if passes and verdict and verdict.status == "red":
            step = _refuse_change(step, state, verdict)
        elif verdict and verdict.status != "unknown":
            passes = verdict.status == "green"
        state = step.state
        steps.append(step)
    return steps


def check_at_end(
    repo: RepositoryBase, branches: Sequence[Branch], apply_one: ChangeApplier, acceptance: AcceptanceRunner
) -> list[AppliedChange]:
    """Return the results of applying changes, with a run of the command after the last.

    If the command fails there and passes on the base, a binary search finds the first change after which it fails;
    that change is left out, and the others are tested again.

    Args:
        repo: The repository and the base.
        branches: The changes, in merge order.
        apply_one: Applies a change.
        acceptance: Runs the command.
    """
    active, refused, passing = list(branches), dict[str, Verdict](), 0
    steps = list[AppliedChange]()
    while True:
        # 1. Apply the remaining changes, and run the command on the base and on the result.
        steps = _apply_all(initial_state(repo), steps[:passing], active[passing:], apply_one)
        last = steps[-1].state if steps else initial_state(repo)
        if not _has_status(acceptance.verdict_for(last), "red") or not _has_status(
            acceptance.verdict_for(initial_state(repo)), "green"
        ):
            break
        # 2. Find the first failing prefix of the changes: up to `low` it passes, up to `high` it fails.
        low, high = passing, len(active)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if _has_status(acceptance.verdict_for(steps[middle - 1].state), "red") else (middle, high)
            )
        verdict = acceptance.verdict_for(steps[high - 1].state)
        assert verdict is not None  # noqa: S101 -- there is a command: its result was "red" above
        # 3. Leave out its last change; the changes before it need no second run.
        refused[active.pop(high - 1).commit] = verdict
        passing = high - 1
    return _insert_refused(repo, branches, {step.branch.commit: step for step in steps}, refused)


def _apply_all(
    first: MergeState, steps: Sequence[AppliedChange], branches: Sequence[Branch], apply_one: ChangeApplier
) -> list[AppliedChange]:
    """Return some results, followed by those of applying more changes."""
    all_steps = list(steps)
    for branch in branches:
        all_steps.append(apply_one(all_steps[-1].state if all_steps else first, branch))
    return all_steps


def _insert_refused(
    repo: RepositoryBase, branches: Sequence[Branch], steps: dict[str, AppliedChange], refused: dict[str, Verdict]
) -> list[AppliedChange]:
    """Return the results of all changes in merge order, the refused ones included."""
    state, all_steps = initial_state(repo), list[AppliedChange]()
    for branch in branches:
        step = steps.get(branch.commit)
        all_steps.append(step or _refuse_change(AppliedChange(branch, "merged", state), state, refused[branch.commit]))
        state = all_steps[-1].state
    return all_steps


def _refuse_change(step: AppliedChange, state: MergeState, verdict: Verdict) -> AppliedChange:
    reason = f"accept: what passed without it fails with it: {verdict.details}"
    return AppliedChange(step.branch, "refused", state, step.conflicts, None, reason)


def _has_status(verdict: Verdict | None, status: str) -> bool:
    return verdict is not None and verdict.status == status


def _parse_verdict(after: str, tree: str, outcome: Outcome) -> Verdict:
    if outcome.status == "succeeded":
        return Verdict(after, tree, "green", "")
    error = outcome.error
    message = f"{error.kind}: {error.message}" if error else outcome.status
    status: Literal["red", "unknown"] = "red" if outcome.status == "failed" else "unknown"
    lines = [strip_control_chars(line) for line in message.splitlines()]
    return Verdict(after, tree, status, "\n".join(lines)[-_MAX_DETAILS_CHARS:])
