"""What tests of coding agents stand on: a repository, a folder of programs at the front of PATH, and a key."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.executors.coding.fake_agents import KEY
from tests.workspaces.repositories import Repository

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that programs are found in before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of each provider that is asked here."""
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with one file in it, and what is ignored."""
    made = Repository.init(tmp_path / "repo")
    made.put("a.py", "A = 0\n")
    made.put(".gitignore", "*.log\n")
    made.commit("Begin")
    return made
