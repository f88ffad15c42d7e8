"""Runs commands in separate processes with a time limit; the whole process session is killed at the end."""

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
"""Default time limit of a cell in seconds."""
MAX_FAILURE_CHARS = 300
"""Maximum length of a recorded failure message, in characters."""
SAMPLE_S = 0.05
"""Shortest interval between two samples of a process's memory, in seconds."""

ENVIRONMENT = {
    "OPENAI_API_KEY": "none",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PYTHONDONTWRITEBYTECODE": "",
}
"""Environment of every cell: no real key, no network, no log line per task run, compiled modules are cached."""


def run(
    command: Sequence[str],
    *,
    limit_s: float = LIMIT_S,
    env: Mapping[str, str] | None = None,
    memory: list[tuple[float, float]] | None = None,
) -> dict[str, Any]:
    """Run a command and return the last line of JSON that it prints, or its failure as `failed`.

    Args:
        command: The command; its working directory is the root of the repository.
        limit_s: Time limit in seconds.
        env: Additional environment variables.
        memory: List to which samples (seconds, megabytes) are appended while it runs.
    """
    with TemporaryDirectory(prefix="cell-") as folder:
        outs = Path(folder, "stdout"), Path(folder, "stderr")
        with outs[0].open("wb") as stdout, outs[1].open("wb") as stderr:
            process = subprocess.Popen(  # noqa: S603 -- our own commands
                command,
                cwd=ROOT,
                env={**os.environ, **ENVIRONMENT, "TMPDIR": folder, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                timed_out = _wait(process, limit_s, memory)
            finally:
                kill_session(process)
        output, errors = (path.read_text(encoding="utf-8", errors="replace") for path in outs)
    if timed_out:
        return {"failed": f"timed out after {limit_s:g} s"}
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        return {"failed": _failure_message(errors) or f"exit status {process.returncode}"}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def module_command(name: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """Return the command line that runs a module of the benchmarks."""
    return [python, "-W", "ignore", "-m", f"benchmarks.{name}", *arguments]


def kill_session(process: subprocess.Popen[Any]) -> None:
    """Kill a process and all other processes of its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(process: subprocess.Popen[Any], limit_s: float, memory: list[tuple[float, float]] | None) -> bool:
    """Wait until a process ends; return whether it exceeded the time limit."""
    start = time.perf_counter()
    if memory is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(limit_s)
            return False
        return True
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        passed = time.perf_counter() - start
        if passed > limit_s:
            return True
        with suppress(psutil.Error):
            memory.append((round(passed, 2), round(watched.memory_info().rss / 2**20, 1)))
        time.sleep(max(SAMPLE_S, passed / 200))
    return False


def _failure_message(errors: str) -> str:
    """Return the last line of an error output, without paths of this machine."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    message = lines[-1] if lines else ""
    for path in (str(ROOT), str(Path.home())):
        message = message.replace(path, "…")
    return message[:MAX_FAILURE_CHARS]
