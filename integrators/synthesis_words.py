"""What the models of a synthesis are told, and what its readers are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.models import Brief
from prefect_dispatch.template import literal

if TYPE_CHECKING:
    from prefect_dispatch.integrators.drafts import Form
    from prefect_dispatch.integrators.reducing import Reduced
    from prefect_dispatch.integrators.synthesize import Synthesize

_ANSWERS = "Numbered answers that others gave: each with its number and its name, and below them its lines, indented."
_PARTS = (
    "Parts of one piece of work. Each was written, like yours, of numbered answers; their numbers stand in them in "
    "square brackets."
)
_MERGE = "Merge the parts into one, as if it had been written at once. Keep every number in brackets with what it backs."
_DRAFT = "A draft and its faults follow below. Write the whole of it again, with these faults mended."


def briefs_for(work: Synthesize, form: Form) -> dict[str, Brief]:
    """Return the three briefs: to write of answers, to merge parts, and to mend a draft of either."""
    return {
        "write": _brief(work, form, "write", _ANSWERS, ""),
        "merge": _brief(work, form, "merge", _PARTS, _MERGE),
        "mend": _brief(work, form, "mend", f"{_ANSWERS} Or parts that were written of such answers.", _DRAFT),
    }


def _brief(work: Synthesize, form: Form, name: str, scope: str, more: str) -> Brief:
    # The instructions are no template: braces in them are meant.
    said = [literal(work.instructions), form.rules, more]
    return Brief(
        name=f"synthesize-{name}",
        scope=scope,
        instructions="\n\n".join(filter(None, said)),
        constraints=tuple(map(literal, work.constraints)),
        output=form.output,
    )


def rules_of(work: Synthesize, writer: object, context: int, reduced: Reduced, total: int) -> str:
    """Return how it was written and checked, in a paragraph."""
    text = work.output == "text"
    where = "stands word for word under 'Also reported'" if text else "stands word for word under 'also_reported'"
    marks = "marked [unverified] in the text and flagged" if text else "flagged, and listed under 'unverified'"
    judge = f" Each statement was compared with the answers that it cites by {_lower(described(work.judge))}." if work.judge else ""
    return (
        f"{described(writer)} wrote {'a text' if text else 'a value by a schema'} of {total} answers, in "
        f"{reduced.levels} {'step' if reduced.levels == 1 else 'steps'}, each within {context} tokens, so that parts "
        "were written first and merged then where that is not enough for all. It had to cite every answer by its number, "
        "the place of the answer in the order of items and briefs. What was wrong with a draft was sent back at most "
        f"{work.reasks} times, and the draft with the fewest faults was kept. An answer that is not cited {where}. "
        "A number, a date or a quotation must stand in one of the answers that its sentence cites: numbers are compared "
        "by value (1,000 is 1000, 12 % is 12 per cent or 0.12), without their units; number words in English only, and "
        "'one' not at all; a bare whole number that equals the number of the answers cited there, two or more, counts "
        "as a count of them. What doesn't stand there, a sentence without a citation and a citation of what isn't there "
        f"are {marks}.{judge} Not checked is whether what is cited means what the text makes of it: a flag is a "
        "reason to look, and no flag is no proof."
    )


def described(executor: object) -> str:
    """Return who an executor is, without anything secret."""
    if isinstance(executor, LLM):
        return f"The model {' or '.join(executor.models)}"
    return f"The executor {type(executor).__name__}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
