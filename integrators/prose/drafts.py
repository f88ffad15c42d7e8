"""What a model is to write, and how each of its drafts is judged: prose, or a value by a schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from prefect_dispatch.integrators.prose.citations import citations, cited
from prefect_dispatch.integrators.prose.doubts import Finding, findings, is_founded, named
from prefect_dispatch.integrators.prose.figures import Figure, figures
from prefect_dispatch.integrators.prose.publishing import cleaned
from prefect_dispatch.integrators.values import is_leaf, pointer
from prefect_dispatch.outputs import problems, schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.prose.evidence import Source
    from prefect_dispatch.outputs import Output

Schema = dict[str, Any]
LONGEST = 200
"""Characters of a sentence that a model is reminded of."""


class Draft(NamedTuple):
    """What a model wrote."""

    content: JsonValue
    """The text, or the value and its sources."""
    cited: tuple[int, ...]
    """The answers that it cites, in order."""
    faults: tuple[str, ...]
    """What is wrong with it, in words for the model."""
    usable: bool = True
    """Whether it is what was asked for at all."""


class Leaf(NamedTuple):
    """A part of a value that has no parts."""

    path: str
    """Where it stands."""
    value: JsonValue
    """What stands there."""
    given: tuple[int, ...]
    """The answers that the model named for it."""


class Form(Protocol):
    """What a model is to write."""

    output: str
    """The form of its answer."""
    rules: str
    """What it has to keep to."""

    def read(self, answer: JsonValue, sources: Sequence[Source], wanted: Sequence[int]) -> Draft:
        """Return a model's answer as a draft, judged by the answers that it was written from."""
        ...

    def shown(self, draft: Draft) -> str:
        """Return a draft as text, for a model that is to merge it with others."""
        ...


class Prose:
    """Text with citations."""

    output = "text"
    rules = (
        "Write from these answers alone. After each statement put the number of every answer that it rests on, in "
        "square brackets, such as [3] or [3][7]. Cite every number at least once. Copy numbers, dates and quotations "
        "exactly as they stand in the answers that you cite. Write no list of sources."
    )

    def read(self, answer: JsonValue, sources: Sequence[Source], wanted: Sequence[int]) -> Draft:
        """Return a text as a draft."""
        text = cleaned(str(answer))
        known = cited(citations(text, len(sources)))
        found = findings(text, sources)
        return Draft(
            text,
            known,
            (*missing(known, wanted), *(_told(text, each) for each in found)),
            usable=_says(text, len(sources)),
        )

    def shown(self, draft: Draft) -> str:
        """Return the text."""
        return cast("str", draft.content)


class Structured:
    """A value by a JSON Schema, with the numbers of the answers that each part rests on."""

    rules = (
        "Answer with 'value', which is what is asked for, and 'sources', which says where it comes from: for each "
        "part of the value its path (such as /title or /findings/0) and the numbers of the answers that it rests on. "
        "In longer texts put the number of every answer after each statement, in square brackets, such as [3] or "
        "[3][7]. Use these answers alone, and every number at least once. Copy numbers, dates and quotations exactly."
    )

    def __init__(self, output: Output) -> None:
        """Wrap the schema that the user asks for."""
        self._inner = output
        self.output = json.dumps(wrapped(cast("Schema", schema_of(output))))

    def read(self, answer: JsonValue, sources: Sequence[Source], wanted: Sequence[int]) -> Draft:
        """Return a value as a draft; what isn't of the form that was asked for can't be used."""
        content = cast("dict[str, Any]", answer)
        value, wrong = problems(self._inner, content["value"])
        content = {"value": value, "sources": content["sources"]}
        known: set[int] = set()
        faults: list[str] = []
        for leaf in leaves_of(content, len(sources)):
            own, found = leaf_findings(leaf.value, leaf.given, sources)
            known.update(own)
            faults += [f"{leaf.path}: {each.message}" for each in found]
        faults += [f"There is no answer [{number}]." for number in _unknown(content, len(sources))]
        numbers = tuple(sorted(known))
        return Draft(content, numbers, (*wrong, *missing(numbers, wanted), *faults), usable=not wrong)

    def shown(self, draft: Draft) -> str:
        """Return value and sources as JSON."""
        return json.dumps(draft.content, ensure_ascii=False)


def _says(text: str, total: int) -> bool:
    """Return whether a text has words of its own: citations alone account for nothing."""
    end = 0
    for each in citations(text, total):
        if any(map(str.isalnum, text[end : each.start])):
            return True
        end = each.end
    return any(map(str.isalnum, text[end:]))


def missing(known: Sequence[int], wanted: Sequence[int]) -> Iterator[str]:
    """Yield what to say of the answers that were left out, one sentence each."""
    left_out = set(wanted) - set(known)
    yield from (f"Answer {named([number])} is not cited." for number in sorted(left_out))


def _told(text: str, found: Finding) -> str:
    words = text[found.start : found.end]
    return f"{found.message} ({words if len(words) <= LONGEST else words[:LONGEST] + '…'})"


def leaves_of(content: dict[str, Any], total: int) -> Iterator[Leaf]:
    """Yield the leaves of a draft's value, each with what the model named for it or for what it is a part of."""
    given: dict[str, set[int]] = {}
    for entry in content["sources"]:
        path = entry["path"].strip().removeprefix("#").removesuffix("/")
        path = path if path.startswith("/") or not path else "/" + path
        if path.startswith("/value/") and isinstance(content["value"], dict) and "value" not in content["value"]:
            path = path.removeprefix("/value")  # as the answer has it
        given.setdefault(path, set()).update(number for number in map(int, entry["ids"]) if 1 <= number <= total)
    todo: list[tuple[str, JsonValue, frozenset[int]]] = [("", content["value"], frozenset())]
    while todo:
        path, value, above = todo.pop()
        numbers = above | given.get(path, set())
        if is_leaf(value):
            yield Leaf(path, value, tuple(sorted(numbers)))
        elif isinstance(value, list):
            todo.extend((path + pointer(at), part, numbers) for at, part in enumerate(value))
        else:
            todo.extend((path + pointer(name), part, numbers) for name, part in cast("Any", value).items())


def leaf_findings(
    value: JsonValue, given: Sequence[int], sources: Sequence[Source]
) -> tuple[tuple[int, ...], list[Finding]]:
    """Return the answers that a leaf rests on, and what is wrong with it.

    A text with citations of its own is prose; anything else rests on what the model named for it.
    """
    if value is None or value in ("", [], {}):
        return tuple(given), []
    if isinstance(value, str):
        own = cited(citations(value, len(sources)))
        return own or tuple(given), findings(value, sources, given)
    if not given:
        return (), [Finding("claim", 0, 0, "No answer is named for it.", ())]
    looked = [sources[number - 1] for number in given]
    text = json.dumps(value)
    unfounded = [each for each in figures(text) if not is_founded(each, looked)]
    return tuple(given), [_doubt(text, each, given) for each in unfounded]


def _doubt(text: str, figure: Figure, given: Sequence[int]) -> Finding:
    message = f"{text[figure.start : figure.end]!r} doesn't stand in {named(given)}, which it is said to rest on."
    return Finding("number", 0, 0, message, tuple(given))


def _unknown(content: dict[str, Any], total: int) -> list[int]:
    return sorted(
        {number for entry in content["sources"] for number in map(int, entry["ids"]) if not 1 <= number <= total}
    )


def wrapped(schema: Schema) -> Schema:
    """Return the schema of a value together with its sources.

    Example:
        >>> wrapped({"$ref": "#/$defs/a"})["properties"]["value"]
        {'$ref': '#/properties/value/$defs/a'}
    """
    path: Schema = {"type": "string"}
    ids: Schema = {"type": "array", "items": {"type": "integer"}}
    return {
        "type": "object",
        "properties": {
            # What stands inside another schema has no address of its own, and its references start at the top.
            "value": _moved({name: part for name, part in schema.items() if name != "$id"}),
            "sources": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"path": path, "ids": ids},
                    "required": ["path", "ids"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["value", "sources"],
        "additionalProperties": False,
    }


def _moved(schema: Any) -> Any:  # noqa: ANN401 -- any part of a schema
    if isinstance(schema, list):
        return [*map(_moved, cast("list[object]", schema))]
    if not isinstance(schema, dict):
        return schema
    parts = cast("Schema", schema)
    return {
        name: f"#/properties/value{part[1:]}"
        if name == "$ref" and isinstance(part, str) and part.startswith("#")
        else _moved(part)
        for name, part in parts.items()
    }
