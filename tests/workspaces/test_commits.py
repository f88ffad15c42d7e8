"""A change made a commit again: the same one everywhere, or none at all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import RejectedError
from prefect_dispatch.models.outcome import Change, ChangedFile
from prefect_dispatch.workspaces.git import Git
from prefect_dispatch.workspaces.patches import apply_to_index, create_commit, diff_trees
from tests.workspaces.inside import changed_by
from tests.workspaces.repositories import Repository, picture

if TYPE_CHECKING:
    from pathlib import Path

NONE = "0" * 40


@pytest.fixture
def change(repository: Repository) -> Change:
    """A change of two files."""
    return changed_by(repository, "echo 'a = 2' > src/a.py; echo 'c = 1' > src/c.py")


def test_it_is_the_same_everywhere(repository: Repository, change: Change, tmp_path: Path, sprung: Path) -> None:
    """Its name depends on the change and the message alone; nothing but objects is added, and nobody's hooks run."""
    repository.git("clone", "--quiet", "--bare", ".", "../clone")
    here, there = Git(repository.path), Git(repository.path.with_name("clone"))
    before = picture(repository.path)
    commit = create_commit(here, change, "Add c\n\nAnd é.")
    assert commit == create_commit(there, change, "Add c\n\nAnd é.") == create_commit(here, change, "Add c\n\nAnd é.")
    assert commit != create_commit(here, change, "Other words")
    assert repository.git("log", "-1", "--format=%an %ae %cn %B", commit).split("\n")[:3] == [
        "prefect-dispatch prefect-dispatch@localhost prefect-dispatch Add c",
        "",
        "And é.",
    ]
    assert repository.git("log", "-1", "--format=%P %at %ct %T", commit) == (
        f"{change.base} 1700000000 1700000000 {change.tree}"
    )
    after = picture(repository.path)
    assert {name: after[name] for name in before} == before
    assert all("/objects/" in name for name in after.keys() - before.keys())
    assert not sprung.exists()


def test_nothing_is_a_commit_too(repository: Repository) -> None:
    """Without a change, the commit has its base's tree."""
    commit = create_commit(Git(repository.path), changed_by(repository, "true"), "Nothing")
    assert repository.git("rev-parse", f"{commit}^{{tree}}") == repository.git("rev-parse", "HEAD^{tree}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param({"base": NONE}, "its base isn't a commit that this repository has; fetch it first", id="no-base"),
        pytest.param({"tree": NONE}, "its patch makes the tree [0-9a-f]{12}, not 000000000000", id="another-tree"),
        pytest.param({"patch": ""}, "its patch makes the tree", id="no-patch"),
        pytest.param({"patch": "base64:AAAA"}, "its patch can't be applied", id="no-patch-at-all"),
        pytest.param({"files": ()}, "its patch touches other files than it says", id="no-files"),
        pytest.param(
            {"files": (ChangedFile(path="README.md", change="deleted"),)},
            "its patch touches other files",
            id="other-files",
        ),
    ],
)
def test_a_change_that_is_not_what_it_says(
    damage: dict[str, object], message: str, repository: Repository, change: Change
) -> None:
    """What was stored may be damaged, or of another repository: it is looked at before it is used."""
    with pytest.raises(RejectedError, match=f"^The change of .* is not used: {message}") as caught:
        create_commit(Git(repository.path), change.model_copy(update=damage), "Change")
    assert caught.value.kind == "change"


def test_a_base_that_is_no_commit(repository: Repository, change: Change) -> None:
    """A tree by the name of a base is none."""
    with pytest.raises(RejectedError, match="its base isn't a commit"):
        create_commit(Git(repository.path), change.model_copy(update={"base": change.tree}), "Change")


@pytest.mark.parametrize("name", ["../outside", "/outside", ".git/config", "a/../../outside", ".GIT/hooks/x"])
def test_a_patch_that_leads_out(name: str, repository: Repository, change: Change) -> None:
    """Git itself takes no such path; whatever a stored patch says, nothing is written anywhere else."""
    patch = re.sub(r"src/c\.py", name, change.patch)
    before = picture(repository.path.parent)
    with pytest.raises(RejectedError, match="its patch can't be applied"):
        create_commit(Git(repository.path), change.model_copy(update={"patch": patch}), "Change")
    after = picture(repository.path.parent)
    assert {path for path in after.keys() ^ before.keys() if "/objects/" not in path} == set()


def test_a_submodule_in_a_patch(repository: Repository, change: Change) -> None:
    """A patch that adds one is refused, even where it makes the tree that it says."""
    git = Git(repository.path)
    line = f"160000 {change.base}\tlib\n"
    with apply_to_index(git, change) as index:
        git.output("update-index", "--index-info", stdin=line.encode(), env=index)
        tree = git.output("write-tree", env=index)
    assert [each.path for each in diff_trees(git, change.base, tree)] == [b"lib", b"src/a.py", b"src/c.py"]
    patch = git.output("diff-tree", "-p", "--full-index", "--binary", "--unified=0", change.base, tree) + "\n"
    with pytest.raises(RejectedError, match=r"^'lib': a submodule was added, moved or removed") as caught:
        create_commit(git, change.model_copy(update={"tree": tree, "patch": patch}), "Change")
    assert caught.value.kind == "submodule"
