"""Sections of the benchmark: the cells of each table."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks import startup, stores
from benchmarks.loads import FIVE_THOUSAND, QUICK, THOUSAND, VARIED, Workload
from benchmarks.measuring import Cell, Lab
from benchmarks.peer_environments import PEERS, prepare_interpreter
from benchmarks.ways import HOSTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.servers import Database

STARTING_S = 20.0
"""Estimated seconds before the clock of a cell starts."""
SINGLE_S = 40.0
"""Estimated number of task runs that Prefect's server records per second."""
SAMPLES = 60
"""Number of stored points of a curve."""

OVERHEAD = Workload(5000, 100, 0.0)
TASKS = Workload(1000, 100, 0.0)
CALLS = Workload(2000, 100, 0.0)
STORED = Workload(10_000, 100, 0.0)
RECORDED = Workload(5000, 100, 0.01)
FLOOD = Workload(20_000, 100, 0.0)
SCALES = tuple(Workload(items, 100, 0.01) for items in (10_000, 30_000, 100_000))
MILLION = Workload(1_000_000, 100, 0.01)


def throughput(lab: Lab, *, quick: bool) -> Iterator[Cell]:
    """Time of a whole run, compared with hand-written loops and Prefect's `.map`."""
    if quick:
        yield from _create_cells(lab, "throughput", QUICK, "aiohttp_loop", "litellm_loop", "prefect_map", "ours")
        return
    ways = ("aiohttp_loop", "litellm_loop", "litellm_batch", "prefect_map", "ours_alone", "ours")
    yield from _create_cells(lab, "throughput", THOUSAND, *ways)
    yield from _create_cells(lab, "throughput", FIVE_THOUSAND, "aiohttp_loop", "litellm_loop", "ours")
    yield from _create_cells(lab, "throughput", VARIED, "aiohttp_loop", "litellm_loop", "ours")


def overhead(lab: Lab, *, quick: bool) -> Iterator[Cell]:
    """Processor time per item besides the model's call, in the client and in Prefect's server; and per call."""
    yield from _create_cells(lab, "overhead", _scale_down(OVERHEAD, quick=quick), "ours_nobody")
    yield from _create_cells(
        lab, "overhead", _scale_down(TASKS, quick=quick), "ours_nobody_alone", "prefect_map_nothing"
    )
    yield from _create_cells(lab, "overhead", _scale_down(CALLS, quick=quick), "aiohttp_loop", "litellm_loop", "ours")


def hosted(lab: Lab, *, quick: bool) -> Iterator[Cell]:
    """Time of a whole run with hosted providers, and processor time per call, compared with litellm's own."""
    for provider in HOSTED:
        calls = _scale_down(CALLS, quick=quick)
        yield from _create_cells(lab, "hosted", calls, f"litellm_{provider}", f"answer_{provider}")
        for load in (QUICK,) if quick else (THOUSAND, FIVE_THOUSAND):
            yield from _create_cells(lab, "hosted", load, f"litellm_{provider}", f"ours_{provider}")


def start(lab: Lab, *, quick: bool) -> Iterator[Cell]:
    """Start-up time: imports, help, a plan."""
    del lab
    runs = 1 if quick else startup.RUNS
    for name, about_s in startup.COMMANDS.items():
        yield Cell("start", name, f"best of {runs}", about_s * runs, partial(startup.measure_command, name, runs))


def stored(lab: Lab, *, quick: bool) -> Iterator[Cell]:
    """A second run, whose answers are all stored."""
    load = _scale_down(STORED, quick=quick)
    yield Cell("stored", "ours_again", str(load), 60, partial(_measure_second_run, lab, load))


def kept(lab: Lab, *, quick: bool) -> Iterator[Cell]:
    """Cost of storing an answer: one file each, compared with databases and segments."""
    del lab
    items = stores.ITEMS // 50 if quick else stores.ITEMS
    for name in stores.WAYS:
        yield Cell("kept", name, f"N {items:,}", 30, partial(stores.measure_store, name, items))


def scale(lab: Lab, *, quick: bool) -> Iterator[Cell]:
    """Large runs in shards, with their memory over time; and the plan of a million items."""
    for load in [_scale_down(each, quick=quick) for each in SCALES[:1]] if quick else SCALES:
        about = STARTING_S + load.items * 0.004
        yield Cell("scale", "ours_nobody", str(load), about, partial(_measure_with_memory, lab, "ours_nobody", load))
    yield from _create_cells(lab, "scale", _scale_down(MILLION, quick=quick), "ours_planned", about_s=120)


def records(lab: Lab, *, quick: bool) -> Iterator[Cell]:
    """Recording of task runs by Prefect's server: completeness, delay and cost, for each database."""
    load = _scale_down(RECORDED, quick=quick)
    kinds: tuple[tuple[str, str, Database, bool], ...] = (
        ("in shards, SQLite", "ours_nobody", "sqlite", False),
        ("in shards, PostgreSQL", "ours_nobody", "postgres", False),
        ("one each, SQLite", "ours_nobody_alone", "sqlite", False),
        ("one each, PostgreSQL", "ours_nobody_alone", "postgres", False),
        ("one each, SQLite, in batches", "ours_nobody_alone", "sqlite", True),
        ("one each, PostgreSQL, in batches", "ours_nobody_alone", "postgres", True),
        ("Prefect's `.map`, SQLite", "prefect_map_nothing", "sqlite", False),
    )
    for name, way, database, tuned in kinds:
        about = STARTING_S + (load.items / SINGLE_S if "shards" not in name and not tuned else 30)
        measure = partial(lab.measure, way, load, limit_s=600, database=database, tuned=tuned)
        yield Cell("records", name, str(load), about, measure)


def flood(lab: Lab, *, quick: bool) -> Iterator[Cell]:
    """One task run per item without latency, for more items than the server's queue can hold."""
    load = _scale_down(FLOOD, quick=quick)
    for name, way in (("ours, one each", "ours_nobody_alone"), ("Prefect's `.map`", "prefect_map_nothing")):
        about = STARTING_S + load.items / SINGLE_S
        yield Cell("records", name, str(load), about, partial(lab.measure, way, load, limit_s=1200))


def peers(lab: Lab, *, quick: bool) -> Iterator[Cell]:
    """Slow ways of this environment, and other libraries in separate environments."""
    loads = (QUICK,) if quick else (THOUSAND, FIVE_THOUSAND, VARIED)
    for load in loads:
        here = ("prefect_gathered", "prefect_async_map") if load.concurrency <= 100 else ("prefect_gathered",)
        yield from _create_cells(lab, "throughput", load, *here, about_s=120)
        if load == FIVE_THOUSAND:
            yield from _create_cells(lab, "throughput", load, "litellm_batch", "prefect_map", about_s=300)
        for name, peer in PEERS.items():
            if load.concurrency <= peer.most_at_once:
                measure = partial(_measure_peer, lab, name, load)
                yield Cell("throughput", name, str(load), STARTING_S + 5 * load.ideal_s, measure)
    if not quick:
        yield Cell("stored", "curator_again", str(STORED), 120, partial(_measure_peer, lab, "curator_again", STORED))


SECTIONS: dict[str, Callable[..., Iterator[Cell]]] = {
    each.__name__: each for each in (throughput, overhead, hosted, start, stored, kept, scale, records, flood, peers)
}
ALWAYS = ("throughput", "overhead", "hosted", "start", "stored", "kept", "scale", "records")
"""Sections that are measured by default; the others take long."""


def _create_cells(lab: Lab, section: str, load: Workload, *ways: str, about_s: float | None = None) -> Iterator[Cell]:
    about = (
        about_s if about_s is not None else STARTING_S + max(10.0, 2 * load.items / load.concurrency * load.median_s)
    )
    for way in ways:
        yield Cell(section, way, str(load), about, partial(lab.measure, way, load))


def _scale_down(load: Workload, *, quick: bool) -> Workload:
    return load._replace(items=load.items // 50) if quick else load


def _measure_second_run(lab: Lab, load: Workload) -> dict[str, Any]:
    """Measure the second of two equal runs, after Prefect's server has recorded the first."""
    with TemporaryDirectory(prefix="stored-") as store:
        first = lab.measure("ours_nobody", load, store=store)
        again = lab.measure("ours_nobody", load, store=store)
        files = [path.stat().st_size for path in Path(store).rglob("*") if path.is_file()]
    return {**again, "first_s": first.get("seconds"), "files": len(files), "bytes": sum(files)}


def _measure_with_memory(lab: Lab, way: str, load: Workload) -> dict[str, Any]:
    memory: list[tuple[float, float]] = []
    found = lab.measure(way, load, limit_s=900, memory=memory)
    return {**found, "memory": memory[:: max(1, len(memory) // SAMPLES)]}


def _measure_peer(lab: Lab, name: str, load: Workload) -> dict[str, Any]:
    python = prepare_interpreter(name)
    command = [str(python), "-W", "ignore", "-m", f"benchmarks.peers.{PEERS[name].module}"]
    return lab.measure(name, load, command=command, answer=PEERS[name].answer)
