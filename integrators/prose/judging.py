"""A second opinion: does what is cited say what the text says it says?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from prefect_dispatch.integrators.base import Question
from prefect_dispatch.integrators.prose.doubts import named
from prefect_dispatch.integrators.prose.evidence import indented
from prefect_dispatch.integrators.prose.reducing import tokens
from prefect_dispatch.models import Brief, Item

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.prose.evidence import Source

Label = Literal["supported", "contradicted", "not_found", "not_judged"]

VERDICT_TOKENS = 256
"""Room that a verdict may take."""

JUDGE = Brief(
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
    """A statement of the text and what it cites."""

    path: str
    """Where in the value it stands."""
    start: int | None
    """Where in the text at that path; nothing where the whole of it is meant."""
    end: int | None
    """Where it ends."""
    text: str
    """The statement."""
    cited: tuple[int, ...]
    """The answers that it cites."""


class Verdict(NamedTuple):
    """What the judge says of a claim."""

    claim: Claim
    label: Label
    sentence: str
    """The sentence that decides it, which stands in what the claim cites."""
    why: str = ""
    """Why there is no verdict, or not the one that the judge gave."""


def judged(
    claims: Sequence[Claim], sources: Sequence[Source], ask: Asker, judge: Executor, context: int
) -> list[Verdict]:
    """Return one verdict for each claim; a label without a whole sentence of the answers doesn't count."""
    questions = [
        Question(brief=JUDGE, item=Item(key=f"claim-{at}", value=_put(claim, sources)))
        for at, claim in enumerate(claims, 1)
    ]
    fits = [tokens(judge, JUDGE, str(q.item.value)) + VERDICT_TOKENS <= context for q in questions]
    sent = [question for question, fit in zip(questions, fits, strict=True) if fit]
    answers = iter(ask(sent, judge) if sent else [])
    verdicts: list[Verdict] = []
    for claim, fit in zip(claims, fits, strict=True):
        if not fit:
            verdicts.append(Verdict(claim, "not_judged", "", f"too long for a context of {context} tokens"))
            continue
        outcome = next(answers)
        if outcome.status == "succeeded":
            verdicts.append(_verdict(claim, cast("dict[str, Any]", outcome.value), sources))
        else:
            verdicts.append(Verdict(claim, "not_judged", "", outcome.error.kind if outcome.error else outcome.status))
    return verdicts


def _put(claim: Claim, sources: Sequence[Source]) -> str:
    blocks = [sources[number - 1].block for number in claim.cited]
    return "\n\n".join([f"Claim:\n{indented(claim.text)}", "Answers:", *blocks])


def _verdict(claim: Claim, said: dict[str, Any], sources: Sequence[Source]) -> Verdict:
    label, sentence = cast("Label", said["label"]), str(said["sentence"]).strip()
    if label == "not_found":
        return Verdict(claim, label, "")
    if any(sources[number - 1].evidence.says(sentence) for number in claim.cited):
        return Verdict(claim, label, sentence)
    return Verdict(claim, "not_found", "", f"it said {label!r}, by what is no sentence of {named(claim.cited)}")
