"""The base of every model: frozen, documented, and strict about unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError
from rapidfuzz import process


def nearest(word: str, known: list[str]) -> str:
    """Return the hint that follows an unknown word.

    Example:
        >>> nearest("instrctions", ["name", "instructions"])
        "did you mean 'instructions'?"
        >>> nearest("zzz", ["name", "scope"])
        "known are 'name', 'scope'."
    """
    best = process.extractOne(word.lower(), known, score_cutoff=60)
    return f"did you mean {best[0]!r}?" if best else f"known are {', '.join(map(repr, known))}."


class Strict(BaseModel):
    """A frozen model that answers an unknown key with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        keys = cast("Mapping[Any, Any]", data)
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in keys:
            if str(key) not in known and str(key) not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown_key", "unknown key {key}; {hint}", {"key": repr(key), "hint": nearest(str(key), known)}
                )
        return keys
