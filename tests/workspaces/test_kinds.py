"""Whatever kind of repository it is, a workspace begins from its commit, and can be committed to it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import JobError, RejectedError
from prefect_dispatch.workspaces.git import Git
from prefect_dispatch.workspaces.patches import create_commit
from prefect_dispatch.workspaces.workspace import Workspace
from tests.workspaces.inside import changed_by, sh, told, within
from tests.workspaces.repositories import Repository, picture

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_dispatch.models.outcome import Change
    from prefect_dispatch.workspaces.workspace import OpenWorkspace


def _bare(made: Repository) -> Path:
    made.git("clone", "--quiet", "--bare", ".", "../bare")
    return made.path.with_name("bare")


def _worktree(made: Repository) -> Path:
    made.git("worktree", "add", "--quiet", "--detach", "../linked", "main")
    return made.path.with_name("linked")


def _borrowing(made: Repository) -> Path:
    """Return one that reads the objects of one that reads those of another, by paths that aren't whole."""
    made.git("clone", "--quiet", "--shared", ".", "../middle")
    (made.path.parent / "middle/.git/objects/info/alternates").write_text(f"../../../{made.path.name}/.git/objects\n")
    made.git("clone", "--quiet", "--shared", "../middle", "../borrowing")
    (made.path.parent / "borrowing/.git/objects/info/alternates").write_text("../../../middle/.git/objects\n")
    return made.path.with_name("borrowing")


def _shallow(made: Repository) -> Path:
    made.git("clone", "--quiet", "--depth=1", f"file://{made.path}", "../shallow")
    return made.path.with_name("shallow")


def _filled(made: Repository) -> Path:
    """Return a partial clone that has the files of its base."""
    made.git("config", "uploadpack.allowFilter", "true")
    made.git("clone", "--quiet", "--filter=blob:none", f"file://{made.path}", "../filled")
    return made.path.with_name("filled")


def _separate(made: Repository) -> Path:
    made.git("init", "--quiet", "--separate-git-dir=../git folder", ".")
    return made.path


def _its_git_folder(made: Repository) -> Path:
    return made.path / ".git"


def _packed(made: Repository) -> Path:
    made.git("gc", "--quiet", "--prune=now")
    made.git("multi-pack-index", "write")
    return made.path


def _linked(made: Repository) -> Path:
    made.path.with_name("a link").symlink_to(made.path)
    return made.path.with_name("a link")


def _sparse(made: Repository) -> Path:
    made.git("sparse-checkout", "set", "--no-cone", "bin/")
    return made.path


def _oddly_named(made: Repository) -> Path:
    return made.path.rename(made.path.with_name('"odd" \\ new\nline#'))


def _on_no_branch(made: Repository) -> Path:
    made.git("checkout", "--quiet", "--detach")
    return made.path


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        *(_bare, _worktree, _borrowing, _shallow, _filled, _separate, _its_git_folder, _packed, _linked, _sparse),
        *(_oddly_named, _on_no_branch),
    ],
)
def test_kinds_of_repositories(kind: Callable[[Repository], Path], repository: Repository) -> None:
    """Nothing but objects is ever added to it, and those only when a change is committed."""
    path, base = kind(repository), repository.head if repository.path.exists() else ""
    before = picture(path)

    async def work(room: OpenWorkspace) -> Change:
        assert base in {sh(room, "git rev-parse HEAD"), ""}
        sh(room, "git log --oneline --stat > /dev/null; git status --porcelain; echo 'c = 1' > src/c.py; git add -A")
        sh(room, "git commit -qm Mine; git gc -q --prune=now; git fsck --no-dangling")
        return await room.capture_change(["src/"])

    change = within(Workspace().resolve(path), work)
    assert told(change) == [("src/c.py", "added", "100644")]
    assert picture(path) == before
    commit = create_commit(Git(path), change, "Change")
    assert Git(path).output("rev-parse", f"{commit}^{{tree}}") == change.tree
    after = picture(path)
    assert {name for name in after.keys() - before.keys() if "objects" not in name} == set()
    assert {name: after[name] for name in before} == before


def test_longer_names_of_objects(tmp_path: Path, state: Path) -> None:
    """A repository whose objects have names of 64 digits is like any other."""
    made = Repository.init(tmp_path / "long", "--object-format=sha256")
    made.put("a.txt", "a\n")
    made.commit("Begin")
    change = changed_by(made, "echo b >> a.txt; git rev-parse HEAD | wc -c; git commit -qam x")
    assert (change.base, len(change.tree)) == (made.head, 64)
    assert made.git("rev-parse", f"{create_commit(Git(made.path), change, 'x')}^") == made.head


def test_a_base_moves_on_meanwhile(repository: Repository) -> None:
    """A branch is looked up once, before anything is done; another commit is other work."""
    workspace = Workspace(base="main").resolve(repository.path)
    repository.put("src/a.py", "a = 2\n")
    later = repository.commit("Later")

    async def work(room: OpenWorkspace) -> Change:
        assert sh(room, "cat src/a.py; git rev-parse main") == f"a = 1\n{later}"
        sh(room, "echo 'a = 3' > src/a.py")
        return await room.capture_change(["src/a.py"])

    assert within(workspace, work).base == repository.git("rev-parse", "main~1") != later
    assert Workspace(base="main").resolve(repository.path).identity != workspace.identity


def test_the_user_tidies_up_meanwhile(repository: Repository) -> None:
    """To pack, and to prune what nothing has, takes nothing from an open workspace; nor does one hinder it."""
    repository.put("src/a.py", "a = 2\n")
    repository.git("stash", "--quiet")

    async def work(room: OpenWorkspace) -> Change:
        sh(room, "echo 'a = 3' > src/a.py; git commit -qam Mine")
        repository.git("reflog", "expire", "--all", "--expire=now")
        repository.git("repack", "-a", "-d", "-q")
        repository.git("gc", "--quiet", "--prune=now")
        sh(room, "git fsck --no-dangling; git log -p > /dev/null; echo 'b = 3' > src/b.py; git commit -qam Mine")
        return await room.capture_change(["src/"])

    assert told(within(Workspace().resolve(repository.path), work)) == [
        ("src/a.py", "modified", "100644"),
        ("src/b.py", "modified", "100644"),
    ]


def test_the_user_throws_the_base_away_meanwhile(repository: Repository) -> None:
    """What began from a commit that no branch, tag or log has any more, and that was pruned, can't be used: said so."""
    workspace = Workspace(keep="failed").resolve(repository.path)

    async def work(room: OpenWorkspace) -> None:
        sh(room, "echo 'a = 3' > src/a.py")
        repository.git("update-ref", "-d", "refs/heads/main")
        repository.git("reflog", "expire", "--all", "--expire=now")
        repository.git("read-tree", "--empty")
        repository.git("gc", "--quiet", "--prune=now")
        await room.capture_change(["src/"])

    with pytest.raises(RejectedError, match=r"its base \w{12} is gone: .*pruned.* The workspace was kept: ") as caught:
        within(workspace, work)
    assert (Path(str(caught.value).rpartition(" kept: ")[2]) / "src/a.py").read_text() == "a = 3\n"
    with pytest.raises(JobError, match="isn't there; fetch it first"):
        workspace.resolve(repository.path)


def test_the_repository_is_damaged_meanwhile(repository: Repository) -> None:
    """What git says of it is told."""
    tree = repository.git("rev-parse", "HEAD:src")

    async def work(room: OpenWorkspace) -> None:
        (repository.path / ".git/objects" / tree[:2] / tree[2:]).unlink()
        await room.capture_change(["src/"])

    with pytest.raises(RejectedError, match=r"can't be collected: fatal: .* tree .*") as caught:
        within(Workspace().resolve(repository.path), work)
    assert caught.value.kind == "workspace"


def test_names_that_mean_something_elsewhere(tmp_path: Path, state: Path) -> None:
    """A file may be called like an option, a pattern or a command, in any bytes."""
    names = ["-rf", "--all", ":(top)x", "*", "a b", "é", "\\", '"', "$(id)", "a\tb\n", "\udce9", "#", "!x", "[", "a->b"]
    made = Repository.init(tmp_path / "made")
    for name in names:
        made.put(name, "one\n")
        made.put(f"folder/{name}", "one\n")
    made.commit("Begin")

    async def work(room: OpenWorkspace) -> Change:
        for name in names:
            (room.path / name).write_text("two\n")
            (room.path / "folder" / name).unlink()
            (room.path / "new" / name).mkdir(parents=True)
            (room.path / "new" / name / name).write_text("three\n")
        return await room.capture_change(["**"])

    change = within(Workspace().resolve(made.path), work)
    kinds = Counter(each.change for each in change.files)
    assert kinds == dict.fromkeys(("modified", "deleted", "added"), len(names))
    assert create_commit(Git(made.path), change, "x")


def test_names_that_differ_by_case_alone(repository: Repository) -> None:
    """They are two files."""
    assert told(changed_by(repository, "echo > readme.md; echo > SRC")) == [
        ("SRC", "added", "100644"),
        ("readme.md", "added", "100644"),
    ]


def test_large_files_that_are_kept_elsewhere(repository: Repository, sprung: Path) -> None:
    """What stands in the repository for one is what is there; no filter brings it, or replaces what was written."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
    repository.put(".gitattributes", "*.big filter=lfs diff=lfs merge=lfs -text\n")
    repository.put("a.big", pointer)
    repository.commit("With a large file")
    change = changed_by(repository, f"test \"$(cat a.big)\" = '{pointer.strip()}' && echo whole > b.big")
    assert told(change) == [("b.big", "added", "100644")]
    assert not sprung.exists()


def test_hooks_and_settings_of_the_repository(repository: Repository, sprung: Path) -> None:
    """None of them counts in a workspace, nor where its files are collected."""
    trap = sprung.parent / "user home" / "trap"
    for setting in ("core.fsmonitor", "core.sshCommand", "filter.lfs.clean", "filter.lfs.smudge", "diff.external"):
        repository.git("config", setting, str(trap))
    for hook in ("post-checkout", "pre-commit", "post-index-change", "reference-transaction", "fsmonitor-watchman"):
        repository.put(f".git/hooks/{hook}", trap.read_text(), mode=0o755)
    change = changed_by(repository, "git status -s; echo x > x; printf x >> bytes.bin; git add -A; git commit -qm x")
    assert told(change) == [("bytes.bin", "modified", "100644"), ("x", "added", "100644")]
    assert not sprung.exists()
