"""Whether merged records are still of the form that their briefs ask for.

Each answer is, or it would have been asked again; but fields are decided one by one, and what fits
in each of two records may not fit together (`oneOf`, `maxProperties`, `dependentRequired`, `if`).
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, cast

from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from referencing.jsonschema import EMPTY_REGISTRY

from prefect_dispatch.integrators.records.identities import KEY_FIELD
from prefect_dispatch.integrators.values import content, exact, find, get, nodes, pointer
from prefect_dispatch.ledger import Flag, Ref
from prefect_dispatch.outputs import LONGEST, show_output
from prefect_dispatch.references import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jsonschema.protocols import Validator
    from pydantic import JsonValue

    from prefect_dispatch.integrators.records.gathering import Gathered
    from prefect_dispatch.integrators.records.identities import Identities, Piece
    from prefect_dispatch.integrators.records.rulebook import Rulebook
    from prefect_dispatch.ledger import Merge
    from prefect_dispatch.models import Brief, Outcome

FORM = "schema"
"""The kind of a flag on a record that its brief's schema refuses."""
_COMBINING = ("anyOf", "oneOf", "not")
_BY_PLACE = ("prefixItems", "items")

Steps = tuple[str | int, ...]


class Fault(NamedTuple):
    """What a schema refuses."""

    path: Steps
    """Where, from the value that was compared with it."""
    message: str
    """What it says."""
    keyword: str
    """Which of its keywords says so."""


class Misfit(NamedTuple):
    """What a schema refuses in a merged record."""

    flag: Flag
    """The same, as the report shows it."""
    message: str
    """What the schema says."""
    merged: bool
    """Whether several records were merged there; else it is what one answer says."""


class _Said(NamedTuple):
    """A record that has a part in a merged one."""

    outcome: Outcome
    piece: Piece


def schemas_of(briefs: Sequence[Brief]) -> dict[str, str]:
    """Return the schemas, as JSON, that answers are held to, by brief.

    Answers of a pydantic model were validated when they came: its validators need not take their own output again.
    """
    outputs = {brief.name: show_output(brief.output) for brief in briefs if not isinstance(brief.output, type)}
    return {name: output for name, output in outputs.items() if not REFERENCE.fullmatch(output)}


def faults(schema: str, value: JsonValue) -> Iterator[Fault]:
    """Yield what a schema refuses in a value.

    Example:
        >>> [(fault.path, fault.message) for fault in faults('{"items": {"type": "string"}}', ["a", 1])]
        [((1,), "1 is not of type 'string'")]
    """
    if schema == "text":
        if not isinstance(value, str):
            yield Fault((), "It must be text.", "type")
        return
    for error in _validator(schema).iter_errors(value):
        yield Fault(tuple(error.absolute_path), error.message, str(error.validator))


def misfits(
    merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief], gathered: Gathered, book: Rulebook, *, at: str
) -> Iterator[Misfit]:
    """Yield what the briefs' schemas refuse in merged records.

    A record is held to the schema of a record that all its sources have in common, but for fields that a rule may
    give another type (`union`, `keep_all`, a function). It fits if it could stand in one of the answers that it
    comes from, in the place of what they say.

    Args:
        merge: What was merged.
        outcomes: What it was made of.
        briefs: Who says what form is asked for.
        gathered: What of an answer belongs to which record.
        book: The rules.
        at: Where, in the merged value, the records stand.
    """
    schemas = schemas_of(briefs)
    value = get(merge.value, [at])
    if not schemas or not isinstance(value, list):
        return
    known = {Ref.of(outcome): outcome for outcome in outcomes}
    sources = _sources(merge)
    for number, record in enumerate(value):
        refs = sources.get(str(number), ())
        wanted = {schemas.get(ref.brief) for ref in refs}
        schema = wanted.pop() if len(wanted) == 1 else None
        if not schema or not isinstance(record, dict):
            continue
        said = [part for ref in refs for part in _parts(record, known.get(ref), gathered)]
        places = _places(record, said, gathered.identities, schema)
        loose = {name for name in record if not book.keeps_type((name,))}
        for fault in _unfit(schema, places, loose):
            yield _misfit((at, number), record, fault, refs, several=len(said) > 1)


def _parts(record: JsonValue, outcome: Outcome | None, gathered: Gathered) -> Iterator[_Said]:
    """Yield the records of an outcome that belong to a merged record."""
    if outcome is None:
        return
    scopes = {gathered.scope(record, alone=alone) for alone in (False, True)}
    for head, piece in gathered.pieces(outcome):
        if head in scopes:
            yield _Said(outcome, piece)


def _places(
    record: dict[str, JsonValue], said: Sequence[_Said], identities: Identities, schema: str
) -> list[tuple[JsonValue, Steps]]:
    """Return answers with a merged record in the place of what they say, each once, and the way to it.

    None if something that stands beside a list of records has a part in it: no schema speaks of such a record.
    """
    path, by_item = identities.list_path, identities.by_item
    found: dict[str, tuple[JsonValue, Steps]] = {}
    for outcome, piece in said:
        own = _unkeyed(record, piece) if by_item else record
        here = path if isinstance(get(outcome.value, path), list) else ()
        if not isinstance(get(outcome.value, here), list):
            found.setdefault("", (own, ()))
        elif piece.at is None:
            return []
        else:
            # A schema tells the elements of a list apart by their places at its start, if at all.
            before = min(piece.at, _told_apart(schema))
            answer = _put(outcome.value, here, [*[None] * before, own])
            found.setdefault(exact(answer), (answer, (*here, before)))
    return list(found.values())


def _unkeyed(record: dict[str, JsonValue], piece: Piece) -> dict[str, JsonValue]:
    """Return a merged record as an answer would say it: not with the key of its item, which no schema asks for."""
    own = {name: part for name, part in record.items() if name != KEY_FIELD}
    said = cast("dict[str, JsonValue]", piece.value)
    return {**own, KEY_FIELD: said[KEY_FIELD]} if KEY_FIELD in said else own


def _put(value: JsonValue, path: Sequence[str], records: list[JsonValue]) -> JsonValue:
    if not path:
        return records
    holder = cast("dict[str, JsonValue]", value)
    return {**holder, path[0]: _put(holder[path[0]], path[1:], records)}


def _unfit(schema: str, places: Sequence[tuple[JsonValue, Steps]], loose: set[str]) -> list[Fault]:
    """Return what is wrong with a record in the first of its places, by the way from the record, if it fits in none."""
    first: list[Fault] = []
    for answer, way in places:
        found = [
            Fault(inside, fault.message, fault.keyword)
            for fault in faults(schema, answer)
            if fault.path[: len(way)] == way
            for inside in [fault.path[len(way) :]]
            # A field that may have another type can be the cause of what stands in no field.
            if not (loose and (inside[0] in loose if inside else fault.keyword in _COMBINING))
        ]
        if not found:
            return []
        first = first or found
    return first


def _misfit(head: Steps, record: JsonValue, fault: Fault, refs: Sequence[Ref], *, several: bool) -> Misfit:
    words, _ = find(record, pointer(*fault.path))
    told = fault.message if len(fault.message) <= LONGEST else f"{fault.message[:LONGEST]} …"
    flag = Flag(
        path=pointer(*head, *fault.path),
        kind=FORM,
        text=words if isinstance(words, str) else content(words),
        message=f"Merged field by field, the record is not of the form that brief {refs[0].brief!r} asks for: {told}",
        sources=tuple(refs),
    )
    return Misfit(flag, told, several)


def _sources(merge: Merge) -> Mapping[str, list[Ref]]:
    """Return the sources of each entry of the merged list, by its index."""
    found: dict[str, dict[Ref, None]] = {}
    for row in merge.fields:
        _, _, at, *_ = [*row.path.split("/"), "", ""]
        found.setdefault(at, {}).update(dict.fromkeys(row.sources))
    return {at: sorted(refs, key=lambda ref: ref.order) for at, refs in found.items()}


@lru_cache(maxsize=256)
def _validator(text: str) -> Validator:
    schema = json.loads(text)
    return validator_for(schema, default=Draft202012Validator)(schema, registry=EMPTY_REGISTRY)


@lru_cache(maxsize=256)
def _told_apart(text: str) -> int:
    """Return how many elements of a list a schema has a schema of their own for, at most."""
    lists = [node.value for node in nodes(json.loads(text)) if node.name in _BY_PLACE]
    return max((len(each) for each in lists if isinstance(each, list)), default=0)
