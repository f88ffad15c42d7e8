"""What a model is to write, and how each of its drafts is judged: prose, or a value by a schema."""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from prefect_dispatch.integrators.prose.doubts import Finding, claims, findings, is_founded, known, named
from prefect_dispatch.integrators.prose.figures import figures
from prefect_dispatch.integrators.prose.publishing import cleaned
from prefect_dispatch.integrators.prose.wrapping import wrapped
from prefect_dispatch.integrators.values import find, is_leaf, parts
from prefect_dispatch.outputs import problems, schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.prose.evidence import Source
    from prefect_dispatch.integrators.prose.wrapping import Schema
    from prefect_dispatch.outputs import Output

_HEADINGS = "Give it these sections, in this order, each under its heading as it stands here, on a line of its own:"
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
    names: tuple[str, ...] = ()
    """The keys (not indices) on the way there."""

    @classmethod
    def at(cls, whole: JsonValue, path: str, given: Sequence[int]) -> Leaf:
        """Return what stands at a JSON Pointer."""
        names: list[str] = []
        value = whole
        for token in path.split("/")[1:]:
            value, name = find(value, "/" + token)
            names += [name] if name is not None else []
        return cls(path, value, tuple(given), tuple(names))


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
        "Write from these answers alone. After each statement, outside quotations, put the numbers of all answers that "
        "it rests on, in brackets: [3] or [3][7]. Cite every number at least once. Copy numbers, dates and quotations "
        "exactly as they stand in the answers that you cite. Write no list of sources."
    )

    def __init__(self, sections: Sequence[str] = ()) -> None:
        """Keep the headings that the text has to have."""
        self.sections = tuple(sections)
        if sections:
            self.rules = f"{Prose.rules} {_HEADINGS} {' '.join(f'## {name}' for name in sections)}"

    def read(self, answer: JsonValue, sources: Sequence[Source], wanted: Sequence[int]) -> Draft:
        """Return a text as a draft."""
        text = cleaned(str(answer))
        numbers = known(text, len(sources))
        left_out = (f"There is no section '## {name}', or nothing in it." for name in without(text, self.sections))
        faults = (*left_out, *missing(numbers, wanted), *(_told(text, each) for each in findings(text, sources)))
        return Draft(text, numbers, faults, usable=bool(claims(text, len(sources))))

    def shown(self, draft: Draft) -> str:
        """Return the text."""
        return cast("str", draft.content)


def without(text: str, sections: Sequence[str]) -> list[str]:
    r"""Return the sections that a text should have and doesn't: under a heading of that name, some words.

    Example:
        >>> without("# Finding\n\nAll agree [1].\n\n## Where they differ\n", ["Finding", "Where they differ"])
        ['Where they differ']
    """
    parts = re.split(r"(?m)^[ \t]{0,3}#{1,6}[ \t]+(.*?)[ \t#:]*$", text)
    under = zip(parts[1::2], parts[2::2], strict=True)
    written = {" ".join(name.strip("*_ ").split()).casefold() for name, body in under if body.strip()}
    return [name for name in sections if " ".join(name.split()).casefold() not in written]


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
        named_for: set[int] = set()
        faults: list[str] = []
        for leaf in leaves_of(content, len(sources)):
            own, found = leaf_findings(leaf, sources)
            named_for.update(own)
            faults += [f"{leaf.path}: {each.message}" for each in found]
        faults += [f"There is no answer [{number}]." for number in _unknown(content, len(sources))]
        numbers = tuple(sorted(named_for))
        return Draft(content, numbers, (*wrong, *missing(numbers, wanted), *faults), usable=not wrong)

    def shown(self, draft: Draft) -> str:
        """Return value and sources as JSON."""
        return json.dumps(draft.content, ensure_ascii=False)


def missing(numbers: Sequence[int], wanted: Sequence[int]) -> Iterator[str]:
    """Yield what to say of the answers that were left out, one sentence each."""
    left_out = set(wanted) - set(numbers)
    yield from (f"Answer {named([number])} is not cited." for number in sorted(left_out))


def _told(text: str, found: Finding) -> str:
    words = text[found.start : found.end]
    return f"{found.message} ({words if len(words) <= LONGEST else words[:LONGEST] + '…'})"


def leaves_of(content: dict[str, Any], total: int) -> Iterator[Leaf]:
    """Yield the leaves of a draft's value, each with what the model named for it or for what it is a part of."""
    whole = cast("JsonValue", content["value"])
    given: dict[str, set[int]] = {}
    for entry in content["sources"]:
        path = entry["path"].strip().removeprefix("#").removesuffix("/")
        path = path if path.startswith("/") or not path else "/" + path
        if path.startswith("/value/") and isinstance(whole, dict) and "value" not in whole:
            path = path.removeprefix("/value")  # as the answer has it
        given.setdefault(path, set()).update(number for number in map(int, entry["ids"]) if 1 <= number <= total)
    for path, value in parts(whole):
        if is_leaf(value):
            above = accumulate(path.split("/"), lambda place, token: f"{place}/{token}")
            numbers = {number for place in above for number in given.get(place, ())}
            yield Leaf.at(whole, path, sorted(numbers))


def leaf_findings(leaf: Leaf, sources: Sequence[Source]) -> tuple[tuple[int, ...], list[Finding]]:
    """Return the answers that a leaf rests on, and what is wrong with it.

    A text with citations of its own is prose; anything else rests on what the model named for it. What says
    nothing rests on nothing. A number or a date as a name on the way to the leaf (`/2019/0`, but not `/q1`) must
    stand there, too, even where the schema has it.
    """
    value, given = leaf.value, leaf.given
    if value is None or value in ("", [], {}):
        return (), []
    own = given
    if isinstance(value, str):
        if not claims(value, len(sources)):
            return (), findings(value, sources)
        own = known(value, len(sources)) or given
        found = findings(value, sources, given)
    elif given:
        found = list(_doubts(json.dumps(value), "number", given, sources))
    else:
        found = [Finding("claim", 0, 0, "No answer is named for it.", ())]
    names = leaf.names if own else ()
    return own, [*found, *(doubt for name in names for doubt in _doubts(name, "key", own, sources))]


def _doubts(text: str, kind: str, given: Sequence[int], sources: Sequence[Source]) -> Iterator[Finding]:
    looked = [sources[number - 1] for number in given]
    for each in figures(text):
        if each.sure and not (kind == "key" and each.kind == "name") and not is_founded(each, looked):
            message = f"{text[each.start : each.end]!r} doesn't stand in {named(given)}, which it is said to rest on."
            yield Finding(kind, 0, 0, message, tuple(given))


def _unknown(content: dict[str, Any], total: int) -> list[int]:
    return sorted(
        {number for entry in content["sources"] for number in map(int, entry["ids"]) if not 1 <= number <= total}
    )
