"""Judging of claims by a second model (does the cited answer support the claim?), and the briefs of a synthesis."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.integrators.base import Question
from prefect_dispatch.integrators.synthesize.answer_index import format_citation, indent_lines
from prefect_dispatch.integrators.synthesize.map_reduce import estimate_tokens
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item, escape_template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.synthesize.answer_index import Source
    from prefect_dispatch.integrators.synthesize.draft_review import DraftFormat
    from prefect_dispatch.integrators.synthesize.map_reduce import ReduceResult


Label = Literal["supported", "contradicted", "not_found", "not_judged"]

VERDICT_TOKENS = 256
"""Tokens reserved for a verdict."""

# The briefs of this module are prompts: a changed text makes stored answers useless.
JUDGE_BRIEF = Brief(
    name="judge-claim",
    scope="A claim, and the numbered answers that it cites; their lines are indented.",
    instructions=(
        "Say whether the answers support the claim. Label it 'supported' if they say all of it, 'contradicted' if "
        "they say otherwise, 'not_found' if they don't say. As 'sentence' copy the whole sentence of the answers "
        "that decides it, letter by letter; leave it empty for 'not_found'."
    ),
    constraints=("Judge by these answers alone, not by what you know.",),
    output=json.dumps(
        {
            "type": "object",
            "properties": {
                "sentence": {"type": "string"},
                "label": {"type": "string", "enum": ["supported", "contradicted", "not_found"]},
            },
            "required": ["sentence", "label"],
            "additionalProperties": False,
        }
    ),
)


class Claim(NamedTuple):
    """A statement of the synthesis with its citations."""

    path: str
    """JSON Pointer to the leaf that holds it; empty for a text."""
    start: int | None
    """Start offset in the text at that path; None if the leaf is no text."""
    end: int | None
    """End offset, exclusive; None if the leaf is no text."""
    text: str
    """The statement."""
    cited: tuple[int, ...]
    """Numbers of the answers that it cites."""


class Verdict(NamedTuple):
    """The judge's verdict on a claim."""

    claim: Claim
    label: Label
    sentence: str
    """The deciding sentence, which one of the cited answers holds; empty if there is none."""
    why: str = ""
    """Reason why there is no verdict, or why the judge's label was replaced."""


def judge_claims(
    claims: Sequence[Claim], sources: Sequence[Source], ask: Asker, judge: Executor, context: int
) -> list[Verdict]:
    """Return one verdict for each claim.

    A label counts only if the judge backs it with a whole sentence of a cited answer.

    Args:
        claims: The claims to judge.
        sources: All answers.
        ask: Runs the queries.
        judge: The executor of the queries.
        context: Tokens of a query and its response together; claims that don't fit are not judged.
    """
    questions = [
        Question(brief=JUDGE_BRIEF, item=Item(key=f"claim-{at}", value=_claim_prompt(claim, sources)))
        for at, claim in enumerate(claims, 1)
    ]
    fit_flags = [estimate_tokens(judge, JUDGE_BRIEF, str(q.item.value)) + VERDICT_TOKENS <= context for q in questions]
    fitting = [question for question, fits_context in zip(questions, fit_flags, strict=True) if fits_context]
    answers = iter(ask(fitting, judge) if fitting else [])
    verdicts: list[Verdict] = []
    for claim, fits_context in zip(claims, fit_flags, strict=True):
        if not fits_context:
            verdicts.append(Verdict(claim, "not_judged", "", f"too long for a context of {context} tokens"))
            continue
        outcome = next(answers)
        if outcome.status == "succeeded":
            verdicts.append(_parse_verdict(claim, cast("dict[str, Any]", outcome.value), sources))
        else:
            verdicts.append(Verdict(claim, "not_judged", "", outcome.error.kind if outcome.error else outcome.status))
    return verdicts


def _claim_prompt(claim: Claim, sources: Sequence[Source]) -> str:
    """Return the prompt for a claim: its text and the answers that it cites."""
    blocks = [sources[number - 1].block for number in claim.cited]
    return "\n\n".join([f"Claim:\n{indent_lines(claim.text)}", "Answers:", *blocks])


def _parse_verdict(claim: Claim, response: dict[str, Any], sources: Sequence[Source]) -> Verdict:
    """Return the verdict of a response; `not_found` if its sentence stands in none of the cited answers."""
    label, sentence = cast("Label", response["label"]), str(response["sentence"]).strip()
    if label == "not_found":
        return Verdict(claim, label, "")
    if any(sources[number - 1].evidence.has_whole_sentence(sentence) for number in claim.cited):
        return Verdict(claim, label, sentence)
    return Verdict(
        claim, "not_found", "", f"it said {label!r}, by what is no sentence of {format_citation(claim.cited)}"
    )


_ANSWERS = "Numbered answers that others gave: each with its number and its name, and below them its lines, indented."

_PARTS = (
    "Parts of one piece of work. Each was written, like yours, of numbered answers; their numbers stand in them in "
    "square brackets."
)

_MERGE = (
    "Merge the parts into one, as if it had been written at once. Keep every number in brackets with what it backs."
)

_DRAFT = "A draft and its faults follow below. Write the whole of it again, with these faults mended."


def create_briefs(instructions: str, constraints: Sequence[str], form: DraftFormat) -> dict[str, Brief]:
    """Return the briefs of the three steps: write from answers, merge parts, and revise a draft of either."""

    def brief(name: str, scope: str, *more: str) -> Brief:
        return Brief(
            name=f"synthesize-{name}",
            scope=scope,
            instructions="\n\n".join(
                [escape_template(instructions), form.rules, *more]
            ),  # braces are no placeholders here
            constraints=tuple(map(escape_template, constraints)),
            output=form.output,
        )

    return {
        "write": brief("write", _ANSWERS),
        "merge": brief("merge", _PARTS, _MERGE),
        "revise": brief("mend", f"{_ANSWERS} Or parts that were written of such answers.", _DRAFT),
    }


def describe_rules(
    writer: object,
    judge: object,
    reduced: ReduceResult,
    *,
    verdicts: Sequence[Verdict] = (),
    text: bool,
    total: int,
    context: int,
    again: int,
) -> str:
    """Return how the result was written and checked, as one paragraph for the report.

    Args:
        writer: The executor that wrote.
        judge: The executor that judged the claims, or None.
        reduced: The result of the reduction.
        verdicts: The judge's verdicts.
        text: Whether the result is a text.
        total: Number of answers.
        context: Tokens of a query and its response together.
        again: How often a draft was sent back at most.
    """
    below, marks = (
        ("Also reported", "marked [unverified] in the text and flagged")
        if text
        else ("also_reported", "flagged, and listed under 'unverified'")
    )
    who = describe_executor(writer)
    kind = "a text" if text else "a value by a schema"
    opinion = f" {_describe_judging(verdicts, describe_executor(judge))}" if judge else ""
    return (
        f"{who[:1].upper()}{who[1:]} wrote {kind} of {_pluralize(total, 'answer')} in "
        f"{_pluralize(reduced.levels, 'step')}: first parts, then parts of parts, each question and its answer "
        f"within {context} tokens. It had to cite every answer by its number, the place of the answer in the order "
        f"of items and briefs. A draft was sent back for what is wrong with it, "
        f"at most {_pluralize(again, 'time')}, and the one with the fewest faults was "
        f"kept. An answer that is not cited stands word for word under '{below}'. A number, a date or a quotation "
        "must stand in one of the answers that its sentence cites. Numbers are compared by value (1,000 is 1000; "
        "12 % is 12 per cent, or 0.12, or 12) and without units; number words in English only, and 'one' not at "
        "all. A bare whole number that equals the number of answers cited there, two or more, is taken for a "
        "count of them. What doesn't stand there, a sentence without a citation and a citation of what isn't "
        f"there are {marks}.{opinion} Not checked is whether what is cited means what the text makes of it: a flag "
        "is a reason to look, and no flag is no proof."
    )


def _describe_judging(verdicts: Sequence[Verdict], judge: str) -> str:
    """Return a sentence on the claims that were judged."""
    if not verdicts:
        return f"No statement was compared with the answers: none cites any, so nothing was put to {judge}."
    judged_count, total = sum(each.label != "not_judged" for each in verdicts), len(verdicts)
    note = "; of the others there is no verdict" if judged_count < total else ""
    return f"{judged_count} of {total} statements with a citation were compared with what they cite, by {judge}{note}."


def describe_executor(executor: object) -> str:
    """Return a description of an executor, without secrets."""
    if isinstance(executor, LLM):
        return f"the model {' or '.join(executor.models)}"
    return f"the executor {type(executor).__name__}"


def _pluralize(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
