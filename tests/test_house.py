"""The rules of the house: who may import whom, what is public, and that every example runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import prefect_dispatch
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.checks import MaxWords
from prefect_dispatch.models.item import Item

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "kernel": ROOT / "src" / "prefect_dispatch",
    **{name: ROOT / name for name in ("tasks", "integrators", "flows", "deployments", "agents")},
}
ALLOWED = {
    "kernel": {"kernel"},
    "tasks": {"kernel", "tasks"},
    "integrators": {"kernel", "integrators"},
    "flows": {"kernel", "tasks", "integrators", "flows"},
    "deployments": {"kernel", "tasks", "integrators", "flows", "deployments"},
    "agents": {"kernel", "tasks", "integrators", "flows", "agents"},
}
EXCEPTIONS = {
    "prefect_dispatch": {"kernel", "tasks", "integrators", "flows"},  # the public names, each loaded on first use
    "prefect_dispatch.cli.commands": {
        "kernel",
        "tasks",
        "integrators",
        "flows",
        "deployments",
    },  # the other end of the arrow
    "prefect_dispatch.cli.shared_budgets": {"kernel", "flows"},  # a part of it
    "prefect_dispatch.cli.check": {"kernel", "integrators"},  # a part of it
    "prefect_dispatch.cli.deploy": {"kernel", "deployments"},  # a part of it
    "prefect_dispatch.cli.job_process": {"kernel", "flows", "agents"},  # a part of it
    "prefect_dispatch.cli.jobs": {"kernel", "agents"},  # a part of it
    "prefect_dispatch.cli.logs": {"kernel", "flows"},  # a part of it
    "prefect_dispatch.cli.merge": {"kernel", "tasks", "integrators", "flows"},  # a part of it
    "prefect_dispatch.cli.plugin": {"kernel", "agents"},  # a part of it
    "prefect_dispatch.cli.report_commands": {"kernel", "integrators", "flows"},  # a part of it
    "prefect_dispatch.cli.console": {"kernel", "tasks"},  # how the command line shows a plan
    "prefect_dispatch.tasks.integrate": {"kernel", "tasks", "integrators"},  # the task around any integrator
}
INTERNALS = (
    "prefect._",
    "prefect.context.SettingsContext",
    "prefect.flow_engine",
    "prefect.input.actions",
    "prefect.input.keyset",
    "prefect.results.ResultRecord",
    "prefect.runner",
    "prefect.server",
    "prefect.task_engine",
    "prefect.transactions.TransactionState",
    "prefect.types._",
    "prefect.utilities",
    "prefect.workers",
)
"""What Prefect's documentation doesn't promise, by the beginnings of names."""
DOCUMENTED = {
    "prefect.__version__",
    "prefect.runner.storage.GitRepository",
    "prefect.utilities.annotations.quote",
    "prefect.workers.process.ProcessWorker",
}
"""What it does, beneath one of those."""
LONGEST = 700
"""Lines of a module."""
PUBLIC = [
    "LLM",
    "Answer",
    "Ask",
    "BaseExecutor",
    "BaseIntegrator",
    "Brief",
    "Cascade",
    "CodingAgent",
    "Collate",
    "Command",
    "Consensus",
    "DispatchBudget",
    "DispatchFailed",
    "DispatchProfile",
    "Executor",
    "Integrator",
    "Item",
    "LLMCredentials",
    "Limits",
    "Merge",
    "MergeBranches",
    "MergeRecords",
    "Outcome",
    "Pilot",
    "Plan",
    "PythonCallable",
    "Reply",
    "Report",
    "Shell",
    "Synthesize",
    "TestMatrix",
    "Tournament",
    "Usage",
    "Workspace",
    "__version__",
    "analyze_files",
    "build_modules",
    "check_text",
    "content_variants",
    "dispatch",
    "integrate",
    "items_from",
    "outcome_of",
    "outcomes_frame",
    "plan",
    "research_topics",
    "run_brief",
    "test_matrix",
    "write_parquet",
    "write_table",
]


def _modules() -> Iterator[tuple[str, str, Path]]:
    """Yield the name, the layer and the file of every module of the package."""
    for layer, folder in FOLDERS.items():
        prefix = ["prefect_dispatch"] if layer == "kernel" else ["prefect_dispatch", layer]
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            linked = layer == "kernel" and parts[0] in FOLDERS  # the four folders are links in a checkout
            if not linked:
                yield ".".join([*prefix, *(part for part in parts if part != "__init__")]), layer, file


MODULES = list(_modules())


def _imported(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno} imports by a relative name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _layer(imported: str) -> str | None:
    """Return the layer of what is imported, or None if it isn't this package's."""
    package, _, rest = imported.partition(".")
    if package != "prefect_dispatch":
        return None
    folder = rest.partition(".")[0]
    return folder if folder in FOLDERS else "kernel"


def test_the_modules_are_found() -> None:
    """Every layer has modules, so that the rules below rule over something."""
    assert {layer for _, layer, _ in MODULES} == FOLDERS.keys()
    assert len({name for name, _, _ in MODULES}) == len(MODULES)


def test_imports_go_one_way() -> None:
    """The kernel knows none of the four folders; tasks and integrators don't know each other; flows know both."""
    wrong = [
        f"{name} imports {each}"
        for name, layer, file in MODULES
        for each in _imported(file)
        if (home := _layer(each)) is not None and home not in EXCEPTIONS.get(name, ALLOWED[layer])
    ]
    assert wrong == []


LAYERS = (
    "errors",
    "settings",
    "security",
    "serialization",
    "models",
    "prefect_compat",
    "processes",
    "workspaces",
    "sources",
    "executors",
    "blocks",
    "calls",
    "integrators",
    "reporting",
    "tasks",
    "flows",
    "deployments",
    "agents",
    "cli",
)
"""The packages and modules of the package from the bottom up, as ARCHITECTURE.md has them."""


def _imported_at_once(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports when it is imported itself: not for types, nor within a function."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            yield str(node.module)


def test_no_import_points_upwards() -> None:
    """Each package knows those below it, and no other."""
    upwards = [
        f"{name} imports {each}"
        for name, _, file in MODULES
        for each in _imported_at_once(file)
        if len(here := name.split(".")) > 1 and len(there := each.split(".")) > 1 and there[0] == "prefect_dispatch"
        if here[1] in LAYERS and there[1] in LAYERS and LAYERS.index(there[1]) > LAYERS.index(here[1])
    ]
    assert upwards == []


@pytest.mark.slow
def test_no_folder_is_imported_by_its_bare_name() -> None:
    """A user's project has a `tasks` of its own: this one's is `prefect_dispatch.tasks`."""
    folders = (*FOLDERS.values(), ROOT / "tests", ROOT / "examples")
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    wrong = [file for file in files if {each.partition(".")[0] for each in _imported(file)} & FOLDERS.keys()]
    assert wrong == []


def test_prefects_internals_are_used_in_one_place() -> None:
    """What Prefect doesn't document is used by `prefect_compat` alone, where each use has a contract test."""
    used = {
        name: internals
        for name, _, file in MODULES
        if (internals := {each for each in _imported(file) if each.startswith(INTERNALS)} - DOCUMENTED)
    }
    assert used.keys() == {"prefect_dispatch.prefect_compat"}


def test_a_module_is_one_thought() -> None:
    """No module grows beyond what one reads in a sitting, and each says at its top what it is."""
    texts = {name: file.read_text(encoding="utf-8") for name, _, file in MODULES}
    assert [name for name, text in texts.items() if len(text.splitlines()) > LONGEST] == []
    assert [name for name, text in texts.items() if not ast.get_docstring(ast.parse(text))] == []


@pytest.mark.parametrize("name", [name for name, _, file in MODULES if ">>> " in file.read_text(encoding="utf-8")])
def test_the_examples_run(name: str) -> None:
    """Every example in a docstring gives what it says it gives."""
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(verbose=False)
    said: list[str] = []
    for example in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(example, out=said.append)
    assert not said, "".join(said)


def test_the_public_names() -> None:
    """A name is made public, or taken back, on purpose: users script against them."""
    assert prefect_dispatch.__all__ == PUBLIC
    assert dir(prefect_dispatch) == sorted(PUBLIC)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "__version__"])
def test_a_public_name_is_explained(name: str) -> None:
    """Every public name has a docstring of its own."""
    found: Any = getattr(prefect_dispatch, name)
    assert getattr(found, "fn", found).__doc__


def test_an_unknown_name() -> None:
    """The package answers an unknown name as any module does."""
    with pytest.raises(AttributeError, match="module 'prefect_dispatch' has no attribute 'Breif'"):
        _ = prefect_dispatch.Breif


def test_the_import_is_light() -> None:
    """Prefect imports every collection it finds: that must not load litellm, pandas, or Prefect itself."""
    program = "import json, sys, prefect_dispatch; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603 -- our own program
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded & {"litellm", "pandas", "prefect", "pydantic", "pyarrow", "openai"} == set()


BRIEF: dict[str, Any] = {"name": "a", "instructions": "Do {x}.", "writes": ["out"]}


@pytest.mark.parametrize(
    ("field", "value", "counts"),
    [
        ("name", "b", False),
        ("scope", "One text.", True),
        ("instructions", "Do not.", True),
        ("constraints", ["Be brief."], True),
        ("output", {"type": "object"}, True),
        ("checks", [MaxWords(words=3)], True),
        ("priority", 1, False),
        ("reads", ["in"], False),
        ("writes", ["other"], True),
        ("resources", ["gpu"], False),
        ("samples", 3, False),  # a sample does
        ("model", "openai/gpt-5", False),  # the fingerprint of who is asked has it
        ("needs", ["other"], True),  # and then the commit that it starts from
        ("command", {"run": "true"}, True),
        ("split", {"by": "lines"}, False),  # a part does, and the joined answer is stored apart
        ("sample", 2, True),
        ("part", True, True),
        ("start", "0" * 40, True),
    ],
)
def test_what_of_a_brief_counts(field: str, value: object, counts: bool) -> None:  # noqa: FBT001 -- a column
    """A field of a brief is part of its identity, or is known to change no answer."""
    item = Item(key="k", value={"x": 1})
    before, after = (Brief.model_validate({**BRIEF, **change}).identity(item) for change in ({}, {field: value}))
    assert (before != after) is counts


@pytest.mark.parametrize(
    ("field", "value", "counts"),
    [
        ("kind", "llm", False),
        ("model", "openai/gpt-5", True),
        ("api_base", "http://127.0.0.1:1/v1", True),
        ("credentials", "my-openai", False),  # a key; the address that comes with it does
        ("params", {"seed": 1}, True),
        ("fallbacks", ["openai/gpt-5"], True),
        ("usd_per_million", (1, 2), False),
        ("idle_s", 5, False),
        ("structured_output", "tools", True),  # `auto`, as before, adds nothing
        ("accept_models", ["gpt-5*"], False),  # it decides whether an answer is flagged
        ("strict_model", True, False),
        ("web_search", True, True),  # false, as before, adds nothing
        ("mode", "batch", False),
        ("rounds", 2, False),
        ("cascade", {"cheap": "openai/gpt-5-nano"}, True),  # none, as before, adds nothing
    ],
)
def test_what_of_a_model_counts(field: str, value: object, counts: bool) -> None:  # noqa: FBT001 -- a column
    """A field of the LLM executor is part of its fingerprint, or is known to change no answer."""
    before, after = (
        LLM.model_validate({"model": "openai/gpt-5-mini", **change}).fingerprint for change in ({}, {field: value})
    )
    assert (before != after) is counts


@pytest.mark.parametrize(
    ("model", "table"),
    [
        pytest.param(Brief, test_what_of_a_brief_counts, id="Brief"),
        pytest.param(LLM, test_what_of_a_model_counts, id="LLM"),
    ],
)
def test_every_field_is_decided_on(model: type[Brief | LLM], table: Any) -> None:  # noqa: ANN401 -- a marked test
    """A new field must be put into one of the tables above, with the answer to whether it counts."""
    assert [row[0] for row in table.pytestmark[0].args[1]] == list(model.model_fields)
