"""Publication of a merge: commit messages, and the move of a branch, which never loses commits unasked."""

from __future__ import annotations

import re
from textwrap import indent
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.base import Delivery
from prefect_dispatch.integrators.merge_branches.apply import PATCH_NAME, single_line
from prefect_dispatch.models.item import unescape_template
from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.security.escaping import count_noun, strip_control_chars
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.workspaces.git import GitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prefect_dispatch.integrators.merge_branches.apply import AppliedChange, Branch, RepositoryBase
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.workspaces.git import Git


_HEADS = "refs/heads/"


_UNBORN = "0"
"""Digit of the null object id, which `git update-ref` takes for a ref that doesn't exist yet."""


def require_branch(git: Git, branch: str) -> None:
    """Check that a branch can be published to, as far as that can be known before a run.

    Raises:
        JobError: If the name is not a valid branch name, or the branch is checked out in a worktree.
    """
    code, _ = git.run("check-ref-format", f"{_HEADS}{branch}")
    if code or branch.startswith("-") or branch == "HEAD":
        raise JobError(
            f"branch: {branch!r} is not a valid name of a branch; use letters, digits, '-', '_' and '/', such as "
            "'agents/merged'."
        )
    if where := _checkout_path(git, branch):
        raise JobError(
            f"branch: {branch!r} is checked out in {where!r}, and a checkout is never touched; name another branch, or "
            "switch to another one there."
        )


def move_branch(git: Git, branch: str, commit: str, *, force: bool = False) -> Delivery:
    """Move a branch to a commit and return the result; the move is a compare-and-swap on the branch's previous commit.

    A missing branch is created. An existing one is fast-forwarded; with `force` it may also move to a commit that
    lacks commits of it, of any author. A branch that is checked out in any worktree isn't moved. The reflog, if the
    repository keeps one, has the previous commit.

    Args:
        git: The repository.
        branch: The branch.
        commit: The commit to publish.
        force: Whether the user permits that the branch loses commits which `commit` lacks.
    """
    ref = _HEADS + branch
    fallback = f"It stays as it was; {manual_steps(commit)}"
    # 1. Never move a branch under a checkout, or the target of a symbolic ref.
    if where := _checkout_path(git, branch):
        return Delivery(shortfall=f"The branch {branch!r} is checked out in {where!r} by now. {fallback}")
    if target := _link_target(git, ref):
        return Delivery(shortfall=f"The branch {branch!r} is a symbolic ref to {target!r}. {fallback}")
    # 2. Refuse to drop commits, unless the user permits it.
    code, output = git.run("rev-parse", "--verify", "--quiet", ref)
    old = output.decode().strip() if code == 0 else ""
    if old == commit:
        return Delivery(done=f"The branch {branch!r} is at {commit[:12]} already.")
    dropped = git.output("rev-list", old, f"^{commit}").split() if old else []
    if dropped and not force:
        return Delivery(
            shortfall=f"The branch {branch!r} has {count_noun(len(dropped), 'commit')} that the merge lacks, "
            f"such as {dropped[0][:12]}, and can't be moved forward from {old[:12]} to {commit[:12]}. "
            f"{fallback} Set 'force' to have it replaced."
        )
    # 3. Compare and swap: git refuses the move if the branch is no longer at `old`.
    try:
        git.output("update-ref", "-m", "prefect-dispatch: merge", ref, commit, old or _UNBORN * len(commit))
    except GitError as error:
        return Delivery(shortfall=f"The branch {branch!r} could not be moved ({error.stderr}). {fallback}")
    return Delivery(done=f"The branch {branch!r} {_describe_move(old, commit, dropped)}.")


def manual_steps(commit: str) -> str:
    """Return how the user can apply the merge without a branch."""
    return f"`git apply --index {PATCH_NAME}` on the base takes it over, as does `git merge {commit[:12]}`."


def _describe_move(old: str, commit: str, dropped: Sequence[str]) -> str:
    """Return how a branch was moved, in words."""
    if not old:
        return f"was made at {commit[:12]}"
    if not dropped:
        return f"was moved forward from {old[:12]} to {commit[:12]}"
    return f"was moved by force from {old[:12]} to {commit[:12]}, and has {count_noun(len(dropped), 'commit')} less"


def _link_target(git: Git, ref: str) -> str:
    """Return the target of a symbolic ref, which an update would move instead of the ref; or nothing."""
    code, output = git.run("symbolic-ref", "--quiet", ref)
    return "" if code else output.decode("utf-8", "backslashreplace").strip().removeprefix(_HEADS)


def _checkout_path(git: Git, branch: str) -> str:
    """Return the worktree in which a branch is checked out, or nothing."""
    worktree = ""
    for line in (
        git.output_bytes("worktree", "list", "--porcelain", "-z").decode("utf-8", "backslashreplace").split("\0")
    ):
        name, _, value = line.partition(" ")
        worktree = value if name == "worktree" else worktree
        if name == "branch" and value == _HEADS + branch:
            return worktree
    return ""


TRAILER_PREFIX = "Prefect-Dispatch-"
"""Prefix of the key of each trailer."""
MAX_TITLE_CHARS = 72
"""Maximum length of the first line of a message, in characters."""
MAX_TRAILER_CHARS = 200
"""Maximum length of the value of a trailer, in characters."""
MAX_GOAL_CHARS, MAX_GOAL_LINES = 2_000, 40
"""Maximum length of a goal in a message, in characters and in lines."""
_CODING_AGENT = re.compile(r"(?P<model>.+) in (?P<agent>[a-z0-9-]+(?: \d[\w.+-]*)?)")
"""Format of a coding agent in `Outcome.model`: the model, the agent and, if known, its version."""


class History(NamedTuple):
    """The commits to publish."""

    commit: str
    """The last commit: the whole merge. If nothing was merged, the base."""
    changes: Mapping[Ref, str]
    """The commit of each change, those left out included."""


class CommitMessages:
    """Writes commit messages from briefs and outcomes."""

    def __init__(self, outcomes: Iterable[Outcome], briefs: Iterable[Brief]) -> None:
        """Store the goals of the briefs and the models of the outcomes.

        Args:
            outcomes: The outcomes.
            briefs: The briefs; for the change of a missing one the goal is unknown.
        """
        self._goals = {brief.name: _sanitize_goal(unescape_template(brief.instructions)) for brief in briefs}
        self._models = {Ref.of(outcome): outcome.model for outcome in outcomes}

    def has_goal(self, ref: Ref) -> bool:
        """Return whether the goal of a change is known."""
        return ref.brief in self._goals

    def message(self, ref: Ref, start: str = "") -> str:
        """Return the commit message of a change.

        Args:
            ref: The outcome that made the change.
            start: Prefix of the title.
        """
        goal = self._goals.get(ref.brief, "")
        title = ": ".join(filter(None, (start + single_line(str(ref)), single_line(goal.partition("\n")[0]))))
        # The body has the goal if the title can't hold all of it.
        body = indent(goal, "    ") if len(title) > MAX_TITLE_CHARS or "\n" in goal else ""
        parts = (_truncate(title, MAX_TITLE_CHARS), body, "\n".join(self._trailers(ref, goal)))
        return "\n\n".join(filter(None, parts))

    def _trailers(self, ref: Ref, goal: str) -> Iterator[str]:
        """Yield the trailers of a message: brief, item, goal, agent and model, each if known."""
        model = self._models.get(ref, "")
        agent = _CODING_AGENT.fullmatch(model)
        values = {
            "Module": ref.brief,
            "Item": ref.item,
            "Goal": goal,
            "Agent": agent["agent"] if agent else "",
            "Model": agent["model"] if agent else model,
        }
        for name, value in values.items():
            if line := _truncate(single_line(value), MAX_TRAILER_CHARS):
                yield f"{TRAILER_PREFIX}{name}: {line}"


def write_history(
    repo: RepositoryBase, branches: Iterable[Branch], steps: Sequence[AppliedChange], describe: CommitMessages
) -> History:
    """Write the commits to publish and return them; no branch references them yet.

    Args:
        repo: The repository and the base.
        branches: All changes.
        steps: The results of applying them, in merge order.
        describe: Writes the messages.
    """
    changes: dict[Ref, str] = {}
    for each in branches:
        start = _published_start(repo, each, changes)
        changes[each.ref] = repo.commit(each.change.tree, (start,), describe.message(each.ref))
    tip = repo.base
    for step in steps:
        if step.status == "merged":
            ref = step.branch.ref
            tip = repo.commit(step.state.tree, (tip, changes[ref]), describe.message(ref, "Merge "))
    return History(tip, changes)


def _published_start(repo: RepositoryBase, branch: Branch, changes: Mapping[Ref, str]) -> str:
    """Return the commit that a change starts from in the history: the base, a change that it needs, or their merge."""
    if not branch.needs:
        return repo.base
    tree = repo.git.output("show", "-s", "--format=%T", branch.change.base)
    parents = [changes[ref] for ref in branch.needs]
    if len(parents) == 1 and repo.git.output("show", "-s", "--format=%T", parents[0]) == tree:
        return parents[0]
    return repo.commit(tree, parents, single_line(f"Merge what {branch.ref} needs"))


def _sanitize_goal(text: str) -> str:
    """Return a goal with secrets redacted and control characters removed, truncated to what fits into a message."""
    lines = [strip_control_chars(line).rstrip() for line in redact(text).splitlines()]
    return _truncate("\n".join(lines[:MAX_GOAL_LINES]).strip(), MAX_GOAL_CHARS)


def _truncate(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"
