"""Compares shards in threads and in processes: for Python code that needs a core, and for calls of a model.

Run `python -m benchmarks.processes [--items N] [--ms MS] [--calls N] [--concurrency C] [--latency S]` on a machine that
does nothing else. Two jobs run with a Prefect server, each with `threads`, with one process and with two. The executor
of the first job is a function that keeps a core busy for some milliseconds per item; that of the second one a model
whose server answers after a fixed time. For each run the seconds from the start of the flow to its end are printed, and
the processor seconds of the flow's process and of its worker processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if not __package__:  # run as a file: `python benchmarks/processes.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.latency_server import latency_server
from benchmarks.results import Results, circumstances
from benchmarks.servers import prefect_server
from benchmarks.subprocesses import module_command, run

if TYPE_CHECKING:
    from collections.abc import Mapping

RUNNERS = {"threads": ("threads", 1), "1 process": ("processes", 1), "2 processes": ("processes", 2)}


def work_hard(value: dict[str, int]) -> str:
    """Keep a core busy for as many milliseconds of this thread's own time as an item says."""
    end = time.thread_time() + value["ms"] / 1000
    while time.thread_time() < end:
        sum(range(1000))
    return f"done {value['number']}"


def measure_run(kind: str, workers: int, job: dict[str, object]) -> dict[str, float]:
    """Run a job in this process, and return its seconds and its processor seconds.

    Args:
        kind: The task runner of the shards.
        workers: Its number of processes.
        job: The numbers of the job: `items`, `concurrency` and `ms`, or `url` instead of `ms`.
    """
    from prefect_dispatch import LLM, Brief, Limits, PythonCallable, dispatch  # noqa: PLC0415 -- not part of the run
    from prefect_dispatch.tasks.shards.options import Processes, Threads  # noqa: PLC0415 -- as above

    executor = LLM(model="openai/test", api_base=str(job["url"])) if "url" in job else PythonCallable(work_hard)
    begin, own = time.perf_counter(), time.process_time()
    report = dispatch(
        Brief(name="work", instructions="Work."),
        [{"number": number, "ms": job.get("ms", 0)} for number in range(int(str(job["items"])))],
        executor=executor,
        limits=Limits(concurrency=int(str(job["concurrency"]))),
        task_runner=Processes(workers=workers) if kind == "processes" else Threads(),
    )
    assert report.status == "complete", report.message  # noqa: S101 -- a run with gaps measures nothing
    times = os.times()
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "own_cpu_s": round(time.process_time() - own, 1),
        "workers_cpu_s": round(times.children_user + times.children_system, 1),
    }


def describe_load(job: Mapping[str, object]) -> str:
    """Return what a job consists of, in words."""
    if "url" in job:
        return f"{job['items']:,} calls, {job['concurrency']:,} at once"
    return f"a function, {job['items']:,} items of {job['ms']} ms of a core"


def main() -> None:
    """Measure both jobs with each way to run shards, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2000, help="items of the function; 0: it isn't measured")
    parser.add_argument("--ms", type=int, default=40, help="milliseconds of a core for each of them")
    parser.add_argument("--calls", type=int, default=20_000, help="calls of the model; 0: it isn't measured")
    parser.add_argument("--concurrency", type=int, default=2000, help="calls at once")
    parser.add_argument("--latency", type=float, default=1.0, metavar="S", help="seconds until the model answers")
    arguments = parser.parse_args()
    results = Results()
    with latency_server(arguments.latency) as model, prefect_server() as server:
        function = {"items": arguments.items, "concurrency": 8, "ms": arguments.ms}
        calls = {"items": arguments.calls, "concurrency": arguments.concurrency, "url": model.url}
        for title, job in (("function", function), ("model", calls)):
            for name, way in RUNNERS.items() if job["items"] else ():
                command = module_command("processes", json.dumps([*way, job]))
                with TemporaryDirectory(prefix="processes-") as store:
                    env = {**server.env, "PREFECT_LOCAL_STORAGE_PATH": store}
                    found = run(command, limit_s=3600, env=env)
                print(f"{title}, {name}: {json.dumps(found)}", flush=True)
                results.put("processes", {"way": name, "load": describe_load(job), **found, **circumstances()})


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("["):
        print(json.dumps(measure_run(*json.loads(sys.argv[1]))))
    else:
        main()
