"""git, as it is run: for one repository, and with nobody's settings."""

from __future__ import annotations

import os
import pickle
import shutil
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import JobError
from prefect_dispatch.workspaces.git import Git, GitError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workspaces.repositories import Repository


def test_settings_that_name_programs_are_passed_over(repository: Repository, sprung: Path) -> None:
    """Neither the user's settings nor the repository's have a program run."""
    trap = sprung.parent / "user home" / "trap"
    for setting in ("core.fsmonitor", "core.pager", "diff.external", "core.sshCommand", "alias.status"):
        repository.git("config", setting, str(trap))
    repository.put(".git/hooks/reference-transaction", trap.read_text(), mode=0o755)
    repository.put(".git/hooks/post-index-change", trap.read_text(), mode=0o755)
    repository.put("src/a.py", "a = 2\n")
    git = Git(repository.path)
    assert git.output("status", "--porcelain", "src") == " M src/a.py"
    git.output("update-ref", "refs/heads/new", repository.head)
    assert "+a = 2" in git.output("diff", "HEAD")
    assert "a = 1" in git.output("show", "HEAD:src/a.py")
    git.output("add", "src/a.py")
    assert not sprung.exists()


def test_no_network(repository: Repository) -> None:
    """Nothing is fetched, nor is a program run that a URL names."""
    with pytest.raises(GitError, match="not allowed"):
        Git(repository.path).output("fetch", "ext::sh -c 'touch sprung' ")
    with pytest.raises(GitError, match="not allowed"):
        Git(repository.path).output("fetch", str(repository.path))


def test_what_it_says(repository: Repository) -> None:
    """Output is text or bytes; what git is told may be anything."""
    git = Git(repository.path)
    blob = git.output("hash-object", "-w", "--stdin", stdin=b"caf\xe9\n\n")
    assert git.output_bytes("cat-file", "blob", blob) == b"caf\xe9\n\n"
    assert git.output("cat-file", "blob", blob) == "caf\udce9"
    assert git.output("var", "GIT_AUTHOR_IDENT", env={"GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "y"})[:5] == "x <y>"


def test_what_goes_wrong(repository: Repository, tmp_path: Path) -> None:
    """An error has the exit code and what git said, without secrets, and survives a trip through another process."""
    git = Git(repository.path)
    with pytest.raises(GitError) as caught:
        git.output("cat-file", "-t", "sk-proj-0123456789")
    error: GitError = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 -- our own
    assert (error.kind, error.exit) == ("git", 128)
    assert str(error) == "git cat-file failed (128): fatal: Not a valid object name ***"
    assert error.stderr == "fatal: Not a valid object name ***"
    assert git.run("cat-file", "-e", "0" * 40) == (1, b"")
    with pytest.raises(GitError, match=r"^git can't run in .*: No such file or directory\.$"):
        Git(tmp_path / "nowhere").output("status")


@pytest.mark.slow
def test_what_takes_too_long_is_ended(repository: Repository) -> None:
    """A named pipe in place of a file that git reads holds it for ever, but not us."""
    os.mkfifo(repository.path / "src" / ".gitignore")
    git = Git(repository.path, limit_s=0.5)
    with pytest.raises(GitError, match=r"git status took more than 0\.5 s"):
        git.output("status")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        pytest.param(None, "There is no git on the PATH: install git 2.38 or newer.", id="none"),
        pytest.param("echo git version 2.30.2", "git 2.30 (PATH/git) is too old: install git 2.38 or newer.", id="old"),
        pytest.param("echo something", "git 0.0 (PATH/git) is too old: install git 2.38 or newer.", id="another"),
    ],
)
def test_a_git_that_cannot_be_used(
    script: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No git, or one that can't do what is needed, is told before anything is done."""
    if script:
        (tmp_path / "git").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JobError) as caught:
        Git(tmp_path).output("status")
    assert str(caught.value) == message.replace("PATH/", f"{tmp_path}/")


def test_a_git_that_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is called git and can't be run is told as such."""
    (tmp_path / "git").write_bytes(b"\0")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JobError, match=r"can't be run \(Exec format error\): install git 2.38"):
        Git(tmp_path).output("status")


def test_a_repository_of_somebody_else(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git refuses one, unless the user's settings trust it: the only one of their settings that counts."""
    git = Git(repository.path, {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"})  # git's own way to test this
    with pytest.raises(GitError, match="dubious ownership"):
        git.output("status")
    settings = tmp_path / "gitconfig"
    settings.write_text(f"[safe]\n    directory = {repository.path}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    assert git.output("status", "--porcelain", "src") == ""


def test_input_is_sent_whole_to_a_git_that_reads_late(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine git may take longer than an interval of polling before it reads the first byte."""
    (tmp_path / "git").write_text(f'#!/bin/sh\nsleep 0.15\nexec {shutil.which("git")} "$@"\n')
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    content = b"0123456789abcdef" * 20_000
    blob = Git(repository.path, limit_s=5).output("hash-object", "-w", "--stdin", stdin=content)
    assert Git(repository.path).output_bytes("cat-file", "blob", blob) == content
