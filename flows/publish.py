"""Publishing of a run: progress, artifacts, events, and the files of its report."""

from __future__ import annotations

import json
import platform
import threading
import time
from collections import Counter
from contextlib import suppress
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import BaseModel, JsonValue, ValidationError

from prefect_dispatch.executors.base import BaseExecutor
from prefect_dispatch.executors.live_view import LiveView
from prefect_dispatch.flows.runtime.flow_class import INTERRUPTIONS
from prefect_dispatch.models.ledger import Document, Table
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.reporting.html.document import GENERATOR
from prefect_dispatch.reporting.html.page import render_page
from prefect_dispatch.reporting.kept_pages import KEPT_DAYS, keep_page, load_address
from prefect_dispatch.reporting.markdown import markdown, outcome_rows
from prefect_dispatch.reporting.progress import (
    Progress,
    activity_table,
    estimate_seconds_left,
    on_report,
    progress_listener,
)
from prefect_dispatch.reporting.table_files import csv_files, render_table
from prefect_dispatch.security.escaping import escape_paragraph, fence_text, strip_control_chars, to_safe_csv
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.serialization.json_text import iter_json_chunks
from prefect_dispatch.settings import settings
from prefect_dispatch.tasks.stop_conditions import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from typing_extensions import Self

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.executors.live_view import Activity
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.report import Report
    from prefect_dispatch.reporting.output_folder import Output
    from prefect_dispatch.tasks.plan import Plan


UPDATE_EVERY_S = 1.0
"""Minimum seconds between two updates, each of which costs a request to the server; the last one is always sent."""
LOOK_EVERY_S = 5.0
"""Seconds between two looks at what the programs of a run are doing."""
LOOK_S = 1.0
"""Time limit in seconds of a look that is under way when the run ends."""
LAST_S = 5.0
"""Time limit of the last update in seconds; then it is dropped."""
CANCELLED_S = 1.5
"""Time limit in seconds of the last update of an interrupted run, whose process ends soon."""
CANCELLED_REPORT_S = 3.0
"""Time limit in seconds of the report of an interrupted run: its state has to reach Prefect before the process ends."""
MAX_CANCELLED = 10_000
"""Most outcomes of an interrupted run that are published; a larger report takes longer than the process has."""
PUBLISH_S = 60.0
"""Time limit of the artifacts of a report in seconds; then the run ends without them."""


def artifact_key(briefs: Sequence[Brief], kind: str) -> str:
    """Return the key of an artifact, which is stable across the runs of a job.

    Example:
        >>> from prefect_dispatch import Brief
        >>> artifact_key([Brief(name="terms", instructions="Read the text.")], "report")
        'terms-report'
    """
    more = f"-and-{len(briefs) - 1}-more" if len(briefs) > 1 else ""
    return f"{briefs[0].name}{more}-{kind}"


class LiveProgress:
    """Reports the progress of a run, as an artifact and to the listener of this process.

    The artifact is updated by a thread of its own, which sends the latest progress only: a server that is slow, hangs
    or is gone delays no work. Updates that are not accepted when the run ends are dropped. If the work is done by
    programs, another thread looks regularly at what each of them is doing.
    """

    def __init__(self, briefs: Sequence[Brief], expected: Plan, executor: Executor | None = None) -> None:
        """Prepare the artifact.

        Args:
            briefs: The briefs of the job.
            expected: The plan; the number of expected calls determines the time left.
            executor: The executor of the work. None: none that runs programs.
        """
        self._expected_calls = expected.work - expected.stored - expected.shared
        self._key, self._total = artifact_key(briefs, "progress"), expected.work
        self._runs_programs = executor is not None and BaseExecutor.of(executor).runs_programs
        self._began: float | None = None
        self._updated = time.monotonic()
        self._shown = 0
        self._latest: Progress | None = None
        self._seen: Progress | None = None
        self._working: tuple[Activity, ...] = ()
        self._lock = threading.Lock()
        """Held while progress is passed on, so that the listener never gets an older one after a newer one."""
        self._changed, self._ended, self._closed = threading.Event(), threading.Event(), False
        self._warned: set[str] = set()
        self._end = ""

    def __call__(self, progress: Progress) -> None:
        """Report progress; calls that are more frequent than the update interval are passed to the listener only."""
        with self._lock:
            now, self._seen = time.monotonic(), progress
            self._began = now if self._began is None else self._began
            ended = progress.done == progress.total or (self._shown and not progress.in_flight)
            if ended:
                self._working = ()
            self._report(progress, is_due=bool(ended) or now - self._updated >= UPDATE_EVERY_S)

    def _report(self, progress: Progress, *, is_due: bool) -> None:
        """Pass progress to the listener, and to the artifact if an update is due."""
        now, notify = time.monotonic(), progress_listener.get()
        if not is_due and not notify:
            return
        eta_s = (
            None
            if progress.note or self._began is None
            else estimate_seconds_left(progress, self._expected_calls, now - self._began)
        )
        progress = progress.model_copy(update={"seconds_left": eta_s, "working": self._working})
        if is_due:
            self._updated, self._shown = now, progress.in_flight
            self._latest = progress
            self._changed.set()
        if notify:
            notify(progress)

    def __enter__(self) -> Self:
        """Start the threads."""
        self._thread = start_thread(self._update_artifact, "prefect-dispatch-progress")
        self._looking = (
            start_thread(self._watch_programs, "prefect-dispatch-live-view") if self._runs_programs else None
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Send the last progress, with a time limit; of a run that did not end by itself, it names the reason."""
        self._ended.set()
        if self._looking:
            self._looking.join(LOOK_S)
        with suppress(Exception):  # a display must not fail the run
            self._show_working(())
        if kind is not None and issubclass(kind, (Exception, *INTERRUPTIONS)):  # a run that is suspended goes on
            self._end = "cancelled: " if issubclass(kind, INTERRUPTIONS) else "ended by an error: "
            ended = {"in_flight": 0, "seconds_left": None, "note": ""}
            self._latest = (self._seen or Progress(total=self._total)).model_copy(update=ended)
        self._closed = True
        self._changed.set()
        self._thread.join(LAST_S if kind is None else CANCELLED_S)

    def _watch_programs(self) -> None:
        """Look at what programs are doing until the run ends; a look that fails is left out."""
        view = LiveView(str(flow_run.get_id()))
        while not self._ended.wait(LOOK_EVERY_S):
            try:
                self._show_working(view.look())
            except Exception as error:  # noqa: BLE001, PERF203 -- a display must not fail the run
                self._warn(error)

    def _show_working(self, working: tuple[Activity, ...]) -> None:
        """Report what programs are doing, unless nothing has changed, or the run has ended meanwhile."""
        with self._lock:
            if working != self._working and not (working and self._ended.is_set()):
                self._working = working
                self._report(self._seen or Progress(total=self._total), is_due=True)

    def _update_artifact(self) -> None:
        """Create the artifact, and update it until the run ends; a request that fails is left out."""
        artifact, is_closed = self._create_artifact(), False
        while not is_closed:
            self._changed.wait()
            self._changed.clear()
            is_closed = self._closed  # read before the progress, so that the last progress is not missed
            progress, self._latest = self._latest, None
            if progress is None:
                continue
            artifact = artifact or self._create_artifact()
            if artifact is None:
                continue
            try:
                update_progress_artifact(
                    artifact_id=artifact,
                    progress=100.0 * progress.done / progress.total if progress.total else 100.0,
                    description=_describe(progress, self._end),
                )
            except Exception as error:  # noqa: BLE001 -- progress display must not fail the run
                self._warn(error)

    def _create_artifact(self) -> UUID | None:
        """Create the artifact; return its id, or None if it is not accepted."""
        try:
            created = create_progress_artifact(progress=0.0, key=self._key, description=f"0 of {self._total} done")
        except Exception as error:  # noqa: BLE001 -- progress display must not fail the run
            self._warn(error)
            return None
        return UUID(str(created))

    def _warn(self, error: Exception) -> None:
        """Log why progress can't be shown, each reason once."""
        message = safe_message(error)
        if not self._closed and message not in self._warned:
            self._warned.add(message)
            get_run_logger().warning("Progress can't be shown: %s", message)


def _describe(progress: Progress, end: str) -> str:
    """Return the description of the progress artifact, in Markdown.

    Args:
        progress: The progress.
        end: How the run ended, if it did not end by itself.
    """
    text = f"{end}{progress.done} of {progress.total} done, {progress}"
    return "\n\n".join(filter(None, (text, activity_table(progress.working))))


def create_artifacts_in_time(
    report: Report,
    briefs: Sequence[Brief],
    page: PagePlaces | None = None,
    *,
    is_last: bool = True,
) -> None:
    """Create the artifacts of a report within a time limit; see `create_artifacts`. On failure log the reason.

    Args:
        report: The report.
        briefs: The briefs of the job.
        page: Where the report's HTML page is.
        is_last: Whether no further attempt of the run follows.
    """
    if is_last and (notify := on_report.get()):
        notify(report)
    if problem := run_in_time(lambda: create_artifacts(report, briefs, page), PUBLISH_S):
        get_run_logger().warning("The report can't be shown in Prefect: %s", problem)


def run_in_time(step: Callable[[], object], limit_s: float) -> str:
    """Run a step that the run can do without in a thread; return why it has not succeeded, or an empty text.

    Args:
        step: The step; after the time limit it goes on until the process ends.
        limit_s: The time limit in seconds.
    """
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            step()
        except (Exception, *INTERRUPTIONS) as error:  # noqa: BLE001 -- reported to the caller
            errors.append(error)

    thread = start_thread(attempt, "prefect-dispatch-publish")
    thread.join(limit_s)
    if errors:
        return safe_message(errors[0])
    return f"it was not finished within {limit_s:g} s." if thread.is_alive() else ""


def create_artifacts(report: Report, briefs: Sequence[Brief], page: PagePlaces | None = None) -> None:
    """Create the artifacts of a report: the report itself, the table of outcomes, and each document in Markdown.

    Args:
        report: The report.
        briefs: The briefs of the job.
        page: Where the report's HTML page is.
    """
    text = markdown(report)
    if page is not None and (where := page_location(page)):
        head, _, rest = text.partition("\n\n")
        text = f"{head}\n\n{where}\n\n{rest}"
    create_markdown_artifact(
        key=artifact_key(briefs, "report"), markdown=text, description=escape_paragraph(report.message[:1000])
    )
    create_table_artifact(
        key=artifact_key(briefs, "outcomes"), table=outcome_rows(report), description="One row for each (brief, item)"
    )
    for document in report.documents:
        name, _, kind = document.name.rpartition(".")
        if kind == "md":
            key = artifact_key(briefs, name.replace(".", "-"))
            create_markdown_artifact(key=key, markdown=document.text, description=document.title)


def page_location(page: PagePlaces) -> str:
    """Return a link to an HTML page, if a web server or the page server has it, and where it is stored, in Markdown.

    Browsers follow no link from Prefect's UI to a file.
    """
    scheme, _, stored_path = page.file.rpartition("://")
    if page.file and (base := settings().reports_url):
        path = f"/{stored_path}" if scheme else Path(page.file).absolute().as_posix()
        return f"[Open the report page]({base.rstrip('/')}{quote(path)})"
    machine = escape_paragraph(platform.node() or "of the run")
    stored = f"\n\n{fence_text(page.file, 'text')}" if page.file else ""
    if page.link:
        where = (
            f"[Open the report page]({page.link}). It opens on the machine {machine} while `prefect-dispatch serve` or "
            f"`prefect-dispatch reports` runs there, and is kept for {KEPT_DAYS} days."
        )
        return f"{where} The page is also stored there:{stored}" if stored else where
    if scheme:
        return f"The whole report as a page is stored at this address:{stored}"
    return stored and f"The whole report as a page is stored on the machine {machine}; open it there:{stored}"


PREFIX = "prefect-dispatch.run."


MAX_NAMES = 10
"""Maximum number of names that an event lists."""
MAX_TEXT = 200
"""Maximum characters of a text in an event."""


class RunEvent(NamedTuple):
    """Event of a run."""

    event: str
    """The name of the event."""
    payload: dict[str, JsonValue]
    """The payload."""


def emit_events(report: Report, briefs: Sequence[Brief]) -> None:
    """Emit the events of a run that has ended."""
    resource = {
        "prefect.resource.id": f"prefect.flow-run.{flow_run.get_id()}",
        "prefect.resource.name": str(flow_run.get_name()),
    }
    for each in build_events(report, briefs):
        emit_event(each.event, resource=resource, payload=each.payload)


def build_events(report: Report, briefs: Sequence[Brief]) -> Iterator[RunEvent]:
    """Yield the events of a run: gaps, a reached budget, changes, unexpected models, a failed audit.

    Example:
        >>> from prefect_dispatch.models.ledger import Ref
        >>> from prefect_dispatch.models.report import Changes
        >>> from prefect_dispatch.models.report import Report
        >>> changes = Changes(earlier="found", new=(Ref(brief="terms", item="mit.txt"),))
        >>> report = Report(status="complete", message="1 of 1 answered.", changes=changes)
        >>> [(each.event, each.payload["new"], each.payload["first"]) for each in build_events(report, [])]
        [('prefect-dispatch.run.changed', 1, ['new: terms/mit.txt'])]
    """

    def event(name: str, own: Mapping[str, JsonValue], first: Iterable[str]) -> RunEvent:
        payload: dict[str, JsonValue] = {
            "briefs": [brief.name for brief in briefs[:MAX_NAMES]],
            "status": report.status,
            "message": report.message,
            "items": len(report.ledger),
            **own,
            "first": [*islice(first, MAX_NAMES)],
        }
        return RunEvent(PREFIX + name, {key: _truncate_texts(value) for key, value in payload.items()})

    if report.gaps:
        kinds = Counter(gap.error.kind for gap in report.gaps)
        gaps = (f"{gap.brief}/{gap.item} ({gap.error.kind})" for gap in report.gaps)
        yield event("gaps", {"gaps": len(report.gaps), "kinds": dict(sorted(kinds.items()))}, gaps)
    if stopped := [each for each in (*report.outcomes, *report.asked) if each.error and each.error.kind == "budget"]:
        spent = {name: getattr(report.usage, name) for name in ("cost_usd", "tokens", "requests")}
        names = (f"{each.brief}/{each.item}" for each in stopped)
        yield event("budget-reached", {"skipped": len(stopped), **spent}, names)
    lists = report.changes.lists
    if lists or report.changes.merged:
        counts = dict.fromkeys(("new", "gone", "changed", "gaps_closed", "gaps_opened"), 0)
        counts |= {name.replace(" ", "_"): len(refs) for name, refs in lists.items()}
        names = (f"{name}: {ref}" for name, refs in lists.items() for ref in refs)
        yield event("changed", {**counts, "changes": str(report.changes)}, names)
    if other := [each for each in report.models if not each.expected]:
        answers = sum(each.answers for each in other)
        names = (f"{each.asked} answered as {each.served}" for each in other)
        yield event("other-model", {"answers": answers, "models": len(other)}, names)
    if report.violations:
        yield event("failed-audit", {"violations": len(report.violations)}, map(str, report.violations))


def _truncate_texts(value: JsonValue) -> JsonValue:
    """Return a JSON value with each text on one line and truncated to `MAX_TEXT` characters."""
    if isinstance(value, dict):
        return {name: _truncate_texts(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_truncate_texts(part) for part in value]
    if not isinstance(value, str):
        return value
    return strip_control_chars(value if len(value) <= MAX_TEXT else f"{value[: MAX_TEXT - 1]}…")


LONG_LIST = 1_000
"""Elements beyond which a list in report.json is written with one element per line."""
QUESTIONS = "questions.jsonl"
"""The file with the outcomes of the integrator's own queries."""
JSON_TABLES = frozenset({"ab-test"})
"""Tables that tools read: they are written as JSON, too, with their texts unescaped."""
PAGE = "report.html"
"""The report as an HTML page."""
_HEAD = 2_000
"""Bytes at the start of a page within which its generator is named."""


def write_files(report: Report, output: Output) -> list[str]:
    """Write the files of a report into its folder, each one atomically, and remove those of an earlier run.

    The files are `report.json`, `report.md`, `outcomes.jsonl`, `questions.jsonl` if the integrator made queries of its
    own, each document under its name, and a `<name>.csv` for each table of the integrator and each list of the value,
    in which no text is a formula; for `ab-test`, which A/B tools read, a `<name>.json` as well. A document of more than
    a million characters, and a winner of more than 10,000 elements, are left out of `report.json`, as they have a file
    of their own.

    Args:
        report: The report.
        output: The folder, and the requested file with the merged rows; see `render_table`.

    Returns:
        The paths of the files, or their URLs.
    """
    texts: dict[str, Iterable[str]] = {name: [text] for name, text in _extra_files(report)}
    if report.asked:
        texts[QUESTIONS] = _outcome_lines(report.asked)
    texts |= {"outcomes.jsonl": _outcome_lines(report.outcomes), "report.md": [markdown(report)]}
    # The earlier report.json names the files to remove, and report.json is written last: an interrupted run is repaired
    # by the next one.
    for name in _files_of_earlier_run(output, texts.keys()):
        output.remove(name)
    if table := output.table:
        output.write(table, [render_table(report, table)])
        texts.pop(table, None)  # a CSV with the same rows
    texts["report.json"] = chain(map(bytes.decode, iter_json_chunks(report.shortened, indent=2, long=LONG_LIST)), "\n")
    for name, parts in texts.items():
        output.write(name, map(str.encode, parts))
    return [output.place(name) for name in [*reversed(texts), *([table] if table else [])]]


class PagePlaces(NamedTuple):
    """Where the HTML page of a report is."""

    file: str = ""
    """The path or the URL of the page in the output folder; empty if it was not written there."""
    link: str = ""
    """Its address at the page server; empty if none has been set up where the run is."""


def publish_page(
    report: Report, output: Output | None, briefs: Sequence[Brief], items: Sequence[Item], *, is_deployed: bool
) -> tuple[PagePlaces, list[str]]:
    """Write the HTML page of a report into its folder, and for the run of a deployment where the page server finds it.

    Args:
        report: The report.
        output: The folder; None: the run has none.
        briefs: The briefs of the run.
        items: The items of the run.
        is_deployed: Whether the run is a deployment's. It is not looked up here, as Prefect's API may hang.

    Returns:
        Where the page is, and the reasons for which it is missing somewhere, as sentences.
    """
    file, link, lacking = "", "", ""
    if output is not None and not (lacking := write_page(report, output, briefs, items)):
        file = output.place(PAGE)
    not_kept = ""
    try:
        if is_deployed and (address := load_address()):
            is_local = output is not None and isinstance(output.folder, Path) and file
            text = [Path(file).read_text("utf-8")] if is_local else render_page(report, briefs, items)
            link = keep_page(address, str(flow_run.get_id()), text)
    except Exception as error:  # noqa: BLE001 -- the page only shows what is stored already: it must not fail the run
        not_kept = f"The page server has no {PAGE} of this run. {safe_message(error)}"
    return PagePlaces(file, link), [*filter(None, (lacking, not_kept))]


def write_page(report: Report, output: Output, briefs: Sequence[Brief], items: Sequence[Item]) -> str:
    """Write the HTML page of a report into a folder atomically; on failure remove the page of an earlier run.

    Returns:
        The reason for a missing page, as a sentence; empty if it was written.
    """
    try:
        output.write(PAGE, map(str.encode, render_page(report, briefs, items)))
    except Exception as error:  # noqa: BLE001 -- the page only shows what is already written: it must not fail the run
        if GENERATOR.encode() in output.read(PAGE)[:_HEAD]:
            output.remove(PAGE)
        return f"{PAGE} was not written; the other files are. {safe_message(error)}"
    return ""


def _files_of_earlier_run(output: Output, kept: Collection[str]) -> set[str]:
    """Return the names of the files of the run whose report is in a folder, without those that every run writes.

    A report may come from another program and name any file, so a file counts only if it has the content that the run
    wrote.

    Args:
        output: The folder.
        kept: Names that are left out, as this run writes them; their earlier content is not compared.
    """
    try:
        report = _EarlierReport.model_validate_json(output.read("report.json"))
    except ValidationError:
        return set()
    found = {name for name, text in _extra_files(report, kept) if output.read(name) == text.encode()}
    found |= {each.name for each in report.documents if each.sha256 == sha256(output.read(each.name)).hexdigest()}
    if QUESTIONS not in kept and _are_outcomes(output.read(QUESTIONS)):
        found.add(QUESTIONS)
    return found - {*kept}


class _EarlierDocument(Document):
    """Document of an earlier report; a long one is represented by its digest."""

    sha256: str = ""
    bytes: int = 0


class _EarlierReport(BaseModel):
    """The parts of an earlier report that name files."""

    status: str
    message: str
    value: Any = None  # JSON, which needs no validation; that of a large value takes as long as writing the report
    tables: tuple[Table, ...] = ()
    documents: tuple[_EarlierDocument, ...] = ()


def _extra_files(report: Report | _EarlierReport, left_out: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each document file and each table file, except some."""
    for document in report.documents:
        yield document.name, document.text
    for name, rows in csv_files(report.value, report.tables, left_out).items():
        yield name, to_safe_csv(rows())
    for table in report.tables:
        if table.name in JSON_TABLES:
            yield f"{table.name}.json", json.dumps(table.rows, indent=2, ensure_ascii=False) + "\n"


def _are_outcomes(content: bytes) -> bool:
    """Return whether a file has the lines that a run wrote."""
    try:
        outcomes = [Outcome.model_validate_json(line) for line in content.split(b"\n")[:-1]]
    except ValidationError:
        return False
    return bool(outcomes) and "".join(_outcome_lines(outcomes)).encode() == content


def _outcome_lines(outcomes: Iterable[Outcome]) -> Iterable[str]:
    return (outcome.model_dump_json() + "\n" for outcome in outcomes)
