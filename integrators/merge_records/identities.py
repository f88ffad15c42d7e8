"""Find the records in answers, and determine their identities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple, cast

from prefect_dispatch.integrators.merge_records.similarity import normalize_value
from prefect_dispatch.serialization.json_values import content_text, get_at, is_empty_value, value_order

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.decisions import Identity
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.serialization.json_values import Key, Order

ITEM_KEY = "{key}"
"""Placeholder in an identity for the key of the item that an answer is about."""
KEY_FIELD = "key"
"""The field of a merged record that holds the item's key."""
_HAS_IDENTITY, _NO_IDENTITY = 0, 1
MISSING: Order = (-1, 0, "")
"""Sort key in place of a value that is missing; it precedes all others."""


class Piece(NamedTuple):
    """A record, or another part of an answer."""

    key: Key
    """Key that is equal for pieces of one identity."""
    value: JsonValue
    """The part of the answer."""
    item_key_part: JsonValue = None
    """Part of the record that takes precedence over it: the item's key, if it is a part of the identity."""
    list_index: int | None = None
    """Its index in the list of records; None if it is beside the list, or the whole answer."""


@dataclass(frozen=True)
class Identities:
    """Finds the records in answers, and computes the keys that are equal for records of one identity.

    Example:
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> outcome = Outcome(brief="terms", item="a", status="succeeded", value=[{"name": "MIT "}, "Nothing else."])
        >>> [piece.key for piece in Identities(("name",)).pieces(outcome)]
        [(0, ((1, 0, 'mit'),)), (1, ((1, 0, 'Nothing else.'),))]
    """

    fields: tuple[str, ...]
    """The dotted paths of the identity's fields, and optionally `{key}`."""
    records: str = ""
    """The dotted path of the list of records in an answer."""
    compared: tuple[str, ...] = ()
    """The dotted paths of other fields, which tell records of one identity apart."""
    partial: bool = False
    """Whether a part of the identity suffices; records that have only a part of it are distinguished by `compared`."""

    @property
    def by_item(self) -> bool:
        """Whether the item's key is a part of the identity."""
        return ITEM_KEY in self.fields

    @cached_property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """The paths of the identity's fields in a merged record."""
        return tuple(map(self._path, self.fields))

    @cached_property
    def list_path(self) -> tuple[str, ...]:
        """The path of the list of records in an answer; `()` if the answer is the list."""
        return tuple(self.records.split(".")) if self.records else ()

    def _path(self, field: str) -> tuple[str, ...]:
        return (KEY_FIELD,) if field == ITEM_KEY else tuple(field.split("."))

    def find_flaw(self, ruled: Sequence[str], *, linking: bool, matching: bool) -> str | None:
        """Return the reason why this identity is not usable, as a sentence, or None if it is.

        Args:
            ruled: The dotted paths of fields with a rule other than `priority`.
            linking: Whether different identities may be linked, by matching or by decisions.
            matching: Whether identities are compared.
        """
        if overlap := self._overlap():
            return overlap
        for field in self.fields:
            if field.startswith("{") and field.endswith("}") and field != ITEM_KEY:
                return f"'identity' has {field!r}, which stands for nothing; only {ITEM_KEY!r} does, for the item's key"
        if matching and self.fields == (ITEM_KEY,):
            return f"'match' has nothing to compare: an item's key ({ITEM_KEY!r}) is exact; add a field to 'identity'"
        for field in ruled:
            if self.by_item and field.split(".")[0] == KEY_FIELD:
                return f"field {field!r} holds the item's key, which no rule decides; drop the rule"
            if linking and self.is_taken_whole(tuple(field.split("."))):
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

    def is_taken_whole(self, path: tuple[str, ...]) -> bool:
        """Return whether a path is, or holds, a part of an identity that is taken from one record as a whole."""
        overlapping = [other for other in self.paths if path[: len(other)] == other[: len(path)]]
        return bool(overlapping) and (len(self.fields) > 1 or self.by_item or len(path) < len(overlapping[0]))

    def pieces(self, outcome: Outcome) -> list[Piece]:
        """Return the pieces of an answer; none if there is no answer."""
        parts = self._parts(outcome.value) if outcome.status == "succeeded" else []
        if not self.by_item:
            return [Piece(self.key(part), part, None, at) for at, part in parts]
        lead: JsonValue = {KEY_FIELD: outcome.item}
        # If the identity is only the item's key, several records of one answer can't be distinguished: they have none.
        indistinct = self.fields == (ITEM_KEY,) and len(parts) > 1
        pieces: list[Piece] = []
        for at, part in parts:
            key = key_without_identity(part)
            if isinstance(part, dict) and not indistinct:
                with_item = self.key({**part, KEY_FIELD: outcome.item})
                key = with_item if has_identity(with_item) else key
            pieces.append(Piece(key, part, lead if has_identity(key) else None, at))
        return pieces

    def key(self, record: JsonValue) -> Key:
        """Return the key of a record's identity, as it is compared; for a record without one, a key of its content."""
        values = [get_at(record, path) for path in self.paths]
        # An item's key is not normalized.
        normal = [
            value if field == ITEM_KEY else normalize_value(value)
            for field, value in zip(self.fields, values, strict=True)
        ]
        key = comparison_key(normal)
        if key is None and self.partial:
            found = [MISSING if is_blank(value) else value_order(value) for value in normal]
            named = any(value != MISSING for field, value in zip(self.fields, found, strict=True) if field != ITEM_KEY)
            key = tuple(found) if named else None
        return key_without_identity(record) if key is None else (_HAS_IDENTITY, key)

    def original_spelling(self, piece: Piece) -> Identity:
        """Return the identity of a record, as fields and values in the record's own spelling."""
        record = {
            **cast("dict[str, JsonValue]", piece.value),
            **cast("dict[str, JsonValue]", piece.item_key_part or {}),
        }
        return {".".join(path): get_at(record, path) for path in self.paths}

    def key_of(self, identity: Identity) -> Key | None:
        """Return the key of an identity given as fields and values, or None if its fields are not those required.

        It may have compared fields, too, which are no part of the key.
        """
        fields = {KEY_FIELD if name == ITEM_KEY else name: value for name, value in identity.items()}
        required = {".".join(path) for path in self.paths}
        if not required <= fields.keys() or not fields.keys() <= required.union(self.compared):
            return None
        key = self.key(self.make_record(fields))
        return key if has_identity(key) else None

    def evidence_of(self, identity: Identity) -> dict[int, Order]:
        """Return the values of the compared fields of an identity, by the index of the field; `MISSING` for null."""
        return {
            at: to_evidence(identity[name])
            for at, name in enumerate(self.compared)
            if name in identity and (name,) not in self.paths
        }

    def canonical_name(self, identity: Identity) -> Hashable:
        """Return the canonical name of an identity given as fields and values, equal for all its spellings."""
        key, evidence = self.key_of(identity), self.evidence_of(identity)
        return ((key, *evidence.items()) if evidence else key) if key else content_text(identity)

    def make_record(self, identity: Identity) -> JsonValue:
        """Return a record with the fields of an identity alone."""
        record: dict[str, JsonValue] = {}
        for path in self.paths:
            parent = record
            for name in path[:-1]:
                parent = cast("dict[str, JsonValue]", parent.setdefault(name, {}))
            parent[path[-1]] = identity[".".join(path)]
        return record

    def _parts(self, value: JsonValue) -> list[tuple[int | None, JsonValue]]:
        """Return the parts of an answer, each with its index in the list of records."""
        path = self.list_path if isinstance(get_at(value, self.list_path), list) else ()
        # The list at `records`, if there is one; else the answer itself.
        found = get_at(value, path)
        parts: list[tuple[int | None, JsonValue]] = [*enumerate(found)] if isinstance(found, list) else [(None, value)]
        # The rest of the object around the list is a record, too.
        if path:
            parts.append((None, _remove_path(value, path)))
        return [(at, part) for at, part in parts if not is_empty_value(part)]


def comparison_key(values: Sequence[JsonValue]) -> tuple[Order, ...] | None:
    """Return the key of an identity from its normalized values, or None if one of them identifies nothing."""
    if any(map(is_blank, values)):
        return None
    return tuple(map(value_order, values))


def is_blank(value: JsonValue) -> bool:
    """Return whether a normalized value identifies nothing."""
    return is_empty_value(value) or value in ("", [])


_PLACEHOLDERS = ("-", "?", "n/a")


def to_evidence(value: JsonValue) -> Order:
    """Return the value of a compared field as its sort key; `MISSING` if it says nothing."""
    normal = normalize_value(value)
    return MISSING if is_blank(normal) or normal in _PLACEHOLDERS else value_order(normal)


def key_without_identity(part: JsonValue) -> Key:
    """Return the key of a part without an identity; it sorts after all keys with one."""
    return (_NO_IDENTITY, (value_order(part),))


def has_identity(key: Key) -> bool:
    """Return whether a key is that of an identity."""
    return key[0] == _HAS_IDENTITY


def _remove_path(value: JsonValue, path: Sequence[str]) -> JsonValue:
    """Return an object without the value at a path, and without objects that this leaves empty."""
    parts = cast("dict[str, JsonValue]", value)
    rest = {name: part for name, part in parts.items() if name != path[0]}
    inner = _remove_path(parts[path[0]], path[1:]) if path[1:] else None
    return rest if is_empty_value(inner) else {**rest, path[0]: inner}
