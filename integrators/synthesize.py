"""One text, or one value, of all answers, written by a model that has to cite them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, field_serializer, model_validator

from prefect_dispatch.errors import BriefError
from prefect_dispatch.executors.base import Bounded, Countable
from prefect_dispatch.executors.kinds import AnyExecutor
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.integrators.auditing.cited import unruly
from prefect_dispatch.integrators.base import Asks, Question
from prefect_dispatch.integrators.gaps import unanswered
from prefect_dispatch.integrators.prose.drafts import Prose, Structured, without
from prefect_dispatch.integrators.prose.evidence import numbered
from prefect_dispatch.integrators.prose.judging import JUDGE, judged
from prefect_dispatch.integrators.prose.reducing import Reducer
from prefect_dispatch.integrators.prose.synthesis_words import briefs_for, rules_of
from prefect_dispatch.integrators.prose.writing import Text as Prosaic
from prefect_dispatch.integrators.prose.writing import Value
from prefect_dispatch.ledger import LedgerRow, Merge, Table
from prefect_dispatch.models import Item, OutputForm, Text
from prefect_dispatch.outputs import normalise_output
from prefect_dispatch.references import REFERENCE
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from typing_extensions import Self

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.prose.drafts import Draft, Form
    from prefect_dispatch.integrators.prose.evidence import Source
    from prefect_dispatch.integrators.prose.judging import Verdict
    from prefect_dispatch.integrators.prose.reducing import Reduced
    from prefect_dispatch.ledger import Violation
    from prefect_dispatch.models import Brief, Outcome

Section = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[^\n#]+$", max_length=100)]
ASSUMED_CONTEXT = 8192
"""Tokens that a model is taken to have room for where nobody says."""


class Synthesize(Strict):
    """Has a model write one text or one value of all answers; it must cite them, and what it leaves out is added.

    Answers are numbered in the order of every list, and the model cites `[3]`. A text is followed by
    the section "Also reported", which holds every answer that it doesn't cite, word for word; by a sentence
    on what has no answer; and by the list of sources. What the text says of numbers, dates and quotations
    must stand in what it cites; the rest is sent back, and marked `[unverified]` if it stays.

    A value by a JSON Schema comes as `{"value": …, "sources": …, "cited": …, "also_reported": …,
    "unverified": …, "gaps": …}`: `cited` names the answers that each part of the value rests on.

    Example:
        >>> Synthesize(instructions="Compare the licences in two paragraphs.").output
        'text'
    """

    kind: Literal["synthesize"] = "synthesize"
    """Tells the integrators apart."""
    instructions: Text
    """What to write of the answers, and for whom."""
    constraints: tuple[Text, ...] = ()
    """Rules that the text must keep, one each."""
    output: OutputForm = "text"
    """The form of the result: `text`, a JSON Schema, or `module:Name` of a pydantic model."""
    sections: tuple[Section, ...] = ()
    """Headings of sections that a text must have, in this order."""
    executor: AnyExecutor | None = Field(default=None, title="Writer")
    """Who writes. None: the job's executor."""
    judge: AnyExecutor | None = None
    """Who compares each statement with the answers that it cites. None: nobody does."""
    reasks: int = Field(default=2, ge=0, le=10)
    """How often a draft is sent back for what is wrong with it."""
    context_tokens: int | None = Field(default=None, ge=200, title="Context in tokens")
    """Tokens that a question and its answer may have together. None: what the model is known for, else 8192."""

    @model_validator(mode="after")
    def _sections_are_of_a_text(self) -> Self:
        if self.sections and self.output != "text":
            raise ValueError("'sections' are for a text, and 'output' asks for a value; remove one of them")
        return self

    def resolved(self, load: Callable[[str], Any]) -> Synthesize:
        """Return this integrator with the model that `output` names in place of its name."""
        if not isinstance(self.output, str) or not REFERENCE.fullmatch(self.output):
            return self
        try:
            return self.model_copy(update={"output": normalise_output(load(self.output))})
        except ValueError as error:
            raise BriefError(f"integrator.output: {error}.") from None

    def placed(self, folder: Path) -> Synthesize:
        """Return this integrator with the files of local models looked up from a folder."""
        found = {name: getattr(self, name) for name in ("executor", "judge")}
        placed = {name: each.placed(folder) for name, each in found.items() if isinstance(each, LLM)}
        return self.model_copy(update=placed)

    def preflight(self, briefs: Sequence[Brief]) -> None:  # noqa: ARG002 -- the signature of every integrator
        """Raise `JobError` if it is plain beforehand that the writer or the judge can't be asked."""
        for each in (self.executor, self.judge):
            if isinstance(each, Countable):
                each.require_known()

    def broken(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:  # noqa: ARG002 -- the signature of every promise
        """Yield the fields that neither a model wrote nor an answer says word for word."""
        return unruly(merge)

    def asks(self, work: int) -> list[Asks]:
        """Return the fewest questions: one text and, for a judge, a statement of each answer."""
        write = briefs_for(self.instructions, self.constraints, self._form)["write"]
        text = Asks(Question(brief=write, item=Item(key="answers", value="")), work, 1, self.executor)
        claims = Asks(Question(brief=JUDGE, item=Item(key="claim", value="")), 1, work, self.judge)
        return [text, claims] if self.judge is not None else [text]

    @field_serializer("executor", "judge", when_used="json")
    def _described(self, executor: object) -> object:
        """Return an executor as a report can hold it; one of the user's own goes by its class."""
        known = executor is None or isinstance(executor, BaseModel)
        return executor if known else type(executor).__name__

    def merge_asking(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker) -> Merge:  # noqa: ARG002 -- the signature of every integrator
        """Return what the model wrote, with everything that it left out."""
        writer: Executor = self.executor or ask.executor
        sources = numbered(outcomes)
        form = self._form
        asked = briefs_for(self.instructions, self.constraints, form)
        context = self._context(writer)
        reduced = Reducer(asked, form, sources, ask, writer, context=context, reasks=self.reasks).reduce()
        drafts = [node.draft for node in reduced.nodes if node.draft]
        text = Prosaic(drafts, sources) if isinstance(form, Prose) else Value(drafts, sources)
        verdicts: list[Verdict] = []
        if self.judge is not None:
            verdicts = judged(text.claims, sources, ask, self.judge, self._context(self.judge))
        written = text.written(verdicts, outcomes)
        return Merge(
            value=written.value,
            ledger=tuple(
                [row for outcome in outcomes if (row := unanswered(outcome))]
                + [_ledger_row(source, text.places, reduced) for source in sources]
            ),
            fields=written.fields if sources else (),
            rules=rules_of(
                writer,
                self.judge,
                reduced,
                verdicts=verdicts,
                text=self.output == "text",
                total=len(sources),
                context=context,
                again=self.reasks,
            ),
            flags=written.flags,
            tables=(_table(verdicts),) if self.judge is not None else (),
            shortfalls=(
                *reduced.shortfalls,
                *_incomplete(drafts, self.sections),
                *_uncited(drafts, len(sources)),
                *_unjudged(verdicts),
            ),
        )

    @property
    def _form(self) -> Form:
        return Prose(self.sections) if self.output == "text" else Structured(self.output)

    def _context(self, executor: Executor) -> int:
        known = executor.context_tokens() if isinstance(executor, Bounded) else None
        return self.context_tokens or known or ASSUMED_CONTEXT


def _ledger_row(source: Source, places: dict[int, str], reduced: Reduced) -> LedgerRow:
    why = reduced.dropped.get(source.number, "not cited by the model")
    reason = places.get(source.number, f"also reported: {why}")
    return LedgerRow(brief=source.ref.brief, item=source.ref.item, disposition="merged", reason=reason)


def _table(verdicts: Sequence[Verdict]) -> Table:
    return Table(
        name="claims",
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


def _incomplete(drafts: Sequence[Draft], sections: Sequence[str]) -> list[str]:
    left_out = without("\n\n".join(str(draft.content) for draft in drafts), sections) if drafts else []
    return [f"The text has no section {name!r}, though it was sent back for it." for name in left_out]


def _uncited(drafts: Sequence[Draft], total: int) -> list[str]:
    cites = any(draft.cited for draft in drafts)
    return [] if cites or not drafts else [f"What was written cites none of the {total} answers; trust nothing in it."]


def _unjudged(verdicts: Sequence[Verdict]) -> list[str]:
    left = [verdict for verdict in verdicts if verdict.label == "not_judged"]
    reasons = ", ".join(sorted({verdict.why for verdict in left}))
    return [f"{len(left)} of {len(verdicts)} claims could not be judged ({reasons})."] if left else []
