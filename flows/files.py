"""What a run leaves in a folder, where one is asked for: the report, every outcome, every table."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_dispatch.errors import JobError
from prefect_dispatch.inert import sheet
from prefect_dispatch.render import markdown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefect_dispatch.models import Outcome
    from prefect_dispatch.report import Report

QUESTIONS = "questions.jsonl"
"""What came of the integrator's own questions."""

_TABLE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def ready_folder(folder: Path) -> Path:
    """Return a folder that files can be written to, made if it isn't there.

    Raises:
        JobError: If it can't be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise JobError(f"The folder {str(folder)!r} can't be written to: {error.strerror}.") from None
    return folder


def write_files(report: Report, folder: Path) -> list[Path]:
    """Write a report into a folder, each file whole or not at all, and remove what an earlier run left there.

    Written are `report.json`, `report.md`, `outcomes.jsonl`, `questions.jsonl` if the integrator
    asked anything itself, and a `<name>.csv` for each table, in which no text is a formula.

    Returns:
        The files.
    """
    texts: dict[str, Iterable[str]] = {f"{table.name}.csv": [sheet(table.rows)] for table in report.tables}
    if report.asked:
        texts[QUESTIONS] = _lines(report.asked)
    texts |= {"outcomes.jsonl": _lines(report.outcomes), "report.md": [markdown(report)]}
    for name in _earlier(folder) - texts.keys():
        (folder / name).unlink(missing_ok=True)
    texts["report.json"] = [report.model_dump_json(indent=2) + "\n"]
    for name, parts in texts.items():
        write(folder / name, parts)
    return [folder / name for name in reversed(texts)]


def _earlier(folder: Path) -> set[str]:
    """Return the files of the run whose report lies in a folder, those aside that every run writes."""
    try:
        told: Any = json.loads((folder / "report.json").read_bytes())
        names = [str(table["name"]) for table in told["tables"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()  # no report of ours: what lies there is not ours to remove
    return {f"{name}.csv" for name in names if _TABLE.fullmatch(name)} | {QUESTIONS}


def _lines(outcomes: Iterable[Outcome]) -> Iterable[str]:
    return (outcome.model_dump_json() + "\n" for outcome in outcomes)


def write(path: Path, parts: Iterable[str]) -> None:
    """Write a file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(parts)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise
