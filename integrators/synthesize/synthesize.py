"""The integrator `Synthesize`: a model writes one text or value from all answers, and has to cite them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, field_serializer, model_validator

from prefect_dispatch.errors import BriefError
from prefect_dispatch.executors.base import BaseExecutor
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.registry import AnyExecutor
from prefect_dispatch.integrators.audit.cited import rule_violations
from prefect_dispatch.integrators.base import BaseIntegrator, QueryEstimate, Question, unanswered
from prefect_dispatch.integrators.synthesize.answer_index import number_answers
from prefect_dispatch.integrators.synthesize.judge import (
    JUDGE_BRIEF,
    JUDGE_BRIEFS,
    RULE_BRIEF,
    add_judge_findings,
    claims_table,
    describe_judging,
    judge_claims,
    judge_text_rules,
    list_claims,
    read_verdicts,
)
from prefect_dispatch.integrators.synthesize.map_reduce import DROPPED, NOT_WRITTEN, Reducer
from prefect_dispatch.integrators.synthesize.output_format import (
    WORDING_RULE,
    ProseFormat,
    StructuredFormat,
    find_missing_sections,
    mentions_wording,
)
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.brief import Brief, OutputForm, Text
from prefect_dispatch.models.imports import REFERENCE
from prefect_dispatch.models.item import Item, escape_template, placeholders
from prefect_dispatch.models.ledger import LedgerRow, Merge
from prefect_dispatch.models.output_schema import normalize_output
from prefect_dispatch.security.escaping import count_noun
from prefect_dispatch.serialization.json_values import is_leaf, iter_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue
    from typing_extensions import Self

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Asker, RuleOpinion
    from prefect_dispatch.integrators.synthesize.judge import Verdict
    from prefect_dispatch.integrators.synthesize.output_format import DraftFormat, Part
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
        placed = {
            name: each.resolve_paths(folder)
            for name in ("executor", "judge")
            if isinstance(each := getattr(self, name), LLM)
        }
        return self.model_copy(update=placed)

    def preflight(self, briefs: Sequence[Brief]) -> None:  # noqa: ARG002 -- the signature of every integrator
        """Raise `JobError` if the writer or the judge certainly can't be used."""
        for each in (self.executor, self.judge):
            if each is not None:
                BaseExecutor.of(each).require_available()

    def verify(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:  # noqa: ARG002 -- the signature of every promise
        """Yield a violation for each field that is neither cited by a model nor an answer word for word."""
        return rule_violations(merge)

    def estimate_queries(self, work: int, briefs: Sequence[Brief]) -> list[QueryEstimate]:
        """Return the least number of queries: one text; for a judge, one claim for each answer, and each rule."""
        write = _create_briefs(self.instructions, self.constraints, self._form)["write"]
        text = QueryEstimate(Question(brief=write, item=Item(key="answers", value="")), work, 1, self.executor)
        if self.judge is None:
            return [text]
        claims = QueryEstimate(Question(brief=JUDGE_BRIEF, item=Item(key="claim", value="")), 1, work, self.judge)
        stated = {rule for brief in briefs for rule in (brief.scope, *brief.constraints)}
        asked = {rule for rule in stated.union(self.own_constraints()) if rule and not placeholders(rule)}
        rules = QueryEstimate(Question(brief=RULE_BRIEF, item=Item(key="rule", value="")), work, len(asked), self.judge)
        return [text, claims, rules]

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
        steps = _create_briefs(self.instructions, self.constraints, form)
        context = self._context_of(writer)
        reduced = Reducer(steps, form, sources, ask, writer, context=context, reasks=self.reasks).reduce()
        drafts = [node.draft for node in reduced.nodes if node.draft]
        content = form.combine_drafts(drafts)
        parts = sorted(form.check_parts(content, sources), key=lambda part: part.path)
        # 2. Have the claims of the result judged.
        verdicts: list[Verdict] = []
        if self.judge is not None:
            verdicts = judge_claims(
                list_claims(parts, len(sources)), sources, ask, self.judge, self._context_of(self.judge)
            )
            parts = add_judge_findings(parts, verdicts)
        # 3. Mark and flag what is unverified, and append what is not cited.
        return self._render(
            content,
            parts,
            verdicts,
            outcomes,
            is_written=bool(drafts),
            dropped=reduced.dropped,
            shortfalls=reduced.shortfalls,
            rules=self._describe_rules(
                describe_executor(writer), reduced.levels, self._context_of(writer), verdicts, len(sources)
            ),
        )

    def _render(
        self,
        content: JsonValue,
        parts: Sequence[Part],
        verdicts: Sequence[Verdict],
        outcomes: Sequence[Outcome],
        *,
        is_written: bool,
        dropped: Mapping[int, str],
        shortfalls: Sequence[str],
        rules: str,
    ) -> Merge:
        """Return the merge of what was written.

        Args:
            content: What was written.
            parts: Its parts, compared with the answers.
            verdicts: The judge's verdicts.
            outcomes: All outcomes.
            is_written: Whether there is any draft.
            dropped: Reasons why answers were left out, by their numbers.
            shortfalls: What could not be written.
            rules: How it was written and checked.
        """
        sources, form = number_answers(outcomes), self._form
        places = {
            number: place for place, numbers in [*form.citing_places(parts, len(sources))][::-1] for number in numbers
        }
        value, fields, flags = form.render_result(content, parts, sources, outcomes)
        rows = [row for outcome in outcomes if (row := unanswered(outcome))]
        for source in sources:
            why = f"also reported: {dropped.get(source.number, 'not cited by the model')}"
            reason = places.get(source.number, why)
            rows.append(LedgerRow(brief=source.ref.brief, item=source.ref.item, disposition="merged", reason=reason))
        return Merge(
            value=value,
            ledger=tuple(rows),
            fields=fields if sources else (),
            rules=rules,
            flags=flags,
            tables=(claims_table(verdicts),) if self.judge is not None else (),
            shortfalls=(*shortfalls, *self._shortfalls(content, parts, verdicts, len(sources), is_written=is_written)),
        )

    def recompute(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Merge | None:  # noqa: ARG002 -- the signature of every integrator
        """Return the merge that follows from what was written and what the judge answered, as the merge has both.

        If the run kept the answers of writer and judge, what was written must be among them, and so must the verdicts.

        Raises:
            ValueError: If the merge has no such text, value or verdicts, or they are not those that were answered.
        """
        written = _HOW_WRITTEN.match(merge.rules)
        if written and not merge.asked and not mentions_wording(merge.rules):
            return None  # it was merged by an earlier version, which compared no wording
        sources, form = number_answers(outcomes), self._form
        # 1. What was written.
        content = form.recover_content(merge.value, sources, outcomes)
        parts = sorted(form.recover_parts(merge.value, content, sources), key=lambda part: part.path)
        asked = [each for each in merge.asked if each.status == "succeeded"]
        drafts = [each.value for each in asked if each.brief not in JUDGE_BRIEFS]
        if merge.asked and sources and not form.is_answered(content, drafts):
            raise ValueError("no answer of the writer says so")
        # 2. What the judge answered.
        verdicts: list[Verdict] = []
        if self.judge is not None:
            verdicts = read_verdicts(merge, list_claims(parts, len(sources)), sources)
            parts = add_judge_findings(parts, verdicts)
        # 3. What could not be written, and how it was written, is known of the merge alone; the form must be right.
        dropped = {
            source.number: reason
            for source in sources
            for row in merge.ledger
            if (row.brief, row.item) == (source.ref.brief, source.ref.item)
            and (reason := row.reason.removeprefix("also reported: ")) != row.reason
            and DROPPED.fullmatch(reason)
        }
        shortfalls = [each for each in merge.shortfalls if NOT_WRITTEN.fullmatch(each)]
        if written is None:
            raise ValueError("its rules don't say how it was written")
        writer = describe_executor(self.executor) if self.executor else written[1][:1].lower() + written[1][1:]
        context = self.context_tokens or int(written[3])
        rules = self._describe_rules(writer, int(written[2]), context, verdicts, len(sources))
        is_written = content not in ("", {"value": None}) or any(map(_CITES_NONE.fullmatch, merge.shortfalls))
        return self._render(
            content,
            parts,
            verdicts,
            outcomes,
            is_written=is_written,
            dropped=dropped,
            shortfalls=shortfalls,
            rules=rules,
        )

    def own_constraints(self) -> Sequence[str]:
        """Return the constraints of the text or value."""
        return tuple(map(escape_template, self.constraints))

    def judge_rules(
        self, merge: Merge, outcomes: Sequence[Outcome], rules: Sequence[str], ask: Asker
    ) -> list[RuleOpinion] | None:
        """Return the judge's opinion on whether what was written keeps some rules; None without a judge."""
        if self.judge is None:
            return None
        sources = number_answers(outcomes)
        content = self._form.recover_content(merge.value, sources, outcomes)
        leaves = (
            [("", content)]
            if isinstance(content, str)
            else [(path, leaf) for path, leaf in iter_parts(content) if is_leaf(leaf)]
        )
        return judge_text_rules(leaves, rules, sources, ask, self.judge, self._context_of(self.judge))

    @property
    def _form(self) -> DraftFormat:
        return ProseFormat(self.sections) if self.output == "text" else StructuredFormat(self.output)

    def _context_of(self, executor: Executor) -> int:
        """Return the context in tokens: as configured, else as known for the model, else the assumed one."""
        return self.context_tokens or BaseExecutor.of(executor).context_tokens() or ASSUMED_CONTEXT

    def _shortfalls(
        self, content: JsonValue, parts: Sequence[Part], verdicts: Sequence[Verdict], total: int, *, is_written: bool
    ) -> Iterator[str]:
        """Yield a sentence on each section that is missing, on missing citations, and on claims without a verdict."""
        missing = find_missing_sections(str(content), self.sections) if is_written else []
        yield from (f"The text has no section {name!r}, though it was sent back for it." for name in missing)
        if is_written and not any(part.cited for part in parts):
            yield f"What was written cites none of the {total} answers; trust nothing in it."
        if unjudged := [verdict.why for verdict in verdicts if verdict.label == "not_judged"]:
            yield (
                f"{len(unjudged)} of {len(verdicts)} claims could not be judged ({', '.join(sorted(set(unjudged)))})."
            )

    def _describe_rules(self, who: str, levels: int, context: int, verdicts: Sequence[Verdict], total: int) -> str:
        """Return how the result was written and checked, as one paragraph for the report."""
        kind, below, marks = (
            ("a text", "Also reported", "marked [unverified] in the text and flagged")
            if self.output == "text"
            else ("a value by a schema", "also_reported", "flagged, and listed under 'unverified'")
        )
        opinion = f" {describe_judging(verdicts, describe_executor(self.judge))}" if self.judge else ""
        return (
            f"{who[:1].upper()}{who[1:]} wrote {kind} of {count_noun(total, 'answer')} in "
            f"{count_noun(levels, 'step')}: first parts, then parts of parts, each question and its answer "
            f"within {context} tokens. It had to cite every answer by its number, the place of the "
            "answer in the order of items and briefs. A draft was sent back for what is wrong with it, at most "
            f"{count_noun(self.reasks, 'time')}, and the one with the fewest faults was kept. An answer that is not "
            f"cited stands word for word under '{below}'. A number, a date or a quotation must stand in one of the "
            "answers that its sentence cites. Numbers are compared by value (1,000 is 1000; 12 % is 12 per cent, or "
            "0.12, or 12), rounded ones by what they are rounded from; number words in English only, 'one' not at all, "
            "and 'two' to 'ten' only where an answer counts the same things otherwise. A bare whole number "
            "that equals the number of answers cited there, two or more, is taken for a count of them. What doesn't "
            "stand there, a sentence without a citation and a citation of what isn't there are "
            f"{marks}. {WORDING_RULE}{opinion} Not checked is whether what is cited means what the text makes of it: a "
            "flag is a reason to look, and no flag is no proof."
        )


_HOW_WRITTEN = re.compile(r"(.+?) wrote a (?:text|value by a schema) of .*? in (\d+) steps?: .*? within (\d+) tokens\.")
"""How a synthesis was written, in the description of its rules: by whom, in how many steps, within how many tokens."""
_CITES_NONE = re.compile(r"What was written cites none of the \d+ answers; trust nothing in it\.")

# The prompts: a changed text makes stored answers useless.

_ANSWERS = "Numbered answers that others gave: each with its number and its name, and below them its lines, indented."

_PARTS = (
    "Parts of one piece of work. Each was written, like yours, of numbered answers; their numbers stand in them in "
    "square brackets."
)

_MERGE = (
    "Merge the parts into one, as if it had been written at once. Keep every number in brackets with what it backs."
)

_DRAFT = "A draft and its faults follow below. Write the whole of it again, with these faults mended."


def _create_briefs(instructions: str, constraints: Sequence[str], form: DraftFormat) -> dict[str, Brief]:
    """Return the briefs of the three steps: write from answers, merge parts, and revise a draft of either."""

    def brief(name: str, scope: str, *more: str) -> Brief:
        return Brief(
            name=f"synthesize-{name}",
            scope=scope,
            # Braces are no placeholders here.
            instructions="\n\n".join([escape_template(instructions), form.rules, *more]),
            constraints=tuple(map(escape_template, constraints)),
            output=form.output,
        )

    return {
        "write": brief("write", _ANSWERS),
        "merge": brief("merge", _PARTS, _MERGE),
        "revise": brief("mend", f"{_ANSWERS} Or parts that were written of such answers.", _DRAFT),
    }


def describe_executor(executor: object) -> str:
    """Return a description of an executor, without secrets."""
    if isinstance(executor, LLM):
        return f"the model {' or '.join(executor.models)}"
    return f"the executor {type(executor).__name__}"
