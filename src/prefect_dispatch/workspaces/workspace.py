"""What work in a repository begins from."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from prefect_dispatch.command import Command
from prefect_dispatch.errors import JobError
from prefect_dispatch.processes.leases import state_folder
from prefect_dispatch.strict import Strict, nearest
from prefect_dispatch.workspaces.git import Git, GitError
from prefect_dispatch.workspaces.ports import MOST

if TYPE_CHECKING:
    from pydantic import JsonValue

_Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f]+$")]
_NAMED = 20


class Workspace(Strict):
    """A checkout of its own for each piece of work, of one commit of a repository.

    The repository itself is only read: its checkout, index, branches, tags, stash, settings and hooks stay as they
    are, whatever is done in a workspace. What isn't committed isn't in one.

    Example:
        >>> Workspace(setup=Command(run="npm ci"), ports=2).base
        'HEAD'
    """

    repo: _Line = "."
    """A folder in the repository, from the job's folder; paths such as `writes` count from the repository's top."""
    base: _Line = "HEAD"
    """The commit to begin from: a branch, a tag, or whatever else git takes for one."""
    setup: Command | None = None
    """What is run in each workspace first. What it writes is no part of the change."""
    keep: Literal["never", "failed"] = "never"
    """Whether a workspace stays to be looked at when what was done in it fails."""
    ports: int = Field(default=0, ge=0, le=MOST)
    """How many ports it has for itself: `PORT` is the first of them, `PORTS` are all."""

    @field_validator("setup")
    @classmethod
    def _knows_no_item(cls, setup: Command | None) -> Command | None:
        for key in ("stdin", "report"):
            if setup and getattr(setup, key):
                raise ValueError(f"the set-up is the same for every item, and reports nothing; leave out {key!r}")
        return setup

    @property
    def identity(self) -> dict[str, JsonValue]:
        """What of it can change an answer, once it is placed: where the repository is, and what is kept, can't."""
        setup = self.setup.model_dump(mode="json") if self.setup else None
        return {"base": self.base, "setup": setup, "ports": self.ports}

    def placed(self, folder: Path) -> Workspace:
        """Return it with the repository's absolute path and the base's object id, found to be usable.

        Args:
            folder: The job's.

        Raises:
            JobError: If git, the repository, the base or the state folder can't be used.
        """
        repo = Path(os.path.abspath(folder / self.repo))  # noqa: PTH100 -- a link stays what it is called
        git = Git(repo)
        _require_repository(git)
        base = resolved(git, self.base)
        _require_space(git, base)
        return self.model_copy(update={"repo": str(repo), "base": base})

    def has_folder(self, path: str) -> bool:
        """Return whether its base has a folder, by that name and no link; it has to be placed.

        Args:
            path: The folder's plain path, from the top of the repository; `.` is the top.
        """
        code, said = Git(Path(self.repo)).tried("cat-file", "-t", f"{self.base}:{'' if path == '.' else path}")
        return not code and said == b"tree\n"


def resolved(git: Git, base: str) -> str:
    """Return the object id of a commit.

    Raises:
        JobError: If there is no such commit.
    """
    code, said = git.tried("rev-parse", "--verify", "--quiet", "--end-of-options", base)
    if code:
        branches = git.out("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags").split()
        hint = nearest(base, branches[:_NAMED]) if branches else "it has no commit yet; make one first."
        raise JobError(f"workspace.base: {base!r} is no commit of the repository {str(git.repo)!r}; {hint}")
    found = said.decode().strip()
    code, said = git.tried("rev-parse", "--verify", "--quiet", f"{found}^{{commit}}")
    if code:
        kind = git.tried("cat-file", "-t", found)[1].decode().strip()
        why = f"is a {kind}" if kind else "isn't there; fetch it first"
        raise JobError(f"workspace.base: {base!r} {why}. Name a branch, a tag or a commit of {str(git.repo)!r}.")
    return said.decode().strip()


def _require_repository(git: Git) -> None:
    repo = str(git.repo)
    if not git.repo.is_dir():
        raise JobError(f"workspace.repo: there is no folder {repo!r}; name one that is in a git repository.")
    try:
        git.out("rev-parse", "--git-dir")
    except GitError as error:
        if "dubious ownership" in error.said:
            way_out = f"if you do, say: git config --global --add safe.directory {shlex.quote(repo)}"
            raise JobError(
                f"workspace.repo: {repo!r} belongs to another user, and git doesn't trust it; {way_out}"
            ) from None
        way_out = "name a folder that is in one, or make it one: git init, and a first commit."
        raise JobError(
            f"workspace.repo: {repo!r} is no git repository that can be used ({error.said}); {way_out}"
        ) from None


def _require_space(git: Git, base: str) -> None:
    """Check that the base is there as a whole, and that a checkout of it has room in the state folder."""
    try:
        sizes = [line.split()[3] for line in git.raw("ls-tree", "-r", "-l", "-z", base).split(b"\0") if line]
    except GitError:
        sizes = [b"BAD"]
    if b"BAD" in sizes:
        raise JobError(
            f"workspace.base: files of {base[:12]} are missing in {str(git.repo)!r}, as in a partial clone; fetch them "
            "first: git fetch --refetch --no-filter"
        )
    needed, state = sum(int(size) for size in sizes if size != b"-"), state_folder()
    if (free := shutil.disk_usage(state).free) < needed:
        raise JobError(
            f"A workspace takes {needed:,} bytes, and the state folder {str(state)!r} has {free:,} left: make room, or "
            "set PREFECT_DISPATCH_STATE to a folder on another disk."
        )
    try:
        tempfile.TemporaryFile(dir=state).close()
    except OSError as error:
        raise JobError(
            f"The state folder {str(state)!r} can't be written to ({error.strerror}): set PREFECT_DISPATCH_STATE to a "
            "folder of your own outside of every repository."
        ) from None
