"""Questions of coding agents that can't finish without an answer, and the file with people's answers.

A question ends the work on an item as a failure of its own kind. All questions of a run are listed in one document,
and the next run of the job asks those items again for which the file has an answer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from prefect_dispatch.errors import JobError, RejectedError
from prefect_dispatch.models.ledger import Document, Ref
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.models.output_schema import read_json
from prefect_dispatch.security.escaping import fence_text, shorten, strip_control_chars
from prefect_dispatch.serialization.strict_yaml import MAX_BYTES, YamlError, decode, load_documents

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.models.outcome import Outcome

STATUSES = {
    "needs_context": "something that you must know is neither in the repository nor in the brief nor in the item",
    "blocked": "something that is not yours to change keeps you from doing it",
}
"""Statuses with which an agent asks, and kinds of the failure; part of a prompt, so the wording must not change."""
TO_ANSWER = "to-answer.md"
"""Name of the document with a run's questions."""
LONGEST_QUESTION = 2_000
"""Characters of a question that a failure holds."""
_PREFIX = "The agent asks: "
_OPEN = "There is no answer yet; write one into the file that executor.answers names, or remove the entry to ask again."


def find_question(value: JsonValue, usage: Usage) -> RejectedError | None:
    """Return the failure for an answer that is a question; None for any other answer.

    Args:
        value: The answer: a JSON value, or a text that may be one.
        usage: The usage of the run.

    Example:
        >>> str(find_question('{"status": "blocked", "question": "Which key?"}', Usage()))
        'The agent asks: Which key?'
        >>> find_question("Which key?", Usage())
    """
    try:
        found = read_json(value.strip(), once=True) if isinstance(value, str) else value
    except ValueError:
        return None
    if not isinstance(found, dict) or found.keys() != {"status", "question"}:
        return None
    status, question = found["status"], found["question"]
    if not isinstance(status, str) or status not in STATUSES or not isinstance(question, str) or not question.strip():
        return None
    text = shorten(strip_control_chars(question.strip()), LONGEST_QUESTION)
    return RejectedError(f"{_PREFIX}{text}", kind=status, usage=usage)


def open_question_error() -> RejectedError:
    """Return the failure of an item whose question waits for its answer; nothing is sent."""
    return RejectedError(_OPEN, kind="needs_context", usage=Usage())


def load_answers(file: Path) -> dict[str, str]:
    """Return the answers in a file, by the reference `brief/item`; none if there is no file yet.

    Raises:
        JobError: If the file can't be read, or is no mapping of texts.
    """
    try:
        with file.open("rb") as opened:
            documents = load_documents(decode(opened.read(MAX_BYTES + 1)))
    except FileNotFoundError:
        return {}
    except YamlError as error:
        raise JobError(f"executor.answers: {str(file)!r} can't be used: {strip_control_chars(str(error))}.") from None
    except OSError as error:
        raise JobError(f"executor.answers: {str(file)!r} can't be read: {error.strerror}.") from None
    answers: dict[str, str] = {}
    for each in documents:
        entries = {} if each is None else each
        if not isinstance(entries, dict):
            raise JobError(f"executor.answers: {str(file)!r} is no mapping of 'brief/item' to answers.")
        if wrong := next((key for key, answer in entries.items() if not isinstance(answer, str)), None):
            raise JobError(f"executor.answers: {str(file)!r}: the answer to {wrong!r} is no text; put it in quotes.")
        answers |= cast("dict[str, str]", entries)
    return answers


def list_questions(outcomes: Iterable[Outcome]) -> tuple[Document, ...]:
    """Return the document with the questions of all outcomes, as lines for the file of answers; none without any."""
    asked = [each for each in outcomes if each.error and each.error.kind in STATUSES]
    if not asked:
        return ()
    lines = list[str]()
    for each in asked:
        question = each.error.message.removeprefix(_PREFIX) if each.error else ""
        lines += [*(f"# {line}" for line in question.splitlines()), f'{json.dumps(str(Ref.of(each)))}: ""']
    text = (
        "Add these lines to the file that `executor.answers` names, write the answers between the quotation marks, and "
        "run the job again: only items with an answer are asked again, and they get it. An item whose answer is empty "
        f"stays a gap, and costs nothing.\n\n{fence_text(chr(10).join(lines), 'yaml')}\n"
    )
    return (Document(name=TO_ANSWER, title="Questions of agents", text=text),)
