"""What a run leaves in a folder, where one is asked for: the report, every outcome, every table."""

from __future__ import annotations

import json
import tempfile
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.inert import sheet
from prefect_dispatch.ledger import Document, Table
from prefect_dispatch.models import Outcome
from prefect_dispatch.page import MADE_BY, page
from prefect_dispatch.pieces import pieces
from prefect_dispatch.render import markdown
from prefect_dispatch.scrub import told
from prefect_dispatch.whole import write

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from prefect_dispatch.models import Brief, Item
    from prefect_dispatch.report import Report

LONG_LIST = 1_000
"""Elements beyond which a list in report.json has each element in one line."""
QUESTIONS = "questions.jsonl"
"""What came of the integrator's own questions."""
EXACT = frozenset({"ab-test"})
"""Tables that tools read: as JSON, too, in which texts are as they are."""
PAGE = "report.html"
"""The report as a page."""

_HEAD = 2_000
"""Characters within which a page says that it is one."""


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
    """Write a report into a folder, each file whole or not at all, and remove what an earlier run wrote there.

    Written are `report.json`, `report.md`, `outcomes.jsonl`, `questions.jsonl` if the integrator
    asked anything itself, each document under its name, and a `<name>.csv` for each table, in which no text is a
    formula; for `ab-test`, which A/B tools take, a `<name>.json` as well. A document of more than a million characters,
    and a winner of more than 10,000 elements, stand in `report.json` no second time.

    Returns:
        The files.
    """
    texts: dict[str, Iterable[str]] = {name: [text] for name, text in _beside(report).items()}
    if report.asked:
        texts[QUESTIONS] = _lines(report.asked)
    texts |= {"outcomes.jsonl": _lines(report.outcomes), "report.md": [markdown(report)]}
    for name in _earlier(folder) - texts.keys():
        (folder / name).unlink(missing_ok=True)
    texts["report.json"] = chain(map(bytes.decode, pieces(report.shortened, indent=2, long=LONG_LIST)), "\n")
    for name, parts in texts.items():
        write(folder / name, parts)
    return [folder / name for name in reversed(texts)]


def write_page(report: Report, folder: Path, briefs: Sequence[Brief], items: Sequence[Item]) -> str:
    """Write the page of a report into a folder, whole; where that can't be, that of an earlier run doesn't stay.

    Returns:
        Why there is none, in a sentence; nothing if it is written.
    """
    file = folder / PAGE
    try:
        write(file, page(report, briefs, items))
    except Exception as error:  # noqa: BLE001 -- all that it shows is written already: a run doesn't fail for its picture
        if MADE_BY in _text(file)[:_HEAD]:
            file.unlink()
        return f"{PAGE} was not written; the other files are. {told(error)}"
    return ""


def _earlier(folder: Path) -> set[str]:
    """Return the files of the run whose report lies in a folder, those aside that every run writes.

    A report may be anybody's, and name any file: only one that holds what a run writes is a run's.
    """
    try:
        report = _Earlier.model_validate_json((folder / "report.json").read_bytes())
    except (OSError, ValidationError):
        return set()
    found = {name for name, text in _beside(report).items() if _text(folder / name) == text}
    found |= {each.name for each in report.documents if each.sha256 and _digest(folder / each.name) == each.sha256}
    return found | {QUESTIONS} if _are_outcomes(_text(folder / QUESTIONS)) else found


class _EarlierDocument(Document):
    """A document of an earlier report; of a long one its digest."""

    sha256: str = ""
    bytes: int = 0


class _Earlier(BaseModel):
    """What of an earlier report names files; the rest may be large."""

    status: str
    message: str
    tables: tuple[Table, ...] = ()
    documents: tuple[_EarlierDocument, ...] = ()


def _beside(report: Report | _Earlier) -> dict[str, str]:
    """Return the text of each document's and each table's files, by their names."""
    sheets = {f"{table.name}.csv": sheet(table.rows) for table in report.tables}
    exact = [table for table in report.tables if table.name in EXACT]
    sheets |= {f"{each.name}.json": json.dumps(each.rows, indent=2, ensure_ascii=False) + "\n" for each in exact}
    return {each.name: each.text for each in report.documents} | sheets


def _text(path: Path) -> str:
    """Return what stands in a file; nothing if there is no such text."""
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return ""


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file; empty if there is none."""
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _are_outcomes(text: str) -> bool:
    try:
        outcomes = [Outcome.model_validate_json(line) for line in text.split("\n")[:-1]]
    except ValidationError:
        return False
    return bool(outcomes) and "".join(_lines(outcomes)) == text


def _lines(outcomes: Iterable[Outcome]) -> Iterable[str]:
    return (outcome.model_dump_json() + "\n" for outcome in outcomes)
