"""The user's own checkout: its state at one moment, and what changed in it between two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.executors.coding.session import CheckoutSnapshot
from tests.workspaces.repositories import Repository, picture

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path) -> CheckoutSnapshot:
    """Return what a checkout is like, which can be found out."""
    found = CheckoutSnapshot.take(path)
    assert found is not None
    return found


def changed(repository: Repository, before: CheckoutSnapshot) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what has changed in a checkout."""
    return read(repository.path).changes_since(before)


def test_what_is_not_committed_is_seen(repository: Repository, sprung: Path) -> None:
    """Staged, changed and new files count, ignored ones don't; nothing is run, and nothing refreshed, to know it."""
    home = sprung.parent / "user home"
    repository.git("config", "filter.lfs.clean", str(home / "trap"))
    repository.git("config", "core.excludesFile", str(home / "ignored"))
    assert not read(repository.path).files
    repository.put("src/a.py", "a = 2\n")
    repository.put("staged.py", "")
    repository.git("add", "staged.py")
    repository.put("new/one.py", "")
    repository.put("new/two.py", "")
    repository.put("a.pyc", "")
    repository.put("bytes.bin", b"dirty")
    before = picture(repository.path)
    assert len(read(repository.path / "src").files) == 5
    assert picture(repository.path) == before
    assert not sprung.exists()


def test_an_index_in_two_files_is_read_as_one(repository: Repository) -> None:
    """A split index is a setting of the user's."""
    repository.git("update-index", "--split-index")
    repository.put("src/a.py", "a = 2\n")
    assert [*read(repository.path).files] == [b"src/a.py"]


def test_where_no_state_can_be_read(repository: Repository, tmp_path: Path) -> None:
    """A bare repository has refs and settings; one without a commit, and a folder that is none, have no state."""
    bare = tmp_path / "bare"
    repository.git("clone", "--quiet", "--bare", ".", str(bare))
    assert read(bare).top == bare
    assert not read(bare).files
    Repository.init(tmp_path / "unborn")
    assert CheckoutSnapshot.take(tmp_path / "unborn") is None
    assert CheckoutSnapshot.take(tmp_path) is None


def test_what_changes_between_two_moments(repository: Repository) -> None:
    """What was dirty before and is as it was doesn't count; written again, put back, and removed do."""
    for name in ("dirty", "again", "back"):
        repository.put(f"{name}.txt", f"{name}\n")
    repository.put("src/b.py", "b = 9\n")
    before = read(repository.path)
    assert changed(repository, before) == ((), ())
    repository.put("again.txt", "once more\n")
    repository.git("checkout", "--quiet", "src/b.py")
    (repository.path / "back.txt").unlink()
    repository.put("new/file.txt", "new\n")
    assert changed(repository, before) == (("again.txt", "back.txt", "new/file.txt", "src/b.py"), ())


def test_what_changes_in_the_repository_itself(repository: Repository) -> None:
    """HEAD, branches, tags, settings and hooks count."""
    before = read(repository.path)
    repository.git("switch", "--quiet", "--create", "other")
    repository.git("tag", "v1")
    repository.git("config", "core.hooksPath", "elsewhere")
    repository.put(".git/hooks/post-merge", "#!/bin/sh\n", mode=0o755)
    assert changed(repository, before) == (
        (),
        ("HEAD", "config", "hooks/post-merge", "refs/heads/other", "refs/tags/v1"),
    )
