"""Soak test: a long run against a server that fails a tenth of all calls. Checks the accounting, measures memory.

Run `python -m benchmarks.soak [ITEMS]` (default 20,000): one `dispatch` with a real HTTP server in a separate process
and a separate Prefect server. Prints JSON, and draws a plot.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from prefect.settings import (
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_LOGGING_LEVEL,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness

from prefect_dispatch import LLM, Limits, dispatch
from prefect_dispatch.executors.llm.litellm_adapter import load_litellm
from prefect_dispatch.reporting.progress import progress_listener
from tests.faults.lives import SIZES
from tests.faults.wires import Patient, mixed, require_accounts
from tests.openai_server import openai_server

if TYPE_CHECKING:
    from collections.abc import Generator

    from prefect_dispatch.reporting.progress import Progress

ITEMS = 20_000
LIMITS = Limits(concurrency=16, retries=5, reasks=5, retry_delay_s=0.01, timeout_s=60)
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20
PLOT = Path(__file__).with_suffix(".png")


class Memory:
    """Progress listener that samples the memory of this process at each hundredth of the run."""

    def __init__(self) -> None:
        """Start the clock."""
        self.samples: list[tuple[int, float, float]] = []
        """Samples: items done, megabytes, seconds."""
        self._start = time.perf_counter()

    def __call__(self, progress: Progress) -> None:
        """Take a sample if another hundredth is done."""
        if progress.done % max(1, progress.total // 100) == 0:
            self.samples.append((progress.done, resident_mb(), time.perf_counter() - self._start))


def resident_mb() -> float:
    """Return the resident memory of this process in megabytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE_MB


def measure(items: int) -> tuple[dict[str, Any], Memory]:
    """Run `dispatch` over a number of items; return the figures and the memory samples."""
    memory = Memory()
    with run_server() as server, TemporaryDirectory() as folder, isolate_prefect(Path(folder)):
        load_litellm()  # takes seconds to load
        token = progress_listener.set(memory)
        report = dispatch(
            [SIZES],
            [f"word-{at}" for at in range(items)],
            executor=LLM(model="openai/test", api_base=server.url),
            limits=LIMITS,
        )
        progress_listener.reset(token)
        requests, asked_again = server.stop()
    require_accounts(report, items)
    json_chars = sum(len(outcome.model_dump_json()) for outcome in report.outcomes)
    tenth = next(sample for sample in memory.samples if sample[0] * 10 >= items)
    last = memory.samples[-1]
    per_item = (last[1] - tenth[1]) * 2**10 / (last[0] - tenth[0])
    return {
        "items": items,
        "status": report.status,
        "seconds": round(last[2], 1),
        "ms_per_item": round(1000 * last[2] / items, 1),
        "requests_at_the_server": requests,
        "requests_in_the_report": report.usage.requests,
        "asked_again_though_answered": asked_again,
        "retried": report.usage.retried,
        "reasks": report.usage.reasks,
        "unsettled": report.usage.unsettled,
        "mb_after_a_tenth": round(tenth[1]),
        "mb_at_the_end": round(last[1]),
        "kb_per_item_after_a_tenth": round(per_item, 2),
        "kb_per_outcome_as_json": round(json_chars / items / 2**10, 2),
    }, memory


@contextmanager
def isolate_prefect(folder: Path) -> Generator[None]:
    """Use a temporary Prefect server and a temporary result storage, without a log line per task run."""
    os.environ.setdefault("OPENAI_API_KEY", "sk-none")
    logging.getLogger("prefect").setLevel(logging.ERROR)
    settings: dict[Any, Any] = {
        PREFECT_LOCAL_STORAGE_PATH: folder,
        PREFECT_LOGGING_LEVEL: "ERROR",
        PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with prefect_test_harness(server_startup_timeout=180), temporary_settings(settings):
        yield


class Server:
    """Handle of the model's server, which runs in a separate process so that its memory is not measured."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Wait until the server listens."""
        self._process = process
        self.url = self._read_line()

    def stop(self) -> list[int]:
        """Stop it; return the number of requests, and of those that repeated an answered one."""
        assert self._process.stdin  # noqa: S101 -- it is a pipe
        self._process.stdin.close()
        counts: list[int] = json.loads(self._read_line())
        return counts

    def _read_line(self) -> str:
        assert self._process.stdout  # noqa: S101 -- it is a pipe
        return self._process.stdout.readline().strip()


@contextmanager
def run_server() -> Generator[Server]:
    """Run the model's server in a separate process."""
    command = [sys.executable, "-m", "benchmarks.soak", "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 -- this file
        try:
            yield Server(process)
        finally:
            process.kill()


def serve() -> None:
    """Run the model's server in this process until standard input is closed."""
    patient = Patient(mixed)
    with openai_server(patient) as server:
        print(server.url, flush=True)
        sys.stdin.read()
        print(json.dumps([server.count, patient.asked_again]), flush=True)


def draw(memory: Memory, path: Path) -> None:
    """Plot memory over items."""
    from matplotlib.figure import Figure  # noqa: PLC0415 -- only what draws needs it

    figure: Any = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.subplots()
    axes.plot([done for done, _, _ in memory.samples], [mb for _, mb, _ in memory.samples])
    axes.set(xlabel="items done", ylabel="MB", title="Memory of a run whose provider fails a tenth of all calls")
    axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print the figures and plot the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("items", nargs="?", type=int, default=ITEMS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    figures, memory = measure(arguments.items)
    print(json.dumps(figures, indent=2))
    draw(memory, PLOT)


if __name__ == "__main__":
    main()
