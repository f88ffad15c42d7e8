"""Runs of the examples, compared with golden files: what was told, merged and stored stays as it is.

The golden files stand in `tests/golden/<example>/`, a file for each part of what a run leaves. `value.json`,
`ledger.json`, `fingerprints.json`, `stored.json` and `requests.json` have to stay equal through every refactoring; what
people read (`report.md`, `command.txt`, `report.json`) may change where a commit says so. `tests/golden_runs.py` says
what the placeholders in them stand for. To write them again: `UPDATE_GOLDEN=1 pytest -m "slow or not slow"
tests/test_golden.py`.
"""

from __future__ import annotations

import os
from difflib import unified_diff
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from prefect_dispatch.cli.commands import UNUSABLE, main
from tests.golden_answers import answer
from tests.golden_runs import EXAMPLES, GOLDEN, Example, Run, printed, replaced, texts
from tests.openai_server import openai_server

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

UPDATE = bool(os.environ.get("UPDATE_GOLDEN"))
"""Whether golden files are written, and not compared with."""
LONGEST = 20_000
"""Characters of a difference that are shown."""


def compare(folder: Path, found: Mapping[str, str]) -> None:
    """Compare texts with the golden files of a folder, or write those; a difference is shown line by line."""
    if UPDATE:
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name, text in found.items():
            (folder / name).write_text(text, encoding="utf-8")
        return
    golden = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    lines = [
        line
        for name in sorted({*golden, *found})
        for line in unified_diff(
            golden.get(name, "").splitlines(),
            found.get(name, "").splitlines(),
            f"golden/{folder.name}/{name}",
            f"this run: {name}",
            lineterm="",
        )
    ]
    if lines:
        pytest.fail("\n".join(lines)[:LONGEST], pytrace=False)


def run(
    example: Example, store: Path, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run an example in a folder of its own beside the storage, against a server that answers by the request alone."""
    folder = store.parent / "repository"
    folder.mkdir()
    example.copy(folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PREFECT_DISPATCH_MODEL", raising=False)
    command = ["run", example.job, *example.options, "--out", "report"]
    with openai_server(answer) as server:
        # Not as `api_base` in the job: an address counts in the fingerprint, and the port is another one each time.
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
        capsys.readouterr()
        code = main(command)
    told = capsys.readouterr()
    places = {str(folder): "<folder>", str(store): "<store>", str(state): "<state>", server.url: "<server>"}
    requests = [request.body for request in server.requests]
    return Run(("prefect-dispatch", *command), code, told.out, told.err, folder / "report", store, requests, places)


def test_a_path_is_replaced_however_markdown_escaped_it() -> None:
    """The name of a temporary folder may end in a character that Markdown escapes."""
    text = "in /tmp/s-a_ and /tmp/s-a&#95;/logs, not in /tmp/s-a"
    assert replaced(text, {"/tmp/s-a_": "<state>"}) == "in <state> and <state>/logs, not in /tmp/s-a"  # noqa: S108 -- not opened


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A state folder whose path is short: a report cuts messages that are too long, and these end with a path in it."""
    with TemporaryDirectory(prefix="s-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("PREFECT_DISPATCH_STATE", folder)
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("example", [pytest.param(each, id=each.name) for each in EXAMPLES])
def test_a_run_is_what_it_was(
    example: Example, store: Path, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Value, ledger, fingerprints, stored records, requests, report and output of each example are the golden ones."""
    compare(example.golden, texts(run(example, store, state, monkeypatch, capsys), example))


@pytest.mark.parametrize(
    ("name", "command", "code"),
    [
        pytest.param("plan", ["plan", "examples/scripts/job.yaml"], 0, id="plan"),
        pytest.param("unusable", ["run", "tests/golden/jobs/unusable.yaml"], UNUSABLE, id="unusable"),
        pytest.param("automations", ["automations"], 0, id="automations", marks=pytest.mark.slow),
    ],
)
def test_a_command_says_what_it_said(
    name: str,
    command: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Commands that ask nobody print what they printed; the automations name the states and events of runs."""
    monkeypatch.chdir(GOLDEN.parents[1])
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path}):
        assert main(command) == code
    told = capsys.readouterr()
    compare(GOLDEN / name, {"command.txt": printed(["prefect-dispatch", *command], code, told.out, told.err)})
