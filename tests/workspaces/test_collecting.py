"""What is collected: everything that was changed, byte for byte, and nothing else."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import RejectedError
from prefect_dispatch.workspaces import patches
from prefect_dispatch.workspaces.git import Git
from prefect_dispatch.workspaces.patches import create_commit
from prefect_dispatch.workspaces.workspace import Workspace
from tests.workspaces.inside import changed_by, sh, told, within
from tests.workspaces.repositories import Repository

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.workspaces.workspace import OpenWorkspace


def test_nothing_changed(repository: Repository) -> None:
    """Without a change the tree is the base's, and there is no patch."""
    change = changed_by(repository, "touch src/a.py; mkdir -p empty/folder", ())
    assert (change.base, change.tree) == (repository.head, repository.git("rev-parse", "HEAD^{tree}"))
    assert (change.patch, change.files) == ("", ())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(
            "echo a >> src/a.py; echo n > n.py",
            [("n.py", "added", "100644"), ("src/a.py", "modified", "100644")],
            id="text",
        ),
        pytest.param(
            "chmod +x src/a.py; chmod -x bin/run",
            [("bin/run", "modified", "100644"), ("src/a.py", "modified", "100755")],
            id="modes",
        ),
        pytest.param(
            "git mv src/b.py src/c.py", [("src/b.py", "deleted", ""), ("src/c.py", "added", "100644")], id="rename"
        ),
        pytest.param("printf '\\0' >> bytes.bin", [("bytes.bin", "modified", "100644")], id="binary"),
        pytest.param("printf 'three\\r\\n' >> crlf.txt", [("crlf.txt", "modified", "100644")], id="crlf"),
        pytest.param("printf 'caf\\351\\n' > latin.txt", [("latin.txt", "added", "100644")], id="latin"),
        pytest.param(
            "printf 'no end' > n; : > empty", [("empty", "added", "100644"), ("n", "added", "100644")], id="no-line-end"
        ),
        pytest.param(
            "rm names/*line*; echo > 'a\nb \" é *?'",
            [('a\nb " é *?', "added", "100644"), ('names/é\nnew line "q" \\ *.txt', "deleted", "")],
            id="odd-names",
        ),
        pytest.param(
            "printf x > \"$(printf 'caf\\351')\"", [("caf\\xe9", "added", "100644")], id="names-of-other-bytes"
        ),
        pytest.param(
            "ln -sfn /etc names/link; ln -s ../../.. up",
            [("names/link", "modified", "120000"), ("up", "added", "120000")],
            id="links",
        ),
        pytest.param("ln -sfn a.py src/b.py", [("src/b.py", "typechange", "120000")], id="a-link-for-a-file"),
        pytest.param(
            "rm -r src; echo > src",
            [("src", "added", "100644"), ("src/a.py", "deleted", ""), ("src/b.py", "deleted", "")],
            id="a-file-for-a-folder",
        ),
        pytest.param(
            "rm README.md; mkdir README.md; echo > README.md/x",
            [("README.md", "deleted", ""), ("README.md/x", "added", "100644")],
            id="a-folder-for-a-file",
        ),
        pytest.param("touch x.pyc src/y.pyc; mkdir -p build/z; touch build/z/w", [], id="ignored"),
        pytest.param(
            "echo '*.log' > .gitignore; touch a.log b.pyc",
            [(".gitignore", "modified", "100644"), ("b.pyc", "added", "100644")],
            id="ignored-by-now",
        ),
        pytest.param("rm src/a.py; mkfifo src/a.py", [("src/a.py", "deleted", "")], id="a-pipe-is-no-file"),
        pytest.param(
            "git config core.fileMode false; git add -A; git commit -qm x --allow-empty; echo a > n",
            [("n", "added", "100644")],
            id="committed",
        ),
    ],
)
def test_what_changed(script: str, expected: list[tuple[str, str, str]], repository: Repository, sprung: Path) -> None:
    """Whatever changes is listed, and made again from the patch alone in a clone that has the base."""
    change = changed_by(repository, script)
    assert told(change) == expected
    clone = repository.path.parent / "clone"
    repository.git("clone", "--quiet", "--bare", ".", str(clone))
    commit = create_commit(Git(clone), change, "Change")
    assert Repository(clone).git("rev-parse", f"{commit}^{{tree}}", f"{commit}^") == f"{change.tree}\n{change.base}"
    assert not sprung.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        pytest.param("git add -A && git commit -qm done", id="commits"),
        pytest.param("git checkout -qb mine && git commit -qam x", id="branches"),
        pytest.param(
            "git commit -qam x && git reset -q --soft main~1 && git stash -q && git stash pop -q", id="resets"
        ),
        pytest.param(
            "git add src && git update-index --assume-unchanged src/a.py --skip-worktree README.md", id="hides"
        ),
        pytest.param("rm -rf .git", id="no-git"),
        pytest.param("rm -rf .git && git init -q && git add -A && git commit -qm x", id="another-repository"),
        pytest.param("rm -rf .git && mkdir .git && echo x > .git/config", id="a-folder"),
        pytest.param("rm -rf .git && echo 'gitdir: /nowhere' > .git", id="a-link-to-nowhere"),
        pytest.param("touch -r src/b.py src/a.py", id="an-old-date"),
    ],
)
def test_however_it_was_done(script: str, repository: Repository) -> None:
    """Content is compared with the base: what became of branches, commits, index and `.git` doesn't matter."""
    edit = "echo 'a = 9' > src/a.py; echo new > src/new.py; "
    assert changed_by(repository, edit + script) == changed_by(repository, edit)


def test_another_branch_checked_out(repository: Repository) -> None:
    """What a checkout changes is a change like any other."""
    change = changed_by(repository, "git checkout -q main~1 2>&1")
    assert {each.change for each in change.files} == {"deleted"}
    assert len(change.files) == 9


def test_an_ignored_file_that_is_declared_by_its_name(repository: Repository) -> None:
    """A glob doesn't bring in what is ignored, a file's name does; a folder's doesn't."""
    script = "mkdir build; touch build/report.json build/other src/x.pyc"
    assert told(changed_by(repository, script, ("build/report.json", "src/", "build"))) == [
        ("build/report.json", "added", "100644")
    ]
    assert told(changed_by(repository, script, ("build/", "**/*.pyc", "/build/other", "../build/other"))) == []


def test_what_the_user_ignores_in_this_clone_alone(repository: Repository) -> None:
    """`.git/info/exclude` counts as it does in the user's checkout; their own global list doesn't."""
    repository.put(".git/info/exclude", "*.private\n")
    assert told(changed_by(repository, "touch a.private a.swp")) == [("a.swp", "added", "100644")]


def test_a_repository_inside(repository: Repository) -> None:
    """What a scaffolding tool leaves, files and a `.git`, is collected as files; what they ignore is not."""
    script = """
    git init -q new && cd new && echo 'out/' > .gitignore && mkdir out 'sub dir'
    echo x > out/x && echo y > 'sub dir/y'
    ln -s .. up; git init -q inner && echo z > inner/z && git add -A 2> /dev/null && git commit -qm x
    cd ../src && git init -q && echo c > c.py
    """
    assert told(changed_by(repository, script)) == [
        ("new/.gitignore", "added", "100644"),
        ("new/inner/z", "added", "100644"),
        ("new/sub dir/y", "added", "100644"),
        ("new/up", "added", "120000"),
        ("src/c.py", "added", "100644"),
    ]


@pytest.fixture
def with_module(repository: Repository) -> Repository:
    """A repository that has another one as a submodule, in the folder `lib`."""
    repository.put(".gitmodules", f'[submodule "lib"]\n\tpath = lib\n\turl = {repository.path}\n\tignore = none\n')
    repository.git("add", ".gitmodules")
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{repository.head},lib")
    repository.git("commit", "--quiet", "--message", "With a submodule")
    return repository


def test_a_submodule_stays_an_empty_folder(with_module: Repository) -> None:
    """A base with submodules can be worked in; they are there as empty folders, which may be removed."""
    assert told(changed_by(with_module, "ls -d lib; echo x > x")) == [("x", "added", "100644")]
    assert told(changed_by(with_module, "rmdir lib; echo x > x")) == [("x", "added", "100644")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["echo x > lib/x", "rmdir lib; echo x > lib", "rmdir lib; ln -s src lib", "git init -q lib"]
)
def test_work_in_a_submodule_is_refused(script: str, with_module: Repository) -> None:
    """What would be lost is told."""
    with pytest.raises(RejectedError, match=r"^'lib': what is changed in a submodule can't be collected") as caught:
        changed_by(with_module, script)
    assert caught.value.kind == "submodule"


def test_a_submodule_that_the_set_up_brings(with_module: Repository) -> None:
    """A set-up may fill it: what it holds is no change."""
    workspace = Workspace.model_validate({"setup": {"run": "git init -q lib && echo x > lib/x"}})

    async def work(room: OpenWorkspace) -> None:
        sh(room, "echo x > x")
        assert told(await room.capture_change(["."])) == [("x", "added", "100644")]

    within(workspace.resolve(with_module.path), work)


def test_too_large(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, or a patch, that can't be kept is refused before it is read, or kept."""
    monkeypatch.setattr(patches, "LARGEST_FILE", 3_000)
    with pytest.raises(
        RejectedError, match=r"'huge' has 3,001 bytes, and 3,000 can be collected.*\.gitignore"
    ) as caught:
        changed_by(repository, "truncate -s 3001 huge")
    assert caught.value.kind == "size"
    monkeypatch.setattr(patches, "LARGEST_PATCH", 1_000)
    with pytest.raises(RejectedError, match=r"a patch of [0-9,]+ bytes, and 1,000 can be kept"):
        changed_by(repository, "head -c 3000 /dev/urandom > random")


def test_what_was_large_before(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file of the base is no change as long as it is as large."""
    monkeypatch.setattr(patches, "LARGEST_FILE", 3_000)
    made = Repository.init(tmp_path / "large")
    made.put("huge", b"x" * 3_001)
    made.commit("Huge")
    assert told(changed_by(made, "echo > x")) == [("x", "added", "100644")]
    with pytest.raises(RejectedError, match="'huge' has 3,002 bytes"):
        changed_by(made, "printf x >> huge")


@pytest.mark.parametrize("name", [".gitignore", "src/.gitattributes", ".gitmodules"])
def test_a_pipe_where_git_reads(name: str, repository: Repository) -> None:
    """What would hold git for ever is found first."""
    with pytest.raises(RejectedError, match=f"'{name}' should be a file") as caught:
        changed_by(repository, f"rm -f {name}; mkfifo {name}")
    assert caught.value.kind == "workspace"


def test_a_folder_that_cannot_be_read(repository: Repository) -> None:
    """A path that is longer than the system takes can't be looked into: told, unless it is ignored."""
    name = "d" * 200
    deep = f'{sys.executable} -c \'import os; [(os.mkdir("{name}"), os.chdir("{name}")) for _ in range(30)]\''
    with pytest.raises(RejectedError, match=r"the folder 'ddd.*…' can't be read") as caught:
        changed_by(repository, deep)
    assert caught.value.kind == "workspace"
    assert told(changed_by(repository, f"mkdir build; cd build; {deep}")) == []


def test_a_name_that_git_does_not_take(repository: Repository) -> None:
    """Git's own folder under another spelling is refused, and not passed over."""
    with pytest.raises(RejectedError, match=r"git takes no files that are called 'src/.GIT/config'") as caught:
        changed_by(repository, "mkdir src/.GIT; echo > src/.GIT/config")
    assert caught.value.kind == "workspace"
