"""`check_text`: compare any text with its sources, sentence by sentence."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.errors import ExecutorError, JobError, TerminalError
from prefect_dispatch.executors.base import BaseExecutor
from prefect_dispatch.integrators.synthesize.answer_index import Prose, cited_numbers, number_answers
from prefect_dispatch.integrators.synthesize.findings import (
    check_claims,
    check_prose,
    find_unchecked,
    find_untraced,
    is_lead_in,
)
from prefect_dispatch.integrators.synthesize.judge import add_judge_findings, judge_claims, list_claims
from prefect_dispatch.integrators.synthesize.output_format import Part, remove_marks, split_document
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Failure, Outcome, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Question
    from prefect_dispatch.integrators.synthesize.answer_index import Source
    from prefect_dispatch.integrators.synthesize.findings import Finding

MAX_TEXT_CHARS = 1_000_000
"""Longest text that is checked, in characters."""
MAX_SOURCE_CHARS = 20_000_000
"""Largest total length of the sources, in characters."""
JUDGE_CONTEXT = 8192
"""Context in tokens that is assumed for a judge of unknown context."""

Verdict = Literal["supported", "doubtful", "uncited", "heading", "not_checkable"]


class Reason(Strict):
    """One doubt about a text."""

    kind: str
    """`number`, `date`, `identifier` (a name with digits), `quotation`, `citation`, `claim`, `name`, `negation`,
    `direction`, `unit`, `subject`, `support`, `source`, `miscited`, `language`, or of a judge `contradicted` and
    `not_found`."""
    start: int = Field(ge=0)
    """Start offset in the text, in characters."""
    end: int = Field(ge=0)
    """End offset in the text, exclusive."""
    text: str
    """The doubtful words."""
    message: str
    """What is wrong, in a sentence."""
    sources: tuple[int, ...] = ()
    """Numbers of the sources that were compared."""


class SentenceCheck(Strict):
    """One sentence of a text with its verdict."""

    text: str
    """The sentence with its citations."""
    start: int = Field(ge=0)
    """Start offset in the text, in characters."""
    end: int = Field(ge=0)
    """End offset in the text, exclusive."""
    cited: tuple[int, ...]
    """Numbers of the sources that it cites."""
    verdict: Verdict
    """`supported`: no rule found a doubt, which proves nothing; `doubtful`: some rule did; `uncited`: it cites no
    source, where others do; `heading`: a heading or a lead-in without a doubt, which needs no citation;
    `not_checkable`: it is in another language than its sources, or no word of it stands there in a language that the
    rules on wording don't know."""
    reasons: tuple[Reason, ...] = ()
    """The doubts."""


class TextCheck(Strict):
    """The comparison of a text with its sources."""

    sentences: tuple[SentenceCheck, ...]
    """The sentences, headings, list items and table rows that state something."""
    untraced: tuple[Reason, ...] = ()
    """Sources of which nothing stands in the text."""
    labels: tuple[str, ...]
    """The names of the sources in the order of their numbers."""
    judged: int = 0
    """Number of statements on which a judge gave a verdict."""
    cost_usd: float | None = None
    """Cost of the judge in US dollars; empty without a judge, and where a price is unknown."""

    @property
    def flags(self) -> tuple[Reason, ...]:
        """All doubts, in the order of the text."""
        return (*(reason for each in self.sentences for reason in each.reasons), *self.untraced)

    @property
    def is_clean(self) -> bool:
        """Whether there is no doubt."""
        return not self.flags


def check_text(text: str, sources: Sequence[JsonValue | Outcome], *, judge: Executor | None = None) -> TextCheck:
    """Compare each sentence of a text with its sources.

    Sources are cited by their number, such as `[2]` for the second one. A text without any citation is compared with
    all sources together. Figures, dates and quotations have to stand in a source that the sentence cites; names,
    negations and other words of English texts are compared by rules, which know no meaning: what passes is not
    proven. The same check runs in `Synthesize` and in the audit of its reports.

    Args:
        text: The text, or Markdown; at most 1,000,000 characters. Of a text that `Synthesize` wrote, the marks and the
            lists below it are left out.
        sources: The sources: texts, JSON values, or outcomes, which are numbered by item and brief.
        judge: An executor that judges each statement after the rules. It is called directly, one claim after another,
            without a store and a budget. None: the rules alone.

    Returns:
        A verdict for each sentence, and the sources of which nothing stands in the text.

    Raises:
        JobError: If the text or a source is empty, or they are too long.

    Example:
        >>> sources = ["The client paid 1,234 euros in March.", "Bosch delivers in five weeks."]
        >>> found = check_text("The client paid about 1,200 euros [1]. Bosch doesn't deliver in 5 weeks [2].", sources)
        >>> [(each.verdict, [reason.kind for reason in each.reasons]) for each in found.sentences]
        [('supported', []), ('doubtful', ['negation'])]
    """
    outcomes = _read_sources(sources)
    numbered = number_answers(outcomes)
    if not text.strip():
        raise JobError("The text to check is empty.")
    if not numbered:
        raise JobError("There is no source to compare the text with.")
    for name, length, most in (
        ("text to check is", len(text), MAX_TEXT_CHARS),
        ("sources are", sum(len(each.text) for each in numbered), MAX_SOURCE_CHARS),
    ):
        if length > most:
            raise JobError(f"The {name} too long: {length:,} characters, and {most:,} at most.")
    prose = remove_marks(split_document(text, numbered, outcomes)[0])[0].replace("\x00", " ")
    # 1. The rules. A text without citations rests on all sources.
    cited = cited_numbers(prose, len(numbered))
    given = () if cited or Prose(prose, len(numbered)).citations else tuple(each.number for each in numbered)
    if not Prose(prose, len(numbered)).claims:
        raise JobError("The text to check has no sentence.")
    findings = [
        *check_prose(prose, numbered, given, noun="source"),
        *check_claims(prose, numbered, given, noun="source"),
        *find_unchecked(prose, numbered, given),
    ]
    # 2. The judge.
    judged, cost = 0, None
    if judge is not None:
        findings, judged, cost = _ask_judge(prose, numbered, findings, given, judge)
    # 3. Each doubt belongs to the sentence in which it starts.
    return TextCheck(
        sentences=tuple(_group_by_sentence(prose, len(numbered), findings, has_citations=not given)),
        untraced=tuple(_list_untraced(prose, numbered, cited, given)),
        labels=tuple(each.label for each in numbered),
        judged=judged,
        cost_usd=cost,
    )


def _read_sources(sources: Sequence[JsonValue | Outcome]) -> list[Outcome]:
    """Return sources as outcomes; what is no outcome is numbered by its position."""
    if isinstance(sources, str):
        raise JobError("The sources are one text; pass a list of texts.")
    for at, each in enumerate(sources, 1):
        if not isinstance(each, Outcome) and not has_content(each):
            raise JobError(f"Source [{at}] is empty: {each!r:.40}.")
    return [
        each if isinstance(each, Outcome) else Outcome(brief="source", item=str(at), status="succeeded", value=each)
        for at, each in enumerate(sources, 1)
    ]


def has_content(value: JsonValue) -> bool:
    """Return whether a source holds anything to compare a text with.

    Example:
        >>> [has_content(each) for each in ({"years": None}, 0, " ", {}, [[], ""])]
        [True, True, False, False, False]
    """
    if isinstance(value, str):
        return bool(value.strip())
    return any(map(has_content, value)) if isinstance(value, list) else value is not None and value != {}


def _group_by_sentence(
    prose: str, total: int, findings: Sequence[Finding], *, has_citations: bool
) -> list[SentenceCheck]:
    """Return the sentences with the findings that start in them."""
    sentences: list[SentenceCheck] = []
    findings = sorted(findings, key=lambda each: (each.start, each.end, each.kind))
    for start, end, cited in Prose(prose, total).claims:
        reasons = tuple(
            Reason(
                kind=each.kind,
                start=each.start,
                end=each.end,
                text=prose[each.start : each.end],
                message=each.message,
                sources=each.consulted,
            )
            for each in findings[
                bisect_left(findings, start, key=_start_of) : bisect_left(findings, end, key=_start_of)
            ]
        )
        verdict: Verdict = "supported"
        if any(reason.kind == "claim" for reason in reasons):
            verdict = "uncited"
        elif reasons:
            verdict = "not_checkable" if all(reason.kind == "language" for reason in reasons) else "doubtful"
        elif has_citations and not cited and is_lead_in(prose, start, end):
            verdict = "heading"
        sentences.append(
            SentenceCheck(text=prose[start:end], start=start, end=end, cited=cited, verdict=verdict, reasons=reasons)
        )
    return sentences


def _start_of(finding: Finding) -> int:
    return finding.start


def _list_untraced(prose: str, numbered: Sequence[Source], cited: Sequence[int], given: Sequence[int]) -> list[Reason]:
    """Return the sources that no sentence cites, and those without a trace in a text without citations."""
    untraced = find_untraced(Prose(prose, len(numbered)), numbered, given) if given else []
    messages = {each.number: f"No sentence cites [{each.number}] ({each.label})." for each in numbered}
    messages |= {
        number: f"Nothing of [{number}] ({numbered[number - 1].label}) stands in the text." for number in untraced
    }
    return [
        Reason(kind="source", start=0, end=0, text="", message=message, sources=(number,))
        for number, message in messages.items()
        if number in untraced or number not in (cited or given)
    ]


def _ask_judge(
    prose: str, numbered: Sequence[Source], findings: Sequence[Finding], given: Sequence[int], judge: Executor
) -> tuple[list[Finding], int, float | None]:
    """Return the findings with those of a judge, the number of its verdicts, and its cost in US dollars."""
    own = cited_numbers(prose, len(numbered)) or tuple(given)
    part = Part("", prose, own, list(findings))
    asker = DirectAsker(judge)
    context = BaseExecutor.of(judge).context_tokens() or JUDGE_CONTEXT
    verdicts = judge_claims(list_claims([part], len(numbered)), numbered, asker, judge, context)
    [judged] = add_judge_findings([part], verdicts)
    return judged.findings, sum(each.label != "not_judged" for each in verdicts), asker.usage.cost_usd


class DirectAsker:
    """Asker that calls an executor directly, one query after another, without a store, a budget and Prefect.

    Attributes:
        executor: The executor of the queries.
        usage: The usage of all calls that were answered.
    """

    def __init__(self, executor: Executor) -> None:
        """Create an asker for an executor."""
        self.executor = executor
        self.usage = Usage()

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:
        """Return one outcome for each query; a failed call is a failed outcome.

        Raises:
            TerminalError: If every call would fail alike, such as for a wrong key.
        """
        return asyncio.run(self._answer_all(questions, executor or self.executor))

    async def _answer_all(self, questions: Sequence[Question], executor: Executor) -> list[Outcome]:
        return [await self._answer(question, executor) for question in questions]

    async def _answer(self, question: Question, executor: Executor) -> Outcome:
        names: Any = {"brief": question.brief.name, "item": question.item.key}
        try:
            answer = await run_attempt(executor, question.brief, question.item, limits=Limits())
        except TerminalError:
            raise
        except ExecutorError as error:
            self.usage += error.usage or Usage()
            return Outcome(**names, status="failed", error=Failure(kind=error.kind, message=str(error)))
        self.usage = sum((attempt.usage for attempt in answer.attempts), self.usage)
        return Outcome(**names, status="succeeded", value=answer.value)
