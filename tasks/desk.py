"""What an integrator asks an agent: the same task runs, the same store, the same accounts as all other work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.errors import DispatchError, TerminalError
from prefect_dispatch.fingerprint import fingerprint
from prefect_dispatch.ledger import Ref
from prefect_dispatch.tasks.fan_out import FanOut
from prefect_dispatch.tasks.independence import Independence
from prefect_dispatch.tasks.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Question
    from prefect_dispatch.limits import Limits
    from prefect_dispatch.models import Outcome
    from prefect_dispatch.progress import Progress


class Desk:
    """Puts an integrator's questions to agents, and keeps every outcome.

    Attributes:
        asked: What came of each question so far; a question that was put twice stands here once.
    """

    def __init__(
        self, executor: Executor, limits: Limits, *, refresh: bool = False, known: Sequence[Outcome] = ()
    ) -> None:
        """Keep who is asked, how the asking is bounded, whether stored answers are passed over, and what is known."""
        self._executor = executor
        self._limits = limits
        self._refresh = refresh
        self._answers = {(outcome.fingerprint, Ref.of(outcome)): outcome for outcome in known}

    @property
    def executor(self) -> Executor:
        """Who is asked unless a call names somebody else."""
        return self._executor

    @property
    def asked(self) -> tuple[Outcome, ...]:
        """What came of each question so far."""
        return tuple(self._answers.values())

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:
        """Return one outcome for each question, in their order; what was asked before is not asked again.

        Raises:
            TerminalError: If every question would fail in the same way.
        """
        who = executor or self._executor
        work = [Work(each.brief, each.item, fingerprint(each.brief, each.item, who)) for each in questions]
        new = {_name(each): each for each in work if _name(each) not in self._answers}
        if new:
            again = {work for work, _ in new} if self._refresh else ()
            fan_out = FanOut(
                list(new.values()), who, self._limits, independence=Independence(), again=again, tell=_silent
            )
            for outcome in fan_out.run():
                self._answers[outcome.fingerprint, Ref.of(outcome)] = outcome
            if fan_out.stopped:
                raise TerminalError(fan_out.stopped)
        return [self._answers[_name(each)] for each in work]


class Recall:
    """Answers an integrator's questions from what a desk has, and asks nobody."""

    def __init__(self, desk: Desk) -> None:
        """Keep the desk."""
        self._desk = desk
        self._answers = {(outcome.fingerprint, Ref.of(outcome)): outcome for outcome in desk.asked}

    @property
    def executor(self) -> Executor:
        """Who was asked unless a call named somebody else."""
        return self._desk.executor

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:
        """Return what came of the questions.

        Raises:
            DispatchError: If one was never put: the integrator asks something else each time.
        """
        who = executor or self.executor
        names = [(fingerprint(q.brief, q.item, who), Ref(brief=q.brief.name, item=q.item.key)) for q in questions]
        if new := [str(ref) for work, ref in names if (work, ref) not in self._answers]:
            raise DispatchError(f"Merging once more asked something new: {', '.join(new)}.")
        return [self._answers[name] for name in names]


def _name(work: Work) -> tuple[str, Ref]:
    return work.fingerprint, work.ref


def _silent(progress: Progress) -> None:
    """Tell nobody: progress is counted in items."""
