"""Commands in processes of their own, ended with all that they have started when their time is over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 300.0
"""Seconds that a cell may take, if nothing else is said."""
TOLD = 300
"""Characters of a failure that are kept."""
LOOK_S = 0.05

CALM = {
    "OPENAI_API_KEY": "none",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PYTHONDONTWRITEBYTECODE": "",
}
"""What every cell finds in its environment: no key, no network, no line for each task run, modules compiled once."""


def run(
    command: Sequence[str],
    *,
    limit_s: float = LIMIT_S,
    env: Mapping[str, str] | None = None,
    memory: list[tuple[float, float]] | None = None,
) -> dict[str, Any]:
    """Return what a command says in its last line of JSON; what it failed of, if it did.

    Args:
        command: What is run, from the root of the repository.
        limit_s: Seconds after which it is ended.
        env: More of its environment.
        memory: Is filled with (seconds, megabytes) along the way.
    """
    with TemporaryDirectory(prefix="cell-") as folder:
        outs = Path(folder, "stdout"), Path(folder, "stderr")
        with outs[0].open("wb") as stdout, outs[1].open("wb") as stderr:
            process = subprocess.Popen(  # noqa: S603 -- our own commands
                command,
                cwd=ROOT,
                env={**os.environ, **CALM, "TMPDIR": folder, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                late = _wait(process, limit_s, memory)
            finally:
                end(process)
        said, errors = (path.read_text(encoding="utf-8", errors="replace") for path in outs)
    if late:
        return {"failed": f"timed out after {limit_s:g} s"}
    lines = [line for line in said.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        return {"failed": _last(errors) or f"exit status {process.returncode}"}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def module(name: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """Return the command that runs a module of the benchmarks."""
    return [python, "-W", "ignore", "-m", f"benchmarks.{name}", *arguments]


def end(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it has started in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(process: subprocess.Popen[Any], limit_s: float, memory: list[tuple[float, float]] | None) -> bool:
    """Wait for its end; return whether that came too late."""
    start = time.perf_counter()
    if memory is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(limit_s)
            return False
        return True
    looked = psutil.Process(process.pid)
    while process.poll() is None:
        passed = time.perf_counter() - start
        if passed > limit_s:
            return True
        with suppress(psutil.Error):
            memory.append((round(passed, 2), round(looked.memory_info().rss / 2**20, 1)))
        time.sleep(max(LOOK_S, passed / 200))
    return False


def _last(errors: str) -> str:
    """Return the last words of a failure, without a path of this machine."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    for known in (str(ROOT), str(Path.home())):
        said = said.replace(known, "…")
    return said[:TOLD]
