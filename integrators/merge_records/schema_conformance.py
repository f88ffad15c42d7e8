"""Check that merged records conform to the output schemas of their briefs.

Each answer conforms, or it would have been asked for again. But fields are merged one by one, and values that
conform in each of two records may not conform together (`oneOf`, `maxProperties`, `dependentRequired`, `if`).
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, cast

from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from referencing.jsonschema import EMPTY_REGISTRY

from prefect_dispatch.integrators.merge_records.identities import KEY_FIELD
from prefect_dispatch.models.imports import REFERENCE
from prefect_dispatch.models.ledger import Flag, Ref, Violation
from prefect_dispatch.models.output_schema import LONGEST, serialize_output
from prefect_dispatch.serialization.json_values import (
    content_text,
    exact_text,
    get_at,
    list_nodes,
    pointer,
    resolve_pointer,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from jsonschema.protocols import Validator
    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_records.field_rules import Rulebook
    from prefect_dispatch.integrators.merge_records.grouping import RecordIndex
    from prefect_dispatch.integrators.merge_records.identities import Identities, Piece
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome

SCHEMA_FLAG_KIND = "schema"
"""The kind of a flag on a record that does not conform to its brief's schema."""
_COMBINING = ("anyOf", "oneOf", "not")
_BY_PLACE = ("prefixItems", "items")

Steps = tuple[str | int, ...]


class SchemaViolation(NamedTuple):
    """Violation of a schema by a value."""

    path: Steps
    """The path of the violation in the validated value."""
    message: str
    """The message of the validator."""
    keyword: str
    """The violated keyword of the schema."""


class RecordViolation(NamedTuple):
    """Violation of a schema by a merged record."""

    flag: Flag
    """The violation as a flag of the report."""
    message: str
    """The message of the validator."""
    is_merged: bool
    """Whether the record was merged from several; otherwise it is the record of one answer."""


class _Contributor(NamedTuple):
    """A record of an answer that contributed to a merged record."""

    outcome: Outcome
    piece: Piece


def schemas_of(briefs: Sequence[Brief]) -> dict[str, str]:
    """Return the schemas, as JSON, that answers are validated with, by brief.

    Briefs with a pydantic model are left out: it validates its input, and its validators may reject its own output.
    """
    outputs = {brief.name: serialize_output(brief.output) for brief in briefs if not isinstance(brief.output, type)}
    return {name: output for name, output in outputs.items() if not REFERENCE.fullmatch(output)}


def iter_schema_violations(schema: str, value: JsonValue) -> Iterator[SchemaViolation]:
    """Yield the violations of a schema by a value.

    Example:
        >>> [(fault.path, fault.message) for fault in iter_schema_violations('{"items": {"type": "string"}}', ["a", 1])]
        [((1,), "1 is not of type 'string'")]
    """
    if schema == "text":
        if not isinstance(value, str):
            yield SchemaViolation((), "It must be text.", "type")
        return
    for error in _validator(schema).iter_errors(value):
        yield SchemaViolation(tuple(error.absolute_path), error.message, str(error.validator))


def find_record_violations(
    merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief], index: RecordIndex, book: Rulebook, *, at: str
) -> Iterator[RecordViolation]:
    """Yield the violations of the briefs' schemas by merged records.

    A record is validated with the record schema that all its sources have in common. Fields to which a rule may
    give another type (`union`, `keep_all`, a function) are exempt. The record conforms if it could replace, in one
    of the answers that it comes from, the record that it was merged from.

    Args:
        merge: The merge.
        outcomes: The outcomes that were merged.
        briefs: The briefs, with their output schemas.
        index: The index of the records by identity.
        book: The rules.
        at: Name of the list of records in the merged value.
    """
    schemas = schemas_of(briefs)
    value = get_at(merge.value, [at])
    if not schemas or not isinstance(value, list):
        return
    by_ref = {Ref.of(outcome): outcome for outcome in outcomes}
    # Sources by entry; an entry is validated only if all its sources have one schema.
    sources = _sources_by_entry(merge)
    for number, record in enumerate(value):
        refs = sources.get(str(number), ())
        required = {schemas.get(ref.brief) for ref in refs}
        schema = required.pop() if len(required) == 1 else None
        if not schema or not isinstance(record, dict):
            continue
        contributors = [part for ref in refs for part in _find_contributors(record, by_ref.get(ref), index)]
        candidates = _candidate_answers(record, contributors, index.identities, schema)
        loose = {name for name in record if not book.keeps_type((name,))}
        for fault in _find_violations(schema, candidates, loose):
            yield _make_violation((at, number), record, fault, refs, several=len(contributors) > 1)


def unflagged_violations(merge: Merge, misfits: Iterable[RecordViolation]) -> Iterator[Violation]:
    """Yield each part of merged records that doesn't satisfy a schema and has no flag that reports it."""
    flagged = {(flag.path, flag.message) for flag in merge.flags if flag.kind == SCHEMA_FLAG_KIND}
    for each in misfits:
        if (each.flag.path, each.flag.message) not in flagged:
            yield Violation(law="schema", where=each.flag.path, message=each.message)


def _find_contributors(record: JsonValue, outcome: Outcome | None, index: RecordIndex) -> Iterator[_Contributor]:
    """Yield the records of an outcome that contributed to a merged record."""
    if outcome is None:
        return
    scopes = {index.scope(record, alone=alone) for alone in (False, True)}
    for head, piece in index.pieces(outcome):
        if head in scopes:
            yield _Contributor(outcome, piece)


def _candidate_answers(
    record: dict[str, JsonValue], contributors: Sequence[_Contributor], identities: Identities, schema: str
) -> list[tuple[JsonValue, Steps]]:
    """Return the answers with the merged record in place of a contributor, distinct, each with the path of the record.

    Empty if a part beside the list of records contributed: no schema applies to such a record.
    """
    path, by_item = identities.list_path, identities.by_item
    candidates: dict[str, tuple[JsonValue, Steps]] = {}
    for outcome, piece in contributors:
        own = _remove_item_key(record, piece) if by_item else record
        here = path if isinstance(get_at(outcome.value, path), list) else ()
        if not isinstance(get_at(outcome.value, here), list):
            candidates.setdefault("", (own, ()))
        elif piece.list_index is None:
            return []
        else:
            # Only the elements at the start of a list can have schemas of their own: shorter padding is sufficient.
            before = min(piece.list_index, _count_positional_schemas(schema))
            answer = _replace_list(outcome.value, here, [*[None] * before, own])
            candidates.setdefault(exact_text(answer), (answer, (*here, before)))
    return list(candidates.values())


def _remove_item_key(record: dict[str, JsonValue], piece: Piece) -> dict[str, JsonValue]:
    """Return a merged record as an answer would have it: without the item's key, which is in no schema."""
    own = {name: part for name, part in record.items() if name != KEY_FIELD}
    answered = cast("dict[str, JsonValue]", piece.value)
    return {**own, KEY_FIELD: answered[KEY_FIELD]} if KEY_FIELD in answered else own


def _replace_list(value: JsonValue, path: Sequence[str], records: list[JsonValue]) -> JsonValue:
    """Return an answer with its list of records replaced."""
    if not path:
        return records
    holder = cast("dict[str, JsonValue]", value)
    return {**holder, path[0]: _replace_list(holder[path[0]], path[1:], records)}


def _find_violations(
    schema: str, candidates: Sequence[tuple[JsonValue, Steps]], loose: set[str]
) -> list[SchemaViolation]:
    """Return the violations of the first candidate answer, by path from the record; empty if any candidate conforms."""
    first: list[SchemaViolation] = []
    for answer, way in candidates:
        violations = [
            SchemaViolation(inside, fault.message, fault.keyword)
            for fault in iter_schema_violations(schema, answer)
            if fault.path[: len(way)] == way
            for inside in [fault.path[len(way) :]]
            # A field whose type may change can also cause a violation that is reported for the whole record.
            if not (loose and (inside[0] in loose if inside else fault.keyword in _COMBINING))
        ]
        if not violations:
            return []
        first = first or violations
    return first


def _make_violation(
    head: Steps, record: JsonValue, fault: SchemaViolation, refs: Sequence[Ref], *, several: bool
) -> RecordViolation:
    value, _ = resolve_pointer(record, pointer(*fault.path))
    reason = fault.message if len(fault.message) <= LONGEST else f"{fault.message[:LONGEST]} …"
    flag = Flag(
        path=pointer(*head, *fault.path),
        kind=SCHEMA_FLAG_KIND,
        text=value if isinstance(value, str) else content_text(value),
        message=f"Merged field by field, the record is not of the form that brief {refs[0].brief!r} asks for: {reason}",
        sources=tuple(refs),
    )
    return RecordViolation(flag, reason, several)


def _sources_by_entry(merge: Merge) -> Mapping[str, list[Ref]]:
    """Return the sources of each entry of the merged list, by its index."""
    by_entry: dict[str, dict[Ref, None]] = {}
    for row in merge.fields:
        _, _, at, *_ = [*row.path.split("/"), "", ""]
        by_entry.setdefault(at, {}).update(dict.fromkeys(row.sources))
    return {at: sorted(refs, key=lambda ref: ref.order) for at, refs in by_entry.items()}


@lru_cache(maxsize=256)
def _validator(text: str) -> Validator:
    schema = json.loads(text)
    return validator_for(schema, default=Draft202012Validator)(schema, registry=EMPTY_REGISTRY)


@lru_cache(maxsize=256)
def _count_positional_schemas(text: str) -> int:
    """Return the largest number of leading list elements to which the schema gives schemas of their own."""
    lists = [node.value for node in list_nodes(json.loads(text)) if node.name in _BY_PLACE]
    return max((len(each) for each in lists if isinstance(each, list)), default=0)
