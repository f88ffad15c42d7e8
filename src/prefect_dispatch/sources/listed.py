"""Items that stand in the job itself, or come from the code or the task before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, TypeGuard, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from prefect_dispatch.models import Item
from prefect_dispatch.scrub import told
from prefect_dispatch.sources.keys import content_key, make_item
from prefect_dispatch.strict import Strict, nearest

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
"""What a form can be made of: the value of `Item` itself, any JSON, would render as nothing."""


MAX_SAID = 300
"""Characters of an error that a message repeats."""
FRAME = "a DataFrame doesn't say which of its columns names the items; write items_from(frame, key='…')"
"""As a list it would be the names of its columns."""


def is_frame(data: object) -> bool:
    """Return whether data is a DataFrame, of whatever library, lazy ones included.

    Example:
        >>> is_frame([{"id": 1}])
        False
    """
    kind = type(data)  # a lazy frame would have to read files to tell its columns
    return hasattr(kind, "columns") and (hasattr(kind, "shape") or hasattr(kind, "collect"))


def upstream(error: BaseException) -> str:
    """Return what is wrong where an error stands in the place of data: the task that makes it has failed.

    Example:
        >>> upstream(ValueError("no such page"))
        'the task run that it comes from failed: ValueError: no such page'
    """
    return f"the task run that it comes from failed: {told(error)[:MAX_SAID]}"


class Lost(Item):
    """An item whose value isn't there: a task run that it comes from has failed. It has outcomes, and nobody is asked.

    Example:
        >>> [item.key for item in Listed.model_validate(["MIT", ValueError("no such page")]).items]
        ['MIT', 'element 2']
    """

    why: str
    """What is wrong, without secrets."""


def sound(items: Iterable[Item]) -> list[Item]:
    """Return the items that have a value, in their order."""
    return [item for item in items if not isinstance(item, Lost)]


def is_listable(data: object) -> TypeGuard[Iterable[object]]:
    """Return whether data can be taken for a list of items: text, say, can't."""
    return isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping | BaseModel)


def _has_key(element: object) -> TypeGuard[Mapping[object, object]]:
    return isinstance(element, Mapping) and "key" in element and "value" in element


def _item(number: int, element: object) -> Item:
    if isinstance(element, Lost):
        return element
    if isinstance(element, Item):
        made = make_item(element.key, element.value, element.priority)
        # A run has its items validated twice; of those in which nobody can change anything, it holds one.
        return made if isinstance(made.value, list | dict) or made != element else element
    try:
        return _given(element)
    except ValueError:
        if (failure := _failure_in(element)) is None:
            raise
        return _lost(number, element, failure)


def _given(element: object) -> Item:
    if not _has_key(element):
        return make_item(content_key(element), element)
    for name in element:
        if name not in Item.model_fields:
            raise ValueError(
                f"unknown key {name!r}; {nearest(str(name), list(Item.model_fields))} "
                "Data that has both 'key' and 'value' goes into a value: {key: …, value: {…}}."
            )
    return make_item(element["key"], element["value"], element.get("priority"))


def _numbered_item(number: int, element: object) -> Item:
    try:
        return _item(number, element)
    except ValueError as error:
        raise PydanticCustomError("element", "element {number}: {why}", {"number": number, "why": str(error)}) from None


def _failure_in(data: object) -> BaseException | None:
    """Return the error that stands in the place of data, of a task run that failed; any of several."""
    left, seen = [data], set[int]()
    while left:
        part = left.pop()
        if isinstance(part, BaseException):
            return part
        if id(part) not in seen:
            seen.add(id(part))  # nothing stops data of Python's from holding itself
            left += _parts(part)
    return None


def _parts(data: object) -> Iterable[object]:
    if isinstance(data, Mapping):
        return cast("Mapping[object, object]", data).values()
    return cast("Iterable[object]", data) if isinstance(data, list | tuple) else ()


def _lost(number: int, element: object, failure: BaseException) -> Lost:
    """Return what stands for an item whose value is missing; without a key of its own it is named by its place."""
    why, key, priority = upstream(failure), f"element {number}", 0
    if _has_key(element) and _failure_in(element["key"]) is None:
        named = make_item(element["key"], None, element.get("priority"))
        key, priority = named.key, named.priority
    return Lost(key=key, value=None, priority=priority, why=why)


def _has_list(data: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(data, Mapping) and "list" in data


def _with_keys(data: Mapping[str, object]) -> object:
    """Return the elements of a list whose keys stand in a field of each, as items.

    Args:
        data: The mapping `{list: […], key: id, priority: rank}`.
    """
    known = ("list", "key", "priority")
    for name in data:
        if name not in known:
            hint = nearest(str(name), [*known])
            raise PydanticCustomError("unknown_key", "unknown key {key}; {hint}", {"key": repr(name), "hint": hint})
    elements, key, priority = (data.get(name) for name in known)
    if not is_listable(elements):
        raise PydanticCustomError("not_a_list", "must be a list of items")
    for name, field in (("key", key), ("priority", priority)):
        if field is not None and not isinstance(field, str):
            raise PydanticCustomError("field_name", "{name}: must be the name of a field", {"name": name})
    if not key:
        return elements
    return [_keyed(number, each, str(key), cast("str", priority or "")) for number, each in enumerate(elements, 1)]


def _keyed(number: int, element: object, key: str, priority: str) -> object:
    """Return an element as the mapping of an item, named by one of its fields."""
    value: object = element.model_dump(mode="json") if isinstance(element, BaseModel) else element
    if isinstance(value, BaseException):  # of a task run that failed: told as of any list
        return value
    fields = cast("Mapping[str, object]", value) if isinstance(value, Mapping) else dict[str, object]()
    if key not in fields:
        known = nearest(key, [*map(str, fields)]) if fields else "it has no fields."
        raise PydanticCustomError(
            "element", "element {number}: {why}", {"number": number, "why": f"no field {key!r}; {known}"}
        )
    made: dict[str, object] = {"key": fields[key], "value": fields, "priority": fields.get(priority)}
    return made


def _items(elements: object) -> tuple[Item, ...]:
    if not is_listable(elements):
        raise PydanticCustomError("not_a_list", "must be a list of items")
    return tuple(_numbered_item(number, element) for number, element in enumerate(elements, 1))


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

    # A list that passes through a flow's parameters comes back rebuilt by Prefect, and not validated.
    model_config = ConfigDict(title="List", revalidate_instances="always")

    items: Annotated[tuple[Item, ...], BeforeValidator(_items)]
    """The items."""

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, data: object) -> object:
        if is_listable(data):
            return {"items": data}
        return {"items": _with_keys(data)} if _has_list(data) else data

    @model_serializer
    def _to_list(self) -> list[Item]:
        return list(self.items)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema of the list form."""
        return _SCHEMA

    def where(self, root: Path) -> str:  # noqa: ARG002 -- one signature for all sources
        """Return the words that name this source."""
        return "the list of items"

    def stream(self, root: Path) -> Iterator[Item]:  # noqa: ARG002 -- one signature for all sources
        """Yield the items as listed."""
        yield from self.items
