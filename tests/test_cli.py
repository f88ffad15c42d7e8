"""The command line as a user meets it."""

from __future__ import annotations

import ast
import inspect
import io
import json
import os
import pty
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from prefect_dispatch import __version__
from prefect_dispatch.cli import commands, console
from prefect_dispatch.cli.commands import BROKEN_PIPE, COMPLETE, FAILED, GAPS, INTERRUPTED, UNUSABLE, main
from prefect_dispatch.cli.console import show_progress
from prefect_dispatch.executors.live_view import Activity
from prefect_dispatch.flows.job_file import Job, load_flow, load_job, validate_job
from prefect_dispatch.flows.runtime.job_document import FLOWS
from prefect_dispatch.models.outcome import Failure, Outcome, Usage
from prefect_dispatch.reporting.progress import Progress, on_question, progress_listener
from prefect_dispatch.sources import read_items
from tests.openai_server import HANG, Behaviour, document, failure, openai_server
from tests.prefect_database import empty_database
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from prefect_dispatch.models.item import Item
    from prefect_dispatch.sources import Source

KEY = "sk-test-0123456789"

JOB = """
briefs:
  - name: sizes
    instructions: Say how long it is.
    output: {type: object, properties: {size: {type: integer}}, required: [size]}
items: {glob: "texts/*.txt"}
executor: {model: openai/test, api_base: "http://127.0.0.1:9/v1"}
limits: {concurrency: 2, retries: 0, timeout_s: 20}
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job over five texts."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / "texts").mkdir()
    for n in range(5):
        (tmp_path / "texts" / f"t{n}.txt").write_text(f"Text {n}.")
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def at(job: Path, url: str) -> str:
    """Point the job at a server."""
    job.write_text(JOB.replace("http://127.0.0.1:9/v1", url))
    return str(job)


def answer(request: dict[str, Any], n: int) -> Behaviour:
    """Refuse one text, answer the others."""
    if "Text 3" in document(request):
        return failure(400, "not this one")
    return Behaviour(content='{"size": 7}')


def test_an_api_that_is_away_is_a_message(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a sentence, without a traceback; nothing was asked."""
    away: dict[Any, Any] = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with openai_server(answer) as server, temporary_settings(away):
        assert main(["run", at(job, server.url)]) == FAILED
        assert server.count == 0
    said = capsys.readouterr().err
    assert "prefect-dispatch: Prefect's API can't be used: " in said
    assert "Traceback" not in said


@pytest.mark.usefixtures("store")
def test_a_run_plans_answers_writes_and_explains(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plan, run, run again, explain: the figures agree, and the exit status says that there is a gap."""
    with openai_server(answer) as server:
        assert main(["plan", at(job, server.url)]) == COMPLETE
        planned = capsys.readouterr().out
        assert server.count == 0
        assert "to ask             5" in planned
        assert "Fan out: 5 asks" in planned

        assert main(["run", str(job), "--out", str(job.parent / "out")]) == GAPS
        said = capsys.readouterr()
        assert said.out.startswith("Complete with gaps: 4 of 5 answered; no answer for 1")
        assert "asked 5, from the store 0, requests 5, tokens 60, cost unknown" in said.out
        assert "5/5" in said.err
        report = json.loads((job.parent / "out" / "report.json").read_text())
        assert len(report["ledger"]) == 5

        assert main(["run", str(job), "--limit", "2"]) == COMPLETE
        assert "asked 0, from the store 2, requests 0" in capsys.readouterr().out
        assert server.count == 5
        assert main(["run", str(job), "--limit", "1", "--refresh"]) == COMPLETE
        assert server.count == 6
        capsys.readouterr()
        assert main(["plan", str(job), "--refresh", "texts/t[012].txt", "*/t0.txt"]) == COMPLETE
        assert "to ask             4" in capsys.readouterr().out  # the one that was refused, too
        assert main(["run", str(job), "--limit", "2", "--refresh", "sizes/texts/t1.txt"]) == COMPLETE
        assert server.count == 7
        assert "\nSince the last run: nothing changed\n" in capsys.readouterr().out
        for command in ("plan", "run"):
            assert main([command, str(job), "--refresh", "t1.txt"]) == UNUSABLE
            assert "no work is called 't1.txt'; of 5 names near are 'sizes/texts/t1.txt'" in capsys.readouterr().err
        assert server.count == 7

    where = str(job.parent / "out" / "report.json")
    capsys.readouterr()
    assert main(["explain", where]) == COMPLETE
    assert "Ledger: 1 failed, 4 merged" in capsys.readouterr().out
    assert main(["explain", where, "texts/t3.txt"]) == COMPLETE
    assert "not this one" in capsys.readouterr().out
    for name in ("/answers/0/value", "answers.0.value", "texts/t0.txt.value"):
        assert main(["explain", where, name]) == COMPLETE
        assert '/answers/0/value = {"size":7} (from sizes/texts/t0.txt)' in capsys.readouterr().out
    assert main(["explain", where, "texts/t33.txt"]) == UNUSABLE
    assert "near are 'texts/t3.txt'" in capsys.readouterr().err
    assert main(["explain", str(job)]) == UNUSABLE
    assert main(["explain", str(job.parent / "none.json")]) == UNUSABLE


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("integrator", "told"),
    [
        pytest.param("{kind: synthesize, instructions: Sum up.}", "The integrator asks as well, about", id="synthesis"),
        pytest.param("{kind: collate}", None, id="collation"),
    ],
)
def test_a_plan_names_what_the_integrator_asks(
    integrator: str, told: str | None, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An integrator that asks a model itself is named in the plan, and no other."""
    with openai_server(answer) as server:
        assert main(["plan", at(job, server.url), "--set", f"integrator={integrator}"]) == COMPLETE
        assert server.count == 0
    said = capsys.readouterr().out
    assert ("The integrator" in said) is (told is not None)
    assert told is None or told in said


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        pytest.param([], "Collate leaves nothing to decide", id="nothing-to-decide"),
        pytest.param(
            ["integrator={kind: merge_records, identity: [size]}"], "integrator.aliases: decisions.yaml", id="no-file"
        ),
    ],
)
def test_a_review_that_decides_nothing_is_refused(
    changes: list[str], told: str, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 with the way out, before Prefect starts a server of its own."""
    given = [f"--set={change}" for change in ("review=true", *changes)]
    with temporary_settings({PREFECT_API_URL: None}), openai_server(answer) as server:
        assert main(["run", at(job, server.url), *given]) == UNUSABLE
        assert server.count == 0
    assert told in capsys.readouterr().err
    assert main(["plan", str(job), *given]) == UNUSABLE


@pytest.mark.usefixtures("store")
def test_who_has_read_enough_gets_no_traceback(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prefect-dispatch plan job.yaml | head -1`."""
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["plan", str(job)]) == BROKEN_PIPE


@pytest.mark.usefixtures("store")
def test_a_failed_run_says_so(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong key: exit status 1, the reason first, and a report with a row for each item."""
    with openai_server(failure(401, f"Incorrect API key: {KEY}")) as server:
        assert main(["run", at(job, server.url), "--out", str(job.parent / "out")]) == FAILED
    said = capsys.readouterr()
    assert said.out.startswith("Failed: Stopped: sizes/texts/t")
    assert KEY not in said.out + said.err
    assert len(json.loads((job.parent / "out" / "report.json").read_text())["ledger"]) == 5


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="nothing"),
        pytest.param(["walk", "job.yaml"], id="unknown-command"),
        pytest.param(["run"], id="no-job"),
        pytest.param(["run", "job.yaml", "--limit", "0"], id="no-items"),
        pytest.param(["run", "job.yaml", "--limit", "some"], id="not-a-number"),
        pytest.param(["run", "job.yaml", "--out", ""], id="no-folder"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and how to call it."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == UNUSABLE
    assert "usage: prefect-dispatch" in capsys.readouterr().err


LEAVES = """
import sys
from pydantic import BaseModel

def rule(*claims): sys.exit(0)
def metric(value, key): sys.exit(0)

class Size(BaseModel):
    size: int
    @classmethod
    def __get_pydantic_json_schema__(cls, core, handler): sys.exit(0)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("integrator", "status", "told"),
    [
        pytest.param(
            "{kind: merge_records, identity: [name], rules: {size: 'leaves_rule:rule'}}", FAILED, "raised", id="rule"
        ),
        pytest.param("{kind: tournament, metric: 'leaves_metric:metric'}", GAPS, "the metric raised", id="metric"),
    ],
)
def test_a_function_that_exits_does_not_end_the_command(
    job: Path, capsys: pytest.CaptureFixture[str], integrator: str, status: int, told: str
) -> None:
    """`sys.exit(0)` in a rule or a metric: the report is written, and the status doesn't say that all is well."""
    for name in ("rule", "metric"):
        (job.parent / f"leaves_{name}.py").write_text(LEAVES)
    output = "{type: object, properties: {name: {type: string}, size: {type: integer}}, required: [name, size]}"
    with openai_server(lambda request, n: Behaviour(content=f'{{"name": "a", "size": {n}}}')) as server:
        at(job, server.url)
        changes = [f"integrator={integrator}", f"briefs.0.output={output}"]
        changes = [part for change in changes for part in ("--set", change)]
        assert main(["run", str(job), "--out", str(job.parent / "out"), *changes]) == status
    assert f"{told} SystemExit: 0" in capsys.readouterr().out
    report = json.loads((job.parent / "out" / "report.json").read_text())
    assert report["status"] == {FAILED: "failed", GAPS: "gaps"}[status]
    assert f"{told} SystemExit: 0" in json.dumps(report)


def test_an_exit_of_anybodys_is_a_failure(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever code of the user's exits, the status isn't the one that it chose, and a sentence says why."""
    (job.parent / "leaves_size.py").write_text(LEAVES)
    assert main(["plan", at(job, "http://localhost:1"), "--set", "briefs.0.output=leaves_size:Size"]) == FAILED
    assert "code that the command runs ended it (SystemExit: 0)" in capsys.readouterr().err


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the version alone."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


def started(
    arguments: list[str],
    folder: Path,
    *,
    api: str | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start the command line in a process of its own, with a home of its own, and a server of its own or `api`."""
    environment = {**os.environ, "PREFECT_HOME": str(folder / "home"), "OPENAI_API_KEY": KEY}
    environment.pop("PREFECT_API_URL", None)
    if api is not None:
        environment["PREFECT_API_URL"] = api
    else:
        empty_database(folder / "home" / "prefect.db")
    return subprocess.Popen(  # noqa: S603 -- our own command
        [sys.executable, "-m", "prefect_dispatch", *arguments],
        env=environment,
        start_new_session=True,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("stop", [pytest.param(signal.SIGINT, id="ctrl-c"), pytest.param(signal.SIGKILL, id="kill-9")])
def test_an_ended_run_goes_on_with_the_same_command(stop: signal.Signals, job: Path) -> None:
    """Stopped in the middle: what had come is stored, the same command asks only the rest."""

    def half(request: dict[str, Any], n: int) -> Behaviour:
        slow = any(f"Text {number}" in document(request) for number in (2, 3)) and n == 1
        return Behaviour(content='{"size": 7}', hang=slow)

    api = PREFECT_API_URL.value()
    with openai_server(half) as server:
        command = ["run", at(job, server.url), "--out", str(job.parent / "out")]
        log = job.parent / "log"
        with log.open("wb") as stream:
            first = started(command, job.parent, api=api, stderr=stream.fileno())
        wait_until(lambda: server.count == 4, "two answers, two under way")
        stored = f"prefect-dispatch-{'?' * 64}"
        wait_until(lambda: len(list((job.parent / "home" / "storage").glob(stored))) == 2, "two stored")
        first.send_signal(stop)
        first.wait(timeout=60)
        if stop is signal.SIGINT:
            assert first.returncode == INTERRUPTED
            assert "Cancelled: 2 of 5 answered." in log.read_text()
            assert "Traceback" not in log.read_text()
        before = server.count
        second = started(command, job.parent, api=api, stdout=subprocess.PIPE)
        out, _ = second.communicate(timeout=90)
        assert second.returncode == COMPLETE
        assert b"Complete: 5 of 5 answered." in out
        assert b"from the store 2" in out
        assert server.count == before + 3


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_job_file_says_what_is_run_of_it(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`out`, `limit` and `refresh` stand in the file; the options of the command line go before them."""
    with openai_server(Behaviour(content='{"size": 7}')) as server:
        at(job, server.url)
        job.write_text(job.read_text() + "out: report\nlimit: 2\nrefresh: [texts/t0.txt]\n")
        assert main(["plan", str(job)]) == COMPLETE
        assert main(["run", str(job)]) == COMPLETE
        assert server.count == 2
        assert str(job.parent / "report" / "report.html") in capsys.readouterr().out
        assert main(["run", str(job), "--limit", "3", "--out", str(job.parent / "other")]) == COMPLETE
        assert server.count == 4  # what is new, and t0.txt again
    assert (job.parent / "report" / "report.json").is_file()
    assert (job.parent / "other" / "report.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_run_is_retried_as_prefects_settings_say(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed attempt is followed by another, which asks what failed; then the message, and exit status 1."""
    monkeypatch.setenv("PREFECT_FLOWS_DEFAULT_RETRIES", "1")
    with openai_server(answer) as server:
        at(job, server.url)
        job.write_text(job.read_text().replace("retries: 0", "retries: 0, min_success: 1.0"))
        api = PREFECT_API_URL.value()
        with started(["run", str(job)], job.parent, api=api, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=240)
        assert (process.returncode, server.count) == (FAILED, 6)
    assert b"Failed: 4 of 5 answered" in out
    assert b"Traceback" not in out + err


@pytest.mark.usefixtures("store")
def test_a_run_prepares_its_job_once(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked before Prefect starts is what the flow runs: the items are read a single time."""
    read: list[int | None] = []

    def counted(items: Source, folder: Path, limit: int | None = None) -> list[Item]:
        read.append(limit)
        return read_items(items, folder, limit)

    monkeypatch.setattr("prefect_dispatch.flows.prepare.read_items", counted)
    with openai_server(answer) as server:
        assert main(["run", at(job, server.url), "--limit", "2"]) == COMPLETE
    assert read == [2]


@pytest.mark.slow
def test_a_terminal_gets_a_bar(job: Path) -> None:
    """On a terminal: a bar with how many, what it costs and how long it takes; the summary stands last."""
    with openai_server(Behaviour(content='{"size": 7}', delay_s=0.2)) as server:
        ours, theirs = pty.openpty()
        process = started(["run", at(job, server.url)], job.parent, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        screen = b""
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    screen += os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
        assert process.wait(timeout=60) == COMPLETE
    assert b"5/5" in screen
    assert b"in flight" in screen
    assert b"Complete: 5 of 5 answered." in screen.splitlines()[-2]


HEAVY = ("litellm", "prefect", "prefect.server", "prefect_dispatch.executors.registry", "pydantic", "rich")


@pytest.mark.parametrize(
    ("arguments", "job", "imported"),
    [
        pytest.param(["--help"], "", [], id="help"),
        pytest.param(["--version"], "", [], id="version"),
        pytest.param(["run", "--nope"], "", [], id="unknown-option"),
        pytest.param(["run", "nope.yaml"], "", ["pydantic"], id="no-file"),
        pytest.param(["run", "job.yaml"], "briefs: {instructions: Do.}\nitmes: [a]", ["pydantic"], id="unknown-key"),
        pytest.param(["plan", "job.yaml"], "flow: test_matrix\ncomand: a", ["pydantic"], id="unknown-key-of-a-form"),
        pytest.param(
            ["run", "job.yaml"],
            "briefs: {name: a, instructions: Do.}\nitems: 5",
            ["prefect_dispatch.executors.registry", "pydantic", "rich"],
            id="wrong-type",
        ),
        pytest.param(
            ["run", "job.yaml"],
            "briefs: {name: a, instructions: Do.}\nitems: {glob: '*.txt'}",
            ["prefect_dispatch.executors.registry", "pydantic", "rich"],
            id="no-items",
        ),
        pytest.param(
            ["run", "job.yaml"],
            "briefs: {name: a, instructions: Do.}\nitems: [a]\nexecutor: {model: opnai/gpt-5}",
            ["prefect_dispatch.executors.registry", "pydantic", "rich"],
            id="unknown-provider",
        ),
        pytest.param(
            ["plan", "job.yaml"],
            "briefs: {name: a, instructions: Do.}\nitems: [a]\nexecutor: {model: openai/gpt-5-mini}",
            ["prefect", "prefect_dispatch.executors.registry", "pydantic", "rich"],
            id="plan",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_command_imports_little(arguments: list[str], job: str, imported: list[str], tmp_path: Path) -> None:
    """A refusal neither Prefect nor litellm, which take seconds; for an unknown key not even the models of a job."""
    (tmp_path / "job.yaml").write_text(job)
    assert imports(arguments, tmp_path) == imported


def imports(arguments: list[str], folder: Path, api: str | None = None) -> list[str]:
    """Return what a command imports in a process of its own of what takes long.

    Args:
        arguments: Its arguments.
        folder: Where it runs.
        api: The address of Prefect's server; empty to start one. None: that of the tests.
    """
    address = PREFECT_API_URL.value() or "" if api is None else api
    code = (
        "import sys\n"
        "from prefect_dispatch.cli.commands import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    ran = subprocess.run(  # noqa: S603 -- ours
        [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PREFECT_HOME": str(folder / "home"), "PREFECT_API_URL": address},
        capture_output=True,
        text=True,
        check=True,
    )
    names: list[str] = ast.literal_eval(ran.stdout.splitlines()[-1])
    return names


@pytest.mark.slow
def test_a_run_imports_no_server(job: Path) -> None:
    """Where one runs; and no litellm where every answer is stored."""
    with openai_server(answer) as server:
        arguments = ["run", at(job, server.url), "--set", "items=[mit]"]
        assert imports(arguments, job.parent) == [name for name in HEAVY if name != "prefect.server"]
        assert "litellm" not in imports(arguments, job.parent)
        assert server.count == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cold_run_of_what_is_stored_imports_no_litellm(job: Path) -> None:
    """Nor does a run that starts a server."""
    with openai_server(answer) as server:
        arguments = ["run", at(job, server.url), "--set", "items=[mit]"]
        imports(arguments, job.parent)
        assert "litellm" not in imports(arguments, job.parent, api="")
        assert server.count == 1


SHELL = """
briefs: {name: say, instructions: Say., command: {run: "true"}}
items: [a]
executor: {kind: shell}
"""


@pytest.mark.parametrize(("content", "loaded"), [(JOB, ["litellm"]), (SHELL, [])], ids=["model", "command"])
def test_what_a_model_needs_is_imported_while_a_server_starts(
    content: str, loaded: list[str], job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command needs no litellm."""
    found: list[str] = []
    monkeypatch.setattr("prefect_dispatch.processes.ephemeral_server.begin_server", lambda: True)
    monkeypatch.setattr("prefect_dispatch.executors.llm.litellm_adapter.load_litellm", lambda: found.append("litellm"))
    job.write_text(content)
    read = load_job(job)
    commands._begin_server(read, validate_job(read, job.parent))  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] -- a run starts a server
    assert found == loaded


@pytest.mark.usefixtures("store")
def test_litellm_is_not_imported_for_what_is_stored(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a server starts; with an item that is not stored, it is imported."""
    found: list[str] = []
    with openai_server(answer) as server:
        assert main(["run", at(job, server.url), "--set", "items=[mit]"]) == COMPLETE
    monkeypatch.setattr("prefect_dispatch.processes.ephemeral_server.begin_server", lambda: True)
    monkeypatch.setattr("prefect_dispatch.executors.llm.litellm_adapter.load_litellm", lambda: found.append("litellm"))
    for items, loaded in (("[mit]", []), ("[mit, gpl]", ["litellm"])):
        read = load_job(job, [f"items={items}"])
        with temporary_settings(restore_defaults={PREFECT_API_URL}):
            commands._begin_server(read, validate_job(read, job.parent))  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] -- as above
        assert found == loaded


def test_the_keys_of_each_flow_are_known_without_it() -> None:
    """The keys that are checked first are those of the models."""
    assert FLOWS["dispatch"].split() == [name for name in Job.model_fields if name != "flow"]
    for name in FLOWS.keys() - {"dispatch"}:
        assert FLOWS[name].split() == [*inspect.signature(load_flow(name).fn).parameters]


def when(true: Callable[[], bool], what: str) -> threading.Thread:
    """Press Ctrl-C in this process once something is true."""

    def press() -> None:
        wait_until(true, what)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_storage_that_can_not_be_read_is_told_in_a_line(
    command: str, job: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands where the folder should be: exit status 1, no traceback, nobody is asked."""
    for n in range(5, 12):
        (job.parent / "texts" / f"t{n}.txt").write_text(f"Text {n}.")
    store.write_text("")
    with openai_server(Behaviour(content='{"size": 7}')) as server:
        assert main([command, at(job, server.url)]) == FAILED
        assert server.count == 0
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("prefect-dispatch: The result storage can't be read: NotADirectoryError")
    assert "Traceback" not in "".join(said)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_ctrl_c_says_how_to_go_on(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Interrupted while asks hang: they are cancelled, and the last line says what to do."""
    with openai_server(HANG) as server:
        thread = when(lambda: server.count == 2, "two asks under way")
        assert main(["run", at(job, server.url)]) == INTERRUPTED
        thread.join()
    assert server.hung_up == 2
    assert capsys.readouterr().err.endswith("the same job goes on from there.\n")


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_reaches_every_process(tmp_path: Path) -> None:
    """Prefect's own server is among them; the run still tells it how it ended, and doesn't wait for a dead one."""
    (tmp_path / "job.yaml").write_text(
        "briefs:\n  - {name: wait, instructions: Wait., command: {run: 'cat > seen; sleep 600', stdin: true}}\n"
        "items: [a]\nexecutor: {kind: shell}\n"
    )
    empty_database(tmp_path / "home" / "prefect.db")
    without = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-m", "prefect_dispatch", "run", "job.yaml"]
    with subprocess.Popen(  # noqa: S603 -- our own command
        command,
        cwd=tmp_path,
        env={
            **without,
            "PREFECT_HOME": str(tmp_path / "home"),
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "100",
        },
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until((tmp_path / "seen").exists, "the command runs")
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert said.endswith("the same job goes on from there.\n")
    assert "Error" not in said


def test_ctrl_c_before_a_run_begins(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is under way yet: the last line says so in the same words, without a traceback."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prefect_dispatch.flows.runtime.job_document.read_document", interrupt)
    assert main(["plan", str(job)]) == INTERRUPTED
    assert capsys.readouterr().err.endswith("the same command goes on from there.\n")


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_job_is_served_until_interrupted(job: Path) -> None:
    """`serve` registers the deployment and waits for runs; Ctrl-C ends it."""

    def registered() -> bool:
        with get_client(sync_client=True) as client, suppress(ObjectNotFound):
            return client.read_deployment_by_name("dispatch/sizes").name == "sizes"
        return False

    thread = when(registered, "the deployment is there")
    assert main(["serve", at(job, "http://127.0.0.1:9/v1")]) in (COMPLETE, INTERRUPTED)
    thread.join()


HOSTILE = "[red]k[/red]\x1b[2J\x1b]0;title\x07\n\u202e"
FAILED_ITEM = Outcome(
    brief="b",
    item=HOSTILE,
    status="failed",
    origin="asked",
    error=Failure(kind="rejected", message=f"HTTP 400 {HOSTILE} {'long ' * 50}"),
)


def draw(monkeypatch: pytest.MonkeyPatch, columns: int, **environment: str) -> None:
    """Show a progress with a failure and a message on a terminal of some columns."""
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": str(columns), "TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    with show_progress() as show:
        show("Prefect's temporary server is started again.")
        hear = progress_listener.get()
        assert hear is not None
        usage = Usage(prompt_tokens=7, cost_usd=None)
        progress = Progress(total=4, done=2, cached=1, skipped=1, in_flight=2).plus(FAILED_ITEM)
        hear(progress.model_copy(update={"usage": usage, "seconds_left": 61.0}))
    assert progress_listener.get() is None


def test_a_display_is_drawn_where_there_is_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many, what failed last, what it costs, how long it takes; the cursor is there again at the end."""
    draw(monkeypatch, 160)
    drawn = capsys.readouterr().err
    assert "3/4 0:00:00 " in drawn
    assert "━" * 8 in drawn
    assert "Prefect's temporary server is started again." in drawn
    assert "1 from the store, 1 failed, 1 skipped, 2 in flight, 7 tokens, cost unknown, about 1 min 1 s left" in drawn
    assert "failed: b/[red]k[/red] [2J ]0;title   : HTTP 400 " in drawn
    assert "\x1b[2J" not in drawn
    assert "\x07" not in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")


WORKING = [
    Activity(brief="b", item=HOSTILE, program="claude", seconds=65.0, step=f"$ {HOSTILE}", log=f"/state/{n}.log")
    for n in range(3)
]


def test_programs_at_work_are_drawn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each, as many as there is room for, with a link to its log; text of theirs controls no terminal."""
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "160", "LINES": "10", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    with show_progress():
        hear = progress_listener.get()
        assert hear is not None
        hear(Progress(total=4, in_flight=3, working=tuple(WORKING)))
    drawn = capsys.readouterr().err
    assert "file:///state/0.log" in drawn
    assert "b/[red]k[/red] [2J ]0;title   : 1 min 5 s: $ [red]k[/red] [2J ]0;title" in drawn
    assert "file:///state/2.log" not in drawn
    assert "and 1 more" in drawn
    assert "prefect-dispatch logs" in drawn
    assert "\x1b[2J" not in drawn


def test_programs_at_work_are_printed_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a log is printed once."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    with show_progress():
        hear = progress_listener.get()
        assert hear is not None
        for _ in range(2):
            hear(Progress(total=4, in_flight=3, working=(WORKING[0],)))
    printed = capsys.readouterr().err
    assert printed.count("\n  claude b/[red]k[/red] [2J ]0;title   : 1 min 5 s: $ [red]k[/red] [2J ]0;title") == 2
    assert printed.count("\n    log: /state/0.log\n") == 1


def test_a_narrow_terminal_gets_no_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers go before; a line is not longer than the terminal, and without colours if these are not wanted."""
    draw(monkeypatch, 20, NO_COLOR="1")
    drawn = capsys.readouterr().err
    assert "3/4 0:00:00" in drawn
    assert "━" not in drawn
    assert "\x1b[31m" not in drawn
    last = drawn[drawn.rindex("3/4") :].split("\x1b[?25h", maxsplit=1)[0]
    assert max(map(len, last.split("\n"))) <= 20


def test_a_dumb_terminal_gets_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pipe does: it can't redraw."""
    draw(monkeypatch, 80, TERM="dumb")
    assert "\x1b[?25l" not in capsys.readouterr().err


def test_a_terminal_that_is_gone_fails_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever shows the progress may fail; the work goes on."""

    class Gone(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            raise OSError(text)

    monkeypatch.setattr(sys, "stderr", Gone())
    before = sys.stdout
    draw(monkeypatch, 80)
    monkeypatch.setattr(sys, "stderr", Gone())
    draw(monkeypatch, 80, TERM="dumb")
    assert sys.stdout is before


def test_a_line_that_can_not_be_printed_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, too."""
    closed = io.StringIO()
    closed.close()
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with show_progress():
        hear = progress_listener.get()
        assert hear is not None
        monkeypatch.setattr(sys, "stderr", closed)
        hear(Progress(total=1, done=1))
        hear(Progress(total=1, done=1))


def test_nothing_was_asked_yet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the first progress, a display says that the run starts."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with show_progress():
        pass
    assert "starting 0:00:00" in capsys.readouterr().err


def test_a_person_at_the_terminal_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The display rests as long as the person thinks; where nobody types, nobody is asked."""

    class Thinking:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            time.sleep(0.3)  # many of the display's turns
            return "yes\n"

    monkeypatch.setattr(console, "REFRESH_S", 0.01)
    monkeypatch.setattr(sys, "stdin", Thinking())
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with show_progress():
        ask = on_question.get()
        assert ask is not None
        assert ask("Pilot: 4 asked first.")
    assert on_question.get() is None


def test_a_display_is_redrawn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, with the latest progress and its rate."""
    monkeypatch.setattr(console, "REFRESH_S", 0.01)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    drawn = ""

    def has_drawn(text: str) -> bool:
        nonlocal drawn
        drawn += capsys.readouterr().err
        return text in drawn

    with show_progress():
        hear = progress_listener.get()
        assert hear is not None
        hear(Progress(total=4, done=1))
        wait_until(lambda: has_drawn("1/4 "), "it is drawn")
        hear(Progress(total=4, done=2, asked=2))
        wait_until(lambda: has_drawn("2/4 "), "it is redrawn")
    assert "/s" in drawn or "/min" in drawn


def test_the_module_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m prefect_dispatch` is `prefect-dispatch`."""
    monkeypatch.setattr(sys, "argv", ["prefect-dispatch", "--version"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("prefect_dispatch", run_name="__main__")
    assert caught.value.code == 0
