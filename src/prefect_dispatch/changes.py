"""What is otherwise than after the last run of the same job: items, answers, gaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import StringConstraints

from prefect_dispatch.fingerprint import digest
from prefect_dispatch.ledger import Ref, named, place_of
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefect_dispatch.models import Outcome

Digest = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
"""A SHA-256 in hexadecimal, or nothing."""


class Known(NamedTuple):
    """What a run knew of one (brief, item): a row, as there may be very many."""

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""
    answered: bool
    """Whether it had an answer in that run."""
    fingerprint: Digest = ""
    """The identity of the work that the last answer is to, of that run or of one before."""
    digest: Digest = ""
    """The digest of that answer's value; empty where there never was one."""

    @property
    def name(self) -> tuple[str, str]:
        """Brief and item."""
        return self.brief, self.item


class FlowRun(Strict):
    """A flow run."""

    id: str | None
    """Its id."""
    name: str | None
    """Its name."""


class LastRun(Strict):
    """Which run it was, as its report had it."""

    started: str
    """When it started."""
    flow_run: FlowRun
    """Its flow run."""


class Memory(Strict):
    """What the last run of a job knew."""

    run: LastRun
    """Which run it was."""
    work: tuple[Known, ...]
    """Every (brief, item) of it, in order."""
    value: Digest = ""
    """The digest of the last merged value, of that run or of one before; empty where there never was one."""


class Said(Strict):
    """An answer, by what identifies it."""

    fingerprint: str
    """The identity of the work; another one means that something else was asked, or somebody else."""
    digest: str
    """The SHA-256 of the value's canonical JSON."""


class Change(Strict):
    """A (brief, item) whose answer is another one than before."""

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""
    before: Said
    """The last answer that there was."""
    after: Said
    """The answer of this run."""


class Changes(Strict):
    """What is otherwise than after the last run of the same job that had any answer."""

    earlier: Literal["none", "found", "unreadable"] = "none"
    """Whether there is an earlier run to compare with: none, one, or one whose record can't be read."""
    new: tuple[Ref, ...] = ()
    """What that run did not have."""
    gone: tuple[Ref, ...] = ()
    """What only that run had."""
    changed: tuple[Change, ...] = ()
    """Answers that are not the last ones known, whether from that run or, where it had a gap, from one before."""
    closed: tuple[Ref, ...] = ()
    """Gaps of that run that have an answer."""
    opened: tuple[Ref, ...] = ()
    """What had an answer in that run and has none."""
    merged: bool = False
    """Whether the merged value is another one than the last one known: by other answers, or by how they are merged."""

    @property
    def lists(self) -> dict[str, tuple[Ref, ...]]:
        """The names in each list that has any, by what became of them."""
        changed = tuple(Ref(brief=each.brief, item=each.item) for each in self.changed)
        gaps = {"gaps closed": self.closed, "gaps opened": self.opened}
        lists = {"new": self.new, "gone": self.gone, "changed": changed, **gaps}
        return {name: refs for name, refs in lists.items() if refs}

    def __str__(self) -> str:
        """Return the changes as counts.

        Example:
            >>> print(Changes(earlier="found", closed=(Ref(brief="terms", item="mit.txt"),)))
            gaps closed 1
        """
        if self.earlier == "unreadable":
            return "unknown: what the last run left can't be read"
        counts = ", ".join(f"{name} {len(refs)}" for name, refs in self.lists.items())
        return counts or ("only the merged value changed" if self.merged else "nothing changed")


def known(outcomes: Iterable[Outcome], before: Sequence[Known] = ()) -> tuple[Known, ...]:
    """Return what is known after a run.

    Args:
        outcomes: What came of its work, in order.
        before: What was known before; where this run has a gap, the last answer stays known.
    """
    earlier = {each.name: each for each in before}
    return tuple(_known(outcome, earlier.get((outcome.brief, outcome.item))) for outcome in outcomes)


def is_same_list(before: Sequence[Known], after: Sequence[Known]) -> bool:
    """Return whether two lists of items are one list that has changed: they share half of the shorter one's keys.

    Example:
        >>> last, longer, other = ([Known("terms", key, answered=True) for key in keys] for keys in ("ab", "abc", "xy"))
        >>> is_same_list(last, longer), is_same_list(last, other)
        (True, False)
    """
    was, now = ({each.item for each in rows} for rows in (before, after))
    return 2 * len(was & now) >= min(len(was), len(now))


def compare(before: Sequence[Known], after: Sequence[Known], values: tuple[Digest, Digest] = ("", "")) -> Changes:
    """Return what is otherwise after a run than before it, each list in order.

    Args:
        before: What was known after the run before.
        after: What is known after this one.
        values: The digests of the merged value before and after; empty where there is none.
    """
    was, now = ({each.name: each for each in rows} for rows in (before, after))
    both = [(was[name], each) for name, each in now.items() if name in was]
    changed = [(old, new) for old, new in both if new.answered and old.digest and old.digest != new.digest]
    return Changes(
        earlier="found",
        new=_named(now.keys() - was.keys()),
        gone=_named(was.keys() - now.keys()),
        changed=tuple(
            Change(brief=new.brief, item=new.item, before=_said(old), after=_said(new))
            for old, new in sorted(changed, key=lambda pair: place_of(*pair[1].name))
        ),
        closed=_named(new.name for old, new in both if new.answered and not old.answered),
        opened=_named(new.name for old, new in both if old.answered and not new.answered),
        merged=all(values) and values[0] != values[1],
    )


def _known(outcome: Outcome, before: Known | None) -> Known:
    if outcome.status == "succeeded":
        return Known(outcome.brief, outcome.item, True, outcome.fingerprint, digest(outcome.value))  # noqa: FBT003 -- a row
    return before._replace(answered=False) if before else Known(outcome.brief, outcome.item, answered=False)


def _named(names: Iterable[tuple[str, str]]) -> tuple[Ref, ...]:
    return tuple(named(*name) for name in sorted(names, key=lambda name: place_of(*name)))


def _said(row: Known) -> Said:
    return Said(fingerprint=row.fingerprint, digest=row.digest)
