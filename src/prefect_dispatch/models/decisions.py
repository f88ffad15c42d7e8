"""Decisions of people about a merge: which records are the same, and which value a field has."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field, JsonValue

from prefect_dispatch.models.base import StorableJson, Strict
from prefect_dispatch.security.escaping import shorten
from prefect_dispatch.serialization.json_text import canonical_json
from prefect_dispatch.serialization.strict_yaml import dump_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


Identity = dict[str, JsonValue]
"""The identity of a record: its fields by name, such as `{"name": "MIT"}`."""

Pair = tuple[Identity, Identity]
_Subject = frozenset[Hashable] | tuple[Hashable, str]
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
        verdicts: dict[_Subject, _Verdict] = {}
        for each in (self, *later):
            verdicts |= each._verdicts(normalize)  # noqa: SLF001 -- of the same class
        return _collect(sorted(verdicts.values(), key=_order))

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
        decided = others._verdicts(normalize)
        return _collect(each for each in self._iter_verdicts(normalize) if each.subject not in decided)

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
        decided = others._verdicts(normalize)
        return _collect(
            each for each in self._iter_verdicts(normalize) if decided.get(each.subject, each).word != each.word
        )

    def contradictions(self, normalize: IdentityNormalizer = canonical_json) -> Iterator[str]:
        """Yield a sentence for each contradiction among the decisions, with what to change.

        Args:
            normalize: Normalizes the identity of a record.
        """
        first: dict[_Subject, _Verdict] = {}
        for each in self._iter_verdicts(normalize):
            before, decision = first.setdefault(each.subject, each), each.decision
            if isinstance(decision, Choice):
                if before.word != each.word:
                    values = f"{shorten(before.word, MAX_VALUE_LENGTH)} and {shorten(each.word, MAX_VALUE_LENGTH)}"
                    where = f"{decision.field!r} of {_format_value(decision.record)}"
                    yield f"two values are chosen for {where}, {values}; keep one"
                continue
            both = " and ".join(map(_format_value, decision))
            if each.word == "different" and normalize(decision[0]) == normalize(decision[1]):
                yield (
                    f"{both} are under 'different', but are spellings of one identity; drop that line, or add a field "
                    "to the identity that distinguishes them"
                )
            if before.word != each.word:
                yield f"{both} are under 'same' and under 'different'; keep one of the two"

    def _verdicts(self, normalize: IdentityNormalizer) -> dict[_Subject, _Verdict]:
        """Return the verdict on each subject; a later one replaces an earlier one."""
        return {each.subject: each for each in self._iter_verdicts(normalize)}

    def _iter_verdicts(self, normalize: IdentityNormalizer) -> Iterator[_Verdict]:
        for word, pairs in (("same", self.same), ("different", self.different)):
            yield from (_Verdict(frozenset(map(normalize, pair)), word, pair) for pair in pairs)
        for each in self.fields:
            yield _Verdict((normalize(each.record), each.field), canonical_json(each.value), each)

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


class _Verdict(NamedTuple):
    """One decision."""

    subject: _Subject
    """What it is about: two normalized identities, or one and the name of a field."""
    word: str
    """What was decided: `same`, `different`, or the canonical JSON of the value of a field."""
    decision: Pair | Choice


def _collect(verdicts: Iterable[_Verdict]) -> Decisions:
    """Return the decisions of verdicts, in their order."""
    found: dict[str, list[Pair | Choice]] = {}
    for each in verdicts:
        found.setdefault("fields" if isinstance(each.decision, Choice) else each.word, []).append(each.decision)
    return Decisions.model_validate(found)


def _order(verdict: _Verdict) -> tuple[str, ...]:
    decision = verdict.decision
    if isinstance(decision, Choice):
        return canonical_json(decision.record), decision.field
    return tuple(sorted(map(canonical_json, decision)))


def _format_value(value: JsonValue) -> str:
    return shorten(canonical_json(value), MAX_VALUE_LENGTH)
