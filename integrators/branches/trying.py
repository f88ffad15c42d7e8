"""What was merged is tried: after each change, or at the end, where the change that breaks it is then looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_dispatch.inert import plain
from prefect_dispatch.integrators.base import Question
from prefect_dispatch.integrators.branches.folding import Step, start
from prefect_dispatch.models import Brief, Item

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prefect_dispatch.command import Command
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.branches.folding import Fold, Standing
    from prefect_dispatch.integrators.branches.ground import Ground
    from prefect_dispatch.integrators.branches.lining import Branch
    from prefect_dispatch.models import Outcome

ACCEPTANCE = "acceptance"
"""What the brief is called that runs the command."""
BASE = "the base"
_LONGEST = 1024
_TAIL = 2_000
"""Characters that are kept of what a command said."""


class Verdict(NamedTuple):
    """What the acceptance command said of what was merged up to some change."""

    after: str
    """The change, or that it is the base."""
    tree: str
    """What was tried."""
    said: Literal["green", "red", "unknown"]
    """Whether it passed; unknown, where it could not be run."""
    told: str
    """How it failed, or why it could not be run."""


def question(command: Command, after: str, tree: str) -> Question:
    """Return what is asked of a tree."""
    brief = Brief(
        name=ACCEPTANCE,
        scope="A repository in which several changes are merged.",
        instructions="Run the acceptance command on what is merged so far.",
        command=command,
    )
    return Question(brief=brief, item=Item(key=after[:_LONGEST], value={"tree": tree}))


class Trials:
    """Tries what was merged, each tree once.

    Attributes:
        verdicts: What was said, in the order in which it was asked.
    """

    def __init__(self, ground: Ground, command: Command | None, at: Callable[[str], Executor], ask: Asker) -> None:
        """Keep what is run.

        Args:
            ground: The repository and the base.
            command: The command; None: everything counts as unknown, and is not even tried.
            at: Returns who runs it in a workspace that holds some commit.
            ask: Puts the question.
        """
        self._ground, self._command, self._at, self._ask = ground, command, at, ask
        self._known: dict[str, Verdict] = {}

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What was said, in the order in which it was asked."""
        return tuple(self._known.values())

    def of(self, standing: Standing) -> Verdict | None:
        """Return what the command says of what was merged; None where there is no command."""
        if self._command is None:
            return None
        if standing.tree not in self._known:
            after = str(standing.by[-1].ref) if standing.by else BASE
            # A commit that depends on the tree alone: what was tried once is stored, by whatever way it came about.
            commit = self._ground.commit(standing.tree, (self._ground.base,), "Merged so far")
            asked = question(self._command, after, standing.tree)
            [outcome] = self._ask([asked], self._at(commit if standing.by else self._ground.base))
            self._known[standing.tree] = _verdict(after, standing.tree, outcome)
        return self._known[standing.tree]


def each_tried(ground: Ground, branches: Sequence[Branch], fold: Fold, trials: Trials) -> list[Step]:
    """Return what became of changes, each of which is left out if it turns what passes into what fails."""
    standing, steps = start(ground), list[Step]()
    passes = _says(trials.of(standing), "green")
    for branch in branches:
        step = fold(standing, branch)
        said = trials.of(step.after) if step.end == "merged" else None
        if passes and said and said.said == "red":
            step = _refused(step, standing, said)
        elif said and said.said != "unknown":
            passes = said.said == "green"
        standing = step.after
        steps.append(step)
    return steps


def end_tried(ground: Ground, branches: Sequence[Branch], fold: Fold, trials: Trials) -> list[Step]:
    """Return what became of changes, all of which are tried together.

    Where that fails, the first change after which it does is looked for by halves and left out; and so on.
    """
    active, refused, passing = list(branches), dict[str, Verdict](), 0
    steps = list[Step]()
    while True:
        steps = _folded(start(ground), steps[:passing], active[passing:], fold)
        last = steps[-1].after if steps else start(ground)
        if not _says(trials.of(last), "red") or not _says(trials.of(start(ground)), "green"):
            break
        low, high = passing, len(active)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _says(trials.of(steps[middle - 1].after), "red") else (middle, high)
        said = trials.of(steps[high - 1].after)
        assert said is not None  # noqa: S101 -- there is a command: it said "red" above
        refused[active.pop(high - 1).commit] = said
        passing = high - 1
    return _with_refused(ground, branches, {step.branch.commit: step for step in steps}, refused)


def _folded(first: Standing, steps: Sequence[Step], branches: Sequence[Branch], fold: Fold) -> list[Step]:
    """Return some steps, followed by those of more changes."""
    every = list(steps)
    for branch in branches:
        every.append(fold(every[-1].after if every else first, branch))
    return every


def _with_refused(
    ground: Ground, branches: Sequence[Branch], steps: dict[str, Step], refused: dict[str, Verdict]
) -> list[Step]:
    standing, every = start(ground), list[Step]()
    for branch in branches:
        known = steps.get(branch.commit)
        every.append(known or _refused(Step(branch, "merged", standing), standing, refused[branch.commit]))
        standing = every[-1].after
    return every


def _refused(step: Step, standing: Standing, said: Verdict) -> Step:
    reason = f"accept: what passed without it fails with it: {said.told}"
    return Step(step.branch, "refused", standing, step.settled, None, reason)


def _says(verdict: Verdict | None, said: str) -> bool:
    return verdict is not None and verdict.said == said


def _verdict(after: str, tree: str, outcome: Outcome) -> Verdict:
    if outcome.status == "succeeded":
        return Verdict(after, tree, "green", "")
    error = outcome.error
    told = f"{error.kind}: {error.message}" if error else outcome.status
    said: Literal["red", "unknown"] = "red" if outcome.status == "failed" else "unknown"
    lines = [plain(line) for line in told.splitlines()]
    return Verdict(after, tree, said, "\n".join(lines)[-_TAIL:])
