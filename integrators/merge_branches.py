"""Changes that agents made of one repository, apart from each other, merged into one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, JsonValue, StringConstraints, field_serializer, model_validator

from prefect_dispatch.command import Command
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import Placed
from prefect_dispatch.executors.kinds import AnyExecutor
from prefect_dispatch.executors.shell import Shell
from prefect_dispatch.integrators.base import Asks, Delivery
from prefect_dispatch.integrators.branches import merging, publishing, rebuilding
from prefect_dispatch.integrators.branches.branch_rules import rules_of
from prefect_dispatch.integrators.branches.course import told
from prefect_dispatch.integrators.branches.folding import Rule
from prefect_dispatch.integrators.branches.ground import Ground
from prefect_dispatch.integrators.branches.lining import base_of
from prefect_dispatch.integrators.branches.places import require_base, works_in_files, workspace_at
from prefect_dispatch.integrators.branches.resolving import Agent
from prefect_dispatch.integrators.branches.trees import differences
from prefect_dispatch.integrators.branches.trying import BASE, Trials, question
from prefect_dispatch.ledger import Ref
from prefect_dispatch.strict import Strict
from prefect_dispatch.workspaces.git import Git
from prefect_dispatch.workspaces.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Self

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.ledger import Merge, Violation
    from prefect_dispatch.models import Brief, Outcome

BranchName = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)]


class MergeBranches(Strict):
    """Merges the changes that agents made of one repository, each on its own, and tries what comes of it.

    Changes are merged onto the commit that all of them began from, one after another: by the priority of their
    briefs, then of their items, then in the order of every list. Nothing is checked out for it: the checkout, the
    branch and the index of whoever uses the repository stay as they are, byte for byte.

    **Conflicts** (`on_conflict`). `priority`: what comes first counts, of a file with lines for each group of lines
    by itself. `skip`: a change that contradicts an earlier one is left out. `fail`: so it is, and the run fails.
    `agent`: a coding agent brings both together. A renamed file counts as one deleted and one added.

    **Acceptance** (`accept`). What merges cleanly may still break. The command is run on all of it, and the change
    that breaks it is left out, if the base passes (`check`).

    **Value.** `{"base": …, "commit": …, "tree": …, "accepted": …, "files": […], "said": […], "gaps": […]}`: `files` are
    those that differ from the base, with the changes that they come from; `said` is what each agent said of its work.
    `merged.patch` is all of it, and `review.md` tells a reviewer who touched what, what met, what contradicted what,
    and what was left out.

    Example:
        >>> MergeBranches(accept={"run": "pytest -q"}, branch="agents/merged").on_conflict
        'priority'
    """

    kind: Literal["merge_branches"] = "merge_branches"
    """Tells the integrators apart."""
    workspace: Workspace | None = None
    """The repository, and the set-up of what the acceptance command runs in; the base is the one of the changes.
    None: as the executor has it."""
    on_conflict: Rule = "priority"
    """What decides where changes contradict each other."""
    accept: Command | None = None
    """What must pass on what is merged."""
    check: Literal["each", "end"] = "end"
    """When that is run: after each change, or at the end, where the one that breaks it is then looked for by halves."""
    branch: BranchName = ""
    """The branch that what was merged is published on. Empty: it is left as `merged.patch`."""
    force: bool = False
    """Whether the branch may be moved to a merge that lacks commits of it, such as those of an earlier run."""
    agent: AnyExecutor | None = None
    """Who brings changes together. None: the job's executor."""
    pass_env: tuple[str, ...] = ()
    """Names of variables that the acceptance command gets from the environment."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.agent is not None and self.on_conflict != "agent":
            raise ValueError(f"'agent' is for on_conflict 'agent', and it is {self.on_conflict!r}; remove one of them")
        if self.force and not self.branch:
            raise ValueError("'force' is for a branch that is published on; name one under 'branch', or leave it out")
        if self.accept and (self.accept.report or self.accept.stdin):
            key = "report" if self.accept.report else "stdin"
            raise ValueError(f"accept: it passes or fails by its exit code, and reads no item; leave out {key!r}")
        return self

    @field_serializer("agent", when_used="json")
    def _described(self, agent: object) -> object:
        known = agent is None or isinstance(agent, BaseModel)
        return agent if known else type(agent).__name__

    def following(self, executor: Executor, folder: Path) -> MergeBranches:
        """Return this integrator with the executor's workspace, unless it has one of its own.

        Raises:
            JobError: If its own repository can't have changes merged that begin from the executor's base.
        """
        theirs = getattr(executor, "workspace", None)
        if not isinstance(theirs, Workspace):
            return self
        if self.workspace is None:
            return self.model_copy(update={"workspace": theirs})
        require_base(Path(folder, self.workspace.repo), theirs)
        return self

    def placed(self, folder: Path) -> MergeBranches:
        """Return this integrator with the repository found, relative paths starting at a folder.

        Raises:
            JobError: If there is none, the branch can't be published to, or the agent can't be asked.
        """
        try:
            workspace = self._where.placed(folder)
        except JobError as error:  # the executor has a workspace, too
            raise JobError(f"integrator.{error}") from None
        if self.branch:
            publishing.require_branch(Git(Path(workspace.repo)), self.branch)
        agent = self.agent.placed(folder) if isinstance(self.agent, Placed) else self.agent
        return self.model_copy(update={"workspace": workspace, "agent": agent})

    def preflight(self, briefs: Sequence[Brief]) -> None:  # noqa: ARG002 -- the signature of every check
        """Raise `JobError` if it is plain beforehand that the command can't be run, or the agent can't be asked."""
        if self.accept:
            self._trying(self._where.base).require_fit([question(self.accept, BASE, "").brief])
        if self.agent is not None and not works_in_files(self.agent):
            raise JobError(
                f"integrator.agent: {type(self.agent).__name__} writes no files as it is told to; name a coding "
                "agent, or leave it out where the job's executor is one."
            )

    def asks(self, work: int) -> list[Asks]:
        """Return the fewest questions: one at the end, or one for each change and the base."""
        if self.accept is None:
            return []
        times = work + 1 if self.check == "each" else 1
        return [Asks(question(self.accept, BASE, ""), 0, times, self._trying(self._where.base))]

    def merge_asking(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker) -> Merge:
        """Return what was merged; nobody is asked unless there is a command, or an agent is to decide.

        Raises:
            DispatchError: If the outcomes have no change, or not of one base.
        """
        ground = Ground.of(self._git, base_of(outcomes))
        trials = Trials(ground, self.accept, self._trying, ask)
        agent = self.agent or ask.executor
        who = partial(workspace_at, agent, self._git.repo) if works_in_files(agent) else None
        return merging.merged(
            ground,
            outcomes,
            briefs,
            self.on_conflict,
            trials,
            Agent(ground, briefs, who, ask),
            each=self.check == "each",
            rules=rules_of(self.on_conflict, self.accept, self.check),
        )

    def broken(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:
        """Yield where a merge isn't what follows from the changes that it says are in it."""
        return rebuilding.unlike(self._git, merge, outcomes, briefs, self.on_conflict)

    def refused(self, merge: Merge) -> list[Ref]:
        """Return the outcomes of which the acceptance command said that they break the whole."""
        return rebuilding.refused(merge)

    def tells(self, outcome: Outcome) -> JsonValue:
        """Return what stands in the files that an outcome changed."""
        change = outcome.change
        if change is None:
            return None
        made = differences(self._git, change.base, change.tree)
        by: list[JsonValue] = [str(Ref.of(outcome))]
        return [{**told(path, each.after), "by": by} for path, each in made.items()]

    def deliver(self, value: JsonValue, folder: Path) -> Delivery:  # noqa: ARG002 -- the repository is known already
        """Publish what was merged on the branch, if one is named, and if it passes what it has to."""
        if not isinstance(value, dict) or value["commit"] == value["base"]:
            return Delivery()
        commit = str(value["commit"])
        if not self.branch:
            return publishing.left(commit)
        if self.accept and value["accepted"] is not True:
            return publishing.unaccepted(self.branch)
        return publishing.published(self._git, self.branch, commit, force=self.force)

    @property
    def _where(self) -> Workspace:
        return self.workspace or Workspace()

    @property
    def _git(self) -> Git:
        return Git(Path(self._where.repo))

    def _trying(self, commit: str) -> Shell:
        workspace = self._where.model_copy(update={"base": commit})
        return Shell(workspace=workspace, pass_env=self.pass_env).placed(Path(workspace.repo))
