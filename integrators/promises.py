"""The fields that a brief's schema promises, so that a misspelt one is noticed before anything is spent."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from jsonschema import Draft202012Validator

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.records.identities import ITEM_KEY, KEY_FIELD
from prefect_dispatch.integrators.values import find
from prefect_dispatch.outputs import schema_of
from prefect_dispatch.references import REFERENCE
from prefect_dispatch.strict import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prefect_dispatch.models import Brief

Schema = dict[str, Any]
_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})


def require_fields(
    briefs: Sequence[Brief],
    *,
    records: str,
    identity: Sequence[str],
    named: Sequence[str],
    compared: Sequence[str] = (),
) -> None:
    """Check that briefs ask for records which have certain fields.

    A schema that doesn't list its properties promises anything.

    Args:
        briefs: The briefs; one whose model isn't loaded yet (`module:Name`) is passed over.
        records: Dotted path of the list of records in an answer, or empty.
        identity: Dotted paths that the records of every brief must have.
        named: Dotted paths that the records of at least one brief must have.
        compared: The same, for another reason.

    Raises:
        JobError: If a brief asks for text, or a field is unknown; it names the nearest one.
    """
    unknown: dict[str, list[str | None]] = {field: [] for field in (*named, *compared)}
    for brief in briefs:
        if isinstance(brief.output, str) and REFERENCE.fullmatch(brief.output):
            unknown = {field: [*hints, None] for field, hints in unknown.items()}
            continue
        root = schema_of(brief.output)
        if root is None:
            raise JobError(
                f"Brief {brief.name!r} answers with text, which can't be merged as records; "
                "give it an 'output' schema, or take the integrator 'collate'."
            )
        record = _record(root, records, brief)
        if ITEM_KEY in identity:
            _require_no_key(record, root, brief, alone=len(identity) == 1)
        for field in identity:
            if field != ITEM_KEY and (hint := _missing(record, field, root)):
                raise JobError(f"Identity field {field!r} is not in the schema of brief {brief.name!r}; {hint}")
        for field in unknown:
            unknown[field].append(_missing(record, field, root))
    for field, hints in unknown.items():
        if hints and all(hints):
            why = "has a rule" if field in named else "is to be compared"
            raise JobError(f"Field {field!r} {why}, but no brief's schema has that field; {hints[0]}")


def require_checked(briefs: Sequence[Brief]) -> None:
    """Check that answers may have the fields that their briefs' checks are about.

    Args:
        briefs: The briefs, with their own models loaded.

    Raises:
        JobError: If an answer can't have such a field: no answer would ever pass, or none ever fail.
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
            if hint := _missing([root], field, root):
                raise JobError(f"Field {field!r} of a check is not in the schema of brief {brief.name!r}; {hint}")


def _require_no_key(record: list[Schema], root: Schema, brief: Brief, *, alone: bool) -> None:
    """Check that records leave room for the key of their item, which an identity has in it.

    Raises:
        JobError: If they have a field of that name, or if an answer is a list and nothing else tells its records apart.
    """
    parts = [*branches(record, root)]
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


def _record(root: Schema, records: str, brief: Brief) -> list[Schema]:
    """Return the schemas of one record."""
    here = [root]
    if records:
        if hint := _missing(here, records, root):
            raise JobError(f"Path {records!r} ('records') is not in the schema of brief {brief.name!r}; {hint}")
        for name in records.split("."):
            here = inside(here, name, root)
        if not (found := _types(here, root)) & {"array"}:
            raise JobError(
                f"Path {records!r} ('records') leads to no list in the schema of brief {brief.name!r}, but to "
                f"{_named(found)}; name the list of the records, or leave 'records' out."
            )
    return _elements(here, root) or here


def _missing(schemas: list[Schema], field: str, root: Schema) -> str | None:
    """Return a hint on the first unknown name in a dotted path, or None if all may exist."""
    way = "it"
    for name in field.split("."):
        if not (found := _types(schemas, root)) & {"object", "array"}:
            return f"{way} is {_named(found)}, which has no fields."
        known = [key for part in branches(schemas, root) for key in part.get("properties", {})]
        if known and name not in known:
            return nearest(name, known)
        schemas = inside(schemas, name, root)
        schemas = _elements(schemas, root) or schemas
        way = repr(name)
    return None


def _elements(schemas: list[Schema], root: Schema) -> list[Schema]:
    """Return the schemas of the elements of lists."""
    found = [
        each
        for part in branches(schemas, root)
        for word in ("prefixItems", "items")
        for each in (part[word] if isinstance(part.get(word), list) else [part.get(word)])
    ]
    return [each for each in found if isinstance(each, dict)]


def _types(schemas: list[Schema], root: Schema) -> frozenset[str]:
    """Return the types that a value may have of which a schema each says something in some answer."""
    return frozenset[str]().union(*(_may_be(schema, root, ()) for schema in schemas)) if schemas else _TYPES


def _may_be(schema: object, root: Schema, seen: tuple[int, ...]) -> frozenset[str]:
    if not isinstance(schema, dict):
        return _TYPES
    part = cast("Schema", schema)
    if id(part) in seen:
        return _TYPES
    seen = (*seen, id(part))
    found = _TYPES
    if "type" in part:
        said = {part["type"]} if isinstance(part["type"], str) else {*part["type"]}
        found &= said | ({"integer"} if "number" in said else set())
    if "enum" in part or "const" in part:
        values = part.get("enum", [part.get("const")])
        found &= {name for name in _TYPES for value in values if Draft202012Validator.TYPE_CHECKER.is_type(value, name)}
    for word in ("anyOf", "oneOf"):
        if word in part:
            found &= frozenset[str]().union(*(_may_be(each, root, seen) for each in part[word]))
    for each in (*part.get("allOf", ()), _target(part, root)):
        found &= _may_be(each, root, seen)
    return found


def _named(types: frozenset[str]) -> str:
    return " or ".join(sorted(types)) or "nothing"


def inside(schemas: list[Schema], name: str, root: Schema) -> list[Schema]:
    """Return the schemas of what stands at a name inside."""
    found = [part["properties"][name] for part in branches(schemas, root) if name in part.get("properties", {})]
    return [schema for schema in found if isinstance(schema, dict)]


def branches(schemas: Iterable[Schema], root: Schema) -> Iterator[Schema]:
    """Yield schemas and what they refer to or combine, each once."""
    todo, seen = list(schemas), set[int]()
    while todo:
        schema = todo.pop(0)
        if id(schema) in seen:
            continue
        seen.add(id(schema))
        yield schema
        combined = [_target(schema, root), *(schema.get(word) for word in ("then", "else"))]
        combined += [part for word in ("anyOf", "oneOf", "allOf") for part in schema.get(word, ())]
        todo += [cast("Schema", part) for part in combined if isinstance(part, dict)]


def _target(schema: Schema, root: Schema) -> object:
    with suppress(LookupError):  # a reference that is no pointer (an anchor, say) promises anything
        return find(root, str(schema["$ref"]).removeprefix("#"))[0]
    return None
