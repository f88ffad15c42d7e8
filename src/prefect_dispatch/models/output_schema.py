"""The form of an answer (text, a JSON Schema or a pydantic model), and the validation of answers against it."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import regex
from jsonschema import Draft202012Validator, FormatChecker, SchemaError
from jsonschema import ValidationError as JsonSchemaError
from jsonschema.validators import extend, validator_for  # pyright: ignore[reportUnknownVariableType] -- it has no types
from pydantic import BaseModel, JsonValue, ValidationError
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

from prefect_dispatch.models.imports import REFERENCE
from prefect_dispatch.serialization.json_text import UnsupportedJsonError, find_json_problem, loads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jsonschema.protocols import Validator


PARTIAL_DATE = "partial-date"
"""Format of a calendar date whose day, or month and day, may be missing; not part of JSON Schema."""

_PARTIAL_DATE_PATTERN = r"^[0-9]{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?)?$"
"""The pattern that is sent to a provider in its place: none knows the format, and some refuse unknown ones."""

_FORMAT_MESSAGES = {
    "date": "no date of the calendar; write it like 2026-11-25",
    "email": "no e-mail address; write it like name@example.org",
    "ipv4": "no IPv4 address; write it like 192.0.2.1",
    "ipv6": "no IPv6 address; write it like 2001:db8::1",
    "uuid": "no UUID; write it like 123e4567-e89b-42d3-a456-426614174000",
    PARTIAL_DATE: "no date of the calendar; write it like 2026-11-25, or 2026-11 or 2026 where no more is said",
}

_CHECKER = FormatChecker([name for name in _FORMAT_MESSAGES if name != PARTIAL_DATE])

_MAX_QUOTED = 60
"""Characters of a text that a message quotes."""


def explain_format_error(text: str, form: str) -> str | None:
    """Return what is wrong with a text in some format; None if it is right, or if the format isn't checked.

    Example:
        >>> explain_format_error("2026-11-31", "date")
        "'2026-11-31' is no date of the calendar; write it like 2026-11-25"
        >>> explain_format_error("2026-11", "partial-date"), explain_format_error("anything", "uri")
        (None, None)
    """
    if form not in _FORMAT_MESSAGES or _conforms(text, form):
        return None
    return f"{text[:_MAX_QUOTED]!r} is {_FORMAT_MESSAGES[form]}"


def _conforms(text: str, form: str) -> bool:
    if form == PARTIAL_DATE:
        return any(_CHECKER.conforms(text + rest, "date") for rest in ("", "-01", "-01-01"))
    return _CHECKER.conforms(text, form)


def to_provider_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema for a provider: our own format becomes a pattern, everything else stays.

    Example:
        >>> to_provider_schema({"type": "string", "format": "date"})
        {'type': 'string', 'format': 'date'}
        >>> to_provider_schema({"type": "string", "format": "partial-date"})["pattern"][:9]
        '^[0-9]{4}'
    """
    return cast("dict[str, Any]", _replace_own_format(schema))


def _replace_own_format(part: Any) -> Any:  # noqa: ANN401 -- JSON
    if isinstance(part, list):
        parts: list[Any] = part  # pyright: ignore[reportUnknownVariableType] -- JSON
        return [_replace_own_format(each) for each in parts]
    if not isinstance(part, dict):
        return part
    node = {name: _replace_own_format(value) for name, value in cast("dict[str, Any]", part).items()}
    if node.get("format") != PARTIAL_DATE or "type" not in node:
        return node
    del node["format"]
    return {"pattern": _PARTIAL_DATE_PATTERN, **node}


SEARCH_SECONDS = 1.0
"""Time limit for the search of a pattern in an answer: a hostile text must not block the run."""

LONGEST = 500
"""Characters of a problem that are reported: a validator quotes the whole answer."""

Output = str | dict[str, Any] | type[BaseModel]
"""`text`, a JSON Schema, `module:Name`, or a pydantic model class.

A schema is stored as JSON text: Prefect would take a `$ref` inside a parameter for one of its blocks.
"""

_FENCE = re.compile(r"\A\s*```[\w-]*[ \t]*\r?\n(?P<body>.*?)\s*```\s*\Z", re.DOTALL)


def normalize_output(value: object) -> object:
    """Return the normalized form of an output: `text`, JSON text of a schema, `module:Name`, or a model class.

    Raises:
        ValueError: If it is none of these, or not a valid JSON Schema.

    Example:
        >>> normalize_output({"type": "object"})
        '{"type":"object"}'
    """
    if isinstance(value, type):
        if issubclass(value, BaseModel):
            return value
        raise ValueError(f"{value.__name__} is not a pydantic model")
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = read_json(value)
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from None
    if isinstance(value, dict):
        _check_schema(cast("dict[str, Any]", value))
        return serialize_output(cast("dict[str, Any]", value))
    if isinstance(value, str) and (value == "text" or REFERENCE.fullmatch(value)):
        return value
    raise ValueError(f"must be 'text', a JSON Schema, or 'module:Name' of a pydantic model, not {value!r}")


def serialize_output(output: Output) -> str:
    """Serialize an output as text: a model becomes its schema.

    Keys keep their order: language models answer in it, so that a reason can come before a verdict.
    """
    return output if isinstance(output, str) else json.dumps(schema_of(output), separators=(",", ":"), allow_nan=False)


def schema_of(output: Output) -> dict[str, Any] | None:
    """Return the JSON Schema of an output, or None for text."""
    if isinstance(output, type):
        return cast("dict[str, Any]", json.loads(_model_schema(output)))  # the caller may change it
    if isinstance(output, dict):
        return output
    return None if output == "text" else cast("dict[str, Any]", json.loads(output))


@lru_cache(maxsize=256)  # pydantic builds it again for each call, in a millisecond
def _model_schema(model: type[BaseModel]) -> str:
    return json.dumps(model.model_json_schema())


def has_validators(model: type[BaseModel]) -> bool:
    """Return whether a model has validators of its own: code that its schema doesn't cover."""
    decorators = model.__pydantic_decorators__
    return any(
        (decorators.validators, decorators.field_validators, decorators.model_validators, decorators.root_validators)
    )


def validate_output(output: Output, value: JsonValue) -> tuple[JsonValue, list[str]]:
    r"""Validate an answer; return its value as it is stored, and its problems.

    Args:
        output: The form that was asked for.
        value: The answer: the received text, or a JSON value.

    Returns:
        The value (a pydantic model's defaults filled in) and one sentence for each problem.

    Example:
        >>> validate_output('{"type":"object","required":["a"]}', '```json\n{"b": 1}\n```')
        ({'b': 1}, ["$: 'a' is a required property"])
    """
    if output != "text" and isinstance(value, str):
        try:
            value = read_json(value, once=True)
        except ValueError as error:
            wrong = "can't be taken" if isinstance(error, UnsupportedJsonError) else "is not JSON"
            return value, [f"The answer {wrong}: {error}."]
    if problem := find_json_problem(value):
        return value, [f"The answer {problem}."]
    if output == "text":
        return (value, []) if isinstance(value, str) else (value, ["The answer must be text."])
    if not isinstance(output, type):
        validator = _validator(serialize_output(output))
        errors = () if conforms_simply(validator.schema, value) else validator.iter_errors(value)
        messages = [f"{error.json_path}: {error.message}" for error in errors]
        return value, list(map(_truncate, messages))
    try:
        return cast("JsonValue", output.model_validate(value).model_dump(mode="json")), []
    except ValidationError as error:
        return value, [_truncate(f"{_format_path(e['loc'])}: {e['msg']}") for e in error.errors(include_url=False)]


_TYPES: dict[object, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (type(None),),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}
_SIMPLE_KEYWORDS = frozenset(
    {"$schema", "additionalProperties", "description", "enum", "items", "properties", "required", "title", "type"}
)


def conforms_simply(schema: object, value: JsonValue) -> bool:
    """Return whether a value satisfies a schema of a few common keywords; if not, a validator has to decide.

    Most answers are valid and their schemas simple, and a validator takes twenty times as long. Every keyword is
    understood as all drafts of JSON Schema do.

    Example:
        >>> schema = {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}
        >>> [conforms_simply(schema, value) for value in ({"year": 1988}, {"year": 1988.0}, {})]
        [True, False, False]
    """
    rules: dict[str, Any] = cast("dict[str, Any]", schema) if isinstance(schema, dict) else {"": schema}
    if (
        not rules.keys() <= _SIMPLE_KEYWORDS
        or ("type" in rules and type(value) not in _TYPES.get(str(rules["type"]), ()))
        or ("enum" in rules and not (isinstance(value, str) and value in rules["enum"]))
    ):
        return False
    if isinstance(value, list):
        return "items" not in rules or all(conforms_simply(rules["items"], each) for each in value)
    return not isinstance(value, dict) or _properties_conform(rules, value)


def _properties_conform(rules: dict[str, Any], value: dict[str, JsonValue]) -> bool:
    required, properties = rules.get("required", ()), rules.get("properties", {})
    if isinstance(required, bool) or not value.keys() >= set(required):  # an old draft has true or false there
        return False
    is_open = rules.get("additionalProperties", True) is True
    for name, part in value.items():
        if not (conforms_simply(properties[name], part) if name in properties else is_open):
            return False
    return True


def read_json(text: str, *, once: bool = False) -> JsonValue:
    """Parse a text as JSON; it may be inside a Markdown fence.

    Args:
        text: The text.
        once: Whether a duplicate key in an object is an error. Else the last one counts.

    Raises:
        ValueError: If it isn't JSON, contains NaN or infinities, or is refused for its size or depth.
    """
    fenced = _FENCE.match(text)
    return loads(fenced["body"] if fenced else text, unique_keys=once)


def _truncate(problem: str) -> str:
    """Truncate a problem, as validators quote the whole answer in it."""
    return problem if len(problem) <= LONGEST else f"{problem[:LONGEST]} …"


def _format_path(location: tuple[int | str, ...]) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _check_schema(schema: dict[str, Any]) -> None:
    """Check that a schema is valid and usable.

    Raises:
        ValueError: If it isn't; the message says why.
    """
    # 1. It satisfies its metaschema.
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"not a valid JSON Schema: {error.json_path}: {error.message}") from None
    except RecursionError:
        raise ValueError("not a valid JSON Schema: it is nested too deep") from None
    # 2. Every `$ref` leads to a part of the schema.
    resolver = EMPTY_REGISTRY.resolver_with_root(DRAFT202012.create_resource(schema))
    try:
        for reference in _references(schema):
            resolver.lookup(reference)
    except Unresolvable as error:
        raise ValueError(f"not a usable JSON Schema: {error.ref!r} is not in it, and nothing is fetched") from None
    # 3. Validation terminates.
    try:
        _validator(json.dumps(schema)).is_valid(None)
    except RecursionError:
        raise ValueError("not a usable JSON Schema: it refers to itself without end") from None
    # 4. Some answer can be valid.
    for place, name in _unsatisfiable(schema, "$"):
        raise ValueError(
            f"not a usable JSON Schema: no answer can be valid, as {place} requires {name!r}, which is not among its "
            "'properties', and its 'additionalProperties' is false; add it to the one, or take it from 'required'"
        )


def _unsatisfiable(schema: dict[str, Any], place: str) -> Iterator[tuple[str, str]]:
    """Yield each property that is required but not allowed in an object of every answer, with the object's path."""
    names = schema.get("required")
    if schema.get("type") != "object" or not isinstance(names, list):  # an old draft has true or false there
        return
    properties: dict[str, Any] = schema.get("properties", {})
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    for name in cast("list[str]", names):
        if isinstance(part := properties.get(name), dict):
            yield from _unsatisfiable(cast("dict[str, Any]", part), f"{place}.{name}")
        elif closed and name not in properties:
            yield place, name


def _references(schema: object) -> Iterator[str]:
    """Yield every `$ref` in a schema."""
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
    validator: Validator = _with_time_limit(base)(schema, registry=EMPTY_REGISTRY)
    return validator


@lru_cache(maxsize=8)
def _with_time_limit(base: type[Validator]) -> Any:  # noqa: ANN401 -- extend() has no types
    """Return a validator class that limits the time of a pattern's search: an answer must not block the run."""
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
    if isinstance(instance, str) and (wrong := explain_format_error(instance, form)):
        yield JsonSchemaError(wrong)
