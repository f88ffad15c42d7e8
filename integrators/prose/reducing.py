"""From many answers to one text, within what a model can take in: parts first, then parts of parts.

Every step is one question, and every draft is judged by the answers that went in. What is wrong with
it is sent back as a question of its own, draft and faults included, so that each draft is stored like
any other answer: a draft that still isn't right is not lost, and nothing is paid for twice. Of several
drafts the one with the fewest faults is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.executors.base import Countable
from prefect_dispatch.integrators.base import Question
from prefect_dispatch.integrators.prose.doubts import named
from prefect_dispatch.integrators.prose.evidence import indented
from prefect_dispatch.models import Brief, Item

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.prose.drafts import Draft, Form
    from prefect_dispatch.integrators.prose.evidence import Source

BYTES_PER_TOKEN = 3
"""For an executor that can't count; English has about four."""
SHARE = 8
"""A draft has so much of the context (an eighth); the rest of it must hold the draft, its faults and what it is of."""
NO_FORM = "what came is not of the form that was asked for"


class Node(NamedTuple):
    """A stretch of the answers, as a model gets to see it."""

    place: int
    """Where it comes among others: the number of the first answer that went in."""
    numbers: tuple[int, ...]
    """The answers that it is about."""
    text: str
    """What the model sees."""
    draft: Draft | None = None
    """What was written of it; none for an answer itself."""


@dataclass
class Reduced:
    """What came of it."""

    nodes: list[Node] = field(default_factory=list["Node"])
    """One for each draft that is left, in order; more than one where they could not be merged."""
    dropped: dict[int, str] = field(default_factory=dict[int, str])
    """Why answers were not written about, by their numbers."""
    shortfalls: list[str] = field(default_factory=list[str])
    """What could not be done."""
    levels: int = 0
    """How many levels were written."""


def tokens(executor: Executor, brief: Brief, text: str) -> int:
    """Return how many tokens a question has; where an executor can't count, one for every three bytes."""
    if isinstance(executor, Countable):
        return executor.count_tokens(brief, Item(key="counted", value=text))
    said = [brief.scope, brief.instructions, *brief.constraints, str(brief.output), text]
    return ceil(sum(len(part.encode()) for part in said) / BYTES_PER_TOKEN)


class Reducer:
    """Has answers written up."""

    def __init__(
        self,
        briefs: Mapping[str, Brief],
        form: Form,
        sources: Sequence[Source],
        ask: Asker,
        executor: Executor,
        *,
        context: int,
        reasks: int,
    ) -> None:
        """Keep what it takes.

        Args:
            briefs: The briefs by what they are for: `write`, `merge` and `mend`.
            form: How drafts are judged.
            sources: All answers.
            ask: Puts the questions.
            executor: Who is asked.
            context: Tokens that a question and its answer may have together.
            reasks: How often a draft is sent back.
        """
        self._briefs, self._form, self._sources = briefs, form, sources
        self._ask, self._executor, self._reasks = ask, executor, reasks
        self._context = context
        self._draft_room = context // SHARE
        self._fixed = {name: tokens(executor, brief, "") for name, brief in briefs.items()}
        self.room = context - max(self._fixed.values()) - 3 * self._draft_room
        """Tokens of the answers, or of the drafts, in one question."""

    def reduce(self) -> Reduced:
        """Return what is left when nothing more can be merged."""
        done = Reduced()
        nodes: list[Node] = []
        for source in self._sources:
            if self._size(source.block) > self.room:
                done.dropped[source.number] = f"too long for a context of {self._context} tokens"
            else:
                nodes.append(Node(source.number, (source.number,), source.block))
        if done.dropped:
            done.shortfalls.append(
                f"{_many(len(done.dropped), 'answer')} {'is' if len(done.dropped) == 1 else 'are'} too long for "
                f"a context of {self._context} tokens, and only reported verbatim."
            )
        while groups := self._groups(nodes, first=not done.levels):
            done.levels += 1
            nodes = self._level(groups, done)
        done.nodes = sorted([*done.nodes, *nodes], key=lambda node: node.place)
        if len(done.nodes) > 1:
            done.shortfalls.append(
                f"The answers were written up in {len(done.nodes)} parts that could not be merged into one."
            )
        return done

    def _size(self, text: str) -> int:
        return tokens(self._executor, self._briefs["write"], text + "\n\n") - self._fixed["write"]

    def _groups(self, nodes: Sequence[Node], *, first: bool) -> list[list[Node]]:
        """Return nodes in groups that fit into a question each; none where nothing is left to merge."""
        groups: list[list[Node]] = []
        room = 0
        for node in nodes:
            size = self._size(_as_part(0, node))
            if not groups or size > room:
                groups.append([])
                room = self.room
            groups[-1].append(node)
            room -= size
        return groups if first or any(len(group) > 1 for group in groups) else []

    def _level(self, groups: Sequence[Sequence[Node]], done: Reduced) -> list[Node]:
        """Return one node for each group that could be written up; the others are taken account of."""
        asked = [group for group in groups if group[0].draft is None or len(group) > 1]
        drafts = iter(self._drafts(asked, done.levels))
        nodes: list[Node] = []
        for group in groups:
            if len(group) == 1 and group[0].draft is not None:
                nodes.append(group[0])
                continue
            draft = next(drafts)
            if isinstance(draft, str):
                self._failed(group, draft, done)
            else:
                nodes.append(Node(group[0].place, draft.cited, self._form.shown(draft), draft))
        return nodes

    def _failed(self, group: Sequence[Node], why: str, done: Reduced) -> None:
        if group[0].draft is None:
            numbers = [node.place for node in group]
            what = f"{_many(len(numbers), 'answer')} ({named(numbers[:1])} to {named(numbers[-1:])})"
            done.dropped.update(dict.fromkeys(numbers, f"its part could not be written: {why}"))
            done.shortfalls.append(f"The part on {what} could not be written ({why}); it is reported verbatim.")
        else:
            done.nodes += group
            done.shortfalls.append(
                f"{_many(len(group), 'part')} could not be merged ({why}); they stand one after another."
            )

    def _drafts(self, groups: Sequence[Sequence[Node]], level: int) -> list[Draft | str]:
        """Return the best draft for each group, or why there is none."""
        texts = [_joined(group) for group in groups]
        kind = "write" if level == 1 else "merge"
        best = self._answers([(kind, at, texts[at]) for at in range(len(groups))], groups, f"{level}")
        latest = dict(enumerate(best))
        for again in range(1, self._reasks + 1):
            sent = [(at, text) for at, draft in latest.items() if (text := self._sent_back(texts[at], draft))]
            answers = self._answers(
                [("mend", at, text) for at, text in sent], [groups[at] for at, _ in sent], f"{level}-again-{again}"
            )
            latest = {at: draft for (at, _), draft in zip(sent, answers, strict=True)}
            best = [min(draft, latest.get(at, draft), key=_rank) for at, draft in enumerate(best)]
        return [NO_FORM if not isinstance(draft, str) and not draft.usable else draft for draft in best]

    def _sent_back(self, text: str, draft: Draft | str) -> str | None:
        """Return what a model sees that is to mend a draft; None where there is nothing to mend, or no room."""
        if isinstance(draft, str) or not draft.faults:
            return None
        faults = "\n".join(f"    - {' '.join(fault.split())}" for fault in draft.faults)
        text = f"{text}\n\nDraft:\n{indented(self._form.shown(draft))}\n\nFaults:\n{faults}"
        fits = tokens(self._executor, self._briefs["mend"], text) + self._draft_room <= self._context
        return text if fits else None

    def _answers(
        self, sent: Sequence[tuple[str, int, str]], groups: Sequence[Sequence[Node]], stage: str
    ) -> list[Draft | str]:
        questions = [
            Question(brief=self._briefs[kind], item=Item(key=f"{stage}-part-{at + 1}", value=text))
            for kind, at, text in sent
        ]
        outcomes = self._ask(questions, self._executor) if questions else []
        return [
            self._form.read(outcome.value, self._sources, [number for node in group for number in node.numbers])
            if outcome.status == "succeeded"
            else (outcome.error.kind if outcome.error else outcome.status)
            for outcome, group in zip(outcomes, groups, strict=True)
        ]


def _rank(draft: Draft | str) -> tuple[int, int]:
    """Rank a draft by its faults; what can't be used comes after all others, and none at all last."""
    return (2, 0) if isinstance(draft, str) else (1 - draft.usable, len(draft.faults))


def _joined(group: Sequence[Node]) -> str:
    return "\n\n".join(_as_part(at, node) for at, node in enumerate(group, 1))


def _as_part(at: int, node: Node) -> str:
    return node.text if node.draft is None else f"Part {at}:\n{indented(node.text)}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
