"""Who competes with whom: the variants among the answers, equal ones as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.fingerprint import digest
from prefect_dispatch.integrators.values import content
from prefect_dispatch.ledger import Ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models import Outcome

LONGEST_NAME = 120
"""Characters of a variant's name in the key of a question; keys have a limit of their own."""


class Variant(NamedTuple):
    """One thing that competes."""

    key: str
    """What an A/B tool calls it: made of the contest's name and the content, so that it stays while they do."""
    value: JsonValue
    """The answer."""
    refs: tuple[Ref, ...]
    """The outcomes that say it, in the order of every list; the first one stands for all."""

    @property
    def name(self) -> str:
        """What people call it: `brief/item` of the outcome that stands for it."""
        return str(self.refs[0])

    @property
    def label(self) -> str:
        """Return the name, cut where it is too long for the key of a question."""
        return self.name if len(self.name) <= LONGEST_NAME else f"{self.name[:LONGEST_NAME]}… {self.key}"


class Contest(NamedTuple):
    """Variants of one thing, which are ranked among each other and with no others."""

    name: str
    """The item that all of them are for; the brief, where there is one only."""
    variants: tuple[Variant, ...]
    """In the order of their keys, which is as good as chance, and always the same."""

    def variant(self, key: str) -> Variant:
        """Return the variant of a key.

        Raises:
            KeyError: If there is none.
        """
        return {variant.key: variant for variant in self.variants}[key]


def contests(outcomes: Iterable[Outcome]) -> list[Contest]:
    """Return the contests among outcomes that succeeded.

    Several briefs are rivals on each item: a contest for each item that some brief answered. With a
    single brief the items are rivals, and there is one contest.

    Example:
        >>> from prefect_dispatch.models import Outcome
        >>> said = [Outcome(brief=name, item="mug", status="succeeded", value=name) for name in ("bold", "calm")]
        >>> [contest] = contests(said)
        >>> contest.name, sorted(variant.name for variant in contest.variants)
        ('mug', ['bold/mug', 'calm/mug'])
    """
    ranked = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
    rivals = len({outcome.brief for outcome in ranked}) > 1
    groups: dict[str, list[Outcome]] = {}
    for outcome in ranked:
        if outcome.status == "succeeded":
            groups.setdefault(outcome.item if rivals else outcome.brief, []).append(outcome)
    return [_contest(name, group, apart=name if rivals else "") for name, group in groups.items()]


def _contest(name: str, outcomes: Sequence[Outcome], *, apart: str) -> Contest:
    equal: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        equal.setdefault(content(outcome.value), []).append(outcome)
    variants = [
        Variant(f"v-{digest([apart, text])[:12]}", group[0].value, tuple(map(Ref.of, group)))
        for text, group in equal.items()
    ]
    return Contest(name, tuple(sorted(variants, key=lambda variant: variant.key)))
