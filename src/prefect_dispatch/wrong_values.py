"""Sentences for people who write files: what pydantic found wrong, where it stands, and what is expected there."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from prefect_dispatch.inert import legible
from prefect_dispatch.scrub import SECRET_NAME, scrub
from prefect_dispatch.strict import nearest
from prefect_dispatch.yaml_text import join_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import ValidationError

    Path = Sequence[str | int]

MAX_SHOWN = 80
"""Characters of a wrong value that are shown."""

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
"""Tags that stand behind `items` in a location, and may be a key of the mapping there as well."""


def explain_errors(error: ValidationError, data: object, name_place: Callable[[Path], str]) -> list[str]:
    """Return one sentence for each problem: the place, the path, what is expected, and the value.

    Args:
        error: What pydantic found.
        data: What was validated.
        name_place: Returns what a message calls the place of a path, such as `line 3`.
    """
    details = error.errors(include_url=False)
    located = [_locate(data, each["loc"]) for each in details]
    paths = [tuple(path) for path, _ in located]
    types: dict[tuple[str | int, ...], list[str]] = {}
    for each, path in zip(details, paths, strict=True):
        types.setdefault(path, []).append(_EXPECTED.get(each["type"], ""))
    sentences: list[str] = []
    for each, path, (_, value) in zip(details, paths, located, strict=True):
        # Of a list of which no part is valid pydantic says as well that it is too short, or no text.
        inside = any(other[: len(path)] == path and other != path for other in paths)
        if not (inside and each["type"] in ("too_short", *_EXPECTED)):
            one_of = " or ".join(dict.fromkeys(filter(None, types[path]))) if each["type"] in _EXPECTED else ""
            sentences.append(_sentence(each, path, value, name_place, one_of))
    return list(dict.fromkeys(sentences))


def show_value(value: object) -> str:
    """Return a value of a YAML file as a message shows it, on one line.

    Example:
        >>> print(show_value(None), show_value("MIT"), show_value({"names": ["MIT", None]}))
        null 'MIT' {"names": ["MIT", null]}
    """
    text = repr(value) if isinstance(value, str) else legible(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _sentence(
    each: Mapping[str, Any], path: Path, value: object, name_place: Callable[[Path], str], one_of: str
) -> str:
    """Return the sentence of one error; `one_of` says which types would do, if its type is what is wrong."""
    kind, context = each["type"], each.get("ctx", {})
    message = str(each["msg"]).removeprefix("Value error, ").rstrip(".")
    if kind == "element" and _is_mapping(value) and _is_list(value.get("list")):
        path, value = [*path, "list"], value["list"]
    if kind == "element" and _is_list(value):
        number, message = context["number"] - 1, str(context["why"]).rstrip(".")
        path, value = [*path, number], value[number]
    unknown = [name for name in value if repr(name) == context.get("key")] if _is_mapping(value) else []
    message = _expected(kind, context, value) or one_of or message
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


def _expected(kind: str, context: Mapping[str, Any], value: object) -> str:
    """Return what is expected in place of a value, or an empty text where its type or pydantic's words say it."""
    if kind == "model_attributes_type" or (kind == "union_tag_invalid" and not _is_mapping(value)):
        return f"{_MAPPING}, with the key 'kind'"
    if kind == "union_tag_invalid":
        known = [name.strip(" '") for name in str(context["expected_tags"]).split(",")]
        return f"there is no kind {context['tag']!r}; {nearest(str(context['tag']), known)}"
    if kind == "union_tag_not_found":
        return "the key 'kind' is missing, which says what it is"
    if kind == "missing" and _is_list(value):
        return f"an entry is missing; it has {len(value)}"
    return ""


def _locate(data: object, location: Path) -> tuple[list[str | int], object]:
    """Return the path in the user's own file that an error is about, and what stands there."""
    path: list[str | int] = []
    for number, part in enumerate(location, 1):
        if isinstance(part, int) and _is_mapping(data) and part < len(data):
            part = [*data][part]  # noqa: PLW2901 -- a mapping that is taken for a list of what it names
        if path == ["items"] and number == len(path) + 1 and part in _SOURCES:
            continue
        if _holds(data, part):
            data = cast("Any", data)[part]
        elif number < len(location) or isinstance(part, int) or not _is_mapping(data) or _is_tag(data, part):
            continue  # what the file doesn't have
        path.append(part)
    return path, data


def _is_tag(data: object, part: str) -> bool:
    """Return whether a part of a place is the tag of a union."""
    return _is_mapping(data) and part == data.get("kind", "llm")


def _holds(data: object, part: int | str) -> bool:
    if _is_list(data):
        return isinstance(part, int) and part < len(data)
    return _is_mapping(data) and part in data


def _is_mapping(data: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(data, dict)


def _is_list(data: object) -> TypeGuard[list[Any]]:
    return isinstance(data, list)


def _is_secret(text: str) -> bool:
    return bool(SECRET_NAME.search(text)) or scrub(text) != text
