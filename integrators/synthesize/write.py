"""Result of a synthesis: the value, the field rows with its sources, and the flags on what is unverified."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from prefect_dispatch.integrators.base import gaps
from prefect_dispatch.integrators.synthesize.answer_index import Finding, check_prose, cited_numbers, claim_sentences
from prefect_dispatch.integrators.synthesize.draft_review import Draft, check_leaf, split_into_leaves
from prefect_dispatch.integrators.synthesize.llm_judge import Claim
from prefect_dispatch.integrators.synthesize.render_text import mark_findings, render_document
from prefect_dispatch.models.ledger import FieldRow, Flag
from prefect_dispatch.serialization.json_values import pointer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.synthesize.answer_index import Source
    from prefect_dispatch.integrators.synthesize.llm_judge import Verdict
    from prefect_dispatch.models.outcome import Outcome

CITED = "cited"
"""Rule of a field that a model wrote; the audit checks each of its citations."""
VALUE = "/value"


class SynthesisResult(NamedTuple):
    """Result of a synthesis, as far as it depends on the output format."""

    value: JsonValue
    """The merged value."""
    fields: tuple[FieldRow, ...]
    """The sources of each field."""
    flags: tuple[Flag, ...]
    """The unverified parts."""


class TextResult:
    """Result in prose, followed by the answers that it doesn't cite."""

    def __init__(self, drafts: Sequence[Draft], sources: Sequence[Source]) -> None:
        """Join the drafts."""
        self._sources = sources
        self._prose = "\n\n".join(str(draft.content) for draft in drafts)
        self._sentences = claim_sentences(self._prose, len(sources))
        self.places: dict[int, str] = {}
        """Where each answer is cited first, by its number."""
        for at, sentence in enumerate(self._sentences, 1):
            for number in sentence.cited:
                self.places.setdefault(number, f"cited in sentence {at}")

    @property
    def claims(self) -> list[Claim]:
        """The sentences with citations."""
        return [
            Claim("", each.start, each.end, self._prose[each.start : each.end], each.cited)
            for each in self._sentences
            if each.cited
        ]

    def render_result(self, verdicts: Iterable[Verdict], outcomes: Sequence[Outcome]) -> SynthesisResult:
        """Return the result; a mark follows each unverified part of the text."""
        found = [*check_prose(self._prose, self._sources), *_judge_findings(verdicts)]
        text, marks = mark_findings(self._prose, found)
        numbers = cited_numbers(self._prose, len(self._sources))
        also = [source.number for source in self._sources if source.number not in numbers]
        value = render_document(text, self._sources, also, outcomes)
        flags = [create_flag("", mark.finding, mark.text, mark.start, self._sources) for mark in marks]
        return SynthesisResult(value, (_field_row("", value, numbers, self._sources),), tuple(flags))


class ValueResult:
    """Result as a value by a schema, along with the answers that it doesn't cite."""

    def __init__(self, drafts: Sequence[Draft], sources: Sequence[Source]) -> None:
        """Select the draft that cites most answers; of several, the first."""
        self._sources = sources
        best = (
            max(drafts, key=lambda draft: len(draft.cited)) if drafts else Draft({"value": None, "sources": []}, (), ())
        )
        content = cast("dict[str, Any]", best.content)
        self._value: JsonValue = content["value"]
        leaves = sorted(split_into_leaves(content, len(sources)), key=lambda leaf: leaf.path)
        self._leaves = [leaf._replace(path=VALUE + leaf.path) for leaf in leaves]
        self._leaf_checks = [check_leaf(leaf, sources) for leaf in self._leaves]
        self.places: dict[int, str] = {}
        """Where each answer is cited first, by its number."""
        for leaf, (own, _) in zip(self._leaves, self._leaf_checks, strict=True):
            for number in own:
                self.places.setdefault(number, f"cited at {leaf.path}")

    @property
    def claims(self) -> list[Claim]:
        """The cited sentences of texts, and each other leaf as `path: value`."""
        found: list[Claim] = []
        for leaf, (own, _) in zip(self._leaves, self._leaf_checks, strict=True):
            if not own:
                continue
            if not isinstance(leaf.value, str):
                found.append(Claim(leaf.path, None, None, f"{leaf.path}: {json.dumps(leaf.value)}", own))
                continue
            sentences = claim_sentences(leaf.value, len(self._sources))
            cites = any(each.cited for each in sentences)
            found += [
                Claim(leaf.path, each.start, each.end, leaf.value[each.start : each.end], each.cited or own)
                for each in sentences
                if each.cited or not cites
            ]
        return found

    def render_result(self, verdicts: Iterable[Verdict], outcomes: Sequence[Outcome]) -> SynthesisResult:
        """Return the result; unverified parts are listed beside the value, which keeps to its schema."""
        judge_findings: dict[str, list[Finding]] = {}
        for verdict in verdicts:
            judge_findings.setdefault(verdict.claim.path, []).extend(_judge_findings([verdict]))
        flags: list[Flag] = []
        for leaf, (_, found) in zip(self._leaves, self._leaf_checks, strict=True):
            flags += leaf_flags(leaf.path, leaf.value, [*found, *judge_findings.get(leaf.path, ())], self._sources)
        also = [source for source in self._sources if source.number not in self.places]
        leaf_answers = [(leaf, own) for leaf, (own, _) in zip(self._leaves, self._leaf_checks, strict=True)]
        return SynthesisResult(
            {
                "value": self._value,
                "sources": index_sources(self._sources),
                "cited": {leaf.path: list(own) for leaf, own in leaf_answers if own},
                "also_reported": [
                    {"brief": source.ref.brief, "item": source.ref.item, "value": source.value} for source in also
                ],
                "unverified": unverified_entries(flags),
                "gaps": gaps(outcomes),
            },
            (
                *(_field_row(leaf.path, leaf.value, own, self._sources) for leaf, own in leaf_answers),
                *(
                    FieldRow(
                        path=pointer("also_reported", at, "value"),
                        winner=source.value,
                        rule="verbatim",
                        sources=(source.ref,),
                    )
                    for at, source in enumerate(also)
                ),
            ),
            tuple(flags),
        )


def leaf_flags(path: str, value: JsonValue, found: Iterable[Finding], sources: Sequence[Source]) -> list[Flag]:
    """Return findings on a leaf as flags: on words of a text, on the path (for a key), or on the whole leaf."""
    return [
        create_flag(path, each, path, None, sources)
        if each.kind == "key"
        else create_flag(path, each, value[each.start : each.end], each.start, sources)
        if isinstance(value, str)
        else create_flag(path, each, json.dumps(value), None, sources)
        for each in found
    ]


def index_sources(sources: Sequence[Source]) -> dict[str, JsonValue]:
    """Return brief and item of each answer by its number."""
    return {str(source.number): {"brief": source.ref.brief, "item": source.ref.item} for source in sources}


def unverified_entries(flags: Iterable[Flag]) -> list[JsonValue]:
    """Return flags as entries of the merged value."""
    return [{"path": each.path, "text": each.text, "message": each.message} for each in flags]


def _judge_findings(verdicts: Iterable[Verdict]) -> list[Finding]:
    """Return a finding for each claim that the judge found unsupported."""
    intros = {"contradicted": "The judge found it contradicted", "not_found": "The judge did not find it"}
    return [
        Finding(
            each.label,
            each.claim.start or 0,
            each.claim.end or 0,
            _judge_message(intros[each.label], each),
            each.claim.cited,
        )
        for each in verdicts
        if each.label in intros
    ]


def _judge_message(words: str, verdict: Verdict) -> str:
    reason = verdict.sentence or verdict.why
    return f"{words}: {reason}" if reason else f"{words} in what is cited."


def create_flag(path: str, found: Finding, text: str, start: int | None, sources: Sequence[Source]) -> Flag:
    """Return a finding as a flag.

    Args:
        path: JSON Pointer to the field.
        found: The finding.
        text: The words in question.
        start: Their offset in the field; None if they are not part of it.
        sources: All answers.
    """
    refs = tuple(sources[number - 1].ref for number in found.consulted)
    return Flag(path=path, kind=found.kind, text=text, start=start, message=found.message, sources=refs)


def _field_row(path: str, value: JsonValue, numbers: Sequence[int], sources: Sequence[Source]) -> FieldRow:
    """Return the field row of what a model wrote; without citations, all answers are its sources."""
    refs = tuple(sources[number - 1].ref for number in numbers) or tuple(source.ref for source in sources)
    return FieldRow(path=path, winner=value, rule=CITED, sources=refs)
