"""Who writes in the tests of syntheses: scripts that know how to cite, and the wire to them."""

from __future__ import annotations

import asyncio
import random
import re
from typing import TYPE_CHECKING, Any

from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.errors import ExecutorError, TerminalError
from prefect_dispatch.executors.base import fingerprint
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Failure, Outcome
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Ask, Executor
    from prefect_dispatch.integrators.base import Question


class Desk:
    """Puts questions to executors one after another, each once, through the attempts that every ask goes through."""

    def __init__(self, executor: Executor, *, reasks: int = 0) -> None:
        """Keep who is asked, and how often an answer of a wrong form is sent back."""
        self.executor = executor
        self.questions: list[Question] = []
        self._reasks = reasks
        self._answers: dict[tuple[str, str], Outcome] = {}

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:
        """Return one outcome for each question."""
        return [self._answer(question, executor or self.executor) for question in questions]

    def _answer(self, question: Question, executor: Executor) -> Outcome:
        name = (fingerprint(question.brief, question.item, executor), question.item.key)
        if name not in self._answers:
            self.questions.append(question)
            self._answers[name] = self._asked(question, executor)
        return self._answers[name]

    def _asked(self, question: Question, executor: Executor) -> Outcome:
        names: Any = {"brief": question.brief.name, "item": question.item.key}
        try:
            said = asyncio.run(
                run_attempt(executor, question.brief, question.item, limits=Limits(reasks=self._reasks, timeout_s=30))
            )
        except TerminalError:
            raise
        except ExecutorError as error:
            return Outcome(**names, status="failed", error=Failure(kind=error.kind, message=str(error)))
        return Outcome(**names, status="succeeded", value=said.value)


class Sheet:
    """What a writer gets to see, read back."""

    def __init__(self, ask: Ask) -> None:
        """Read the answers, or the parts, and the draft that is to be mended."""
        text, _, rest = str(ask.item.value).partition("\n\nDraft:\n")
        draft, _, faults = rest.partition("\n\nFaults:\n")
        self.again = bool(rest)
        self.draft = _lines(draft)
        self.faults = _lines(faults)
        self.merging = text.startswith("Part 1:\n")
        self.answers = [(int(n), body[4:]) for n, body in re.findall(r"(?m)^\[(\d+)\] .*:\n(    .*)$", text)]
        self.parts = _lines(re.sub(r"(?m)^Part \d+:$", "", text)) if self.merging else []


def _lines(text: str) -> list[str]:
    return [line[4:] for line in text.split("\n") if line.strip()]


def faithful(ask: Ask) -> JsonValue:
    """Say of each answer what it says, and cite it; keep every line of a part."""
    sheet = Sheet(ask)
    return "\n".join(sheet.parts or [f"It says {text} [{number}]." for number, text in sheet.answers])


def sloppy(seed: int, *, mends: bool = False) -> Callable[[Ask], JsonValue]:
    """Return a writer that forgets a fifth of the answers, cites unknown ones and changes numbers, by chance.

    Args:
        seed: The chance.
        mends: Whether it mends a draft that comes back; else it goes on as before.
    """

    def write(ask: Ask) -> JsonValue:
        if mends and Sheet(ask).again:
            return faithful(ask)
        rng = random.Random(f"{seed}{ask.item.value}")
        kept = [line for line in str(faithful(ask)).split("\n") if rng.random() >= 0.2]
        return "\n".join(_bent(line, rng) for line in kept) or "Nothing."

    return write


def _bent(line: str, rng: random.Random) -> str:
    if rng.random() < 0.2:
        line = re.sub(r"(?<!\[)\b\d+(?= days)", lambda match: str(int(match[0]) + rng.randint(1, 9)), line)
    return f"{line} More stands in [{rng.randint(900, 999)}]." if rng.random() < 0.1 else line


def scripted(script: Callable[[Ask], JsonValue] = faithful) -> ScriptedExecutor:
    """Return an executor with a script."""
    return ScriptedExecutor(script)
