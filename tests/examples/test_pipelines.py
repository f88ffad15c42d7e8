"""The examples of pipelines run as their reader would run them."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs] -- it has no types
import httpx
import polars as pl
import pytest

from examples.lake import fill, moods
from examples.nightly import SCHEMA, connect, nightly, read
from prefect_dispatch.errors import RejectedError
from prefect_dispatch.testing import ScriptedExecutor
from tests.databases import filled, found
from tests.ui import prefect_server

EXAMPLES = Path(__file__).parents[2] / "examples"
ON_EVENT = [sys.executable, "-W", "ignore", str(EXAMPLES / "on_event.py")]
TICKETS = "INSERT INTO ticket VALUES (1, 1, 'wifi!'), (2, 1, 'chair'), (10, 1, 'odd'), (4, 0, 'closed')"
WRITER = """
from pathlib import Path
import sys
from prefect import flow
from prefect.assets import materialize

@materialize(f"file://{sys.argv[1]}")
def write():
    Path(sys.argv[1]).write_text("id,text\\na,Great!\\nb,Broken\\n")

@flow
def writer():
    write()

writer()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_second_night_asks_only_for_what_is_new(tmp_path: Path) -> None:
    """What changed is new, a gap is asked for again, and rows of closed tickets go."""
    database = tmp_path / "helpdesk.sqlite"
    filled(database, SCHEMA)
    filled(database, TICKETS)
    connect(f"sqlite:///{database}")

    def broken(ask: Any) -> Any:  # noqa: ANN401 -- an ask, and JSON
        if ask.item.key == "10":
            raise RejectedError("Not this one.", kind="refused")
        return read(ask)

    assert nightly(ScriptedExecutor(broken)) == {"asked": 3, "written": 3, "deleted": 0}
    assert found(database, "SELECT item, status, error_kind FROM triage WHERE item = '10'") == [
        ("10", "failed", "refused")
    ]
    filled(database, "UPDATE ticket SET open = 0 WHERE id = 1; UPDATE ticket SET text = 'the wifi' WHERE id = 2;")
    second = ScriptedExecutor(read)
    assert nightly(second) == {"asked": 2, "written": 2, "deleted": 1}
    assert sorted(ask.item.key for ask in second.asks) == ["10", "2"]
    assert [
        (item, json.loads(answer)["team"]) for item, answer in found(database, "SELECT item, answer FROM triage")
    ] == [
        ("2", "network"),
        ("10", "other"),
    ]
    assert nightly(ScriptedExecutor(broken)) == {"asked": 0, "written": 2, "deleted": 0}


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_lake_goes_in_and_results_come_out() -> None:
    """Each review of each day has its row."""
    memory: Any = fsspec.filesystem("memory")  # pyright: ignore[reportUnknownMemberType]
    fill(memory)
    url = moods(executor=ScriptedExecutor({"a": {"mood": "happy"}, "b": {"mood": "cross"}, "c": {"mood": "happy"}}))
    with memory.open(url, "rb") as file:
        assert pl.read_parquet(file).select("item", "answer.mood").rows() == [
            ("a", "happy"),
            ("b", "cross"),
            ("c", "happy"),
        ]


@pytest.mark.slow
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        pytest.param(
            "nightly.py",
            ["first night {'asked': 2", "second night {'asked': 1, 'written': 2, 'deleted': 1}", "3 succeeded"],
            id="nightly",
        ),
        pytest.param("lake.py", ["('b', 'succeeded', 'cross')"], id="lake"),
    ],
)
def test_a_script_runs_without_a_key(name: str, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And prints what it is about."""
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    said = capsys.readouterr().out
    assert all(part in said for part in shown), said


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_an_asset_that_was_written_starts_a_run(tmp_path: Path) -> None:
    """On a real server: somebody materialises a file, the automation starts our flow, which materialises its own."""
    rows = tmp_path / "reviews.csv"
    with prefect_server(tmp_path) as server:
        serving = subprocess.Popen([*ON_EVENT, f"file://{rows}"], env=server.env, cwd=tmp_path, start_new_session=True)  # noqa: S603 -- our own
        try:
            _until(lambda: httpx.post(f"{server.url}/api/automations/filter", json={}).json())
            subprocess.run([sys.executable, "-W", "ignore", "-c", WRITER, str(rows)], env=server.env, check=True)  # noqa: S603 -- our own
            _until((tmp_path / "out" / "report.json").exists)
            _until(lambda: f"file://{tmp_path}/out/report.json" in _assets(server.url))
        finally:
            os.killpg(serving.pid, signal.SIGKILL)
            serving.wait()
        (event,) = _events(server.url, f"file://{tmp_path}/out/report.json")
    assert f"file://{rows}" in {each["prefect.resource.id"] for each in event["related"]}
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [row["item"] for row in report["ledger"]] == ["a", "b"]


def _until(holds: Any) -> None:  # noqa: ANN401 -- a function of nothing
    while True:
        with suppress(httpx.TransportError):  # a server under load is slow to answer
            if holds():
                return
        time.sleep(0.2)


def _events(url: str, asset: str) -> list[dict[str, Any]]:
    only = {"event": {"name": ["prefect.asset.materialization.succeeded"]}}
    found = httpx.post(f"{url}/api/events/filter", json={"filter": only, "limit": 50}).json()["events"]
    return [event for event in found if event["resource"]["prefect.resource.id"].startswith(asset)]


def _assets(url: str) -> set[str]:
    return {event["resource"]["prefect.resource.id"] for event in _events(url, "file://")}
