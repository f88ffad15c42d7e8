"""Agents in the middle of an existing pipeline: extract, dispatch, load.

Run:
    python examples/pipeline.py

Two briefs look at the same licences. Where both name the family, `MergeRecords` decides by the
briefs' priority and keeps what it decided against. What got no answer is loaded as well, as a row
of the ledger, and the next run asks for that alone: answers are stored, failures are not.
"""

from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, task

from prefect_dispatch import Brief, Executor, Item, Limits, MergeRecords, Report, dispatch
from prefect_dispatch.models.checks import Function

if TYPE_CHECKING:
    from pydantic import JsonValue

LICENCES = Path(__file__).parent / "licenses"
IDS: list[JsonValue] = [path.stem for path in sorted((LICENCES / "texts").glob("*.txt"))]
FAMILIES: list[JsonValue] = ["permissive", "copyleft", "public-domain", "restricted"]
SCHEMA = """
CREATE TABLE IF NOT EXISTS licence (
    id TEXT PRIMARY KEY, family TEXT, commercial_use INTEGER, keep_notice INTEGER
);
CREATE TABLE IF NOT EXISTS ledger (
    brief TEXT, item TEXT, disposition TEXT, reason TEXT, PRIMARY KEY (brief, item)
);
"""


def is_about_its_item(value: dict[str, Any], item: Item) -> str | None:
    """Return what is wrong with an answer about another licence than the one that was shown."""
    return None if value["id"] == item.key else f"The field 'id' must be {item.key!r}, as the item has it."


def _brief(name: str, instructions: str, field: str, *, priority: int = 0) -> Brief:
    properties: dict[str, JsonValue] = {
        "id": {"type": "string", "enum": IDS},  # a small model copies badly, and chooses well enough
        "family": {"type": "string", "enum": FAMILIES},
        field: {"type": "boolean"},
    }
    return Brief(
        name=name,
        scope="One licence: its id, its name and its text.",
        instructions=f"{instructions} Name the family that the licence belongs to, and repeat the id {{id}}.",
        output={
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        },
        checks=(Function(function=is_about_its_item),),
        priority=priority,
    )


BRIEFS = [
    _brief("use", "Say whether companies may sell the work.", "commercial_use", priority=1),
    _brief("duties", "Say whether the notice must stay in copies.", "keep_notice"),
]


@task
def extract(folder: Path, limit: int | None = None) -> list[Item]:
    """Return the licences as items: metadata and text in one row each."""
    with (folder / "facts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:limit]
    return [
        Item(
            key=row["id"],
            value={
                "id": row["id"],
                "name": row["name"],
                "text": (folder / "texts" / f"{row['id']}.txt").read_text(encoding="utf-8"),
            },
        )
        for row in rows
    ]


@task
def load(report: Report, database: Path) -> dict[str, int]:
    """Write merged records and the ledger; the same report, or a better one, may be loaded again.

    Returns:
        How many rows each table has, and how many of the ledger are gaps.
    """
    merged: Any = report.value or {"records": []}
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executescript(SCHEMA)
        connection.executemany(
            "INSERT INTO licence VALUES (:id, :family, :commercial_use, :keep_notice) "
            "ON CONFLICT (id) DO UPDATE SET family = excluded.family, "
            "commercial_use = coalesce(excluded.commercial_use, commercial_use), "
            "keep_notice = coalesce(excluded.keep_notice, keep_notice)",
            [{"commercial_use": None, "keep_notice": None, **record} for record in merged["records"]],
        )
        connection.executemany(
            "INSERT INTO ledger VALUES (?, ?, ?, ?) ON CONFLICT (brief, item) DO UPDATE SET "
            "disposition = excluded.disposition, reason = excluded.reason",
            [(row.brief, row.item, row.disposition, row.reason) for row in report.ledger],
        )
        return {
            name: connection.execute(f"SELECT count(*) FROM {source}").fetchone()[0]  # noqa: S608 -- constants
            for name, source in (
                ("licences", "licence"),
                ("ledger", "ledger"),
                ("gaps", "ledger WHERE disposition IN ('failed', 'skipped')"),
            )
        }


@flow
def pipeline(database: Path, executor: Executor | None = None, limit: int | None = None) -> dict[str, int]:
    """Extract licences, have agents read them, load what they say.

    Args:
        database: An SQLite file; it is made if there is none.
        executor: Who is asked. None: the model of the settings, else the local one.
        limit: Take the first so many licences only.
    """
    items = extract(LICENCES, limit)
    report = dispatch(
        BRIEFS,
        items,
        executor=executor,
        integrator=MergeRecords(identity=("id",)),
        limits=Limits(concurrency=4, retry_delay_s=0.5),
    )
    return load(report, database)


if __name__ == "__main__":
    print(pipeline(Path("licences.sqlite"), limit=4))
