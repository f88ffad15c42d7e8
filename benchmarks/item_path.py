"""Prints the modules that one item's run enters, from the command line to report.json.

Run `python -m benchmarks.item_path [--list]`. A job of one brief and one item runs in a process of its own, with a
profile function that records the file of every function that is called; a module that is only imported does not count.
Those that are entered while the fan-out runs are counted again: all of them, and those that process the item (`tasks/`,
`calls/` and `executors/`), without what these use (models, redaction, serialization).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if not __package__:  # run as a file: `python benchmarks/item_path.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.latency_server import latency_server
from benchmarks.subprocesses import ENVIRONMENT, ROOT

FAN_OUT = ("tasks/", "src/prefect_dispatch/calls/", "src/prefect_dispatch/executors/")
_RECORD = """
import atexit, json, os, sys, threading
entered, in_fan_out, is_fanning_out = set(), set(), False

def is_ours(frame):
    return "prefect_dispatch" in frame.f_code.co_filename

def record(frame, event, _):
    global is_fanning_out
    if event not in ("call", "return") or not is_ours(frame):
        return
    if frame.f_code.co_name == "run" and frame.f_code.co_filename.endswith("tasks/fan_out.py"):
        is_fanning_out = event == "call"
    known = in_fan_out if is_fanning_out else entered
    if event != "call" or frame.f_code.co_filename in known:
        return
    caller = frame
    while caller is not None:  # what runs while a module is imported is no step of the run
        if caller.f_code.co_name == "<module>" and is_ours(caller):
            return
        caller = caller.f_back
    entered.add(frame.f_code.co_filename)
    if is_fanning_out:
        in_fan_out.add(frame.f_code.co_filename)

sys.setprofile(record)
threading.setprofile(record)
atexit.register(lambda: json.dump([sorted(entered), sorted(in_fan_out)], open(os.environ["ITEM_PATH"], "w")))
from prefect_dispatch.cli import main
sys.exit(main(["run", "job.json", "--out", "out"]))
"""


def entered_modules() -> tuple[list[str], list[str]]:
    """Return the modules that a run of one item enters, and those that it enters while it fans out.

    Returns:
        Their paths, relative to the repository, sorted.

    Raises:
        CalledProcessError: If the run fails.
    """
    with latency_server(0.0) as server, TemporaryDirectory(prefix="item-path-") as folder:
        job: dict[str, Any] = {
            "briefs": [{"name": "say", "instructions": "Say fine."}],
            "items": ["a"],
            "executor": {"model": "openai/test", "api_base": server.url},
        }
        Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
        entered = Path(folder, "entered.json")
        env = {
            **os.environ,
            **ENVIRONMENT,
            "PREFECT_HOME": folder,
            "PYTHONPATH": str(ROOT / "src"),
            "OPENAI_API_KEY": "none",
        }
        command = [sys.executable, "-W", "ignore", "-c", _RECORD]
        subprocess.run(command, cwd=folder, env={**env, "ITEM_PATH": str(entered)}, check=True, capture_output=True)  # noqa: S603 -- ours
        whole, fan_out = json.loads(entered.read_text(encoding="utf-8"))
    return _relative(whole), _relative(fan_out)


def _relative(files: list[str]) -> list[str]:
    return sorted(str(Path(each).resolve().relative_to(ROOT)) for each in files)


def main() -> None:
    """Print the figures, and the modules if asked to."""
    parser = argparse.ArgumentParser(description="Print the modules that the run of one item enters.")
    parser.add_argument("--list", action="store_true", help="print the modules, too")
    asked = parser.parse_args()
    modules, fan_out = entered_modules()
    print("modules that one item's run enters:", len(modules))
    print("of these, between the fan-out and the stored answer:", len(fan_out))
    print("of these in tasks/, calls/ and executors/:", sum(each.startswith(FAN_OUT) for each in fan_out))
    if asked.list:
        print(*(f"{'fan-out' if each in fan_out else '       '} {each}" for each in modules), sep="\n")


if __name__ == "__main__":
    main()
