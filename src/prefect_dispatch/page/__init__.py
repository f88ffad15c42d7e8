"""The report as a page: one HTML file that opens from the disk, whatever agents and items say in it."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from prefect_dispatch.page.document import FOLDER, MADE_BY, MissingLibraryError, document, parts
from prefect_dispatch.page.heat import PASSED, heat_map
from prefect_dispatch.page.items import BLOCK, ItemPages
from prefect_dispatch.page.ledger_rows import COLUMNS, rows, shown_outcomes, spans, untimed
from prefect_dispatch.page.summary import summary
from prefect_dispatch.page.texts import Texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from prefect_dispatch.models import Brief, Item
    from prefect_dispatch.report import Report

__all__ = ["MADE_BY", "lacking", "page"]

NAMED = 3
"""Briefs that a page's title names."""


def lacking(folder: Path = FOLDER) -> str:
    """Return why no page can be made here, in a sentence; nothing if one can."""
    try:
        parts(folder)
    except MissingLibraryError as error:
        return str(error)
    return ""


def page(report: Report, briefs: Sequence[Brief] = (), items: Sequence[Item] = ()) -> Iterator[str]:
    """Return the page of a report, piece by piece.

    Args:
        report: The report.
        briefs: The briefs of the run.
        items: Its items.

    Raises:
        MissingLibraryError: If a library isn't there that the build brings.
    """
    given = parts()
    outcomes = shown_outcomes(report)
    texts = Texts()
    pages = ItemPages(outcomes, briefs, items, report.fields, texts)
    names = sorted({outcome.brief for outcome in report.outcomes} or {brief.name for brief in briefs})
    named = ", ".join(names[:NAMED])
    title = f"{named} and {len(names) - NAMED} more" if len(names) > NAMED else named
    matrix = heat_map(report, texts)
    told: dict[str, object] = {
        "report": {
            **summary(report, texts),
            "matrix": matrix and {"red": sum(each["verdict"] not in PASSED for each in matrix["environments"])},
            "title": title,
            "briefs": pages.briefs(),
            "columns": COLUMNS,
            "block": BLOCK,
            "length": pages.length,
            "rows": [len(outcomes), len(report.outcomes)],
            "untimed": untimed(chain(report.outcomes, report.asked)),
            "licences": given.licences,
        },
        "rows": list(rows(report, outcomes, texts)),
        "spans": list(spans(report, outcomes)),
        **({"heat": matrix} if matrix else {}),
    }
    return document(given, f"{title}: {report.status}", told, pages.blocks())
