"""From drafts to what is published: the value, where it comes from, and where it can't be trusted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from prefect_dispatch.integrators.gaps import gaps
from prefect_dispatch.integrators.prose.doubts import Finding, claims, findings, known
from prefect_dispatch.integrators.prose.drafts import Draft, leaf_findings, leaves_of
from prefect_dispatch.integrators.prose.judging import Claim
from prefect_dispatch.integrators.prose.publishing import marked, published
from prefect_dispatch.integrators.values import pointer
from prefect_dispatch.ledger import FieldRow, Flag

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.prose.evidence import Source
    from prefect_dispatch.integrators.prose.judging import Verdict
    from prefect_dispatch.models import Outcome

CITED = "cited"
"""The rule of a field that a model wrote, and of which every citation is checked."""
VALUE = "/value"


class Written(NamedTuple):
    """What is published."""

    value: JsonValue
    """The value."""
    fields: tuple[FieldRow, ...]
    """Where it comes from."""
    flags: tuple[Flag, ...]
    """Where it can't be trusted."""


class Text:
    """Prose, with whatever it doesn't cite below it."""

    def __init__(self, drafts: Sequence[Draft], sources: Sequence[Source]) -> None:
        """Put the drafts one after another."""
        self._sources = sources
        self._prose = "\n\n".join(str(draft.content) for draft in drafts)
        self._sentences = claims(self._prose, len(sources))
        self.places: dict[int, str] = {}
        """Where each answer is cited first."""
        for at, sentence in enumerate(self._sentences, 1):
            for number in sentence.cited:
                self.places.setdefault(number, f"cited in sentence {at}")

    @property
    def claims(self) -> list[Claim]:
        """The statements that cite something."""
        return [
            Claim("", each.start, each.end, self._prose[each.start : each.end], each.cited)
            for each in self._sentences
            if each.cited
        ]

    def written(self, verdicts: Iterable[Verdict], outcomes: Sequence[Outcome]) -> Written:
        """Return what is published, with a mark after everything that is doubtful."""
        found = [*findings(self._prose, self._sources), *_contested(verdicts)]
        text, marks = marked(self._prose, found)
        numbers = known(self._prose, len(self._sources))
        also = [source.number for source in self._sources if source.number not in numbers]
        value = published(text, self._sources, also, outcomes)
        flags = [flagged("", mark.finding, mark.text, mark.start, self._sources) for mark in marks]
        return Written(value, (_row("", value, numbers, self._sources),), tuple(flags))


class Value:
    """A value by a schema, with what it doesn't cite beside it."""

    def __init__(self, drafts: Sequence[Draft], sources: Sequence[Source]) -> None:
        """Take the draft that cites most; the first of several."""
        self._sources = sources
        best = (
            max(drafts, key=lambda draft: len(draft.cited)) if drafts else Draft({"value": None, "sources": []}, (), ())
        )
        content = cast("dict[str, Any]", best.content)
        self._value: JsonValue = content["value"]
        leaves = sorted(leaves_of(content, len(sources)), key=lambda leaf: leaf.path)
        self._leaves = [leaf._replace(path=VALUE + leaf.path) for leaf in leaves]
        self._read = [leaf_findings(leaf, sources) for leaf in self._leaves]
        self.places: dict[int, str] = {}
        """Where each answer is cited first."""
        for leaf, (own, _) in zip(self._leaves, self._read, strict=True):
            for number in own:
                self.places.setdefault(number, f"cited at {leaf.path}")

    @property
    def claims(self) -> list[Claim]:
        """The sentences of texts, and the other leaves as `path: value`, with what they cite."""
        found: list[Claim] = []
        for leaf, (own, _) in zip(self._leaves, self._read, strict=True):
            if not own:
                continue
            if not isinstance(leaf.value, str):
                found.append(Claim(leaf.path, None, None, f"{leaf.path}: {json.dumps(leaf.value)}", own))
                continue
            sentences = claims(leaf.value, len(self._sources))
            cites = any(each.cited for each in sentences)
            found += [
                Claim(leaf.path, each.start, each.end, leaf.value[each.start : each.end], each.cited or own)
                for each in sentences
                if each.cited or not cites
            ]
        return found

    def written(self, verdicts: Iterable[Verdict], outcomes: Sequence[Outcome]) -> Written:
        """Return what is published; what is doubtful is named beside the value, which keeps to its schema."""
        contested: dict[str, list[Finding]] = {}
        for verdict in verdicts:
            contested.setdefault(verdict.claim.path, []).extend(_contested([verdict]))
        flags: list[Flag] = []
        for leaf, (_, found) in zip(self._leaves, self._read, strict=True):
            flags += leaf_flags(leaf.path, leaf.value, [*found, *contested.get(leaf.path, ())], self._sources)
        also = [source for source in self._sources if source.number not in self.places]
        read = [(leaf, own) for leaf, (own, _) in zip(self._leaves, self._read, strict=True)]
        return Written(
            {
                "value": self._value,
                "sources": listed(self._sources),
                "cited": {leaf.path: list(own) for leaf, own in read if own},
                "also_reported": [
                    {"brief": source.ref.brief, "item": source.ref.item, "value": source.value} for source in also
                ],
                "unverified": unverified(flags),
                "gaps": gaps(outcomes),
            },
            (
                *(_row(leaf.path, leaf.value, own, self._sources) for leaf, own in read),
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
    """Return findings on a leaf as flags: on the words in question, on its path, or on the whole of what isn't text."""
    return [
        flagged(path, each, path, None, sources)
        if each.kind == "key"
        else flagged(path, each, value[each.start : each.end], each.start, sources)
        if isinstance(value, str)
        else flagged(path, each, json.dumps(value), None, sources)
        for each in found
    ]


def listed(sources: Sequence[Source]) -> dict[str, JsonValue]:
    """Return the answers by their numbers, as data."""
    return {str(source.number): {"brief": source.ref.brief, "item": source.ref.item} for source in sources}


def unverified(flags: Iterable[Flag]) -> list[JsonValue]:
    """Return the flags on a value as the value itself tells them."""
    return [{"path": each.path, "text": each.text, "message": each.message} for each in flags]


def _contested(verdicts: Iterable[Verdict]) -> list[Finding]:
    words = {"contradicted": "The judge found it contradicted", "not_found": "The judge did not find it"}
    return [
        Finding(
            each.label, each.claim.start or 0, each.claim.end or 0, _because(words[each.label], each), each.claim.cited
        )
        for each in verdicts
        if each.label in words
    ]


def _because(words: str, verdict: Verdict) -> str:
    reason = verdict.sentence or verdict.why
    return f"{words}: {reason}" if reason else f"{words} in what is cited."


def flagged(path: str, found: Finding, text: str, start: int | None, sources: Sequence[Source]) -> Flag:
    """Return a finding as a flag on a text."""
    looked = tuple(sources[number - 1].ref for number in found.looked)
    return Flag(path=path, kind=found.kind, text=text, start=start, message=found.message, sources=looked)


def _row(path: str, value: JsonValue, numbers: Sequence[int], sources: Sequence[Source]) -> FieldRow:
    """Return the row of what a model wrote; what cites nothing was written of all answers."""
    refs = tuple(sources[number - 1].ref for number in numbers) or tuple(source.ref for source in sources)
    return FieldRow(path=path, winner=value, rule=CITED, sources=refs)
