"""Stores the measured rows as JSON: one file per section, one row per cell; a new row replaces the old one."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

FOLDER = Path(__file__).parent / "results"
PARTS = ("prefect-dispatch", "prefect", "litellm", "pydantic", "aiohttp")

Row = dict[str, Any]


class Results:
    """The rows of all sections, in a folder."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Store the folder."""
        self.folder = folder

    def rows(self, section: str) -> list[Row]:
        """Return the rows of a section; empty if it was never measured."""
        return list(self._read(section).get("rows", []))

    def machine(self, section: str) -> str:
        """Return the description of the machine on which a section was measured."""
        return str(self._read(section).get("machine", ""))

    def has(self, section: str, way: str, load: str) -> bool:
        """Return whether a cell has a row that is not a failure."""
        return any(_key(row) == (way, load) and "failed" not in row for row in self.rows(section))

    def put(self, section: str, row: Row) -> None:
        """Write a row to the file of its section; it replaces an earlier row of the same cell."""
        rows = self.rows(section)
        places = [at for at, each in enumerate(rows) if _key(each) == _key(row)]
        if places:
            rows[places[0]] = row
        else:
            rows.append(row)
        text = json.dumps({"machine": machine(), "rows": rows}, indent=1, ensure_ascii=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file(section).write_text(text + "\n", encoding="utf-8")

    def _file(self, section: str) -> Path:
        return self.folder / f"{section}.json"

    def _read(self, section: str) -> dict[str, Any]:
        file = self._file(section)
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return found


def _key(row: Row) -> tuple[str, str]:
    return row["way"], row["load"]


def machine() -> str:
    """Return a description of this machine and of the package versions, without a host name."""
    parts = ", ".join(f"{name} {version(name)}" for name in PARTS)
    memory = round(psutil.virtual_memory().total / 2**30)
    return f"{os.cpu_count()} cores, {memory} GB, {platform.system()}, Python {platform.python_version()}, {parts}"


def circumstances() -> Row:
    """Return the day and the load average before the measurement."""
    return {"day": datetime.now(timezone.utc).date().isoformat(), "busy": round(os.getloadavg()[0], 2)}
