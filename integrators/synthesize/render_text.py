"""Rendering of a text synthesis: the prose with marks, then uncited answers, a sentence on gaps, and the sources.

Everything after the prose is derived from the outcomes, character by character, and the lines of answers are
indented. So the audit can split the document again, no matter what an answer or the prose contains.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from prefect_dispatch.integrators.base import gap_sentence
from prefect_dispatch.models.ledger import Flag
from prefect_dispatch.security.escaping import strip_control_chars

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.synthesize.answer_index import Finding, Source
    from prefect_dispatch.models.outcome import Outcome

MARK = " [unverified]"
"""Mark that follows each unverified part of the text."""
ALSO_REPORTED = "## Also reported\n\nThese answers are not cited above. They stand here as they came."
SOURCES = "## Sources"
_OWN_HEADING = re.compile(r"(?im)^[ \t]{0,3}#{1,6}[ \t]*(also reported|sources)\b")
_HTML = re.compile(r"<(?=[A-Za-z/!?])")
_FENCE = re.compile(r"(?m)^([ \t>*+.)\d-]{0,20})(`{3}|~{3})")
_LINK_DEFINITION = re.compile(r"(?m)^([ \t>*+-]{0,9}(?:\d{1,3}[.)][ \t]{1,3})?)(\[[^\]\n]{1,999}\]):")


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
) -> tuple[str, tuple[int, ...], list[str]]:
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
    return (text, (), faults) if prose is None else (prose, tuple(reversed(also)), faults)


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
