"""How a merge went: everything that its value, its ledger, its tables and its review are written from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.branches.folding import start
from prefect_dispatch.integrators.branches.trees import Entry, differences, shown
from prefect_dispatch.ledger import Ref

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.branches.folding import Rule, Settled, Standing, Step
    from prefect_dispatch.integrators.branches.ground import Ground
    from prefect_dispatch.integrators.branches.history import History
    from prefect_dispatch.integrators.branches.lining import Branch, Lined
    from prefect_dispatch.integrators.branches.trees import Differences
    from prefect_dispatch.integrators.branches.trying import Verdict
    from prefect_dispatch.models import Outcome


class Course(NamedTuple):
    """How a merge went."""

    ground: Ground
    """The repository and the base."""
    outcomes: Sequence[Outcome]
    """Every outcome, those without an answer included, in the order of every list."""
    lined: Lined
    """Their changes."""
    steps: Sequence[Step]
    """What became of each, in the order in which they were merged."""
    verdicts: Sequence[Verdict]
    """What the acceptance command said, in the order in which it was asked."""
    rule: Rule
    """What decides conflicts."""
    history: History
    """The commits that are published."""

    @property
    def end(self) -> Standing:
        """What it came to."""
        return self.steps[-1].after if self.steps else start(self.ground)

    @property
    def accepted(self) -> bool | None:
        """Whether what it came to passes; None where that is unknown."""
        said = next((each.said for each in self.verdicts if each.tree == self.end.tree), "unknown")
        return None if said == "unknown" else said == "green"

    @property
    def answered(self) -> tuple[Ref, ...]:
        """The outcomes with an answer."""
        return tuple(Ref.of(each) for each in self.outcomes if each.status == "succeeded")

    @property
    def conflicts(self) -> Iterator[tuple[Step, Settled]]:
        """Each conflict that decided about something, with the change that came later."""
        for step in self.steps:
            if step.end != "refused":
                yield from ((step, each) for each in step.settled)


class File(NamedTuple):
    """One file that is otherwise than in the base."""

    path: str
    """Its path."""
    after: Entry | None
    """What stands there; None: nothing."""
    sources: tuple[Branch, ...]
    """The changes that it comes from: those that leave just that there, else all merged ones that touch it."""
    kept: bool
    """Whether it is just what those changes leave there."""

    @property
    def value(self) -> dict[str, JsonValue]:
        """What is told of it."""
        return {**told(self.path, self.after), "by": [str(each.ref) for each in self.sources]}


def told(path: str, entry: Entry | None) -> dict[str, JsonValue]:
    """Return what is told of what stands at a path."""
    mode, blob = entry or Entry("", "")
    return {"path": shown(path), "mode": mode, "blob": blob}


def changed_files(course: Course) -> list[File]:
    """Return what is otherwise than in the base, in the order of the paths."""
    found: Differences = differences(course.ground.git, course.ground.base, course.end.commit)
    files: list[File] = []
    for path in sorted(found):
        after = found[path].after
        touching = [each for each in course.end.by if path in each.files]
        just = [each for each in touching if each.files[path].after == after]
        files.append(File(path, after, tuple(just or touching), bool(just)))
    return files
