"""A command in a checkout of its own: its report, what it changed, and which files it read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import Brief, Command, Item, Shell
from prefect_dispatch.errors import JobError, RejectedError
from prefect_dispatch.executors import shell
from prefect_dispatch.executors.base import Ask
from prefect_dispatch.executors.command_checks import file_digests
from prefect_dispatch.models.test_run import TestRun
from prefect_dispatch.processes.state_folder import reap_periodically
from prefect_dispatch.workspaces.workspace import Workspace
from tests.workspaces.repositories import Repository, picture

if TYPE_CHECKING:
    from prefect_dispatch.executors.base import Reply

ITEM = Item(key="a", value={"version": "3.10"})
GREEN = '<testsuite name="s"><testcase name="one"/></testsuite>'
RED = '<testsuite name="s"><testcase name="one"><failure message="no"/></testcase></testsuite>'


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with a stale report in it."""
    made = Repository.init(tmp_path / "repo")
    made.put("junit.xml", GREEN)
    made.put("src/a.txt", "one\n")
    made.commit("Begin")
    return made


def replied(run: str, folder: Path, *, writes: tuple[str, ...] = (), **more: Any) -> Reply:  # noqa: ANN401 -- fields
    """Return the reply of a shell to a brief with a command."""
    shell = Shell(workspace=more.pop("workspace", None)).resolve_paths(folder)
    output = TestRun if "report" in more else "text"
    command = Command(run=run, **more)
    brief = Brief(name="do", instructions="Do.", output=output, writes=writes, command=command)
    shell.require_supported([brief])
    asyncio.run(shell.warm_up())
    return asyncio.run(shell.answer(Ask(brief=brief, item=ITEM)))


def verdict(run: str, folder: Path, **more: Any) -> tuple[str, list[tuple[str, str]]]:  # noqa: ANN401 -- the same
    """Return what came of a run of tests, and of each test."""
    found = TestRun.model_validate(replied(run, folder, report=("*.xml",), **more).value)
    return found.verdict, [(case.name, case.result) for case in found.cases]


def test_a_report_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """Any exit code is an answer, as long as the report agrees with it; one that was there before is none."""
    (tmp_path / "old.xml").write_text(GREEN)
    green, red = (f"echo '{text}' > \"$REPORT_DIR/x.xml\"" for text in (GREEN, RED))
    assert verdict(green, tmp_path) == ("passed", [("one", "passed")])
    assert verdict(f"{red}; exit 1", tmp_path) == ("failed", [("one", "failed")])
    assert verdict(f"{green}; exit 1", tmp_path)[0] == "failed"
    assert verdict(red, tmp_path)[0] == "failed"
    assert verdict("exit 0", tmp_path)[0] == "failed"
    assert verdict("exit 4", tmp_path)[0] == "failed"
    with pytest.raises(RejectedError, match=r"'x\.xml' is no plain file, and a link is not followed"):
        verdict('ln -s "$PWD/old.xml" "$REPORT_DIR/x.xml"', tmp_path)
    assert verdict('mkdir "$REPORT_DIR/x.xml"', tmp_path)[0] == "failed"


def test_a_report_in_a_workspace(repository: Repository) -> None:
    """There it may lie where the command ran; one that the commit holds counts only once it was written anew."""
    before = picture(repository.path)
    workspace = Workspace()
    here = repository.path
    assert verdict("true", here, workspace=workspace)[0] == "failed"
    assert verdict(f"echo '{GREEN}' > junit.xml", here, workspace=workspace) == ("passed", [("one", "passed")])
    assert verdict(f"echo '{GREEN}' > new.xml", here, workspace=workspace)[0] == "passed"
    both = f"echo '{GREEN}' > \"$REPORT_DIR/new.xml\"; echo '{{}}' > new.xml"
    assert verdict(both.format(GREEN), here, workspace=workspace)[0] == "passed"
    assert verdict(both.format(RED), here, workspace=workspace)[0] == "failed"
    assert verdict(both.format(GREEN[:-5]), here, workspace=workspace)[0] == "failed"
    assert picture(repository.path) == before


def test_reports_that_are_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is not read as green by what fits."""
    monkeypatch.setattr(shell, "MAX_REPORT_BYTES", 10)
    with pytest.raises(RejectedError, match="more than 10 bytes together"):
        verdict(f"echo '{GREEN}' > \"$REPORT_DIR/x.xml\"", tmp_path)


def test_what_a_command_changes_is_its_answer(repository: Repository) -> None:
    """With what it printed, or in place of that; the repository itself stays as it is."""
    before = picture(repository.path)
    fields: dict[str, Any] = {"workspace": Workspace(), "writes": ("src/**",)}
    silent = replied("echo two >> src/a.txt; echo new > src/b.txt", repository.path, **fields)
    assert silent.value == "modified src/a.txt\nadded src/b.txt"
    assert silent.change
    assert [file.path for file in silent.change.files] == ["src/a.txt", "src/b.txt"]
    assert replied("echo two >> src/a.txt; echo done", repository.path, **fields).value == "done"
    assert replied("true", repository.path, **fields).value == "nothing changed"
    assert replied("touch src/c.txt", repository.path, workspace=Workspace()).value == "(printed nothing)"
    assert picture(repository.path) == before


def test_its_commit_is_what_counts(repository: Repository) -> None:
    """In a workspace the files that a brief reads are those of the commit, which is in the fingerprint already."""
    what = Brief(name="do", instructions="Do.", reads=("src/*",), command=Command(run="no-such-program; true"))
    shell = Shell(workspace=Workspace()).resolve_paths(repository.path)
    assert shell.external_inputs(what, ITEM) is None
    repository.put("src/a.txt", "two\n")
    repository.commit("Go on")
    assert Shell(workspace=Workspace()).resolve_paths(repository.path).fingerprint != shell.fingerprint


def test_a_program_that_a_set_up_installs(repository: Repository) -> None:
    """It needn't be there beforehand."""
    brief = Brief(name="do", instructions="Do.", command=Command(run=("./tool",)))
    plain = Shell(workspace=Workspace()).resolve_paths(repository.path)
    plain.require_supported([brief])  # nobody knows what the commit has
    made = Workspace(setup=Command(run="printf '#!/bin/sh\\necho made\\n' > tool; chmod +x tool"))
    shell = Shell(workspace=made).resolve_paths(repository.path)
    shell.require_supported([brief.model_copy(update={"command": Command(run=("no-such-program-4711",))})])
    assert asyncio.run(shell.answer(Ask(brief=brief, item=ITEM))).value == "made"
    reap_periodically()


def test_files_by_their_content(tmp_path: Path) -> None:
    """Each once, under the name that a glob begins; links are followed to files and not to folders."""
    for name in ("a.csv", "b.csv", "sub/c.csv", "sub/__pycache__/d.csv", "other.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link.csv").symlink_to("a.csv")
    (tmp_path / "gone.csv").symlink_to("nowhere")
    (tmp_path / "folder.csv").symlink_to("sub")
    found = file_digests(("*.csv", "a.csv", "none.csv"), tmp_path)
    assert sorted(found) == ["a.csv", "b.csv", "link.csv"]
    assert found["link.csv"] == found["a.csv"] != found["b.csv"]
    assert sorted(file_digests(("**/*.csv",), tmp_path)) == ["a.csv", "b.csv", "link.csv", "sub/c.csv"]
    assert sorted(file_digests(("sub/",), tmp_path)) == ["sub/c.csv"]
    assert sorted(file_digests((f"{tmp_path}/sub/*",), Path("/"))) == [f"{tmp_path}/sub/c.csv"]
    assert file_digests(("a.csv/*",), tmp_path) == file_digests(("a.csv/x",), tmp_path) == {}


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that nobody can read, root included: Linux")
def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Told with the glob and the file: here memory that isn't there."""
    (tmp_path / "x").symlink_to("/proc/self/mem")
    with pytest.raises(JobError, match=r"reads: 'x' means .*x', which can't be read: Input/output error"):
        file_digests(("x",), tmp_path)
