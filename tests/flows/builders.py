"""A coding agent that does what its goal says word for word, and a repository for it to work in."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Any

from prefect_dispatch import Report, build_modules
from prefect_dispatch.errors import DispatchFailed
from tests.integrators.repos import repository

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.workspaces.git import Git
    from tests.integrators.repos import Files

AGENT = r"""
import os, pathlib, re, sys, time
said = sys.stdin.read()
goal = re.search(r"# Instructions\n((?:.|\n)*?)\n\n# ", said)[1]
with open(sys.argv[1], "a") as log:
    log.write(goal.splitlines()[0] + "\n")
again = "# Sent back" in said
for word, path, text in re.findall(r"^(WRITE|MEND|DELETE|EXIT|WAIT|MUST) (\S+) ?(.*)$", goal, re.M):
    file = pathlib.Path(path)
    if word == "WRITE" or word == "MEND" and again:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("|", "\n") + "\n")
    elif word == "DELETE":
        file.unlink()
    elif word == "EXIT":
        sys.exit(int(path))
    elif word == "MUST" and not file.exists():
        sys.exit(4)
    elif word == "WAIT":
        while not file.exists():
            time.sleep(0.01)
for file in pathlib.Path().glob("*.txt"):
    lines = file.read_text().splitlines(keepends=True)
    kept, side = [], "both"
    for line in lines:
        side = {"<<<<<<< ": "ours", "||||||| ": "base", "=======\n": "theirs", ">>>>>>> ": "both"}.get(line[:8], side)
        if side != "base" and not re.match(r"<<<<<<< |\|\|\|\|\|\|\| |=======$|>>>>>>> ", line):
            kept.append(line)
    if kept != lines:
        file.write_text("".join(kept))
print("It is done.")
"""
"""`WRITE path text` writes a file, `MEND` does so only where it was sent back, `WAIT path` waits, `MUST path` fails
without it; markers go."""
BASE: Files = {"README.md": "What is to be.\n", "app.txt": "1\n2\n3\n"}


class Site:
    """A repository and an agent that works in it.

    Attributes:
        git: The repository.
        base: Its commit.
        folder: Where a job stands: the repository is its folder `repo`.
    """

    def __init__(self, folder: Path, files: Files | None = None) -> None:
        """Make both."""
        (folder / "repo").mkdir()
        self.git, self.base = repository(folder / "repo", BASE if files is None else files)
        self.folder = folder
        (folder / "agent.py").write_text(AGENT, encoding="utf-8")

    @property
    def agent(self) -> dict[str, Any]:
        """The agent, described by data."""
        program = [sys.executable, "-I", "-S", str(self.folder / "agent.py"), str(self.folder / "log")]
        return {"name": "literal", "argv": program}

    @property
    def asked(self) -> list[str]:
        """The first line of the goal of each run of the agent, sorted."""
        log = self.folder / "log"
        return sorted(log.read_text(encoding="utf-8").splitlines()) if log.exists() else []

    def build(self, modules: list[dict[str, Any]], **more: Any) -> Report:  # noqa: ANN401 -- fields of the form
        """Build some modules; return the report, whether or not the run failed."""
        flow: Any = build_modules
        given = {"repo": "repo", "agent": self.agent, "folder": str(self.folder), "time_limit_s": 60.0, **more}
        try:
            report: Report = flow(modules, **given)
        except DispatchFailed as failed:
            return failed.report
        return report


def module(name: str, *lines: str, owns: str | list[str] = "", **more: Any) -> dict[str, Any]:  # noqa: ANN401 -- its fields
    """Return a module that is built by some lines; by default it owns the text of its name, and writes that."""
    goal = "\n".join(lines or (f"WRITE {name}.txt {name}",))
    return {
        "name": name,
        "goal": goal,
        "owns": [owns] if isinstance(owns, str) and owns else owns or [f"{name}.*"],
        **more,
    }


def seen(git: Git, *, but: str = "") -> dict[str, str]:
    """Return every file of a repository and of its checkout with a digest, its store of objects apart.

    Args:
        git: The repository.
        but: A branch that may change.
    """
    left = {f".git/refs/heads/{but}", f".git/logs/refs/heads/{but}"}
    files = {str(file.relative_to(git.repo)): file for file in sorted(git.repo.rglob("*")) if file.is_file()}
    return {
        path: hashlib.sha256(file.read_bytes()).hexdigest() + oct(file.stat().st_mode)
        for path, file in files.items()
        if not path.startswith(".git/objects/") and path not in left
    }
