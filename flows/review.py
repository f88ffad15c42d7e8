"""Review of a merge: people decide on open pairs and conflicts before a run publishes.

A run of a deployment is suspended until then (`suspension`). Any other run has no worker that could resume it: it ends
as `NeedsReview` with the open questions in its report, and the next run of the job applies the decisions file.
"""

from __future__ import annotations

import glob
import math
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast
from uuid import UUID, uuid4

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import Abort, CancelledRun, ObjectNotFound, Pause
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Paused
from pydantic import Field, ValidationError, create_model

from prefect_dispatch.calls.call_gate import forget_gate, gate_for_run
from prefect_dispatch.errors import DispatchError, JobError
from prefect_dispatch.flows.finalize import add_shortfall
from prefect_dispatch.integrators.base import BaseIntegrator, DecisionIntegrator, RecordIntegrator
from prefect_dispatch.integrators.decisions_file import DecisionsFile
from prefect_dispatch.models.base import NON_EMPTY, Strict
from prefect_dispatch.models.decisions import Choice, Decisions, Identity
from prefect_dispatch.models.ledger import TO_DECIDE, Document, Ref
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.prefect_compat import form_answer, form_keys, propose_state
from prefect_dispatch.reporting.explain import pointer_tokens
from prefect_dispatch.reporting.output_folder import ensure_folder
from prefect_dispatch.security.escaping import (
    escape_paragraph,
    fence_text,
    join_names,
    shorten,
    strip_control_chars,
    value_text,
)
from prefect_dispatch.serialization.durable_files import write_atomically
from prefect_dispatch.serialization.json_text import digest
from prefect_dispatch.serialization.json_values import get_at, is_empty_value, pointer, resolve_pointer
from prefect_dispatch.tasks.plan import Plan
from prefect_dispatch.tasks.result_store import PREFIX
from prefect_dispatch.tasks.run_brief import result_store_for_run

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from prefect.client.schemas.objects import FlowRun, State
    from pydantic import JsonValue

    from prefect_dispatch.flows.runtime.prepared_job import PreparedJob
    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.integrators.merge_records.similarity import Matching
    from prefect_dispatch.models.decisions import IdentityNormalizer
    from prefect_dispatch.models.ledger import FieldRow, Proposal
    from prefect_dispatch.models.limits import Limits
    from prefect_dispatch.models.report import Report
    from prefect_dispatch.tasks.work_item import WorkItem


MAX_QUESTIONS = 20
"""Questions in one form, at most."""


MAX_OPTIONS = 20
"""Values that one question offers, at most."""


MAX_LABEL = 80


OPEN = "leave open"
"""The option that decides nothing: the merge stays unchanged, and the next run asks again."""


FieldLocator = Callable[["FieldRow"], tuple[Identity, str] | None]
"""Returns the record and the field of a row; None if it can't, or need not, be decided on."""


class ReviewQuestion(Strict):
    """One question of a review form."""

    title: str
    """The question, in one line."""
    why: str
    """Both sides with their evidence, in one line."""
    options: dict[str, Decisions]
    """The decisions behind each option; the first decides nothing."""

    @property
    def name(self) -> str:
        """The field name in the form: equal questions have equal names."""
        decides: JsonValue = {label: decisions.model_dump(mode="json") for label, decisions in self.options.items()}
        return f"m{digest([self.title, decides])[:16]}"


class ReviewForm(Strict):
    """The questions of one review form."""

    matters: Annotated[tuple[ReviewQuestion, ...], NON_EMPTY]
    """The questions."""
    more: int = 0
    """Number of open questions beyond these."""

    @property
    def name(self) -> str:
        """The identity of the form: equal questions give an equal name."""
        return digest([matter.name for matter in self.matters])[:16]

    def chosen(self, answers: Mapping[str, object]) -> Iterator[tuple[str, Decisions]]:
        """Yield the title of each question with the decisions of its answer; one that is no option decides nothing."""
        for matter in self.matters:
            yield matter.title, matter.options.get(str(answers.get(matter.name)), Decisions())

    def decisions_from(self, answers: Mapping[str, object]) -> Decisions:
        """Return the decisions of an answered form."""
        return Decisions().combine(*(decisions for _, decisions in self.chosen(answers)))

    def titles(self, answers: Mapping[str, object], decisions: Decisions) -> tuple[str, ...]:
        """Return the titles of the questions whose answers led to some of these decisions."""
        return tuple(title for title, chosen in self.chosen(answers) if chosen.without(decisions) != chosen)

    def lines(self) -> str:
        """Return the questions as lines for a decisions file that a person edits: each as the merge proposes it.

        Pairs are listed under `same`. For a field, the value that the rule keeps is listed, and the others below it as
        comments.
        """
        pairs = [pair for matter in self.matters for each in matter.options.values() for pair in each.same]
        lines = Decisions(same=tuple(pairs)).text().splitlines()
        values = [[each for each in matter.options.values() if each.fields] for matter in self.matters]
        for offered in filter(None, values):
            entries = [each.text().splitlines()[1] for each in offered]
            lines += [*(() if "fields:" in lines else ("fields:",)), entries[0], *(f"# {each}" for each in entries[1:])]
        return "\n".join(lines)

    def description(self) -> str:
        """Return the Markdown text above the form; it holds no text from agents."""
        more = f" {self.more} more are open and come after these." if self.more else ""
        return (
            f"**{len(self.matters)} to decide.**{more} What you decide is kept in the decisions file and used by every "
            "later run. What you leave open stays as the rules have it, and is asked again by the next run."
        )


def build_form(report: Report, locate: FieldLocator, passed: Collection[str] = ()) -> ReviewForm | None:
    """Return the form with the open questions of a report, or None if there are none.

    Args:
        report: The report.
        locate: Finds the record and field of a conflict that can be decided on.
        passed: The names of questions that are not to be asked.
    """
    found = [_question_on_proposal(each) for each in report.proposals]
    found += [_question_on_conflict(row, *place) for row in report.fields if row.losers and (place := locate(row))]
    matters = [matter for matter in found if matter and matter.name not in passed]
    return ReviewForm(matters=tuple(matters[:MAX_QUESTIONS]), more=len(matters[MAX_QUESTIONS:])) if matters else None


def _question_on_proposal(proposal: Proposal) -> ReviewQuestion | None:
    left, right = proposal.left, proposal.right
    if not isinstance(left, dict) or not isinstance(right, dict):
        return None  # of a custom integrator: a decisions file has no syntax for it
    sides = (
        f"{_truncate(_identity_text(side))} (from {_truncate(join_names(sources))})"
        for side, sources in ((left, proposal.left_sources), (right, proposal.right_sources))
    )
    return ReviewQuestion(
        title=f"One or two: {_truncate(_identity_text(left))} | {_truncate(_identity_text(right))}",
        why=f"{' or '.join(sides)}. {proposal.score:.3f} alike. {_truncate(proposal.why)}",
        options={
            OPEN: Decisions(),
            "same": Decisions(same=((left, right),)),
            "different": Decisions(different=((left, right),)),
        },
    )


def _question_on_conflict(row: FieldRow, record: Identity, field: str) -> ReviewQuestion:
    values = [(row.winner, row.sources), *((loser.value, loser.sources) for loser in row.losers)]
    cut = f" {MAX_OPTIONS} of {len(values)} values are offered here." if len(values) > MAX_OPTIONS else ""
    options = {OPEN: Decisions()}
    for at, (value, sources) in enumerate(values[:MAX_OPTIONS], 1):
        label = f"{at}. {_truncate(value_text(value))} (from {_truncate(join_names(sources))})"
        options[label] = Decisions(fields=(Choice(record=record, field=field, value=value),))
    return ReviewQuestion(
        title=f"{_truncate(field)} of {_truncate(_identity_text(record))}",
        why=f"The rule {_truncate(row.rule)} keeps {_truncate(value_text(row.winner))} "
        f"(from {_truncate(join_names(row.sources))}).{cut}",
        options=options,
    )


def _identity_text(identity: Identity) -> str:
    return ", ".join(map(value_text, identity.values()))


def _truncate(text: str) -> str:
    return shorten(" ".join(strip_control_chars(text).split()), MAX_LABEL)


STATE = "NeedsReview"
"""The state name of a run that waits for a review, and of one that ended with open questions."""


KEY = "review-"
"""Prefix of the key of each pause for a review."""


CANCELLED = "The run was cancelled before people had decided."


RECORD_MISSING = (
    "This run was suspended for a review, and its stored state can't be found: its workers share no result storage. "
    "Set a default storage block (PREFECT_DEFAULT_RESULT_STORAGE_BLOCK) for all of them."
)


class Pending(Strict):
    """Note file beside the decisions file: a form in Prefect whose answer isn't stored yet."""

    api: str
    """The URL of Prefect's API."""
    flow_run: UUID
    """The run that has the form."""
    key: str
    """The key of the pause."""
    form: ReviewForm
    """The questions, and the decisions behind each option."""


class Collected(Strict):
    """Snapshot of a run at its suspension: all that it needs to continue without asking again."""

    started: datetime
    """When the run began."""
    plan: Plan
    """The plan from before anything was asked."""
    outcomes: tuple[Outcome, ...]
    """One outcome for each (brief, item) of the work."""
    asked: tuple[Outcome, ...] = ()
    """The outcomes of the integrator's own queries."""
    forms: dict[str, ReviewForm] = Field(default_factory=dict)
    """The forms of this run by the key of their pause."""


@dataclass(frozen=True)
class ResumedRun:
    """State of a run before its suspension for a review; empty if it was not suspended."""

    collected: Collected | None = None
    """The snapshot."""
    question_names: frozenset[str] = frozenset()
    """The names of the questions of its forms: this run does not ask again what was left open."""
    decisions: Decisions = Decisions()  # noqa: RUF009 -- frozen
    """The decisions of its forms that took effect."""
    overruled_titles: tuple[str, ...] = ()
    """The titles of questions that had another decision before a form of this run was answered."""

    def outcomes_of(self, work: Sequence[WorkItem]) -> tuple[Outcome, ...]:
        """Return the outcomes that belong to this work: the source of the items may have changed since."""
        if self.collected is None:
            return ()
        wanted = {(each.ref, each.fingerprint) for each in work}
        return tuple(each for each in self.collected.outcomes if (Ref.of(each), each.fingerprint) in wanted)

    def charge_budget(self, limits: Limits) -> None:
        """Charge the usage from before the suspension to the run's budget, within the limits of its calls."""
        if self.collected is not None:
            budget = gate_for_run(str(flow_run.get_id()), limits).budget
            for outcome in (*self.collected.outcomes, *self.collected.asked):
                for attempt in outcome.spent:
                    budget.charge(attempt.usage)


def can_suspend() -> bool:
    """Return whether the current run can release its worker.

    Prefect restarts a run only if it belongs to a deployment, and suspends no run within another one.
    """
    run = _flow_run()
    return run is not None and run.deployment_id is not None and run.parent_task_run_id is None


def suspend(asked: ReviewForm, file: DecisionsFile, collected: Collected, limits: Limits) -> NoReturn:
    """Suspend the run until its form is answered.

    Args:
        asked: The form.
        file: The decisions file.
        collected: The snapshot of the run.
        limits: The limits of its calls; `review_s` is how long Prefect waits for an answer, in seconds.

    Raises:
        Pause: Once the run is suspended: this process has to end.
        CancelledRun: If the run was cancelled, ended, or deleted in the meantime.
        TransientError: If the snapshot can't be stored.
    """
    run_id, key = UUID(flow_run.get_id()), f"{KEY}{uuid4()}"
    snapshot = collected.model_copy(update={"forms": {**collected.forms, key: asked}})
    # In this order a process that dies between two steps loses nothing.
    # 1. The snapshot.
    result_store_for_run().write(_record_key(run_id), snapshot.model_dump_json().encode())
    # 2. The note file.
    pending = Pending(api=PREFECT_API_URL.value() or "", flow_run=run_id, key=key, form=asked)
    note = file.path.parent / f".{file.path.name}.review-{run_id}-{asked.name}.json"
    write_atomically(note, [pending.model_dump_json().encode()])
    # 3. The state, and the form.
    try:
        pause_for_form(key, f"{len(asked.matters) + asked.more} to decide", _to_run_input(asked), limits)
    except CancelledRun:
        note.unlink(missing_ok=True)
        raise


def pause_for_form(key: str, subject: str, form: type[RunInput], limits: Limits) -> NoReturn:
    """Pause the run until a form in Prefect's UI is answered; it goes on in another process.

    Args:
        key: The key of the pause.
        subject: What the form is about, at the beginning of the state's message.
        form: The form.
        limits: The limits of the run's calls; `review_s` is how long Prefect waits for an answer, in seconds.

    Raises:
        Pause: Once the run is paused: this process has to end.
        CancelledRun: If the run was cancelled, ended, or deleted in the meantime.
    """
    run_id = UUID(flow_run.get_id())
    until = datetime.now(timezone.utc) + timedelta(seconds=limits.review_s)
    due = f"{until:%Y-%m-%d %H:%M} UTC"
    message = f"{subject}, until {due}: resume the run in Prefect's UI, which shows a form."
    waiting: State[Any] = Paused(
        name=STATE, message=message, timeout_seconds=math.ceil(limits.review_s), reschedule=True, pause_key=key
    )
    keys = form_keys(key)
    waiting.state_details.run_input_keyset = {str(name): value for name, value in keys.items()}
    get_run_logger().info("Suspended for a review: %s", message)
    try:
        with get_client(sync_client=True) as client:
            state = propose_state(client, waiting, run_id)
    except (Abort, ObjectNotFound):
        state = None
    if state is None or not state.is_paused():
        raise CancelledRun(CANCELLED)
    # Prefect deletes the inputs of a pause when the pause begins, so the form is stored afterwards.
    form.save(keys, run_id)
    forget_gate(str(run_id), limits)
    raise Pause(state=state)


def resume(file: DecisionsFile) -> ResumedRun:
    """Store the answers to the forms of the current run, if it was suspended for a review.

    Args:
        file: The decisions file.

    Returns:
        The state of the run before its suspension.

    Raises:
        DispatchError: If its snapshot can't be found.
        JobError: If the answers can't be stored; the next run tries again.
    """
    keys, run_id = _finished_pause_keys(), UUID(flow_run.get_id())
    if not keys:
        return ResumedRun()
    try:
        collected = Collected.model_validate_json(result_store_for_run().load(_record_key(run_id)) or b"")
    except ValidationError:
        collect_answers(file)
        raise DispatchError(RECORD_MISSING) from None
    passed, overruled, decided = set[str](), list[str](), Decisions()
    for key, form in collected.forms.items():
        if key in keys:
            answer = _read_answer(run_id, key) or {}  # Prefect does not store an empty answer
            passed |= {matter.name for matter in form.matters}
            chosen = form.decisions_from(answer)
            rejected = file.add(chosen)
            overruled += form.titles(answer, rejected)
            decided = decided.combine(chosen.without(rejected, file.normalize), normalize=file.normalize)
    for note, pending in _read_notes(file):
        if pending.flow_run == run_id:
            note.unlink(missing_ok=True)
    return ResumedRun(collected, frozenset(passed), decided, tuple(overruled))


def remove_record() -> None:
    """Remove the snapshot of the current run, if it was suspended."""
    if _finished_pause_keys():
        result_store_for_run().remove(_record_key(UUID(flow_run.get_id())))


def collect_answers(file: DecisionsFile) -> None:
    """Store the answers to forms of other runs that could not store them.

    Args:
        file: The decisions file.

    Raises:
        JobError: If they can't be stored.
    """
    for note, pending in _read_notes(file):
        if pending.api != (PREFECT_API_URL.value() or ""):
            continue
        answer = _read_answer(pending.flow_run, pending.key)
        if answer is not None:
            for title in pending.form.titles(answer, file.add(pending.form.decisions_from(answer))):
                get_run_logger().warning(
                    "In a review of another run it was decided otherwise, and later, so the earlier decision stays: %s",
                    title,
                )
        elif _is_over(pending.flow_run):
            result_store_for_run().remove(_record_key(pending.flow_run))
        else:
            continue
        note.unlink(missing_ok=True)


def _flow_run() -> FlowRun | None:
    context = FlowRunContext.get()
    return context.flow_run if context else None


def _finished_pause_keys() -> set[str]:
    """Return the keys of the finished pauses for a review.

    Prefect keeps the keys of the pauses that a run has resumed from, and drops them when the run is retried.
    """
    run = _flow_run()
    keys = (run.empirical_policy.pause_keys or set()) if run else set[str]()
    return {key for key in keys if key.startswith(KEY)}


def _read_answer(run_id: UUID, key: str) -> dict[str, Any] | None:
    """Return the submitted answer to a form, or None."""
    answer = form_answer(run_id, key)
    return cast("dict[str, Any]", answer) if isinstance(answer, dict) else None


def _is_over(run_id: UUID) -> bool:
    """Return whether a run is final or deleted, so that its form can't be answered any more."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run_id).state
    except ObjectNotFound:
        return True
    return state is None or state.is_final()


def _to_run_input(asked: ReviewForm) -> type[RunInput]:
    """Return the form as Prefect's input model: the options are an enumeration that its server validates, too."""
    fields: dict[str, Any] = {
        matter.name: (
            Annotated[str, Field(json_schema_extra={"enum": list(matter.options), "position": at})],
            Field(default=OPEN, title=f"{at}. {matter.title}", description=matter.why),
        )
        for at, matter in enumerate(asked.matters, 1)
    }
    model = create_model("Decisions", __base__=RunInput, **fields)
    return model.with_initial_data(description=asked.description())


def _read_notes(file: DecisionsFile) -> Iterator[tuple[Path, Pending]]:
    """Yield the note files beside a decisions file; without other files, and those that another run has removed."""
    for note in sorted(file.path.parent.glob(f".{glob.escape(file.path.name)}.review-*.json")):
        with suppress(ValidationError, FileNotFoundError):
            yield note, Pending.model_validate_json(note.read_bytes())


def _record_key(run_id: UUID) -> str:
    return f"{PREFIX}review-{run_id}"


DECIDED = "decided"
"""The rule of a field whose value a person chose."""


def decisions_file(integrator: AnyMerger | None, folder: Path) -> DecisionsFile | None:
    """Return the decisions file of an integrator, or None if it has none."""
    if not isinstance(integrator, DecisionIntegrator) or not integrator.aliases:
        return None
    return DecisionsFile(folder / integrator.aliases, BaseIntegrator.of(integrator).canonical_identity)


def require_deciding(integrator: AnyMerger | None) -> None:
    """Check that an integrator can apply the decisions of a review.

    Raises:
        JobError: If it can't, or names no decisions file for later runs.
    """
    if not isinstance(integrator, DecisionIntegrator):
        name = type(integrator).__name__ if integrator else "Collate"
        raise JobError(f"review: {name} leaves nothing to decide; merge by merge_records, or without review.")
    if not integrator.aliases:
        raise JobError(
            "review: decisions need a file that later runs find them in; name one, such as "
            "integrator.aliases: decisions.yaml."
        )


def require_review(integrator: AnyMerger | None, folder: Path) -> DecisionsFile:
    """Return the decisions file, after checking all requirements of a review.

    Raises:
        JobError: If the integrator can't apply decisions, or its file can't be written.
    """
    require_deciding(integrator)
    file = cast("DecisionsFile", decisions_file(integrator, folder))
    ensure_folder(file.path.parent)
    return file


def review(job: PreparedJob, report: Report, file: DecisionsFile, collected: Collected, resumed: ResumedRun) -> Report:
    """Return the report if no question is open; else suspend the run, or add the open questions to the report.

    Args:
        job: The job.
        report: The report of the run.
        file: The decisions file.
        collected: The snapshot of the run, for its resumption.
        resumed: The state of the run before an earlier suspension.

    Raises:
        Pause: If the run was suspended until people have decided.
        CancelledRun: If the run was cancelled in the meantime.
    """
    # 1. Report what was decided in earlier forms of this run.
    report = report.model_copy(update={"decided": resumed.decisions})
    for title in resumed.overruled_titles:
        report = add_shortfall(report, f"Decided otherwise before this review was answered, and kept: {title}.")
    if report.status == "failed":
        return report
    # 2. Ask what is still open.
    questions = build_form(report, _field_locator(job.integrator, report, file.normalize), resumed.question_names)
    if questions is None:
        return report
    if can_suspend():
        suspend(questions, file, collected, job.limits)
    return _report_open_questions(report, questions, file)


def is_undecided(report: Report) -> bool:
    """Return whether a run ended before people had decided: with open questions of its review, or after its pilot."""
    pilot = report.run.get("pilot")
    return "review" in report.run or (isinstance(pilot, dict) and pilot.get("decision") == "open")


def _report_open_questions(report: Report, asked: ReviewForm, file: DecisionsFile) -> Report:
    """Return the report of a run that can't be suspended, with its open questions and the file for the decisions."""
    count = len(asked.matters) + asked.more
    report = add_shortfall(
        report,
        f"Not decided: {count} open among proposals and conflicts. Decide in {file.path.name!r}, for which "
        f"{TO_DECIDE} has the lines; the next run follows it.",
    )
    more = f" {asked.more} more are open, and come after these." if asked.more else ""
    text = (
        f"Add what is right to the decisions file {escape_paragraph(file.path.name)}, and run the job again. A pair "
        "that is two goes under `different`; of a field's values take "
        f"one.{more}\n\n{fence_text(asked.lines(), 'yaml')}\n"
    )
    document = Document(name=TO_DECIDE, title="Lines for the decisions file", text=text)
    run: dict[str, JsonValue] = {**report.run, "review": {"open": count, "decisions": str(file.path)}}
    return report.model_copy(update={"documents": (*report.documents, document), "run": run})


def _field_locator(integrator: AnyMerger, report: Report, norm: IdentityNormalizer) -> FieldLocator:
    """Return a function that locates the record and the field of a row, if it is open and can be decided on."""
    fields = cast("DecisionIntegrator", integrator).decisions.fields
    decided = {(norm(each.record), each.field): each.value for each in fields}
    # Records of one identity that were kept apart are named by the fields that are compared, too; without these, a
    # decision would be about all of them.
    matching: Matching | None = getattr(integrator, "match", None)
    compared = matching.fields if matching else ()
    named: Counter[Hashable] = Counter()
    if isinstance(integrator, RecordIntegrator):
        records = cast("Sequence[JsonValue]", get_at(report.value, [integrator.entries]))
        named.update(norm(_identity_of(record, integrator.identity)) for record in records)

    def locate(row: FieldRow) -> tuple[Identity, str] | None:
        if not isinstance(integrator, RecordIntegrator) or row.rule == DECIDED or ":" in row.rule:
            return None  # decided already, or computed by a function from several values
        path, names = pointer_tokens(row.path)[:2], pointer_tokens(row.path)[2:]
        if path[:1] != [integrator.entries] or not names or any("." in name for name in names):
            return None
        record, _ = resolve_pointer(report.value, pointer(*path))
        if get_at(record, names) != row.winner:
            return None  # an element of a list, for which a decisions file has no syntax
        identity = _identity_of(record, integrator.identity)
        is_unique = named[norm(identity)] <= 1
        if any(is_empty_value(part) for part in identity.values()) or not (is_unique or compared):
            return None
        if not is_unique:
            identity |= _identity_of(record, compared)
        field = ".".join(names)
        if field in identity:
            return None
        return None if decided.get((norm(identity), field), ...) == row.winner else (identity, field)

    return locate


def _identity_of(record: JsonValue, fields: Sequence[str]) -> Identity:
    return {name: get_at(record, name.split(".")) for name in fields}
