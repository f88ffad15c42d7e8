"""Process of a job that was started through the MCP server: it plans the job, or runs it apart from its starter.

Run `python -m prefect_dispatch.cli.job_process plan|run FOLDER …`; `agents/job_store.py` names the files in the folder.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_dispatch.agents.consent import INTEGRATOR_FILES, find_refusals, is_priced, refuse_size
from prefect_dispatch.agents.job_plan import ANSWER, MOST_S, REQUEST, ModePrice, Planned, PlanRequest, PlanResult
from prefect_dispatch.agents.job_store import CANCELLED, Job, JobRecord, Run, now, sentence_of
from prefect_dispatch.cli.commands import INTERRUPTED, ExitGuard, interruptible, run_ready
from prefect_dispatch.errors import DispatchError, JobError
from prefect_dispatch.flows.job_file import parse_job, validate_job
from prefect_dispatch.flows.prepare import plan_prepared
from prefect_dispatch.flows.runtime.job_document import read_document
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.reporting.output_folder import parse_output
from prefect_dispatch.reporting.progress import Progress, on_budget, on_outcomes, on_report, progress_listener
from prefect_dispatch.security.escaping import count_noun, shorten, strip_control_chars
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.serialization.durable_files import write_atomically
from prefect_dispatch.serialization.json_text import canonical_json, digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import JsonValue

    from prefect_dispatch.agents.policy import Refusal
    from prefect_dispatch.calls.budget import Budget
    from prefect_dispatch.flows.job_file import JobFile
    from prefect_dispatch.flows.runtime.job_document import JobDocument
    from prefect_dispatch.flows.runtime.prepared_job import JobSpec, PreparedJob
    from prefect_dispatch.models.report import Report
POLL_S = 0.5
"""Seconds between two looks whether the job is to be cancelled."""
PROGRESS_EVERY_S = 0.3
"""Minimum seconds between two writes of the progress; the last one is always written."""
FIRST_ITEMS = 10
"""Keys of items that a plan names."""
MAX_NOTES, MAX_NOTE = 10, 300
"""Warnings of a plan, and characters of each."""
MAX_CHANGED = 5
"""Changed parts that a refusal names."""
VERSION = 1
"""Version of what a job's fingerprint covers."""


def plan(folder: Path) -> None:
    """Plan a job, and write the answer into the folder of the request."""
    request = PlanRequest.model_validate_json((folder / REQUEST).read_bytes())
    try:
        planned = _plan(folder, request)
    except (DispatchError, OSError) as error:
        message = _short(sentence_of(error), 4 * MAX_NOTE)
        planned = Planned(result=PlanResult(state="unusable", message=message, next=_CORRECT), record=None)
    write_atomically(folder / ANSWER, [planned.model_dump_json().encode()])


_CORRECT = "Correct the job, and plan it again."
_REFUSED = (
    "The user has to allow the refused parts where this server is configured, or the job has to do without them; say "
    "so, and don't work around it."
)
_ASK = "start(fingerprint) asks the user to allow these parts, where the client can show a form."


def _plan(folder: Path, request: PlanRequest) -> Planned:
    policy = request.policy
    # 1. The job as a document, and where its paths start.
    document = _read_document(request.file, request.document, folder)
    place = Path(request.file).parent if request.file else Path(policy.root)
    job = parse_job(document)
    # 2. What is not allowed; with that, nothing of it is read.
    refused = find_refusals(job, place, policy)
    if not all(each.can_ask for each in refused):
        return Planned(result=_refuse(refused, job), record=None)
    # 3. The job with its items, within a budget.
    spec = job.spec(place)
    priced = is_priced(spec)
    own = spec.limits.budget_usd
    budget = min(policy.max_usd, policy.max_usd if own is None else own) if priced else None
    job = job if budget is None else with_budget(job, budget)
    ready = validate_job(job, place)
    refused += refuse_size(len(ready.work), policy)
    figures = plan_prepared(ready, job.spec(place))
    contents = find_contents(document.data, ready, spec)
    record = JobRecord(
        fingerprint=fingerprint(document.data, place, ready, contents),
        name=job.deployment_name,
        file=request.file,
        folder=str(place),
        document=document.data,
        contents=contents,
        pairs=len(ready.work),
        budget_usd=own,
        is_priced=priced,
        planned=now(),
    )
    tokens = None if figures.prompt_tokens is None else figures.prompt_tokens + (figures.completion_tokens or 0)
    notes = [*filter(None, [figures.integrator]), *figures.notes]
    if not priced:
        notes.insert(0, "What the Python function spends isn't bounded by a budget.")
    if getattr(job, "out", None):
        notes.append("`out` is not used: the report is in the job's own folder.")
    result = PlanResult(
        state="refused" if refused else "ready",
        message="Parts of it are not allowed." if refused else "Nothing was asked yet.",
        fingerprint=record.fingerprint,
        refused=tuple(refused),
        name=record.name,
        briefs=figures.briefs,
        items=figures.items,
        first_items=tuple(_short(item.key, MAX_NOTE) for item in ready.items[:FIRST_ITEMS]),
        pairs=record.pairs,
        stored=figures.stored,
        to_ask=figures.to_ask,
        tokens=tokens,
        cost_usd=figures.cost_usd,
        budget_usd=budget,
        seconds=figures.seconds_in_parallel,
        modes=tuple(ModePrice.model_validate(dict(each)) for each in figures.modes),
        advice=figures.advice,
        notes=tuple(_short(note, MAX_NOTE) for note in notes[:MAX_NOTES]),
        next=f"{_REFUSED} {_ASK}" if refused else "start(fingerprint)",
    )
    return Planned(result=result, record=record)


def _refuse(refused: list[Refusal], job: JobFile) -> PlanResult:
    return PlanResult(
        state="refused",
        message=f"{count_noun(len(refused), 'part')} not allowed. Nothing of the job was read or run.",
        refused=tuple(
            each.model_copy(update={"part": _short(each.part, MAX_NOTE), "reason": _short(each.reason, MAX_NOTE)})
            for each in refused[:MAX_NOTES]
        ),
        name=job.deployment_name,
        next=_REFUSED,
    )


def _short(text: str, length: int) -> str:
    return strip_control_chars(shorten(text, length))


def _read_document(file: str, document: dict[str, Any] | None, folder: Path) -> JobDocument:
    """Return the document of a job, from its file or as passed.

    Args:
        file: The job file.
        document: The document, if there is no file.
        folder: A folder for the document as a file, so that messages name its lines.
    """
    if document is None:
        return read_document(Path(file))
    written = folder / "job.json"
    write_atomically(written, [canonical_json(document).encode()])
    return read_document(written)


def with_budget(job: JobFile, usd: float) -> JobFile:
    """Return a job whose run may spend so much, whichever form the job has."""
    if isinstance(limits := getattr(job, "limits", None), Limits):
        return job.model_copy(update={"limits": limits.model_copy(update={"budget_usd": usd})})
    return job.model_copy(update={"budget_usd": usd} if "budget_usd" in type(job).model_fields else {})


def find_contents(document: dict[str, Any], ready: PreparedJob, spec: JobSpec) -> dict[str, str]:
    """Return a digest of each part of a job that a file holds: the job, its items, the files of its integrator."""
    named = (str(file) for name in INTEGRATOR_FILES if (file := getattr(spec.integrator, name, None)))
    return {
        "the job": digest(document),
        **{f"the item {item.key!r}": digest(item.value) for item in ready.items},
        **{f"the file {file!r}": _digest_file(spec.place / file) for file in named},
    }


def _digest_file(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # a file of decisions need not exist yet
        return ""


def fingerprint(document: dict[str, Any], place: Path, ready: PreparedJob, contents: dict[str, str]) -> str:
    """Return the identity of a job: its document and folder, and everything that can change an answer."""
    work: JsonValue = [[each.brief.name, each.item.key, each.fingerprint] for each in ready.work]
    return digest(
        {"version": VERSION, "document": document, "folder": str(place), "work": work, "contents": {**contents}}
    )


def require_unchanged(record: JobRecord, found: str, contents: dict[str, str]) -> None:
    """Check that a job is what was planned.

    Args:
        record: The plan.
        found: The fingerprint of the job as it is now.
        contents: The digest of each of its parts.

    Raises:
        JobError: If it isn't; the message names what changed.
    """
    if found == record.fingerprint:
        return
    before = record.contents
    changed = [f"{name} changed" for name, content in contents.items() if before.get(name, content) != content]
    changed += [f"{name} is new" for name in contents if name not in before]
    changed += [f"{name} is gone" for name in before if name not in contents]
    named = "; ".join(changed[:MAX_CHANGED]) or "code, a program or a commit that it uses changed"
    more = f"; and {len(changed) - MAX_CHANGED} more" if len(changed) > MAX_CHANGED else ""
    raise JobError(f"The job is not what was planned: {named}{more}. Nothing was asked; plan it again.")


def run(folder: Path, end_process: Callable[[int], object] = os._exit) -> int:
    """Run a job.

    Args:
        folder: The folder of the run.
        end_process: Ends the process by force if it doesn't exit by itself, with the exit status.

    Returns:
        The exit status, as of `prefect-dispatch run`.
    """
    current = Run(folder)
    budgets: list[Budget] = []

    def leave(code: int) -> None:
        current.record_end("cancelled", CANCELLED, _cost(budgets, None))
        end_process(code)

    guard = ExitGuard(leave)
    watch = threading.Thread(target=_watch_cancellation, args=(current,), name="prefect-dispatch-cancel", daemon=True)
    code = 1
    try:
        # A cancellation ends it even if Python drops the interrupt, as in a finalizer during an import.
        with interruptible(guard, 0.0, INTERRUPTED):
            watch.start()
            code = _run(current, budgets, guard)
    except JobError as error:
        current.record_end("refused", sentence_of(error), _cost(budgets, None))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- the user's code may raise anything; the log has the rest
        traceback.print_exc()
        current.record_end("failed", f"It ended by an error: {safe_message(error)}", _cost(budgets, None))
    if code == INTERRUPTED:
        current.record_end("cancelled", CANCELLED, _cost(budgets, None))
    current.record_end("failed", f"It failed. {current.read_log(MAX_NOTE)}".strip(), _cost(budgets, None))
    guard.finish(code)
    return code


def _run(current: Run, budgets: list[Budget], guard: ExitGuard) -> int:
    record, policy = Job(current.folder.parents[1]).record, current.record.policy
    place, budget = Path(record.folder), current.record.budget_usd
    # 1. The job must be what was planned: its file, and below, its items.
    if record.file:
        document = _read_document(record.file, None, current.folder)
        if digest(document.data) != record.contents["the job"]:
            raise JobError("The job is not what was planned: the job file changed. Nothing was asked; plan it again.")
    job = parse_job(_read_document("", record.document, current.folder))
    # 2. It must be allowed, also where a link leads elsewhere by now.
    if refused := find_refusals(job, place, policy) + refuse_size(record.pairs, policy):
        raise JobError(f"Parts of the job are not allowed: {' '.join(map(str, refused))}")
    if budget is not None:
        job = with_budget(job, budget)
    if current.record.number > 1:  # what was asked again once isn't asked again by a redrive
        job = job.model_copy(update={"refresh": False})
    ready = validate_job(job, place)
    contents = find_contents(record.document, ready, job.spec(place))
    require_unchanged(record, fingerprint(record.document, place, ready, contents), contents)
    current.record_check()
    # 3. Run it; what is read below is the job as checked above.
    if budget and _has_batches(ready):  # a batch is reserved at once, beside the journal
        current.record_spending_limit(budget)

    def on_start(spending: Budget) -> None:
        budgets.append(spending)
        if not _has_batches(ready):
            spending.journal_to(current.record_spending)

    def on_end(report: Report) -> None:
        current.record_end(report.status, report.message, _cost(budgets, report))

    on_budget.set(on_start)
    on_outcomes.set(current.record_outcomes)
    on_report.set(on_end)
    progress_listener.set(_progress_writer(current))
    print(f"{len(ready.work)} to answer; starting Prefect …", flush=True)
    return run_ready(job, place, ready, parse_output(str(current.folder.parents[1] / "report")), guard)


def _has_batches(ready: PreparedJob) -> bool:
    return getattr(ready.executor, "mode", "live") == "batch"


def _cost(budgets: list[Budget], report: Report | None) -> float | None:
    """Return what a run has spent at most, in US dollars; None if that is unknown.

    A call of unknown usage counts with its reservation. Without a budget (a Python function), what it reports counts.
    """
    if not budgets:
        return 0.0
    spent = budgets[0].spent
    if spent.cost_usd is None and report is not None:
        return report.usage.cost_usd
    return spent.cost_usd


def _progress_writer(current: Run) -> Callable[[Progress], None]:
    """Return a listener that stores the progress, at most every `PROGRESS_EVERY_S`."""
    written = 0.0

    def on_progress(progress: Progress) -> None:
        nonlocal written
        if progress.done == progress.total or time.monotonic() - written >= PROGRESS_EVERY_S:
            written = time.monotonic()
            current.record_progress(progress)

    return on_progress


def _watch_cancellation(current: Run) -> None:
    """Interrupt this process, as Ctrl-C does, once the job is to be cancelled."""
    while current.end is None:
        if current.is_cancel_requested:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return
        time.sleep(POLL_S)


def main(arguments: list[str]) -> int:
    """Run the program.

    Args:
        arguments: `plan` or `run`, the folder of the request or of the run, and the handle of its lock, which programs
            that this process starts don't inherit.
    """
    # Prefect's log lines are stored with the run; as for the command line.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    mode, folder, handle = arguments
    os.set_inheritable(int(handle), False)  # noqa: FBT003 -- of the standard library
    if mode == "run":  # pragma: no cover -- in a process of its own, which ends by force
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a server in the background ignores it
        return run(Path(folder))
    signal.alarm(MOST_S)
    try:
        plan(Path(folder))
    finally:
        signal.alarm(0)
    return 0


if __name__ == "__main__":  # pragma: no cover -- the same
    sys.exit(main(sys.argv[1:]))
