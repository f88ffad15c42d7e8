"""Messages for people who write files: each error of pydantic with its line, its path and what is expected there."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from prefect_dispatch.models.base import did_you_mean
from prefect_dispatch.security.escaping import escape_unprintable, shorten
from prefect_dispatch.security.redaction import SECRET_NAME, redact
from prefect_dispatch.serialization.strict_yaml import join_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import ValidationError

    Path = Sequence[str | int]

MAX_SHOWN = 80
"""Characters of a wrong value that a message shows."""

_LIST = "must be a list, such as [one, other] or a line with a dash for each"
_MAPPING = "must be a mapping, such as {key: value} or a line with 'key: value' for each"
_TEXT = "must be a text; put it in quotation marks"
_EXPECTED = {
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"), _LIST),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type"), _MAPPING),
    "string_type": _TEXT,
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number, written in digits"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number, written in digits"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
}
"""What is expected where a value is of another type."""

_NONE = re.compile(r"\bNone\b")
_SOURCES = ("glob", "jsonl", "csv", "parquet", "sql", "list")
"""Tags that pydantic puts after `items` in a location, and that may be a key of the mapping there as well."""


def explain_errors(error: ValidationError, data: object, name_place: Callable[[Path], str]) -> list[str]:
    """Return one sentence for each problem: the place, the path, what is expected, and the value.

    Args:
        error: The validation error.
        data: The input that was validated.
        name_place: Returns the place of a path in the file for a message, such as `line 3`.
    """
    # 1. Find the path and the value of each error in the file.
    details = error.errors(include_url=False)
    located = [_locate(data, each["loc"], each["type"]) for each in details]
    paths = [tuple(path) for path, _ in located]
    # 2. Collect the types that the members of a union expect at one path.
    types: dict[tuple[str | int, ...], list[str]] = {}
    for each, path in zip(details, paths, strict=True):
        types.setdefault(path, []).append(_EXPECTED.get(each["type"], ""))
    # 3. Write one sentence for each. If no element of a list is valid, pydantic reports as well that the list is too
    #    short, or no text: such errors are dropped. So are those of other types where a value has the right one.
    sentences: list[str] = []
    for each, path, (_, value) in zip(details, paths, located, strict=True):
        inside = any(
            other[: len(path)] == path and (other != path or type_ not in ("too_short", *_EXPECTED))
            for other, type_ in zip(paths, (error["type"] for error in details), strict=True)
        )
        if not (inside and each["type"] in ("too_short", *_EXPECTED)):
            one_of = " or ".join(dict.fromkeys(filter(None, types[path]))) if each["type"] in _EXPECTED else ""
            sentences.append(_sentence(each, path, value, name_place, one_of))
    return list(dict.fromkeys(sentences))


def show_value(value: object) -> str:
    """Return a value of a YAML file for a message, on one line.

    Example:
        >>> print(show_value(None), show_value("MIT"), show_value({"names": ["MIT", None]}))
        null 'MIT' {"names": ["MIT", null]}
    """
    text = repr(value) if isinstance(value, str) else escape_unprintable(json.dumps(value, ensure_ascii=False))
    return shorten(text, MAX_SHOWN)


def _sentence(
    each: Mapping[str, Any], path: Path, value: object, name_place: Callable[[Path], str], one_of: str
) -> str:
    """Return the sentence for one error.

    Args:
        each: The details of the error from pydantic.
        path: The path of the value in the file.
        value: The value.
        name_place: Returns the place of a path in the file.
        one_of: The types that are expected, if the type is wrong; else empty.
    """
    kind, context = each["type"], each.get("ctx", {})
    message = str(each["msg"]).removeprefix("Value error, ").rstrip(".")
    if kind == "element" and _is_mapping(value) and _is_list(value.get("list")):
        path, value = [*path, "list"], value["list"]
    if kind == "element" and _is_list(value):
        number, message = context["number"] - 1, str(context["why"]).rstrip(".")
        path, value = [*path, number], value[number]
    unknown = [name for name in value if repr(name) == context.get("key")] if _is_mapping(value) else []
    message = describe_expected(kind, context, value) or one_of or message
    begin = f"{name_place([*path, *unknown])}: {join_path(path) or 'the job'}: {message}"
    if message.endswith("?"):
        return begin
    shown = show_value(value)
    if value is None:
        begin = _NONE.sub("null", begin)
    if kind in ("missing", "unknown_key") or shown in message or _is_secret(repr(value)):
        return f"{begin}."
    if value is None:
        return f"{begin} (it has no value; write one, or leave the key out)."
    return f"{begin} (it is {shown})."


def describe_expected(kind: str, context: Mapping[str, Any], value: object) -> str:
    """Return what is expected in place of a value; empty where its type or pydantic's message says it."""
    if kind == "model_attributes_type" or (kind == "union_tag_invalid" and not _is_mapping(value)):
        return f"{_MAPPING}, with the key 'kind'"
    if kind == "union_tag_invalid":
        known = [name.strip(" '") for name in str(context["expected_tags"]).split(",")]
        return f"there is no kind {context['tag']!r}; {did_you_mean(str(context['tag']), known)}"
    if kind == "union_tag_not_found":
        return "the key 'kind' is missing, which says what it is"
    if kind == "missing" and _is_list(value):
        return f"an entry is missing; it has {len(value)}"
    return ""


def _locate(data: object, location: Path, kind: str) -> tuple[list[str | int], object]:
    """Return the path in the user's file that an error is about, and the value there."""
    path: list[str | int] = []
    for number, part in enumerate(location, 1):
        if isinstance(part, int) and _is_mapping(data) and part < len(data):
            part = [*data][part]  # noqa: PLW2901 -- a mapping that is read as a list of its keys
        if path == ["items"] and number == len(path) + 1 and part in _SOURCES:
            continue
        if _holds(data, part):
            data = cast("Any", data)[part]
        elif number < len(location) or kind != "missing" or not _is_mapping(data):
            continue  # a part of pydantic's location that isn't in the file, such as the member of a union
        path.append(part)
    return path, data


def _holds(data: object, part: int | str) -> bool:
    if _is_list(data):
        return isinstance(part, int) and part < len(data)
    return _is_mapping(data) and part in data


def _is_mapping(data: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(data, dict)


def _is_list(data: object) -> TypeGuard[list[Any]]:
    return isinstance(data, list)


def _is_secret(text: str) -> bool:
    return bool(SECRET_NAME.search(text)) or redact(text) != text
