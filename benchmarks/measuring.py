"""Measures the cells of the tables: one way and one workload each, with the servers that they need."""

from __future__ import annotations

from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.latency_server import ANSWER, latency_server
from benchmarks.results import circumstances
from benchmarks.servers import Servers
from benchmarks.subprocesses import LIMIT_S, module_command, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.loads import Workload
    from benchmarks.results import Row
    from benchmarks.servers import Database, PrefectServer

RECORDING_S = 240.0
"""Time limit for the server to record all task runs of a run, in seconds."""


@dataclass(frozen=True)
class Cell:
    """One measurement, which becomes one row."""

    section: str
    """The section whose table has the row."""
    way: str
    """Name of the way, or of the measured command."""
    load: str
    """The workload as text."""
    about_s: float
    """Estimated duration in seconds."""
    measure: Callable[[], dict[str, Any]]
    """Function that returns the figures."""

    def row(self) -> Row:
        """Return the row with the measured figures, or with the failure as `failed`."""
        before = circumstances()
        try:
            found = self.measure()
        except Exception as error:  # noqa: BLE001 -- a failure is a result, and the next cell comes
            found = {"failed": f"{type(error).__name__}: {error}"[:300]}
        found.pop("ended", None)
        return {"way": self.way, "load": self.load, **before, **found}


class Lab:
    """Measures ways, and keeps the servers running from one cell to the next."""

    def __init__(self) -> None:
        """Create the lab; servers start when they are needed."""
        self.servers = Servers()

    def measure(
        self,
        way: str,
        load: Workload,
        *,
        command: list[str] | None = None,
        limit_s: float = LIMIT_S,
        database: Database = "sqlite",
        tuned: bool = False,
        memory: list[tuple[float, float]] | None = None,
        store: str | None = None,
        answer: str = ANSWER,
    ) -> dict[str, Any]:
        """Return the measured figures of one way and one workload.

        Args:
            way: Its name.
            load: The workload.
            command: The command that runs it; by default `benchmarks.ways`.
            limit_s: Time limit in seconds.
            database: The database of Prefect's server, if the way needs one.
            tuned: Whether that server records task runs in batches.
            memory: List to which samples (seconds, megabytes) are appended.
            store: Folder of the result storage; by default a new, empty one.
            answer: The answer of the model.
        """
        with latency_server(load.median_s, load.sigma, answer) as model:
            whole = [*(command or module_command("ways", way)), load.text, model.url]
            if "prefect" in way or way.startswith("ours"):
                server = self.servers.get(database, tuned=tuned)
                try:
                    found = self._measure_with_server(server, whole, load, limit_s, memory, store)
                except BaseException:
                    self.servers.drop()
                    raise
            else:
                found = run(whole, limit_s=limit_s, memory=memory)
            if load.ideal_s and "seconds" in found:
                found["ratio"] = round(found["seconds"] / load.ideal_s, 3)
                if not load.sigma:  # from the first request to the last answer, without the start and the end of a run
                    found["calls"] = round((model.span_s + load.median_s) / load.ideal_s, 3)
            return {**found, "requests": max(0, model.count - 1)}  # one request is the warm-up

    def _measure_with_server(
        self,
        server: PrefectServer,
        command: list[str],
        load: Workload,
        limit_s: float,
        memory: list[tuple[float, float]] | None,
        store: str | None,
    ) -> dict[str, Any]:
        """Return the figures of a command that uses Prefect's server, with recorded task runs and processor time."""
        before, cpu, database = server.count(), server.cpu_s(), server.database_cpu_s()
        with TemporaryDirectory(prefix="store-") as empty:
            env = {**server.env, "PREFECT_LOCAL_STORAGE_PATH": store or empty}
            found = run(command, limit_s=limit_s, env=env, memory=memory)
        if "failed" in found:
            self.servers.drop()
            return found
        records = server.wait_for_records(before, found["made"], found["ended"], RECORDING_S)
        spent, of_database = server.cpu_s() - cpu, server.database_cpu_s()
        if records.recorded < found["made"]:
            self.servers.drop()
        return {
            **found,
            "recorded": records.recorded,
            "lag_s": records.lag_s,
            "server_cpu_ms": round(1000 * spent / load.items, 3),
            **(
                {}
                if database is None or of_database is None
                else {"database_cpu_ms": round(1000 * (of_database - database) / load.items, 3)}
            ),
        }
