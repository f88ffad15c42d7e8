"""One cell of a table: a way to ask, a workload, and what it took, with the servers that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.apart import LIMIT_S, module, run
from benchmarks.latency_server import SAID, latency_server
from benchmarks.results import circumstances
from benchmarks.servers import Servers

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.loads import Workload
    from benchmarks.results import Row
    from benchmarks.servers import Database, PrefectServer

RECORDING_S = 240.0
"""Seconds that the records of a run may take to come."""


@dataclass(frozen=True)
class Cell:
    """What is measured for one row."""

    section: str
    """The table that it belongs to."""
    way: str
    """Who asks, or what is timed."""
    load: str
    """What of."""
    about_s: float
    """How long it takes, about."""
    measure: Callable[[], dict[str, Any]]
    """Measures it."""

    def row(self) -> Row:
        """Return what it took; what it failed of, if it did."""
        before = circumstances()
        try:
            found = self.measure()
        except Exception as error:  # noqa: BLE001 -- a failure is a result, and the next cell comes
            found = {"failed": f"{type(error).__name__}: {error}"[:300]}
        found.pop("ended", None)
        return {"way": self.way, "load": self.load, **before, **found}


class Lab:
    """What measures cells, with servers that are kept from one to the next."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self.servers = Servers()

    def asked(
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
        said: str = SAID,
    ) -> dict[str, Any]:
        """Return what one way took for one workload.

        Args:
            way: Its name.
            load: What is asked.
            command: What runs it; by default `benchmarks.ways`.
            limit_s: Seconds after which it is given up.
            database: Where Prefect's server, if it needs one, keeps what it knows.
            tuned: Whether that records in batches.
            memory: Is filled with (seconds, megabytes) along the way.
            store: Where answers are stored; by default nothing is stored yet.
            said: What the model says.
        """
        with latency_server(load.median_s, load.sigma, said) as model:
            whole = [*(command or module("ways", way)), load.text, model.url]
            if "prefect" in way or way.startswith("ours"):
                server = self.servers.get(database, tuned=tuned)
                try:
                    found = self._recorded(server, whole, load, limit_s, memory, store)
                except BaseException:
                    self.servers.drop()
                    raise
            else:
                found = run(whole, limit_s=limit_s, memory=memory)
            if load.ideal_s and "seconds" in found:
                found["ratio"] = round(found["seconds"] / load.ideal_s, 3)
            return {**found, "requests": max(0, model.count - 1)}  # one warmed it up

    def _recorded(
        self,
        server: PrefectServer,
        command: list[str],
        load: Workload,
        limit_s: float,
        memory: list[tuple[float, float]] | None,
        store: str | None,
    ) -> dict[str, Any]:
        """Return what it took, and what of it Prefect's server has recorded, at what cost."""
        before, cpu, database = server.count(), server.cpu_s(), server.database_cpu_s()
        with TemporaryDirectory(prefix="store-") as empty:
            env = {**server.env, "PREFECT_LOCAL_STORAGE_PATH": store or empty}
            found = run(command, limit_s=limit_s, env=env, memory=memory)
        if "failed" in found:
            self.servers.drop()
            return found
        records = server.settled(before, found["made"], found["ended"], RECORDING_S)
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
