"""The changes that are merged, in the order in which they are; whichever comes first wins."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.errors import DispatchError
from prefect_dispatch.inert import plain
from prefect_dispatch.integrators.branches.trees import differences
from prefect_dispatch.ledger import Ref
from prefect_dispatch.scrub import scrub
from prefect_dispatch.workspaces.commits import commit_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefect_dispatch.change import Change
    from prefect_dispatch.integrators.branches.trees import Differences
    from prefect_dispatch.models import Outcome
    from prefect_dispatch.workspaces.git import Git


class Branch(NamedTuple):
    """One change, as a commit of its own on the base."""

    ref: Ref
    """The outcome that it is of."""
    change: Change
    """What was changed."""
    commit: str
    """The commit that it is."""
    files: Differences
    """What it changes."""


class Lined(NamedTuple):
    """The changes of all outcomes."""

    branches: tuple[Branch, ...]
    """Each that changes something, once, in the order in which they are merged."""
    equal: dict[Ref, Ref]
    """Outcomes that changed the same as an earlier one, and which that is."""
    idle: tuple[Ref, ...]
    """Outcomes with an answer that changed nothing."""


def base_of(outcomes: Sequence[Outcome]) -> str:
    """Return the commit that all changes began from.

    Raises:
        DispatchError: If they began from several, or there is no change.
    """
    first: dict[str, Ref] = {}
    for outcome in sorted(outcomes, key=lambda each: Ref.of(each).order):
        if outcome.change:
            first.setdefault(outcome.change.base, Ref.of(outcome))
    if len(first) > 1:
        (one, ref), (other, another), *_ = first.items()
        raise DispatchError(
            f"{str(ref)!r} began from commit {one[:12]}, and {str(another)!r} from {other[:12]}; changes are merged "
            "onto one base: name a commit or a tag as 'base', and run the job again."
        )
    if not first:
        raise DispatchError(
            "No outcome has a change of a repository to merge; ask a coding agent or a 'shell' that has a workspace."
        )
    return next(iter(first))


def lined_up(git: Git, outcomes: Iterable[Outcome]) -> Lined:
    """Return the changes of outcomes: by the briefs' priority, then the items', then in the order of every list.

    Args:
        git: The repository; each change becomes a commit there, which no branch and no tag names.
        outcomes: The outcomes, in any order.
    """
    branches, equal, idle = list[Branch](), dict[Ref, Ref](), list[Ref]()
    first: dict[str, Ref] = {}
    for outcome in sorted(outcomes, key=_place):
        ref, change = Ref.of(outcome), outcome.change
        if outcome.status != "succeeded":
            continue
        if change is None or not change.files:
            idle.append(ref)
        elif (twin := first.setdefault(change.tree, ref)) != ref:
            equal[ref] = twin
        else:
            commit = commit_of(git, change, titled(str(ref)))
            branches.append(Branch(ref, change, commit, differences(git, change.base, commit)))
    return Lined(tuple(branches), equal, tuple(sorted(idle, key=lambda each: each.order)))


def titled(text: str) -> str:
    r"""Return a text as the title of a commit: one line, without secrets.

    Example:
        >>> titled("one\ntwo")
        'one two'
    """
    return scrub(" ".join(plain(text).split()))


def _place(outcome: Outcome) -> tuple[object, ...]:
    return (-outcome.brief_priority, -outcome.item_priority, Ref.of(outcome).order)
