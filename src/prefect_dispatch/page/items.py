"""The pages of single items: what was asked, each attempt, each invalid answer, and the answer; in blocks.

A block is read by the browser when somebody opens one of its items, so that a page of many opens at once.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from prefect_dispatch.inert import shown as shown_value
from prefect_dispatch.ledger import Ref
from prefect_dispatch.outputs import show_output
from prefect_dispatch.page.texts import length_for, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.ledger import FieldRow
    from prefect_dispatch.models import Attempt, Brief, Item, Outcome
    from prefect_dispatch.page.texts import Texts

BLOCK = 100
"""Items of one block."""
LONGEST = 4_000
"""Characters of one text of a brief."""
SHORT = 300
"""Characters of a merged field's value."""
MOST_FIELDS = 40
"""Merged fields that an item's page tells of."""
MOST_ATTEMPTS = 20
"""Attempts of one item that are shown; of an item in many parts there may be more."""


class ItemPages:
    """The pages of the items of a report."""

    def __init__(
        self,
        outcomes: Sequence[Outcome],
        briefs: Sequence[Brief],
        items: Sequence[Item],
        fields: Sequence[FieldRow],
        texts: Texts,
    ) -> None:
        """Take what they are made of.

        Args:
            outcomes: What came of each (brief, item), in the order of the page's rows.
            briefs: The briefs of the run; what isn't among them is shown without its prompt.
            items: The items of the run.
            fields: How each merged field came about.
            texts: Shows their texts.
        """
        self._outcomes, self._texts = outcomes, texts
        self._gave, self._lost = _merged(fields, texts)
        self._briefs = {brief.name: brief for brief in briefs}
        self._items = {item.key: item for item in items}
        self.length = length_for(_sizes(outcomes, self._items))
        """Characters of each text that is shown."""

    def briefs(self) -> dict[str, Any]:
        """Return what each brief says, placeholders and all."""
        return {
            name: {
                **_said(brief, self._texts),
                "output": self._texts.preview(show_output(brief.output), self.length),
                "checks": [
                    self._texts.preview(_check(check.model_dump(mode="json")), self.length) for check in brief.checks
                ],
                "model": brief.model,
            }
            for name, brief in self._briefs.items()
        }

    def blocks(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the pages, a block at a time."""
        left = iter(self._outcomes)
        while block := list(islice(left, BLOCK)):
            yield [self._page(outcome) for outcome in block]

    def _page(self, outcome: Outcome) -> dict[str, Any]:
        brief, item = self._briefs.get(outcome.brief), self._items.get(outcome.item)
        attempts, ref = outcome.attempts[-MOST_ATTEMPTS:], Ref.of(outcome)
        return {
            "prompt": _rendered(brief, item, self._texts) if brief and item else None,
            "value": self._preview(item.value) if item else None,
            "answer": self._preview(outcome.value) if outcome.status == "succeeded" else None,
            "attempts": [self._attempt(each) for each in attempts],
            "earlier": len(outcome.attempts) - len(attempts),
            "error": self._texts.preview(outcome.failure, LONGEST) if outcome.error else None,
            "gave": self._gave.get(ref, ()),
            "lost": self._lost.get(ref, ()),
            "joined": outcome.joined,
            "fingerprint": outcome.fingerprint,
            "priority": [outcome.brief_priority, outcome.item_priority],
        }

    def _attempt(self, attempt: Attempt) -> dict[str, Any]:
        told = attempt.model_dump(mode="json", exclude={"rejections", "escalations", "error"}, exclude_defaults=True)
        rejections = [
            [self._texts.preview(each.text, self.length), [self._line(problem) for problem in each.problems]]
            for each in attempt.rejections
        ]
        given_up = [self._line(f"{each.kind}: {each.message}") for each in attempt.escalations]
        error = None if attempt.error is None else self._line(attempt.error)
        return {**told, "rejections": rejections, "escalations": given_up, "error": error}

    def _line(self, text: str) -> str:
        return self._texts.line(text, LONGEST)

    def _preview(self, value: JsonValue) -> list[str | int]:
        return self._texts.preview(text_of(value), self.length)


def _sizes(outcomes: Sequence[Outcome], items: Mapping[str, Item]) -> Iterator[int]:
    values = {key: len(text_of(item.value)) for key, item in items.items()}
    for outcome in outcomes:
        yield values.get(outcome.item, 0)
        yield len(text_of(outcome.value))
        for attempt in outcome.attempts[-MOST_ATTEMPTS:]:
            yield from (len(each.text) for each in attempt.rejections)


def _merged(fields: Sequence[FieldRow], texts: Texts) -> tuple[dict[Ref, list[Any]], dict[Ref, list[Any]]]:
    """Return what each outcome gave to the merged value, and what of it a rule removed."""
    gave: dict[Ref, list[Any]] = {}
    lost: dict[Ref, list[Any]] = {}
    for field in fields:
        said = [(gave, field.winner, field.sources), *((lost, each.value, each.sources) for each in field.losers)]
        for told, value, sources in said:
            shown = [field.path, texts.preview(shown_value(value), SHORT), field.rule]
            for ref in sources:
                known = told.setdefault(ref, [])
                if len(known) < MOST_FIELDS:
                    known.append(shown)
    return gave, lost


def _said(brief: Brief, texts: Texts) -> dict[str, Any]:
    return {
        "scope": texts.preview(brief.scope, LONGEST),
        "instructions": texts.preview(brief.instructions, LONGEST),
        "constraints": [texts.preview(each, LONGEST) for each in brief.constraints],
    }


def _rendered(brief: Brief, item: Item, texts: Texts) -> dict[str, Any]:
    """Return the words of a brief that are others for an item than in the brief itself."""
    own = brief.rendered(item)
    if all(getattr(own, name) == getattr(brief, name) for name in ("scope", "instructions", "constraints")):
        return {}
    return _said(own, texts)


def _check(told: dict[str, Any]) -> str:
    kind = str(told.pop("kind"))
    return ", ".join([kind, *(f"{name} {text_of(value)}" for name, value in told.items() if value not in ("", None))])
