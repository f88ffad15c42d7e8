"""What version 0.1.0 has stored is read by every later version, and the names in it can be imported.

`tests/golden/store-0.1.0` was written by that version, and is never written again: a later form of a record gets a
folder of its own beside it. `<store>` and `<folder>` stand in it for the folders of the run. In it are

- `<example>/storage` and `<example>/last-run.json`: the result storage after a run of an example, and the record of
  its last run with what identifies the job;
- `draft`: what a run leaves that is killed after an invalid reply, while it asks again;
- `results`: results of flow runs and their states, as Prefect stores them: a report, and what a user's flow returns;
- `server`: deployments and blocks, as they stand on a Prefect server;
- `records.json`: what runs leave that are suspended for a review, or wait for a batch.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import io
import json
import pickle
import shutil
from importlib import import_module
from importlib.metadata import distribution
from typing import TYPE_CHECKING, Any, cast

import pytest
from prefect.blocks.core import Block
from prefect.client.schemas.objects import State
from prefect.flows import load_flow_from_entrypoint
from prefect.serializers import Serializer
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from prefect.utilities.dispatch import lookup_type

from prefect_dispatch import Report
from prefect_dispatch.cli.commands import main
from prefect_dispatch.flows.review import Collected
from prefect_dispatch.tasks.provider_batches import BatchRecord, BatchResults
from tests.golden_runs import EXAMPLES, GOLDEN, Example, texts
from tests.openai_server import Behaviour, openai_server
from tests.test_golden import run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import BaseModel, JsonValue

STORE = GOLDEN / "store-0.1.0"
FLOWS = (
    *("analyze_files", "build_modules", "content_variants", "dispatch", "research_topics", "test_matrix"),
    "work_shard",
)
NAMES = [
    # Entry points: of the distribution, and of deployments on a server.
    "prefect_dispatch.cli:main",
    "prefect_dispatch.blocks:LLMCredentials",
    "prefect_dispatch.blocks:DispatchProfile",
    *(f"prefect_dispatch.flows.{name}:{name}" for name in FLOWS),
    # What stands for a flow of this package in a pickled flow of the user's.
    "prefect_dispatch.flows.parameters:at_home",
    "prefect_dispatch.flows.parameters:changed",
    # Serializers, which are found by their type once their module is imported.
    "prefect_dispatch.tasks.store:AnswerSerializer",
    "prefect_dispatch.tasks.store:ReportSerializer",
    # What a user's own flow or task returns, and Prefect stores as a pickle or as JSON, by the class's module and name.
    "prefect_dispatch.attempts:Attempt",
    "prefect_dispatch.attempts:Failure",
    "prefect_dispatch.attempts:Rejection",
    "prefect_dispatch.attempts:Usage",
    "prefect_dispatch.change:Change",
    "prefect_dispatch.changes:Changes",
    "prefect_dispatch.command:Command",
    "prefect_dispatch.decisions:Decisions",
    "prefect_dispatch.executors.base:Ask",
    "prefect_dispatch.executors.base:Reply",
    "prefect_dispatch.executors.callable:PythonCallable",
    "prefect_dispatch.executors.coding.executor:CodingAgent",
    "prefect_dispatch.executors.llm:LLM",
    "prefect_dispatch.executors.shell:Shell",
    "prefect_dispatch.integrators.collate:Collate",
    "prefect_dispatch.integrators.consensus:Consensus",
    "prefect_dispatch.integrators.merge_branches:MergeBranches",
    "prefect_dispatch.integrators.merge_records:MergeRecords",
    "prefect_dispatch.integrators.records.rules:Rule",
    "prefect_dispatch.integrators.synthesize:Synthesize",
    "prefect_dispatch.integrators.test_matrix:TestMatrix",
    "prefect_dispatch.integrators.tournament:Tournament",
    "prefect_dispatch.ledger:Document",
    "prefect_dispatch.ledger:FieldRow",
    "prefect_dispatch.ledger:Flag",
    "prefect_dispatch.ledger:LedgerRow",
    "prefect_dispatch.ledger:Loser",
    "prefect_dispatch.ledger:Merge",
    "prefect_dispatch.ledger:Proposal",
    "prefect_dispatch.ledger:Ref",
    "prefect_dispatch.ledger:Table",
    "prefect_dispatch.limits:Limits",
    "prefect_dispatch.models:Answer",
    "prefect_dispatch.models:Brief",
    "prefect_dispatch.models:Item",
    "prefect_dispatch.models:Outcome",
    "prefect_dispatch.report:Gap",
    "prefect_dispatch.report:Report",
    "prefect_dispatch.report:ServedModel",
    "prefect_dispatch.report:Spending",
    "prefect_dispatch.tasks.plan:Plan",
    "prefect_dispatch.workspaces.workspace:Workspace",
]
"""Names that stored or pickled data mention: `module:name`. A refactoring keeps each, or leaves an alias there."""
KEPT = {path.parent.name for path in STORE.glob("*/last-run.json")}


def _name(record: str) -> object:
    module, _, name = record.partition(":")
    return getattr(import_module(module), name)


class Names(pickle.Unpickler):
    """Reads a pickle, and keeps the names that it mentions."""

    def __init__(self, data: bytes) -> None:
        """Start with no name."""
        super().__init__(io.BytesIO(data))
        self.found: set[str] = set()

    def find_class(self, module_name: str, global_name: str, /) -> object:
        """Return what a name stands for."""
        self.found.add(f"{module_name}:{global_name}")
        return cast("object", super().find_class(module_name, global_name))


def _last_run_key(identity: JsonValue) -> str:
    """Return the key of a last-run record, as every version derives it."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return f"prefect-dispatch.job-{hashlib.sha256(text.encode()).hexdigest()}"


def fill(store: Path, name: str, folder: Path) -> None:
    """Fill a result storage with what a run of version 0.1.0 left in its own."""
    store.mkdir()
    for file in (STORE / name / "storage").iterdir():
        text = file.read_text(encoding="utf-8").replace("<store>", str(store))
        (store / file.name).write_text(text, encoding="utf-8")
    if (last := STORE / name / "last-run.json").exists():
        found = json.loads(last.read_text(encoding="utf-8").replace("<folder>", str(folder)))
        (store / _last_run_key(found["identity"])).write_text(json.dumps(found["record"]), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("example", [pytest.param(each, id=each.name) for each in EXAMPLES if each.name in KEPT])
def test_what_was_answered_before_is_not_asked_again(
    example: Example, store: Path, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that was run by version 0.1.0 finds its answers and its last run: no request, the same value and ledger."""
    fill(store, example.name, store.parent / "repository")
    again = run(example, store, state, monkeypatch, capsys)
    found = texts(again, example)
    for name in ("value.json", "ledger.json", "fingerprints.json"):
        assert found[name] == (example.golden / name).read_text(encoding="utf-8")
    assert again.requests == []
    outcomes = [
        json.loads(line)
        for file in again.report.glob("*.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    assert {each["origin"] for each in outcomes if each["status"] == "succeeded"} <= {"stored", "shared"}
    # Version 0.1.0 decided ties of votes by the text of the answers.
    changed = "only the merged value changed" if example.name == "consensus" else "nothing changed"
    assert f"Since the last run: {changed}" in again.out


@pytest.mark.slow
def test_a_reply_that_was_paid_for_is_not_paid_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was killed while it asked again goes on with the reply that had come: it is sent back, not asked."""
    fill(store, "draft", tmp_path)
    shutil.copy(STORE / "draft" / "job.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with openai_server(Behaviour(content='{"word": "apple"}')) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
        assert main(["run", "job.yaml"]) == 0
    [request] = server.requests
    assert [each["content"] for each in request.body["messages"] if each["role"] == "assistant"] == ['{"word": 3}']
    assert "requests 3" in capsys.readouterr().out  # that of the reply, the one that was under way, and this one


@pytest.mark.parametrize("name", ["report", "pickle", "json"])
def test_a_stored_result_is_loaded(name: str, tmp_path: Path) -> None:
    """From the state on the server and the file in the storage Prefect makes the report again, by any serializer."""
    shutil.copy(STORE / "results" / f"{name}.result", tmp_path / name)
    text = (STORE / "results" / f"{name}.state.json").read_text(encoding="utf-8").replace("<store>", str(tmp_path))
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path}):
        state: Any = State.model_validate_json(text)
        result: object = state.result(_sync=True)
    report = cast("dict[str, object]", result)["report"] if isinstance(result, dict) else result
    assert isinstance(report, Report)
    assert (report.status, report.value) == ("complete", {"records": [{"name": "A", "year": 1}], "gaps": []})
    assert len(report.ledger) == 2


@pytest.mark.parametrize(
    ("name", "model"),
    [
        pytest.param("review", Collected, id="review"),
        pytest.param("batch", BatchRecord, id="batch"),
        pytest.param("gathered", BatchResults, id="gathered"),
    ],
)
def test_a_record_of_a_run_under_way_is_read(name: str, model: type[BaseModel]) -> None:
    """A run that waits for people, or for a batch, goes on with the next version; nothing in its record is lost."""
    record = json.loads((STORE / "records.json").read_text(encoding="utf-8"))[name]
    read = json.loads(model.model_validate_json(json.dumps(record)).model_dump_json())
    assert _without_new_fields(read, record) == record


def _without_new_fields(read: Any, record: Any) -> Any:  # noqa: ANN401 -- JSON
    """Return what was read without the keys that a later version has added."""
    match record:
        case dict():
            return {key: _without_new_fields(read[key], record[key]) for key in cast("dict[str, Any]", record)}
        case list() if len(cast("Sequence[Any]", record)) == len(read):
            return [_without_new_fields(*pair) for pair in zip(read, cast("Sequence[Any]", record), strict=True)]
        case _:
            return read


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_stored_data_is_there(name: str) -> None:
    """What stored or pickled data call by its module and name is found there."""
    assert callable(_name(name))


def test_the_names_are_all() -> None:
    """A pickle of what users get and give mentions no name of this package that isn't listed."""
    data = base64.b64decode((STORE / "results" / "pickle.result").read_bytes())
    reader = Names(data)
    reader.load()
    assert {name for name in reader.found if name.startswith("prefect_dispatch")} <= {*NAMES}
    text = (STORE / "results" / "json.result").read_text(encoding="utf-8")
    for name in ("prefect_dispatch.report.Report", "prefect_dispatch.models.Answer"):
        assert f'"__class__": "{name}"' in text


def test_entry_points() -> None:
    """The command and the collection are registered under the names that installations and servers know."""
    named = {(each.group, each.name): each.value for each in distribution("prefect-dispatch").entry_points}
    assert named == {
        ("console_scripts", "prefect-dispatch"): "prefect_dispatch.cli:main",
        ("prefect.collections", "prefect_dispatch"): "prefect_dispatch.blocks",
    }


@pytest.mark.parametrize("kind", ["prefect-dispatch-answer", "prefect-dispatch-report"])
def test_a_serializer_is_found_by_its_type(kind: str) -> None:
    """A stored record names its serializer by a word."""
    found: Any = lookup_type(cast("Any", Serializer), kind)
    assert found().type == kind


@pytest.mark.parametrize("at", [0, 1])
def test_a_block_on_a_server_is_read(at: int) -> None:
    """Type, slug and fields of a saved block are those of its class."""
    saved = json.loads((STORE / "server" / "blocks.json").read_text(encoding="utf-8"))[at]
    kind: Any = lookup_type(cast("Any", Block), saved["slug"])
    assert (kind.get_block_type_name(), kind.get_block_type_slug()) == (saved["type"], saved["slug"])
    block = kind.model_validate(saved["data"])
    assert (block.model, saved["data"].keys() <= kind.model_fields.keys()) == ("openai/golden", True)


@pytest.mark.parametrize(
    "saved",
    [
        pytest.param(each, id=f"{each['flow']}/{each['name']}")
        for each in json.loads((STORE / "server" / "deployments.json").read_text(encoding="utf-8"))
    ],
)
def test_a_deployment_on_a_server_runs(saved: dict[str, Any]) -> None:
    """Its entry point leads to the flow of that name, which takes the parameters that were saved."""
    flow: Any = load_flow_from_entrypoint(saved["entrypoint"])
    assert flow.name == saved["flow"]
    # A form may show a parameter in a group only; the flow takes it by its own name all the same.
    assert {*saved["fields"]} <= inspect.signature(flow.fn).parameters.keys()
    if {*flow.parameters.required} <= saved["parameters"].keys():
        flow.validate_parameters(saved["parameters"])
