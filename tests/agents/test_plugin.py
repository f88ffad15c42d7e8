"""The plugin for coding agents: what its skill and its manifests name exists, and how it is installed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
import yaml
from markdown_it import MarkdownIt

from prefect_dispatch import __version__, agents
from prefect_dispatch.agents.job_plan import PlanResult
from prefect_dispatch.agents.job_store import JobStatus, State
from prefect_dispatch.agents.policy import Policy
from prefect_dispatch.agents.server import create_server
from prefect_dispatch.cli import main
from prefect_dispatch.cli.jobs import create_policy
from prefect_dispatch.cli.parser import create_parser
from prefect_dispatch.cli.plugin import RECORD, SERVERS
from prefect_dispatch.flows.job_file import FormJob, Job, parse_job
from prefect_dispatch.flows.runtime.job_document import read_document
from prefect_dispatch.integrators.merge_records.field_rules import RuleName
from prefect_dispatch.integrators.registry import AnyIntegrator
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.ledger import Disposition, LedgerRow
from prefect_dispatch.models.limits import Limits
from tests.fences import Fence, fences

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

PLUGIN = Path(agents.__file__).parent / "plugin"
SKILL = PLUGIN / "skills" / "fan-out"
PAGES = [SKILL / "SKILL.md", *sorted((SKILL / "references").glob("*.md"))]
JOBS = [pytest.param(fence, id=str(fence)) for page in PAGES for fence in fences(page)]
MODEL = "openai/gpt-5-mini"


def load(name: str, folder: Path = PLUGIN) -> dict[str, Any]:
    """Return a JSON document of the plugin."""
    found: dict[str, Any] = json.loads((folder / name).read_text("utf-8"))
    return found


def spans(page: Path) -> set[str]:
    """Return what stands as code in the text of a page, without the front matter."""
    text = page.read_text("utf-8").removeprefix("---").partition("\n---\n")[2] or page.read_text("utf-8")
    inline = (token.children or [] for token in MarkdownIt().enable("table").parse(text))
    return {child.content for children in inline for child in children if child.type == "code_inline"}


def keys_of(*models: type[BaseModel]) -> set[str]:
    """Return the names of the fields of models."""
    return {name for model in models for name in model.model_fields}


async def tools_of(root: Path) -> dict[str, set[str]]:
    """Return the tools of the server, each with its arguments."""
    found = await create_server(Policy(root=str(root))).list_tools()
    return {tool.name: set(tool.input_schema["properties"]) for tool in found}


def options() -> set[str]:
    """Return the options of `mcp`, those of `--allow` with each kind."""
    found = vars(create_parser().parse_args(["mcp"]))
    flags = {f"--{name.replace('_', '-')}" for name in found}
    return flags | {f"--allow {kind}" for kind in ("shell", "python", "coding")}


SCHEMA = {"required", "enum"}
"""What the skill names of JSON Schema."""
SET = {"executor.params.max_tokens", "integrator.rules", "limits.on_dependence: serialize", "limit: 3"}
"""Keys below others, which the jobs of the skill set."""
PLACES = {"dispatch", "{field}", "accept", "setup"}
"""The name of the server, a placeholder, and keys of a module."""


def test_what_the_skill_names_exists(root: Path) -> None:
    """Every tool, argument, key, state, rule, integrator, option and resource that the skill names is there."""
    tools = asyncio.run(tools_of(root))
    values = {*get_args(State), *get_args(Disposition), *get_args(RuleName), *SCHEMA, *PLACES}
    values |= {*get_args(PlanResult.model_fields["state"].annotation)}
    values |= {each.model_fields["kind"].default for each in get_args(get_args(AnyIntegrator)[0])}
    keys = keys_of(PlanResult, JobStatus, Job, Brief, LedgerRow) | options() | set(tools)
    dotted = {f"limits.{name}" for name in Limits.model_fields} | SET
    for page in PAGES:
        for span in spans(page) - values - keys - dotted:
            if call := re.fullmatch(r"(\w+)\(([\w=, ]*)\)", span):
                assert {each.partition("=")[0].strip() for each in call[2].split(",")} <= tools[call[1]], span
            elif span.startswith("{"):
                is_brief({"checks": [yaml.safe_load(span)]})
            else:
                assert re.fullmatch(r"dispatch://jobs/ID/(report\.md|ledger/1|outcomes/1)", span), span


def is_brief(more: dict[str, Any]) -> None:
    """Check that a brief may have some more keys."""
    Job.model_validate({"briefs": [{"name": "a", "instructions": "b", **more}], "items": ["c"]})


@pytest.mark.parametrize("fence", JOBS)
def test_the_jobs_of_the_skill_are_jobs(fence: Fence, tmp_path: Path) -> None:
    """Each block is a job, or a part of one, as strict as a job file is read."""
    text = fence.text
    if "flow:" not in text:
        text += "" if "briefs:" in text else "briefs: [{name: a, instructions: b}]\n"
        text += "" if "items:" in text else "items: [c]\n"
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    assert isinstance(parse_job(read_document(tmp_path / "job.yaml")), Job | FormJob)


def test_the_skill_says_what_it_has_to() -> None:
    """No subject of it gets lost: independence, briefs, price, gaps, retries, conflicts, shared state, integration."""
    text = " ".join((SKILL / "SKILL.md").read_text("utf-8").split())
    for said in (
        "Tasks are independent if",
        "They are not independent if",
        "Fanning out isn't worth it",
        "the exact form, as a JSON Schema",
        "Nothing is asked and nothing is paid",
        "asks again only pairs without an answer",
        "Set a maximum and keep it",
        "document it as a gap and go on",
        "Never let the last one win",
        "which acts as a lock",
        "Give each item a row or file of its own",
        "Let one aggregator",
        "Use it once, in one place",
        "Check it against the brief",
        "Never rerun by hand what is stored",
    ):
        assert said in text, said


def test_the_skill_is_valid() -> None:
    """The reference implementation of Agent Skills accepts it."""
    validator = pytest.importorskip("skills_ref", reason="skills-ref needs Python 3.11")
    assert validator.validate(SKILL) == []
    assert len((SKILL / "SKILL.md").read_text("utf-8").splitlines()) < 500


def test_the_manifests_agree() -> None:
    """Both agents get the same plugin, in the version of the package, and its server starts with our own command."""
    claude, codex = load(".claude-plugin/plugin.json"), load(".codex-plugin/plugin.json")
    assert claude == {name: value for name, value in codex.items() if name not in {"skills", "mcpServers"}}
    assert claude["version"] == __version__
    assert (PLUGIN / codex["skills"] / "fan-out" / "SKILL.md").is_file()
    assert (PLUGIN / codex["mcpServers"]).is_file()
    (entry,) = load(".agents/plugins/marketplace.json")["plugins"]
    assert (entry["name"], (PLUGIN / entry["source"]["path"]).resolve()) == (claude["name"], PLUGIN.resolve())
    (server,) = load(SERVERS)["mcpServers"].values()
    assert create_policy(create_parser().parse_args(server["args"]), check_root=False).allow == ()


@pytest.fixture
def home(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, with a script `codex` on the PATH that notes its arguments."""
    folder = tmp_path / "home"
    (folder / "bin").mkdir(parents=True)
    script = folder / "bin" / "codex"
    script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n[ -z "$FAIL" ] || {{ echo broken >&2; exit 1; }}\n')
    script.chmod(0o755)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


def server_in(folder: Path) -> dict[str, Any]:
    """Return the server of an installed plugin."""
    server: dict[str, Any] = load(SERVERS, folder)["mcpServers"]["dispatch"]
    return server


def installed(folder: Path) -> Mapping[str, bytes]:
    """Return the files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_claude_code_finds_it_in_its_folder(home: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plugin is where Claude Code looks for skills, with every limit that the user has set."""
    wanted = ["--models", f"{MODEL},mistral/*,*", "--max-usd", "2", "--allow", "coding", "--root", str(root)]
    assert main(["plugin", "install", "claude", *wanted]) == 0
    folder = home / ".claude" / "skills" / "prefect-dispatch"
    assert set(installed(PLUGIN)) | {RECORD} == set(installed(folder))
    server = server_in(folder)
    assert Path(server["command"]).is_absolute()
    assert server["args"] == [
        *("mcp", "--root", str(root), "--models", f"{MODEL},mistral/*,*", "--max-usd", "2.0"),
        *("--max-usd-total", "2.0", "--max-items", "200", "--max-concurrency", "8", "--allow", "coding"),
    ]
    assert create_policy(create_parser().parse_args(server["args"])).allow == ("coding",)
    assert server["env_vars"][-1] == "MISTRAL_API_KEY"
    printed = capsys.readouterr().out
    assert f"Installed in {folder}" in printed
    assert "--max-usd 2.0 --max-usd-total 2.0" in printed


def test_it_is_the_same_when_installed_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing changes by the same options; others replace them; files of an older version are removed."""
    folder = home / ".claude" / "skills" / "prefect-dispatch"
    assert main(["plugin", "install", "claude"]) == 0
    before = installed(folder)
    assert "--root" not in server_in(folder)["args"]  # each project of the user's
    assert main(["plugin", "install", "claude"]) == 0
    assert installed(folder) == before
    (folder / "old.md").write_text("old", encoding="utf-8")
    record = load(RECORD, folder)
    record["old.md"] = ["cba06b5736faf67e54b07b561eae94395e774c517a7d910a54369e1263ccfbd4"]
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    assert main(["plugin", "install", "claude", "--max-usd", "0.5"]) == 0
    assert not (folder / "old.md").exists()
    assert "0.5" in server_in(folder)["args"]


def test_codex_gets_it_by_its_own_commands(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is a marketplace, which Codex registers and installs from; its errors are shown."""
    assert main(["plugin", "install", "codex"]) == 0
    folder = home / ".codex" / "prefect-dispatch"
    calls = f"plugin marketplace add {folder}\nplugin add prefect-dispatch@prefect-dispatch\n"
    assert (home / "calls").read_text() == calls
    capsys.readouterr()
    monkeypatch.setenv("FAIL", "1")
    assert main(["plugin", "install", "codex"]) == 2
    assert f"codex plugin marketplace add {folder} failed: broken" in capsys.readouterr().err
    (home / "bin" / "codex").write_text("no program")
    assert main(["plugin", "install", "codex"]) == 2
    assert "can't be run" in capsys.readouterr().err


def test_printed_instead(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--print` writes nothing, and shows each file, the server with its limits, and the commands."""
    assert main(["plugin", "install", "codex", "--print", "--models", MODEL]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(str(home / ".codex" / "prefect-dispatch" / ".agents"))
    assert '"--max-usd",\n        "1.0"' in printed
    assert printed.endswith("codex plugin add prefect-dispatch@prefect-dispatch\n")
    assert [each.name for each in home.iterdir()] == ["bin"]


def test_nothing_of_others_is_overwritten(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without our record, a changed file and a link are in the way, and named; nothing is written then."""
    folder = home / ".claude" / "skills" / "prefect-dispatch"
    folder.mkdir(parents=True)

    def refuse(path: Path) -> None:
        before = installed(home)
        assert main(["plugin", "install", "claude", "--max-usd", "3"]) == 2
        assert f"{str(path)!r} was not written by an installation" in capsys.readouterr().err
        assert installed(home) == before

    # 1. Somebody else's skill, and a record that is none.
    (folder / "SKILL.md").write_text("mine", encoding="utf-8")
    refuse(folder)
    (folder / RECORD).write_text("[]", encoding="utf-8")
    refuse(folder)
    shutil.rmtree(folder)
    folder.write_text("a file", encoding="utf-8")
    refuse(folder)
    folder.unlink()
    # 2. An installation of ours in which a file was changed, or leads elsewhere.
    assert main(["plugin", "install", "claude"]) == 0
    skill = folder / "skills" / "fan-out" / "SKILL.md"
    text = skill.read_bytes()
    skill.write_text("mine", encoding="utf-8")
    refuse(skill)
    skill.unlink()
    skill.symlink_to(tmp_path / "nothing")
    refuse(skill)
    skill.unlink()
    skill.write_bytes(text)
    assert main(["plugin", "install", "claude"]) == 0


def test_where_it_is_not_installed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the agent's program, our own command, the extra, a root or a folder to write to, the message says so."""

    def refuse(message: str, *arguments: str) -> None:
        assert main(["plugin", "install", *arguments]) == 2
        assert message in capsys.readouterr().err

    def nowhere(_: str) -> str:
        return str(tmp_path)

    refuse("--root: there is no folder", "claude", "--root", str(home / "nothing"))
    refuse("--max-usd: ", "claude", "--max-usd", "0")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mcp", None)
        refuse("pip install 'prefect-dispatch[mcp]'", "claude")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        refuse("'codex' is not on the PATH", "codex")
        patch.setattr(sysconfig, "get_path", nowhere)
        refuse("The command 'prefect-dispatch' is not on the PATH", "claude")
    (home / "file").touch()
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(home / "file"))
    refuse("can't be written to", "claude")


@pytest.mark.agents
@pytest.mark.parametrize("folder", ["shipped", "installed"])
def test_claude_code_accepts_the_plugin(folder: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`claude plugin validate` has neither an error nor a warning, before and after the installation."""
    from tests.executors.coding.real_agents import program  # noqa: PLC0415 -- only where agents are installed

    assert main(["plugin", "install", "claude"]) == 0
    place = PLUGIN if folder == "shipped" else home / ".claude" / "skills" / "prefect-dispatch"
    command = [str(program("claude")), "plugin", "validate", "--strict", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- a real agent
    assert done.returncode == 0, done.stdout + done.stderr
