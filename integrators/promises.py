"""The fields that a brief's schema promises, so that a misspelt one is noticed before anything is spent."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

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
    items = [part["items"] for part in branches(here, root) if isinstance(part.get("items"), dict)]
    return items or here


def _missing(schemas: list[Schema], field: str, root: Schema) -> str | None:
    """Return a hint on the first unknown name in a dotted path, or None if all may exist."""
    for name in field.split("."):
        known = [key for part in branches(schemas, root) for key in part.get("properties", {})]
        if known and name not in known:
            return nearest(name, known)
        schemas = inside(schemas, name, root)
        schemas += [part["items"] for part in branches(schemas, root) if isinstance(part.get("items"), dict)]
    return None


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
        target = None
        with suppress(LookupError):  # a reference that is no pointer (an anchor, say) promises anything
            target, _ = find(root, str(schema["$ref"]).removeprefix("#"))
        combined = [target, *(part for word in ("anyOf", "oneOf", "allOf") for part in schema.get(word, ()))]
        todo += [cast("Schema", part) for part in combined if isinstance(part, dict)]
