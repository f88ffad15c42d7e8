"""What a run leaves in Prefect: artifacts under keys that stay."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger

from prefect_dispatch.inert import fenced, paragraph
from prefect_dispatch.progress import listener, seconds_left
from prefect_dispatch.render import markdown, outcome_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefect_dispatch.models import Brief
    from prefect_dispatch.progress import Progress
    from prefect_dispatch.report import Report
    from prefect_dispatch.tasks.plan import Plan

UPDATE_EVERY_S = 1.0
"""An update costs a request to the server, so there is one a second at most, and the last."""


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
    """The progress of a run, as an artifact and to whoever listens."""

    def __init__(self, briefs: Sequence[Brief], expected: Plan) -> None:
        """Create the artifact at zero; what is expected to be asked tells the time left."""
        self._asks = expected.work - expected.stored - expected.shared
        created = create_progress_artifact(
            progress=0.0, key=artifact_key(briefs, "progress"), description=f"0 of {expected.work} done"
        )
        self._id = created if isinstance(created, UUID) else UUID(str(created))
        self._began: float | None = None
        self._updated = time.monotonic()
        self._shown = 0

    def __call__(self, progress: Progress) -> None:
        """Tell of more outcomes, or of what is under way."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        ended = progress.done == progress.total or (self._shown and not progress.in_flight)
        due, hear = ended or now - self._updated >= UPDATE_EVERY_S, listener.get()
        if not due and not hear:
            return
        left = seconds_left(progress, self._asks, now - self._began)
        progress = progress.model_copy(update={"seconds_left": left})
        if hear:
            hear(progress)
        if due:
            self._updated, self._shown = now, progress.in_flight
            self._update(progress)

    def _update(self, progress: Progress) -> None:
        try:
            update_progress_artifact(
                artifact_id=self._id,
                progress=100.0 * progress.done / progress.total if progress.total else 100.0,
                description=f"{progress.done} of {progress.total} done, {progress}",
            )
        except (httpx.HTTPError, PrefectException) as error:  # a picture of the run is not worth the run
            get_run_logger().warning("Progress can't be shown: %s", error)


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
    told = (
        f"The whole report as a page lies on the machine {paragraph(platform.node() or 'of the run')}; open it there:"
    )
    return f"{told}\n\n{fenced(str(page), 'text')}"
