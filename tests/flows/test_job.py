"""A job file: what is taken, and how a wrong one is refused."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.cli import UNUSABLE, main
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.flows.job import FormJob, load_job, read_job
from prefect_dispatch.flows.job_kinds import checked
from prefect_dispatch.outputs import schema_of
from tests.openai_server import Behaviour, openai_server

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
briefs:
  - name: terms
    scope: One licence text.
    instructions: Say what it allows.
    output: {type: object, properties: {family: {type: string}}, required: [family]}
items: {glob: "texts/*.txt"}
executor: {kind: llm, model: openai/test, api_base: "URL"}
integrator: {kind: merge_records, identity: [family]}
limits: {concurrency: 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two texts, and a module of the user's own."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("One.")
    (tmp_path / "texts" / "b.txt").write_text("Two.")
    (tmp_path / "own_shapes.py").write_text("def check(value, item):\n    return None\n\n\nSHAPE = 3\n")
    return tmp_path


def changed(old: str, new: str) -> str:
    """Return the good job with one thing changed."""
    assert old in GOOD
    return GOOD.replace(old, new)


BAD = [
    pytest.param("", "a job is a mapping", id="empty"),
    pytest.param("- a list", "a job is a mapping", id="a-list"),
    pytest.param("briefs: [", "line 1: not YAML", id="not-yaml"),
    pytest.param("briefs:\n\t- name: x", "line 2: not YAML", id="a-tab"),
    pytest.param("briefs: 2024-13-45", "a value in it can't be read: month must be in 1..12", id="no-such-date"),
    pytest.param("? [1]\n: 2", "a value in it can't be read: unhashable", id="a-list-as-a-key"),
    pytest.param(GOOD + "limits: {retries: 1}\n", "line 11: key 'limits' stands twice", id="a-key-twice"),
    pytest.param("items: [a]", "briefs: Field required", id="no-briefs"),
    pytest.param("briefs: []\nitems: [a]", "briefs: List should have at least 1 item", id="empty-briefs"),
    pytest.param(changed("items:", "itmes:"), "unknown key 'itmes'; did you mean 'items'?", id="misspelt-at-the-top"),
    pytest.param(
        changed("instructions", "instrctions"),
        "briefs[0]: unknown key 'instrctions'; did you mean 'instructions'?",
        id="misspelt-in-a-brief",
    ),
    pytest.param(
        changed("    instructions: Say what it allows.\n", ""), "briefs[0].instructions: Field required", id="no-words"
    ),
    pytest.param(
        changed("name: terms", "name: Terms Of Use"), "briefs[0].name: String should match pattern", id="a-bad-name"
    ),
    pytest.param(
        changed("{type: object,", "{type: objekt,"), "briefs[0].output: not a valid JSON Schema", id="a-bad-schema"
    ),
    pytest.param(
        changed("output: {type: object, properties: {family: {type: string}}, required: [family]}", "output: txt"),
        "briefs[0].output: must be 'text', a JSON Schema, or 'module:Name' of a pydantic model, not 'txt'",
        id="a-bad-output",
    ),
    pytest.param(
        changed("    instructions", "    checks: [{kind: regex, pattern: '('}]\n    instructions"),
        "briefs[0].checks[0].pattern: not a regular expression",
        id="a-bad-pattern",
    ),
    pytest.param(
        changed("    instructions", "    checks: [{kind: max_word, words: 3}]\n    instructions"),
        "briefs[0].checks[0]: Input tag 'max_word'",
        id="an-unknown-check",
    ),
    pytest.param(
        changed("Say what it allows.", "Say what {title} allows."),
        "Placeholder {title} has no value in item 'texts/a.txt'",
        id="a-field-that-items-lack",
    ),
    pytest.param(changed("concurrency: 2", "concurrency: 0"), "limits.concurrency: Input should be", id="no-workers"),
    pytest.param(changed("concurrency: 2", "concurrency: many"), "(it is 'many')", id="a-number-in-words"),
    pytest.param(changed("{concurrency: 2}", "{retrys: 2}"), "did you mean 'retries'?", id="misspelt-limit"),
    pytest.param(changed("{concurrency: 2}", "{min_success: 90}"), "limits.min_success", id="a-percentage"),
    pytest.param(
        changed("kind: llm", "kind: llama"),
        "no executor of the kind 'llama'; did you mean 'llm'?",
        id="an-unknown-executor",
    ),
    pytest.param(changed("model: openai/test, ", ""), "executor.model: Field required", id="no-model"),
    pytest.param(changed("model:", "api_key: sk-1, model:"), "executor: unknown key 'api_key'", id="a-key-in-the-job"),
    pytest.param(
        changed("model:", "params: {api_key: sk-1}, model:"), "executor.params: 'api_key'", id="a-key-in-the-params"
    ),
    pytest.param(changed("merge_records", "merge_record"), "integrator: Input tag", id="an-unknown-integrator"),
    pytest.param(changed("identity: [family]", "identity: []"), "integrator.identity", id="no-identity"),
    pytest.param(changed("[family]}\nlimits", "[famly]}\nlimits"), "'famly'", id="an-identity-that-answers-lack"),
    pytest.param(changed("texts/*.txt", "text/*.txt"), "There are no items", id="no-such-files"),
    pytest.param(changed("texts/*.txt", "../*"), "items", id="out-of-the-folder"),
    pytest.param(changed("{glob:", "{globb:"), "items", id="an-unknown-source"),
    pytest.param(changed('{glob: "texts/*.txt"}', "[]"), "There are no items", id="an-empty-list"),
    pytest.param(
        changed('{glob: "texts/*.txt"}', '[fine, {key: b, value: "x\\ud800"}]'),
        r"element 2: half of a surrogate pair is no text and can't be written as UTF-8 (it is {'key': 'b', 'value'",
        id="half-a-character",
    ),
    pytest.param(changed('{glob: "texts/*.txt"}', "[a, a]"), "Two items have the key 'a'", id="a-key-of-two-items"),
    pytest.param(changed('{glob: "texts/*.txt"}', "{csv: none.csv}"), "none.csv", id="no-such-table"),
    pytest.param(
        changed("    instructions", "    writes: [out.json]\n    instructions"), "both write 'out.json'", id="one-file"
    ),
    pytest.param(
        changed("    instructions", "    output: 'os:PathLike'\n    instructions").replace(
            "    output: {type: object, properties: {family: {type: string}}, required: [family]}\n", ""
        ),
        "is not code of yours",
        id="code-of-somebody-else",
    ),
    pytest.param(
        changed("    instructions", "    checks: [{kind: function, function: 'own_shapes:SHAPE'}]\n    instructions"),
        "must be a function",
        id="no-function",
    ),
    pytest.param("flow: dispach\n" + GOOD, "flow: there is no 'dispach'; did you mean 'dispatch'?", id="no-such-flow"),
]


@pytest.mark.parametrize(("text", "told"), BAD)
def test_a_wrong_job_is_refused_before_anything_is_spent(
    text: str, told: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 2, one sentence that names the place and the way out, and not one request."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    with openai_server(Behaviour()) as server:
        (folder / "job.yaml").write_text(text.replace("URL", server.url))
        assert main(["run", str(folder / "job.yaml")]) == UNUSABLE
        assert server.count == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert told in said.err
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err


def test_a_job_says_what_is_run_of_it(folder: Path) -> None:
    """One brief alone, a name, a folder for the files, a number of items, and what is asked again."""
    (folder / "job.yaml").write_text(
        "name: daily\nbriefs: {name: terms, instructions: Say it.}\nitems: [a, b]\nexecutor: {model: openai/x}\n"
        "out: report\nlimit: 1\nrefresh: [a]\n"
    )
    job = load_job(folder / "job.yaml")
    assert [brief.name for brief in job.briefs] == ["terms"]
    assert (job.deployment_name, job.report_folder(folder)) == ("daily", folder / "report")
    assert job.bounds(None, False) == {"limit": 1, "refresh": ["a"]}  # noqa: FBT003 -- one of its forms
    assert job.bounds(2, True) == {"limit": 2, "refresh": True}  # noqa: FBT003 -- one of its forms
    assert len(checked(job, folder).items) == 1
    given = job.form_parameters(folder)
    assert {name: given[name] for name in ("name", "out", "limit", "refresh")} == {
        "name": "daily",
        "out": "report",
        "limit": 1,
        "refresh": ["a"],
    }


@pytest.mark.parametrize(
    ("line", "why"),
    [
        pytest.param("limit: 0", "limit: Input should be greater than or equal to 1 (it is 0).", id="limit"),
        pytest.param("out: ''", "out: String should have at least 1 character", id="out"),
        pytest.param("refresh: 3", "refresh: write true, a pattern or a list of patterns (it is 3).", id="refresh"),
        pytest.param("name: My job", "name: ", id="name"),
        pytest.param(
            "briefs: {name: terms, instruction: Say it.}",
            "briefs[0]: unknown key 'instruction'; did you mean 'instructions'?",
            id="one-brief",
        ),
    ],
)
def test_wrong_bounds_are_refused(line: str, why: str, folder: Path) -> None:
    """In a sentence that names the key."""
    text = "briefs: [{name: terms, instructions: Say it.}]\nitems: [a]\n"
    (folder / "job.yaml").write_text("items: [a]\n" + line if "briefs" in line else text + line)
    with pytest.raises(JobError, match=re.escape(f"job.yaml: {why}")):
        load_job(folder / "job.yaml")


def test_a_good_job_becomes_the_parameters_of_the_flow(folder: Path) -> None:
    """Every part is there, in its type."""
    (folder / "job.yaml").write_text(GOOD)
    parameters = load_job(folder / "job.yaml").parameters()
    where, around = {"task_runner", "fan_out"}, {"name", "out", "limit", "refresh"}
    assert set(parameters) == {"briefs", "items", "executor", "integrator", "limits", "review", *where, *around}
    assert set(load_job(folder / "job.yaml").parameters(exclude={"review"})) == set(parameters) - {"review"}
    assert parameters["limits"].concurrency == 2
    assert schema_of(parameters["briefs"][0].output) == {
        "type": "object",
        "properties": {"family": {"type": "string"}},
        "required": ["family"],
    }


def test_a_job_may_be_json(folder: Path) -> None:
    """JSON is YAML."""
    (folder / "job.json").write_text(json.dumps({"briefs": [{"name": "x", "instructions": "Do."}], "items": ["a"]}))
    assert load_job(folder / "job.json").briefs[0].name == "x"


@pytest.mark.parametrize(
    ("change", "place", "value"),
    [
        pytest.param("limits.concurrency=5", ("limits", "concurrency"), 5, id="a-number"),
        pytest.param("briefs.0.instructions=Other: words", None, None, id="yaml-of-its-own"),
        pytest.param("briefs.0.instructions='Other: words'", ("briefs", 0, "instructions"), "Other: words", id="text"),
        pytest.param("executor.fallbacks=[openai/b]", ("executor", "fallbacks"), ["openai/b"], id="a-list"),
        pytest.param("limits.nonsense=1", None, None, id="an-unknown-key"),
        pytest.param("briefs.7.name=x", None, None, id="an-unknown-place"),
        pytest.param("briefs.0=1", None, None, id="the-wrong-thing"),
        pytest.param("briefs.1=1", None, None, id="past-the-end"),
        pytest.param("briefs.0.name.x=1", None, None, id="below-a-text"),
        pytest.param("briefs.0.name.x.y=1", None, None, id="far-below-a-text"),
        pytest.param("concurrency", None, None, id="no-value"),
        pytest.param("=3", None, None, id="no-key"),
        pytest.param("limits=[", None, None, id="not-yaml"),
    ],
)
def test_single_values_can_be_changed(
    change: str, place: tuple[str | int, ...] | None, value: object, folder: Path
) -> None:
    """`--set` changes what is there, and is refused where it makes no sense."""
    (folder / "job.yaml").write_text(GOOD)
    if place is None:
        with pytest.raises(JobError):
            load_job(folder / "job.yaml", [change])
        return
    found: Any = load_job(folder / "job.yaml", [change]).model_dump(mode="json", exclude={"items"})
    for part in place:
        found = found[part]
    assert found == value


def test_another_model_can_be_named(folder: Path) -> None:
    """`--model` replaces the model, and keeps the rest of the executor."""
    (folder / "job.yaml").write_text(GOOD)
    executor = load_job(folder / "job.yaml", model="openai/other").executor
    assert isinstance(executor, LLM)
    assert (executor.model, executor.api_base) == ("openai/other", "URL")
    (folder / "short.yaml").write_text("briefs: [{name: x, instructions: Do.}]\nitems: [a]\n")
    assert load_job(folder / "short.yaml", model="openai/other").executor is not None


def test_one_model_in_place_of_several_is_refused(folder: Path) -> None:
    """`--model` says whom `models` would leave unasked; without them, it counts."""
    file = folder / "several.yaml"
    file.write_text("flow: research_topics\nquestion: Why?\ntopics: [a]\nmodels: [openai/a, openai/b]\n")
    with pytest.raises(JobError, match=r"--model: 'openai/c' would not .* under 'models'; change those with --set"):
        read_job(file, model="openai/c")
    found = read_job(file, ["models=[]"], model="openai/c")
    assert isinstance(found, FormJob)
    assert found.given["model"] == "openai/c"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The reason is told, without a traceback."""
    with pytest.raises(JobError, match="No such file"):
        load_job(tmp_path / "none.yaml")
    with pytest.raises(JobError, match="Is a directory"):
        load_job(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(JobError, match="not UTF-8"):
        load_job(tmp_path / "binary.yaml")
