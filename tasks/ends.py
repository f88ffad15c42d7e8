"""What became of a piece of work, and the outcomes that this makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_dispatch.models import Answer, Attempt, Failure, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.tasks.work import Work


class End(NamedTuple):
    """What became of a piece of work."""

    work: Work
    """What was to be done."""
    status: Literal["succeeded", "failed", "skipped"]
    """How it ended."""
    answer: Answer | None = None
    """The answer, with what it took, if there is one."""
    stored: bool = False
    """Whether the answer was stored before."""
    error: Failure | None = None
    """Why there is none."""
    attempts: tuple[Attempt, ...] = ()
    """What was tried, if there is none."""

    def outcomes(self, equal: Sequence[Work], tried: tuple[Attempt, ...]) -> list[Outcome]:
        """Return an outcome for each piece of equal work, the first of which was done for all.

        Args:
            equal: The work.
            tried: What batches of this run had tried beforehand.
        """
        took = self.answer.attempts if self.answer else self.attempts
        stored = self.stored and not tried  # what a batch of this run has stored, this run has asked
        return [
            Outcome(
                brief=each.brief.name,
                item=each.item.key,
                status=self.status,
                value=self.answer.value if self.answer else None,
                change=self.answer.change if self.answer else None,
                error=self.error,
                model=self.answer.model if self.answer else "",
                served_model=self.answer.served_model if self.answer else "",
                attempts=tried if tried and self.stored else (*tried, *took),
                joined=self.answer.joined if self.answer else "",
                origin=None if self.status == "skipped" else "stored" if stored else "shared" if place else "asked",
                fingerprint=each.fingerprint,
                brief_priority=each.brief.priority,
                item_priority=each.item.priority,
            )
            for place, each in enumerate(equal)
        ]
