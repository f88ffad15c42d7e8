"""Changes merged one after another onto their base: each onto what those before it came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from prefect_dispatch.integrators.branches.lining import titled
from prefect_dispatch.integrators.branches.three_way import merged
from prefect_dispatch.integrators.branches.trees import changed, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.integrators.branches.ground import Ground
    from prefect_dispatch.integrators.branches.lining import Branch
    from prefect_dispatch.integrators.branches.three_way import Conflict, Merged
    from prefect_dispatch.integrators.branches.trees import Entry
    from prefect_dispatch.ledger import Ref

Rule = Literal["priority", "skip", "fail", "agent"]
"""What decides a conflict: the change that comes first; or it alone, the other one being left out whole (which with
`fail` fails the run); or an agent."""


class Standing(NamedTuple):
    """What the changes up to one came to."""

    commit: str
    """The commit."""
    tree: str
    """Its tree."""
    by: tuple[Branch, ...] = ()
    """What is merged in it, in order."""


class Settled(NamedTuple):
    """A conflict, and how it ended."""

    conflict: Conflict
    """The conflict."""
    rule: Rule
    """What decided."""
    against: tuple[Ref, ...]
    """What had been merged that the change contradicts there."""
    result: Entry | None
    """What stands there then; None: no file."""


class Step(NamedTuple):
    """What became of one change."""

    branch: Branch
    """The change."""
    end: Literal["merged", "equal", "overridden", "refused"]
    """Merged; all of it there already; left out for an earlier one; left out for what it does to the whole."""
    after: Standing
    """What there is after it."""
    settled: tuple[Settled, ...] = ()
    """What it contradicts."""
    by: Ref | None = None
    """The change that stands in its place."""
    reason: str = ""
    """How it ended, in words."""


class Resolved(NamedTuple):
    """What came of having two changes brought together by an agent."""

    files: dict[str, Entry | None] | None
    """What is to stand at each path; None if there is no usable answer."""
    why: str = ""
    """Why there is none."""


class Resolver(Protocol):
    """Brings together what two changes make of the same lines."""

    def __call__(self, standing: Standing, branch: Branch, merged: Merged) -> Resolved:
        """Return what is to stand at each path that has a marked file among the conflicts."""
        ...


class Fold(Protocol):
    """Merges one more change."""

    def __call__(self, standing: Standing, branch: Branch) -> Step:
        """Return what became of it."""
        ...


def start(ground: Ground) -> Standing:
    """Return what there is before any change."""
    return Standing(ground.base, ground.tree)


def stepped(ground: Ground, standing: Standing, branch: Branch, rule: Rule, resolve: Resolver) -> Step:
    """Return what one more change comes to.

    Args:
        ground: The repository and the base.
        standing: What the changes before it came to.
        branch: The change.
        rule: What decides conflicts.
        resolve: Asked where the rule is `agent`.
    """
    found = merged(ground.git, ground.tree, standing.tree, branch.change.tree)
    settled = tuple(_settled(found.conflicts, standing, "priority" if rule == "agent" else rule))
    if settled and rule in ("skip", "fail"):
        return _left_out(standing, branch, settled)
    tree = found.tree
    if rule == "agent" and any(conflict.marked for conflict in found.conflicts):
        files, why = resolve(standing, branch, found)
        if files is None:
            return _left_out(standing, branch, tuple(_settled(found.conflicts, standing, "skip")), f" ({why})")
        tree = changed(ground.git, tree, files)
        settled = tuple(
            each._replace(rule="agent", result=files[each.conflict.path]) if each.conflict.marked else each
            for each in settled
        )
    return _joined(ground, standing, branch, tree, settled)


def _joined(ground: Ground, standing: Standing, branch: Branch, tree: str, settled: tuple[Settled, ...]) -> Step:
    if tree != standing.tree:
        commit = ground.commit(tree, (standing.commit, branch.commit), titled(f"Merge {branch.ref}"))
        after = Standing(commit, tree, (*standing.by, branch))
        return Step(branch, "merged", after, settled, None, _how(settled))
    if settled:
        return _left_out(standing, branch, settled, ", and nothing of it is left")
    twin = next(each for each in standing.by if not each.files.keys().isdisjoint(branch.files))
    return Step(branch, "equal", standing, (), twin.ref, "all that it changes stands there already")


def _left_out(standing: Standing, branch: Branch, settled: tuple[Settled, ...], more: str = "") -> Step:
    by = settled[0].against[0]
    return Step(branch, "overridden", standing, settled, by, f"{settled[0].rule}: {_told(settled)}{more}")


def _how(settled: Sequence[Settled]) -> str:
    return f"{'; '.join(sorted({each.rule for each in settled}))}: {_told(settled)}" if settled else ""


def _told(settled: Sequence[Settled]) -> str:
    conflict, _, against, _ = settled[0]
    more = f" and {len(settled) - 1} more" if len(settled) > 1 else ""
    return f"contradicts {', '.join(map(str, against))} on {shown(conflict.path)!r} ({conflict.kind}){more}"


def _settled(conflicts: Sequence[Conflict], standing: Standing, rule: Rule) -> Iterator[Settled]:
    for conflict in conflicts:
        result = conflict.result if rule == "priority" else conflict.ours
        yield Settled(conflict, rule, tuple(_blamed(conflict, standing)), result)


def _blamed(conflict: Conflict, standing: Standing) -> Iterator[Ref]:
    """Yield what has been merged that touches a path, or what is above or below it."""
    for branch in standing.by:
        if any(_is_near(path, conflict.path) for path in branch.files):
            yield branch.ref


def _is_near(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")
