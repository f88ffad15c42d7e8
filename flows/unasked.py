"""Items that nobody is asked about, as their value isn't there: each ends as a gap like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.models import Failure
from prefect_dispatch.sources import Lost
from prefect_dispatch.tasks.ends import End
from prefect_dispatch.tasks.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.models import Brief, Item, Outcome

KIND = "upstream"
"""The class of their failure, as it stands in outcomes and reports."""


def unasked(briefs: Sequence[Brief], items: Sequence[Item]) -> tuple[Outcome, ...]:
    """Return what became of each brief for each item that has no value."""
    lost = [item for item in items if isinstance(item, Lost)]
    return tuple(outcome for item in lost for brief in briefs for outcome in _skipped(brief, item))


def _skipped(brief: Brief, item: Lost) -> list[Outcome]:
    work = Work(brief, item, "")
    error = Failure(kind=KIND, message=f"Not asked: {item.why}")
    return End(work, "skipped", error=error).outcomes([work], ())
