"""How alike two named things are, field by field, and whether that is enough."""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ConfigDict, Field, model_validator

from prefect_dispatch.integrators.records.likeness import LOOSELY_EQUAL, Likeness, Shape, likeness, shape
from prefect_dispatch.integrators.records.normalising import comparable
from prefect_dispatch.integrators.records.rules import FieldPath
from prefect_dispatch.integrators.values import content
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from pydantic import JsonValue
    from typing_extensions import Self

    from prefect_dispatch.integrators.values import Key

_ROUNDING = 1e-3
_VALUES = 8  # values of one field, of records of one identity, that are compared one by one


class Matching(Strict):
    """Finds records that are the same although their identities are spelt differently."""

    model_config = ConfigDict(title="Matching")

    sure: float = Field(default=0.95, gt=0, le=1)
    """Records at least so alike become one, unless a number, a symbol or a whole word speaks against it."""
    propose: float = Field(default=0.85, gt=0, le=1)
    """Records at least so alike, but not surely the same, are proposed in the report and left apart."""
    fields: tuple[FieldPath, ...] = ()
    """Fields that are compared beside the identity, such as a place or a date; what is missing doesn't count."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.propose > self.sure:
            raise ValueError(f"'propose' ({self.propose}) is above 'sure' ({self.sure}); it must not be")
        return self


class Name(NamedTuple):
    """An identity that some record has, and what else is compared."""

    key: Key
    """What records of this identity share."""
    within: str
    """What must be equal for names to be compared at all."""
    shapes: Mapping[str, Shape]
    """The fields of the identity, as they are compared."""
    evidence: Mapping[str, tuple[Shape, ...]]
    """What records of this identity have in each of the other fields."""

    @property
    def ordered(self) -> str:
        """The identity as one text, its words sorted."""
        return "\n".join([each.ordered for each in self.shapes.values()])

    @property
    def text(self) -> str:
        """The identity as one text."""
        return "\n".join([each.text for each in self.shapes.values()])


class Match(NamedTuple):
    """How alike two names are."""

    score: float
    """From 0 to 1."""
    why: str
    """What was compared, in a sentence."""
    sure: bool
    """Whether they are taken for the same."""


def shape_of(value: JsonValue) -> Shape:
    """Return a value as it is compared: a number by its text, what is neither number nor text as a whole."""
    plain = comparable(value)
    if isinstance(plain, str):
        return shape(plain)
    is_number = isinstance(plain, (int, float)) and not isinstance(plain, bool)
    return shape(content(plain)) if is_number else Shape.whole(content(plain))


def match(one: Name, other: Name, matching: Matching, words: Container[str] = ()) -> Match | None:
    """Return how alike two names are: the mean over their fields; None if that is too little to mention.

    Args:
        one: A name.
        other: Another.
        matching: The thresholds.
        words: Words that are no slips of one another.
    """
    found: dict[str, Likeness] = {}
    short = 0.0
    for name in sorted(one.shapes, key=lambda name: len(one.shapes[name].tokens)):  # what takes the least time first
        found[name] = likeness(one.shapes[name], other.shapes[name], words)
        short += 1 - found[name].score
        if short > (1 - matching.propose) * (len(one.shapes) + len(one.evidence)) + _ROUNDING:
            return None  # whatever the rest is like
    alike = {name: found[name] for name in one.shapes}
    beside = {name: _best(each, other.evidence[name], words) for name, each in one.evidence.items()}
    scores = {name: score for name, score in beside.items() if score is not None}
    scores = {**{name: each.score for name, each in alike.items()}, **scores}
    score = min(round(fsum(scores.values()) / len(scores), 4), LOOSELY_EQUAL)
    if score < matching.propose:
        return None
    doubt = next((each.doubt for each in alike.values() if each.doubt), "")
    if doubt:
        score = min(score, max(matching.propose, round(matching.sure - 0.01, 4)))
    compared = ", ".join(f"{name!r} {value:g}" for name, value in scores.items())
    return Match(score, f"Alike: {compared}{'; but ' if doubt else ''}{doubt}.", score >= matching.sure and not doubt)


def _best(one: Sequence[Shape], other: Sequence[Shape], words: Container[str]) -> float | None:
    """Return how alike the most alike of several values are, or None where there are none to compare."""
    if not one or not other:
        return None
    if {each.source for each in one} & {each.source for each in other}:
        return 1.0
    return max(likeness(a, b, words).score for a in one[:_VALUES] for b in other[:_VALUES])
