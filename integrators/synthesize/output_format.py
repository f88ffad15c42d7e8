"""Output formats of a synthesis, prose or a value by a schema: its prompt, its checks and its result."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urldefrag, urljoin

from prefect_dispatch.integrators.base import gap_sentence, gaps
from prefect_dispatch.integrators.synthesize.answer_index import Prose, cited_numbers, format_citation
from prefect_dispatch.integrators.synthesize.findings import (
    WORDING_KINDS,
    Finding,
    check_claims,
    check_prose,
    describe_figure,
    unsupported_figures,
)
from prefect_dispatch.models.ledger import FieldRow, Flag
from prefect_dispatch.models.output_schema import schema_of, validate_output
from prefect_dispatch.security.escaping import strip_control_chars
from prefect_dispatch.serialization.json_values import (
    get_at,
    is_identical,
    is_leaf,
    iter_parts,
    pointer,
    resolve_pointer,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.synthesize.answer_index import Source
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.models.output_schema import Output

CITED = "cited"
"""Rule of a field that a model wrote; the audit checks each of its citations."""
VALUE = "/value"
"""JSON Pointer to a value by a schema in the merged value."""
MARK = " [unverified]"
"""Mark that follows each unverified part of the text."""
ALSO_REPORTED = "## Also reported\n\nThese answers are not cited above. They stand here as they came."
SOURCES = "## Sources"
_OWN_HEADING = re.compile(r"(?im)^[ \t]{0,3}#{1,6}[ \t]*(also reported|sources)\b")
_HTML = re.compile(r"<(?=[A-Za-z/!?])")
_FENCE = re.compile(r"(?m)^([ \t>*+.)\d-]{0,20})(`{3}|~{3})")
_LINK_DEFINITION = re.compile(r"(?m)^([ \t>*+-]{0,9}(?:\d{1,3}[.)][ \t]{1,3})?)(\[[^\]\n]{1,999}\]):")

WORDING_RULE = (
    "In English texts the wording is compared with what is cited, too, by rules without a model: names, negations, "
    "words whose opposite stands there, units, figures of another subject, sentences and answers with little in "
    "common, sentences that another answer supports; each doubt is a flag, without a mark."
)
"""Sentence in the description of a merge whose wording was checked; reports of earlier versions have none."""


def mentions_wording(rules: str) -> bool:
    """Return whether a merge's wording was checked by its description, even if a part of the sentence was changed."""
    return any(part in rules for part in WORDING_RULE.split(", "))


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


def _relocate_references(part: Any, own: str, base: str, name: str = "") -> Any:  # noqa: ANN401 -- any part of a schema
    """Return a part of a schema with its references to the schema's root adjusted to the new path.

    Args:
        part: The part.
        own: The URI that the schema had.
        base: The URI against which references in this part are resolved.
        name: The key of the part.
    """
    if name == "$ref" and isinstance(part, str):
        address, place = urldefrag(urljoin(base, part))
        # An anchor (`#node`) is found wherever it stands.
        moved = f"#{place}" if place and not place.startswith("/") else f"#/properties/value{place}"
        return moved if address == own else part
    if isinstance(part, list):
        return [_relocate_references(each, own, base) for each in cast("list[object]", part)]
    if not isinstance(part, dict):
        return part
    fields = cast("Schema", part)
    if isinstance(fields.get("$id"), str):
        base = urljoin(base, fields["$id"])
    return {key: _relocate_references(each, own, base, key) for key, each in fields.items()}


# Part of a prompt: a changed text invalidates stored answers. The same holds for `rules` and all messages below.
_HEADINGS = "Give it these sections, in this order, each under its heading as it stands here, on a line of its own:"

WRONG_FORMAT = "what came is not of the form that was asked for"
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
    failure: str = ""
    """Why it is never published, such as a form that was not asked for; empty if it can be."""


class Part(NamedTuple):
    """A text, or a leaf of a value, compared with the answers."""

    path: str
    """JSON Pointer to it in the merged value; empty for a text."""
    value: JsonValue
    """The text or leaf."""
    cited: tuple[int, ...]
    """Numbers of the answers that support it, sorted."""
    findings: list[Finding]
    """What these answers don't support."""


Result = tuple["JsonValue", tuple[FieldRow, ...], tuple[Flag, ...]]
"""The merged value, the sources of each field, and a flag on each unverified part."""


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
        [part] = self.check_parts(text, sources)
        faults = [
            f"There is no section '## {name}', or nothing in it." for name in find_missing_sections(text, self.sections)
        ]
        faults += _uncited_answer_faults(part.cited, wanted)
        for each in filter(is_exact, part.findings):
            excerpt = text[each.start : each.end]
            excerpt = excerpt if len(excerpt) <= MAX_EXCERPT_CHARS else excerpt[:MAX_EXCERPT_CHARS] + "…"
            faults.append(f"{each.message} ({excerpt})")
        return Draft(text, part.cited, tuple(faults), "" if Prose(text, len(sources)).claims else WRONG_FORMAT)

    def render_for_prompt(self, draft: Draft) -> str:
        """Return the text."""
        return cast("str", draft.content)

    def combine_drafts(self, drafts: Sequence[Draft]) -> JsonValue:
        """Return the text of drafts that could not be merged into one."""
        return "\n\n".join(str(draft.content) for draft in drafts)

    def check_parts(self, content: JsonValue, sources: Sequence[Source]) -> list[Part]:
        """Return the text, compared with the answers."""
        text = str(content)
        findings = [*check_prose(text, sources), *check_claims(text, sources)]
        return [Part("", text, cited_numbers(text, len(sources)), findings)]

    def recover_content(self, value: JsonValue, sources: Sequence[Source], outcomes: Sequence[Outcome]) -> JsonValue:
        """Return the text in a merged value, without marks and without what stands below it.

        Raises:
            ValueError: If the value is no text.
        """
        if not isinstance(value, str):
            raise ValueError("it is no text")  # noqa: TRY004 -- of data, not of an argument
        return remove_marks(split_document(value, sources, outcomes)[0])[0]

    def recover_parts(self, value: JsonValue, content: JsonValue, sources: Sequence[Source]) -> list[Part]:  # noqa: ARG002 -- as in the other format
        """Return the text in a merged value, compared with the answers."""
        return self.check_parts(content, sources)

    def is_answered(self, content: JsonValue, answers: Iterable[JsonValue]) -> bool:
        """Return whether a text is one of a model's answers, or consists of several that could not be merged."""
        texts = sorted({sanitize_prose(str(answer)) for answer in answers}, key=len, reverse=True)
        rest = str(content)
        while rest:
            found = next((text for text in texts if text and (rest == text or rest.startswith(f"{text}\n\n"))), None)
            if found is None:
                return False
            rest = rest[len(found) :].removeprefix("\n\n")
        return True

    def citing_places(self, parts: Sequence[Part], total: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield each place that cites answers, in order, with their numbers."""
        for at, sentence in enumerate(Prose(str(parts[0].value), total).claims, 1):
            yield f"cited in sentence {at}", sentence.cited

    def render_result(
        self, content: JsonValue, parts: Sequence[Part], sources: Sequence[Source], outcomes: Sequence[Outcome]
    ) -> Result:
        """Return the text with a mark after each unverified part, followed by the answers that it doesn't cite."""
        [part], prose = parts, str(content)
        ends = sorted({each.end for each in part.findings if is_exact(each)})
        also = [source.number for source in sources if source.number not in part.cited]
        value = render_document(insert_marks(prose, ends), sources, also, outcomes)
        flags = flag_findings("", prose, part.findings, sources, ends)
        return value, (_field_row(part._replace(value=value), sources),), tuple(flags)


def is_exact(finding: Finding) -> bool:
    """Return whether a finding is sent back to the model and marked in the text: all but those on the wording.

    What the rules on the wording find is less certain, so it is a flag for the reader alone.
    """
    return finding.kind not in WORDING_KINDS


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
        given = cast("dict[str, Any]", answer)
        value, schema_errors = validate_output(self._inner, given["value"])
        content: JsonValue = {"value": value, "sources": given["sources"]}
        parts = self.check_parts(content, sources)
        numbers = tuple(sorted({number for part in parts for number in part.cited}))
        faults = [*schema_errors, *_uncited_answer_faults(numbers, wanted)]
        faults += [
            f"{part.path.removeprefix(VALUE)}: {each.message}"
            for part in parts
            for each in filter(is_exact, part.findings)
        ]
        named = {int(number) for entry in given["sources"] for number in entry["ids"]}
        faults += [f"There is no answer [{number}]." for number in sorted(named) if not 1 <= number <= len(sources)]
        return Draft(content, numbers, tuple(faults), WRONG_FORMAT if schema_errors else "")

    def render_for_prompt(self, draft: Draft) -> str:
        """Return the value and its sources as JSON."""
        return json.dumps(draft.content, ensure_ascii=False)

    def combine_drafts(self, drafts: Sequence[Draft]) -> JsonValue:
        """Return the value, with its sources, that cites most answers; of several, the first."""
        empty = Draft({"value": None, "sources": []}, (), ())
        return max(drafts, key=lambda draft: len(draft.cited), default=empty).content

    def check_parts(self, content: JsonValue, sources: Sequence[Source]) -> list[Part]:
        """Return the leaves of the value, compared with the answers."""
        leaves = split_into_leaves(cast("dict[str, Any]", content), len(sources))
        return [Part(VALUE + leaf.path, leaf.value, *check_leaf(leaf, sources)) for leaf in leaves]

    def recover_content(self, value: JsonValue, sources: Sequence[Source], outcomes: Sequence[Outcome]) -> JsonValue:  # noqa: ARG002 -- as above
        """Return the value that a model wrote, in a merged value.

        Raises:
            ValueError: If it has none.
        """
        if not isinstance(value, dict) or "value" not in value:
            raise ValueError("it has no value")
        return {"value": value["value"]}

    def recover_parts(self, value: JsonValue, content: JsonValue, sources: Sequence[Source]) -> list[Part]:
        """Return the leaves of the value in a merged value, compared with the answers that it names for them."""
        found = get_at(value, ["cited"])
        cited: dict[str, Any] = found if isinstance(found, dict) else {}
        parts: list[Part] = []
        for path, leaf in iter_parts(get_at(content, ["value"])):
            if is_leaf(leaf):
                numbers = cast("list[object]", cited.get(VALUE + path, []))
                named = [each for each in numbers if isinstance(each, int) and 1 <= each <= len(sources)]
                parts.append(
                    Part(VALUE + path, leaf, *check_leaf(Leaf.from_pointer(value, VALUE + path, named), sources))
                )
        return parts

    def is_answered(self, content: JsonValue, answers: Iterable[JsonValue]) -> bool:
        """Return whether a value is one of a model's answers; without any, it is null."""
        value = get_at(content, ["value"])
        given = [validate_output(self._inner, get_at(answer, ["value"]))[0] for answer in answers]
        return any(is_identical(value, each) for each in given) or value is None

    def citing_places(self, parts: Sequence[Part], total: int) -> Iterator[tuple[str, tuple[int, ...]]]:  # noqa: ARG002 -- as above
        """Yield each place that cites answers, in order, with their numbers."""
        yield from ((f"cited at {part.path}", part.cited) for part in sorted(parts))

    def render_result(
        self, content: JsonValue, parts: Sequence[Part], sources: Sequence[Source], outcomes: Sequence[Outcome]
    ) -> Result:
        """Return the value, which keeps to its schema, and beside it what is unverified and what it doesn't cite."""
        cited = {number for part in parts for number in part.cited}
        also = [source for source in sources if source.number not in cited]
        flags = [flag for part in parts for flag in flag_findings(part.path, part.value, part.findings, sources)]
        return (
            {
                "value": cast("dict[str, Any]", content)["value"],
                "sources": index_sources(sources),
                "cited": {part.path: list(part.cited) for part in parts if part.cited},
                "also_reported": [
                    {"brief": each.ref.brief, "item": each.ref.item, "value": each.value} for each in also
                ],
                "unverified": unverified_entries(flags),
                "gaps": gaps(outcomes),
            },
            (
                *(_field_row(part, sources) for part in parts),
                *(
                    FieldRow(
                        path=pointer("also_reported", at, "value"),
                        winner=each.value,
                        rule="verbatim",
                        sources=(each.ref,),
                    )
                    for at, each in enumerate(also)
                ),
            ),
            tuple(flags),
        )


DraftFormat = ProseFormat | StructuredFormat
"""Output format of a synthesis: what the model is asked for, and how its responses become drafts and a result."""


def _uncited_answer_faults(numbers: Sequence[int], wanted: Sequence[int]) -> list[str]:
    """Return a fault for each required answer that is not cited."""
    return [f"Answer [{number}] is not cited." for number in sorted(set(wanted) - set(numbers))]


def _field_row(part: Part, sources: Sequence[Source]) -> FieldRow:
    """Return the field row of what a model wrote; without citations, all answers are its sources."""
    refs = tuple(source.ref for source in sources if source.number in part.cited or not part.cited)
    return FieldRow(path=part.path, winner=part.value, rule=CITED, sources=refs)


def index_sources(sources: Sequence[Source]) -> dict[str, JsonValue]:
    """Return brief and item of each answer by its number."""
    return {str(source.number): {"brief": source.ref.brief, "item": source.ref.item} for source in sources}


def unverified_entries(flags: Iterable[Flag]) -> list[JsonValue]:
    """Return flags as entries of the merged value."""
    return [
        {"path": each.path, "text": each.text, "message": each.message}
        for each in flags
        if each.kind not in WORDING_KINDS
    ]


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
    value, own = leaf.value, leaf.source_numbers
    if value is None or value in ("", [], {}):
        return (), []
    if isinstance(value, str):
        found = [*check_prose(value, sources, own), *check_claims(value, sources, own)]
        if not Prose(value, len(sources)).claims:
            return (), found
        own = cited_numbers(value, len(sources)) or own
    elif own:
        found = list(_check_figures(json.dumps(value), "number", own, sources))
    else:
        found = [Finding("claim", 0, 0, "No answer is named for it.", ())]
    names = leaf.names if own else ()
    return own, [*found, *(doubt for name in names for doubt in _check_figures(name, "key", own, sources))]


def _check_figures(text: str, kind: str, given: tuple[int, ...], sources: Sequence[Source]) -> Iterator[Finding]:
    """Yield a finding for each figure that none of the given sources has; names in keys are not checked."""
    for each in unsupported_figures(text, [sources[number - 1] for number in given]):
        if kind != "key" or each.kind != "name":
            quoted = text[each.start : each.end]
            name = describe_figure(each, text)[1]
            message = f"{name}{quoted!r} doesn't stand in {format_citation(given)}, which it is said to rest on."
            yield Finding(kind, 0, 0, message, given)


# The document around a text. All below the prose is derived from the outcomes, character by character, and the lines of
# answers are indented. So the audit can split it again, no matter what an answer or the prose contains.


def sanitize_prose(prose: str) -> str:
    r"""Return a model's text without anything that could pass for a part of the document around it.

    The mark is put in parentheses instead of brackets, and headings equal to our own lose their signs; link
    definitions, which would turn citations into links, are defused. HTML and code fences, which could hide what
    follows, are escaped.

    Example:
        >>> sanitize_prose("Fine [1]. [unverified]\n## Sources\n[1]: https://example.org\n<!-- ")
        'Fine [1]. (unverified)\nSources\n[1] : https://example.org\n&lt;!--'
    """
    prose = prose.replace("\x00", " ").replace(MARK.strip(), f"({MARK.strip()[1:-1]})")
    text = _HTML.sub("&lt;", "\n".join(prose.splitlines()))
    for pattern, harmless in ((_OWN_HEADING, r"\1"), (_FENCE, r"\1\\\2"), (_LINK_DEFINITION, r"\1\2 :")):
        text = pattern.sub(harmless, text)
    return text.strip()


def insert_marks(prose: str, ends: Sequence[int]) -> str:
    """Return a text with a mark at each of the offsets, which are sorted and unique.

    Example:
        >>> insert_marks("It is 6 [1].", [7])
        'It is 6 [unverified] [1].'
    """
    pieces = [prose[first:last] for first, last in zip([0, *ends], [*ends, len(prose)], strict=True)]
    return MARK.join(pieces)


def flag_findings(
    path: str, value: JsonValue, found: Iterable[Finding], sources: Sequence[Source], ends: Sequence[int] = ()
) -> list[Flag]:
    """Return findings on a text or a leaf as flags: on words of a text, on the path (for a key), or on the whole leaf.

    Args:
        path: JSON Pointer to the text or leaf.
        value: The text without marks, or the leaf.
        found: The findings.
        sources: All answers.
        ends: The offsets at which marks are inserted into the text, sorted.
    """
    marked = insert_marks(value, ends) if isinstance(value, str) else ""
    flags: list[Flag] = []
    for each in found:
        start, text = None, json.dumps(value)
        if each.kind == "key":
            text = path
        elif isinstance(value, str):
            start = each.start + len(MARK) * bisect_right(ends, each.start)
            text = marked[start : each.end + len(MARK) * bisect_right(ends, each.end - 1)]
        refs = tuple(sources[number - 1].ref for number in each.consulted)
        flags.append(Flag(path=path, kind=each.kind, text=text, start=start, message=each.message, sources=refs))
    return flags


def remove_marks(text: str) -> tuple[str, list[int]]:
    """Return a text without its marks, and the offsets at which they were.

    Example:
        >>> remove_marks("It is 6 [unverified] [1].")
        ('It is 6 [1].', [7])
    """
    pieces = text.split(MARK)
    ends = list(accumulate(map(len, pieces[:-1])))
    return "".join(pieces), ends


def render_document(prose: str, sources: Sequence[Source], also: Iterable[int], outcomes: Sequence[Outcome]) -> str:
    """Return the document.

    Args:
        prose: The prose with its marks.
        sources: All answers.
        also: Numbers of the answers that the prose doesn't cite.
        outcomes: All outcomes, including those without an answer.
    """
    blocks = [sources[number - 1].block for number in sorted(also)]
    extra = "\n\n".join([ALSO_REPORTED, *blocks]) if blocks else ""
    return "\n\n".join(filter(None, [prose, extra, _gaps_paragraph(outcomes), _source_list(sources)]))


def split_document(
    text: str, sources: Sequence[Source], outcomes: Sequence[Outcome]
) -> tuple[str, list[int], list[str]]:
    """Split a document into its parts.

    Args:
        text: The document.
        sources: All answers.
        outcomes: All outcomes, including those without an answer.

    Returns:
        The prose with its marks, the numbers of the answers appended to it, and what is wrong with the document.
    """
    faults: list[str] = []
    # 1. From the end: the list of sources, then the sentence on gaps.
    for part, name in (
        (_source_list(sources), "list of sources"),
        (_gaps_paragraph(outcomes), "sentence on what is missing"),
    ):
        if part and (rest := _strip_paragraph(text, part)) is not None:
            text = rest
        elif part:
            faults.append(f"the text's {name} is not the one that belongs there.")
    # 2. The blocks of uncited answers, last to first, and the heading above them.
    also: list[int] = []
    body = text
    for source in reversed(sources):
        if (rest := _strip_paragraph(body, source.block)) is not None:
            body = rest
            also.append(source.number)
    prose = _strip_paragraph(body, ALSO_REPORTED) if also else text
    return (text, [], faults) if prose is None else (prose, also, faults)


def _strip_paragraph(text: str, end: str) -> str | None:
    """Return a text without the paragraph at its end; None if it doesn't end with that."""
    if text == end:
        return ""
    return text.removesuffix("\n\n" + end) if text.endswith("\n\n" + end) else None


def _gaps_paragraph(outcomes: Sequence[Outcome]) -> str:
    return strip_control_chars(gap_sentence(outcomes))


def _source_list(sources: Sequence[Source]) -> str:
    lines = [f"[{source.number}] {source.label}  " for source in sources]
    return "\n".join([SOURCES, "", *lines]) if lines else ""
