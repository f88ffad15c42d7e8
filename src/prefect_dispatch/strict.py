"""The bases of every model: frozen, documented, and strict about unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue, model_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function
from rapidfuzz import fuzz, process
from typing_extensions import override

from prefect_dispatch.fingerprint import flaw
from prefect_dispatch.form import laid_out

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema
    from typing_extensions import Self

_T = TypeVar("_T")


def nearest(word: str, known: list[str]) -> str:
    """Return the hint that follows an unknown word.

    Example:
        >>> nearest("instrctions", ["name", "instructions"])
        "did you mean 'instructions'?"
        >>> nearest("zzz", ["name", "scope"])
        "known are 'name', 'scope'."
    """
    best = process.extractOne(word.lower(), known, scorer=fuzz.ratio, score_cutoff=60)
    return f"did you mean {best[0]!r}?" if best else f"known are {', '.join(map(repr, known))}."


def _kept(value: JsonValue) -> JsonValue:
    if found := flaw(value):
        raise PydanticCustomError("flaw", "it {flaw}", {"flaw": found})
    return value


class _Some:
    """Asks for one of something at least; a length that pydantic asks for is that of what is valid."""

    @staticmethod
    def __get_pydantic_core_schema__(source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(_some, handler(source))

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "minItems": 1}


def _some(values: tuple[_T, ...]) -> tuple[_T, ...]:
    if not values:
        raise PydanticCustomError("too_short", "should have at least 1 item, and has none")
    return values


SOME = _Some()
"""Of a tuple: that there is something in it. Where one is wrong, nothing else is said to be."""
Kept = Annotated[JsonValue, AfterValidator(_kept)]
"""A JSON value that can be stored as it is: no NaN, no half characters, no bottomless nesting."""


class Frozen(BaseModel):
    """A frozen model that refuses unknown keys: of what a run makes several of for each item."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema as a form shows it best."""
        described = handler(schema)
        laid_out(handler.resolve_ref_schema(described))
        return described


class Strict(Frozen):
    """A frozen model that answers an unknown key with the nearest known one: of what people write."""

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: object) -> object:
        if type(data) is not dict and not isinstance(data, Mapping):  # the latter alone takes ten times as long
            return data
        keys = cast("Mapping[str, object]", data)
        if keys.keys() <= cls.__pydantic_fields__.keys():
            return keys
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in keys:
            if str(key) not in (*known, *cls.model_fields):
                raise PydanticCustomError(
                    "unknown_key", "unknown key {key}; {hint}", {"key": repr(key), "hint": nearest(str(key), known)}
                )
        return keys


class Numerous(Frozen):
    """A model of which a run holds as many as it has items: equal sets of names are one set.

    pydantic keeps with each model which of its fields were given, in a set of its own: a third of what an outcome
    took. Nothing changes such a set, as the model is frozen.
    """

    @override
    def model_post_init(self, context: object, /) -> None:
        """Take the set that others have."""
        given = frozenset(self.__pydantic_fields_set__)
        object.__setattr__(self, "__pydantic_fields_set__", _given.setdefault(given, self.__pydantic_fields_set__))

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy, which takes the set that others have as well: pydantic gives it one of its own."""
        copy = super().model_copy(update=update, deep=deep)
        copy.model_post_init(None)
        return copy


_given: dict[frozenset[str], set[str]] = {}
"""Few: who makes such models gives the same fields each time."""
