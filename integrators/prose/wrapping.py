"""A schema inside another one: what a model answers is the value that was asked for, together with its sources."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import urldefrag, urljoin

Schema = dict[str, Any]


def wrapped(schema: Schema) -> Schema:
    """Return the schema of a value together with its sources.

    Example:
        >>> wrapped({"$ref": "#/$defs/a"})["properties"]["value"]
        {'$ref': '#/properties/value/$defs/a'}
    """
    own = urldefrag(str(schema.get("$id", "")))[0]
    path: Schema = {"type": "string"}
    ids: Schema = {"type": "array", "items": {"type": "integer"}}
    return {
        "type": "object",
        "properties": {
            # What stands inside another schema has no address of its own, and its references start at the top.
            "value": _moved({name: part for name, part in schema.items() if name != "$id"}, own, own),
            "sources": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"path": path, "ids": ids},
                    "required": ["path", "ids"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["value", "sources"],
        "additionalProperties": False,
    }


def _moved(schema: Any, own: str, base: str) -> Any:  # noqa: ANN401 -- any part of a schema
    """Return a part of a schema with its references to the schema itself led to its new place.

    Args:
        schema: The part.
        own: The address that the schema had.
        base: The address by which references in this part go.
    """
    if isinstance(schema, list):
        return [_moved(part, own, base) for part in cast("list[object]", schema)]
    if not isinstance(schema, dict):
        return schema
    inside = cast("Schema", schema)
    if isinstance(inside.get("$id"), str):
        base = urljoin(base, inside["$id"])
    return {
        name: _led(part, own, base) if name == "$ref" and isinstance(part, str) else _moved(part, own, base)
        for name, part in inside.items()
    }


def _led(reference: str, own: str, base: str) -> str:
    address, place = urldefrag(urljoin(base, reference))
    if address != own:
        return reference
    # A name (`#node`) is known wherever it stands.
    return f"#{place}" if place and not place.startswith("/") else f"#/properties/value{place}"
