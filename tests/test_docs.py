"""The documentation keeps its word: every fenced block runs, parses or is what a command prints; every name exists."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from functools import cache
from importlib.metadata import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast, get_args

import pytest
import yaml
from markdown_it import MarkdownIt
from opentelemetry.sdk import environment_variables
from prefect.cli._app import _app  # pyright: ignore[reportPrivateUsage] -- the tree of its commands has no public name
from prefect.settings.legacy import (
    _get_settings_fields,  # pyright: ignore[reportPrivateUsage] -- nor have all names of settings
)
from prefect.settings.models.root import Settings as PrefectSettings
from pydantic import TypeAdapter

import prefect_dispatch
from prefect_dispatch.cli import commands, parser
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.flows.job_file import Job, form_model
from prefect_dispatch.integrators.registry import AnyIntegrator
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.checks import Check
from prefect_dispatch.models.decisions import Decisions
from prefect_dispatch.models.item import placeholders
from prefect_dispatch.settings import PREFIX, Settings
from prefect_dispatch.sources import Source
from tests.fences import Fence, fences
from tests.openai_server import Behaviour, document, openai_server

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCES = {page: fences(page) for page in PAGES}
EVERY = [fence for found in FENCES.values() for fence in found]
PICTURE = ""
KINDS = {"python", "yaml", "json", "sh", "console", "text", PICTURE}
WIDEST = 100
"""Characters of a picture's line that a page has room for."""


def of_kind(*languages: str) -> pytest.MarkDecorator:
    """Return the mark that runs a test for each fenced block of some languages."""
    found = [pytest.param(fence, id=str(fence)) for fence in EVERY if fence.language in languages]
    return pytest.mark.parametrize("fence", found)


def next_text(fence: Fence, title: str) -> str | None:
    """Return the text that a block is followed by, if that has a certain title."""
    (page,) = (found for found in FENCES.values() if fence in found)
    behind = page[page.index(fence) + 1 :]
    return behind[0].text if behind and (behind[0].language, behind[0].title) == ("text", title) else None


def squeezed(text: str) -> str:
    """Return a text with its lines joined: a page breaks lines that a terminal doesn't."""
    return " ".join(text.split())


def test_every_fence_is_held_to_something() -> None:
    """There is no kind of block that no test looks at, and no text that belongs to no other block."""
    assert {fence.language for fence in EVERY} <= KINDS
    for found in FENCES.values():
        for before, fence in zip([None, *found], found, strict=False):
            if fence.language == "text" and fence.title in {"", "prints", "output"}:
                owner = {"": "yaml", "prints": "python", "output": "console"}[fence.title]
                assert before is not None, fence
                assert before.language == owner, fence


@of_kind(PICTURE)
def test_a_picture_fits(fence: Fence) -> None:
    """A drawing in characters is no wider than a page, and has no tab."""
    assert max(map(len, fence.text.splitlines())) <= (WIDEST if fence.page != "README.md" else 120)
    assert "\t" not in fence.text


def whole_job(data: dict[str, Any]) -> dict[str, Any]:
    """Return a job that a block shows a part of, with the rest added; one for a flow with a flat form is whole."""
    if "flow" in data:
        return data
    briefs = data.get("briefs", [{"name": "a", "instructions": "Say it."}])
    fields = {name: "…" for brief in briefs for text in _texts(brief) for name in placeholders(text)}
    return {"briefs": briefs, "items": [{"key": "a", "value": fields or "A text."}], **data}


def _texts(brief: dict[str, Any]) -> list[str]:
    terms = [term for check in brief.get("checks", ()) for term in check.get("terms", ())]
    return [brief.get("scope", ""), brief["instructions"], *brief.get("constraints", ()), *terms]


def is_job(data: dict[str, Any]) -> None:
    """Check that a block is a job, or a part of one; for a flow with a flat form, all of it."""
    if "flow" in data:
        form_model(data["flow"]).model_validate(data)
    else:
        Job.model_validate(whole_job(data))


def is_decisions(data: dict[str, Any]) -> None:
    """Check that a block is a file of decisions."""
    Decisions.model_validate(data)


def is_integrator(data: dict[str, Any]) -> None:
    """Check that a block has the fields of an integrator."""
    TypeAdapter(AnyIntegrator).validate_python(data)


def is_answers(data: dict[str, Any]) -> None:
    """Check that a block is a file of answers to questions of agents."""
    CodingAgent.model_validate({"model": "m", "answers": data})


YAML: dict[str, Callable[[dict[str, Any]], None]] = {
    "": is_job,
    "job.yaml": is_job,
    "decisions.yaml": is_decisions,
    "answers.yaml": is_answers,
    "rules.yaml": is_integrator,
}
"""What a block of YAML is, by its title; what is marked as good or bad is a job."""


@pytest.mark.usefixtures("store")
@of_kind("yaml")
def test_yaml_is_what_it_is_said_to_be(
    fence: Fence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job is a job; a good one has a plan; a bad one is refused in the words below it, or taken where none are."""
    data = yaml.safe_load(fence.text)
    mark, refusal = fence.title[:1], next_text(fence, "")
    if mark not in {"✓", "✗"}:
        assert refusal is None
        YAML["" if fence.title.startswith("examples/") else fence.title](data)  # test_gallery.py compares the file
        return
    monkeypatch.setenv("PREFECT_DISPATCH_MODEL", "openai/gpt-5-mini")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(whole_job(data), sort_keys=False, allow_unicode=True))
    status = commands.main(["plan", str(tmp_path / "job.yaml")])
    told = capsys.readouterr()
    if refusal is None:
        assert (status, told.err) == (0, "")
    else:
        assert mark == "✗"
        assert (status, squeezed(told.err)) == (2, squeezed(refusal))


@of_kind("json")
def test_json_is_json(fence: Fence) -> None:
    """A block of JSON is JSON."""
    json.loads(fence.text)


def a_value(schema: dict[str, Any]) -> Any:  # noqa: ANN401 -- JSON
    """Return a value that satisfies a plain schema."""
    if "enum" in schema:
        return schema["enum"][0]
    kinds: str | list[str] = schema.get("type", "object")
    match kinds if isinstance(kinds, str) else kinds[0]:
        case "object":
            return {name: a_value(each) for name, each in schema.get("properties", {}).items()}
        case "array":
            return [a_value(schema.get("items", {}))]
        case "boolean":
            return True
        case "integer" | "number":
            return schema.get("minimum", 1)
        case _:
            return "A text."


def obliging(request: dict[str, Any], n: int) -> Behaviour:
    """Answer in the form that is asked for."""
    form = request.get("response_format", {}).get("json_schema")
    return Behaviour(content=json.dumps(a_value(form["schema"])) if form else "A text.")


@pytest.mark.slow
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.relative_to(ROOT).as_posix())
        for page, found in FENCES.items()
        if page.name != "README.md" and any(fence.language == "python" for fence in found)  # test_readme.py has that
    ],
)
def test_python_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python of a page runs from its top to its end, and prints what the page says that it prints."""
    blocks = [fence for fence in FENCES[page] if fence.language == "python"]
    module = ModuleType("page")
    module.__file__ = str(tmp_path / "page.py")
    lines = [""] * (blocks[-1].line + len(blocks[-1].text.splitlines()))
    for block in blocks:
        text = block.text.splitlines()
        lines[block.line - 1 : block.line - 1 + len(text)] = text
    Path(module.__file__).write_text("\n".join(lines))  # so that the source of its functions can be read
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    with openai_server(obliging) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        for block in blocks:
            code = compile("\n" * (block.line - 1) + block.text, module.__file__, "exec")
            exec(code, module.__dict__)  # noqa: S102 -- our own words
            printed = capsys.readouterr().out
            expected = next_text(block, "prints")
            if expected is not None:
                assert squeezed(printed) == squeezed(expected), block


def commands_of(fence: Fence) -> list[list[str]]:
    """Return the words of each command of a block."""
    lines = fence.text.replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.split(r"\s&&\s|\s\|\s", line)]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def sketched(words: list[str]) -> list[str]:
    """Return the words of a synopsis as somebody would give them."""
    plain = [word for each in words if (word := each.translate(str.maketrans("", "", "[]…")))]
    plain = ["dispatch" if word == "FLOW" else word for word in plain]
    return ["1" if before == "--limit" else word for before, word in zip(["", *plain], plain, strict=False)]


def is_dispatch(words: list[str]) -> None:
    """Check that our command line takes a command, and that an example that it names is there."""
    parsed = parser.create_parser().parse_args(sketched(words))
    job = getattr(parsed, "job", None)
    assert job is None or not str(job).startswith("examples/") or (ROOT / job).exists()


def is_prefect(words: list[str]) -> None:
    """Check that Prefect's command line takes a command."""
    words = [word for word in words if word != "--no-prompt"]  # it stands before any command
    _app.parse_args(words, exit_on_error=False, print_error=False)


@cache
def read_by_tests() -> frozenset[str]:
    """Return the variables that tests read, such as where to put what they see."""
    texts = (file.read_text(encoding="utf-8") for file in (ROOT / "tests").glob("*.py"))
    return frozenset(name for text in texts for name in re.findall(rf'environ\.get\("({PREFIX}\w+)"', text))


def is_setting(words: list[str]) -> None:
    """Check that what is exported is read by somebody."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    for word in words:
        name = word.partition("=")[0]
        if name.startswith(PREFIX):
            assert name in known or name in read_by_tests(), name
        elif name.startswith("PREFECT_"):
            assert name in _get_settings_fields(PrefectSettings)
        elif name.startswith("OTEL_"):
            assert name in vars(environment_variables), name
        else:
            assert name in {"OPENAI_API_KEY", "ANTHROPIC_API_KEY"}, name


def is_traced(words: list[str]) -> None:
    """Check the command that OpenTelemetry's own command starts."""
    COMMANDS[words[0]](words[1:])


def is_install(words: list[str]) -> None:
    """Check that the extras that are installed exist."""
    extras = metadata("prefect-dispatch").get_all("Provides-Extra") or []
    for word in words:
        if word.startswith("prefect-dispatch["):
            assert set(word.removeprefix("prefect-dispatch[").removesuffix("]").split(",")) <= set(extras), word


def is_python(words: list[str]) -> None:
    """Check that a script or a module of ours that is run is there."""
    if words[0] == "-m":
        assert (
            words[1] in {"venv", "pip", "http.server"}
            or (ROOT / words[1].replace(".", "/")).with_suffix(".py").exists()
        )
    else:
        assert (ROOT / words[0]).exists()


def is_test_run(words: list[str]) -> None:
    """Check that the tests that are run are there."""
    assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))


def is_uv(words: list[str]) -> None:
    """Check that what uv runs of ours is taken."""
    if "prefect-dispatch" in words:
        is_dispatch(words[words.index("prefect-dispatch") + 1 :])


def is_completion(words: list[str]) -> None:
    """Check that a completion is generated from our parser."""
    assert words[:1] == ["-s"]
    assert words[2] == f"{parser.__name__}.{parser.create_parser.__name__}"


def is_folder(words: list[str]) -> None:
    """Check that a folder is made as often as it is wanted."""
    assert words[0] == "-p"


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "prefect-dispatch": is_dispatch,
    "prefect": is_prefect,
    "export": is_setting,
    "mkdir": is_folder,
    "opentelemetry-instrument": is_traced,
    "pip": is_install,
    "python": is_python,
    "python3": is_python,
    "pytest": is_test_run,
    "shtab": is_completion,
    "uv": is_uv,
}


@of_kind("sh", "console")
def test_commands_exist(fence: Fence) -> None:
    """Every command is one that we know how to hold to its word; options and names are what its program takes."""
    for words in commands_of(fence):
        assigned = [word for word in words if re.match(r"[A-Z_]+=", word)]
        if words[: len(assigned)] == assigned:
            is_setting(assigned)
            words = words[len(assigned) :]  # noqa: PLW2901 -- what is left is the command
        COMMANDS[Path(words[0]).name](words[1:])


def triage(request: dict[str, Any], n: int) -> Behaviour:
    """Answer as the page on the first five minutes has it: one message is a hard one, twice."""
    text = document(request)
    said = (
        {"subject": "fault", "answer_within": "an hour", "summary": "The kettle is cracked, and guests come tomorrow."}
        if "kettle" in text
        else {"subject": "bill", "answer_within": "a week", "summary": "Order 1182 was charged twice."}
        if "1182" in text
        else {"subject": "delivery", "answer_within": "today" if n <= 2 else "a day", "summary": "The parcel is late."}
    )
    return Behaviour(content=json.dumps(said), prompt_tokens=230, completion_tokens=28)


def timeless(text: str) -> str:
    """Return what a command prints, but for how long it took."""
    return squeezed(re.sub(r"\b\d+\.\d+ s$", "… s", text, flags=re.MULTILINE))


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_first_five_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever does what the page says, in its order, sees what the page shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    with openai_server(triage) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        for fence in FENCES[DOCS / "start.md"]:
            if "." in fence.title and fence.language in {"text", "yaml"}:
                Path(fence.title).parent.mkdir(exist_ok=True)
                Path(fence.title).write_text(fence.text)
            for words in commands_of(fence) if fence.language == "console" else ():
                commands.main(words[1:])
                expected = next_text(fence, "output")
                printed = capsys.readouterr().out
                assert expected is None or timeless(printed) == timeless(expected), printed
            if fence.language == "json":
                assert json.loads(Path("report/report.json").read_text())["value"] == json.loads(fence.text)


def codes(page: Path) -> set[str]:
    """Return what stands in the text of a page as code."""
    inline = (token.children or [] for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")))
    return {child.content for children in inline for child in children if child.type == "code_inline"}


@cache
def functions(file: Path) -> set[str]:
    """Return the names of the functions of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, kinds)}


@pytest.mark.parametrize("page", [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in PAGES])
def test_what_a_page_names_is_there(page: Path) -> None:
    """Files, tests, modules, settings and commands that a page names exist."""
    for code in codes(page):
        if named := re.fullmatch(r"(?:tests/)?((?:\w+/)*test_\w+\.py)", code):
            assert (ROOT / "tests" / named[1]).exists(), code
        elif re.fullmatch(r"(examples|benchmarks|docs|deployments|flows|integrators|tasks|src)/[\w./-]+", code):
            assert (ROOT / code).exists(), code
        elif code.startswith("python -m benchmarks."):
            is_python(code.split()[1:3])
        elif re.fullmatch(r"PREFECT_[A-Z_]+(=.*)?", code):
            is_setting([code])
        elif re.fullmatch(r"prefect-dispatch \S.*", code):
            with pytest.raises(SystemExit, match=r"^0$"):
                is_dispatch([code.split()[1], "--help"])


UNUSUAL = re.compile(r"\b(anew|heed|mend(s|ed)?|nobody|somebody|whoever|takes none|tells its)\b", re.IGNORECASE)
"""Words for which the field has others."""
PROMISES = re.compile(r"quietly|\b(finding|sentence|statement)s? (is|are) (never |not )?(lost|left out)", re.IGNORECASE)
"""What no check of a text that a model writes can hold."""


@pytest.mark.parametrize("page", [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in PAGES])
def test_a_page_is_plain_and_promises_no_more_than_holds(page: Path) -> None:
    """A page uses the words of the field, and doesn't say that a text which a model wrote contains all findings."""
    inline = (token.children or [] for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")))
    prose = " ".join(child.content for children in inline for child in children if child.type == "text")
    assert UNUSUAL.search(prose) is None
    assert PROMISES.search(prose) is None


def test_the_laws_name_tests() -> None:
    """Each law has tests of its own, by name."""
    laws = (DOCS / "laws.md").read_text(encoding="utf-8").split("\n## ")[1:]
    numbered = [law for law in laws if law[0].isdigit()]
    assert len(numbered) == 8
    for law in numbered:
        tests = re.findall(r"^\| `([\w/]+\.py)`(?:<br>`(\w+)`)? \|", law, re.MULTILINE)
        assert len(tests) == law.count(".py`"), law.splitlines()[0]
        assert len(tests) >= 3, law.splitlines()[0]
        for file, name in tests:
            assert not name or name in functions(ROOT / "tests" / file), f"{file}: {name}"


def test_every_public_name_is_in_the_reference() -> None:
    """Whatever users may import from the package, the reference shows."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "reference").glob("*.md")))
    shown = set(re.findall(r"^::: prefect_dispatch\.([\w.]+)$", pages, re.MULTILINE))
    sources = {f"sources.{kind.__name__}" for kind in get_args(Source)}
    checks = {f"models.checks.{kind.__name__}" for kind in get_args(get_args(Check)[0])}
    assert len(checks) > 4
    assert shown >= (set(prefect_dispatch.__all__) - {"__version__"}) | sources | checks
    assert "`prefect_dispatch.__version__`" in pages


def test_the_fields_of_a_brief_are_explained() -> None:
    """The page on briefs tells what becomes of each field that the agent sees."""
    table = (DOCS / "briefs.md").read_text(encoding="utf-8").partition("## 1.")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == {"scope", "instructions", "constraints", "output", "checks"} <= set(cast("Any", Brief).model_fields)
