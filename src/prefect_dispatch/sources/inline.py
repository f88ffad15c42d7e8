"""Items given inline: listed in the job itself, or passed by the calling code or an upstream task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, TypeGuard, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from prefect_dispatch.models.base import Strict, did_you_mean
from prefect_dispatch.models.item import Item
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.sources.item_values import content_key, make_item

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema


_SCHEMA: JsonSchemaValue = {
    "title": "List",
    "description": "Texts, or items with a key of their own.",
    "type": "array",
    "items": {
        "anyOf": [
            {"title": "Text", "type": "string"},
            {
                "title": "Item",
                "type": "object",
                "properties": {
                    "key": {
                        "title": "Key",
                        "type": "string",
                        "description": "What the item is called everywhere; unique within a job.",
                        "position": 0,
                    },
                    "value": {
                        "title": "Value",
                        "description": "What the agent gets to see: text, or any JSON value.",
                        "anyOf": [{"title": "Text", "type": "string"}, {"title": "JSON"}],
                        "position": 1,
                    },
                    "priority": {
                        "title": "Priority",
                        "type": "integer",
                        "default": 0,
                        "description": "A higher one wins a conflict between briefs of equal priority.",
                        "position": 2,
                    },
                },
                "required": ["key", "value"],
            },
            {"title": "JSON", "description": "Any JSON value."},
        ]
    },
}
"""Schema for forms: the generated one of `Item`, whose value is any JSON, would render as an empty form."""
MAX_MESSAGE = 300
"""Maximum characters of an error that a message quotes."""
FRAME_MESSAGE = "a DataFrame doesn't say which of its columns names the items; write items_from(frame, key='…')"
"""Error for a DataFrame, which as an iterable would yield the names of its columns."""


def is_frame(data: object) -> bool:
    """Return whether data is a DataFrame of any library, lazy ones included.

    Example:
        >>> is_frame([{"id": 1}])
        False
    """
    kind = type(data)  # the class, as a lazy frame would have to read files to determine its columns
    return hasattr(kind, "columns") and (hasattr(kind, "shape") or hasattr(kind, "collect"))


def upstream_failure(error: BaseException) -> str:
    """Return the message for an error in place of data: the task run that it comes from has failed.

    Example:
        >>> upstream_failure(ValueError("no such page"))
        'the task run that it comes from failed: ValueError: no such page'
    """
    return f"the task run that it comes from failed: {safe_message(error)[:MAX_MESSAGE]}"


class FailedItem(Item):
    """Item without a value, as the task run that it comes from has failed; its outcomes are skipped.

    Example:
        >>> [item.key for item in Listed.model_validate(["MIT", ValueError("no such page")]).items]
        ['MIT', 'element 2']
    """

    why: str
    """The reason, without secrets."""


def with_values(items: Iterable[Item]) -> list[Item]:
    """Return the items with a value, in their order."""
    return [item for item in items if not isinstance(item, FailedItem)]


def is_listable(data: object) -> TypeGuard[Iterable[object]]:
    """Return whether data is a list of items: an iterable, but no text, mapping or model."""
    return isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping | BaseModel)


def _has_key(element: object) -> TypeGuard[Mapping[object, object]]:
    return isinstance(element, Mapping) and "key" in element and "value" in element


def _to_item(number: int, element: object) -> Item:
    if isinstance(element, FailedItem):
        return element
    if isinstance(element, Item):
        item = make_item(element.key, element.value, element.priority)
        # A run validates its items twice: reuse the object unless its value is mutable, to save memory.
        return item if isinstance(item.value, list | dict) or item != element else element
    # An element that contains an error in place of data becomes a failed item; other invalid elements are errors.
    try:
        return _item_from_element(element)
    except ValueError:
        if (failure := _find_failure(element)) is None:
            raise
        return _create_failed_item(number, element, failure)


def _item_from_element(element: object) -> Item:
    if isinstance(element, BaseModel):
        element = element.model_dump(mode="json")
    if not _has_key(element):
        return make_item(content_key(element), element)
    for name in element:
        if name not in Item.model_fields:
            raise ValueError(
                f"unknown key {name!r}; {did_you_mean(str(name), list(Item.model_fields))} "
                "Data that has both 'key' and 'value' goes into a value: {key: …, value: {…}}."
            )
    return make_item(element["key"], element["value"], element.get("priority"))


def _find_failure(data: object) -> BaseException | None:
    """Return an error of a failed task run within data, or None."""
    pending, seen = [data], set[int]()
    while pending:
        part = pending.pop()
        if isinstance(part, BaseException):
            return part
        if id(part) not in seen:
            seen.add(id(part))  # Python data may be cyclic
            if isinstance(part, Mapping):
                pending += cast("Mapping[object, object]", part).values()
            elif isinstance(part, list | tuple):
                pending += cast("Iterable[object]", part)
    return None


def _create_failed_item(number: int, element: object, failure: BaseException) -> FailedItem:
    """Return the failed item for an element; if it has no key of its own, its position is the key."""
    why, key, priority = upstream_failure(failure), f"element {number}", 0
    if _has_key(element) and _find_failure(element["key"]) is None:
        item = make_item(element["key"], None, element.get("priority"))
        key, priority = item.key, item.priority
    return FailedItem(key=key, value=None, priority=priority, why=why)


def _elements_with_keys(data: Mapping[str, object]) -> object:
    """Return the elements of a list as items, each with the key from one of its fields.

    Args:
        data: The mapping `{list: […], key: id, priority: rank}`.
    """
    allowed = ("list", "key", "priority")
    for name in data:
        if name not in allowed:
            hint = did_you_mean(str(name), [*allowed])
            raise PydanticCustomError("unknown_key", "unknown key {key}; {hint}", {"key": repr(name), "hint": hint})
    elements, key, priority = (data.get(name) for name in allowed)
    if not is_listable(elements):
        raise PydanticCustomError("not_a_list", "must be a list of items")
    for name, field in (("key", key), ("priority", priority)):
        if field is not None and not isinstance(field, str):
            raise PydanticCustomError("field_name", "{name}: must be the name of a field", {"name": name})
    if not key:
        return elements
    return [_add_key(number, each, str(key), cast("str", priority or "")) for number, each in enumerate(elements, 1)]


def _add_key(number: int, element: object, key: str, priority: str) -> object:
    """Return an element as the mapping of an item, with the key from one of its fields."""
    value: object = element.model_dump(mode="json") if isinstance(element, BaseModel) else element
    if isinstance(value, BaseException):  # of a failed task run: becomes a failed item, as in any list
        return value
    fields = cast("Mapping[str, object]", value) if isinstance(value, Mapping) else dict[str, object]()
    if key not in fields:
        hint = did_you_mean(key, [*map(str, fields)]) if fields else "it has no fields."
        raise PydanticCustomError(
            "element", "element {number}: {why}", {"number": number, "why": f"no field {key!r}; {hint}"}
        )
    item: dict[str, object] = {"key": fields[key], "value": fields, "priority": fields.get(priority)}
    return item


def _items(elements: object) -> tuple[Item, ...]:
    if not is_listable(elements):
        raise PydanticCustomError("not_a_list", "must be a list of items")
    items: list[Item] = []
    for number, element in enumerate(elements, 1):
        try:
            items.append(_to_item(number, element))
        except ValueError as error:  # noqa: PERF203 -- the message has the number
            context = {"number": number, "why": str(error)}
            raise PydanticCustomError("element", "element {number}: {why}", context) from None
    return tuple(items)


class Listed(Strict):
    """Items as a plain list, which is also its form in JSON.

    An element is an item (`key`, `value`, perhaps `priority`) or a bare JSON value. A short
    text of one line is its own key; other bare values are named by a hash of their content, unless
    `{list: […], key: id}` says which of their fields names them.

    Example:
        >>> [item.key for item in Listed.model_validate(["MIT", {"key": "gpl", "value": "GPL-3.0"}]).items]
        ['MIT', 'gpl']
        >>> [item.key for item in Listed.model_validate({"list": [{"id": 7, "text": "A kettle."}], "key": "id"}).items]
        ['7']
    """

    # Prefect rebuilds a list that passes through a flow's parameters without validating it.
    model_config = ConfigDict(title="List", revalidate_instances="always")

    items: Annotated[tuple[Item, ...], BeforeValidator(_items)]
    """The items."""

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, data: object) -> object:
        if is_listable(data):
            return {"items": data}
        if isinstance(data, Mapping) and "list" in data:
            return {"items": _elements_with_keys(cast("Mapping[str, object]", data))}
        return cast("object", data)

    @model_serializer
    def _to_list(self) -> list[Item]:
        return list(self.items)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema of the list form."""
        return _SCHEMA

    def where(self, root: Path) -> str:  # noqa: ARG002 -- one signature for all sources
        """Return the description of this source for error messages."""
        return "the list of items"

    def stream(self, root: Path) -> Iterator[Item]:  # noqa: ARG002 -- one signature for all sources
        """Yield the items as listed."""
        yield from self.items
