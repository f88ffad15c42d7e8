"""Those who try what is merged, and who bring changes together: in place of commands and agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.models.outcome import Failure, Outcome
from tests.integrators.repos import change_of, files_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Question
    from prefect_dispatch.workspaces.git import Git

Seen = dict[str, bytes]
"""The files of a workspace."""


class Crew:
    """Answers the questions of a merge from the files that a workspace would have.

    Attributes:
        tried: After which change something was tried, in order.
        questions: All questions.
    """

    def __init__(
        self,
        git: Git,
        passes: Callable[[Seen], bool | None] = lambda _: True,
        resolves: Callable[[Seen], Any] = lambda _: None,
    ) -> None:
        """Keep how they answer.

        Args:
            git: The repository.
            passes: Whether the acceptance command passes; None if it can't be run.
            resolves: What an agent makes of the files that contradict each other; None if it fails.
        """
        self.git, self._passes, self._resolves = git, passes, resolves
        self.tried: list[str] = []
        self.questions: list[Question] = []

    @property
    def executor(self) -> Executor:
        """A coding agent, which is never started."""
        agent = {"name": "nobody", "argv": ["true"]}
        nowhere = "http://127.0.0.1:9"
        return CodingAgent.model_validate({"agent": agent, "model": "openai/none", "api_base": nowhere})

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:
        """Return one outcome for each question."""
        self.questions += questions
        working: Any = executor
        base = str(working.workspace.base)
        return [self._outcome(each, base) for each in questions]

    def _outcome(self, question: Question, base: str) -> Outcome:
        name, key, files = question.brief.name, question.item.key, files_at(self.git, base)
        if name == "acceptance":
            self.tried.append(key)
            said = self._passes(files)
            if said:
                return Outcome(brief=name, item=key, status="succeeded", value="ok")
            if said is None:
                error = Failure(kind="budget", message="There is no more.")
                return Outcome(brief=name, item=key, status="skipped", error=error)
            error = Failure(kind="exit", message="Exit code 1.\nE assert 1 == 2")
            return Outcome(brief=name, item=key, status="failed", error=error)
        made = self._resolves(files)
        if made is None:
            error = Failure(kind="max_usd", message="Too dear.")
            return Outcome(brief=name, item=key, status="failed", error=error)
        change = change_of(self.git, base, made) if made != "idle" else None
        return Outcome(brief=name, item=key, status="succeeded", value="Done.", change=change)
