"""The judge of a text: a model that says whether the cited answers support a statement, and by which sentence."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from prefect_dispatch.integrators.base import Question, RuleOpinion
from prefect_dispatch.integrators.synthesize.answer_index import (
    Prose,
    Source,
    cited_numbers,
    format_citation,
    indent_lines,
)
from prefect_dispatch.integrators.synthesize.findings import Finding, is_lead_in
from prefect_dispatch.integrators.synthesize.map_reduce import estimate_tokens, failure_kind
from prefect_dispatch.integrators.synthesize.word_index import Statement
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.ledger import Table
from prefect_dispatch.models.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.synthesize.output_format import Part
    from prefect_dispatch.models.ledger import Merge

Label = Literal["supported", "contradicted", "not_found", "not_judged"]

_DECIDED: tuple[Label, ...] = ("supported", "contradicted")
_FAILURE_KIND = re.compile(r"[\w.-]+|too long for a context of \d+ tokens")
"""Pattern of the reason why a claim has no verdict: mostly the kind of an error."""


CLAIMS_TABLE = "claims"
"""Name of the table with the verdicts."""
VERDICT_TOKENS = 256
"""Tokens reserved for a verdict."""
MIN_HEADING_WORDS = 3
"""Number of words with content from which on a heading or a lead-in states something."""

# A prompt: a changed text makes stored answers useless.
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


# A prompt, too.
RULE_BRIEF = Brief(
    name="judge-rule",
    scope="A rule, and a text that should keep it; the lines of both are indented.",
    instructions=(
        "Say whether the text keeps the rule. Label it 'kept' if the whole text does, 'broken' if some sentence breaks "
        "the rule, 'unclear' if the text does not show it. As 'sentence' copy the whole sentence that breaks the rule, "
        "letter by letter; leave it empty for the other labels."
    ),
    constraints=("Judge by this text alone, not by what you know.",),
    output=json.dumps(
        {
            "type": "object",
            "properties": {
                "sentence": {"type": "string"},
                "label": {"type": "string", "enum": ["kept", "broken", "unclear"]},
            },
            "required": ["sentence", "label"],
            "additionalProperties": False,
        }
    ),
)
JUDGE_BRIEFS = frozenset({JUDGE_BRIEF.name, RULE_BRIEF.name})
"""Names of the briefs that a judge answers, unlike those of the writer."""


class Claim(NamedTuple):
    """A statement of the synthesis with its citations."""

    path: str
    """JSON Pointer to the leaf that holds it; empty for a text."""
    start: int
    """Start offset in the text at that path; 0 if the leaf is no text."""
    end: int
    """End offset, exclusive; 0 if the leaf is no text."""
    text: str
    """The statement."""
    cited: tuple[int, ...]
    """Numbers of the answers that it cites."""
    is_heading: bool = False
    """Whether it is a heading or a lead-in, which cites none: it is doubtful only if it is contradicted."""


class Verdict(NamedTuple):
    """The judge's verdict on a claim."""

    claim: Claim
    label: Label
    sentence: str
    """The deciding sentence, which one of the cited answers holds; empty if there is none."""
    why: str = ""
    """Reason why there is no verdict, or why the judge's label was replaced."""


def list_claims(parts: Sequence[Part], total: int) -> list[Claim]:
    """Return the cited sentences of texts, each other cited leaf as `path: value`, and the headings that state a thing.

    Args:
        parts: The parts of the result.
        total: Number of answers.
    """
    claims: list[Claim] = []
    for path, value, own, _ in parts:
        if own and isinstance(value, str):
            sentences = Prose(value, total).claims
            cites = any(each.cited for each in sentences)
            claims += [
                Claim(path, each.start, each.end, value[each.start : each.end], each.cited or own)
                for each in sentences
                if each.cited or not cites
            ]
        elif own:
            claims.append(Claim(path, 0, 0, f"{path}: {json.dumps(value)}", own))
    return [*claims, *(heading for part in parts for heading in _list_headings(part, total))]


def _list_headings(part: Part, total: int) -> Iterator[Claim]:
    """Yield the headings and lead-ins of a text with citations; they rest on all answers that the text cites."""
    text = part.value
    if not isinstance(text, str) or not (cited := cited_numbers(text, total)):
        return
    for start, end, own in Prose(text, total).claims:
        words = Statement.parse(text[start:end])
        if not own and is_lead_in(text, start, end) and len(words.content) >= MIN_HEADING_WORDS:
            yield Claim(part.path, start, end, text[start:end], cited, is_heading=True)


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
    questions: dict[Claim, Question] = {}
    for at, claim in enumerate(claims, 1):
        blocks = [sources[number - 1].block for number in claim.cited]
        text = "\n\n".join([f"Claim:\n{indent_lines(claim.text)}", "Answers:", *blocks])
        if estimate_tokens(judge, JUDGE_BRIEF, text) + VERDICT_TOKENS <= context:
            questions[claim] = Question(brief=JUDGE_BRIEF, item=Item(key=f"claim-{at}", value=text))
    outcomes = dict(zip(questions, ask([*questions.values()], judge), strict=True))
    too_long = f"too long for a context of {context} tokens"
    return [
        _parse_verdict(claim, outcomes[claim], sources)
        if claim in outcomes
        else Verdict(claim, "not_judged", "", too_long)
        for claim in claims
        if claim in outcomes or not claim.is_heading
    ]


def _parse_verdict(claim: Claim, outcome: Outcome, sources: Sequence[Source]) -> Verdict:
    """Return the verdict of a response; `not_found` if its sentence stands in none of the cited answers."""
    if outcome.status != "succeeded":
        return Verdict(claim, "not_judged", "", failure_kind(outcome))
    response = cast("dict[str, Any]", outcome.value)
    label, sentence = cast("Label", response["label"]), str(response["sentence"]).strip()
    if label == "not_found":
        return Verdict(claim, label, "")
    if any(sources[number - 1].has_whole_sentence(sentence) for number in claim.cited):
        return Verdict(claim, label, sentence)
    why = f"it said {label!r}, by what is no sentence of {format_citation(claim.cited)}"
    return Verdict(claim, "not_found", "", why)


def read_verdicts(merge: Merge, claims: Sequence[Claim], sources: Sequence[Source]) -> list[Verdict]:
    """Return the verdicts in the table of claims of a merge.

    Args:
        merge: The merge; if it has the judge's answers, the verdicts must be these.
        claims: The claims of what was written, in their order.
        sources: All answers.

    Raises:
        ValueError: If the table is missing, or isn't about these claims, or a verdict is not what the judge answered.
    """
    tables = [table for table in merge.tables if table.name == CLAIMS_TABLE]
    rows: list[Any] = [*tables[0].rows] if tables else []
    answers = [each for each in merge.asked if each.brief == JUDGE_BRIEF.name]
    verdicts: list[Verdict] = []
    for at, claim in enumerate(claims, 1):
        expected = (claim.path, claim.text, ", ".join(map(str, claim.cited)))
        row: dict[str, Any] = rows[0] if rows else {}
        if (row.get("path"), row.get("claim"), row.get("cited")) != expected:
            if claim.is_heading:
                continue  # too long for the judge: such a heading has no row
            raise ValueError("the table of claims lacks one of them")
        rows.pop(0)
        verdict = Verdict(claim, row["label"], row["sentence"], row["note"])
        if not _is_possible(verdict, sources):
            raise ValueError("the table of claims has a verdict that no answer of a judge gives")
        # An earlier merge of the run may have asked about other claims under the same key.
        given = [_parse_verdict(claim, each, sources) for each in answers if each.item == f"claim-{at}"]
        if given and verdict not in given:
            raise ValueError("the judge answered something else")
        verdicts.append(verdict)
    if rows or not tables:
        raise ValueError("the table of claims has others, or is missing")
    return verdicts


def _is_possible(verdict: Verdict, sources: Sequence[Source]) -> bool:
    """Return whether some answer of a judge gives a verdict, with its deciding sentence and its note."""
    claim, label, sentence, why = verdict
    if label == "not_judged":
        return not sentence and bool(_FAILURE_KIND.fullmatch(why))
    if label == "not_found":
        replaced = [f"it said {each!r}, by what is no sentence of {format_citation(claim.cited)}" for each in _DECIDED]
        return not sentence and why in ("", *replaced)
    return not why and any(sources[number - 1].has_whole_sentence(sentence) for number in claim.cited)


def add_judge_findings(parts: Sequence[Part], verdicts: Sequence[Verdict]) -> list[Part]:
    """Return the parts with a finding for each claim that the judge found unsupported."""
    found: dict[str, list[Finding]] = {part.path: list(part.findings) for part in parts}
    intros = {"contradicted": "The judge found it contradicted", "not_found": "The judge did not find it"}
    for claim, label, sentence, why in verdicts:
        if (intro := intros.get(label)) and (label == "contradicted" or not claim.is_heading):
            reason = sentence or why
            message = f"{intro}: {reason}" if reason else f"{intro} in what is cited."
            found[claim.path].append(Finding(label, claim.start, claim.end, message, claim.cited))
    return [part._replace(findings=found[part.path]) for part in parts]


def claims_table(verdicts: Sequence[Verdict]) -> Table:
    """Return the verdicts as a table of the report."""
    return Table(
        name=CLAIMS_TABLE,
        title="What is claimed, and what the judge says of it",
        rows=tuple(
            {
                "path": each.claim.path,
                "claim": each.claim.text,
                "cited": ", ".join(map(str, each.claim.cited)),
                "label": each.label,
                "sentence": each.sentence,
                "note": each.why,
            }
            for each in verdicts
        ),
        note="A label counts only with a whole sentence of one of the answers that are cited, word for word; "
        "the judge is a model, too.",
    )


def describe_judging(verdicts: Sequence[Verdict], judge: str) -> str:
    """Return a sentence on the claims that were judged."""
    if not verdicts:
        return f"No statement was compared with the answers: none cites any, so nothing was put to {judge}."
    judged_count, total = sum(each.label != "not_judged" for each in verdicts), len(verdicts)
    note = "; of the others there is no verdict" if judged_count < total else ""
    return f"{judged_count} of {total} statements with a citation were compared with what they cite, by {judge}{note}."


def judge_text_rules(
    leaves: Sequence[tuple[str, JsonValue]],
    rules: Sequence[str],
    sources: Sequence[Source],
    ask: Asker,
    judge: Executor,
    context: int,
) -> list[RuleOpinion]:
    """Return the judge's opinion on whether a text keeps each of some rules.

    That a rule is broken counts only with a whole sentence of the text.

    Args:
        leaves: What was written: JSON Pointer and value of each leaf.
        rules: The rules, in words.
        sources: All answers.
        ask: Runs the queries.
        judge: The executor of the queries.
        context: Tokens of a query and its response together.
    """
    whole = "\n".join(str(value) if path == "" else f"{path}: {json.dumps(value)}" for path, value in leaves)
    questions: dict[str, Question] = {}
    for rule in dict.fromkeys(rules):
        text = f"Rule:\n{indent_lines(rule)}\n\nText:\n{indent_lines(whole)}"
        if estimate_tokens(judge, RULE_BRIEF, text) + VERDICT_TOKENS <= context:
            questions[rule] = Question(brief=RULE_BRIEF, item=Item(key=f"rule-{len(questions) + 1}", value=text))
    outcomes = dict(zip(questions, ask([*questions.values()], judge), strict=True))
    too_long = RuleOpinion("not_checkable", f"Not judged: too long for a context of {context} tokens.")
    return [_parse_opinion(outcomes[rule], leaves, sources) if rule in outcomes else too_long for rule in rules]


def _parse_opinion(outcome: Outcome, leaves: Sequence[tuple[str, JsonValue]], sources: Sequence[Source]) -> RuleOpinion:
    """Return the opinion of a response; none if what it says to break the rule is no sentence of the text."""
    if outcome.status != "succeeded":
        return RuleOpinion("not_checkable", f"Not judged: {failure_kind(outcome)}.")
    response = cast("dict[str, Any]", outcome.value)
    label, sentence = response["label"], str(response["sentence"]).strip()
    if label != "broken":
        return RuleOpinion("met" if label == "kept" else "not_checkable", f"The judge, a model, says {label!r}.")
    for path, value in leaves:
        text = Source(0, Outcome(brief="text", item="leaf", status="succeeded", value=value))
        if sentence and text.has_whole_sentence(sentence):
            refs = tuple(sources[number - 1].ref for number in cited_numbers(sentence, len(sources)))
            return RuleOpinion("violated", "The judge, a model, says 'broken'.", path, sentence, refs)
    return RuleOpinion("not_checkable", "The judge, a model, says 'broken', by what is no sentence of the text.")
