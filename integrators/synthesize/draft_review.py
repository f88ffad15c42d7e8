"""Output formats of a synthesis, prose or a value by a schema, and the review of each draft against the answers."""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urldefrag, urljoin

from prefect_dispatch.integrators.synthesize.answer_index import (
    Finding,
    check_prose,
    cited_numbers,
    claim_sentences,
    format_citation,
    is_supported,
)
from prefect_dispatch.integrators.synthesize.number_extraction import extract_figures
from prefect_dispatch.integrators.synthesize.render_text import sanitize_prose
from prefect_dispatch.models.output_schema import schema_of, validate_output
from prefect_dispatch.serialization.json_values import is_leaf, iter_parts, resolve_pointer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.synthesize.answer_index import Source
    from prefect_dispatch.models.output_schema import Output


Schema = dict[str, Any]


def schema_with_sources(schema: Schema) -> Schema:
    """Return the schema of an object that holds a value and its sources.

    Example:
        >>> schema_with_sources({"$ref": "#/$defs/a"})["properties"]["value"]
        {'$ref': '#/properties/value/$defs/a'}
    """
    own = urldefrag(str(schema.get("$id", "")))[0]
    path: Schema = {"type": "string"}
    ids: Schema = {"type": "array", "items": {"type": "integer"}}
    return {
        "type": "object",
        "properties": {
            # A nested schema can't keep its own `$id`, and references to its root have to follow its new path.
            "value": _relocate_references({name: part for name, part in schema.items() if name != "$id"}, own, own),
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


def _relocate_references(schema: Any, own: str, base: str) -> Any:  # noqa: ANN401 -- any part of a schema
    """Return a part of a schema with its references to the schema's root adjusted to the new path.

    Args:
        schema: The part.
        own: The URI that the schema had.
        base: The URI against which references in this part are resolved.
    """
    if isinstance(schema, list):
        return [_relocate_references(part, own, base) for part in cast("list[object]", schema)]
    if not isinstance(schema, dict):
        return schema
    fields = cast("Schema", schema)
    if isinstance(fields.get("$id"), str):
        base = urljoin(base, fields["$id"])
    return {
        name: _relocate_reference(part, own, base)
        if name == "$ref" and isinstance(part, str)
        else _relocate_references(part, own, base)
        for name, part in fields.items()
    }


def _relocate_reference(reference: str, own: str, base: str) -> str:
    """Return a reference, adjusted if it points into the schema itself."""
    address, place = urldefrag(urljoin(base, reference))
    if address != own:
        return reference
    # An anchor (`#node`) is found wherever it stands.
    return f"#{place}" if place and not place.startswith("/") else f"#/properties/value{place}"


# Part of a prompt: a changed text invalidates stored answers. The same holds for `rules` and all messages below.
_HEADINGS = "Give it these sections, in this order, each under its heading as it stands here, on a line of its own:"

MAX_EXCERPT_CHARS = 200
"""Longest excerpt of a draft in a fault, in characters."""


class Draft(NamedTuple):
    """A reviewed draft of a model."""

    content: JsonValue
    """The text, or the value and its sources."""
    cited: tuple[int, ...]
    """Numbers of the answers that it cites, sorted."""
    faults: tuple[str, ...]
    """What is wrong with it, one sentence each, as it is sent back to the model."""
    usable: bool = True
    """Whether it has the required form at all; an unusable draft is never published."""


class Leaf(NamedTuple):
    """A part of a value that has no parts itself."""

    path: str
    """Its JSON Pointer."""
    value: JsonValue
    """The value."""
    source_numbers: tuple[int, ...]
    """Numbers of the answers that the model gave as its sources."""
    names: tuple[str, ...] = ()
    """Object keys (not array indices) on its path."""

    @classmethod
    def from_pointer(cls, whole: JsonValue, path: str, given: Sequence[int]) -> Leaf:
        """Return the leaf at a JSON Pointer."""
        names: list[str] = []
        value = whole
        for token in path.split("/")[1:]:
            value, name = resolve_pointer(value, "/" + token)
            names += [name] if name is not None else []
        return cls(path, value, tuple(given), tuple(names))


class ProseFormat:
    """Prose with citations, in sections if any are given."""

    output = "text"
    rules = (
        "Write from these answers alone. After each statement, outside quotations, put the numbers of all answers that "
        "it rests on, in brackets: [3] or [3][7]. Cite every number at least once. Copy numbers, dates and quotations "
        "exactly as they stand in the answers that you cite. Write no list of sources."
    )

    def __init__(self, sections: Sequence[str] = ()) -> None:
        """Add the required headings to the instructions."""
        self.sections = tuple(sections)
        if sections:
            self.rules = f"{ProseFormat.rules} {_HEADINGS} {' '.join(f'## {name}' for name in sections)}"

    def review_response(self, answer: JsonValue, sources: Sequence[Source], wanted: Sequence[int]) -> Draft:
        """Return a text as a reviewed draft."""
        text = sanitize_prose(str(answer))
        numbers = cited_numbers(text, len(sources))
        missing_sections = (
            f"There is no section '## {name}', or nothing in it." for name in find_missing_sections(text, self.sections)
        )
        faults = (
            *missing_sections,
            *uncited_answer_faults(numbers, wanted),
            *(_format_fault(text, each) for each in check_prose(text, sources)),
        )
        return Draft(text, numbers, faults, usable=bool(claim_sentences(text, len(sources))))

    def render_for_prompt(self, draft: Draft) -> str:
        """Return the text."""
        return cast("str", draft.content)


def find_missing_sections(text: str, sections: Sequence[str]) -> list[str]:
    r"""Return the sections that a text lacks: there is no heading of that name, or no text below it.

    Example:
        >>> text = "# Finding\n\nAll agree [1].\n\n## Where they differ\n"
        >>> find_missing_sections(text, ["Finding", "Where they differ"])
        ['Where they differ']
    """
    parts = re.split(r"(?m)^[ \t]{0,3}#{1,6}[ \t]+(.*?)[ \t#:]*$", text)
    bodies = zip(parts[1::2], parts[2::2], strict=True)
    filled = {" ".join(name.strip("*_ ").split()).casefold() for name, body in bodies if body.strip()}
    return [name for name in sections if " ".join(name.split()).casefold() not in filled]


class StructuredFormat:
    """A value by a JSON Schema, with the numbers of the answers that each part rests on."""

    rules = (
        "Answer with 'value', which is what is asked for, and 'sources', which says where it comes from: for each "
        "part of the value its path (such as /title or /findings/0) and the numbers of the answers that it rests on. "
        "In longer texts put the number of every answer after each statement, in square brackets, such as [3] or "
        "[3][7]. Use these answers alone, and every number at least once. Copy numbers, dates and quotations exactly."
    )

    def __init__(self, output: Output) -> None:
        """Wrap the user's schema into one with sources."""
        self._inner = output
        self.output = json.dumps(schema_with_sources(cast("Schema", schema_of(output))))

    def review_response(self, answer: JsonValue, sources: Sequence[Source], wanted: Sequence[int]) -> Draft:
        """Return a value as a reviewed draft; one that violates the user's schema is not usable."""
        content = cast("dict[str, Any]", answer)
        value, schema_errors = validate_output(self._inner, content["value"])
        content = {"value": value, "sources": content["sources"]}
        cited: set[int] = set()
        faults: list[str] = []
        for leaf in split_into_leaves(content, len(sources)):
            own, found = check_leaf(leaf, sources)
            cited.update(own)
            faults += [f"{leaf.path}: {each.message}" for each in found]
        faults += [f"There is no answer [{number}]." for number in _unknown_numbers(content, len(sources))]
        numbers = tuple(sorted(cited))
        return Draft(
            content,
            numbers,
            (*schema_errors, *uncited_answer_faults(numbers, wanted), *faults),
            usable=not schema_errors,
        )

    def render_for_prompt(self, draft: Draft) -> str:
        """Return the value and its sources as JSON."""
        return json.dumps(draft.content, ensure_ascii=False)


DraftFormat = ProseFormat | StructuredFormat
"""Output format of a synthesis: what the model is asked for, and how its response becomes a draft."""


def uncited_answer_faults(numbers: Sequence[int], wanted: Sequence[int]) -> Iterator[str]:
    """Yield a fault for each required answer that is not cited."""
    uncited = set(wanted) - set(numbers)
    yield from (f"Answer {format_citation([number])} is not cited." for number in sorted(uncited))


def _format_fault(text: str, found: Finding) -> str:
    """Return a finding as a fault, with an excerpt of the text."""
    excerpt = text[found.start : found.end]
    return f"{found.message} ({excerpt if len(excerpt) <= MAX_EXCERPT_CHARS else excerpt[:MAX_EXCERPT_CHARS] + '…'})"


def split_into_leaves(content: dict[str, Any], total: int) -> Iterator[Leaf]:
    """Yield the leaves of a draft's value, each with the sources given for it or for an ancestor of it.

    Args:
        content: The value and its sources.
        total: Number of answers.
    """
    root = cast("JsonValue", content["value"])
    # 1. The sources by path; models write paths with `#`, without a leading or with a trailing slash.
    given: dict[str, set[int]] = {}
    for entry in content["sources"]:
        path = entry["path"].strip().removeprefix("#").removesuffix("/")
        path = path if path.startswith("/") or not path else "/" + path
        if path.startswith("/value/") and isinstance(root, dict) and "value" not in root:
            path = path.removeprefix("/value")  # the path in the response instead of that in the value
        given.setdefault(path, set()).update(number for number in map(int, entry["ids"]) if 1 <= number <= total)
    # 2. Each leaf inherits the sources of its ancestors.
    for path, value in iter_parts(root):
        if is_leaf(value):
            ancestors = accumulate(path.split("/"), lambda prefix, token: f"{prefix}/{token}")
            numbers = {number for prefix in ancestors for number in given.get(prefix, ())}
            yield Leaf.from_pointer(root, path, sorted(numbers))


def check_leaf(leaf: Leaf, sources: Sequence[Source]) -> tuple[tuple[int, ...], list[Finding]]:
    """Return the numbers of the answers that support a leaf, and what is wrong with it.

    A text with citations of its own is checked as prose; any other leaf against its given sources. An empty leaf
    has no sources. A number or a date in a key on the leaf's path (`/2019/0`, but not `/q1`) has to be supported,
    too, even where the schema prescribes the key.
    """
    value, given = leaf.value, leaf.source_numbers
    if value is None or value in ("", [], {}):
        return (), []
    own = given
    if isinstance(value, str):
        if not claim_sentences(value, len(sources)):
            return (), check_prose(value, sources)
        own = cited_numbers(value, len(sources)) or given
        found = check_prose(value, sources, given)
    elif given:
        found = list(_check_figures(json.dumps(value), "number", given, sources))
    else:
        found = [Finding("claim", 0, 0, "No answer is named for it.", ())]
    names = leaf.names if own else ()
    return own, [*found, *(doubt for name in names for doubt in _check_figures(name, "key", own, sources))]


def _check_figures(text: str, kind: str, given: Sequence[int], sources: Sequence[Source]) -> Iterator[Finding]:
    """Yield a finding for each figure that none of the given sources has; names in keys are not checked."""
    consulted = [sources[number - 1] for number in given]
    for each in extract_figures(text):
        if each.sure and not (kind == "key" and each.kind == "name") and not is_supported(each, consulted):
            quoted = text[each.start : each.end]
            message = f"{quoted!r} doesn't stand in {format_citation(given)}, which it is said to rest on."
            yield Finding(kind, 0, 0, message, tuple(given))


def _unknown_numbers(content: dict[str, Any], total: int) -> list[int]:
    """Return the numbers among a value's sources that are no answer's, sorted."""
    return sorted(
        {number for entry in content["sources"] for number in map(int, entry["ids"]) if not 1 <= number <= total}
    )
