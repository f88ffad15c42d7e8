"""What people decided about a merge."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, JsonValue

from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.strict import Kept, Strict
from prefect_dispatch.yaml_text import in_line

if TYPE_CHECKING:
    from collections.abc import Iterator


Identity = dict[str, JsonValue]
"""The identity of a record: its fields by name, such as `{"name": "MIT"}`."""
Pair = tuple[Identity, Identity]
Naming = Callable[[Identity], Hashable]
"""Returns what an identity is called: the same however it is spelt."""

MAX_LONG = 100
"""Characters of a value in such a problem."""


class Choice(Strict):
    """The value that a field is to have."""

    record: Identity
    """The record."""
    field: Annotated[str, Field(min_length=1)]
    """The field's name, or the dotted path of a field inside an object."""
    value: Kept
    """The value; it counts only where some record says it."""


class Decisions(Strict):
    """What was decided.

    Example:
        >>> yes = Decisions(same=(({"name": "MIT"}, {"name": "MIT License"}),))
        >>> no = Decisions(different=(({"name": "MIT License"}, {"name": "MIT"}),))
        >>> yes.plus(no).same
        ()
    """

    same: tuple[Pair, ...] = ()
    """Pairs of records that are one."""
    different: tuple[Pair, ...] = ()
    """Pairs of records that are two, however alike."""
    fields: tuple[Choice, ...] = ()
    """Values that were chosen."""

    def plus(self, *later: Decisions, named: Naming = canonical) -> Decisions:
        """Return all of them, a later decision in place of an earlier one on the same pair or field; in one order.

        Args:
            later: What was decided since, in order.
            named: Says which spellings are one record.
        """
        every = (self, *later)
        pairs = {frozenset(map(named, pair)): (word, pair) for each in every for word, pair in _worded(each)}
        fields = {(named(each.record), each.field): each for one in every for each in one.fields}
        ordered = sorted(pairs.values(), key=lambda each: sorted(map(canonical, each[1])))
        return Decisions(
            same=tuple(pair for word, pair in ordered if word == "same"),
            different=tuple(pair for word, pair in ordered if word == "different"),
            fields=tuple(sorted(fields.values(), key=lambda each: (canonical(each.record), each.field))),
        )

    def without(self, known: Decisions, named: Naming = canonical) -> Decisions:
        """Return the decisions on pairs and fields that others have not decided on, in whichever way.

        Args:
            known: The others.
            named: Says which spellings are one record.

        Example:
            >>> yes = Decisions(same=(({"name": "MIT"}, {"name": "Expat"}),))
            >>> no = Decisions(different=(({"name": "Expat"}, {"name": "MIT"}),))
            >>> no.without(yes), no.without(Decisions()) == no
            (Decisions(same=(), different=(), fields=()), True)
        """
        pairs = {frozenset(map(named, pair)) for _, pair in _worded(known)}
        fields = {(named(each.record), each.field) for each in known.fields}
        return Decisions(
            same=tuple(pair for pair in self.same if frozenset(map(named, pair)) not in pairs),
            different=tuple(pair for pair in self.different if frozenset(map(named, pair)) not in pairs),
            fields=tuple(each for each in self.fields if (named(each.record), each.field) not in fields),
        )

    def against(self, known: Decisions, named: Naming = canonical) -> Decisions:
        """Return the decisions that others contradict.

        Args:
            known: The others.
            named: Says which spellings are one record.

        Example:
            >>> yes = Decisions(same=(({"name": "MIT"}, {"name": "Expat"}),))
            >>> no = Decisions(different=(({"name": "Expat"}, {"name": "MIT"}),))
            >>> no.against(yes) == no, yes.against(yes)
            (True, Decisions(same=(), different=(), fields=()))
        """
        words = {frozenset(map(named, pair)): word for word, pair in _worded(known)}
        values = {(named(each.record), each.field): canonical(each.value) for each in known.fields}
        return Decisions(
            same=tuple(pair for pair in self.same if words.get(frozenset(map(named, pair))) == "different"),
            different=tuple(pair for pair in self.different if words.get(frozenset(map(named, pair))) == "same"),
            fields=tuple(
                each
                for each in self.fields
                if values.get((named(each.record), each.field)) not in {None, canonical(each.value)}
            ),
        )

    def contradictions(self, named: Naming = canonical) -> Iterator[str]:
        """Yield what can't be followed, in a sentence with the way out.

        Args:
            named: Says which spellings are one record.
        """
        words: dict[frozenset[Hashable], str] = {}
        for word, pair in _worded(self):
            both = f"{_shown(pair[0])} and {_shown(pair[1])}"
            name = frozenset(map(named, pair))
            if word == "different" and len(name) == 1:
                yield (
                    f"{both} are under 'different', but are spellings of one identity; drop that line, or add a field "
                    "to the identity that tells them apart"
                )
            if words.setdefault(name, word) != word:
                yield f"{both} are under 'same' and under 'different'; keep one of the two"
        chosen: dict[tuple[Hashable, str], JsonValue] = {}
        for each in self.fields:
            first = chosen.setdefault((named(each.record), each.field), each.value)
            if canonical(first) != canonical(each.value):
                where = f"{each.field!r} of {_shown(each.record)}"
                yield f"two values are chosen for {where}, {_shown(first)} and {_shown(each.value)}; keep one"

    def text(self) -> str:
        """Return the decisions as YAML, each in a line.

        Example:
            >>> print(Decisions(same=(({"name": "MIT"}, {"name": "MIT License"}),)).text(), end="")
            same:
            - [{"name": "MIT"}, {"name": "MIT License"}]
        """
        parts: dict[str, list[JsonValue]] = self.model_dump(mode="json", exclude_defaults=True)
        return "".join(f"{name}:\n" + "".join(f"- {in_line(each)}\n" for each in part) for name, part in parts.items())


def _worded(decisions: Decisions) -> Iterator[tuple[str, Pair]]:
    yield from (("same", pair) for pair in decisions.same)
    yield from (("different", pair) for pair in decisions.different)


def _shown(value: JsonValue) -> str:
    text = canonical(value)
    return text if len(text) <= MAX_LONG else f"{text[: MAX_LONG - 1]}…"
