"""Work that starts from the changes of other work: it has a fingerprint once what it needs is finished.

The commit that it starts from is part of its brief, so a stored answer is never used on another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from prefect_dispatch.errors import DispatchError
from prefect_dispatch.executors.base import fingerprint, original_name
from prefect_dispatch.models.brief import find_needed
from prefect_dispatch.models.ledger import Ref, make_ref
from prefect_dispatch.models.outcome import Failure, Outcome
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.tasks.work_item import WorkItem, WorkResult

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models.brief import Brief

StartMerger = Callable[[Sequence[Outcome], Mapping[str, Sequence[str]]], str]
"""Function that merges the changes of some outcomes, and returns the commit: see `MergeBranches.merge_start`."""
KIND = "needs"
"""The failure kind of work whose needs have no answer, or can't be merged."""


class DependentWork:
    """Work that waits for the answers that it starts from.

    What becomes of it depends on these answers alone, and not on the order in which they come.

    Attributes:
        waiting: The work that waits, in order.
    """

    def __init__(
        self, work: Iterable[WorkItem], briefs: Iterable[Brief], executor: Executor, merge: StartMerger | None
    ) -> None:
        """Collect the work that needs other work.

        Args:
            work: All work; that without needs is left out.
            briefs: The briefs of the job.
            executor: The executor of the work.
            merge: Merges what some work needs. None: no work needs any.
        """
        self.waiting = [each for each in work if each.brief.needs]
        self._briefs = [*briefs] if self.waiting else []
        self._needs = {brief.name: brief.needs for brief in self._briefs}
        self._originals = {brief.name: original_name(brief) for brief in self._briefs}
        self._all_needs = find_needed(self._needs)
        self._executor, self._merge = executor, merge
        self._outcomes: dict[Ref, Outcome] = {}

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Add outcomes of finished work."""
        if self.waiting:
            self._outcomes |= {Ref.of(each): each for each in outcomes}

    def pop_ready(self) -> list[tuple[WorkItem, WorkItem | WorkResult]]:
        """Return the work whose needs are finished, each with the work to do, or with its result."""
        ready: list[WorkItem] = []
        waiting: list[WorkItem] = []
        for each in self.waiting:
            (ready if self._needed_refs(each).issubset(self._outcomes) else waiting).append(each)
        self.waiting = waiting
        return [(each, self._resolve(each)) for each in ready]

    def drain(self) -> list[WorkItem]:
        """Remove and return all work that waits."""
        waiting, self.waiting = self.waiting, []
        return waiting

    def _needed_refs(self, work: WorkItem) -> set[Ref]:
        return {make_ref(name, work.item.key) for name in self._all_needs[work.brief.name]}

    def _resolve(self, work: WorkItem) -> WorkItem | WorkResult:
        # 1. Without one of its needs, it isn't asked; the direct ones are named, with what became of them. Of several
        #    candidates, one with an answer is enough.
        direct = [self._outcomes[make_ref(name, work.item.key)] for name in sorted(work.brief.needs)]
        answered = {self._originals[each.brief] for each in direct if each.status == "succeeded"}
        missing = [each for each in direct if self._originals[each.brief] not in answered]
        if missing:
            why = " and ".join(f"{str(Ref.of(each))!r}, which {_describe_end(each)}" for each in missing)
            return _not_asked(work, f"it needs {why}.")
        # 2. Else it starts from the merge of all that it needs, of which its fingerprint has the commit.
        needed = sorted(self._needed_refs(work), key=lambda ref: ref.order)
        try:
            start = self._merge([self._outcomes[ref] for ref in needed], self._needs) if self._merge else ""
        except DispatchError as error:
            return _not_asked(work, redact(str(error)))
        brief = work.brief.model_copy(update={"start": start})
        return WorkItem(brief, work.item, fingerprint(brief, work.item, self._executor))


def _not_asked(work: WorkItem, why: str) -> WorkResult:
    return WorkResult(work, "skipped", error=Failure(kind=KIND, message=f"Not asked: {why}"))


def _describe_end(outcome: Outcome) -> str:
    kind = f" ({outcome.error.kind})" if outcome.error else ""
    return f"{'has failed' if outcome.status == 'failed' else 'was skipped'}{kind}"
