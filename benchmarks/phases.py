"""Prints the parts of a run: of one whose items are asked, and of a rerun whose answers are all stored.

Run `python -m benchmarks.phases [ITEMS] [--integrator KIND] [--repeat N] [--latency S] [--profile FILE]`. The command
`prefect-dispatch run` processes a folder of text files, with a running Prefect server, and writes its report to a
folder. For each part the processor time of the process, all of its threads included, and the wall time are printed,
each without the parts inside of it; of several reruns the least of each. `finalization` is what the process takes after
its last line of output. With `--profile`, the last rerun's flow is profiled, and its figures are written to a file for
`pstats`.
"""

from __future__ import annotations

import argparse
import cProfile
import functools
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

if not __package__:  # run as a file: `python benchmarks/phases.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.latency_server import latency_server
from benchmarks.results import Results, circumstances
from benchmarks.servers import prefect_server
from benchmarks.subprocesses import ENVIRONMENT, ROOT

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

PARTS = {
    "prepare": "flows.prepare:prepare",
    "look up": "flows.run_job:load_stored_answers",
    "plan": "flows.run_job:build_plan",
    "fan-out": "tasks.fan_out:FanOut.run",
    "report": "flows.run_job:build_report",
    "merge": "tasks.integrate:run_integrator",
    "audit": "tasks.integrate:audit",
    "compare with last run": "flows.run_job:LastRunStore.compare_with_last",
    "files": "flows.run_job:write_files",
    "page": "flows.run_job:publish_page",
    "artifacts": "flows.run_job:create_artifacts_in_time",
    "store as last run": "flows.run_job:LastRunStore.save",
    "rest of the flow": "flows.dispatch:run_job",
    "Prefect's engine": "flows.job_file:Job.run",
}
"""The functions whose calls are the parts, by name; inner parts are not counted in outer ones."""
ENGINE = "Prefect's engine"
ITEMS = 10_000
"""Number of items; the costs of that many, merged by `collate`, are on the page on performance."""
START, FINALIZATION = "imports and rest of the command", "finalization"
AFTER_FAN_OUT = ("report", "merge", "audit", "compare with last run", "files", "page", "artifacts", "store as last run")
_INTEGRATORS: dict[str, dict[str, Any]] = {
    "collate": {"kind": "collate"},
    "merge_records": {"kind": "merge_records", "identity": ["name"]},
    "match": {"kind": "merge_records", "identity": ["name"], "match": {}},
    "consensus": {"kind": "consensus"},
}
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "family": {"enum": ["permissive", "copyleft"]},
        "year": {"type": "integer"},
        "duties": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "family", "year", "duties"],
    "additionalProperties": False,
}
_ANSWER = '{"name": "A licence", "family": "permissive", "year": 1988, "duties": ["keep notices", "state changes"]}'


class Cost(NamedTuple):
    """Time that something took."""

    cpu_s: float
    wall_s: float

    def __add__(self, other: tuple[float, ...]) -> Cost:  # type: ignore[override]
        """Return the sum."""
        return Cost(self.cpu_s + other[0], self.wall_s + other[1])

    def __sub__(self, other: Cost) -> Cost:
        """Return the difference."""
        return Cost(self.cpu_s - other.cpu_s, self.wall_s - other.wall_s)


class PartTimer:
    """Measures calls of functions by wrapping them."""

    def __init__(self) -> None:
        """Create a timer without measurements."""
        self.parts: dict[str, Cost] = {}
        self._inside: list[Cost] = []
        """For each part that is being measured, the cost of the parts inside of it."""

    def wrap(self, name: str, place: str) -> None:
        """Replace a function by one that measures it; a second call of a part inside the same part is part of it."""
        module, _, path = place.partition(":")
        holder: Any = import_module(f"prefect_dispatch.{module}")
        *around, last = path.split(".")
        for each in around:
            holder = getattr(holder, each)
        call = getattr(holder, last)

        @functools.wraps(call)
        def measured(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- of any function
            with self.measure(name):
                return call(*args, **kwargs)

        setattr(holder, last, measured)

    @contextmanager
    def measure(self, name: str) -> Generator[None]:
        """Measure the body as a part."""
        self._inside.append(Cost(0, 0))
        start = _now()
        try:
            yield
        finally:
            cost = _now() - start
            own = cost - self._inside.pop()
            self.parts[name] = self.parts.get(name, Cost(0, 0)) + own
            if self._inside:
                self._inside[-1] += cost


def _now() -> Cost:
    return Cost(time.process_time(), time.perf_counter())


def run_measured(arguments: list[str], profile: str) -> None:
    """Run the command line with every part measured, and print the costs as one line of JSON.

    Args:
        arguments: The arguments of `prefect-dispatch`.
        profile: File for the profile of the flow; empty: it is not profiled.
    """
    from prefect_dispatch.cli.commands import main  # noqa: PLC0415 -- an import that is measured

    timer, profiler = PartTimer(), cProfile.Profile()
    if profile:
        dispatch: Any = import_module("prefect_dispatch.flows.dispatch")
        dispatch.run_job = functools.partial(profiler.runcall, dispatch.run_job)
    for name, place in PARTS.items():
        timer.wrap(name, place)
    sys.argv[1:] = arguments
    imports = Cost(time.process_time(), 0)
    with timer.measure(START):
        code = main()
    timer.parts[START] += imports
    if profile:
        profiler.dump_stats(profile)
    print(json.dumps({"parts": timer.parts, "cpu_s": time.process_time(), "ended": time.time()}), flush=True)
    sys.exit(code)


def run_command(folder: Path, env: dict[str, str], profile: str = "") -> dict[str, Cost]:
    """Run the job in a folder in a process of its own, and return the cost of each part and of the whole command."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.phases", "--measured", profile]
    command += ["run", str(folder / "job.yaml"), "--out", str(folder / "report")]
    before, began = os.times(), time.time()
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)  # noqa: S603 -- ours
    ended, after = time.time(), os.times()
    if ran.returncode:
        raise SystemExit(ran.stderr[-2000:])
    found = json.loads(ran.stdout.splitlines()[-1])
    parts = {name: Cost(*found["parts"].get(name, (0, 0))) for name in (START, *PARTS)}
    used = after.children_user + after.children_system - before.children_user - before.children_system
    inside = sum((each.wall_s for name, each in parts.items() if name != START), 0.0)
    parts[START] = Cost(parts[START].cpu_s, found["ended"] - began - inside)
    return {
        **parts,
        FINALIZATION: Cost(used - found["cpu_s"], ended - found["ended"]),
        "in all": Cost(used, ended - began),
    }


def write_job(folder: Path, items: int, integrator: str, url: str) -> None:
    """Write a job and the files that are its items."""
    (folder / "texts").mkdir()
    for at in range(items):
        text = f"Licence {at}. Permission is granted to use, copy and change the work, if notices are kept.\n" * 5
        (folder / "texts" / f"{at:05}.txt").write_text(text, encoding="utf-8")
    job = {
        "briefs": [{"name": "licence", "instructions": "Describe the licence.", "output": _SCHEMA}],
        "items": {"glob": "texts/*.txt"},
        "executor": {"kind": "llm", "model": "openai/test", "api_base": url},
        "integrator": _INTEGRATORS[integrator],
        "limits": {"concurrency": 500},
    }
    (folder / "job.yaml").write_text(json.dumps(job), encoding="utf-8")  # JSON is YAML


def least_costs(runs: list[dict[str, Cost]]) -> dict[str, Cost]:
    """Return the least cost of each part over several runs, and of two sums of parts."""
    least = {name: Cost(*(min(run[name][at] for run in runs) for at in range(2))) for name in runs[0]}
    least["after the fan-out"] = sum((least[name] for name in AFTER_FAN_OUT), Cost(0, 0))
    least["in the flow"] = sum((least[name] for name in PARTS if name != ENGINE), Cost(0, 0))
    return least


def format_costs(title: str, least: dict[str, Cost]) -> str:
    """Return the costs as a table."""
    lines = [f"{name:<30} {cost.cpu_s:>7.2f} {cost.wall_s:>7.2f}" for name, cost in least.items()]
    return "\n".join([f"{title:<30} {'CPU s':>7} {'wall s':>7}", *lines])


def store_costs(results: Results, costs: Mapping[str, Mapping[str, Cost]]) -> None:
    """Store the costs of runs, by their names, as rows for the page."""
    for run, parts in costs.items():
        for part, cost in parts.items():
            row = {"way": part, "load": run, "cpu_s": cost.cpu_s, "seconds": cost.wall_s}
            results.put("phases", {**row, **circumstances()})


def main() -> None:
    """Measure a run whose items are asked, and reruns of it, and print their parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", nargs="?", type=int, default=ITEMS)
    parser.add_argument("--integrator", choices=_INTEGRATORS, default="collate")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="reruns; the least of each part is printed")
    parser.add_argument("--latency", type=float, default=1.0, metavar="S", help="seconds until the model answers")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="profile the flow of one more rerun")
    arguments = parser.parse_args()
    with (
        TemporaryDirectory(prefix="phases-") as name,
        latency_server(arguments.latency, 0, _ANSWER) as model,
        prefect_server() as server,
    ):
        folder = Path(name)
        write_job(folder, arguments.items, arguments.integrator, model.url)
        env = {**os.environ, **ENVIRONMENT, **server.env, "PREFECT_LOCAL_STORAGE_PATH": str(folder / "store")}
        asked = least_costs([run_command(folder, env)])
        print(format_costs(f"{arguments.items:,} items asked", asked), flush=True)
        again = least_costs([run_command(folder, env) for _ in range(arguments.repeat)])
        print("\n" + format_costs(f"{arguments.items:,} items stored", again), flush=True)
        if arguments.items == ITEMS and arguments.integrator == "collate":
            store_costs(Results(), {"asked": asked, "stored": again})
        if arguments.profile:
            run_command(folder, env, str(arguments.profile.resolve()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measured"]:
        run_measured(sys.argv[3:], sys.argv[2])
    else:
        main()
