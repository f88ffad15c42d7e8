"""A job file: what is taken, and how a wrong one is refused."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.cli.commands import UNUSABLE, main
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.flows.job_file import Job, load_job, read_job, validate_job
from prefect_dispatch.models.output_schema import schema_of
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
executor: {kind: llm, model: openai/test, api_base: "http://server"}
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
    pytest.param("? [1]\n: 2", "line 1: a key is a text, and here is a list or a mapping", id="a-list-as-a-key"),
    pytest.param(
        GOOD + "limits: {retries: 1}\n", "line 11: the key 'limits' stands twice; put all of it", id="a-key-twice"
    ),
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
        "line 5: briefs[0].checks[0]: there is no kind 'max_word'; did you mean 'max_words'?",
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
    pytest.param(
        changed("merge_records", "merge_record"),
        "line 9: integrator: there is no kind 'merge_record'; did you mean 'merge_records'?",
        id="an-unknown-integrator",
    ),
    pytest.param(changed("identity: [family]", "identity: []"), "integrator.identity", id="no-identity"),
    pytest.param(changed("[family]}\nlimits", "[famly]}\nlimits"), "'famly'", id="an-identity-that-answers-lack"),
    pytest.param(changed("texts/*.txt", "text/*.txt"), "There are no items", id="no-such-files"),
    pytest.param(changed("texts/*.txt", "../*"), "items", id="out-of-the-folder"),
    pytest.param(changed("{glob:", "{globb:"), "items", id="an-unknown-source"),
    pytest.param(changed('{glob: "texts/*.txt"}', "[]"), "There are no items", id="an-empty-list"),
    pytest.param(
        changed('{glob: "texts/*.txt"}', '[fine, {key: b, value: "x\\ud800"}]'),
        "line 7: items[1].value: it holds half of a character (a lone surrogate)",
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
        (folder / "job.yaml").write_text(text.replace("http://server", server.url))
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
    assert (job.deployment_name, job.out) == ("daily", "report")
    own, changed = job.parameters(folder), job.parameters(folder, limit=2, refresh=True)
    assert (own["limit"], own["refresh"], changed["limit"], changed["refresh"]) == (1, ["a"], 2, True)
    assert len(validate_job(job, folder).items) == 1
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
    with pytest.raises(JobError, match=rf"job\.yaml: line \d: {re.escape(why)}"):
        load_job(folder / "job.yaml")


def test_a_good_job_becomes_the_parameters_of_the_flow(folder: Path) -> None:
    """Every part is there, in its type."""
    (folder / "job.yaml").write_text(GOOD)
    parameters = load_job(folder / "job.yaml").parameters(folder)
    where, around = {"task_runner", "fan_out"}, {"name", "out", "limit", "refresh", "folder"}
    assert set(parameters) == {"briefs", "items", "executor", "integrator", "limits", "review", *where, *around}
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
    assert (executor.model, executor.api_base) == ("openai/other", "http://server")
    (folder / "short.yaml").write_text("briefs: [{name: x, instructions: Do.}]\nitems: [a]\n")
    assert load_job(folder / "short.yaml", model="openai/other").executor is not None


def test_one_model_in_place_of_several_is_refused(folder: Path) -> None:
    """`--model` says whom `models` would leave unasked; without them, it counts."""
    file = folder / "several.yaml"
    file.write_text("flow: research_topics\nquestion: Why?\ntopics: [a]\nmodels: [openai/a, openai/b]\n")
    with pytest.raises(JobError, match=r"--model: 'openai/c' would not .* under 'models'; change those with --set"):
        read_job(file, model="openai/c")
    found = read_job(file, ["models=[]"], model="openai/c")
    assert not isinstance(found, Job)
    assert found.parameters(folder)["model"] == "openai/c"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The reason is told, without a traceback."""
    with pytest.raises(JobError, match="No such file"):
        load_job(tmp_path / "none.yaml")
    with pytest.raises(JobError, match="Is a directory"):
        load_job(tmp_path)


WRONG = [
    pytest.param(
        changed("[family]}\nl", "\n}\nl"), "line 9: integrator.identity: must be a list, .* no value", id="null"
    ),
    pytest.param(
        "briefs:\nitems: [a]", "line 1: briefs: must be a list, such as .*has no value; write one", id="no-list"
    ),
    pytest.param(changed("{concurrency: 2}", ""), "line 10: limits: must be a mapping, such as", id="no-mapping"),
    pytest.param(
        changed("name: terms", "name: 12"), r"line 3: briefs\[0\].name: must be a text; .*it is 12", id="text"
    ),
    pytest.param(
        changed("Say what it allows.", "{x}"), r"text; put it in quotation marks \(it is {\"x\": null}", id="braces"
    ),
    pytest.param(changed("One licence text.", "yes"), r"scope: must be a text; .* \(it is true\)", id="yes"),
    pytest.param(
        changed("concurrency: 2", "retries: 1.5"), "limits.retries: must be a whole number", id="whole-number"
    ),
    pytest.param(
        changed("concurrency: 2", "budget_usd: .inf"), "line 10: limits.budget_usd: .inf is no number", id="inf"
    ),
    pytest.param(GOOD + "review: maybe", r"line 11: review: must be true or false \(it is 'maybe'\)", id="bool"),
    pytest.param(GOOD + "flow:", "line 11: flow: there is no null; known are 'dispatch'", id="no-flow"),
    pytest.param(
        changed("{kind: merge_records, identity: [family]}", "merge_records"),
        r"integrator: must be a mapping, .* with the key 'kind' \(it is 'merge_records'\)",
        id="integrator-as-text",
    ),
    pytest.param(
        changed('{kind: llm, model: openai/test, api_base: "http://server"}', "openai/test"),
        r"executor: must be a mapping, .* with the key 'kind' \(it is 'openai/test'\)",
        id="executor-as-text",
    ),
    pytest.param(
        changed("kind: merge_records, ", ""), "integrator: the key 'kind' is missing, which says", id="no-kind"
    ),
    pytest.param(
        changed('{glob: "texts/*.txt"}', ""), r"line 7: items: not a source: null; write a list", id="no-items"
    ),
    pytest.param(
        changed("items: {glob", "items: {csv: a, colum"), "items: a source has|items: unknown key", id="colum"
    ),
    pytest.param(
        changed('{glob: "texts/*.txt"}', "{csv: a.csv, delimiter: tab}"), r"items.delimiter: .*it is 'tab'", id="column"
    ),
    pytest.param(
        changed('{glob: "texts/*.txt"}', "{glob: [a, null]}"), r"7: items.glob\[1\]: must be a text", id="glob"
    ),
    pytest.param(
        changed('{glob: "texts/*.txt"}', "\n- {key: [a], value: 1}"),
        r"line 8: items\[0\]: the key must be text",
        id="key",
    ),
    pytest.param(
        GOOD + "x: 1", "line 11: the job: unknown key 'x'; known are 'flow', 'name', 'briefs'", id="unknown-key"
    ),
    pytest.param(
        GOOD + "---\n" + GOOD, "line 11: another document begins here; a job file holds one job", id="two-jobs"
    ),
    pytest.param("hello", "a job is a mapping with 'briefs' and 'items', .* this is the text 'hello'", id="a-text"),
    pytest.param("# nothing\n", "a job is a mapping with .* this is an empty file", id="empty"),
    pytest.param(
        "flow: content_variants\nproduct: x\ninstructions: x\nvariants: [a]\nmodel: a/b\n",
        r"line 4: variants\[0\]: must be a mapping, [^.]*\.$",
        id="one-sentence",
    ),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_message_says_where_and_what_is_expected(text: str, message: str, tmp_path: Path) -> None:
    """On one line: the file, the line, the path, what is expected there, and what stands there."""
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(JobError, match=f"^job.yaml: .*{message}") as refused:
        read_job(tmp_path / "job.yaml")
    assert str(refused.value).isprintable()
    assert "None" not in str(refused.value)


def test_a_change_is_named_in_place_of_a_line(tmp_path: Path) -> None:
    """What `--set` changed doesn't stand in the file; the last change counts, and makes what is missing."""
    (tmp_path / "job.yaml").write_text(GOOD + "task_runner:\n")
    with pytest.raises(JobError, match=r"job.yaml: --set 'limits.retries=x': limits.retries: must be a number"):
        load_job(tmp_path / "job.yaml", ["limits.retries=2", "limits.retries=x", "limits.concurrency=3"])
    found = load_job(tmp_path / "job.yaml", ["task_runner.kind=threads", "executor.params.seed=1"])
    assert isinstance(found.executor, LLM)
    assert found.executor.params == {"seed": 1}
    with pytest.raises(JobError, match=r"--set 'items=.*': the value is several documents of YAML; write one"):
        load_job(tmp_path / "job.yaml", ["items=[a]\n--- b"])
    with pytest.raises(
        JobError, match="--set 'review=a: b: c': the value can't be read as YAML: line 1: not YAML: a col"
    ):
        load_job(tmp_path / "job.yaml", ["review=a: b: c"])


def test_anchors_and_merge_keys_are_ordinary_yaml(tmp_path: Path) -> None:
    """A second brief may take over keys of the first, and a change of one leaves the other as it is."""
    briefs = """briefs:
  - &first {name: a, instructions: Say it., checks: [{kind: max_words, words: 5}]}
  - {<<: *first, name: b}
items: [x]
"""
    (tmp_path / "job.yaml").write_text(briefs)
    first, second = load_job(tmp_path / "job.yaml", ["briefs.0.checks.0.words=7"]).briefs
    assert (second.name, second.instructions) == ("b", first.instructions)
    assert [check.model_dump()["words"] for each in (first, second) for check in each.checks] == [7, 5]


def test_a_file_of_another_encoding(tmp_path: Path) -> None:
    """UTF-16 with its mark is read, as YAML demands; what is no text is refused with the byte and the way out."""
    (tmp_path / "job.yaml").write_bytes(GOOD.encode("utf-16"))
    assert load_job(tmp_path / "job.yaml").briefs[0].name == "terms"
    (tmp_path / "job.yaml").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(
        JobError, match=r"job.yaml: line 1: it is not UTF-8 text: the byte 0x89 can't stand there; save it"
    ):
        load_job(tmp_path / "job.yaml")
