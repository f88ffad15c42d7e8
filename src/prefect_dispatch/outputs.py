"""The form of an answer: text, a JSON Schema, or a pydantic model."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import regex
from jsonschema import Draft202012Validator, SchemaError
from jsonschema import ValidationError as JsonSchemaError
from jsonschema.validators import extend, validator_for  # pyright: ignore[reportUnknownVariableType] -- it has no types
from pydantic import BaseModel, JsonValue, ValidationError
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

from prefect_dispatch.fingerprint import flaw
from prefect_dispatch.formats import misformed
from prefect_dispatch.json_text import UntakenError, loads
from prefect_dispatch.references import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jsonschema.protocols import Validator

SEARCH_SECONDS = 1.0
"""How long a pattern may search one answer: a hostile text must not stop the run."""

LONGEST = 500
"""Characters of one problem that are told: a validator quotes the whole answer."""

Output = str | dict[str, Any] | type[BaseModel]
"""`text`, a JSON Schema, `module:Name`, or a pydantic model class.

A schema is kept as JSON text: Prefect would take a `$ref` inside a parameter for one of its blocks.
"""

_FENCE = re.compile(r"\A\s*```[\w-]*[ \t]*\r?\n(?P<body>.*?)\s*```\s*\Z", re.DOTALL)


def normalise_output(value: object) -> object:
    """Return the one form in which an output is kept.

    Raises:
        ValueError: If it is none of the forms, or not a valid JSON Schema.

    Example:
        >>> normalise_output({"type": "object"})
        '{"type":"object"}'
    """
    if isinstance(value, type):
        if issubclass(value, BaseModel):
            return value
        msg = f"{value.__name__} is not a pydantic model"
        raise ValueError(msg)
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = read_json(value)
        except ValueError as error:
            msg = f"not JSON: {error}"
            raise ValueError(msg) from None
    if isinstance(value, dict):
        _check_schema(cast("dict[str, Any]", value))
        return show_output(cast("dict[str, Any]", value))
    if isinstance(value, str) and (value == "text" or REFERENCE.fullmatch(value)):
        return value
    msg = f"must be 'text', a JSON Schema, or 'module:Name' of a pydantic model, not {value!r}"
    raise ValueError(msg)


def show_output(output: Output) -> str:
    """Return an output as JSON can hold it: a model becomes its schema.

    Keys keep the order in which they were written: models answer in it, so a reason can come before a verdict.
    """
    return output if isinstance(output, str) else json.dumps(schema_of(output), separators=(",", ":"), allow_nan=False)


def schema_of(output: Output) -> dict[str, Any] | None:
    """Return the JSON Schema of an output, or None for text."""
    if isinstance(output, type):
        return output.model_json_schema()
    if isinstance(output, dict):
        return output
    return None if output == "text" else cast("dict[str, Any]", json.loads(output))


def has_validators(model: type[BaseModel]) -> bool:
    """Return whether a model has validators of its own: code, of which its schema says nothing."""
    decorators = model.__pydantic_decorators__
    return any(
        (decorators.validators, decorators.field_validators, decorators.model_validators, decorators.root_validators)
    )


def problems(output: Output, value: JsonValue) -> tuple[JsonValue, list[str]]:
    r"""Return an answer's value as it is kept, and what is wrong with it.

    Args:
        output: The form that was asked for.
        value: The answer: text as it came, or a JSON value.

    Returns:
        The value (a pydantic model's defaults filled in) and one sentence for each problem.

    Example:
        >>> problems('{"type":"object","required":["a"]}', '```json\n{"b": 1}\n```')
        ({'b': 1}, ["$: 'a' is a required property"])
    """
    if output != "text" and isinstance(value, str):
        try:
            value = read_json(value, once=True)
        except ValueError as error:
            wrong = "can't be taken" if isinstance(error, UntakenError) else "is not JSON"
            return value, [f"The answer {wrong}: {error}."]
    if found := flaw(value):
        return value, [f"The answer {found}."]
    if output == "text":
        return (value, []) if isinstance(value, str) else (value, ["The answer must be text."])
    if not isinstance(output, type):
        misfits = _validator(show_output(output)).iter_errors(value)
        errors = [f"{error.json_path}: {error.message}" for error in misfits]
        return value, list(map(_brief, errors))
    try:
        return cast("JsonValue", output.model_validate(value).model_dump(mode="json")), []
    except ValidationError as error:
        return value, [_brief(f"{_path(e['loc'])}: {e['msg']}") for e in error.errors(include_url=False)]


def read_json(text: str, *, once: bool = False) -> JsonValue:
    """Return the JSON value of a text that may stand in a Markdown fence.

    Args:
        text: The text.
        once: Whether a key that stands twice in one object is refused. Else the last one counts.

    Raises:
        ValueError: If it isn't JSON, has NaN or infinities by name, or can't be taken.
    """
    fenced = _FENCE.match(text)
    return loads(fenced["body"] if fenced else text, once=once)


def _brief(problem: str) -> str:
    """Return a problem without most of the answer that validators quote in it."""
    return problem if len(problem) <= LONGEST else f"{problem[:LONGEST]} …"


def _path(location: tuple[int | str, ...]) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _check_schema(schema: dict[str, Any]) -> None:
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        msg = f"not a valid JSON Schema: {error.json_path}: {error.message}"
        raise ValueError(msg) from None
    except RecursionError:
        msg = "not a valid JSON Schema: it is nested too deep"
        raise ValueError(msg) from None
    resolver = EMPTY_REGISTRY.resolver_with_root(DRAFT202012.create_resource(schema))
    try:
        for reference in _references(schema):
            resolver.lookup(reference)
    except Unresolvable as error:
        msg = f"not a usable JSON Schema: {error.ref!r} is not in it, and nothing is fetched"
        raise ValueError(msg) from None
    try:
        _validator(json.dumps(schema)).is_valid(None)
    except RecursionError:
        msg = "not a usable JSON Schema: it refers to itself without end"
        raise ValueError(msg) from None
    for place, name in _impossible(schema, "$"):
        msg = (
            f"not a usable JSON Schema: no answer can be valid, as {place} requires {name!r}, which is not among its "
            "'properties', and its 'additionalProperties' is false; add it to the one, or take it from 'required'"
        )
        raise ValueError(msg)


def _impossible(schema: dict[str, Any], place: str) -> Iterator[tuple[str, str]]:
    """Yield what an object that every answer has must hold and may not, each with the object's place."""
    names = schema.get("required")
    if schema.get("type") != "object" or not isinstance(names, list):  # an old draft has true or false there
        return
    inside: dict[str, Any] = schema.get("properties", {})
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    for name in cast("list[str]", names):
        if isinstance(part := inside.get(name), dict):
            yield from _impossible(cast("dict[str, Any]", part), f"{place}.{name}")
        elif closed and name not in inside:
            yield place, name


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        parts = cast("dict[str, object]", schema)
        if isinstance(reference := parts.get("$ref"), str):
            yield reference
        schema = list(parts.values())
    if isinstance(schema, list):
        for part in cast("list[object]", schema):
            yield from _references(part)


@lru_cache(maxsize=256)
def _validator(text: str) -> Validator:
    schema = json.loads(text)
    base = validator_for(schema, default=Draft202012Validator)
    made: Validator = _timed(base)(schema, registry=EMPTY_REGISTRY)
    return made


@lru_cache(maxsize=8)
def _timed(base: type[Validator]) -> Any:  # noqa: ANN401 -- extend() has no types
    """Return a validator whose patterns are searched for a limited time: an answer must not stop the run."""
    return cast("Any", extend)(base, {"pattern": _pattern, "format": _format})


def _pattern(_validator: object, pattern: str, instance: object, _schema: object) -> Iterator[JsonSchemaError]:
    if not isinstance(instance, str):
        return
    try:
        if not regex.search(pattern, instance, timeout=SEARCH_SECONDS):
            yield JsonSchemaError(f"{instance!r} does not match {pattern!r}")
    except TimeoutError:
        yield JsonSchemaError(f"it could not be searched for {pattern!r} within {SEARCH_SECONDS:g} s")


def _format(_validator: object, form: str, instance: object, _schema: object) -> Iterator[JsonSchemaError]:
    if isinstance(instance, str) and (wrong := misformed(instance, form)):
        yield JsonSchemaError(wrong)
