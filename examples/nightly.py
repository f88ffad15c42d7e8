"""Every night: the tickets of a database are read by an agent, and what it says stands in a table beside them.

Run:
    python examples/nightly.py

The query names all open tickets, every night. What has an answer costs nothing again, so the second night asks for the
new ones alone; a ticket that changed is new. Gaps are rows, too, and close when a later night has an answer. The rows
of tickets that were closed are deleted, which is what `vanished="delete"` says.

The connection is a block of Prefect's: make it once, in the UI or as below, and no password stands in any code.
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prefect_sqlalchemy  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs] -- it has no types
from prefect import flow

from prefect_dispatch import Brief, Executor, MergeRecords, dispatch, write_table
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch import Ask

CONNECTION = "helpdesk"
SCHEMA = "CREATE TABLE ticket (id INTEGER PRIMARY KEY, open INTEGER, text TEXT)"
TRIAGE = Brief(
    name="triage",
    scope="One ticket of a help desk.",
    instructions="Say whether ticket {id} is urgent, and which team it is for.",
    output={
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "urgent": {"type": "boolean"},
            "team": {"enum": ["network", "other"]},
        },
        "required": ["id", "urgent", "team"],
    },
)


@flow
def nightly(executor: Executor | None = None) -> dict[str, int]:
    """Triage every open ticket, and write down what came of it.

    Args:
        executor: Who is asked. None: the model of the settings, else the local one.

    Returns:
        How many tickets were asked about, how many rows were written, and how many deleted.
    """
    report = dispatch(
        [TRIAGE],
        {
            "sql": "SELECT id, text FROM ticket WHERE open = :open",
            "params": {"open": 1},
            "key": "id",
            "connection": CONNECTION,
        },
        executor=executor,
        integrator=MergeRecords(identity=("id",)),
    )
    return {"asked": report.usage.asked, **write_table(report, "triage", CONNECTION, job="triage", vanished="delete")}


def connect(url: str) -> None:
    """Make the block that holds the connection.

    Args:
        url: The database's, password included; Prefect keeps blocks encrypted.
    """
    block: Any = prefect_sqlalchemy.SqlAlchemyConnector
    block(connection_info=url).save(CONNECTION, overwrite=True)


def read(ask: Ask) -> JsonValue:
    """Answer without an agent: a word decides."""
    ticket = ask.item.value
    text = str(ticket["text"]) if isinstance(ticket, dict) else ""
    return {"id": int(ask.item.key), "urgent": "!" in text, "team": "network" if "wifi" in text else "other"}


if __name__ == "__main__":
    database = Path(tempfile.mkdtemp()) / "helpdesk.sqlite"
    connect(f"sqlite:///{database}")
    with closing(sqlite3.connect(database)) as helpdesk, helpdesk:
        helpdesk.execute(SCHEMA)
        helpdesk.execute("INSERT INTO ticket VALUES (1, 1, 'The wifi is down!'), (2, 1, 'A new chair, please')")
    agent = ScriptedExecutor(read)
    print("first night", nightly(agent))
    with closing(sqlite3.connect(database)) as helpdesk, helpdesk:
        helpdesk.execute("UPDATE ticket SET open = 0 WHERE id = 1")
        helpdesk.execute("INSERT INTO ticket VALUES (3, 1, 'Slow wifi')")
    print("second night", nightly(agent))
    with closing(sqlite3.connect(database)) as helpdesk:
        for row in helpdesk.execute("SELECT item, status, answer FROM triage ORDER BY item"):
            print(*row)
