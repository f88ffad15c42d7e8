"""Map-reduce over answers within the model's context: drafts of groups of answers, then merges of drafts.

Every step is one query, and every draft is reviewed against the answers that went into it. Its faults are sent
back in a new query together with the draft, so that each draft is stored like any other answer: an imperfect draft
is kept, and no step is paid for twice. Of several drafts the one with the fewest faults is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.executors.base import BaseExecutor
from prefect_dispatch.integrators.base import Question
from prefect_dispatch.integrators.synthesize.answer_index import indent_lines
from prefect_dispatch.integrators.synthesize.output_format import Draft
from prefect_dispatch.models.item import Item
from prefect_dispatch.security.escaping import count_noun

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.synthesize.answer_index import Source
    from prefect_dispatch.integrators.synthesize.output_format import DraftFormat
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.outcome import Outcome

BYTES_PER_TOKEN = 3
"""Estimate for an executor that can't count tokens; English has about four bytes per token."""
DRAFT_SHARE = 8
"""A draft may take one part in eight of the context, so that a revision can hold draft, faults and sources."""


DROPPED = re.compile(r"(?s)too long for a context of \d+ tokens|its part could not be written: .*")
"""Reasons why an answer was left out."""
NOT_WRITTEN = re.compile(
    r"(?s)\d+ answers? (?:is|are) too long for a context of \d+ tokens, and only reported verbatim\."
    r"|The answers were written up in \d+ parts that could not be merged into one\."
    r"|The part on .* could not be written \(.*\); it is reported verbatim\."
    r"|\d+ parts? could not be merged \(.*\); they stand one after another\."
)
"""Shortfalls of a reduction."""


class Node(NamedTuple):
    """A contiguous group of the answers, as it is shown to the model."""

    sort_key: int
    """Sort key: the number of the first answer in it."""
    numbers: tuple[int, ...]
    """Numbers of the answers that it covers."""
    text: str
    """The text for the prompt."""
    draft: Draft | None = None
    """The draft written of the group; None for an answer itself."""


@dataclass
class ReduceResult:
    """Result of the reduction."""

    nodes: list[Node] = field(default_factory=list["Node"])
    """The remaining drafts, in order; more than one where they could not be merged."""
    dropped: dict[int, str] = field(default_factory=dict[int, str])
    """Reasons why answers were left out, by their numbers."""
    shortfalls: list[str] = field(default_factory=list[str])
    """What could not be done, one sentence each, for the report."""
    levels: int = 0
    """Number of levels: the first draft is level 1, each merge one more."""


def estimate_tokens(executor: Executor, brief: Brief, text: str) -> int:
    """Return the number of tokens of a query; estimated from its bytes if the executor can't count.

    Args:
        executor: The executor that would get the query.
        brief: The query's brief.
        text: The query's item.
    """
    counted = BaseExecutor.of(executor).count_tokens(brief, Item(key="counted", value=text))
    if counted is not None:
        return counted
    texts = [brief.scope, brief.instructions, *brief.constraints, str(brief.output), text]
    return ceil(sum(len(part.encode()) for part in texts) / BYTES_PER_TOKEN)


@dataclass(frozen=True)
class Reducer:
    """Reduces answers to as few drafts as the context allows, ideally one."""

    briefs: Mapping[str, Brief]
    """The briefs for the steps `write`, `merge` and `revise`."""
    form: DraftFormat
    """The output format, which reviews drafts."""
    sources: Sequence[Source]
    """All answers."""
    ask: Asker
    """Runs the queries."""
    executor: Executor
    """The executor of the queries."""
    context: int
    """Tokens of a query and its response together."""
    reasks: int
    """How often a draft is sent back at most."""

    @cached_property
    def _brief_tokens(self) -> dict[str, int]:
        return {name: estimate_tokens(self.executor, brief, "") for name, brief in self.briefs.items()}

    @property
    def _input_tokens(self) -> int:
        """Tokens for the answers, or the drafts, in one query."""
        return self.context - max(self._brief_tokens.values()) - 3 * self._draft_tokens

    @property
    def _draft_tokens(self) -> int:
        return self.context // DRAFT_SHARE

    def reduce(self) -> ReduceResult:
        """Return the drafts that remain when none can be merged any more."""
        # 1. Leave out answers that don't fit into a query of their own.
        result = ReduceResult()
        nodes: list[Node] = []
        for source in self.sources:
            if self._token_size(source.block) > self._input_tokens:
                result.dropped[source.number] = f"too long for a context of {self.context} tokens"
            else:
                nodes.append(Node(source.number, (source.number,), source.block))
        if result.dropped:
            result.shortfalls.append(
                f"{count_noun(len(result.dropped), 'answer')} {'is' if len(result.dropped) == 1 else 'are'} too long "
                f"for a context of {self.context} tokens, and only reported verbatim."
            )
        # 2. Write drafts of groups of answers, then merge groups of drafts, level by level.
        while groups := self._group_nodes(nodes, first=not result.levels):
            result.levels += 1
            nodes = self._reduce_level(groups, result)
        # 3. Put back drafts that could not be merged.
        result.nodes = sorted([*result.nodes, *nodes], key=lambda node: node.sort_key)
        if len(result.nodes) > 1:
            result.shortfalls.append(
                f"The answers were written up in {len(result.nodes)} parts that could not be merged into one."
            )
        return result

    def _token_size(self, text: str) -> int:
        """Return the tokens that a text adds to a query."""
        return estimate_tokens(self.executor, self.briefs["write"], text + "\n\n") - self._brief_tokens["write"]

    def _group_nodes(self, nodes: Sequence[Node], *, first: bool) -> list[list[Node]]:
        """Return consecutive nodes in groups that fit into one query each; empty if no merge is possible."""
        groups: list[list[Node]] = []
        tokens_left = 0
        for node in nodes:
            size = self._token_size(_format_part(0, node))
            if not groups or size > tokens_left:
                groups.append([])
                tokens_left = self._input_tokens
            groups[-1].append(node)
            tokens_left -= size
        return groups if first or any(len(group) > 1 for group in groups) else []

    def _reduce_level(self, groups: Sequence[Sequence[Node]], result: ReduceResult) -> list[Node]:
        """Return one node for each group that could be written; record the failure of the others."""
        # A group of a single draft needs no query: it moves up as it is.
        drafts = iter(self._write_drafts([group for group in groups if not _is_written(group)], result.levels))
        nodes: list[Node] = []
        for group in groups:
            if _is_written(group):
                nodes += group
                continue
            draft = next(drafts)
            if draft.failure:
                self._record_failure(group, draft.failure, result)
            else:
                nodes.append(Node(group[0].sort_key, draft.cited, self.form.render_for_prompt(draft), draft))
        return nodes

    def _record_failure(self, group: Sequence[Node], why: str, result: ReduceResult) -> None:
        """Record a group that could not be written: its answers are left out, its drafts are kept unmerged."""
        if group[0].draft is None:
            numbers = [node.sort_key for node in group]
            what = f"{count_noun(len(numbers), 'answer')} ([{numbers[0]}] to [{numbers[-1]}])"
            result.dropped.update(dict.fromkeys(numbers, f"its part could not be written: {why}"))
            result.shortfalls.append(f"The part on {what} could not be written ({why}); it is reported verbatim.")
        else:
            result.nodes += group
            result.shortfalls.append(
                f"{count_noun(len(group), 'part')} could not be merged ({why}); they stand one after another."
            )

    def _write_drafts(self, groups: Sequence[Sequence[Node]], level: int) -> list[Draft]:
        """Return the best draft for each group."""
        # 1. The first draft of each group.
        texts = {
            at: "\n\n".join(_format_part(part, node) for part, node in enumerate(group, 1))
            for at, group in enumerate(groups)
        }
        latest = best = self._query_drafts("write" if level == 1 else "merge", texts, groups, f"{level}")
        # 2. Revisions of all drafts with faults, one round of queries after another.
        for again in range(1, self.reasks + 1):
            revisions = {at: text for at, draft in latest.items() if (text := self._revision_prompt(texts[at], draft))}
            latest = self._query_drafts("revise", revisions, groups, f"{level}-again-{again}")
            best = {at: min(draft, latest.get(at, draft), key=_rank) for at, draft in best.items()}
        return list(best.values())

    def _revision_prompt(self, text: str, draft: Draft) -> str | None:
        """Return the text for the revision of a draft; None if it has no faults, or if the text doesn't fit."""
        if not draft.faults:
            return None
        faults = "\n".join(f"    - {' '.join(fault.split())}" for fault in draft.faults)
        text = f"{text}\n\nDraft:\n{indent_lines(self.form.render_for_prompt(draft))}\n\nFaults:\n{faults}"
        fits = estimate_tokens(self.executor, self.briefs["revise"], text) + self._draft_tokens <= self.context
        return text if fits else None

    def _query_drafts(
        self, step: str, texts: Mapping[int, str], groups: Sequence[Sequence[Node]], stage: str
    ) -> dict[int, Draft]:
        """Ask for drafts, and return a reviewed one, or one with the kind of the error, for each group.

        Args:
            step: Name of the brief.
            texts: The text of each query, by the index of its group.
            groups: All groups.
            stage: Prefix of the items' keys.
        """
        questions = [
            Question(brief=self.briefs[step], item=Item(key=f"{stage}-part-{at + 1}", value=text))
            for at, text in texts.items()
        ]
        drafts: dict[int, Draft] = {}
        for at, outcome in zip(texts, self.ask(questions, self.executor), strict=True):
            wanted = [number for node in groups[at] for number in node.numbers]
            drafts[at] = (
                self.form.review_response(outcome.value, self.sources, wanted)
                if outcome.status == "succeeded"
                else Draft(None, (), (), failure_kind(outcome))
            )
        return drafts


def failure_kind(outcome: Outcome) -> str:
    """Return the kind of the error of an outcome without an answer."""
    return outcome.error.kind if outcome.error else outcome.status


def _is_written(group: Sequence[Node]) -> bool:
    return len(group) == 1 and group[0].draft is not None


def _rank(draft: Draft) -> tuple[bool, bool, int]:
    """Return the sort key of a draft: usable ones first, by number of faults; then unusable ones; errors last."""
    return (bool(draft.failure), draft.content is None, len(draft.faults))


def _format_part(at: int, node: Node) -> str:
    return node.text if node.draft is None else f"Part {at}:\n{indent_lines(node.text)}"
