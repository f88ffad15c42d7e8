"""What the models of a synthesis are told, and what its readers are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.models import Brief
from prefect_dispatch.template import literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.integrators.prose.drafts import Form
    from prefect_dispatch.integrators.prose.judging import Verdict
    from prefect_dispatch.integrators.prose.reducing import Reduced

_ANSWERS = "Numbered answers that others gave: each with its number and its name, and below them its lines, indented."
_PARTS = (
    "Parts of one piece of work. Each was written, like yours, of numbered answers; their numbers stand in them in "
    "square brackets."
)
_MERGE = (
    "Merge the parts into one, as if it had been written at once. Keep every number in brackets with what it backs."
)
_DRAFT = "A draft and its faults follow below. Write the whole of it again, with these faults mended."


def briefs_for(instructions: str, constraints: Sequence[str], form: Form) -> dict[str, Brief]:
    """Return the three briefs: to write of answers, to merge parts, and to mend a draft of either."""

    def brief(name: str, scope: str, *more: str) -> Brief:
        return Brief(
            name=f"synthesize-{name}",
            scope=scope,
            instructions="\n\n".join([literal(instructions), form.rules, *more]),  # braces in them are meant
            constraints=tuple(map(literal, constraints)),
            output=form.output,
        )

    return {
        "write": brief("write", _ANSWERS),
        "merge": brief("merge", _PARTS, _MERGE),
        "mend": brief("mend", f"{_ANSWERS} Or parts that were written of such answers.", _DRAFT),
    }


def rules_of(
    writer: object,
    judge: object,
    reduced: Reduced,
    *,
    verdicts: Sequence[Verdict] = (),
    text: bool,
    total: int,
    context: int,
    again: int,
) -> str:
    """Return how it was written and checked, in a paragraph.

    Args:
        writer: Who wrote.
        judge: Who was to compare statements with what they cite, if anybody was.
        reduced: How many steps it took.
        verdicts: What came of it.
        text: Whether it is text.
        total: Of how many answers it was written.
        context: Tokens of a question and its answer.
        again: How often a draft was sent back at most.
    """
    below, marks = (
        ("Also reported", "marked [unverified] in the text and flagged")
        if text
        else ("also_reported", "flagged, and listed under 'unverified'")
    )
    who = described(writer)
    kind = "a text" if text else "a value by a schema"
    opinion = f" {_compared(verdicts, described(judge))}" if judge else ""
    return (
        f"{who[:1].upper()}{who[1:]} wrote {kind} of {_many(total, 'answer')} in {_many(reduced.levels, 'step')}: "
        f"first parts, then parts of parts, each question and its answer within {context} tokens. It had to cite "
        "every answer by its number, the place of the answer in the order of items and briefs. A draft was sent "
        f"back for what is wrong with it, at most {_many(again, 'time')}, and the one with the fewest faults was "
        f"kept. An answer that is not cited stands word for word under '{below}'. A number, a date or a quotation "
        "must stand in one of the answers that its sentence cites. Numbers are compared by value (1,000 is 1000; "
        "12 % is 12 per cent, or 0.12, or 12) and without units; number words in English only, and 'one' not at "
        "all. A bare whole number that equals the number of answers cited there, two or more, is taken for a "
        "count of them. What doesn't stand there, a sentence without a citation and a citation of what isn't "
        f"there are {marks}.{opinion} Not checked is whether what is cited means what the text makes of it: a flag "
        "is a reason to look, and no flag is no proof."
    )


def _compared(verdicts: Sequence[Verdict], judge: str) -> str:
    """Return what a judge did: nothing, where nothing cites anything."""
    if not verdicts:
        return f"No statement was compared with the answers: none cites any, so nothing was put to {judge}."
    told, total = sum(each.label != "not_judged" for each in verdicts), len(verdicts)
    rest = "; of the others there is no verdict" if told < total else ""
    return f"{told} of {total} statements with a citation were compared with what they cite, by {judge}{rest}."


def described(executor: object) -> str:
    """Return who an executor is, without anything secret."""
    if isinstance(executor, LLM):
        return f"the model {' or '.join(executor.models)}"
    return f"the executor {type(executor).__name__}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
