"""The integrator `Synthesize`: a model writes one text or value from all answers, and has to cite them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, field_serializer, model_validator

from prefect_dispatch.errors import BriefError
from prefect_dispatch.executors.base import BaseExecutor
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.registry import AnyExecutor
from prefect_dispatch.integrators.audit.cited import rule_violations
from prefect_dispatch.integrators.base import BaseIntegrator, QueryEstimate, Question, unanswered
from prefect_dispatch.integrators.synthesize.answer_index import number_answers
from prefect_dispatch.integrators.synthesize.draft_review import ProseFormat, StructuredFormat, find_missing_sections
from prefect_dispatch.integrators.synthesize.llm_judge import JUDGE_BRIEF, create_briefs, describe_rules, judge_claims
from prefect_dispatch.integrators.synthesize.map_reduce import Reducer
from prefect_dispatch.integrators.synthesize.write import TextResult, ValueResult
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.brief import OutputForm, Text
from prefect_dispatch.models.imports import REFERENCE
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.ledger import LedgerRow, Merge, Table
from prefect_dispatch.models.output_schema import normalize_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from typing_extensions import Self

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.integrators.synthesize.answer_index import Source
    from prefect_dispatch.integrators.synthesize.draft_review import Draft, DraftFormat
    from prefect_dispatch.integrators.synthesize.llm_judge import Verdict
    from prefect_dispatch.integrators.synthesize.map_reduce import ReduceResult
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.ledger import Violation
    from prefect_dispatch.models.outcome import Outcome

Section = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[^\n#]+$", max_length=100)]
ASSUMED_CONTEXT = 8192
"""Context in tokens that is assumed for a model of unknown context."""


class Synthesize(BaseIntegrator, Strict):
    """Integrator that has a model write one text or value from all answers, with citations.

    Answers are numbered in the order of items and briefs, and the model cites them as `[3]`. A text is followed by
    the section "Also reported" with every answer that it doesn't cite, word for word; by a sentence on items
    without an answer; and by the list of sources. Numbers, dates and quotations in the text have to stand in an
    answer that it cites there; the others are sent back to the model, and marked `[unverified]` if they remain.

    A value by a JSON Schema is returned as `{"value": …, "sources": …, "cited": …, "also_reported": …,
    "unverified": …, "gaps": …}`: `cited` holds the numbers of the answers that support each part of the value.

    Example:
        >>> Synthesize(instructions="Compare the licences in two paragraphs.").output
        'text'
    """

    kind: Literal["synthesize"] = "synthesize"
    """Discriminator of the integrators."""
    instructions: Text
    """What to write from the answers, and for whom."""
    constraints: tuple[Text, ...] = ()
    """Rules that the text has to keep, one each."""
    output: OutputForm = "text"
    """The form of the result: `text`, a JSON Schema, or `module:Name` of a pydantic model."""
    sections: tuple[Section, ...] = ()
    """Headings of sections that a text must have, in this order."""
    executor: AnyExecutor | None = Field(default=None, title="Writer")
    """The executor that writes. None: the job's executor."""
    judge: AnyExecutor | None = None
    """The executor that compares each statement with the answers that it cites. None: no comparison."""
    reasks: int = Field(default=2, ge=0, le=10)
    """How often a draft is sent back with its faults, at most."""
    context_tokens: int | None = Field(default=None, ge=200, title="Context in tokens")
    """Tokens of a query and its response together. None: the model's context if it is known, else 8192."""

    @model_validator(mode="after")
    def _require_text_for_sections(self) -> Self:
        if self.sections and self.output != "text":
            raise ValueError("'sections' are for a text, and 'output' asks for a value; remove one of them")
        return self

    def resolve_references(self, load: Callable[[str], Any]) -> Synthesize:
        """Return this integrator with the pydantic model that `output` names, imported."""
        if not isinstance(self.output, str) or not REFERENCE.fullmatch(self.output):
            return self
        try:
            return self.model_copy(update={"output": normalize_output(load(self.output))})
        except ValueError as error:
            raise BriefError(f"integrator.output: {error}.") from None

    def resolve_paths(self, folder: Path) -> Synthesize:
        """Return this integrator with the paths of local models resolved against a folder."""
        executors = {name: getattr(self, name) for name in ("executor", "judge")}
        placed = {name: each.resolve_paths(folder) for name, each in executors.items() if isinstance(each, LLM)}
        return self.model_copy(update=placed)

    def preflight(self, briefs: Sequence[Brief]) -> None:  # noqa: ARG002 -- the signature of every integrator
        """Raise `JobError` if the writer or the judge certainly can't be used."""
        for each in (self.executor, self.judge):
            if each is not None:
                BaseExecutor.of(each).require_available()

    def verify(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:  # noqa: ARG002 -- the signature of every promise
        """Yield a violation for each field that is neither cited by a model nor an answer word for word."""
        return rule_violations(merge)

    def estimate_queries(self, work: int) -> list[QueryEstimate]:
        """Return the least number of queries: one text and, for a judge, one claim for each answer."""
        write = create_briefs(self.instructions, self.constraints, self._form)["write"]
        text = QueryEstimate(Question(brief=write, item=Item(key="answers", value="")), work, 1, self.executor)
        claims = QueryEstimate(Question(brief=JUDGE_BRIEF, item=Item(key="claim", value="")), 1, work, self.judge)
        return [text, claims] if self.judge is not None else [text]

    @field_serializer("executor", "judge", when_used="json")
    def _serialize_executor(self, executor: object) -> object:
        """Return an executor in a form that a report can hold; a user-defined one as its class name."""
        is_serializable = executor is None or isinstance(executor, BaseModel)
        return executor if is_serializable else type(executor).__name__

    def merge_asking(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker) -> Merge:  # noqa: ARG002 -- the signature of every integrator
        """Return the merge: what the model wrote, and every answer that it left out."""
        writer: Executor = self.executor or ask.executor
        # 1. Write drafts and merge them, as far as the context allows.
        sources = number_answers(outcomes)
        form = self._form
        briefs_by_step = create_briefs(self.instructions, self.constraints, form)
        context = self._context_of(writer)
        reduced = Reducer(briefs_by_step, form, sources, ask, writer, context=context, reasks=self.reasks).reduce()
        drafts = [node.draft for node in reduced.nodes if node.draft]
        text = TextResult(drafts, sources) if isinstance(form, ProseFormat) else ValueResult(drafts, sources)
        # 2. Have the claims of the result judged.
        verdicts: list[Verdict] = []
        if self.judge is not None:
            verdicts = judge_claims(text.claims, sources, ask, self.judge, self._context_of(self.judge))
        # 3. Mark and flag what is unverified, and append what is not cited.
        result = text.render_result(verdicts, outcomes)
        return Merge(
            value=result.value,
            ledger=tuple(
                [row for outcome in outcomes if (row := unanswered(outcome))]
                + [_ledger_row(source, text.places, reduced) for source in sources]
            ),
            fields=result.fields if sources else (),
            rules=describe_rules(
                writer,
                self.judge,
                reduced,
                verdicts=verdicts,
                text=self.output == "text",
                total=len(sources),
                context=context,
                again=self.reasks,
            ),
            flags=result.flags,
            tables=(_claims_table(verdicts),) if self.judge is not None else (),
            shortfalls=(
                *reduced.shortfalls,
                *_section_shortfalls(drafts, self.sections),
                *_citation_shortfalls(drafts, len(sources)),
                *_judge_shortfalls(verdicts),
            ),
        )

    @property
    def _form(self) -> DraftFormat:
        return ProseFormat(self.sections) if self.output == "text" else StructuredFormat(self.output)

    def _context_of(self, executor: Executor) -> int:
        """Return the context in tokens: as configured, else as known for the model, else the assumed one."""
        model_context = BaseExecutor.of(executor).context_tokens()
        return self.context_tokens or model_context or ASSUMED_CONTEXT


def _ledger_row(source: Source, places: dict[int, str], reduced: ReduceResult) -> LedgerRow:
    why = reduced.dropped.get(source.number, "not cited by the model")
    reason = places.get(source.number, f"also reported: {why}")
    return LedgerRow(brief=source.ref.brief, item=source.ref.item, disposition="merged", reason=reason)


def _claims_table(verdicts: Sequence[Verdict]) -> Table:
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


def _section_shortfalls(drafts: Sequence[Draft], sections: Sequence[str]) -> list[str]:
    missing = find_missing_sections("\n\n".join(str(draft.content) for draft in drafts), sections) if drafts else []
    return [f"The text has no section {name!r}, though it was sent back for it." for name in missing]


def _citation_shortfalls(drafts: Sequence[Draft], total: int) -> list[str]:
    cites = any(draft.cited for draft in drafts)
    return [] if cites or not drafts else [f"What was written cites none of the {total} answers; trust nothing in it."]


def _judge_shortfalls(verdicts: Sequence[Verdict]) -> list[str]:
    unjudged = [verdict for verdict in verdicts if verdict.label == "not_judged"]
    reasons = ", ".join(sorted({verdict.why for verdict in unjudged}))
    return [f"{len(unjudged)} of {len(verdicts)} claims could not be judged ({reasons})."] if unjudged else []
