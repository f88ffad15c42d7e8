"""Measures start-up: imports, the command's help and the plan of a job, each in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.subprocesses import ENVIRONMENT, ROOT

RUNS = 5
_MODEL = {
    "briefs": [{"name": "say", "instructions": "Say fine."}],
    "items": ["a", "b", "c"],
    "executor": {"model": "openai/gpt-5-mini"},
}
_SHELL = {
    "briefs": [{"name": "say", "instructions": "Say fine.", "command": {"run": "true"}}],
    "items": ["a", "b", "c"],
    "executor": {"kind": "shell"},
}
_JOBS = {"model.yaml": _MODEL, "shell.yaml": _SHELL}  # JSON is YAML
_PYTHON = (sys.executable, "-W", "ignore")
_COMMAND = str(Path(sys.executable).with_name("prefect-dispatch"))
_FLOW = "from prefect import flow, task"
_TIME_IMPORT = "import time; start = time.process_time(); import prefect_dispatch; print(time.process_time() - start)"
"""Prints the import's own time; the difference between two processes would be smaller than their variance."""
_WITH: dict[str, tuple[str, ...]] = {
    "import prefect": (*_PYTHON, "-c", "import prefect"),
    "import prefect_dispatch": (*_PYTHON, "-c", "import prefect_dispatch"),
    "import prefect's flow and task": (*_PYTHON, "-c", _FLOW),
    "import prefect_dispatch after these": (*_PYTHON, "-c", f"{_FLOW}; {_TIME_IMPORT}"),
    "the same, and its dispatch": (
        *_PYTHON,
        "-c",
        f"{_FLOW}; from prefect_dispatch import dispatch",
    ),
    "import litellm": (*_PYTHON, "-c", "import litellm"),
    "prefect-dispatch --help": (_COMMAND, "--help"),
    "plan, a model to ask and to price": (_COMMAND, "plan", "model.yaml"),
    "plan, a command to run": (_COMMAND, "plan", "shell.yaml"),
}
COMMANDS = dict.fromkeys(_WITH, 5.0)
"""Measured commands with their estimated durations in seconds."""


def measure_command(name: str, runs: int) -> dict[str, Any]:
    """Return the seconds of the quickest of several runs of a command; slower ones were delayed by other processes.

    Raises:
        CalledProcessError: If the command fails.
    """
    with TemporaryDirectory(prefix="start-") as folder:
        for file, job in _JOBS.items():
            Path(folder, file).write_text(json.dumps(job), encoding="utf-8")
        taken: list[tuple[float, float]] = []
        env = {**os.environ, **ENVIRONMENT, "PREFECT_HOME": folder, "PYTHONPATH": str(ROOT / "src")}
        for _ in range(runs):
            start, before = time.perf_counter(), os.times()
            ran = subprocess.run(_WITH[name], cwd=folder, env=env, check=True, capture_output=True, timeout=120)  # noqa: S603 -- our own commands
            after = os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            if _TIME_IMPORT in _WITH[name][-1]:
                taken.append((float(ran.stdout), float(ran.stdout)))
            else:
                taken.append((time.perf_counter() - start, cpu))
    return {"seconds": round(min(each[0] for each in taken), 4), "cpu_s": round(min(each[1] for each in taken), 4)}
