"""Check the output schemas of briefs: that they have the fields that are used, and that merged records conform to them.

Each answer conforms, or it would have been asked for again. But fields are merged one by one, and values that
conform in each of two records may not conform together (`oneOf`, `maxProperties`, `dependentRequired`, `if`).
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from referencing.jsonschema import EMPTY_REGISTRY

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.merge_records.identities import ITEM_KEY, KEY_FIELD, has_identity
from prefect_dispatch.models.base import did_you_mean
from prefect_dispatch.models.imports import REFERENCE
from prefect_dispatch.models.ledger import Flag, Ref, Violation
from prefect_dispatch.models.output_schema import LONGEST, conforms_simply, schema_of, serialize_output
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

    from prefect_dispatch.executors.llm.cascade import Cascade
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
    validator = _validator(schema)
    for error in () if conforms_simply(validator.schema, value) else validator.iter_errors(value):
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
    keeps_type = cache(book.keeps_type)
    # Sources by entry; an entry is validated only if all its sources have one schema.
    sources = _sources_by_entry(merge)
    for number, record in enumerate(value):
        refs = sources.get(str(number), ())
        required = {schemas.get(ref.brief) for ref in refs}
        schema = required.pop() if len(required) == 1 else None
        if not schema or not isinstance(record, dict):
            continue
        contributors = [part for ref in refs for part in _find_contributors(record, number, by_ref.get(ref), index)]
        candidates = _candidate_answers(record, contributors, index.identities, schema)
        loose = {name for name in record if not keeps_type((name,))}
        for fault in _find_violations(schema, candidates, loose):
            yield _make_violation((at, number), record, fault, refs, several=len(contributors) > 1)


def unflagged_violations(merge: Merge, misfits: Iterable[RecordViolation]) -> Iterator[Violation]:
    """Yield each part of merged records that doesn't satisfy a schema and has no flag that reports it."""
    flagged = {(flag.path, flag.message) for flag in merge.flags if flag.kind == SCHEMA_FLAG_KIND}
    for each in misfits:
        if (each.flag.path, each.flag.message) not in flagged:
            yield Violation(law="schema", where=each.flag.path, message=each.message)


def _find_contributors(
    record: JsonValue, number: int, outcome: Outcome | None, index: RecordIndex
) -> Iterator[_Contributor]:
    """Yield the records of an outcome that contributed to a merged record."""
    if outcome is None:
        return
    scope = index.scope(record, number, alone=False)
    for head, piece in index.pieces(outcome):
        if head == scope or (not has_identity(head) and head == index.scope(record, number, alone=True)):
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


Schema = dict[str, Any]


_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})


def require_fields(
    briefs: Sequence[Brief],
    *,
    records: str,
    identity: Sequence[str],
    rule_fields: Sequence[str],
    compared_fields: Sequence[str] = (),
) -> None:
    """Check that the schemas of briefs have the fields of records that an integrator uses.

    A schema without a list of properties may have any field.

    Args:
        briefs: The briefs; one whose model isn't loaded yet (`module:Name`) is skipped.
        records: Dotted path of the list of records in an answer, or empty.
        identity: Dotted paths that the records of every brief must have.
        rule_fields: Dotted paths of fields with a rule; the records of at least one brief must have each.
        compared_fields: Dotted paths of fields that are compared; the records of at least one brief must have each.

    Raises:
        JobError: If a brief asks for text, or a field is unknown; the message suggests the nearest name.
    """
    unknown: dict[str, list[str | None]] = {field: [] for field in (*rule_fields, *compared_fields)}
    for brief in briefs:
        if isinstance(brief.output, str) and REFERENCE.fullmatch(brief.output):
            # Its fields aren't known yet, so that it may have any of them.
            unknown = {field: [*hints, None] for field, hints in unknown.items()}
            continue
        root = schema_of(brief.output)
        if root is None:
            raise JobError(
                f"Brief {brief.name!r} answers with text, which can't be merged as records; "
                "give it an 'output' schema, or take the integrator 'collate'."
            )
        record = _record_schemas(root, records, brief)
        if ITEM_KEY in identity:
            _require_no_key(record, root, brief, alone=len(identity) == 1)
        for field in identity:
            if field != ITEM_KEY and (hint := _unknown_name_hint(record, field, root)):
                raise JobError(f"Identity field {field!r} is not in the schema of brief {brief.name!r}; {hint}")
        for field in unknown:
            unknown[field].append(_unknown_name_hint(record, field, root))
    for field, hints in unknown.items():
        if hints and all(hints):
            why = "has a rule" if field in rule_fields else "is to be compared"
            raise JobError(f"Field {field!r} {why}, but no brief's schema has that field; {hints[0]}")


def require_check_fields(briefs: Sequence[Brief]) -> None:
    """Check that the schemas of briefs have the fields that the briefs' checks use.

    Args:
        briefs: The briefs, with their own models loaded.

    Raises:
        JobError: If an answer can't have such a field, so that the check would reject every answer, or none.
    """
    for brief in briefs:
        root = schema_of(brief.output)
        for check in brief.checks:
            if not (field := getattr(check, "field", "")):
                continue
            if root is None:
                raise JobError(
                    f"Brief {brief.name!r} answers with text, and has a check of field {field!r}; leave 'field' out to "
                    "check the text, or give the brief an 'output' schema."
                )
            if hint := _unknown_name_hint([root], field, root):
                raise JobError(f"Field {field!r} of a check is not in the schema of brief {brief.name!r}; {hint}")


def require_cascade_fields(briefs: Sequence[Brief], cascade: Cascade) -> None:
    """Check that the schemas of briefs have the fields that a cascade compares, or reads the confidence from.

    Args:
        briefs: The briefs, with their own models loaded.
        cascade: The options of the cascade.

    Raises:
        JobError: If an answer can't have such a field.
    """
    named = [("compare", each) for each in cascade.compare]
    named += [("confidence", cascade.confidence)] if cascade.confidence else []
    for brief in briefs:
        root = schema_of(brief.output)
        for key, field in named:
            if root is None:
                raise JobError(
                    f"executor.cascade.{key} names the field {field!r}, and brief {brief.name!r} answers with text; "
                    f"give it an 'output' schema, or leave {key!r} out."
                )
            if hint := _unknown_name_hint([root], field, root):
                raise JobError(
                    f"executor.cascade.{key}: field {field!r} is not in the schema of brief {brief.name!r}; {hint}"
                )


def _require_no_key(record: list[Schema], root: Schema, brief: Brief, *, alone: bool) -> None:
    """Check that records don't have the field in which an identity stores their item's key.

    Raises:
        JobError: If they have it, or if an answer is a list of records and the key is their only identity.
    """
    parts = [*iter_subschemas(record, root)]
    if any(KEY_FIELD in (*part.get("properties", {}), *part.get("required", ())) for part in parts):
        raise JobError(
            f"Brief {brief.name!r} asks for a field {KEY_FIELD!r}, where {ITEM_KEY!r} ('identity') puts the key of the "
            "item; leave it out of the schema: it needs no copying."
        )
    if alone and record != [root]:
        raise JobError(
            f"Brief {brief.name!r} answers with a list of records, which {ITEM_KEY!r} alone doesn't tell apart; "
            "add a field of theirs to 'identity'."
        )


def _record_schemas(root: Schema, records: str, brief: Brief) -> list[Schema]:
    """Return the schemas of one record.

    Raises:
        JobError: If the path of the records isn't in the schema, or is not that of a list.
    """
    schemas = [root]
    if records:
        if hint := _unknown_name_hint(schemas, records, root):
            raise JobError(f"Path {records!r} ('records') is not in the schema of brief {brief.name!r}; {hint}")
        for name in records.split("."):
            schemas = property_schemas(schemas, name, root)
        if not (types := _possible_types(schemas, root)) & {"array"}:
            raise JobError(
                f"Path {records!r} ('records') leads to no list in the schema of brief {brief.name!r}, but to "
                f"{_join_types(types)}; name the list of the records, or leave 'records' out."
            )
    return _element_schemas(schemas, root) or schemas


def _unknown_name_hint(schemas: list[Schema], field: str, root: Schema) -> str | None:
    """Return a hint about the first unknown name in a dotted path, or None if every name may exist."""
    parent = "it"
    for name in field.split("."):
        if not (types := _possible_types(schemas, root)) & {"object", "array"}:
            return f"{parent} is {_join_types(types)}, which has no fields."
        names = [key for part in iter_subschemas(schemas, root) for key in part.get("properties", {})]
        if names and name not in names:
            return did_you_mean(name, names)
        schemas = property_schemas(schemas, name, root)
        schemas = _element_schemas(schemas, root) or schemas
        parent = repr(name)
    return None


def _element_schemas(schemas: list[Schema], root: Schema) -> list[Schema]:
    """Return the schemas of the elements of lists."""
    subschemas = [
        each
        for part in iter_subschemas(schemas, root)
        for keyword in ("prefixItems", "items")
        for each in (part[keyword] if isinstance(part.get(keyword), list) else [part.get(keyword)])
    ]
    return [each for each in subschemas if isinstance(each, dict)]


def _possible_types(schemas: list[Schema], root: Schema) -> frozenset[str]:
    """Return the types that a value may have if each of some schemas applies to some answer."""
    return frozenset[str]().union(*(_permitted_types(schema, root, ()) for schema in schemas)) if schemas else _TYPES


def _permitted_types(schema: object, root: Schema, seen: tuple[int, ...]) -> frozenset[str]:
    """Return the types that a schema permits; for recursive schemas, all types."""
    if not isinstance(schema, dict):
        return _TYPES
    part = cast("Schema", schema)
    if id(part) in seen:
        return _TYPES
    seen = (*seen, id(part))
    types = _TYPES
    if "type" in part:
        # In JSON Schema an integer is a number, too.
        declared = {part["type"]} if isinstance(part["type"], str) else {*part["type"]}
        types &= declared | ({"integer"} if "number" in declared else set())
    if "enum" in part or "const" in part:
        values = part.get("enum", [part.get("const")])
        types &= {name for name in _TYPES for value in values if Draft202012Validator.TYPE_CHECKER.is_type(value, name)}
    for keyword in ("anyOf", "oneOf"):
        if keyword in part:
            types &= frozenset[str]().union(*(_permitted_types(each, root, seen) for each in part[keyword]))
    # Keywords of one schema apply together: each narrows the types further.
    for each in (*part.get("allOf", ()), _resolve_ref(part, root)):
        types &= _permitted_types(each, root, seen)
    return types


def _join_types(types: frozenset[str]) -> str:
    return " or ".join(sorted(types)) or "nothing"


def property_schemas(schemas: list[Schema], name: str, root: Schema) -> list[Schema]:
    """Return the schemas of a property."""
    properties = [
        part["properties"][name] for part in iter_subschemas(schemas, root) if name in part.get("properties", {})
    ]
    return [schema for schema in properties if isinstance(schema, dict)]


def iter_subschemas(schemas: Iterable[Schema], root: Schema) -> Iterator[Schema]:
    """Yield schemas and, recursively, those that they refer to or combine, each once."""
    queue, seen = list(schemas), set[int]()
    while queue:
        schema = queue.pop(0)
        if id(schema) in seen:
            continue
        seen.add(id(schema))
        yield schema
        combined = [_resolve_ref(schema, root), *(schema.get(keyword) for keyword in ("then", "else"))]
        combined += [part for keyword in ("anyOf", "oneOf", "allOf") for part in schema.get(keyword, ())]
        queue += [cast("Schema", part) for part in combined if isinstance(part, dict)]


def _resolve_ref(schema: Schema, root: Schema) -> object:
    with suppress(LookupError):  # a reference that is no JSON pointer, such as an anchor, may be any schema
        return resolve_pointer(root, str(schema["$ref"]).removeprefix("#"))[0]
    return None
