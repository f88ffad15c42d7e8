"""Where changes are merged: a repository, and the commit that all of them began from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.workspaces.sharing import MAIL, NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.workspaces.git import Git


class Ground(NamedTuple):
    """A repository, and the base."""

    git: Git
    """The repository; nothing of it is touched but its objects."""
    base: str
    """The commit."""
    tree: str
    """Its tree."""
    date: str
    """When it was committed, as git takes it."""

    @classmethod
    def of(cls, git: Git, base: str) -> Ground:
        """Return the ground that a commit is."""
        tree, date = git.out("show", "-s", "--format=%T %ct", base).split()
        return cls(git, base, tree, f"@{date} +0000")

    def commit(self, tree: str, parents: Sequence[str], message: str) -> str:
        """Return a commit that depends on its tree, parents and message alone: made again, it is the same one."""
        who = {
            f"GIT_{role}_{field}": value
            for role in ("AUTHOR", "COMMITTER")
            for field, value in (("NAME", NAME), ("EMAIL", MAIL), ("DATE", self.date))
        }
        over = [word for parent in parents for word in ("-p", parent)]
        return self.git.out("commit-tree", tree, *over, stdin=f"{message}\n".encode(), env=who)
