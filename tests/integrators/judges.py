"""Judges for tournaments, in place of an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_dispatch.models.outcome import Failure, Outcome
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Question


class Bench:
    """Puts the questions of a tournament to a judge, and remembers them.

    Attributes:
        rounds: How many questions were put at once, each time.
        questions: All of them.
    """

    def __init__(self, judge: Callable[[Any, Any], str | None]) -> None:
        """Keep the judge: a function of both variants that says `first`, `second`, `tie`, or nothing, and so fails."""
        self.judge = judge
        self.rounds: list[int] = []
        self.questions: list[Question] = []

    @property
    def executor(self) -> Executor:
        """Nobody whom a test would ask."""
        return ScriptedExecutor({})

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:
        """Return one outcome for each question."""
        self.rounds.append(len(questions))
        self.questions += questions
        return [self._outcome(question) for question in questions]

    def _outcome(self, question: Question) -> Outcome:
        value: Any = question.item.value
        name, key = question.brief.name, question.item.key
        said = self.judge(value["first"], value["second"])
        if said is None:
            error = Failure(kind="timeout", message="No answer.")
            return Outcome(brief=name, item=key, status="failed", error=error)
        answer: JsonValue = {"winner": said, "reason": f"{said} it is"}
        return Outcome(brief=name, item=key, status="succeeded", value=answer, model="bench")


def larger(first: Any, second: Any) -> str:  # noqa: ANN401 -- whatever the variants are
    """Prefer the larger one: a perfect judge."""
    return "tie" if first == second else "first" if first > second else "second"


def always_first(first: object, second: object) -> str:
    """Prefer whatever stands first."""
    return "first"


def rock_paper_scissors(first: str, second: str) -> str:
    """Prefer in a circle."""
    beats = {"rock": "scissors", "scissors": "paper", "paper": "rock"}
    return "first" if beats.get(first) == second else "second" if beats.get(second) == first else larger(first, second)
