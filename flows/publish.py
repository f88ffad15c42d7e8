"""What a run leaves in Prefect: artifacts under keys that stay."""

from __future__ import annotations

import platform
import threading
import time
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from prefect_dispatch.inert import fenced, paragraph
from prefect_dispatch.progress import finished, listener, seconds_left
from prefect_dispatch.render import markdown, outcome_rows
from prefect_dispatch.scrub import told
from prefect_dispatch.tasks.bounded_api import start_thread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from typing_extensions import Self

    from prefect_dispatch.models import Brief
    from prefect_dispatch.progress import Progress
    from prefect_dispatch.report import Report
    from prefect_dispatch.tasks.plan import Plan

UPDATE_EVERY_S = 1.0
"""An update costs a request to the server, so there is one a second at most, and the last."""
LAST_S = 5.0
"""Seconds that the last update may take; then it is dropped."""
PUBLISH_S = 60.0
"""Seconds that the artifacts of a report may take; then the run ends without them."""


def artifact_key(briefs: Sequence[Brief], kind: str) -> str:
    """Return the key of an artifact: the same for every run of the same job.

    Example:
        >>> from prefect_dispatch import Brief
        >>> artifact_key([Brief(name="terms", instructions="Read the text.")], "report")
        'terms-report'
    """
    more = f"-and-{len(briefs) - 1}-more" if len(briefs) > 1 else ""
    return f"{briefs[0].name}{more}-{kind}"


class LiveProgress:
    """The progress of a run, as an artifact and to the listener of this process.

    The artifact is updated in a thread of its own, which takes the latest progress alone: a server that is slow, hangs
    or is gone delays no work, and what it did not take when the run ends is dropped.
    """

    def __init__(self, briefs: Sequence[Brief], expected: Plan) -> None:
        """Have the artifact created at zero; what is expected to be asked determines the time left."""
        self._asks = expected.work - expected.stored - expected.shared
        self._key, self._total = artifact_key(briefs, "progress"), expected.work
        self._began: float | None = None
        self._updated = time.monotonic()
        self._shown = 0
        self._latest: Progress | None = None
        self._changed, self._closed = threading.Event(), False
        self._thread = start_thread(self._update_artifact, "prefect-dispatch-progress", start=False)

    def __call__(self, progress: Progress) -> None:
        """Report more outcomes, or what is under way."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        ended = progress.done == progress.total or (self._shown and not progress.in_flight)
        due, hear = ended or now - self._updated >= UPDATE_EVERY_S, listener.get()
        if not due and not hear:
            return
        left = None if progress.note else seconds_left(progress, self._asks, now - self._began)
        progress = progress.model_copy(update={"seconds_left": left})
        if hear:
            hear(progress)
        if due:
            self._updated, self._shown = now, progress.in_flight
            self._latest = progress
            self._changed.set()

    def __enter__(self) -> Self:
        """Begin to show it."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Show the last progress, if the API takes it soon; after an error nothing is waited for."""
        self._closed = True
        self._changed.set()
        self._thread.join(LAST_S if kind is None else 0.0)

    def _update_artifact(self) -> None:
        """Create the artifact, and update it until the run has ended."""
        try:
            created = create_progress_artifact(progress=0.0, key=self._key, description=f"0 of {self._total} done")
            artifact = created if isinstance(created, UUID) else UUID(str(created))
        except Exception as error:  # noqa: BLE001 -- a picture of the run is not worth the run
            self._warn(error)
            return
        while True:
            self._changed.wait()
            self._changed.clear()
            is_closed = self._closed  # read before the progress: what comes after the end is none
            progress, self._latest = self._latest, None
            if progress is not None:
                self._update(artifact, progress)
            if is_closed:
                return

    def _update(self, artifact: UUID, progress: Progress) -> None:
        try:
            update_progress_artifact(
                artifact_id=artifact,
                progress=100.0 * progress.done / progress.total if progress.total else 100.0,
                description=f"{progress.done} of {progress.total} done, {progress}",
            )
        except Exception as error:  # noqa: BLE001 -- a picture of the run is not worth the run
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._closed:
            get_run_logger().warning("Progress can't be shown: %s", told(error))


def publish_in_time(report: Report, briefs: Sequence[Brief], page: Path | None = None, *, is_last: bool = True) -> None:
    """Create the artifacts of a report, if the API takes them in time; see `publish`. If not, the log says why.

    Args:
        report: The report.
        briefs: The briefs of the job.
        page: The report as a page, if it was written.
        is_last: Whether no further attempt of the run follows.
    """
    if is_last and (notify := finished.get()):
        notify(report)
    met: list[Exception] = []

    def step() -> None:
        try:
            publish(report, briefs, page)
        except Exception as error:  # noqa: BLE001 -- the report is there without them
            met.append(error)

    thread = start_thread(step, "prefect-dispatch-publish")
    thread.join(PUBLISH_S)
    if met or thread.is_alive():
        why = told(met[0]) if met else f"the API did not take it within {PUBLISH_S:g} s."
        get_run_logger().warning("The report can't be shown in Prefect: %s", why)


def publish(report: Report, briefs: Sequence[Brief], page: Path | None = None) -> None:
    """Create the artifacts of a report: the report itself, the table of outcomes, and each document in Markdown.

    Args:
        report: The report.
        briefs: The briefs of the job.
        page: Where the report is written as a page, if it is.
    """
    text = markdown(report)
    if page is not None:
        head, _, rest = text.partition("\n\n")
        text = f"{head}\n\n{_way_to(page)}\n\n{rest}"
    create_markdown_artifact(
        key=artifact_key(briefs, "report"), markdown=text, description=paragraph(report.message[:1000])
    )
    create_table_artifact(
        key=artifact_key(briefs, "outcomes"), table=outcome_rows(report), description="One row for each (brief, item)"
    )
    for document in report.documents:
        name, _, kind = document.name.rpartition(".")
        if kind == "md":
            key = artifact_key(briefs, name.replace(".", "-"))
            create_markdown_artifact(key=key, markdown=document.text, description=document.title)


def _way_to(page: Path) -> str:
    """Return where a page lies. No link: browsers follow none from a server's page to a file."""
    where = (
        f"The whole report as a page lies on the machine {paragraph(platform.node() or 'of the run')}; open it there:"
    )
    return f"{where}\n\n{fenced(str(page), 'text')}"
