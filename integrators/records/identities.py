"""What of an answer is a record, and which record it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple, cast

from prefect_dispatch.integrators.records.normalising import comparable
from prefect_dispatch.integrators.values import content, get, order, silent

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.decisions import Identity
    from prefect_dispatch.integrators.values import Key
    from prefect_dispatch.models import Outcome

ITEM_KEY = "{key}"
"""Stands in an identity for the key of the item that an answer is about."""
KEY_FIELD = "key"
"""The field of a merged record that holds it."""
_SAME, _ALONE = 0, 1


class Piece(NamedTuple):
    """A record, or whatever else an answer says."""

    key: Key
    """What is equal for pieces that belong together."""
    value: JsonValue
    """What the answer says."""
    lead: JsonValue = None
    """What stands ahead of it in the merged record: the item's key, if that is a part of the identity."""
    at: int | None = None
    """Its place in the list of records; None if it stands beside it, or is all of the answer."""


@dataclass(frozen=True)
class Identities:
    """Finds the records in answers, and tells which are the same.

    Example:
        >>> from prefect_dispatch.models import Outcome
        >>> said = Outcome(brief="terms", item="a", status="succeeded", value=[{"name": "MIT "}, "Nothing else."])
        >>> [piece.key for piece in Identities(("name",)).pieces(said)]
        [(0, ((1, 0, 'mit'),)), (1, ((1, 0, 'Nothing else.'),))]
    """

    fields: tuple[str, ...]
    """The dotted paths of the identity, and perhaps `{key}`."""
    records: str = ""
    """The dotted path of the list of records inside an answer."""

    @property
    def by_item(self) -> bool:
        """Whether the item's key is a part of the identity."""
        return ITEM_KEY in self.fields

    @cached_property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """Where, in a merged record, its identity stands."""
        return tuple(map(self._path, self.fields))

    @cached_property
    def list_path(self) -> tuple[str, ...]:
        """Where, in an answer, the list of records stands; `()` if the answer is the list."""
        return tuple(self.records.split(".")) if self.records else ()

    def _path(self, field: str) -> tuple[str, ...]:
        return (KEY_FIELD,) if field == ITEM_KEY else tuple(field.split("."))

    def flaw(self, ruled: Sequence[str], *, linking: bool, matching: bool) -> str | None:
        """Return why this identity won't do, in a sentence, or None if it will.

        Args:
            ruled: The dotted paths of fields that a rule other than `priority` decides.
            linking: Whether different identities may turn out to be the same.
            matching: Whether they are compared.
        """
        if overlap := self._overlap():
            return overlap
        for field in self.fields:
            if field.startswith("{") and field.endswith("}") and field != ITEM_KEY:
                return f"'identity' has {field!r}, which stands for nothing; only {ITEM_KEY!r} does, for the item's key"
        if matching and self.fields == (ITEM_KEY,):
            return (
                f"'match' has nothing to compare: an item's key ({ITEM_KEY!r}) is what it is; add a field to 'identity'"
            )
        for field in ruled:
            if self.by_item and field.split(".")[0] == KEY_FIELD:
                return f"field {field!r} holds the item's key, which no rule decides; drop the rule"
            if linking and self.fixes(tuple(field.split("."))):
                return (
                    f"field {field!r} is, or holds, a part of the identity, which is taken from one record as a whole "
                    "where identities are linked; drop its rule, or 'match' and 'aliases'"
                )
        return None

    def _overlap(self) -> str | None:
        for outer, inner in permutations(self.fields, 2):
            if self._path(outer) == self._path(inner):
                return f"'identity' has {outer!r} twice, {ITEM_KEY!r} being the field {KEY_FIELD!r}; keep one"
            if self._path(inner)[: len(self._path(outer))] == self._path(outer):
                return f"'identity' has {outer!r} and {inner!r}, which is a part of it; keep one of the two"
        return None

    def fixes(self, path: tuple[str, ...]) -> bool:
        """Return whether a field is a part of an identity that is taken from one record as a whole."""
        meets = [other for other in self.paths if path[: len(other)] == other[: len(path)]]
        return bool(meets) and (len(self.fields) > 1 or self.by_item or len(path) < len(meets[0]))

    def pieces(self, outcome: Outcome) -> list[Piece]:
        """Return what an answer says, piece by piece; nothing if there is no answer."""
        parts = self._parts(outcome.value) if outcome.status == "succeeded" else []
        if not self.by_item:
            return [Piece(self.key(part), part, None, at) for at, part in parts]
        lead: JsonValue = {KEY_FIELD: outcome.item}
        # Where only the item's key tells records apart, it tells nothing of several that are about one item.
        if self.fields == (ITEM_KEY,) and len(parts) > 1:
            return [Piece(no_identity(part), part, None, at) for at, part in parts]
        pieces: list[Piece] = []
        for at, part in parts:
            key = self.key({**part, KEY_FIELD: outcome.item}) if isinstance(part, dict) else no_identity(part)
            same = key[0] == _SAME
            pieces.append(Piece(key, part, lead, at) if same else Piece(no_identity(part), part, None, at))
        return pieces

    def key(self, record: JsonValue) -> Key:
        """Return the identity of a record, as it is compared; of what has none, its content."""
        values = self.values(record)
        if any(silent(value) or value in ("", []) for value in values):
            return no_identity(record)
        return (_SAME, tuple(map(order, values)))

    def values(self, record: JsonValue) -> list[JsonValue]:
        """Return the identity of a record, as it is compared; an item's key is what it is."""
        said = [get(record, path) for path in self.paths]
        if not self.by_item:
            return [comparable(value) for value in said]
        return [said[at] if field == ITEM_KEY else comparable(said[at]) for at, field in enumerate(self.fields)]

    def spelt(self, piece: Piece) -> Identity:
        """Return the identity of a record by its fields, as the record spells it."""
        record = {**cast("dict[str, JsonValue]", piece.value), **cast("dict[str, JsonValue]", piece.lead or {})}
        return {".".join(path): get(record, path) for path in self.paths}

    def named(self, identity: Identity) -> Key | None:
        """Return the key of an identity by its fields, or None if it lacks one, or has one that isn't part of it."""
        fields = {KEY_FIELD if name == ITEM_KEY else name: value for name, value in identity.items()}
        if fields.keys() != {".".join(path) for path in self.paths}:
            return None
        key = self.key(self.record(fields))
        return key if key[0] == _SAME else None

    def called(self, identity: Identity) -> Hashable:
        """Return what an identity by its fields is called: the same however it is spelt."""
        return self.named(identity) or content(identity)

    def record(self, identity: Identity) -> JsonValue:
        """Return the record that says its identity alone."""
        made: dict[str, JsonValue] = {}
        for path in self.paths:
            here = made
            for name in path[:-1]:
                here = cast("dict[str, JsonValue]", here.setdefault(name, {}))
            here[path[-1]] = identity[".".join(path)]
        return made

    def _parts(self, value: JsonValue) -> list[tuple[int | None, JsonValue]]:
        """Return the parts of an answer, each with its place in the list of records."""
        path = self.list_path if isinstance(get(value, self.list_path), list) else ()
        found = get(value, path)
        parts: list[tuple[int | None, JsonValue]] = [*enumerate(found)] if isinstance(found, list) else [(None, value)]
        if path:
            parts.append((None, _without(value, path)))
        return [(at, part) for at, part in parts if not silent(part)]


def no_identity(part: JsonValue) -> Key:
    """Return the key of what has no identity: it comes after all that has one."""
    return (_ALONE, (order(part),))


def has_identity(key: Key) -> bool:
    """Return whether a key is that of an identity."""
    return key[0] == _SAME


def _without(value: JsonValue, path: Sequence[str]) -> JsonValue:
    """Return an object without what stands at a path of keys, and without objects that this leaves empty."""
    parts = cast("dict[str, JsonValue]", value)
    rest = {name: part for name, part in parts.items() if name != path[0]}
    inner = _without(parts[path[0]], path[1:]) if path[1:] else None
    return rest if silent(inner) else {**rest, path[0]: inner}
