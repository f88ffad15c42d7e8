"""Preparation of an integrator before a run: resolves its code and files, binds the items, and checks the briefs."""

from __future__ import annotations

import inspect
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from jsonschema import Draft202012Validator

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.base import AskingIntegrator, BaseIntegrator, Integrator
from prefect_dispatch.integrators.merge_records.identities import ITEM_KEY, KEY_FIELD
from prefect_dispatch.models.base import did_you_mean
from prefect_dispatch.models.imports import REFERENCE, explain_misfit, import_reference
from prefect_dispatch.models.output_schema import schema_of
from prefect_dispatch.serialization.json_values import resolve_pointer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item


def integrator_problem(integrator: object) -> str | None:
    """Return why an object is no integrator, as a sentence that says what to do; None if it is one.

    Example:
        >>> from prefect_dispatch import Collate
        >>> integrator_problem(Collate())
        >>> integrator_problem(Collate)
        'Collate is a class, not an integrator: pass an object of it, such as Collate().'
    """
    if inspect.isclass(integrator):
        name = integrator.__name__
        return f"{name} is a class, not an integrator: pass an object of it, such as {name}()."
    name = type(integrator).__name__
    if isinstance(integrator, AskingIntegrator):
        why = explain_misfit(integrator.merge_asking, "briefs", "outcomes", "ask")
        return f"{name} is not an integrator: its method 'merge_asking' {why}." if why else None
    if isinstance(integrator, Integrator):
        why = explain_misfit(integrator.merge, "briefs", "outcomes")
        return f"{name} is not an integrator: its method 'merge' {why}." if why else None
    return f"{name} is not an integrator: it needs a method 'merge' (or 'merge_asking')."


def prepare_integrator(
    integrator: AnyMerger,
    briefs: Sequence[Brief],
    items: Sequence[Item],
    folder: Path,
    executor: Executor | None = None,
) -> AnyMerger:
    """Return an integrator that is prepared for a run.

    Args:
        integrator: Any integrator; one without optional abilities is returned as it is.
        briefs: The briefs of the job.
        items: The items of the job.
        folder: The folder that relative paths and the user's own code are looked up from.
        executor: The job's executor, with its paths resolved.

    Raises:
        JobError: If something is missing, the object is no integrator, or it doesn't fit the job.
    """
    if problem := integrator_problem(integrator):
        raise JobError(problem)
    # The order matters: each step may need the result of the one before.
    integrator = _prepare(integrator, "resolve_references", partial(import_reference, root=folder))
    if executor is not None:
        integrator = _prepare(integrator, "with_executor", executor, folder)
    integrator = _prepare(integrator, "resolve_paths", folder)
    if items:  # without items, nothing is merged
        integrator = bind_items(integrator, briefs, items)
    BaseIntegrator.of(integrator).preflight(briefs)
    return integrator


def bind_items(integrator: AnyMerger, briefs: Sequence[Brief], items: Sequence[Item]) -> AnyMerger:
    """Return an integrator with the items that it needs.

    Raises:
        JobError: If it doesn't fit the items, or its method returns no integrator.
    """
    return _prepare(integrator, "with_items", briefs, items)


def _prepare(integrator: AnyMerger, method: str, *arguments: object) -> AnyMerger:
    """Return the prepared copy of an integrator that one of its methods returns; by default the integrator itself."""
    base = BaseIntegrator.of(integrator)
    prepared = getattr(base, method)(*arguments)
    if prepared is base:
        return integrator
    if problem := integrator_problem(prepared):
        raise JobError(
            f"The method {method!r} of {type(integrator).__name__} must return an integrator (such as self), but it "
            f"didn't: {problem}"
        )
    return cast("AnyMerger", prepared)


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
