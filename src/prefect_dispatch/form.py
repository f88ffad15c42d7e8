"""What turns a JSON Schema into a good form in Prefect's UI.

The form orders fields by `position`, prints the description of a model above them, and
shows the members of an `anyOf` as tabs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

LAST = 100
"""The position of what nobody edits."""


def laid_out(schema: JsonSchemaValue) -> JsonSchemaValue:
    r"""Return the schema of a model with its fields in their order, and its docstring's first paragraph only.

    Example:
        >>> laid_out({"description": "A point.\n\nExample: …", "properties": {"kind": {"const": "point"}, "x": {}}})
        {'description': 'A point.', 'properties': {'kind': {'const': 'point', 'position': 100}, 'x': {'position': 1}}}
    """
    for position, field in enumerate(schema.get("properties", {}).values()):
        field.setdefault("position", LAST if "const" in field else position)
    if "description" in schema:
        schema["description"] = schema["description"].partition("\n\n")[0]
    return schema


class Tabs:
    """Marks a union whose members are to be tabs in both of Prefect's UIs: the older one passes over `oneOf`.

    Example:
        >>> from typing import Annotated, Literal
        >>> from pydantic import BaseModel, Field, TypeAdapter
        >>> class Cat(BaseModel):
        ...     kind: Literal["cat"]
        >>> class Dog(BaseModel):
        ...     kind: Literal["dog"]
        >>> pet = TypeAdapter(Annotated[Annotated[Cat | Dog, Field(discriminator="kind")], Tabs()])
        >>> pet.json_schema()["anyOf"]
        [{'$ref': '#/$defs/Cat'}, {'$ref': '#/$defs/Dog'}]
    """

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema with `anyOf` for `oneOf`, a union in a union flattened."""
        return {"anyOf": _members(handler(schema))}


def _members(schema: JsonSchemaValue) -> list[JsonSchemaValue]:
    nested = schema.get("oneOf") or schema.get("anyOf")
    return [member for each in nested for member in _members(each)] if nested else [schema]
