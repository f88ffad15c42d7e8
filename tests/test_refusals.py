"""Hostile job files and options: each ends with exit status 2, names the key or the option, and spends nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.cli.commands import UNUSABLE, main

if TYPE_CHECKING:
    from pathlib import Path

JOB = """
briefs:
  - {name: say, instructions: Say fine.}
items: [a, b]
executor: {model: openai/test, api_base: "http://127.0.0.1:9/v1"}
"""
RECORDS = "kind: merge_records"
GLOB_OR = "write a list, or one of {glob: …}"
FORM = "flow: analyze_files\nfiles: '*.txt'\ninstructions: Say.\n"
MATRIX = "flow: test_matrix\naxes: {a: [b]}\ncommand: 'true'\n"

CHANGES = [
    ("limits.concurrency=-1", "limits.concurrency: Input should be greater than or equal to 1 (it is -1)"),
    ("limits.concurrency=1.5", "limits.concurrency: must be a whole number"),
    ("items={list: [{id: 1}, {x: 2}], key: id}", "items.list[1]: no field 'id'"),
    (
        "limits.concurrency=.nan",
        "'limits.concurrency=.nan': the value can't be read as YAML: line 1: .nan is no number",
    ),
    ("limits.concurrency=99999999999999999999", "limits.concurrency: Input should be less than or equal to 10000"),
    ("limits.concurrency=true", "limits.concurrency: must be a number; true and false are none"),
    ("limits.concurrency=", "limits.concurrency: must be a whole number, written in digits (it has no value"),
    ("limits.retries=many", "limits.retries: must be a number; write its digits"),
    ("limits.reasks=1e400", "limits.reasks: Input should be a finite number"),
    ("limits.timeout_s=0", "limits.timeout_s: Input should be greater than 0"),
    ("limits.grace_s=-0.1", "limits.grace_s: Input should be greater than or equal to 0"),
    ("limits.budget_usd=-1", "limits.budget_usd: Input should be greater than or equal to 0"),
    ("limits.budget_usd=.inf", "limits.budget_usd=.inf"),
    ("limits.min_success=2", "limits.min_success: Input should be less than or equal to 1"),
    ("limits.shard={a: 1}", "limits.shard: must be a whole number"),
    ("limits.tokens_per_minute=0", "limits.tokens_per_minute: Input should be greater than or equal to 1"),
    ("limits=5", "limits: must be a mapping"),
    ("limits.concurency=3", "limits: unknown key 'concurency'; did you mean 'concurrency'?"),
    ("briefs=", "briefs: must be a list"),
    ("briefs=[]", "briefs: List should have at least 1 item"),
    ("briefs.0=5", "briefs[0]: must be a mapping"),
    ("briefs.0.name=A B", "briefs[0].name: String should match pattern"),
    ("briefs.0.instructions=", "briefs[0].instructions: must be a text"),
    ("briefs.0.output=nope", "briefs[0].output: must be 'text', a JSON Schema"),
    ("briefs.0.output={type: objekt}", "briefs[0].output: not a valid JSON Schema"),
    ("briefs.0.output=nomodule:Thing", "no module 'nomodule' lies below"),
    ("briefs.0.checks=[{kind: nope}]", "briefs[0].checks[0]: there is no kind 'nope'"),
    ("briefs.0.priority=high", "briefs[0].priority: must be a whole number"),
    ("briefs.0.writes=[../x]", "both write '../x'; give each a path of its own"),
    ("items=5", f"items: not a source: 5; {GLOB_OR}"),
    ("items=[]", "items: There are no items"),
    ("items={glop: a}", "items: a source has none of 'glob'"),
    ("items={glob: a, jsonl: b}", "items: a source has both 'glob' and 'jsonl'"),
    ("items={glob: ''}", "items.glob: "),
    ("items={glob: nothing/*.x}", "the glob 'nothing/*.x'"),
    ("items={glob: '../*'}", "items.glob: '../*' must stay below its folder"),
    ("items={jsonl: nope.jsonl, key: id}", "nope.jsonl' can't be read: No such file"),
    ("items={jsonl: ., key: id}", "can't be read: Is a directory"),
    ("items={jsonl: links/loop, key: id}", "can't be read: Too many levels of symbolic links"),
    ("items={jsonl: latin, key: id}", "latin"),
    ("items=[a, a]", "Two items have the key 'a'"),
    ("executor={}", "executor.model: Field required"),
    ("executor={kind: lmm}", "executor: there is no executor of the kind 'lmm'; did you mean 'llm'?"),
    ("executor.kind=shell", "executor: unknown key 'model'"),
    ("executor.model=", "executor.model: must be a text"),
    ("executor.api_base=localhost:8000", "executor.api_base: must begin with http:// or https://"),
    ("executor.params=5", "executor.params: must be a mapping"),
    ("executor.credentials=no block", "executor.credentials: 'no block' is not the name of a block"),
    ("executor={kind: shell, cwd: nope}", "executor.cwd: there is no folder 'nope'"),
    ("executor={kind: shell, pass_env: [NOPE_X]}", "pass_env: the environment variable 'NOPE_X' is not set here"),
    ("executor={kind: python, function: 'nope:f'}", "executor.function: 'nope:f' is not code of yours"),
    ("executor={kind: coding, agent: nope}", "executor.agent: Input should be 'claude'"),
    ("integrator={kind: nope}", "integrator: there is no kind 'nope'"),
    (f"integrator={{{RECORDS}, identity: []}}", "integrator.identity: should have at least 1 item"),
    (
        f"integrator={{{RECORDS}, identity: [name], rules: {{a: nope}}}}",
        "integrator.rules.a: must be the name of a rule",
    ),
    ("review=maybe", "review: must be true or false"),
    ("review=true", "review: Collate leaves nothing to decide"),
    ("fan_out=deploiment", "fan_out: there is no 'deploiment'; did you mean 'deployment'?"),
    ("task_runner={kind: dask, workers: 1, address: x}", "leave one of 'workers' and 'address' out"),
    ('out="a\\0b"', "out: a path holds no NUL character"),
    ("out=5", "out: must be a text"),
    ("limit=0", "limit: Input should be greater than or equal to 1"),
    ("refresh=5", "refresh: write true, a pattern or a list of patterns"),
    ("refresh=nope", "refresh: no work is called 'nope'"),
    ("name=A B", "name: String should match pattern"),
    ("flow=[a]", 'flow: there is no ["a"]; known are'),
    ("flow=dispach", "flow: there is no 'dispach'; did you mean 'dispatch'?"),
    ("itms=[a]", "the job: unknown key 'itms'; did you mean 'items'?"),
    ("=1", "--set '=1': write it as key.key=value"),
    ("briefs.9.name=x", "'9' is no place in a list of 1"),
    ("items.0.x=1", "'x' would be a part of the text 'a'"),
    ("limits.concurrency=[", "the value can't be read as YAML"),
]

FILES = [
    ("", "this is an empty file"),
    ("- a", "this is a list"),
    (f"{JOB}items: [c]\n", "line 6: the key 'items' stands twice"),
    (f"{JOB}limits: {{retries: 1, retries: 2}}\n", "limits: the key 'retries' stands twice"),
    ("briefs:\n\t- a", "line 2: not YAML: a tab"),
    (f"{JOB}---{JOB}", "another document begins here"),
    ("briefs: !!python/object/apply:os.system ['x']", "briefs: the tag !!python/object/apply:os.system can't be used"),
    (f"{JOB}5: a\n", "the key 5 is read as the number 5"),
    ("items: [a]", "briefs: Field required"),
    ("a: " + "[" * 3000 + "]" * 3000, "nested more than"),
    (f'{JOB}"a\\e[31mb": 1\n', r"unknown key 'a\x1b[31mb'"),
    (JOB.replace("Say fine.", "'{nope}'"), "Placeholder {nope} has no value"),
    (b"name: \xe9", "it is not UTF-8 text"),
    (b"name: a\0b", "the character U+0000 can't stand in YAML"),
    (f"{FORM}concurrency: -1", "line 4: concurrency: Input should be greater than or equal to 1"),
    (f"{FORM}budget_usd: .nan", "budget_usd: .nan is no number"),
    (f"{FORM}fils: a", "the job: unknown key 'fils'; did you mean 'files'?"),
    (f"{FORM}merge: nope", "merge: Input should be 'side by side' or 'merge records'"),
    (
        FORM.replace("'*.txt'", "{glob: '*.txt'}"),
        "line 2: files: unknown key 'glob'; known are 'pasted', 'layout', 'key'.",
    ),
    (f"{FORM}folder: nope", "nope' can't be read: No such file"),
    (f"{MATRIX}retries: -1", "retries: Input should be greater than or equal to 0"),
    (f"{MATRIX}time_limit_s: 0", "time_limit_s: Input should be greater than 0"),
    (f"{MATRIX}limit: 1", "the job: unknown key 'limit'"),
]

OPTIONS = [
    (["run", "job.yaml", "--out", "s3://me:secret@lake/report"], "out: the URL of a folder has no password"),
    (["run", "job.yaml", "--limit", "-1"], "argument --limit: '-1' is not a whole number of 1 or more"),
    (["run", "job.yaml", "--limit", "nan"], "argument --limit: 'nan'"),
    (["run", "job.yaml", "--limit", "٣"], "argument --limit: '٣'"),
    (["run", "job.yaml", "--limit", "9" * 5000], "argument --limit: '9999999999999999999999999999999999999999…'"),
    (["run", "job.yaml", "--model", ""], "argument --model: it is empty"),
    (["run", "job.yaml", "--out", " "], "argument --out: it is empty"),
    (["run", "job.yaml", "--out", "a\0b"], "argument --out: it holds a NUL character"),
    (["run", "job.yaml", "--out", "job.yaml"], "job.yaml' can't be written to: File exists"),
    (["run", "job.yaml", "--refresh", ""], "refresh: no work is called ''"),
    (["run", "job.yaml", "--nope"], "unrecognized arguments: --nope"),
    (["run", ""], "argument JOB: it is empty"),
    (["run", "a\0b"], "argument JOB: it holds a NUL character"),
    (["run", "."], "The job file '.' can't be read: Is a directory"),
    (["run", "links/loop"], "The job file 'links/loop' can't be read: Too many levels of symbolic links"),
    (["run", "job.yaml/x"], "The job file 'job.yaml/x' can't be read: Not a directory"),
    (["plan", "job.yaml", "--out", "x"], "unrecognized arguments: --out x"),
    (["explain", "."], "'report.json' can't be read: No such file"),
    (["explain", "job.yaml"], "'job.yaml' is not a report.json"),
    (["audit", "links/loop"], "'links/loop' can't be read: Too many levels of symbolic links"),
    (["audit", "a\0b"], "argument REPORT: it holds a NUL character"),
    (["deploy", "nope.yaml"], "The job file 'nope.yaml' can't be read"),
    (["deploy", "job.yaml", "--work-pool", ""], "argument --work-pool: it is empty"),
    (["deploy", "job.yaml", "--image", ""], "argument --image: it is empty"),
    (["deploy", "job.yaml", "--git-url", "x"], "add --git"),
    (["deploy", "job.yaml", "--cron", "nope"], "--cron 'nope' is no cron expression"),
    (["deploy", "job.yaml", "--timezone", "Nowhere/Land"], "--timezone 'Nowhere/Land' is no time zone"),
    (["deploy", "job.yaml", "--job-variable", "x"], "argument --job-variable: 'x' is no K=V"),
    (["automations", "--start-timeout", "5"], "argument --start-timeout: '5' is not a whole number of 30 or more"),
]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job in the current folder, beside files that can't be used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "latin").write_bytes(b'{"id": "\xe9"}')
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "loop").symlink_to("loop")


def refuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, and return what it prints on standard error."""
    try:
        status: object = main(arguments)
    except SystemExit as error:  # of argparse
        status = error.code
    said = capsys.readouterr()
    assert (status, said.out) == (UNUSABLE, ""), said.err
    assert "Traceback" not in said.err
    assert said.err.splitlines()[-1].isprintable()
    return said.err


@pytest.mark.parametrize(("change", "refusal"), CHANGES, ids=[change for change, _ in CHANGES])
def test_a_wrong_value_is_refused(change: str, refusal: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a job file as by `--set`."""
    assert refusal in refuse(["run", "job.yaml", "--set", change], capsys)


@pytest.mark.parametrize(("content", "refusal"), FILES, ids=[refusal for _, refusal in FILES])
def test_a_wrong_file_is_refused(
    content: str | bytes, refusal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the line, where there is one."""
    (tmp_path / "job.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refusal in refuse(["run", "job.yaml"], capsys)


@pytest.mark.parametrize(
    ("arguments", "refusal"), OPTIONS, ids=[" ".join(arguments)[:50].replace("\0", "NUL") for arguments, _ in OPTIONS]
)
def test_a_wrong_option_is_refused(arguments: list[str], refusal: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With its name."""
    assert refusal in refuse(arguments, capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_an_unreadable_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its permissions are the reason."""
    (tmp_path / "job.yaml").chmod(0)
    assert "can't be read: Permission denied" in refuse(["run", "job.yaml"], capsys)
