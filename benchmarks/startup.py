"""Measures start-up: imports, help, refusals, plans, and whole runs of one item, each in a new process.

Run `python -m benchmarks.startup [--source FOLDER …] [--runs N] [--only TEXT …]`: it prints the processor seconds of
each command, its child processes included, and for runs the seconds by the clock until the model's server gets the
first request. With `--source`, each command is run in turn with the package of each of these checkouts, so that other
load on the machine counts for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.figures import table
from benchmarks.latency_server import ANSWER, format_responses
from benchmarks.servers import prefect_server
from benchmarks.subprocesses import ENVIRONMENT, ROOT

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

RUNS = 5
_BRIEF = {"name": "say", "instructions": "Say fine."}
_MODEL: dict[str, Any] = {
    "briefs": [_BRIEF],
    "items": ["a", "b", "c"],
    "executor": {"model": "openai/gpt-5-mini"},
}
_ONE = {**_MODEL, "items": ["a"]}
_SHELL = {
    "briefs": [{**_BRIEF, "command": {"run": "true"}}],
    "items": ["a", "b", "c"],
    "executor": {"kind": "shell"},
}
_FORM = {"flow": "analyze_files", "instructions": "Say fine.", "files": "missing/*.txt", "model": "openai/gpt-5-mini"}
_JOBS: dict[str, dict[str, Any]] = {
    "model.yaml": _MODEL,
    "shell.yaml": _SHELL,
    "key.yaml": {**_MODEL, "exekutor": {}},
    "value.yaml": {**_MODEL, "limits": {"concurrency": 0}},
    "form.yaml": {**_FORM, "concurrency": 0},
    "items.yaml": {**_MODEL, "items": {"glob": "missing/*.txt"}},
    "files.yaml": _FORM,
    "unknown.yaml": {**_MODEL, "executor": {"model": "opnai/gpt-5-mini"}},
    "hosted.yaml": _ONE,
    "own.yaml": {**_ONE, "executor": {"model": "openai/test", "api_base": "{address}"}},
}
"""Job files by name; JSON is YAML."""
_PLAIN = """
import os, urllib.request
from prefect import flow, task

@task
def ask():
    return urllib.request.urlopen(os.environ["OPENAI_API_BASE"] + "/plain").read()

@flow
def one():
    return ask()

one()
"""
_PYTHON = (sys.executable, "-W", "ignore")
_COMMAND = str(Path(sys.executable).with_name("prefect-dispatch"))
_FLOW = "from prefect import flow, task"
_TIME_IMPORT = "import time; start = time.process_time(); import prefect_dispatch; print(time.process_time() - start)"
"""Prints the import's own time; the difference between two processes would be smaller than their variance."""


@dataclass(frozen=True)
class Measured:
    """A measured command."""

    command: tuple[str, ...]
    """The command line."""
    about_s: float = 5.0
    """Estimated seconds of a run."""
    code: int = 0
    """Its exit status."""
    server: bool = False
    """Whether a Prefect server runs, on an empty database."""
    stored: bool = False
    """Whether the same command ran before with the same database and answers; otherwise only the database exists."""

    @property
    def asks(self) -> bool:
        """Whether it sends a request to the model's server."""
        return "run" in self.command or _PLAIN in self.command


_WITH: dict[str, Measured] = {
    "import prefect": Measured((*_PYTHON, "-c", "import prefect")),
    "import prefect_dispatch": Measured((*_PYTHON, "-c", "import prefect_dispatch")),
    "import prefect's flow and task": Measured((*_PYTHON, "-c", _FLOW)),
    "import prefect_dispatch after these": Measured((*_PYTHON, "-c", f"{_FLOW}; {_TIME_IMPORT}")),
    "the same, and its dispatch": Measured((*_PYTHON, "-c", f"{_FLOW}; from prefect_dispatch import dispatch")),
    "import litellm": Measured((*_PYTHON, "-c", "import litellm")),
    "prefect-dispatch --help": Measured((_COMMAND, "--help")),
    "refusal of a wrong key": Measured((_COMMAND, "plan", "key.yaml"), code=2),
    "refusal of a wrong value": Measured((_COMMAND, "plan", "value.yaml"), code=2),
    "refusal of a wrong value of a form": Measured((_COMMAND, "plan", "form.yaml"), code=2),
    "refusal of missing items": Measured((_COMMAND, "plan", "items.yaml"), code=2),
    "refusal of missing items of a form": Measured((_COMMAND, "plan", "files.yaml"), code=2),
    "refusal of an unknown model": Measured((_COMMAND, "plan", "unknown.yaml"), code=2),
    "plan, a model to ask and to price": Measured((_COMMAND, "plan", "model.yaml")),
    "plan, a command to run": Measured((_COMMAND, "plan", "shell.yaml")),
    "one item with a server, self-hosted": Measured((_COMMAND, "run", "own.yaml"), 15.0, server=True),
    "one item with a server, hosted": Measured((_COMMAND, "run", "hosted.yaml"), 15.0, server=True),
    "one stored item with a server": Measured((_COMMAND, "run", "own.yaml"), 15.0, server=True, stored=True),
    "a plain Prefect flow with a server": Measured((*_PYTHON, "-c", _PLAIN), 15.0, server=True),
    "one item without a server, self-hosted": Measured((_COMMAND, "run", "own.yaml"), 30.0),
    "one item without a server, hosted": Measured((_COMMAND, "run", "hosted.yaml"), 30.0),
    "a plain Prefect flow without a server": Measured((*_PYTHON, "-c", _PLAIN), 30.0),
}
COMMANDS = {name: measured.about_s for name, measured in _WITH.items()}
"""Measured commands with their estimated durations in seconds."""


class ModelServer(ThreadingHTTPServer):
    """A model's server in this process that answers at once.

    Attributes:
        first: The time (`time.perf_counter`) of the first request since it was set to None.
    """

    first: float | None = None

    @property
    def address(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        assert isinstance(self.server, ModelServer)  # noqa: S101 -- the server beside it
        self.server.first = self.server.first or time.perf_counter()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.wfile.write(format_responses(ANSWER)[-1][1])

    do_GET = do_POST = _answer  # noqa: N815 -- the names of http.server

    def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] -- nothing is logged
        """Log nothing."""


@contextmanager
def model_server() -> Generator[ModelServer]:
    """Run a model's server in a thread."""
    with ModelServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def measure_command(name: str, runs: int) -> dict[str, Any]:
    """Return the seconds of the quickest of several runs of a command; slower ones were delayed by other processes.

    Raises:
        RuntimeError: If the command fails.
    """
    return measure_in_turn(name, runs, [ROOT])[0]


def measure_in_turn(name: str, runs: int, sources: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the measurements of a command for each of several checkouts, which are measured in turn.

    Raises:
        RuntimeError: If the command fails.
    """
    measured = _WITH[name]
    with (
        model_server() as model,
        prefect_server() if measured.server else nullcontext() as server,
        TemporaryDirectory(prefix="start-") as folder,
    ):
        places = [Path(folder, str(number)) for number in range(len(sources))]
        for place in places:
            place.mkdir()
            for file, job in _JOBS.items():
                place.joinpath(file).write_text(json.dumps(job).replace("{address}", model.address), encoding="utf-8")
        taken: list[list[dict[str, float]]] = [[] for _ in sources]
        unmeasured = 1 if measured.stored or (measured.asks and not measured.server) else 0
        for turn in range(unmeasured + runs):
            for found, place, source in zip(taken, places, sources, strict=True):
                env = {
                    **os.environ,
                    **ENVIRONMENT,
                    "PREFECT_HOME": str(place / ".prefect"),
                    **(server.env if server else {}),
                    "PREFECT_LOCAL_STORAGE_PATH": str(place / ("stored" if measured.stored else f"turn-{turn}")),
                    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
                    "OPENAI_API_BASE": model.address,
                    "PYTHONPATH": str(source / "src"),
                }
                seconds = _run_once(measured, place, env, model)
                if turn >= unmeasured:  # the first one creates the database, or stores the answer
                    found.append(seconds)
    return [{key: round(min(each[key] for each in found), 4) for key in found[0]} for found in taken]


def _run_once(measured: Measured, folder: Path, env: Mapping[str, str], model: ModelServer) -> dict[str, float]:
    """Run a command and return its seconds: by the clock, of the processor, and until the first request."""
    model.first = None
    start, before = time.perf_counter(), os.times()
    ran = subprocess.run(measured.command, cwd=folder, env=env, check=False, capture_output=True, timeout=300)  # noqa: S603 -- our own commands
    end, after = time.perf_counter(), os.times()
    if ran.returncode != measured.code:
        raise RuntimeError(f"{measured.command}: {ran.returncode}\n{ran.stderr.decode(errors='replace')}")
    if _TIME_IMPORT in measured.command[-1]:
        return {"seconds": float(ran.stdout), "cpu_s": float(ran.stdout)}
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    found = {"seconds": end - start, "cpu_s": cpu}
    if measured.asks and not measured.stored:
        assert model.first is not None, ran.stderr  # noqa: S101 -- it answered
        found["first_s"] = model.first - start
    return found


def main() -> None:
    """Measure the selected commands and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", type=Path, default=[ROOT], metavar="FOLDER", help="checkouts to compare")
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help="runs of each command")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="commands whose name contains a text")
    arguments = parser.parse_args()
    rows: list[list[str]] = []
    for name in COMMANDS:
        if any(text in name for text in arguments.only):
            found = measure_in_turn(name, arguments.runs, [each.resolve() for each in arguments.source])
            columns = [[f"{each[key]:.2f}" if key in each else "" for each in found] for key in ("cpu_s", "first_s")]
            rows.append([name, *columns[0], *columns[1]])
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    heads = [str(number) for number in range(1, len(arguments.source) + 1)] if len(arguments.source) > 1 else [""]
    head = [
        "command",
        *(f"CPU s {each}".strip() for each in heads),
        *(f"first request s {each}".strip() for each in heads),
    ]
    print(table(head, rows))


if __name__ == "__main__":
    main()
