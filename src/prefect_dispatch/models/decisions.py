"""Decisions of people about a merge: which records are the same, and which value a field has."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, JsonValue

from prefect_dispatch.models.base import StorableJson, Strict
from prefect_dispatch.serialization.json_text import canonical_json
from prefect_dispatch.serialization.strict_yaml import dump_line

if TYPE_CHECKING:
    from collections.abc import Iterator


Identity = dict[str, JsonValue]
"""The identity of a record: its fields by name, such as `{"name": "MIT"}`."""

Pair = tuple[Identity, Identity]
IdentityNormalizer = Callable[[Identity], Hashable]
"""Returns a normalized identity: equal for all spellings of one record."""

MAX_VALUE_LENGTH = 100
"""Characters of a value that a message shows."""


class Choice(Strict):
    """The value that was chosen for a field."""

    record: Identity
    """The record."""
    field: Annotated[str, Field(min_length=1)]
    """The field's name, or the dotted path of a field inside an object."""
    value: StorableJson
    """The value; it counts only if some record has it."""


class Decisions(Strict):
    """The decisions about a merge.

    Example:
        >>> yes = Decisions(same=(({"name": "MIT"}, {"name": "MIT License"}),))
        >>> no = Decisions(different=(({"name": "MIT License"}, {"name": "MIT"}),))
        >>> yes.combine(no).same
        ()
    """

    same: tuple[Pair, ...] = ()
    """Pairs of records that are the same."""
    different: tuple[Pair, ...] = ()
    """Pairs of records that are different, however similar."""
    fields: tuple[Choice, ...] = ()
    """The values that were chosen."""

    def combine(self, *later: Decisions, normalize: IdentityNormalizer = canonical_json) -> Decisions:
        """Return all decisions, sorted; a later one replaces an earlier one on the same pair or field.

        Args:
            later: Later decisions, in order.
            normalize: Normalizes the identity of a record.
        """
        every = (self, *later)
        pairs = {
            frozenset(map(normalize, pair)): (word, pair) for each in every for word, pair in _labelled_pairs(each)
        }
        fields = {(normalize(each.record), each.field): each for one in every for each in one.fields}
        ordered = sorted(pairs.values(), key=lambda each: sorted(map(canonical_json, each[1])))
        return Decisions(
            same=tuple(pair for word, pair in ordered if word == "same"),
            different=tuple(pair for word, pair in ordered if word == "different"),
            fields=tuple(sorted(fields.values(), key=lambda each: (canonical_json(each.record), each.field))),
        )

    def without(self, others: Decisions, normalize: IdentityNormalizer = canonical_json) -> Decisions:
        """Return the decisions on pairs and fields on which there are no others.

        Args:
            others: The other decisions.
            normalize: Normalizes the identity of a record.

        Example:
            >>> yes = Decisions(same=(({"name": "MIT"}, {"name": "Expat"}),))
            >>> no = Decisions(different=(({"name": "Expat"}, {"name": "MIT"}),))
            >>> no.without(yes), no.without(Decisions()) == no
            (Decisions(same=(), different=(), fields=()), True)
        """
        pairs = {frozenset(map(normalize, pair)) for _, pair in _labelled_pairs(others)}
        fields = {(normalize(each.record), each.field) for each in others.fields}
        return Decisions(
            same=tuple(pair for pair in self.same if frozenset(map(normalize, pair)) not in pairs),
            different=tuple(pair for pair in self.different if frozenset(map(normalize, pair)) not in pairs),
            fields=tuple(each for each in self.fields if (normalize(each.record), each.field) not in fields),
        )

    def contradicted_by(self, others: Decisions, normalize: IdentityNormalizer = canonical_json) -> Decisions:
        """Return the decisions that others contradict.

        Args:
            others: The other decisions.
            normalize: Normalizes the identity of a record.

        Example:
            >>> yes = Decisions(same=(({"name": "MIT"}, {"name": "Expat"}),))
            >>> no = Decisions(different=(({"name": "Expat"}, {"name": "MIT"}),))
            >>> no.contradicted_by(yes) == no, yes.contradicted_by(yes)
            (True, Decisions(same=(), different=(), fields=()))
        """
        words = {frozenset(map(normalize, pair)): word for word, pair in _labelled_pairs(others)}
        values = {(normalize(each.record), each.field): canonical_json(each.value) for each in others.fields}
        return Decisions(
            same=tuple(pair for pair in self.same if words.get(frozenset(map(normalize, pair))) == "different"),
            different=tuple(pair for pair in self.different if words.get(frozenset(map(normalize, pair))) == "same"),
            fields=tuple(
                each
                for each in self.fields
                if values.get((normalize(each.record), each.field)) not in {None, canonical_json(each.value)}
            ),
        )

    def contradictions(self, normalize: IdentityNormalizer = canonical_json) -> Iterator[str]:
        """Yield a sentence for each contradiction among the decisions, with what to change.

        Args:
            normalize: Normalizes the identity of a record.
        """
        words: dict[frozenset[Hashable], str] = {}
        for word, pair in _labelled_pairs(self):
            both = f"{_format_value(pair[0])} and {_format_value(pair[1])}"
            name = frozenset(map(normalize, pair))
            if word == "different" and len(name) == 1:
                yield (
                    f"{both} are under 'different', but are spellings of one identity; drop that line, or add a field "
                    "to the identity that distinguishes them"
                )
            if words.setdefault(name, word) != word:
                yield f"{both} are under 'same' and under 'different'; keep one of the two"
        chosen: dict[tuple[Hashable, str], JsonValue] = {}
        for each in self.fields:
            first = chosen.setdefault((normalize(each.record), each.field), each.value)
            if canonical_json(first) != canonical_json(each.value):
                where = f"{each.field!r} of {_format_value(each.record)}"
                values = f"{_format_value(first)} and {_format_value(each.value)}"
                yield f"two values are chosen for {where}, {values}; keep one"

    def text(self) -> str:
        """Return the decisions as YAML, one per line.

        Example:
            >>> print(Decisions(same=(({"name": "MIT"}, {"name": "MIT License"}),)).text(), end="")
            same:
            - [{"name": "MIT"}, {"name": "MIT License"}]
        """
        parts: dict[str, list[JsonValue]] = self.model_dump(mode="json", exclude_defaults=True)
        return "".join(
            f"{name}:\n" + "".join(f"- {dump_line(each)}\n" for each in part) for name, part in parts.items()
        )


def _labelled_pairs(decisions: Decisions) -> Iterator[tuple[str, Pair]]:
    """Yield each pair with its verdict, `same` or `different`."""
    yield from (("same", pair) for pair in decisions.same)
    yield from (("different", pair) for pair in decisions.different)


def _format_value(value: JsonValue) -> str:
    text = canonical_json(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[: MAX_VALUE_LENGTH - 1]}…"
