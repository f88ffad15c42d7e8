"""Workspaces: an isolated checkout of a commit for each piece of work, and its life cycle.

`Workspace` is the configuration in a job, `open_workspace` creates a checkout of it, and `OpenWorkspace` is an open
one: it can apply an earlier change, and capture the change of the work.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import shutil
import tempfile
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, ParamSpec, TypeVar

from pydantic import Field, StringConstraints, field_validator

from prefect_dispatch.errors import ExecutorError, JobError, RejectedError, TerminalError, TransientError
from prefect_dispatch.models.base import Strict, did_you_mean
from prefect_dispatch.models.brief import Command
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.processes.runner import Program, run_here, wait_shielded
from prefect_dispatch.processes.state_folder import Lease, build_environment, lease, remove_tree, state_folder
from prefect_dispatch.workspaces.git import (
    MAIL,
    NAME,
    Git,
    GitError,
    ObjectStore,
    cancellation_scope,
    create_checkout,
    create_with_alternates,
)
from prefect_dispatch.workspaces.patches import UNCHANGED_STATE, WorkspaceSnapshot, WorkspaceState, write_change
from prefect_dispatch.workspaces.ports import MAX_PORTS, reserve_ports

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.outcome import Change
    from prefect_dispatch.processes.runner import ProgramRunner


_Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f]+$")]
_MAX_NAMED = 20


class Workspace(Strict):
    """Configuration of an isolated checkout, one for each piece of work, of one commit of a repository.

    The repository itself is only read: no work in a workspace changes its checkout, index, branches, tags, stash,
    settings or hooks. Uncommitted files are not in a workspace.

    Example:
        >>> Workspace(setup=Command(run="npm ci"), ports=2).base
        'HEAD'
    """

    repo: _Line = "."
    """A folder in the repository, from the job's folder; paths such as `writes` count from the repository's top."""
    base: _Line = "HEAD"
    """The commit to begin from: a branch, a tag, or any other revision that git resolves to a commit."""
    setup: Command | None = None
    """A command that is run in each workspace first. What it writes is no part of the change."""
    keep: Literal["never", "failed"] = "never"
    """Whether a workspace is kept for inspection when the work in it fails."""
    ports: int = Field(default=0, ge=0, le=MAX_PORTS)
    """How many ports are reserved for it: `PORT` is the first of them, `PORTS` are all."""

    @field_validator("setup")
    @classmethod
    def _validate_setup(cls, setup: Command | None) -> Command | None:
        for key in ("stdin", "report"):
            if setup and getattr(setup, key):
                raise ValueError(f"the set-up is the same for every item, and reports nothing; leave out {key!r}")
        return setup

    @property
    def identity(self) -> dict[str, JsonValue]:
        """The part that can change an answer, once it is resolved: neither the repository's path nor `keep`."""
        setup = self.setup.model_dump(mode="json") if self.setup else None
        return {"base": self.base, "setup": setup, "ports": self.ports}

    def start_at(self, commit: str) -> Workspace:
        """Return the workspace with another commit to begin from; unchanged if that is empty."""
        return self.model_copy(update={"base": commit}) if commit else self

    def resolve(self, folder: Path) -> Workspace:
        """Return the workspace with the repository's absolute path and the base's object id, after checking both.

        Args:
            folder: The job's folder, which a relative path counts from.

        Raises:
            JobError: If git, the repository, the base or the state folder can't be used.
        """
        repo = Path(os.path.abspath(folder / self.repo))  # noqa: PTH100 -- links are not resolved
        git = Git(repo)
        _require_repository(git)
        base = resolve_commit(git, self.base)
        _require_space(git, base)
        return self.model_copy(update={"repo": str(repo), "base": base})

    def has_folder(self, path: str) -> bool:
        """Return whether the base commit has a folder at a path (no link); the workspace has to be resolved.

        Args:
            path: The folder's plain path, from the top of the repository; `.` is the top.
        """
        code, kind = Git(Path(self.repo)).run("cat-file", "-t", f"{self.base}:{'' if path == '.' else path}")
        return not code and kind == b"tree\n"


def resolve_commit(git: Git, base: str) -> str:
    """Resolve a revision to the object id of a commit.

    Raises:
        JobError: If there is no such commit.
    """
    # 1. Any object of that name.
    code, output = git.run("rev-parse", "--verify", "--quiet", "--end-of-options", base)
    if code:
        branches = git.output("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags").split()
        hint = did_you_mean(base, branches[:_MAX_NAMED]) if branches else "it has no commit yet; make one first."
        raise JobError(f"workspace.base: {base!r} is no commit of the repository {str(git.repo)!r}; {hint}")
    # 2. The commit that it is, or that a tag points to.
    object_id = output.decode().strip()
    code, output = git.run("rev-parse", "--verify", "--quiet", f"{object_id}^{{commit}}")
    if code:
        kind = git.run("cat-file", "-t", object_id)[1].decode().strip()
        why = f"is a {kind}" if kind else "isn't there; fetch it first"
        raise JobError(f"workspace.base: {base!r} {why}. Name a branch, a tag or a commit of {str(git.repo)!r}.")
    return output.decode().strip()


def _require_repository(git: Git) -> None:
    """Check that a folder is in a git repository that git trusts.

    Raises:
        JobError: If it isn't; the message says what to do.
    """
    repo = str(git.repo)
    if not git.repo.is_dir():
        raise JobError(f"workspace.repo: there is no folder {repo!r}; name one that is in a git repository.")
    try:
        git.output("rev-parse", "--git-dir")
    except GitError as error:
        if "dubious ownership" in error.stderr:
            way_out = f"if you do, say: git config --global --add safe.directory {shlex.quote(repo)}"
            raise JobError(
                f"workspace.repo: {repo!r} belongs to another user, and git doesn't trust it; {way_out}"
            ) from None
        way_out = "name a folder that is in one, or make it one: git init, and a first commit."
        raise JobError(
            f"workspace.repo: {repo!r} is no git repository that can be used ({error.stderr}); {way_out}"
        ) from None


def _require_space(git: Git, base: str) -> None:
    """Check that all objects of the base exist, and that the state folder has space for a checkout.

    Raises:
        JobError: If objects are missing, or the state folder is too small or not writable.
    """
    try:
        sizes = [line.split()[3] for line in git.output_bytes("ls-tree", "-r", "-l", "-z", base).split(b"\0") if line]
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


_P = ParamSpec("_P")
_T = TypeVar("_T")
_log = logging.getLogger("prefect_dispatch")
_TAIL = 2_000
"""Bytes of the end of each stream of a set-up command that its error quotes."""
_TRANSIENT = re.compile(
    r"(?i)no space left|quota exceeded|too many open files|cannot allocate|out of memory|temporarily unavailable|"
    r"input/output error|interrupted system call"
)
"""Messages of git for conditions of the machine that may pass."""
_AGENTS_GIT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_EDITOR": "true", "GIT_PAGER": "cat", "GIT_TERMINAL_PROMPT": "0"}
"""Environment that keeps a git that is called in a workspace from waiting for input."""
_AGENTS_SETTINGS = f"[user]\n\tname = {NAME}\n\temail = {MAIL}\n[gc]\n\tauto = 0\n"


@dataclass(frozen=True)
class OpenWorkspace:
    """An open workspace: a checkout on disk, with its environment."""

    path: Path
    """Its folder: a repository of its own, with the base checked out, HEAD detached."""
    env: Mapping[str, str]
    """The whole environment of programs that run in it, with a HOME, a TMPDIR and ports of its own."""
    base: str
    """The object id of the base commit."""
    lease: Lease
    """The leased folder that contains it, and other files such as logs."""
    objects: ObjectStore
    """The object store that has the base commit."""
    keep_on_failure: bool = False
    """Whether it is kept if the work in it fails."""
    setup_state: WorkspaceState = UNCHANGED_STATE
    """The differences from the base before the work begins."""
    runner: ProgramRunner = run_here
    """The function that runs programs in it."""

    async def apply(self, change: Change) -> None:
        """Apply the change of an earlier try to the files.

        Raises:
            RejectedError: If the change has another base, or is invalid.
        """
        if change.base != self.base:
            raise RejectedError(
                f"A change of {change.base[:12]} can't go on in a workspace of {self.base[:12]}.", kind="change"
            )
        await self._with_repository(
            lambda own: write_change(change, create_with_alternates(self.objects, own, checkout=False), self.path)
        )

    async def capture_change(self, writes: Sequence[str]) -> Change:
        """Capture the change of the files against the base, whether or not it was committed.

        Args:
            writes: The globs, from the top of the repository, of the files that may be changed.

        Raises:
            RejectedError: If other files were changed (kind `scope`), if a secret (`secret`) or too much (`size`) was
                written, or something that can't be captured (`submodule`, `workspace`).
            BriefError: If a glob is invalid.
        """
        return await self._with_repository(
            lambda own: WorkspaceSnapshot(self.objects, self.base, self.path, own, writes).capture_change(
                writes, self.setup_state
            )
        )

    async def capture_state(self) -> WorkspaceState:
        """Return the current differences from the base."""
        return await self._with_repository(lambda own: WorkspaceSnapshot(self.objects, self.base, self.path, own).state)

    def keep_after_failure(self) -> str:
        """Keep the workspace after a failure, if that is configured; return a message on it, or an empty text."""
        if not self.keep_on_failure:
            return ""
        self.lease.keep()
        return f"The workspace was kept: {self.path}"

    async def _with_repository(self, function: Callable[[Path], _T]) -> _T:
        """Call a function in a thread with a temporary path for a repository of ours.

        It is outside of what programs in the workspace can know.
        """

        def call() -> _T:
            with tempfile.TemporaryDirectory(prefix="git-", dir=self.lease.path) as folder:
                return function(Path(folder, "git"))

        return await _to_thread_cancellable(call)


@asynccontextmanager
async def open_workspace(
    workspace: Workspace,
    *,
    pass_env: Sequence[str] = (),
    mine: Lease | None = None,
    create_runner: Callable[[OpenWorkspace], ProgramRunner] = lambda opened: opened.runner,
) -> AsyncGenerator[OpenWorkspace, None]:
    """Create a workspace: check out the base, and run the set-up command; remove the workspace at the end.

    The removal is complete when this ends, even if it is cancelled several times. If the process dies,
    `remove_abandoned` removes the workspace at the next start.

    Args:
        workspace: The configuration.
        pass_env: Names of environment variables that are passed to programs in it.
        mine: The leased folder that it is created in, in place of a checkout that is there; it stays at the end, with
            its HOME. None: one of its own.
        create_runner: Returns the function that runs programs in the workspace, the set-up command among them.

    Yields:
        The open workspace.

    Raises:
        TransientError: If it can't be created, or the set-up's exit code asks for another try.
        RejectedError: If the set-up fails (kind `setup`).
        TerminalError: If the base or a variable no longer exists.
    """
    stack = ExitStack()
    try:
        # 1. Lease a folder, reserve ports, check out the base.
        with _without_usage():
            opened_workspace = await _to_thread_cancellable(partial(_create, stack, workspace, pass_env, mine))
        opened_workspace = replace(opened_workspace, runner=create_runner(opened_workspace))
        try:
            # 2. Run the set-up command, and record what it wrote, which is no part of the work's change.
            if workspace.setup:
                with _without_usage():
                    await _set_up(opened_workspace, workspace.setup)
                    left = await opened_workspace.capture_state()
                    opened_workspace = replace(opened_workspace, setup_state=left)
            yield opened_workspace
        except BaseException as error:
            # 3. After a failure, keep the folder if that is configured.
            if note := opened_workspace.keep_after_failure():
                if isinstance(error, ExecutorError):
                    error.add_trace(note)
                else:
                    _log.warning("%s", note)
            raise
    finally:
        await to_thread_shielded(stack.close)


async def to_thread_shielded(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run a function in a thread, and return its result; a cancellation waits until the thread has ended."""
    return await wait_shielded(asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs)))


async def _to_thread_cancellable(function: Callable[[], _T]) -> _T:
    """Run a function in a thread, and return its result; a cancellation ends the git commands that it runs."""
    with cancellation_scope() as cancelled:
        return await wait_shielded(asyncio.ensure_future(asyncio.to_thread(function)), cancelled.set)


@contextmanager
def _without_usage() -> Generator[None, None, None]:
    """Set the usage of errors to zero: they occur before the work has started."""
    try:
        yield
    except JobError as error:  # what existed when the job was prepared is gone
        raise TerminalError(str(error), kind="workspace", usage=Usage()) from None
    except ExecutorError as error:
        error.usage = Usage()
        raise


def _create(stack: ExitStack, workspace: Workspace, pass_env: Sequence[str], mine: Lease | None) -> OpenWorkspace:
    """Create a workspace without its set-up; closing the stack removes it."""
    git = Git(Path(workspace.repo))
    # Its folder, its ports, and its checkout.
    try:
        if mine is None:
            mine = stack.enter_context(lease(about={"repo": workspace.repo, "base": workspace.base}))
        ports = stack.enter_context(reserve_ports(workspace.ports))
        path, objects = Path(os.path.realpath(mine.path), "work"), ObjectStore.of(git)
        remove_tree(path)
        base = resolve_commit(git, workspace.base)
        _check_out(git, objects, base, path)
    except OSError as error:
        raise TransientError(f"A workspace can't be made: {error.strerror or error}.", kind="workspace") from None
    # Its environment; the git settings in its HOME are those of the programs that run in it.
    numbers = [str(port) for port in ports]
    own = {"COMPOSE_PROJECT_NAME": f"work-{mine.id}"}  # its default is the folder's name, which is the same in all
    more = {**_AGENTS_GIT, **own, **({"PORT": numbers[0], "PORTS": " ".join(numbers)} if numbers else {})}
    env = build_environment(mine, pass_env=pass_env, more=more)
    settings = Path(env["HOME"], ".gitconfig")
    settings.unlink(missing_ok=True)  # what an earlier program has left may be a link to any file
    settings.write_text(_AGENTS_SETTINGS, encoding="utf-8")
    return OpenWorkspace(path, env, base, mine, objects, workspace.keep == "failed")


def _check_out(git: Git, objects: ObjectStore, base: str, path: Path) -> None:
    """Check out a commit.

    Raises:
        GitError: If it fails for a reason that may pass, such as a full disk.
        RejectedError: If it can't succeed on this machine: a file name is too long, or not allowed.
    """
    try:
        create_checkout(git, objects, base, path)
    except GitError as error:
        if error.exit is None or _TRANSIENT.search(error.stderr):
            raise
        raise RejectedError(
            f"The commit {base[:12]} can't be checked out here: {error.stderr}", kind="workspace"
        ) from None


async def _set_up(workspace: OpenWorkspace, command: Command) -> None:
    """Run the set-up command in a workspace.

    Raises:
        TransientError: If its exit code asks for another try.
        RejectedError: If it fails.
    """
    program = Program(argv=command.argv, env={**workspace.env, **command.env}, cwd=workspace.path)
    ran = await workspace.runner(program, workspace.lease.path / "setup.log")
    if ran.exit in command.ok:
        return
    status, output = ran.describe(_TAIL)
    message = f"The workspace's set-up failed ({status}): {output or 'it printed nothing'}"
    raise (TransientError if ran.exit in command.retry else RejectedError)(message, kind="setup")
