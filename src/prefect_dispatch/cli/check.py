"""`prefect-dispatch check`: compare a text with its sources, and print what is doubtful."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.integrators.audit.published_report import OUTCOMES, read_outcomes
from prefect_dispatch.integrators.synthesize.check_text import MAX_SOURCE_CHARS, check_text, has_content
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.security.escaping import count_noun, shorten, strip_control_chars
from prefect_dispatch.serialization.json_text import loads
from prefect_dispatch.sources.object_store import decode, detect_bom

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefect_dispatch.integrators.synthesize.check_text import Reason, TextCheck

REPORT = "report.json"
"""Name of a report, whose outcomes are beside it."""
_SHOWN_CHARS = 100
"""Length of a sentence in the output, in characters."""

_VERDICT_WIDTH = len("not_checkable")
_CONTROLS = re.compile(r"[\x01-\x08\x0e-\x1a\x1c-\x1f]")
"""Control characters that no text has, besides NUL."""
_MAX_CONTROLS = 0.05
"""Largest share of control characters in a text in UTF-8."""


def check_files(text: Path, sources: Sequence[Path], *, judge: str | None, as_json: bool) -> tuple[str, bool]:
    """Compare a text with its sources.

    Args:
        text: The file of the text.
        sources: The files of the sources: a text, a JSON document, or a `report.json`, its folder or its
            `outcomes.jsonl`, of which each answer is a source, and which is then the only one.
        judge: The model that judges each statement after the rules. None: the rules alone.
        as_json: Whether the output is JSON.

    Returns:
        The output, and whether there is no doubt.

    Raises:
        JobError: If a file can't be read, or is empty.
    """
    is_report = [path.is_dir() or path.name in (REPORT, OUTCOMES) for path in sources]
    if any(is_report) and len(sources) > 1:
        raise JobError("A report has its own numbers, so it has to be the only source.")
    outcomes = (
        _read_answers(sources[0]) if any(is_report) else [_read_source(at, path) for at, path in enumerate(sources, 1)]
    )
    found = check_text(_read_text(text), outcomes, judge=LLM(model=judge) if judge else None)
    return found.model_dump_json(indent=2) if as_json else format_check(found), found.is_clean


def format_check(found: TextCheck) -> str:
    """Return the comparison of a text with its sources for a terminal.

    Example:
        >>> print(format_check(check_text("It is 6 years [1].", ["Keep it for 5 years."])))
        doubtful      It is 6 years [1].
                      - number: '6' doesn't stand in [1], which the sentence cites.
        1 doubt in 1 sentence, compared with 1 source.
    """
    lines: list[str] = []
    for each in found.sentences:
        lines.append(f"{each.verdict:<{_VERDICT_WIDTH}} {_shorten(each.text)}")
        lines += [f"{'':<{_VERDICT_WIDTH}} - {_describe(reason)}" for reason in each.reasons]
    lines += [f"{'source':<{_VERDICT_WIDTH}} {_shorten(reason.message)}" for reason in found.untraced]
    judged = f"; {count_noun(found.judged, 'statement')} judged by the model" if found.judged else ""
    lines.append(
        f"{count_noun(len(found.flags), 'doubt')} in {count_noun(len(found.sentences), 'sentence')}, compared with "
        f"{count_noun(len(found.labels), 'source')}{judged}."
    )
    return "\n".join(lines)


def _describe(reason: Reason) -> str:
    return f"{reason.kind}: {strip_control_chars(' '.join(reason.message.split()))}"


def _shorten(text: str) -> str:
    return shorten(strip_control_chars(" ".join(text.split())), _SHOWN_CHARS)


def _read_answers(path: Path) -> list[Outcome]:
    """Return the answers of a report."""
    folder = path if path.is_dir() else path.parent
    answers = [each for each in read_outcomes(folder / OUTCOMES, required=True) if each.status == "succeeded"]
    if not answers:
        raise JobError(f"The report in {str(folder)!r} has no answer to compare the text with.")
    return answers


def _read_source(number: int, path: Path) -> Outcome:
    """Return the text or the JSON value of a file as the source of a number."""
    text = _read_text(path)
    try:
        value = loads(text) if path.suffix == ".json" else text
    except ValueError as error:
        raise JobError(f"{str(path)!r} is no JSON: {error}.") from None
    if not has_content(value):
        raise JobError(f"{str(path)!r} is empty: it holds {shorten(text.strip(), _SHOWN_CHARS)}.")
    # Sources are numbered in the order of these names.
    return Outcome(brief="file", item=f"{number} {path}", status="succeeded", value=value)


def _read_text(path: Path) -> str:
    """Return the text of a file, which isn't empty."""
    try:
        if path.stat().st_size > MAX_SOURCE_CHARS:
            raise JobError(f"{str(path)!r} is too long: {MAX_SOURCE_CHARS:,} bytes at most.")
        text = _decode_text(path.read_bytes())
    except OSError as error:
        raise JobError(f"{str(path)!r} can't be read: {error.strerror}.") from None
    except ValueError as error:
        raise JobError(f"{str(path)!r} is not text: {error}.") from None
    if not text.strip():
        raise JobError(f"{str(path)!r} is empty.")
    return text


def _decode_text(data: bytes) -> str:
    """Return the content of a text file.

    Raises:
        ValueError: If it is no text, such as a PDF file or an image.
    """
    text = decode(data)
    # A text in UTF-8 may hold some control characters; one in an encoding that is guessed holds none, nor do its bytes.
    is_known = bool(detect_bom(data)) or text.encode() == data
    controls = _CONTROLS.findall(text if is_known else data.decode("latin-1"))
    if data.startswith(b"%PDF-") or len(controls) > (_MAX_CONTROLS * len(text) if is_known else 0):
        raise ValueError("it is a binary file")
    return text
