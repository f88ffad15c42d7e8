"""Runs of examples as text files that are the same in every run: what golden files are made of and compared with.

What varies from run to run, or from machine to machine, stands there as a placeholder in angle brackets:

- `<folder>`, `<store>`, `<state>`: the temporary folders of a run, the result storage and the state folder.
- `<time>`, `<seconds>`: a time of day, and a duration.
- `<id>`: the id of a flow run, a workspace or a lease; `<server>`: the address of the model's server.
- `<version>`: the version of Prefect or of this package.
- `<checksum>`: the checksum in a stored record, where it is the one of the record's text.
- `<job>`: the digest in the key of a last-run record, which depends on the folder (see `test_golden_store`).
- `<digest>`: the digest of an answer that holds a duration.
- `<output>`: the output of a program, which is another one with each version of it.
- `<the report>`: a stored report that is equal to the one in the report folder.
- `<fingerprint of …>`: a fingerprint that depends on the folder in which a command runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from examples.modules.make_repo import make
from prefect_dispatch.flows.runtime.cost_record import KEY as COSTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import JsonValue

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
AUTHOR = {
    f"GIT_{role}_{name}": value
    for role in ("AUTHOR", "COMMITTER")
    for name, value in (("NAME", "A"), ("EMAIL", "a@example.org"), ("DATE", "@1700000000 +0000"))
}
PLAIN_GIT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
"""So that nobody's settings have a say in the commits."""


@dataclass(frozen=True)
class Example:
    """A job that is run, and what it needs around it."""

    name: str
    """The folder of its golden files."""
    job: str
    """The job file, from the root of the repository."""
    options: tuple[str, ...] = ()
    """Options of the command line."""
    prepare: Callable[[Path], None] = field(default=lambda _folder: None)
    """Makes what the job needs beside its files, in the folder that stands for the repository."""
    in_folder: bool = False
    """Whether fingerprints depend on the folder: commands that run without a workspace."""
    timed: bool = False
    """Whether answers hold durations, so that their digests vary."""

    @property
    def golden(self) -> Path:
        """The folder of its golden files."""
        return GOLDEN / self.name

    def copy(self, folder: Path) -> None:
        """Copy the files of the job into a folder that stands for the repository."""
        home = Path(self.job).parent
        shutil.copytree(ROOT / home, folder / home, ignore=shutil.ignore_patterns("__pycache__"))
        if home.name == "forms":
            shutil.copytree(ROOT / "examples" / "licenses", folder / "examples" / "licenses")
        self.prepare(folder)


def commit(folder: Path) -> None:
    """Make a folder a repository with one commit, which is the same on every machine."""
    for command in (["init", "--quiet", "--initial-branch=main"], ["add", "."], ["commit", "--quiet", "-m", "One"]):
        subprocess.run(["git", *command], cwd=folder, env={**os.environ, **AUTHOR, **PLAIN_GIT}, check=True)  # noqa: S603, S607 -- git


def _suite(folder: Path) -> None:
    shutil.copy(GOLDEN / "suite.py", folder)
    commit(folder)


def _calculator(folder: Path) -> None:
    make(folder / "examples" / "modules" / "calculator")


def _repository(folder: Path) -> None:
    repository = folder / "tests" / "golden" / "jobs" / "repository"
    repository.mkdir()
    (repository / "notes.txt").write_text("notes\n", encoding="utf-8")
    commit(repository)


MODEL = ("--model", "openai/golden")
SUITE = ("--set", 'command=exec python3 suite.py "$REPORT_DIR/junit.xml"')
"""In place of pytest, whose reports differ from version to version."""
EXAMPLES = (
    Example("collate", "examples/licenses/job.yaml", (*MODEL, "--limit", "6")),
    Example("synthesize", "examples/licenses/synthesis.yaml", (*MODEL, "--limit", "4")),
    Example("tournament", "examples/taglines/job.yaml", MODEL),
    Example("test_matrix", "examples/matrix/job.yaml", SUITE, _suite, timed=True),
    Example("test_matrix_service", "examples/service/job.yaml", SUITE, _suite, timed=True),
    Example("build_modules", "examples/modules/build_modules.yaml", prepare=_calculator),
    Example("commands", "examples/scripts/job.yaml", in_folder=True),
    Example("analyze_files", "examples/forms/analyze_files.yaml", MODEL),
    Example("content_variants", "examples/forms/content_variants.yaml", MODEL),
    Example("research_topics", "examples/forms/research_topics.yaml", MODEL),
    Example("merge_records", "tests/golden/jobs/merge_records.yaml"),
    Example("consensus", "tests/golden/jobs/consensus.yaml"),
    Example("merge_branches", "tests/golden/jobs/branches.yaml", prepare=_repository),
    Example("synthesize_value", "tests/golden/jobs/synthesize_value.yaml"),
    Example("split", "tests/golden/jobs/split.yaml"),
    Example("faults", "tests/golden/jobs/faults.yaml"),
)


@dataclass(frozen=True)
class Run:
    """What a run left."""

    command: Sequence[str]
    """The command."""
    code: int
    """Its exit status."""
    out: str
    """What it printed on standard output."""
    err: str
    """What it printed on standard error."""
    report: Path
    """The folder of its report."""
    store: Path
    """The result storage."""
    requests: Sequence[JsonValue]
    """The bodies of the requests that the model's server received."""
    places: Mapping[str, str]
    """What stands for paths and addresses of this run."""


def texts(run: Run, example: Example) -> dict[str, str]:
    """Return the golden files of a run: their texts by their names."""
    report: dict[str, Any] = json.loads((run.report / "report.json").read_text(encoding="utf-8"))
    outcomes = [*_lines(run.report / "outcomes.jsonl")]
    questions = [*_lines(run.report / "questions.jsonl")]
    fingerprints = {f"{each['brief']}/{each['item']}": each["fingerprint"] for each in (*outcomes, *questions)}
    places = dict(run.places)
    if example.in_folder:
        places |= {each: f"<fingerprint of {name}>" for name, each in fingerprints.items()}
    found: dict[str, JsonValue] = {
        "stored.json": stored(run.store, report),
        "value.json": report.pop("value"),
        "ledger.json": report.pop("ledger"),
        "outcomes.json": cast("JsonValue", outcomes),
        "fingerprints.json": cast("JsonValue", fingerprints),
    }
    del report["run"]
    found["report.json"] = report
    if questions:
        questions.sort(key=lambda each: (each["brief"], each["item"]))  # in the file they stand as they came
        found["questions.json"] = cast("JsonValue", questions)
    if run.requests:
        found["requests.json"] = sorted(run.requests, key=written)
    files = {
        name: written(_steady(_replaced(value, places), timed=example.timed)) + "\n" for name, value in found.items()
    }
    files["report.md"] = _steady_tables(replaced((run.report / "report.md").read_text(encoding="utf-8"), places))
    files["command.txt"] = replaced(printed(run.command, run.code, run.out, run.err), places)
    return files


def _lines(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def printed(command: Sequence[str], code: int, out: str, err: str) -> str:
    """Return what a command printed, and its exit status."""
    # What programs are doing is looked up every few seconds, so only slow runs show it.
    last = re.sub(r"(?m)(^\d+/\d+ .*\n)(?:  .*\n)+", r"\1", err)
    last = re.sub(r"(?m)^\d+/\d+ .*\n(?=\d+/\d+ )", "", last)  # of the lines that tell the progress the last one
    last = re.sub(r"(?m)^\d\d:\d\d:\d\d\.\d{3} \| .*\n", "", last)  # the log, where tests before this one have it shown
    out = re.sub(r"(?m)^(asked .*, )[\d.]+ s$", r"\1<seconds> s", out)
    out = re.sub(r", seconds waited, all calls together \d+", "", out)  # told from half a second on
    lines = [f"$ {shlex.join(command)}", f"exit status {code}", "--- standard output", out, "--- standard error", last]
    return "\n".join(lines)


def stored(store: Path, report: JsonValue) -> JsonValue:
    """Return what lies in a result storage: each file by its key, read as what it is.

    Args:
        store: The folder of the storage.
        report: The report of the run, which is stored, too.
    """
    files = sorted(path for path in store.rglob("*") if path.is_file() and path.parent.name != _JOURNALS)
    files = [path for path in files if not path.name.startswith(COSTS)]  # the report has the same bill
    found: dict[str, JsonValue] = {}
    unnamed: list[JsonValue] = []  # under names that Prefect makes up: the report, and errors of task runs
    for path in files:
        key, record = path.relative_to(store).as_posix(), _record(path.read_text(encoding="utf-8"))
        if record == {"prefect-dispatch-report": report}:
            record = cast("JsonValue", {"prefect-dispatch-report": "<the report>"})
        if _MADE_UP.fullmatch(key):
            unnamed.append(json.loads(json.dumps(record).replace(key, "<id>")))
        else:
            found[_JOB.sub("<job>", key)] = record
    return {**found, "<id>": unnamed}


_JOURNALS = ".prefect-dispatch.journals"
_MADE_UP = re.compile(r"[0-9a-f]{32}")
_JOB = re.compile(r"(?<=^prefect-dispatch\.job-)[0-9a-f]{64}$")


def _record(text: str) -> JsonValue:
    """Return a stored file as JSON, with the result inside a record of Prefect's, and checksums that are right."""
    if not text.startswith("{"):
        return text
    record = cast("JsonValue", json.loads(text))
    if isinstance(record, dict) and isinstance(result := record.get("result"), str):
        record["result"] = _result(result)
    return record


def _result(text: str) -> JsonValue:
    result = cast("JsonValue", json.loads(text))
    if isinstance(result, dict) and "sha256" in result:
        inside = text[text.index(": ") + 2 : text.rindex(', "sha256"')]
        right = hashlib.sha256(inside.encode()).hexdigest() == result["sha256"]
        result["sha256"] = "<checksum>" if right else "another checksum than that of the text"
    return result


WIDTH = 118
"""Characters of a line within which a value is written on one line."""


def written(value: JsonValue, indent: int = 0) -> str:
    """Return JSON with sorted keys, on one line where that is short enough, else a line for each part."""
    line = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if len(line) + indent <= WIDTH or not isinstance(value, (dict, list)) or not value:
        return line
    space = " " * (indent + 1)
    if isinstance(value, list):
        parts = [f"{space}{written(each, indent + 1)}" for each in value]
        return ",\n".join(parts).join(["[\n", f"\n{' ' * indent}]"])
    names = [f"{space}{json.dumps(name, ensure_ascii=False)}: " for name in sorted(value)]
    parts = [f"{name}{written(value[key], indent + 1)}" for name, key in zip(names, sorted(value), strict=True)]
    return ",\n".join(parts).join(["{\n", f"\n{' ' * indent}}}"])


_VARYING: dict[str, JsonValue] = {
    "started": "<time>",
    "seconds": "<seconds>",
    "waited_s": "<seconds>",
    "prefect_version": "<version>",
    "flow_run": "<id>",
}


def _steady(value: JsonValue, *, timed: bool = False) -> JsonValue:
    """Return a value with placeholders in place of times and durations, by the names of their fields."""
    if isinstance(value, list):
        steady = [_steady(each, timed=timed) for each in value]
        return sorted(steady, key=written) if value and all(map(_is_error, value)) else steady
    if not isinstance(value, dict):
        return value
    if timed and "prefect-dispatch-memory" in value:
        value = cast("dict[str, JsonValue]", json.loads(_DIGEST.sub(r"\1<digest>", json.dumps(value))))
    return {
        name: _VARYING[name] if name in _VARYING and each is not None else _steady(each, timed=timed)
        for name, each in value.items()
    }


_DIGEST = re.compile(r'((?:"value": |true, "\w{64}", )")\w{64}')


def _is_error(record: JsonValue) -> bool:
    return isinstance(record, dict) and bool(record.keys() & {"metadata", "prefect-dispatch-report"})


def _steady_tables(text: str) -> str:
    """Return Markdown with placeholders for durations: in figures, in columns of seconds, and in JSON."""
    text = re.sub(r"(?m)^(\| seconds \| [^|]* \|) [^|]* \|", r"\1 <seconds> |", text)
    text = re.sub(r"(?m)^\| seconds waited, .*\n", "", text)
    text = re.sub(r'(?m)^( *"seconds": )[\d.]+(,?)$', r'\1"<seconds>"\2', text)
    lines, column = text.split("\n"), -1
    for at, line in enumerate(lines):
        cells = line.split(" | ")
        if lines[at + 1 : at + 2] and lines[at + 1].startswith("| ---"):
            column = cells.index("seconds") if "seconds" in cells else -1
        elif column >= 0 and not line.startswith("|"):
            column = -1
        elif column >= 0 and not line.startswith("| ---"):
            lines[at] = " | ".join([*cells[:column], "<seconds>", *cells[column + 1 :]])
    return "\n".join(lines)


_PATTERNS = (
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)"), "<time>"),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"(?<=<state>/leases/)[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"(?<=<state>/logs/)\d{8}/\d+(?=\.log)"), "<time>"),
    # In the JUnit document of a report, inside JSON.
    (re.compile(r'(<testsuite name=[^<>]* time=\\")[\d.]+'), r"\1<seconds>"),
    # Cut after so many characters, those of paths included.
    (re.compile(r"(?<=and said at last:)(\\n|\n)(?s:.*?)…"), "<output>…"),
    # What `sh` says of a script is in its own words: dash's, or bash's.
    (
        re.compile(r'(?<=unfinished\.sh: )(\d+: Syntax error: .*?\(expecting \\?"fi\\?"\)|line \d+: syntax [^"|(]*)'),
        "<output>",
    ),
)


def _replaced(value: JsonValue, places: Mapping[str, str]) -> JsonValue:
    return cast("JsonValue", json.loads(replaced(json.dumps(value, ensure_ascii=False), places)))


def replaced(text: str, places: Mapping[str, str]) -> str:
    """Return a text with placeholders for what varies.

    Args:
        text: The text.
        places: What stands for paths and addresses of the run.
    """
    for place in sorted(places, key=len, reverse=True):
        text = re.sub(_spelling(place), places[place].replace("\\", r"\\"), text)
    for pattern, placeholder in _PATTERNS:
        text = pattern.sub(placeholder, text)
    return text


def _spelling(place: str) -> str:
    """Return a pattern for a place in which Markdown may have escaped some characters, such as a `_` at its end."""
    return "".join(each if each.isalnum() else f"(?:{re.escape(each)}|&#{ord(each)};)" for each in place)
