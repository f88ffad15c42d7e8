"""Processes that run a job, and may be killed: forked from one that has imported everything, as that takes seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.settings import PREFECT_API_URL, PREFECT_LOCAL_STORAGE_PATH

from prefect_dispatch import LLM, Brief, Limits, Report, dispatch

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

CONCURRENCY = 8
SIZES = Brief(
    name="sizes",
    scope="One word.",
    instructions="Say its number.",
    output={"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]},
)


def run(job: dict[str, Any]) -> None:
    """Run a job, and write its report down."""
    executor = LLM.model_validate({"model": "openai/test", "api_base": job["url"], **job.get("executor", {})})
    limits = Limits.model_validate({"concurrency": CONCURRENCY, "timeout_s": 60, **job.get("limits", {})})
    flow = dispatch.with_options(result_storage=job["storage"]) if job["storage"] else dispatch
    report = flow([SIZES], job["items"], executor=executor, limits=limits)
    Path(job["out"]).write_text(report.model_dump_json())


def main() -> None:
    """Fork a process for each job of a line, and tell its number; once all have ended, tell how."""
    import_module("litellm")
    print("ready", flush=True)  # noqa: T201 -- that is how it talks
    for line in sys.stdin:
        lives = [os.fork() or _live(job) for job in json.loads(line)]
        print(json.dumps(lives), flush=True)  # noqa: T201 -- the same
        ends = [os.waitstatus_to_exitcode(os.waitpid(life, 0)[1]) for life in lives]
        print(json.dumps(ends), flush=True)  # noqa: T201 -- the same


def _live(job: dict[str, Any]) -> int:
    try:
        run(job)
    except BaseException:  # noqa: BLE001 -- the process ends by it
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


@dataclass
class Lives:
    """The process that forks, seen from the test."""

    folder: Path
    talk: subprocess.Popen[str]

    def begin(self, jobs: Sequence[dict[str, Any]]) -> list[int]:
        """Start a process for each job; return their numbers."""
        assert self.talk.stdin
        self.talk.stdin.write(json.dumps(jobs) + "\n")
        self.talk.stdin.flush()
        return self._told()

    def ended(self) -> list[int]:
        """Wait until all have ended; return their exit codes."""
        return self._told()

    def whole(self, jobs: Sequence[dict[str, Any]]) -> list[Report]:
        """Run jobs at once, each in a process of its own, to their ends; return their reports."""
        self.begin(jobs)
        assert self.ended() == [0] * len(jobs), (self.folder / "log").read_text()
        return [Report.model_validate_json(Path(job["out"]).read_text()) for job in jobs]

    def _told(self) -> list[int]:
        assert self.talk.stdout
        told: list[int] = json.loads(self.talk.stdout.readline())
        return told


@contextmanager
def lives(folder: Path) -> Generator[Lives]:
    """Run the process that forks, with the Prefect server and the store of the test."""
    environment = {
        **os.environ,
        "OPENAI_API_KEY": "sk-of-the-user-0123456789",
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_LOCAL_STORAGE_PATH": str(PREFECT_LOCAL_STORAGE_PATH.value()),
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    command = [sys.executable, "-m", "tests.faults.lives"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(  # noqa: S603 -- this module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as talk,
    ):
        assert talk.stdout
        assert talk.stdout.readline() == "ready\n", (folder / "log").read_text()
        try:
            yield Lives(folder, talk)
        finally:
            talk.kill()


def kill(life: int) -> None:
    """End a process as a power cut would."""
    os.kill(life, signal.SIGKILL)


if __name__ == "__main__":
    main()
