"""Base classes of all models: frozen, documented, and strict about unknown keys."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue, model_validator
from pydantic_core import PydanticCustomError
from rapidfuzz import fuzz, process
from typing_extensions import override

from prefect_dispatch.serialization.json_text import find_json_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema
    from typing_extensions import Self


LAST_POSITION = 100
"""Position in a form of fields that are constant: after all others."""


def arrange_fields(schema: JsonSchemaValue) -> JsonSchemaValue:
    r"""Return the JSON Schema of a model with the positions of its fields and the first paragraph of its docstring.

    Example:
        >>> properties = {"kind": {"const": "point"}, "x": {}}
        >>> arrange_fields({"description": "A point.\n\nExample: …", "properties": properties})
        {'description': 'A point.', 'properties': {'kind': {'const': 'point', 'position': 100}, 'x': {'position': 1}}}
    """
    for position, field in enumerate(schema.get("properties", {}).values()):
        field.setdefault("position", LAST_POSITION if "const" in field else position)
    if "description" in schema:
        schema["description"] = schema["description"].partition("\n\n")[0]
    return schema


class Tabs:
    """Annotation of a union whose members become tabs in both of Prefect's UIs: the older one ignores `oneOf`.

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
        """Return the schema with `anyOf` in place of `oneOf`, and nested unions flattened."""
        return {"anyOf": _members(handler(schema))}


def _members(schema: JsonSchemaValue) -> list[JsonSchemaValue]:
    nested = schema.get("oneOf") or schema.get("anyOf")
    return [member for each in nested for member in _members(each)] if nested else [schema]


class NoneFirst:
    """Annotation of an optional object in a form: a tab without fields comes first, and the form begins with it."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema with null first."""
        value = next(each for each in handler(schema)["anyOf"] if "$ref" in each)
        return {"anyOf": [{"title": "None", "type": "null"}, value]}


_T = TypeVar("_T")


def did_you_mean(word: str, known: list[str]) -> str:
    """Return a hint for an unknown word: the nearest known one, or all known ones.

    Example:
        >>> did_you_mean("instrctions", ["name", "instructions"])
        "did you mean 'instructions'?"
        >>> did_you_mean("zzz", ["name", "scope"])
        "known are 'name', 'scope'."
    """
    best = process.extractOne(word.lower(), known, scorer=fuzz.ratio, score_cutoff=60)
    return f"did you mean {best[0]!r}?" if best else f"known are {', '.join(map(repr, known))}."


def _require_storable(value: JsonValue) -> JsonValue:
    if problem := find_json_problem(value):
        raise PydanticCustomError("flaw", "it {flaw}", {"flaw": problem})
    return value


class _NonEmpty(AfterValidator):
    """Annotation for a tuple with one element at least; pydantic's own `min_length` counts only the valid elements."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "minItems": 1}


def _require_non_empty(values: tuple[_T, ...]) -> tuple[_T, ...]:
    if not values:
        raise PydanticCustomError("too_short", "should have at least 1 item, and has none")
    return values


NON_EMPTY = _NonEmpty(_require_non_empty)
"""Annotation for a non-empty tuple. If an element is invalid, only that is reported."""

StorableJson = Annotated[JsonValue, AfterValidator(_require_storable)]
"""A JSON value that can be stored unchanged: no NaN, no lone surrogates, no bottomless nesting."""


def _find_docstring(model: type[BaseModel], field: str) -> str:
    """Return the docstring below a field in the nearest class that declares it, or an empty text."""
    places = ((_read_docstrings(each.__module__), f"{each.__qualname__}.{field}") for each in model.__mro__)
    return next((docstrings[name] for docstrings, name in places if name in docstrings), "")


@cache
def _read_docstrings(module: str) -> dict[str, str]:
    """Return the docstrings of the annotated names in a module's source, by qualified name; empty where there is none.

    Only a JSON Schema needs them. pydantic's `use_attribute_docstrings` reads the source of each class when the class
    is created, which was a quarter of the time until a job file is refused.
    """
    try:
        tree = ast.parse(inspect.getsource(cast("Any", sys.modules.get(module))))
    except (OSError, TypeError):  # a module without source, such as an interactive session
        return {}
    found: dict[str, str] = {}

    def visit(body: Sequence[ast.stmt], prefix: str) -> None:
        for node, following in pairwise([*body, ast.Pass()]):
            match node, following:
                case ast.ClassDef(), _:
                    visit(node.body, f"{prefix}{node.name}.")
                case ((ast.FunctionDef() | ast.AsyncFunctionDef()), _):
                    visit(node.body, f"{prefix}{node.name}.<locals>.")
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[f"{prefix}{name}"] = inspect.cleandoc(text)
                case ast.AnnAssign(target=ast.Name(id=name)), _:
                    found[f"{prefix}{name}"] = ""
                case _:
                    pass

    visit(tree.body, "")
    return found


class Frozen(BaseModel):
    """A frozen model that rejects unknown keys: for objects that a run creates several times per item."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema as forms need it, with the docstrings of its fields; see `arrange_fields`."""
        described = handler(schema)
        resolved = handler.resolve_ref_schema(described)
        for name, field in cls.model_fields.items():
            shown = resolved.get("properties", {}).get(field.alias or name)
            if shown is not None and field.description is None and (text := _find_docstring(cls, name)):
                shown["description"] = text
        arrange_fields(resolved)
        return described


class Strict(Frozen):
    """A frozen model whose error for an unknown key suggests the nearest known one: for objects that people write."""

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: object) -> object:
        if type(data) is not dict and not isinstance(data, Mapping):  # the second check alone is ten times as slow
            return data
        keys = cast("Mapping[str, object]", data)
        if keys.keys() <= cls.__pydantic_fields__.keys():
            return keys
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in keys:
            if str(key) not in (*known, *cls.model_fields):
                raise PydanticCustomError(
                    "unknown_key",
                    "unknown key {key}; {hint}",
                    {"key": repr(key), "hint": did_you_mean(str(key), known)},
                )
        return keys


class CompactFrozen(Frozen):
    """A compact model, of which a run holds at least one per item: instances share their sets of field names.

    pydantic stores in each instance a set with the names of the fields that were given: a third of the memory of an
    outcome. Sharing the sets is safe, as the model is frozen.
    """

    @override
    def model_post_init(self, context: object, /) -> None:
        """Replace the instance's set of field names by the shared one."""
        own = self.__pydantic_fields_set__
        object.__setattr__(self, "__pydantic_fields_set__", _shared_sets.setdefault(frozenset(own), own))

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy that shares its set of field names, too: pydantic creates a new one, at four times the cost."""
        if deep:
            copy = super().model_copy(update=update, deep=True)
            copy.model_post_init(None)
            return copy
        changes, given = update or {}, self.__pydantic_fields_set__
        if not given.issuperset(changes):
            own = {*given, *changes}
            given = _shared_sets.setdefault(frozenset(own), own)
        copy = self.__class__.__new__(self.__class__)
        object.__setattr__(copy, "__dict__", {**self.__dict__, **changes})
        object.__setattr__(copy, "__pydantic_fields_set__", given)
        object.__setattr__(copy, "__pydantic_extra__", None)
        object.__setattr__(copy, "__pydantic_private__", None)
        return copy


_shared_sets: dict[frozenset[str], set[str]] = {}
"""The shared sets; there are few, as each place in the code that creates such models gives the same fields."""
