"""Where a workspace begins: found out, and refused, before anything is spent."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.models.brief import Command
from prefect_dispatch.workspaces.workspace import Workspace
from tests.workspaces.repositories import Repository

if TYPE_CHECKING:
    from collections.abc import Callable


def test_the_base_is_resolved_once(repository: Repository, state: Path) -> None:
    """A branch that moves on doesn't move a workspace; where the repository is doesn't count for its identity."""
    first = repository.git("rev-parse", "main~1")
    repository.git("tag", "--annotate", "v1", "--message", "One", "main~1")
    folder = repository.path.parent
    for base in ("main~1", "v1", first, first[:9]):
        placed = Workspace(repo=repository.path.name, base=base).resolve(folder)
        assert (placed.repo, placed.base) == (str(repository.path), first)
        assert placed.resolve(Path("/")) == placed
    elsewhere = folder / "elsewhere"
    shutil.copytree(repository.path, elsewhere, symlinks=True)
    setup = Command(run="make")
    one, other = (Workspace(repo=str(each), setup=setup).resolve(folder) for each in (repository.path, elsewhere))
    assert one.repo != other.repo
    assert one.identity == other.identity
    assert one.identity != Workspace(repo=one.repo).resolve(folder).identity
    assert one.identity != Workspace(repo=one.repo, base=first, setup=setup).resolve(folder).identity


def test_a_folder_in_a_repository_is_that_repository(repository: Repository, state: Path) -> None:
    """A job that lies in a folder of a repository has `.` as its workspace's repository."""
    assert Workspace().resolve(repository.path / "src").base == repository.head


def _no_folder(repository: Repository) -> Workspace:
    return Workspace(repo="nowhere")


def _a_file(repository: Repository) -> Workspace:
    return Workspace(repo="README.md")


def _no_repository(repository: Repository) -> Workspace:
    return Workspace(repo="..")


def _unborn(repository: Repository) -> Workspace:
    return Workspace(repo=str(Repository.init(repository.path.parent / "unborn").path))


def _misspelt(repository: Repository) -> Workspace:
    return Workspace(base="mian")


def _an_option(repository: Repository) -> Workspace:
    return Workspace(base="--all")


def _a_file_of_the_tree(repository: Repository) -> Workspace:
    return Workspace(base="HEAD:README.md")


def _a_tagged_tree(repository: Repository) -> Workspace:
    repository.git("tag", "a-tree", "HEAD^{tree}")
    return Workspace(base="a-tree")


def _not_here(repository: Repository) -> Workspace:
    return Workspace(base="1" * 40)


def _damaged(repository: Repository) -> Workspace:
    repository.put(".git/config", "[core\n")
    return Workspace()


def _damaged_objects(repository: Repository) -> Workspace:
    name = repository.git("rev-parse", "HEAD:src/a.py")
    (repository.path / ".git" / "objects" / name[:2] / name[2:]).unlink()
    return Workspace()


def _partial(repository: Repository) -> Workspace:
    repository.git("config", "uploadpack.allowFilter", "true")
    address = f"file://{repository.path}"
    repository.git("clone", "--quiet", "--bare", "--filter=blob:none", address, "../partial")
    return Workspace(repo="../partial")


def _state_in_a_repository(repository: Repository) -> Workspace:
    os.environ["PREFECT_DISPATCH_STATE"] = str(repository.path / "state")
    return Workspace()


def _state_is_a_file(repository: Repository) -> Workspace:
    os.environ["PREFECT_DISPATCH_STATE"] = str(repository.put("../state-file", "x").resolve())
    return Workspace()


def _state_is_read_only(repository: Repository) -> Workspace:
    os.environ["PREFECT_DISPATCH_STATE"] = "/proc/self"
    return Workspace()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param(_no_folder, r"workspace.repo: there is no folder '.*/nowhere'; name one", id="no-folder"),
        pytest.param(_a_file, r"workspace.repo: there is no folder '.*/README.md'", id="a-file"),
        pytest.param(
            _no_repository,
            r"workspace.repo: '.*' is no git repository that can be used \(.*not a git.*\); .* make it one: git init",
            id="no-repository",
        ),
        pytest.param(_damaged, r"workspace.repo: .*bad config line 1.*; name a folder", id="damaged"),
        pytest.param(
            _unborn,
            r"workspace.base: 'HEAD' is no commit of.* '.*/unborn'; it has no commit yet; make one first\.$",
            id="unborn",
        ),
        pytest.param(
            _misspelt,
            r"workspace.base: 'mian' is no commit of the repository '.*'; did you mean 'main'\?$",
            id="misspelt",
        ),
        pytest.param(
            _an_option,
            r"workspace.base: '--all' is no commit of the repository '.*'; known are 'main'\.$",
            id="an-option",
        ),
        pytest.param(
            _a_file_of_the_tree,
            r"workspace.base: 'HEAD:README.md' is a blob\. Name a branch, a tag or a commit of '.*'\.$",
            id="a-blob",
        ),
        pytest.param(_a_tagged_tree, r"workspace.base: 'a-tree' is a tree\. Name", id="a-tree"),
        pytest.param(_not_here, r"workspace.base: '1{40}' isn't there; fetch it first\. Name", id="not-here"),
        pytest.param(
            _damaged_objects,
            r"workspace.base: files of [0-9a-f]{12} are missing in '.*',.*first: git fetch --refetch --no-filter$",
            id="missing",
        ),
        pytest.param(
            _partial, r"workspace.base: files of [0-9a-f]{12} are missing in '.*/partial', as in", id="partial"
        ),
        pytest.param(_state_in_a_repository, r"The state folder '.*/state' is in the repository", id="state-inside"),
        pytest.param(_state_is_a_file, r"The state folder '.*/state-file' can't be used", id="state-a-file"),
        pytest.param(_state_is_read_only, r"The state folder '/proc/self' can't be", id="state-read-only"),
    ],
)
def test_what_cannot_be_used_is_refused(
    bad: Callable[[Repository], Workspace], message: str, repository: Repository
) -> None:
    """Each refusal names the key, the value and the way out."""
    workspace = bad(repository)
    with pytest.raises(JobError, match=message):
        workspace.resolve(repository.path)


def test_a_repository_of_somebody_else_is_refused_with_the_way_out(repository: Repository, state: Path) -> None:
    """Git's own word for it is what makes it usable."""
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    for path in (repository.path, repository.path / ".git"):
        os.chown(path, 65534, 65534)
    with pytest.raises(JobError, match=r"belongs to another user.*: git config --global --add safe.directory '/.*é'$"):
        Workspace().resolve(repository.path)


def test_a_disk_without_room(repository: Repository, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that wouldn't fit, or a folder that can't be written to, is told before anything is done."""
    there = shutil.disk_usage(repository.path)

    def nearly_full(folder: Path) -> object:
        return there._replace(free=100)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", nearly_full)
        with pytest.raises(JobError, match=r"A workspace takes 2,\d{3} bytes, and the state folder .* has 100 left: "):
            Workspace().resolve(repository.path)

    def read_only(**more: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(JobError, match=r"can't be written to \(Read-only file system\): set PREFECT_DISPATCH_STATE"):
        Workspace().resolve(repository.path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        pytest.param("setup", {"run": "x", "stdin": True}, "leave out 'stdin'", id="stdin"),
        pytest.param("setup", {"run": "x", "report": ["r.xml"]}, "leave out 'report'", id="report"),
        pytest.param("ports", 101, "less than or equal to 100", id="ports"),
        pytest.param("base", "", "at least 1 character", id="no-base"),
        pytest.param("base", "a\nb", "should match pattern", id="two-lines"),
        pytest.param("keeps", "failed", "did you mean 'keep'", id="misspelt"),
    ],
)
def test_what_a_workspace_cannot_be(key: str, value: object, message: str) -> None:
    """What makes no sense is refused where it is written down."""
    with pytest.raises(ValidationError, match=message):
        Workspace.model_validate({key: value})
