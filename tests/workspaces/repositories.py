"""Real repositories, and what of them must stay as it is."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AUTHOR = {
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_AUTHOR_DATE": "@1700000000 +0000",
    "GIT_COMMITTER_DATE": "@1700000000 +0000",
}
BARE = ("-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false")


@dataclass(frozen=True)
class Repository:
    """A repository, as a test makes it."""

    path: Path

    @classmethod
    def init(cls, path: Path, *options: str) -> Repository:
        """Return a new one, that nobody's settings have a say in."""
        path.mkdir(parents=True)
        made = cls(path)
        made.git("init", "--quiet", "--template=", "--initial-branch=main", *options, ".")
        return made

    def git(self, *args: str) -> str:
        """Return what git says, called without anybody's settings."""
        plain = {"PATH": os.environ["PATH"], "HOME": "/", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
        done = subprocess.run(  # noqa: S603 -- our own words
            ["git", *BARE, *args],  # noqa: S607 -- whichever is installed
            cwd=self.path,
            env={**plain, **AUTHOR},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().rstrip("\n")

    def put(self, name: str, content: str | bytes, mode: int = 0o644) -> Path:
        """Write a file."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return path

    def link(self, name: str, target: str) -> None:
        """Make a symbolic link."""
        (self.path / name).symlink_to(target)

    def commit(self, message: str) -> str:
        """Commit everything, without a filter; return the commit."""
        attributes = self.path / ".git" / "info" / "attributes"
        attributes.parent.mkdir(exist_ok=True)
        attributes.write_text("* -text -filter -ident\n")
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        attributes.unlink()
        return self.git("rev-parse", "HEAD")

    @property
    def head(self) -> str:
        """The commit that is checked out."""
        return self.git("rev-parse", "HEAD")

    def names(self, tree: str) -> list[str]:
        """Return mode, content and path of each file of a tree."""
        return self.git("ls-tree", "-r", "-z", tree).split("\0")[:-1]


def picture(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return everything below a folder, byte for byte: what a user would find changed, if anything was."""
    return dict(_seen(folder))


def _seen(folder: Path) -> Iterator[tuple[str, tuple[int, bytes]]]:
    for path in sorted(folder.rglob("*")):
        found, mode = str(path.relative_to(folder)), path.lstat().st_mode
        if path.is_symlink():
            yield found, (mode, os.fsencode(path.readlink()))
        else:
            yield found, (mode, path.read_bytes() if path.is_file() else b"")
