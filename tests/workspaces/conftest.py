"""What tests of workspaces stand on: a state folder of their own, and a user with settings that get in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.workspaces.repositories import Repository

if TYPE_CHECKING:
    from pathlib import Path

USER = """
[user]
    name = Somebody
    email = somebody@example.org
[core]
    autocrlf = true
    hooksPath = {home}/hooks
    fsmonitor = {home}/trap
    excludesFile = {home}/ignored
[commit]
    gpgSign = true
[gpg]
    program = {home}/trap
[filter "lfs"]
    clean = {home}/trap
    smudge = {home}/trap
    process = {home}/trap
    required = true
[diff]
    external = {home}/trap
[init]
    templateDir = {home}/template
"""
"""A user whose every setting names a program that must not run on our account."""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder."""
    folder = tmp_path / "state"
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(folder))
    return folder


@pytest.fixture
def sprung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once any program ran that the user's settings name."""
    home, mark = tmp_path / "user home", tmp_path / "sprung"
    for folder in ("hooks", "template/hooks"):
        (home / folder).mkdir(parents=True)
    for place in ("trap", "hooks/post-checkout", "hooks/reference-transaction", "template/hooks/post-checkout"):
        (home / place).write_text(f"#!/bin/sh\necho {place} >> '{mark}'\nexec cat\n")
        (home / place).chmod(0o755)
    (home / "ignored").write_text("*.swp\n")
    (home / "gitconfig").write_text(USER.format(home=home))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / "gitconfig"))
    return mark


@pytest.fixture
def repository(tmp_path: Path, state: Path) -> Repository:
    """A repository with two commits and a little of everything in it."""
    made = Repository.init(tmp_path / "a repo — é")
    made.put("README.md", "Read me.\n")
    made.commit("Begin")
    made.put("src/a.py", "a = 1\n")
    made.put("src/b.py", "b = 1\nb = 2\nb = 3\n")
    made.put("bin/run", "#!/bin/sh\n", mode=0o755)
    made.put("crlf.txt", b"one\r\ntwo\r\n")
    made.put("bytes.bin", bytes(range(256)) * 8)
    made.put('names/é\nnew line "q" \\ *.txt', "odd\n")
    made.link("names/link", "../src/a.py")
    made.put(".gitattributes", "*.txt text eol=crlf\n*.bin filter=lfs\n*.py ident\n")
    made.put(".gitignore", "*.pyc\nbuild/\n")
    made.commit("Go on")
    return made
